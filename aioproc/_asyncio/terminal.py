"""asyncio's transport over what is typed at a child's terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._backends.base import Terminal
from .pipes import Buffer, WritePipeTransport

if TYPE_CHECKING:
    from .transport import SubprocessTransport


class TerminalWriteTransport(WritePipeTransport):
    """The stdin of a child with a terminal. An end of input is typed there, and more may
    follow."""

    _end: Terminal

    def __init__(self, owner: SubprocessTransport, fd: int, end: Terminal) -> None:
        super().__init__(owner, fd, end)
        #: The last that was typed.
        self._last = b"\n"

    def write(self, data: Buffer) -> None:
        super().write(data)
        view = memoryview(data)
        if view.nbytes:
            self._last = bytes(view.cast("B")[-1:])

    def write_eof(self) -> None:
        """Types the end of input, once all that was written has gone out."""
        if not self._closing:
            eof = self._end.eof()
            # A program that reads gets what has been typed by then. That is an end if it is
            # nothing, so that in the midst of a line it takes two of them (termios(3), VEOF).
            self.write(eof if self._last in (b"\n", b"\r", eof) else 2 * eof)

    def close(self) -> None:
        """The same, and writes nothing more. The terminal stays."""
        if not self._loop.is_closed():
            self.write_eof()
        super().close()

    def finish(self) -> None:
        self.write_eof()
        super().finish()
