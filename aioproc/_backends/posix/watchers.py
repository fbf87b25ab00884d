"""How the pure backend on POSIX notices exits, by whatever the system has: a pidfd (Linux),
a kqueue (macOS, BSD), or one polling thread."""

from __future__ import annotations

import asyncio
import contextvars
import os
import select
import signal
import sys
import threading
import weakref
from typing import Any

from ..base import NOT_NOW
from ..watcher import REJOIN, Watcher, Watchers, by_loop
from .pure_child import PureChild, orphans

#: Seconds between two looks at a child that cannot be watched.
_RETRY = 0.01


class ExitWatcher(Watcher[PureChild]):
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
        child._watcher = self
        try:
            self._start(child)
        except BaseException:
            self._stop(child, self._loop())  # Ctrl-C may have come in the midst of it
            del self.children[id(child)]
            child._watcher = None
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
            by_loop(loop.call_later, _RETRY, self._look_again, child)

    def _look_again(self, child: PureChild) -> None:
        if self.children.get(id(child)) is child:
            try:
                self._start(child)
            except (OSError, RuntimeError):  # ENOMEM, ENOSPC, no thread: not now
                loop = self._loop()
                assert loop is not None
                by_loop(loop.call_later, _RETRY, self._look, child)

    def _release(self, loop: asyncio.AbstractEventLoop | None) -> None:
        for child in self.children.values():
            self._stop(child, loop)
            child._watcher = None
            orphans.add(child)

    def _rejoin(self, loop: asyncio.AbstractEventLoop, child: PureChild) -> None:
        if not orphans.remove(child) or child.returncode is not None:
            child.tell()
            return
        try:
            watchers.of(loop).add(child)
        except (OSError, RuntimeError):  # EMFILE, no thread
            orphans.add(child)
            by_loop(loop.call_later, REJOIN, self._rejoin, loop, child)

    def forget(self) -> None:
        for child in self.children.values():
            child.forget()
        super().forget()


class PidfdWatcher(ExitWatcher):
    def _start(self, child: PureChild) -> None:
        loop = self._loop()
        assert loop is not None
        if child.pidfd < 0:
            try:
                # child.pidfd = os.pidfd_open(child.pid), which Ctrl-C cannot cut in two.
                any(map(setattr, (child,), ("pidfd",), map(os.pidfd_open, (child.pid,))))
            except ProcessLookupError:
                # Taken by another wait already.
                by_loop(loop.call_soon, self._look, child)
                return
        by_loop(loop.add_reader, child.pidfd, self._look, child)

    def _stop(self, child: PureChild, loop: asyncio.AbstractEventLoop | None) -> None:
        if loop is not None and child.pidfd >= 0:
            loop.remove_reader(child.pidfd)


#: As a module of any content: type checkers know it by the platform they run for.
_select: Any = select


class KqueueWatcher(ExitWatcher):
    """EVFILT_PROC/NOTE_EXIT in a kqueue of our own, which any loop can watch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._kqueue = _select.kqueue()
        super().__init__(loop)
        try:
            by_loop(loop.add_reader, self._kqueue.fileno(), self._drain)
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
            by_loop(loop.call_soon, self._look, child)

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


_Wanted = tuple["weakref.ref[PureChild]", "weakref.ref[ThreadWatcher]"]


class _Poller:
    """One thread that asks after the children of all loops, each by its own pid:
    waiting for any child would take those of other code. It lives as long as there
    are children."""

    MIN_PAUSE, MAX_PAUSE = 0.001, 0.02

    def __init__(self) -> None:
        #: Held weakly: they lead to their loop. By the child's id.
        self._wanted: dict[int, _Wanted] = {}
        self._condition = threading.Condition()
        self._running = False

    def add(self, child: PureChild, watcher: ThreadWatcher) -> None:
        if sys.is_finalizing():
            # To start one is to wait for ever (until Python 3.12, which says this).
            raise RuntimeError("can't create new thread at interpreter shutdown")
        with self._condition:
            if not self._running:
                # First, so that nobody waits in vain if there is no thread to be had.
                thread = threading.Thread(target=self._run, name="aioproc-exits", daemon=True)
                # Newer Pythons may hand the contextvars on.
                contextvars.Context().run(thread.start)
                self._running = True
            self._wanted[id(child)] = weakref.ref(child), weakref.ref(watcher)
            self._condition.notify()

    def remove(self, child: PureChild) -> None:
        if sys.is_finalizing():
            return  # the thread has been stopped, and may have been so with the lock
        with self._condition:
            self._wanted.pop(id(child), None)
            self._condition.notify()

    def hurry(self) -> None:
        """An exit is likely: a pipe has reached its end."""
        if sys.is_finalizing():
            return
        with self._condition:
            self._condition.notify()

    def _look(self, wanted: dict[int, _Wanted]) -> bool:
        """True if any has ended, or was dropped together with its loop. Holds nobody when
        it has returned."""
        found = False
        for key, (child_ref, watcher_ref) in wanted.items():
            child, watcher = child_ref(), watcher_ref()
            if child is not None and watcher is not None and not child.reap():
                continue
            found = True
            with self._condition:
                if self._wanted.get(key) == (child_ref, watcher_ref):
                    del self._wanted[key]
            if child is not None and watcher is not None:
                watcher.tell_from_thread(child)
        return found

    def _run(self) -> None:
        pause = self.MIN_PAUSE
        while True:
            with self._condition:
                if not self._wanted:
                    self._running = False
                    return
                wanted = self._wanted.copy()
            if self._look(wanted):
                pause = self.MIN_PAUSE
                continue
            with self._condition:
                if len(self._wanted) == len(wanted) and self._condition.wait(pause):
                    pause = self.MIN_PAUSE
                else:
                    pause = min(pause * 2, self.MAX_PAUSE)


class ThreadWatcher(ExitWatcher):
    held_by_timer = True
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
                by_loop(loop.call_soon_threadsafe, self._look, child)
            except RuntimeError:
                pass  # closed meanwhile


def _pidfd_works() -> bool:
    """By trying: containers refuse calls by seccomp. OSError: it cannot be told now."""
    try:
        pidfd = os.pidfd_open(os.getpid())
    except AttributeError:
        return False
    except OSError as error:
        if error.errno in NOT_NOW:
            raise
        return False
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except (AttributeError, OSError):
        return False
    finally:
        os.close(pidfd)
    return True


MECHANISMS: dict[str, type[ExitWatcher]] = {
    "pidfd": PidfdWatcher,
    "kqueue": KqueueWatcher,
    "thread": ThreadWatcher,
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


def _make_watcher(loop: asyncio.AbstractEventLoop) -> ExitWatcher:
    return MECHANISMS[mechanism()](loop)


watchers: Watchers[ExitWatcher] = Watchers(_make_watcher)


def _after_fork_in_child() -> None:
    watchers.forget()
    orphans.forget()
    ThreadWatcher.poller = _Poller()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
