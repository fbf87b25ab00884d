"""open_process(): a process to talk to, ended with the block, with all that it has started."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from aside import PROC, drop
from conftest import FUSE, is_alive
from helpers import script
from marks import posix_only
from programs import CAT, SLEEP, TERMINATED, TRUE, WINDOWS, python

pytestmark = [pytest.mark.asyncio, pytest.mark.primary]

PIPE = asyncio.subprocess.PIPE

family_only = pytest.mark.skipif(not PROC, reason="nobody can look without /proc")

#: Writes the pid of a daemon of its own session, and goes on.
FAMILY = ("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!; exec cat")
#: Works for a while after the end of its stdin, and writes more than a pipe holds.
WORKER = python("""
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
for _ in range(30): os.write(1, b"x" * 9999 + b"\\n")
print("done", flush=True)
sys.exit(5)
""")
STUBBORN = python("""
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(1000)
""")


async def member(process: Any, family: list[int]) -> None:
    family.append(int(await process.stdout.readline()))
    assert is_alive(family[-1])


# -- how a block is left


@family_only
@pytest.mark.everywhere
@pytest.mark.parametrize("how", ["end", "return", "break", "exception", "cancel", "twice"])
async def test_a_block_that_is_left(aioproc: Any, family: list[int], how: str) -> None:
    process: Any = None
    there = asyncio.Event()

    async def block() -> Any:
        nonlocal process
        for _ in range(1):
            async with aioproc.open_process(*FAMILY) as process:
                await member(process, family)
                process.stdin.write(b"unread\n")
                await process.read_until(b"un")
                if how == "return":
                    return
                if how == "break":
                    break
                if how == "exception":
                    raise KeyError(how)
                if how in ("cancel", "twice"):
                    there.set()
                    await asyncio.Event().wait()

    task = asyncio.create_task(block())
    if how in ("cancel", "twice"):
        await there.wait()
        task.cancel()
        if how == "twice":
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    elif how == "exception":
        with pytest.raises(KeyError):
            await task
    else:
        await task
    assert not any(map(is_alive, family))
    if how != "twice":
        assert process.returncode in (-signal.SIGTERM, 0)  # by that, or by the end of its stdin
    # What had been read is there, and the end.
    assert await process.stdout.read() == b"read\n"
    assert process.stdout.at_eof()
    with pytest.raises(ProcessLookupError):
        process.kill()


@posix_only("SIGTERM")
@pytest.mark.everywhere
async def test_a_second_cancellation_leaves_out_the_grace(aioproc: Any) -> None:
    there = asyncio.Event()

    async def block() -> None:
        async with aioproc.open_process(*STUBBORN, stop=1000) as process:
            await process.stdout.readline()
            there.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    await there.wait()
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, FUSE)


@pytest.mark.everywhere
async def test_it_gets_the_time_that_it_was_given(aioproc: Any) -> None:
    """Its work goes on after the end of its stdin, and what it writes does not block it."""
    options = {"stop": [("eof", FUSE), (signal.SIGTERM, FUSE)]}
    async with aioproc.open_process(*WORKER, **options) as process:
        assert (await process.stdout.readline()).strip() == b"ready"
    assert process.returncode == 5
    output = await process.stdout.read()
    assert len(output.replace(b"\r", b"")) == 300_005
    assert output.strip().endswith(b"done")


async def test_it_ends_by_itself(aioproc: Any) -> None:
    """Who has closed all output has ended, or is about to, and is no case for a signal."""
    code = "import os, time; os.close(1); time.sleep(0.1); os._exit(3)"
    async with aioproc.open_process(*python(code)) as process:
        assert await process.stdout.read() == b""
    assert process.returncode == 3


@posix_only("SIGTERM")
async def test_but_not_for_ever(aioproc: Any) -> None:
    code = "import os, time; os.close(1); time.sleep(1000)"
    async with aioproc.open_process(*python(code)) as process:
        assert await process.stdout.read() == b""
    assert process.returncode == -signal.SIGTERM


async def test_without_a_block(aioproc: Any) -> None:
    process = await aioproc.open_process(*SLEEP)
    assert await process.stop() == TERMINATED
    assert await process.stop() == TERMINATED
    opener = aioproc.open_process(*SLEEP)
    async with await opener as process:
        pass
    assert process.returncode == TERMINATED
    with pytest.raises(RuntimeError, match="has been started"):
        await opener


async def test_one_that_nobody_enters(aioproc: Any) -> None:
    opener = aioproc.open_process(*SLEEP)
    with pytest.raises(AttributeError, match="the process has: 'async with"):
        _ = opener.stdin
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = opener.nothing
    openers = [opener]
    del opener
    with pytest.warns(RuntimeWarning, match=r"open_process\(.*\) was never entered"):
        drop(openers)
    with pytest.raises(TypeError):
        aioproc.open_process(*SLEEP, stop="soon")  # and it warns of nothing


# -- stop()


@posix_only("SIGTERM")
@pytest.mark.everywhere
async def test_stop_by_steps(aioproc: Any) -> None:
    code = """
