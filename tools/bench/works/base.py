"""What a work is, and how it is timed."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..peers import Job, Peer
from ..programs import Programs

#: By name, in the unit that the work states.
Metrics = dict[str, float]

MIB = 2**20

PER_CHILD = {"time": "us/child", "cpu": "us/child"}


@dataclass(frozen=True)
class Setting:
    """What one measurement is about."""

    peer: str
    programs: Programs
    #: How often, or how much; of the work's own unit.
    count: int
    #: What a curve is drawn over.
    size: int = 0


@dataclass(frozen=True)
class Work:
    """`measure` runs in a fresh process, with a peer that has been used before."""

    name: str
    title: str
    measure: Callable[[Peer, Setting], Metrics]
    count: int
    quick: int
    #: Metric -> unit; the first is the one that the chart shows.
    units: dict[str, str]
    #: The peer's operations that it needs.
    needs: tuple[str, ...] = ()
    #: The same for limit.c: its arguments, where C has something to say.
    limit: Callable[[Setting], list[str]] | None = None
    #: Whether os_exec.go knows these arguments too.
    go: bool = False
    #: How many children at a time.
    width: int = 1
    #: What an ordinary user's limits may change.
    pipes: bool = False
    #: Metrics that are stated as they are, since a ratio would say nothing.
    absolute: tuple[str, ...] = ()
    size: int = 0
    quick_size: int | None = None


@dataclass(frozen=True)
class Curve:
    """A work over its size."""

    work: Work
    sizes: tuple[int, ...]
    label: str


class Stopwatch:
    """Wall time and CPU time of this process (its threads, not its children), in
    seconds."""

    wall = cpu = 0.0

    def __enter__(self) -> Stopwatch:
        self._cpu = cpu_time()
        self._wall = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = cpu_time() - self._cpu

    def per_item(self, count: int) -> Metrics:
        """In microseconds."""
        return {"time": self.wall / count * 1e6, "cpu": self.cpu / count * 1e6}

    def in_all(self) -> Metrics:
        """In milliseconds."""
        return {"time": self.wall * 1e3, "cpu": self.cpu * 1e3}


def cpu_time() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def memory(what: str) -> float:
    """A line of /proc/self/status in KiB. ru_maxrss will not do for the peak: exec
    carries the parent's over (getrusage(2))."""
    with open("/proc/self/status") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == what:
                return float(value.split()[0])
    raise RuntimeError(f"no {what} in /proc/self/status")


def expect(result: object, expected: object) -> None:
    """Whoever is quick because it loses something is not quick."""
    if result != expected:
        raise RuntimeError(f"expected {expected!r:.80}, got {result!r:.80}")


def allow_descriptors(count: int) -> None:
    """Raises RLIMIT_NOFILE to `count`, or as far as is permitted."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, hard)))
    except (ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


class Ticker:
    """Looks how long the loop is away, by ticks without a pause."""

    #: Seconds; what a round of a loop that does nothing else stays below.
    GAP = 30e-6

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._running = True
        self.ticks = 0
        self.seconds = 0.0
        #: Sum of the gaps above GAP.
        self.lost = 0.0
        self.longest = 0.0
        #: CPU time of the loop's thread from one tick to the next, at most: what the peer has
        #: done there. The rest of a gap is that others had the CPU, or Python's lock.
        self.held = 0.0
        #: What was done meanwhile: to free much memory takes a while, which is not the
        #: peer's doing.
        self.result: object = None

    async def run(self) -> None:
        tick, now, cpu = self._peer.sleep, time.perf_counter, time.thread_time
        start = last = now()
        last_cpu = cpu()
        while self._running:
            await tick(0)
            this = now()
            this_cpu = cpu()
            gap, held = this - last, this_cpu - last_cpu
            last, last_cpu = this, this_cpu
            self.ticks += 1
            if gap > self.GAP:
                self.lost += gap
                self.longest = max(self.longest, gap)
                self.held = max(self.held, held)
        self.seconds += last - start

    def stop(self) -> None:
        self._running = False


async def beside_a_ticker(peer: Peer, main: Job) -> Ticker:
    """Does something while a ticker runs."""
    ticker = Ticker(peer)

    async def until_done() -> None:
        try:
            ticker.result = await main()
        finally:
            ticker.stop()

    await peer.at_once(2, [ticker.run, until_done])
    return ticker
