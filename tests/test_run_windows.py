"""How run() ends what it has to end on Windows: by a job of the native backend; with the pure
one there is the child alone. And what is another thing there of what it takes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from aioproc import _backends
from aioproc._backends import system
from aioproc._run import collect
from aioproc._sink import Sink
from aioproc._spec.spec import SpawnSpec
from aioproc._trees import JobTree, job_tree
from aioproc._trees import ending as ending_module
from conftest import FUSE, is_alive, settle
from endings import Clock, Heard, gone, has_jobs, pids_in
from programs import NL, SLEEP, TRUE, WINDOWS, python

if not WINDOWS:
    pytest.skip("about Windows", allow_module_level=True)

import windows

pytestmark = [pytest.mark.asyncio, pytest.mark.primary]
everywhere = pytest.mark.everywhere

BREAK: int = signal.CTRL_BREAK_EVENT  # type: ignore[attr-defined]
CTRL_C: int = signal.CTRL_C_EVENT  # type: ignore[attr-defined]

#: STATUS_CONTROL_C_EXIT, and what Wine has in its place.
BROKEN = (0, 1) if windows.WINE else (0xC000013A,)

needs_break = pytest.mark.skipif(
    windows.WINE and windows.wine_version() < (9,), reason="Wine 8 has no CTRL_BREAK_EVENT"
)

#: Says by a file that it has come so far.
WORD = "open(sys.argv[1], 'w').close()\n"
STAYS = "time.sleep(1000)\n"
RUNS = python("import time; print(flush=True); time.sleep(1000)")


def family(*, holds: bool = False, group: bool = False) -> str:
    """Starts a grandchild; says its pid and its own once both are there.

    holds: the grandchild has a part in our stdout. group: it leads a group of its own.
    """
    flags = ", creationflags=subprocess.CREATE_NEW_PROCESS_GROUP" if group else ""
    streams = "stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL"
    if holds:
        child = f"child = subprocess.Popen({SLEEP!r}, {streams}{flags})\n"
    else:
        child = f"child = subprocess.Popen({RUNS!r}, stdout=subprocess.PIPE, {streams}{flags})\n"
        child += "child.stdout.readline()\n"
    child += "print(child.pid, os.getpid(), flush=True)\nchild.returncode = 0\n"
    return "import os, subprocess, sys, time\n" + child


def ended(heard: Heard) -> bool:
    """Whether the tree has, as far as that can be expected here."""
    grandchild, leader = heard.pids
    return gone(leader) and (gone(grandchild) if has_jobs() else is_alive(grandchild))


class FileClock(Clock):
    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    @property
    def word(self) -> str:
        """An argument for WORD."""
        return str(self._file)

    async def word_came(self) -> None:
        end = time.monotonic() + FUSE
        while not self._file.exists():
            assert time.monotonic() < end
            await asyncio.sleep(0.002)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileClock]:
    one = FileClock(tmp_path / "word")
    one.record(monkeypatch)
    yield one
    one.runs.clear()


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Whoever is asked to end does not hear of it; set when one has been asked."""
    asked = asyncio.Event()

    def ask(tree: JobTree) -> bool:
        asked.set()
        return True

    monkeypatch.setattr(JobTree, "_ask", ask)
    return asked


async def started(aioproc: Any, heard: Heard, **options: Any) -> asyncio.Task[Any]:
    command = python(family() + STAYS)
    task = asyncio.ensure_future(aioproc.run(*command, on_line=heard, **options))
    await asyncio.wait_for(heard.came.wait(), FUSE)
    assert all(map(is_alive, heard.pids))
    return task


# -- time


@everywhere
async def test_timeout(aioproc: Any) -> None:
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run(*SLEEP, timeout=0.3, start_new_session=False)
    result = caught.value.result
    assert (result.reason, result.ok, result.returncode, result.signal) == (
        *("timeout", False, 1),
        None,
    )
    assert (result.forced, result.complete) == ("kill", True)
    assert result.left == ([] if has_jobs() else None)
    assert 0.3 <= result.duration < FUSE


