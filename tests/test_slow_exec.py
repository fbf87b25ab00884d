"""A program that takes long to execute: its file lies on a slow disk, say.

Here another process holds a lease on the file (fcntl(2), F_SETLEASE): execve waits until
it lets go.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from programs import WINDOWS

if WINDOWS:
    pytest.skip("not on Windows: leases on files", allow_module_level=True)

from aside import children, open_fds, settle
from conftest import python

pytestmark = pytest.mark.asyncio

COUNT = 32

HOLDER = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)  # "somebody wants it"
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
except OSError as error:
    print(error, flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def strategy(aioproc: Any, request: pytest.FixtureRequest) -> Any:
    if request.node.callspec.params["aioproc"] not in ("clone", "copy"):
        pytest.skip("the others wait for the exec")
    return aioproc


class Slow:
    def __init__(self, program: Path, holder: subprocess.Popen[bytes]) -> None:
        self.program = str(program)
        self._holder = holder

    def let_go(self) -> None:
        self._holder.communicate()


@contextlib.contextmanager
def held(program: Path) -> Iterator[Slow]:
    holder = subprocess.Popen(
        python(HOLDER, str(program)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        answer = holder.stdout.readline()
        if answer != b"held\n":
            pytest.skip(f"no leases on this file system: {answer!r}")
        yield Slow(program, holder)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    program = tmp_path / "slow"
    shutil.copy("/bin/true", program)
    with held(program) as slow:
        yield slow


async def test_others_are_not_held_up(strategy: Any, slow: Slow) -> None:
    """Neither the loop nor another child waits for an exec that goes on for as long as the
    lease (45 s, /proc/sys/fs/lease-break-time)."""
    await (await strategy.create_subprocess_exec("true")).wait()
    before = children()
    pending = [
        asyncio.ensure_future(strategy.create_subprocess_exec(slow.program)) for _ in range(COUNT)
    ]
    assert await settle(lambda: len(children() - before) == COUNT)
    for _ in range(3):
        process = await strategy.create_subprocess_exec("/bin/true")
        assert await process.wait() == 0
    assert len(children() - before) == COUNT
    assert not any(task.done() for task in pending)
    slow.let_go()
    for process in await asyncio.gather(*pending):
        assert await process.wait() == 0


async def test_cancelling_leaves_nothing(strategy: Any, slow: Slow) -> None:
    await (await strategy.create_subprocess_exec("true")).wait()
    fds, before = set(open_fds()), children()
    pending = [
        asyncio.ensure_future(
            strategy.create_subprocess_exec(
                slow.program, stdin=strategy.PIPE, stdout=strategy.PIPE, stderr=strategy.PIPE
            )
        )
        for _ in range(COUNT)
    ]
    assert await settle(lambda: len(children() - before) == COUNT)
    for task in pending:
        task.cancel()
    done = await asyncio.gather(*pending, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in done)
    assert await settle(lambda: children() == before)
    assert await settle(lambda: set(open_fds()) == fds)


async def test_a_pending_exec_keeps_no_pipe_open(strategy: Any, slow: Slow) -> None:
    """It was given a copy of every descriptor that there was."""
    cat = await strategy.create_subprocess_exec("cat", stdin=strategy.PIPE)
    pending = asyncio.ensure_future(strategy.create_subprocess_exec(slow.program))
    before = children()
    assert await settle(lambda: len(children()) > len(before) or len(before) > 2)
    cat.stdin.close()
    assert await asyncio.wait_for(cat.wait(), 30) == 0
    assert not pending.done()
    slow.let_go()
    assert await (await pending).wait() == 0


async def test_a_loop_ends_while_execs_are_pending(strategy: Any, slow: Slow) -> None:
    """The memory on which the children still run is not freed under them."""
    loop = asyncio.get_running_loop()
    before = children()
    pending = [
        asyncio.ensure_future(strategy.create_subprocess_exec(slow.program)) for _ in range(4)
    ]
    assert await settle(lambda: len(children() - before) == 4)
    await loop.shutdown_asyncgens()  # closes the port; it is opened again after a moment
    slow.let_go()
    for process in await asyncio.wait_for(asyncio.gather(*pending), 30):
        assert await process.wait() == 0
    # There is no guard any more: what is opened now, only the next loop would close.
    from aioproc._backends.posix import native as posix

    posix._ports.of(loop).close()


async def test_somebody_closes_what_tells_of_the_exec(strategy: Any, tmp_path: Path) -> None:
    """Then nobody knows about the exec: the child is ended, and what is open now under that
    number is left alone."""
    await (await strategy.create_subprocess_exec("true")).wait()
    program = tmp_path / "text"
    program.write_text("no program")
    program.chmod(0o755)
    with held(program) as slow:
        fds, before = set(open_fds()), children()
        pending = asyncio.ensure_future(strategy.create_subprocess_exec(slow.program))
        assert await settle(lambda: children() != before)
        [reader] = [fd for fd, name in open_fds().items() if fd not in fds and "pipe:" in name]
        spare, folder = os.dup(reader), os.open("/", os.O_RDONLY)
        os.dup2(folder, reader)
        slow.let_go()
        with pytest.raises(OSError) as caught:
            await asyncio.wait_for(pending, 30)
        assert caught.value.errno == errno.EISDIR
        for fd in (reader, spare, folder):
            os.close(fd)
        assert children() <= before
