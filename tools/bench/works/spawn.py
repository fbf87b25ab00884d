"""Starting children and waiting for them."""

from __future__ import annotations

from collections.abc import Callable

from ..peers import Job, Peer
from .base import PER_CHILD, Metrics, Setting, Stopwatch, Work, expect

KILOBYTE = b"x" * 1024

#: Makes what is done once for each child.
MakeJob = Callable[[Peer, Setting], Job]


def _plain(peer: Peer, setting: Setting) -> Job:
    return lambda: peer.call([setting.programs.true])


def _echo(peer: Peer, setting: Setting) -> Job:
    async def job() -> None:
        expect(await peer.output([setting.programs.echo, "hello"]), b"hello\n")

    return job


def _cat(peer: Peer, setting: Setting) -> Job:
    async def job() -> None:
        expect(await peer.exchange([setting.programs.cat], KILOBYTE), KILOBYTE)

    return job


async def children(peer: Peer, setting: Setting, job: Job, width: int) -> Metrics:
    with Stopwatch() as watch:
        await peer.at_once(width, [job] * setting.count)
    return watch.per_item(setting.count)


def _measure(make: MakeJob, width: int) -> Callable[[Peer, Setting], Metrics]:
    def measure(peer: Peer, setting: Setting) -> Metrics:
        return peer.run(lambda: children(peer, setting, make(peer, setting), width))

    return measure


def _limit(width: int, *options: str, program: str) -> Callable[[Setting], list[str]]:
    def arguments(setting: Setting) -> list[str]:
        command = [getattr(setting.programs, program)]
        if program == "echo":
            command.append("hello")
        return [*options, "-n", str(setting.count), "-w", str(width), *command]

    return arguments


def _works(
    name: str, title: str, make: MakeJob, need: str, *options: str, program: str
) -> list[Work]:
    return [
        Work(
            f"{name}-{width}",
            f"{title}, {width} at a time",
            _measure(make, width),
            count,
            quick,
            PER_CHILD,
            needs=(need,),
            limit=_limit(width, *options, program=program),
            width=width,
            pipes=bool(options),
        )
        for width, count, quick in ((1, 400, 100), (32, 1000, 250))
    ]


WORKS = [
    *_works("spawn", "spawn+wait", _plain, "call", program="true"),
    *_works("echo", "captured output", _echo, "output", "-o", program="echo"),
    *_works("cat", "1 kB through cat", _cat, "exchange", "-o", "-i", program="cat"),
]
