"""One run of a command, from the spawn to its result.

child's exit -> _exited -> the pipes are read, and watched if somebody else has them open
pipes        -> Output, by the loop or at a look; by a task for the callbacks
exit and the end of all pipes, time is up, an error -> `_over`, which perform() awaits
perform()    -> Ending, unless the child has ended by itself -> CompletedProcess
"""

from __future__ import annotations

import asyncio
import logging
import sys
from time import monotonic
from typing import Any

from .. import _backends
from .. import _habits as habits
from .._backends.base import (
    UNKNOWN_EXIT,
    Child,
    Terminal,
    generation,
    logger,
)
from .._backends.system import WINDOWS, process_state
from .._backends.watcher import crowded
from .._messages import discreet
from .._sink import LOOKS, Sink
from .._spec.spec import SpawnSpec
from .._text import Decoder
from .._trees import Alone, ProcessTree, spawn, tree_of
from .._trees.ending import Ending, Shield
from .collect import Bounded, Output
from .feed import Feed, feed
from .listen import Listener
from .options import Settings
from .result import (
    CalledProcessError,
    CompletedProcess,
    NotEnded,
    Reason,
    TimeoutExpired,
)
from .tasks import new_task

#: How often the time for the end of the pipes is given again, since something came.
MOST_DRAINS = 10
#: Seconds that cancelled callbacks and iterators are waited for.
MOST_FOR_TASKS = 5.0
#: Seconds in which a loop looks at its descriptors again.
ANOTHER_TURN = 0.001
#: Seconds between two looks at callbacks that are busy.
BUSY_PAUSE = 0.05

NOTHING_DROPPED = (0, 0)


