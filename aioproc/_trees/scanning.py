"""The thread that looks for the members of trees: one, for all endings of this process.

`put` hands it a request; it does rounds as long as there are any, each for all trees, and
gives the results to the loops. With nothing to do it ends after a while.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import sys
import threading
import time
import weakref
from collections import defaultdict
from typing import Any

from .. import _backends
from .._backends.trees import MOST, Scanner, Sought

Loop = asyncio.AbstractEventLoop

#: Seconds without requests after which the thread ends, and with it the memory of who was a
#: member.
LINGER = 0.05

#: How many rounds without a living member are the end: a process may be born behind the
#: back of a round, and the more so where that was seen to happen.
QUIET, QUIET_AFTER_NEWCOMERS = 2, 5
#: Seconds and rounds that a kill takes at most.
KILL_TIME, KILL_ROUNDS = 1.0, 50
#: Seconds between its rounds, where all that is left is for the members to die.
SHORTEST_KILL_PAUSE, LONGEST_KILL_PAUSE = 0.001, 0.03

#: Rounds before somebody who is in the midst of an exec in each of them is a stranger.
MOST_LOOKS = 20

#: Seconds between two rounds of a grace: some times as much as a round takes, so that
#: waiting costs a part of one CPU only, but not longer than people wait gladly.
PAUSE_FACTOR, SHORTEST_PAUSE, LONGEST_PAUSE = 6, 0.005, 0.12

#: Seconds over its time after which a loop waits no longer for the thread: to read what a
#: process has in its memory can take as long as it pleases the kernel (mmap_lock).
STUCK = 5.0

#: What a round costs: a thread that had to wait for a CPU has used none.
_cost = getattr(time, "thread_time", time.monotonic)

_SIGKILL = getattr(signal, "SIGKILL", 9)


class Target:
    """A tree, and what is being done to it."""

    __slots__ = (
        "__weakref__",
        "born",
        "flags",
        "group",
        "group_time",
        "leader",
        "mark",
        "scanner",
        "session",
        "signal",
        "sought",
        "start",
        "step",
    )

    def __init__(self, leader: int, session: int, mark: int, born: int) -> None:
        self.leader = leader
        self.session = session
        self.mark = mark
        self.start = 0
        self.born = born
        #: The thread's alone. The signal that members get, and who has it already; as in
        #: Sought.
        self.signal = self.step = self.flags = self.group = self.group_time = 0
        self.scanner: Scanner | None = None
        self.sought: Sought | None = None

    def prepare(self, scanner: Scanner, requests: list[Request]) -> Sought:
        """Says what the next round is to do for these requests."""
        sought = self.sought
        if sought is None or self.scanner is not scanner:
            # Nobody knows any more who has the signal.
            self.signal = 0
            self.scanner = scanner
            self.sought = sought = scanner.sought()
            sought.start, sought.born = self.start, self.born
        for request in requests:
            request.prepare()
        if any(request.kills for request in requests):
            sought.signal = _SIGKILL
        else:
            sought.signal = self.signal if any(one.carries for one in requests) else 0
        sought.leader, sought.session, sought.mark = self.leader, self.session, self.mark
        sought.step, sought.flags = self.step, self.flags
        sought.group, sought.group_time = self.group, self.group_time
        return sought

    def looked(self) -> Sought:
        assert self.sought is not None
        self.start = self.sought.start
        return self.sought


class Request:
    """Somebody wants to know how many members are alive."""

    #: What it does to members; `carries`: gives them the tree's signal.
    kills = carries = False
    #: As long as its caller says.
    waits_long = False
    #: None: nobody looked.
    result: Any = None

    def __init__(self, target: Target, loop: Loop | None, seconds: float = 0) -> None:
        """loop: None if nobody is to be told. seconds: that it may take."""
        self.target = target
        self.loop = loop
        self.future: asyncio.Future[Any] | None = None
        if loop is not None:
            self.future = loop.create_future()
            fuse = loop.call_later(seconds + STUCK, _tell, [(self.future, None)])
            self.future.add_done_callback(lambda _: fuse.cancel())
        #: When it wants a round, by time.monotonic().
        self.due = 0.0
        self._looks = 0

    # In the thread.

    def is_dropped(self) -> bool:
        return self.future is not None and self.future.done()

    def is_ready(self, now: float) -> bool:
        """Whether a round now serves it."""
        return True

    def prepare(self) -> None:
        """Before that."""

    def look(self, sought: Sought, scanner: Scanner, seconds: float) -> bool:
        """After it, which took so much of a CPU. True: done, the result is there."""
        self.result = sought.alive
        if sought.alive or not sought.in_exec:
            return True
        # Nobody, so it seems: who is in the midst of an exec is a member or a stranger then.
        self._looks += 1
        self.due = time.monotonic() + SHORTEST_PAUSE
        return self._looks == MOST_LOOKS

    def is_refused(self) -> bool:
        """Instead: a round was not to be had, for want of descriptors or memory. As look."""
        return True


class Signal(Request):
    """The same, after members have been given a signal."""

    carries = True

    def __init__(
        self, target: Target, loop: Loop | None, order: tuple[int, int, int, int], stays: bool
    ) -> None:
        """order: signal, flags, group, group_time. stays: whether those who are born later
        get it as well."""
        super().__init__(target, loop)
        self._order = order
        self._stays = stays

    def prepare(self) -> None:
        target = self.target
        target.signal, target.flags, target.group, target.group_time = self._order
        target.step += 1

    def look(self, sought: Sought, scanner: Scanner, seconds: float) -> bool:
        if not self._stays:
            self.target.signal = 0
        return super().look(sought, scanner, seconds)


class Gone(Request):
    """Whether all have ended, within that many seconds."""

    carries = waits_long = True

    def __init__(self, target: Target, loop: Loop | None, seconds: float) -> None:
        super().__init__(target, loop, seconds)
        self._end = time.monotonic() + seconds
        self._quiet = 0

    def is_dropped(self) -> bool:
        return super().is_dropped() or (self.loop is not None and self.loop.is_closed())

    def look(self, sought: Sought, scanner: Scanner, seconds: float) -> bool:
        self._quiet = 0 if sought.alive or sought.in_exec else self._quiet + 1
        self.result = self._quiet == QUIET
        if self.result:
            return True
        pause = min(max(SHORTEST_PAUSE, PAUSE_FACTOR * seconds), max(LONGEST_PAUSE, 2 * seconds))
        return self._later(0 if self._quiet else pause)

    def is_refused(self) -> bool:
        return self._later(SHORTEST_PAUSE)

    def _later(self, pause: float) -> bool:
        now = time.monotonic()
        self.due = min(now + pause, self._end)
        return now >= self._end


class Kill(Request):
    """Who could not be ended, after rounds of SIGKILL."""

    kills = True

    def __init__(self, target: Target, loop: Loop | None) -> None:
        super().__init__(target, loop, KILL_TIME)
        #: It begins with the first round: the thread may have had to wait for a CPU.
        self._end: float | None = None
        self._rounds = self._quiet = 0
        self._quiet_enough = QUIET
        self._pause = SHORTEST_KILL_PAUSE

    def is_ready(self, now: float) -> bool:
        # Who began at the same time has the same round, though not to the microsecond.
        return self.due <= now + self._pause / 2

    def look(self, sought: Sought, scanner: Scanner, seconds: float) -> bool:
        self.result = scanner.pids(sought)
        if sought.newcomers and self._rounds:
            self._quiet_enough = QUIET_AFTER_NEWCOMERS
        waits = bool(sought.alive or sought.in_exec)
        self._quiet = 0 if waits else self._quiet + 1
        if self._quiet == self._quiet_enough:
            return True
        return self._later(waits and not sought.newcomers)

    def is_refused(self) -> bool:
        return self._later(True)

    def _later(self, pauses: bool) -> bool:
        now = time.monotonic()
        if self._end is None:
            self._end = now + KILL_TIME
        self._rounds += 1
        self.due = now
        if pauses:
            self.due = now + self._pause
            self._pause = min(2 * self._pause, LONGEST_KILL_PAUSE)
        return now >= self._end or self._rounds == KILL_ROUNDS


def _tell(results: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in results:
        if not future.done():
            future.set_result(result)


class Scanning:
    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked process, where all of this is the parent's."""
        self._changed = threading.Condition()
        self._requests: list[Request] = []
        #: Those that are looked for in every round, so that what was seen of them is kept.
        self._targets: weakref.WeakSet[Target] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._scanner: Scanner | None = None
        #: No more than kills.
        self._finishing = False
        #: How many there have been.
        self.rounds = 0

    def after_fork(self) -> None:
        scanner = self._scanner
        self.forget()
        if scanner is not None:
            scanner.close()

    def finish(self) -> None:
        """At the interpreter's end, which a thread had better not live to see."""
        with self._changed:
            self._finishing = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            try:
                thread.join(KILL_TIME + STUCK)
            except KeyboardInterrupt:
                pass  # who is impatient leaves without

    def put(self, request: Request) -> None:
        """From any thread."""
        # When all is taken down, and what was left hanging with it, a thread does not get to run
        # any more: to start one is to wait for ever (until Python 3.12), and so it may be to ask
        # for a lock that the last one has held.
        if sys.is_finalizing() or not self._hand_over(request):
            self._serve_now(request)

    def _hand_over(self, request: Request) -> bool:
        """False: there is no thread for it."""
        with self._changed:
            if self._finishing:
                return False  # other functions of atexit run commands
            self._requests.append(request)
            self._targets.add(request.target)
            if self._thread is not None:
                self._changed.notify()
                return True
            try:
                thread = threading.Thread(target=self._run, name="aioproc trees", daemon=True)
                thread.start()
            except RuntimeError:
                # There is no room for one, a subinterpreter allows none, or the interpreter is
                # about to end.
                self._requests.remove(request)
                return False
            self._thread = thread
            return True

    def _serve_now(self, request: Request) -> None:
        """Without a thread. Of what takes its time nobody looks: the child alone is waited
        for."""
        if request.waits_long:
            assert request.future is not None
            request.future.set_result(None)
            return
        scanning = Scanning()
        while not scanning._serve([request]):
            time.sleep(max(0.0, request.due - time.monotonic()))
        if scanning._scanner is not None:
            scanning._scanner.close()
        if request.future is not None:
            request.future.set_result(request.result)

    # -- the thread

    def _run(self) -> None:
        while True:
            requests = self._due()
            if not requests:
                return
            try:
                done = self._serve(requests)
            except BaseException:
                # A fault of ours. Nobody shall wait for what does not come.
                with self._changed:
                    self._thread = None
                    requests = list(self._requests)
                self._finish(requests)
                raise
            self._finish(done)

    def _due(self) -> list[Request]:
        """Waits for those that the next round is for. None of them: there is nothing to
        do, and the thread ends."""
        with self._changed:
            while True:
                self._requests = [
                    one
                    for one in self._requests
                    if not one.is_dropped() and (one.kills or not self._finishing)
                ]
                if self._requests:
                    now = time.monotonic()
                    pause = min(one.due for one in self._requests) - now
                    if pause <= 0:
                        return [one for one in self._requests if one.is_ready(now)]
                    self._changed.wait(pause)
                elif self._finishing or not (self._changed.wait(LINGER) or self._requests):
                    self._thread = None
                    scanner, self._scanner = self._scanner, None
                    if scanner is not None:
                        scanner.close()
                    return []

    def _serve(self, requests: list[Request]) -> list[Request]:
        """One round. Returns those that are done."""
        began = _cost()
        orders: defaultdict[Target, list[Request]] = defaultdict(list)
        for request in requests:
            order = orders[request.target]
            # One signal a round; and no more trees than a round takes.
            if len(orders) <= MOST and not (
                isinstance(request, Signal) and any(isinstance(one, Signal) for one in order)
            ):
                order.append(request)
        try:
            if self._scanner is None:
                self._scanner = _backends.open_scanner()
                if self._scanner is None:
                    return requests  # nobody can look here
            scanner = self._scanner
            with self._changed:
                others = [target for target in self._targets if target not in orders]
            targets = [*orders, *others][:MOST]
            scanner.round([one.prepare(scanner, orders.get(one, [])) for one in targets])
        except OSError:
            return [one for one in requests if one.is_refused()]
        self.rounds += 1
        seconds = _cost() - began
        return [
            request
            for target in targets
            for request in orders.get(target, ())
            if request.look(target.looked(), scanner, seconds)
        ]

    def _finish(self, requests: list[Request]) -> None:
        told: defaultdict[Loop, list[tuple[asyncio.Future[Any], Any]]] = defaultdict(list)
        with self._changed:
            gone = set(requests)
            self._requests = [one for one in self._requests if one not in gone]
        for request in requests:
            if request.loop is not None and request.future is not None:
                told[request.loop].append((request.future, request.result))
        for loop, results in told.items():
            try:
                loop.call_soon_threadsafe(_tell, results)
            except RuntimeError:
                pass  # it has been closed, and nobody waits any more


scanning = Scanning()
atexit.register(scanning.finish)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=scanning.after_fork)
