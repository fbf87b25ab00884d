"""What a child is in every backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from .base import Job, ReadEnd, ResourceUsage, Terminal, WriteEnd, generation
from .stdio import BaseStdio
from .watcher import Watcher


class BaseChild:
    """The attributes of base.Child, and who is told of what."""

    #: See base.Child.
    collects = False
    collected: tuple[bytes | None, bytes | None] | None = None
    input_taken = 0

    __slots__ = (
        "__weakref__",
        "_generation",
        "_rusage",
        "_slow_watcher",
        "context",
        "error",
        "on_exit",
        "on_slow",
        "pid",
        "returncode",
        "started",
        "stderr",
        "stdin",
        "stdout",
        "terminal",
    )

    job: Job | None = None

    def __init__(self, pid: int, stdio: BaseStdio[Any, Any]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._generation = generation.number
        self._rusage: ResourceUsage | None = None
        self.started: asyncio.Future[None] | None = None
        self.error: OSError | None = None
        self.on_exit: Callable[[], None] | None = None
        self.on_slow: Callable[[], None] | None = None
        #: Who looks at it, while it lives and its loop does.
        self._slow_watcher: Watcher[Any] | None = stdio.watcher
        self.context = stdio.context
        self.stdin: WriteEnd | None = stdio.stdin
        self.stdout: ReadEnd | None = stdio.stdout
        self.stderr: ReadEnd | None = stdio.stderr
        self.terminal: Terminal | None = stdio.terminal

    def is_ours(self) -> bool:
        return self._generation == generation.number

    def keep_output(self) -> None:
        pass  # nothing is collected

    def look_later(self, on_slow: Callable[[], None]) -> bool:
        watcher = self._slow_watcher
        if watcher is None or not watcher.is_open:
            return False
        watcher.look_later(self, on_slow)
        return True

    @property
    def rusage(self) -> ResourceUsage | None:
        return self._rusage

    def rusage_later(self) -> ResourceUsage | Callable[[], ResourceUsage | None] | None:
        return self._rusage

    def look(self) -> None:
        """It is alive when it was to be looked at."""
        on_slow, self.on_slow = self.on_slow, None
        if on_slow is not None:
            self.context.run(on_slow)

    def hold(self) -> None:
        pass  # there is no number that matters

    def release(self) -> None:
        pass

    def signal_group(self, signal: int) -> None:
        raise ValueError("there are no process groups to be signalled on this system")

    def expect_exit(self) -> None:
        pass  # it will be told

    def has_ended(self) -> bool:
        return self.returncode is not None or self.error is not None

    def tell(self) -> None:
        """In the loop: what is known by now."""
        started = self.started
        if started is not None and not started.done():
            if self.error is None:
                started.set_result(None)
                self.started = None
            else:
                started.set_exception(self.error)
        if self.returncode is not None or self.error is not None:
            self.on_slow = self._slow_watcher = None
            on_exit = self.on_exit
            if on_exit is not None:
                self.on_exit = None
                # By now we are in the contextvars of what all children share.
                self.context.run(on_exit)

    def _leave(self) -> None:
        """Tells nothing any more, and closes the pipes."""
        self.on_exit = self.on_slow = None
        for end in (self.stdin, self.stdout, self.stderr):
            if end is not None:
                end.close()
        if self.terminal is not None:
            self.terminal.hang_up()
