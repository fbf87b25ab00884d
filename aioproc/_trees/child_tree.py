"""A child and its tree: what it has started, to be signalled and ended together with it."""

from __future__ import annotations

import asyncio
import signal
import time

from .._backends.base import Child
from .tree import Tree, kill_marked
from .waiting import until_ended


class ChildTree:
    """The tree of a child on POSIX.

    While it is being ended the child is held, so that its group can be signalled although
    it has ended itself; till `close`.
    """

    def __init__(self, child: Child, *, session: bool, leads_group: bool, mark: str) -> None:
        """Right after the spawn. session: made for the child. leads_group: so it does, or
        will: never the group of somebody else, in which we may be ourselves."""
        self._child = child
        self._leads_group = leads_group
        self._mark = mark
        #: The child has not taken the last signal.
        self.refused = False
        self._tree = Tree(child.pid, session=session, mark=mark)

    def send(self, number: int) -> None:
        """Gives a signal to all members there are. From any thread."""
        group = self._signal_leader(number)
        self._tree.send(number, group=group, leader=True)

    async def signal(self, number: int) -> int | None:
        """Gives a signal to all members, to those that are stopped as well, and, while
        `gone` waits, to those that are born later. Returns how many were alive; None where
        nobody can look."""
        self._begin()
        # First: the end of a member cuts the chain by which others are found.
        alive = await self._tree.alive()
        group = self._signal_leader(number)
        more = await self._tree.signal(number, group=group, leader=True)
        return None if alive is None or more is None else max(alive, more)

    async def alive(self) -> int | None:
        """How many members are alive; None where nobody can look."""
        self._begin()
        return await self._tree.alive()

    async def gone(self, seconds: float) -> bool | None:
        """Waits for the end of all members, at most so long. Whether they have ended; None
        where nobody can look: then the child has been waited for."""
        self._begin()
        end = time.monotonic() + seconds
        gone = await self._tree.gone(seconds)
        if gone is None:
            await until_ended(self._child, end - time.monotonic())
        return gone

    async def kill(self) -> list[int] | None:
        """Ends all members. Returns the pids of those that cannot be ended: another user's,
        say; None where nobody can look: then the group and the child have been."""
        self._begin()
        left = await asyncio.shield(self._tree.kill())
        if left != []:
            # There was no descriptor for each of them, say: this needs none.
            self._signal_leader(signal.SIGKILL)
            if self.refused:
                return [self._child.pid]
        return left

    def kill_at_once(self) -> None:
        """Has all members ended: the group by now, others in a while. Waits for nobody."""
        self._signal_leader(signal.SIGKILL)
        if self._child.is_ours():
            kill_marked(self._mark)

    def close(self) -> None:
        self._child.release()

    def _begin(self) -> None:
        self._child.hold()
        if self._child.returncode is not None:
            try:
                # Whether it is held: signal 0 is given to nobody.
                self._child.signal_group(0)
            except OSError:
                self._tree.leader_reaped()

    def _signal_leader(self, number: int) -> int:
        """The group that has the signal by this; 0: the child alone, or nobody."""
        child = self._child
        self.refused = False
        try:
            if self._leads_group:
                child.signal_group(number)
                return child.pid
            child.send_signal(number)
        except ProcessLookupError:
            pass  # gone
        except PermissionError:
            self.refused = True  # running setuid
        return 0
