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
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ._transport import NOTHING, ReadPipeTransport, Sink, WritePipeTransport

#: Where a pipe pauses while nobody waits for more, in bytes, with limit=None. What
#: asyncio's default limit of 64 KiB makes of it.
PAUSE_AT = 128 * 1024

#: How much is made lines, or searched, at a time, in bytes.
PORTION = 128 * 1024
#: Bytes taken of a piece that are worth a copy of the rest, to have their memory back.
RECLAIM = 1024 * 1024


class _Buffer(bytearray):
    """A copy of what a reader holds. What is taken out of it is taken out of the reader."""

    reader: StreamReader

    def clear(self) -> None:
        super().clear()
        self.reader._buffer = b""

    def __delitem__(self, index: Any) -> None:
        super().__delitem__(index)
        self.reader._buffer = self


class _Search:
    """A search for the separator that ends first, in pieces that come one by one."""

    __slots__ = ("_base", "_overlap", "_separators", "_tail", "pieces")

    def __init__(self, separators: Sequence[Any], longest: int) -> None:
        self._separators = separators
        #: Bytes of a separator that may lie before the piece in which it ends.
        self._overlap = longest - 1
        #: The last of what has been searched, as much as that.
        self._tail = b""
        #: How much has been searched, in bytes.
        self._base = 0
        #: How many of the reader's pieces have been searched; -1 before its lines have.
        self.pieces = -1

    def look(self, piece: bytes, start: int = 0) -> tuple[int, int] | None:
        """Searches the next piece, from `start` on. Where the separator begins and ends,
        counted from where the search began."""
        found = None
        overlap = self._overlap
        if self._tail:
            text = self._tail + piece[start : start + overlap]
            found = self._first(text, 0, len(text), self._base - len(self._tail))
        size = len(piece)
        # In portions: one of several separators that is far away, or nowhere, would have
        # the whole piece searched each time.
        for at in range(start, size, PORTION):
            nearest = self._first(piece, at, at + PORTION + overlap, self._base - start)
            if nearest is not None:
                if found is None or nearest[1] <= found[1]:
                    found = nearest
                break
            if found is not None:
                break
        if found is None:
            self._base += size - start
            if overlap:
                self._tail = (self._tail + piece[max(start, size - overlap) :])[-overlap:]
        return found

    def _first(self, text: bytes, start: int, stop: int, base: int) -> tuple[int, int] | None:
        first = None
        for separator in self._separators:
            at = text.find(separator, start, stop)
            if at >= 0:
                end = at + len(separator)
                first = base + at, base + end
                stop = end - 1  # for the others: only what ends before is nearer
        return first


