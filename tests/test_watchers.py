"""What a loop's port or watch leaves open."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from aioproc import _backends
from aioproc._backends import watcher as watchers
from aside import WINDOWS, Aside, collect
from conftest import FUSE, Loop, open_fds, run
from conftest import settle as settle_now
from programs import CAT, SLEEP, TRUE

pytestmark = pytest.mark.every_pair

Factory = Callable[[], Loop]


@pytest.mark.asyncio
async def test_a_spawn_that_failed_keeps_nothing_open(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = _backends.current()
    module = importlib.import_module(type(backend).__module__)

    def no_more_descriptors(*args: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(watchers, "LINGER", 0.0)
    before = open_fds()
    with monkeypatch.context() as patch:
        patch.setattr(module.Stdio, "__init__", no_more_descriptors)
        with pytest.raises(OSError, match="Too many open files"):
            await aioproc.create_subprocess_exec(*TRUE)
    end = time.monotonic() + FUSE
    while open_fds().keys() - before.keys():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def keeps_its_loops(new_loop: Factory) -> bool:
    """Whether loops of this kind stay by themselves when they are dropped unclosed."""
    loop = new_loop()
    loop.run_until_complete(asyncio.sleep(0))
    dropped = weakref.ref(loop)
    del loop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        collect()
    found = dropped()
    if found is None:
        return False
    found.close()
    return True


@pytest.mark.parametrize("alive", [False, True], ids=["ended", "alive"])
def test_a_dropped_loop_is_collected(
    aioproc: Any, new_loop: Factory, alive: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One that nobody closed, with what a child of it has left or still has."""
    if keeps_its_loops(new_loop):
        pytest.skip("uvloop's loops stay, with or without us")
    # The warning of a child that still runs has the transport, which pytest would keep; from
    # Python 3.15 on a finalizer that does so keeps the weak references, too.
    caplog.set_level(logging.CRITICAL, "asyncio")

    async def main() -> None:
        process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE)
        process.stdin.close()
        await process.wait()
        if alive:
            await aioproc.create_subprocess_exec(*SLEEP, stdout=aioproc.PIPE)

    def once() -> weakref.ref[Loop]:
        loop = new_loop()
        loop.run_until_complete(main())
        return weakref.ref(loop)

    before = open_fds()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        dropped = [once() for _ in range(10)]

        def gone() -> bool:
            collect()
            return not any(loop() for loop in dropped) and not open_fds().keys() - before.keys()

        # On Windows a thread may be looking at one of them.
        assert settle_now(lambda: gone() or (alive and not any(loop() for loop in dropped)))
    # That each child is killed and reaped, and each descriptor closed, the guards see.


def test_a_port_that_gets_nothing_to_do(aioproc: Any, new_loop: Factory) -> None:
    """A loop goes on after shutdown_asyncgens(), and its child was reaped by another
    loop's spawn: the new port that is to watch it has nothing to watch."""

    async def leave() -> Any:
        return await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE)

    async def other() -> None:
        await (await aioproc.create_subprocess_exec(*TRUE)).wait()

    def reaped(pid: int) -> bool:
        thread = threading.Thread(target=run, args=(new_loop, other()))
        thread.start()
        thread.join()
        return not os.path.exists(f"/proc/{pid}")

    loop = new_loop()
    process = loop.run_until_complete(leave())
    before = open_fds()
    loop.run_until_complete(loop.shutdown_asyncgens())
    process.kill()
    pid = process.pid
    assert WINDOWS or settle_now(lambda: reaped(pid))
    assert loop.run_until_complete(asyncio.wait_for(process.wait(), FUSE)) != 0
    loop.close()
    del loop, process
    assert settle_now(lambda: collect() or not open_fds().keys() - before.keys())


SHORTAGE = """
import resource
from aioproc import _backends
try:
    from aioproc._backends import posix  # or the shortage would be the import's
except ImportError:
    pass

async def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            if len(taken) == 1:
                resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    except OSError:
        pass
    for left in range(9):  # none, and then one more each time
        try:
            process = await aioproc.create_subprocess_exec(*TRUE)
        except OSError as error:
            assert error.errno == errno.EMFILE, error
        else:
            assert left
            await process.wait()
            break
        os.close(taken.pop())
    for fd in taken:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    process = await aioproc.create_subprocess_exec(*TRUE)
    assert await process.wait() == 0
    backend = _backends.current()
    print(backend.name, backend.strategy)

run(main())
"""


CHOSEN = """
from aioproc import _backends
print(_backends.current().name, _backends.current().strategy)
"""


def test_a_shortage_at_the_first_spawn(aside: Aside) -> None:
    """It is that spawn's error, and decides nothing."""
    if WINDOWS:
        pytest.skip("has no such limit")
    if aside.subject == "thread":
        pytest.skip("the polling thread needs no descriptor")
    assert aside.run(SHORTAGE) == aside.run(CHOSEN)


def test_a_shortage_while_the_backend_is_chosen() -> None:
    """The same, where nothing is forced."""
    if WINDOWS:
        pytest.skip("has no such limit")
    assert Aside().run(SHORTAGE) == Aside().run(CHOSEN)


def test_what_a_spawn_needs_is_there(aside: Aside) -> None:
    """An import's lock that a thread holds at os.fork() is held for good in the forked
    process: so a first spawn imports nothing."""
    out = aside.run(
        """
async def main():
    before = set(sys.modules)
    options = {} if WINDOWS else {"user": os.getuid(), "group": os.getgid()}
    if not WINDOWS and os.getuid() == 0:
        options.update(user="root", group="root", extra_groups=["root"])
    for kwds in ({}, options, {"env": {}}, {"cwd": os.getcwd()}):
        process = await aioproc.create_subprocess_exec(
            *CAT, stdin=-1, stdout=-1, stderr=-1, **kwds)
        assert await process.communicate(b"x") == (b"x", b"")
    try:
        await aioproc.create_subprocess_exec("./not there")
    except FileNotFoundError:
        pass
    process = await aioproc.create_subprocess_shell("exit 3")
    assert await process.wait() == 3
    print(*sorted(set(sys.modules) - before))

run(main())
"""
    )
    assert out == "\n"


@pytest.mark.asyncio
async def test_a_signal_in_the_midst_of_the_reaping(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector may end a child's transport while that child is just being
    waited for, in vain."""
    process = await aioproc.create_subprocess_exec(*SLEEP)
    child = process._transport._child
    if not hasattr(child, "reap") or WINDOWS:
        process.kill()
        await process.wait()
        pytest.skip("no Python runs in the midst of it")
    wait4 = os.wait4

    def interrupted(*args: Any) -> Any:
        monkeypatch.setattr(os, "wait4", wait4)
        process.kill()
        return wait4(*args)

    monkeypatch.setattr(os, "wait4", interrupted)
    child.reap()
    assert await asyncio.wait_for(process.wait(), FUSE) == -9
