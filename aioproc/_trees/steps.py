"""How a tree is to be ended: by steps, each with a grace."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Any

from .._backends import system
from .._backends.base import HANG_UP
from .._backends.system import possible_steps

__all__ = ["DEFAULT_STEPS", "GRACE", "Step", "judged_seconds", "judged_steps", "possible_steps"]

#: Seconds between a step and the next.
GRACE = 5.0
#: A signal or "eof" (stdin is closed), and the seconds that are given then.
Step = tuple[Any, float]

DEFAULT_STEPS: list[Step] = [(signal.SIGTERM, GRACE)]


def judged_seconds(name: str, value: Any) -> float:
    """TypeError, ValueError: it is none."""
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, str):
        none = "" if value is None else " or None"
        raise TypeError(f"{name} must be a number of seconds{none}, not {value!r:.100}")
    seconds = float(value)
    if seconds != seconds:
        raise ValueError(f"{name} must be a number of seconds, not {value}")
    return seconds


def judged_steps(stop: Any, terminal: bool = False) -> list[Step]:
    """A grace alone is SIGTERM and the wait for the end. Of who has a terminal of its own, the
    end of that comes first, which shells do not pass over."""
    if isinstance(stop, signal.Signals):
        raise TypeError(f"stop is seconds, or steps: stop=[(signal.{stop.name}, 5)], with a grace")
    if hasattr(stop, "__float__") and not isinstance(stop, bool):
        seconds = judged_seconds("stop", stop)
        if seconds < 0:
            raise ValueError(f"stop must be 0 seconds or more, not {stop}")
        if terminal:
            # Twice: a shell may get the first one after it has looked at its signals and
            # before the read() that would be interrupted, and then waits for a line.
            quarter = seconds / 4
            return [(HANG_UP, quarter), (HANG_UP, quarter), (signal.SIGTERM, seconds / 2)]
        return [(signal.SIGTERM, seconds)]
    if isinstance(stop, (str, bytes, bool)) or not isinstance(stop, Iterable):
        raise TypeError(
            "stop must be a number of seconds, or steps: "
            f'stop=[("eof", 2), (signal.SIGTERM, 5)]; not {stop!r:.100}'
        )
    steps: list[Step] = []
    for step in stop:
        if not isinstance(step, (tuple, list)) or len(step) != 2:
            raise TypeError(f"a step of stop is (signal or 'eof', seconds), not {step!r:.100}")
        action, grace = step
        seconds = judged_seconds("the grace of a step of stop", grace)
        if seconds < 0:
            raise ValueError(f"a step of stop has 0 seconds or more: {step!r:.100}")
        if action != "eof":
            if isinstance(action, bool) or not isinstance(action, int):
                raise TypeError(f"a step of stop is a signal or 'eof', not {action!r:.100}")
            system.check_stop_signal(action)
        steps.append((action, seconds))
    return steps
