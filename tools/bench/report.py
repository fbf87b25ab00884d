"""The results for people: tables on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable

from .peers import PEERS
from .results import BASE, Range, Results, Row
from .targets import Verdict, verdicts

#: Rows of cells; the first are the titles.
Table = list[list[str]]

#: With more peers a line of the terminal has no room for ranges.
FEW = 5


def number(value: float) -> str:
    if abs(value) >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def with_range(value: Range, show: Callable[[float], str]) -> str:
    return f"{show(value.median)} ({show(value.low)}-{show(value.high)})"


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _cell(row: Row, peer: str, metric: str, ranges: bool) -> str:
    if peer in row.failures:
        return "failed"
    relative = peer != BASE and BASE in row.values and metric not in row.absolute
    value = row.ratio(peer, BASE, metric) if relative else row.value(peer, metric)
    if value is None:
        return "-"
    show = _ratio if relative else number
    text = with_range(value, show) if ranges else show(value.median)
    return f"x {text}" if relative else text


def _table(rows: list[Row], peers: list[str], ranges: bool) -> Table:
    table = [["work", "metric", *peers]]
    for row in rows:
        for metric, unit in row.units.items():
            label = metric if unit == metric else f"{metric}, {unit}"
            cells = [_cell(row, peer, metric, ranges) for peer in peers]
            table.append([row.name, label, *cells])
    return table


def check_table(found: list[Verdict]) -> Table:
    table = [["work", "metric", "peer", "against", "target", "measured", ""]]
    for verdict in found:
        target = verdict.target
        absolute = target.base is None
        show = number if absolute else _ratio
        unit = f" {verdict.row.units[target.metric]}" if absolute else ""
        table.append(
            [
                verdict.row.name,
                target.metric,
                target.peer,
                target.base or "-",
                f"<= {show(target.bound)}{unit}",
                with_range(verdict.measured, show) if verdict.measured else "failed",
                {True: "hit", False: "MISS", None: "-"}[verdict.hit],
            ]
        )
    return table


def as_text(table: Table) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    previous = ""
    for row in table:
        # A work's name once is enough.
        first = row[0] if row[0] != previous else ""
        previous = row[0]
        cells = [first, *row[1:]]
        lines.append("  ".join(map(str.ljust, cells, widths)).rstrip())
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    head, *body = table
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _legend(results: Results) -> list[str]:
    machine = results.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return [
        f"{machine['python']}, {machine['system']}, {machine['libc']}, {machine['cpu']}, "
        f"{machine['cores']} cores{', ' + packages if packages else ''}; {machine['date']}.",
        f"Medians of {results.options['pairs']} rounds (minimum-maximum). "
        f"x: ratio to {BASE}, less is better; others in the unit stated.",
    ]


def failures(results: Results) -> list[str]:
    return [
        f"{row.name}: {peer}: {what}"
        for row in [*results.rows, *results.curves]
        for peer, what in row.failures.items()
    ]


def _tables(results: Results, ranges: bool) -> list[Table]:
    tables = []
    if results.rows:
        tables.append(_table(results.rows, results.peers, ranges))
    if results.curves:
        tables.append(_table(results.curves, results.peers, ranges))
    return tables


def text(results: Results) -> str:
    ranges = len(results.peers) <= FEW
    parts = [as_text(table) for table in _tables(results, ranges)]
    return "\n\n".join([*parts, "\n".join(_legend(results))])


def markdown(results: Results) -> str:
    parts = [as_markdown(table) for table in _tables(results, True)]
    names = "; ".join(f"{peer}: {PEERS[peer].title}" for peer in results.peers)
    parts.append("\n".join([*_legend(results), f"{names}."]))
    found = list(verdicts(results))
    if found:
        parts.append(as_markdown(check_table(found)))
    return "\n\n".join(parts) + "\n"
