"""Pipes on POSIX: our ends by ``add_reader``/``add_writer``, theirs as plain numbers.

Shared by the backends that hand file descriptors to a child.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import weakref
from collections.abc import Callable
from functools import partial
from itertools import chain, count, starmap
from typing import TYPE_CHECKING, Any

from ..base import generation, logger
from ..stdio import DEVNULL, PIPE, BaseStdio, close_all
from ..watcher import Watcher

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec

try:
    from fcntl import F_GETPIPE_SZ, F_SETPIPE_SZ, fcntl
except ImportError:  # no Linux: pipes have the size they have
    F_SETPIPE_SZ = 0  # type: ignore[misc]

#: What a pipe of a bulky flow holds, in bytes. Four times the default carries two to
#: three times as much into a child; more gains nothing.
LARGE = 256 * 1024
#: How many pipes may be large at a time. An ordinary user has 16384 pages for pipes
#: larger than the default (pipe(7), pipe-user-pages-soft); beyond, new pipes shrink, for
#: all of the user's programs. This is a sixteenth of it.
MOST_LARGE = 16


#: Our ends that are open, by their numbers. They hold nothing that holds others.
_open: dict[int, _End] = {}
#: Those of them that are large.
_large: set[int] = set()
#: Children that are being made, by id(): a fork may come from another thread.
_making: dict[int, Stdio] = {}


class _End:
    __slots__ = ("_fd", "_generation", "_loop", "_watched")

    def __init__(self, loop: weakref.ref[asyncio.AbstractEventLoop], fd: int) -> None:
        # A loop that is dropped must not be held by _open.
        self._loop = loop
        #: In _open once there is a child.
        self._fd = fd
        self._watched = False
        self._generation = generation.number

    def enlarge(self) -> bool:
        if self._fd in _large or not F_SETPIPE_SZ or len(_large) >= MOST_LARGE:
            return self._fd in _large
        try:
            if fcntl(self._fd, F_GETPIPE_SZ) < LARGE:
                fcntl(self._fd, F_SETPIPE_SZ, LARGE)
        except OSError:  # EPERM: the user has too many
            return False
        _large.add(self._fd)
        return True

    def _close_fd(self) -> None:
        fd = self._fd
        self._fd = -1
        if _open.get(fd) is not self:
            return  # not our own yet: Stdio closes it
        del _open[fd]
        if _large:
            _large.discard(fd)
        try:
            os.close(fd)
        except OSError as error:  # as in close_all
            logger.error("our end of a child's pipe cannot be closed: %s", error)

    def disown(self) -> None:
        """In a forked process, where the number has been closed: is as good as closed."""
        self._fd = -1
        self._watched = False

    def fileno(self) -> int:
        return self._fd

    def _unregister(self, name: str) -> None:
        """Calls remove_reader or remove_writer, if that is ours to do."""
        loop = self._loop()
        if self._generation == generation.number and loop is not None and not loop.is_closed():
            getattr(loop, name)(self._fd)


#: No descriptors: for pipes of which we do not keep any.
_claims = count(-1, -1)
#: Ends of pipes between two children, until both have theirs.
_between: set[int] = set()


def open_between(size: int = -1) -> tuple[int, int, int]:
    """A pipe, both ends of which are for children: the reading end, the writing one, and what
    is to be given to forget_between() when they have ended. size: what it is to hold; by
    default much, as long as there are few such pipes."""
    reader, writer = os.pipe()
    _between.update((reader, writer))
    claim = 0
    if F_SETPIPE_SZ:
        try:
            if size > 0:
                fcntl(writer, F_SETPIPE_SZ, size)
            elif len(_large) < MOST_LARGE:
                # Children in sessions of their own would hold each other up: they are groups
                # of their own for the scheduler (sched(7), autogroup), which switches twice as
                # often between them as in a shell's pipeline.
                fcntl(writer, F_SETPIPE_SZ, LARGE)
                claim = next(_claims)
                _large.add(claim)
        except OSError:
            if size > 0:
                close_between(reader)
                close_between(writer)
                raise
    return reader, writer, claim


def forget_between(claim: int) -> None:
    _large.discard(claim)


def duplicate_between(fd: int) -> int:
    """Another number for the same end."""
    other = os.dup(fd)
    _between.add(other)
    return other


def close_between(fd: int) -> None:
    if fd in _between:
        _between.discard(fd)
        close_all([fd], os.close)


def read_between(fd: int, loop: asyncio.AbstractEventLoop) -> FdReadEnd:
    """The reading end, which is ours after all."""
    os.set_blocking(fd, False)
    end = FdReadEnd(weakref.ref(loop), fd)
    _between.discard(fd)
    _open[fd] = end
    return end


def _closed(_: object) -> Any:
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class FdReadEnd(_End):
    __slots__ = ("read",)

    is_lazy = True

    #: ReadEnd.read, without a Python function between.
    read: Callable[[int], bytes]

    def __init__(self, loop: weakref.ref[asyncio.AbstractEventLoop], fd: int) -> None:
        super().__init__(loop, fd)
        self.read = partial(os.read, fd)

    def readinto(self, buffer: bytearray) -> int:
        return os.readv(self._fd, (buffer,))

    def is_arriving(self) -> bool:
        return False

    def watch(self, callback: Callable[[], None]) -> None:
        if not self._watched and self._fd >= 0:
            self._watched = True
            try:
                self._loop().add_reader(self._fd, callback)  # type: ignore[union-attr]
            except BaseException:
                self.unwatch()  # Ctrl-C may have come in the midst of it
                raise

    def unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._unregister("remove_reader")

    def close(self) -> None:
        if self._fd >= 0:
            self.read = _closed
            try:
                self.unwatch()
            finally:
                self._close_fd()

    def disown(self) -> None:
        super().disown()
        self.read = _closed


class FdWriteEnd(_End):
    __slots__ = ("_reader_watched", "write")

    #: WriteEnd.write, likewise.
    write: Callable[[bytes | memoryview], int]

    def __init__(self, loop: weakref.ref[asyncio.AbstractEventLoop], fd: int) -> None:
        super().__init__(loop, fd)
        self._reader_watched = False
        self.write = partial(os.write, fd)

    def watch(self, callback: Callable[[], None]) -> None:
        if not self._watched and self._fd >= 0:
            self._watched = True
            try:
                self._loop().add_writer(self._fd, callback)  # type: ignore[union-attr]
            except BaseException:
                self.unwatch()
                raise

    def unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._unregister("remove_writer")

    def watch_reader(self, callback: Callable[[], None]) -> None:
        # The writing end of a pipe reports an error condition, which is an event for
        # readers and writers alike, when the last reading end is gone (poll(2)).
        if not self._reader_watched and self._fd >= 0:
            self._reader_watched = True
            try:
                self._loop().add_reader(self._fd, callback)  # type: ignore[union-attr]
            except BaseException:
                self._unwatch_reader()
                raise

    def _unwatch_reader(self) -> None:
        if self._reader_watched:
            self._reader_watched = False
            self._unregister("remove_reader")

    def close(self) -> None:
        if self._fd >= 0:
            self.write = _closed
            try:
                self.unwatch()
                self._unwatch_reader()
            finally:
                self._close_fd()

    def disown(self) -> None:
        super().disown()
        self._reader_watched = False
        self.write = _closed


#: For as many calls as there are streams.
_NO_ARGUMENTS: tuple[tuple[()], ...] = ((), (), ())
#: What makes one number of /dev/null.
_OPEN_NULL = ((os.devnull, os.O_RDWR),)


def is_uvloops(loop: asyncio.AbstractEventLoop) -> bool:
    module = sys.modules.get("uvloop.loop")  # there if anybody has such a loop
    return module is not None and isinstance(loop, module.Loop)


def make_blocking(spec: SpawnSpec) -> None:
    """What the child gets of us; programs expect it. uvloop's own children have it from
    libuv (uv__process_child_init in src/unix/process.c), asyncio's have not. The flag
    belongs to whoever has the stream open, so it changes for us as well, there as here.
    """
    for number, source in enumerate(spec.stdio):
        if number == 2 and spec.stderr_to_stdout:
            continue  # that is stdout's
        if source is None or source >= 0:
            fd = number if source is None else source
            try:
                if not os.get_blocking(fd):
                    os.set_blocking(fd, True)
            except OSError:
                pass  # closed; the spawn says so, if it minds


#: Not to be changed.
_NOTHING: list[int] = []


class Stdio(BaseStdio[FdWriteEnd, FdReadEnd]):
    __slots__ = ("_made", "_request", "_to_close", "theirs")

    def __init__(self, watcher: Watcher[Any]) -> None:
        super().__init__(watcher)
        #: All that has been opened; ours too, until they are their own.
        self._made = _NOTHING
        #: Of these, the child's.
        self._to_close = _NOTHING
        #: An ap_request of the C layer, which opens them for the native backend, and where
        #: our ends are until they are their own.
        self._request: Any = None

    def expect(self, request: Any) -> None:
        """The C layer is going to open them."""
        self._request = request
        _making[id(self)] = self

    def take(self) -> None:
        """The C layer has opened them."""
        if self._request is None:
            return  # and they have been closed since
        held = self.watcher._loop
        stdin, stdout, stderr = self._request.ours
        if stdin >= 0:
            self.stdin = FdWriteEnd(held, stdin)
        if stdout >= 0:
            self.stdout = FdReadEnd(held, stdout)
        if stderr >= 0:
            self.stderr = FdReadEnd(held, stderr)

    def ours(self) -> Any:
        """The numbers of what it has opened."""
        return self._request.ours

    def note_closed(self, left: int) -> None:
        """The C layer has closed stdout and stderr, but for those with a bit in `left`."""
        for i in (1, 2):
            if not left & i:
                self._request.ours[i] = -1

    def forget(self) -> None:
        """It has closed all of them."""
        self._request = None
        del _making[id(self)]

    def begin(self) -> list[int]:
        """They are opened by the caller, one after the other, into this list."""
        _making[id(self)] = self
        self._made = []
        return self._made

    def set_terminal(self, ours: FdWriteEnd, output: FdReadEnd, theirs: int) -> None:
        """All three of them are one."""
        self.terminal = self.stdin = ours
        self.stdout = output
        self.theirs = [theirs, theirs, theirs]
        self._to_close = [theirs]

    def open(self, spec: SpawnSpec, loop: asyncio.AbstractEventLoop) -> None:
        #: What the child gets as 0, 1, 2; -1: what we have.
        self.theirs = [-1, -1, -1]
        sources = spec.stdio
        made = self._made = []
        self._to_close = []
        held = weakref.ref(loop)
        pipes = sources.count(PIPE)
        if pipes:
            _making[id(self)] = self
            made.extend(chain.from_iterable(starmap(os.pipe, _NO_ARGUMENTS[:pipes])))
        at = 0
        for number, source in enumerate(sources):
            if source is None:
                continue
            if source == PIPE:
                reader, writer = made[at], made[at + 1]
                at += 2
                if spec.pipesize > 0 and F_SETPIPE_SZ:
                    fcntl(writer, F_SETPIPE_SZ, spec.pipesize)
                theirs, ours = (reader, writer) if number == 0 else (writer, reader)
                self._to_close.append(theirs)
                self.theirs[number] = theirs
                if number == 0:
                    self.stdin = FdWriteEnd(held, ours)
                elif number == 1:
                    self.stdout = FdReadEnd(held, ours)
                else:
                    self.stderr = FdReadEnd(held, ours)
                # Of our end only: the flag is the end's, and programs expect blocking.
                os.set_blocking(ours, False)
            elif source == DEVNULL:
                made.extend(starmap(os.open, _OPEN_NULL))
                self.theirs[number] = made[-1]
                self._to_close.append(made[-1])
            else:
                self.theirs[number] = source
        if spec.stderr_to_stdout:
            # Without a stdout of its own the child has ours.
            self.theirs[2] = self.theirs[1] if self.theirs[1] >= 0 else 1
        if is_uvloops(loop):
            make_blocking(spec)

    def finish(self) -> None:
        stdin, stdout, stderr = self.stdin, self.stdout, self.stderr
        # Without a call.
        making = self._request is not None or self._made
        self._request = None
        made = self._made = self._to_close
        if stdin is not None:
            _open[stdin._fd] = stdin
        if stdout is not None:
            _open[stdout._fd] = stdout
        if stderr is not None:
            _open[stderr._fd] = stderr
        if making:
            if made:
                close_all(made, os.close)
            _making.pop(id(self), None)

    def _undo(self) -> None:
        super()._undo()
        self._close_all()
        _making.pop(id(self), None)

    def _close_all(self) -> None:
        close_all(self._made, os.close)
        request, self._request = self._request, None
        if request is not None:
            for i in range(3):
                fd, request.ours[i] = request.ours[i], -1
                if fd >= 0:
                    close_all([fd], os.close)

    def disown(self) -> None:
        """In a forked process: the child to be is the parent's."""
        self._close_all()
        for end in (self.stdin, self.stdout, self.stderr):
            if end is not None:
                end.disown()


def _after_fork_in_child() -> None:
    """Closes the copies of our ends: a worker that lives on would keep the end of its
    input from a child of the parent's, and the end of a pipe from the parent.

    The parent's registrations stay as they are: they belong to what both numbers are
    copies of, not to the number (epoll(7)).
    """
    caller = sys._getframe().f_back
    if caller is not None and caller.f_globals.get("__name__") == "subprocess":
        # Popen with a preexec_fn; the numbers may be those that it passes on. The others
        # are closed by the exec.
        return
    for stdio in list(_making.values()):
        stdio.disown()
    close_all(list(_between), os.close)
    _between.clear()
    ends = list(_open.items())
    _making.clear()
    _open.clear()
    _large.clear()
    for fd, end in ends:
        end.disown()
        close_all([fd], os.close)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
