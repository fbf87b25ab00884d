"""StreamReader and StreamWriter (writer.py) for a child's pipes.

They are instances of asyncio's classes so that ``isinstance`` holds, and nothing
else of those is used: every public method is defined here, since the private
attributes below them change from one Python to the next. tests/test_streams.py fails
when a new public method is not overridden.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Iterable, Sequence
from typing import Any

from .._sink import Sink
from .buffer import ReadBuffer, Search
from .pipes import NOTHING, ReadPipeTransport
from .transport import check_loop

#: Where a pipe pauses while nobody waits for more, in bytes, with limit=None. What
#: asyncio's default limit of 64 KiB makes of it.
PAUSE_AT = 128 * 1024


class Deadline:
    """When who waits for a reader gives up, by the loop's clock; without a loss."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, what: str) -> None:
        self._loop = loop
        self._end = loop.time() + seconds
        self._text = f"{what} has not come within {seconds:g} seconds"
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    def start(self, reader: StreamReader) -> None:
        if self._is_over:
            raise self._error(reader)
        # There is one more wait, which gives what is in the pipe.
        self._is_over = self._loop.time() >= self._end
        self._timer = self._loop.call_at(self._end, self._is_up, reader)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_up(self, reader: StreamReader) -> None:
        # The loop may have been busy till now: what has come in time is looked for first.
        if reader._waiter is not None and isinstance(reader._transport, ReadPipeTransport):
            reader._transport.read_now()
        reader._fail_waiter(self._error(reader))

    def _error(self, reader: StreamReader) -> asyncio.TimeoutError:
        held = reader._exact_size()
        other = f"; {held} bytes of other output have" if held else ""
        return asyncio.TimeoutError(self._text + other)


class _Buffer(bytearray):
    """A copy of what a reader holds. What is taken out of it is taken out of the reader."""

    reader: StreamReader

    def clear(self) -> None:
        super().clear()
        self.reader._buffer = b""

    def __delitem__(self, index: Any) -> None:
        super().__delitem__(index)
        self.reader._buffer = self


