"""The quick path: most children end soon and write little, and then nothing but their end
wakes the loop.

Where a test says how long a child may live before it is looked at, it is for ever or not at
all, so that no clock decides.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aioproc import _backends, _habits
from aioproc._backends import watcher
from aioproc._spec.spec import PIPE, SpawnSpec
from aside import Aside, open_fds, settle
from conftest import FUSE, run
from conftest import settle as settle_now
from marks import posix_only
from programs import CAT, LEAVES_CAT, SLEEP, TRUE, WINDOWS, ends, python, sh

Factory = Callable[[], asyncio.AbstractEventLoop]

#: More than a pipe holds.
MUCH = 1024 * 1024
FLOOD = python(f"import sys; sys.stdout.buffer.write(b'x' * {MUCH})")
ECHO = sh("echo hello", "print('hello')")
NOWHERE = "/nowhere/to/be/found"


@pytest.fixture(autouse=True)
def no_habits() -> Iterator[None]:
    """Whatever the programs have done in other tests."""
    for known in _habits._bulky:
        known.clear()
    yield
    for known in _habits._bulky:
        known.clear()


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No child is ever looked at."""
    monkeypatch.setattr(watcher, "SLOW", 1000.0)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is looked at in the next rounds of the loop."""
    monkeypatch.setattr(watcher, "SLOW", 0.0)


class Watched:
    """Which descriptors the loop is asked to watch for reading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fds: list[int] = []
        from aioproc._backends.posix import pipes

        def watch(end: Any, callback: Any) -> None:
            self.fds.append(end.fileno())
            real(end, callback)

        real = pipes.FdReadEnd.watch
        monkeypatch.setattr(pipes.FdReadEnd, "watch", watch)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


# -- pipes that nobody watches


@posix_only("elsewhere a read has to be started to be told of")
@pytest.mark.asyncio
async def test_pipes_are_read_at_the_exit(aioproc: Any, never: None, watched: Watched) -> None:
    process = await aioproc.create_subprocess_exec(
        *sh("echo out; echo err >&2", ""), stdout=aioproc.PIPE, stderr=aioproc.PIPE
    )
    assert await process.communicate() == (b"out\n", b"err\n")
    assert process.returncode == 0
    process = await aioproc.create_subprocess_exec(*ECHO, stdout=aioproc.PIPE)
    await process.wait()
    assert await process.stdout.read() == b"hello\n"
    assert watched.fds == []


@pytest.mark.asyncio
async def test_as_much_as_a_pipe_holds(aioproc: Any, never: None) -> None:
    for size in 0, 1, 4095, 4096, 4097, 65535, 65536:
        code = f"import sys; sys.stdout.buffer.write(b'x' * {size})"
        process = await aioproc.create_subprocess_exec(*python(code), stdout=aioproc.PIPE)
        assert await process.communicate() == (b"x" * size, None)


@pytest.mark.asyncio
async def test_who_waits_gets_data_at_once(aioproc: Any, never: None) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    for i in range(3):
        process.stdin.write(b"line %d\n" % i)
        assert await asyncio.wait_for(process.stdout.readline(), FUSE) == b"line %d\n" % i
    process.stdin.close()
    assert await asyncio.wait_for(process.stdout.read(), FUSE) == b""
    assert await process.wait() == 0


@pytest.mark.asyncio
async def test_input_that_does_not_fit(aioproc: Any, never: None) -> None:
    """cat writes before it has read all."""
    data = os.urandom(MUCH)
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    assert await asyncio.wait_for(process.communicate(data), FUSE) == (data, None)
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    process.stdin.write(data)
    process.stdin.close()
    assert await asyncio.wait_for(process.stdout.read(), FUSE) == data
    assert await process.wait() == 0


@pytest.mark.asyncio
async def test_a_look_helps_who_waits_for_us(aioproc: Any) -> None:
    """Whose pipe is full cannot end, and was never known for that."""
    process = await aioproc.create_subprocess_exec(*FLOOD, stdout=aioproc.PIPE)
    assert await asyncio.wait_for(process.communicate(), FUSE) == (b"x" * MUCH, None)


