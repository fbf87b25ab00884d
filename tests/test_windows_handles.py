"""Windows, both backends: no handle is left, by whatever number of children and loops."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from conftest import Loop, run, settle
from programs import TRUE, WINDOWS

if not WINDOWS:
    pytest.skip("about Windows", allow_module_level=True)

import windows

Factory = Callable[[], Loop]


async def echo(aioproc: Any, i: int) -> None:
    process = await aioproc.create_subprocess_exec(
        *("cmd", "/d", "/c", f"echo {i}& exit {i}"), stdin=aioproc.PIPE, stdout=aioproc.PIPE
    )
    assert await process.communicate(b"x") == (b"%d\r\n" % i, None)
    assert process.returncode == i


def check(few: Callable[[], None], many: Callable[[], None]) -> None:
    few()
    handles, threads = windows.count_handles(), threading.active_count()
    many()
    # Threads of ours and of the system end a moment later.
    assert settle(lambda: gc.collect() < 0 or windows.count_handles() <= handles)
    assert settle(lambda: threading.active_count() <= threads)


def spawns(aioproc: Any, factory: Factory, count: int) -> None:
    async def some() -> None:
        for start in range(0, count, 20):
            numbers = range(start, min(start + 20, count))
            await asyncio.gather(*(echo(aioproc, i) for i in numbers))

    run(factory, some())


def test_spawns(aioproc: Any, any_loop: Factory) -> None:
    check(lambda: spawns(aioproc, any_loop, 20), lambda: spawns(aioproc, any_loop, 60))


@pytest.mark.heavy
def test_2000_spawns(aioproc: Any, new_loop: Factory) -> None:
    check(lambda: spawns(aioproc, new_loop, 40), lambda: spawns(aioproc, new_loop, 2000))


@pytest.mark.heavy
def test_300_loops(aioproc: Any, new_loop: Factory) -> None:
    async def main() -> None:
        process = await aioproc.create_subprocess_exec(*TRUE)
        assert await process.wait() == 0

    def loops(count: int) -> None:
        for _ in range(count):
            run(new_loop, main())

    check(lambda: loops(10), lambda: loops(300))
