"""A child that is held after its end, and the process group that it leads."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from programs import WINDOWS

if WINDOWS:
    pytest.skip("not on Windows: process groups", allow_module_level=True)

import seccomp
from aioproc import _backends
from aioproc._spec.spec import PIPE, SpawnSpec
from aside import Aside, collect, settle
from conftest import FUSE, is_alive, run
from conftest import settle as settle_now

Factory = Callable[[], asyncio.AbstractEventLoop]
Loop = asyncio.AbstractEventLoop

#: Ends at once and leaves a member of its group, whose pid it has written.
LEAVES = ("sh", "-c", "sleep 1000 >/dev/null & echo $!")
NEW = {"start_new_session": True}


@pytest.fixture(params=["pidfd", "number"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a group is signalled."""
    from aioproc._backends.posix import pure_child

    name: str = request.param
    if name == "number":
        monkeypatch.setattr(pure_child, "group_by_pidfd", False)
    try:
        from aioproc._backends.posix import native
    except ImportError:
        return name
    if name == "pidfd" and native.features()["kqueue"]:
        pytest.skip("there are no pidfds")
    by = {"pidfd": native.lib.AP_BY_PIDFD, "number": native.lib.AP_BY_NUMBER}[name]
    monkeypatch.setattr(native, "group_by", by)
    return name


class Held:
    """A child below the transports, and who is told of its end."""

    def __init__(self, *command: str, **options: Any) -> None:
        loop = asyncio.get_running_loop()
        spec = SpawnSpec.build(command, stdout=PIPE, **options)
        self.child = _backends.current().spawn(spec, loop)
        self.ended = loop.create_future()
        self.child.hold()

    async def start(self) -> None:
        if self.child.started is not None:
            await self.child.started
        if self.child.returncode is not None:
            self.ended.set_result(None)
        else:
            self.child.on_exit = lambda: self.ended.set_result(None)

    async def read(self) -> bytes:
        """Its output, once it has ended."""
        await self.start()
        await asyncio.wait_for(self.ended, FUSE)
        assert self.child.stdout is not None
        data = self.child.stdout.read(100)
        self.child.stdout.close()
        return data


def state(pid: int) -> str:
    """Z for a zombie; "" for nobody."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.fixture
def members() -> Iterator[list[int]]:
    """Whoever is left of a test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")


