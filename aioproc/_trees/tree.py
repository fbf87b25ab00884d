"""One child's tree: the child, its descendants, and whoever carries its mark."""

from __future__ import annotations

import asyncio
from typing import Any

from .._backends.trees import LEADER_HAS_IT, RESUME, now
from .scanning import Gone, Kill, Request, Signal, Target, scanning


class Tree:
    """Signals members and looks for them, but knows nothing of the child's own handle: who
    holds it also signals its group, and says so here.

    What takes a look returns a future, which is done once a round has been made that began
    after the call; to cancel it is to forget the request. Its result is None where nobody
    could look. To be called in a loop, but for `send`.
    """

    __slots__ = ("_target",)

    def __init__(self, leader: int, *, session: bool, mark: str, born: int | None = None) -> None:
        """leader: the pid of the child, which has not been reaped yet. session: it has made
        one, or is about to. mark: as from new_mark(); "": none. born: a time after its start
        (trees.now()), if not this one; who has its pid and is younger is another."""
        born = now() if born is None else born
        self._target = Target(leader, leader if session else 0, int(mark or "0", 16), born)

    def leader_reaped(self) -> None:
        """The leader's pid may be another's from now on. Its session is looked for only
        while a member is known in it."""
        self._target.leader = 0

    def send(self, number: int, *, group: int = 0, leader: bool = False) -> None:
        """Gives a signal to those who are members now, and no more than that: who is stopped
        stays so. From any thread; without an answer."""
        scanning.put(self._signal(None, number, group, leader, stays=False))

    def signal(
        self, number: int, *, group: int = 0, leader: bool = False
    ) -> asyncio.Future[int | None]:
        """Begins a grace: gives a signal to all members once, and SIGCONT to those that are
        stopped; those that are born later get it as well, while `gone` waits.

        group: one that has just been given the signal as a whole. leader: so has the leader.
        Returns how many members were alive.
        """
        return _put(self._signal(asyncio.get_running_loop(), number, group, leader, stays=True))

    def _signal(
        self,
        loop: asyncio.AbstractEventLoop | None,
        number: int,
        group: int,
        leader: bool,
        stays: bool,
    ) -> Signal:
        flags = (RESUME if stays else 0) | (LEADER_HAS_IT if leader else 0)
        order = (number, flags, group, now() if group else 0)
        return Signal(self._target, loop, order, stays)

    def alive(self) -> asyncio.Future[int | None]:
        """How many members are alive; zombies are not."""
        return _put(Request(self._target, asyncio.get_running_loop()))

    def gone(self, seconds: float) -> asyncio.Future[bool | None]:
        """Waits for the end of all members, at most so long; whether they have ended."""
        return _put(Gone(self._target, asyncio.get_running_loop(), seconds))

    def kill(self) -> asyncio.Future[list[int] | None]:
        """Ends all members by SIGKILL, in rounds, within a second. Returns the pids of those
        that are left: another user's, or such as the kernel cannot end just now. No more
        than trees.NAMED are named."""
        return _put(Kill(self._target, asyncio.get_running_loop()))


def kill_marked(mark: str) -> None:
    """Has those ended who carry that mark: what a child has started that nobody holds any
    more, so that its number may be another's at any time. From any thread; without an
    answer."""
    if mark:
        scanning.put(Kill(Target(-1, 0, int(mark, 16), now()), None))


def _put(request: Request) -> asyncio.Future[Any]:
    assert request.future is not None
    scanning.put(request)
    return request.future
