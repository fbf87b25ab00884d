"""Exits and signals: whatever else waits, ignores or traces in this process."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import seccomp
from aioproc import UNKNOWN_EXIT
from aside import Aside, settle
from conftest import is_alive
from conftest import settle as settle_now
from marks import posix_only
from programs import CAT, KILLED, TERMINATED, TRUE, python

asynchronous = pytest.mark.asyncio

LINUX = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))

no_reaping = posix_only("another wait that takes a status")
no_signals = posix_only("signals")

# -- stolen statuses

STOLEN = """
count, how = int(sys.argv[1]), sys.argv[2]
logging.disable()
done = False

def thief():
    while not done:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
        time.sleep(0.0001)

if how == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
else:
    threading.Thread(target=thief).start()

async def one(i):
    code = i % 200
    process = await aioproc.create_subprocess_exec("/bin/sh", "-c", f"exit {code}")
    returncode = await process.wait()
    assert process.returncode is returncode
    return "true" if returncode == code else "unknown" if (
        returncode is aioproc.UNKNOWN_EXIT) else f"{returncode} instead of {code}"

async def main():
    for start in range(0, count, 20):
        some = [one(i) for i in range(start, min(start + 20, count))]
        print(*await asyncio.gather(*some), sep="\\n")
try:
    run(main())
finally:
    done = True
"""


def check_stolen(aside: Aside, count: int, how: str) -> None:
    told = aside.run(STOLEN, count, how, fuse=60 + count / 2).splitlines()
    assert len(told) == count
    # The main strategy has the descriptor from the child's first moment on, and with it
    # what the kernel keeps of the exit.
    allowed = {"true"} if aside.subject == "clone" and LINUX >= (6, 15) else {"true", "unknown"}
    assert set(told) <= allowed


@no_reaping
@pytest.mark.parametrize("how", ["ignored", "thief"])
def test_stolen_statuses(aside: Aside, how: str) -> None:
    check_stolen(aside, 40, how)


@no_reaping
@pytest.mark.heavy
@pytest.mark.parametrize("how", ["ignored", "thief"])
def test_stolen_statuses_of_2000(aside: Aside, how: str) -> None:
    check_stolen(aside, 2000, how)


# As on a kernel before 6.15, which does not know the question for a stolen status.
UNKNOWN = """
import seccomp
seccomp.deny({"ioctl(PIDFD_GET_INFO)": errno.ENOTTY})
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
records = []
class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())
logging.getLogger("aioproc").addHandler(Keep())

async def main():
    for i in range(3):
        process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE)
        process.stdin.close()
        assert await process.wait() is process.returncode is aioproc.UNKNOWN_EXIT
        assert process.rusage is None
        assert len(records) == i + 1 and f" {process.pid} " in records[-1], records
        try:
            process.kill()
        except ProcessLookupError:
            pass
        else:
            raise AssertionError("signalled a child that is gone")
