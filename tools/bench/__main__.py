"""The command line: ``python -m tools.bench --help``."""

from __future__ import annotations

import argparse
import pwd
import sys
from pathlib import Path

from . import chart, programs, report, runner
from .peers import PEERS, missing, without_go
from .results import Results
from .targets import verdicts
from .works import CURVES, WORKS

#: Who draws the curves, if nobody else is named.
CURVE_PEERS = ["c1", "native", "asyncio"]
#: Who is in a quick run: those whom the targets are about.
QUICK_PEERS = [
    *("c1", "c2"),
    *("native+uvloop", "communicate", "limited", "native"),
    *("asyncio", "uvloop", "pure"),
    "shell",
]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench",
        description="aioproc and its peers at the same work. Ratios are to asyncio.",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="names the works and the peers")
    add("--only", metavar="WORK,...", help="these works")
    add("--peers", metavar="PEER,...", help="these peers")
    add("--pairs", metavar="N", type=int, help="rounds: 7, or 2 with --quick")
    add("--count", metavar="N", type=int, help="children (MiB, lines, ...) instead of the usual")
    add("--quick", action="store_true", help="less work, fewer peers; two or three minutes")
    add("--scaling", action="store_true", help="the cost of a spawn as other things grow")
    add("--user", metavar="NAME", help="works with pipes also as this user (needs root)")
    add("--load", metavar="FILE", type=Path, help="measures nothing: results of --json")
    add("--json", metavar="FILE", type=Path, help="writes all values and ratios")
    add("--markdown", metavar="FILE", type=Path, help="writes the table")
    add("--chart", metavar="FILE", type=Path, help="writes .svg or .png; no suffix: both")
    add("--check", action="store_true", help="tells which targets are met; fails if not all are")
    return parser


def chosen(given: str | None, known: list[str], default: list[str], what: str) -> list[str]:
    """In the known order, which is that of a round."""
    if given is None:
        return default
    names = given.split(",")
    for name in names:
        if name not in known:
            raise SystemExit(f"there is no {what} {name!r}; there are {', '.join(known)}")
    return [name for name in known if name in names]


def show_list() -> None:
    print("works:")
    for work in WORKS.values():
        title = work.title.format(count=work.count, size=work.size)
        print(f"  {work.name:14} {title} [{', '.join(work.units)}]")
    print("works with --scaling:")
    for curve in CURVES.values():
        print(f"  {curve.work.name:14} {curve.work.title} by {curve.label} {curve.sizes}")
    print("peers:")
    for entry in PEERS.values():
        print(f"  {entry.name:14} {entry.title}")


def measure(options: argparse.Namespace) -> Results:
    quick: bool = options.quick
    works = CURVES if options.scaling else WORKS
    names = chosen(options.only, list(works), list(works), "work")
    default = CURVE_PEERS if options.scaling else QUICK_PEERS if quick else list(PEERS)
    peers = chosen(options.peers, list(PEERS), default, "peer")
    if options.peers is None and not programs.has_go():
        those = without_go(peers)
        if those != peers:
            print("the peer go is left out: Go is not installed here", file=sys.stderr)
        peers = those
    lacking = missing(peers)
    if lacking:
        raise SystemExit(lacking)
    if options.user is not None:
        try:
            pwd.getpwnam(options.user)
        except KeyError:
            raise SystemExit(f"there is no user {options.user!r}") from None
    pairs = options.pairs or (2 if quick else 7)

    plans = []
    count: int | None = options.count
    for name in names:
        if options.scaling:
            curve = CURVES[name]
            sizes = curve.sizes[:-1] if quick else curve.sizes
            plans += [runner.plan(curve.work, peers, quick, count, size=size) for size in sizes]
        else:
            work = WORKS[name]
            plans.append(runner.plan(work, peers, quick, count))
            if options.user is not None and work.pipes:
                plans.append(runner.plan(work, peers, quick, count, user=options.user))
    # The machine as it is before we load it.
    machine = runner.machine(peers)
    runner.run(plans, pairs)
    rows = [item.row for item in plans]
    return Results(
        machine,
        {"pairs": pairs, "quick": quick, "count": count, "user": options.user},
        peers,
        [] if options.scaling else rows,
        rows if options.scaling else [],
    )


def main() -> int:
    options = parser().parse_args()
    if options.list:
        show_list()
        return 0
    if options.chart and (lacking := chart.missing()):
        raise SystemExit(lacking)
    results = Results.load(options.load) if options.load else measure(options)
    if options.json:
        results.save(options.json)
    print(report.text(results))
    if options.markdown:
        options.markdown.write_text(report.markdown(results))
    if options.chart:
        for path in chart.draw(results, options.chart):
            print(f"drawn: {path}")
    missed = False
    if options.check:
        found = list(verdicts(results))
        print()
        print(report.as_text(report.check_table(found)))
        missed = any(verdict.hit is False for verdict in found)
    failed = report.failures(results)
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    return 1 if failed or missed else 0


if __name__ == "__main__":
    sys.exit(main())