@posix_only("elsewhere all pipes are watched")
@pytest.mark.asyncio
async def test_what_a_program_did_before(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch, watched: Watched
) -> None:
    async def flood(*command: str) -> None:
        process = await aioproc.create_subprocess_exec(*command, stdout=aioproc.PIPE)
        assert (await asyncio.wait_for(process.communicate(), FUSE))[0]

    await flood(*FLOOD)
    monkeypatch.setattr(watcher, "SLOW", 1000.0)
    await flood(*FLOOD)  # it would wait for a look
    del watched.fds[:]
    await flood(*python("print('little')"))  # the same program
    assert watched.fds
    del watched.fds[:]
    await flood(*python("print('little')"))
    assert watched.fds == []


def test_habits_are_few() -> None:
    for i in range(3 * _habits.MOST):
        _habits.note(b"%d" % i, 1, MUCH)
        assert len(_habits._bulky[1]) <= _habits.MOST
    _habits.note(b"last", 2, MUCH)
    assert _habits.is_bulky(b"last", 2)
    assert not _habits.is_bulky(b"last", 1)
    _habits.note(b"last", 2, _habits.PIPE_HOLDS)
    assert not _habits.is_bulky(b"last", 2)


@posix_only("elsewhere all pipes are watched")
@pytest.mark.asyncio
async def test_a_child_that_lives_on_is_watched(
    aioproc: Any, at_once: None, watched: Watched
) -> None:
    process = await aioproc.create_subprocess_exec(
        *CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE, stderr=aioproc.PIPE
    )
    fds = [process._transport.get_pipe_transport(i)._end.fileno() for i in (1, 2)]
    assert await settle(lambda: sorted(watched.fds) == sorted(fds))
    process.stdin.write(b"hi")
    process.stdin.close()
    assert await process.communicate() == (b"hi", b"")


@pytest.mark.asyncio
async def test_what_outlives_the_child(aioproc: Any, never: None) -> None:
    """What is in the pipe is read at the exit, and then what the grandchild writes."""
    process = await aioproc.create_subprocess_exec(
        *LEAVES_CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE
    )
    assert await asyncio.wait_for(process.wait(), FUSE) == 0
    assert await asyncio.wait_for(process.stdout.readline(), FUSE) == b"hi\n"
    process.stdin.write(b"more")
    process.stdin.close()
    assert await asyncio.wait_for(process.stdout.read(), FUSE) == b"more"


@pytest.mark.asyncio
async def test_a_reader_that_is_full_stays_so_at_the_exit(aioproc: Any, at_once: None) -> None:
    """What nobody takes is not read on and on, neither at looks nor at the exit."""
    size = 300 * 1024
    code = f"import sys; sys.stdout.buffer.write(b'x' * {size})"
    process = await aioproc.create_subprocess_exec(
        *python(code), stdout=aioproc.PIPE, limit=16 * 1024
    )
    first = await process.stdout.readexactly(1)
    assert await settle(lambda: process.stdout._paused)
    assert process.stdout._size < size
    assert first + await process.stdout.read() == b"x" * size
    assert await process.wait() == 0


# -- streams that nobody has asked for


@pytest.mark.asyncio
async def test_streams_are_made_when_asked_for(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(
        *CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE, stderr=aioproc.PIPE
    )
    assert process._protocol._streams == {}
    assert await process.communicate(b"data") == (b"data", b"")
    assert process._protocol._streams == {}
    assert process.stdout is process.stdout
    assert process.stdout.at_eof()
    assert await process.stdout.read() == b""
    assert process.stdin.is_closing()
    await process.stdin.wait_closed()
    with pytest.raises(ConnectionResetError):
        await process.stdin.drain()
    assert await process.communicate() == (b"", b"")


@pytest.mark.asyncio
async def test_they_can_be_replaced(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*ECHO, stdout=aioproc.PIPE)
    reader = process.stdout
    process.stdout = None
    assert process.stdout is None
    assert await reader.read() == b"hello\n"
    await process.wait()
    assert process.stdout is None


@pytest.mark.asyncio
async def test_nobody_reads_in_the_midst_of_communicate(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*SLEEP, stdout=aioproc.PIPE)
    task = asyncio.create_task(process.communicate())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="already waiting"):
        await process.stdout.read()
    process.kill()
    assert (await task)[0] == b""


