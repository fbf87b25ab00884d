"""What children cost while they live."""

from __future__ import annotations

import gc
import os

from ..peers import Conversation, Peer
from .base import Metrics, Setting, Work, allow_descriptors, memory


def _state() -> dict[str, float]:
    gc.collect()
    return {
        "memory": memory("VmRSS"),
        "fds": len(os.listdir("/proc/self/fd")),
        "threads": memory("Threads"),
    }


def _measure(peer: Peer, setting: Setting) -> Metrics:
    allow_descriptors(20 * setting.count)
    command = [setting.programs.cat]

    async def main() -> Metrics:
        # What the first child opens for all is not counted.
        alive: list[Conversation] = [await peer.open(command)]
        before = _state()
        for _ in range(setting.count):
            alive.append(await peer.open(command))
        # Until the last one's exec is over, and everybody has come to rest.
        await peer.sleep(0.1)
        after = _state()
        for conversation in alive:
            await conversation.end()
        growth = {name: after[name] - before[name] for name in after}
        return {
            "memory": growth["memory"] / setting.count,
            "fds": growth["fds"] / setting.count,
            "threads": growth["threads"],
        }

    return peer.run(main)


WORKS = [
    Work(
        "alive",
        "{count} children alive, three pipes each",
        _measure,
        count=500,
        quick=200,
        units={"memory": "KiB/child", "fds": "fds/child", "threads": "threads"},
        needs=("open",),
        pipes=True,
        absolute=("threads",),
    )
]
