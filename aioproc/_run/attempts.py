"""Running a command by one attempt, or more: what speaks against the start of a child may be over
in a moment."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from time import monotonic
from typing import Any

from .._backends.base import NOT_NOW, TEXT_BUSY_PAUSES, logger
from .._messages import discreet
from .limiter import Limiter
from .options import Settings
from .result import CompletedProcess
from .run import Run

#: Seconds after which a command for which there was no room is tried again, though none of
#: the others has ended: somebody else may have given descriptors back. At first, and at most.
SHORT_PAUSE, LONGEST_SHORT_PAUSE = 0.1, 2.0


async def perform(settings: Settings) -> CompletedProcess[Any]:
    """Runs a command."""
    limiter = settings.limiter
    if limiter is None:
        return await attempt(settings)
    loop = asyncio.get_running_loop()
    began = loop.time(), monotonic()
    end = None if settings.timeout is None else began[0] + settings.timeout
    if not await limiter.acquire(end):
        return Run(settings, loop, *began).never_started()
    try:
        return await attempt(settings, limiter=limiter, began=began)
    finally:
        limiter.release()


def _sooner(time: float, end: float | None) -> float:
    return time if end is None else min(time, end)


async def attempt(
    settings: Settings,
    make: Callable[..., Run] | None = None,
    *,
    limiter: Limiter | None = None,
    began: tuple[float, float] | None = None,
) -> CompletedProcess[Any]:
    """Runs a command; again if what speaks against it may be over in a moment.

    make: makes the Run. limiter: one of its slots has been taken for it; if there is no room
    for another child, it waits for the end of one of the others, or a while. began: see Run;
    default: each attempt has a beginning of its own.
    """
    loop = asyncio.get_running_loop()
    pauses = iter(TEXT_BUSY_PAUSES)
    has_waited = has_warned = False
    patience = SHORT_PAUSE
    end = None
    if began is not None and settings.timeout is not None:
        end = began[0] + settings.timeout
    if limiter is not None and limiter._is_short and limiter._has_others:
        # Those who have waited come first.
        has_waited = await limiter._room(_sooner(loop.time() + patience, end))
    while True:
        run = (make or Run)(settings, loop, *(began or (loop.time(), monotonic())))
        if end is not None and loop.time() >= end:
            return run.never_started()
        try:
            return await run.perform()
        except OSError as error:
            if not run.could_not_start:
                raise
            pause = next(pauses, None) if error.errno == errno.ETXTBSY else None
            waits = limiter is not None and error.errno in NOT_NOW and limiter._has_others
            why = error.strerror
            if pause is None and not waits:
                settings.explain(error)
                if run.raises:
                    raise
                return run.not_started("error", error)
        if pause is not None:
            await asyncio.sleep(pause)
        else:
            assert limiter is not None
            if patience == LONGEST_SHORT_PAUSE and not has_warned:
                # Perhaps for ever: what has taken the room may not end by itself.
                has_warned = True
                what = discreet(settings.user_args, settings.name)
                logger.warning("%s waits for room, or the end of another: %s", what, why)
            await limiter._room(_sooner(loop.time() + patience, end), again=has_waited)
            has_waited = True
            patience = min(2 * patience, LONGEST_SHORT_PAUSE)
