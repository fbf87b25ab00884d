"""Rounds of measurements, each in a fresh process."""

from __future__ import annotations

import json
import os
import platform
import pwd
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import programs
from .measure import Request
from .peers import PEERS, Entry, versions
from .results import Row
from .works import WORKS, Metrics, Work

#: Seconds; a fuse.
FUSE = 300


@dataclass(frozen=True)
class Plan:
    """A work and where its results go."""

    work: Work
    row: Row
    peers: list[str]


def can(entry: Entry, work: Work) -> bool:
    if entry.program is None:
        return entry.can(work.needs)
    if entry.go:
        return work.go
    return work.limit is not None and entry.threads <= work.width


def plan(
    work: Work,
    peers: list[str],
    quick: bool,
    count: int | None = None,
    *,
    size: int | None = None,
    user: str | None = None,
) -> Plan:
    """With the work's own count and size where none are given."""
    if count is None:
        count = work.quick if quick else work.count
    if size is None:
        size = work.quick_size if quick and work.quick_size is not None else work.size
    able = [name for name in peers if can(PEERS[name], work)]
    title = work.title.format(count=count, size=size)
    row = Row(work.name, title, work.units, list(work.absolute), count, size, user)
    row.values = {name: {metric: [] for metric in work.units} for name in able}
    return Plan(work, row, able)


class Progress:
    """Where a long run is, on stderr: one line that changes, or in a file a line a
    work."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._start = time.monotonic()
        self._changes = sys.stderr.isatty()
        self._title = ""

    def at(self, title: str, peer: str) -> None:
        left = ""
        if self._done:
            seconds = (time.monotonic() - self._start) / self._done * (self._total - self._done)
            left = f", {seconds:.0f} s left" if seconds < 120 else f", {seconds / 60:.0f} min left"
        text = f"[{self._done}/{self._total}{left}] {title}"
        if self._changes:
            print(f"\r\033[K{text}: {peer}", end="", file=sys.stderr, flush=True)
        elif title != self._title:
            print(text, file=sys.stderr, flush=True)
        self._title = title
        self._done += 1

    def end(self) -> None:
        seconds = time.monotonic() - self._start
        if self._changes:
            print("\r\033[K", end="", file=sys.stderr)
        print(f"{self._total} measurements in {seconds:.0f} s", file=sys.stderr, flush=True)


def run(plans: list[Plan], rounds: int) -> None:
    """Measures all of it and fills the rows."""
    progress = Progress(rounds * sum(len(item.peers) for item in plans))
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        peers = {peer for item in plans for peer in item.peers}
        programs.build(Path(directory), go=any(PEERS[peer].go for peer in peers))
        _compile(peers, directory)
        for item in plans:
            for number in range(rounds):
                for peer in item.peers if number % 2 == 0 else reversed(item.peers):
                    progress.at(item.row.name, peer)
                    _once(item, peer, directory)
    progress.end()


def _compile(peers: set[str], directory: str) -> None:
    """Uses each peer once. A process that has to compile its modules first, as they are
    not after an installation, is slower to import and has other memory to spare."""
    for peer in peers:
        try:
            _measure(PEERS[peer], WORKS["spawn-1"], Request("spawn-1", peer, 1, 0, directory))
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            pass  # its measurements will tell


def _once(item: Plan, peer: str, directory: str) -> None:
    row = item.row
    metrics: Metrics = {}
    if peer not in row.failures:
        request = Request(row.work, peer, row.count, row.size, directory, row.user)
        try:
            metrics = _measure(PEERS[peer], item.work, request)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [str(error)]
            row.failures[peer] = lines[-1]
        except subprocess.TimeoutExpired:
            row.failures[peer] = f"took more than {FUSE} seconds"
    for metric, values in row.values[peer].items():
        values.append(metrics.get(metric))


def _measure(entry: Entry, work: Work, request: Request) -> Metrics:
    if entry.program is not None:
        return _compiled(entry.program, entry, work, request)
    environment = {**os.environ, "AIOPROC_BACKEND": entry.backend or ""}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # see _compile
    command = [sys.executable, "-m", "tools.bench.measure", json.dumps(asdict(request))]
    return _answer(command, env=environment)


def _compiled(program: str, entry: Entry, work: Work, request: Request) -> Metrics:
    assert work.limit is not None
    setting = request.setting()
    options: dict[str, Any] = {}
    if request.user is not None:
        group = pwd.getpwnam(request.user).pw_gid
        options = {"user": request.user, "group": group, "extra_groups": []}
    command = [getattr(setting.programs, program), *entry.arguments, *work.limit(setting)]
    seconds = _answer(command, **options)
    return {
        "time": seconds.get("latency", seconds["wall"] / request.count) * 1e6,
        "cpu": seconds["cpu"] / request.count * 1e6,
    }


def _answer(command: list[str], **options: Any) -> Metrics:
    answer: Metrics = json.loads(
        subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FUSE,
            **options,
        ).stdout
    )
    return answer


def machine(peers: list[str]) -> dict[str, Any]:
    """What the figures were measured on and with."""
    model = platform.machine()
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": versions(peers),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }
