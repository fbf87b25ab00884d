"""The pure backend on POSIX: children by the standard library's Popen."""

from __future__ import annotations

import asyncio
import errno
import sys
from time import perf_counter
from typing import TYPE_CHECKING

from ..base import WithoutJobs
from .limited import refuse
from .pipes import Stdio
from .popen import end_group, popen, see_off
from .pure_child import PureChild, orphans
from .terminals import open_terminal
from .watchers import mechanism, watchers

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec

__all__ = ["PureBackend", "mechanism", "orphans"]

#: Systems where Python cannot start processes.
WITHOUT_PROCESSES = ("emscripten", "wasi")


class PureBackend(WithoutJobs):
    """base.Backend with nothing but the standard library."""

    name = "pure"

    @property
    def strategy(self) -> str:
        return f"Popen, {mechanism()}"

    def turn(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None] | None:
        return watchers.turn(loop)

    def spawn(
        self,
        spec: SpawnSpec,
        loop: asyncio.AbstractEventLoop,
        lazy: bool = False,
        collect: bool = False,
        input: memoryview | None = None,
    ) -> PureChild:
        if sys.platform in WITHOUT_PROCESSES:
            raise OSError(errno.ENOTSUP, f"{sys.platform} does not support processes.")
        refuse(spec, None)
        orphans.reap()
        spec.check_open()
        began = perf_counter()
        watcher = watchers.of(loop)
        stdio = Stdio(watcher)
        pid, child = 0, None
        try:
            if spec.terminal is None:
                stdio.open(spec, loop)
            else:
                open_terminal(stdio, spec, loop)
            pid = popen(spec, stdio.theirs, None)
            child = PureChild(pid, stdio)
            watcher.add(child)
            stdio.finish()
            watcher.spend(perf_counter() - began)
            return child
        except BaseException:
            # EMFILE, say, or Ctrl-C. It must not live on unseen.
            if child is not None:
                end_group(child, spec)
            stdio.undo(child)
            if pid and child is None:
                see_off(pid, spec)
            raise
