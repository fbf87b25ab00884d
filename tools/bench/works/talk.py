"""How soon the one hears of the other."""

from __future__ import annotations

import os
import statistics
import time

from ..peers import Peer
from .base import Metrics, Setting, Stopwatch, Work, expect


def _ping(peer: Peer, setting: Setting) -> Metrics:
    line = b"one line, there and back\n"
    watch = Stopwatch()

    async def main() -> None:
        cat = await peer.open([setting.programs.cat])
        expect(await cat.ask(line), line)
        with watch:
            for _ in range(setting.count):
                await cat.ask(line)
        await cat.end()

    peer.run(main)
    return watch.per_item(setting.count)


def _wakeup(peer: Peer, setting: Setting) -> Metrics:
    reader, writer = os.pipe()
    latencies = []

    async def main() -> None:
        for _ in range(setting.count):
            await peer.call([setting.programs.child, "stamp"], stdout=writer)
            now = time.monotonic_ns()
            latencies.append(now - int(os.read(reader, 32)))

    peer.run(main)
    os.close(reader)
    os.close(writer)
    return {"time": statistics.median(latencies) / 1e3}


def _limit_of_wakeup(setting: Setting) -> list[str]:
    return ["-s", "-n", str(setting.count), setting.programs.child, "stamp"]


WORKS = [
    Work(
        "ping",
        "ping-pong of a line through cat",
        _ping,
        count=5000,
        quick=1500,
        units={"time": "us/line", "cpu": "us/line"},
        needs=("open",),
        pipes=True,
    ),
    Work(
        "wakeup",
        "from the exit to the wake-up of wait()",
        _wakeup,
        count=300,
        quick=100,
        units={"time": "us"},
        needs=("call",),
        limit=_limit_of_wakeup,
    ),
]
