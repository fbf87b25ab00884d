"""The standard library's Popen as a way to make a child, and nothing else of it."""

from __future__ import annotations

import _winapi
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec


def popen(spec: SpawnSpec, theirs: list[int | None]) -> tuple[int, int]:
    """Starts the child on the calling thread; returns its pid and its handle."""
    stdin, stdout, stderr = theirs
    # Made in two steps: where Ctrl-C interrupts it, there may be a child already.
    process: Any = subprocess.Popen.__new__(subprocess.Popen)
    try:
        subprocess.Popen.__init__(
            process,
            spec.command_line,
            executable=spec.executable,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT if spec.stderr_to_stdout else stderr,
            bufsize=0,
            close_fds=spec.close_fds,
            cwd=spec.cwd,
            env=spec.env,
            startupinfo=spec.startupinfo,
            creationflags=spec.creationflags,
        )
        # With a returncode Popen's destructor neither warns nor waits.
        process.returncode = 0
        return process.pid, process._handle.Detach()
    except BaseException:
        handle = getattr(process, "_handle", None)
        if handle is not None:
            see_off(int(handle))
        raise


def see_off(handle: int) -> None:
    """Ends a process that nothing watches; leaves the handle open."""
    try:
        _winapi.TerminateProcess(handle, 1)
    except PermissionError:
        pass  # it has ended already, or is about to; or it is protected
