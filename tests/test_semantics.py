"""The rules of docs/semantics.md, one test each."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aside import children, collect, open_fds
from conftest import is_alive, run, settle
from helpers import environment
from marks import posix_only, proc_only
from programs import CAT, KILLED, NL, SLEEP, TERMINATED, TRUE, WINDOWS, python, sh, shell

ROOT = Path(__file__).resolve().parent.parent

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
#: Leaves a grandchild with its streams, whose pid it says, and says more.
LEAVES_ONE = sh(
    "sleep 60 & echo $!; echo more",
    f"import subprocess; print(subprocess.Popen({SLEEP!r}).pid, 'more', sep='\\n', flush=True)",
)


def script(code: str, *args: str) -> list[str]:
    """A Python program that can import aioproc, from wherever this one does."""
    import aioproc

    paths = [str(Path(aioproc.__file__).resolve().parent.parent), str(Path(__file__).parent)]
    head = f"import sys; sys.path[:0] = {paths!r}\nfrom programs import *\n"
    return [sys.executable, "-c", head + code, *args]


def test_every_rule_has_its_test() -> None:
    text = (ROOT / "docs" / "semantics.md").read_text(encoding="utf-8")
    files = (ROOT / "tests").glob("test_*.py")
    own = "".join(file.read_text(encoding="utf-8") for file in files)
    named = re.findall(r"`(test_\w+)`", text)
    assert named
    for name in named:
        assert re.search(rf"def {name}\(", own), f"{name} is missing"
    for name in re.findall(r"`(tests/\w+\.py)`", text):
        assert (ROOT / name).exists(), f"{name} is missing"
    everywhere, windows = text.split("## Windows\n")
    rules = re.findall(r"^\*\*.*?(?=\n\n)", everywhere, re.M | re.S)
    assert len(rules) > 15
    for rule in rules:
        assert re.search(r"\[`test\S+`[^]]*\]$", rule), f"no test: {rule}"
    assert "[`tests/test_windows.py`]" in windows  # of the whole section


# -- signals


@posix_only("sessions and process groups")
@pytest.mark.parametrize("how", ["plain", "start_new_session"])
def test_ctrl_c_reaches_the_group(aioproc: Any, how: str) -> None:
    code = f"""
import asyncio, signal, aioproc
async def main():
    # In place of KeyboardInterrupt, which may come anywhere, so that we see the end.
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    process = await aioproc.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c",
        "print('ready', flush=True); input(); print('unhurt', flush=True)",
        stdin=aioproc.PIPE, stdout=aioproc.PIPE, stderr=aioproc.DEVNULL,
        start_new_session={how != "plain"},
    )
    print((await process.stdout.readline()).decode(), end="", flush=True)
    await interrupted.wait()
    out, _ = await process.communicate(b"\\n")
    print(process.returncode, out, flush=True)
