"""What several test files need and conftest.py has no room for."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import aioproc
from aioproc import _backends
from programs import WINDOWS

TESTS = Path(__file__).parent

_PROLOGUE = """
import asyncio, errno, os, signal, subprocess, sys
from aside import children, open_fds, reap_orphans, run_on as run, settle_now as settle
from programs import *
import aioproc
if not WINDOWS:
    import resource, seccomp
PIPE, DEVNULL, STDOUT = aioproc.PIPE, aioproc.DEVNULL, aioproc.STDOUT
from {module} import {name} as new_event_loop
"""


def asyncio_since(api: Any, version: tuple[int, int], what: str) -> None:
    """Skips the oracle on a Python whose asyncio has this fault."""
    if api.is_oracle and sys.version_info < version:
        pytest.skip(f"asyncio before {version[0]}.{version[1]}: {what}")


def not_on_proactor(api: Any, what: str) -> None:
    """Skips the oracle on Windows, where asyncio's Proactor loop has this fault."""
    if WINDOWS and api.is_oracle:
        pytest.skip(f"asyncio's Proactor loop {what}")


def on_wine() -> bool:
    if not WINDOWS:
        return False
    import windows

    return windows.WINE


def on_uvloop() -> bool:
    return type(asyncio.get_running_loop()).__module__.startswith(("uvloop", "winloop"))


def environment(backend: Any) -> dict[str, str]:
    """Has a helper program use the backend of this test."""
    current = backend._backends.current()
    if current.name == "pure":
        return {**os.environ, "AIOPROC_BACKEND": "pure"}
    strategy = "" if WINDOWS else current.strategy
    return {**os.environ, "AIOPROC_BACKEND": "native", "AIOPROC_STRATEGY": strategy}


async def output(api: Any, *args: Any, **options: Any) -> bytes:
    """What a program writes that must succeed."""
    return await _output_of(await api.create_subprocess_exec(*args, stdout=api.PIPE, **options))


async def shell_output(api: Any, command: Any, **options: Any) -> bytes:
    """The same of a shell's command."""
    return await _output_of(await api.create_subprocess_shell(command, stdout=api.PIPE, **options))


async def _output_of(process: Any) -> bytes:
    stdout: bytes
    stdout, _ = await process.communicate()
    assert process.returncode == 0
    return stdout


async def script(code: str, *args: str, **options: Any) -> str:
    """Runs code in a process of its own, with the backend and the kind of loop of this
    test, for what would spoil this process: limits, filters, closed descriptors. It has
    `aioproc`, `seccomp`, `run`, `new_event_loop`, what the guards look with, and programs.
    Its exit code must be 0; returns what it printed.
    """
    backend = _backends.current()
    env = dict(os.environ, PYTHONPATH=f"{TESTS.parent}{os.pathsep}{TESTS}")
    env["AIOPROC_BACKEND"] = backend.name
    env["AIOPROC_STRATEGY"] = backend.strategy if backend.name == "native" else ""
    module, name = "asyncio", type(asyncio.get_running_loop()).__name__.lstrip("_")
    if on_uvloop():
        module, name = type(asyncio.get_running_loop()).__module__.partition(".")[0], "Loop"
    name = name.removeprefix("Windows").removeprefix("Unix")
    source = _PROLOGUE.format(module=module, name=name) + textwrap.dedent(code)
    process = await aioproc.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        source,
        *args,
        stdout=aioproc.PIPE,
        stderr=aioproc.PIPE,
        env=env,
        **options,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return stdout.decode()


async def readable(fd: int) -> None:
    """Returns when there is something to read."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def tell() -> None:
        loop.remove_reader(fd)
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, tell)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
