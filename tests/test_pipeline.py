"""pipeline(): what it returns and raises, and that its stages end together."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import pickle
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from aioproc import Command, Limiter, _backends
from aside import PROC, children, open_fds
from conftest import FUSE, is_alive, settle
from helpers import script
from marks import posix_only
from programs import CAT, SLEEP, TRUE, WINDOWS, YES, ends, python

pytestmark = [pytest.mark.asyncio, pytest.mark.primary]
everywhere = pytest.mark.everywhere
has_proc = pytest.mark.skipif(not PROC, reason="nobody can look without /proc")

DEVNULL, PIPE, STDOUT = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT

UPPER = python("import sys; sys.stdout.write(sys.stdin.read().upper())")
HEAD = python("import sys; sys.stdout.write(sys.stdin.readline())")
#: Copies, and says its argument on stderr.
LOUD = "import sys; sys.stdout.write(sys.stdin.read()); print(sys.argv[1], file=sys.stderr)"
#: Says its own pid and that of a grandchild, in a session of its own, on stderr.
FAMILY = ("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $! $$ >&2; exec sleep 1000")
#: The same, of two that do not mind SIGTERM.
STUBBORN = ("sh", "-c", f"trap '' TERM; {FAMILY[2]}")


class Families:
    """The pids of what has said so."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.waited: asyncio.Future[None] | None = None

    def __call__(self, stream: str, line: bytes) -> None:
        if stream == "stderr":
            self.pids += map(int, line.split())

    async def came(self, count: int) -> None:
        while len(self.pids) < 2 * count:
            await asyncio.sleep(0.001)

    def alive(self) -> list[int]:
        return [pid for pid in self.pids if is_alive(pid)]


@pytest.fixture
def families() -> Iterator[Families]:
    one = Families()
    yield one
    for pid in one.alive():
        os.kill(pid, signal.SIGKILL)


# -- what comes of it


@everywhere
async def test_a_pipeline(aioproc: Any) -> None:
    done = await aioproc.pipeline(CAT, Command(*UPPER), tuple(CAT), input=b"some words\n")
    assert type(done) is aioproc.CompletedPipeline
    assert isinstance(done, aioproc.CompletedProcess)
    assert (done.stdout, done.stderr, done.text) == (b"SOME WORDS\n", b"", "SOME WORDS")
    assert (done.returncode, done.reason, done.ok, done.stage) == (0, "exit", True, None)
    assert done.args == [tuple(CAT), tuple(UPPER), tuple(CAT)]
    assert [stage.stdout for stage in done.stages] == [None, None, b"SOME WORDS\n"]
    assert [stage.ok for stage in done.stages] == [True] * 3
    assert len({stage.pid for stage in done.stages}) == 3
    assert done.pid == done.stages[-1].pid
    assert (done.complete, done.forced, done.left) == (True, None, None)
    assert done.duration >= max(stage.duration for stage in done.stages)
    assert done.check_returncode() is None


@everywhere
async def test_one_stage_is_as_run(aioproc: Any) -> None:
    assert (await aioproc.pipeline(CAT, input="a", text=True)).stdout == "a"
    with pytest.raises(aioproc.CalledProcessError):
        await aioproc.pipeline(ends(3))


@everywhere
async def test_much_goes_through(aioproc: Any) -> None:
    data = os.urandom(1 << 20) * 2
    done = await aioproc.pipeline(CAT, CAT, CAT, input=data)
    assert done.stdout == data

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 1 << 18):
            yield data[at : at + (1 << 18)]

    done = await aioproc.pipeline(CAT, CAT, input=pieces(), max_output=10)
    assert done.stdout == data[:5] + data[-5:]
    assert done.dropped == (len(data) - 10, 0)


async def test_text_and_callbacks(aioproc: Any) -> None:
    heard: list[tuple[str, str]] = []
    done = await aioproc.pipeline(
        python(LOUD, "first"),
        python(LOUD, "second"),
        input="\u00e4\n",
        text=True,
        on_line=lambda *line: heard.append(line),
    )
    assert done.stdout == "\u00e4\n"
    assert sorted(heard) == [
        ("stderr", "first\n"),
        ("stderr", "second\n"),
        ("stdout", "\u00e4\n"),
    ]
    assert [stage.stderr for stage in done.stages] == ["first\n", "second\n"]


