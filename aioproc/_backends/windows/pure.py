"""The pure backend on Windows: children by the standard library's Popen, pipes and exits by
a completion port (overlapped.py)."""

from __future__ import annotations

import _winapi
import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from ..base import WithoutJobs
from ..watcher import Watchers
from .overlapped import Port
from .overlapped_pipes import Stdio
from .popen import popen, see_off
from .pure_child import WindowsChild, orphans

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec

__all__ = ["PureBackend", "mechanism", "orphans"]

_ports: Watchers[Port] = Watchers(Port)


def mechanism() -> str:
    """How exits are noticed here."""
    return "iocp"


class PureBackend(WithoutJobs):
    """base.Backend with nothing but the standard library."""

    name = "pure"
    strategy = "Popen, iocp"

    def turn(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None] | None:
        return _ports.turn(loop)

    def spawn(
        self,
        spec: SpawnSpec,
        loop: asyncio.AbstractEventLoop,
        lazy: bool = False,
        collect: bool = False,
        input: memoryview | None = None,
    ) -> WindowsChild:
        if (spec.startupinfo.lpAttributeList or {}).get("job_list"):
            # Popen would pass over it in silence.
            raise ValueError("startupinfo.lpAttributeList['job_list'] needs the native backend")
        if spec.die_with_parent or (spec.limits is not None and spec.limits.job):
            what = "die_with_parent" if spec.die_with_parent else "rlimits"
            raise ValueError(f"{what} needs the native backend")
        orphans.reap()
        spec.check_open()
        began = perf_counter()
        port = _ports.of(loop)
        stdio = Stdio(port)
        handle, child = 0, None
        try:
            stdio.open(spec, port)
            pid, handle = popen(spec, stdio.theirs)
            child = WindowsChild(pid, handle, stdio)
            port.watch_exit(child)
            stdio.finish()
            port.spend(perf_counter() - began)
            return child
        except BaseException:
            # It must not live on unseen.
            stdio.undo(child)
            if handle and child is None:
                see_off(handle)
                _winapi.CloseHandle(handle)
            raise
