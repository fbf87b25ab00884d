"""What a child is in every backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from .base import ReadEnd, ResourceUsage, WriteEnd
from .stdio import BaseStdio


class BaseChild:
    """The attributes of base.Child, and who is told of what."""

    __slots__ = (
        "__weakref__",
        "_error",
        "context",
        "on_exit",
        "pid",
        "returncode",
        "rusage",
        "started",
        "stderr",
        "stdin",
        "stdout",
    )

    def __init__(self, pid: int, stdio: BaseStdio[Any, Any]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.rusage: ResourceUsage | None = None
        self.started: asyncio.Future[None] | None = None
        #: What `started` will raise.
        self._error: OSError | None = None
        self.on_exit: Callable[[], None] | None = None
        self.context = stdio.context
        self.stdin: WriteEnd | None = stdio.stdin
        self.stdout: ReadEnd | None = stdio.stdout
        self.stderr: ReadEnd | None = stdio.stderr

    def expect_exit(self) -> None:
        pass  # it will be told

    def has_ended(self) -> bool:
        return self.returncode is not None or self._error is not None

    def tell(self) -> None:
        """In the loop: what is known by now."""
        started = self.started
        if started is not None and not started.done():
            if self._error is None:
                started.set_result(None)
                self.started = None
            else:
                started.set_exception(self._error)
        on_exit = self.on_exit
        if self.returncode is not None and on_exit is not None:
            self.on_exit = None
            # By now we are in the contextvars of what all children share.
            self.context.run(on_exit)

    def _leave(self) -> None:
        """Tells nothing any more, and closes the pipes."""
        self.on_exit = None
        for end in (self.stdin, self.stdout, self.stderr):
            if end is not None:
                end.close()
