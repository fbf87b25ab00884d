"""What was measured: medians, ratios of pairs, ranges; and all of it as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BASE = "asyncio"


@dataclass(frozen=True)
class Range:
    """A median and what it lies between."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Range | None:
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.median(known), min(known), max(known))


@dataclass
class Row:
    """A work that several peers have done, several times."""

    work: str
    title: str
    units: dict[str, str]
    absolute: list[str]
    count: int
    size: int = 0
    #: As whom, if not as whoever has started the benchmark.
    user: str | None = None
    #: Peer -> metric -> a value per round; None for a round that failed.
    values: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    #: Peer -> what went wrong.
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.title if self.user is None else f"{self.title}, as {self.user}"

    def value(self, peer: str, metric: str) -> Range | None:
        return Range.of(self.values.get(peer, {}).get(metric, ()))

    def ratio(self, peer: str, base: str, metric: str) -> Range | None:
        """Peer to base; of each round by itself."""
        ours = self.values.get(peer, {}).get(metric, ())
        theirs = self.values.get(base, {}).get(metric, ())
        return Range.of(
            a / b if a is not None and b is not None and b > 0 else None
            for a, b in zip(ours, theirs, strict=False)
        )


@dataclass
class Results:
    machine: dict[str, Any]
    options: dict[str, Any]
    peers: list[str]
    rows: list[Row]
    #: Rows of the same work in several sizes.
    curves: list[Row] = field(default_factory=list)

    def save(self, path: Path) -> None:
        data = asdict(self)
        for kind, rows in (("rows", self.rows), ("curves", self.curves)):
            for item, row in zip(data[kind], rows, strict=True):
                item["ratios"] = self._ratios(row)
        path.write_text(json.dumps(data, indent=1) + "\n")

    def _ratios(self, row: Row) -> dict[str, dict[str, dict[str, float]]]:
        """For readers of the file; computed anew when it is loaded."""
        return {
            peer: {
                metric: asdict(ratio)
                for metric in row.units
                if metric not in row.absolute
                and (ratio := row.ratio(peer, BASE, metric)) is not None
            }
            for peer in row.values
            if peer != BASE and BASE in row.values
        }

    @classmethod
    def load(cls, path: Path) -> Results:
        data = json.loads(path.read_text())
        for kind in ("rows", "curves"):
            for item in data[kind]:
                del item["ratios"]
            data[kind] = [Row(**item) for item in data[kind]]
        return cls(**data)
