"""Pipes on POSIX: our ends by ``add_reader``/``add_writer``, theirs as plain numbers.

Shared by the rooms that hand file descriptors to a child.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .base import generation
from .residents import Resident
from .stdio import BaseStdio

if TYPE_CHECKING:
    from .._spec import SpawnSpec

try:
    from fcntl import F_GETPIPE_SZ, F_SETPIPE_SZ, fcntl
except ImportError:  # no Linux: pipes have the size they have
    F_SETPIPE_SZ = 0  # type: ignore[misc]

DEVNULL, PIPE = -3, -1


#: What a pipe of a bulky flow holds, in bytes. Four times the default carries two to
#: three times as much into a child; more gains nothing.
LARGE = 256 * 1024
#: How many pipes may be large at a time. An ordinary user has 16384 pages for pipes
#: larger than the default (pipe(7), pipe-user-pages-soft); beyond, new pipes shrink, for
#: all of the user's programs. This is a sixteenth of it.
MOST_LARGE = 16

_large = 0


class _End:
    __slots__ = ("_context", "_fd", "_generation", "_large", "_loop", "_watched")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, context: contextvars.Context
    ) -> None:
        self._loop = loop
        self._context = context
        self._fd = fd
        self._watched = False
        self._large = False
        self._generation = generation.number

    def enlarge(self) -> bool:
        global _large
        if self._large or not F_SETPIPE_SZ or _large >= MOST_LARGE:
            return self._large
        try:
            if fcntl(self._fd, F_GETPIPE_SZ) < LARGE:
                fcntl(self._fd, F_SETPIPE_SZ, LARGE)
        except OSError:  # EPERM: the user has too many
            return False
        self._large = True
        _large += 1
        return True

    def _close_fd(self) -> None:
        global _large
        fd, self._fd = self._fd, -1
        if self._large:
            self._large = False
            _large -= 1
        os.close(fd)

    def fileno(self) -> int:
        return self._fd

    def _register(self, register: Callable[..., object], callback: Callable[[], None]) -> None:
        """add_reader or add_writer, in the contextvars of the child's creation: that of
        whoever pauses and resumes is another."""
        # Of a copy, since we may be called from the midst of the context itself.
        self._context.copy().run(register, self._fd, callback)

    def _ours(self) -> bool:
        return self._generation == generation.number and not self._loop.is_closed()


def _closed(_: object) -> Any:
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class FdReadEnd(_End):
    __slots__ = ("read",)

    #: ReadEnd.read, without a Python function between.
    read: Callable[[int], bytes]

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, context: contextvars.Context
    ) -> None:
        super().__init__(loop, fd, context)
        self.read = partial(os.read, fd)

    def readinto(self, buffer: bytearray) -> int:
        return os.readv(self._fd, (buffer,))

    def watch(self, callback: Callable[[], None]) -> None:
        if not self._watched:
            self._register(self._loop.add_reader, callback)
            self._watched = True

    def unwatch(self) -> None:
        if self._watched:
            self._watched = False
            if self._ours():
                self._loop.remove_reader(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            self.unwatch()
            self.read = _closed
            self._close_fd()


class FdWriteEnd(_End):
    __slots__ = ("_reader_watched", "write")

    #: WriteEnd.write, likewise.
    write: Callable[[bytes | memoryview], int]

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, context: contextvars.Context
    ) -> None:
        super().__init__(loop, fd, context)
        self._reader_watched = False
        self.write = partial(os.write, fd)

    def watch(self, callback: Callable[[], None]) -> None:
        if not self._watched:
            self._register(self._loop.add_writer, callback)
            self._watched = True

    def unwatch(self) -> None:
        if self._watched:
            self._watched = False
            if self._ours():
                self._loop.remove_writer(self._fd)

    def watch_reader(self, callback: Callable[[], None]) -> None:
        # The writing end of a pipe reports an error condition, which is an event for
        # readers and writers alike, when the last reading end is gone (poll(2)).
        if not self._reader_watched:
            self._register(self._loop.add_reader, callback)
            self._reader_watched = True

    def close(self) -> None:
        fd = self._fd
        if fd >= 0:
            self.unwatch()
            if self._reader_watched:
                self._reader_watched = False
                if self._ours():
                    self._loop.remove_reader(fd)
            self.write = _closed
            self._close_fd()


def _is_uvloops(loop: asyncio.AbstractEventLoop) -> bool:
    module = sys.modules.get("uvloop.loop")  # there if anybody has such a loop
    return module is not None and isinstance(loop, module.Loop)


class Stdio(BaseStdio[FdWriteEnd, FdReadEnd]):
    __slots__ = ("theirs",)

    def __init__(self, resident: Resident[Any]) -> None:
        super().__init__(resident)
        #: What the child gets as 0, 1, 2; -1: what we have.
        self.theirs = [-1, -1, -1]

    def _pipe(self, pipesize: int) -> tuple[int, int]:
        reader, writer = os.pipe()
        if pipesize > 0 and F_SETPIPE_SZ:
            try:
                fcntl(writer, F_SETPIPE_SZ, pipesize)
            except BaseException:
                os.close(reader)
                os.close(writer)
                raise
        return reader, writer

    def open(self, spec: SpawnSpec, loop: asyncio.AbstractEventLoop) -> None:
        for number, source in enumerate(spec.stdio):
            if source is None:
                continue
            if source == PIPE:
                reader, writer = self._pipe(spec.pipesize)
                theirs, ours = (reader, writer) if number == 0 else (writer, reader)
                self._to_close.append(theirs)
                self.theirs[number] = theirs
                if number == 0:
                    self.stdin = FdWriteEnd(loop, ours, self.context)
                elif number == 1:
                    self.stdout = FdReadEnd(loop, ours, self.context)
                else:
                    self.stderr = FdReadEnd(loop, ours, self.context)
                # Of our end only: the flag is the end's, and programs expect blocking.
                os.set_blocking(ours, False)
            elif source == DEVNULL:
                fd = os.open(os.devnull, os.O_RDWR)
                self._to_close.append(fd)
                self.theirs[number] = fd
            else:
                self.theirs[number] = source
        if spec.stderr_to_stdout:
            # Without a stdout of its own the child has ours.
            self.theirs[2] = self.theirs[1] if self.theirs[1] >= 0 else 1
        if _is_uvloops(loop):
            self._make_blocking(spec)

    def _make_blocking(self, spec: SpawnSpec) -> None:
        """What the child gets of us; programs expect it. uvloop's own children have it from
        libuv (uv__process_child_init in src/unix/process.c), asyncio's have not. The flag
        belongs to whoever has the stream open, so it changes for us as well, there as here.
        """
        for number, source in enumerate(spec.stdio):
            if source is None or source >= 0:
                fd = self.theirs[number] if self.theirs[number] >= 0 else number
                try:
                    if not os.get_blocking(fd):
                        os.set_blocking(fd, True)
                except OSError:
                    pass  # closed; the spawn says so, if it minds
