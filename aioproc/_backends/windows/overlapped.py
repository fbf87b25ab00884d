"""Pipes and exits on Windows, by one I/O completion port a loop.

A daemon thread waits at the port and has the loop look at what has come, so that any
kind of loop will do, in whatever thread. Made of the modules that the standard library
has for asyncio's Proactor loop.
"""

from __future__ import annotations

import _overlapped
import _winapi
import asyncio
import collections
import contextvars
import errno
import msvcrt
import os
import secrets
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import watcher as watchers
from ..stdio import BaseStdio, close_all
from ..watcher import Watcher, by_loop

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec
    from .pure import WindowsChild

DEVNULL, PIPE = -3, -1

#: Bytes that Windows keeps for a pipe's reader.
PIPE_SIZE = 64 * 1024
#: Bytes asked for by one read: the larger number once a read has filled the smaller.
SMALL, LARGE = 8 * 1024, 64 * 1024
#: Most bytes of one write under way.
MOST_WRITTEN = 64 * 1024
#: Milliseconds between two looks whether the loop has closed: of one that has shut its
#: generators down, and of one that may close without.
OFTEN, SELDOM = 10, 1000
#: Most packets taken from the port at a time.
BATCH = 64

#: Of stdin, stdout and stderr, as GetStdHandle takes them.
STANDARD = _winapi.STD_INPUT_HANDLE, _winapi.STD_OUTPUT_HANDLE, _winapi.STD_ERROR_HANDLE

PIPE_REJECT_REMOTE_CLIENTS = 0x8
FILE_READ_ATTRIBUTES, FILE_WRITE_ATTRIBUTES = 0x80, 0x100

Done = Callable[[Any], None]


class _Queue:
    """A completion port and what is under way there. Its thread holds this, and neither
    the loop nor who is to be told: those shall go when nobody else holds them."""

    def __init__(self) -> None:
        self.iocp = _overlapped.CreateIoCompletionPort(
            _overlapped.INVALID_HANDLE_VALUE, _overlapped.NULL, 0, 0
        )
        #: By its address: an OVERLAPPED has to live until the port has told of it,
        #: whatever becomes of the pipe.
        self.operations: dict[int, Any] = {}
        self.arrived: collections.deque[int] = collections.deque()
        #: Nobody is to be told any more: what was cancelled is only waited for.
        self.released = False
        # The handle is closed under it. Reentrant: the garbage collector may close a pipe
        # in the midst of it.
        self._lock = threading.RLock()

    def wake(self) -> None:
        with self._lock:
            if self.iocp:
                # An address of nothing; without one _overlapped sees a failure.
                _overlapped.PostQueuedCompletionStatus(self.iocp, 0, 0, 1)

    def run(self, owner: weakref.ref[Port], patience: int) -> None:
        """In the thread. patience: milliseconds to wait for the first news."""
        wait = _overlapped.GetQueuedCompletionStatus
        while not self.released or self.operations:
            packet = wait(self.iocp, patience)
            taken = 0
            while packet is not None:
                self.arrived.append(packet[3])
                taken += 1
                packet = wait(self.iocp, 0) if taken < BATCH else None
            port = owner()
            if port is not None:
                patience = port.woken(bool(taken))
            if self.released:
                while self.arrived:
                    self.operations.pop(self.arrived.popleft(), None)
            del port
        with self._lock:
            iocp, self.iocp = self.iocp, 0
            _winapi.CloseHandle(iocp)


