"""The pure backend's watcher on Windows: one I/O completion port a loop.

A daemon thread waits at the port and has the loop look at what has come, so that any
kind of loop will do, in whatever thread. Made of the modules that the standard library
has for asyncio's Proactor loop.

Children and ends of pipes stand on top of it and call it. It tells them what it hears,
and knows no more of them than the protocols here.
"""

from __future__ import annotations

import _overlapped
import _winapi
import asyncio
import collections
import contextvars
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from .. import watcher as watchers
from ..locks import Lock
from ..watcher import Watched, Watcher, by_loop

#: Milliseconds between two looks whether the loop has closed: of one that has shut its
#: generators down, and of one that may close without.
OFTEN, SELDOM = 10, 1000
#: Most packets taken from the port at a time.
BATCH = 64

Done = Callable[[Any], None]


class _Child(Watched, Protocol):
    #: Of the process.
    handle: int
    #: Where the exit will be told, and the wait that is registered for it.
    port: Port | None
    wait_handle: int
    wait_address: int

    def reap(self) -> bool:
        """True when it has ended, now or before."""

    def tell(self) -> None:
        """In the loop: what is known by now."""

    def become_orphan(self) -> None:
        """The port closes: no loop will tell of the exit."""


class _End(Protocol):
    def cancel(self) -> None:
        """The port closes: nothing will be told any more."""


class _Queue:
    """A completion port and what is under way there. Its thread holds this, and neither
    the loop nor who is to be told: those shall go when nobody else holds them."""

    def __init__(self) -> None:
        self.iocp = _overlapped.CreateIoCompletionPort(
            _overlapped.INVALID_HANDLE_VALUE, _overlapped.NULL, 0, 0
        )
        #: By its address: an OVERLAPPED has to live until the port has told of it,
        #: whatever becomes of the pipe.
        self.operations: dict[int, Any] = {}
        self.arrived: collections.deque[int] = collections.deque()
        #: Nobody is to be told any more: what was cancelled is only waited for.
        self.released = False
        # The handle is closed under it. Reentrant: the garbage collector may close a pipe
        # in the midst of it.
        self._lock = Lock()

    def wake(self) -> None:
        with self._lock:
            if self.iocp:
                # An address of nothing; without one _overlapped sees a failure.
                _overlapped.PostQueuedCompletionStatus(self.iocp, 0, 0, 1)

    def run(self, owner: weakref.ref[Port], patience: int) -> None:
        """In the thread. patience: milliseconds to wait for the first news."""
        wait = _overlapped.GetQueuedCompletionStatus
        while not self.released or self.operations:
            packet = wait(self.iocp, patience)
            taken = 0
            while packet is not None:
                self.arrived.append(packet[3])
                taken += 1
                packet = wait(self.iocp, 0) if taken < BATCH else None
            port = owner()
            if port is not None:
                patience = port.woken(bool(taken))
            if self.released:
                while self.arrived:
                    self.operations.pop(self.arrived.popleft(), None)
            del port
        with self._lock:
            iocp, self.iocp = self.iocp, 0
            _winapi.CloseHandle(iocp)


