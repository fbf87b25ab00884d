"""Much data: how fast, in how much memory, and how long the loop is away meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from ..peers import Job, Peer
from .base import MIB, Metrics, Setting, Stopwatch, Work, beside_a_ticker, expect, memory

UNITS = {"time": "ms", "cpu": "ms", "peak": "MiB", "gap": "ms"}

#: Of a read by the user.
PIECE = 64 * 1024


def _out(peer: Peer, setting: Setting) -> Job:
    size = setting.count * MIB

    async def job() -> bytes:
        output = await peer.output([setting.programs.child, "flood", str(size)])
        expect(len(output), size)
        return output

    return job


def _in(peer: Peer, setting: Setting) -> Job:
    data = b"x" * (setting.count * MIB)
    return lambda: peer.feed([setting.programs.child, "sink"], data)


def _stream(peer: Peer, setting: Setting) -> Job:
    size = setting.count * MIB

    async def job() -> None:
        expect(await peer.stream([setting.programs.child, "flood", str(size)], PIECE), size)

    return job


def _lines(peer: Peer, setting: Setting) -> Job:
    count = setting.count

    async def job() -> None:
        expect(await peer.lines([setting.programs.child, "lines", str(count)]), count)

    return job


def _run_out(peer: Peer, setting: Setting) -> Job:
    size = setting.count * MIB

    async def job() -> bytes:
        output = await peer.capture([setting.programs.child, "flood", str(size)])
        expect(len(output), size)
        return output

    return job


def _run_in(peer: Peer, setting: Setting) -> Job:
    data = b"x" * (setting.count * MIB)
    return lambda: peer.capture([setting.programs.child, "sink"], data)


def _measure(make: Callable[[Peer, Setting], Job]) -> Callable[[Peer, Setting], Metrics]:
    def measure(peer: Peer, setting: Setting) -> Metrics:
        job = make(peer, setting)

        async def timed() -> None:
            with watch:
                _result = await job()  # not freed before the clock has stopped

        watch = Stopwatch()
        peer.run(timed)
        peak = memory("VmHWM") / 1024
        # A ticker would disturb the clock, so it gets a run of its own.
        ticker = peer.run(lambda: beside_a_ticker(peer, job))
        return {**watch.in_all(), "peak": peak, "gap": ticker.longest * 1e3}

    return measure


def _work(
    name: str, title: str, make: Callable[[Peer, Setting], Job], need: str, count: int, quick: int
) -> Work:
    return Work(
        name,
        title,
        _measure(make),
        count,
        quick,
        UNITS,
        needs=(need,),
        pipes=True,
        absolute=("gap",),
    )


WORKS = [
    _work("out", "communicate(), {count} MiB out", _out, "output", 256, 64),
    _work("in", "communicate(), {count} MiB in", _in, "feed", 256, 64),
    _work("stream", "stdout.read(64 KiB), {count} MiB", _stream, "stream", 256, 64),
    _work("lines", "async for line, {count:,} lines", _lines, "lines", 1_000_000, 250_000),
    _work("run-out", "run(), {count} MiB out", _run_out, "capture", 256, 64),
    _work("run-in", "run(), {count} MiB in", _run_in, "capture", 256, 64),
]
