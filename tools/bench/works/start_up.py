"""What it costs to begin: the import, and the first child."""

from __future__ import annotations

import statistics
import subprocess
import sys

from ..peers import PEERS, Peer
from .base import Metrics, Setting, Work

#: In an interpreter that has asyncio already.
CODE = """
import asyncio, sys, time
start = time.perf_counter()
for name in sys.argv[3:]:
    __import__(name)
imported = time.perf_counter()
from tools.bench import peers
begin = time.perf_counter()
peer = peers.PEERS[sys.argv[1]].make()
peer.run(lambda: peer.call([sys.argv[2]]))
print(imported - start, time.perf_counter() - begin)
"""


def _measure(_: Peer, setting: Setting) -> Metrics:
    modules = PEERS[setting.peer].modules
    command = [sys.executable, "-c", CODE, setting.peer, setting.programs.true, *modules]
    results = []
    for _i in range(setting.count):
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results.append([float(seconds) * 1e3 for seconds in output.split()])
    imported, first = map(statistics.median, zip(*results, strict=True))
    return {"time": imported, "first": first}


WORKS = [
    Work(
        "import",
        "import, over asyncio's own; loop and first child",
        _measure,
        count=7,
        quick=3,
        units={"time": "ms", "first": "ms"},
        needs=("call",),
        absolute=("time", "first"),
    )
]
