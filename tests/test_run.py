"""run(): what it returns, what it raises, and what it takes. How it ends what it has to end is
in test_run_endings.py.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aioproc._run import collect
from conftest import run as run_loop
from marks import posix_only, windows_only
from programs import BOTH, CAT, TEE, TRUE, WINDOWS, ends, python, shell

pytestmark = [pytest.mark.asyncio, pytest.mark.primary]
everywhere = pytest.mark.everywhere

DEVNULL, PIPE, STDOUT = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT

FAILS = python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
#: Bytes that are no text, and newlines of all systems.
ODD = python(
    "import os; os.write(1, b'a\\xff\\r\\nb\\rc\\n'); os.write(2, '\\u00e4\\n'.encode('latin-1'))"
)
#: Says what it has in its environment.
ENVIRONMENT = python("import os, sys; print([os.environ.get(name) for name in sys.argv[1:]])")


# -- what comes of it


@everywhere
async def test_a_command(aioproc: Any) -> None:
    done = await aioproc.run(*BOTH)
    assert type(done) is aioproc.CompletedProcess
    assert isinstance(done, subprocess.CompletedProcess)
    assert done.args == tuple(BOTH)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n", b"err\n")
    assert (done.reason, done.signal, done.ok, done.text) == ("exit", None, True, "out")
    assert (done.complete, done.dropped, done.forced, done.left) == (True, (0, 0), None, None)
    assert done.error is None
    assert done.pid > 0
    assert 0 < done.duration < 60
    assert done.rusage.ru_utime + done.rusage.ru_stime >= 0
    assert done.check_returncode() is None


@everywhere
async def test_one_that_fails(aioproc: Any) -> None:
    with pytest.raises(aioproc.CalledProcessError) as caught:
        await aioproc.run(*FAILS)
    error = caught.value
    assert isinstance(error, subprocess.CalledProcessError)
    assert isinstance(error, aioproc.ProcessError)
    assert error.returncode == error.result.returncode == 3
    assert (error.output, error.stderr) == (b"out\n", b"err\n")
    assert error.cmd == tuple(FAILS)
    first, *rest = str(error).splitlines()
    assert "exit code 3" in first
    assert rest[-1] == "err"


async def test_what_is_no_failure(aioproc: Any) -> None:
    done = await aioproc.run(*FAILS, check=False)
    assert (done.returncode, done.ok) == (3, False)
    with pytest.raises(aioproc.CalledProcessError):
        done.check_returncode()
    done = await aioproc.run(*FAILS, check={0, 3})
    assert (done.returncode, done.ok) == (3, True)
    with pytest.raises(aioproc.CalledProcessError):
        await aioproc.run(*TRUE, check=range(1, 4))


@posix_only("signals")
async def test_a_signal_that_is_not_ours(aioproc: Any) -> None:
    with pytest.raises(aioproc.CalledProcessError) as caught:
        await aioproc.run("sh", "-c", "kill -SEGV $$")
    result = caught.value.result
    assert (result.reason, result.signal, result.returncode) == ("signal", signal.SIGSEGV, -11)
    assert (result.ok, result.forced) == (False, None)
    assert "SIGSEGV" in str(caught.value)
    assert (await aioproc.run("sh", "-c", "kill -TERM $$", check={-15})).ok


@everywhere
async def test_stdin_is_empty(aioproc: Any) -> None:
    assert (await aioproc.run(*CAT)).stdout == b""


INHERITS = """
import asyncio, aioproc, os, sys
from programs import *
async def main():
    done = await aioproc.run(*CAT, stdin=None)
    assert done.stdout == b"ours"
    assert (await aioproc.run(*CAT)).stdout == b""
    done = await aioproc.run(*python("print('through', flush=True)"), capture_output=False)
    assert done.stdout is done.stderr is None, done
    assert done.text == ""
    print("ok", flush=True)
run(main())
"""


async def test_what_is_inherited(aside: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from aside import run\n" + INHERITS],
        input=b"ours",
        stdout=PIPE,
        env=aside.environment(),
    )
    assert done.returncode == 0
    assert done.stdout.split() == [b"through", b"ok"]


async def test_streams_that_are_not_captured(aioproc: Any, tmp_path: Path) -> None:
    done = await aioproc.run(*BOTH, stdout=DEVNULL, stderr=DEVNULL)
    assert (done.stdout, done.stderr) == (None, None)
    done = await aioproc.run(*BOTH, stderr=STDOUT)
    assert sorted(done.stdout.split()) == [b"err", b"out"]
    assert done.stderr is None
    with open(tmp_path / "file", "wb") as file:
        await aioproc.run(*BOTH, stdout=file, stderr=STDOUT)
        await aioproc.run(*BOTH, stdout=file.fileno())
    assert (tmp_path / "file").read_bytes().count(b"out") == 2


async def test_paths_are_opened(aioproc: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"from a file")
    target.write_bytes(b"something longer than that")
    done = await aioproc.run(*CAT, stdin=source, stdout=target)
    assert done.stdout is None
    assert target.read_bytes() == b"from a file"
    with pytest.raises(FileNotFoundError) as caught:
        await aioproc.run(*CAT, stdin=tmp_path / "missing")
    assert caught.value.filename == os.fspath(tmp_path / "missing")
    # None of them is opened in vain: judged first.
    with pytest.raises(TypeError):
        await aioproc.run(*CAT, 1, stdout=tmp_path / "not")
    with pytest.raises(FileNotFoundError):
        await aioproc.run("/nowhere/program", stdin=source, stdout=target)


# -- text


@everywhere
async def test_text(aioproc: Any) -> None:
    done = await aioproc.run(*ODD, text=True)
    assert done.stdout == "a\ufffd\nb\nc\n"
    assert done.stderr == "\ufffd\n"
    assert done.text == "a\ufffd\nb\nc"
    done = await aioproc.run(*ODD, encoding="latin-1")
    assert (done.stdout, done.stderr) == ("a\xff\nb\nc\n", "\xe4\n")
    done = await aioproc.run(*ODD, errors="backslashreplace")
    assert done.stdout == "a\\xff\nb\nc\n"


async def test_bytes_that_are_no_text(aioproc: Any) -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        await aioproc.run(*ODD, errors="strict")
    result = aioproc.partial_result(caught.value)
    assert result.stdout == b"a\xff\r\nb\rc\n"
    assert (result.returncode, result.reason, result.ok) == (0, "error", False)
    assert result.error is caught.value


async def test_text_goes_in(aioproc: Any) -> None:
    assert (await aioproc.run(*CAT, input="\u00e4\n", text=True)).stdout == "\u00e4\n"
    done = await aioproc.run(*CAT, input="\u00e4\n", encoding="utf-16-le")
    assert done.stdout == "\u00e4\n"
    done = await aioproc.run(*CAT, input="\udcff", errors="surrogateescape")
    assert done.stdout == "\udcff"
    with pytest.raises(UnicodeEncodeError):
        await aioproc.run(*CAT, input="\udcff", text=True)
    # One text, however many pieces it comes in.
    done = await aioproc.run(*CAT, input=["a", "b"], encoding="utf-16")
    assert done.stdout == "ab"


# -- limits of output


@everywhere
async def test_max_output(aioproc: Any) -> None:
    flood = python("import os; [os.write(1, b'%07d\\n' % n) for n in range(40_000)]")
    done = await aioproc.run(*flood, max_output=800)
    lines = done.stdout.split()
    assert lines == [b"%07d" % n for n in (*range(50), *range(39_950, 40_000))]
    assert done.dropped == (320_000 - 800, 0)
    assert done.complete
    done = await aioproc.run(*flood, max_output=320_000)
    assert (len(done.stdout), done.dropped) == (320_000, (0, 0))
    done = await aioproc.run(*BOTH, max_output=3, text=True)
    assert (done.stdout, done.stderr, done.dropped) == ("ot\n", "er\n"[:0] + "er\n", (1, 1))


async def test_bounded_takes_no_more_than_it_keeps() -> None:
    bounded = collect.Bounded(1000)
    for n in range(100_000):
        bounded.add(b"%d," % (n % 10))
    assert len(bounded.value()) == 1000
    assert bounded.value() == b"0,1,2,3,4,5,6,7,8,9," * 50
    assert bounded.dropped == 200_000 - 1000
    assert sum(map(len, bounded._tail)) <= 1000 + 2 * collect.READ_SIZE


@everywhere
async def test_much_output(aioproc: Any) -> None:
    code = "import sys; sys.stdout.buffer.write(b'x' * 30_000_000)"
    done = await aioproc.run(*python(code))
    assert done.stdout == b"x" * 30_000_000
    # By now it is known for that.
    done = await aioproc.run(*python(code + "; sys.stderr.buffer.write(b'y' * 3_000_000)"))
    assert (len(done.stdout), len(done.stderr)) == (30_000_000, 3_000_000)


# -- callbacks


@everywhere
async def test_on_output(aioproc: Any) -> None:
    heard: list[tuple[str, bytes]] = []
    done = await aioproc.run(
        *python(
            "import os\n"
            "for n in range(3): os.write(1, b'%d' % n); os.write(2, b'e'); os.read(0, 1)"
        ),
        input=[b"...."],
        on_output=lambda *args: heard.append(args),
    )
    assert b"".join(data for stream, data in heard if stream == "stdout") == b"012" == done.stdout
    assert b"".join(data for stream, data in heard if stream == "stderr") == b"eee" == done.stderr


@everywhere
async def test_on_line(aioproc: Any) -> None:
    heard: list[tuple[str, str]] = []

    async def on_line(stream: str, line: str) -> None:
        await asyncio.sleep(0)
        heard.append((stream, line))

    code = "import os\nfor part in (b'a\\nb', b'b\\n\\nc', b'\\r\\nd'): os.write(1, part)"
    await aioproc.run(*python(code), on_line=on_line, text=True)
    assert heard == [("stdout", line) for line in ("a\n", "bb\n", "\n", "c\n", "d")]
    heard.clear()
    await aioproc.run(*python(code), on_line=on_line)
    assert [line for _, line in heard] == [b"a\n", b"bb\n", b"\n", b"c\r\n", b"d"]


async def test_text_is_decoded_piece_by_piece(aioproc: Any) -> None:
    heard: list[str] = []
    said = asyncio.Event()

    def on_output(stream: str, text: str) -> None:
        heard.append(text)
        said.set()

    async def answers() -> AsyncIterator[bytes]:
        await said.wait()
        yield b"go\n"

    done = await aioproc.run(
        # The first byte of two, and "x" before it, so that there is something to be heard.
        *python("import os\nos.write(1, b'x\\xc3'); os.read(0, 3); os.write(1, b'\\xa4')"),
        input=answers(),
        on_output=on_output,
        text=True,
    )
    assert "".join(heard) == "x\u00e4" == done.stdout
    assert heard[0] == "x"


async def test_a_callback_brakes_the_child(aioproc: Any) -> None:
    code = "import os\nfor n in range(1000): os.write(1, bytes(4096))\n"
    heard = 0

    async def on_output(stream: str, data: bytes) -> None:
        nonlocal heard
        heard += len(data)
        await asyncio.sleep(0)

    async def first(stream: str, data: bytes) -> None:
        # As long as this is waited for, the rest is not read.
        await asyncio.sleep(0.05)
        process_is_ahead = sum(len(data) for data in seen)
        seen.append(data)
        assert process_is_ahead <= 4096 * 1000

    seen: list[bytes] = []
    done = await aioproc.run(*python(code), on_output=on_output)
    assert heard == len(done.stdout) == 4_096_000


async def test_both_callbacks_and_a_limit(aioproc: Any) -> None:
    pieces: list[bytes] = []
    lines: list[bytes] = []
    done = await aioproc.run(
        *python("for n in range(5000): print(n)"),
        on_output=lambda _, data: pieces.append(data),
        on_line=lambda _, line: lines.append(line),
        max_output=10,
    )
    whole = b"".join(b"%d\n" % n for n in range(5000))
    assert b"".join(pieces) == b"".join(lines) == whole
    assert len(lines) == 5000
    assert len(done.stdout) == 10


# -- the environment, the directory, the program


async def test_env_update(aioproc: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOPROC_TEST_A", "a")
    monkeypatch.setenv("AIOPROC_TEST_B", "b")
    names = [f"AIOPROC_TEST_{letter}" for letter in "ABC"]
    update = {"AIOPROC_TEST_A": None, "AIOPROC_TEST_C": "c", "AIOPROC_TEST_D": None}
    done = await aioproc.run(*ENVIRONMENT, *names, env_update=update)
    assert done.text == "[None, 'b', 'c']"
    env = {**os.environ, "AIOPROC_TEST_A": "other"}
    done = await aioproc.run(*ENVIRONMENT, *names, env=env, env_update={"AIOPROC_TEST_B": None})
    assert done.text == "['other', None, None]"
    assert env["AIOPROC_TEST_B"] == os.environ["AIOPROC_TEST_B"] == "b"
    if not WINDOWS:
        done = await aioproc.run(*ENVIRONMENT, *names, env_update={b"AIOPROC_TEST_A": b"bytes"})
        assert done.text == "['bytes', 'b', None]"
    else:  # case makes no difference
        update = {"aioproc_test_a": None, "Aioproc_Test_B": "other"}
        done = await aioproc.run(*ENVIRONMENT, *names, env=env, env_update=update)
        assert done.text == "[None, 'other', None]"


@everywhere
async def test_a_program_is_where_the_caller_sees_it(
    aioproc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there, here / "sub"):
        folder.mkdir()
    says: list[str] = []
    if WINDOWS:
        # A copy of Python cannot run, one of cmd.exe can.
        for folder in (here, here / "sub"):
            shutil.copy(os.environ["COMSPEC"], folder / "program.exe")
        says = ["/c", "cd"]
    else:
        for folder in (here, here / "sub"):
            (folder / "program").write_text("#!/bin/sh\npwd\n")
            (folder / "program").chmod(0o755)
    monkeypatch.chdir(here)
    for program in ("./program", Path("program"), "../here/program", b"./program", "sub/program"):
        done = await aioproc.run(program, *says, cwd=there)
        assert os.path.samefile(done.text, there)
    done = await aioproc.run(Path("program"), *says)
    assert os.path.samefile(done.text, here)
    assert done.args == (Path("program"), *says)
    if not WINDOWS:  # where our directory is looked into as well
        # A name alone is looked for in PATH.
        with pytest.raises(FileNotFoundError):
            await aioproc.run("program")


@everywhere
async def test_what_is_missing(aioproc: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await aioproc.run("/nowhere/program", cwd=tmp_path)
    if not WINDOWS:
        assert caught.value.filename == "/nowhere/program"
    with pytest.raises(NotADirectoryError if WINDOWS else FileNotFoundError) as caught:
        await aioproc.run(*TRUE, cwd="/nowhere/directory")
    if not WINDOWS:
        assert caught.value.filename == "/nowhere/directory"
    with pytest.raises(FileNotFoundError) as caught:
        await aioproc.run("git status --short")
    notes = "".join(getattr(caught.value, "__notes__", [])) + str(caught.value)
    assert "run_shell()" in notes


@posix_only("ETXTBSY")
@everywhere
async def test_a_program_that_is_still_being_written(aioproc: Any, tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy(shutil.which("cat") or "/bin/cat", program)
    file = open(program, "ab")  # noqa: SIM115
    asyncio.get_running_loop().call_later(0.03, file.close)
    assert (await aioproc.run(program, input=b"after all")).stdout == b"after all"
    assert file.closed
    with open(program, "ab"), pytest.raises(OSError, match="busy"):
        await aioproc.run(program)


async def test_a_callbacks_own_error_starts_nothing_again(aioproc: Any) -> None:
    starts = 0

    def on_output(stream: str, data: bytes) -> None:
        nonlocal starts
        starts += 1
        raise OSError(26, "as if the program were busy")

    with pytest.raises(OSError, match="as if"):
        await aioproc.run(*BOTH, stderr=DEVNULL, on_output=on_output)
    assert starts == 1


# -- the shell


@everywhere
async def test_a_shell(aioproc: Any) -> None:
    done = await aioproc.run_shell(shell("echo one", "echo two"))
    assert done.stdout.split() == [b"one", b"two"]
    assert done.args == shell("echo one", "echo two")
    with pytest.raises(aioproc.CalledProcessError, match="exit code 3"):
        await aioproc.run_shell(shell("exit 3"))


@posix_only("bash")
async def test_another_shell(aioproc: Any) -> None:
    done = await aioproc.run_shell("[[ a == a ]] && echo $0 $BASH_VERSION", shell="bash")
    assert done.text.startswith("bash ")
    assert (await aioproc.run_shell(b"echo bytes", shell=Path("/bin/sh"))).text == "bytes"
    with pytest.raises(ValueError, match="use shell="):
        await aioproc.run_shell("true", executable="/bin/sh")
    with pytest.raises(TypeError, match="run\\(\\) takes a program"):
        await aioproc.run_shell(["echo", "x"])


@windows_only
async def test_cmd_by_its_name(aioproc: Any) -> None:
    assert (await aioproc.run_shell("echo one", shell="cmd")).text.strip() == "one"


# -- names, logs


async def test_a_name(aioproc: Any, caplog: pytest.LogCaptureFixture) -> None:
    secret = [*FAILS, "a secret"]
    with (
        caplog.at_level(logging.INFO, "aioproc"),
        pytest.raises(aioproc.CalledProcessError) as caught,
    ):
        await aioproc.run(*secret, name="the job")
    assert str(caught.value).startswith("the job: exit code 3")
    assert "the job" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "aioproc"):
        await aioproc.run(*secret, check=False)
    assert "secret" not in caplog.text + str(caught.value) + repr(caught.value.result)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert f"with {len(secret) - 1} arguments" in record.getMessage()
    assert "exit, returncode 3" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "aioproc"):
        await aioproc.run(*secret, check=False)
    assert "a secret" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "aioproc"):
        await aioproc.run(*secret, check=False, name="the job")
        async with aioproc.open_process(*secret, name="another"):
            pass
    assert "started: 'the job'" in caplog.text
    assert "started: 'another'" in caplog.text
    assert "secret" not in caplog.text
    command = aioproc.Command(*secret, input=b"secret", name="the job")
    assert repr(command) == "Command(name='the job')"


# -- Command


async def test_commands(aioproc: Any) -> None:
    command = aioproc.Command(*CAT, input=b"by a command", max_output=5)
    assert (await aioproc.run(command)).stdout == b"byand"
    assert (await aioproc.run(command, max_output=None)).stdout == b"by a command"
    assert (await aioproc.run(command, input="text", text=True)).stdout == "text"
    assert command.options == {"input": b"by a command", "max_output": 5}
    again = pickle.loads(pickle.dumps(command))
    assert again == command
    assert hash(again) == hash(command)
    assert again != aioproc.Command(*CAT)
    assert repr(aioproc.Command("git", "log", timeout=3)) == "Command('git', 'log', timeout=3)"
    with pytest.raises(AttributeError, match="cannot be changed"):
        command.program = "other"
    command.options["input"] = b"other"
    assert command.options["input"] == b"by a command"
    with pytest.raises(TypeError, match="has its arguments"):
        await aioproc.run(command, "more")
    with pytest.raises(TypeError, match="unexpected keyword"):
        aioproc.Command("true", shel=True)
    with pytest.raises(TypeError, match=r"Command\(\*command\)"):
        aioproc.Command(["git", "log"])


# -- what is refused


REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "stdin and input": (ValueError, "may not both", {"input": b"", "stdin": DEVNULL}),
    "a pipe for nobody": (ValueError, "nobody who writes", {"stdin": PIPE}),
    "a str for a file": (TypeError, "pathlib.Path", {"stdout": "file"}),
    "bytes for a file": (TypeError, "pathlib.Path", {"stderr": b"file"}),
    "data as stdin": (TypeError, "input= for data", {"stdin": "data"}),
    "captured and not": (ValueError, "capture_output", {"capture_output": False, "stdout": PIPE}),
    "stdout=STDOUT": (ValueError, "STDOUT can only", {"stdout": STDOUT}),
    "text as bytes": (TypeError, "must be str", {"input": b"", "text": True}),
    "bytes as text": (TypeError, "must be bytes, not str", {"input": ""}),
    "a number as input": (TypeError, "input must be", {"input": 5}),
    "no encoding": (LookupError, "unknown encoding", {"encoding": "nope"}),
    "none of text": (LookupError, "not a text encoding", {"encoding": "hex"}),
    "no handler": (LookupError, "unknown error handler", {"errors": "nope"}),
    "a timeout in words": (TypeError, "timeout must be", {"timeout": "5"}),
    "a timeout that is none": (ValueError, "timeout must be", {"timeout": float("nan")}),
    "a bool": (TypeError, "timeout must be", {"timeout": True}),
    "an idle time in words": (TypeError, "idle_timeout must be", {"idle_timeout": "5"}),
    "nothing to be idle": (
        ValueError,
        "idle_timeout needs output",
        {"idle_timeout": 5, "stdout": None, "stderr": DEVNULL},
    ),
    "a negative grace": (ValueError, "stop must be 0", {"stop": -1}),
    "a word for steps": (TypeError, "stop must be a number", {"stop": "kill"}),
    "no steps": (TypeError, "a step of stop", {"stop": [signal.SIGTERM, 5]}),
    "a step without a grace": (TypeError, "a step of stop", {"stop": [(signal.SIGTERM,)]}),
    "a step by name": (TypeError, "signal or 'eof'", {"stop": [("TERM", 5)]}),
    "no such signal": (ValueError, "no signal", {"stop": [(999, 5)]}),
    "a negative step": (ValueError, "0 seconds or more", {"stop": [("eof", -1)]}),
    "a negative drain": (ValueError, "drain must be", {"drain": -1}),
    "leftovers": (ValueError, "leftovers must be", {"leftovers": "end"}),
    "leftovers of none": (ValueError, "needs tree=True", {"leftovers": "kill", "tree": False}),
    "no output at all": (ValueError, "max_output must be", {"max_output": 0}),
    "much output": (TypeError, "max_output must be", {"max_output": 1e6}),
    "no callback": (TypeError, "on_line must be callable", {"on_line": "print"}),
    "nothing to hear": (
        ValueError,
        "on_output needs output",
        {"on_output": print, "stdout": None, "stderr": STDOUT},
    ),
    "a check of text": (TypeError, "check must be", {"check": "0"}),
    "a number to check": (TypeError, "check must be", {"check": 3}),
    "pairs for env": (TypeError, "env_update must be a mapping", {"env_update": [("A", "1")]}),
    "a name that is none": (TypeError, "name must be", {"name": 5}),
    "shell=True": (TypeError, "unexpected keyword argument 'shell'", {"shell": True}),
    "shell=False": (TypeError, "unexpected keyword argument 'shell'", {"shell": False}),
    "a misspelt word": (TypeError, "unexpected keyword", {"time_out": 5}),
    "universal_newlines": (TypeError, "unexpected keyword", {"universal_newlines": True}),
    "a closed descriptor": (OSError, "Bad file descriptor", {"stdout": 9999}),
    "an object for a file": (AttributeError, "fileno", {"stdout": object()}),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused(aioproc: Any, case: str, tmp_path: Path) -> None:
    kind, text, options = REFUSED[case]
    mark = tmp_path / "started"
    with pytest.raises(kind, match=text):
        await aioproc.run(*python(f"open({str(mark)!r}, 'w')"), **options)
    assert not mark.exists()


async def test_advice(aioproc: Any) -> None:
    for options, advice in (
        ({"time_out": 5}, "did you mean 'timeout'?"),
        ({"universal_newlines": True}, "use text=True"),
        ({"kill_after": 5}, "use stop=SECONDS"),
    ):
        with pytest.raises(TypeError) as caught:
            await aioproc.run(*TRUE, **options)
        assert advice in "".join(getattr(caught.value, "__notes__", [])) + str(caught.value)
    with pytest.raises(TypeError, match="run\\(\\*command\\)"):
        await aioproc.run(["git", "log"])
    with pytest.raises(TypeError) as caught:
        await aioproc.run("git", ["log"])
    notes = "".join(getattr(caught.value, "__notes__", [])) + str(caught.value)
    assert "run(*command)" in notes


async def test_the_signature_says_it_all() -> None:
    import aioproc

    for function in (aioproc.run, aioproc.run_shell):
        names = set(inspect.signature(function).parameters)
        assert {"input", "timeout", "stop", "on_line", "check", "options"} <= names
        assert "shell_program" not in names
    for function in (
        *(aioproc.create_subprocess_exec, aioproc.create_subprocess_shell),
        *(aioproc.subprocess_exec, aioproc.subprocess_shell),
    ):
        names = set(inspect.signature(function).parameters)
        assert {"stdin", "cwd", "env", "tree", "pass_fds", "creationflags"} <= names
        assert "shell" not in names


# -- how


async def test_a_short_child_wakes_the_loop_once(aioproc: Any) -> None:
    """Nothing of it is registered with the loop but what all children share."""
    loop = asyncio.get_running_loop()
    await aioproc.run(*BOTH)  # the watcher is there
    if type(loop).__module__.startswith(("uvloop", "winloop")) or WINDOWS:
        pytest.skip("its methods cannot be replaced")
    from aioproc._backends import current, watcher

    registered: list[int] = []
    original, slow = loop.add_reader, watcher.SLOW

    def add_reader(fd: int, *args: Any) -> None:
        registered.append(fd)
        original(fd, *args)

    loop.add_reader = add_reader  # type: ignore[method-assign, assignment]
    watcher.SLOW = 1000.0
    try:
        done = await aioproc.run(*BOTH, input=b"some")
    finally:
        loop.add_reader = original  # type: ignore[method-assign]
        watcher.SLOW = slow
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    # The pure backend's pidfd.
    assert len(registered) == (current().name == "pure")


async def test_a_pipe_that_cannot_be_watched_is_polled(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if WINDOWS:
        pytest.skip("nothing is watched there")
    from aioproc._backends.posix.pipes import FdReadEnd, FdWriteEnd

    def watch(self: Any, callback: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FdReadEnd, "watch", watch)
    monkeypatch.setattr(FdWriteEnd, "watch", watch)
    much = bytes(10_000_000)
    done = await aioproc.run(*TEE, input=much)
    assert done.stdout == done.stderr == much
    heard: list[bytes] = []
    await aioproc.run(*TEE, input=[much], on_output=lambda _, data: heard.append(data))
    assert sum(map(len, heard)) == 2 * len(much)
    assert "is polled" in caplog.text


async def test_nothing_is_left_to_the_garbage_collector(aioproc: Any) -> None:
    from aioproc._run.run import Run

    made: list[weakref.ref[Any]] = []
    original = Run.perform

    async def perform(self: Run) -> Any:
        made.append(weakref.ref(self))
        return await original(self)

    if not hasattr(sys, "getrefcount"):
        pytest.skip("no reference counts")
    Run.perform = perform  # type: ignore[method-assign]
    gc.disable()
    try:
        await aioproc.run(*BOTH)
        await aioproc.run(*CAT, input=b"x", on_output=lambda *_: None)
        with pytest.raises(aioproc.CalledProcessError):
            await aioproc.run(*ends(1))
        await asyncio.sleep(0)
        assert [ref() for ref in made] == [None] * 3
    finally:
        gc.enable()
        Run.perform = original  # type: ignore[method-assign]


async def test_many_at_once(aioproc: Any) -> None:
    runs = [aioproc.run(*CAT, input=b"%d" % n) for n in range(50)]
    done = await asyncio.gather(*runs)
    assert [one.stdout for one in done] == [b"%d" % n for n in range(50)]


@everywhere
async def test_in_any_thread(aioproc: Any) -> None:
    outputs: list[bytes] = []
    new_loop = type(asyncio.get_running_loop())

    def work() -> None:
        outputs.append(run_loop(new_loop, aioproc.run(*CAT, input=b"here")).stdout)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outputs == [b"here"]