@everywhere
async def test_a_timeout_ends_the_tree(aioproc: Any, clock: FileClock, heard: Heard) -> None:
    """Who leads no group cannot be asked to end: there is no grace."""
    command = python(family() + WORD + STAYS, clock.word)
    steps = [(BREAK, 1000), (signal.SIGTERM, 1000)]
    running = aioproc.run(*command, timeout=1000, stop=steps, start_new_session=False)
    result = (await clock.time_is_up(running)).result
    heard.pids += pids_in(result)
    assert ended(heard)
    assert (result.returncode, result.forced, result.complete) == (1, "kill", True)
    assert result.left == ([] if has_jobs() else None)


@needs_break
async def test_a_group_is_asked_first(aioproc: Any, clock: FileClock, heard: Heard) -> None:
    command = python(family() + WORD + STAYS, clock.word)
    running = aioproc.run(*command, timeout=1000, stop=FUSE / 2)
    result = (await clock.time_is_up(running)).result
    heard.pids += pids_in(result)
    assert all(map(gone, heard.pids))
    assert (result.returncode in BROKEN, result.forced) == (True, "stop")
    assert result.complete


#: Says "bye" when it is asked to end, and ends well.
POLITE = (
    "import signal, sys, time\n"
    "def end(*_):\n    print('bye', flush=True)\n    sys.exit(0)\n"
    "signal.signal(signal.SIGBREAK, end)\nprint('ready', flush=True)\n"
    + WORD
    + "while True: time.sleep(0.01)"
)


@needs_break
@pytest.mark.wine("it runs no handlers of console events")
async def test_one_that_returns_0_when_it_is_asked(aioproc: Any, clock: FileClock) -> None:
    result = (
        await clock.time_is_up(aioproc.run(*python(POLITE, clock.word), timeout=1000))
    ).result
    assert (result.returncode, result.ok, result.forced) == (0, False, "stop")
    assert result.stdout == b"ready\nbye\n"


@everywhere
async def test_those_who_do_not_hear(
    aioproc: Any, clock: FileClock, heard: Heard, deaf: asyncio.Event
) -> None:
    command = python(family() + WORD + STAYS, clock.word)
    running = aioproc.run(*command, timeout=1000, stop=0.3)
    began = time.monotonic()
    result = (await clock.time_is_up(running)).result
    heard.pids += pids_in(result)
    assert ended(heard)
    assert (result.returncode, result.forced, result.complete) == (1, "kill", True)
    assert deaf.is_set()
    assert time.monotonic() - began >= 0.3


async def test_the_leader_ends_and_a_member_does_not(
    aioproc: Any, clock: FileClock, heard: Heard
) -> None:
    """A member that is in another group, of which only the job knows."""
    if not has_jobs():
        pytest.skip("about jobs")
    command = python(family(group=True) + WORD + "sys.stdin.read()", clock.word)
    running = aioproc.run(*command, input=endless(), timeout=1000, stop=[("eof", 0.5)])
    result = (await clock.time_is_up(running)).result
    heard.pids += pids_in(result)
    assert ended(heard)
    assert (result.returncode, result.forced, result.left) == (0, "kill", [])


async def endless() -> AsyncIterator[bytes]:
    yield b"x"
    await asyncio.sleep(1000)


async def test_eof_is_enough_for_some(aioproc: Any, clock: FileClock) -> None:
    code = "import sys\n" + WORD + "sys.stdout.write(sys.stdin.read())"
    running = aioproc.run(
        *python(code, clock.word), input=endless(), timeout=1000, stop=[("eof", FUSE)]
    )
    result = (await clock.time_is_up(running)).result
    assert (result.returncode, result.forced, result.stdout) == (0, "stop", b"x")


async def test_idle_timeout(aioproc: Any) -> None:
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run(*SLEEP, idle_timeout=0.3, stop=[])
    result = caught.value.result
    assert (result.reason, result.forced, result.returncode) == ("idle", "kill", 1)


@pytest.mark.parametrize("number", [CTRL_C, signal.SIGINT, signal.SIGABRT, 9])
async def test_steps_that_are_none(aioproc: Any, number: int) -> None:
    with pytest.raises(ValueError, match="SIGTERM or CTRL_BREAK_EVENT"):
        await aioproc.run(*TRUE, stop=[(number, 1)])