class StreamReader(ReadBuffer, asyncio.StreamReader):
    """A child's stdout or stderr: an :class:`asyncio.StreamReader`.

    Without a limit a line may have any length. With one, in bytes, readline() and readuntil()
    raise as asyncio's do. Reading from the pipe pauses while more than twice the limit
    (128 KiB without one) lies here unread, so that the child has to wait.

    It is an asynchronous iterator of lines. One task reads at a time: a second one that would
    have to wait gets a RuntimeError.

    A MemoryError from a method that reads takes nothing out: the pipe is paused, and what is
    here can be read in smaller parts, or later.

    Source:
        "Streams" in asyncio's documentation.
    """

    def __init__(
        self, limit: int | None = None, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        if limit is not None and limit <= 0:
            raise ValueError("Limit cannot be <= 0")
        self._limit = limit
        self._pause_at = PAUSE_AT if limit is None else 2 * limit
        self._loop = asyncio.get_running_loop() if loop is None else loop
        ReadBuffer.__init__(self)
        self._eof = False
        self._waiter: asyncio.Future[None] | None = None
        self._exception: Exception | None = None
        self._transport: Any = None
        self._paused = False
        self._sink: Sink | None = None

    def __repr__(self) -> str:
        info = ["StreamReader"]
        size = self._exact_size()
        if size:
            info.append(f"{size} bytes")
        if self._eof:
            info.append("eof")
        if self._limit is not None:
            info.append(f"limit={self._limit}")
        if self._waiter is not None:
            info.append(f"waiter={self._waiter!r}")
        if self._exception is not None:
            info.append(f"exception={self._exception!r}")
        if self._transport is not None:
            info.append(f"transport={self._transport!r}")
        if self._paused:
            info.append("paused")
        return f"<{' '.join(info)}>"

    @property
    def _source(self) -> StreamReader:
        return self

    # -- the feeding side

    def exception(self) -> Exception | None:
        return self._exception

    def set_exception(self, exc: Exception) -> None:
        self._end_run()
        self._exception = exc
        self._fail_waiter(exc)

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        assert self._transport is None, "Transport already set"
        self._transport = transport

    def feed_eof(self) -> None:
        self._eof = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def at_eof(self) -> bool:
        """Return True when everything has been read and no more will come."""
        # What is in `_run` need not be counted for that, again and again.
        return self._eof and not self._run and not self._exact_size()

    def feed_data(self, data: Iterable[Any]) -> None:
        assert not self._eof, "feed_data after feed_eof"
        piece = data if type(data) is bytes else bytes(data)
        if not piece:
            return
        if self._sink is not None:
            self._sink.add(piece)
            return
        if self._pieces is NOTHING:
            self._pieces = collections.deque()
        self._pieces.append(piece)
        size = len(piece)
        self._size += size
        self._fed += size
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
        if self._size > self._pause_at and not self._paused:
            self._pause()

    def _out_of_memory(self, exc: MemoryError) -> None:
        """The transport's read has failed, and has taken nothing out of the pipe. It is
        tried again when somebody waits for more."""
        self._pause()  # or it would fail again in every round of the loop
        self._fail_waiter(exc)

    def _fail_waiter(self, exc: Exception) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(exc)

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            try:
                self._transport.pause_reading()
            except NotImplementedError:
                self._transport = None  # cannot be paused; do not ask again
            else:
                self._paused = True

    def _resume(self) -> None:
        if self._paused:
            self._transport.resume_reading()
            self._paused = False

    def _maybe_resume(self) -> None:
        if self._paused and self._size <= self._pause_at // 2:
            try:
                self._resume()
            except (OSError, MemoryError):
                # What has been taken must not get lost with this. Whoever waits for more
                # tries again, and is told.
                pass

    def _expect(self, caller: str) -> None:
        """What comes is read, for who is about to wait for it.

        RuntimeError: somebody else does.
        """
        if self._waiter is not None or self._sink is not None:
            raise RuntimeError(
                f"{caller}() called while another coroutine is already waiting for incoming data"
            )
        assert not self._eof, "waiting after the end"
        check_loop(self._loop)
        if self._paused:
            # Whoever waits wants more than there is, however much that may be.
            self._resume()
        if isinstance(self._transport, ReadPipeTransport):
            self._transport.watch()

    async def _more(self, caller: str, deadline: Deadline | None = None) -> None:
        """Waits for data or the end. Others may have read meanwhile, so that all one
        knows is what one knows after _begin()."""
        self._expect(caller)
        waiter = self._waiter = self._loop.create_future()
        try:
            if deadline is not None:
                deadline.start(self)
            await waiter
        finally:
            if self._waiter is waiter:
                self._waiter = None
            if deadline is not None:
                deadline.stop()
            del waiter  # which would hold its error, and that our frame
        self._begin()

    def _keep_up_to(self, size: int) -> None:
        """So much of what nobody reads is kept, in bytes, before the pipe is paused and the
        child has to wait."""
        self._pause_at = max(self._pause_at, size)
        if self._paused and self._size <= self._pause_at // 2:
            self._resume()
        if not self._eof and isinstance(self._transport, ReadPipeTransport):
            self._transport.watch()

    def _check(self) -> None:
        if self._exception is not None:
            raise self._exception

    def _begin(self) -> None:
        """What every reading method begins with."""
        if self._run is not NOTHING:
            self._end_run()
        if self._exception is not None:
            raise self._exception

    # -- the reading side

    async def readline(self) -> bytes:
        """Read a line.

        Returns:
            The line with its newline. At the end of the output what is left, or ``b""``.

        Raises:
            ValueError: With a limit: the line is longer. It is dropped, as asyncio does it.
            RuntimeError: Another task is reading.
        """
        self._begin()
        while True:
            line = self._line_now()
            if line is not None:
                return line
            await self._more("readline")

    def _line_now(self) -> bytes | None:
        """As readline, of what is here; None: the line's end has not come."""
        limit = self._limit
        if self._cut:
            line = self._cut.popleft()
            self._size -= len(line)
        else:
            cut = self._cut_lines()
            if cut is None:
                if limit is not None and self._size > limit:
                    self._replace(())
                    self._maybe_resume()
                    raise ValueError("Separator is not found, and chunk exceed the limit")
                return self._take_all() if self._eof else None
            line = cut
        if self._paused:
            self._maybe_resume()
        if limit is not None and len(line) - 1 > limit:
            raise ValueError("Separator is found, but chunk is longer than limit")
        return line

    def _chunk_now(self) -> bytes:
        """What came at once, of what is here; b"": nothing is."""
        if self._cut:
            return self._take(len(self._cut[0]))
        if self._pieces:
            return self._take(len(self._pieces[0]) - self._taken)
        return b""

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        """Read up to a separator.

        Args:
            separator: Bytes, or a tuple of them; of several the match that ends first counts.

        Returns:
            The data, with the separator at its end.

        Raises:
            asyncio.IncompleteReadError: The output has ended before. Its ``partial`` has
                everything that was left.
            asyncio.LimitOverrunError: With a limit: more than that has come before the
                separator. The data stay and can be read.
            ValueError: An empty separator.
            RuntimeError: Another task is reading.
        """
        separators = sorted(separator, key=len) if isinstance(separator, tuple) else [separator]
        if not separators:
            raise ValueError("Separator should contain at least one element")
        if not len(separators[0]):
            raise ValueError("Separator should be at least one-byte string")
        return await self._until(separators, self._limit, "readuntil")

    async def _until(
        self,
        separators: Sequence[Any],
        limit: int | None,
        caller: str,
        deadline: Deadline | None = None,
    ) -> bytes:
        """separators: from the shortest to the longest."""
        shortest, longest = len(separators[0]), len(separators[-1])
        self._begin()

        at = -1
        while True:
            if self._fed - self._size != at:
                # At first, and when another task has read.
                at = self._fed - self._size
                search = Search(separators, longest)
                offset = 0  # no separator begins before
            size = self._size
            if size - offset >= shortest:
                found = self._go_on(search)
                if found is not None:
                    break
                offset = max(0, size + 1 - longest)
                if limit is not None and offset > limit:
                    raise asyncio.LimitOverrunError(
                        "Separator is not found, and chunk exceed the limit", offset
                    )
            if self._eof:
                raise asyncio.IncompleteReadError(self._take_all(), None)
            await self._more(caller, deadline)

        start, end = found
        if limit is not None and start > limit:
            raise asyncio.LimitOverrunError(
                "Separator is found, but chunk is longer than limit", start
            )
        return self._take(end)

    async def read(self, n: int = -1) -> bytes:
        """Read up to n bytes, as soon as there are any.

        Args:
            n: How many bytes at most. With -1 everything up to the end of the output.

        Returns:
            The bytes; ``b""`` at the end.

        Raises:
            RuntimeError: Another task is reading.
        """
        self._begin()
        if n == 0:
            return b""
        if n < 0:
            while not self._eof:
                await self._more("read")
            return self._take_all()
        while not self._size:
            if self._eof:
                return b""
            await self._more("read")
        return self._take(min(n, self._size))

    async def readexactly(self, n: int) -> bytes:
        """Read exactly n bytes.

        Args:
            n: How many bytes.

        Returns:
            The bytes.

        Raises:
            asyncio.IncompleteReadError: The output has ended before. Its ``partial`` has the
                bytes that came.
            ValueError: n is negative.
            RuntimeError: Another task is reading.
        """
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        self._begin()
        while self._size < n:
            if self._eof:
                raise asyncio.IncompleteReadError(self._take_all(), n)
            await self._more("readexactly")
        return self._take(n) if n else b""

    def __aiter__(self) -> StreamReader:
        return self

    async def __anext__(self) -> bytes:
        run = self._run
        if run:
            # A million lines are a million of these.
            return run.popleft()
        return await self._next_line()

    async def _next_line(self) -> bytes:
        self._end_run()
        will_cut = not self._cut
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        if will_cut and self._cut:
            self._begin_run()
        return line

    def _put_back(self, data: bytes) -> None:
        """It comes first again."""
        self._buffer = data + self._buffer

    def _unread(self) -> bytes:
        """All that is here, which stays."""
        self._end_run()
        return self._all()

    # -- asyncio's bytearray, which code in the wild decodes and clears

    @property
    def _buffer(self) -> _Buffer:
        self._end_run()
        buffer = _Buffer(self._all())
        buffer.reader = self
        return buffer

    @_buffer.setter
    def _buffer(self, data: Any) -> None:
        piece = bytes(data)
        self._end_run()
        # One byte more than there is, since it is another stream from now on.
        self._fed += len(piece) - self._size + 1
        self._replace([piece] if piece else ())
        self._maybe_resume()

    # -- for Process.communicate

    def _start_collecting(self) -> None:
        """Everything to come is kept for _take_all(), out of the reach of others.

        MemoryError, OSError: it cannot be done, and nothing has changed.
        """
        if self._waiter is not None or self._sink is not None:
            raise RuntimeError(
                "communicate() called while another coroutine is already waiting for incoming data"
            )
        self._end_run()
        if self._taken:
            self._pieces[0] = self._pieces[0][self._taken :]
            self._taken = 0
        self._sink = sink = Sink()
        try:
            if self._size:
                pieces = [*self._cut, *self._pieces]
                self._replace(())
                sink.begin(pieces)
            if not self._eof:
                if isinstance(self._transport, ReadPipeTransport):
                    self._transport.collect(sink)
                self._resume()
        except BaseException:
            self._stop_collecting()
            raise

    def _stop_collecting(self) -> None:
        """What was collected is where it can be read."""
        sink, self._sink = self._sink, None
        assert sink is not None
        if isinstance(self._transport, ReadPipeTransport):
            self._transport.collect(None)
        self._replace(sink.all())
        self._fed += self._size
        if self._size > self._pause_at and not self._eof:
            self._pause()
