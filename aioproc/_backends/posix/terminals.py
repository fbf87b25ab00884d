"""Pseudoterminals on POSIX: ours is the master's side, by two descriptors, theirs the slave.

Two, since a loop has one entry for a number: who writes and who reads must not meet in it. The
one that is read is closed at its end, which comes when nobody has the slave open; the other is
kept until the child is given up, since closing the last of them hangs up, by SIGHUP.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import struct
import sys
import weakref
from collections.abc import Callable
from functools import partial
from itertools import chain, starmap
from typing import TYPE_CHECKING, Any

from ..stdio import close_all
from .pipes import FdReadEnd, FdWriteEnd, Stdio

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec

try:
    import fcntl
    import termios
except ImportError:  # Emscripten, WASI: nothing will be spawned
    pass

_PTMX = "/dev/ptmx"
#: include/uapi/asm-generic/ioctls.h; Python has no names for them. TIOCGPTPEER (Linux 4.13)
#: opens the slave of a master, wherever its name may be mounted.
_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441

#: Those that a terminal sends. Ignored, as a shell has them for what runs in its background,
#: they would pass through the exec, and Ctrl-C and the end of the terminal with them.
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTSTP", "SIGTTIN", "SIGTTOU")
    if hasattr(signal, name)
)


def open_terminal(stdio: Stdio, spec: SpawnSpec, loop: asyncio.AbstractEventLoop) -> None:
    """As Stdio.open, for a child with a terminal. OSError: there is none."""
    assert spec.terminal is not None
    made = stdio.begin()
    # Each is in the list by the call that has made it (see stdio.py).
    if sys.platform not in ("linux", "android") or not _open_linux(made):
        made.extend(chain.from_iterable(starmap(os.openpty, ((),))))
    master, slave = made[0], made[1]
    made.extend(starmap(fcntl.fcntl, ((master, fcntl.F_DUPFD_CLOEXEC, 3),)))
    os.set_blocking(master, False)  # of what both of them are copies of
    set_size(slave, *spec.terminal)
    if not spec.echo:
        try:
            attributes = termios.tcgetattr(slave)
            attributes[3] &= ~termios.ECHO
            termios.tcsetattr(slave, termios.TCSANOW, attributes)
        except termios.error as error:  # which is no OSError
            raise OSError(*error.args) from None
    if spec.user is not None:
        try:
            os.fchown(slave, spec.user, -1)  # for those who open it by its name
        except PermissionError:
            pass  # then the change of ids will be refused as well
    held = weakref.ref(loop)
    terminal = TerminalWriteEnd(held, made[2])
    stdio.set_terminal(terminal, TerminalReadEnd(held, master), slave)


def _open_linux(made: list[int]) -> bool:
    """As os.openpty(), whose descriptors a fork in another thread can carry along: then the
    terminal never ends. False: these numbers mean nothing here (PowerPC, mips)."""
    flags = os.O_RDWR | os.O_NOCTTY
    try:
        made.extend(starmap(os.open, ((_PTMX, flags),)))
        master = made[0]
        try:
            fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
            peer = (master, _TIOCGPTPEER, flags | os.O_CLOEXEC)
            made.extend(starmap(fcntl.ioctl, (peer,)))
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.ENOSYS):
                raise
            close_all(made, os.close)
            return False
    except OSError as error:
        raise _explained(error) from None
    return True


def _explained(error: OSError) -> OSError:
    """What it means for a terminal."""
    text = os.strerror(error.errno or 0)
    if error.errno == errno.ENOSPC:
        text += ": all terminals are in use (kernel.pty.max)"
    elif error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EIO):
        # Not ENOENT, which is said of programs.
        text = f"no terminal can be opened ({text}): is devpts mounted on /dev/pts?"
        return OSError(errno.ENODEV, text, _PTMX)
    return OSError(error.errno, text, _PTMX)


def set_size(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def on_terminal(preexec_fn: Callable[[], Any] | None) -> Callable[[], None]:
    """For Popen: has stdin, the slave, control the session."""

    def in_child() -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if preexec_fn is not None:
            preexec_fn()

    return in_child


def _read(fd: int, n: int) -> bytes:
    try:
        return os.read(fd, n)
    except OSError as error:
        if error.errno == errno.EIO:  # nobody has the slave open (pty(7) knows it from Linux)
            return b""
        raise


def _write(fd: int, data: bytes | memoryview) -> int:
    try:
        return os.write(fd, data)
    except OSError as error:
        if error.errno == errno.EIO:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
        raise


class TerminalReadEnd(FdReadEnd):
    """What is written to a terminal."""

    __slots__ = ()

    def __init__(self, loop: weakref.ref[asyncio.AbstractEventLoop], fd: int) -> None:
        super().__init__(loop, fd)
        self.read = partial(_read, fd)

    def readinto(self, buffer: bytearray) -> int:
        try:
            return super().readinto(buffer)
        except OSError as error:
            if error.errno == errno.EIO:
                return 0
            raise

    def enlarge(self) -> bool:
        return False  # the kernel's 64 KiB (tty_buffer.c)


class TerminalWriteEnd(FdWriteEnd):
    """What is typed at a terminal; base.Terminal.

    Closed, it takes nothing more; the terminal stays until `hang_up`.
    """

    __slots__ = ("_is_closed",)

    def __init__(self, loop: weakref.ref[asyncio.AbstractEventLoop], fd: int) -> None:
        super().__init__(loop, fd)
        self._is_closed = False
        self.write = partial(_write, fd)

    def fileno(self) -> int:
        return -1 if self._is_closed else self._fd

    def watch_reader(self, callback: Callable[[], None]) -> None:
        pass  # who has no slave open now may open it again

    def enlarge(self) -> bool:
        return False

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.unwatch()
            self.write = _closed

    def hang_up(self) -> None:
        try:
            self.close()
        finally:
            if self._fd >= 0:
                self._close_fd()

    def resize(self, rows: int, columns: int) -> None:
        if self._fd < 0:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        set_size(self._fd, rows, columns)

    def eof(self) -> bytes:
        try:
            character: Any = termios.tcgetattr(self._fd)[6][termios.VEOF]
        except (termios.error, OSError):
            character = None
        # Switched off (_POSIX_VDISABLE), it has no character: then the usual one.
        is_one = isinstance(character, bytes) and character not in (b"\0", b"\xff")
        return character if is_one else b"\x04"


def _closed(_: object) -> Any:
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