@everywhere
async def test_a_timeout_cuts_the_drain_short(
    aioproc: Any, clock: FileClock, heard: Heard
) -> None:
    task = asyncio.ensure_future(
        aioproc.run(*python(family(holds=True)), timeout=1000, drain=1000, on_line=heard)
    )
    await asyncio.wait_for(heard.came.wait(), FUSE)
    while not clock.run._has_exited:
        await asyncio.sleep(0.001)
    clock.run._time_is_up()
    done = await asyncio.wait_for(task, FUSE)
    assert (done.ok, done.complete, done.reason) == (True, False, "exit")
    assert is_alive(heard.pids[0])


@everywhere
async def test_a_callback_that_is_busy_when_time_is_up(aioproc: Any, clock: FileClock) -> None:
    """What it would have heard of is in the result."""
    busy, cancelled = asyncio.Event(), asyncio.Event()

    async def on_output(stream: str, data: bytes) -> None:
        busy.set()
        try:
            await asyncio.sleep(1000)
        finally:
            cancelled.set()

    code = "import os; os.write(1, b'first'); os.read(0, 1); os.write(1, b'x' * 50_000)"

    async def source() -> AsyncIterator[bytes]:
        await busy.wait()
        yield b"x"

    running = aioproc.run(*python(code), input=source(), timeout=1000, on_output=on_output)
    task = asyncio.ensure_future(running)
    await asyncio.wait_for(busy.wait(), FUSE)
    while not clock.run._has_exited:
        await asyncio.sleep(0.001)
    clock.run._time_is_up()
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await asyncio.wait_for(task, FUSE)
    assert cancelled.is_set()
    result = caught.value.result
    assert (result.returncode, result.reason, result.complete) == (0, "timeout", True)
    assert result.stdout == b"first" + b"x" * 50_000


# -- cancellation, errors


@everywhere
async def test_cancelled(aioproc: Any, heard: Heard) -> None:
    task = await started(aioproc, heard, start_new_session=False)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert ended(heard)
    result = aioproc.partial_result(caught.value)
    assert (result.reason, result.ok, result.forced) == ("cancelled", False, "kill")
    assert pids_in(result) == heard.pids


@everywhere
async def test_cancelled_again(aioproc: Any, heard: Heard, deaf: asyncio.Event) -> None:
    task = await started(aioproc, heard, stop=1000)
    task.cancel()
    await asyncio.wait_for(deaf.wait(), FUSE)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await asyncio.wait_for(task, FUSE)
    result = aioproc.partial_result(caught.value)
    assert (result.forced, result.returncode) == ("kill", 1)
    assert ended(heard)


@everywhere
async def test_cancelled_at_once(aioproc: Any) -> None:
    for command in (SLEEP, ["no-such-program"]):
        for rounds in range(1, 8):
            began = time.monotonic()
            task = asyncio.ensure_future(aioproc.run(*command, stop=0))
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises((asyncio.CancelledError, FileNotFoundError)):
                await asyncio.wait_for(task, FUSE)
            assert time.monotonic() - began < ending_module.MOST_AFTER_KILL


async def test_no_program_when_time_is_up(aioproc: Any, clock: FileClock) -> None:
    """There is nobody to be ended, and that is what is said."""
    task = asyncio.ensure_future(aioproc.run("no-such-program", timeout=1000))
    while not clock.runs or clock.run._child is None:
        await asyncio.sleep(0)
        if task.done():
            break  # at once: the pure backend
    else:
        clock.run._time_is_up()
    with pytest.raises(FileNotFoundError):
        await asyncio.wait_for(task, 4)


class Refuses(Exception):
    pass


@everywhere
@pytest.mark.parametrize("awaits", [False, True])
async def test_a_callback_that_raises(aioproc: Any, awaits: bool, heard: Heard) -> None:
    async def later() -> None:
        await asyncio.sleep(0)
        raise Refuses

    def callback(stream: str, line: bytes) -> Any:
        heard(stream, line)
        if awaits:
            return later()
        raise Refuses

    with pytest.raises(Refuses) as caught:
        await aioproc.run(*python(family() + STAYS), on_line=callback, start_new_session=False)
    result = aioproc.partial_result(caught.value)
    assert (result.reason, result.error, result.ok) == ("error", caught.value, False)
    assert ended(heard)