class Port(Watcher["WindowsChild"]):
    """The completion port of a loop: who is to be told of what is under way there."""

    held_by_timer = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = _Queue()
        #: By the address of the OVERLAPPED.
        self._done: dict[int, Done] = {}
        self._ends: set[_End] = set()
        self._told = False
        self._ending = False
        super().__init__(loop)
        if self._guard is None:
            self._ending = True  # the loop has shut its generators down already
        args = weakref.ref(self), self._patience()
        thread = threading.Thread(
            target=self._queue.run, args=args, name="aioproc-port", daemon=True
        )
        try:
            # Newer Pythons may hand the contextvars on.
            contextvars.Context().run(thread.start)
        except BaseException:
            self.close()
            self._queue.run(*args)  # in the thread's place: it only ends
            raise

    # -- in the loop's thread

    def join(self, end: _End, handle: int) -> None:
        _overlapped.CreateIoCompletionPort(handle, self._queue.iocp, 0, 0)
        self._ends.add(end)
        self.touch()

    def begin(self, done: Done) -> Any:
        """An OVERLAPPED for an operation; `done` is called with it in the loop."""
        overlapped = _overlapped.Overlapped(_overlapped.NULL)
        self._queue.operations[overlapped.address] = overlapped
        self._done[overlapped.address] = done
        return overlapped

    def take_back(self, overlapped: Any) -> None:
        """The operation has not come about."""
        self._forget(overlapped.address)

    def _forget(self, address: int) -> tuple[Any, Done | None]:
        return self._queue.operations.pop(address, None), self._done.pop(address, None)

    def call_soon(self, callback: Callable[[], None]) -> None:
        loop = self._loop()
        if self.is_open and loop is not None and not loop.is_closed():
            by_loop(loop.call_soon, callback)

    def watch_exit(self, child: WindowsChild) -> None:
        overlapped = self.begin(lambda _: self._exited(child))
        try:
            child.wait_handle = _overlapped.RegisterWaitWithQueue(
                child.handle, self._queue.iocp, overlapped.address, _overlapped.INFINITE
            )
        except BaseException:
            self.take_back(overlapped)
            raise
        child.wait_address = overlapped.address
        self.children[id(child)] = child
        child.port = self
        self.touch()

    def _exited(self, child: WindowsChild) -> None:
        if self.children.pop(id(child), None) is not None:
            child.port = None
            self._unwatch_exit(child)
            child.reap()
            child.tell()

    def _unwatch_exit(self, child: WindowsChild) -> None:
        handle, child.wait_handle = child.wait_handle, 0
        # Waits for the callback, which only posts to the port.
        _overlapped.UnregisterWaitEx(handle, _overlapped.INVALID_HANDLE_VALUE)
        self._forget(child.wait_address)

    def _drain(self) -> None:
        self._told = False
        arrived = self._queue.arrived
        try:
            while self.is_open and arrived:
                overlapped, done = self._forget(arrived.popleft())
                if done is not None:
                    done(overlapped)
        finally:
            if arrived:
                self.call_soon(self._drain)
        if self.is_idle():
            self.retire_when_idle()

    # -- in any thread

    def leave(self, end: _End) -> None:
        self._ends.discard(end)
        if self.is_open and not self._ends:
            self._queue.wake()

    # -- in the port's own thread

    def woken(self, news: bool) -> int:
        """For how long, in milliseconds, to wait again."""
        if self.is_open and news:
            self._tell_loop()
        if self.is_open and self.loop_is_closed():
            self.close()
        return self._patience()

    def _patience(self) -> int:
        return OFTEN if self._ending else SELDOM

    def _tell_loop(self) -> None:
        if self._told:
            return
        self._told = True
        loop = self._loop()
        try:
            if loop is not None:
                by_loop(loop.call_soon_threadsafe, self._drain)
                return
        except RuntimeError:
            pass  # closed meanwhile
        self.close()

    # -- the end

    def is_idle(self) -> bool:
        return not self.children and not self._ends and not self._queue.operations

    def _loop_ends(self) -> None:
        # Somebody may shut the generators down and go on using the loop, and a pipe can
        # be joined to one port only. The thread notices when the loop is really closed.
        loop = self._loop()
        if loop is not None:
            watchers.shut_down(loop)
        if self.is_open:
            if self.is_idle():
                self.close()
            else:
                self._ending = True
                self._queue.wake()

    def _release(self, loop: asyncio.AbstractEventLoop | None) -> None:
        for end in list(self._ends):
            end.cancel()
        for child in list(self.children.values()):
            self._unwatch_exit(child)
            child.become_orphan()
        self._done.clear()
        self._queue.released = True
        self._queue.wake()


# -- pipes


class _End:
    """Our end of a pipe; the number of it is a handle, not a descriptor."""

    __slots__ = (
        "__weakref__",
        "_callback",
        "_context",
        "_error",
        "_handle",
        "_operation",
        "_port",
    )

    def __init__(self, port: Port, handle: int, context: contextvars.Context) -> None:
        port.join(self, handle)
        self._port = port
        self._context = context
        self._handle = handle
        self._callback: Callable[[], None] | None = None
        #: What is under way.
        self._operation: Any = None
        self._error: OSError | None = None

    def fileno(self) -> int:
        return self._handle

    def enlarge(self) -> bool:
        return False  # a pipe keeps the size it was made with

    def watch(self, callback: Callable[[], None]) -> None:
        if self._callback is None:
            self._callback = callback
            self._port.call_soon(self._notify)

    def unwatch(self) -> None:
        self._callback = None

    def _is_ready(self) -> bool:
        """Whether reading or writing would not have to wait."""
        raise NotImplementedError

    def _notify(self) -> None:
        """Calls back, now and in every round of the loop as long as we are ready."""
        if self._callback is not None and self._is_ready():
            try:
                self._call(self._callback)
            finally:
                if self._callback is not None and self._is_ready():
                    self._port.call_soon(self._notify)

    def _call(self, callback: Callable[[], None]) -> None:
        """In the contextvars of the child's creation. Of a copy, since a callback may run
        a loop of its own."""
        self._context.copy().run(callback)

    def cancel(self) -> None:
        """The port closes. The pipe stays open: its end would tell the child something."""
        self._callback = None
        if self._operation is not None:
            self._operation.cancel()

    def _check(self) -> None:
        if self._handle < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def abort(self) -> None:
        """Closes at once; what is under way is cancelled."""
        handle, self._handle = self._handle, -1
        self._close_handle(handle)

    def _close_handle(self, handle: int) -> None:
        self.unwatch()
        if handle >= 0:
            try:
                if self._operation is not None:
                    self._operation.cancel()
                _winapi.CloseHandle(handle)
            finally:
                self._port.leave(self)


