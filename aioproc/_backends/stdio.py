"""What a child's standard streams have in common in every backend, whatever they are."""

from __future__ import annotations

import contextvars
import subprocess
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from .base import logger
from .watcher import Watcher

#: As the standard library has them.
DEVNULL, PIPE = subprocess.DEVNULL, subprocess.PIPE


class _Closes(Protocol):
    def close(self) -> None: ...


W = TypeVar("W", bound=_Closes)
R = TypeVar("R", bound=_Closes)


class _Child(Protocol):
    def abandon(self) -> None: ...


# A signal handler that raises (Ctrl-C) does so in CPython when a C function has returned,
# before its result is kept anywhere, at the beginning of a Python function and in a loop's
# round. So what must not be lost is made and kept inside of one call of a C function; and
# what has been taken out is closed before anything else is called.


def close_all(numbers: list[int], close: Callable[[int], Any]) -> None:
    """Closes what stands in a list and takes it out.

    None of it stays open since another could not be closed. That is logged and not
    raised, which would leave other things undone: somebody has closed what is not theirs.
    """
    while numbers:
        number = numbers[-1]
        del numbers[-1]
        try:
            close(number)
        except OSError as error:
            logger.error("an end of a child's pipe cannot be closed: %s", error)


class BaseStdio(Generic[W, R]):
    """The three standard streams of a child to be: opened, ours and theirs.

    Ours belong to the child once there is one and `finish` has been called; whatever is
    raised before that, `undo` takes back what has been done::

        stdio = Stdio(watcher)
        child = None
        try:
            stdio.open(...)
            child = ...
            stdio.finish()
            return child
        except BaseException:
            stdio.undo(child)
            raise

    Not a context manager: its end could be interrupted by a signal handler that raises,
    with a child that nobody gets.
    """

    __slots__ = ("context", "stderr", "stdin", "stdout", "terminal", "watcher")

    def __init__(self, watcher: Watcher[Any]) -> None:
        self.watcher = watcher
        #: The contextvars of whoever makes the child, in which all that it does is told.
        self.context = contextvars.copy_context()
        self.stdin: W | None = None
        self.stdout: R | None = None
        self.stderr: R | None = None
        #: `stdin` where that is a terminal.
        self.terminal: Any = None

    def finish(self) -> None:
        """There is a child: closes theirs."""
        raise NotImplementedError

    def undo(self, child: _Child | None) -> None:
        """Closes everything and sees the child off; the loop's watcher may have been
        opened for nothing."""
        self._undo()
        if child is not None:
            child.abandon()
        self.watcher.retire_when_idle()

    def _undo(self) -> None:
        if self.terminal is not None:
            self.terminal.hang_up()
        for end in (self.stdin, self.stdout, self.stderr):
            if end is not None:
                end.close()