async def test_input_that_raises_ends_the_tree(aioproc: Any, heard: Heard) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"x"
        await heard.came.wait()
        raise Refuses

    with pytest.raises(Refuses):
        command = python(family() + STAYS)
        options = {"input": source(), "on_line": heard, "start_new_session": False}
        await aioproc.run(*command, **options)
    assert ended(heard)


@everywhere
async def test_a_coroutine_that_is_closed(aioproc: Any, heard: Heard) -> None:
    coroutine = aioproc.run(*python(family() + STAYS), on_line=heard)
    future = coroutine.send(None)
    assert future is not None
    future._asyncio_future_blocking = False
    await asyncio.wait_for(heard.came.wait(), FUSE)
    coroutine.close()
    assert ended(heard)


# -- the pipes after the exit, and what is left behind

#: Writes more than a pipe holds, and ends at once while a grandchild has the pipe.
FLOOD = family(holds=True) + "os.write(1, b'x' * 300_000)\nos.write(1, b'end')\nos._exit(0)"


@everywhere
@pytest.mark.parametrize("drain", [0, 0.2])
async def test_a_pipe_that_stays_open(aioproc: Any, heard: Heard, drain: float) -> None:
    done = await aioproc.run(*python(FLOOD), drain=drain)
    heard.pids += pids_in(done)
    assert (done.complete, done.ok, done.left) == (False, True, None)
    assert is_alive(heard.pids[0])
    assert done.stdout.partition(b"\n")[2] == b"x" * 300_000 + b"end"


