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
import collections
import contextvars
import sys
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, Protocol, TypeVar

from .locks import Lock

#: Seconds without children after which a watcher closes. Not at once, since opening
#: one costs a good part of a spawn.
LINGER = 1.0
#: Seconds that a child may live before it is looked at, if that was asked for. Most end
#: sooner, and then nothing but their end has to wake the loop.
SLOW = 0.005
#: Seconds of a loop's round that may go into starting children. A hundred tasks that
#: each start one would stop everything else otherwise, first themselves and then by what
#: they have started: with ten times as much the children, all ready to run, keep the loop
#: from the processor for twice as long, and none of them ends sooner (docs/performance.md).
BUDGET = 0.0005
#: Seconds: who is due so soon is looked at together with those who are due now.
CLOSE = 0.001
#: Seconds after which a loop that has shut its generators down, and still runs, gets
#: its children back.
REJOIN = 0.1

C = TypeVar("C", bound="Watched")
R = TypeVar("R", bound="Watcher[Any]")
T = TypeVar("T")


#: Loops whose asynchronous generators have been shut down. A new one would only bring
#: a warning there.
_shut_down: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


#: Watchers, by id(), whose loop has spent its budget in this round: mostly none, which is all
#: that a spawn has to know.
crowded: set[int] = set()


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
    on_slow: Callable[[], None] | None

    def look(self) -> None: ...


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
        #: Since the last look of its timer.
        self.used = False
        #: Emptied by whoever closes it first, in whatever thread.
        self._to_close = [True]
        self._timer: asyncio.TimerHandle | None = None
        #: Those that are to be looked at, and when, in that order. One timer for all: one
        #: for each would be set and cancelled in vain.
        self._slow: collections.deque[tuple[float, C]] = collections.deque()
        self._slow_timer: asyncio.TimerHandle | None = None
        #: What has been spent of the budget, in seconds, and by how many children.
        self._spent = 0.0
        self._spenders = 0
        #: Who waits for the rounds to come, first come first served.
        self._turns: collections.deque[asyncio.Future[None]] = collections.deque()
        self._next_round_due = False
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
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None
        crowded.discard(id(self))
        self._slow.clear()
        loop = self._loop()
        self._release(None if loop is None or loop.is_closed() else loop)
        # Futures among the children, and whom they tell, would keep the loop alive.
        for child in self.children.values():
            child.on_exit = child.on_slow = None
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
        self._slow.clear()
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
        self._look_at_first(len(self._slow))
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

    # -- the budget

    def turn(self) -> asyncio.Future[None] | None:
        """What to wait for before a child is started; None if that may be now."""
        if not self._next_round_due:
            return None
        loop = self._loop()
        assert loop is not None
        turn = loop.create_future()
        self._turns.append(turn)
        return turn

    def spend(self, seconds: float) -> None:
        """So long it has taken to start a child."""
        self._spent += seconds
        self._spenders += 1
        if self._spent >= BUDGET and not self._next_round_due:
            self._end_round()

    def _end_round(self) -> None:
        loop = self._loop()
        assert loop is not None
        by_loop(loop.call_soon, self._next_round)
        self._next_round_due = True
        crowded.add(id(self))

    def _next_round(self) -> None:
        self._next_round_due = False
        crowded.discard(id(self))
        each = self._spent / self._spenders if self._spenders else BUDGET
        self._spent, self._spenders = 0.0, 0
        left = BUDGET
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():  # or cancelled
                turn.set_result(None)
                left -= each
                if left <= 0:
                    break
        if self._turns:
            self._end_round()

    # -- looks

    def look_later(self, child: C, on_slow: Callable[[], None]) -> None:
        """Has on_slow called once the child has lived for SLOW, if its end has not been
        noticed by then. In the loop's thread."""
        loop = self._loop()
        assert loop is not None
        child.on_slow = on_slow
        when = loop.time() + SLOW
        self._slow.append((when, child))
        if self._slow_timer is None:
            self._slow_timer = by_loop(loop.call_at, when, self._look_at_due)

    def _look_at_due(self) -> None:
        self._slow_timer = None
        loop = self._loop()
        assert loop is not None
        slow = self._slow
        now = loop.time() + CLOSE
        due = 0
        for when, child in slow:
            # Those that have ended are not worth another look.
            if when > now and child.on_slow is not None:
                break
            due += 1
        try:
            self._look_at_first(due)
        finally:
            if slow and self._slow_timer is None:
                self._slow_timer = by_loop(loop.call_at, slow[0][0], self._look_at_due)

    def _look_at_first(self, count: int) -> None:
        """At the first of them."""
        while count and self._slow:
            count -= 1
            self._slow.popleft()[1].look()

    # -- idleness

    def touch(self) -> None:
        self.used = True

    def retire_when_idle(self) -> None:
        loop = self._loop()
        if self._timer is None and self.is_open and loop is not None and not loop.is_closed():
            self.used = False
            self._timer = by_loop(loop.call_later, LINGER, self._retire)

    def _retire(self) -> None:
        self._timer = None
        if not self.is_open:
            return
        idle = self.is_idle()
        if idle and not self.used:
            self.close()
        elif idle or self.held_by_timer:
            self.retire_when_idle()


def _nobody() -> None:
    return None


class Watchers(Generic[R]):
    """The watchers of all loops."""

    def __init__(self, make: Callable[[asyncio.AbstractEventLoop], R]) -> None:
        self._make = make
        # Of a loop that was closed it is still here, as long as anything holds it.
        self._of: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[R]]
        self._of = weakref.WeakKeyDictionary()
        #: The one and only, mostly: nobody else's loop has to be looked after then.
        self._only: Callable[[], R | None] = _nobody
        self._lock = Lock()
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
        only = self._only
        watcher = only()
        if watcher is not None and watcher._loop() is loop and watcher.is_open:
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
            self._only = self._of[loop] if len(self._of) == 1 else _nobody
            return watcher

    def turn(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None] | None:
        """As the watcher's. Opens none."""
        watcher = self._only()
        if watcher is None or watcher._loop() is not loop:
            found = self._of.get(loop)
            watcher = None if found is None else found()
        return watcher.turn() if watcher is not None and watcher.is_open else None

    def forget(self) -> None:
        self._lock = Lock()
        for _, watcher in self._all():
            if watcher is not None:
                watcher.forget()
        self._of = weakref.WeakKeyDictionary()
        self._only = _nobody
