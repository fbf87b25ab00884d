"""StreamReader and StreamWriter for a child's pipes.

They are instances of asyncio's classes so that ``isinstance`` holds, and nothing
else of those is used: every public method is defined here, since the private
attributes below them change from one Python to the next. tests/test_streams.py fails
when a new public method is not overridden.
"""

from __future__ import annotations

import asyncio
import collections
import io
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from ._transport import NOTHING, ReadPipeTransport, WritePipeTransport, check_loop

#: Where a pipe pauses while nobody waits for more, in bytes, with limit=None. What
#: asyncio's default limit of 64 KiB makes of it.
PAUSE_AT = 128 * 1024


class _Buffer(bytearray):
    """A copy of what a reader holds. What is taken out of it is taken out of the reader."""

    reader: StreamReader

    def clear(self) -> None:
        super().clear()
        self.reader._buffer = b""

    def __delitem__(self, index: Any) -> None:
        super().__delitem__(index)
        self.reader._buffer = self


class StreamReader(asyncio.StreamReader):
    """A child's stdout or stderr.

    With ``limit=None`` a line may have any length: whoever waits for more gets it, as
    long as memory lasts. With a limit (bytes) readline() and readuntil() raise as
    asyncio's do. The pipe is paused while more than twice the limit (128 KiB without
    one) lies here unread.

    One task reads at a time: RuntimeError for a second one.
    """

    # What was read is kept as a row of pieces. The first `_lines` of them are known to
    # end in a newline and to hold no other; behind them come pieces as the pipe gave
    # them, of which the first `_searched` hold no newline. `async for` takes those
    # lines out into `_run`, from which each is given by one popleft(); whoever else
    # reads puts back what is left of them.

    def __init__(
        self, limit: int | None = None, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        if limit is not None and limit <= 0:
            raise ValueError("Limit cannot be <= 0")
        self._limit = limit
        self._pause_at = PAUSE_AT if limit is None else 2 * limit
        self._loop = asyncio.get_running_loop() if loop is None else loop
        self._pieces: collections.deque[bytes] = NOTHING
        self._size = 0
        self._lines = 0
        self._searched = 0
        self._eof = False
        self._waiter: asyncio.Future[None] | None = None
        self._exception: Exception | None = None
        self._run: collections.deque[bytes] = NOTHING
        #: What `_run` held at first, all of which `_size` still counts.
        self._run_size = 0
        self._transport: Any = None
        self._paused = False
        self._sink: io.BytesIO | None = None

    def __repr__(self) -> str:
        info = ["StreamReader"]
        self._end_run()
        if self._size:
            info.append(f"{self._size} bytes")
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

    # -- the feeding side

    def exception(self) -> Exception | None:
        return self._exception

    def set_exception(self, exc: Exception) -> None:
        self._end_run()
        self._exception = exc
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(exc)

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        assert self._transport is None, "Transport already set"
        self._transport = transport

    def feed_eof(self) -> None:
        self._eof = True
        self._wake()

    def at_eof(self) -> bool:
        """True when everything has been read and no more will come."""
        self._end_run()
        return self._eof and not self._size

    def feed_data(self, data: Iterable[Any]) -> None:
        assert not self._eof, "feed_data after feed_eof"
        piece = data if type(data) is bytes else bytes(data)
        if not piece:
            return
        if self._pieces is NOTHING:
            self._pieces = collections.deque()
        self._pieces.append(piece)
        self._size += len(piece)
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
        if self._size > self._pause_at and not self._paused and self._transport is not None:
            try:
                self._transport.pause_reading()
            except NotImplementedError:
                self._transport = None  # cannot be paused; do not ask again
            else:
                self._paused = True

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _resume(self) -> None:
        if self._paused:
            self._transport.resume_reading()
            self._paused = False

    def _maybe_resume(self) -> None:
        if self._paused and self._size <= self._pause_at // 2:
            self._resume()

    async def _more(self, caller: str) -> None:
        """Waits for data or the end."""
        if self._waiter is not None or self._sink is not None:
            raise RuntimeError(
                f"{caller}() called while another coroutine is already waiting for incoming data"
            )
        assert not self._eof, "waiting after the end"
        check_loop(self._loop)
        if self._paused:
            # Whoever waits wants more than there is, however much that may be.
            self._resume()
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            if self._waiter is waiter:
                self._waiter = None

    def _check(self) -> None:
        if self._exception is not None:
            raise self._exception

    def _begin(self) -> None:
        """What every reading method begins with."""
        if self._run is not NOTHING:
            self._end_run()
        if self._exception is not None:
            raise self._exception

    # -- the pieces

    def _take(self, n: int) -> bytes:
        """The first n bytes, out of the pieces; 0 < n <= size."""
        pieces = self._pieces
        head = pieces[0]
        if len(head) == n:
            self._drop_head()
            data = head
        elif len(head) > n:
            data = head[:n]
            pieces[0] = head[n:]
        else:
            taken = []
            missing = n
            while missing:
                head = pieces[0]
                if len(head) > missing:
                    taken.append(head[:missing])
                    pieces[0] = head[missing:]
                    break
                self._drop_head()
                taken.append(head)
                missing -= len(head)
            data = b"".join(taken)
        self._size -= n
        self._maybe_resume()
        return data

    def _drop_head(self) -> None:
        self._pieces.popleft()
        if self._lines:
            self._lines -= 1
        elif self._searched:
            self._searched -= 1

    def _take_all(self) -> bytes:
        return self._take(self._size) if self._size else b""

    def _cut_lines(self) -> bool:
        """Makes lines of what has come since the last look. True if there is one."""
        pieces = self._pieces
        for i in range(self._searched, len(pieces)):
            at = pieces[i].find(b"\n")
            if at >= 0:
                if i == 0 and at == len(pieces[0]) - 1:
                    self._lines = 1  # a line as it came
                    return True
                break
        else:
            self._searched = len(pieces)
            return False
        # There are no lines at the head now, or nobody would have asked.
        lines = io.BytesIO(b"".join(pieces)).readlines()
        self._searched = 0 if lines[-1].endswith(b"\n") else 1
        self._lines = len(lines) - self._searched
        self._pieces = collections.deque(lines)
        return True

    def _begin_run(self) -> None:
        """Takes the lines at the head out for __anext__, if none is longer than the
        limit."""
        run, rest = self._pieces, collections.deque[bytes]()
        while len(run) > self._lines:
            rest.appendleft(run.pop())
        if self._limit is not None and max(map(len, run)) - 1 > self._limit:
            run.extend(rest)
            return
        self._run, self._run_size = run, self._size - sum(map(len, rest))
        self._pieces = rest
        self._lines = 0

    def _end_run(self) -> None:
        """Accounts for what __anext__ has given, and puts back what it has not."""
        run, self._run = self._run, NOTHING
        if run is not NOTHING:
            self._size += sum(map(len, run)) - self._run_size
            self._lines = len(run)
            self._pieces.extendleft(reversed(run))
            self._maybe_resume()

    # -- the reading side

    async def readline(self) -> bytes:
        """A line with its newline; at the end of the output what is left, or b"".

        With a limit: ValueError for a line that is longer, which is dropped (asyncio's
        rule).
        """
        self._begin()
        limit = self._limit
        while not self._lines and not self._cut_lines():
            if limit is not None and self._size > limit:
                self._take_all()
                raise ValueError("Separator is not found, and chunk exceed the limit")
            if self._eof:
                return self._take_all()
            await self._more("readline")
            if self._exception is not None:
                raise self._exception
        self._lines -= 1
        line = self._pieces.popleft()
        self._size -= len(line)
        if self._paused:
            self._maybe_resume()
        if limit is not None and len(line) - 1 > limit:
            raise ValueError("Separator is found, but chunk is longer than limit")
        return line

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        """What comes up to the separator (bytes, or a tuple of them: the nearest end
        wins), and the separator.

        asyncio.IncompleteReadError, with everything that was left, if the output ends
        first. With a limit: asyncio.LimitOverrunError when more than that comes before
        the separator; the data stay and can be read.
        """
        separators = sorted(separator, key=len) if isinstance(separator, tuple) else [separator]
        if not separators:
            raise ValueError("Separator should contain at least one element")
        shortest, longest = len(separators[0]), len(separators[-1])
        if not shortest:
            raise ValueError("Separator should be at least one-byte string")
        self._begin()

        offset = 0  # no separator begins before
        while True:
            size = self._size
            if size - offset >= shortest:
                text = self._from(offset)
                found = [
                    (start + len(item), start)
                    for item, start in ((item, text.find(item)) for item in separators)
                    if start >= 0
                ]
                if found:
                    end, start = min(found, key=lambda pair: pair[0])
                    break
                offset = max(0, size + 1 - longest)
                if self._limit is not None and offset > self._limit:
                    raise asyncio.LimitOverrunError(
                        "Separator is not found, and chunk exceed the limit", offset
                    )
            if self._eof:
                raise asyncio.IncompleteReadError(self._take_all(), None)
            await self._more("readuntil")
            self._check()

        if self._limit is not None and offset + start > self._limit:
            raise asyncio.LimitOverrunError(
                "Separator is found, but chunk is longer than limit", offset + start
            )
        return self._take(offset + end)

    def _from(self, offset: int) -> bytes:
        """Everything from an offset on; from the back, since little is new."""
        missing = self._size - offset
        parts: list[bytes] = []
        for piece in reversed(self._pieces):
            if len(piece) >= missing:
                parts.append(piece[len(piece) - missing :] if missing else b"")
                break
            parts.append(piece)
            missing -= len(piece)
        parts.reverse()
        return b"".join(parts)

    async def read(self, n: int = -1) -> bytes:
        """Up to n bytes, as soon as there are any; everything up to the end with n < 0;
        b"" at the end."""
        self._begin()
        if n == 0:
            return b""
        if n < 0:
            while not self._eof:
                await self._more("read")
                self._check()
            return self._take_all()
        while not self._size:
            if self._eof:
                return b""
            await self._more("read")
        return self._take(min(n, self._size))

    async def readexactly(self, n: int) -> bytes:
        """n bytes; asyncio.IncompleteReadError, with those that came, if the output
        ends first."""
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        self._begin()
        while self._size < n:
            if self._eof:
                raise asyncio.IncompleteReadError(self._take_all(), n)
            await self._more("readexactly")
            self._check()
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
        will_cut = not self._lines
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        if will_cut and self._lines:
            self._begin_run()
        return line

    # -- asyncio's bytearray, which code in the wild decodes and clears

    @property
    def _buffer(self) -> _Buffer:
        self._end_run()
        buffer = _Buffer(b"".join(self._pieces))
        buffer.reader = self
        return buffer

    @_buffer.setter
    def _buffer(self, data: Any) -> None:
        self._run = NOTHING
        self._pieces = collections.deque([bytes(data)] if data else [])
        self._size = len(data)
        self._lines = self._searched = 0
        self._maybe_resume()

    # -- for Process.communicate

    def start_collecting(self) -> None:
        """Everything to come goes into one growing buffer."""
        if self._waiter is not None or self._sink is not None:
            raise RuntimeError(
                "communicate() called while another coroutine is already waiting for incoming data"
            )
        self._end_run()
        # BytesIO shares the bytes it is given until it is written to.
        self._sink = io.BytesIO()
        if self._size:
            self._sink.write(self._take_all())
        if not self._eof:
            if isinstance(self._transport, ReadPipeTransport):
                self._transport.collect(self._sink)
            self._resume()

    def stop_collecting(self, keep: bool) -> bytes:
        """What was collected; with `keep` it goes back to where it can be read."""
        sink, self._sink = self._sink, None
        assert sink is not None
        if isinstance(self._transport, ReadPipeTransport):
            self._transport.collect(None)
        data = sink.getvalue()
        if keep and data:
            late = self._take_all()
            eof, self._eof = self._eof, False
            self.feed_data(data + late if late else data)
            self._eof = eof
            return b""
        if self._size:
            # Came by feed_data, from a transport that is not ours.
            data += self._take_all()
        return data


class Flow:
    """What a StreamWriter waits for: room in the pipe, and its end.

    Apart from the protocol, which holds the writer: a cycle of these for each child
    would be left to the garbage collector. The names that begin with an underscore are
    those of asyncio's protocols, which code in the wild reads.
    """

    __slots__ = ("_close_waiters", "_drain_waiters", "_loop", "_paused", "error", "is_open")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._paused = False
        self._drain_waiters: list[asyncio.Future[None]] = []
        self._close_waiters: list[asyncio.Future[None]] = []
        self.is_open = True
        #: What broke the pipe; None after a quiet end.
        self.error: Exception | None = None

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        for waiter in self._drain_waiters:
            if not waiter.done():
                waiter.set_result(None)

    def end(self, exc: Exception | None) -> None:
        self.is_open = False
        self.error = exc
        for waiter in (*self._drain_waiters, *self._close_waiters):
            if not waiter.done():
                if exc is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(exc)

    async def _drain_helper(self) -> None:
        if not self.is_open:
            raise ConnectionResetError("Connection lost")
        if self._paused:
            await self._wait_among(self._drain_waiters)

    async def _get_close_waiter(self, stream: asyncio.StreamWriter) -> None:
        if self.is_open:
            await self._wait_among(self._close_waiters)
        elif self.error is not None:
            raise self.error

    async def _wait_among(self, waiters: list[asyncio.Future[None]]) -> None:
        check_loop(self._loop)
        waiter = self._loop.create_future()
        waiters.append(waiter)
        try:
            await waiter
        finally:
            waiters.remove(waiter)


class StreamWriter(asyncio.StreamWriter):
    """A child's stdin."""

    def __init__(
        self,
        transport: WritePipeTransport,
        protocol: Flow,
        reader: asyncio.StreamReader | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._transport = transport
        self._protocol = protocol
        self._reader = reader
        self._loop = loop

    def __repr__(self) -> str:
        return f"<StreamWriter transport={self._transport!r}>"

    @property
    def transport(self) -> WritePipeTransport:
        return self._transport

    def write(self, data: Any) -> None:
        """Writes or buffers. Data for a pipe that is closed are dropped, as asyncio
        does; drain() tells."""
        self._transport.write(data)

    def writelines(self, data: Iterable[Any]) -> None:
        self._transport.writelines(data)

    def write_eof(self) -> None:
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def close(self) -> None:
        """Closes the pipe once what was written has gone out."""
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    async def wait_closed(self) -> None:
        """Returns when the pipe is closed; raises what broke it."""
        await self._protocol._get_close_waiter(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    async def drain(self) -> None:
        """Returns when it is time to write more. ConnectionResetError or
        BrokenPipeError when the pipe is closed."""
        if self._transport._closing:
            # Lets the news of a closed pipe arrive, or a loop of write() and drain()
            # would never learn of it.
            await asyncio.sleep(0)
        flow = self._protocol
        if flow._paused or not flow.is_open:
            await flow._drain_helper()

    async def start_tls(self, *args: Any, **kwargs: Any) -> None:
        """Pipes have no TLS: always NotImplementedError."""
        raise NotImplementedError("a child's stdin is a pipe, which cannot be upgraded to TLS")

    def __del__(self, _warnings: Callable[..., Any] = warnings.warn) -> None:
        # The process's transport owns the pipe, and warns if nobody closed it.
        pass
