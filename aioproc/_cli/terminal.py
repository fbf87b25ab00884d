"""Our own terminal, for a command that has one of its own (``run --pty``).

While it runs our terminal is raw: each key goes to the command's terminal, which knows what it
means. However that ends, the terminal is as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import Any

from .. import Process

try:
    import termios
    import tty
except ImportError:  # Windows: there is no such command
    termios = tty = None  # type: ignore[assignment]

_PIECE = 4096
#: Of the local modes, what a raw terminal has not, and one with a shell's line editor has.
_COOKED = 0 if termios is None else termios.ISIG | termios.ICANON
#: Descriptors that we may have been started with.
_MOST_FDS = 65536
#: Seconds between two looks whether we have come to the foreground, which nobody tells.
_LOOK_AGAIN = 0.1


def _is_in_background(fd: int) -> bool:
    """Whether another process group has that terminal, which controls our session."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:
        return False


def _size() -> tuple[int, int] | None:
    """Rows and columns of our terminal, if we have one."""
    for fd in (0, 1, 2):
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        if rows and columns:
            return rows, columns
    return None


class _Guard:
    """A process that restores the terminal when we cannot any more: after a SIGKILL, say."""

    def __init__(self, fd: int, cooked: Any) -> None:
        reader, self._writer = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(reader)
            return
        try:
            for name in ("HUP", "INT", "QUIT", "TERM", "TSTP", "TTIN", "TTOU"):
                signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
            os.setsid()  # what ends our whole process group does not end it
            os.dup2(fd, 0)
            os.dup2(reader, 1)
            os.closerange(2, min(os.sysconf("SC_OPEN_MAX"), _MOST_FDS))
            is_raw = False
            while said := os.read(1, 1):
                is_raw = said == b"r"
            # Unless it is somebody else's by now, who has made it what he needs.
            if is_raw and not termios.tcgetattr(0)[3] & _COOKED:
                termios.tcsetattr(0, termios.TCSANOW, cooked)
        finally:
            os._exit(0)

    def tell(self, raw: bool) -> None:
        with contextlib.suppress(OSError):  # somebody has ended it
            os.write(self._writer, b"r" if raw else b"c")

    def close(self) -> None:
        os.close(self._writer)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


class OwnTerminal:
    """What we do to it. A context manager; within, there may be none, or somebody else may
    have it in the foreground."""

    def __init__(self) -> None:
        self._cooked: Any = None
        self._is_raw = False
        self._guard: _Guard | None = None
        #: Who has another.
        self._process: Process | None = None
        #: Who waits for what is typed.
        self._ready: asyncio.Future[bool] | None = None

    def __enter__(self) -> OwnTerminal:
        try:
            self._cooked = termios.tcgetattr(0)
        except termios.error:
            return self  # stdin is no terminal
        self._guard = _Guard(0, self._cooked)
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._restore()
        finally:
            if self._guard is not None:
                self._guard.close()

    def size(self) -> tuple[int, int] | bool:
        """As `pty` takes it."""
        return _size() or True

    def begin(self, process: Process) -> None:
        """The command has its terminal. In the loop."""
        self._process = process
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self._resized)
        self._resized()
        if self._cooked is not None:
            loop.add_signal_handler(signal.SIGCONT, self._continued)
            if signal.getsignal(signal.SIGTSTP) != signal.SIG_IGN:
                loop.add_signal_handler(signal.SIGTSTP, self._suspended)
            self._make_raw()

    def interrupt(self) -> None:
        """What Ctrl-C is, for a command that hears of no other."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b"\x03")

    def _resized(self) -> None:
        size = _size()
        if size is not None and self._process is not None:
            try:
                self._process.resize(*size)
            except ProcessLookupError:
                pass  # it has ended

    def _make_raw(self) -> None:
        if self._is_raw or _is_in_background(0):
            return
        assert self._guard is not None
        self._guard.tell(True)
        self._is_raw = True
        tty.setraw(0, termios.TCSANOW)

    def _restore(self) -> None:
        if self._is_raw:
            assert self._guard is not None
            self._is_raw = False
            try:
                termios.tcsetattr(0, termios.TCSANOW, self._cooked)
            except termios.error:
                pass  # it has been hung up
            self._guard.tell(False)

    def _suspended(self) -> None:
        """SIGTSTP, sent by somebody: no key of ours does that now."""
        self._restore()
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGTSTP)
        os.kill(os.getpid(), signal.SIGTSTP)  # till SIGCONT
        loop.add_signal_handler(signal.SIGTSTP, self._suspended)
        self._make_raw()  # nobody has stopped us, if there is no shell to continue us

    def _continued(self) -> None:
        self._is_raw = False  # a shell has restored what it knows
        self._make_raw()
        self._resized()
        self._wake(False)  # it may be somewhere else that we go on

    async def type_at(self, process: Process) -> None:
        """What comes from our stdin, and its end, is typed at the command's terminal."""
        stdin = process.stdin
        assert stdin is not None
        if sys.stdin is None:  # by now the number is something else's
            stdin.write_eof()
            return
        while True:
            await self._foreground()
            if not await self._readable() or self._is_elsewhere():
                continue
            try:
                data = os.read(0, _PIECE)
            except OSError:
                return  # our terminal has gone, or we may not read it
            if not data:
                stdin.write_eof()
                return
            stdin.write(data)
            try:
                await stdin.drain()
            except ConnectionError:
                return

    def _is_elsewhere(self) -> bool:
        """Whether others have our terminal; to read from it would stop us."""
        return self._cooked is not None and _is_in_background(0)

    async def _foreground(self) -> None:
        """Returns when we have it."""
        while self._is_elsewhere():
            await asyncio.sleep(_LOOK_AGAIN)
        if self._cooked is not None:
            self._make_raw()

    async def _readable(self) -> bool:
        """Waits until there is something to read; a file always has. False: for something
        else."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[bool] = loop.create_future()
        self._ready = ready
        try:
            loop.add_reader(0, self._wake, True)
        except (OSError, ValueError):
            return True
        try:
            return await ready
        finally:
            loop.remove_reader(0)

    def _wake(self, is_readable: bool) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(is_readable)