import signal, time
signal.signal(signal.SIGINT, lambda *_: print("int", flush=True))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True: time.sleep(1000)
"""
    async with aioproc.open_process(*python(code), text=True) as process:
        assert await process.stdout.readline() == "ready\n"
        steps = [("eof", 0.01), (signal.SIGINT, 0.2), (signal.SIGTERM, 0.01)]
        assert await process.stop(steps) == -signal.SIGKILL
        assert await process.stdout.read() == "int\n"
        assert process.stdin.is_closing()


@posix_only("SIGTERM")
async def test_stop_in_two_tasks(aioproc: Any) -> None:
    """One signal is sent, and a cancelled one is told so at the end."""
    code = """
import signal, sys
asked = {signal.SIGTERM, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, asked)
print("ready", flush=True)
print(int(signal.sigwait(asked)), flush=True)
print(int(signal.sigwait(asked)), flush=True)
sys.exit(6)
"""
    process = await aioproc.open_process(*python(code), text=True, stop=FUSE)
    assert await process.stdout.readline() == "ready\n"
    tasks = [asyncio.create_task(process.stop()) for _ in range(3)]
    assert int(await process.stdout.readline()) == signal.SIGTERM
    tasks[0].cancel()
    tasks[1].cancel()
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in tasks)
    process.send_signal(signal.SIGUSR1)
    for task in tasks[:2]:
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await tasks[2] == 6
    assert int(await process.stdout.readline()) == signal.SIGUSR1


@family_only
async def test_stop_of_what_is_left_behind(aioproc: Any, family: list[int]) -> None:
    process = await aioproc.open_process(
        "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!; exit 3"
    )
    await member(process, family)
    assert await process.wait() == 3
    assert await process.stop() == 3
    assert not is_alive(family[0])


async def test_stop_of_a_process_of_asyncios_functions(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*SLEEP, stdin=PIPE)
    assert await process.stop(FUSE) == TERMINATED
    for wrong, error in (("soon", TypeError), (-1, ValueError), ([("end", 1)], TypeError)):
        with pytest.raises(error):
            await process.stop(wrong)


async def test_stdin_that_was_closed_before(aioproc: Any) -> None:
    """It is given the time all the same."""
    worker = python(
        "import sys, time; sys.stdin.read(); time.sleep(0.1); print('done'); sys.exit(5)"
    )
    async with aioproc.open_process(*worker, stop=[("eof", FUSE)]) as process:
        process.stdin.close()
    assert process.returncode == 5
    assert (await process.stdout.read()).split() == [b"done"]


@pytest.mark.everywhere
async def test_an_end_that_the_loop_has_not_noticed(aioproc: Any) -> None:
    """Without its tree nothing is to be done, but to reap it and to read what it has said."""
    for tree in (True, False):
        async with aioproc.open_process(*python("input(); print('hi')"), tree=tree) as process:
            process.stdin.write(b"\n")
            process.stdin.write_eof()
            # Without a round of the loop.
            end = time.monotonic() + FUSE
            while process.returncode is None and time.monotonic() < end:
                time.sleep(0.001)
        assert process._transport.get_returncode() == 0
        assert (await process.stdout.read()).split() == [b"hi"]


@posix_only("SIGTERM")
async def test_anyios_cancellation_while_another_task_ends_it(aioproc: Any) -> None:
    """That comes in each round of the loop, and is no second one."""
    anyio = pytest.importorskip("anyio")
    async with aioproc.open_process(*STUBBORN) as process:
        await process.stdout.readline()
        first = asyncio.create_task(process.stop(FUSE))
        await asyncio.sleep(0)

        async def join() -> None:
            with anyio.CancelScope() as scope:
                asyncio.get_running_loop().call_soon(scope.cancel)
                await process.stop()

        second = asyncio.create_task(join())
        done, _ = await asyncio.wait([first, second], timeout=0.3)
        assert not done
        process.kill()
        await first
        await second


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="objects end later")
@pytest.mark.parametrize("options", [{}, {"text": True}])
async def test_nothing_is_left_to_the_garbage_collector(
    aioproc: Any, options: dict[str, Any]
) -> None:
    """Neither by an ending nor by a timeout: what was read may be much."""
    never = "never" if options else b"never"

    async def used() -> weakref.ref[Any]:
        async with aioproc.open_process(*CAT, stderr=PIPE, **options) as process:
            for waiting in (process.wait(0), process.read_until(never, timeout=0)):
                with contextlib.suppress(asyncio.TimeoutError):
                    await waiting
        return weakref.ref(process._transport)

    gc.collect()
    gc.disable()
    try:
        transport = await used()
        for _ in range(3):  # what the loop is about to do
            await asyncio.sleep(0)
        assert transport() is None
    finally:
        gc.enable()


@posix_only("a pipe that somebody else has")
async def test_output_that_somebody_else_holds(aioproc: Any, family: list[int]) -> None:
    """What is in the pipe is read; then nobody waits for its end."""
    command = "(trap '' TERM; sleep 1000) & printf '%s\\nmore\\n' $!; exec sleep 1000"
    async with aioproc.open_process("sh", "-c", command, tree=False) as process:
        await member(process, family)
    assert process.returncode == -signal.SIGTERM
    assert await process.stdout.read() == b"more\n"
    assert is_alive(family[0])


# -- wait() and returncode


@pytest.mark.everywhere
async def test_wait_with_a_timeout(aioproc: Any) -> None:
    async with aioproc.open_process(*CAT, name="the cat") as process:
        for timeout in (0.01, 0, -1):
            with pytest.raises(asyncio.TimeoutError, match=r"the cat.* has not ended within"):
                await process.wait(timeout)
        assert not process._transport._exit_waiters
        waiting = asyncio.create_task(process.wait(timeout=1e300))
        process.stdin.close()
        assert await process.wait(timeout=FUSE) == await waiting == 0
        assert await process.wait(timeout=-1) == 0
        for wrong in ("1", True, [1]):
            with pytest.raises(TypeError, match="timeout must be a number of seconds"):
                await process.wait(wrong)


async def test_an_end_in_time_that_the_loop_has_not_noticed(aioproc: Any) -> None:
    process = await aioproc.open_process(*CAT)
    waiting = asyncio.create_task(process.wait(0.01))
    await asyncio.sleep(0)
    process.stdin.close()
    transport = process._transport
    while transport._look() is None:  # nothing but this thread runs
        pass
    assert process.returncode == 0  # at once
    assert await waiting == 0


# -- starting


async def test_streams_as_paths(aioproc: Any, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"text")
    options = {"stdin": tmp_path / "in", "stdout": tmp_path / "out", "stderr": aioproc.STDOUT}
    async with aioproc.open_process(*CAT, **options) as process:
        assert process.stdin is process.stdout is process.stderr is None
        assert await process.wait() == 0
    assert (tmp_path / "out").read_bytes() == b"text"
    with pytest.raises(FileNotFoundError):
        async with aioproc.open_process(*CAT, stdin=tmp_path / "nothing"):
            pass


@posix_only("a script by #!")
async def test_where_things_are(aioproc: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A relative program is ours, whatever cwd is; env_update changes what is inherited."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tool").write_text('#!/bin/sh\necho "$PWD $A $B"\n')
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("B", "gone")
    for program in ("./tool", Path("tool")):
        options = {"cwd": "there", "env_update": {"A": "1", "B": None}, "text": True}
        async with aioproc.open_process(program, **options) as process:
            line = await process.stdout.readline()
        assert line == f"{tmp_path / 'there'} 1 \n"


async def test_bad_input(aioproc: Any) -> None:
    """Is refused at the call, before anything is opened."""
    start = aioproc.open_process
    for error, why, call in [
        (TypeError, r"open_process\(\*command\)", lambda: start(["ls"])),
        (TypeError, "unexpected keyword argument 'timeout'", lambda: start("x", timeout=1)),
        (TypeError, "unexpected keyword argument 'limit'", lambda: start("x", limit=1)),
        (TypeError, "unexpected keyword argument 'shell'", lambda: start("x", shell=True)),
        (TypeError, "name must be a str", lambda: start("x", name=3)),
        (TypeError, "give a pathlib.Path", lambda: start("x", stdout="file")),
        (TypeError, r"process\.stdin", lambda: start("x", stdin=b"data")),
        (TypeError, "stop must be a number of seconds", lambda: start("x", stop="5")),
        (LookupError, "unknown encoding", lambda: start("x", encoding="no such")),
        (LookupError, "unknown error handler", lambda: start("x", errors="no such")),
        (ValueError, "embedded null", lambda: start("x\0")),
        (TypeError, "argument 1", lambda: start("x", 1)),
        (TypeError, "env_update must be a mapping", lambda: start("x", env_update=[])),
    ]:
        with pytest.raises(error, match=why):
            call()
    with pytest.raises(FileNotFoundError):
        await start("no-such-program")
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        async with start(*TRUE, cwd="no-such-directory"):
            pass


# -- what is said of it


async def test_logs(aioproc: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="aioproc")
    secret = "the-secret"
    async with aioproc.open_process(*CAT[:-1], CAT[-1], *([] if WINDOWS else ["-"])) as process:
        pass
    texts = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "aioproc"]
    infos = [text for level, text in texts if level == "INFO"]
    (end,) = infos
    assert f"pid {process.pid}: " in end
    assert f"returncode {process.returncode} after 0." in end
    assert "cat" in end or WINDOWS
    assert any("started" in text for level, text in texts if level == "DEBUG")
    assert any("is sent" in text or "is closed" in text or "killed" in text for _, text in texts)
    caplog.clear()
    async with aioproc.open_process(*python("", secret), name="it") as process:
        await process.stdout.read()
    infos = [r.getMessage() for r in caplog.records if r.levelname == "INFO"]
    assert ["'it'" in text and secret not in text for text in infos] == [True]


@posix_only("a short command that sleeps")
async def test_one_that_is_dropped(aioproc: Any) -> None:
    """A warning names the command, or what stands for it; the child is ended."""
    output = await script("""
        import gc, warnings
        async def main():
            return [
                (await aioproc.open_process(*SLEEP)).pid,
                (await aioproc.open_process(*SLEEP, name="the server")).pid,
            ]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pids = run(new_event_loop, main())
            gc.collect()
        assert {one.category for one in caught} == {ResourceWarning}
        texts = sorted(str(one.message) for one in caught)
        assert len(texts) == 2
        for pid, text in zip(pids, texts):
            assert str(pid) in text and "still running" in text, text
        print("1000)" in texts[0], "(the server)" in texts[1])
    """)
    assert output.strip() == "True True"


async def test_in_development_mode(aioproc: Any) -> None:
    done = await aioproc.run(
        sys.executable,
        *("-X", "dev", "-W", "error", "-c"),
        """
