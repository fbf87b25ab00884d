"""The pure room on POSIX: children by the standard library's Popen, exits by whatever the
system has: a pidfd (Linux), a kqueue (macOS, BSD), or one polling thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from .base import (
    UNKNOWN_EXIT,
    ResourceUsage,
    WithoutJobs,
    generation,
    logger,
    warn_unknown_exit,
)
from .child import BaseChild
from .pipes import Stdio
from .popen import popen, see_off
from .residents import REJOIN, Resident, Residents

if TYPE_CHECKING:
    from .._spec import SpawnSpec

try:
    import resource
except ImportError:  # Emscripten, WASI: nothing will be spawned
    resource = None  # type: ignore[assignment]

#: Systems where Python cannot start processes.
WITHOUT_PROCESSES = ("emscripten", "wasi")

#: Seconds between two looks at a child that cannot be watched.
_RETRY = 0.01


def _own_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _exit_status_of(pidfd: int) -> int | None:
    """The status of a child that somebody else has reaped (Linux 6.15).

    PIDFD_GET_INFO with PIDFD_INFO_EXIT, include/uapi/linux/pidfd.h; the exit code is
    the last of the first 64 bytes. BlockingIOError while it is about to appear.
    """
    import fcntl

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
    """base.Child over a pid that this room reaps."""

    __slots__ = ("_generation", "_lock", "_peak", "_reaping", "_tries", "_watch", "pidfd")

    def __init__(self, pid: int, stdio: Stdio) -> None:
        super().__init__(pid, stdio)
        self.pidfd = -1
        self._generation = generation.number
        self._peak = _own_peak()
        self._tries = 0
        self._watch: _Watch | None = None
        # A signal and the reaping exclude each other, so that a number that belongs to
        # another process by now is never hit. Reentrant, since the garbage collector may
        # end the transport of this very child in the midst of it.
        self._lock = threading.RLock()
        self._reaping = False

    def send_signal(self, number: int) -> None:
        # Before the lock, which in a forked process may be held by nobody who lives.
        if self._generation != generation.number:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        with self._lock:
            if self.returncode is not None or self._reaping:
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, number)
            else:
                os.kill(self.pid, number)

    def poll(self) -> int | None:
        watch = self._watch
        if watch is not None and watch.loop_is_closed():
            watch.close()
            watch = None
        if watch is None and self.returncode is None and self.reap():
            self.close_pidfd()
        return self.returncode

    def peek(self) -> int | None:
        with self._lock:
            if self.returncode is not None or self._generation != generation.number:
                return self.returncode
            try:
                info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except (AttributeError, ChildProcessError):
                # PyPy and macOS before 3.13 have no waitid; or another wait was first.
                # The watch hears of the exit all the same.
                self.reap()
                return self.returncode
        if info is None:
            return None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def expect_exit(self) -> None:
        if self._watch is not None:
            self._watch.hurry()

    def abandon(self) -> None:
        self._leave()
        if self._generation != generation.number:
            return
        try:
            self.send_signal(signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # gone, or running setuid
        watch = self._watch
        if watch is None or not watch.is_open:
            orphans.add(self)

    def reap(self) -> bool:
        """True when it has ended, now or before. Any thread."""
        if self._generation != generation.number:
            return False
        with self._lock:
            if self.returncode is not None:
                return True
            if self._reaping:
                return False
            self._reaping = True
            try:
                return self._wait()
            finally:
                self._reaping = False

    def _wait(self) -> bool:
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:
            return self._lost()
        except ImportError:
            return False  # wait4 wants a module, and the interpreter is ending
        if pid == 0:
            return False
        self.rusage = ResourceUsage(
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
        self._watch = None
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
        self._lock = threading.RLock()  # another thread may have held it at the fork
        self.close_pidfd()


class _Orphans:
    """Children that no loop watches any more; looked at by every spawn."""

    def __init__(self) -> None:
        self._children: dict[PureChild, None] = {}
        # Reentrant: the garbage collector may end a spawn in the midst of it.
        self._lock = threading.RLock()

    def add(self, child: PureChild) -> None:
        with self._lock:
            self._children[child] = None

    def reap(self) -> None:
        if not self._children:
            return
        with self._lock:
            for child in list(self._children):
                if child.reap():
                    child.close_pidfd()
                    self._children.pop(child, None)

    def remove(self, child: PureChild) -> bool:
        """False when it has ended meanwhile."""
        with self._lock:
            if child not in self._children:
                return False
            del self._children[child]
            return True

    def forget(self) -> None:
        self._lock = threading.RLock()
        for child in self._children:
            child.forget()
        self._children = {}


orphans = _Orphans()


class _Watch(Resident[PureChild]):
    """Notices the exits of one loop's children. One subclass a mechanism.

    The key is the record, not the pid: when another wait has taken a child, its number
    may belong to the next one before we hear of it.
    """

    def _start(self, child: PureChild) -> None:
        """Begins to watch; from now on _look is called whenever the child may have
        ended."""
        raise NotImplementedError

    def _stop(self, child: PureChild, loop: asyncio.AbstractEventLoop | None) -> None:
        """Ends that, if it has not ended."""

    def hurry(self) -> None:
        """An exit is likely."""

    def add(self, child: PureChild) -> None:
        self.touch()
        self.children[id(child)] = child
        child._watch = self
        try:
            self._start(child)
        except BaseException:
            self._stop(child, self._loop())  # Ctrl-C may have come in the midst of it
            del self.children[id(child)]
            child._watch = None
            raise

    def _look(self, child: PureChild) -> None:
        if self.children.get(id(child)) is not child:
            return
        loop = self._loop()
        if child.reap():
            self._stop(child, loop)
            del self.children[id(child)]
            if not self.children:
                self.retire_when_idle()
            child.tell()
        elif loop is not None:
            # Announced, but not there: a debugger has the child first (ptrace(2)), or
            # another wait is about to take it. Ask again, without spinning.
            self._stop(child, loop)
            loop.call_later(_RETRY, self._look_again, child)

    def _look_again(self, child: PureChild) -> None:
        if self.children.get(id(child)) is child:
            try:
                self._start(child)
            except (OSError, RuntimeError):  # ENOMEM, ENOSPC, no thread: not now
                loop = self._loop()
                assert loop is not None
                loop.call_later(_RETRY, self._look, child)

    def _release(self, loop: asyncio.AbstractEventLoop | None) -> None:
        for child in self.children.values():
            self._stop(child, loop)
            child._watch = None
            orphans.add(child)

    def _rejoin(self, loop: asyncio.AbstractEventLoop, child: PureChild) -> None:
        if not orphans.remove(child) or child.returncode is not None:
            child.tell()
            return
        try:
            _watches.of(loop).add(child)
        except (OSError, RuntimeError):  # EMFILE, no thread
            orphans.add(child)
            loop.call_later(REJOIN, self._rejoin, loop, child)

    def forget(self) -> None:
        for child in self.children.values():
            child.forget()
        super().forget()


class _PidfdWatch(_Watch):
    def _start(self, child: PureChild) -> None:
        loop = self._loop()
        assert loop is not None
        if child.pidfd < 0:
            try:
                # child.pidfd = os.pidfd_open(child.pid), which Ctrl-C cannot cut in two.
                any(map(setattr, (child,), ("pidfd",), map(os.pidfd_open, (child.pid,))))
            except ProcessLookupError:
                # Taken by another wait already.
                loop.call_soon(self._look, child)
                return
        loop.add_reader(child.pidfd, self._look, child)

    def _stop(self, child: PureChild, loop: asyncio.AbstractEventLoop | None) -> None:
        if loop is not None and child.pidfd >= 0:
            loop.remove_reader(child.pidfd)


#: As a module of any content: type checkers know it by the platform they run for.
_select: Any = select


class _KqueueWatch(_Watch):
    """EVFILT_PROC/NOTE_EXIT in a kqueue of our own, which any loop can watch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._kqueue = _select.kqueue()
        super().__init__(loop)
        try:
            loop.add_reader(self._kqueue.fileno(), self._drain)
        except BaseException:
            self.close()
            raise

    def _start(self, child: PureChild) -> None:
        event = _select.kevent(
            child.pid,
            filter=_select.KQ_FILTER_PROC,
            flags=_select.KQ_EV_ADD | _select.KQ_EV_ONESHOT,
            fflags=_select.KQ_NOTE_EXIT,
            udata=id(child),
        )
        try:
            self._kqueue.control([event], 0, 0)
        except ProcessLookupError:
            # It is a zombie already (libuv's src/unix/process.c).
            loop = self._loop()
            assert loop is not None
            loop.call_soon(self._look, child)

    def _drain(self) -> None:
        for event in self._kqueue.control(None, 64, 0):
            child = self.children.get(event.udata)
            if child is not None:
                # May come a moment before the zombie: _look asks again then.
                self._look(child)

    def _release(self, loop: asyncio.AbstractEventLoop | None) -> None:
        super()._release(loop)
        if loop is not None:
            loop.remove_reader(self._kqueue.fileno())
        self._kqueue.close()


