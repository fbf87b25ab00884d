"""run_many(), run_all() and Limiter: how many at a time, what comes of them, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aioproc import Command, Limiter
from aside import PROC, children, drop
from conftest import FUSE, is_alive, settle
from helpers import script
from marks import posix_only
from programs import SLEEP, TRUE, WINDOWS, ends, python

pytestmark = [pytest.mark.asyncio, pytest.mark.primary]
everywhere = pytest.mark.everywhere
has_proc = pytest.mark.skipif(not PROC, reason="nobody can look without /proc")

#: Says its own pid and that of a grandchild, in a session of its own; does not end.
FAMILY = ("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $! $$; exec sleep 1000")
#: The same, of two that do not mind SIGTERM.
STUBBORN = ("sh", "-c", f"trap '' TERM; {FAMILY[2]}")


def says(text: str) -> list[str]:
    return python(f"print({text!r})")


async def until(condition: Callable[[], object]) -> None:
    """What others do comes in rounds of the loop; the fuse is a test's own."""
    end = time.monotonic() + FUSE
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


async def some_rounds() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Families:
    """The pids of what has said so."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def __call__(self, stream: str, line: bytes) -> None:
        self.pids += map(int, line.split())

    async def came(self, count: int) -> None:
        await until(lambda: len(self.pids) == 2 * count)

    def alive(self) -> list[int]:
        return [pid for pid in self.pids if is_alive(pid)]


@pytest.fixture
def families() -> Iterator[Families]:
    one = Families()
    yield one
    for pid in one.alive():
        os.kill(pid, signal.SIGKILL)


class Source:
    """Commands that are counted, and whether nobody wants more of them."""

    def __init__(self, *commands: Any, times: int = 1000) -> None:
        self._commands = commands * times
        self.taken = 0
        self.is_closed = False

    def __iter__(self) -> Iterator[Any]:
        try:
            for command in self._commands:
                self.taken += 1
                yield command
        finally:
            self.is_closed = True

    async def each(self) -> AsyncIterator[Any]:
        try:
            for command in self._commands:
                await asyncio.sleep(0)
                self.taken += 1
                yield command
        finally:
            await asyncio.sleep(0)
            self.is_closed = True


class Gates:
    """Commands that go on when they are let."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._open: dict[str, int] = {}

    def command(self) -> tuple[str, ...]:
        self._count += 1
        path = str(self._folder / f"gate{self._count}")
        os.mkfifo(path)
        # For reading and writing, so that nobody waits in open().
        self._open[path] = os.open(path, os.O_RDWR)
        return ("sh", "-c", f"read line <{path}; echo $line")

    def let(self, number: int) -> None:
        os.write(list(self._open.values())[number], b"through\n")

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Gates]:
    one = Gates(tmp_path)
    yield one
    one.close()


# -- what comes of it


@everywhere
async def test_all_in_their_order(aioproc: Any) -> None:
    results = await aioproc.run_all((says(str(i)) for i in range(7)), concurrency=3, text=True)
    assert [result.text for result in results] == [str(i) for i in range(7)]
    assert [result.index for result in results] == list(range(7))
    assert all(type(result) is aioproc.CompletedProcess and result.ok for result in results)
    assert all(result.stderr == "" for result in results)


@posix_only("fifos")
@everywhere
async def test_results_come_as_they_finish(aioproc: Any, gates: Gates) -> None:
    commands = [gates.command() for _ in range(3)]
    order = [2, 0, 1]
    seen = []
    async with aioproc.run_many(commands, concurrency=3, text=True) as runs:
        gates.let(order[0])
        async for result in runs:
            seen.append(result.index)
            assert result.text == "through"
            if len(seen) < 3:
                gates.let(order[len(seen)])
    assert seen == order


