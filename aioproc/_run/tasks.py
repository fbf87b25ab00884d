"""The tasks of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds of one turn.
TURN = 0.002


def new_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]
) -> asyncio.Task[T]:
    """A task that begins in the loop's next round: not within this call, as those of an eager
    task factory do (Python 3.12), when whoever has made it does not know it yet."""
    return asyncio.Task(coroutine, loop=loop)


class Turn:
    """What a task does without having to wait for anything. Others have their turn when it has
    lasted for long: timers, too, and so the time limits of the run."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._end = monotonic() + TURN

    def is_over(self) -> bool:
        return monotonic() > self._end

    async def next(self) -> None:
        await asyncio.sleep(0)
        self.begin()
