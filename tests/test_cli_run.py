"""``aioproc run``: one command, as timeout(1) runs it, and the library."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aioproc as aioproc_package
from aside import PROC
from conftest import FUSE, is_alive, settle
from helpers import environment
from marks import posix_only
from programs import SLEEP, TRUE, ends, python

pytestmark = pytest.mark.primary

ROOT = Path(aioproc_package.__file__).parent.parent
COMMAND = [sys.executable, "-W", "error", "-m", "aioproc", "run"]

family_only = pytest.mark.skipif(not PROC, reason="nobody can look without /proc")


def environ(env: dict[str, str] | None = None) -> dict[str, str]:
    return {**(os.environ if env is None else env), "PYTHONPATH": str(ROOT)}


def run(
    *arguments: str, env: dict[str, str] | None = None, input: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs python -m aioproc run."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environ(env),
        input=input,
        capture_output=True,
        text=True,
        timeout=FUSE,
    )


@contextlib.contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The same, to be talked to."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*COMMAND, *arguments]
    with subprocess.Popen(command, env=environ(), text=True, **{**pipes, **options}) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.everywhere
def test_it_is_the_child(aioproc: Any) -> None:
    env = environment(aioproc)
    shout = python("import sys; print(sys.stdin.read().upper()); print('no', file=sys.stderr)")
    done = run("--", *shout, input="yes", env=env)
    assert (done.returncode, done.stdout.split(), done.stderr.split()) == (0, ["YES"], ["no"])
    done = run(*ends(3), env=env)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


@posix_only("signals")
def test_a_child_that_a_signal_ends() -> None:
    assert run("--", "sh", "-c", "kill -9 $$").returncode == 128 + 9
    # So that whoever runs us in a loop stops.
    done = run("--", "sh", "-c", "kill -INT $$")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.everywhere
def test_a_timeout(aioproc: Any) -> None:
    done = run("--timeout", "0.05", "--", *SLEEP, env=environment(aioproc))
    assert (done.returncode, done.stdout) == (124, "")
    assert done.stderr == "aioproc: timed out after 0.05 seconds\n"


@pytest.mark.parametrize("seconds", ["1e300", "1e300d", "inf", "5m", "2h", "1d", "30s"])
def test_seconds(seconds: str) -> None:
    assert run("--timeout", seconds, "--", *TRUE).returncode == 0


@posix_only("SIGTERM")
def test_what_it_is_ended_by() -> None:
    script = "trap 'echo term; exit 3' TERM; trap 'echo usr1; exit 4' USR1; sleep 1000 & wait"
    for option, said in ((), "term"), (("--signal", "USR1"), "usr1"), (("--signal", "10"), "usr1"):
        done = run("--timeout", "0.2", *option, "--", "sh", "-c", script)
        assert (done.returncode, done.stdout) == (124, f"{said}\n")
    # timeout(1) tells of a SIGKILL that was needed.
    script = "trap '' TERM; echo ready; while :; do sleep 0.01; done"
    done = run("--timeout", "0.2", "--kill-after", "0.1", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (137, "ready\n")
    assert run("--timeout", "0.1", "--signal", "KILL", "--", *SLEEP).returncode == 137


@family_only
def test_nothing_is_left_after_a_timeout(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    script = f"sleep 1000 & echo $! $$ >{file}.new; mv {file}.new {file}; exec sleep 1000"
    done = run("--timeout", "0.3", "sh", "-c", script)
    assert done.returncode == 124
    pids = [int(pid) for pid in file.read_text().split()]
    assert len(pids) == 2
    assert not any(map(is_alive, pids))


def test_an_idle_timeout() -> None:
    code = """
import sys, time
for i in range(4):
    print(i, flush=True)
    print(i, file=sys.stderr, flush=True)
    time.sleep(0.1)
