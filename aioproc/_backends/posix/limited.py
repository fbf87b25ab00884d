"""What a child may use and do, set by Python code in the forked process: where the child is
Popen's, and not our own (csrc/posix/child_code.c).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..base import (
    STEP_CPUS,
    STEP_DIE,
    STEP_NICE,
    STEP_NO_NEW_PRIVS,
    STEP_OOM,
    STEP_RLIMIT,
    STEP_SETUP,
)

if TYPE_CHECKING:
    from ..._spec.limits import Limits
    from ..._spec.spec import SpawnSpec

try:
    import resource
except ImportError:  # Emscripten, WASI: nothing will be spawned
    pass

Call = tuple[int, Callable[..., Any], tuple[Any, ...]]


class Prctl(NamedTuple):
    """What the standard library has no call for; each returns 0 or -errno."""

    no_new_privs: Callable[[], int]
    die_with: Callable[[int], int]


class LimitFailed(Exception):
    """args: what was tried (base.STEP_*), and errno."""


def is_main_thread() -> bool:
    """Whether the kernel takes its end for that of the process. Python's main thread may be
    another, where Python is embedded."""
    return threading.get_native_id() == os.getpid()


def refuse(spec: SpawnSpec, prctl: Prctl | None) -> None:
    """Raises for what cannot be had by a preexec_fn here; before anything is opened."""
    limits = spec.limits
    if limits is not None and limits.cpus and not hasattr(os, "sched_setaffinity"):
        raise ValueError("cpu_affinity needs a Python with os.sched_setaffinity()")
    if prctl is None:
        if limits is not None and limits.no_new_privs:
            raise ValueError("no_new_privs needs the native backend")
        if spec.die_with_parent:
            raise ValueError("die_with_parent needs the native backend")
    elif spec.die_with_parent and not is_main_thread():
        # It would end with the thread that makes it, which need not be ours to keep.
        what = "preexec_fn" if spec.preexec_fn is not None else "the portable strategy"
        raise OSError(
            errno.ENOTSUP, f"die_with_parent: with {what} it is for the main thread alone"
        )


def _write(file: str, number: int) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"%d" % number)
    finally:
        os.close(fd)


def _set_autogroup(nice: int) -> None:
    try:
        _write("/proc/self/autogroup", nice)
    except OSError:
        pass  # see ap_child_limit in child_code.c


def _set_cpus(cpus: frozenset[int]) -> None:
    os.sched_setaffinity(0, cpus)
    if os.sched_getaffinity(0) != cpus:
        raise OSError(errno.EINVAL, "")


def _forget_fds(keep: frozenset[int]) -> None:
    """Has the exec close them. Popen, after this, may go by the number of descriptors that
    there can be at most."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            try:
                if int(name) not in keep:
                    os.set_inheritable(int(name), False)
            except OSError:
                pass  # the folder's own
        return


def _calls(spec: SpawnSpec, limits: Limits) -> list[Call]:
    """In the order of our own child."""
    calls: list[Call] = []
    if limits.oom_score_adj is not None:
        calls.append((STEP_OOM, _write, ("/proc/self/oom_score_adj", limits.oom_score_adj)))
    if limits.nice is not None:
        calls.append((STEP_NICE, os.setpriority, (os.PRIO_PROCESS, 0, limits.nice)))
        if spec.start_new_session:
            calls.append((STEP_NICE, _set_autogroup, (limits.nice,)))
    if limits.cpus:
        calls.append((STEP_CPUS, _set_cpus, (limits.cpus,)))
    if spec.close_fds and any(key == "nofile" for key, _, _, _ in limits.rlimits):
        calls.append((STEP_SETUP, _forget_fds, (frozenset((0, 1, 2, *spec.pass_fds)),)))
    for _, number, *bounds in limits.rlimits:
        pair = tuple(resource.RLIM_INFINITY if one == -1 else one for one in bounds)
        calls.append((STEP_RLIMIT + number, resource.setrlimit, (number, pair)))
    # Popen would change them first, and take the rights away that limits may need.
    if spec.extra_groups is not None:
        calls.append((STEP_SETUP, os.setgroups, (spec.extra_groups,)))
    if spec.group is not None:
        calls.append((STEP_SETUP, os.setregid, (spec.group, spec.group)))
    if spec.user is not None:
        calls.append((STEP_SETUP, os.setreuid, (spec.user, spec.user)))
    return calls


class Limited:
    """A preexec_fn that sets the limits, changes the ids, and calls the user's own."""

    def __init__(self, spec: SpawnSpec, prctl: Prctl | None, dies: bool) -> None:
        limits = spec.limits
        self._calls = [] if limits is None else _calls(spec, limits)
        self._preexec_fn = spec.preexec_fn
        self._last: list[Call] = []
        if prctl is not None:
            # After the change of ids, which would take it back.
            if limits is not None and limits.no_new_privs:
                self._last.append((STEP_NO_NEW_PRIVS, _checked, (prctl.no_new_privs,)))
            if dies:
                # By default, where it can be had.
                function = _checked if spec.die_with_parent else _tried
                self._last.append((STEP_DIE, function, (prctl.die_with, os.getpid())))

    def __call__(self) -> None:
        """In the child."""
        self._perform(self._calls)
        if self._preexec_fn is not None:
            self._preexec_fn()
        self._perform(self._last)

    @staticmethod
    def _perform(calls: list[Call]) -> None:
        for step, function, args in calls:
            try:
                function(*args)
            except OSError as error:
                raise LimitFailed(step, error.errno) from None
            except ValueError:
                # In place of EPERM, for a hard limit.
                raise LimitFailed(step, errno.EPERM) from None
            except MemoryError:
                raise LimitFailed(step, errno.ENOMEM) from None


def _checked(function: Callable[..., int], *args: int) -> None:
    result = function(*args)
    if result < 0:
        raise OSError(-result, "")


def _tried(function: Callable[..., int], *args: int) -> None:
    function(*args)


def limited(spec: SpawnSpec, prctl: Prctl | None) -> Callable[[], Any] | None:
    """What Popen is to have called in the child."""
    dies = spec.die_with_parent
    if spec.die_if_honest and prctl is not None and is_main_thread():
        # Not for its own sake: without a preexec_fn Popen makes children in a better way.
        dies |= spec.limits is not None or spec.preexec_fn is not None
    if spec.limits is None and not dies:
        return spec.preexec_fn
    return Limited(spec, prctl, dies)
