"""A child of the pure backend on Windows: signals and reaping by its process handle."""

from __future__ import annotations

import _winapi
import ctypes
import errno
import os
import signal

from ..base import ResourceUsage
from ..child import BaseChild
from ..locks import Lock
from ..orphans import Orphans
from .overlapped import Port
from .overlapped_pipes import PipeReadEnd, PipeWriteEnd, Stdio


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
        self._lock = Lock()

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
                self._rusage = _usage(self.handle)
                self.returncode = code
                handle, self.handle = self.handle, 0
                _winapi.CloseHandle(handle)
            return True

    def become_orphan(self) -> None:
        self.port = None
        orphans.add(self)

    def abandon(self) -> None:
        self.on_exit = self.on_slow = None
        for end in self._ends:
            if end is not None:
                end.abort()
        try:
            self.send_signal(signal.SIGTERM)
        except (ProcessLookupError, PermissionError):
            pass  # gone, or protected
        if self.port is None:
            orphans.add(self)


orphans = Orphans(WindowsChild.reap)
