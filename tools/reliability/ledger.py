"""What a process has of descriptors, children, threads, readers and the C layer's memory; and
what it has more, or less, than before."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple


class Ledger(NamedTuple):
    #: Descriptors, with what they are open on.
    fds: dict[int, str]
    #: Zombies among them.
    children: frozenset[int]
    threads: frozenset[threading.Thread]
    #: Descriptors that the loop watches, where that can be seen.
    watched: frozenset[int]
    tasks: int
    #: The C layer's, with their memory.
    tokens: int
    plans: int


def descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the one that lists
    return found


def children() -> frozenset[int]:
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                found.update(map(int, file.read().split()))
        except FileNotFoundError:
            pass  # the thread has ended
    return frozenset(found)


def _content(path: str) -> bytes:
    # Not by pathlib, which interns the parts of each path: of names that come once only, the
    # pids here, the interpreter's table of interned strings grows, by half a MiB in a soak.
    with open(path, "rb") as file:
        return file.read()


def marked(mark: str) -> dict[int, str]:
    """Processes that have this NAME=value in their environment, with their commands. Zombies
    have none."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark.encode() in _content(f"/proc/{name}/environ").split(b"\0"):
                command = _content(f"/proc/{name}/cmdline").replace(b"\0", b" ")
                found[int(name)] = command.decode(errors="replace").strip()
        except OSError:
            continue  # it has ended
    return found


def strays(mark: str, but: Collection[int] = ()) -> list[str]:
    """Who is alive of all that this process has started, in words."""
    own = {os.getpid(), *but}
    left = marked(mark)
    return [f"process {pid} left: {command}" for pid, command in left.items() if pid not in own]


def end_marked(mark: str) -> None:
    while found := marked(mark).keys() - {os.getpid()}:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def take(loop: asyncio.AbstractEventLoop | None = None) -> Ledger:
    """As it is now. `loop`: what that has is noted, too."""
    native: Any = sys.modules.get("aioproc._native")
    # asyncio's own name; uvloop has nothing of the kind.
    selector = getattr(loop, "_selector", None)
    return Ledger(
        descriptors(),
        children(),
        frozenset(threading.enumerate()),
        frozenset(selector.get_map()) if selector is not None else frozenset(),
        len(asyncio.all_tasks(loop)) if loop is not None else 0,
        native.lib.ap_count_children() if native is not None else 0,
        native.lib.ap_count_plans() if native is not None else 0,
    )


def reap() -> None:
    """What every spawn does first: children that outlived their loops are looked at."""
    from aioproc._backends import pure

    pure.orphans.reap()
    posix: Any = sys.modules.get("aioproc._backends.posix.native")
    if posix is not None:
        posix.reap_orphans()


def differences(before: Ledger, now: Ledger) -> list[str]:
    """In words, one for each thing."""
    found = []
    for fd, name in now.fds.items():
        if fd not in before.fds:
            found.append(f"descriptor {fd} left open: {name}")
        elif before.fds[fd] != name:
            found.append(f"descriptor {fd} replaced: was {before.fds[fd]}, is {name}")
    found += [f"descriptor {fd} closed: {before.fds[fd]}" for fd in before.fds.keys() - now.fds]
    found += [f"child {pid} left" for pid in sorted(now.children - before.children)]
    found += [f"thread left: {thread.name}" for thread in now.threads - before.threads]
    found += [f"descriptor {fd} still watched" for fd in sorted(now.watched - before.watched)]
    found += [
        f"{more} {what} left"
        for what, more in (
            ("tasks", now.tasks - before.tasks),
            ("children of the C layer", now.tokens - before.tokens),
            ("plans", now.plans - before.plans),
        )
        if more > 0
    ]
    return found


async def settled(
    before: Ledger, ignored: Callable[[str], object], seconds: float = 3.0
) -> list[str]:
    """What is left when the kernel and the loop had their time."""
    loop = asyncio.get_running_loop()
    end = time.monotonic() + seconds
    pause = 0.0
    while True:
        gc.collect()
        reap()
        found = [text for text in differences(before, take(loop)) if not ignored(text)]
        if not found or time.monotonic() > end:
            return found
        await asyncio.sleep(pause)
        pause = min(0.02, pause + 0.002)