class _Poller:
    """One thread that asks after the children of all loops, each by its own pid:
    waiting for any child would take those of other code. It lives as long as there
    are children."""

    MIN_PAUSE, MAX_PAUSE = 0.001, 0.02

    def __init__(self) -> None:
        self._wanted: dict[PureChild, _ThreadWatch] = {}
        self._condition = threading.Condition()
        self._running = False

    def add(self, child: PureChild, watch: _ThreadWatch) -> None:
        with self._condition:
            if not self._running:
                threading.Thread(target=self._run, name="aioproc-exits", daemon=True).start()
                self._running = True
            self._wanted[child] = watch
            self._condition.notify()

    def remove(self, child: PureChild) -> None:
        with self._condition:
            self._wanted.pop(child, None)
            self._condition.notify()

    def hurry(self) -> None:
        """An exit is likely: a pipe has reached its end."""
        with self._condition:
            self._condition.notify()

    def _run(self) -> None:
        pause = self.MIN_PAUSE
        while True:
            with self._condition:
                if not self._wanted:
                    self._running = False
                    return
                wanted = list(self._wanted.items())
            ended = [(child, watch) for child, watch in wanted if child.reap()]
            for child, watch in ended:
                self.remove(child)
                watch.tell_from_thread(child)
            if ended:
                pause = self.MIN_PAUSE
                continue
            with self._condition:
                if len(self._wanted) == len(wanted) and self._condition.wait(pause):
                    pause = self.MIN_PAUSE
                else:
                    pause = min(pause * 2, self.MAX_PAUSE)


