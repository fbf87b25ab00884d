"""The pure backend on Windows: children by the standard library's Popen, pipes and exits by
a completion port (overlapped.py)."""

from __future__ import annotations

import _winapi
import asyncio
import ctypes
import errno
import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any

from ..base import ResourceUsage, WithoutJobs
from ..child import BaseChild
from ..watcher import Watchers
from .overlapped import PipeReadEnd, PipeWriteEnd, Port, Stdio

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS (psapi.h)"""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 7),
    ]


_kernel32 = ctypes.WinDLL("kernel32")


def _usage(handle: int) -> ResourceUsage | None:
    """Of a process that has ended; what Windows has no number for is 0."""
    # Created, exited, kernel, user, in 100 ns.
    times = (ctypes.c_uint64 * 4)()
    at = [ctypes.byref(times, 8 * i) for i in range(4)]
    if not _kernel32.GetProcessTimes(ctypes.c_void_p(handle), *at):
        return None
    memory = _MemoryCounters(size=ctypes.sizeof(_MemoryCounters))
    known = _kernel32.K32GetProcessMemoryInfo(
        ctypes.c_void_p(handle), ctypes.byref(memory), memory.size
    )
    peak = memory.peak_working_set // 1024 if known else None
    return ResourceUsage(times[3] / 1e7, times[2] / 1e7, peak, *[0] * 6)


class WindowsChild(BaseChild):
    """base.Child over a process handle that this backend owns."""

    __slots__ = ("_ends", "_lock", "handle", "port", "wait_address", "wait_handle")

    def __init__(self, pid: int, handle: int, stdio: Stdio) -> None:
        super().__init__(pid, stdio)
        self.handle = handle
        #: Those that abandon() has to close.
        self._ends: tuple[PipeWriteEnd | PipeReadEnd | None, ...]
        self._ends = (stdio.stdin, stdio.stdout, stdio.stderr)
        #: Where the exit will be told, and the wait that is registered for it.
        self.port: Port | None = None
        self.wait_handle = 0
        self.wait_address = 0
        # The handle is used and closed under it. Reentrant, since the garbage collector
        # may end the transport of this very child in the midst of it.
        self._lock = threading.RLock()

    def send_signal(self, number: int) -> None:
        with self._lock:
            if self.returncode is not None:
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            if number == signal.SIGTERM:
                self._terminate()
            elif number in (signal.CTRL_C_EVENT, signal.CTRL_BREAK_EVENT):
                os.kill(self.pid, number)
            else:
                raise ValueError(f"Unsupported signal: {number}")

    def _terminate(self) -> None:
        try:
            _winapi.TerminateProcess(self.handle, 1)
        except PermissionError:
            # It has ended already, or is about to.
            if self._exit_code() is None and not self._ends_soon():
                raise

    def _ends_soon(self) -> bool:
        return _winapi.WaitForSingleObject(self.handle, 100) == _winapi.WAIT_OBJECT_0

    def _exit_code(self) -> int | None:
        # The code alone says nothing: 259 is one that a process can end with.
        if _winapi.WaitForSingleObject(self.handle, 0) != _winapi.WAIT_OBJECT_0:
            return None
        return _winapi.GetExitCodeProcess(self.handle)

    def peek(self) -> int | None:
        with self._lock:
            if self.returncode is not None:
                return self.returncode
            return self._exit_code()

    def poll(self) -> int | None:
        port = self.port
        if port is not None and port.loop_is_closed():
            port.close()
        if self.port is None:
            self.reap()
        return self.returncode

    def reap(self) -> bool:
        """True when it has ended, now or before; the handle is closed then."""
        with self._lock:
            if self.returncode is None:
                code = self._exit_code()
                if code is None:
                    return False
                self.rusage = _usage(self.handle)
                self.returncode = code
                handle, self.handle = self.handle, 0
                _winapi.CloseHandle(handle)
            return True

    def become_orphan(self) -> None:
        self.port = None
        orphans.add(self)

    def abandon(self) -> None:
        self.on_exit = None
        for end in self._ends:
            if end is not None:
                end.abort()
        try:
            self.send_signal(signal.SIGTERM)
        except (ProcessLookupError, PermissionError):
            pass  # gone, or protected
        if self.port is None:
            orphans.add(self)


class _Orphans:
    """Children that no loop watches any more; looked at by every spawn."""

    def __init__(self) -> None:
        self._children: dict[WindowsChild, None] = {}
        self._lock = threading.RLock()

    def add(self, child: WindowsChild) -> None:
        with self._lock:
            self._children[child] = None

    def reap(self) -> None:
        if not self._children:
            return
        with self._lock:
            for child in list(self._children):
                if child.reap():
                    self._children.pop(child, None)


orphans = _Orphans()

_ports: Watchers[Port] = Watchers(Port)


def mechanism() -> str:
    """How exits are noticed here."""
    return "iocp"


def _popen(spec: SpawnSpec, theirs: list[int | None]) -> tuple[int, int]:
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


class PureBackend(WithoutJobs):
    """base.Backend with nothing but the standard library."""

    name = "pure"
    strategy = "Popen, iocp"

    def spawn(self, spec: SpawnSpec, loop: asyncio.AbstractEventLoop) -> WindowsChild:
        if (spec.startupinfo.lpAttributeList or {}).get("job_list"):
            # Popen would pass over it in silence.
            raise ValueError("startupinfo.lpAttributeList['job_list'] needs the native backend")
        orphans.reap()
        spec.check_open()
        port = _ports.of(loop)
        stdio = Stdio(port)
        handle, child = 0, None
        try:
            stdio.open(spec, port)
            pid, handle = _popen(spec, stdio.theirs)
            child = WindowsChild(pid, handle, stdio)
            port.watch_exit(child)
            stdio.finish()
            return child
        except BaseException:
            # It must not live on unseen.
            stdio.undo(child)
            if handle and child is None:
                see_off(handle)
                _winapi.CloseHandle(handle)
            raise
