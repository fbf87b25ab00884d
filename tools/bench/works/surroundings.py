"""Starting children in a process that is large in one way or another."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass

from ..peers import Peer
from .base import MIB, PER_CHILD, Curve, Metrics, Setting, Work, allow_descriptors
from .spawn import children


async def _one_at_a_time(peer: Peer, setting: Setting, *arguments: str) -> Metrics:
    argv = [setting.programs.true, *arguments]
    return await children(peer, setting, lambda: peer.call(argv), 1)


# -- heap, in MiB


def _with_heap(peer: Peer, setting: Setting) -> Metrics:
    heap = b"x" * (setting.size * MIB)
    metrics = peer.run(lambda: _one_at_a_time(peer, setting))
    del heap
    return metrics


def _limit_with_heap(setting: Setting) -> list[str]:
    return ["-m", str(setting.size), setting.programs.true]


# -- open descriptors


def _with_descriptors(peer: Peer, setting: Setting) -> Metrics:
    allow_descriptors(MIB)
    null = os.open(os.devnull, os.O_RDWR)
    fds = [null, *(os.dup(null) for _ in range(setting.size - 1))]
    metrics = peer.run(lambda: _one_at_a_time(peer, setting))
    metrics["limit"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for fd in fds:
        os.close(fd)
    return metrics


def _limit_with_descriptors(setting: Setting) -> list[str]:
    return ["-f", str(setting.size), setting.programs.true]


# -- arguments, in KiB


def _arguments(setting: Setting) -> list[str]:
    """A single one must not have more than 128 KiB (execve(2))."""
    return ["x" * 1023] * setting.size


def _with_arguments(peer: Peer, setting: Setting) -> Metrics:
    return peer.run(lambda: _one_at_a_time(peer, setting, *_arguments(setting)))


def _limit_with_arguments(setting: Setting) -> list[str]:
    return [setting.programs.true, *_arguments(setting)]


# -- live children


def _alive() -> int:
    """The number of this process's children."""
    count = 0
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            count += len(file.read().split())
    return count


def _with_children(peer: Peer, setting: Setting) -> Metrics:
    """The children that stay are the peer's own, since it has to keep watch on them."""
    allow_descriptors(8 * setting.size + 1000)
    # They read our stdin, which ends when they may.
    reader, writer = os.pipe()
    os.dup2(reader, 0)
    metrics: Metrics = {}

    async def stay() -> None:
        await peer.call([setting.programs.child, "sink"])

    async def measure() -> None:
        try:
            while _alive() < setting.size:
                await peer.sleep(0.02)
            # The last ones are on their way to their exec.
            await peer.sleep(0.1)
            metrics.update(await _one_at_a_time(peer, setting))
        finally:
            os.close(writer)

    jobs = [stay] * setting.size + [measure]
    peer.run(lambda: peer.at_once(len(jobs), jobs))
    os.close(reader)
    return metrics


def _limit_with_children(setting: Setting) -> list[str]:
    programs = setting.programs
    return ["-l", str(setting.size), "-p", programs.child, programs.true]


# -- the works


@dataclass(frozen=True)
class _Kind:
    label: str
    measure: Callable[[Peer, Setting], Metrics]
    limit: Callable[[Setting], list[str]]
    units: dict[str, str]

    def work(
        self, name: str, size: int = 0, quick_size: int | None = None, *, curve: bool = False
    ) -> Work:
        return Work(
            name,
            f"spawn+wait, {{size:,}} {self.label}",
            self.measure,
            count=200,
            quick=50,
            units=self.units,
            needs=("call",),
            limit=lambda setting: ["-n", str(setting.count), *self.limit(setting)],
            size=size,
            quick_size=quick_size,
            # A curve is looked at for being flat.
            absolute=("time", "cpu", "limit") if curve else ("limit",),
        )

    def curve(self, name: str, *sizes: int) -> Curve:
        return Curve(self.work(name, curve=True), sizes, self.label)


_HEAP = _Kind("MiB of touched heap", _with_heap, _limit_with_heap, PER_CHILD)
_DESCRIPTORS = _Kind(
    "open descriptors",
    _with_descriptors,
    _limit_with_descriptors,
    {**PER_CHILD, "limit": "RLIMIT_NOFILE"},
)
_ARGUMENTS = _Kind("KiB of arguments", _with_arguments, _limit_with_arguments, PER_CHILD)
_CHILDREN = _Kind("children alive", _with_children, _limit_with_children, PER_CHILD)

WORKS = [
    _HEAP.work("heap", 1024, 256),
    _DESCRIPTORS.work("fds", 10_000),
]

CURVES = [
    _CHILDREN.curve("by-children", 10, 100, 1000, 5000),
    _DESCRIPTORS.curve("by-fds", 10, 100, 1000, 10_000),
    _HEAP.curve("by-heap", 1, 16, 128, 1024),
    _ARGUMENTS.curve("by-arguments", 1, 16, 128, 1024),
]
