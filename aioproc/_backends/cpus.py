"""How many CPUs this process may use."""

from __future__ import annotations

import math
import os
import re


def usable_cpus(root: str = "") -> int:
    """By affinity, where the system has it, and by the quota of the cgroup we are in, as
    containers have it: half a CPU more counts as one.

    root: where /proc and the mount points are looked for, for tests.
    """
    # Since Python 3.13 -X cpu_count has a say.
    count = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    if hasattr(os, "sched_getaffinity"):
        try:
            count = min(count, len(os.sched_getaffinity(0)))
        except OSError:
            pass
    try:
        quota = _quota(root)
    except (OSError, ValueError, IndexError):
        quota = None  # there are no cgroups, or such as nobody knows
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _quota(root: str) -> float | None:
    """The CPUs' time that our cgroups have, in CPUs; None: as much as there is.

    Source: cgroups(7), proc_pid_mountinfo(5); cpu.max and cpu.cfs_quota_us in the kernel's
    admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst.
    """
    version, path = 0, ""
    for line in _read(root + "/proc/self/cgroup").splitlines():
        number, controllers, name = line.split(":", 2)
        if "cpu" in controllers.split(","):
            version, path = 1, name
            break
        if number == "0":
            version, path = 2, name
    for line in _read(root + "/proc/self/mountinfo").splitlines() if version else ():
        own, _, system = line.partition(" - ")
        mounted, point = map(_unescaped, own.split()[3:5])
        kind, _, options = system.split(maxsplit=2)
        if (version == 2 and kind == "cgroup2") or (
            version == 1 and kind == "cgroup" and "cpu" in options.split(",")
        ):
            # Without a cgroup namespace a container sees but a part of the tree.
            inner = path[len(mounted) :] if mounted != "/" else path
            if mounted == "/" or path == mounted or path.startswith(mounted + "/"):
                return _least(root + point, inner, version)
    return None


def _least(top: str, path: str, version: int) -> float | None:
    """Of a cgroup and of those around it: each may be limited."""
    least = None
    parts = [part for part in path.split("/") if part]
    for i in range(len(parts) + 1):
        folder = "/".join([top, *parts[:i]])
        try:
            if version == 2:
                quota, period = _read(folder + "/cpu.max").split()
            else:
                quota = _read(folder + "/cpu.cfs_quota_us").strip()
                period = _read(folder + "/cpu.cfs_period_us")
            if quota not in ("max", "-1"):
                cpus = int(quota) / int(period)
                least = cpus if least is None else min(least, cpus)
        except (OSError, ValueError, ZeroDivisionError):
            continue  # the root has none
    return least


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
