"""Many commands, some at a time."""

from __future__ import annotations

import asyncio
import collections
import inspect
import warnings
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from .._notes import add_note
from .attempts import attempt
from .command import Command, parts_of
from .limiter import Limiter, judge
from .options import Settings, judge_limiter
from .result import CompletedProcess
from .run import Told
from .tasks import new_task
from .together import wait_for_end

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .typed import BytesCallback, ManyOptions, Path, TextCallback

    Many = Iterable[Sequence[Path]] | AsyncIterable[Sequence[Path]]
    ManyAny = Iterable[Command | Sequence[Path]] | AsyncIterable[Command | Sequence[Path]]

T = TypeVar("T")
Halt = Literal["never", "soon", "now"]

HALTS = ("never", "soon", "now")


class Runs(Generic[T]):
    """What :func:`run_many` returns: an asynchronous context manager, and in its block an
    asynchronous iterator of results.

    A worker is a task that takes a command, waits for a slot, runs the command and gives the
    result to whoever waits for one, or waits itself until somebody takes it. So there are
    never more commands and results at a time than workers.
    """

    def __init__(
        self,
        function: str,
        commands: Any,
        concurrency: int | None,
        limiter: Limiter | None,
        halt: str,
        options: dict[str, Any],
    ) -> None:
        """See run_many(). function: whose arguments these are."""
        if isinstance(commands, (str, bytes, Command)) or not (
            hasattr(commands, "__aiter__") or hasattr(commands, "__iter__")
        ):
            raise TypeError(
                f"{function}() takes an iterable or asynchronous iterable of commands, "
                f"[command, ...], not {commands!r:.100}"
            )
        if halt not in HALTS:
            raise ValueError(f"halt must be 'never', 'soon' or 'now', not {halt!r:.100}")
        if limiter is not None:
            judge_limiter(limiter)
        if concurrency is not None:
            judge(concurrency)
        elif limiter is not None:
            concurrency = limiter.concurrency
        self._is_alone = limiter is None
        self._limiter = Limiter(concurrency) if limiter is None else limiter
        self._concurrency = concurrency or self._limiter.concurrency
        options.setdefault("check", False)
        common = self._common = Settings(function, "a command", (), **options)
        if common.source is not None and not isinstance(common.source, (list, tuple)):
            raise ValueError(
                "input for many commands must be bytes, str or a list of chunks: "
                f"of {common.source!r:.100} the first would leave nothing to the others"
            )
        #: Whether what fails is raised.
        self._raises = common.check
        self._function = function
        self._options = options
        self._halts: str = halt
        self._commands = commands
        self._iterator: Any = None
        self._is_async = hasattr(commands, "__aiter__")
        self._is_exhausted = False
        #: How many commands have been taken.
        self._taken = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers: set[asyncio.Task[None]] = set()
        #: What those of them do that have a slot.
        self._running: dict[asyncio.Task[Any] | None, Told] = {}
        #: No command is started any more.
        self._is_halting = False
        #: And what runs is being ended.
        self._is_ending = False
        self._is_closed = False
        self._results: collections.deque[CompletedProcess[T]] = collections.deque()
        #: Who waits for a result, or the end (None).
        self._consumers: collections.deque[asyncio.Future[CompletedProcess[T] | None]]
        self._consumers = collections.deque()
        #: Workers whose results nobody has taken.
        self._held: collections.deque[asyncio.Future[None]] = collections.deque()
        #: What is to be raised when all have ended.
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        running = len(self._running)
        return f"<{self._function}(): {self._taken} commands taken, {running} running>"

    def __del__(self, _warn: Callable[..., Any] = warnings.warn) -> None:
        # As Python says it of a coroutine. (Of what was refused there is no such attribute.)
        if getattr(self, "_loop", self) is None:
            _warn(
                f"{self._function}() was never entered: write 'async with' before it",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )

    # -- for the user

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise RuntimeError(f"{self._function}() has been entered before: call it again")
        self._loop = asyncio.get_running_loop()
        commands = self._commands
        self._iterator = commands.__aiter__() if self._is_async else iter(commands)
        self._pulling = asyncio.Lock()
        self._add_worker()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends all that run, with all that they have started, and waits for that."""
        assert self._loop is not None
        self._is_closed = True
        if kind is GeneratorExit and not self._loop.is_running():
            self._kill_now()
            return
        self._halt(now=True)
        cancelled = error if isinstance(error, asyncio.CancelledError) else None
        first = await wait_for_end(set(self._workers), cancelled)
        self._results.clear()
        try:
            await self._close_iterator()
        finally:
            failure, self._error = self._error, None
            if first is not None and first is not error:
                raise first
            if failure is not None and error is None:
                raise failure

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> CompletedProcess[T]:
        loop = self._loop
        if loop is None:
            raise RuntimeError(
                f"{self._function}() is to be entered: async with {self._function}(...) as runs"
            )
        while True:
            if self._results:
                result = self._results.popleft()
                self._let_one_go()
                return result
            if not self._workers or self._is_closed:
                error, self._error = self._error, None
                if error is not None:
                    try:
                        raise error
                    finally:
                        del error
                raise StopAsyncIteration
            consumer: asyncio.Future[CompletedProcess[T] | None] = loop.create_future()
            self._consumers.append(consumer)
            try:
                got = await consumer
            except BaseException:
                if consumer in self._consumers:
                    self._consumers.remove(consumer)
                elif not consumer.cancelled():
                    # It came, too late for us.
                    got = consumer.result()
                    if got is not None and not self._offer(got):
                        self._results.appendleft(got)
                raise
            if got is not None:
                return got

    # -- workers

    def _add_worker(self) -> None:
        assert self._loop is not None
        if not (self._is_halting or self._is_exhausted or len(self._workers) >= self._concurrency):
            worker = new_task(self._loop, self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._worker_ended)

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not worker.cancelled() and (error := worker.exception()) is not None:
            self._fail(error)
        if not self._workers:
            while self._consumers:
                consumer = self._consumers.popleft()
                if not consumer.done():
                    consumer.set_result(None)

    async def _work(self) -> None:
        assert self._loop is not None
        worker = asyncio.current_task()
        try:
            while not self._is_halting:
                pulled = await self._pull()
                if pulled is None:
                    return
                if len(self._workers) < self._concurrency:
                    # By and by: those that are never needed are not made.
                    self._loop.call_soon(self._add_worker)
                result = await self._run(worker, *pulled)
                if result is not None and not self._give(*result) and not self._is_halting:
                    held: asyncio.Future[None] = self._loop.create_future()
                    self._held.append(held)
                    pulled = result = None  # they may be large
                    await held
                pulled = result = None
        except asyncio.CancelledError as error:
            if not self._is_halting:
                # By the iterable, or by our loop, which ends all tasks.
                self._fail(error)

    async def _pull(self) -> tuple[int, Any] | None:
        """The next command and its number; None at the end."""
        if self._is_exhausted:
            return None
        try:
            if not self._is_async:
                item = next(self._iterator)
            else:
                async with self._pulling:
                    if self._is_halting or self._is_exhausted:
                        return None
                    item = await self._iterator.__anext__()
        except (StopIteration, StopAsyncIteration):
            self._is_exhausted = True
            return None
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._is_exhausted = True
            raise
        index = self._taken
        self._taken += 1
        return index, item

    async def _run(
        self, worker: Any, index: int, item: Any
    ) -> tuple[CompletedProcess[T], bool] | None:
        """What has become of a command, and whether it may be raised; None if it was not
        started."""
        try:
            program, args, own = parts_of(item)
            try:
                settings = self._settings(program, args, own)
            except ValueError as error:
                # Data that no program can be given: a NUL in an argument.
                result: CompletedProcess[T]
                result = CompletedProcess((program, *args), None, reason="error", error=error)
                result.index = index
                return result, True
        except BaseException as error:
            add_note(error, f"in command {index} of {self._function}()")
            raise
        limiter = settings.limiter or self._limiter
        await limiter.acquire()
        try:
            if self._is_halting:
                return None

            def make(*args: Any) -> Told:
                run = self._running[worker] = Told(*args)
                return run

            result = await attempt(settings, make, limiter=limiter)
        finally:
            self._running.pop(worker, None)
            limiter.release()
        result.index = index
        return result, settings.check

    def _settings(self, program: Any, args: tuple[Any, ...], own: dict[str, Any]) -> Settings:
        if not own and (settings := self._common.again(program, args)) is not None:
            return settings
        settings = Settings(self._function, program, args, **{**self._options, **own})
        if not (self._is_alone or settings.limiter in (None, self._limiter)):
            raise TypeError("a command's limiter and another one cannot both be waited for")
        return settings

    # -- results

    def _give(self, result: CompletedProcess[T], is_checked: bool) -> bool:
        """Whether somebody has waited for it."""
        if self._error is not None:
            return True  # nobody is told any more
        if result.reason == "cancelled":
            # Unless it was by us, our loop ends all tasks.
            self._halt(now=True)
        elif not result.ok and not self._is_halting:
            if self._raises and is_checked:
                try:
                    result.check_returncode()
                except BaseException as error:
                    self._fail(error)
                return True
            if self._halts != "never":
                self._halt(now=self._halts == "now")
        if self._offer(result):
            return True
        self._results.append(result)
        return False

    def _offer(self, result: CompletedProcess[T]) -> bool:
        while self._consumers:
            consumer = self._consumers.popleft()
            if not consumer.done():
                consumer.set_result(result)
                return True
        return False

    def _let_one_go(self) -> None:
        while self._held:
            held = self._held.popleft()
            if not held.done():
                held.set_result(None)
                return

    def _fail(self, error: BaseException) -> None:
        """It is raised, and all that run are ended."""
        if self._error is None:
            self._error = error
        self._halt(now=True)

    def _halt(self, *, now: bool) -> None:
        """Starts nothing more. now: and ends what runs."""
        if self._is_ending or (self._is_halting and not now):
            return
        self._is_halting = True
        self._is_ending = now
        ours = asyncio.current_task()
        for worker in self._workers:
            run = self._running.get(worker)
            if worker is not ours and (now or run is None or not run.has_child):
                # Twice would take the grace from what runs.
                worker.cancel()

    def _kill_now(self) -> None:
        """The coroutine is closed, and nobody can wait for anything."""
        self._is_halting = self._is_ending = True
        for run in self._running.values():
            run.kill_now()
        assert self._loop is not None
        if not self._loop.is_closed():
            for worker in self._workers:
                worker.cancel()
        if inspect.isgenerator(self._iterator):
            self._iterator.close()

    async def _close_iterator(self) -> None:
        """A generator's `finally` runs now, and not when it is collected."""
        iterator = self._iterator
        if inspect.isasyncgen(iterator):
            await iterator.aclose()
        elif inspect.isgenerator(iterator):
            iterator.close()


