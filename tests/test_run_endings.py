"""How run() ends what it has to end: time, cancellation, errors; the rest of the pipes, and of
the tree.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from aioproc._run import attempts
from aioproc._run.run import Run
from aioproc._trees import ending as ending_module
from aside import PROC
from aside import settle as settle_later
from conftest import FUSE, is_alive, settle
from endings import Clock, Heard, pids_in
from helpers import readable, script
from marks import posix_only
from programs import CAT, LEAVES_CAT, SLEEP, TRUE, WINDOWS, YES, python

if WINDOWS:
    pytest.skip("signals; Windows' part is in test_run_windows.py", allow_module_level=True)

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.primary,
    pytest.mark.skipif(not PROC, reason="nobody can look without /proc"),
]
everywhere = pytest.mark.everywhere

DEVNULL = subprocess.DEVNULL

#: Says its own pid and that of a grandchild, in a session of its own, once both are there.
FAMILY = "setsid sleep 1000 >/dev/null 2>&1 & echo $! $$; "
#: The same, of two that do not mind SIGTERM.
STUBBORN = "trap '' TERM; " + FAMILY
STAYS = "exec sleep 1000"


class PipeClock(Clock):
    """By another pipe than those that run() has to do with."""

    def __init__(self) -> None:
        super().__init__()
        self._reader, self.fd = os.pipe()

    def close(self) -> None:
        os.close(self._reader)
        os.close(self.fd)

    @property
    def word(self) -> str:
        """For a shell."""
        # A shell knows descriptors of one digit only.
        return f"echo >/dev/fd/{self.fd}; "

    async def word_came(self) -> None:
        await asyncio.wait_for(readable(self._reader), FUSE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[PipeClock]:
    one = PipeClock()
    one.record(monkeypatch)
    yield one
    one.runs.clear()
    one.close()


# -- time


@everywhere
async def test_timeout(aioproc: Any) -> None:
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run(*SLEEP, timeout=0.3)
    error, result = caught.value, caught.value.result
    assert isinstance(error, subprocess.TimeoutExpired)
    assert isinstance(error, asyncio.TimeoutError)
    assert isinstance(error, TimeoutError)
    assert error.timeout == 0.3
    assert error.output == result.stdout
    assert (result.reason, result.ok, result.returncode) == ("timeout", False, -signal.SIGTERM)
    assert (result.forced, result.left, result.complete) == ("stop", [], True)
    assert result.signal == signal.SIGTERM
    assert 0.3 <= result.duration < FUSE


@everywhere
async def test_a_timeout_ends_the_tree(aioproc: Any, clock: PipeClock) -> None:
    script = FAMILY + clock.word + STAYS
    running = aioproc.run("sh", "-c", script, timeout=1000, pass_fds=[clock.fd])
    result = (await clock.time_is_up(running)).result
    assert (result.forced, result.left, result.complete) == ("stop", [], True)
    assert not any(map(is_alive, pids_in(result)))


async def test_a_timeout_of_those_who_do_not_obey(aioproc: Any, clock: PipeClock) -> None:
    script = STUBBORN + clock.word + STAYS
    running = aioproc.run("sh", "-c", script, timeout=1000, stop=0.2, pass_fds=[clock.fd])
    result = (await clock.time_is_up(running)).result
    assert (result.returncode, result.forced, result.left) == (-signal.SIGKILL, "kill", [])
    assert not any(map(is_alive, pids_in(result)))


async def test_the_leader_obeys_and_a_member_does_not(aioproc: Any, clock: PipeClock) -> None:
    script = (
        f"(trap '' TERM; echo $(exec sh -c 'echo $PPID') $$; {clock.word} exec sleep 1000) & wait"
    )
    running = aioproc.run("sh", "-c", script, timeout=1000, stop=0.3, pass_fds=[clock.fd])
    result = (await clock.time_is_up(running)).result
    assert (result.returncode, result.forced) == (-signal.SIGTERM, "kill")
    assert not any(map(is_alive, pids_in(result)))
    assert result.duration >= 0.3


#: Says "bye" when it is told to end, and ends well.
POLITE = """
import os, signal, sys, time
def end(*_):
    print("bye", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
os.write(int(sys.argv[1]), b"!")
time.sleep(1000)
"""


async def test_one_that_returns_0_when_it_is_told_to_end(aioproc: Any, clock: PipeClock) -> None:
    running = aioproc.run(
        *python(POLITE, str(clock.fd)), timeout=1000, check=False, pass_fds=[clock.fd]
    )
    result = (await clock.time_is_up(running)).result
    assert (result.returncode, result.ok, result.reason) == (0, False, "timeout")
    assert result.stdout == b"ready\nbye\n"


@everywhere
@pytest.mark.parametrize("timeout", [0, -1])
async def test_no_time_at_all(aioproc: Any, timeout: float, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run("touch", mark, timeout=timeout)
    assert not mark.exists()
    assert caught.value.result.pid is caught.value.result.returncode is None
    # What is no command is none, however little time there is.
    with pytest.raises(TypeError):
        await aioproc.run("touch", 5, timeout=0)


@everywhere
async def test_time_for_one_that_has_ended(aioproc: Any) -> None:
    """The loop was away when time was up: the child had ended by then."""
    loop = asyncio.get_running_loop()

    def be_away() -> None:
        assert settle(lambda: os.path.exists("/proc/self"))
        time.sleep(0.4)

    running = asyncio.ensure_future(aioproc.run("echo", "in time", timeout=0.2))
    await asyncio.sleep(0)
    loop.call_soon(be_away)
    assert (await running).stdout == b"in time\n"


@everywhere
async def test_a_timeout_cuts_the_drain_short(aioproc: Any, heard: Heard) -> None:
    started = time.monotonic()
    done = await aioproc.run("sh", "-c", "sleep 1000 & echo $!", timeout=0.4, drain=FUSE)
    heard.pids += pids_in(done)
    assert time.monotonic() - started < FUSE / 2
    assert (done.ok, done.complete, done.reason) == (True, False, "exit")
    assert is_alive(heard.pids[0])


async def test_a_callback_that_is_busy_when_time_is_up(aioproc: Any) -> None:
    cancelled = asyncio.Event()

    async def on_output(stream: str, data: bytes) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            cancelled.set()

    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run("echo", "hello", timeout=0.4, on_output=on_output)
    assert cancelled.is_set()
    result = caught.value.result
    assert (result.stdout, result.returncode, result.reason) == (b"hello\n", 0, "timeout")


async def test_callbacks_go_on_while_the_command_is_ended(aioproc: Any, clock: PipeClock) -> None:
    lines: list[bytes] = []
    running = aioproc.run(
        *python(POLITE, str(clock.fd)),
        timeout=1000,
        on_line=lambda _, line: lines.append(line),
        pass_fds=[clock.fd],
    )
    await clock.time_is_up(running)
    assert lines == [b"ready\n", b"bye\n"]


@everywhere
async def test_idle_timeout(aioproc: Any) -> None:
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run(*SLEEP, idle_timeout=0.3)
    result = caught.value.result
    assert (result.reason, result.stdout, caught.value.timeout) == ("idle", b"", 0.3)
    assert "without output" in str(caught.value)


async def test_whoever_writes_is_not_idle(aioproc: Any, heard: Heard, clock: PipeClock) -> None:
    task = asyncio.ensure_future(
        aioproc.run("sh", "-c", "echo 1; " + STAYS, idle_timeout=1000, on_line=heard)
    )
    loop = asyncio.get_running_loop()
    while not clock.runs or not clock.run._is_connected:
        await asyncio.sleep(0)
    clock.run._last = loop.time() - 1000
    await asyncio.wait_for(heard.came.wait(), FUSE)
    heard.pids.clear()
    clock.run._idle_is_up()
    await asyncio.sleep(0)
    assert not task.done()
    assert not clock.run._over.done()
    clock.run._last = loop.time() - 1000
    clock.run._idle_is_up()
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await task
    assert caught.value.result.stdout == b"1\n"


async def test_it_is_not_idle_while_a_callback_is_busy(aioproc: Any, clock: PipeClock) -> None:
    async def on_line(stream: str, line: bytes) -> None:
        clock.run._last -= 1000
        clock.run._idle_is_up()
        assert not clock.run._over.done()
        clock.run._outputs[0].listener.is_busy = False
        clock.run._last -= 1000
        clock.run._idle_is_up()
        clock.run._idle_is_up()
        assert clock.run._over.done()

    with pytest.raises(aioproc.TimeoutExpired):
        await aioproc.run("sh", "-c", "echo a; " + STAYS, idle_timeout=1000, on_line=on_line)


# -- steps

SAYS = """
import os, signal, sys, time
def say(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM and "obeys" in sys.argv: raise SystemExit(7)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(number, say)
print("ready", flush=True)
if sys.argv[1:2] > ["0"]: os.write(int(sys.argv[1]), b"!")
data = sys.stdin.read()
print("eof", flush=True)
if sys.argv[1:2] < ["0"]: os.write(int(sys.argv[1][1:]), b"!")
while True: time.sleep(1000)
"""


async def endless() -> AsyncIterator[bytes]:
    yield b"x"
    await asyncio.sleep(1000)


async def test_steps(aioproc: Any, clock: PipeClock) -> None:
    steps = [("eof", 0.5), (signal.SIGINT, 0.3), (signal.SIGTERM, FUSE)]
    running = aioproc.run(
        *python(SAYS, str(clock.fd), "obeys"),
        input=endless(),
        timeout=1000,
        stop=steps,
        pass_fds=[clock.fd],
    )
    result = (await clock.time_is_up(running)).result
    assert result.stdout.split() == [b"ready", b"eof", b"SIGINT", b"SIGTERM"]
    assert (result.returncode, result.forced) == (7, "stop")


async def test_sigkill_follows_the_last_step(aioproc: Any, clock: PipeClock) -> None:
    # There is no stdin that could be closed, and so no time for that.
    steps = [("eof", 1000), (signal.SIGHUP, 0.5)]
    running = aioproc.run(
        *python(SAYS, f"-{clock.fd}"), timeout=1000, stop=steps, pass_fds=[clock.fd]
    )
    result = (await clock.time_is_up(running)).result
    assert result.stdout.split() == [b"ready", b"eof", b"SIGHUP"]
    assert (result.returncode, result.forced) == (-signal.SIGKILL, "kill")
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run(*SLEEP, timeout=0.2, stop=[])
    assert caught.value.result.returncode == -signal.SIGKILL


async def test_eof_is_enough_for_some(aioproc: Any) -> None:
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run(*CAT, input=endless(), timeout=0.3, stop=[("eof", FUSE)])
    result = caught.value.result
    assert (result.returncode, result.forced) == (0, "stop")


# -- cancellation


async def started(aioproc: Any, heard: Heard, script: str, **options: Any) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(aioproc.run("sh", "-c", script, on_line=heard, **options))
    await asyncio.wait_for(heard.came.wait(), FUSE)
    assert all(map(is_alive, heard.pids))
    return task


@everywhere
async def test_cancelled(aioproc: Any, heard: Heard) -> None:
    task = await started(aioproc, heard, FAMILY + STAYS)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert not any(map(is_alive, heard.pids))
    result = aioproc.partial_result(caught.value)
    assert (result.reason, result.ok, result.forced) == ("cancelled", False, "stop")
    assert pids_in(result) == heard.pids
    if sys.version_info >= (3, 11):
        assert caught.value.result is result  # type: ignore[attr-defined]


@everywhere
async def test_cancelled_again(aioproc: Any, clock: PipeClock) -> None:
    told = asyncio.Event()

    def on_line(stream: str, line: bytes) -> None:
        if line == b"SIGTERM\n":
            told.set()

    command = python(SAYS, f"-{clock.fd}")
    running = aioproc.run(*command, on_line=on_line, stop=1000, pass_fds=[clock.fd])
    task = asyncio.ensure_future(running)
    await clock.word_came()
    task.cancel()
    await asyncio.wait_for(told.wait(), FUSE)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await asyncio.wait_for(task, FUSE)
    result = aioproc.partial_result(caught.value)
    assert (result.forced, result.returncode) == ("kill", -signal.SIGKILL)
    assert result.stdout.split() == [b"ready", b"eof", b"SIGTERM"]


async def test_one_cancellation_leaves_the_grace_of_a_timeout(
    aioproc: Any, clock: PipeClock
) -> None:
    code = POLITE.replace('print("bye"', 'print("told", flush=True); time.sleep(0.5); print("bye"')
    told = asyncio.Event()

    def on_line(stream: str, line: bytes) -> None:
        if line == b"told\n":
            told.set()

    running = aioproc.run(
        *python(code, str(clock.fd)), timeout=1000, on_line=on_line, pass_fds=[clock.fd]
    )
    task = asyncio.ensure_future(running)
    await clock.word_came()
    clock.run._time_is_up()
    await asyncio.wait_for(told.wait(), FUSE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    result = aioproc.partial_result(caught.value)
    assert (result.stdout, result.reason) == (b"ready\ntold\nbye\n", "timeout")


@everywhere
async def test_a_scope_of_anyio(aioproc: Any, clock: PipeClock) -> None:
    """It cancels again and again, in each round of the loop: that is one cancellation."""
    import anyio

    code = POLITE.replace('print("bye"', 'print("told", flush=True); time.sleep(0.3); print("bye"')
    lines: list[bytes] = []
    scope = anyio.CancelScope()

    async def work() -> None:
        with scope:
            await aioproc.run(
                *python(code, str(clock.fd)),
                on_line=lambda _, line: lines.append(line),
                pass_fds=[clock.fd],
            )

    task = asyncio.ensure_future(work())
    await clock.word_came()
    scope.cancel()
    await asyncio.wait_for(task, FUSE)
    assert lines == [b"ready\n", b"told\n", b"bye\n"]
    assert scope.cancelled_caught


async def test_asyncios_own_timeouts(aioproc: Any) -> None:
    with pytest.raises(asyncio.TimeoutError) as caught:
        await asyncio.wait_for(aioproc.run(*SLEEP), 0.3)
    assert aioproc.partial_result(caught.value).reason == "cancelled"
    if sys.version_info >= (3, 11):
        with pytest.raises(asyncio.TimeoutError) as caught:
            async with asyncio.timeout(0.3):
                await aioproc.run(*SLEEP)
        cause: Any = caught.value.__cause__
        assert cause.result is aioproc.partial_result(caught.value)
        assert cause.result.returncode == -signal.SIGTERM


async def test_a_gather_that_fails(aioproc: Any, heard: Heard) -> None:
    """The others are told to end, as asyncio.TaskGroup does it."""
    task = await started(aioproc, heard, FAMILY + STAYS)
    try:
        await aioproc.run("false")
    except aioproc.CalledProcessError:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(map(is_alive, heard.pids))


async def test_cancelled_before_there_is_a_child(aioproc: Any, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    task = asyncio.ensure_future(aioproc.run("touch", mark))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not mark.exists()


async def test_cancelled_at_once(aioproc: Any) -> None:
    for steps in range(1, 8):
        task = asyncio.ensure_future(aioproc.run(*SLEEP, on_output=lambda *_: None))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, FUSE)


async def test_cancelled_while_it_drains(aioproc: Any, heard: Heard, clock: PipeClock) -> None:
    """The leader has ended; cancelling means the tree."""
    task = asyncio.ensure_future(
        aioproc.run("sh", "-c", "sleep 1000 & echo $!", on_line=heard, drain=1000)
    )
    await asyncio.wait_for(heard.came.wait(), FUSE)
    while not clock.run._has_exited:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await asyncio.wait_for(task, FUSE)
    assert not is_alive(heard.pids[0])
    result = aioproc.partial_result(caught.value)
    assert (result.returncode, result.reason, result.complete) == (0, "cancelled", True)


class Late(Run):
    """Its time for the end of the pipes is up at the exit: libuv has timers come before those
    whose turn it is, and a loop may be late by more than that time."""

    def _exited(self) -> None:
        super()._exited()
        self._cut()


@everywhere
async def test_callbacks_hear_all_though_the_loop_is_late(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have not had their first turn when time is up: the loop hears of the start and of
    the exit at once."""
    monkeypatch.setattr(attempts, "Run", Late)
    heard: list[bytes] = []
    running = asyncio.ensure_future(
        aioproc.run("echo", "a", on_line=lambda _, line: heard.append(line))
    )
    await asyncio.sleep(0)
    time.sleep(0.3)
    assert (await running).stdout == b"a\n"
    assert heard == [b"a\n"]


@everywhere
async def test_idle_is_not_who_was_not_read(aioproc: Any, heard: Heard) -> None:
    """The loop is late by more than the idle_timeout, in which the child wrote all the time."""
    script = "echo $$; while :; do sleep 0.02; echo more; done"
    lines: list[bytes] = []

    def on_line(stream: str, line: bytes) -> None:
        heard(stream, line)
        lines.append(line)

    running = asyncio.ensure_future(
        aioproc.run("sh", "-c", script, on_line=on_line, idle_timeout=1, stop=0)
    )
    await asyncio.wait_for(heard.came.wait(), FUSE)
    try:
        time.sleep(1.3)
        # More than it can have written by now.
        assert await settle_later(lambda: running.done() or len(lines) > 100)
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert running.cancelled()


@everywhere
async def test_a_coroutine_that_is_closed(aioproc: Any, heard: Heard) -> None:
    """Nobody awaits it any more: it is killed, and what has left its group."""
    family = 'sleep 1000 & one=$!; setsid sh -c "echo $one $$ \\$\\$; exec sleep 1000" & '
    log: list[str] = []

    async def source() -> AsyncIterator[bytes]:
        try:
            await asyncio.sleep(FUSE)
            yield b""
        finally:
            log.append("closed")

    coroutine = aioproc.run("sh", "-c", family + STAYS, on_line=heard, input=source())
    future = coroutine.send(None)
    assert future is not None
    future._asyncio_future_blocking = False
    await asyncio.wait_for(heard.came.wait(), FUSE)
    coroutine.close()
    assert await settle_later(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert log == ["closed"]
    pids = heard.pids
    assert len(pids) == 3
    for _ in range(1000):
        if not any(map(is_alive, pids)):
            break
        await asyncio.sleep(0.01)
    assert not any(map(is_alive, pids))


@everywhere
async def test_cancelled_by_its_loops_end(aioproc: Any, heard: Heard) -> None:
    """asyncio.run() cancels all tasks that are left, and those of ours among them."""
    script = "sleep 1000 & echo $! $$; " + STAYS
    task = await started(aioproc, heard, script)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert len(others) > 1
    for one in others:
        one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(map(is_alive, heard.pids))


async def test_its_own_tasks_are_cancelled(aioproc: Any, heard: Heard) -> None:
    """But not the one that runs it: that is a cancellation, too."""
    task = await started(aioproc, heard, FAMILY + STAYS)
    for one in asyncio.all_tasks() - {asyncio.current_task(), task}:
        one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(map(is_alive, heard.pids))


# -- errors of others


class Refuses(Exception):
    pass


@everywhere
@pytest.mark.parametrize("which", ["on_output", "on_line"])
@pytest.mark.parametrize("awaits", [False, True])
async def test_a_callback_that_raises(aioproc: Any, which: str, awaits: bool) -> None:
    async def later(data: bytes) -> None:
        await asyncio.sleep(0)
        raise Refuses(data)

    def callback(stream: str, data: bytes) -> Any:
        if awaits:
            return later(data)
        raise Refuses(data)

    with pytest.raises(Refuses) as caught:
        await aioproc.run("sh", "-c", FAMILY + STAYS, **{which: callback})
    result = aioproc.partial_result(caught.value)
    assert (result.reason, result.error, result.ok) == ("error", caught.value, False)
    assert result.stdout == caught.value.args[0]
    assert not any(map(is_alive, pids_in(result)))


async def test_input_that_raises_ends_the_tree(aioproc: Any, heard: Heard) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"x"
        await heard.came.wait()
        raise Refuses

    with pytest.raises(Refuses) as caught:
        await aioproc.run("sh", "-c", FAMILY + STAYS, input=source(), on_line=heard)
    result = aioproc.partial_result(caught.value)
    assert not any(map(is_alive, pids_in(result)))


async def test_a_callback_that_raises_after_the_exit(aioproc: Any) -> None:
    def on_line(stream: str, line: bytes) -> None:
        if line == b"last":
            raise Refuses

    with pytest.raises(Refuses) as caught:
        await aioproc.run("printf", "first\\nlast", on_line=on_line)
    result = aioproc.partial_result(caught.value)
    assert (result.stdout, result.returncode) == (b"first\nlast", 0)


async def test_a_callback_that_ignores_its_cancellation(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aioproc._run.run.MOST_FOR_TASKS", 0.2)
    over = asyncio.Event()

    async def on_output(stream: str, data: bytes) -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                pass

    with pytest.raises(aioproc.TimeoutExpired):
        await aioproc.run("echo", "x", timeout=0.3, on_output=on_output)
    assert "go on, though they were cancelled" in caplog.text
    over.set()
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0)


# -- the pipes after the exit


@everywhere
async def test_what_comes_after_the_exit(aioproc: Any) -> None:
    done = await aioproc.run("sh", "-c", "(sleep 0.2; echo late) & echo early", drain=FUSE)
    assert done.stdout == b"early\nlate\n"
    assert done.complete


@everywhere
async def test_a_pipe_that_stays_open(
    aioproc: Any, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    with caplog.at_level(logging.INFO, "aioproc"):
        done = await aioproc.run("sh", "-c", "sleep 1000 & echo $!", drain=0.3)
    assert 0.3 <= time.monotonic() - started < FUSE
    heard.pids += pids_in(done)
    assert (done.complete, done.ok) == (False, True)
    assert is_alive(heard.pids[0])
    assert "a pipe was still open" in caplog.text
    # And those of others are not touched by a drain of nothing.
    done = await aioproc.run("sh", "-c", "sleep 1000 & echo $!", drain=0)
    heard.pids += pids_in(done)
    assert not done.complete


@pytest.mark.parametrize("passed", ["since the last byte", "in all"])
async def test_how_long_the_end_of_the_pipes_is_waited_for(
    aioproc: Any, heard: Heard, clock: PipeClock, passed: str
) -> None:
    """From the later of the exit and the last byte; ten times that in all."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(
        aioproc.run("sh", "-c", "sleep 1000 & echo $!", on_line=heard, drain=1000)
    )
    await asyncio.wait_for(heard.came.wait(), FUSE)
    run = clock.run
    while not run._has_exited:
        await asyncio.sleep(0.001)
    # Much time has passed, but something came just now.
    run._draining_since = loop.time() - 9_000
    run._last = loop.time()
    run._drained()
    assert all(output.is_open for output in run._outputs)
    assert run._drain_timer.when() > loop.time() + 900
    if passed == "since the last byte":
        run._last = loop.time() - 1_000
    else:
        run._draining_since = loop.time() - 10_000
    run._drained()
    done = await asyncio.wait_for(task, FUSE)
    assert (done.complete, pids_in(done)) == (False, heard.pids)


async def test_a_flood_that_does_not_end_with_the_child(aioproc: Any, heard: Heard) -> None:
    started = time.monotonic()
    done = await aioproc.run("sh", "-c", "echo $(sleep 0.1)$$; yes & :", drain=0.05, max_output=99)
    assert time.monotonic() - started < FUSE / 2
    assert not done.complete


async def test_a_callback_is_waited_for_after_the_exit(aioproc: Any) -> None:
    heard: list[bytes] = []

    async def on_line(stream: str, line: bytes) -> None:
        await asyncio.sleep(0.1)
        heard.append(line)

    done = await aioproc.run("sh", "-c", "echo a; echo b; echo c", on_line=on_line, drain=0.05)
    assert (heard, done.complete) == ([b"a\n", b"b\n", b"c\n"], True)


async def test_callbacks_hear_what_is_cut(aioproc: Any, heard: Heard) -> None:
    lines: list[bytes] = []
    done = await aioproc.run(
        "sh",
        "-c",
        "sleep 1000 & echo $!; printf rest",
        on_line=lambda _, line: lines.append(line),
        drain=0.1,
    )
    heard.pids += pids_in(done)
    assert b"".join(lines) == done.stdout
    assert lines[-1] == b"rest"
    assert not done.complete


async def test_input_for_those_who_are_left(aioproc: Any) -> None:
    """A grandchild reads what the child does not."""
    done = await aioproc.run(*LEAVES_CAT, input=b"x" * 1_000_000, drain=FUSE)
    assert done.stdout == b"hi\n" + b"x" * 1_000_000 or done.stdout.startswith((b"hi", b"x"))
    assert done.complete
    assert len(done.stdout) == 1_000_003


# -- what is left behind


@everywhere
async def test_leftovers_are_left(aioproc: Any, heard: Heard) -> None:
    done = await aioproc.run("sh", "-c", FAMILY + "exit 0")
    heard.pids += pids_in(done)
    assert is_alive(heard.pids[0])
    assert (done.left, done.complete) == (None, True)


@everywhere
async def test_leftovers_are_ended(aioproc: Any) -> None:
    done = await aioproc.run("sh", "-c", FAMILY + "exit 0", leftovers="kill")
    assert not any(map(is_alive, pids_in(done)))
    assert (done.ok, done.left, done.forced, done.reason) == (True, [], None, "exit")
    # Also those that hold its pipes, and whatever they still say.
    script = "(trap 'echo bye; exit' TERM; echo ready; while :; do sleep 0.05; done) & read x"
    script = f"exec 3>&1; {script.replace('read x', 'sleep 0.5; echo $$')}"
    done = await aioproc.run("sh", "-c", script, leftovers="kill", drain=0.1)
    assert done.stdout.split()[0] == b"ready"
    assert done.stdout.split()[-1] == b"bye"
    assert done.complete
    done = await aioproc.run("sh", "-c", STUBBORN, leftovers="kill", stop=0.1)
    assert not any(map(is_alive, pids_in(done)))
    assert (await aioproc.run(*TRUE, leftovers="kill")).left == []


async def test_leftovers_of_one_that_fails(aioproc: Any) -> None:
    with pytest.raises(aioproc.CalledProcessError) as caught:
        await aioproc.run("sh", "-c", FAMILY + "exit 3", leftovers="kill")
    assert not any(map(is_alive, pids_in(caught.value)))


# -- without a tree

SHOWS = "echo ${AIOPROC_TREE-none} $(ps -o sid= -p $$)"


async def test_without_a_tree(aioproc: Any, heard: Heard, clock: PipeClock) -> None:
    script = "sleep 1000 >/dev/null 2>&1 & echo $! $$ ${AIOPROC_TREE-none}; " + STAYS
    script = script.replace(STAYS, clock.word + STAYS)
    running = aioproc.run(
        "sh", "-c", script, tree=False, timeout=1000, drain=0, pass_fds=[clock.fd]
    )
    result = (await clock.time_is_up(running)).result
    grandchild, leader, mark = result.stdout.split()
    heard.pids.append(int(grandchild))
    assert is_alive(int(grandchild))
    assert not is_alive(int(leader))
    assert mark == b"none"
    assert (result.forced, result.left) == ("stop", None)
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run(
            "sh",
            "-c",
            "trap '' TERM; while :; do sleep 0.1; done",
            tree=False,
            timeout=0.2,
            stop=0.2,
        )
    assert caught.value.result.forced == "kill"


async def test_a_session_of_its_own(aioproc: Any) -> None:
    code = "import os; print(os.getsid(0), os.getpid(), os.environ.get('AIOPROC_TREE'))"
    session, pid, mark = (await aioproc.run(*python(code))).text.split()
    assert session == pid
    assert mark != "None"
    session, _, mark = (await aioproc.run(*python(code), start_new_session=False)).text.split()
    assert int(session) == os.getsid(0)
    assert mark != "None"
    session, _, mark = (await aioproc.run(*python(code), stdin=None)).text.split()
    assert int(session) == os.getsid(0)
    assert mark != "None"


# -- one that cannot be ended

FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
@pytest.mark.skipif(not FREEZER.is_dir(), reason="no freezer of cgroups, version 1")
@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_not_ended(
    aioproc: Any, heard: Heard, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending_module, "MOST_AFTER_KILL", 0.3)
    monkeypatch.setattr("aioproc._trees.scanning.KILL_TIME", 0.2)
    group = FREEZER / f"aioproc-run-{os.getpid()}"
    group.mkdir()
    state = group / "freezer.state"
    try:
        task = await started(aioproc, heard, "echo $$; " + STAYS, timeout=1, stop=0.1)
        pid = heard.pids[0]
        (group / "cgroup.procs").write_text(str(pid))
        state.write_text("FROZEN")
        assert settle(lambda: state.read_text() == "FROZEN\n")
        if how == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            result = aioproc.partial_result(caught.value)
        else:
            with pytest.raises(aioproc.NotEnded) as caught:
                await task
            result = caught.value.result
            assert (caught.value.pid, caught.value.state) == (pid, "D")
            assert isinstance(caught.value.__cause__, aioproc.TimeoutExpired)
        assert (result.returncode, result.left, result.forced) == (None, [pid], "kill")
        assert result.stdout == b"%d\n" % pid
        state.write_text("THAWED")
        # Behind our backs.
        for _ in range(1000):
            if not os.path.exists(f"/proc/{pid}"):
                break
            await asyncio.sleep(0.01)
        assert not os.path.exists(f"/proc/{pid}")
    finally:
        state.write_text("THAWED")
        assert settle(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@posix_only("other users")
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
async def test_logs_of_an_ending(aioproc: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "aioproc"), pytest.raises(aioproc.TimeoutExpired):
        await aioproc.run(*SLEEP, timeout=0.2, stop=[(signal.SIGCONT, 0.1)])
    assert f"signal {int(signal.SIGCONT)} is sent; 0.1 s are given" in caplog.text
    assert "what is left is killed" in caplog.text


@everywhere
@pytest.mark.parametrize("callback", ["on_output", "on_line"])
async def test_a_callback_that_never_waits(aioproc: Any, callback: str) -> None:
    """Others have their turns, the timeout among them, however much there is to be heard."""
    turns = heard = 0

    def hear(stream: str, data: bytes) -> None:
        nonlocal heard
        heard += 1

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    counting = asyncio.ensure_future(count())
    try:
        with pytest.raises(aioproc.TimeoutExpired):
            await aioproc.run(*YES, timeout=0.5, max_output=1000, **{callback: hear})
    finally:
        counting.cancel()
    assert heard > 10
    assert turns > 5


EAGER = """
async def main():
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)

    async def block():
        await asyncio.sleep(0)
        time.sleep(0.2)
    blocking = asyncio.create_task(block())
    script = "echo out; exec >&- 2>&-; sleep 0.4"
    assert (await aioproc.run("sh", "-c", script, on_output=lambda *_: None)).ok
    script = "exec >&-; sleep 0.02; echo one >&2; sleep 0.01; echo two >&2"
    for _ in range(20):
        await aioproc.run("echo", on_output=lambda *_: None)

        async def slow(stream, data):
            await asyncio.sleep(0.02)
        done = await aioproc.run("sh", "-c", script, on_output=slow)
        assert done.stderr == b"one\\ntwo\\n", done
    try:
        await aioproc.pipeline(["/nowhere/nothing"], ["sleep", "1000"])
    except FileNotFoundError:
        pass
    results = await aioproc.run_all([["echo", str(i)] for i in range(20)], concurrency=4)
    assert [int(one.text) for one in results] == list(range(20))
    try:
        await aioproc.run("sh", "-c", "sleep 1000 & sleep 1000", timeout=0.1)
    except aioproc.TimeoutExpired as error:
        assert error.result.left == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
run(new_event_loop, asyncio.wait_for(main(), 50))
"""


@everywhere
@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="since Python 3.12")
async def test_eager_tasks(aioproc: Any) -> None:
    await script(EAGER)