async def test_streams_of_the_two_ends(aioproc: Any, tmp_path: Path) -> None:
    source, target, errors = (tmp_path / name for name in ("source", "target", "errors"))
    source.write_bytes(b"words")
    stages = [python(LOUD, "first"), python(LOUD, "second")]
    done = await aioproc.pipeline(*stages, stdin=source, stdout=target, stderr=errors)
    assert (done.stdout, done.stderr) == (None, None)
    assert target.read_bytes() == b"words"
    assert sorted(errors.read_bytes().split()) == [b"first", b"second"]
    # Of the commands themselves.
    first = Command(*stages[0], stdin=source, stderr=DEVNULL)
    await aioproc.pipeline(first, Command(*stages[1], stdout=target))
    assert target.read_bytes() == b"words"
    # The call's own come before them.
    done = await aioproc.pipeline(first, Command(*stages[1], stdout=target), input=b"b", stdout=-1)
    assert done.stdout == b"b"
    with open(target, "wb") as file:
        await aioproc.pipeline(*stages, input=b"a", stdout=file, stderr=STDOUT)
    assert sorted(target.read_bytes()) == sorted(b"a" + b"first\nsecond\n")
    with pytest.raises(FileNotFoundError):
        await aioproc.pipeline(CAT, CAT, stdin=tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        await aioproc.pipeline(CAT, CAT, stdout=tmp_path / "missing" / "file")


async def test_stderr_down_the_pipe(aioproc: Any) -> None:
    first = Command(*python("import sys; print('down', file=sys.stderr)"), stderr=STDOUT)
    done = await aioproc.pipeline(first, UPPER)
    assert (done.text, done.stages[0].stderr) == ("DOWN", None)


@posix_only("one pipe for several children")
@everywhere
async def test_merged_stderr(aioproc: Any) -> None:
    stages = [python(LOUD, name) for name in ("one", "two", "three")]
    done = await aioproc.pipeline(*stages, input=b"x", merge_stderr=True)
    assert (done.stdout, sorted(done.stderr.split())) == (b"x", [b"one", b"three", b"two"])
    assert [stage.stderr for stage in done.stages[:2]] == [None, None]
    done = await aioproc.pipeline(*stages, input=b"x\n", stderr=STDOUT)
    assert sorted(done.stdout.split()) == [b"one", b"three", b"two", b"x"]
    assert done.stderr is None
    # One that has its own way.
    stages[1] = Command(*stages[1], stderr=PIPE)
    done = await aioproc.pipeline(*stages, input=b"x", merge_stderr=True)
    assert sorted(done.stderr.split()) == [b"one", b"three"]
    assert done.stages[1].stderr == b"two\n"
    with pytest.raises(ValueError, match="must be PIPE"):
        await aioproc.pipeline(*stages, merge_stderr=True, stderr=DEVNULL)


@pytest.mark.skipif(not WINDOWS, reason="about Windows")
async def test_what_windows_has_not(aioproc: Any) -> None:
    with pytest.raises(NotImplementedError, match="POSIX"):
        await aioproc.pipeline(CAT, CAT, merge_stderr=True)
    with pytest.raises(NotImplementedError, match="POSIX"):
        await aioproc.pipeline(CAT, CAT, stderr=STDOUT)


# -- failures


@everywhere
async def test_the_stage_that_has_failed(aioproc: Any) -> None:
    fails = python("import sys; sys.stdin.read(); print('why', file=sys.stderr); sys.exit(3)")
    with pytest.raises(aioproc.CalledProcessError) as caught:
        await aioproc.pipeline(CAT, fails, CAT, input=b"a")
    error = caught.value
    assert (error.stage, error.returncode, error.stderr) == (1, 3, b"why\n")
    assert error.stages is error.result.stages
    assert [stage.ok for stage in error.stages] == [True, False, True]
    assert error.result.stage == 1
    text = str(error).splitlines()
    assert ": stage 1 (" in text[0]
    assert "exit code 3" in text[0]
    assert text[-1] == "why"
    for other in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert (other.stage, str(other)) == (1, str(error))
    done = await aioproc.pipeline(CAT, fails, CAT, input=b"a", check=False)
    assert (done.stage, done.ok, done.returncode) == (1, False, 3)
    with pytest.raises(aioproc.CalledProcessError):
        done.check_returncode()


async def test_what_is_no_failure(aioproc: Any) -> None:
    done = await aioproc.pipeline(Command(*ends(3), check={0, 3}), CAT)
    assert (done.ok, done.stage) == (True, None)
    done = await aioproc.pipeline(Command(*ends(3), check=False), CAT)
    assert (done.ok, done.stage, done.stages[0].returncode) == (True, None, 3)
    done = await aioproc.pipeline(ends(3), ends(1), check={1, 3})
    assert (done.ok, done.returncode) == (True, 1)
    with pytest.raises(aioproc.CalledProcessError):
        await aioproc.pipeline(ends(3), Command(*TRUE, check=True), check={0, 1})


@posix_only("SIGPIPE")
@everywhere
async def test_sigpipe_is_no_failure_but_of_the_last(aioproc: Any) -> None:
    done = await aioproc.pipeline(YES, ["cat"], ["head", "-n", "3"])
    assert done.stdout == b"y\n" * 3
    assert [stage.signal for stage in done.stages] == [signal.SIGPIPE, signal.SIGPIPE, None]
    assert (done.ok, done.stage) == (True, None)
    with pytest.raises(aioproc.CalledProcessError) as caught:
        await aioproc.pipeline(TRUE, ["sh", "-c", "kill -PIPE $$"])
    assert (caught.value.stage, caught.value.returncode) == (1, -signal.SIGPIPE)


@has_proc
@everywhere
@pytest.mark.parametrize("place", [0, 1, 2])
async def test_one_that_cannot_be_started_ends_the_others(aioproc: Any, place: int) -> None:
    before = children()
    stages = [list(SLEEP), list(SLEEP), list(SLEEP)]
    stages[place] = ["/nowhere/at-all"]
    with pytest.raises(FileNotFoundError) as caught:
        await asyncio.wait_for(aioproc.pipeline(*stages), FUSE)
    error: Any = caught.value
    assert (error.filename, error.stage) == ("/nowhere/at-all", place)
    assert error.stages[place].error is error
    for i in {0, 1, 2} - {place}:
        assert error.stages[i].reason == "cancelled"
    assert not [pid for pid in children() - before if is_alive(pid)]


@has_proc
@everywhere
async def test_a_callback_that_raises_ends_all(aioproc: Any, families: Families) -> None:
    def raises(stream: str, line: bytes) -> None:
        families(stream, line)
        if len(families.pids) == 6:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        await asyncio.wait_for(aioproc.pipeline(*[FAMILY] * 3, on_line=raises), FUSE)
    assert not families.alive()
    result = aioproc.partial_result(caught.value)
    reasons = sorted(stage.reason for stage in result.stages)
    assert reasons == ["cancelled", "cancelled", "error"]
    assert result.stages[result.stage].reason == "error"


BUSY_PROGRAM = """
import threading
async def main():
    # As long as somebody has it open for writing, it cannot be run (ETXTBSY).
    path = os.path.abspath(sys.argv[1])
    with open(path, "w") as file:
        file.write("#!/bin/sh\\nexec cat\\n")
    os.chmod(path, 0o755)
    fd = os.open(path, os.O_WRONLY)
    asyncio.get_running_loop().call_later(0.02, os.close, fd)
    done = await aioproc.pipeline(["echo", "a"], [path], ["cat"])
    assert done.stdout == b"a\\n", done
run(new_event_loop, main())
"""


@posix_only("ETXTBSY")
@everywhere
async def test_a_program_that_is_busy_is_tried_again(aioproc: Any, tmp_path: Path) -> None:
    await script(BUSY_PROGRAM, str(tmp_path / "program"))


# -- ending


@has_proc
@everywhere
async def test_a_timeout_ends_all(aioproc: Any, families: Families) -> None:
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.pipeline(FAMILY, STUBBORN, FAMILY, timeout=0.4, stop=0.1, on_line=families)
    error, result = caught.value, caught.value.result
    assert (error.timeout, error.stage) == (0.4, None)
    assert (result.reason, result.ok, result.forced, result.left) == ("timeout", False, "kill", [])
    assert [stage.reason for stage in result.stages] == ["timeout"] * 3
    assert [stage.forced for stage in result.stages] == ["stop", "kill", "stop"]
    assert len(families.pids) == 6
    assert not families.alive()
    assert "timed out after 0.4 s" in str(error)
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.pipeline(FAMILY, FAMILY, timeout=0)
    assert [stage.pid for stage in caught.value.stages] == [None, None]


@has_proc
async def test_a_stages_own_timeout_ends_all(aioproc: Any, families: Families) -> None:
    own = Command(*FAMILY, timeout=0.3)
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.pipeline(FAMILY, own, FAMILY, on_line=families)
    assert (caught.value.stage, caught.value.timeout) == (1, 0.3)
    reasons = [stage.reason for stage in caught.value.stages]
    assert reasons == ["cancelled", "timeout", "cancelled"]
    assert not families.alive()
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.pipeline(SLEEP, SLEEP, idle_timeout=0.05)
    assert (caught.value.stage, caught.value.result.reason) == (1, "idle")


@has_proc
@everywhere
async def test_a_cancellation_ends_all(aioproc: Any, families: Families) -> None:
    task = asyncio.ensure_future(aioproc.pipeline(*[FAMILY] * 3, on_line=families))
    await families.came(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await asyncio.wait_for(task, FUSE)
    assert not families.alive()
    result = aioproc.partial_result(caught.value)
    assert (result.reason, result.stage, result.left) == ("cancelled", None, [])
    assert [stage.reason for stage in result.stages] == ["cancelled"] * 3


@has_proc
@everywhere
async def test_a_second_cancellation_cuts_the_grace(aioproc: Any, families: Families) -> None:
    task = asyncio.ensure_future(aioproc.pipeline(STUBBORN, STUBBORN, on_line=families, stop=1000))
    await families.came(2)
    task.cancel()
    await asyncio.sleep(0.05)
    assert len(families.alive()) == 4
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, FUSE)
    assert not families.alive()


@everywhere
@pytest.mark.parametrize("rounds", range(6))
async def test_cancelled_at_any_moment(aioproc: Any, rounds: int) -> None:
    """The guards look for what may be left."""
    task = asyncio.ensure_future(aioproc.pipeline(CAT, CAT, SLEEP, input=b"a"))
    for _ in range(rounds):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, FUSE)