async def test_what_a_command_may_be(aioproc: Any, tmp_path: Path) -> None:
    program, *arguments = says("a")
    commands = [
        says("a"),
        tuple(says("a")),
        Command(*says("a")),
        Command(*says("a"), text=True),
        (Path(program), *arguments),
    ]
    results = await aioproc.run_all(commands)
    assert [result.stdout.strip() for result in results] == [b"a", b"a", b"a", "a", b"a"]

    async def later() -> AsyncIterator[Any]:
        for command in commands:
            await asyncio.sleep(0)
            yield command

    results = await aioproc.run_all(later(), concurrency=2)
    assert [result.index for result in results] == [0, 1, 2, 3, 4]
    assert await aioproc.run_all([]) == []


async def test_a_commands_own_options_come_first(aioproc: Any) -> None:
    code = "import os; print(os.environ['WHO'])"
    commands = [python(code), Command(*python(code), env_update={"WHO": "me"})]
    results = await aioproc.run_all(commands, env_update={"WHO": "all"}, text=True)
    assert [result.text for result in results] == ["all", "me"]
    results = await aioproc.run_all([ends(3), Command(*ends(3), check={0, 3})])
    assert [result.ok for result in results] == [False, True]


@posix_only("a script as a program")
async def test_a_program_is_where_the_caller_sees_it(
    aioproc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    program = tmp_path / "here" / "program"
    program.write_text("#!/bin/sh\npwd -P\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    commands = [("here/program",), (Path("here/program"),), (str(program),), ("pwd", "-P")]
    results = await aioproc.run_all(commands, cwd="/", text=True, env_update={"PWD": None})
    assert [result.text for result in results] == ["/"] * 4


@everywhere
async def test_what_happens_to_a_command_is_its_result(aioproc: Any) -> None:
    def raises(stream: str, line: bytes) -> None:
        raise LookupError("mine")

    commands = [
        ["/nowhere/at-all"],
        Command(*SLEEP, timeout=0.05),
        Command(*SLEEP, timeout=0),
        ["program", "a\0b"],
        Command(*says("a"), on_line=raises),
        Command(*TRUE, stdin=Path("/nowhere/at-all")),
        Command(*python("import os; os.write(1, b'\\xff')"), errors="strict"),
        ends(3),
    ]
    results = await aioproc.run_all(commands, concurrency=4)
    assert [result.ok for result in results] == [False] * 8
    reasons = [result.reason for result in results]
    assert reasons == [*("error", "timeout", "timeout", *["error"] * 4), "exit"]
    missing, late, _, null, callback, path, text, _ = results
    assert isinstance(missing.error, FileNotFoundError)
    assert missing.args == ("/nowhere/at-all",)
    assert (missing.pid, missing.returncode) == (None, None)
    assert late.left == ([] if not WINDOWS or late.left == [] else None)
    assert isinstance(null.error, ValueError)
    assert isinstance(callback.error, LookupError)
    assert isinstance(path.error, FileNotFoundError)
    assert isinstance(text.error, UnicodeDecodeError)
    assert text.stdout == b"\xff"
    with pytest.raises(FileNotFoundError):
        missing.check_returncode()
    with pytest.raises(aioproc.TimeoutExpired):
        late.check_returncode()


async def test_its_time_begins_with_its_slot(aioproc: Any) -> None:
    limiter = Limiter(1)
    async with limiter:
        running = asyncio.ensure_future(
            aioproc.run_all([TRUE], limiter=limiter, timeout=0.02, stop=0)
        )
        await asyncio.sleep(0.04)
    (result,) = await running
    # Time may be up for the child, on a busy machine.
    assert result.pid is not None


# -- how many at a time


@has_proc
@everywhere
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_never_more_than_allowed(aioproc: Any, gates: Gates, concurrency: int) -> None:
    before = children()
    counts: set[int] = set()
    done = False

    async def ticker() -> None:
        while not done:
            counts.add(len(children() - before))
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(ticker())
    count = 0
    first = [gates.command() for _ in range(concurrency)]
    async with aioproc.run_many([*first, *[TRUE] * 25], concurrency=concurrency) as runs:
        await until(lambda: concurrency in counts)
        for i in range(concurrency):
            gates.let(i)
        async for result in runs:
            count += result.ok
    done = True
    await ticking
    assert count == 25 + concurrency
    assert max(counts) == concurrency


@has_proc
@everywhere
async def test_a_slot_is_kept_through_the_drain(
    aioproc: Any, gates: Gates, tmp_path: Path
) -> None:
    pids: list[int] = []
    _, _, waits = gates.command()
    first = ("sh", "-c", f"{{ {waits}; }} 2>&1 & echo $$")
    second = ("sh", "-c", f"echo >{tmp_path}/second")

    def heard(stream: str, line: bytes) -> None:
        if line.strip().isdigit():
            pids.append(int(line))

    async with aioproc.run_many([first, second], concurrency=1, drain=1000, on_line=heard) as runs:
        await until(lambda: pids and not is_alive(pids[0]))
        await some_rounds()
        assert not (tmp_path / "second").exists()
        gates.let(0)
        result = await runs.__anext__()
        assert (result.index, result.complete) == (0, True)
        assert result.stdout.endswith(b"through\n")
        assert (await runs.__anext__()).ok
    assert (tmp_path / "second").exists()


@posix_only("fifos")
@pytest.mark.parametrize("kind", ["generator", "asynchronous generator"])
async def test_commands_are_taken_as_they_are_needed(
    aioproc: Any, gates: Gates, kind: str
) -> None:
    source = Source(*(gates.command() for _ in range(6)), times=1)
    commands = iter(source) if kind == "generator" else source.each()
    async with aioproc.run_many(commands, concurrency=2) as runs:
        await until(lambda: source.taken >= 2)
        await some_rounds()
        assert source.taken == 2
        gates.let(1)
        assert (await runs.__anext__()).index == 1
        await until(lambda: source.taken >= 3)
        await some_rounds()
        assert source.taken == 3
        assert not source.is_closed
    assert source.is_closed
    assert source.taken == 3


@has_proc
async def test_who_takes_no_results_gets_no_more(aioproc: Any) -> None:
    before = children()
    source = Source(TRUE)
    async with aioproc.run_many(source, concurrency=3) as runs:
        for taken in range(4):
            await until(lambda: source.taken >= 3 + taken)  # noqa: B023
            await until(lambda: not children() - before)
            await some_rounds()
            # Three results wait, and nothing runs.
            assert source.taken == 3 + taken
            await runs.__anext__()


async def test_nothing_is_kept_of_those_that_are_over(aioproc: Any) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Known(Command):
        pass

    def commands() -> Iterator[Any]:
        for _ in range(300):
            command = Known("/nowhere/at-all")
            alive.add(command)
            yield command

    most = 0
    async with aioproc.run_many(commands(), concurrency=4) as runs:
        async for _ in runs:
            most = max(most, len(alive))
    assert most <= 4 + 1


FLAT = """
async def main():
    def peak():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    count, sizes = 0, []
    async with aioproc.run_many(
        (("true", str(i)) for i in range(100_000)), concurrency=8, stdout=None, stderr=None
    ) as runs:
        async for result in runs:
            assert result.ok, result
            count += 1
            if count % 10_000 == 0:
                sizes.append(peak())
    assert count == 100_000
    # In KiB.
    assert sizes[-1] - sizes[0] < 2048, sizes
run(new_event_loop, main())
"""


@pytest.mark.heavy
@has_proc
async def test_a_hundred_thousand_in_flat_memory(aioproc: Any) -> None:
    await script(FLAT)


# -- how they end


@has_proc
@everywhere
@pytest.mark.parametrize("way", ["break", "return", "exception", "cancel", "end"])
async def test_however_it_is_left_all_are_ended(
    aioproc: Any, families: Families, way: str
) -> None:
    source = Source(FAMILY)

    async def consume() -> None:
        async with aioproc.run_many(iter(source), concurrency=3, on_line=families) as runs:
            await families.came(3)
            if way == "end":
                return
            try:
                await asyncio.wait_for(runs.__anext__(), 0.01)
            except asyncio.TimeoutError:
                pass
            if way == "exception":
                raise LookupError("mine")
            if way == "cancel":
                async for _ in runs:
                    pass
            for _ in "a":
                if way == "break":
                    break
                return

    task = asyncio.ensure_future(consume())
    await families.came(3)
    await some_rounds()
    if way == "cancel":
        await asyncio.sleep(0.02)
        task.cancel()
    expected = {"exception": LookupError, "cancel": asyncio.CancelledError}.get(way)
    with pytest.raises(expected) if expected else contextlib.nullcontext():
        await asyncio.wait_for(task, FUSE)
    assert len(families.pids) == 6
    assert not families.alive()
    assert (source.taken, source.is_closed) == (3, True)


@has_proc
@everywhere
@pytest.mark.parametrize("first", ["cancel", "break"])
async def test_a_cancellation_more_cuts_the_grace(
    aioproc: Any, families: Families, first: str
) -> None:
    source = Source(STUBBORN)
    leaves = asyncio.Event()

    async def consume() -> None:
        async with aioproc.run_many(
            source.each(), concurrency=2, on_line=families, stop=1000
        ) as runs:
            if first == "cancel":
                async for _ in runs:
                    pass
            await leaves.wait()

    task = asyncio.ensure_future(consume())
    await families.came(2)
    leaves.set()
    await some_rounds()
    # Who leaves by himself has to be cancelled twice for that, as with a timeout of run().
    task.cancel()
    await asyncio.sleep(0.05)
    assert len(families.alive()) == 4
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, FUSE)
    assert not families.alive()
    assert source.is_closed


@has_proc
async def test_a_scope_of_anyio_leaves_time_for_the_end(
    aioproc: Any, families: Families, tmp_path: Path
) -> None:
    import anyio

    told = (
        "sh",
        "-c",
        f"trap 'sleep 0.1; echo >{tmp_path}/told; exit' TERM; echo $$ $$; "
        "while :; do sleep 0.01; done",
    )
    with anyio.CancelScope() as scope:
        async with aioproc.run_many([told], on_line=families, stop=FUSE) as runs:
            await families.came(1)
            scope.cancel()
            await runs.__anext__()
    assert scope.cancelled_caught
    assert (tmp_path / "told").exists()
    assert not families.alive()


@has_proc
async def test_a_generator_around_it_is_closed(aioproc: Any, families: Families) -> None:
    async def around() -> AsyncIterator[Any]:
        async with aioproc.run_many([TRUE, FAMILY], on_line=families, concurrency=2) as runs:
            async for result in runs:
                await families.came(1)
                yield result

    generator = around()
    assert (await generator.__anext__()).index == 0
    await generator.aclose()  # type: ignore[attr-defined]
    assert not families.alive()


ABANDONED = """
async def consume():
    async with aioproc.run_many([["sleep", "1000"]] * 3, concurrency=3) as runs:
        async for _ in runs:
            pass
loop = new_event_loop()
task = loop.create_task(consume())
loop.run_until_complete(asyncio.sleep(0.1))
assert len(children()) == 3
coroutine = task.get_coro()
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
    await script("from conftest import is_alive\n" + ABANDONED)


@has_proc
@everywhere
@pytest.mark.parametrize("kind", ["generator", "asynchronous generator"])
async def test_what_the_iterable_raises(aioproc: Any, families: Families, kind: str) -> None:
    def commands() -> Iterator[Any]:
        yield FAMILY
        yield FAMILY
        raise LookupError("mine")

    async def later() -> AsyncIterator[Any]:
        for command in (FAMILY, FAMILY):
            yield command
        await families.came(2)
        raise LookupError("mine")

    given = commands() if kind == "generator" else later()
    with pytest.raises(LookupError, match="mine"):
        await asyncio.wait_for(
            aioproc.run_all(given, concurrency=3, on_line=families, stop=1), FUSE
        )
    assert not families.alive()


async def test_an_error_that_nobody_has_heard_of_is_raised_at_the_end(aioproc: Any) -> None:
    def commands() -> Iterator[Any]:
        yield TRUE
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        async with aioproc.run_many(commands(), concurrency=2):
            await asyncio.sleep(0.05)
    # Who leaves by another one has that.
    with pytest.raises(KeyError):
        async with aioproc.run_many(commands(), concurrency=2):
            await asyncio.sleep(0.05)
            raise KeyError


async def test_a_cancellation_by_the_iterable_is_raised(aioproc: Any) -> None:
    async def commands() -> AsyncIterator[Any]:
        yield TRUE
        raise asyncio.CancelledError("mine")

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(aioproc.run_all(commands(), concurrency=1), FUSE)


# -- halting


@posix_only("fifos")
@everywhere
async def test_halt_never(aioproc: Any) -> None:
    results = await aioproc.run_all([ends(1), TRUE, ["/nowhere"], TRUE], concurrency=1)
    assert [result.ok for result in results] == [False, True, False, True]


@posix_only("fifos")
@everywhere
async def test_halt_soon(aioproc: Any, gates: Gates) -> None:
    source = Source(gates.command(), ends(1), *[TRUE] * 50, times=1)
    seen = []
    async with aioproc.run_many(iter(source), concurrency=2, halt="soon") as runs:
        async for result in runs:
            seen.append((result.index, result.ok, result.reason))
            if not result.ok:
                await some_rounds()
                gates.let(0)
    assert seen == [(1, False, "exit"), (0, True, "exit")]
    assert (source.taken, source.is_closed) == (2, True)


@everywhere
async def test_halting_waits_for_no_more_commands(aioproc: Any) -> None:
    closed = asyncio.Event()

    async def commands() -> AsyncIterator[Any]:
        try:
            yield TRUE
            yield ends(1)
            await asyncio.Event().wait()
        finally:
            closed.set()

    for halt in ("soon", "now"):
        results = await asyncio.wait_for(
            aioproc.run_all(commands(), concurrency=3, halt=halt), FUSE
        )
        assert results[-1].index == 1
        assert closed.is_set()
        closed.clear()


@has_proc
@everywhere
async def test_halt_now(aioproc: Any, families: Families, gates: Gates) -> None:
    fails = ("sh", "-c", f"{gates.command()[2]}; exit 1")
    source = Source(FAMILY, FAMILY, fails, *[TRUE] * 50, times=1)
    seen = {}
    async with aioproc.run_many(
        source.each(),
        concurrency=3,
        halt="now",
        on_line=lambda s, line: None if b"through" in line else families(s, line),
    ) as runs:
        await families.came(2)
        gates.let(0)
        async for result in runs:
            seen[result.index] = (result.reason, result.forced, result.left)
    ended = ("cancelled", "stop", [])
    assert seen == {0: ended, 1: ended, 2: ("exit", None, None)}
    assert not families.alive()
    assert (source.taken, source.is_closed) == (3, True)


@has_proc
async def test_halting_leaves_the_grace(aioproc: Any, tmp_path: Path) -> None:
    """However many fail meanwhile."""
    told = f"trap 'sleep 0.2; echo >{tmp_path}/told; exit 0' TERM; "
    tells = ("sh", "-c", f"{told}echo ready; while :; do sleep 0.01; done")
    ready = asyncio.Event()

    async def commands() -> AsyncIterator[Any]:
        yield tells
        await ready.wait()
        for code in (1, 2, 3):
            yield ends(code)

    results = await aioproc.run_all(
        commands(), concurrency=4, halt="now", stop=FUSE, on_line=lambda *_: ready.set()
    )
    assert (results[0].reason, results[0].forced) == ("cancelled", "stop")
    assert (tmp_path / "told").exists()


@has_proc
@everywhere
async def test_check_ends_the_others(aioproc: Any, families: Families) -> None:
    async def commands() -> AsyncIterator[Any]:
        yield FAMILY
        await families.came(1)
        yield ends(3)
        await asyncio.sleep(FUSE)

    with pytest.raises(aioproc.CalledProcessError) as caught:
        await asyncio.wait_for(
            aioproc.run_all(commands(), concurrency=3, check=True, on_line=families), FUSE
        )
    assert (caught.value.returncode, caught.value.result.index) == (3, 1)
    assert not families.alive()


async def test_what_check_raises(aioproc: Any) -> None:
    with pytest.raises(FileNotFoundError):
        await aioproc.run_all([TRUE, ["/nowhere"]], check=True)
    with pytest.raises(aioproc.TimeoutExpired):
        await aioproc.run_all([SLEEP], check=True, timeout=0.05)
    with pytest.raises(aioproc.CalledProcessError):
        await aioproc.run_all([ends(3)], check={0, 1})
    assert (await aioproc.run_all([ends(1)], check={0, 1}))[0].ok
    # Its own says otherwise.
    results = await aioproc.run_all([Command(*ends(3), check=False), TRUE], check=True)
    assert [result.ok for result in results] == [False, True]
    assert (await aioproc.run_all([Command(*ends(3), check={3})], check=True))[0].ok


async def test_results_before_the_failure_are_given_first(aioproc: Any) -> None:
    seen = []
    with pytest.raises(aioproc.CalledProcessError):
        async with aioproc.run_many([TRUE, ends(3), TRUE], concurrency=1, check=True) as runs:
            async for result in runs:
                seen.append(result.index)
    assert seen == [0]


# -- too little of something


SCARCE = """
async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    commands = (("echo", str(i)) for i in range(150))
    results = await aioproc.run_all(commands, concurrency=100, text=True, check=True, timeout=30)
    assert [result.text for result in results] == [str(i) for i in range(150)]
    # And by a limiter that others have as well.
    limiter = aioproc.Limiter(100)
    done = await asyncio.gather(
        aioproc.run_all([["echo", "a"]] * 40, limiter=limiter, check=True),
        *(aioproc.run("echo", "a", limiter=limiter) for i in range(40)),
    )
    assert len(done) == 41 and limiter.in_use == 0, limiter
run(new_event_loop, main())
"""


@posix_only("RLIMIT_NOFILE")
@everywhere
async def test_more_at_a_time_than_there_are_descriptors(aioproc: Any) -> None:
    await script(SCARCE)


FEW = """
async def main():
    await aioproc.run_all([["true"]] * 3)  # all is imported that will be
    os.setgroups([])
    os.setgid(54321)
    os.setuid(54321)
    resource.setrlimit(resource.RLIMIT_NPROC, (6, 6))
    results = await aioproc.run_all(
        [["true"]] * 50, concurrency=30, cwd="/", check=True, timeout=30
    )
    assert len(results) == 50 and all(result.ok for result in results)
run(new_event_loop, main())
"""


@posix_only("RLIMIT_NPROC")
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs to be root")
@everywhere
async def test_more_at_a_time_than_a_user_may_have(aioproc: Any) -> None:
    await script(FEW)


NONE_LEFT = """
async def main():
    await aioproc.run("true")
    few = os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
    result, = await aioproc.run_all([["echo"]])
    assert isinstance(result.error, OSError) and result.error.errno == errno.EMFILE, result
    limiter = aioproc.Limiter(2)
    try:
        await aioproc.run("echo", limiter=limiter)
    except OSError as error:
        assert error.errno == errno.EMFILE
    else:
        raise AssertionError("started")
    assert limiter.in_use == 0
    # As long as somebody has another slot, it is waited for.
    async with limiter:
        try:
            await aioproc.run("echo", limiter=limiter, timeout=0.05)
        except aioproc.TimeoutExpired as error:
            assert error.result.pid is None
        waits = asyncio.ensure_future(aioproc.run("echo", limiter=limiter))
        while not limiter._is_short:
            await asyncio.sleep(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
        os.close(few)
    try:
        await waits
    except OSError as error:
        assert error.errno == errno.EMFILE
    assert limiter.in_use == 0
run(new_event_loop, main())
"""


@posix_only("RLIMIT_NOFILE")
async def test_who_is_alone_fails(aioproc: Any) -> None:
    await script(NONE_LEFT)


ELSEWHERE = """
async def main():
    await aioproc.run("true")
    few = os.dup(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limiter = aioproc.Limiter(2)
    async with limiter:  # for as long as it takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        waits = asyncio.ensure_future(aioproc.run("echo", "a", limiter=limiter))
        while not limiter._is_short:
            await asyncio.sleep(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await waits).text == "a"
    os.close(few)
run(new_event_loop, main())
"""


@posix_only("RLIMIT_NOFILE")
async def test_what_somebody_else_gives_back(aioproc: Any) -> None:
    await script(ELSEWHERE)


WARNED = """
import errno, logging
from aioproc._run import attempts as module
module.SHORT_PAUSE = module.LONGEST_SHORT_PAUSE = 0.01
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("aioproc").addHandler(handler)

async def main():
    await aioproc.run("true")
    few = os.dup(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limiter = aioproc.Limiter(2)
    async with limiter:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        waits = asyncio.ensure_future(aioproc.run("echo", "a", limiter=limiter))
        while not said:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # once is enough
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await waits).text == "a"
    os.close(few)
    [text] = said
    assert "echo" in text and "waits" in text and os.strerror(errno.EMFILE) in text, text
run(new_event_loop, main())
"""


@posix_only("RLIMIT_NOFILE")
async def test_who_waits_for_room_for_long(aioproc: Any) -> None:
    """It says so: what has taken the room may never end by itself."""
    await script(WARNED)


# -- bad input


@pytest.mark.parametrize(
    ("item", "advice"),
    [
        ("ls -l", "shlex.split"),
        (b"ls", "shlex.split"),
        (Path("ls"), "give a tuple"),
        ((), "a program and its arguments"),
        (None, "a program and its arguments"),
        (["echo", 1], "str"),
    ],
)
async def test_what_is_no_command(aioproc: Any, item: Any, advice: str) -> None:
    source = Source(TRUE, item, TRUE, times=1)
    with pytest.raises(TypeError, match=advice) as caught:
        await aioproc.run_all(iter(source), concurrency=1)
    assert source.is_closed
    if sys.version_info >= (3, 11):
        assert "in command 1 of run_all()" in caught.value.__notes__


@pytest.mark.parametrize(
    ("commands", "options", "error", "text"),
    [
        ("ls", {}, TypeError, "iterable of commands"),
        (Command("ls"), {}, TypeError, "iterable of commands"),
        (3, {}, TypeError, "iterable of commands"),
        ([], {"concurrency": 0}, ValueError, "at least 1"),
        ([], {"concurrency": "3"}, TypeError, "concurrency"),
        ([], {"limiter": asyncio.Semaphore}, TypeError, "Limiter"),
        ([], {"halt": "later"}, ValueError, "'never', 'soon' or 'now'"),
        ([], {"timeout": "1"}, TypeError, "timeout"),
        ([], {"shel": True}, TypeError, "shel"),
        ([], {"input": iter([b"a"])}, ValueError, "bytes"),
    ],
)
async def test_bad_arguments(
    aioproc: Any, commands: Any, options: Any, error: Any, text: str
) -> None:
    with pytest.raises(error, match=text):
        aioproc.run_many(commands, **options)


async def test_one_that_nobody_enters(aioproc: Any) -> None:
    runs = [aioproc.run_many([TRUE])]
    with pytest.warns(RuntimeWarning, match=r"run_many\(\) was never entered"):
        drop(runs)


class EndsAnother:
    """Accepts no returncode, and has another command end when it is asked."""

    def __init__(self, fifo: Path, families: Families) -> None:
        self._fifo = fifo
        self._families = families

    def __contains__(self, code: object) -> bool:
        if self._families.alive():
            with open(self._fifo, "w") as file:
                file.write("go\n")
        assert settle(lambda: not self._families.alive())
        return False


@has_proc
@everywhere
async def test_what_had_ended_by_itself_is_not_cancelled(
    aioproc: Any, families: Families, tmp_path: Path
) -> None:
    """Though another had failed before that was noticed."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    fails = aioproc.Command(*ends(3), check=EndsAnother(fifo, families))
    waits = aioproc.Command("sh", "-c", f"echo $$ $$; read go <{fifo}; echo saved >&2")

    async def commands() -> AsyncIterator[Any]:
        yield waits
        await families.came(1)
        yield fails

    def on_line(stream: str, line: bytes) -> None:
        if stream == "stdout":
            families(stream, line)

    first, second = await aioproc.run_all(commands(), concurrency=2, halt="now", on_line=on_line)
    assert (second.ok, second.returncode) == (False, 3)
    assert (first.ok, first.reason, first.forced) == (True, "exit", None)
    assert first.stderr == b"saved\n"


async def test_misuse(aioproc: Any) -> None:
    runs = aioproc.run_many([TRUE])
    with pytest.raises(RuntimeError, match="async with"):
        await runs.__anext__()
    async with runs:
        assert (await runs.__anext__()).ok
        assert "1 commands taken" in repr(runs)
        with pytest.raises(StopAsyncIteration):
            await runs.__anext__()
        with pytest.raises(StopAsyncIteration):
            await runs.__anext__()
    with pytest.raises(RuntimeError, match="call it again"):
        await runs.__aenter__()
    with pytest.raises(StopAsyncIteration):
        await runs.__anext__()
    with pytest.raises(TypeError, match="another one"):
        await aioproc.run_all([Command(*TRUE, limiter=Limiter(1))], limiter=Limiter(1))
    with pytest.raises(TypeError, match="limiter must be a Limiter"):
        await aioproc.run(*TRUE, limiter=3)
    with pytest.raises(TypeError, match=r"run_many\(\)"):
        await aioproc.run(*TRUE, concurrency=3)


async def test_several_take_the_results(aioproc: Any) -> None:
    seen: list[int] = []

    async def consume(runs: Any) -> None:
        async for result in runs:
            seen.append(result.index)

    runs = aioproc.run_many([TRUE] * 12, concurrency=3)
    offer = runs._offer
    early: list[asyncio.Task[Any]] = []

    def late(result: Any) -> bool:
        given: bool = offer(result)
        if given and not early[0].done():
            early[0].cancel()
        return given

    runs._offer = late
    async with runs:
        # One that has been given a result and is cancelled before it has heard of it.
        early.append(asyncio.ensure_future(runs.__anext__()))
        with pytest.raises(asyncio.CancelledError):
            await early[0]
        await asyncio.gather(*(consume(runs) for _ in range(3)))
    assert sorted(seen) == list(range(12))


async def test_it_leaves_no_cycle(aioproc: Any) -> None:
    await aioproc.run_all([TRUE])
    gc.collect()
    gc.disable()
    try:
        results = await aioproc.run_all([TRUE, ["/nowhere"], ends(1)], concurrency=2)
        known = weakref.ref(results[0])
        del results
        await some_rounds()
        assert known() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="since Python 3.12")
async def test_tasks_that_begin_at_once(aioproc: Any) -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    try:
        results = await aioproc.run_all([["/nowhere"]] * 3000, concurrency=2000)
        assert len(results) == 3000
    finally:
        loop.set_task_factory(None)


@has_proc
async def test_its_results_survive_settling(aioproc: Any) -> None:
    """Nothing is left when it is over, neither a child nor a task."""
    before = children()
    await aioproc.run_all([TRUE] * 5)
    assert settle(lambda: not children() - before)
    assert len(asyncio.all_tasks()) == 1