class Owner:
    """Of an Output: hears of its end."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def data_came(self) -> None:
        pass

    def output_ended(self, output: collect.Output, error: Exception | None) -> None:
        assert error is None
        self.ended.set()


@everywhere
async def test_what_is_on_its_way_is_not_cut_off(aioproc: Any, tmp_path: Path) -> None:
    """What has been read ahead is no more in the pipe, and the loop has not heard of it."""
    go, word = tmp_path / "go", tmp_path / "word"
    code = "import os, sys, time\nwhile not os.path.exists(sys.argv[2]): time.sleep(0.001)\n"
    command = python(code + "os.write(1, b'data')\n" + WORD + STAYS, str(word), str(go))
    loop = asyncio.get_running_loop()
    spec = SpawnSpec.build(command, stdout=asyncio.subprocess.PIPE)
    child = _backends.current().spawn(spec, loop)
    if child.started is not None:
        await child.started
    assert child.stdout is not None
    owner, sink = Owner(), Sink()
    output = collect.Output(owner, 1, child.stdout, b"", sink)
    output.start(at_once=True)
    for _ in range(3):
        await asyncio.sleep(0)  # until the read is under way
    go.touch()
    assert settle(word.exists, FUSE)  # with the loop standing still
    output.cut()
    await asyncio.wait_for(owner.ended.wait(), FUSE)
    assert sink.value() == b"data"
    assert not output.has_ended
    ended = asyncio.Event()
    child.on_exit = ended.set
    child.send_signal(signal.SIGTERM)
    await ended.wait()


@everywhere
async def test_callbacks_hear_what_is_cut(aioproc: Any, heard: Heard) -> None:
    lines: list[bytes] = []
    done = await aioproc.run(*python(FLOOD), on_line=lambda _, line: lines.append(line), drain=0)
    heard.pids += pids_in(done)
    assert lines[1:] == [b"x" * 300_000 + b"end"]
    assert b"".join(lines) == done.stdout
    assert not done.complete


@everywhere
async def test_leftovers_are_ended(aioproc: Any, heard: Heard) -> None:
    """Also those who hold its pipes, which end then."""
    done = await aioproc.run(*python(FLOOD), leftovers="kill", drain=0.1)
    heard.pids += pids_in(done)
    assert ended(heard)
    assert (done.ok, done.reason, done.forced, done.returncode) == (True, "exit", None, 0)
    assert (done.left, done.complete) == (([], True) if has_jobs() else (None, False))
    assert done.stdout.partition(b"\n")[2] == b"x" * 300_000 + b"end"


async def test_leftovers(aioproc: Any, heard: Heard) -> None:
    done = await aioproc.run(*python(family()))
    heard.pids += pids_in(done)
    assert is_alive(heard.pids[0])
    assert (done.left, done.complete) == (None, True)
    done = await aioproc.run(*TRUE, leftovers="kill")
    assert done.left == ([] if has_jobs() else None)
    with pytest.raises(aioproc.CalledProcessError) as caught:
        await aioproc.run(*python(family() + "sys.exit(3)"), leftovers="kill")
    grandchild, _ = pids_in(caught.value)
    heard.pids.append(grandchild)
    assert gone(grandchild) if has_jobs() else is_alive(grandchild)


async def test_without_a_tree(aioproc: Any, clock: FileClock, heard: Heard) -> None:
    command = python(family() + WORD + STAYS, clock.word)
    running = aioproc.run(*command, tree=False, timeout=1000, stop=1000)
    result = (await clock.time_is_up(running)).result
    heard.pids += pids_in(result)
    assert (result.forced, result.left, result.returncode) == ("kill", None, 1)
    assert is_alive(heard.pids[0])
    assert gone(heard.pids[1])


# -- one that cannot be ended


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_not_ended(
    aioproc: Any, how: str, clock: FileClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending_module, "MOST_AFTER_KILL", 0.3)
    monkeypatch.setattr(job_tree, "KILL_TIME", 0.2)
    monkeypatch.setattr(JobTree, "_terminate", lambda tree: None)
    code = "import os, sys, time\nprint(os.getpid(), flush=True)\n" + WORD + STAYS
    running = aioproc.run(*python(code, clock.word), timeout=1000, start_new_session=False)
    task = asyncio.ensure_future(running)
    await clock.word_came()
    if how == "cancel":
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await asyncio.wait_for(task, FUSE)
        result = aioproc.partial_result(cancelled.value)
    else:
        clock.run._time_is_up()
        with pytest.raises(aioproc.NotEnded) as caught:
            await asyncio.wait_for(task, FUSE)
        result = caught.value.result
        assert (caught.value.pid, caught.value.state) == (result.pid, None)
        assert isinstance(caught.value.__cause__, aioproc.TimeoutExpired)
    (pid,) = pids_in(result)
    assert pid == result.pid
    assert (result.returncode, result.forced) == (None, "kill")
    assert result.left == ([pid] if has_jobs() else None)
    # Behind our backs, once it can be.
    assert gone(pid)


# -- what it takes


@everywhere
async def test_text(aioproc: Any) -> None:
    """Newlines go in as programs expect them, and an encoding of old ones is there."""
    says = python("print(ascii(sys.stdin.buffer.read()))")
    done = await aioproc.run(*says, input="a\nb\n", text=True)
    assert done.text == r"b'a\r\nb\r\n'"
    done = await aioproc.run(*says, input=["a\n", "b\n"], text=True)
    assert done.text == r"b'a\r\nb\r\n'"
    code = "import os, sys; os.write(1, sys.stdin.buffer.read() + '\\xe4\\n'.encode('oem'))"
    heard: list[str] = []
    done = await aioproc.run(
        *python(code),
        input="\xfc",
        encoding="oem",
        on_output=lambda _, text: heard.append(text),
    )
    assert done.stdout == "\xfc\xe4\n" == "".join(heard)
    assert done.text == "\xfc\xe4"


async def test_paths_are_relative_to_our_directory() -> None:
    for program in (r"a\b", "a/b.exe", r".venv\Scripts\python", Path("a/b"), rb"a\b"):
        assert system.relative(program) == os.path.join(".", os.fsdecode(program))
    for program in (
        "a",
        r".\a",
        "./a",
        r"..\a",
        r"\a\b",
        r"C:\a",
        "C:a",
        r"C:a\b",
        r"\\a\b\c",
        "",
    ):
        assert system.relative(program) is program
    assert system.relative(5) == 5


@everywhere
async def test_input_for_one_that_does_not_read(aioproc: Any) -> None:
    """What is under way into the pipe goes with the child."""
    with pytest.raises(aioproc.TimeoutExpired):
        await aioproc.run(*SLEEP, input=bytes(10_000_000), timeout=0.3, stop=[])
    with pytest.raises(aioproc.TimeoutExpired):
        await aioproc.run(*SLEEP, input=[bytes(10_000_000)] * 2, timeout=0.3, stop=[])


async def test_shells(aioproc: Any) -> None:
    comspec = os.environ["COMSPEC"]
    for shell in ("cmd", "cmd.exe", comspec, Path(comspec)):
        done = await aioproc.run_shell("echo one& echo two", shell=shell)
        assert done.stdout == b"one" + NL + b"two" + NL
    with pytest.raises(FileNotFoundError):
        await aioproc.run_shell("echo", shell="no-such-shell")
    with pytest.raises(TypeError, match="bytes"):
        await aioproc.run_shell(b"echo")
    # As the shells have them; Wine has none of these.
    for name in ("powershell", "PowerShell.exe", r"C:\Program Files\PowerShell\7\pwsh.exe"):
        assert system.shell_flag(name) == ["-NoProfile", "-NonInteractive", "-Command"]
    for name in ("bash", r"C:\Program Files\Git\bin\bash.exe", Path("sh.exe")):
        assert system.shell_flag(name) == ["-c"]


# -- many, at random times

#: Says by a file how much it has written before each next piece, and by others who belongs to
#: it: a child and a grandchild, if it is told to.
NOISY = """
import os, subprocess, sys, time
folder, depth = sys.argv[1], int(sys.argv[2])
with open(os.path.join(folder, f"pid-{os.getpid()}"), "w"): pass
if depth:
    subprocess.Popen([*sys.orig_argv[:-1], str(depth - 1)], stdin=subprocess.DEVNULL)