@needs_proc
@pytest.mark.asyncio
async def test_a_held_child_stays_a_zombie(aioproc: Any) -> None:
    held = Held("sh", "-c", "exit 3")
    await held.read()
    child = held.child
    assert child.returncode == child.peek() == child.poll() == 3
    assert state(child.pid) == "Z"
    with pytest.raises(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    child.hold()
    child.release()
    assert state(child.pid) == ""
    assert child.rusage is not None
    child.release()
    child.hold()
    with pytest.raises(ProcessLookupError):
        child.signal_group(signal.SIGTERM)


@needs_proc
@pytest.mark.asyncio
async def test_a_child_that_is_released_before_its_end(aioproc: Any) -> None:
    held = Held("sh", "-c", "read line", stdin=PIPE)
    held.child.release()
    await held.start()
    assert held.child.stdin is not None
    held.child.stdin.close()
    await held.read()
    assert held.child.returncode == 1
    assert state(held.child.pid) == ""


@pytest.mark.asyncio
async def test_the_group_of_one_that_has_ended(aioproc: Any, road: str, members: Any) -> None:
    held = Held(*LEAVES, **NEW)
    member = int(await held.read())
    members.append(member)
    assert is_alive(member)
    held.child.signal_group(signal.SIGTERM)
    assert await settle(lambda: not is_alive(member))
    held.child.release()


@needs_proc
@pytest.mark.asyncio
async def test_one_that_another_wait_has_taken(aioproc: Any, road: str, members: Any) -> None:
    """Its number may be a stranger's, to whom nothing is sent."""
    held = Held(*LEAVES, **NEW)
    member = int(await held.read())
    members.append(member)
    os.waitpid(held.child.pid, 0)
    try:
        held.child.signal_group(signal.SIGTERM)
    except ProcessLookupError:
        assert road == "number"
        assert is_alive(member)
    else:
        # The kernel knows whose group it was.
        assert road == "pidfd"
        assert await settle(lambda: not is_alive(member))
    held.child.release()


LAST_PID = "/proc/sys/kernel/ns_last_pid"

#: Makes a process with that number, if nobody is quicker, that leads a group and is no child
#: of ours.
STRANGER = f"""
import os, sys
with open({LAST_PID!r}, "w") as file:
    file.write(str(int(sys.argv[1]) - 1))
print(os.posix_spawnp("sleep", ["sleep", "1000"], os.environ, setpgroup=0, file_actions=[
    (os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]))
"""


@pytest.mark.root
@pytest.mark.asyncio
async def test_a_stranger_with_its_number(aioproc: Any, road: str) -> None:
    if not os.path.exists(LAST_PID):
        pytest.skip("this kernel does not give numbers as wished")
    for _ in range(20):
        held = Held("true", **NEW)
        await held.read()
        number = held.child.pid
        os.waitpid(number, 0)
        made = subprocess.run(
            [sys.executable, "-c", STRANGER, str(number)], capture_output=True, check=True
        )
        stranger = int(made.stdout)
        if stranger == number:
            break
        os.kill(stranger, signal.SIGKILL)
    try:
        assert stranger == number, "others are quicker here"
        with pytest.raises(ProcessLookupError):
            held.child.signal_group(signal.SIGKILL)
        held.child.release()
        with pytest.raises(ProcessLookupError):
            held.child.signal_group(signal.SIGKILL)
        assert is_alive(stranger)
    finally:
        os.kill(stranger, signal.SIGKILL)


@pytest.mark.asyncio
async def test_a_signal_before_there_is_a_group(aioproc: Any, road: str) -> None:
    for _ in range(30):
        held = Held("sleep", "1000", **NEW)
        held.child.signal_group(signal.SIGTERM)
        await held.read()
        assert held.child.returncode == -signal.SIGTERM
        held.child.release()


@pytest.mark.asyncio
async def test_a_child_without_a_group_of_its_own(aioproc: Any, road: str) -> None:
    """Our own group has another number."""
    held = Held("sleep", "1000")
    await held.start()
    held.child.signal_group(signal.SIGTERM)
    await held.read()
    assert held.child.returncode == -signal.SIGTERM
    held.child.release()


@pytest.mark.asyncio
async def test_signals_that_there_are_not(aioproc: Any, road: str) -> None:
    held = Held("sleep", "1000", **NEW)
    await held.start()
    with pytest.raises(OSError) as caught:
        held.child.signal_group(4711)
    assert caught.value.errno in (errno.EINVAL, errno.ENOTSUP)
    held.child.signal_group(0)
    held.child.signal_group(signal.SIGKILL)
    await held.read()
    held.child.release()


@needs_proc
@pytest.mark.asyncio
async def test_dropped_while_held(aioproc: Any) -> None:
    held = Held("true")
    await held.read()
    pid = held.child.pid
    assert state(pid) == "Z"
    del held
    collect()
    assert await settle(lambda: state(pid) == "")


@needs_proc
@pytest.mark.asyncio
async def test_abandoned_while_held(aioproc: Any) -> None:
    held = Held("sleep", "1000")
    await held.start()
    held.child.abandon()
    assert await settle(lambda: state(held.child.pid) == "")
    held = Held("true")
    await held.read()
    held.child.abandon()
    assert await settle(lambda: state(held.child.pid) == "")


@needs_proc
@pytest.mark.parametrize("command", ["true", "cat"])
def test_a_loop_that_closes_meanwhile(aioproc: Any, new_loop: Factory, command: str) -> None:
    left: list[Any] = []

    async def leave() -> None:
        held = Held(command, stdin=PIPE)
        left.append(held.child)
        if command == "true":
            await held.read()
        else:
            await held.start()

    run(new_loop, leave())
    child = left.pop()
    if child.stdin is not None:
        child.stdin.close()
    if child.stdout is not None:
        child.stdout.close()
    assert settle_now(lambda: child.poll() is not None)
    child.release()
    assert child.poll() == 0
    assert settle_now(lambda: state(child.pid) == "")


REFUSED = """
import json, seccomp
seccomp.deny({"pidfd_send_signal(PROCESS_GROUP)": int(sys.argv[1])})

async def main():
    from aioproc import _backends
    from aioproc._spec.spec import PIPE, SpawnSpec
    loop = asyncio.get_running_loop()
    spec = SpawnSpec.build(
        ("sh", "-c", "sleep 1000 >/dev/null & echo $!"), stdout=PIPE, start_new_session=True)
    child = _backends.current().spawn(spec, loop)
    child.hold()
    if child.started is not None:
        await child.started
    assert await settle(lambda: child.returncode is not None)
    member = int(child.stdout.read(100))
    os.kill(member, 0)
    child.signal_group(signal.SIGTERM)
    assert await settle(lambda: not os.path.exists(f"/proc/{member}")
        or open(f"/proc/{member}/stat").read().rpartition(")")[2].split()[0] == "Z")
    child.release()
    child.stdout.close()

run(main())
"""


@needs_proc
@pytest.mark.skipif(not seccomp.SUPPORTED, reason="no numbers, or no ctypes")
@pytest.mark.parametrize("error", ["EPERM", "ENOSYS", "EINVAL"])
def test_without_the_kernels_flag(aside: Aside, error: str) -> None:
    if aside.subject == "thread":
        pytest.skip("it has no pidfd")
    aside.run(REFUSED, getattr(errno, error))