class Run:
    """It is for one call, and its coroutine holds it."""

    _child: Child | None = None
    _spec: SpawnSpec
    _over: asyncio.Future[str]
    _outputs: tuple[Output, ...] = ()
    _feed: Feed | None = None
    #: The child's, which nobody types at.
    _terminal: Terminal | None = None
    _feeding: asyncio.Task[None] | None = None
    #: What the backend has read of stdout and stderr.
    _collected: tuple[bytes | None, bytes | None] = (None, None)
    #: Outputs that have not come to their end, and callbacks that have not.
    _open = 0
    _is_connected = False
    _has_exited = False
    #: Who waits for that.
    _exit_waiter: asyncio.Future[None] | None = None
    _looks = 0
    #: All that is left is being ended: no timeouts and no waiting for callbacks any more.
    _is_ending = False
    #: There is no time for the end of the pipes.
    _is_late = False
    _timer: asyncio.TimerHandle | None = None
    _idle_timer: asyncio.TimerHandle | None = None
    _drain_timer: asyncio.TimerHandle | None = None
    #: By the loop's clock: when there was the last byte, where that matters.
    _last = 0.0
    _wants_last = False
    #: Nothing had come for the idle_timeout, but for what may be in the pipes.
    _is_idle = False
    #: When the wait for the end of the pipes began.
    _draining_since = 0.0
    #: What a callback, an iterator or a pipe has raised.
    _error: BaseException | None = None
    _cancelled: asyncio.CancelledError | None = None
    _forced: Any = None
    _left: list[int] | None = None
    #: What has been raised is that.
    could_not_start = False
    #: Whether what happens to the command may be raised; else the result alone tells of it.
    raises = True

    def __init__(
        self, settings: Settings, loop: asyncio.AbstractEventLoop, began: float, clock: float
    ) -> None:
        """began: by the loop's clock, which some loops stop for a round. clock: by
        time.monotonic()."""
        self._settings = settings
        self._loop = loop
        self._began = began
        self._clock = clock
        self._generation = generation.number

    if sys.implementation.name == "pypy":

        def __del__(self) -> None:
            # PyPy closes no coroutine that it collects, so nobody else ends the child.
            if self._child is not None:
                self._abandon()
                self._forget()

    # -- the way through

    async def perform(self) -> CompletedProcess[Any]:
        settings = self._settings
        if settings.timeout is not None and settings.timeout <= 0:
            return self.never_started()
        try:
            reason = await self._live()
            assert self._child is not None
            if reason == "done":
                reason = self._own_end()
                if settings.ends_leftovers:
                    await self._end(leftovers=True)
            elif reason in ("timeout", "idle") and self._has_exited:
                self._stop_reading()
                if settings.ends_leftovers:
                    await self._end(leftovers=True)
            else:
                had_ended = self._has_ended()
                await self._end()
                ended_itself = self._has_exited and (had_ended or self._forced is None)
                if reason == "cancelled" and not self.raises and ended_itself:
                    # Nobody is to hear of the cancellation, but of what the command has done.
                    reason = self._own_end()
            if self._outputs or self._feeding is not None:
                await self._end_tasks()
        except BaseException as error:
            # The coroutine is closed, say, or there was no child.
            self.could_not_start = self._child is None or self._child.error is error
            self._abandon()
            self._forget()
            raise
        try:
            return self._conclude(reason)
        finally:
            self._forget()

    def _own_end(self) -> Reason:
        """How it has ended by itself."""
        assert self._child is not None
        code = self._child.returncode
        assert code is not None
        return "signal" if code < 0 and code != UNKNOWN_EXIT else "exit"

    async def _live(self) -> str:
        """Starts the child. Returns when it has ended, or is to be ended, and why."""
        try:
            if crowded:
                turn = _backends.current().turn(self._loop)
                if turn is not None:
                    await turn
            self._start()
            reason = await self._over
        except asyncio.CancelledError as error:
            child = self._child
            if child is None or child.error is not None:
                raise
            if self._generation != generation.number:
                raise  # in a forked process, and the child is its parent's
            self._cancelled = error
            return "cancelled"
        if reason == "failed":
            assert self._child is not None
            assert self._child.error is not None
            raise self._child.error
        return reason

    def _start(self) -> None:
        settings, loop = self._settings, self._loop
        opened: list[Any] = []
        try:
            spec = self._spec = settings.spec(opened)
            lazy = not settings.is_in_a_hurry
            collect = lazy and self._may_wait(spec)
            child = spawn(spec, loop, lazy, collect, settings.data)
        finally:
            for file in opened:
                file.close()
        self._child = child
        self._over = loop.create_future()
        if settings.ends_leftovers:
            child.hold()
        if settings.timeout is not None:
            self._timer = loop.call_at(self._began + settings.timeout, self._time_is_up)
        if logger.isEnabledFor(logging.DEBUG):
            # On Windows the pid is not known yet.
            what = settings.user_args if settings.name is None else repr(settings.name)
            logger.debug("pid %s: started: %s", child.pid or "?", what)
        if child.returncode is not None:
            loop.call_soon(self._exited)
        else:
            child.on_exit = self._exited
        if child.started is not None:
            child.started.add_done_callback(self._started)
        else:
            self._connect()

    def _started(self, started: asyncio.Future[None]) -> None:
        if not started.cancelled() and started.exception() is None:
            try:
                self._connect()
            except BaseException as error:
                self._fail(error)

    def _connect(self) -> None:
        """Begins to read and write."""
        child, settings = self._child, self._settings
        if self._is_connected or child is None:
            return
        self._is_connected = True
        if child.collects:
            if not child.look_later(self._look):
                self._keep_output()
                self._watch()
            return
        self._open_pipes()
        if not settings.is_in_a_hurry and not child.look_later(self._look):
            self._watch()

    def _may_wait(self, spec: SpawnSpec) -> bool:
        """Whether output can be left in its pipes until the child has ended."""
        settings, program = self._settings, spec.programs[0]
        return settings.max_output is None and not (
            habits.is_bulky(program, 1) or habits.is_bulky(program, 2)
        )

    def _keep_output(self) -> None:
        """The child lives on: its pipes are read as it writes."""
        assert self._child is not None
        self._child.keep_output()
        self._open_pipes()

    def _open_pipes(self) -> None:
        child, settings = self._child, self._settings
        assert child is not None
        if settings.has_tree and settings.captures and not self._has_exited:
            # Its tree may have to be ended when it has ended itself.
            child.hold()
        at_once = settings.is_in_a_hurry
        # They are ours now. The backend may keep the child for longer than the loop lives.
        stdin, stdout, stderr = child.stdin, child.stdout, child.stderr
        self._terminal = child.terminal
        child.stdin = child.stdout = child.stderr = child.terminal = None
        if stdin is not None and self._terminal is None:
            self._feed = Feed(stdin, self._fail)
            if settings.data is not None:
                at_once |= not self._feed.send_all(settings.data[child.input_taken :])
            else:
                feeding = feed(self._feed, settings.source, settings.encode, self._fail)
                self._feeding = new_task(self._loop, feeding)
                self._feeding.add_done_callback(self._raised)
        if stdout is not None or stderr is not None:
            program, most = self._spec.programs[0], settings.max_output
            self._outputs = tuple(
                Output(self, fd, end, program, Sink() if most is None else Bounded(most))
                for fd, end in ((1, stdout), (2, stderr))
                if end is not None
            )
            self._open = len(self._outputs)
            if self._spec.pipesize > 0:
                for output in self._outputs:
                    output.pipe_size = self._spec.pipesize
            if settings.listens:
                self._listen()
            else:
                for output in self._outputs:
                    output.start(at_once)
        if settings.idle_timeout is not None:
            self._wants_last = True
            self._last = self._loop.time()
            self._idle_timer = self._loop.call_later(settings.idle_timeout, self._idle_is_up)

    def _listen(self) -> None:
        settings = self._settings
        for output in self._outputs:
            decoder = Decoder(settings.encoding, settings.errors) if settings.text else None
            stream = ("", "stdout", "stderr")[output.fd]
            listener = Listener(stream, settings.on_output, settings.on_line, decoder)
            output.listener = listener
            output.pump = new_task(self._loop, self._pump(output, listener))
            output.pump.add_done_callback(self._pumped)

    @staticmethod
    async def _pump(output: Output, listener: Listener) -> None:
        data = b"?"
        while data:
            data = await output.chunk()
            await listener.take(data)

    # -- what happens meanwhile

    def _look(self) -> None:
        """The child has not ended as soon as most do."""
        assert self._child is not None
        if self._child.collects:
            self._keep_output()
        waits = False
        for output in self._outputs:
            waits |= output.look()
        self._looks += 1
        if waits and (self._looks == LOOKS or not self._child.look_later(self._look)):
            self._watch()

    def _watch(self) -> None:
        for output in self._outputs:
            output.watch()

    def data_came(self) -> None:
        if self._wants_last:
            self._last = self._loop.time()

    def output_ended(self, output: Output, error: Exception | None) -> None:
        if error is not None:
            self._fail(error)
        if output.pump is None:
            self._open -= 1
            self._check()

    def _pumped(self, task: asyncio.Task[None]) -> None:
        """There are no callbacks any more, for one of the outputs."""
        for output in self._outputs:
            if output.pump is task:
                output.pump = None
                if output.is_open:
                    output.start(at_once=True)
                else:
                    self._open -= 1
        self._raised(task)
        if self._child is not None:
            self._check()

    def _raised(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            if not self._over.done() and not self._is_ending:
                # Our loop ends all tasks.
                self._cancelled = asyncio.CancelledError()
                self._over.set_result("cancelled")
        else:
            error = task.exception()
            if error is not None:
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._over.done() and not self._is_ending:
            self._error = error
            self._over.set_result("error")

    def _exited(self) -> None:
        child = self._child
        if child is None:
            return  # nobody waits for it any more
        if child.error is not None:
            self._tell_exit()
            if not self._over.done() and not self._is_ending:
                self._over.set_result("failed")
            return
        if not self._is_connected:
            try:
                self._connect()
            except BaseException as error:
                self._fail(error)
        self._has_exited = True
        if child.collected is not None:
            self._take_collected(child)
        elif child.collects:
            self._keep_output()
        self._tell_exit()
        if self._open:
            self._wants_last = True
            for output in self._outputs:
                output.finish()
            if self._open and not self._is_ending:
                self._drain()
        self._check()

    def _tell_exit(self) -> None:
        waiter = self._exit_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _take_collected(self, child: Child) -> None:
        """The backend has read what the child had written."""
        assert child.collected is not None
        self._collected = child.collected
        if child.stdout is not None or child.stderr is not None:
            # Not to its end.
            self._open_pipes()
            for output in self._outputs:
                data = self._collected[output.fd - 1]
                if data:
                    output.sink.add(data)

    def _check(self) -> None:
        if self._has_exited and not self._open and not self._over.done():
            self._over.set_result("done")

    def _drain(self) -> None:
        """Waits for the end of the pipes, for a while."""
        seconds = 0.0 if self._is_late else self._settings.drain
        self._wants_last = True
        self._draining_since = self._last = self._loop.time()
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        self._drain_timer = self._loop.call_later(seconds, self._drained)

    def _drained(self) -> None:
        now, seconds = self._loop.time(), self._settings.drain
        if self._is_late:
            end = now
        elif not self._is_ending and self._is_busy():
            self._draining_since = now
            end = now + max(seconds, BUSY_PAUSE)
        else:
            end = min(self._last + seconds, self._draining_since + MOST_DRAINS * seconds)
        if end > now:
            self._drain_timer = self._loop.call_at(end, self._drained)
        elif self._settings.ends_leftovers and not self._is_ending:
            # It is they who have the pipes open, most likely.
            if not self._over.done():
                self._over.set_result("done")
        else:
            self._cut()

    def _cut(self) -> None:
        for output in self._outputs:
            output.cut()
        if self._is_ending and self._open and not self._over.done():
            # There are callbacks that have heard of what came last, and stay with it.
            now = self._loop.time()
            if now > self._draining_since + MOST_FOR_TASKS:
                self._over.set_result("done")
                return
            self._cancel_busy()
            self._drain_timer = self._loop.call_later(BUSY_PAUSE, self._cut)

    def _cancel_busy(self) -> None:
        for output in self._outputs:
            if output.is_busy() and output.pump is not None:
                output.pump.cancel()

    def _is_busy(self) -> bool:
        return any(output.is_busy() for output in self._outputs)

    # -- time

    def _time_is_up(self) -> None:
        if self._over.done():
            return
        child = self._child
        assert child is not None
        if (not self._has_exited and child.peek() is None) or self._is_busy():
            self._over.set_result("timeout")
        elif not self._is_late:
            # It has ended in time, and what it has written is there.
            self._is_late = True
            if self._has_exited:
                self._drained()
            if self._settings.listens:
                # As long as none of them is busy with that.
                pause = max(self._settings.drain, BUSY_PAUSE)
                self._timer = self._loop.call_later(pause, self._time_is_up)

    def _idle_is_up(self) -> None:
        if self._over.done() or self._has_exited:
            return
        child, seconds = self._child, self._settings.idle_timeout
        assert child is not None
        assert seconds is not None
        now = self._loop.time()
        if self._is_busy():
            self._last = now  # it is not the child's fault
        if now < self._last + seconds:
            self._is_idle = False
            self._idle_timer = self._loop.call_at(self._last + seconds, self._idle_is_up)
        elif not self._is_idle:
            # Where the loop was late there may be something to read: libuv has timers come first.
            self._is_idle = True
            self._idle_timer = self._loop.call_later(ANOTHER_TURN, self._idle_is_up)
        elif child.peek() is None:
            self._over.set_result("idle")

    def _stop_timers(self) -> None:
        for timer in (self._timer, self._idle_timer, self._drain_timer):
            if timer is not None:
                timer.cancel()
                self._timer = self._idle_timer = self._drain_timer = None

    # -- the end

    def not_started(
        self, reason: Reason, error: BaseException | None = None
    ) -> CompletedProcess[Any]:
        """The result of a command that has not been started."""
        self._error = error
        result = self._result(reason)
        self._forget()
        return result

    def never_started(self) -> CompletedProcess[Any]:
        """Time was up before it was started."""
        result = self.not_started("timeout")
        if self.raises:
            raise TimeoutExpired(result)
        return result

    def _exit_future(self) -> asyncio.Future[None]:
        waiter = self._exit_waiter
        if waiter is None:
            waiter = self._exit_waiter = self._loop.create_future()
            assert self._child is not None
            if self._has_exited or self._child.error is not None:
                waiter.set_result(None)
        return waiter

    def _tree(self) -> ProcessTree | Alone:
        child, spec = self._child, self._spec
        assert child is not None
        if not spec.tree:
            return Alone(child)
        return tree_of(child, spec)

    async def _end(self, *, leftovers: bool = False) -> None:
        """Ends the tree; reads what there is to be read."""
        self._is_ending = True
        self._stop_timers()
        self._cancel_busy()
        if not self._is_connected:
            self._connect()
        if self._child is not None and self._child.collects:
            self._keep_output()
        if self._feeding is not None:
            self._feeding.cancel()
        # Whatever it was that happened: what is left to wait for is the end.
        self._over = self._loop.create_future()
        self._check()
        for output in self._outputs:
            output.watch()
        exit = self._exit_future()
        tree = self._tree()
        steps, cancelled = self._settings.steps, self._cancelled
        ending = Ending(tree, steps, exit, self._has_ended, self._close_stdin, cancelled)
        try:
            with Shield():
                await self._wait_for(ending, leftovers)
        except BaseException:
            tree.kill_at_once()
            raise
        finally:
            self._cancelled = ending.cancelled
            tree.close()

    async def _wait_for(self, ending: Ending, leftovers: bool) -> None:
        await ending.run()
        assert self._child is not None
        if self._child.error is not None:
            # There was nobody to be ended.
            raise ending.cancelled or self._child.error
        self._left = ending.left
        if not leftovers:
            self._forced = ending.forced
        if self._has_exited and not self._over.done():
            # On Windows a pipe ends a moment after whoever has held it.
            self._is_late = leftovers and not (WINDOWS and ending.left == [])
            self._drain()
            await ending.wait(self._over)

    def _has_ended(self) -> bool:
        """Also if nobody has noticed yet."""
        return self._has_exited or (self._child is not None and self._child.peek() is not None)

    def _close_stdin(self) -> bool:
        """Whether it was open."""
        if self._terminal is not None:
            return self._type_eof(self._terminal)
        pipe = self._feed
        if pipe is None or not pipe.is_open:
            return False
        pipe.close()
        return True

    @staticmethod
    def _type_eof(terminal: Terminal) -> bool:
        try:
            terminal.write(terminal.eof())
        except OSError:
            return False  # nobody has it open any more, or reads what has been typed
        return True

    def _stop_reading(self) -> None:
        """A callback is busy though time is up."""
        self._is_ending = True
        self._stop_timers()
        for output in self._outputs:
            if output.pump is not None:
                output.pump.cancel()
            if not self._settings.ends_leftovers:
                output.cut()

    async def _end_tasks(self) -> None:
        """Has iterators and callbacks end that nobody needs any more."""
        tasks = self._tasks()
        if not tasks:
            return
        self._is_ending = True
        for task in tasks:
            task.cancel()
        try:
            with Shield():
                _, busy = await asyncio.wait(tasks, timeout=MOST_FOR_TASKS)
        except asyncio.CancelledError as error:
            self._cancelled = error
        else:
            if busy:
                logger.warning("callbacks of a run go on, though they were cancelled: %r", busy)

    def _tasks(self) -> set[asyncio.Task[None]]:
        """Those of iterators and callbacks."""
        tasks = {output.pump for output in self._outputs if output.pump is not None}
        if self._feeding is not None and not self._feeding.done():
            tasks.add(self._feeding)
        return tasks

    def _let_go(self) -> None:
        """Closes what is ours."""
        self._stop_timers()
        if self._feed is not None:
            self._feed.close()
        for output in self._outputs:
            output.close()
        if self._terminal is not None:
            self._terminal.hang_up()

    def _abandon(self) -> None:
        """Ends it at once, without waiting."""
        child = self._child
        if child is None:
            return
        self._is_ending = True
        if child.error is None and self._spec.tree:
            self._tree().kill_at_once()
        if not self._loop.is_closed():
            for task in self._tasks():
                task.cancel()
        self._let_go()
        child.release()
        child.abandon()

    def _forget(self) -> None:
        """Lets go of what holds us, and of errors, whose tracebacks do: no cycle is left to the
        garbage collector. The output, of any size, would stay until it comes."""
        self._child = self._cancelled = self._error = self._feed = None
        self._outputs = ()

    def _conclude(self, reason: Any) -> CompletedProcess[Any]:
        """The result, or what is raised in its place."""
        child, settings = self._child, self._settings
        assert child is not None
        self._let_go()
        child.release()
        if not self._has_exited:
            child.abandon()  # and reaped, if it ever ends
        result = self._result(reason)
        error: BaseException | None = self._cancelled or self._error
        self._report(result)
        if not self.raises:
            return result
        if error is not None:
            try:
                if not hasattr(error, "result"):
                    error.result = result  # type: ignore[attr-defined]
                raise error
            finally:
                del error
        if not self._has_exited:
            not_ended = NotEnded(result, process_state(child.pid))
            if reason in ("timeout", "idle"):
                raise not_ended from TimeoutExpired(result)
            raise not_ended
        if reason in ("timeout", "idle"):
            raise TimeoutExpired(result)
        if settings.check and not result.ok:
            raise CalledProcessError(result)
        return result

    def _result(self, reason: Reason) -> CompletedProcess[Any]:
        child, settings = self._child, self._settings
        outputs: Any = self._collected
        dropped = NOTHING_DROPPED
        complete = True
        if self._outputs:
            outputs, dropped, complete = self._read_outputs()
        if settings.text:
            outputs = [None if one is None else self._decoded(one) for one in outputs]
        if self._error is not None and self._cancelled is None:
            reason = "error"
        return CompletedProcess(
            settings.user_args,
            None if child is None else child.returncode,
            *outputs,
            reason=reason,
            duration=monotonic() - self._clock,
            rusage=None if child is None else child.rusage_later(),
            pid=None if child is None else child.pid,
            complete=complete,
            dropped=dropped,
            forced=self._forced,
            left=self._left,
            error=self._error,
            name=settings.name,
            accepted=settings.accepted,
            encoding=settings.encoding,
            errors=settings.errors,
            timeout=settings.idle_timeout if reason == "idle" else settings.timeout,
        )

    def _read_outputs(self) -> tuple[list[Any], tuple[int, int], bool]:
        outputs: list[Any] = list(self._collected)
        dropped = [0, 0]
        for output in self._outputs:
            try:
                outputs[output.fd - 1] = output.sink.value()
            except MemoryError as error:
                self._error = self._error or error
            if isinstance(output.sink, Bounded):
                dropped[output.fd - 1] = output.sink.dropped
        complete = all(output.has_ended for output in self._outputs)
        return outputs, (dropped[0], dropped[1]), complete

    def _decoded(self, data: bytes) -> Any:
        try:
            return self._settings.decode(data)
        except (UnicodeError, MemoryError) as error:
            self._error = self._error or error
            return data

    def _report(self, result: CompletedProcess[Any]) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        logger.info(
            "pid %s: %s: %s, returncode %s after %.3f s%s",
            result.pid,
            discreet(result.args, result.name),
            result.reason,
            result.returncode,
            result.duration,
            "" if result.complete else "; a pipe was still open",
        )


class Told(Run):
    """One whose result tells all, whatever happens to the command."""

    raises = False

    @property
    def has_child(self) -> bool:
        """Whether a child has been made, and there is no result yet."""
        return self._child is not None

    def kill_now(self) -> None:
        """Ends it at once; nobody waits for it, nor for us."""
        self._abandon()
        self._forget()
