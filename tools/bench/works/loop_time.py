"""What the rest of the program loses while children are started."""

from __future__ import annotations

import time
from functools import partial

from ..peers import Peer
from .base import (
    Metrics,
    Setting,
    Stopwatch,
    Ticker,
    Work,
    allow_descriptors,
    beside_a_ticker,
)

#: Seconds between two starts.
PAUSE = 0.005


async def _run(peer: Peer, argv: list[str] | None, count: int) -> Ticker:
    """One child every PAUSE, or none at all, beside a ticker."""

    async def main() -> None:
        start = time.perf_counter()
        for i in range(count):
            if argv is not None:
                await peer.call(argv)
            await peer.sleep(max(0, start + (i + 1) * PAUSE - time.perf_counter()))

    return await beside_a_ticker(peer, main)


def _measure(peer: Peer, setting: Setting) -> Metrics:
    argv = [setting.programs.true]
    half = setting.count // 2
    # The idle runs lie around the busy ones, so that a drift of the machine cancels out.
    commands = (None, argv, argv, None)
    runs = [peer.run(partial(_run, peer, command, half)) for command in commands]
    idle, busy = (runs[0], runs[3]), (runs[1], runs[2])

    def per_second(total: float, of: tuple[Ticker, ...]) -> float:
        return total / sum(run.seconds for run in of)

    seconds = sum(run.seconds for run in busy)
    lost_idle = per_second(sum(run.lost for run in idle), idle) * seconds
    lost = sum(run.lost for run in busy) - lost_idle
    ticks_idle = per_second(sum(run.ticks for run in idle), idle)
    ticks_busy = per_second(sum(run.ticks for run in busy), busy)
    return {
        "lost": lost / (2 * half) * 1e6,
        "ticks": (1 - ticks_busy / ticks_idle) * 100,
    }


def _gather(peer: Peer, setting: Setting) -> Metrics:
    allow_descriptors(20 * setting.count)
    argv = [setting.programs.true]
    watch = Stopwatch()

    async def all_at_once() -> None:
        await peer.at_once(setting.count, [lambda: peer.call(argv)] * setting.count)

    async def timed() -> None:
        with watch:
            await all_at_once()

    peer.run(timed)
    # A ticker would disturb the clock, so it gets a run of its own.
    ticker = peer.run(lambda: beside_a_ticker(peer, all_at_once))
    return {"time": watch.wall * 1e3, "gap": ticker.longest * 1e3}


WORKS = [
    Work(
        "loop-time",
        "loop time lost per spawn; ticks lost against an idle run",
        _measure,
        count=160,
        quick=60,
        units={"lost": "us/child", "ticks": "%"},
        needs=("call",),
        absolute=("ticks",),
    ),
    Work(
        "gather",
        "{count} spawn+wait in one gather()",
        _gather,
        count=200,
        quick=200,
        units={"time": "ms", "gap": "ms"},
        needs=("call",),
        absolute=("gap",),
    ),
]
