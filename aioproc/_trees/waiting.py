"""Waiting for what the system tells of only by hints, which may be lost: a job object of
Windows has become empty, say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .._backends.base import Child

#: Seconds between two looks.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.05

Waiters = set[asyncio.Future[None]]


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def wake(waiters: Waiters) -> None:
    """There is a hint. From any thread."""
    for waiter in list(waiters):
        try:
            waiter.get_loop().call_soon_threadsafe(_set, waiter)
        except RuntimeError:
            pass  # its loop has been closed


async def until(
    ended: Callable[[], bool],
    waiters: Waiters,
    *,
    pause: float = SHORTEST_PAUSE,
    longest_pause: float = LONGEST_PAUSE,
    seconds: float | None = None,
    each_time: Callable[[], None] | None = None,
) -> bool:
    """Asks again at every hint, and after pauses that grow; each_time the answer is no, that
    is called. Whether it has become yes, within so many seconds."""
    loop = asyncio.get_running_loop()
    end = None if seconds is None else loop.time() + seconds
    while True:
        # Before the question, or a hint may come between the two.
        waiter: asyncio.Future[None] = loop.create_future()
        waiters.add(waiter)
        timer = None
        try:
            if ended():
                return True
            if each_time is not None:
                each_time()
            left = pause if end is None else end - loop.time()
            if left <= 0:
                return False
            timer = loop.call_later(min(pause, left), _set, waiter)
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            waiters.discard(waiter)
        pause = min(2 * pause, longest_pause)


async def until_ended(child: Child, seconds: float) -> None:
    """Waits for a child's end, be it noticed or not, at most so long."""
    await until(lambda: child.peek() is not None, set(), seconds=seconds)
