"""The native backend's watcher on Windows: the C port of an event loop.

Children, ends of pipes and jobs stand on top of it and call it. It tells them what it
hears, and knows no more of them than the protocols here.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from ..base import logger
from ..watcher import REJOIN, Watched, Watcher, by_loop, shut_down
from .lib import check, ffi, lib, windows_error

_BATCH = 64
#: Milliseconds between two looks whether a loop has closed: of one that has just shut its
#: generators down, of one that has gone on since, and of one that may close without.
_OFTEN, _AT_TIMES, _SELDOM = 10, 250, 1000


class _Child(Watched, Protocol):
    def note(self, completion: Any, /) -> None:
        """A completion has come. Any thread; tells nobody."""

    def tell(self) -> None:
        """In the loop: what is known by now."""


class _End(Protocol):
    def read_done(self, result: int, /) -> None:
        """AP_READ has come."""

    def write_done(self) -> None:
        """AP_WRITTEN has come."""

    def suspend(self) -> list[Callable[[], None] | None]:
        """Lets go of who is to be called; for `resume`."""

    def resume(self, callbacks: list[Callable[[], None] | None], /) -> None: ...
    def forget(self) -> None:
        """The port closes: nothing will be told any more."""


class _Job(Protocol):
    def tell(self) -> None:
        """In the loop: it seems to be empty."""


def _wait(port: Any, watcher: weakref.ref[Port], milliseconds: int) -> None:
    """The thread of a port, which holds neither it nor its loop."""
    while True:
        what = lib.ap_port_wait(port, milliseconds)
        if what == lib.AP_CLOSED:
            return
        owner = watcher()
        if owner is None:
            continue  # it has just been closed
        if what < 0:
            logger.error("the port of a loop does not work: %s", windows_error(-what))
            owner.close()
        else:
            milliseconds = owner.woken(what == lib.AP_NEWS)
        del owner


class Port(Watcher[_Child]):
    """The C port of one event loop; children by token, ends of pipes by key, jobs by id."""

    held_by_timer = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        handle = ffi.new("ap_port **")
        check(lib.ap_port_open(handle))
        self._port: Any = handle[0]
        self._completions = ffi.new("ap_completion[]", _BATCH)
        #: The completions that have been fetched and not been dealt with.
        self._fetched = range(0)
        self._keys = itertools.count(1)
        self.ends: dict[int, _End] = {}
        #: Who is told of them holds them, and often the loop, which must not hold them.
        self.jobs: weakref.WeakValueDictionary[int, _Job] = weakref.WeakValueDictionary()
        self._pause = _AT_TIMES
        super().__init__(loop)
        self._thread = threading.Thread(
            target=_wait,
            args=(self._port, weakref.ref(self), self._patience()),
            name="aioproc-port",
            daemon=True,
        )
        try:
            # Newer Pythons may hand the contextvars on.
            contextvars.Context().run(self._thread.start)
        except BaseException:
            port = self._port
            self.close()
            lib.ap_port_wait(port, 0)  # in the thread's place
            raise

    def _release(self, loop: asyncio.AbstractEventLoop | None) -> None:
        port, self._port = self._port, None
        lib.ap_port_close(port)
        for i in self._fetched:
            # An interrupted loop has not come to it, and the port has forgotten it.
            child = self.children.get(self._completions[i].token)
            if child is not None:
                child.note(self._completions[i])
        for end in list(self.ends.values()):
            end.forget()
        self.ends.clear()

    def is_idle(self) -> bool:
        # The C layer also counts those that are being seen off.
        return not lib.ap_port_live(self._port)

    def _loop_ends(self) -> None:
        loop = self._loop()
        if not self.is_open or loop is None:
            return
        if self.is_idle():
            super()._loop_ends()
            # Who counts threads when a loop has closed shall find as many as before.
            if threading.current_thread() is not self._thread:
                self._thread.join(1)
            return
        # The loop may go on, with pipes that cannot change ports. So the thread watches
        # from now on whether it closes; and till it has proved to go on, it alone holds
        # whoever is to be told.
        self._guard = None
        self._look_at_first(len(self._slow))
        self._pause = _OFTEN
        shut_down(loop)
        lib.ap_port_wake(self._port)
        told = [(child, child.on_exit) for child in self.children.values()]
        for child, _ in told:
            child.on_exit = None
        watched = [(end, end.suspend()) for end in self.ends.values()]
        by_loop(loop.call_later, REJOIN, self._go_on, told, watched)

    def _go_on(
        self,
        told: list[tuple[_Child, Callable[[], None] | None]],
        watched: list[tuple[_End, list[Callable[[], None] | None]]],
    ) -> None:
        self._pause = _AT_TIMES
        for child, on_exit in told:
            if child.on_exit is None:  # or it has got one meanwhile
                child.on_exit = on_exit
            child.tell()
        for end, callbacks in watched:
            end.resume(callbacks)

    def woken(self, news: bool) -> int:
        """In the port's thread. For how long, in milliseconds, to wait again."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            self.close()
        elif news:
            try:
                by_loop(loop.call_soon_threadsafe, self._drain)
            except RuntimeError:  # closed meanwhile
                self.close()
        return self._patience()

    def _patience(self) -> int:
        return _SELDOM if self._guard is not None else self._pause

    # -- pipes

    def open_pipe(self, what: int, size: int) -> tuple[int, Any, int]:
        """A key, our end, and the handle of theirs."""
        self.touch()
        key = next(self._keys)
        ours, theirs = ffi.new("ap_pipe **"), ffi.new("int64_t *")
        try:
            check(lib.ap_pipe_open(self._port, key, what, size, ours, theirs))
            return key, ours[0], theirs[0]
        except BaseException:
            if ours[0]:  # Ctrl-C
                lib.ap_pipe_close(ours[0])
                lib.ap_handle_close(theirs[0])
            raise

    def remove_end(self, key: int) -> None:
        # By the garbage collector in any thread.
        self.ends.pop(key, None)

    # -- jobs

    def open_job(self, flags: int) -> int:
        """Its id."""
        self.touch()
        return check(lib.ap_job_open(self._port, flags))

    def remove_job(self, id: int) -> None:
        """In any thread."""
        self.jobs.pop(id, None)
        loop = self._loop()
        if self.is_open and loop is not None:
            try:
                by_loop(loop.call_soon_threadsafe, self.retire_when_idle)
            except RuntimeError:
                pass  # closed: the port's thread looks for that

    # -- children

    def spawn(self, request: Any, strings: bytes, handles: list[int], jobs: list[int]) -> int:
        self.touch()
        return check(lib.ap_port_spawn(self._port, request, strings, handles, jobs))

    def remove_child(self, token: int) -> None:
        self.children.pop(token, None)
        self.retire_when_idle()

    def _drain(self) -> None:
        if not self.is_open:
            return
        more = bool(self._fetched)  # of a round that was cut short
        if not more:
            self._fetched = range(lib.ap_port_next(self._port, self._completions, _BATCH))
            more = len(self._fetched) == _BATCH
        try:
            while self._fetched:
                i = self._fetched[0]
                self._fetched = self._fetched[1:]
                self._complete(self._completions[i])
        finally:
            loop = self._loop()
            if (more or self._fetched) and loop is not None and not loop.is_closed():
                # Ctrl-C, say, or an error in a callback. The others are told of in the
                # next round, since the port tells of each only once.
                by_loop(loop.call_soon, self._drain)
        if not self.children:
            self.retire_when_idle()

    def _complete(self, completion: Any) -> None:
        kind = completion.kind
        if kind == lib.AP_READ or kind == lib.AP_WRITTEN:
            end = self.ends.get(completion.token)
            if end is None:
                pass  # closed
            elif kind == lib.AP_READ:
                end.read_done(completion.result)
            else:
                end.write_done()
            return
        if kind == lib.AP_JOB_EMPTY:
            job = self.jobs.get(completion.token)
            if job is not None:
                job.tell()
            return
        if kind == lib.AP_STARTED:
            child = self.children.get(completion.token)
        else:
            child = self.children.pop(completion.token, None)
        if child is not None:
            child.note(completion)
            child.tell()
