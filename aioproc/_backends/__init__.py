"""The choice of the backend, made once, and its report."""

from __future__ import annotations

import os
import sys
from typing import Any

from .base import Backend

BACKENDS = ("native", "pure")

_current: Backend | None = None


class _Attempt:
    """One backend or strategy that was thought of, and why not it."""

    __slots__ = ("name", "why_not")

    def __init__(self, name: str, why_not: str | None) -> None:
        self.name = name
        self.why_not = why_not


def _native(attempts: list[_Attempt]) -> Backend | None:
    if sys.platform == "win32":
        try:
            from . import windows
        except ImportError as error:
            attempts.append(_Attempt("native", f"the extension cannot be imported: {error}"))
            return None
        why_not = windows.probe()
        attempts.append(_Attempt("native", why_not))
        return windows.WindowsBackend() if why_not is None else None
    try:
        from . import posix
    except ImportError as error:
        attempts.append(_Attempt("native", f"the extension cannot be imported: {error}"))
        return None
    # For tests: either strategy on a system that has both.
    forced = os.environ.get("AIOPROC_STRATEGY", "")
    if forced and forced not in posix.STRATEGIES:
        raise RuntimeError(
            f"AIOPROC_STRATEGY is {forced!r}; it can be {' or '.join(posix.STRATEGIES)}"
        )
    for strategy in [forced] if forced else posix.STRATEGIES:
        why_not = posix.probe(strategy)
        attempts.append(_Attempt(f"native, {strategy}", why_not))
        if why_not is None:
            return posix.PosixBackend(strategy)
    return None


def _choose(name: str) -> tuple[Backend, list[_Attempt]]:
    """AIOPROC_BACKEND's rule: "native" fails loudly, "" takes what works."""
    if name and name not in BACKENDS:
        raise RuntimeError(f"AIOPROC_BACKEND is {name!r}; it can be {' or '.join(BACKENDS)}")
    attempts: list[_Attempt] = []
    if name == "pure":
        attempts.append(_Attempt("native", "AIOPROC_BACKEND=pure"))
    else:
        native = _native(attempts)
        if native is not None:
            return native, attempts
        if name == "native":
            reasons = "; ".join(f"{attempt.name}: {attempt.why_not}" for attempt in attempts)
            raise RuntimeError(f"AIOPROC_BACKEND=native, but {reasons}")
    from . import pure

    attempts.append(_Attempt("pure", None))
    return pure.PureBackend(), attempts


def current() -> Backend:
    """The backend of this process; chosen at the first call."""
    global _current
    if _current is None:
        _current, _ = _choose(os.environ.get("AIOPROC_BACKEND", ""))
    return _current


def use(backend: Backend | None) -> Backend | None:
    """Replaces the backend for the children to come and returns the one before; None
    has it chosen anew. For tests."""
    global _current
    previous, _current = _current, backend
    return previous


def report() -> dict[str, Any]:
    """What was chosen, and why not the others; raises as `current` does."""
    backend, attempts = _choose(os.environ.get("AIOPROC_BACKEND", ""))
    if _current is not None:
        backend = _current
    result: dict[str, Any] = {
        "backend": backend.name,
        "strategy": backend.strategy,
        "not_used": {a.name: a.why_not for a in attempts if a.why_not is not None},
        "features": {},
    }
    if sys.platform != "win32":
        try:
            from . import posix
        except ImportError:
            pass
        else:
            result["features"] = posix.features()
    from . import pure

    result["features"]["pure_exit_watch"] = pure.mechanism()
    return result
