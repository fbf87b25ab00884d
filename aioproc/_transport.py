"""asyncio's transports over a backend's Child: one for the process, one a pipe.

child's pipe -> ReadPipeTransport -> protocol.pipe_data_received
child's exit -> SubprocessTransport -> protocol.process_exited
the exit and the end of all pipes    -> protocol.connection_lost
"""

from __future__ import annotations

import asyncio
import collections
import errno
import io
import logging
import mmap
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from ._backends.base import Child, ReadEnd, ResourceUsage, WriteEnd
from ._extra import KILL, PipeFile, Popen
from ._spec import SpawnSpec

# asyncio's own, since users configure and read that one for these messages.
logger = logging.getLogger("asyncio")

#: Most bytes read or written per pipe and wake-up: going on "until it blocks" stalls
#: the loop for as long as the other side keeps up.
CHUNK = 256 * 1024
#: Most bytes of one read(2) into a new bytes object. More than the 64 KiB that a pipe
#: holds by default would have the allocator map and unmap memory for each.
READ_SIZE = 64 * 1024
HIGH_WATER = 64 * 1024
#: Bytes that make a flow bulky.
BULKY = 256 * 1024
#: Writes to a closed pipe that pass in silence (asyncio.constants).
QUIET_WRITES = 5

Buffer = bytes | bytearray | memoryview

#: Stands for a deque in all who have nothing to put into one yet: most children never
#: do, and an empty deque takes more memory than all else of a pipe.
NOTHING: collections.deque[Any] = collections.deque(maxlen=0)


class _Scratch(threading.local):
    """A buffer to read into, one a thread and so one a loop."""

    def __init__(self) -> None:
        self.buffer = bytearray(CHUNK)
        self.view = memoryview(self.buffer)


_scratch: _Scratch | None = None


def scratch() -> _Scratch:
    global _scratch
    if _scratch is None:
        _scratch = _Scratch()
    return _scratch


#: Bytes. With so much memory, and four times what a Sink holds, there is no need to look
#: again, which costs two system calls, before it holds twice as much (or an eighth of this).
PLENTY = 64 * 1024 * 1024
#: More than a BytesIO takes beside what it holds, in bytes.
_OVERHEAD = 256
#: For memory as malloc takes it. Windows has but one kind.
_PRIVATE: dict[str, Any] = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}