@has_proc
async def test_a_scope_of_anyio_leaves_time_for_the_end(
    aioproc: Any, families: Families, tmp_path: Path
) -> None:
    import anyio

    told = f"trap 'sleep 0.1; echo >{tmp_path}/told; exit' TERM; echo $$ $$ >&2; "
    with anyio.CancelScope() as scope:

        def heard(stream: str, line: bytes) -> None:
            families(stream, line)
            scope.cancel()

        stages = [CAT, ("sh", "-c", f"{told}while :; do sleep 0.01; done")]
        await aioproc.pipeline(*stages, on_line=heard, stop=FUSE)
    assert scope.cancelled_caught
    assert (tmp_path / "told").exists()
    assert not families.alive()


CLOSED = """
from conftest import is_alive
loop = new_event_loop()
coroutine = aioproc.pipeline(["sleep", "1000"], ["sleep", "1000"])
task = loop.create_task(coroutine)
loop.run_until_complete(asyncio.sleep(0.1))
assert len(children()) == 2
task._log_destroy_pending = False
coroutine.close()
for _ in range(3):
    loop.run_until_complete(asyncio.sleep(0))
assert asyncio.all_tasks(loop) == {task}
assert settle(lambda: not [pid for pid in children() if is_alive(pid)])
loop.close()
"""


