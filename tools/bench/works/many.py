"""Many children, some at a time; and some at the same time, with pipes between them."""

from __future__ import annotations

from collections.abc import Callable

from ..peers import Peer
from .base import MIB, PER_CHILD, Metrics, Setting, Stopwatch, Work, allow_descriptors, expect

#: How many at a time.
WIDTHS = (2, 8, 32, 128)


def _true(width: int) -> Callable[[Peer, Setting], Metrics]:
    def measure(peer: Peer, setting: Setting) -> Metrics:
        allow_descriptors(20 * width)

        async def timed() -> None:
            with watch:
                await peer.many_silent([setting.programs.true], setting.count, width)

        watch = Stopwatch()
        peer.run(timed)
        return watch.per_item(setting.count)

    return measure


def _echo(width: int) -> Callable[[Peer, Setting], Metrics]:
    def measure(peer: Peer, setting: Setting) -> Metrics:
        allow_descriptors(20 * width)

        async def timed() -> list[bytes]:
            with watch:
                return await peer.many_capture(
                    [setting.programs.echo, "hello"], setting.count, width
                )

        watch = Stopwatch()
        expect(peer.run(timed), [b"hello\n"] * setting.count)
        return watch.per_item(setting.count)

    return measure


def _pipeline(peer: Peer, setting: Setting) -> Metrics:
    size = setting.count * MIB
    programs = setting.programs
    commands = [
        [programs.head, "-c", str(size), "/dev/zero"],
        [programs.cat],
        [programs.wc, "-c"],
    ]

    async def timed() -> bytes:
        with watch:
            return await peer.pipe(commands)

    watch = Stopwatch()
    expect(int(peer.run(timed)), size)
    return watch.in_all()


WORKS = [
    *(
        Work(
            f"many-true-{width}",
            f"run_many(), {{count:,}} that write nothing, {width} at a time",
            _true(width),
            count=10_000,
            quick=1_000,
            units=PER_CHILD,
            needs=("many_silent",),
            width=width,
        )
        for width in WIDTHS
    ),
    *(
        Work(
            f"many-echo-{width}",
            f"run_all(), {{count:,}} captured, {width} at a time",
            _echo(width),
            count=2_000,
            quick=400,
            units=PER_CHILD,
            needs=("many_capture",),
            width=width,
        )
        for width in WIDTHS
    ),
    Work(
        "pipeline",
        "{count} MiB through three stages",
        _pipeline,
        count=1024,
        quick=256,
        units={"time": "ms", "cpu": "ms"},
        needs=("pipe",),
        pipes=True,
        absolute=("cpu",),
    ),
]