import asyncio, sys, aioproc
async def main():
    async with aioproc.open_process(
        sys.executable, "-c", "print(input())", text=True, stderr=aioproc.PIPE
    ) as process:
        process.stdin.write("hello\\n")
        print([item async for item in process.lines()], process.returncode)
    async with aioproc.open_process(sys.executable, "-c", "import sys; sys.stdin.read()"):
        pass
asyncio.run(main())
""",
        env_update={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.text, done.stderr) == ("[('stdout', 'hello\\n')] 0", b"")


@posix_only("audit hooks by the script's own")
async def test_the_audit_event(aioproc: Any) -> None:
    output = await script("""
        seen = []
        sys.addaudithook(lambda event, args: event == "subprocess.Popen" and seen.append(args))
        async def main():
            async with aioproc.open_process("true", env_update={"A": "1"}) as process:
                await process.wait()
        run(new_event_loop, main())
        print(len(seen), seen[0][0], list(map(os.fsdecode, seen[0][1])), seen[0][3]["A"])
    """)
    assert output == "1 true ['true'] 1\n"


# -- real ones


async def test_an_interpreter(aioproc: Any) -> None:
    async with aioproc.open_process(
        *(sys.executable, "-i", "-q", "-I"), text=True, stderr=aioproc.STDOUT
    ) as python:
        await python.read_until(">>> ", timeout=FUSE)
        for line, answer in (("6 * 7", "42"), ("'ä' * 3", "'äää'")):
            python.stdin.write(f"{line}\n")
            assert await python.read_until(">>> ") == f"{answer}\n>>> "
        python.stdin.write("1 / 0\n")
        assert "ZeroDivisionError" in await python.read_until(">>> ")
        python.stdin.write("exit(7)\n")
        with pytest.raises(asyncio.IncompleteReadError):
            await python.read_until(">>> ")
        assert python.returncode == 7


@posix_only("bash")
async def test_a_shell(aioproc: Any) -> None:
    async with aioproc.open_process("bash", stderr=PIPE, text=True) as shell:

        async def do(command: str) -> tuple[str, int]:
            shell.stdin.write(f'{command}\necho "--end $?--"\n')
            output, _, end = (await shell.read_until("--\n", timeout=FUSE)).rpartition("--end ")
            return output, int(end.rstrip("-\n"))

        assert await do("cd /; pwd") == ("/\n", 0)
        assert await do("x=5; false") == ("", 1)
        assert await do("echo $x; ls /no-such") == ("5\n", 2)
        assert "no-such" in await shell.stderr.readline()
        # A job of its own is ended with it.
        assert await do("sleep 1000 & echo $!") != ("", 0)


@pytest.mark.everywhere
async def test_a_copy_machine(aioproc: Any) -> None:
    """Requests and answers in turn, small and large."""
    async with aioproc.open_process(*CAT, stop=[("eof", FUSE)]) as process:
        for size in (1, 100, 70_000, 1, 300_000):
            process.stdin.write(b"x" * size + b"\n")
            assert await process.read_until(b"\n") == b"x" * size + b"\n"
    assert process.returncode == 0
    # It has ended.
    process.stdin.write(b"x" * 100_000)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await process.stdin.drain()
