"""What our ends of pipes have in common in both backends on Windows."""

from __future__ import annotations

import contextvars
import errno
import os
from collections.abc import Callable


def closed() -> OSError:
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


def not_yet() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


class BaseEnd:
    """Our end of a pipe; the number of it is a handle, not a descriptor."""

    __slots__ = ("_callback", "_context", "_handle")

    def __init__(self, handle: int, context: contextvars.Context) -> None:
        #: -1 when closed.
        self._handle = handle
        self._context = context
        #: Who watches.
        self._callback: Callable[[], None] | None = None

    def fileno(self) -> int:
        return self._handle

    def unwatch(self) -> None:
        self._callback = None

    def enlarge(self) -> bool:
        return False  # a pipe keeps the size it was made with

    def _call(self, callback: Callable[[], None]) -> None:
        """In the contextvars of the child's creation. Of a copy, since a callback may run
        a loop of its own."""
        self._context.copy().run(callback)
