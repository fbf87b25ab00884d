"""Starting children and waiting for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..peers import Job, Peer
from .base import MIB, PER_CHILD, Metrics, Setting, Stopwatch, Work, expect

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


def _run_true(peer: Peer, setting: Setting) -> Job:
    return lambda: peer.silent([setting.programs.true])


def _run_echo(peer: Peer, setting: Setting) -> Job:
    async def job() -> None:
        expect(await peer.capture([setting.programs.echo, "hello"]), b"hello\n")

    return job


def _run_cat(peer: Peer, setting: Setting) -> Job:
    async def job() -> None:
        expect(await peer.capture([setting.programs.cat], KILOBYTE), KILOBYTE)

    return job


def _flood(size: int) -> MakeJob:
    def make(peer: Peer, setting: Setting) -> Job:
        async def job() -> None:
            output = await peer.output([setting.programs.child, "flood", str(size)])
            expect(len(output), size)

        return job

    return make


async def children(peer: Peer, setting: Setting, job: Job, width: int) -> Metrics:
    with Stopwatch() as watch:
        await peer.at_once(width, [job] * setting.count)
    return watch.per_item(setting.count)


def _measure(make: MakeJob, width: int) -> Callable[[Peer, Setting], Metrics]:
    def measure(peer: Peer, setting: Setting) -> Metrics:
        return peer.run(lambda: children(peer, setting, make(peer, setting), width))

    return measure


@dataclass(frozen=True)
class _Kind:
    """A job a child: ours, and the same for the compiled programs."""

    title: str
    make: MakeJob
    need: str
    #: The child: a program of Programs, and its arguments.
    program: str
    arguments: tuple[str, ...] = ()
    #: limit.c's.
    options: tuple[str, ...] = ()

    def limit(self, width: int) -> Callable[[Setting], list[str]]:
        def arguments(setting: Setting) -> list[str]:
            command = [getattr(setting.programs, self.program), *self.arguments]
            return [*self.options, "-n", str(setting.count), "-w", str(width), *command]

        return arguments

    def work(self, name: str, width: int) -> Work:
        count, quick = (400, 100) if width == 1 else (1000, 250)
        return Work(
            name,
            f"{self.title}, {width} at a time",
            _measure(self.make, width),
            count,
            quick,
            PER_CHILD,
            needs=(self.need,),
            limit=self.limit(width),
            go=True,
            width=width,
            pipes="-o" in self.options,
        )


def _captured(title: str, size: int) -> _Kind:
    arguments = ("flood", str(size))
    return _Kind(title, _flood(size), "output", "child", arguments, ("-o", str(size)))


_SMALL = {
    "spawn": _Kind("spawn+wait", _plain, "call", "true"),
    "echo": _Kind("captured output", _echo, "output", "echo", ("hello",), ("-o", "6")),
    "cat": _Kind("1 kB through cat", _cat, "exchange", "cat", (), ("-o", "1024", "-i")),
    "run-true": _Kind("run(), nothing captured", _run_true, "silent", "true", (), ("-d",)),
    "run-echo": _Kind(
        "run(), captured", _run_echo, "capture", "echo", ("hello",), ("-o", "6", "-e")
    ),
    "run-cat": _Kind(
        "run(), 1 kB through cat", _run_cat, "capture", "cat", (), ("-o", "1024", "-e", "-i")
    ),
}

WORKS = [
    *(kind.work(f"{name}-{width}", width) for name, kind in _SMALL.items() for width in (1, 32)),
    _captured("captured output of 100 KiB", 100 * 1024).work("100k", 1),
    _captured("captured output of 1 MiB", MIB).work("mib", 1),
]
