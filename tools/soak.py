"""Children by the hundred thousand, of every kind, with everything that can come between.

    python tools/soak.py                            two minutes
    python tools/soak.py --count 1000000 --seed 3   so many, however long it takes

A phase has threads with a loop each (asyncio's or uvloop), which run jobs whose results are
known (tools/reliability/jobs.py), and disturbances, some of which are drawn for it:

    fork      another thread forks; the forked process runs a child of its own
    thief     another thread waits for any child
    ignored   SIGCHLD is ignored, so that the kernel reaps
    storm     signals with a handler, a thousand a second
    limit     few descriptors: spawns are refused
    loops     a loop lives for a moment only, and is closed with its children alive
    switch    threads take turns every 10 us
    collect   the garbage collector runs all the time

Afterwards nothing of it may be left: descriptors, children, processes of trees, threads,
memory of the C layer; memory and the number of objects stay flat from the first
phases to the last. A run is repeated by its seed, as far as threads can be.

AIOPROC_BACKEND and AIOPROC_STRATEGY say what is tested. Linux. Exits with 0 only if all is
well.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import ctypes
import errno
import faulthandler
import gc
import importlib
import importlib.util
import json
import logging
import os
import random
import resource
import signal
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import aioproc  # noqa: E402
from aioproc import _backends  # noqa: E402
from tools.reliability import ledger  # noqa: E402
from tools.reliability.jobs import Jobs, Wrong  # noqa: E402

THREADS, AT_ONCE = 4, 6
#: Jobs of a phase.
PHASE = 2000
#: What a loop of the disturbance "loops" does.
SHORT_LOOP = 8

DISTURBANCES = ("fork", "thief", "ignored", "storm", "limit", "loops", "switch", "collect")

#: From the first third of the phases to the last: KiB that are allocated and resident, objects.
MOST_ALLOCATED, MOST_KIB, MOST_OBJECTS = 512, 16384, 500

#: With few descriptors these are what they must be.
REFUSALS = (errno.EMFILE, errno.ENFILE, errno.EAGAIN)


class Tally:
    """What has been done and what was wrong. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done: collections.Counter[str] = collections.Counter()
        self.refused = 0
        self.wrong: list[str] = []

    def note(self, name: str) -> None:
        with self._lock:
            self.done[name] += 1

    def refuse(self) -> None:
        with self._lock:
            self.refused += 1

    def blame(self, text: str) -> None:
        with self._lock:
            self.wrong.append(text)
        print(f"WRONG {text}", flush=True)


# -- the jobs of a phase


