"""What asyncio's documentation promises of a Process, and what ours adds."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import Any

import pytest

from aioproc._asyncio import process as _process
from aside import collect
from conftest import is_alive, run, settle
from helpers import on_wine
from marks import posix_only
from programs import (
    CAT,
    KILLED,
    LEAVES_CAT,
    NL,
    SLEEP,
    TERMINATED,
    TRUE,
    WINDOWS,
    YES,
    python,
    sh,
    shell,
)

pytestmark = pytest.mark.asyncio

#: Says "ready", and does not end by SIGTERM.
STUBBORN = 'trap "" TERM; echo ready; exec sleep 1000'

no_sigterm = posix_only("terminate() and kill() are the same there")


async def test_returncode_is_none_until_the_exit(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE)
    assert process.returncode is None
    process.stdin.close()
    assert await process.wait() == 0
    assert process.returncode == 0


@pytest.mark.parametrize("code", [0, 1, 77, 255])
async def test_exit_codes(api: Any, code: int) -> None:
    process = await api.create_subprocess_shell(f"exit {code}")
    assert await process.wait() == code


@posix_only("signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGUSR1"])
async def test_death_by_signal(api: Any, name: str) -> None:
    number = getattr(signal, name)
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE)
    process.send_signal(number)
    assert await process.wait() == -number
    process.stdin.close()


async def test_terminate_and_kill(api: Any) -> None:
    for end, code in ("terminate", TERMINATED), ("kill", KILLED):
        process = await api.create_subprocess_exec(*SLEEP)
        assert getattr(process, end)() is None
        assert await process.wait() == code


@pytest.mark.parametrize("method", ["terminate", "kill", "send_signal"])
async def test_signals_after_the_exit(api: Any, method: str) -> None:
    process = await api.create_subprocess_exec(*TRUE)
    await process.wait()
    if api.is_oracle:
        # asyncio 3.14 is silent instead until its transport is gone, a round later.
        await asyncio.sleep(0)
    arguments = [signal.SIGTERM] if method == "send_signal" else []
    with pytest.raises(ProcessLookupError):
        getattr(process, method)(*arguments)


@posix_only("signals")
async def test_signals_of_wrong_kinds(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*SLEEP)
    with pytest.raises(OSError, match="Invalid argument"):
        process.send_signal(1000)
    with pytest.raises(TypeError):
        process.send_signal("TERM")
    process.send_signal(0)
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == KILLED


async def test_communicate(api: Any) -> None:
    process = await api.create_subprocess_exec(
        *python(
            "import sys; d = sys.stdin.read(); print(d.upper()); print(len(d), file=sys.stderr)"
        ),
        stdin=api.PIPE,
        stdout=api.PIPE,
        stderr=api.PIPE,
    )
    assert await process.communicate(b"some text") == (b"SOME TEXT\n", b"9\n")
    assert process.returncode == 0


async def test_streams_are_none_unless_asked_for(api: Any) -> None:
    process = await api.create_subprocess_exec(*TRUE)
    assert process.stdin is process.stdout is process.stderr is None
    await process.wait()


async def test_types(api: Any) -> None:
    process = await api.create_subprocess_exec(
        *TRUE, stdin=api.PIPE, stdout=api.PIPE, stderr=api.PIPE
    )
    assert isinstance(process, asyncio.subprocess.Process)
    assert isinstance(process.stdin, asyncio.StreamWriter)
    assert isinstance(process.stdout, asyncio.StreamReader)
    assert isinstance(process.stderr, asyncio.StreamReader)
    assert isinstance(process.pid, int)
    await process.communicate()


async def test_pid_and_repr(api: Any) -> None:
    process = await api.create_subprocess_exec(
        *sh("echo $$", "import os; print(os.getpid())"), stdout=api.PIPE
    )
    assert repr(process) == f"<Process {process.pid}>"
    stdout, _ = await process.communicate()
    assert int(stdout) == process.pid
    assert repr(process) == f"<Process {process.pid}>"


async def test_args(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*TRUE, b"one", "two")
    assert process.args == (*TRUE, b"one", "two")
    await process.wait()
    process = await aioproc.create_subprocess_shell("exit 0")
    assert process.args == "exit 0"
    await process.wait()


# -- wait


async def test_many_wait(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE)
    waits = [asyncio.create_task(process.wait()) for _ in range(5)]
    await asyncio.sleep(0)
    process.stdin.close()
    assert await asyncio.gather(*waits) == [0] * 5
    assert await process.wait() == 0


async def test_a_cancelled_wait_ends_only_itself(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE)
    first, second = (asyncio.create_task(process.wait()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert process.returncode is None
    process.stdin.close()
    assert await second == 0


async def test_wait_is_cancelled_in_the_round_of_the_exit(aioproc: Any) -> None:
    # The cancellation comes first, the exit is noticed next, the task wakes last.
    process = await aioproc.create_subprocess_exec(*SLEEP)
    first, second = (asyncio.create_task(process.wait()) for _ in range(2))
    await asyncio.sleep(0)
    process.kill()
    assert settle(lambda: not is_alive(process.pid))  # PyPy has no os.waitid
    asyncio.get_running_loop().call_soon(first.cancel)
    assert await second == KILLED
    result = (await asyncio.gather(first, return_exceptions=True))[0]
    assert result == KILLED or isinstance(result, asyncio.CancelledError)


async def test_wait_for_with_a_timeout(api: Any) -> None:
    process = await api.create_subprocess_exec(*SLEEP)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(process.wait(), 0.01)
    assert process.returncode is None
    process.kill()
    assert await process.wait() == KILLED


# asyncio's own wait() waits for the pipes too, in all versions up to 3.14.
async def test_wait_does_not_depend_on_the_pipes(aioproc: Any) -> None:
    # cat lives on when the shell has ended, until we close its stdin.
    process = await aioproc.create_subprocess_exec(
        *LEAVES_CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE
    )
    assert await process.wait() == 0
    assert process.returncode == 0
    assert await process.stdout.readline() == b"hi\n"
    assert not process.stdout.at_eof()
    process.stdin.write(b"still here\n")
    assert await process.stdout.readline() == b"still here\n"
    process.stdin.close()
    assert await process.stdout.read() == b""


async def test_exit_with_unread_output(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_shell(
        shell("echo hi", "exit 3"), stdout=aioproc.PIPE
    )
    assert await process.wait() == 3
    assert await process.stdout.read() == b"hi" + NL


# -- rusage


async def test_rusage_is_there_after_the_exit(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(
        *python("import sys, time\nsys.stdin.read()\nwhile time.process_time() < 0.05: pass"),
        stdin=aioproc.PIPE,
    )
    assert process.rusage is None
    process.stdin.close()
    await process.wait()
    usage = process.rusage
    if not on_wine():  # which gives our own times for those of any process
        assert 0.04 < usage.ru_utime + usage.ru_stime < 10
    assert WINDOWS or usage.ru_minflt > 0
    assert isinstance(usage.ru_nvcsw, int)
    assert isinstance(usage, aioproc.ResourceUsage)


@posix_only("a peak that exec carries over")
async def test_peak_memory_of_a_child_smaller_than_its_parent(aioproc: Any) -> None:
    # The kernel's number would be ours: exec carries the peak over.
    ballast = bytearray(64 << 20)
    process = await aioproc.create_subprocess_exec(*TRUE)
    await process.wait()
    assert process.rusage.ru_maxrss is None
    del ballast


#: Takes so many KiB, and not for a moment more: PyPy's bytearray copies itself.
BALLAST = """
import mmap, sys
size = int(sys.argv[1]) << 10
ballast = mmap.mmap(-1, size)
for at in range(0, size, mmap.PAGESIZE):
    ballast[at] = 1