class Sink:
    """What communicate() reads from one pipe: pieces, and from BULKY bytes on one growing
    buffer, which is handed out without a copy.

    That is a BytesIO, which loses all that it holds when it cannot grow (CPython's
    _PyBytes_Resize frees what it cannot enlarge). So before it grows we look whether as
    much memory as it may want is to be had; what is mapped for that is never touched.
    """

    __slots__ = ("_assured", "_buffer", "_pieces", "size")

    def __init__(self) -> None:
        self._buffer: io.BytesIO | None = None
        #: How much it may hold without another look for memory.
        self._assured = 0
        #: What comes after that which is in the buffer.
        self._pieces: list[bytes] = []
        self.size = 0

    def begin(self, pieces: list[bytes]) -> None:
        """With what has been read before. MemoryError: as read_from."""
        self._pieces = pieces
        self.size = sum(map(len, pieces))
        if self.size >= BULKY:
            self._join()

    def add(self, data: bytes) -> None:
        """For those who are given data rather than read."""
        self._pieces.append(data)
        self.size += len(data)

    def read_from(self, end: ReadEnd) -> int:
        """Reads once. How many bytes; 0 at the end.

        MemoryError: there is no room, and nothing has been lost. OSError with ENOMEM: it
        has, since another thread was quicker than we.
        """
        buffer = self._buffer
        if buffer is None or self.size + CHUNK > self._assured:
            data = end.read(READ_SIZE)  # takes nothing before it has memory for it
            n = len(data)
            if n:
                try:
                    self.add(data)
                except MemoryError:
                    raise _loss() from None
                if self.size >= BULKY:
                    self._join()
        else:
            chunk = scratch()
            n = end.readinto(chunk.buffer)
            try:
                buffer.write(chunk.view[:n])
            except MemoryError:
                raise _loss() from None
            self.size += n
        return n

    def _join(self) -> None:
        """Puts the pieces into the buffer."""
        pieces = self._pieces
        if self._buffer is None:
            # One piece alone becomes the buffer itself, since nobody else holds it then.
            self._buffer = io.BytesIO(b"".join(pieces))
            self._buffer.seek(0, io.SEEK_END)
            pieces.clear()
            return
        assured = self._assured
        if self.size > assured:
            if _is_free(max(4 * self.size, PLENTY)):
                assured = max(2 * self.size, PLENTY // 8)
            # A BytesIO grows by an eighth more than what is asked for.
            elif _is_free(self.size + self.size // 8 + _OVERHEAD):
                assured = 0
            else:
                raise MemoryError
        try:
            while pieces:
                self._buffer.write(pieces[0])
                del pieces[0]
        except MemoryError:
            raise _loss() from None
        # When memory is short: as far as it has grown. (PyPy cannot tell.)
        self._assured = assured or sys.getsizeof(self._buffer, 0) - _OVERHEAD

    def empty(self) -> list[bytes]:
        """Gives all that there is, once."""
        pieces, self._pieces = self._pieces, []
        buffer, self._buffer = self._buffer, None
        if buffer is not None and not buffer.closed:
            pieces.insert(0, buffer.getvalue())
        return pieces


def _is_free(size: int) -> bool:
    """Whether so much memory is to be had."""
    try:
        mmap.mmap(-1, size, **_PRIVATE).close()
    except OSError:
        return False
    return True


def _loss() -> OSError:
    return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


class _PipeTransport(asyncio.BaseTransport):
    """What reading and writing have in common."""

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

    def _lose(self, exc: Exception | None) -> None:
        """The end, told to the process once."""
        if not self._lost:
            self._lost = True
            self._closing = True
            self._end.close()
            owner, self._owner = self._owner, None
            assert owner is not None
            owner._pipe_lost(self._fd, exc)

    def _lose_soon(self, exc: Exception | None) -> None:
        """As _lose, but lets the caller's caller go on first."""
        self._closing = True
        self._end.close()
        if not self._loop.is_closed():
            self._loop.call_soon(self._lose, exc)

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

    def __init__(self, owner: SubprocessTransport, fd: int, end: ReadEnd) -> None:
        super().__init__(owner, fd, end)
        self._paused = False
        self._receive: Callable[[bytes], None] | None = None
        self._sink: Sink | None = None
        self._total = 0

    def start(self) -> None:
        if not self._paused and not self._closing:
            self._end.watch(self._ready)

    def _activity(self) -> list[str]:
        return ["polling" if self.is_reading() else "idle"]

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        if not self._paused and not self._closing:
            self._paused = True
            self._end.unwatch()
            if self._loop.get_debug():
                logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        if self._paused and not self._closing:
            self._paused = False
            self._end.watch(self._ready)
            if self._loop.get_debug():
                logger.debug("%r resumes reading", self)

    def close(self) -> None:
        """Reads no more. pipe_connection_lost follows in the next round of the loop."""
        if not self._closing:
            self._lose_soon(None)

    def deliver_to(self, receive: Callable[[bytes], None] | None) -> None:
        """Has what is read go there, past the protocol's pipe_data_received."""
        self._receive = receive

    def collect(self, sink: Sink | None) -> None:
        """Has what is read go there instead, unless the protocol wants to see it."""
        if self._receive is not None or sink is None:
            self._sink = sink

    def _lose(self, exc: Exception | None) -> None:
        self._receive = None  # who mostly holds us in turn
        super()._lose(exc)

    def _ready(self) -> None:
        taken = 0
        while True:
            sink = self._sink
            try:
                if sink is None:
                    data = self._end.read(READ_SIZE)
                    n = len(data)
                else:
                    n = sink.read_from(self._end)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                self._fatal(exc, "Fatal read error on pipe transport")
                self._lose(exc)
                return
            except MemoryError as exc:
                # What is in the pipe stays there.
                if self._receive is None:
                    raise  # to the loop's handler: a protocol of asyncio's cannot be told
                assert self._owner is not None
                self._owner._protocol.pipe_out_of_memory(self._fd, exc)
                return
            if not n:
                if self._loop.get_debug():
                    logger.info("%r was closed by peer", self)
                self._lose(None)
                return
            before = self._total
            self._total = total = before + n
            if total >= BULKY > before:
                self._end.enlarge()
            if sink is None:
                if self._receive is not None:
                    try:
                        self._receive(data)
                    except MemoryError as exc:
                        # Nobody must take what comes after for all there was.
                        self._lose(exc)
                        return
                else:
                    assert self._owner is not None
                    self._owner._protocol.pipe_data_received(self._fd, data)
            taken += n
            # One read a wake-up, but of a bulky flow, which goes on while we look, as
            # much as may be: a round of the loop costs more than a read. Who collects
            # waits for the end, which often comes with the last data.
            if (sink is None and total < BULKY) or taken >= CHUNK or self._paused or self._closing:
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

    def start(self) -> None:
        # Later, since most who write at all write at once and close.
        self._loop.call_soon(self._watch_reader)

    def _watch_reader(self) -> None:
        if not self._closing:
            self._end.watch_reader(self._reader_gone)

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
        if not self._closing:
            self._closing = True
            if not self._buffer:
                self._lose_soon(None)

    def close(self) -> None:
        self.write_eof()

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
            raise TypeError(f"data argument must be a bytes-like object, not {kind}")
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
        self._end.watch(self._ready)
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


class SubprocessTransport(asyncio.SubprocessTransport):
    """A child process, as asyncio's protocols know it.

    After the exit and the end of all pipes the protocol's connection_lost is called,
    and the transport lets go of it.
    """

    _child: Child | None = None
    _closed = True  # until __init__ has taken charge

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.SubprocessProtocol,
        child: Child,
        spec: SpawnSpec,
    ) -> None:
        self._loop = loop
        self._protocol: Any = protocol
        self._child = child
        # Not the whole spec, which holds everything twice.
        self.user_args = spec.user_args
        self._closed = False
        self._returncode: int | None = None
        self._finished = False
        self._exit_waiters: list[asyncio.Future[int]] = []
        self._pipes: dict[int, ReadPipeTransport | WritePipeTransport] = {}
        self._pipes_open = 0
        if child.stdin is not None:
            self._pipes[0] = WritePipeTransport(self, 0, child.stdin)
        if child.stdout is not None:
            self._pipes[1] = ReadPipeTransport(self, 1, child.stdout)
        if child.stderr is not None:
            self._pipes[2] = ReadPipeTransport(self, 2, child.stderr)
        self._pipes_open = len(self._pipes)
        # They are ours now. The room may keep the child for longer than the loop lives.
        child.stdin = child.stdout = child.stderr = None
        self._popen: Popen | None = None

    def start(self) -> None:
        """Connects the protocol; from here on it is told of everything."""
        child = self._child
        assert child is not None
        self._tell(self._protocol.connection_made, self)
        if not self._closed:  # by connection_made
            for pipe in self._pipes.values():
                pipe.start()
        if child.returncode is not None:
            self._loop.call_soon(self._exited)
        else:
            child.on_exit = self._exited

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._closed:
            info.append("closed")
        if self._child is not None:
            info.append(f"pid={self._child.pid}")
            if self._returncode is not None:
                info.append(f"returncode={self._returncode}")
            else:
                info.append("running")
            names = ("stdin", "stdout", "stderr")
            info += [f"{names[fd]}={pipe!r}" for fd, pipe in self._pipes.items()]
        return f"<{' '.join(info)}>"

    def __del__(self, _warn: Callable[..., Any] = warnings.warn) -> None:
        if not self._closed:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self.close()

    # -- asyncio.SubprocessTransport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """ "subprocess": the child as a subprocess.Popen."""
        return self._proc if name == "subprocess" else default

    @property
    def _proc(self) -> Popen:
        # asyncio's name for it, which others know.
        if self._popen is None:
            assert self._child is not None
            files = [
                None if pipe is None else pipe.get_extra_info("pipe")
                for pipe in map(self._pipes.get, (0, 1, 2))
            ]
            self._popen = Popen(self._child, self._look, self.user_args, *files)
        return self._popen

    def _look(self) -> int | None:
        """The returncode if the child has ended, though the loop may not know yet."""
        child = self._child
        assert child is not None
        # Nobody but us reaps it when the loop has closed.
        return child.poll() if self._loop.is_closed() else child.peek()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        for pipe in self._pipes.values():
            if isinstance(pipe, ReadPipeTransport):
                pipe.deliver_to(None)

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        return self._closed

    def get_pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def get_returncode(self) -> int | None:
        """None until the exit has been noticed."""
        if self._returncode is None and self._child is not None and self._loop.is_closed():
            # Nobody will tell any more.
            self._returncode = self._child.poll()
        return self._returncode

    def get_rusage(self) -> ResourceUsage | None:
        """As Process.rusage. Not in asyncio."""
        assert self._child is not None
        return self._child.rusage

    # The base class promises a BaseTransport; these are it.
    def get_pipe_transport(self, fd: int) -> Any:
        return self._pipes.get(fd)

    def send_signal(self, signal: int) -> None:
        """From any thread, also after the loop was closed. ProcessLookupError after
        the exit; a process that was given the number since is never hit."""
        assert self._child is not None
        self._child.send_signal(signal)

    def terminate(self) -> None:
        """Sends SIGTERM (Windows: as kill); see send_signal."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL (Windows: TerminateProcess); see send_signal."""
        self.send_signal(KILL)

    def close(self) -> None:
        """Closes the pipes, and kills the child if it lives."""
        if self._closed:
            return
        self._closed = True
        for pipe in self._pipes.values():
            if isinstance(pipe, WritePipeTransport) and (
                self._returncode is None or self._loop.is_closed()
            ):
                pipe.abort()  # what is left to write would never go out
            else:
                pipe.close()
        child = self._child
        # Only peek: at interpreter exit os.wait4, which poll() may need, works no more.
        if child is not None and child.peek() is None:
            if self._loop.get_debug():
                logger.warning("Close running child process: kill %r", self)
            try:
                child.send_signal(KILL)
            except (ProcessLookupError, PermissionError):
                pass  # gone, or running setuid

    # -- what happens to the child

    async def _wait(self) -> int:
        """The returncode, as soon as the child has ended."""
        returncode = self.get_returncode()
        if returncode is not None:
            return returncode
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._exit_waiters.append(waiter)
        try:
            return await waiter
        finally:
            self._exit_waiters.remove(waiter)

    def _tell(self, method: Callable[..., Any], *args: Any) -> None:
        """Calls the protocol, whose errors are not ours."""
        try:
            method(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(method.__name__, exc)

    def _report(self, method: str, exc: BaseException) -> None:
        self._loop.call_exception_handler(
            {
                "message": f"protocol.{method}() failed",
                "exception": exc,
                "transport": self,
                "protocol": self._protocol,
            }
        )

    def _exited(self) -> None:
        child = self._child
        assert child is not None
        assert child.returncode is not None
        if self._loop.get_debug():
            logger.info("%r exited with return code %r", self, child.returncode)
        self._returncode = child.returncode
        for waiter in self._exit_waiters:
            if not waiter.done():  # cancelled in this round of the loop
                waiter.set_result(child.returncode)
        self._tell(self._protocol.process_exited)
        self._maybe_finish()

    def _pipe_lost(self, fd: int, exc: Exception | None) -> None:
        self._pipes_open -= 1
        if self._returncode is None and self._child is not None:
            self._child.expect_exit()
        self._tell(self._protocol.pipe_connection_lost, fd, exc)
        self._maybe_finish()

    def _maybe_finish(self) -> None:
        if self._returncode is not None and not self._pipes_open and not self._finished:
            self._finished = True
            # Nothing is left that close() would have to do.
            self._closed = True
            self._tell(self._protocol.connection_lost, None)
            self._protocol = None
