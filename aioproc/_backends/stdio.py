"""What a child's standard streams have in common in every room, whatever they are."""

from __future__ import annotations

import contextvars
import os
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from .residents import Resident


class _Closes(Protocol):
    def close(self) -> None: ...


W = TypeVar("W", bound=_Closes)
R = TypeVar("R", bound=_Closes)
S = TypeVar("S", bound="BaseStdio[Any, Any]")


class BaseStdio(Generic[W, R]):
    """The three standard streams of a child to be: opened, ours and theirs.

    In a `with` block the child is made. At its end theirs are closed; without a child
    ours are too, and the loop's resident may have been opened for nothing.
    """

    __slots__ = ("_resident", "_to_close", "context", "stderr", "stdin", "stdout")

    def __init__(self, resident: Resident[Any]) -> None:
        self._resident = resident
        #: The contextvars of whoever makes the child, in which all that it does is told.
        self.context = contextvars.copy_context()
        self.stdin: W | None = None
        self.stdout: R | None = None
        self.stderr: R | None = None
        #: Of theirs, those that were opened for the child.
        self._to_close: list[int] = []

    def _close_one(self, number: int) -> None:
        os.close(number)

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in self._to_close:
            self._close_one(number)
        self._to_close.clear()
        if kind is not None:
            for end in (self.stdin, self.stdout, self.stderr):
                if end is not None:
                    end.close()
            self._resident.retire_when_idle()