class Phase:
    def __init__(
        self,
        seed: str,
        count: int,
        kind: str,
        tally: Tally,
        given: set[str],
        patience: float,
        survive: bool,
    ) -> None:
        self._seed = seed
        self._kind = kind
        self._tally = tally
        self._given = given
        self._patience = patience
        self._survive = survive
        self._left = count
        self._lock = threading.Lock()
        self._are_taken = bool(given & {"thief", "ignored"})

    def _take(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0

    async def _job(self, jobs: Jobs) -> None:
        name, perform = jobs.draw()
        try:
            await asyncio.wait_for(perform(), self._patience)
        except Wrong as error:
            self._tally.blame(f"{self._seed}: {name}: {error}")
        except asyncio.TimeoutError:
            self._tally.blame(f"{self._seed}: {name}: takes for ever")
        except OSError as error:
            if "limit" in self._given and error.errno in REFUSALS:
                self._tally.refuse()
                await asyncio.sleep(0.005)
            else:
                self._tally.blame(f"{self._seed}: {name}: {error!r}")
        except Exception as error:
            self._tally.blame(f"{self._seed}: {name}: {error!r}")
        self._tally.note(name)

    async def _worker(self, jobs: Jobs) -> None:
        while self._take():
            await self._job(jobs)

    async def _long(self, jobs: Jobs) -> None:
        await asyncio.gather(*(self._worker(jobs) for _ in range(AT_ONCE)))

    async def _short(self, jobs: Jobs, rng: random.Random) -> None:
        await asyncio.gather(*(self._job(jobs) for _ in range(SHORT_LOOP) if self._take()))
        if rng.random() < 0.3:
            # It outlives its loop.
            await aioproc.create_subprocess_exec("sleep", f"{rng.random() * 0.05:.3f}")

    def _run(self, main: Any) -> None:
        try:
            loop = new_loop(self._kind)
        except OSError as error:
            main.close()
            if "limit" not in self._given or error.errno not in REFUSALS:
                raise
            self._tally.refuse()
            time.sleep(0.005)
            return
        try:
            loop.run_until_complete(main)
        except OSError as error:
            if "limit" not in self._given or error.errno not in REFUSALS:
                raise
            self._tally.refuse()
        finally:
            try:
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                loop.close()

    def thread(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        jobs = Jobs(rng, self._are_taken, self._survive, "limit" in self._given)
        try:
            if "loops" not in self._given:
                self._run(self._long(jobs))
                return
            while self._left > 0:
                self._run(self._short(jobs, rng))
        except BaseException as error:
            self._tally.blame(f"{self._seed}: thread: {error!r}")
            raise


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "uvloop":
        loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
        return loop
    return asyncio.SelectorEventLoop()


def _statuses_survive() -> bool:
    """Whether the kernel tells a status that somebody else has taken: by a pidfd that is there
    before anybody can."""
    report = _backends.report()
    features: Any = report["features"]
    return report["strategy"] in ("clone", "copy") and bool(features.get("pidfd_get_info"))


# -- what comes between


@contextmanager
def thread_of(step: Callable[[], None]) -> Iterator[None]:
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            step()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Disturbances:
    """By name, context managers."""

    def __init__(self, tally: Tally, patience: float) -> None:
        self._tally = tally
        self._patience = patience

    def fork(self) -> Any:
        return thread_of(self._fork)

    def _fork(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads
            try:
                pid = os.fork()
            except BlockingIOError:
                return
        if pid == 0:
            code = 4
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, LIMITS)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                done = asyncio.run(aioproc.run("echo", "forked", timeout=self._patience))
                code = 0 if done.stdout == b"forked\n" else 3
            finally:
                os._exit(code)
        end = time.monotonic() + self._patience
        while True:
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                break  # the thief has it
            if found:
                if status:
                    self._tally.blame(f"a forked process: status {status:#x}")
                self._tally.note("forked")
                break
            if time.monotonic() > end:
                self._tally.blame("a forked process takes for ever")
                os.kill(pid, signal.SIGKILL)
                end += self._patience
            time.sleep(0.005)
        time.sleep(0.01)

    def thief(self) -> Any:
        return thread_of(self._steal)

    def _steal(self) -> None:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pid = 0
        if pid:
            self._tally.note("stolen")
        else:
            time.sleep(0.0005)

    @contextmanager
    def ignored(self) -> Iterator[None]:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    @contextmanager
    def storm(self) -> Iterator[None]:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    @contextmanager
    def limit(self) -> Iterator[None]:
        room = len(os.listdir("/proc/self/fd")) + 8 * THREADS
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, LIMITS[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, LIMITS)

    @contextmanager
    def loops(self) -> Iterator[None]:
        yield  # the phase's own

    @contextmanager
    def switch(self) -> Iterator[None]:
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            yield
        finally:
            sys.setswitchinterval(before)

    @contextmanager
    def collect(self) -> Iterator[None]:
        before = gc.get_threshold()
        gc.set_threshold(10, 2, 2)
        try:
            yield
        finally:
            gc.set_threshold(*before)


LIMITS = resource.getrlimit(resource.RLIMIT_NOFILE)


# -- what is left


MARK = f"AIOPROC_SOAK={os.getpid()}"


def left_after(before: ledger.Ledger, seconds: float = 10) -> list[str]:
    end = time.monotonic() + seconds
    while True:
        gc.collect()
        ledger.reap()
        found = ledger.differences(before, ledger.take()) + ledger.strays(MARK)
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.01)


def resident() -> int:
    """KiB. What the C library keeps of freed memory, in an arena for each of the first threads,
    is given back beforehand, as far as it can be."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


class Mallinfo(ctypes.Structure):
    """mallinfo2(3), glibc 2.33."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks")),
        ("keepcost", ctypes.c_size_t),
    ]


def allocated() -> int | None:
    """KiB that the C library has given out: without what it keeps, in pieces, which grows as
    arenas do. None where it cannot be asked."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return None
    ask.restype = Mallinfo
    info: Any = ask()
    kib: int = (info.uordblks + info.hblkhd) // 1024
    return kib


def grow_interned() -> None:
    """The interpreter's table of interned strings doubles when so many have come, though most of
    them have gone: a step of 533 KiB, at some 650,000 jobs. It is taken beforehand."""
    for i in range(50_000):
        sys.intern(f"interned {i}")


def growth(values: list[int]) -> int:
    """From the first third to the last."""
    third = max(1, len(values) // 3)
    return int(statistics.median(values[-third:]) - statistics.median(values[:third]))


# -- the whole


class Quiet(logging.Handler):
    """What is logged, counted, without its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.said: collections.Counter[str] = collections.Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.said[f"{record.name}: {record.msg}"[:120]] += 1


def unraisable(tally: Tally, info: Any) -> None:
    # asyncio's loop, where there were no descriptors for it.
    if "_ssock" not in str(info.exc_value):
        tally.blame(f"unraisable: {info.exc_value!r} in {info.object!r}")


