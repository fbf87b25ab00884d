"""Ending all that a child has started."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..peers import Job, Peer
from .base import Metrics, Setting, Stopwatch, Ticker, Work, beside_a_ticker, expect

#: Endings whose time is taken in one measurement.
ENDINGS = 5
#: Seconds from the first member's end to the last's. Which of the rounds of an ending sees
#: the last one go is a matter of chance.
SHORTEST_SPREAD, LONGEST_SPREAD = 0.05, 0.25
#: In one of the trees that are ended at once.
MEMBERS = 2
#: Seconds; a fuse.
FUSE = 60


def _processes() -> int:
    """On this machine, as a scan sees them: the kernel's own and zombies are among them."""
    return sum(name.isdigit() for name in os.listdir("/proc"))


@contextlib.contextmanager
def _crowd(setting: Setting, more: int) -> Iterator[int]:
    """Idle processes, as many as make `setting.size` of them with those that are here and
    `more` that are to come. They end when their stdin does: also if we are killed."""
    count = setting.size - _processes() - more
    with contextlib.ExitStack() as stack:
        if count > 0:
            crowd = stack.enter_context(
                subprocess.Popen(
                    [setting.programs.child, "crowd", str(count)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            assert crowd.stdin is not None
            assert crowd.stdout is not None
            # Before it is waited for.
            stack.callback(crowd.stdin.close)
            expect(crowd.stdout.read(1), b"+")
        yield _processes() + more


class _Output:
    """A pipe that trees write to; without a reader they end."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def __enter__(self) -> _Output:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._reader)
        os.close(self.writer)

    async def read(self, size: int) -> bytes:
        """So many bytes, which are to come."""
        end = time.monotonic() + FUSE
        data = self.what_is_there(size)
        while len(data) < size:
            if time.monotonic() > end:
                raise RuntimeError(f"{len(data)} of {size} bytes came within {FUSE} seconds")
            await self._peer.sleep(0.001)
            data += self.what_is_there(size - len(data))
        return data

    def what_is_there(self, size: int) -> bytes:
        try:
            return os.read(self._reader, size)
        except BlockingIOError:
            return b""


#: What a member writes at its end: its number, and the time in nanoseconds.
_STAMP = struct.Struct("qq")


def _last(stamps: bytes, count: int) -> int:
    """When the last of so many members ended."""
    expect(len(stamps), _STAMP.size * count)
    last = 0
    for pid, when in _STAMP.iter_unpack(stamps):
        last = max(last, when)
        with contextlib.suppress(ChildProcessError):  # the first of a tree
            os.waitpid(pid, 0)
    return last


def _adopt() -> None:
    """Has orphans become our children, to be reaped at once: where PID 1 takes its time, the
    zombies of one ending are among the processes of the next."""
    import ctypes  # not for everybody: it costs memory

    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _tree(setting: Setting, members: int, seconds: float) -> list[str]:
    return [setting.programs.child, "tree", str(members), str(int(seconds * 1e6))]


# -- one large tree


async def _ended(peer: Peer, setting: Setting, seconds: float) -> float:
    """From the end of the last member to that of the ending, in milliseconds."""
    with _Output(peer) as output:
        end = await peer.tree(_tree(setting, setting.count, seconds), output.writer)
        expect(await output.read(1), b"+")
        await end()
        now = time.monotonic_ns()
        # None may be missing by now.
        return (
            now - _last(output.what_is_there(_STAMP.size * setting.count), setting.count)
        ) / 1e6


async def _beside_ending(peer: Peer, setting: Setting) -> Ticker:
    with _Output(peer) as output:
        end = await peer.tree(_tree(setting, setting.count, SHORTEST_SPREAD), output.writer)
        expect(await output.read(1), b"+")
        ticker = await beside_a_ticker(peer, end)
        _last(output.what_is_there(_STAMP.size * setting.count), setting.count)
        return ticker


async def _beside_signal(peer: Peer, setting: Setting) -> Ticker:
    """The same end of the same processes, with nobody who looks for them."""
    with _Output(peer) as output:
        argv = _tree(setting, setting.count, SHORTEST_SPREAD)
        with subprocess.Popen(argv, stdout=output.writer, start_new_session=True) as leader:
            expect(await output.read(1), b"+")

            async def end() -> None:
                os.killpg(leader.pid, signal.SIGTERM)
                _last(await output.read(_STAMP.size * setting.count), setting.count)

            return await beside_a_ticker(peer, end)


def _large(peer: Peer, setting: Setting) -> Metrics:
    async def main() -> Metrics:
        times = []
        for _ in range(ENDINGS):
            spread = random.uniform(SHORTEST_SPREAD, LONGEST_SPREAD)
            times.append(await _ended(peer, setting, spread))
        ending = await _beside_ending(peer, setting)
        signalled = await _beside_signal(peer, setting)
        idle = await beside_a_ticker(peer, lambda: peer.sleep(ending.seconds))
        return {
            "time": statistics.median(times),
            "worst": max(times),
            "gap": ending.longest * 1e3,
            "held": ending.held * 1e3,
            "signal gap": signalled.longest * 1e3,
            "idle gap": idle.longest * 1e3,
        }

    _adopt()
    with _crowd(setting, setting.count) as processes:
        return {**peer.run(main), "processes": processes}


# -- many small ones at once


@dataclass(frozen=True)
class _Scans:
    """What the thread has done that looks for members, since it began."""

    rounds: int
    #: Seconds of its CPU.
    cpu: float


class _Watch:
    """Counts rounds, which nobody but aioproc itself knows."""

    THREAD = "aioproc trees"

    def __init__(self, peer: Peer) -> None:
        from aioproc._trees.scanning import scanning

        self._scanning = scanning
        self._peer = peer

    async def begin(self) -> None:
        """With a thread that has done nothing so far."""
        while self._thread() is not None:
            await self._peer.sleep(0.01)
        self._rounds = self._scanning.rounds

    def end(self) -> _Scans:
        """Soon, since it ends when it has nothing to do for a while."""
        thread = self._thread()
        if thread is None or thread.ident is None:
            raise RuntimeError("the thread that looks for members has ended too soon")
        cpu = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        return _Scans(self._scanning.rounds - self._rounds, cpu)

    def _thread(self) -> threading.Thread | None:
        for thread in threading.enumerate():
            if thread.name == self.THREAD:
                return thread
        return None


def _many(peer: Peer, setting: Setting) -> Metrics:
    argv = _tree(setting, MEMBERS, SHORTEST_SPREAD)

    async def main() -> Metrics:
        watch, count = _Watch(peer), setting.count
        with _Output(peer) as output:
            ends = [await peer.tree(argv, output.writer) for _ in range(ENDINGS + count)]
            await output.read(len(ends))

            async def ended(these: list[Job]) -> tuple[_Scans, float]:
                await watch.begin()
                with Stopwatch() as stopwatch:
                    await peer.at_once(len(these), these)
                scans = watch.end()
                members = MEMBERS * len(these)
                _last(await output.read(_STAMP.size * members), members)
                return scans, stopwatch.cpu

            alone = [(await ended([end]))[0] for end in ends[:ENDINGS]]
            many, cpu = await ended(ends[ENDINGS:])
        one = statistics.median(scans.cpu / scans.rounds for scans in alone)
        all_of_one = statistics.median(scans.cpu for scans in alone)
        return {
            "round": many.cpu / many.rounds / one,
            "scans": many.cpu / all_of_one,
            "rounds": many.rounds,
            "rounds of one": statistics.median(scans.rounds for scans in alone),
            "one round": one * 1e3,
            "cpu": cpu * 1e3,
        }

    _adopt()
    members = MEMBERS * (ENDINGS + setting.count)
    with _crowd(setting, members) as processes:
        return {**peer.run(main), "processes": processes}


# -- the works


def _large_one(size: int) -> Work:
    units = {
        "time": "ms",
        "worst": "ms",
        "gap": "ms",
        "held": "ms",
        "signal gap": "ms",
        "idle gap": "ms",
        "processes": "processes",
    }
    return Work(
        f"end-{size}",
        "{count} processes that end by SIGTERM, of {size:,}",
        _large,
        count=100,
        quick=100,
        units=units,
        needs=("tree",),
        absolute=tuple(units),
        size=size,
    )


_MANY_UNITS = {
    "round": "times one's",
    "scans": "times one's",
    "rounds": "rounds",
    "rounds of one": "rounds",
    "one round": "ms",
    "cpu": "ms",
    "processes": "processes",
}

WORKS = [
    _large_one(200),
    _large_one(2000),
    Work(
        "end-many",
        "{count} endings at once, of {size:,} processes",
        _many,
        count=50,
        quick=50,
        units=_MANY_UNITS,
        needs=("tree",),
        absolute=tuple(_MANY_UNITS),
        size=1000,
        quick_size=300,
    ),
]