@overload
def run_many(
    commands: Many,
    *,
    concurrency: int | None = ...,
    limiter: Limiter | None = ...,
    halt: Halt = ...,
    text: Literal[False] = ...,
    encoding: None = ...,
    errors: None = ...,
    on_output: BytesCallback | None = ...,
    on_line: BytesCallback | None = ...,
    **options: Unpack[ManyOptions],
) -> Runs[bytes]: ...
@overload
def run_many(
    commands: Many,
    *,
    concurrency: int | None = ...,
    limiter: Limiter | None = ...,
    halt: Halt = ...,
    text: Literal[True],
    encoding: str | None = ...,
    errors: str | None = ...,
    on_output: TextCallback | None = ...,
    on_line: TextCallback | None = ...,
    **options: Unpack[ManyOptions],
) -> Runs[str]: ...
@overload
def run_many(
    commands: ManyAny,
    *,
    concurrency: int | None = ...,
    limiter: Limiter | None = ...,
    halt: Halt = ...,
    text: bool = ...,
    encoding: str | None = ...,
    errors: str | None = ...,
    on_output: Any = ...,
    on_line: Any = ...,
    **options: Unpack[ManyOptions],
) -> Runs[Any]: ...
def run_many(
    commands: Any,
    *,
    concurrency: int | None = None,
    limiter: Limiter | None = None,
    halt: Halt = "never",
    **options: Any,
) -> Runs[Any]:
    """Run many commands, some at a time, and give their results as they finish. ::

        async with aioproc.run_many(commands, timeout=60, text=True) as runs:
            async for result in runs:
                print(result.index, result.ok, result.text)

    What happens to a command is its result, never an exception: for a program that is
    missing the reason is "error", and ``error`` has the exception; for a timeout it is
    "timeout". How the block is left makes no difference: by its end, ``break``, an exception
    or a cancellation, all that runs is ended with all that it has started, as `stop` says,
    and no more is started. A second cancellation leaves out what is left of the grace.

    Args:
        commands: An iterable or asynchronous iterable. Each is a :class:`Command`, or a
            tuple or list of a program and its arguments. They are taken as there are slots
            for them, `concurrency` at most beyond those that have been started. A generator
            is closed at the end. What it raises ends all commands, and is raised; so does a
            TypeError, for what is no command.
        concurrency: How many at a time. A command and its output have ended before another is
            started in its place. If results are not taken as they come, no more than that
            many wait, and nothing is started meanwhile. Default: that of `limiter`, or as
            many as there are CPUs that this process may use (affinity, and the quota of its
            cgroup).
        limiter: A :class:`Limiter` that is shared with others: what is started needs a slot
            of it, too.
        halt: What the first result does that is not ok: "never", nothing; "soon", no more is
            started; "now", and what runs is ended (its reason is "cancelled"). The results of
            all that was started are given.
        **options: As those of :func:`run`, for each command; those of a Command come first.
            `timeout` begins with a command's slot, and again if there was no room for
            another process and it had to wait for the end of one. ``check`` is False by
            default. With True, or a container of returncodes, the first command that fails
            ends all others, and what run() would raise is raised when they have ended. A
            Command's own `check` decides what is ``ok`` for it; False: its failure is not
            raised.

    Returns:
        An asynchronous context manager, and in its block an asynchronous iterator of
        :class:`CompletedProcess`, whose ``index`` is the command's place among `commands`.

    Raises:
        TypeError, ValueError: Arguments that cannot be taken; nothing has been started.
    """
    return Runs("run_many", commands, concurrency, limiter, halt, options)


