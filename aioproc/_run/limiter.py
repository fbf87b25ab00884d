"""How many commands may run at a time."""

from __future__ import annotations

import asyncio
import collections
from typing import Any

from .._backends.cpus import usable_cpus

Waiters = collections.deque[asyncio.Future[bool]]


class Limiter:
    """So many slots for commands, to be shared by several calls: of :func:`run` and
    :func:`run_many`, or ``async with limiter:`` around whatever else is to take one.

    Who comes first gets the next slot that becomes free. A slot is held until the command
    and its output have ended. The wait for it is part of the `timeout` of :func:`run`; to time
    the command alone, use ``async with limiter:`` around a run() without `limiter`. ::

        AT_A_TIME = aioproc.Limiter(4)

        async def thumbnail(picture):
            await aioproc.run("convert", picture, ..., limiter=AT_A_TIME)

    It is for one event loop at a time.

    Attributes:
        concurrency: How many slots there are.
    """

    def __init__(self, concurrency: int | None = None) -> None:
        """Make a limiter.

        Args:
            concurrency: How many slots. Default: as many as there are CPUs that this process
                may use, by its affinity and by the quota of its container (its cgroup).

        Raises:
            TypeError, ValueError: It is not an integer of at least 1.
        """
        self.concurrency = usable_cpus() if concurrency is None else judge(concurrency)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in_use = 0
        #: Who waits for a slot, and has none.
        self._waiters: Waiters = collections.deque()
        #: Who has one, but could not start a command: there were no descriptors, say.
        self._short: Waiters = collections.deque()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._in_use} of {self.concurrency} in use>"

    @property
    def in_use(self) -> int:
        """How many slots are in use."""
        return self._in_use

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return sum(not waiter.done() for waiter in self._waiters)

    async def __aenter__(self) -> Limiter:
        await self.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()

    async def acquire(self, end: float | None = None) -> bool:
        """Wait for a slot.

        Args:
            end: Until when, by the loop's clock. Default: as long as it takes.

        Returns:
            True; False if there was none until then.

        Raises:
            RuntimeError: It is in use in another event loop.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._move_to(loop)
        if self._in_use < self.concurrency:
            self._in_use += 1
            return True
        return await self._wait(self._waiters, loop.create_future(), end)

    def release(self) -> None:
        """Give a slot back."""
        if not self._in_use:
            raise RuntimeError("no slot of this Limiter is in use")
        if not _tell_first(self._waiters):
            self._in_use -= 1
        # What one had not, it has now; and perhaps there is more of it again.
        if self._short and _tell_first(self._short):
            _tell_first(self._short)

    @property
    def _is_short(self) -> bool:
        """Whether somebody with a slot could not start a command, and waits."""
        return bool(self._short)

    @property
    def _has_others(self) -> bool:
        """With a slot: whether there are others with one, who do not wait for our end."""
        return self._in_use - len(self._short) > 1

    async def _room(self, end: float | None = None, *, again: bool = False) -> bool:
        """With a slot: waits for the end of another, since a command could not be started for
        want of descriptors, processes or memory, or since others could not.

        again: it has waited, and comes before those who have not. Returns False if time was
        up.
        """
        waiter = asyncio.get_running_loop().create_future()
        return await self._wait(self._short, waiter, end, first=again)

    async def _wait(
        self,
        waiters: Waiters,
        waiter: asyncio.Future[bool],
        end: float | None,
        *,
        first: bool = False,
    ) -> bool:
        if first:
            waiters.appendleft(waiter)
        else:
            waiters.append(waiter)
        timer = None
        if end is not None:
            timer = waiter.get_loop().call_at(end, _tell, waiter, False)
        try:
            return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                # It came, too late for us.
                if waiters is self._waiters:
                    self.release()
                else:
                    _tell_first(waiters)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if waiter in waiters:
                waiters.remove(waiter)

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        old = self._loop
        if old is not None and not old.is_closed() and self._in_use:
            raise RuntimeError(
                f"{self!r}, in another event loop: each loop needs a Limiter of its own"
            )
        self._loop = loop
        self._in_use = 0
        self._waiters.clear()
        self._short.clear()


def judge(concurrency: Any) -> int:
    """A number of commands at a time."""
    if isinstance(concurrency, bool) or not isinstance(concurrency, int):
        raise TypeError(f"concurrency must be an integer or None, not {concurrency!r:.100}")
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    return concurrency


def _tell(waiter: asyncio.Future[bool], result: bool) -> None:
    if not waiter.done():
        waiter.set_result(result)


def _tell_first(waiters: Waiters) -> bool:
    """Whether there was somebody to be told."""
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(True)
            return True
    return False
