"""The standard library's Popen as a way to make a child, and nothing else of it.

For the pure backend, and for what the native strategies cannot do (preexec_fn).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._spec import SpawnSpec


def _in_group(group: int, preexec_fn: Any) -> Any:
    def in_child() -> None:
        os.setpgid(0, group)
        if preexec_fn is not None:
            preexec_fn()

    return in_child


def see_off(pid: int) -> None:
    """Kills a child that nothing watches, and waits for its end."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == 0:  # else the number may be another's by now
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # taken by another wait
    except PermissionError:
        pass  # running setuid: it goes on, and so do we


def popen(spec: SpawnSpec, fds: list[int]) -> int:
    """Starts the child on the calling thread, waits for the exec, returns its pid.

    The pid is the caller's to wait for.
    """
    options: dict[str, Any] = {}
    preexec_fn = spec.preexec_fn
    if spec.process_group is not None:
        if sys.version_info >= (3, 11):
            options["process_group"] = spec.process_group
        else:
            preexec_fn = _in_group(spec.process_group, preexec_fn)
    # Made in two steps: where Ctrl-C interrupts it, there may be a child already.
    process: Any = subprocess.Popen.__new__(subprocess.Popen)
    try:
        subprocess.Popen.__init__(
            process,
            spec.args,
            executable=spec.executable,
            stdin=None if fds[0] < 0 else fds[0],
            stdout=None if fds[1] < 0 else fds[1],
            stderr=None if fds[2] < 0 else fds[2],
            bufsize=0,
            preexec_fn=preexec_fn,
            close_fds=spec.close_fds,
            cwd=spec.cwd,
            env=spec.env,
            restore_signals=spec.restore_signals,
            start_new_session=spec.start_new_session,
            pass_fds=spec.pass_fds,
            user=spec.user,
            group=spec.group,
            extra_groups=spec.extra_groups,
            umask=-1 if spec.umask is None else spec.umask,
            **options,
        )
    except BaseException:
        if getattr(process, "pid", None) and process.returncode is None:
            process.returncode = 0
            see_off(process.pid)
        raise
    # With a returncode Popen's destructor neither warns nor waits: from here on the
    # exit is watched and the child reaped by us.
    process.returncode = 0
    pid: int = process.pid
    return pid
