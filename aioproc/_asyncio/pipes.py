"""asyncio's transports over our ends of a child's pipes, one a pipe.

They tell the transport of the process, which made them, of data and of their end.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import logging
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .. import _habits as habits
from .._backends.base import ReadEnd, WriteEnd
from .._notes import add_note
from .._sink import BULKY, CHUNK, LAST_SIZE, LOOK_AGAIN, READ_SIZE, Sink
from .extra import PipeFile

if TYPE_CHECKING:
    from .transport import SubprocessTransport

# asyncio's own, since users configure and read that one for these messages.
logger = logging.getLogger("asyncio")

HIGH_WATER = 64 * 1024
#: Writes to a closed pipe that pass in silence (asyncio.constants).
QUIET_WRITES = 5

Buffer = bytes | bytearray | memoryview

#: Stands for a deque in all who have nothing to put into one yet: most children never
#: do, and an empty deque takes more memory than all else of a pipe.
NOTHING: collections.deque[Any] = collections.deque(maxlen=0)


class _PipeTransport(asyncio.BaseTransport):
    """What reading and writing have in common."""

    #: Whether we look in the loop's place; None: never yet.
    _look_due: bool | None = None

    def __init__(self, owner: SubprocessTransport, fd: int, end: ReadEnd | WriteEnd) -> None:
        # BaseTransport's own __init__ makes a dict for each; most are never asked.
        #: None after the end, so that no cycle is left to the garbage collector.
        self._owner: SubprocessTransport | None = owner
        self._loop = owner._loop
        self._fd = fd
        self._end = end
        self._closing = False
        self._lost = False
        self._file: PipeFile | None = None

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._lost:
            info.append("closed")
        elif self._closing:
            info.append("closing")
        if self._end.fileno() >= 0:
            info.append(f"fd={self._end.fileno()}")
        if not self._lost:
            info += self._activity()
        return f"<{' '.join(info)}>"

    def _activity(self) -> list[str]:
        """What the pipe is doing just now, for repr()."""
        raise NotImplementedError

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """ "pipe": an object with fileno(); "subprocess": as the process's."""
        if name == "pipe":
            if self._file is None:
                mode = "wb" if self._fd == 0 else "rb"
                self._file = PipeFile(self._end, mode, self.close)
            return self._file
        return default if self._owner is None else self._owner.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol | None:  # type: ignore[override]
        """None after the end of the pipe, as asyncio's."""
        return None if self._owner is None else self._owner.get_protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        raise NotImplementedError("the pipes of a process belong to the process's protocol")

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        raise NotImplementedError

    # A child's life is short, mostly, and ends with the one event that wakes the loop.
    # start() and look() return whether there is something that the loop should watch if
    # the child lives on.

    def start(self) -> bool:
        """The protocol is connected."""
        raise NotImplementedError

    def look(self) -> bool:
        """The child is still alive."""
        raise NotImplementedError

    def watch(self) -> None:
        """Has the loop watch what start() has put off."""
        raise NotImplementedError

    def finish_reading(self) -> None:
        """The child has ended."""

    def _is_wanted(self) -> bool:
        """Whether _ready is to be called when the pipe is ready."""
        raise NotImplementedError

    def _ready(self) -> None:
        raise NotImplementedError

    def _watch(self) -> None:
        """Has _ready called when the pipe is ready.

        Where the loop cannot watch it just now (ENOSPC of epoll's limit, ENOMEM), we look
        ourselves: raised from the middle of a flow, the error would cost data.
        """
        try:
            self._in_context(self._end.watch, self._ready)
        except OSError as error:
            if self._look_due is None:
                logger.warning("%r cannot be watched and is polled: %s", self, error)
            if not self._look_due:
                self._look_due = True
                self._in_context(self._loop.call_later, LOOK_AGAIN, self._look)

    def _look(self) -> None:
        self._look_due = False
        try:
            if self._is_wanted():
                self._ready()
        finally:
            if self._is_wanted():
                self._watch()

    def _lose(self, exc: Exception | None) -> None:
        """The end, told to the process once."""
        if not self._lost:
            self._lost = True
            self._closing = True
            owner, self._owner = self._owner, None
            assert owner is not None
            try:
                self._end.close()
            finally:
                owner._pipe_lost(self._fd, exc)

    def _lose_soon(self, exc: Exception | None) -> None:
        """As _lose, but lets the caller's caller go on first."""
        self._closing = True
        self._end.close()
        if not self._loop.is_closed():
            self._in_context(self._loop.call_soon, self._lose, exc)

    def _in_context(self, register: Callable[..., Any], *args: Any) -> None:
        """Calls what keeps the contextvars for a callback (call_soon, add_reader) in those of
        the child's creation, not of whoever closes or resumes the pipe."""
        assert self._owner is not None
        self._owner._context.copy().run(register, *args)

    def _fatal(self, exc: Exception, what: str) -> None:
        if isinstance(exc, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, what, exc_info=True)
        else:
            self._loop.call_exception_handler(
                {"message": what, "exception": exc, "transport": self}
            )