@has_proc
async def test_a_coroutine_that_is_closed_kills_at_once(aioproc: Any) -> None:
    await script(CLOSED)


@has_proc
async def test_a_limiter(aioproc: Any) -> None:
    limiter = Limiter(1)
    async with limiter:
        with pytest.raises(aioproc.TimeoutExpired):
            await aioproc.pipeline(CAT, CAT, limiter=limiter, timeout=0.02)
    assert (await aioproc.pipeline(CAT, CAT, limiter=limiter)).ok
    assert limiter.in_use == 0


NO_DESCRIPTORS = """
async def main():
    await aioproc.run("true")
    await aioproc.pipeline(["true"], ["true"])
    before = open_fds()
    few = os.dup(0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in range(1, 16):
        resource.setrlimit(resource.RLIMIT_NOFILE, (few + more, hard))
        try:
            await aioproc.pipeline(["cat"], ["cat"], ["cat"], merge_stderr=True)
        except OSError as error:
            assert error.errno == errno.EMFILE, error
    os.close(few)
    assert settle(lambda: open_fds() == before), (open_fds(), before)
    assert settle(lambda: not children())
run(new_event_loop, main())
"""


@has_proc
@everywhere
async def test_too_few_descriptors(aioproc: Any) -> None:
    await script(NO_DESCRIPTORS)