"""


@posix_only("the resource module")
async def test_peak_memory_of_a_child_bigger_than_its_parent(aioproc: Any) -> None:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = peak + 200 * 1024
    process = await aioproc.create_subprocess_exec(*python(BALLAST, str(size)))
    assert await process.wait() == 0
    assert size <= process.rusage.ru_maxrss < size + 100 * 1024


# -- async with


async def test_context_of_a_child_that_ends(aioproc: Any) -> None:
    async with await aioproc.create_subprocess_exec(
        *CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE
    ) as process:
        assert isinstance(process, aioproc.Process)
        assert await process.communicate(b"hello") == (b"hello", None)
        assert process.returncode == 0
    assert process.returncode == 0


async def test_context_terminates(aioproc: Any) -> None:
    async with await aioproc.create_subprocess_exec(*SLEEP) as process:
        pass
    assert process.returncode == TERMINATED


@no_sigterm
async def test_context_closes_stdin(aioproc: Any) -> None:
    async with await aioproc.create_subprocess_exec(
        *python(
            "import signal, sys\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "print('ready', flush=True); sys.stdin.read(); sys.exit(7)"
        ),
        stdin=aioproc.PIPE,
        stdout=aioproc.PIPE,
    ) as process:
        await process.stdout.readline()
    assert process.returncode == 7
    assert process.stdin.is_closing()


@no_sigterm
async def test_context_kills_what_does_not_end(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_process.Process, "_steps", [(signal.SIGTERM, 0.02)])
    async with await aioproc.create_subprocess_shell(STUBBORN, stdout=aioproc.PIPE) as process:
        await process.stdout.readline()
    assert process.returncode == KILLED


async def test_context_left_by_an_exception(aioproc: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async with await aioproc.create_subprocess_exec(*SLEEP) as process:
            1 / 0  # noqa: B018
    assert process.returncode == TERMINATED


async def test_context_left_by_a_cancellation(aioproc: Any) -> None:
    inside = asyncio.Event()
    process: Any = None

    async def work() -> None:
        nonlocal process
        async with await aioproc.create_subprocess_exec(*SLEEP) as process:
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert process.returncode == TERMINATED


@no_sigterm
@pytest.mark.parametrize("how", ["cancelled", "ended"])
async def test_context_is_not_interrupted_while_it_ends(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(_process.Process, "_steps", [(signal.SIGTERM, 0.2)])
    process = await aioproc.create_subprocess_exec(
        *python(
            "import os, signal, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'term\\n'))\n"
            "os.write(1, b'ready\\n')\n"
            "while True: time.sleep(1000)"
        ),
        stdout=aioproc.PIPE,
    )
    assert await process.stdout.readline() == b"ready\n"
    inside = asyncio.Event()

    async def work() -> None:
        async with process:
            inside.set()
            if how == "cancelled":
                await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    if how == "cancelled":
        task.cancel()
    assert await process.stdout.readline() == b"term\n"
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert process.returncode == KILLED


async def test_context_of_a_child_blocked_on_a_full_pipe(aioproc: Any) -> None:
    async with await aioproc.create_subprocess_exec(*YES, stdout=aioproc.PIPE) as process:
        assert await process.stdout.readline() == b"y\n"
    assert process.returncode in (TERMINATED, -13)  # SIGPIPE
    await process.stdout.read()
    assert process.stdout.at_eof()


async def test_context_of_a_child_that_has_ended(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_shell("exit 5", stdin=aioproc.PIPE)
    await process.wait()
    async with process:
        pass
    assert process.returncode == 5


@posix_only("pass_fds")
async def test_context_does_not_wait_for_a_grandchild(aioproc: Any) -> None:
    ours, theirs = os.pipe()
    process = await aioproc.create_subprocess_exec(
        *python(
            "import os, sys\n"
            "fd = int(sys.argv[1])\n"
            "if os.fork() == 0: os.read(fd, 1); os._exit(0)\n"
            "print('made', flush=True)",
            str(ours),
        ),
        stdout=aioproc.PIPE,
        pass_fds=[ours],
    )
    os.close(ours)
    async with process:
        assert await process.stdout.readline() == b"made\n"
        await process.wait()
        assert not process.stdout.at_eof()
    assert await process.stdout.read() == b""
    os.close(theirs)  # ends the grandchild


async def test_context_wakes_readers(aioproc: Any) -> None:
    async with await aioproc.create_subprocess_exec(
        *CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE
    ) as p:
        reading = asyncio.create_task(p.stdout.read())
        waiting = asyncio.create_task(p.wait())
        await asyncio.sleep(0)
    assert await reading == b""
    assert await waiting == p.returncode


# -- threads, and the end of the loop


async def in_thread(function: Any) -> None:
    """Runs a function in a thread that has no loop, and lets no error pass."""
    errors = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("method", ["terminate", "kill", "send_signal"])
async def test_signals_from_another_thread(api: Any, method: str) -> None:
    process = await api.create_subprocess_exec(*SLEEP)
    arguments = [signal.SIGTERM] if method == "send_signal" else []
    thread = threading.Thread(target=getattr(process, method), args=arguments)
    thread.start()
    assert await process.wait() == (KILLED if method == "kill" else TERMINATED)
    thread.join()


@pytest.mark.parametrize("method", ["terminate", "kill", "send_signal"])
async def test_signals_after_the_loop_was_closed(aioproc: Any, method: str) -> None:
    new_loop = type(asyncio.get_running_loop())
    made = []

    async def main() -> None:
        made.append(await aioproc.create_subprocess_exec(*SLEEP, stdin=aioproc.PIPE))

    await in_thread(lambda: run(new_loop, main()))

    (process,) = made
    assert process.returncode is None
    getattr(process, method)(*[signal.SIGTERM] if method == "send_signal" else [])
    assert settle(lambda: process.returncode is not None)
    assert process.returncode == (KILLED if method == "kill" else TERMINATED)
    with pytest.raises(ProcessLookupError):
        process.kill()
    process._transport.close()


async def test_dropping_a_live_process_after_the_loop_was_closed(aioproc: Any) -> None:
    new_loop = type(asyncio.get_running_loop())
    pids = []

    async def main() -> None:
        process = await aioproc.create_subprocess_exec(
            *SLEEP, stdin=aioproc.PIPE, stdout=aioproc.PIPE
        )
        pids.append(process.pid)

    def drop() -> None:
        with pytest.warns(ResourceWarning) as warnings:  # noqa: PT031
            run(new_loop, main())
            # On Windows the port's thread looks whether the loop has closed.
            assert settle(lambda: collect() or bool(warnings))  # type: ignore[func-returns-value]
        assert len(warnings) == 1

    await in_thread(drop)
    assert len(pids) == 1  # and the guards see that nothing stays