class ReadPipeTransport(_PipeTransport, asyncio.ReadTransport):
    """A child's stdout or stderr."""

    _end: ReadEnd

    def __init__(self, owner: SubprocessTransport, fd: int, end: ReadEnd, program: bytes) -> None:
        super().__init__(owner, fd, end)
        self._paused = False
        self._receive: Callable[[bytes], None] | None = None
        self._sink: Sink | None = None
        self._total = 0
        #: Whether it is read before the loop watches it: at a look, and at the exit.
        self._put_off = False
        #: The program that writes.
        self._program = program

    def start(self) -> bool:
        if self._paused or self._closing:
            return False
        assert self._owner is not None
        may_wait = not self._owner._in_person and self._end.is_lazy
        if not may_wait or habits.is_bulky(self._program, self._fd):
            self._end.watch(self._ready)
            return False
        self._put_off = True
        return True

    def look(self) -> bool:
        if self._put_off and self.is_reading():
            before = self._total
            self._ready()
            if self._total - before > habits.HALF:
                self.watch()
        return self._put_off

    def watch(self) -> None:
        if self._put_off:
            self._put_off = False
            if self.is_reading():
                self._watch()

    def finish_reading(self) -> None:
        if self._put_off:
            if not self._paused and not self._closing:
                self._read(True)
            if not self._lost:
                self.watch()  # somebody else has the other end

    def _activity(self) -> list[str]:
        return ["polling" if self.is_reading() else "idle"]

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    _is_wanted = is_reading

    def pause_reading(self) -> None:
        if not self._paused and not self._closing:
            self._paused = True
            self._end.unwatch()
            if self._loop.get_debug():
                logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        if self._paused and not self._closing:
            self._watch()
            self._paused = self._put_off = False
            if self._loop.get_debug():
                logger.debug("%r resumes reading", self)

    def close(self) -> None:
        """Reads no more. pipe_connection_lost follows in the next round of the loop."""
        if not self._closing:
            self._lose_soon(None)

    def deliver_to(self, receive: Callable[[bytes], None] | None) -> None:
        """Has what is read go there, past the protocol's pipe_data_received, unless it wants
        to see it."""
        if receive is None or (self._owner is not None and not self._owner._in_person):
            self._receive = receive

    def collect(self, sink: Sink | None) -> None:
        """Has what is read go there instead, unless the protocol wants to see it."""
        if sink is None or (self._owner is not None and not self._owner._in_person):
            self._sink = sink

    def _lose(self, exc: Exception | None) -> None:
        self._receive = None  # who mostly holds us in turn
        self._put_off = False
        if self._end.is_lazy:
            habits.note(self._program, self._fd, self._total)
        super()._lose(exc)

    def _ready(self) -> None:
        self._read(False)

    def read_now(self) -> None:
        """Reads what is there, in the loop's place."""
        if self.is_reading():
            self._read(False)

    def _read(self, to_end: bool) -> None:
        taken = 0
        size = LAST_SIZE if to_end else READ_SIZE
        while True:
            sink = self._sink
            try:
                if sink is None:
                    data = self._end.read(size)
                    n = len(data)
                else:
                    n = sink.read_from(self._end, size)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                self._fatal(exc, "Fatal read error on pipe transport")
                self._lose(exc)
                return
            except MemoryError as exc:
                # What is in the pipe stays there.
                assert self._owner is not None
                if self._owner._in_person:
                    raise  # to the loop's handler: a protocol of asyncio's cannot be told
                self._owner._protocol.pipe_out_of_memory(self._fd, exc)
                return
            if not n:
                if self._loop.get_debug():
                    logger.info("%r was closed by peer", self)
                self._lose(None)
                return
            if n == size:
                size = READ_SIZE
            before = self._total
            self._total = total = before + n
            if total >= BULKY > before:
                self._end.enlarge()
            if sink is None:
                owner = self._owner
                assert owner is not None
                try:
                    if self._receive is not None:
                        self._receive(data)
                    else:
                        owner._protocol.pipe_data_received(self._fd, data)
                except MemoryError as exc:
                    if owner._in_person:
                        raise
                    # Nobody must take what comes after for all there was.
                    self._lose(exc)
                    return
            taken += n
            # One read a wake-up, but of a bulky flow, which goes on while we look, as
            # much as may be: a round of the loop costs more than a read. Who collects
            # waits for the end, which often comes with the last data.
            once = sink is None and total < BULKY and not to_end
            if once or taken >= CHUNK or self._paused or self._closing:
                return


