"""Tasks that end together."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from .._backends.base import generation
from .._trees.ending import Shield


async def wait_for_end(
    tasks: Collection[asyncio.Task[Any]], cancelled: asyncio.CancelledError | None
) -> asyncio.CancelledError | None:
    """Waits for the end of tasks that have been cancelled, also when we are.

    cancelled: why that was done, if that is why. Another cancellation is handed on: it takes
    from them what is left of their grace. Returns the first.
    """
    number = generation.number
    with Shield():
        while busy := [task for task in tasks if not task.done()]:
            try:
                await asyncio.wait(busy)
            except asyncio.CancelledError as error:
                if generation.number != number:
                    raise  # in a forked process, and all of this is its parent's
                if cancelled is None:
                    cancelled = error
                    continue
                for task in tasks:
                    task.cancel()
    return cancelled