# Of the thread of pytest's faulthandler_timeout; an error here is raised from Python 3.15 on.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@has_proc
async def test_a_forked_process_does_not_have_the_pipes(aioproc: Any) -> None:
    reader, writer, claim = _backends.open_between()
    _backends.forget_between(claim)
    pid = os.fork()
    if pid == 0:
        os._exit(1 if {reader, writer} & open_fds().keys() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not os.get_inheritable(reader)
    for fd in (reader, writer):
        _backends.close_between(fd)


@has_proc
async def test_how_much_the_pipes_hold(aioproc: Any) -> None:
    import fcntl

    size = getattr(fcntl, "F_GETPIPE_SZ", 1032)
    show = python(f"import fcntl, sys; print(fcntl.fcntl(1, {size}), file=sys.stderr)")
    (small, *_) = (await aioproc.pipeline(show, CAT, pipesize=4096)).stages
    assert int(small.stderr) == 4096
    (large, *_) = (await aioproc.pipeline(show, CAT)).stages
    assert int(large.stderr) == 256 * 1024
    # Of a few at a time: an ordinary user has a limit for all together.
    opened = [_backends.open_between() for _ in range(20)]
    sizes = [fcntl.fcntl(reader, size) for reader, _, _ in opened]
    assert sizes == [256 * 1024] * 16 + [65536] * 4
    for reader, writer, claim in opened:
        _backends.close_between(reader)
        _backends.close_between(writer)
        _backends.forget_between(claim)
    (large, *_) = (await aioproc.pipeline(show, CAT)).stages
    assert int(large.stderr) == 256 * 1024


@has_proc
async def test_nobody_else_has_the_pipes(aioproc: Any) -> None:
    """Nor have the stages more of them than they need: else there would be no end."""
    lists = ("sh", "-c", "for fd in /proc/self/fd/*; do readlink $fd; done | grep -c pipe: >&2")
    done = await aioproc.pipeline(lists, lists, lists, lists, check=False)
    counts = [int(stage.stderr) for stage in done.stages]
    assert counts[0] <= counts[1] == counts[2] == counts[3]
    assert settle(lambda: not children())


# -- bad input


@pytest.mark.parametrize(
    ("commands", "options", "error", "text"),
    [
        ((), {}, TypeError, "needs commands"),
        (("ls -l", CAT), {}, TypeError, "shlex.split"),
        ((CAT, 3), {}, TypeError, "must be a Command"),
        ((CAT, Command(*CAT, input=b"a")), {}, ValueError, "stage 1 reads"),
        ((CAT, Command(*CAT, stdin=DEVNULL)), {}, ValueError, "stage 1 reads"),
        ((Command(*CAT, stdout=DEVNULL), CAT), {}, ValueError, "stage 0 writes"),
        ((Command(*CAT, limiter=Limiter(1)), CAT), {}, ValueError, "for the whole"),
        ((CAT, CAT), {"timeout": "1"}, TypeError, "timeout"),
        ((CAT, CAT), {"shel": 1}, TypeError, "shel"),
        ((CAT, CAT), {"stdin": DEVNULL, "input": b"a"}, ValueError, "may not both be given"),
        ((CAT, CAT), {"stdout": "name"}, TypeError, "pathlib.Path"),
        ((CAT, CAT), {"limiter": 3}, TypeError, "Limiter"),
        ((CAT, CAT), {"capture_output": False, "stdout": -1}, ValueError, "capture_output"),
        ((CAT, CAT), {"stdout": None, "stderr": None, "on_line": print}, ValueError, "on_line"),
        ((CAT, CAT), {"input": "a"}, TypeError, "bytes"),
    ],
)
async def test_bad_input(aioproc: Any, commands: Any, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        await aioproc.pipeline(*commands, **options)


@posix_only("terminals for children")
async def test_no_terminals(aioproc: Any) -> None:
    with pytest.raises(ValueError, match="stage 0 reads and writes pipes"):
        await aioproc.pipeline(Command(*CAT, pty=True), CAT)
    with pytest.raises(ValueError, match="stage 0 reads and writes pipes"):
        await aioproc.pipeline(CAT, CAT, pty=True)


@pytest.mark.parametrize("named", ["stage", "whole"])
async def test_names_hide_arguments(
    aioproc: Any, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"name": "the first"} if named == "stage" else {}
    first = aioproc.Command(*ends(3), "a secret", **own)
    whole = {"name": "all"} if named == "whole" else {}
    with (
        caplog.at_level(logging.DEBUG, "aioproc"),
        pytest.raises(aioproc.CalledProcessError) as info,
    ):
        await aioproc.pipeline(first, CAT, **whole)
    text = str(info.value)
    assert text.startswith("all: stage 0: exit" if named == "whole" else "the first | ")
    shown = [text, repr(info.value), *map(repr, info.value.stages), caplog.text]
    assert "secret" not in "".join(shown)
    # Of the other stage they are shown.
    assert ("stages=[name='the first', args=" in shown[1]) == (named == "stage")
