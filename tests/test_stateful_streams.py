"""Streams and processes, by sequences of calls that hypothesis makes up: readers against
asyncio's, which are fed the same; a child's streams against asyncio's and against what must be
in them. What fails is shortened to the fewest steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="needs hypothesis")

import hypothesis.strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

import aioproc as aioproc_package
from marks import posix_only
from programs import TEE
from stateful import Machine, explore, outcome

Loop = asyncio.AbstractEventLoop

# -- readers


class Transport(asyncio.ReadTransport):
    """What a reader pauses and resumes."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


texts = st.text(alphabet="ab\n;", max_size=12).map(str.encode)
separators = st.sampled_from([b"\n", b";", b"a\n", b"ab;", b"\n\n"])
reads = st.one_of(
    st.tuples(st.just("read"), st.sampled_from([-1, 0, 1, 2, 5, 50])),
    st.tuples(st.just("readline")),
    st.tuples(st.just("readuntil"), separators),
    st.tuples(st.just("readexactly"), st.sampled_from([0, 1, 3, 7, 40])),
    st.tuples(st.just("__anext__")),
)


class Readers(Machine):
    """aioproc's StreamReader and asyncio's."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.waiting: list[asyncio.Future[Any]] = []
        self.call: tuple[Any, ...] = ()
        self.ended = self.broken = False

    @initialize(limit=st.sampled_from([1, 2, 3, 5, 8, 20, 100, None]))
    def make(self, limit: int | None) -> None:
        # asyncio's have a limit always.
        self.both: list[asyncio.StreamReader] = [
            aioproc_package.StreamReader(limit=limit, loop=self.loop),
            asyncio.StreamReader(limit=limit or 10**9, loop=self.loop),
        ]
        for reader in self.both:
            reader.set_transport(Transport())

    @precondition(lambda self: not self.ended)
    @rule(data=texts)
    def feed(self, data: bytes) -> None:
        for reader in self.both:
            reader.feed_data(data)
        self.compare()

    @precondition(lambda self: not self.ended)
    @rule()
    def end(self) -> None:
        self.ended = True
        for reader in self.both:
            reader.feed_eof()
        self.compare()

    @precondition(lambda self: not self.ended and not self._collects())
    @rule()
    def fail(self) -> None:
        self.broken = True
        for reader in self.both:
            reader.set_exception(OSError("broken"))
        self.compare()

    @precondition(lambda self: not self.waiting)
    @rule(call=reads)
    def read(self, call: tuple[Any, ...]) -> None:
        self.call = call

        async def reading(reader: Any) -> Any:
            try:
                return await getattr(reader, call[0])(*call[1:])
            except StopAsyncIteration:
                return "the end"

        self.waiting = [self.loop.create_task(reading(reader)) for reader in self.both]
        self.compare()

    @precondition(lambda self: self.waiting and not self._collects())
    @rule()
    def cancel(self) -> None:
        # asyncio's read(-1) loses then what it has taken.
        for task in self.waiting:
            task.cancel()
        self.compare()

    def _collects(self) -> bool:
        return bool(self.waiting) and self.call == ("read", -1)

    def compare(self) -> None:
        self.turns()
        if self.waiting:
            ours, theirs = map(outcome, self.waiting)
            assert ours == theirs
            if ours[0] != "waits":
                self.waiting = []

    @invariant()
    def are_the_same(self) -> None:
        if self._collects() or not hasattr(self, "both"):
            return
        ours, theirs = self.both
        assert ours.at_eof() == theirs.at_eof()
        assert bytes(ours._buffer) == bytes(theirs._buffer)
        assert repr(ours.exception()) == repr(theirs.exception())

    def teardown(self) -> None:
        for task in self.waiting:
            task.cancel()
        self.turns()
        for task in self.waiting:
            outcome(task)


@pytest.mark.primary
@pytest.mark.parametrize("examples", [60, pytest.param(5000, marks=pytest.mark.heavy)])
def test_readers(new_loop: Callable[[], Loop], examples: int) -> None:
    explore(Readers, new_loop, examples)


# -- processes

#: Bytes that are written and not read yet: no pipe is full by them, so that nothing waits.
ROOM = 40_000
LOST = 255


class Child:
    """A child that copies what it is given to stdout and stderr."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.streams = {1: process.stdout, 2: process.stderr}
        self.read = {1: b"", 2: b""}