run(main())
"""


@pytest.mark.skipif(not seccomp.SUPPORTED, reason="no system call numbers for this machine")
@no_reaping
def test_a_status_that_nobody_knows(aside: Aside) -> None:
    aside.run(UNKNOWN)


def test_unknown_exit() -> None:
    assert isinstance(UNKNOWN_EXIT, int)
    assert UNKNOWN_EXIT  # `if process.returncode:` means failure
    assert UNKNOWN_EXIT not in range(-64, 256)
    assert not 0 <= UNKNOWN_EXIT <= 0xFFFFFFFF
    assert repr(UNKNOWN_EXIT) == str(UNKNOWN_EXIT) == f"{UNKNOWN_EXIT}" == "aioproc.UNKNOWN_EXIT"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(UNKNOWN_EXIT, protocol)) is UNKNOWN_EXIT
    assert copy.copy(UNKNOWN_EXIT) is UNKNOWN_EXIT
    assert copy.deepcopy([UNKNOWN_EXIT])[0] is UNKNOWN_EXIT


# -- a traced child: its tracer hears of the exit first, and the pidfd is readable though
# there is nothing to reap

TRACEE = """
import ctypes, sys
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_long(-1), 0, 0, 0)  # PR_SET_PTRACER: anybody
print("ready", flush=True)
sys.stdin.read()
sys.exit(7)
"""
TRACER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
result = libc.ptrace(0x4206, int(sys.argv[1]), 0, 0)  # PTRACE_SEIZE
print("seized" if result == 0 else ctypes.get_errno(), flush=True)
sys.stdin.read()
"""


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@posix_only("ptrace")
@asynchronous
async def test_a_traced_child(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(
        *python(TRACEE), stdin=aioproc.PIPE, stdout=aioproc.PIPE
    )
    assert await process.stdout.readline() == b"ready\n"
    tracer = subprocess.Popen(
        python(TRACER, str(process.pid)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with tracer:
        assert tracer.stdin is not None
        assert tracer.stdout is not None
        answer = tracer.stdout.readline()
        if answer != b"seized\n":
            await process.communicate()
            pytest.skip(f"ptrace is refused here: errno {answer!r}")
        process.stdin.close()
        assert await settle(lambda: state_of(process.pid) == "Z")
        cpu, wall = time.process_time(), time.monotonic()
        await asyncio.sleep(0.2)
        # A loop that spins would take all of it.
        assert time.process_time() - cpu < (time.monotonic() - wall) / 2
        assert process.returncode is None
        tracer.stdin.close()
        assert await process.wait() == 7


# -- signals


@asynchronous
async def test_a_signal_after_the_exit(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*TRUE)
    await process.wait()
    for send in (process.kill, process.terminate, lambda: process.send_signal(0)):
        with pytest.raises(ProcessLookupError):
            send()


@no_signals
@asynchronous
async def test_stop_and_continue(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    process.send_signal(signal.SIGSTOP)
    assert await settle(lambda: state_of(process.pid) == "T")
    process.stdin.write(b"x")
    process.stdin.close()
    process.send_signal(signal.SIGCONT)
    assert await process.stdout.read() == b"x"
    assert await process.wait() == 0


@no_signals
@asynchronous
async def test_a_stopped_child_can_be_killed(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE)
    process.send_signal(signal.SIGSTOP)
    assert await settle(lambda: state_of(process.pid) == "T")
    process.kill()
    assert await process.wait() == KILLED
    process.stdin.close()


@asynchronous
async def test_a_signal_from_another_thread(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE)
    thread = threading.Thread(target=process.terminate)
    thread.start()
    assert await process.wait() == TERMINATED
    thread.join()
    process.stdin.close()


@no_signals
@asynchronous
async def test_signals_race_with_exits(aioproc: Any) -> None:
    async def one() -> int:
        process = await aioproc.create_subprocess_exec(*TRUE)
        stop = threading.Event()

        def harass() -> None:
            while not stop.is_set():
                try:
                    process.send_signal(0)
                except ProcessLookupError:
                    return
                time.sleep(0.0002)

        thread = threading.Thread(target=harass)
        thread.start()
        try:
            return await process.wait()  # type: ignore[no-any-return]
        finally:
            await asyncio.get_running_loop().run_in_executor(None, thread.join)
            stop.set()

    assert await asyncio.gather(*(one() for _ in range(8))) == [0] * 8


@asynchronous
async def test_many_wait_for_one(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE)
    waits = [asyncio.ensure_future(process.wait()) for _ in range(10)]
    cancelled = asyncio.ensure_future(process.wait())
    await asyncio.sleep(0)
    cancelled.cancel()
    process.stdin.close()
    assert await asyncio.gather(*waits) == [0] * 10
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await process.wait() == 0


@asynchronous
async def test_wait_is_cancelled_when_the_exit_comes(aioproc: Any) -> None:
    """The exit is told between the cancellation and its arrival."""
    for rounds in range(4):
        process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE)
        waiting = asyncio.ensure_future(process.wait())
        await asyncio.sleep(0)
        process.stdin.close()
        # Without the loop, which must not notice; a polling thread may.
        assert settle_now(lambda pid=process.pid: not is_alive(pid))  # type: ignore[misc]
        for _ in range(rounds):
            await asyncio.sleep(0)
        waiting.cancel()
        try:
            assert await waiting == 0
        except asyncio.CancelledError:
            pass
        assert await process.wait() == 0


@asynchronous
async def test_the_transport_is_closed_before_the_exit_is_noticed(aioproc: Any) -> None:
    """Whose descriptors, closed under the loop's hands, would be the next child's."""
    protocols = []
    for _ in range(3):
        transport, protocol = await aioproc.subprocess_exec(
            asyncio.SubprocessProtocol, *TRUE, stdin=None, stdout=None, stderr=None
        )
        protocols.append(protocol)
        pid = transport.get_pid()
        # Without the loop, which must not notice; a polling thread may.
        assert settle_now(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]
        transport.close()
        other = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE)
        other.stdin.close()
        assert await other.wait() == 0
        assert await settle(lambda t=transport: t.get_returncode() is not None)  # type: ignore[misc]
        assert transport.get_returncode() == 0


# -- the polling thread


THREAD = """
def pollers():
    return [t for t in threading.enumerate() if t.name == "aioproc-exits"]

async def main():
    assert not pollers()
    processes = [
        await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE) for _ in range(20)]
    assert len(pollers()) == 1 and len(threading.enumerate()) == 2
    for process in processes:
        process.stdin.close()
    assert [await process.wait() for process in processes] == [0] * 20
    assert await settle(lambda: not pollers())
    # and again
    process = await aioproc.create_subprocess_exec(*TRUE)
    assert await process.wait() == 0
    assert await settle(lambda: not pollers())
run(main())
"""


@posix_only("the polling thread")
def test_one_polling_thread_for_any_number() -> None:
    Aside("thread").run(THREAD)


# The first look is followed by a pause of an hour, which only something like the end of a
# pipe can cut short.
PROMPT = """
poller = watchers.ThreadWatcher.poller
poller.MIN_PAUSE = poller.MAX_PAUSE = 3600
async def main():
    process = await aioproc.create_subprocess_exec(
        *CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    assert await settle(lambda: poller._condition._waiters)
    poller.MIN_PAUSE = poller.MAX_PAUSE = 0.001
    assert await process.communicate() == (b"", None)
    assert process.returncode == 0
run(asyncio.wait_for(main(), 30))
"""


@posix_only("the polling thread")
def test_the_end_of_a_pipe_wakes_the_polling_thread() -> None:
    Aside("thread").run(PROMPT)


def test_this_is_where_statuses_survive() -> None:
    """What the tests above conclude from the version, the kernel itself must confirm."""
    if "linux" not in sys.platform:
        pytest.skip("Linux")
    import importlib.util

    if importlib.util.find_spec("aioproc._native") is None:
        pytest.skip("no extension here")
    from aioproc._backends.posix import native as posix

    if posix.features()["kqueue"]:
        pytest.skip("built with tests/shim")
    assert posix.features()["pidfd_get_info"] == (LINUX >= (6, 15))


def test_what_interrupts_the_loop_loses_no_exit(aioproc: Any) -> None:
    """Several exits come at once, and whoever is told of the first raises Ctrl-C. (On
    asyncio's loop: an interrupted uvloop may stop once more by itself.)"""
    told = []

    class Protocol(asyncio.SubprocessProtocol):
        def process_exited(self) -> None:
            told.append(self)
            if len(told) == 1:
                raise KeyboardInterrupt

    async def start() -> list[Any]:
        streams = {"stdin": read_end, "stdout": None, "stderr": None}
        return [(await aioproc.subprocess_exec(Protocol, *CAT, **streams))[0] for _ in range(5)]

    read_end, write_end = os.pipe()
    loop = asyncio.SelectorEventLoop()
    asyncio.set_event_loop(loop)
    try:
        transports = loop.run_until_complete(start())
        os.close(write_end)
        assert settle_now(lambda: not any(is_alive(item.get_pid()) for item in transports))

        async def until_all_are_told() -> None:
            assert await settle(lambda: len(told) == 5)

        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(until_all_are_told())
        loop.run_until_complete(until_all_are_told())
        for transport in transports:
            transport.close()
        loop.run_until_complete(loop.shutdown_asyncgens())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        os.close(read_end)
        asyncio.set_event_loop(None)
        loop.close()
