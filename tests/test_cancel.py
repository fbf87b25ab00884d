"""Cancelling a creation, at whatever moment, leaves nothing."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from aside import Aside, children, open_fds, settle
from marks import posix_only, proc_only
from programs import CAT, KILLED, TRUE

pytestmark = [pytest.mark.asyncio, pytest.mark.every_pair]


def create(aioproc: Any, *program: str) -> asyncio.Task[Any]:
    return asyncio.ensure_future(
        aioproc.create_subprocess_exec(
            *(program or CAT), stdin=aioproc.PIPE, stdout=aioproc.PIPE, stderr=aioproc.PIPE
        )
    )


async def end(process: Any) -> None:
    process.kill()
    await process.communicate()
    assert process.returncode == KILLED


async def cancelled(task: asyncio.Task[Any]) -> bool:
    """False when it was too late."""
    task.cancel()
    try:
        await end(await task)
    except asyncio.CancelledError:
        assert task.cancelled()
        return True
    return False


class Nothing:
    """What there was is what there is, but for the loop's port and its timer."""

    def __init__(self) -> None:
        self.fds = set(open_fds())
        self.children = children()

    async def left(self) -> bool:
        return await settle(lambda: children() == self.children) and await settle(
            lambda: set(open_fds()) == self.fds
        )


async def warm(aioproc: Any) -> None:
    await (await aioproc.create_subprocess_exec(*TRUE)).wait()


async def test_after_any_number_of_rounds(aioproc: Any) -> None:
    await warm(aioproc)
    before = Nothing()
    hits = 0
    for rounds in range(30):
        task = create(aioproc)
        for _ in range(rounds):
            await asyncio.sleep(0)
        hits += await cancelled(task)
    assert hits >= 2
    assert await before.left()


@proc_only
async def test_when_the_exec_is_over(aioproc: Any) -> None:
    """The news of the exec waits in the kernel, then in the loop, then in the task."""
    await warm(aioproc)
    before = Nothing()
    hits = 0
    ours = os.readlink("/proc/self/exe")
    for rounds in range(6):
        task = create(aioproc)
        await asyncio.sleep(0)
        fuse = time.monotonic() + 10
        while time.monotonic() < fuse:  # the loop must not hear of it
            new = children() - before.children
            if new and all(os.readlink(f"/proc/{pid}/exe") != ours for pid in new):
                break
            time.sleep(0.0005)
        for _ in range(rounds):
            await asyncio.sleep(0)
        hits += await cancelled(task)
        assert await before.left()
    assert hits >= 1


async def test_while_it_fails(aioproc: Any) -> None:
    await warm(aioproc)
    before = Nothing()
    for rounds in range(10):
        task = create(aioproc, "/nowhere/nothing")
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, FileNotFoundError)):
            await task
    assert await before.left()


@posix_only("ETXTBSY")
async def test_while_the_program_is_being_written(aioproc: Any, tmp_path: Path) -> None:
    """Between two attempts there is no child."""
    await warm(aioproc)
    program = tmp_path / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    before = Nothing()
    with program.open("r+b"):
        for pause in (0, 0.001, 0.005, 0.01):
            task = create(aioproc, str(program))
            await asyncio.sleep(pause)
            assert await cancelled(task)
    assert await before.left()


async def test_timeout_of_zero(aioproc: Any) -> None:
    await warm(aioproc)
    before = Nothing()
    for timeout in (0, -1, 1e-9):
        try:
            await end(await asyncio.wait_for(create(aioproc), timeout))
        except asyncio.TimeoutError:
            pass
    assert await before.left()


async def test_many_at_once(aioproc: Any) -> None:
    await warm(aioproc)
    before = Nothing()
    tasks = [create(aioproc) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    for process in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(process, asyncio.CancelledError):
            await end(process)
    assert await before.left()


async def test_the_others_are_not_harmed(aioproc: Any) -> None:
    kept = await create(aioproc)
    task = create(aioproc)
    await asyncio.sleep(0)
    await cancelled(task)
    assert await kept.communicate(b"x") == (b"x", b"")
    assert kept.returncode == 0


ABANDONED = """
from aioproc import _backends
from aioproc._backends.posix import native as posix
from aioproc._spec.spec import SpawnSpec
ffi, lib = posix.ffi, posix.lib

async def main():
    loop = asyncio.get_running_loop()
    child = _backends.current().spawn(SpawnSpec.build(["cat"], stdin=aioproc.PIPE), loop)
    posix._ports.of(loop).close()
    assert lib.ap_orphan_count() == 1
    child.abandon()
    completions = ffi.new("ap_completion[8]")
    assert await settle(lambda: told.append(lib.ap_reap_orphans(completions, 8))
                        or not lib.ap_orphan_count())
    assert not any(told), told
    assert not children()
    assert lib.ap_abandon(child._token) == -errno.ESRCH

told = []
run(main())
"""


async def test_abandoned_after_its_port_closed(aside: Aside) -> None:
    """It ends, and nobody is told."""
    if aside.subject not in ("clone", "copy", "portable"):
        pytest.skip("about the C layer's orphans on POSIX")
    aside.run(ABANDONED)
