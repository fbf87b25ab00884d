"""StreamReader and StreamWriter: asyncio's behaviour, and none of its code."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import sys
from typing import Any

import pytest

import aioproc as package
from aioproc._asyncio import buffer as _buffer
from aioproc._asyncio.streams import PAUSE_AT
from helpers import not_on_proactor
from marks import posix_only
from programs import CAT, SLEEP, TRUE, python, sh

pytestmark = pytest.mark.asyncio

MEGABYTE = 1 << 20


# -- nothing is inherited


@pytest.mark.parametrize("name", ["StreamReader", "StreamWriter"])
async def test_every_public_method_is_ours(name: str) -> None:
    base, ours = getattr(asyncio, name), getattr(package, name)
    special = {"__init__", "__repr__", "__del__", "__aiter__", "__anext__"}
    wanted = {attribute for attribute in dir(base) if not attribute.startswith("_")}
    wanted |= {attribute for attribute in special if attribute in vars(base)}
    assert len(wanted) > 10
    assert sorted(wanted - set(vars(ours))) == []


@pytest.mark.parametrize("name", ["StreamReader", "StreamWriter"])
async def test_signatures_are_compatible(name: str) -> None:
    base, ours = getattr(asyncio, name), getattr(package, name)
    for attribute in vars(base):
        theirs = inspect.getattr_static(base, attribute)
        if attribute.startswith("_") or not inspect.isfunction(theirs):
            continue
        own = getattr(ours, attribute)
        assert inspect.iscoroutinefunction(own) == inspect.iscoroutinefunction(theirs), attribute
        if attribute != "start_tls":  # which is not for pipes
            assert list(inspect.signature(own).parameters) == list(
                inspect.signature(theirs).parameters
            ), attribute


# -- the reader against asyncio's


class Recorder(asyncio.ReadTransport):
    """Notes whether it is paused, and that nobody pauses twice."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


class Side:
    """One reader, what it said, and the read that is under way."""

    def __init__(self, make: Any, limit: int) -> None:
        self.reader = make(limit=limit, loop=asyncio.get_running_loop())
        self.transport = Recorder()
        self.reader.set_transport(self.transport)
        self.task: asyncio.Task[Any] | None = None
        self.log: list[Any] = []
        self.ended = False

    def begin(self, operation: str, arguments: tuple[Any, ...]) -> None:
        self.task = asyncio.ensure_future(getattr(self.reader, operation)(*arguments))

    def look(self) -> None:
        if self.task is not None and self.task.done():
            error = self.task.exception()
            if error is None:
                self.log.append(self.task.result())
            else:
                self.log.append((type(error), error.args, vars(error)))
            self.task = None
        reader = self.reader
        held = bytes(reader._buffer)  # has lines accounted for that __anext__ has given
        # After the end of the data it means nothing; asyncio then forgets to resume.
        paused = self.transport.paused and not self.ended
        state = (self.task is None, reader.at_eof(), reader.exception(), paused, held)
        self.log.append(state)


def some_text(randoms: random.Random) -> bytes:
    return bytes(randoms.choices(b"abc\n;", (10, 10, 10, 2, 2), k=randoms.randrange(1, 30)))


def some_operation(randoms: random.Random) -> tuple[str, tuple[Any, ...]]:
    operation = randoms.choice(
        ["readline", "readline", "readuntil", "read", "read", "readexactly", "__anext__"]
    )
    arguments: tuple[Any, ...] = ()
    if operation == "readuntil":
        separators: list[Any] = [b"\n", b";", b"ab", b"a;b", b""]
        if sys.version_info >= (3, 13):
            separators += [(b"\n", b";"), (b"abc", b"b"), (b"a", b"ab"), (b"ab", b"ba", b"c;"), ()]
            separators += [(b"b", b"ab"), (b"a;b", b";b", b"c;b")]
        arguments = (randoms.choice(separators),)
    elif operation == "read":
        # read(-1) only at the end: asyncio's gives up what it has read when it fails.
        arguments = (randoms.choice([0, 1, 5, 40]),)
    elif operation == "readexactly":
        arguments = (randoms.choice([-1, 0, 1, 7, 40]),)
    return operation, arguments


