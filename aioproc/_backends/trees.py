"""What a scanner is: it finds what a child has started, and signals it.

`csrc/posix/aioproc_posix.h` says what a member of a tree is, and what a round does; a pure
scanner does the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Protocol

#: In the environment of whatever a child starts: "mark:mark...", each 16 hexadecimal digits.
VARIABLE = "AIOPROC_TREE"

#: How many trees a round takes, and how many members of each it names.
MOST = 4096
NAMED = 256

#: Sought.flags: SIGCONT for stopped members, once they have the signal; the leader has the
#: signal of this step, by another way.
RESUME, LEADER_HAS_IT = 1, 2

_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0


def now() -> int:
    """For Sought.born and .group_time: in clock ticks since the boot, as proc_pid_stat(5)
    has a process's start. 0 where nobody knows."""
    return time.clock_gettime_ns(_CLOCK) * _TICKS // 10**9 if _CLOCK is not None else 0


class Sought(Protocol):
    """One tree, as ap_tree in C: what is sought, what to do, what was found."""

    leader: int
    session: int
    mark: int
    start: int
    born: int
    signal: int
    step: int
    flags: int
    group: int
    group_time: int
    alive: int
    newcomers: int
    signalled: int
    denied: int
    in_exec: int


class Scanner(Protocol):
    """For one thread at a time."""

    def sought(self) -> Sought:
        """A new one, with nothing in it."""

    def round(self, trees: Sequence[Sought], /) -> int:
        """Looks at all processes once, for all trees; one that is not among them is
        forgotten. Returns how many processes there were; OSError with nothing changed."""

    def pids(self, tree: Sought, /) -> list[int]:
        """The first NAMED members that were alive in the last round."""

    def close(self) -> None:
        """Also in a forked process, with the parent's."""