class WritePipeTransport(_PipeTransport, asyncio.WriteTransport):
    """A child's stdin."""

    _end: WriteEnd

    def __init__(self, owner: SubprocessTransport, fd: int, end: WriteEnd) -> None:
        super().__init__(owner, fd, end)
        self._buffer: collections.deque[memoryview] = NOTHING
        self._size = 0
        self._high = HIGH_WATER
        self._low = HIGH_WATER // 4
        self._protocol_paused = False
        self._writes_lost = 0

    def start(self) -> bool:
        # Whether anybody will read is for later: most who write at all write at once and
        # close.
        return not self._closing

    def look(self) -> bool:
        self.watch()
        return False

    def watch(self) -> None:
        if not self._closing:
            try:
                self._in_context(self._end.watch_reader, self._reader_gone)
            except OSError:  # as in _watch
                self._in_context(self._loop.call_later, LOOK_AGAIN, self.watch)

    def _is_wanted(self) -> bool:
        return bool(self._buffer) and not self._lost

    def _activity(self) -> list[str]:
        return ["polling" if self._buffer else "idle", f"bufsize={self._size}"]

    # -- asyncio.WriteTransport

    def get_write_buffer_size(self) -> int:
        return self._size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._maybe_pause()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Closes the pipe once all that was written has gone out."""
        self._close_when_written()

    def _close_when_written(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._buffer:
                self._lose_soon(None)

    def close(self) -> None:
        if self._loop.is_closed():
            self.abort()  # what is left to write would never go out
        else:
            self._close_when_written()

    def finish(self) -> None:
        """As close(), for a caller who does not mind to be told of the end at once."""
        if not self._closing:
            self._closing = True
            if not self._buffer:
                self._lose(None)

    def abort(self) -> None:
        """Closes the pipe now; what has not gone out is lost."""
        if not self._lost:
            self._discard()
            self._lose_soon(None)

    def give_up(self) -> int:
        """As abort(). Returns how many bytes are lost that somebody could have read."""
        unsent = self._size
        if unsent and self._end.fileno() >= 0:
            try:
                unsent -= self._end.write(self._buffer[0][:CHUNK])
            except BrokenPipeError:
                unsent = 0  # there is no reader any more
            except OSError:
                pass  # it is full; on Windows the port may be gone
        self.abort()
        return unsent

    def write(self, data: Buffer) -> None:
        if type(data) is bytes and not self._buffer and not self._closing:
            # By far the most frequent.
            size = len(data)
            if 0 < size <= CHUNK:
                try:
                    n = self._end.write(data)
                except (BlockingIOError, InterruptedError):
                    n = 0
                except OSError as exc:
                    self._broken(exc)
                    return
                if n < size:
                    self._push(memoryview(data)[n:])
                return
        if not isinstance(data, (bytes, bytearray, memoryview)):
            kind = type(data).__name__
            error = TypeError(f"data argument must be a bytes-like object, not {kind}")
            if isinstance(data, str):
                add_note(error, "encode() it, or use open_process(text=True)")
            raise error
        # What is not immutable may be changed by the caller before it goes out, or grow,
        # which it cannot while there is a view of it: on PyPy till some collection.
        view = memoryview(data if type(data) is bytes else bytes(data))
        if not self._accepts(len(view)):
            return
        rest = view[self._write_now(view[:CHUNK]) :] if not self._buffer else view
        if len(rest) and not self._closing:
            self._push(rest)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    # -- sending

    def send(self, data: memoryview) -> None:
        """As write, for data that the caller promises not to change until it has gone
        out."""
        if self._accepts(len(data)):
            if len(data) >= BULKY:
                self._end.enlarge()
            rest = data if self._buffer else data[self._write_now(data[:CHUNK]) :]
            if len(rest) and not self._closing:
                self._push(rest)

    def _accepts(self, size: int) -> bool:
        if self._closing or self._lost:
            if size:
                if self._writes_lost >= QUIET_WRITES:
                    logger.warning("pipe closed by peer or os.write(pipe, data) raised exception.")
                self._writes_lost += 1
            return False
        return size > 0

    def _write_now(self, data: bytes | memoryview) -> int:
        try:
            return self._end.write(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            self._broken(exc)
            return 0

    def _push(self, data: memoryview) -> None:
        if self._buffer is NOTHING:
            self._buffer = collections.deque()
        self._buffer.append(data)
        self._size += len(data)
        self._watch()
        assert self._owner is not None
        self._owner._watch_pipes()  # it may have to write before it reads on
        self._maybe_pause()

    def _ready(self) -> None:
        budget = CHUNK
        buffer = self._buffer
        while buffer and budget > 0:
            head = buffer[0]
            part = head[:budget]
            try:
                n = self._end.write(part)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as exc:
                self._broken(exc)
                return
            self._size -= n
            budget -= n
            if n == len(head):
                buffer.popleft()
            else:
                buffer[0] = head[n:]
                if n < len(part):
                    break
        if not buffer:
            self._end.unwatch()
        if self._protocol_paused and self._size <= self._low:
            self._protocol_paused = False
            assert self._owner is not None
            self._owner._tell(self._owner._protocol.resume_writing)
        if self._closing and not buffer and not self._lost:
            self._lose(None)

    def _discard(self) -> None:
        self._buffer.clear()
        self._size = 0

    def _broken(self, exc: OSError) -> None:
        self._writes_lost += 1
        self._discard()
        self._fatal(exc, "Fatal write error on pipe transport")
        self._lose_soon(exc)

    def _reader_gone(self) -> None:
        """The child has closed its stdin, or ended."""
        if self._lost:
            return
        if self._loop.get_debug():
            logger.info("%r was closed by peer", self)
        had_data = bool(self._buffer)
        self._discard()
        # In this round: a loop may call again and again.
        self._lose(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) if had_data else None)

    def _maybe_pause(self) -> None:
        if self._size > self._high and not self._protocol_paused:
            self._protocol_paused = True
            assert self._owner is not None
            self._owner._tell(self._owner._protocol.pause_writing)
