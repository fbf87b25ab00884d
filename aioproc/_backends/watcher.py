"""What watches the children of an event loop: one watcher a loop, for each backend.

A watcher (the native port, the pure backend's pidfds) is opened by the first child of a
loop. It closes when it has had no child for a while, when its loop shuts down its
asynchronous generators, when its loop is found closed by the next spawn of whatever
loop, and when the garbage collector finds it. Children that are alive then are handed to
the backend as orphans.

Who holds whom: the loop holds its watcher, by a reader or a timer, and the watcher's
children lead back to the loop. Whatever is global here (the table, the threads) holds
weak references only, so that a loop that was dropped without close() is collected, with
all of this. (A weak-key dictionary whose values lead to their keys never lets go.)
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, Protocol, TypeVar

#: Seconds without children after which a watcher closes. Not at once, since opening
#: one costs a good part of a spawn.
LINGER = 1.0
#: Seconds after which a loop that has shut its generators down, and still runs, gets
#: its children back.
REJOIN = 0.1

C = TypeVar("C", bound="Watched")
R = TypeVar("R", bound="Watcher[Any]")
T = TypeVar("T")


#: Loops whose asynchronous generators have been shut down. A new one would only bring
#: a warning there.
_shut_down: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


def shut_down(loop: asyncio.AbstractEventLoop) -> None:
    """The loop has shut its asynchronous generators down."""
    _shut_down.add(loop)


def by_loop(register: Callable[..., T], *args: Any) -> T:
    """Calls a loop's add_reader, call_later or the like for what many children share. The
    loop would keep the contextvars of whoever happens to call; those are for his own
    child, and may hold a whole request."""
    return contextvars.Context().run(register, *args)


class Watched(Protocol):
    """What this file has to know of a child."""

    on_exit: Callable[[], None] | None


class Watcher(Generic[C]):
    """Held by the loop alone: by a reader or, where there is none, by the timer."""

    is_open = False  # until __init__ has run
    #: Whether the timer goes on while there are children, since nothing else holds us.
    held_by_timer = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        #: What has to be told of an exit, by the backend's own key.
        self.children: dict[int, C] = {}
        self.is_open = True
        self._used = False
        #: Emptied by whoever closes it first, in whatever thread.
        self._to_close = [True]
        self._timer: asyncio.TimerHandle | None = None
        self._guard: AsyncGenerator[None, None] | None = None
        self._watch_loop_end()
        # From the beginning: one that was opened in vain shall go as well.
        self.retire_when_idle()

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The loop is gone, closed or not. (At the interpreter's end the system closes
        # what there is, and half of what close() needs may be gone.)
        if self.is_open and not _is_finalizing():
            self.close()

    # -- for the backends to fill in

    def _release(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Closes what the backend has open and makes orphans of the children. `loop` is
        None when it is closed."""
        raise NotImplementedError

    def is_idle(self) -> bool:
        return not self.children

    # -- the end

    def loop_is_closed(self) -> bool:
        loop = self._loop()
        return loop is None or loop.is_closed()

    def close(self) -> None:
        try:
            self._to_close.pop()
        except IndexError:
            return
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = self._loop()
        self._release(None if loop is None or loop.is_closed() else loop)
        # Futures among the children, and whom they tell, would keep the loop alive.
        for child in self.children.values():
            child.on_exit = None
        self.children.clear()
        guard, self._guard = self._guard, None
        if guard is not None:
            try:
                guard.aclose().send(None)
            except (StopIteration, RuntimeError):
                pass  # finished now, or just being finished by shutdown_asyncgens

    def forget(self) -> None:
        """In a forked child, where all of this is the parent's."""
        self._to_close.clear()
        self.is_open = False
        self.children.clear()

    def _watch_loop_end(self) -> None:
        """Has the loop's shutdown_asyncgens() close the watcher.

        An asynchronous generator that waits to be finished is the one thing that every
        loop lets go of, before it closes, by public API.
        """

        loop = self._loop()
        if loop is None or loop in _shut_down:
            # Then the watcher closes when the loop is found closed.
            return

        async def guard() -> AsyncGenerator[None, None]:
            try:
                yield
            finally:
                self._loop_ends()

        self._guard = guard()
        try:
            self._guard.__anext__().send(None)
        except StopIteration:
            pass
        except Warning:
            # -W error, and the loop shut its generators down before it had a child.
            self._guard = None

    def _loop_ends(self) -> None:
        if not self.is_open:
            return
        self._guard = None
        owed = [(child, child.on_exit) for child in self.children.values()]
        loop = self._loop()
        if loop is not None:
            _shut_down.add(loop)
        self.close()
        if owed and loop is not None and not loop.is_closed():
            # Somebody may shut the generators down and go on using the loop.
            by_loop(loop.call_later, REJOIN, self._rejoin_all, loop, owed)

    def _rejoin_all(
        self, loop: asyncio.AbstractEventLoop, owed: list[tuple[C, Callable[[], None] | None]]
    ) -> None:
        for child, on_exit in owed:
            if child.on_exit is None:  # or it has got one meanwhile
                child.on_exit = on_exit
            self._rejoin(loop, child)

    def _rejoin(self, loop: asyncio.AbstractEventLoop, child: C) -> None:
        """Has the loop's watcher, a new one, watch an orphan of this one; tells of the
        exit that was noticed meanwhile."""
        raise NotImplementedError

    # -- idleness

    def touch(self) -> None:
        self._used = True

    def retire_when_idle(self) -> None:
        loop = self._loop()
        if self._timer is None and self.is_open and loop is not None and not loop.is_closed():
            self._used = False
            self._timer = by_loop(loop.call_later, LINGER, self._retire)

    def _retire(self) -> None:
        self._timer = None
        if not self.is_open:
            return
        idle = self.is_idle()
        if idle and not self._used:
            self.close()
        elif idle or self.held_by_timer:
            self.retire_when_idle()


class Watchers(Generic[R]):
    """The watchers of all loops."""

    def __init__(self, make: Callable[[asyncio.AbstractEventLoop], R]) -> None:
        self._make = make
        # Of a loop that was closed it is still here, as long as anything holds it.
        self._of: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[R]]
        self._of = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        # Where a thread looks whether the loop has closed, it may be too late for that;
        # and what a watcher holds would not be finalized any more.
        atexit.register(self.close_ended)

    def _all(self) -> list[tuple[asyncio.AbstractEventLoop, R | None]]:
        return [(loop, found()) for loop, found in list(self._of.items())]

    def close_ended(self) -> None:
        """Closes those whose loop has closed."""
        with self._lock:
            found = self._all()
        for _, watcher in found:
            if watcher is not None and watcher.loop_is_closed():
                watcher.close()

    def of(self, loop: asyncio.AbstractEventLoop) -> R:
        """The loop's own, opened if need be. To be called in the loop's thread."""
        found = self._of.get(loop)
        watcher = None if found is None else found()
        if watcher is not None and watcher.is_open and len(self._of) == 1:
            return watcher
        with self._lock:
            for other, watcher in self._all():
                if watcher is not None and watcher.loop_is_closed():
                    watcher.close()
                if watcher is None or not watcher.is_open:
                    self._of.pop(other, None)
            found = self._of.get(loop)
            watcher = None if found is None else found()
            if watcher is None:
                watcher = self._make(loop)
                self._of[loop] = weakref.ref(watcher)
            return watcher

    def forget(self) -> None:
        self._lock = threading.Lock()
        for _, watcher in self._all():
            if watcher is not None:
                watcher.forget()
        self._of = weakref.WeakKeyDictionary()