class StreamReader(asyncio.StreamReader):
    """A child's stdout or stderr.

    With ``limit=None`` a line may have any length: whoever waits for more gets it, as
    long as memory lasts. With a limit (bytes) readline() and readuntil() raise as
    asyncio's do. The pipe is paused while more than twice the limit (128 KiB without
    one) lies here unread.

    One task reads at a time: RuntimeError for a second one that would have to wait.

    MemoryError from a method that reads: nothing has been taken, and the pipe is paused.
    What is here can be read in smaller parts, or later.
    """

    # What was read is kept as a row: first `_cut`, lines that have been cut already, then
    # `_pieces`, as the pipe gave them. `_taken` bytes of the first piece are gone: it is
    # not copied for each part that is taken of it, however long it may be. The first
    # `_searched` pieces hold no newline. `async for` takes the lines out into `_run`, from
    # which each is given by one popleft(); whoever else reads puts back what is left.
    #
    # What needs memory is done before anything is changed.

    def __init__(
        self, limit: int | None = None, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        if limit is not None and limit <= 0:
            raise ValueError("Limit cannot be <= 0")
        self._limit = limit
        self._pause_at = PAUSE_AT if limit is None else 2 * limit
        self._loop = asyncio.get_running_loop() if loop is None else loop
        self._cut: collections.deque[bytes] = NOTHING
        self._pieces: collections.deque[bytes] = NOTHING
        self._taken = 0
        self._searched = 0
        #: Bytes in the row, but see `_run_size`.
        self._size = 0
        #: Bytes that were ever put into the row. Less `_size`: where in the stream we are.
        self._fed = 0
        #: Where in the stream the lines of `_cut` end.
        self._cut_end = 0
        self._eof = False
        self._waiter: asyncio.Future[None] | None = None
        self._exception: Exception | None = None
        self._run: collections.deque[bytes] = NOTHING
        #: What `_run` held at first, all of which `_size` still counts.
        self._run_size = 0
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
        """True when everything has been read and no more will come."""
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

    async def _more(self, caller: str) -> None:
        """Waits for data or the end. Others may have read meanwhile, so that all one
        knows is what one knows after _begin()."""
        if self._waiter is not None or self._sink is not None:
            raise RuntimeError(
                f"{caller}() called while another coroutine is already waiting for incoming data"
            )
        assert not self._eof, "waiting after the end"
        if self._paused:
            # Whoever waits wants more than there is, however much that may be.
            self._resume()
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            if self._waiter is waiter:
                self._waiter = None
        self._begin()

    def _check(self) -> None:
        if self._exception is not None:
            raise self._exception

    def _begin(self) -> None:
        """What every reading method begins with."""
        if self._run is not NOTHING:
            self._end_run()
        if self._exception is not None:
            raise self._exception

    # -- the row

    def _take(self, n: int) -> bytes:
        """The first n bytes, out of the row; 0 < n <= size."""
        pieces = self._pieces
        start = self._taken
        end = start + n
        if self._cut or end > len(pieces[0]):
            data = self._take_parts(n)
        elif end < len(pieces[0]):
            data = pieces[0][start:end]
            self._taken = end
            if end >= RECLAIM:
                self._reclaim()
        else:
            data = pieces[0][start:] if start else pieces[0]
            pieces.popleft()
            self._taken = 0
            if self._searched:
                self._searched -= 1
        self._size -= n
        if self._paused:
            self._maybe_resume()
        return data

    def _take_parts(self, n: int) -> bytes:
        """That, where it is of several parts or of `_cut`; `_size` is left to the caller."""
        cut, pieces = self._cut, self._pieces
        parts: list[bytes | memoryview] = []
        rest = b""
        for line in cut:
            n -= len(line)
            if n <= 0:
                if n:
                    rest = line[n:]
                    line = line[:n]
                parts.append(line)
                break
            parts.append(line)
        lines = len(parts)
        whole = 0
        end = self._taken
        if n > 0:
            for piece in pieces:
                left = len(piece) - end
                if n < left:
                    parts.append(memoryview(piece)[end : end + n])
                    end += n
                    break
                parts.append(memoryview(piece)[end:] if end else piece)
                n -= left
                end = 0
                whole += 1
                if not n:
                    break
        data = b"".join(parts)

        if rest:
            lines -= 1
            cut[lines] = rest
        for _ in range(lines):
            cut.popleft()
        if len(parts) > lines:
            for _ in range(whole):
                pieces.popleft()
            self._searched = max(0, self._searched - whole)
            self._taken = end
            if end >= RECLAIM:
                self._reclaim()
        return data

    def _take_all(self) -> bytes:
        return self._take(self._size) if self._size else b""

    def _all(self) -> bytes:
        """Everything, which stays in the row."""
        parts: list[bytes | memoryview] = [*self._cut, *self._pieces]
        if self._taken:
            parts[len(self._cut)] = memoryview(self._pieces[0])[self._taken :]
        return b"".join(parts)

    def _replace(self, pieces: Sequence[bytes]) -> None:
        """Has others in the row, instead of all that was there."""
        self._cut = NOTHING
        self._taken = self._searched = 0
        if pieces:
            self._pieces = collections.deque(pieces)
            self._size = sum(map(len, pieces))
        else:
            self._pieces = NOTHING
            self._size = 0

    def _reclaim(self) -> None:
        """Frees what has been taken of the first piece once that is more than half of it:
        so a byte is copied once at most, on the average."""
        head = self._pieces[0]
        if self._taken > len(head) // 2:
            try:
                self._pieces[0] = head[self._taken :]
                self._taken = 0
            except MemoryError:
                pass  # all is well without

    def _cut_lines(self) -> bytes | None:
        """The first line, out of the pieces, while there is none in `_cut`; the lines that
        follow it closely go there. None if there is no newline."""
        pieces = self._pieces
        count = len(pieces)
        newline = -1
        for i in range(self._searched, count):
            newline = pieces[i].find(b"\n", 0 if i else self._taken)
            if newline >= 0:
                break
        else:
            self._searched = count
            return None
        if not i and not self._taken and newline == len(pieces[0]) - 1:
            # A line as it came.
            self._size -= newline + 1
            return pieces.popleft()

        # The pieces up to that one, and more up to a portion. Of a long one only a part.
        parts: list[bytes | memoryview] = []
        total, whole, rest = 0, 0, 0
        start = self._taken
        for piece in pieces:
            size = len(piece) - start
            if whole == i and size > PORTION:
                rest = max(newline, piece.rfind(b"\n", start, start + PORTION)) + 1
                parts.append(memoryview(piece)[start:rest])
                if rest == len(piece):
                    whole, rest = i + 1, 0
                break
            if whole > i and (total >= PORTION or size > PORTION):
                break
            parts.append(memoryview(piece)[start:] if start else piece)
            total += size
            whole += 1
            start = 0
        text = b"".join(parts)
        lines = io.BytesIO(text).readlines()
        tail = b"" if lines[-1].endswith(b"\n") else lines.pop()
        cut = collections.deque(lines)
        line = cut.popleft()

        self._cut_end = self._fed - self._size + len(text) - len(tail)
        for _ in range(whole):
            pieces.popleft()
        if tail:
            pieces.appendleft(tail)
        self._searched = 1 if tail else 0
        self._taken = rest
        if rest >= RECLAIM:
            self._reclaim()
        self._cut = cut
        self._size -= len(line)
        return line

    def _begin_run(self) -> None:
        """Takes the lines that have been cut out for __anext__, if none is longer than the
        limit."""
        run = self._cut
        if self._limit is None or max(map(len, run)) - 1 <= self._limit:
            self._run, self._cut = run, NOTHING
            self._run_size = self._cut_end - (self._fed - self._size)

    def _exact_size(self) -> int:
        if self._run is NOTHING:
            return self._size
        return self._size - self._run_size + sum(map(len, self._run))

    def _end_run(self) -> None:
        """Accounts for what __anext__ has given, and puts back what it has not."""
        if self._run is not NOTHING:
            self._size = self._exact_size()
            self._cut, self._run = self._run, NOTHING
            self._maybe_resume()

    # -- the reading side

    async def readline(self) -> bytes:
        """A line with its newline; at the end of the output what is left, or b"".

        With a limit: ValueError for a line that is longer, which is dropped (asyncio's
        rule).
        """
        self._begin()
        limit = self._limit
        while True:
            if self._cut:
                line = self._cut.popleft()
                self._size -= len(line)
                break
            cut = self._cut_lines()
            if cut is not None:
                line = cut
                break
            if limit is not None and self._size > limit:
                self._replace(())
                self._maybe_resume()
                raise ValueError("Separator is not found, and chunk exceed the limit")
            if self._eof:
                return self._take_all()
            await self._more("readline")
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

        limit = self._limit
        at = -1
        while True:
            if self._fed - self._size != at:
                # At first, and when another task has read.
                at = self._fed - self._size
                search = _Search(separators, longest)
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
            await self._more("readuntil")

        start, end = found
        if limit is not None and start > limit:
            raise asyncio.LimitOverrunError(
                "Separator is found, but chunk is longer than limit", start
            )
        return self._take(end)

    def _go_on(self, search: _Search) -> tuple[int, int] | None:
        """Searches what of the row has not been searched."""
        pieces = self._pieces
        if search.pieces < 0:
            for line in self._cut:
                found = search.look(line)
                if found is not None:
                    return found
            search.pieces = 0
        for i in range(search.pieces, len(pieces)):
            found = search.look(pieces[i], 0 if i else self._taken)
            if found is not None:
                return found
        search.pieces = len(pieces)
        return None

    async def read(self, n: int = -1) -> bytes:
        """Up to n bytes, as soon as there are any; everything up to the end with n < 0;
        b"" at the end."""
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
        """n bytes; asyncio.IncompleteReadError, with those that came, if the output
        ends first."""
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

    def start_collecting(self) -> None:
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
            self.stop_collecting()
            raise

    def stop_collecting(self) -> None:
        """What was collected is where it can be read."""
        sink, self._sink = self._sink, None
        assert sink is not None
        if isinstance(self._transport, ReadPipeTransport):
            self._transport.collect(None)
        self._replace(sink.empty())
        self._fed += self._size
        if self._size > self._pause_at and not self._eof:
            self._pause()

    def _join(self) -> None:
        """Makes one piece of all, so that _take_all() cannot fail."""
        if len(self._pieces) > 1:
            self._replace([self._all()])


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
