"""``aioproc run --pty`` at a terminal, which is one of ours here."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from programs import WINDOWS, python

if WINDOWS:
    pytest.skip("no terminals for children", allow_module_level=True)

import termios

from conftest import is_alive
from test_pty import TELLS_SIZE, needs, rest, said

pytestmark = [pytest.mark.asyncio, pytest.mark.primary]

ROOT = str(Path(__file__).resolve().parent.parent)
RUN = [sys.executable, "-m", "aioproc", "run", "--pty"]
ENV = {**os.environ, "PYTHONPATH": ROOT, "PS1": "$", "RUN": " ".join(RUN), "TERM": "dumb"}


async def at_a_terminal(
    aioproc: Any, script: str, shell: Any = ("sh", "-c"), **options: Any
) -> Any:
    return await aioproc.create_subprocess_exec(
        *shell, *([script] if script else ()), **{"pty": True, "env": ENV, "tree": True, **options}
    )


def modes(process: Any) -> Any:
    """Those of the terminal."""
    return termios.tcgetattr(process._transport.terminal.fileno())


async def becomes(process: Any, expected: Any) -> None:
    """Returns when the modes are so."""
    while modes(process) != expected:
        await asyncio.sleep(0.002)


async def becomes_raw(process: Any) -> None:
    while modes(process)[3] & (termios.ICANON | termios.ECHO | termios.ISIG):
        await asyncio.sleep(0.002)


async def test_it_has_our_size_and_exit_code(aioproc: Any) -> None:
    script = "$RUN -- sh -c 'tty; stty size; exit 3'; echo code $?; tty"
    process = await at_a_terminal(aioproc, script, pty=(30, 90))
    inner, size, code, outer = (await rest(process)).split(b"\r\n")[:4]
    assert inner.startswith(b"/dev/")
    assert inner != outer
    assert (size, code) == (b"30 90", b"code 3")


async def test_a_new_size(aioproc: Any) -> None:
    process = await at_a_terminal(aioproc, "", shell=[*RUN, "--", *python(TELLS_SIZE)])
    assert await said(process, b".") == b"24 80."
    process.resize(11, 22)
    assert await said(process, b".") == b"11 22."
    process.stdin.write(b"\x03")
    assert await rest(process) == b"^C"


async def test_keys_are_the_commands(aioproc: Any) -> None:
    """Ctrl-C for one, which its terminal knows about; and what it shows is shown once."""
    code = "import tty, os; tty.setraw(0); os.write(1, b'ready'); print(os.read(0, 9), end='.')"
    process = await at_a_terminal(aioproc, "", shell=[*RUN, "--", *python(code)])
    await said(process, b"ready")
    process.stdin.write(b"\x03")
    assert await rest(process) == b"b'\\x03'."
    process = await at_a_terminal(aioproc, "", shell=[*RUN, "--", "cat"])
    await becomes_raw(process)
    process.stdin.write(b"a\n")
    assert await said(process, b"a\r\na\r\n") == b"a\r\na\r\n"
    process.stdin.write(b"\x03")
    assert await process.wait() == -signal.SIGINT
    await process.stdout.read()


ENDS = {
    "by itself": (None, "0"),
    "TERM": (signal.SIGTERM, "129"),
    "HUP": (signal.SIGHUP, "129"),
    "QUIT": (signal.SIGQUIT, "129"),
    "KILL": (signal.SIGKILL, "137"),
    "SEGV": (signal.SIGSEGV, "139"),
}
#: They are little else than the others.
RARE = ("HUP", "QUIT", "SEGV")


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=pytest.mark.heavy if way in RARE else ()) for way in ENDS],
)
async def test_our_terminal_is_as_it_was(aioproc: Any, way: str) -> None:
    number, code = ENDS[way]
    script = "$RUN -- sh -c 'echo pid $$ $PPID.; read x'; echo code $?.; read x"
    process = await at_a_terminal(aioproc, script)
    before = modes(process)
    found = re.search(rb"pid (\d+) (\d+)\.", await said(process, b".\r\n"))
    assert found is not None
    inner, ours = map(int, found.groups())
    await becomes_raw(process)
    if number is None:
        process.stdin.write(b"\r")
    else:
        os.kill(ours, number)
    await said(process, f"code {code}.".encode())
    await becomes(process, before)
    while is_alive(inner):  # it is hung up, at the least
        await asyncio.sleep(0.002)
    process.stdin.write(b"\n")
    await rest(process)


async def test_what_time_is_up_for(aioproc: Any) -> None:
    process = await at_a_terminal(aioproc, "$RUN --timeout 0.1 -- sleep 1000; echo code $?")
    before = modes(process)
    assert b"code 124" in await said(process, b"code 124\r\n")
    assert modes(process) == before
    await rest(process)


@needs("bash")
async def test_suspended_and_continued(aioproc: Any) -> None:
    process = await at_a_terminal(aioproc, "", shell=["bash", "--norc", "-i"])
    async with process:
        process.stdin.write(b"$RUN -- sh -c 'echo pid $PPID.; exec cat'\n")
        found = re.search(rb"\npid (\d+)\.", await said(process, b".\r\n"))
        while found is None:
            found = re.search(rb"pid (\d+)\.", await said(process, b".\r\n"))
        await becomes_raw(process)
        os.kill(int(found[1]), signal.SIGTSTP)
        await said(process, b"Stopped")
        await said(process, b"$")
        process.stdin.write(b"stty -a | grep -o ' icanon'\n")
        await said(process, b"\n icanon\r\n")
        process.stdin.write(b"fg\n")
        await becomes_raw(process)
        process.stdin.write(b"once more\n")
        await said(process, b"once more\r\nonce more\r\n")
        process.stdin.write(b"\x04")
        await said(process, b"$")
        process.stdin.write(b"echo code $?; stty -a | grep -o ' icanon'\n")
        await said(process, b"\ncode 0\r\n icanon\r\n")


@needs("bash")
async def test_in_the_background(aioproc: Any) -> None:
    """It neither reads nor changes the terminal, and is not stopped, until it comes to the
    foreground."""
    process = await at_a_terminal(aioproc, "", shell=["bash", "--norc", "-i"])
    async with process:
        process.stdin.write(b"$RUN -- sh -c 'echo in''ner; exec cat' &\n")
        await said(process, b"inner\r")
        process.stdin.write(b"echo ou''ter; jobs\n")
        assert b"Running" in await said(process, b"Running")
        process.stdin.write(b"fg\n")
        await said(process, b"fg\r\n")
        await becomes_raw(process)
        process.stdin.write(b"to cat\n")
        await said(process, b"to cat\r\nto cat\r\n")
        process.stdin.write(b"\x04")
        await said(process, b"$")


@needs("bash")
async def test_all_that_it_has_started_ends(aioproc: Any) -> None:
    process = await at_a_terminal(aioproc, "", shell=[*RUN, "--", "bash", "--norc", "-i"])
    await becomes_raw(process)
    process.stdin.write(b"sleep 1000 & echo pid''s $! .\n")
    found = re.search(rb"pids (\d+) \.", await said(process, b" .\r\n"))
    while found is None:
        found = re.search(rb"pids (\d+) \.", await said(process, b" .\r\n"))
    await said(process, b"$")
    process.terminate()
    # By SIGHUP, unless it comes between bash's look at its signals and its read().
    assert await process.wait() in (128 + signal.SIGHUP, 128 + signal.SIGKILL)
    assert not is_alive(int(found[1]))
    await process.stdout.read()


async def test_stdin_is_no_terminal(aioproc: Any, tmp_path: Path) -> None:
    """What is there is typed, and its end."""
    text = "one\ntwo"
    options = {"env": ENV, "text": True}
    done = await aioproc.run(*RUN, "--", "sh", "-c", "stty -echo; cat", input=text, **options)
    assert done.stdout.endswith(text)
    (tmp_path / "input").write_text(text)
    done = await aioproc.run(*RUN, "--", "cat", stdin=tmp_path / "input", **options)
    assert done.stdout.endswith(text)
    done = await aioproc.run(*RUN, "--", "cat", **options)
    assert done.stdout == ""


async def test_interrupted_from_elsewhere(aioproc: Any) -> None:
    """It is Ctrl-C for the command."""
    async with aioproc.open_process(
        *RUN, "--", "sh", "-c", "echo ready; exec cat", env=ENV
    ) as process:
        await process.read_until(b"ready")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == -signal.SIGINT


async def test_its_output_is_read_by_nobody(aioproc: Any) -> None:
    done = await aioproc.run_shell("$RUN -- yes | head -n 2", env=ENV, shell="sh")
    assert done.stdout == b"y\r\ny\r\n"


async def test_a_missing_program(aioproc: Any) -> None:
    done = await aioproc.run(*RUN, "/no/such", env=ENV, check={127})
    assert b"/no/such" in done.stderr
