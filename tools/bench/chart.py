"""The results as pictures, by matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from .results import BASE, Results, Row

COLOURS = {
    "native": "#d62728",
    "native+uvloop": "#ff7f0e",
    "communicate": "#f7b6d2",
    "limited": "#ff9896",
    "pure": "#8c564b",
    "pure+uvloop": "#c49c94",
    "asyncio": "#1f77b4",
    "uvloop": "#2ca02c",
    "trio": "#9467bd",
    "anyio": "#e377c2",
    "threads": "#bcbd22",
    "shell": "#8da0cb",
    "c1": "#7f7f7f",
    "c2": "#000000",
    "go": "#17becf",
}


def missing() -> str | None:
    if importlib.util.find_spec("matplotlib") is None:
        return "a chart needs matplotlib: pip install matplotlib"
    return None


def draw(results: Results, path: Path) -> list[Path]:
    """Writes PATH as its suffix says, without one as SVG and as PNG; curves beside it.
    Returns what was written."""
    written = []
    if results.rows:
        written += _save(_ratios(results), path)
    if results.curves:
        beside = path.with_name(f"{path.stem}-scaling{path.suffix}") if results.rows else path
        written += _save(_curves(results), beside)
    return written


def _save(figure: Any, path: Path) -> list[Path]:
    targets = [path] if path.suffix else [path.with_suffix(s) for s in (".svg", ".png")]
    for target in targets:
        # Without a date, so that the same figures make the same file.
        metadata = {"Date": None} if target.suffix == ".svg" else None
        figure.savefig(target, dpi=150, bbox_inches="tight", metadata=metadata)
    return targets


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _main_metric(row: Row) -> str:
    return next(iter(row.units))


def _ratios(results: Results) -> Any:
    """A line a work, a dot a peer, a bar from its best to its worst round."""
    rows = [row for row in results.rows if _main_metric(row) not in row.absolute]
    rows.reverse()  # axes go upward
    peers = [peer for peer in results.peers if peer != BASE]
    figure = _figure(10, 1.5 + 0.5 * len(rows))
    axes = figure.add_subplot()
    for index, peer in enumerate(peers):
        # Side by side within the line.
        offset = 0.35 - 0.7 * (index + 0.5) / len(peers)
        points = [
            (y + offset, ratio)
            for y, row in enumerate(rows)
            if (ratio := row.ratio(peer, BASE, _main_metric(row))) is not None
            and ratio.low > 0  # loop time may be less than none, by noise
        ]
        axes.errorbar(
            [ratio.median for _, ratio in points],
            [y for y, _ in points],
            xerr=[
                [ratio.median - ratio.low for _, ratio in points],
                [ratio.high - ratio.median for _, ratio in points],
            ],
            fmt="o",
            markersize=5 if peer == "native" else 3.5,
            elinewidth=1,
            color=COLOURS[peer],
            label=peer,
        )
    axes.axvline(1, color=COLOURS[BASE], linewidth=1.5, label=BASE)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    for y in range(1, len(rows)):
        axes.axhline(y - 0.5, color="#dddddd", linewidth=0.5)
    axes.grid(axis="x", which="both", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"ratio to {BASE} (time; less is better)")
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    return figure


def _curves(results: Results) -> Any:
    """A panel a work: time over size."""
    from .works import CURVES

    works = list(dict.fromkeys(row.work for row in results.curves))
    columns = min(2, len(works))
    lines = -(-len(works) // columns)
    figure = _figure(5 * columns, 3.2 * lines)
    for number, work in enumerate(works):
        axes = figure.add_subplot(lines, columns, number + 1)
        rows = [row for row in results.curves if row.work == work]
        for peer in results.peers:
            points = [
                (row.size, value) for row in rows if (value := row.value(peer, "time")) is not None
            ]
            sizes = [size for size, _ in points]
            axes.plot(
                sizes, [value.median for _, value in points], "o-", color=COLOURS[peer], label=peer
            )
            axes.fill_between(
                sizes,
                [value.low for _, value in points],
                [value.high for _, value in points],
                color=COLOURS[peer],
                alpha=0.15,
                linewidth=0,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=0)
        axes.grid(color="#eeeeee")
        axes.set_xlabel(CURVES[work].label)
        axes.set_ylabel("spawn+wait, us")
        if number == 0:
            axes.legend(frameon=False)
    return figure