def soak(options: argparse.Namespace) -> int:
    rng = random.Random(options.seed)
    tally, quiet = Tally(), Quiet()
    logging.getLogger().addHandler(quiet)
    warnings.simplefilter("ignore", ResourceWarning)  # of loops that close with children
    sys.unraisablehook = partial(unraisable, tally)
    kinds = ["asyncio"]
    if importlib.util.find_spec("uvloop") is not None:
        kinds.append("uvloop")
    kinds = options.loop or kinds
    disturbances = Disturbances(tally, options.patience)
    backend, survive = _backends.current(), _statuses_survive()
    print(f"seed {options.seed}; {backend.name}, {backend.strategy}; loops: {', '.join(kinds)}")
    print(f"phases of {PHASE} jobs, in {THREADS} threads, {AT_ONCE} at once in each", flush=True)

    def phase(number: int, count: int, given: set[str]) -> None:
        kind = kinds[number % len(kinds)]
        name = f"{options.seed}/{number} {kind} {sorted(given)}"
        own = Phase(name, count, kind, tally, given, options.patience, survive)
        threads = [threading.Thread(target=own.thread, args=(i,)) for i in range(THREADS)]
        with ExitStack() as stack:
            for name in sorted(given):
                stack.enter_context(getattr(disturbances, name)())
            for each in threads:
                each.start()
            for each in threads:
                each.join()

    for number in range(len(kinds)):  # what is made at a first use
        phase(number, 200, set())
    grow_interned()
    time.sleep(0.2)
    gc.collect()
    before = ledger.take()
    sizes: list[tuple[int, int, int, int]] = []
    number = done = 0
    start = time.monotonic()
    while (options.count is None or done < options.count) and (
        options.count is not None or time.monotonic() - start < options.seconds
    ):
        faulthandler.dump_traceback_later(600, exit=True)
        count = PHASE if options.count is None else min(PHASE, options.count - done)
        given = set(options.only or rng.sample(DISTURBANCES, rng.choice([0, 1, 2, 3])))
        phase(number, count, given)
        for text in left_after(before):
            tally.blame(f"{options.seed}/{number} {sorted(given)}: {text}")
        if tally.wrong:
            before = ledger.take()
        sizes.append((resident(), len(gc.get_objects()), len(before.fds), allocated() or 0))
        number += 1
        done += count
        rate = done / (time.monotonic() - start)
        words = ", ".join(sorted(given)) or "nothing"
        print(
            f"{done:8} jobs, {rate:.0f}/s, {sizes[-1][0]} KiB, {sizes[-1][3]} of them allocated, "
            f"{sizes[-1][1]} objects, "
            f"{len(tally.wrong)} wrong, {tally.refused} refused; between them: {words}",
            flush=True,
        )
        if tally.wrong and options.first:
            break
    faulthandler.cancel_dump_traceback_later()
    kib, objects, _, more = (growth(list(column)) for column in zip(*sizes, strict=True))
    if more > MOST_ALLOCATED and not options.any_memory:
        tally.blame(f"{more} KiB allocated more than at first")
    if kib > MOST_KIB and not options.any_memory:
        tally.blame(f"{kib} KiB more than at first")
    if objects > MOST_OBJECTS:
        tally.blame(f"{objects} objects more than at first")
    result = {
        "seed": options.seed,
        "backend": f"{backend.name}, {backend.strategy}",
        "jobs": done,
        "seconds": round(time.monotonic() - start),
        "refused": tally.refused,
        "wrong": len(tally.wrong),
        "KiB": [sizes[0][0], sizes[-1][0], kib],
        "KiB allocated": [sizes[0][3], sizes[-1][3], more],
        "objects": [sizes[0][1], sizes[-1][1], objects],
        "descriptors": [sizes[0][2], len(ledger.descriptors())],
        "done": dict(sorted(tally.done.items())),
        "logged": dict(quiet.said.most_common(8)),
    }
    print(json.dumps(result, indent=1))
    return 1 if tally.wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--count", type=int, help="jobs, instead of a time")
    add("--seconds", type=float, default=120.0)
    add("--seed", type=int, default=0)
    add("--loop", nargs="+", choices=["asyncio", "uvloop"])
    add("--only", nargs="+", choices=DISTURBANCES, help="these disturbances in each phase")
    add("--patience", type=float, default=60.0, help="seconds that a job may take")
    add("--first", action="store_true", help="end when something was wrong")
    add("--any-memory", action="store_true", help="it may grow: sanitizers keep what is freed")
    options = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("Linux only")
    os.environ.pop("LD_PRELOAD", None)  # a sanitizer's: for us, and not for each child
    name, _, value = MARK.partition("=")
    os.environ[name] = value
    faulthandler.enable()
    try:
        return soak(options)
    finally:
        ledger.end_marked(MARK)


if __name__ == "__main__":
    sys.exit(main())
