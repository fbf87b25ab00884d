"""Limits as the C layer takes them, and the thread that it may need for them."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

from ... import _native
from .limited import is_main_thread

if TYPE_CHECKING:
    from ..._spec.limits import Limits

ffi = _native.ffi
lib = _native.lib

_INFINITY = 2**64 - 1


def c_limits(limits: Limits) -> tuple[Any, Any]:
    """An ap_limits, and what has to live as long."""
    given = 0
    if limits.nice is not None:
        given |= lib.AP_SET_NICE
    if limits.cpus:
        given |= lib.AP_SET_CPUS
    if limits.oom_score_adj is not None:
        given |= lib.AP_SET_OOM
    if limits.no_new_privs:
        given |= lib.AP_NO_NEW_PRIVS
    cpus = ffi.new("int32_t[]", sorted(limits.cpus)) if limits.cpus else ffi.NULL
    rlimits = limits.rlimits
    made = ffi.new(
        "ap_limits *",
        # The struct's fields in their order: one call, not one for each.
        (
            given,
            limits.nice or 0,
            limits.oom_score_adj or 0,
            len(limits.cpus),
            cpus,
            len(rlimits),
            [number for _, number, _, _ in rlimits],
            [soft & _INFINITY for _, _, soft, _ in rlimits],
            [hard & _INFINITY for _, _, _, hard in rlimits],
        ),
    )
    return made, cpus


#: What of a thread its children have as it is, and what no child can be given otherwise: from
#: /proc/PID/status, and the namespaces. All of it is the same in all threads of most processes.
_FIELDS = (
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
)
_SPACES = ("mnt", "net", "pid_for_children", "uts", "ipc", "cgroup", "user")


def _state(thread: int) -> dict[str, str]:
    folder = f"/proc/self/task/{thread}"
    with open(f"{folder}/status", encoding="utf-8", errors="replace") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    state = {name: lines[name].strip() for name in _FIELDS if name in lines}
    for name in _SPACES:
        try:
            state[f"{name} namespace"] = os.readlink(f"{folder}/ns/{name}")
        except OSError:
            pass  # not known to this kernel, or not to be seen here
    state["working directory"] = os.readlink(f"{folder}/cwd")
    if hasattr(os, "sched_getscheduler"):  # not on PyPy
        state["scheduling policy"] = str(os.sched_getscheduler(thread))
    if state.get("Seccomp") == "2" and "Seccomp_filters" not in state:
        # Before Linux 5.9 nobody says whether they are the same.
        state["Seccomp_filters"] = f"of thread {thread}"
    return state


def check_thread() -> None:
    """For a child that is to end with this process: OSError if it would have other rights
    than a child of this thread."""
    if is_main_thread():
        return
    maker = lib.ap_spawn_thread()
    if maker < 0:
        raise OSError(-maker, f"die_with_parent: {os.strerror(-maker)}")
    mine, its = _state(threading.get_native_id()), _state(maker)
    different = [name for name in mine if mine[name] != its.get(name)]
    if different:
        raise OSError(
            errno.ENOTSUP,
            "die_with_parent: the child is made by a thread of aioproc's, which differs from "
            f"this one in {', '.join(different)}",
        )
