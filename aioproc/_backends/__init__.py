"""The choice of the backend, made once, and its report."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from .base import NOT_NOW, Attempt, Backend, ReadEnd
from .trees import Scanner

# With aioproc, and not at the first spawn: a thread that forks meanwhile would leave the
# lock of the module locked for good in the forked process.
if sys.platform == "win32":
    from .windows import pure
else:
    from .posix import pipes, pure, pure_trees

_native: Any = None
_native_missing = ""
try:
    if sys.platform == "win32":
        from .windows import native as _native
    else:
        from .posix import native as _native
        from .posix import native_trees
except ImportError as error:
    _native_missing = f"the extension cannot be imported: {error}"

BACKENDS = ("native", "pure")

_current: Backend | None = None


def _choose(name: str) -> tuple[Backend, list[Attempt]]:
    """AIOPROC_BACKEND's rule: "native" fails loudly, "" takes what works."""
    if name and name not in BACKENDS:
        raise RuntimeError(f"AIOPROC_BACKEND is {name!r}; it can be {' or '.join(BACKENDS)}")
    attempts: list[Attempt] = []
    if name == "pure":
        attempts.append(Attempt("native", "AIOPROC_BACKEND=pure"))
    else:
        if _native is None:
            attempts.append(Attempt("native", _native_missing))
        else:
            native: Backend | None = _native.choose(attempts)
            if native is not None:
                return native, attempts
        if name == "native":
            reasons = "; ".join(f"{attempt.name}: {attempt.why_not}" for attempt in attempts)
            raise RuntimeError(f"AIOPROC_BACKEND=native, but {reasons}")
    attempts.append(Attempt("pure", None))
    return pure.PureBackend(), attempts


def current() -> Backend:
    """The backend of this process; chosen at the first call. OSError when there is no
    telling, for want of descriptors or memory; nothing is remembered of that."""
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


def open_scanner() -> Scanner | None:
    """The backend's, for a tree of processes. None where nobody can look; OSError where
    it cannot be told now."""
    if sys.platform == "win32":
        return None
    try:
        if current().name == "native":
            return native_trees.NativeScanner()
        return pure_trees.PureScanner()
    except OSError as error:
        if error.errno in NOT_NOW:
            raise
        return None


def open_between(size: int = -1) -> tuple[int, int, int]:
    """A pipe from one child to another: the reading end and the writing end, to be closed by
    close_between() once each has been given to its child; and what is to be given to
    forget_between() when they have ended. size: what it is to hold, where that can be chosen.
    """
    return (*os.pipe(), 0) if sys.platform == "win32" else pipes.open_between(size)


def forget_between(claim: int) -> None:
    if sys.platform != "win32":
        pipes.forget_between(claim)


def close_between(fd: int) -> None:
    """Harmless on POSIX if it is closed already."""
    if sys.platform == "win32":
        os.close(fd)
    else:
        pipes.close_between(fd)


def open_shared(loop: asyncio.AbstractEventLoop, children: int) -> tuple[ReadEnd, list[int]]:
    """A pipe that several children write into: our end, and one for each of them."""
    if sys.platform == "win32":
        raise NotImplementedError("one pipe for the output of several children needs POSIX")
    reader, writer, claim = pipes.open_between()
    pipes.forget_between(claim)
    writers = [writer]
    try:
        while len(writers) < children:
            writers.append(pipes.duplicate_between(writers[0]))
        return pipes.read_between(reader, loop), writers
    except BaseException:
        for fd in (reader, *writers):
            pipes.close_between(fd)
        raise


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
    if _native is not None:
        result["features"] = _native.features()
    result["features"]["pure_exit_watch"] = pure.mechanism()
    return result