class PipeReadEnd(_End):
    """base.ReadEnd. Reads ahead by one operation."""

    __slots__ = ("_at_end", "_data", "_size")

    def __init__(self, port: Port, handle: int, context: contextvars.Context) -> None:
        super().__init__(port, handle, context)
        self._data = b""
        self._at_end = False
        self._size = SMALL

    def read(self, n: int) -> bytes:
        if not self._data and not self._fetch():
            return b""
        data = self._data[:n]
        self._data = self._data[n:]  # not before there was memory for it
        return data

    def readinto(self, buffer: bytearray) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _fetch(self) -> bool:
        """Gets data; False at the end, BlockingIOError when there is none yet."""
        self._check()
        self._begin()
        if self._data:
            return True
        if self._error is not None:
            raise self._error
        if self._at_end:
            return False
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _is_ready(self) -> bool:
        if self._handle >= 0:
            try:
                self._begin()
            except MemoryError:
                return True  # whoever is told then reads, and learns of it
        return bool(self._data) or self._at_end or self._error is not None

    def _begin(self) -> None:
        while not (self._data or self._at_end or self._error or self._operation):
            overlapped = self._port.begin(self._done)
            try:
                overlapped.ReadFile(self._handle, self._size)
            except MemoryError:
                self._port.take_back(overlapped)
                raise
            except BrokenPipeError:
                self._port.take_back(overlapped)
                self._at_end = True
            except OSError as error:
                self._port.take_back(overlapped)
                self._error = error
            else:
                self._operation = overlapped
                if not overlapped.pending:
                    self._take()

    def _take(self) -> None:
        overlapped, self._operation = self._operation, None
        try:
            self._data = overlapped.getresult()
        except OSError as error:
            self._error = error
            return
        if len(self._data) == self._size:
            self._size = LARGE
        # Without an error somebody has written nothing, which is not the end.
        self._at_end = overlapped.error == _winapi.ERROR_BROKEN_PIPE

    def _done(self, overlapped: Any) -> None:
        if overlapped is self._operation:
            self._take()
            self._notify()

    def close(self) -> None:
        self.abort()


class PipeWriteEnd(_End):
    """base.WriteEnd. What write() has taken may be on its way still; it goes out also
    when the end is closed."""

    __slots__ = ("_gone", "_reader_callback", "_to_close")

    def __init__(self, port: Port, handle: int, context: contextvars.Context) -> None:
        super().__init__(port, handle, context)
        self._reader_callback: Callable[[], None] | None = None
        #: A read that ends when nobody is at the other end.
        self._gone: Any = None
        #: The handle, once closed, until the last write is done.
        self._to_close = -1

    def write(self, data: bytes | memoryview) -> int:
        self._check()
        if self._error is not None:
            raise self._error
        if self._operation is not None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        # A copy: the caller may do with it what he likes once we have said it is taken.
        chunk = bytes(data[:MOST_WRITTEN])
        overlapped = self._port.begin(self._done)
        try:
            overlapped.WriteFile(self._handle, chunk)
        except BaseException:
            self._port.take_back(overlapped)
            raise
        if overlapped.pending:
            self._operation = overlapped
        return len(chunk)

    def _is_ready(self) -> bool:
        return self._operation is None

    def _done(self, overlapped: Any) -> None:
        if overlapped is not self._operation:
            return
        self._operation = None
        try:
            overlapped.getresult()
        except OSError as error:
            self._error = error
        if self._to_close >= 0:
            self._finish()
        elif self._callback is not None:
            self._notify()
        elif self._error is not None:
            self._tell_reader_gone()

    def watch_reader(self, callback: Callable[[], None]) -> None:
        if self._reader_callback is not None:
            return
        self._reader_callback = callback
        self._await_reader_end()

    def _await_reader_end(self) -> None:
        overlapped = self._port.begin(self._reader_done)
        try:
            overlapped.ReadFile(self._handle, 1)
        except OSError:
            self._port.take_back(overlapped)
            self._port.call_soon(self._tell_reader_gone)
        else:
            self._gone = overlapped

    def _reader_done(self, overlapped: Any) -> None:
        if overlapped is self._gone:
            self._gone = None
            self._tell_reader_gone()

    def _tell_reader_gone(self) -> None:
        if self._reader_callback is not None:
            self._call(self._reader_callback)

    def close(self) -> None:
        if self._operation is None or not self._port.is_open:
            self.abort()
        elif self._handle >= 0:
            self._to_close, self._handle = self._handle, -1
            self.unwatch()
            self._stop_watching_reader()

    def abort(self) -> None:
        self._stop_watching_reader()
        if self._to_close >= 0:
            self._finish()
        else:
            super().abort()

    def cancel(self) -> None:
        super().cancel()
        self._stop_watching_reader()
        if self._to_close >= 0:
            self._finish()

    def _finish(self) -> None:
        handle, self._to_close = self._to_close, -1
        self._close_handle(handle)

    def _stop_watching_reader(self) -> None:
        self._reader_callback = None
        gone, self._gone = self._gone, None
        if gone is not None:
            gone.cancel()