@pytest.mark.asyncio
async def test_a_cancelled_communicate_keeps_what_it_has(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(
        *sh(
            "echo one; exec sleep 1000", "print('one', flush=True); import time; time.sleep(1000)"
        ),
        stdout=aioproc.PIPE,
    )
    pipe = process._transport.get_pipe_transport(1)
    task = asyncio.create_task(process.communicate())
    assert await settle(lambda: pipe._total)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await process.stdout.readexactly(1) == b"o"
    process.kill()
    assert await process.communicate() == (b"ne\n", None)


# -- spawned lazily


class Lazy:
    """A lazily spawned child, below the transports."""

    def __init__(self, *command: str, **options: Any) -> None:
        self.ends = 0
        self.looks = 0
        loop = asyncio.get_running_loop()
        self.ended = loop.create_future()
        self.looked_at = loop.create_future()
        spec = SpawnSpec.build(command, **options)
        self.child = _backends.current().spawn(spec, loop, lazy=True)
        self.child.on_exit = self._on_exit
        self.waits = self.child.look_later(self._on_slow)

    def _on_exit(self) -> None:
        self.ends += 1
        self.ended.set_result(None)

    def _on_slow(self) -> None:
        self.looks += 1
        self.looked_at.set_result(None)

    async def end(self) -> int | None:
        await asyncio.wait_for(self.ended, FUSE)
        await asyncio.sleep(0)
        assert self.ends == 1
        return self.child.returncode


@pytest.mark.asyncio
async def test_a_lazy_child_tells_its_end(aioproc: Any, never: None) -> None:
    lazy = Lazy(*ends(3))
    assert lazy.child.started is None
    assert await lazy.end() == 3
    assert lazy.child.error is None
    assert lazy.looks == 0
    assert lazy.child.rusage is not None
    with pytest.raises(ProcessLookupError):
        lazy.child.send_signal(signal.SIGTERM)


@pytest.mark.asyncio
async def test_a_lazy_child_that_cannot_be_started(aioproc: Any, never: None) -> None:
    if not is_told_later():
        with pytest.raises(FileNotFoundError):  # the spawn waits for the exec
            Lazy(NOWHERE)
        return
    lazy = Lazy(NOWHERE)
    assert await lazy.end() is None
    assert isinstance(lazy.child.error, FileNotFoundError)
    assert WINDOWS or lazy.child.error.filename == NOWHERE


#: How a lazy exec's result is told: in our memory, or by a pipe where that is not shared.
WAYS = [{}, pytest.param({"user": 0}, marks=pytest.mark.root)] if not WINDOWS else [{}]


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.asyncio
async def test_a_lazy_child_that_lives_on(
    aioproc: Any, at_once: None, options: dict[str, Any]
) -> None:
    lazy = Lazy(*SLEEP, **options)
    await asyncio.wait_for(lazy.looked_at, FUSE)
    lazy.child.send_signal(signal.SIGTERM)
    assert await lazy.end() != 0
    assert lazy.looks == 1


def drains(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Each time the loop hears of a native port."""
    from aioproc._backends.posix import native

    heard: list[None] = []

    def drain(port: Any) -> None:
        heard.append(None)
        real(port)

    real = native._Port._drain
    monkeypatch.setattr(native._Port, "_drain", drain)
    return heard


def is_clone() -> bool:
    return _backends.current().strategy in ("clone", "copy")


def is_told_later() -> bool:
    """Whether a spawn returns before anybody knows what has become of it."""
    return is_clone() or (WINDOWS and _backends.current().name == "native")


@posix_only("the port is Windows' own there")
def test_one_wake_up(
    aioproc: Any, new_loop: Factory, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_clone():
        pytest.skip("the others wait for the exec")
    heard = drains(monkeypatch)

    async def main() -> None:
        for _ in range(5):
            del heard[:]
            assert await Lazy(*TRUE).end() == 0
            assert len(heard) == 1
        del heard[:]
        assert await (await aioproc.create_subprocess_exec(*TRUE)).wait() == 0
        assert 1 <= len(heard) <= 2  # the exec's, and the exit's

    run(new_loop, main())


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.asyncio
async def test_ways_of_a_lazy_child(aioproc: Any, never: None, options: dict[str, Any]) -> None:
    assert await Lazy(*ends(3), **options).end() == 3
    before = open_fds()
    if is_told_later():
        lazy = Lazy(NOWHERE, **options)
        await lazy.end()
        assert isinstance(lazy.child.error, FileNotFoundError)
        lazy = Lazy(*TRUE, cwd=NOWHERE, **options)
        await lazy.end()
        assert lazy.child.error is not None
        assert WINDOWS or lazy.child.error.filename == NOWHERE
    lazy = Lazy(*SLEEP, **options)
    lazy.child.send_signal(signal.SIGTERM)  # maybe before its exec
    assert await lazy.end() in (-signal.SIGTERM, 1)
    Lazy(*SLEEP, **options).child.abandon()
    assert await settle(lambda: open_fds() == before)


@pytest.mark.asyncio
async def test_pipes_of_a_lazy_child(aioproc: Any, never: None) -> None:
    if WINDOWS:
        pytest.skip("a read has to be started there")
    lazy = Lazy(*ECHO, stdout=PIPE)
    await lazy.end()
    assert lazy.child.stdout.read(100) == b"hello\n"
    assert lazy.child.stdout.read(100) == b""
    lazy.child.stdout.close()


def test_a_lazy_orphan(aioproc: Any, new_loop: Factory, never: None) -> None:
    """Its loop ends before anybody knows whether its exec has worked."""
    left = []

    async def leave() -> None:
        left.append(Lazy(*CAT, stdin=PIPE).child)

    run(new_loop, leave())
    child = left.pop()
    assert child.poll() is None
    if child.stdin is not None:
        child.stdin.close()
    assert settle_now(lambda: child.poll() is not None)
    assert child.poll() == 0


def test_a_lazy_orphan_that_has_failed(aioproc: Any, new_loop: Factory, never: None) -> None:
    if not is_told_later():
        pytest.skip("the others wait for the exec")
    left = []

    async def leave() -> None:
        left.append(Lazy(NOWHERE).child)

    run(new_loop, leave())
    child = left.pop()
    assert settle_now(lambda: child.poll() is not None or child.error is not None)
    assert isinstance(child.error, FileNotFoundError)


@posix_only("Windows' port goes on")
@pytest.mark.asyncio
async def test_a_lazy_child_after_shutdown_asyncgens(aioproc: Any, never: None) -> None:
    lazy = Lazy(*CAT, stdin=PIPE)
    await asyncio.get_running_loop().shutdown_asyncgens()
    lazy.child.stdin.close()
    assert await lazy.end() == 0


# -- fairness


@pytest.mark.asyncio
async def test_many_starts_leave_the_loop_time(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no budget at all, each round of the loop starts one."""
    monkeypatch.setattr(watcher, "BUDGET", 0.0)
    rounds = 0
    started: list[tuple[int, int]] = []
    backend = _backends.current()
    real = type(backend).spawn

    def spawn(self: Any, spec: Any, *args: Any) -> Any:
        started.append((int(spec.user_args[-1]), rounds))
        return real(self, spec, *args)

    async def ticks() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    async def one(i: int) -> None:
        process = await aioproc.create_subprocess_exec(*python("pass", str(i)))
        assert await process.wait() == 0

    monkeypatch.setattr(type(backend), "spawn", spawn)
    ticker = asyncio.create_task(ticks())
    await asyncio.sleep(0)
    first = rounds
    await asyncio.gather(*map(one, range(8)))
    ticker.cancel()
    assert [number for number, _ in started] == list(range(8))
    at = [at for _, at in started]
    assert at[0] == first + 1  # in the first round of all: who comes first does not wait
    assert all(later > earlier for earlier, later in itertools.pairwise(at))


@pytest.mark.asyncio
async def test_who_waits_can_be_cancelled(aioproc: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await (await aioproc.create_subprocess_exec(*TRUE)).wait()
    monkeypatch.setattr(watcher, "BUDGET", 0.0)
    before = len(open_fds())

    async def one() -> int:
        process = await aioproc.create_subprocess_exec(*CAT, stdin=PIPE, stdout=PIPE)
        await process.communicate()
        returncode: int = process.returncode
        return returncode

    tasks = [asyncio.create_task(one()) for _ in range(6)]
    await asyncio.sleep(0)
    # One has begun; the others have opened nothing.
    assert len(open_fds()) - before <= (8 if WINDOWS else 4)
    for task in tasks[1::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[::2] == [0, 0, 0]
    assert all(isinstance(result, asyncio.CancelledError) for result in results[1::2])


def test_a_loop_that_ends_while_they_wait(
    aioproc: Any, new_loop: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "BUDGET", 0.0)

    async def start() -> None:
        async with await aioproc.create_subprocess_exec(*TRUE) as process:
            await process.wait()

    async def main() -> None:
        tasks = [asyncio.create_task(start()) for _ in range(5)]
        await asyncio.sleep(0)
        assert not all(task.done() for task in tasks)

    run(new_loop, main())


# -- many arguments


SHOW = "import sys; print(len(sys.argv), sum(map(len, sys.argv)), sys.argv[-1][-5:])"


@pytest.mark.asyncio
async def test_long_arguments(aioproc: Any) -> None:
    piece, count = 30_000, 1 if WINDOWS else 40  # Windows' limit is 32,767 characters
    options: dict[str, Any] = {"cwd": os.getcwd()}
    if not WINDOWS:
        options["env"] = {**os.environ, "LONG": "y" * 100_000, "PYTHONIOENCODING": "utf-8"}
    process = await aioproc.create_subprocess_exec(
        *python(SHOW), *["x" * piece] * (count - 1), "x" * (piece - 5) + "12345",
        stdout=PIPE, **options,
    )  # fmt: skip
    words = (await process.communicate())[0].split()
    assert words == [b"%d" % (count + 1), b"%d" % (count * piece + 2), b"12345"]


@posix_only("the limit is another there")
@pytest.mark.asyncio
async def test_arguments_that_are_too_long(aioproc: Any) -> None:
    await (await aioproc.create_subprocess_exec(*TRUE)).wait()
    before = open_fds()
    for command in ([TRUE[0], *["x" * 100_000] * 200], [NOWHERE, *["x" * 100_000] * 5]):
        for options in {}, {"stdout": PIPE}, {"preexec_fn": os.getpid}:
            with pytest.raises(OSError) as caught:
                await aioproc.create_subprocess_exec(*command, **options)
            assert caught.value.errno in (errno.E2BIG, errno.ENOENT)
    assert await settle(lambda: open_fds() == before)


@posix_only("another limit, and another road")
@pytest.mark.asyncio
async def test_long_arguments_are_copied_once(aioproc: Any) -> None:
    if _backends.current().name == "pure":
        pytest.skip("Popen makes the child")
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy has none")
    arguments = ["x" * 100_000] * 10
    await (await aioproc.create_subprocess_exec(*TRUE)).wait()
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        process = await aioproc.create_subprocess_exec(*TRUE, *arguments)
        peak = tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()
    await process.wait()
    # In the system's encoding, which is the one that cannot be spared here; the other is C's.
    assert peak < 1.5 * sum(map(len, arguments))


# -- what the C layer opens


SHORTAGE = """
import resource

NULL = aioproc.DEVNULL
WAYS = [
    {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE},
    {"stdin": NULL, "stdout": PIPE, "stderr": NULL},
    {"stdin": PIPE, "stdout": PIPE, "stderr": aioproc.STDOUT, "pipesize": 8192},
]

async def main():
    await (await aioproc.create_subprocess_exec("true")).wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for way in WAYS:
        refused = 0
        for more in range(3, 20):
            before = sorted(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, before)) + more, hard))
            try:
                process = await aioproc.create_subprocess_exec("cat", **way)
            except OSError as error:
                assert error.errno == errno.EMFILE, error
                refused += 1
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                assert sorted(os.listdir("/proc/self/fd")) == before
            else:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                if way["stdin"] == PIPE:
                    assert (await process.communicate(b"x"))[0] == b"x"
                else:
                    assert (await process.communicate())[0] == b""
        assert refused, way
    print("well")
run(main())
"""


@posix_only("RLIMIT_NOFILE")
def test_descriptors_run_out(aside: Aside) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    prologue = "import errno\nfrom aioproc import PIPE\n"
    assert aside.run(prologue + SHORTAGE).strip().endswith("well")
