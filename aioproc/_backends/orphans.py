"""The children of a pure backend that no loop watches any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from .locks import Lock

C = TypeVar("C")


class Orphans(Generic[C]):
    """Looked at by every spawn, so that nothing of them stays once they have ended."""

    def __init__(self, reap: Callable[[C], bool]) -> None:
        """reap: true when the child has ended, now or before; nothing of it is open then."""
        self._reap = reap
        self._children: dict[C, None] = {}
        # Reentrant: the garbage collector may end a spawn in the midst of it.
        self._lock = Lock()

    def add(self, child: C) -> None:
        with self._lock:
            self._children[child] = None

    def reap(self) -> None:
        if not self._children:
            return
        with self._lock:
            for child in list(self._children):
                if self._reap(child):
                    self._children.pop(child, None)
