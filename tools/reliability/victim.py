"""The process in which system calls are made to fail: run by inject.c, told what to do by
tools/faults.py.

Reads cases, one JSON a line, and answers each in the same way.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import gc
import json
import logging
import os
import re
import struct
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aioproc
from aioproc import _backends
from tools.reliability import ledger
from tools.reliability.operations import OPERATIONS

# The same in inject.c.
TELL, CALLS = 50, 512
HOW = {"refused": 0, "made": 1, "late": 2}
ROLES = ("parent", "child")


class Fault(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("role", "call", "occurrence", "error", "how")),
        ("number", ctypes.c_int64),
        ("hits", ctypes.c_int64),
        ("bad_closes", ctypes.c_int64),
        ("counts", ctypes.c_uint32 * CALLS * 2),
    ]


_libc = ctypes.CDLL(None)
_libc.syscall.argtypes = [ctypes.c_long, *[ctypes.c_int] * 3, ctypes.c_char_p]


def tell(address: int | None) -> None:
    """The injector, by a signal with a value, to this thread."""
    # siginfo_t: si_signo, si_errno, si_code (SI_QUEUE), si_pid, si_uid, si_value.
    info = struct.pack("iiiiiiP", TELL, 0, -1, 0, os.getpid(), os.getuid(), address or 0)
    number, thread = 297, threading.get_native_id()  # rt_tgsigqueueinfo of x86_64
    _libc.syscall(number, os.getpid(), thread, TELL, info.ljust(128, b"\0"))


#: Seconds in which an operation must end; for all of a case.
PATIENCE, FUSE = 8.0, 40.0

#: What a loop keeps for its next child comes, and goes when there is none for long.
PORT = re.compile(r"eventpoll|timerfd")
NEW_PORT = re.compile(r"eventpoll|timerfd|still watched")

#: In the environment of all that we start.
MARK = f"AIOPROC_FAULTS={os.environ.get('AIOPROC_FAULTS', os.getpid())}"


class Notes:
    """What is said beside results: by loggers, the loop's handler, finalizers, warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []

        class Handler(logging.Handler):
            def emit(handler, record: logging.LogRecord) -> None:
                self.said.append(f"{record.name}: {record.getMessage()}"[:300])

        logging.getLogger().addHandler(Handler())
        sys.unraisablehook = lambda info: self.said.append(f"unraisable: {info.exc_value!r}")
        warnings.showwarning = self._warned  # type: ignore[assignment]

    def _warned(self, message: Any, *args: Any) -> None:
        self.said.append(f"{type(message).__name__}: {message}"[:300])

    def of_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.said.append(f"loop: {context['message']}: {error!r}"[:300])


NOTES = Notes()


@contextmanager
def failing(case: dict[str, Any], fault: Fault) -> Iterator[None]:
    fault.role, fault.call = ROLES.index(case["role"]), case["call"]
    fault.occurrence, fault.error = case["occurrence"], case["error"]
    fault.how, fault.number = HOW[case["how"]], THEIRS
    gc.collect()
    gc.disable()
    tell(ctypes.addressof(fault))
    try:
        yield
    finally:
        tell(None)
        gc.enable()


async def outcome_of(name: str) -> dict[str, Any]:
    operation = OPERATIONS[name]
    try:
        result = await asyncio.wait_for(operation.perform(), PATIENCE)
    except asyncio.TimeoutError as error:
        if not isinstance(error, aioproc.ProcessError):
            return {"kind": "hangs"}
        return described(error)
    except (Exception, asyncio.CancelledError) as error:
        return described(error)
    if result == operation.expected:
        return {"kind": "right"}
    return {"kind": "returned", "text": repr(result)[:300]}


def described(error: BaseException) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": "raised", "type": type(error).__name__}
    found["errno"] = getattr(error, "errno", None)
    found["text"] = str(error)[:300]
    # So that its traceback, with all that is in its frames, is the collector's to take.
    error.itself = error  # type: ignore[attr-defined]
    return found


async def perform(case: dict[str, Any], fault: Fault) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(NOTES.of_loop)
    warm = case["warm"]
    if warm:
        await OPERATIONS["spawn"].perform()
    before = ledger.take(loop)
    with failing(case, fault):
        outcome = await outcome_of(case["operation"])
    after = [await outcome_of("run"), await outcome_of("spawn")]
    left = await ledger.settled(before, (PORT if warm else NEW_PORT).search)
    return {"outcome": outcome, "after": after, "left": left}


def answer(case: dict[str, Any]) -> dict[str, Any]:
    faulthandler.dump_traceback_later(FUSE, exit=True)
    NOTES.said.clear()
    fault = Fault()
    before = ledger.take()
    try:
        result = asyncio.run(perform(case, fault))
    except BaseException as error:
        ended = {**described(error), "kind": "loop ended"}
        result = {"outcome": ended, "after": [], "left": []}
    end = time.monotonic() + 3
    while True:
        gc.collect()
        ledger.reap()
        left = ledger.differences(before, ledger.take())
        if OPERATIONS[case["operation"]].makes_trees:
            left += ledger.strays(MARK, {*ledger.children(), os.getppid()})
        if not left or time.monotonic() > end:
            break
        time.sleep(0.002)
    result["left"] += [text for text in left if text not in result["left"]]
    faulthandler.cancel_dump_traceback_later()
    result["hits"], result["bad_closes"] = fault.hits, fault.bad_closes
    result["notes"] = list(NOTES.said)
    if not case["occurrence"]:
        result["counts"] = {
            role: {call: n for call, n in enumerate(fault.counts[i]) if n}
            for i, role in enumerate(ROLES)
        }
    return result


#: A descriptor of somebody else.
THEIRS = os.open("/dev/null", os.O_RDONLY)


def main() -> None:
    name, _, value = MARK.partition("=")
    os.environ[name] = value
    faulthandler.enable()
    warnings.simplefilter("always")
    backend = _backends.current()
    print(json.dumps({"backend": f"{backend.name}, {backend.strategy}"}), flush=True)
    # All that is made at a first use.
    for operation in OPERATIONS.values():
        asyncio.run(operation.perform())  # type: ignore[arg-type]
    json.dumps(described(ValueError()))
    while threading.active_count() > 1:  # that looks for trees
        time.sleep(0.01)
    gc.collect()
    gc.freeze()  # or each collection goes through all that is there
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
