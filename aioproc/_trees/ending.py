"""Ending a child and all that it has started: by steps, each with a grace, and by force."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, Protocol

from .._backends.base import generation, logger

#: Seconds in which a child that has been killed must have ended.
MOST_AFTER_KILL = 5.0
#: How often what somebody else cancels is begun.
TRIES = 3


class _Tree(Protocol):
    """What of a tree is used here; see _trees."""

    refused: bool

    async def signal(self, number: int) -> int | None: ...
    async def gone(self, seconds: float) -> bool | None: ...
    async def kill(self) -> list[int] | None: ...
    def kill_at_once(self) -> None: ...


class Ending:
    """It is awaited to its end, whoever cancels the task meanwhile."""

    #: How the last of them went: None (nobody was left), "stop" or "kill".
    forced: str | None = None
    #: Who could not be ended; None where nobody could look.
    left: list[int] | None = None

    def __init__(
        self,
        tree: _Tree,
        steps: Sequence[tuple[Any, float]],
        exit: asyncio.Future[Any],
        has_ended: Callable[[], bool],
        close_stdin: Callable[[], bool],
        cancelled: asyncio.CancelledError | None,
    ) -> None:
        """exit: done when the child's end has been noticed. has_ended: whether it has come.
        close_stdin: whether it was open. cancelled: what has brought this about."""
        self._tree = tree
        self._steps = steps
        self._exit = exit
        self._has_ended = has_ended
        self._close_stdin = close_stdin
        #: The first that came.
        self.cancelled = cancelled
        self._is_hurried = False
        self._generation = generation.number
        self._grace: asyncio.Future[Any] | None = None

    async def run(self) -> None:
        """Ends them. Returns at last when MOST_AFTER_KILL is over."""
        gone = await self._stop()
        if gone:
            self.left = []
        else:
            if gone is False or not self._has_ended():
                self.forced = "kill"
            logger.debug("what is left is killed")
            self.left = await self._insist(self._kill)
            if self.left is None:
                self._tree.kill_at_once()
        # Who has seen that all are gone need not have told us of the child.
        # (A signal for a zombie of another user's may be refused as well.)
        if not self._tree.refused or self._has_ended():
            await self.wait(self._exit, MOST_AFTER_KILL)

    def hurry(self) -> None:
        """Leaves out what is left of the grace."""
        self._is_hurried = True
        if self._grace is not None:
            self._grace.cancel()

    async def wait(self, awaitable: Awaitable[Any], seconds: float | None = None) -> Any:
        """What it returns; None if it takes longer. A cancellation is noted, and hurries us
        if it is another one."""
        future = asyncio.ensure_future(awaitable)
        end = None if seconds is None else monotonic() + seconds
        while not future.done():
            left = None if end is None else end - monotonic()
            if left is not None and left <= 0:
                return None
            try:
                await asyncio.wait([future], timeout=left)
            except asyncio.CancelledError as error:
                self._note(error)
            except GeneratorExit:
                if not future.get_loop().is_closed():
                    future.cancel()
                raise
        # Our loop ends all tasks if that has been cancelled: nobody has it from us.
        return None if future.cancelled() else future.result()

    async def _insist(self, start: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What it returns. Begun again if our loop, which ends all tasks, has ended that of
        it, perhaps before its first step."""
        for _ in range(TRIES):
            task = asyncio.ensure_future(start())
            result = await self.wait(task)
            if not task.cancelled():
                return result
        return None

    def _note(self, error: asyncio.CancelledError) -> None:
        if self._generation != generation.number:
            raise error  # in a forked process, and they are all its parent's
        if self.cancelled is None:
            self.cancelled = error
        else:
            self.hurry()

    async def _stop(self) -> bool | None:
        """Goes through the steps. Whether nobody is left after one of them; None where nobody
        could look after the last."""
        gone: bool | None = False
        for action, grace in self._steps:
            if self._is_hurried:
                return False
            if action == "eof":
                if not self._close_stdin():
                    continue
                logger.debug("stdin is closed; %g s are given", grace)
            else:
                logger.debug("signal %d is sent; %g s are given", action, grace)
                if await self._insist(functools.partial(self._signal, action)) == 0:
                    return True
            self.forced = "stop"
            gone = await self._wait_for_grace(self._tree.gone(grace))
            if gone or (gone is None and self._has_ended()):
                break
        return gone

    async def _wait_for_grace(self, awaitable: Awaitable[Any]) -> Any:
        """What it returns; False at once when we are hurried."""
        self._grace = asyncio.ensure_future(awaitable)
        if self._is_hurried:
            self._grace.cancel()
        result = await self.wait(self._grace)
        self._grace = None
        return False if self._is_hurried else result

    async def _signal(self, number: int) -> int | None:
        try:
            return await self._tree.signal(number)
        except OSError as error:  # no descriptors, no memory: the next step may have them
            logger.debug("signal %d cannot be sent to all: %s", number, error)
            return None

    async def _kill(self) -> list[int] | None:
        try:
            return await self._tree.kill()
        except OSError as error:
            logger.debug("not all can be killed: %s", error)
            return None


class Shield:
    """Has anyio's cancel scopes let us be, if there are any: they cancel a task in each round
    of the loop until it ends, which is no second cancellation."""

    def __init__(self) -> None:
        scope = getattr(sys.modules.get("anyio"), "CancelScope", None)
        self._scope = None if scope is None else scope(shield=True)

    def __enter__(self) -> None:
        if self._scope is not None:
            self._scope.__enter__()

    def __exit__(self, kind: Any, *more: Any) -> None:
        # When a coroutine is closed there is no task any more in which it could be left.
        if self._scope is not None and kind is not GeneratorExit:
            self._scope.__exit__(kind, *more)