class Processes(Machine):
    """The same done to a child of ours and to one of asyncio's. What they give back is what
    was written, wherever a call was cancelled in between."""

    def __init__(self, aioproc: Any, loop: Loop) -> None:
        super().__init__(loop)
        self.aioproc = aioproc
        self.written = b""
        self.closed = self.killed = False
        self.children: list[Child] = []

    @initialize(limit=st.sampled_from([10, 1000, 65536]))
    def start(self, limit: int) -> None:
        async def start() -> None:
            for api in (self.aioproc, asyncio):
                pipe = asyncio.subprocess.PIPE
                process = await api.create_subprocess_exec(
                    *TEE, stdin=pipe, stdout=pipe, stderr=pipe, limit=limit
                )
                self.children.append(Child(process))

        self.do(start())

    def left(self, fd: int) -> int:
        """How much is still to be read."""
        return len(self.written) - min(len(child.read[fd]) for child in self.children)

    @property
    def room(self) -> int:
        return ROOM - max(self.left(1), self.left(2))

    @precondition(lambda self: not self.closed)
    @rule(
        pieces=st.lists(st.sampled_from([b"a", b"line\n", b"\n", b"x" * 3000 + b"\n"]), max_size=4)
    )
    def write(self, pieces: list[bytes]) -> None:
        data = b"".join(pieces)[: max(0, self.room)]
        self.written += data

        async def write() -> None:
            for child in self.children:
                child.process.stdin.write(data)
                with contextlib.suppress(ConnectionError):
                    await child.process.stdin.drain()

        self.do(write())

    @rule(fd=st.sampled_from([1, 2]), part=st.sampled_from([0.1, 0.5, 1.0]))
    def read_exactly(self, fd: int, part: float) -> None:
        if self.killed:
            return

        async def read() -> None:
            for child in self.children:
                count = int((len(self.written) - len(child.read[fd])) * part)
                child.read[fd] += await child.streams[fd].readexactly(count)

        self.do(read())
        self.check()

    @rule(fd=st.sampled_from([1, 2]))
    def read_line(self, fd: int) -> None:
        # Ours may have been read to the end by a communicate().
        ours, theirs = (len(child.read[fd]) for child in self.children)
        if self.killed or ours != theirs or b"\n" not in self.written[ours:]:
            return

        async def read() -> list[Any]:
            tasks = [
                asyncio.ensure_future(child.streams[fd].readuntil(b"\n"))
                for child in self.children
            ]
            await asyncio.wait(tasks)
            return [outcome(task) for task in tasks]

        outcomes = self.do(read())
        # How much had come when a limit was passed is a matter of time.
        assert outcomes[0][:2] == outcomes[1][:2]
        if outcomes[0][0] == "returned":
            for child in self.children:
                child.read[fd] += outcomes[0][1]
        self.check()

    @rule(fd=st.sampled_from([1, 2]))
    def read_in_vain(self, fd: int) -> None:
        """More than there is, and is cancelled: nothing is lost by that."""
        if self.killed or self.closed:
            return

        async def read() -> None:
            for child in self.children:
                more = len(self.written) - len(child.read[fd]) + 1
                task = asyncio.ensure_future(child.streams[fd].readexactly(more))
                await asyncio.sleep(0.001)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()

        self.do(read())

    @rule(fd=st.sampled_from([1, 2]))
    def pause_and_resume(self, fd: int) -> None:
        async def pause() -> None:
            for child in self.children:
                pipe = child.process._transport.get_pipe_transport(fd)
                if pipe.is_reading():
                    pipe.pause_reading()
                    await asyncio.sleep(0.001)
                    pipe.resume_reading()

        self.do(pause())

    @precondition(lambda self: not self.closed)
    @rule()
    def close(self) -> None:
        self.closed = True
        for child in self.children:
            child.process.stdin.close()
        self.turns()

    @rule(turns=st.sampled_from([0, 1, 3, 20]))
    def communicate_in_vain(self, turns: int) -> None:
        """Cancelled; of ours alone, since asyncio's loses what it has read."""
        own = self.children[0]
        if not self.closed:
            self.close()

        async def communicate() -> None:
            task = asyncio.ensure_future(own.process.communicate())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                for fd, data in zip((1, 2), task.result(), strict=True):
                    own.read[fd] += data

        self.do(communicate())
        self.check()

    @rule()
    def kill(self) -> None:
        self.killed = self.closed = True
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()

    def check(self) -> None:
        for child in self.children:
            for fd in (1, 2):
                assert self.written.startswith(child.read[fd])

    def teardown(self) -> None:
        async def finish(child: Child) -> None:
            for fd, data in zip((1, 2), await child.process.communicate(), strict=True):
                child.read[fd] += data
                assert child.streams[fd].at_eof()
            # asyncio's loses the status when kill() comes in the moment of the exit.
            assert child.process.returncode in ({0, -9, LOST} if self.killed else {0})
            assert child is not self.children[0] or child.process.returncode != LOST

        if not self.closed:
            self.close()  # asyncio's communicate() does it for input alone, before 3.12
        for child in self.children:
            self.do(finish(child))
            child.process._transport.close()
        self.check()
        if not self.killed:
            for child in self.children:
                assert child.read == {1: self.written, 2: self.written}


@posix_only("asyncio's Proactor loop has other transports")
@pytest.mark.parametrize("examples", [12, pytest.param(1000, marks=pytest.mark.heavy)])
def test_processes(aioproc: Any, any_loop: Callable[[], Loop], examples: int) -> None:
    explore(partial(Processes, aioproc), any_loop, examples, 15)
