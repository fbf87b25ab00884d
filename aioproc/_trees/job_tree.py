"""A child and its tree on Windows, by the job object that it has entered at its creation."""

from __future__ import annotations

import functools
import signal

from .._backends.base import Child
from .._backends.system import CTRL_BREAK
from .waiting import Waiters, until, wake

#: Seconds that a kill takes at most.
KILL_TIME = 1.0


class JobTree:
    """The tree of a child on Windows.

    Who is a member the system knows: all that a member starts is one. Without a job (the pure
    backend; one that cannot be nested in those we are in) there is the child alone.
    """

    #: Whoever has started a process may end it there.
    refused = False

    def __init__(self, child: Child, *, leads_group: bool) -> None:
        """leads_group: a process group on our console, which events can be sent to."""
        self._child = child
        self._leads_group = leads_group
        self._waiters: Waiters = set()

    def send(self, number: int) -> None:
        """SIGTERM ends all members. CTRL_BREAK_EVENT is for those that are in the child's
        process group. From any thread."""
        if number == signal.SIGTERM:
            self._terminate()
        elif number != CTRL_BREAK:
            raise ValueError(f"Unsupported signal for a tree: {number}")
        elif not self._leads_group:
            raise ValueError(
                "CTRL_BREAK_EVENT is for process groups, and this child has not got one on our "
                "console"
            )
        else:
            try:
                self._child.send_signal(number)
            except ProcessLookupError:
                pass  # nobody keeps its number for us, which is the group's

    async def signal(self, number: int) -> int | None:
        """The same, but SIGTERM asks members to end, where there is a way to; where there is
        none it ends them. Returns how many were alive; None where nobody can look."""
        alive = await self.alive()
        if number != signal.SIGTERM or not self._ask():
            self.send(number)
        return alive

    async def alive(self) -> int | None:
        """How many members are alive; None where nobody can look."""
        return None if self._child.job is None else max(self._active(), self._is_starting())

    async def gone(self, seconds: float) -> bool | None:
        """Waits for the end of all members, at most so long. Whether they have ended; None
        where nobody can look: then the child has been waited for."""
        ended = await self._until_gone(seconds)
        return None if self._child.job is None else ended

    async def kill(self) -> list[int] | None:
        """Ends all members. Returns the pids of those that have not ended within a second;
        None where nobody can look: then the child has been ended."""
        job = self._child.job
        if job is None:
            self._terminate()
            return None
        # Again, if one has been in the midst of starting another.
        if await self._until_gone(KILL_TIME, terminate=True):
            return []
        if self._child.job is None:
            return None  # it has turned out to be in none
        try:
            return job.pids()
        except ValueError:
            return []  # it has been closed, since all have ended

    def kill_at_once(self) -> None:
        """Ends all members, and waits for nobody."""
        self._terminate()

    def close(self) -> None:
        """Nothing is to be ended any more. Whoever is left goes on."""
        job = self._child.job
        if job is not None and self._is_gone():
            job.close()
        # Else it is closed with the child, and by itself with the last of them.

    async def _until_gone(self, seconds: float, terminate: bool = False) -> bool:
        job = self._child.job
        if job is not None:
            # Without a way back to this object: it shall go when nobody holds it.
            job.on_empty = functools.partial(wake, self._waiters)
        return await until(
            self._is_gone,
            self._waiters,
            seconds=seconds,
            each_time=self._terminate if terminate else None,
        )

    def _is_gone(self) -> bool:
        if self._child.job is None:
            return self._child.peek() is not None
        return not self._is_starting() and not self._active()

    def _is_starting(self) -> bool:
        """It was spawned lazily, and may not be in its job yet."""
        child = self._child
        return not child.pid and child.error is None and child.peek() is None

    def _active(self) -> int:
        job = self._child.job
        assert job is not None
        try:
            return job.active()
        except ValueError:
            return 0  # closed, since all have ended

    def _ask(self) -> bool:
        """Whether members have been asked to end."""
        if not self._leads_group or not self._child.pid or self._child.peek() is not None:
            return False
        try:
            self._child.send_signal(CTRL_BREAK)
        except OSError:
            return False  # it has ended, or we have lost our console
        return True

    def _terminate(self) -> None:
        job = self._child.job
        try:
            if job is None or self._is_starting():
                self._child.send_signal(signal.SIGTERM)
            else:
                job.terminate(1)
        except (ProcessLookupError, PermissionError):
            pass  # it has ended, or it is protected
        except ValueError:
            pass  # the job is closed, since all have ended
