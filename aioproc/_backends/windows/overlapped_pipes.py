"""Pipes of the pure backend on Windows: our ends, by operations that the loop's completion
port tells of, and theirs as descriptors."""

from __future__ import annotations

import _winapi
import contextvars
import msvcrt
import os
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..stdio import DEVNULL, PIPE, BaseStdio, close_all
from ..watcher import Watcher
from .ends import BaseEnd, closed, not_yet
from .overlapped import Port

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec

#: Bytes that Windows keeps for a pipe's reader.
PIPE_SIZE = 64 * 1024
#: Bytes asked for by one read: the larger number once a read has filled the smaller.
SMALL, LARGE = 8 * 1024, 64 * 1024
#: Most bytes of one write under way.
MOST_WRITTEN = 64 * 1024

#: Of stdin, stdout and stderr, as GetStdHandle takes them.
STANDARD = _winapi.STD_INPUT_HANDLE, _winapi.STD_OUTPUT_HANDLE, _winapi.STD_ERROR_HANDLE

PIPE_REJECT_REMOTE_CLIENTS = 0x8
FILE_READ_ATTRIBUTES, FILE_WRITE_ATTRIBUTES = 0x80, 0x100


class _End(BaseEnd):
    """Its operations are under way at the port, which tells it of their ends."""

    __slots__ = ("__weakref__", "_error", "_operation", "_port")

    def __init__(self, port: Port, handle: int, context: contextvars.Context) -> None:
        port.join(self, handle)
        super().__init__(handle, context)
        self._port = port
        #: What is under way.
        self._operation: Any = None
        self._error: OSError | None = None

    def watch(self, callback: Callable[[], None]) -> None:
        if self._callback is None:
            self._callback = callback
            self._port.call_soon(self._notify)

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

    def cancel(self) -> None:
        """The port closes. The pipe stays open: its end would tell the child something."""
        self._callback = None
        if self._operation is not None:
            self._operation.cancel()

    def _check(self) -> None:
        if self._handle < 0:
            raise closed()

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

    #: A read that has been started has to be told of, watched or not.
    is_lazy = False

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

    def is_arriving(self) -> bool:
        return self._operation is not None and not self._operation.pending

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
        raise not_yet()

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
            raise not_yet()
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