def make_pipe(size: int, ours_reads: bool) -> tuple[int, int]:
    """Our end, overlapped, and the child's, which is not."""
    name = rf"\\.\pipe\aioproc-{os.getpid()}-{secrets.token_hex(8)}"
    # Ours reads in any case: it is how the writing end hears that the reader has gone.
    access = _winapi.PIPE_ACCESS_INBOUND if ours_reads else _winapi.PIPE_ACCESS_DUPLEX
    ours = _winapi.CreateNamedPipe(
        name,
        access | _winapi.FILE_FLAG_OVERLAPPED | _winapi.FILE_FLAG_FIRST_PIPE_INSTANCE,
        _winapi.PIPE_WAIT | PIPE_REJECT_REMOTE_CLIENTS,
        1,
        size,
        size,
        _winapi.NMPWAIT_WAIT_FOREVER,
        _winapi.NULL,
    )
    if ours_reads:
        access = _winapi.GENERIC_WRITE | FILE_READ_ATTRIBUTES
    else:
        access = _winapi.GENERIC_READ | FILE_WRITE_ATTRIBUTES
    try:
        theirs = _winapi.CreateFile(
            name, access, 0, _winapi.NULL, _winapi.OPEN_EXISTING, 0, _winapi.NULL
        )
    except BaseException:
        _winapi.CloseHandle(ours)
        raise
    return ours, theirs


def _has_standard(number: int) -> bool:
    """Whether there is such a stream of ours to inherit. A program without a console has
    none, or the number of one that is closed, which Popen trips over
    (python/cpython#48155)."""
    process = _winapi.GetCurrentProcess()
    try:
        handle = _winapi.GetStdHandle(STANDARD[number])
        if not handle:
            return False
        copy = _winapi.DuplicateHandle(
            process, handle, process, 0, False, _winapi.DUPLICATE_SAME_ACCESS
        )
    except OSError:
        return False
    _winapi.CloseHandle(copy)
    return True


class Stdio(BaseStdio[PipeWriteEnd, PipeReadEnd]):
    __slots__ = ("_to_close", "theirs")

    def __init__(self, watcher: Watcher[Any]) -> None:
        super().__init__(watcher)
        #: What Popen gets: None, a descriptor, DEVNULL or STDOUT.
        self.theirs: list[int | None] = [None, None, None]
        #: The descriptors that were made for it.
        self._to_close: list[int] = []

    def finish(self) -> None:
        close_all(self._to_close, os.close)

    def _undo(self) -> None:
        super()._undo()
        self.finish()

    def _pipe(self, number: int, size: int, port: Port) -> None:
        ours, theirs = make_pipe(size, ours_reads=number > 0)
        try:
            if number == 0:
                self.stdin = PipeWriteEnd(port, ours, self.context)
            elif number == 1:
                self.stdout = PipeReadEnd(port, ours, self.context)
            else:
                self.stderr = PipeReadEnd(port, ours, self.context)
        except BaseException:
            _winapi.CloseHandle(ours)
            _winapi.CloseHandle(theirs)
            raise
        try:
            fd = msvcrt.open_osfhandle(theirs, os.O_RDONLY if number == 0 else 0)
        except BaseException:
            _winapi.CloseHandle(theirs)
            raise
        self._to_close.append(fd)
        self.theirs[number] = fd

    def open(self, spec: SpawnSpec, port: Port) -> None:
        for number, source in enumerate(spec.stdio):
            if source == PIPE:
                self._pipe(number, spec.pipesize if spec.pipesize > 0 else PIPE_SIZE, port)
            else:
                self.theirs[number] = source
        if any(source is not None for source in spec.stdio):
            for number in range(2 if spec.stderr_to_stdout else 3):
                if self.theirs[number] is None and not _has_standard(number):
                    self.theirs[number] = DEVNULL
