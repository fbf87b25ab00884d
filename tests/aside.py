"""A Python process of its own for what would disturb the one that runs the tests: ignored
signals, forks, seccomp filters, stolen exit statuses.

The test says ``aside.run(code)``; the code finds this module's `run` and `aioproc` there,
with the backend and the loop that the test was given.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent

WINDOWS = os.name == "nt"
# Under Wine the drive is Linux' own root.
PROC = not WINDOWS and os.path.isdir("/proc/self/fd")
if WINDOWS:
    from windows import children, is_alive, open_handles
elif not PROC:
    import bsd
    from bsd import children, is_alive

#: Seconds; a fuse.
FUSE = 60

PREAMBLE = """\
import asyncio, errno, gc, logging, os, signal, sys, threading, time, warnings
from aside import children, collect, open_fds, run, settle
from programs import *
import aioproc
if {subject!r} == "thread":
    from aioproc._backends.posix import pure, watchers
    watchers._mechanism = "thread"
if {subject!r} == "oracle":
    aioproc = asyncio.subprocess
subject = {subject!r}
#line
"""


class Aside(NamedTuple):
    """Where the code is to run: "clone", "copy", "portable", "native" (Windows), "pure", "thread"
    (pure with its polling thread), "oracle" (asyncio itself), or "" for aioproc's own
    choice."""

    subject: str = ""
    loop: str = "proactor" if WINDOWS else "asyncio"

    def environment(self) -> dict[str, str]:
        names = ("AIOPROC_BACKEND", "AIOPROC_STRATEGY", "PYTHONPATH", "PYTHONWARNINGS")
        env = {name: value for name, value in os.environ.items() if name not in names}
        if self.subject in ("clone", "copy", "portable"):
            env.update(AIOPROC_BACKEND="native", AIOPROC_STRATEGY=self.subject)
        elif self.subject == "native":
            env["AIOPROC_BACKEND"] = "native"
        elif self.subject in ("pure", "thread"):
            env["AIOPROC_BACKEND"] = "pure"
        env["ASIDE_LOOP"] = self.loop
        env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])
        return env

    def run(
        self,
        code: str,
        *args: object,
        flags: tuple[str, ...] = (),
        fuse: float = FUSE,
        **env: str,
    ) -> str:
        """Runs the code; returns what it prints. It must end well and be silent."""
        done = subprocess.run(
            [sys.executable, *flags, "-c", PREAMBLE.format(subject=self.subject) + code]
            + [str(arg) for arg in args],
            env={**self.environment(), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=fuse,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
        return done.stdout


# -- for the code that runs aside


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """asyncio.run, on the loop that the test was given."""
    loop = os.environ.get("ASIDE_LOOP")
    if loop in ("uvloop", "winloop"):
        return importlib.import_module(loop).run(main)
    if loop == "selector":
        return run_on(asyncio.SelectorEventLoop, main)
    return asyncio.run(main)


def run_on(factory: Callable[[], asyncio.AbstractEventLoop], main: Any) -> Any:
    """asyncio.run with a loop of one's own making, on every Python."""
    loop = factory()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        try:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def open_fds() -> dict[int, str]:
    """On Windows: handles."""
    if WINDOWS:
        return open_handles()
    if not PROC:
        return bsd.open_fds()
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            fds[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the one that lists
    return fds


if PROC:

    def children() -> set[int]:
        """Children of this process, zombies among them."""
        found = set()
        for task in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{task}/children") as file:
                    found.update(map(int, file.read().split()))
            except FileNotFoundError:
                pass  # the thread has ended
        return found

    def is_alive(pid: int) -> bool:
        """False for a zombie, which waits for its parent only."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] not in "ZX"


def drop(things: list[Any]) -> None:
    """Lets go of them, wherever they are collected at once or later."""
    things.clear()
    collect()


def collect() -> None:
    """gc.collect(). PyPy runs the finalizers of one layer of objects a time: not yet of
    those that others lead to which have one themselves."""
    for _ in range(4 if sys.implementation.name == "pypy" else 1):
        gc.collect()


def reap_orphans() -> None:
    """What every spawn does first."""
    from aioproc._backends import pure

    pure.orphans.reap()
    if "aioproc._backends.posix.native" in sys.modules:
        from aioproc._backends.posix import native as posix

        posix.reap_orphans()


def settle_now(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Waits for the kernel: a killed child needs a moment to be gone."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


async def settle(condition: Any, seconds: float = 10) -> bool:
    """Waits for the kernel, while the loop goes on."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        if loop.time() > end:
            return False
        await asyncio.sleep(0.001)
    return True