said = open(os.path.join(folder, f"said-{os.getpid()}"), "wb", buffering=0)
pid, n = b"%d" % os.getpid(), 0
while True:
    n += os.write(1, (b"%s:%d\\n" % (pid, n)).ljust(64, b"."))
    said.seek(0)
    said.write(b"%12d" % n)
    time.sleep(0.001)
"""


async def storm(aioproc: Any, folder: Path, seed: int, runs: int, at_once: int) -> None:
    """Runs that are ended at random times, in all ways: nobody lives on, and all that was
    written is there."""
    moments = random.Random(seed)
    turns = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        mine = folder / str(number)
        mine.mkdir()
        depth = moments.choice([0, 0, 0, 1, 2]) if has_jobs() else 0
        how = moments.choice(["timeout", "cancel", "cancel twice"])
        first, then = moments.uniform(0, 1.2), moments.uniform(0, 0.3)
        options = {
            "stop": moments.choice([0, 0.1, 5]),
            "start_new_session": moments.random() < 0.5,
            "timeout": first if how == "timeout" else None,
        }
        async with turns:
            task = asyncio.ensure_future(
                aioproc.run(*python(NOISY, str(mine), str(depth)), **options)
            )
            if how != "timeout":
                await asyncio.sleep(first)
                task.cancel()
            if how == "cancel twice":
                await asyncio.sleep(then)
                task.cancel()
            with pytest.raises((asyncio.CancelledError, aioproc.TimeoutExpired)) as caught:
                await asyncio.wait_for(task, FUSE)
        result = aioproc.partial_result(caught.value)
        members = [int(path.name[4:]) for path in mine.glob("pid-*")]
        assert not any(map(is_alive, members)), options
        if result is None:
            assert not members  # cancelled before there was a child
            return
        assert result.complete
        assert result.left == ([] if has_jobs() else None)
        output = result.stdout
        for pid in members:
            said = mine / f"said-{pid}"
            written = int(said.read_bytes() or 0) if said.exists() else 0
            came = [line for line in output.split(b"\n") if b"%d:" % pid in line]
            assert len(came) * 64 >= written, (pid, options)

    await asyncio.gather(*map(one, range(runs)))


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Wine a process cannot be ended before its start has come some way, which takes more
    than a second on a loaded machine."""
    monkeypatch.setattr(job_tree, "KILL_TIME", FUSE / 2)


@pytest.mark.usefixtures("patience")
async def test_a_small_storm(aioproc: Any, tmp_path: Path) -> None:
    await storm(aioproc, tmp_path, seed=1, runs=20, at_once=4)


@pytest.mark.heavy
@everywhere
@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("seed", [2, 3])
async def test_a_storm(aioproc: Any, tmp_path: Path, seed: int) -> None:
    await storm(aioproc, tmp_path, seed=seed, runs=200, at_once=4)