class Port(Watcher[_Child]):
    """The completion port of a loop: who is to be told of what is under way there."""

    held_by_timer = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = _Queue()
        #: By the address of the OVERLAPPED.
        self._done: dict[int, Done] = {}
        self._ends: set[_End] = set()
        self._told = False
        self._ending = False
        super().__init__(loop)
        if self._guard is None:
            self._ending = True  # the loop has shut its generators down already
        args = weakref.ref(self), self._patience()
        thread = threading.Thread(
            target=self._queue.run, args=args, name="aioproc-port", daemon=True
        )
        try:
            # Newer Pythons may hand the contextvars on.
            contextvars.Context().run(thread.start)
        except BaseException:
            self.close()
            self._queue.run(*args)  # in the thread's place: it only ends
            raise

    # -- in the loop's thread

    def join(self, end: _End, handle: int) -> None:
        _overlapped.CreateIoCompletionPort(handle, self._queue.iocp, 0, 0)
        self._ends.add(end)
        self.touch()

    def begin(self, done: Done) -> Any:
        """An OVERLAPPED for an operation; `done` is called with it in the loop."""
        overlapped = _overlapped.Overlapped(_overlapped.NULL)
        self._queue.operations[overlapped.address] = overlapped
        self._done[overlapped.address] = done
        return overlapped

    def take_back(self, overlapped: Any) -> None:
        """The operation has not come about."""
        self._forget(overlapped.address)

    def _forget(self, address: int) -> tuple[Any, Done | None]:
        return self._queue.operations.pop(address, None), self._done.pop(address, None)

    def call_soon(self, callback: Callable[[], None]) -> None:
        loop = self._loop()
        if self.is_open and loop is not None and not loop.is_closed():
            by_loop(loop.call_soon, callback)

    def watch_exit(self, child: _Child) -> None:
        overlapped = self.begin(lambda _: self._exited(child))
        try:
            child.wait_handle = _overlapped.RegisterWaitWithQueue(
                child.handle, self._queue.iocp, overlapped.address, _overlapped.INFINITE
            )
        except BaseException:
            self.take_back(overlapped)
            raise
        child.wait_address = overlapped.address
        self.children[id(child)] = child
        child.port = self
        self.touch()

    def _exited(self, child: _Child) -> None:
        if self.children.pop(id(child), None) is not None:
            child.port = None
            self._unwatch_exit(child)
            child.reap()
            child.tell()

    def _unwatch_exit(self, child: _Child) -> None:
        handle, child.wait_handle = child.wait_handle, 0
        # Waits for the callback, which only posts to the port.
        _overlapped.UnregisterWaitEx(handle, _overlapped.INVALID_HANDLE_VALUE)
        self._forget(child.wait_address)

    def _drain(self) -> None:
        self._told = False
        arrived = self._queue.arrived
        try:
            while self.is_open and arrived:
                overlapped, done = self._forget(arrived.popleft())
                if done is not None:
                    done(overlapped)
        finally:
            if arrived:
                self.call_soon(self._drain)
        if self.is_idle():
            self.retire_when_idle()

    # -- in any thread

    def leave(self, end: _End) -> None:
        self._ends.discard(end)
        if self.is_open and not self._ends:
            self._queue.wake()

    # -- in the port's own thread

    def woken(self, news: bool) -> int:
        """For how long, in milliseconds, to wait again."""
        if self.is_open and news:
            self._tell_loop()
        if self.is_open and self.loop_is_closed():
            self.close()
        return self._patience()

    def _patience(self) -> int:
        return OFTEN if self._ending else SELDOM

    def _tell_loop(self) -> None:
        if self._told:
            return
        self._told = True
        loop = self._loop()
        try:
            if loop is not None:
                by_loop(loop.call_soon_threadsafe, self._drain)
                return
        except RuntimeError:
            pass  # closed meanwhile
        self.close()

    # -- the end

    def is_idle(self) -> bool:
        return not self.children and not self._ends and not self._queue.operations

    def _loop_ends(self) -> None:
        # Somebody may shut the generators down and go on using the loop, and a pipe can
        # be joined to one port only. The thread notices when the loop is really closed.
        loop = self._loop()
        if loop is not None:
            watchers.shut_down(loop)
        if self.is_open:
            if self.is_idle():
                self.close()
            else:
                self._ending = True
                self._queue.wake()

    def _release(self, loop: asyncio.AbstractEventLoop | None) -> None:
        for end in list(self._ends):
            end.cancel()
        for child in list(self.children.values()):
            self._unwatch_exit(child)
            child.become_orphan()
        self._done.clear()
        self._queue.released = True
        self._queue.wake()