time.sleep(1000)
"""
    done = run("--idle-timeout", "2", "--", *python(code))
    assert (done.returncode, done.stdout.split()) == (124, list("0123"))
    *lines, last = done.stderr.splitlines()
    assert (lines, last) == (
        list("0123"),
        "aioproc: timed out after 2 seconds without output",
    )


@posix_only("pipes of its kind")
def test_output_through_us(tmp_path: Path) -> None:
    """With an idle timeout: to a pipe that is read slowly, to a file, to nobody."""
    size = 1_000_000
    code = f"import os\nfor _ in range({size // 1000}): os.write(1, b'x' * 1000)"
    with started("--idle-timeout", "60", "--", *python(code)) as process:
        assert process.stdout is not None
        assert sum(len(piece) for piece in iter(lambda: process.stdout.read(50_000), "")) == size
        assert process.wait(FUSE) == 0
    with (
        open(tmp_path / "file", "wb") as file,
        started("--idle-timeout", "60", "--", *python(code), stdout=file) as process,
    ):
        assert process.wait(FUSE) == 0
    assert (tmp_path / "file").stat().st_size == size
    with started("--idle-timeout", "60", "--", "yes") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "y\n"
        process.stdout.close()
        assert process.wait(FUSE) == 128 + signal.SIGPIPE
    # Nobody reads: the time is up all the same.
    with started("--timeout", "0.5", "--idle-timeout", "60", "--", "yes") as process:
        assert process.wait(FUSE) == 124


@posix_only("descriptors")
def test_streams_that_are_closed() -> None:
    """Their numbers are those of files of our own, by then."""

    def closed(fd: int, *arguments: str) -> tuple[int, str, str]:
        command = ["sh", "-c", f'exec "$@" {fd}>&-', "sh", *COMMAND, *arguments]
        done = subprocess.run(command, env=environ(), capture_output=True, text=True, timeout=FUSE)
        return done.returncode, done.stdout, done.stderr

    idle = ("--idle-timeout", str(FUSE))
    for more in ((), idle):
        both = (*more, "sh", "-c", "echo a; echo b >&2; echo c; exit 3")
        assert closed(2, *both) == (3, "a\nc\n", "")
        code, out, error = closed(1, *both)
        assert (code, out) == (3, "")
        assert "b\n" in error
    assert closed(2, "--stats", *TRUE) == (0, "", "")
    assert closed(2, "/nowhere/at/all") == (127, "", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full")
def test_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "--idle-timeout", str(FUSE), "echo", "a"],
            env=environ(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=FUSE,
        )
        assert done.returncode == 125
        assert "No space left" in done.stderr
        for arguments, code in (["--stats", *ends(3)], 3), (["--no-such-option"], 125):
            command = [*COMMAND, *arguments]
            done = subprocess.run(command, env=environ(), stderr=full, timeout=FUSE)
            assert done.returncode == code


@pytest.mark.everywhere
def test_stats(aioproc: Any) -> None:
    done = run("--stats", "--", *TRUE, env=environment(aioproc))
    assert (done.returncode, done.stdout) == (0, "")
    assert [line.split("  ")[0] for line in done.stderr.splitlines()[:2]] == [
        "wall time",
        "CPU time",
    ]
    done = run("--stats", "--timeout", "0.05", "--", *SLEEP, env=environment(aioproc))
    assert done.returncode == 124
    assert done.stderr.startswith("wall time   0.")


def test_environment_and_directory(tmp_path: Path) -> None:
    code = "import os; print(os.environ['A'], os.environ['B'], os.getcwd())"
    done = run("--env", "A=1", "--env", "B=x=y", "--cwd", str(tmp_path), "--", *python(code))
    assert done.stdout.split() == ["1", "x=y", str(tmp_path.resolve())]


@posix_only("process groups")
def test_it_keeps_our_session_and_group() -> None:
    code = "import os; print(os.getsid(0), os.getpgrp(), os.getppid())"
    with started("--", *python(code)) as process:
        assert process.stdout is not None
        session, group, parent = map(int, process.stdout.read().split())
        assert process.wait(FUSE) == 0
    assert (session, group) == (os.getsid(0), os.getpgrp())
    assert parent == process.pid


def test_what_cannot_be_started(tmp_path: Path) -> None:
    done = run("--", str(tmp_path / "nothing"))
    assert done.returncode == 127
    assert done.stderr.startswith("aioproc: ")
    (tmp_path / "text.exe").write_text("no program")
    done = run("--", str(tmp_path / "text.exe"))
    assert done.returncode == 126
    assert done.stderr.startswith("aioproc: ")
    done = run("--cwd", str(tmp_path / "nowhere"), "--", *TRUE)
    assert done.returncode == 125
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "a command is needed"),
        (["--"], "a command is needed"),
        (["--timeout", "soon", "x"], "'soon' is not a positive number of seconds"),
        (["--timeout", "nan", "x"], "'nan' is not a positive number of seconds"),
        (["--timeout", "0", "x"], "'0' is not a positive number of seconds"),
        (["--timeout", "", "x"], "'' is not a positive number of seconds"),
        (["--kill-after", "-1", "x"], "'-1' is not a positive number of seconds"),
        (["--idle-timeout", "1w", "x"], "'1w' is not a positive number of seconds"),
        (["--signal", "FOO", "x"], "there is no signal 'FOO' to end a command by"),
        (["--signal", "0", "x"], "there is no signal '0' to end a command by"),
        (["--signal", "4711", "x"], "there is no signal '4711' to end a command by"),
        (["--env", "A", "x"], "'A' is not NAME=VALUE"),
        (["--env", "=A", "x"], "'=A' is not NAME=VALUE"),
        (["--no-such-option", "x"], "unrecognized arguments: --no-such-option"),
    ],
)
def test_misuse(arguments: list[str], why: str) -> None:
    """Told from the command's own exit codes, as by timeout(1)."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (125, "")
    assert "usage: python -m aioproc run" in done.stderr
    assert done.stderr.rstrip().endswith(why)


