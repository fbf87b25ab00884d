"""A child of the pure backend on POSIX: signals and reaping by its number, or by a pidfd
where there is one."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

from ..base import UNKNOWN_EXIT, ResourceUsage, logger, warn_unknown_exit
from ..child import BaseChild
from ..locks import Lock
from ..orphans import Orphans
from .pipes import Stdio

if TYPE_CHECKING:
    from .watchers import ExitWatcher

try:
    import fcntl
    import resource
except ImportError:  # Emscripten, WASI: nothing will be spawned
    fcntl = resource = None  # type: ignore[assignment]

try:
    # PyPy's os.wait4() needs it: not to be imported for the first child, while a thread forks.
    import _pypy_wait  # type: ignore[import-not-found]  # noqa: F401
except ImportError:
    pass

#: PIDFD_SIGNAL_PROCESS_GROUP (include/uapi/linux/pidfd.h): it reaches the group when its
#: leader has been reaped, and cannot reach another. Linux 6.9.
_PROCESS_GROUP = 1 << 2
#: For tests.
group_by_pidfd = True


def _own_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _exit_status_of(pidfd: int) -> int | None:
    """The status of a child that somebody else has reaped (Linux 6.15).

    PIDFD_GET_INFO with PIDFD_INFO_EXIT, include/uapi/linux/pidfd.h; the exit code is
    the last of the first 64 bytes. BlockingIOError while it is about to appear.
    """
    if fcntl is None:
        return None
    info = bytearray(64)
    info[0] = 1 << 3
    try:
        fcntl.ioctl(pidfd, 0xC040FF0B, info)
    except ProcessLookupError:
        # The process went between the question for the status and that for the process.
        raise BlockingIOError from None
    except OSError:
        return None
    if not info[0] & 1 << 3:
        raise BlockingIOError
    return int.from_bytes(info[60:64], sys.byteorder)


class PureChild(BaseChild):
    """base.Child over a pid that this backend reaps."""

    __slots__ = (
        "_held",
        "_lock",
        "_owed",
        "_peak",
        "_reaping",
        "_tries",
        "_watcher",
        "_zombie",
        "pidfd",
    )

    def __init__(self, pid: int, stdio: Stdio) -> None:
        super().__init__(pid, stdio)
        self.pidfd = -1
        self._peak = _own_peak()
        self._tries = 0
        self._watcher: ExitWatcher | None = None
        # A signal and the reaping exclude each other, so that a number that belongs to
        # another process by now is never hit. Reentrant, since the garbage collector may
        # end the transport of this very child in the midst of it.
        self._lock = Lock()
        self._reaping = False
        #: It is not to be reaped; and it has ended since.
        self._held = self._zombie = False
        #: Signals that came in the midst of that.
        self._owed: list[int] = []

    def send_signal(self, number: int) -> None:
        # Before the lock, which in a forked process may be held by nobody who lives.
        if not self.is_ours():
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        with self._lock:
            if self.returncode is not None:
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            if self._reaping and not sys.is_finalizing():
                # By the garbage collector, in the midst of a wait that may be taking it.
                # (Or by whoever finalizes, when the thread that was waiting has been stopped.)
                self._owed.append(number)
            elif self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, number)
            elif self._reaping and not self._has_number():
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            else:
                os.kill(self.pid, number)

    def hold(self) -> None:
        with self._lock:
            # PyPy and macOS before 3.13 have no waitid.
            self._held = self.returncode is None and hasattr(os, "waitid")

    def release(self) -> None:
        if not self.is_ours():
            return
        with self._lock:
            self._held = False
            zombie, self._zombie = self._zombie, False
            if zombie and self._has_number():
                self._wait()
        if zombie:
            self.close_pidfd()

    def __del__(self) -> None:
        if getattr(self, "_zombie", False):  # Ctrl-C may have come before it was set
            self.release()

    def signal_group(self, number: int) -> None:
        if not self.is_ours():
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        with self._lock:
            if self.returncode is not None and not self._zombie:
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            try:
                if self._signal_group_by_pidfd(number):
                    return
                if not self._has_number():
                    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
                os.killpg(self.pid, number)
            except ProcessLookupError:
                if self.returncode is not None:
                    raise
                # It does not lead a group yet.
                self.send_signal(number)

    def _signal_group_by_pidfd(self, number: int) -> bool:
        """False where that is not to be had: Linux before 6.9, seccomp."""
        if self.pidfd < 0 or not group_by_pidfd:
            return False
        try:
            signal.pidfd_send_signal(self.pidfd, number, None, _PROCESS_GROUP)
        except ProcessLookupError:
            raise
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
                return False
            raise
        return True

    def _has_number(self) -> bool:
        """Whether no other wait has taken it, so that the number is nobody else's. Without
        a pidfd, it may be that of a newer child of ours."""
        try:
            if self.pidfd >= 0 and hasattr(os, "P_PIDFD"):
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            else:
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        except AttributeError:
            pass
        return True

    def poll(self) -> int | None:
        watcher = self._watcher
        if watcher is not None and watcher.loop_is_closed():
            watcher.close()
            watcher = None
        if watcher is None and self.returncode is None:
            self.reap_unwatched()
        return self.returncode

    def peek(self) -> int | None:
        with self._lock:
            if self.returncode is not None or not self.is_ours():
                return self.returncode
            try:
                info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except (AttributeError, ChildProcessError):
                # PyPy and macOS before 3.13 have no waitid; or another wait was first.
                # The watcher hears of the exit all the same.
                self.reap()
                return self.returncode
        if info is None:
            return None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def expect_exit(self) -> None:
        if self._watcher is not None:
            self._watcher.hurry()

    def abandon(self) -> None:
        self._leave()
        self.release()
        if not self.is_ours():
            return
        try:
            self.send_signal(signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # gone, or running setuid
        watcher = self._watcher
        if watcher is None or not watcher.is_open:
            orphans.add(self)

    def reap(self) -> bool:
        """True when it has ended, now or before. Any thread."""
        if not self.is_ours():
            return False
        with self._lock:
            if self.returncode is not None:
                return True
            if self._reaping:
                return False
            self._reaping = True
            try:
                return self._end() if self._held else self._wait()
            finally:
                self._reaping = False
                self._send_owed()

    def reap_unwatched(self) -> bool:
        """As reap, for a child that nothing watches: closes the pidfd, too."""
        self.release()
        ended = self.reap()
        if ended:
            self.close_pidfd()
        return ended

    def _send_owed(self) -> None:
        while self._owed and self.returncode is None:
            try:
                self.send_signal(self._owed.pop(0))
            except OSError:
                pass  # gone, or running setuid: nobody is there any more to be told

    def _end(self) -> bool:
        """As _wait, for a child that is held, which stays a zombie."""
        try:
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return self._lost()
        if info is None:
            return False
        status = info.si_status
        self._zombie = True
        self.returncode = status if info.si_code == os.CLD_EXITED else -status
        return True

    def _wait(self) -> bool:
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:
            return self._lost()
        except ImportError:
            return False  # wait4 wants a module, and the interpreter is ending
        if pid == 0:
            return False
        self._rusage = ResourceUsage(
            usage.ru_utime,
            usage.ru_stime,
            # exec carries the parent's peak over (see ResourceUsage.ru_maxrss).
            usage.ru_maxrss if usage.ru_maxrss > self._peak else None,
            usage.ru_minflt,
            usage.ru_majflt,
            usage.ru_inblock,
            usage.ru_oublock,
            usage.ru_nvcsw,
            usage.ru_nivcsw,
        )
        self.returncode = os.waitstatus_to_exitcode(status)
        return True

    def _lost(self) -> bool:
        status = None
        if self.pidfd >= 0:
            try:
                status = _exit_status_of(self.pidfd)
            except BlockingIOError:
                self._tries += 1
                if self._tries < 20:
                    return False
        if status is None:
            self.returncode = UNKNOWN_EXIT
            warn_unknown_exit(self.pid)
        else:
            self.returncode = os.waitstatus_to_exitcode(status)
        return True

    def tell(self) -> None:
        """In the loop's thread, after the reaping."""
        self._watcher = None
        if not self._zombie:
            self.close_pidfd()
        super().tell()

    def close_pidfd(self) -> None:
        with self._lock:
            pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            try:
                os.close(pidfd)
            except OSError as error:  # raised, it would keep the exit from whoever waits
                logger.error("the pidfd of child %d cannot be closed: %s", self.pid, error)

    def forget(self) -> None:
        """In a forked process: it is the parent's."""
        self._lock = Lock()  # another thread may have held it at the fork
        self.close_pidfd()


class _Orphans(Orphans[PureChild]):
    """A watcher may take them back; in a forked process they are the parent's."""

    def remove(self, child: PureChild) -> bool:
        """False when it has ended meanwhile."""
        with self._lock:
            if child not in self._children:
                return False
            del self._children[child]
            return True

    def forget(self) -> None:
        self._lock = Lock()
        for child in self._children:
            child.forget()
        self._children = {}


orphans = _Orphans(PureChild.reap_unwatched)