@pytest.fixture(params=[None, 8], ids=["", "small portions"])
def portion(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader does with long pieces must be right with short ones."""
    if request.param is not None:
        monkeypatch.setattr(_buffer, "PORTION", request.param)
        monkeypatch.setattr(_buffer, "RECLAIM", 2 * request.param)


@pytest.mark.usefixtures("portion")
async def test_random_operations_as_asyncio() -> None:
    for seed in range(100):
        await compare_with_asyncio(seed)


async def compare_with_asyncio(seed: int) -> None:
    randoms = random.Random(seed)
    limit = randoms.choice([1, 2, 5, 16, 64])
    sides = [Side(asyncio.StreamReader, limit), Side(package.StreamReader, limit)]
    steps = []

    async def agree() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        for side in sides:
            side.look()
        assert sides[0].log == sides[1].log, (seed, steps)

    for _ in range(120):
        busy = sides[0].task is not None
        kind = randoms.choice(["feed", "read", "read"]) if not busy else "feed"
        if kind == "feed":
            text = some_text(randoms)
            steps.append(("feed_data", text))
            for side in sides:
                side.reader.feed_data(text)
        else:
            operation, arguments = some_operation(randoms)
            steps.append((operation, arguments))
            for side in sides:
                side.begin(operation, arguments)
        await agree()

    if randoms.randrange(4) == 0:
        error = OSError("broken")
        steps.append(("set_exception", error))
        for side in sides:
            side.reader.set_exception(error)
        await agree()
    for side in sides:
        side.reader.feed_eof()
        side.ended = True
    await agree()
    for _ in range(10):
        operation, arguments = some_operation(randoms)
        steps.append((operation, arguments))
        for side in sides:
            side.begin(operation, arguments)
        await agree()
    for side in sides:
        side.begin("read", (-1,))
    await agree()


@pytest.mark.usefixtures("portion")
async def test_random_operations_without_a_limit() -> None:
    for seed in range(12):
        await compare_without_a_limit(seed)


async def compare_without_a_limit(seed: int) -> None:
    # asyncio's with a limit that is never reached: the data must be the same.
    randoms = random.Random(seed)
    ours = package.StreamReader(loop=asyncio.get_running_loop())
    theirs = asyncio.StreamReader(limit=1 << 30, loop=asyncio.get_running_loop())
    steps: list[Any] = []

    def feed(times: int) -> None:
        text = b"".join(some_text(randoms) for _ in range(times))
        steps.append(text)
        ours.feed_data(text)
        theirs.feed_data(text)

    for _ in range(100):
        feed(randoms.choice([1, 1, 1, 20]))
    while not theirs.at_eof():
        kind = randoms.randrange(20)
        if kind == 0 and not theirs._eof:
            feed(randoms.choice([1, 10]))
        elif kind == 1 and not theirs._eof and randoms.randrange(4) == 0:
            ours.feed_eof()
            theirs.feed_eof()
        elif kind == 2:
            n = randoms.randrange(40)
            steps.append(("del", n))
            del ours._buffer[:n]
            del theirs._buffer[:n]  # type: ignore[attr-defined]
        elif kind == 3:
            steps.append("communicate() begins and is cancelled")
            ours._start_collecting()
            if not theirs._eof:
                feed(3)
            ours._stop_collecting()
        operation, arguments = some_operation(randoms)
        steps.append((operation, arguments))
        results = []
        for reader in ours, theirs:
            reading = asyncio.ensure_future(getattr(reader, operation)(*arguments))
            await asyncio.sleep(0)
            waiting = not reading.done()
            if waiting:  # for more; it loses nothing
                reading.cancel()
            try:
                results.append((waiting, await reading))
            except asyncio.CancelledError:
                results.append((waiting, None))
            except (asyncio.IncompleteReadError, ValueError, StopAsyncIteration) as error:
                results.append((waiting, (type(error), error.args, vars(error))))
        assert results[0] == results[1], (seed, steps)
        if results[0][0]:
            feed(4)
        if randoms.randrange(2):  # a look must change nothing, nor must it be needed
            assert ours.at_eof() == theirs.at_eof()
        if randoms.randrange(9) == 0:
            assert ours._buffer == theirs._buffer, (seed, steps)


# -- several tasks on one reader


async def begun(*coroutines: Any) -> list[asyncio.Task[Any]]:
    tasks = []
    for coroutine in coroutines:
        tasks.append(asyncio.ensure_future(coroutine))
        await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize(
    ("operation", "arguments", "result"),
    [
        ("read", (-1,), b"22\n333\n"),
        ("read", (4,), b"22\n3"),
        ("readexactly", (5,), b"22\n33"),
        ("readuntil", (b"33",), b"22\n33"),
        ("readline", (), b"22\n"),
        ("__anext__", (), b"22\n"),
    ],
)
@pytest.mark.parametrize("first", ["__anext__", "readline"])
async def test_another_task_reads_before_one_that_was_woken(
    operation: str, arguments: tuple[Any, ...], result: bytes, first: str
) -> None:
    reader = package.StreamReader(loop=asyncio.get_running_loop())
    [waiting] = await begun(getattr(reader, operation)(*arguments))
    quicker = asyncio.ensure_future(getattr(reader, first)())
    # The one who waits is awake now, but runs later.
    reader.feed_data(b"1\n22\n333\n")
    reader.feed_eof()
    assert await quicker == b"1\n"
    assert await waiting == result
    assert result + await reader.read() == b"22\n333\n"


async def test_another_task_reads_what_has_been_searched() -> None:
    reader = package.StreamReader(loop=asyncio.get_running_loop())
    reader.feed_data(b"searched;" * 3)
    [waiting] = await begun(reader.readuntil((b"END", b".....")))
    assert await reader.read(20) == b"searched;searched;se"
    reader.feed_data(b"12END3END")
    reader.feed_eof()
    assert await waiting == b"arched;12END"
    assert await reader.read(8) == b"3END"


async def test_a_buffer_is_exchanged_that_has_been_searched() -> None:
    reader = package.StreamReader(loop=asyncio.get_running_loop())
    reader.feed_data(b"....")
    [waiting] = await begun(reader.readuntil(b"END?"))
    reader._buffer = b"E"  # type: ignore[assignment]
    reader.feed_data(b"ND?4")
    reader.feed_eof()
    assert await waiting == b"END?"
    assert await reader.read(1) == b"4"


async def test_two_tasks_iterate() -> None:
    reader = package.StreamReader(loop=asyncio.get_running_loop())
    got: list[bytes] = []

    async def iterate() -> None:
        async for line in reader:
            got.append(line)
            await asyncio.sleep(0)

    first = asyncio.ensure_future(iterate())
    second = asyncio.ensure_future(iterate())
    for i in range(100):
        reader.feed_data(b"%d\n%d" % (3 * i, 3 * i + 1))
        reader.feed_data(b"\n%d\n" % (3 * i + 2))
    reader.feed_eof()
    await asyncio.gather(first, second)
    assert got == [b"%d\n" % i for i in range(300)]


async def test_a_reader_that_collects_gives_nothing_to_one_that_was_woken() -> None:
    reader = package.StreamReader(loop=asyncio.get_running_loop())
    [waiting] = await begun(reader.read(10))
    reader.feed_data(b"hello")
    reader._start_collecting()
    with pytest.raises(RuntimeError, match="already waiting"):
        await waiting
    reader._stop_collecting()
    assert await reader.read(10) == b"hello"


class Unwilling(Recorder):
    """Fails to resume, as add_reader does when a user may not watch more."""

    failures = 2

    def resume_reading(self) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("no more of these")
        super().resume_reading()


async def test_resuming_fails() -> None:
    reader = package.StreamReader(limit=10, loop=asyncio.get_running_loop())
    transport = Unwilling()
    reader.set_transport(transport)
    reader.feed_data(b"x" * 30 + b"\n")
    assert transport.paused
    # Tries to resume, without harm for what it has.
    assert await reader.read(30) == b"x" * 30
    assert transport.failures == 1
    with pytest.raises(OSError, match="no more"):
        await reader.readexactly(2)
    assert transport.paused
    more = asyncio.ensure_future(reader.readexactly(2))
    await asyncio.sleep(0)
    assert not transport.paused
    reader.feed_data(b"y")
    assert await more == b"\ny"


async def test_resuming_fails_for_communicate() -> None:
    reader = package.StreamReader(limit=10, loop=asyncio.get_running_loop())
    transport = Unwilling()
    reader.set_transport(transport)
    reader.feed_data(b"x" * 30)
    with pytest.raises(OSError, match="no more"):
        reader._start_collecting()
    assert transport.paused
    assert await reader.readexactly(5) == b"x" * 5
    transport.failures = 0
    reader._start_collecting()
    assert not transport.paused
    reader.feed_data(b"y")
    reader._stop_collecting()
    assert transport.paused
    assert await reader.readexactly(26) == b"x" * 25 + b"y"
    assert not transport.paused


class Reading:
    """Tasks that read as they like, each before another's nose. Without a child nobody
    calls communicate()."""

    def __init__(self, reader: Any, randoms: random.Random, process: Any = None) -> None:
        self.reader, self.randoms, self.process = reader, randoms, process
        self.output: list[bytes] = []

    async def once(self) -> None:
        out, randoms = self.reader, self.randoms
        operation = randoms.randrange(8)
        try:
            if operation == 0 and self.process is not None:
                data, _ = await self.process.communicate()
            elif operation == 1:
                async for line in out:
                    self.output.append(line)
                    if randoms.randrange(4) == 0:
                        break
                    if randoms.randrange(4) == 0:
                        await asyncio.sleep(0)
                return
            elif operation == 2:
                data = await out.readline()
            elif operation == 3:
                data = await out.readuntil(randoms.choice([b"\n", b"1", b"23\n", (b"9\n", b"77")]))
            elif operation == 4:
                data = await out.readexactly(randoms.choice([1, 4, 1000, 100_000]))
            elif operation == 5:
                data = await out.read()
            else:
                data = await out.read(randoms.choice([1, 100, 10_000, 1 << 20]))
        except asyncio.IncompleteReadError as error:
            data = error.partial
        except (RuntimeError, StopAsyncIteration):
            return
        # In the same step in which they were taken.
        self.output.append(data)

    async def some(self) -> None:
        out, randoms = self.reader, self.randoms
        while not out.at_eof():
            task = asyncio.ensure_future(self.once())
            for _ in range(randoms.choice([0, 1, 2, 10])):
                await asyncio.sleep(0)
            if randoms.randrange(2):
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()
            await asyncio.sleep(0)


async def test_random_tasks() -> None:
    for seed in range(60):
        randoms = random.Random(seed)
        text = b"".join(b"%d\n" % randoms.randrange(10**6) for _ in range(300))
        reader = package.StreamReader(loop=asyncio.get_running_loop())
        reader.set_transport(Recorder())
        reading = Reading(reader, randoms)
        tasks = [asyncio.ensure_future(reading.some()) for _ in range(randoms.choice([1, 2, 3]))]
        start = 0
        while start < len(text):
            size = randoms.choice([1, 10, 100])
            reader.feed_data(text[start : start + size])
            start += size
            for _ in range(randoms.choice([0, 1, 2])):
                await asyncio.sleep(0)
        reader.feed_eof()
        await asyncio.gather(*tasks)
        assert b"".join(reading.output) == text, seed


#: Says numbers, in pieces of every size.
SAYS_NUMBERS = """
import os, random, sys
randoms = random.Random(int(sys.argv[1]))
text = b"".join(b"%d\\n" % randoms.randrange(10**6) for _ in range(20_000))
while text:
    text = text[os.write(1, text[: randoms.choice([1, 10, 100, 1000, 40_000])]) :]
"""


async def test_random_tasks_on_a_child(aioproc: Any) -> None:
    for seed in range(8):
        randoms = random.Random(seed)
        text = b"".join(b"%d\n" % randoms.randrange(10**6) for _ in range(20_000))
        process = await aioproc.create_subprocess_exec(
            *python(SAYS_NUMBERS, str(seed)), stdout=aioproc.PIPE
        )
        reading = Reading(process.stdout, randoms, process)
        await asyncio.gather(*(reading.some() for _ in range(randoms.choice([1, 2, 3]))))
        assert b"".join(reading.output) == text, seed
        assert await process.wait() == 0


async def test_an_iteration_that_is_left_and_taken_up_again() -> None:
    reader = package.StreamReader(loop=asyncio.get_running_loop())
    reader.feed_data(b"".join(b"%d\n" % i for i in range(100)) + b"tail")

    async def some(count: int) -> list[bytes]:
        return [await reader.__anext__() for _ in range(count)]

    assert await some(3) == [b"0\n", b"1\n", b"2\n"]
    assert await reader.readline() == b"3\n"
    assert await some(2) == [b"4\n", b"5\n"]
    assert await reader.readexactly(3) == b"6\n7"
    assert await some(2) == [b"\n", b"8\n"]
    assert await reader.readuntil(b"11") == b"9\n10\n11"
    assert await some(2) == [b"\n", b"12\n"]
    reader.feed_data(b" end\nmore\n")
    assert repr(reader).startswith("<StreamReader 275 bytes")
    assert await reader.read(4) == b"13\n1"
    assert (await some(87))[-2:] == [b"99\n", b"tail end\n"]
    assert bytes(reader._buffer) == b"more\n"
    assert not reader.at_eof()
    reader.feed_eof()
    assert await some(1) == [b"more\n"]
    assert reader.at_eof()
    with pytest.raises(StopAsyncIteration):
        await some(1)


async def test_an_iteration_is_stopped_by_an_error() -> None:
    reader = package.StreamReader(loop=asyncio.get_running_loop())
    reader.feed_data(b"1\n2\n3\n")
    assert await reader.__anext__() == b"1\n"
    assert await reader.__anext__() == b"2\n"
    reader.set_exception(OSError("broken"))
    with pytest.raises(OSError, match="broken"):
        await reader.__anext__()


@pytest.mark.parametrize("limit", [None, 1000])
async def test_an_iteration_lets_the_pipe_flow_again(limit: int | None) -> None:
    reader = package.StreamReader(limit=limit, loop=asyncio.get_running_loop())
    transport = Recorder()
    reader.set_transport(transport)
    line = b"x" * 99 + b"\n"
    count = 0
    while not transport.paused:
        reader.feed_data(line)
        count += 1
    for _ in range(count):
        assert await reader.__anext__() == line
    more = asyncio.ensure_future(reader.__anext__())
    await asyncio.sleep(0)
    assert not transport.paused
    reader.feed_data(line)
    assert await more == line


async def test_several_separators_on_every_python() -> None:
    reader = package.StreamReader(loop=asyncio.get_running_loop())
    reader.feed_data(b"one;two\nthree--four")
    reader.feed_eof()
    separators = (b"\n", b";", b"--")
    assert await reader.readuntil(separators) == b"one;"
    assert await reader.readuntil(separators) == b"two\n"
    assert await reader.readuntil(separators) == b"three--"
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await reader.readuntil(separators)
    assert caught.value.partial == b"four"
    assert caught.value.expected is None


async def test_limits_that_are_none(aioproc: Any) -> None:
    for limit in 0, -1:
        with pytest.raises(ValueError, match="Limit cannot be <= 0"):
            package.StreamReader(limit=limit, loop=asyncio.get_running_loop())
        with pytest.raises(ValueError, match="Limit cannot be <= 0"):
            await aioproc.create_subprocess_exec(*TRUE, stdout=aioproc.PIPE, limit=limit)


async def test_repr_of_a_reader() -> None:
    reader = package.StreamReader(limit=100, loop=asyncio.get_running_loop())
    assert repr(reader) == "<StreamReader limit=100>"
    reader.feed_data(b"abc")
    reader.feed_eof()
    assert repr(reader) == "<StreamReader 3 bytes eof limit=100>"


# -- reading from a child


def says(text: str) -> list[str]:
    return sh(f"printf '{text}'", f"print('{text}', end='')")


async def test_reading_in_every_way(api: Any) -> None:
    process = await api.create_subprocess_exec(
        *says("line 1\\nuntil;12345rest\\nline 2\\nline 3\\nlast"), stdout=api.PIPE
    )
    out = process.stdout
    assert await out.readline() == b"line 1\n"
    assert await out.readuntil(b";") == b"until;"
    assert await out.readexactly(5) == b"12345"
    assert await out.read(0) == b""
    assert await out.read(4) == b"rest"
    assert not out.at_eof()
    assert [line async for line in out] == [b"\n", b"line 2\n", b"line 3\n", b"last"]
    assert out.at_eof()
    assert await out.read() == await out.read(10) == await out.readline() == b""
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await out.readexactly(3)
    assert (caught.value.partial, caught.value.expected) == (b"", 3)
    assert await process.wait() == 0


async def test_an_incomplete_read_tells_what_came(api: Any) -> None:
    process = await api.create_subprocess_exec(*says("abc"), stdout=api.PIPE)
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await process.stdout.readexactly(5)
    assert (caught.value.partial, caught.value.expected) == (b"abc", 5)
    await process.wait()


async def test_a_limit_is_asyncios(api: Any) -> None:
    zeros = "0" * 50
    process = await api.create_subprocess_exec(
        *says(f"short\\n{zeros}\\nnext\\n{zeros};after"), stdout=api.PIPE, limit=20
    )
    out = process.stdout
    assert await out.readline() == b"short\n"
    with pytest.raises(ValueError, match="limit"):
        await out.readline()
    # How much of the long line was dropped depends on how it came; "next" is whole.
    line = await out.readline()
    while line != b"next\n":
        line = await out.readline()
    with pytest.raises(asyncio.LimitOverrunError) as caught:
        await out.readuntil(b";")
    assert await out.readexactly(caught.value.consumed) == b"0" * caught.value.consumed
    assert (await out.read()).endswith(b";after")
    await process.wait()


async def read_a_long_line(aioproc: Any, size: int) -> None:
    process = await aioproc.create_subprocess_exec(
        *python(
            "import sys\n"
            "for i in range(int(sys.argv[1]) >> 20): sys.stdout.write('x' * (1 << 20))\n"
            "print(); print('next')",
            str(size),
        ),
        stdout=aioproc.PIPE,
    )
    line = await process.stdout.readline()
    assert len(line) == size + 1
    assert line.count(b"x") == size
    assert await process.stdout.readline() == b"next\n"
    assert await process.stdout.readline() == b""
    assert await process.wait() == 0


async def test_a_long_line(aioproc: Any) -> None:
    await read_a_long_line(aioproc, 20 * MEGABYTE)


@pytest.mark.heavy
async def test_a_very_long_line(aioproc: Any) -> None:
    await read_a_long_line(aioproc, 100 * MEGABYTE)


async def test_a_long_chunk_up_to_a_separator(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(
        *python("print('x' * (8 << 20), end='--END--rest')"), stdout=aioproc.PIPE
    )
    chunk = await process.stdout.readuntil((b"--END--", b"never"))
    assert len(chunk) == (8 << 20) + 7
    assert await process.stdout.read() == b"rest"
    await process.wait()


async def test_many_lines(api: Any) -> None:
    process = await api.create_subprocess_exec(
        *python("for i in range(20_000): print(i)"), stdout=api.PIPE
    )
    lines = [line async for line in process.stdout]
    assert lines == [b"%d\n" % i for i in range(20_000)]
    await process.wait()


@pytest.mark.parametrize(
    ("method", "arguments", "result"),
    [
        ("readline", (), b"hello\n"),
        ("read", (5,), b"hello"),
        ("read", (), b"hello\n"),
        ("readexactly", (6,), b"hello\n"),
        ("readuntil", (b"o",), b"hello"),
    ],
)
async def test_a_cancelled_read_loses_nothing(
    aioproc: Any, method: str, arguments: tuple[Any, ...], result: bytes
) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    read = b""
    for part in b"he", b"llo\n":
        reading = asyncio.create_task(getattr(process.stdout, method)(*arguments))
        await asyncio.sleep(0)
        process.stdin.write(part)
        # The data are there, and so is the cancellation, in whatever order.
        await asyncio.sleep(0)
        reading.cancel()
        outcome = (await asyncio.gather(reading, return_exceptions=True))[0]
        if isinstance(outcome, bytes):
            read += outcome
        else:
            assert isinstance(outcome, asyncio.CancelledError)
    process.stdin.close()
    if not read:
        read = await getattr(process.stdout, method)(*arguments)
    while method == "read" and arguments and len(read) < len(result):
        read += await process.stdout.read(len(result) - len(read))  # as it comes
    assert read == result
    assert read + await process.stdout.read() == b"hello\n"
    await process.wait()


async def test_only_one_may_read(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    reading = asyncio.create_task(process.stdout.read(10))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="already waiting for incoming data"):
        await process.stdout.readline()
    process.stdin.close()
    assert await reading == b""
    await process.wait()


# -- flow control

#: Writes until nobody has taken anything for a while, tells how much that was, then
#: goes on, 16 MiB in all.
FLOOD = """
import os, select
os.set_blocking(1, False)
written, total, told = 0, 16 << 20, False
while written < total:
    if not select.select([], [1], [], None if told else 0.2)[1]:
        os.write(2, b"%d\\n" % written)
        told = True
        continue
    written += os.write(1, bytes(min(65536, total - written)))
if not told: os.write(2, b"%d\\n" % written)
"""


@posix_only("pipes for select()")
@pytest.mark.parametrize("limit", [None, 1000])
async def test_the_pipe_pauses_while_nobody_reads(api: Any, limit: int | None) -> None:
    options = {} if limit is None else {"limit": limit}
    process = await api.create_subprocess_exec(
        *python(FLOOD), stdout=api.PIPE, stderr=api.PIPE, **options
    )
    written = int(await process.stderr.readline())
    # What the pipe holds, what one read gives, and what is kept here at most.
    held = PAUSE_AT if limit is None else 2 * limit
    assert written <= held + 64 * 1024 + 256 * 1024
    size = 0
    while data := await process.stdout.read(1 << 20):
        size += len(data)
    assert size == 16 << 20
    assert await process.wait() == 0


async def test_drain_waits_for_the_child(api: Any) -> None:
    data = random.Random(1).randbytes(4 * MEGABYTE)
    # Nobody reads what cat gives back, so it stops taking.
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    process.stdin.write(b"x")
    await process.stdin.drain()  # under the high-water mark: at once
    process.stdin.write(data)
    draining = [asyncio.create_task(process.stdin.drain()) for _ in range(2)]
    done, _ = await asyncio.wait(draining, timeout=0.05)
    assert not done
    assert await process.stdout.readexactly(1 + len(data) - 1000) == (b"x" + data)[:-1000]
    await asyncio.gather(*draining)
    process.stdin.close()
    assert await process.stdout.read() == data[-1000:]
    await process.wait()


async def test_a_cancelled_drain_ends_only_itself(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    process.stdin.write(bytes(4 * MEGABYTE))
    first, second = (asyncio.create_task(process.stdin.drain()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not second.done()
    process.stdin.close()
    assert len(await process.stdout.read()) == 4 * MEGABYTE
    await second
    await process.wait()


async def test_drain_raises_when_the_child_has_closed_its_stdin(api: Any) -> None:
    process = await api.create_subprocess_exec(
        *sh(
            "exec 0<&-; echo closed; exec sleep 1000",
            "import os, time; os.close(0); print('closed', flush=True); time.sleep(1000)",
        ),
        stdin=api.PIPE,
        stdout=api.PIPE,
    )
    assert await process.stdout.readline() == b"closed\n"
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        for _ in range(1000):
            process.stdin.write(b"x")
            await process.stdin.drain()
    process.kill()
    await process.wait()


async def test_a_drain_that_waits_learns_of_the_end(api: Any) -> None:
    process = await api.create_subprocess_exec(*SLEEP, stdin=api.PIPE)
    process.stdin.write(bytes(MEGABYTE))
    draining = asyncio.create_task(process.stdin.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    process.kill()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await draining
    await process.wait()


# -- writing


async def test_closing(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    assert not process.stdin.is_closing()
    process.stdin.write(b"hello")
    process.stdin.close()
    process.stdin.close()
    assert process.stdin.is_closing()
    await process.stdin.wait_closed()
    await process.stdin.wait_closed()
    assert await process.stdout.read() == b"hello"
    await process.wait()


async def test_many_wait_until_it_is_closed(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE)
    waits = [asyncio.create_task(process.stdin.wait_closed()) for _ in range(3)]
    await asyncio.sleep(0)
    waits[0].cancel()
    process.stdin.close()
    await asyncio.gather(*waits[1:])
    with pytest.raises(asyncio.CancelledError):
        await waits[0]
    await process.wait()


async def test_writing_by_other_names(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    process.stdin.writelines([b"one ", bytearray(b"two "), memoryview(b"three ")])
    process.stdin.write(b"")
    process.stdin.write(memoryview(b"-four-")[1:-1])
    assert process.stdin.can_write_eof()
    process.stdin.write_eof()
    assert await process.stdout.read() == b"one two three four"
    await process.wait()


async def test_writes_after_the_end_are_dropped(
    api: Any, caplog: pytest.LogCaptureFixture
) -> None:
    not_on_proactor(api, "has a text for sockets, after one more write")
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    process.stdin.close()
    with caplog.at_level(logging.WARNING):
        for i in range(8):
            process.stdin.write(b"x")
            process.stdin.write(b"")
            assert len(caplog.records) == max(0, i - 4)
    for record in caplog.records:
        assert record.name == "asyncio"
        assert record.getMessage() == (
            "pipe closed by peer or os.write(pipe, data) raised exception."
        )
    assert await process.stdout.read() == b""
    await process.wait()


async def test_what_was_written_does_not_change(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    data = random.Random(2).randbytes(MEGABYTE)
    changing = bytearray(data)
    process.stdin.write(changing)
    changing[:] = bytes(len(data))
    other = bytearray(data)
    process.stdin.write(memoryview(other))
    other[:] = bytes(len(data))
    changing.append(0)  # nothing holds on to it
    process.stdin.close()
    assert await process.stdout.read() == data + data
    await process.wait()


async def test_what_cannot_be_written(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE)
    for wrong in "text", 5, None:
        with pytest.raises(TypeError):
            process.stdin.write(wrong)
    with pytest.raises(NotImplementedError):
        await process.stdin.start_tls(None)
    process.stdin.close()
    assert await process.wait() == 0


async def test_extra_info(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE)
    stdin = process.stdin
    if not api.is_oracle:  # whose pipes know nothing of the process
        assert stdin.get_extra_info("subprocess").pid == process.pid
    assert stdin.get_extra_info("pipe").fileno() >= 0
    assert stdin.get_extra_info("peername") is None
    assert stdin.get_extra_info("peername", "nobody") == "nobody"
    assert stdin.transport.get_write_buffer_size() == 0
    stdin.close()
    await process.wait()


async def test_megabytes_in_small_writes(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)

    async def write() -> None:
        for i in range(20_000):
            process.stdin.write(b"%099d\n" % i)
            await process.stdin.drain()
        process.stdin.close()

    writing = asyncio.create_task(write())
    stdout = await process.stdout.read()
    assert stdout == b"".join(b"%099d\n" % i for i in range(20_000))
    await writing
    await process.wait()