# -- signals sent to us


FAMILY = "trap 'exit 5' %s; sleep 1000 & echo $! $$; while :; do sleep 0.01; done"


@family_only
@pytest.mark.parametrize("name", ["TERM", "HUP", "QUIT"])
def test_a_signal_for_us_ends_all(name: str) -> None:
    with started("--kill-after", "0.2", "sh", "-c", FAMILY % name) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(getattr(signal, f"SIG{name}"))
        # The command has had the same, and decides.
        assert process.wait(FUSE) == 5
    assert settle(lambda: not any(map(is_alive, pids)))


@family_only
def test_sigint_where_no_terminal_sends_it() -> None:
    with started(
        *("--kill-after", "0.2"),
        "sh",
        "-c",
        "sleep 1000 & echo $! $$; wait",
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(signal.SIGINT)
        process.wait(FUSE)
    assert settle(lambda: not any(map(is_alive, pids)))


@posix_only("nohup")
def test_a_signal_that_is_ignored_stays_so() -> None:
    """As nohup(1) has it."""

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with started("--", "sh", "-c", "echo ready; read line; exit 7", preexec_fn=ignore) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(FUSE) == 7


@posix_only("SIGTERM")
def test_a_signal_in_a_timeout_is_one_end() -> None:
    """The steps under way go on."""
    script = "trap 'echo term' TERM; echo ready; while :; do sleep 0.01; done"
    with started("--timeout", "0.3", "--kill-after", "1", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline() == "term\n"
        process.terminate()
        began = time.monotonic()
        assert process.wait(FUSE) == 137
        assert time.monotonic() - began < FUSE


def test_the_console_script() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (target,) = re.findall(r'^aioproc = "(.*)"$', project, re.M)
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.root
@posix_only("users")
def test_a_child_that_may_not_be_signalled(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may change ids")
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from aioproc import _open
from aioproc._cli.main import main
start = _open.ProcessOpener._open
async def and_become_nobody(self):
    process = await start(self)
    os.setresuid(65534, 65534, 65534)
    return process
_open.ProcessOpener._open = and_become_nobody
sys.exit(main(["run", "--timeout", "0.2", "--kill-after", "0.1", "--stats", "--", "cat"]))
"""
    said = tmp_path / "said"
    with (
        open(said, "wb") as file,
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=file, stderr=file
        ) as process,
    ):
        assert process.wait(FUSE) == 124, said.read_text()
        # It is read by the command, which goes on till now.
        assert process.stdin is not None
        process.stdin.close()
    lines = said.read_text().splitlines()
    assert "CPU and memory: unknown, the child goes on" in lines
    assert lines[-2].endswith(" goes on: it could not be ended")
    assert lines[-1] == "aioproc: timed out after 0.2 seconds"
