"""What is asked of aioproc's native backend, and of the pure one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .results import BASE, Range, Results, Row


@dataclass(frozen=True)
class Target:
    """At most `bound`: as a ratio to `base`, or, without one, in the metric's unit."""

    work: str
    metric: str
    bound: float
    base: str | None = BASE
    peer: str = "native"


@dataclass(frozen=True)
class Verdict:
    target: Target
    row: Row
    measured: Range | None

    @property
    def hit(self) -> bool | None:
        """None where it was not measured."""
        return None if self.measured is None else self.measured.median <= self.target.bound


_TO_ASYNCIO = [
    Target("spawn-1", "time", 0.90),
    Target("spawn-32", "time", 0.78),
    Target("echo-32", "time", 0.72),
    Target("cat-32", "time", 0.72),
    Target("spawn-1", "cpu", 0.58),
    Target("echo-1", "cpu", 0.52),
    Target("cat-1", "cpu", 0.52),
    Target("spawn-32", "cpu", 0.44),
    Target("echo-32", "cpu", 0.42),
    Target("cat-32", "cpu", 0.42),
    Target("loop-time", "lost", 0.33),
    Target("mib", "time", 1.0),
    Target("heap", "time", 0.95),
    Target("out", "time", 0.38),
    Target("in", "time", 0.28),
    Target("stream", "time", 0.50),
    Target("lines", "time", 0.25),
    Target("ping", "time", 0.85),
]
_MEMORY = [
    Target("out", "peak", 0.55),
    Target("in", "peak", 0.45),
    Target("alive", "memory", 1.0),
    Target("alive", "fds", 1.0),
    Target("alive", "threads", 0, base=None),
]
_ABSOLUTE = [
    Target("import", "time", 15, base=None),
    *(Target(work, "gap", 5, base=None) for work in ("out", "in", "stream", "lines")),
    Target("gather", "gap", 15, base=None),
]

#: For each time and CPU above. "in" is missing: uvloop's stdin is a socketpair, which is
#: quick there, and whose /dev/stdin cannot be opened again.
_TO_UVLOOP = [
    Target(
        target.work,
        target.metric,
        {"ping": 1.0, "stream": 0.8}.get(target.work, 0.6),
        base="uvloop",
    )
    for target in _TO_ASYNCIO
    if target.work != "in"
]

#: run() leaves out of asyncio's way what it does not need.
_RUN = [
    Target(f"run-{work}-{width}", "cpu", bound)
    for work, one, many in (("true", 0.54, 0.40), ("echo", 0.44, 0.38), ("cat", 0.46, 0.38))
    for width, bound in ((1, one), (32, many))
] + [
    # As quick as communicate(), but for noise; and in the same memory.
    Target(work, metric, bound, base="communicate")
    for work in ("run-out", "run-in")
    for metric, bound in (("time", 1.05), ("peak", 1.02))
]

#: In the metrics' own units. A round for many endings costs what one for a single one does,
#: and they need few more rounds than that one.
_TREES = [
    Target("end-200", "worst", 20, base=None),
    Target("end-2000", "worst", 250, base=None),
    *(
        Target(f"end-{size}", metric, 2, base=None)
        for size in (200, 2000)
        for metric in ("gap", "held")
    ),
    Target("end-many", "round", 2, base=None),
    Target("end-many", "scans", 2, base=None),
]

#: run_many() and pipeline().
_MANY = [
    *(
        Target(f"many-{work}-32", metric, bound)
        for work in ("true", "echo")
        for metric, bound in (("time", 0.60), ("cpu", 0.40))
    ),
    Target("many-true-2", "time", 1.05, base="shell"),
    Target("pipeline", "time", 1.10, base="shell"),
    Target("pipeline", "cpu", 50, base=None),
]

#: One child at a time, C's one thread is as quick as C can be.
_TO_LIMIT = [
    Target(f"{work}-{width}", "time", bound, base)
    for width, base, bound in ((1, "c1", 1.15), (32, "c2", 1.10))
    for work in ("spawn", "echo", "cat", "run-true", "run-echo", "run-cat")
]

#: What a child may use and do is set on the quick path.
_LIMITED = [Target(work, "time", 1.1, "native", "limited") for work in ("spawn-1", "spawn-32")]

#: Nowhere slower by more than 10 %.
_EVERYWHERE = (
    "spawn-1",
    "spawn-32",
    "echo-1",
    "echo-32",
    "cat-1",
    "cat-32",
    "100k",
    "mib",
    "heap",
    "fds",
    "gather",
    "out",
    "in",
    "stream",
    "lines",
    "ping",
    "wakeup",
)
_NOT_SLOWER = [
    Target(work, "time", 1.1, base, peer)
    for peer, base in (("native+uvloop", "native"), ("pure", BASE))
    for work in _EVERYWHERE
] + [
    Target("loop-time", "lost", 1.1, base, peer)
    for peer, base in (("native+uvloop", "native"), ("pure", BASE))
]

TARGETS = [
    *_TO_ASYNCIO,
    *_MEMORY,
    *_ABSOLUTE,
    *_TO_UVLOOP,
    *_RUN,
    *_TREES,
    *_MANY,
    *_TO_LIMIT,
    *_LIMITED,
    *_NOT_SLOWER,
]


def verdicts(results: Results) -> Iterator[Verdict]:
    """Each target on each row of its work; rows that were not measured are left out."""
    for target in TARGETS:
        for row in results.rows:
            if row.work == target.work and target.peer in row.values:
                if target.base is None:
                    measured = row.value(target.peer, target.metric)
                elif target.base in row.values:
                    measured = row.ratio(target.peer, target.base, target.metric)
                else:
                    continue
                yield Verdict(target, row, measured)