asyncio.run(main())
"""
    with subprocess.Popen(
        script(code),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(aioproc),
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        os.killpg(parent.pid, signal.SIGINT)
        output = parent.stdout.read().splitlines()
    # The child ends by KeyboardInterrupt, of which Python makes a death by SIGINT.
    assert output == ["-2 b''" if how == "plain" else r"0 b'unhurt\n'"]


@pytest.mark.asyncio
async def test_kill_is_for_the_child_alone(api: Any) -> None:
    process = await api.create_subprocess_exec(
        *sh(
            "sleep 60 >/dev/null 2>&1 & echo $!; read line",
            f"import subprocess as s; c = s.Popen({SLEEP!r}, stdout=s.DEVNULL, stderr=s.DEVNULL)\n"
            "print(c.pid, flush=True); input()",
        ),
        stdin=api.PIPE,
        stdout=api.PIPE,
    )
    grandchild = int(await process.stdout.readline())
    process.kill()
    await process.wait()
    assert is_alive(grandchild)
    os.kill(grandchild, KILL)
    await process.communicate()


@pytest.mark.asyncio
async def test_signal_after_the_exit(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*TRUE)
    await process.wait()
    for send in (process.terminate, process.kill, lambda: process.send_signal(0)):
        with pytest.raises(ProcessLookupError):
            send()


@proc_only
@pytest.mark.asyncio
async def test_sigpipe_in_the_child(api: Any) -> None:
    for restore in (True, False):
        process = await api.create_subprocess_exec(
            "grep", "SigIgn", "/proc/self/status", stdout=api.PIPE, restore_signals=restore
        )
        output, _ = await process.communicate()
        ignored = int(output.split()[1], 16)
        assert bool(ignored & 1 << (signal.SIGPIPE - 1)) is not restore


# -- exits


@pytest.mark.asyncio
async def test_wait_with_a_pipe_kept_open(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(
        *LEAVES_ONE, stdout=aioproc.PIPE, stderr=aioproc.PIPE
    )
    grandchild = int(await process.stdout.readline())
    assert await process.wait() == 0
    assert is_alive(grandchild)
    os.kill(grandchild, KILL)
    assert await process.communicate() == (b"more\n", b"")


@pytest.mark.asyncio
async def test_communicate_with_a_pipe_kept_open(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*LEAVES_ONE, stdout=aioproc.PIPE)
    await process.wait()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(process.communicate(), 0.05)
    grandchild = int(await process.stdout.readline())
    os.kill(grandchild, KILL)
    assert (await process.communicate())[0] == b"more\n"


@pytest.mark.asyncio
async def test_output_after_the_exit(api: Any) -> None:
    process = await api.create_subprocess_shell(shell("echo one", "echo two"), stdout=api.PIPE)
    await asyncio.wait_for(process.wait(), 30)
    assert await process.stdout.read() == b"one" + NL + b"two" + NL


# -- lifetimes


@pytest.mark.asyncio
async def test_dropped_process_goes_on(api: Any) -> None:
    reader, writer = os.pipe()
    process = await api.create_subprocess_exec(*CAT, stdin=reader, stdout=api.DEVNULL)
    os.close(reader)
    pid, transport = process.pid, weakref.ref(process._transport)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del process
        collect()
    assert is_alive(pid)
    os.close(writer)
    # Gone is not enough: a loop that closes before it has noticed leaves a warning.
    while transport() is not None:
        await asyncio.sleep(0.001)
        collect()
    assert pid not in children()


@pytest.mark.asyncio
async def test_dropped_with_output_left(aioproc: Any) -> None:
    """More than a reader without a limit keeps: the rest is in the pipe."""
    reader, writer = os.pipe()
    code = "import os, sys; os.write(1, b'x' * 200_000); os.read(0, 1)"
    process = await aioproc.create_subprocess_exec(
        *python(code), stdin=reader, stdout=aioproc.PIPE
    )
    os.close(reader)
    while not process.stdout._paused:
        await asyncio.sleep(0.001)
    pid = process.pid
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del process
        os.close(writer)
        while pid in children() or not caught:
            await asyncio.sleep(0.001)
            collect()
    assert [warning.category for warning in caught] == [ResourceWarning]


@pytest.mark.asyncio
async def test_leaving_async_with(aioproc: Any) -> None:
    async with await aioproc.create_subprocess_exec(
        *sh(
            r'sleep 60 & printf "%s\nmore\n" $!; exec sleep 1000',
            f"import subprocess, time; child = subprocess.Popen({SLEEP!r}); "
            "print(child.pid, 'more', sep='\\n', flush=True); time.sleep(1000)",
        ),
        stdout=aioproc.PIPE,
    ) as process:
        grandchild = int(await process.stdout.readline())
    assert process.returncode is not None
    assert is_alive(grandchild)
    assert await process.communicate() == (b"more\n", None)
    os.kill(grandchild, KILL)
    # Work that is to be finished is waited for inside.
    async with await aioproc.create_subprocess_exec(
        *CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE
    ) as process:
        assert await process.communicate(b"all of it") == (b"all of it", None)
    assert process.returncode == 0


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_forgotten_await(api: Any) -> None:
    coroutine = api.create_subprocess_exec(*TRUE)
    assert asyncio.iscoroutine(coroutine)
    with pytest.raises((TypeError, AttributeError)):  # the latter before Python 3.11
        async with coroutine:
            pass
    coroutine.close()


def test_child_outlives_its_loop(aioproc: Any, new_loop: Callable[[], Any]) -> None:
    async def main() -> Any:
        return await aioproc.create_subprocess_exec(*SLEEP)

    process = run(new_loop, main())
    assert process.returncode is None
    assert is_alive(process.pid)
    process.kill()
    assert settle(lambda: process.returncode is not None)
    assert process.returncode == KILLED
    with pytest.raises(ProcessLookupError):
        process.kill()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        process = None
        collect()


def test_dropped_after_the_loop(aioproc: Any, new_loop: Callable[[], Any]) -> None:
    async def main() -> Any:
        return await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)

    process = run(new_loop, main())
    pid = process.pid
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del process
        # On Windows the port's thread looks whether the loop has closed.
        assert settle(lambda: collect() or bool(caught))  # type: ignore[func-returns-value]
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert settle(lambda: not is_alive(pid))


def test_thread_whose_loop_ends(aioproc: Any, new_loop: Callable[[], Any]) -> None:
    found: list[Any] = []

    async def main() -> None:
        found.append(await aioproc.create_subprocess_exec(*SLEEP))

    thread = threading.Thread(target=run, args=(new_loop, main()))
    thread.start()
    thread.join()
    process = found.pop()
    assert is_alive(process.pid)
    process.kill()
    assert settle(lambda: process.returncode == KILLED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        process = None
        collect()


@pytest.mark.parametrize("how", ["return", "os._exit", "daemon thread", "SIGTERM"])
def test_interpreter_exit(aioproc: Any, how: str) -> None:
    code = f"""