class _ThreadWatch(_Watch):
    poller = _Poller()

    def _start(self, child: PureChild) -> None:
        self.poller.add(child, self)

    def _stop(self, child: PureChild, loop: asyncio.AbstractEventLoop | None) -> None:
        self.poller.remove(child)

    def hurry(self) -> None:
        self.poller.hurry()

    def tell_from_thread(self, child: PureChild) -> None:
        loop = self._loop()
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._look, child)
            except RuntimeError:
                pass  # closed meanwhile


def _pidfd_works() -> bool:
    """By trying: containers refuse calls by seccomp."""
    try:
        pidfd = os.pidfd_open(os.getpid())
    except (AttributeError, OSError):
        return False
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except (AttributeError, OSError):
        return False
    finally:
        os.close(pidfd)
    return True


MECHANISMS: dict[str, type[_Watch]] = {
    "pidfd": _PidfdWatch,
    "kqueue": _KqueueWatch,
    "thread": _ThreadWatch,
}
_mechanism = ""


def mechanism() -> str:
    """How exits are noticed here: "pidfd", "kqueue" or "thread"."""
    global _mechanism
    if not _mechanism:
        if _pidfd_works():
            _mechanism = "pidfd"
        elif hasattr(select, "kqueue"):
            _mechanism = "kqueue"
        else:
            _mechanism = "thread"
    return _mechanism


def _make_watch(loop: asyncio.AbstractEventLoop) -> _Watch:
    return MECHANISMS[mechanism()](loop)


_watches: Residents[_Watch] = Residents(_make_watch)


def _after_fork_in_child() -> None:
    _watches.forget()
    orphans.forget()
    _ThreadWatch.poller = _Poller()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class PureBackend(WithoutJobs):
    """base.Backend with nothing but the standard library."""

    name = "pure"

    @property
    def strategy(self) -> str:
        return f"Popen, {mechanism()}"

    def spawn(self, spec: SpawnSpec, loop: asyncio.AbstractEventLoop) -> PureChild:
        if sys.platform in WITHOUT_PROCESSES:
            raise OSError(errno.ENOTSUP, f"{sys.platform} does not support processes.")
        orphans.reap()
        watch = _watches.of(loop)
        stdio = Stdio(watch)
        pid, child = 0, None
        try:
            stdio.open(spec, loop)
            pid = popen(spec, stdio.theirs)
            child = PureChild(pid, stdio)
            watch.add(child)
            stdio.finish()
            return child
        except BaseException:
            # EMFILE, say, or Ctrl-C. It must not live on unseen.
            stdio.undo(child)
            if pid and child is None:
                see_off(pid)
            raise