@overload
async def run_all(
    commands: Many,
    *,
    concurrency: int | None = ...,
    limiter: Limiter | None = ...,
    halt: Halt = ...,
    text: Literal[False] = ...,
    encoding: None = ...,
    errors: None = ...,
    on_output: BytesCallback | None = ...,
    on_line: BytesCallback | None = ...,
    **options: Unpack[ManyOptions],
) -> list[CompletedProcess[bytes]]: ...
@overload
async def run_all(
    commands: Many,
    *,
    concurrency: int | None = ...,
    limiter: Limiter | None = ...,
    halt: Halt = ...,
    text: Literal[True],
    encoding: str | None = ...,
    errors: str | None = ...,
    on_output: TextCallback | None = ...,
    on_line: TextCallback | None = ...,
    **options: Unpack[ManyOptions],
) -> list[CompletedProcess[str]]: ...
@overload
async def run_all(
    commands: ManyAny,
    *,
    concurrency: int | None = ...,
    limiter: Limiter | None = ...,
    halt: Halt = ...,
    text: bool = ...,
    encoding: str | None = ...,
    errors: str | None = ...,
    on_output: Any = ...,
    on_line: Any = ...,
    **options: Unpack[ManyOptions],
) -> list[CompletedProcess[Any]]: ...
async def run_all(
    commands: Any,
    *,
    concurrency: int | None = None,
    limiter: Limiter | None = None,
    halt: Halt = "never",
    **options: Any,
) -> list[CompletedProcess[Any]]:
    """Run many commands, some at a time, and return all results in the order of the commands.

    Args:
        commands: As :func:`run_many`'s; so are the others.
        concurrency: How many at a time.
        limiter: What is shared with others.
        halt: What the first result does that is not ok.
        **options: As those of :func:`run`.

    Returns:
        A list of :class:`CompletedProcess`. With `halt`, of those that were started.

    Raises:
        TypeError, ValueError: As run_many().
        CalledProcessError, TimeoutExpired, NotEnded, OSError: With `check`.
    """
    runs: Runs[Any] = Runs("run_all", commands, concurrency, limiter, halt, options)
    async with runs:
        results = [result async for result in runs]
    results.sort(key=_index)
    return results


def _index(result: CompletedProcess[Any]) -> int:
    assert result.index is not None
    return result.index