import asyncio, os, signal, threading, aioproc
async def main():
    global process
    if {how!r} == "daemon thread":
        running = threading.Event()
        threading.Thread(
            target=lambda: (running.set(), threading.Event().wait()), daemon=True).start()
        running.wait()
    process = await aioproc.create_subprocess_exec(
        *SLEEP, stdout=aioproc.DEVNULL, stderr=aioproc.DEVNULL)
    print(process.pid, flush=True)
    if {how!r} == "os._exit":
        os._exit(0)
    if {how!r} == "SIGTERM":
        os.kill(os.getpid(), signal.SIGTERM)
asyncio.run(main())
"""
    if WINDOWS and how in ("daemon thread", "SIGTERM"):
        pytest.skip("not on Windows: signals; and a daemon thread is always there")
    done = subprocess.run(
        script(code), capture_output=True, text=True, env=environment(aioproc), check=False
    )
    assert done.returncode == (-signal.SIGTERM if how == "SIGTERM" else 0), done.stderr
    pid = int(done.stdout)
    if how == "return" and sys.implementation.name != "pypy":
        assert settle(lambda: not is_alive(pid))
        assert "Traceback" not in done.stderr
    else:
        # On PyPy nothing is collected at the end, with asyncio either.
        assert is_alive(pid)
        os.kill(pid, KILL)


@pytest.mark.asyncio
async def test_cancelling_wait_leaves_the_child(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(process.wait(), 0.01)
    assert process.returncode is None
    process.stdin.write(b"still here")
    process.stdin.close()
    assert await process.stdout.read() == b"still here"
    assert await process.wait() == 0


# -- inheritance


@proc_only
@pytest.mark.asyncio
async def test_descriptors_of_a_child(aioproc: Any) -> None:
    backend = aioproc._backends.current()
    one = 1 if backend.name == "native" or "pidfd" in backend.strategy else 0
    # The first of a loop opens what is for all of them.
    first = await aioproc.create_subprocess_exec(*SLEEP)
    before = len(open_fds())
    others = [await aioproc.create_subprocess_exec(*SLEEP) for _ in range(3)]
    assert len(open_fds()) == before + 3 * one
    with_pipes = await aioproc.create_subprocess_exec(
        *SLEEP, stdin=aioproc.PIPE, stdout=aioproc.PIPE
    )
    assert len(open_fds()) == before + 4 * one + 2
    with_pipes._transport.close()
    for process in (first, *others, with_pipes):
        if process is not with_pipes:
            process.kill()
        await process.wait()
    assert len(open_fds()) == before - one


def test_inherited_stdin(aioproc: Any) -> None:
    code = """
import asyncio, aioproc
async def main():
    process = await aioproc.create_subprocess_exec(*CAT, stdout=aioproc.PIPE)
    print((await process.communicate())[0].decode().upper())
asyncio.run(main())
"""
    done = subprocess.run(
        script(code),
        input="for the child",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment(aioproc),
    )
    assert done.stdout == "FOR THE CHILD\n"


# -- threads


@pytest.mark.asyncio
async def test_signal_from_another_thread(api: Any) -> None:
    process = await api.create_subprocess_exec(
        *python("print('ready', flush=True); input()"), stdin=api.PIPE, stdout=api.PIPE
    )
    await process.stdout.readline()
    await asyncio.get_running_loop().run_in_executor(None, process.terminate)
    assert await process.wait() == TERMINATED
    await process.communicate()
    await asyncio.get_running_loop().shutdown_default_executor()
