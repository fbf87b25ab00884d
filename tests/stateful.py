"""What the stateful tests (hypothesis) have in common."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

#: Seconds; a fuse.
FUSE = 30


class Machine(RuleBasedStateMachine):
    """One with an event loop, which goes on while a rule runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, FUSE))

    def turns(self, number: int = 5) -> None:
        """Lets the loop go round."""

        async def turn() -> None:
            for _ in range(number):
                await asyncio.sleep(0)

        self.do(turn())


def explore(
    make: Callable[[asyncio.AbstractEventLoop], Machine],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    examples: int,
    steps: int = 30,
) -> None:
    """Runs so many sequences of the machine's rules, the same ones each time."""
    # Who wants to know only whether it fails (tools/mutants.py) needs no shorter example.
    hurries = "AIOPROC_STATEFUL_HURRIES" in os.environ
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate] if hurries else tuple(Phase),
        suppress_health_check=list(HealthCheck),
    )
    loop = new_loop()
    try:
        run_state_machine_as_test(lambda: make(loop), settings=chosen)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def outcome(task: asyncio.Future[Any]) -> tuple[Any, ...]:
    """What has become of a task, so that two can be compared."""
    if not task.done():
        return ("waits",)
    if task.cancelled():
        return ("cancelled",)
    error = task.exception()
    if error is None:
        return ("returned", task.result())
    found: tuple[Any, ...] = ("raised", type(error))
    if isinstance(error, asyncio.IncompleteReadError):
        return (*found, error.partial, error.expected)
    if isinstance(error, asyncio.LimitOverrunError):
        return (*found, error.consumed)
    if isinstance(error, ValueError):
        return (*found, str(error))
    return found
