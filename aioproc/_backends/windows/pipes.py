"""Pipes of the native backend on Windows: our ends, whose operations are the C layer's, and
theirs as handles."""

from __future__ import annotations

import asyncio
import contextvars
import msvcrt
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..stdio import DEVNULL, PIPE, BaseStdio, close_all
from ..watcher import Watcher
from .ends import BaseEnd, closed, not_yet
from .lib import check, ffi, lib, windows_error
from .port import Port

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec

_PENDING = -lib.AP_PENDING

#: What the system buffers of a pipe, in bytes.
_BUFFERED = 64 * 1024
#: Most bytes of one read: at first, when a read has filled that, of a bulky flow.
_SMALL, _MEDIUM, _LARGE = 8 * 1024, 64 * 1024, 256 * 1024


class _End(BaseEnd):
    """Its operations are the C layer's; the port tells it of their ends."""

    __slots__ = ("_key", "_loop", "_pipe", "_port", "_scheduled", "_suspended")

    def __init__(
        self,
        port: Port,
        loop: asyncio.AbstractEventLoop,
        key: int,
        pipe: Any,
        context: contextvars.Context,
    ) -> None:
        super().__init__(lib.ap_pipe_handle(pipe), context)
        self._port: Port | None = port
        self._loop = loop
        self._key = key
        self._pipe = pipe
        self._scheduled = False
        self._suspended = False

    def watch(self, callback: Callable[[], None]) -> None:
        if self._callback is None:
            self._callback = callback
            self._arm()

    def unwatch(self) -> None:
        super().unwatch()
        self._suspended = False

    def _arm(self) -> None:
        """Has _fire called as soon as there is a reason."""
        raise NotImplementedError

    def _fire_soon(self) -> None:
        if not self._scheduled and not self._loop.is_closed():
            self._scheduled = True
            self._loop.call_soon(self._fire_now)

    def _fire_now(self) -> None:
        self._scheduled = False
        self._fire()

    def _fire(self) -> None:
        callback = self._callback
        if callback is None:
            return
        try:
            self._call(callback)
        finally:
            if self._callback is not None and self._pipe is not None:
                self._arm()

    def read_done(self, result: int) -> None:
        """AP_READ has come."""

    def write_done(self) -> None:
        """AP_WRITTEN has come."""

    def suspend(self) -> list[Callable[[], None] | None]:
        """Lets go of who is to be called; for `resume`."""
        callback, self._callback = self._callback, None
        self._suspended = callback is not None
        return [callback]

    def resume(self, callbacks: list[Callable[[], None] | None]) -> None:
        callback = callbacks[0]
        # Unless it was closed or unwatched meanwhile.
        if self._pipe is not None and self._suspended and callback is not None:
            self._suspended = False
            self.watch(callback)

    def forget(self) -> None:
        """The port closes: nothing will be told any more."""
        self.suspend()
        self._port = None

    def close(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is None:
            return
        self._handle = -1
        self._callback = None
        port, self._port = self._port, None
        lib.ap_pipe_close(pipe)
        if port is not None:
            port.remove_end(self._key)


class PipeReadEnd(_End):
    __slots__ = ("_at", "_pending", "_result", "_size")

    #: A read that has been started has to be told of, watched or not.
    is_lazy = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._size = _SMALL
        self._pending = False
        #: What the last read gave and nobody has taken: bytes, 0 at the end, -error.
        self._result: int | None = None
        #: How much of it has been taken.
        self._at = 0

    def _start(self) -> bool:
        """Whether there is a result by now."""
        if self._result is None and not self._pending:
            result = lib.ap_pipe_read(self._pipe, self._size)
            if result == _PENDING:
                self._pending = True
            else:
                self._result = result
        return self._result is not None

    def _arm(self) -> None:
        if self._start():
            self._fire_soon()

    def read_done(self, result: int) -> None:
        self._pending = False
        self._result = result
        self._fire()

    def _look(self, most: int) -> tuple[int, int]:
        """Where in the C layer's buffer there are how many bytes to take."""
        if self._pipe is None:
            raise closed()
        if not self._start():
            raise not_yet()
        result = self._result
        assert result is not None
        if result < 0:
            raise windows_error(-result)
        return self._at, min(most, result - self._at)

    def _took(self, n: int) -> None:
        result = self._result
        self._at += n
        if result and self._at == result:
            self._result = None
            self._at = 0
            if result == self._size < _MEDIUM:
                self._size = _MEDIUM

    def read(self, n: int) -> bytes:
        start, n = self._look(n)
        data: bytes = ffi.buffer(lib.ap_pipe_data(self._pipe) + start, n)[:] if n else b""
        self._took(n)  # not before there was memory for it
        return data

    def readinto(self, buffer: bytearray) -> int:
        start, n = self._look(len(buffer))
        if n:
            ffi.memmove(buffer, lib.ap_pipe_data(self._pipe) + start, n)
        self._took(n)
        return n

    def is_arriving(self) -> bool:
        return self._pending and self._pipe is not None and bool(lib.ap_pipe_arriving(self._pipe))

    def enlarge(self) -> bool:
        self._size = _LARGE
        return True


class PipeWriteEnd(_End):
    """What write() has taken is in the pipe, for whoever calls it: it still goes out
    after close()."""

    __slots__ = ("_on_reader_gone", "_reader_gone", "_reader_watched")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._on_reader_gone: Callable[[], None] | None = None
        self._reader_watched = self._reader_gone = False

    def write(self, data: bytes | memoryview) -> int:
        if self._pipe is None:
            raise closed()
        n: int = lib.ap_pipe_write(self._pipe, ffi.from_buffer(data), len(data))
        if n == _PENDING:
            raise not_yet()
        return check(n)

    def _arm(self) -> None:
        if not lib.ap_pipe_writing(self._pipe):
            self._fire_soon()

    def write_done(self) -> None:
        self._fire()

    def watch_reader(self, callback: Callable[[], None]) -> None:
        if self._on_reader_gone is not None or self._pipe is None:
            return
        self._on_reader_gone = callback
        if not self._reader_watched:
            # By a read from this end, into which nobody can write.
            self._reader_watched = True
            self._reader_gone = lib.ap_pipe_read(self._pipe, 1) != _PENDING
        if self._reader_gone:
            self._loop.call_soon(self.read_done, 0)

    def read_done(self, result: int) -> None:
        self._reader_gone = True
        callback, self._on_reader_gone = self._on_reader_gone, None
        if callback is not None and self._pipe is not None:
            self._call(callback)

    def suspend(self) -> list[Callable[[], None] | None]:
        callback, self._on_reader_gone = self._on_reader_gone, None
        return [*super().suspend(), callback]

    def resume(self, callbacks: list[Callable[[], None] | None]) -> None:
        super().resume(callbacks)
        if callbacks[1] is not None:
            self.watch_reader(callbacks[1])

    def close(self) -> None:
        self._on_reader_gone = None
        super().close()


def _open_null() -> int:
    handle = ffi.new("int64_t *")
    try:
        check(lib.ap_null_open(handle))
        return int(handle[0])
    except BaseException:
        if handle[0]:  # Ctrl-C
            lib.ap_handle_close(handle[0])
        raise


class Stdio(BaseStdio[PipeWriteEnd, PipeReadEnd]):
    __slots__ = ("_made", "_to_close", "theirs")

    def __init__(self, watcher: Watcher[Any]) -> None:
        super().__init__(watcher)
        #: The child's handles; 0: what we have. None: it gets nothing from us.
        self.theirs: list[int] | None = None
        #: Of these, those that were opened for it.
        self._to_close: list[int] = []
        #: A pipe that is no end's yet.
        self._made: Any = None

    def finish(self) -> None:
        close_all(self._to_close, lib.ap_handle_close)

    def _undo(self) -> None:
        super()._undo()
        pipe, self._made = self._made, None
        if pipe is not None:
            lib.ap_pipe_close(pipe)
        self.finish()

    def open(self, spec: SpawnSpec, port: Port, loop: asyncio.AbstractEventLoop) -> None:
        if spec.stdio == (None, None, None) and not spec.stderr_to_stdout:
            return
        self.theirs = [0, 0, 0]
        size = spec.pipesize if spec.pipesize > 0 else _BUFFERED
        for number, source in enumerate(spec.stdio):
            if source is None:
                continue
            if source == PIPE:
                what = lib.AP_WE_WRITE if number == 0 else lib.AP_WE_READ
                key, self._made, theirs = port.open_pipe(what, size)
                self._to_close.append(theirs)
                self.theirs[number] = theirs
                if number == 0:
                    self.stdin = PipeWriteEnd(port, loop, key, self._made, self.context)
                    port.ends[key] = self.stdin
                elif number == 1:
                    self.stdout = PipeReadEnd(port, loop, key, self._made, self.context)
                    port.ends[key] = self.stdout
                else:
                    self.stderr = PipeReadEnd(port, loop, key, self._made, self.context)
                    port.ends[key] = self.stderr
                self._made = None
            elif source == DEVNULL:
                theirs = _open_null()
                self._to_close.append(theirs)
                self.theirs[number] = theirs
            else:
                self.theirs[number] = msvcrt.get_osfhandle(source)
