"""Commands whose output goes through pipes from one to the next."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Container, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from .. import _backends
from .._backends.base import Child, ReadEnd, generation
from .._backends.system import process_state
from .._messages import shortened
from .._notes import add_note
from .attempts import attempt
from .command import Command, parts_of
from .options import DEFAULT, DEVNULL, PIPE, STDOUT, Settings, open_paths
from .result import (
    CalledProcessError,
    CompletedProcess,
    NotEnded,
    ProcessError,
    Reason,
    TimeoutExpired,
)
from .run import Run, Told
from .tasks import new_task
from .together import wait_for_end

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .typed import BytesCallback, Path, RunOptions, TextCallback

T = TypeVar("T")

SIGPIPE: int | None = getattr(signal, "SIGPIPE", None)

#: What is for the whole, or given to its stages with care.
_WHOLE = frozenset(
    (
        *("check", "idle_timeout", "limiter", "name", "on_line", "on_output", "timeout"),
        *("input", "stdin", "stdout", "stderr", "capture_output"),
    )
)


class CompletedPipeline(CompletedProcess[T]):
    """What has become of a :func:`pipeline`.

    ``stdout`` is that of its last stage; ``args`` a list, of the stages' args. ``duration``,
    ``complete``, ``left`` and ``forced`` are about all stages. The rest is that of the stage
    that has failed, of the last if there is none: returncode, stderr, reason, signal, error,
    pid, rusage.

    Attributes:
        stages: The results of the stages, one by one. A stage but the last that SIGPIPE has
            ended is ok there: the next one did not want more.
        stage: Which of them has failed, from 0: the one because of which the others were
            ended, or the first that is not ok. None if there is none, and if all were ended
            together: since their time was up, or the caller was cancelled.
    """

    def __init__(
        self,
        stages: Sequence[CompletedProcess[Any]],
        stage: int | None,
        *,
        reason: Reason | None = None,
        stderr: Any = DEFAULT,
        duration: float,
        name: str | None,
        timeout: float | None,
    ) -> None:
        """Made by this library.

        Args:
            reason: Why all were ended.
            stderr: What all have written into one pipe.
            timeout: The seconds of the whole.
        """
        last = stages[-1]
        one = last if stage is None else stages[stage]
        lefts = [other.left for other in stages if other.left is not None]
        forced = {other.forced for other in stages}
        super().__init__(
            [other.args for other in stages],
            one.returncode,
            last.stdout,
            one.stderr if stderr is DEFAULT else stderr,
            reason=one.reason if reason is None else reason,
            duration=duration,
            rusage=one._rusage,
            pid=one.pid,
            complete=all(other.complete for other in stages),
            dropped=(last.dropped[0], one.dropped[1]),
            forced="kill" if "kill" in forced else "stop" if "stop" in forced else None,
            left=[pid for left in lefts for pid in left] if lefts else None,
            error=one.error,
            name=name,
            accepted=one._accepted,
            encoding=last._encoding,
            errors=last._errors,
            timeout=timeout if reason is not None else one._timeout,
        )
        self.stages = list(stages)
        self.stage = stage

    def _label(self) -> str:
        stages = " | ".join(stage._label() for stage in self.stages)
        text = shortened(stages) if self.name is None else super()._label()
        if self.stage is None:
            return text
        stage = self.stages[self.stage]
        if self.name is not None and stage.name == _name_of(self.name, self.stage):
            return f"{text}: stage {self.stage}"
        return f"{text}: stage {self.stage} ({stage._label()})"

    def _shown(self) -> str:
        if self.name is not None or all(stage.name is None for stage in self.stages):
            return super()._shown()
        return f"stages=[{', '.join(stage._shown() for stage in self.stages)}]"

    @property
    def ok(self) -> bool:
        """Whether all stages are."""
        return all(stage.ok for stage in self.stages)


def _name_of(whole: str, number: int) -> str:
    """A stage's that has none of its own, so that what it does is not shown there either."""
    return f"{whole}[{number}]"


class _Fine(Container[int]):
    """The returncodes that are no failure of a stage."""

    def __init__(self, given: Container[int], *, all: bool, also: int | None) -> None:
        self._given = given
        self._all = all
        self._also = also

    def __contains__(self, code: object) -> bool:
        if code is None:
            return False
        return self._all or code == self._also or code in self._given


class _Stage(Told):
    """The run of one stage."""

    def __init__(self, pipeline: _Pipeline, number: int, *args: Any) -> None:
        super().__init__(*args)
        self._pipeline = pipeline
        self._number = number

    def _connect(self) -> None:
        """The exec has worked, or there is no time to wait for that."""
        if not self._is_connected and self._child is not None:
            self._pipeline.hand_over(self._number, self._child)
        super()._connect()

    async def _live(self) -> str:
        reason = await super()._live()
        if reason != "done":
            self._pipeline.end(self._number)
        return reason

    def end_too(self, reason: str) -> None:
        """All are being ended."""
        if reason == "timeout":
            self._time_is_up()
        elif not self._over.done():
            self._over.set_result("cancelled")


class _Pipeline:
    """It is for one call, and its coroutine holds it."""

    def __init__(
        self, commands: tuple[Any, ...], merge_stderr: bool, options: dict[str, Any]
    ) -> None:
        if not commands:
            raise TypeError("pipeline() needs commands: pipeline(Command(...), Command(...))")
        self._parts = [parts_of(command) for command in commands]
        own = [options for _, _, options in self._parts]
        if options.get("capture_output") is False:
            if "stdout" in options or "stderr" in options:
                raise ValueError("stdout and stderr may not be given with capture_output=False")
            options = {**options, "stdout": None, "stderr": None}
        options.pop("capture_output", None)
        self._options = options
        self._stdout = options.get("stdout", own[-1].get("stdout", PIPE))
        self._stderr = options.get("stderr", PIPE)
        #: Whether the stages' stderr goes to the stdout of the last.
        self._joins = isinstance(self._stderr, int) and self._stderr == STDOUT
        #: Whether it goes into one pipe of its own.
        self._merges = bool(merge_stderr)
        if self._merges and self._stderr != PIPE:
            raise ValueError("merge_stderr=True is about captured output: stderr must be PIPE")
        #: Those whose stderr is not settled by themselves.
        self._sharers = [i for i in range(len(own)) if "stderr" not in own[i]]
        # All that is wrong with what is for the whole, as run() says it.
        judged = {key: options[key] for key in options if key not in ("input", "stdin", "pty")}
        self._whole = Settings("pipeline", "a command", (), **judged)
        self._settings = [self._judge(i) for i in range(len(own))]
        count = len(own)
        self._results: list[CompletedProcess[Any] | None] = [None] * count
        self._runs: list[_Stage | None] = [None] * count
        self._tasks: list[asyncio.Task[None]] = []
        #: What is to be forgotten of their pipes in the end.
        self._claims: list[int] = []
        #: What each stage is given, to be closed when it has it.
        self._given: list[list[int]] = [[] for _ in range(count)]
        #: What the run of the last reads in place of a pipe of its own: stdout, stderr.
        self._shared: dict[str, ReadEnd] = {}
        #: Why all are being ended, or because of which.
        self._is_ending = False
        self._reason: Reason | None = None
        self._cause: int | None = None

    # -- judging

    def _judge(self, number: int) -> Settings:
        """What is for the whole is for each stage, if it does not say otherwise."""
        program, args, own = self._parts[number]
        whole = self._options
        is_last = number == len(self._parts) - 1
        options = {key: whole[key] for key in whole if key not in _WHOLE}
        options.update(own)
        if "limiter" in own or "capture_output" in own:
            raise ValueError(
                f"stage {number}: limiter is for the whole, pipeline(limiter=...), and "
                "capture_output is written stdout=None, stderr=None"
            )
        if options.get("pty"):
            raise ValueError(f"stage {number} reads and writes pipes: pty is for run()")
        options["stdin"], options["stdout"], options["stderr"] = (
            self._judge_stdin(number, options),
            self._judge_stdout(own, number),
            self._judge_stderr(own, is_last),
        )
        if "input" in options:
            del options["stdin"]
        if "check" not in own:
            options["check"] = whole.get("check", True)
        if whole.get("name") is not None and options.get("name") is None:
            options["name"] = _name_of(whole["name"], number)
        if PIPE in (options["stdout"], options["stderr"]):
            for name in ("on_output", "on_line"):
                if name in whole:
                    options.setdefault(name, whole[name])
        if is_last and "idle_timeout" in whole:
            options.setdefault("idle_timeout", whole["idle_timeout"])
        settings = Settings("pipeline", program, args, **options)
        # The exec's result is waited for: then the pipes are let go of.
        settings.is_in_a_hurry = True
        settings.accepted = _Fine(
            settings.accepted,
            all=own.get("check") is False,
            also=None if is_last or SIGPIPE is None else -SIGPIPE,
        )
        return settings

    def _judge_stdin(self, number: int, options: dict[str, Any]) -> Any:
        whole, (_, _, first) = self._options, self._parts[0]
        if number:
            if "input" in options or "stdin" in options:
                raise ValueError(
                    f"stage {number} reads what the one before it writes: "
                    "input and stdin are for the first"
                )
            inherits = whole.get("stdin", first.get("stdin", DEVNULL)) is None
            if inherits and options.get("process_group") is None:
                # As the first, which is on our terminal.
                options.setdefault("start_new_session", False)
            return DEVNULL  # in the place of the pipe
        if "input" in whole or "stdin" in whole:
            for name in ("input", "stdin"):
                options.pop(name, None)
                if name in whole:
                    options[name] = whole[name]
        if options.get("input") is None:
            options.pop("input", None)
        elif "stdin" in options:
            raise ValueError("stdin and input may not both be given")
        return options.get("stdin", DEVNULL)

    def _judge_stdout(self, own: dict[str, Any], number: int) -> Any:
        if number == len(self._parts) - 1:
            return DEVNULL if isinstance(self._stdout, os.PathLike) else self._stdout
        if "stdout" in own:
            raise ValueError(
                f"stage {number} writes what the next one reads: stdout is for the last"
            )
        return DEVNULL  # in the place of the pipe

    def _judge_stderr(self, own: dict[str, Any], is_last: bool) -> Any:
        if "stderr" in own:
            return own["stderr"]
        if is_last and (self._joins or self._merges):
            return self._stderr
        if self._joins or self._merges or isinstance(self._stderr, os.PathLike):
            return DEVNULL  # in the place of what they share
        return self._stderr

    # -- what the stages are given

    def _open(self, loop: asyncio.AbstractEventLoop, files: contextlib.ExitStack) -> None:
        """Opens files and pipes."""
        count = len(self._settings)
        streams: list[list[Any]] = [[DEFAULT] * 3 for _ in range(count)]
        for i in range(count - 1):
            reader, writer, claim = _backends.open_between(self._options.get("pipesize", -1))
            self._claims.append(claim)
            self._given[i].append(writer)
            self._given[i + 1].append(reader)
            streams[i][1], streams[i + 1][0] = writer, reader
        opened: list[Any] = []
        try:
            _, stdout, stderr = open_paths((None, self._stdout, self._stderr), opened)
        finally:
            for file in opened:
                files.enter_context(file)
        if stdout is not self._stdout:
            streams[-1][1] = stdout
        if stderr is not self._stderr:
            for i in self._sharers:
                streams[i][2] = stderr
        others = [i for i in self._sharers if i < count - 1]
        if self._joins and others:
            if stdout == PIPE:
                writers = self._share(loop, "stdout", [count - 1, *others])
                streams[-1][1] = writers.pop(0)
            else:
                writers = [1 if stdout is None else stdout] * len(others)
            for i, writer in zip(others, writers, strict=True):
                streams[i][2] = writer
        elif self._merges and others:
            for i, writer in zip(
                self._sharers, self._share(loop, "stderr", self._sharers), strict=True
            ):
                streams[i][2] = writer
        for settings, own in zip(self._settings, streams, strict=True):
            settings.connect(own)

    def _share(self, loop: asyncio.AbstractEventLoop, name: str, stages: list[int]) -> list[Any]:
        self._shared[name], writers = _backends.open_shared(loop, len(stages))
        for i, writer in zip(stages, writers, strict=True):
            self._given[i].append(writer)
        return [*writers]

    def hand_over(self, number: int, child: Child) -> None:
        """A stage has what it was given."""
        if number == len(self._settings) - 1:
            for name, end in self._shared.items():
                setattr(child, name, end)
            self._shared.clear()
        given = self._given[number]
        while given:
            _backends.close_between(given.pop())

    def _close(self) -> None:
        for given in self._given:
            while given:
                _backends.close_between(given.pop())
        for end in self._shared.values():
            end.close()
        for claim in self._claims:
            _backends.forget_between(claim)

    # -- the way through

    async def run(self) -> CompletedPipeline[Any]:
        loop = asyncio.get_running_loop()
        began = loop.time(), monotonic()
        limiter, timeout = self._whole.limiter, self._whole.timeout
        end = None if timeout is None else began[0] + timeout
        if timeout is not None and timeout <= 0:
            raise TimeoutExpired(self._result(began, "timeout"))
        if limiter is None:
            return await self._run(loop, began, end)
        if not await limiter.acquire(end):
            raise TimeoutExpired(self._result(began, "timeout"))
        try:
            return await self._run(loop, began, end)
        finally:
            limiter.release()

    async def _run(
        self, loop: asyncio.AbstractEventLoop, began: tuple[float, float], end: float | None
    ) -> CompletedPipeline[Any]:
        timer = None
        cancelled = None
        number = generation.number
        with contextlib.ExitStack() as files:
            try:
                self._open(loop, files)
                self._tasks = [
                    new_task(loop, self._perform(i, began)) for i in range(len(self._settings))
                ]
                if end is not None:
                    timer = loop.call_at(end, self._time_is_up)
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError as error:
                if generation.number != number:
                    raise  # in a forked process, and all of this is its parent's
                self._note("cancelled")
                for task in self._tasks:
                    task.cancel()
                cancelled = await wait_for_end(self._tasks, error)
            except GeneratorExit:
                for run in self._runs:
                    if run is not None:
                        run.kill_now()
                if not loop.is_closed():
                    for task in self._tasks:
                        task.cancel()
                raise
            finally:
                if timer is not None:
                    timer.cancel()
                self._close()
        try:
            return self._conclude(began, cancelled)
        finally:
            # No cycle is left to the garbage collector.
            self._tasks.clear()
            self._runs.clear()
            self._results.clear()
            del cancelled

    async def _perform(self, number: int, began: tuple[float, float]) -> None:
        def make(*args: Any) -> _Stage:
            run = self._runs[number] = _Stage(self, number, *args)
            return run

        try:
            result = await attempt(self._settings[number], make, began=began)
        except BaseException:
            self.end(number)
            raise
        self._results[number] = result
        if result.pid is None:
            self.end(number)  # it could not be started

    def end(self, cause: int) -> None:
        """Ends the others because of one."""
        if not self._is_ending:
            self._is_ending = True
            self._cause = cause
            self._end_those("cancelled", but=cause)

    def _time_is_up(self) -> None:
        self._note("timeout")
        self._end_those("timeout")

    def _note(self, reason: Reason) -> None:
        if not self._is_ending:
            self._is_ending = True
            self._reason = reason

    def _end_those(self, reason: Reason, but: int | None = None) -> None:
        for i, (run, task) in enumerate(zip(self._runs, self._tasks, strict=True)):
            if i == but or task.done():
                continue
            if run is not None and run.has_child:
                run.end_too(reason)
            else:
                task.cancel()

    # -- the end

    def _result(
        self, began: tuple[float, float], reason: Reason | None = None
    ) -> CompletedPipeline[Any]:
        """Those that have none were not started."""
        loop = asyncio.get_running_loop()
        stages = [
            Run(settings, loop, *began).not_started(reason or "cancelled") if one is None else one
            for settings, one in zip(self._settings, self._results, strict=True)
        ]
        if not any(one.reason == self._reason for one in stages):
            self._reason = None  # they have ended by themselves in time
        stage = self._cause
        reason = reason or self._reason
        if reason is None and stage is None:
            stage = next((i for i, one in enumerate(stages) if not one.ok), None)
        return CompletedPipeline(
            stages,
            stage,
            reason=reason,
            stderr=stages[-1].stderr if self._merges else DEFAULT,
            duration=monotonic() - began[1],
            name=self._whole.name,
            timeout=self._whole.timeout,
        )

    def _conclude(
        self, began: tuple[float, float], cancelled: asyncio.CancelledError | None
    ) -> CompletedPipeline[Any]:
        for task in self._tasks:
            if not task.cancelled() and (failure := task.exception()) is not None:
                raise failure
        result = self._result(began)
        error = cancelled or self._failure(result)
        if error is None:
            return result
        try:
            if not isinstance(error, ProcessError):
                error.stages = result.stages  # type: ignore[attr-defined]
                error.stage = result.stage  # type: ignore[attr-defined]
                error.result = result  # type: ignore[attr-defined]
            raise error
        finally:
            del error

    def _failure(self, result: CompletedPipeline[Any]) -> BaseException | None:
        stage = result.stage
        if stage is not None and result.reason == "error" and result.error is not None:
            add_note(result.error, f"in stage {stage} of a pipeline")
            return result.error
        for one in result.stages:
            if one.returncode is None and one.pid is not None:
                not_ended = NotEnded(result, process_state(one.pid))
                not_ended.pid = one.pid
                return not_ended
        if result.reason in ("timeout", "idle"):
            return TimeoutExpired(result)
        if self._whole.check and not result.ok:
            return CalledProcessError(result)
        return None


@overload
async def pipeline(
    *commands: Command | Sequence[Path],
    merge_stderr: bool = ...,
    text: Literal[False] = ...,
    encoding: None = ...,
    errors: None = ...,
    on_output: BytesCallback | None = ...,
    on_line: BytesCallback | None = ...,
    **options: Unpack[RunOptions],
) -> CompletedPipeline[bytes]: ...
@overload
async def pipeline(
    *commands: Command | Sequence[Path],
    merge_stderr: bool = ...,
    text: Literal[True],
    encoding: str | None = ...,
    errors: str | None = ...,
    on_output: TextCallback | None = ...,
    on_line: TextCallback | None = ...,
    **options: Unpack[RunOptions],
) -> CompletedPipeline[str]: ...
@overload
async def pipeline(
    *commands: Command | Sequence[Path],
    merge_stderr: bool = ...,
    text: bool = ...,
    encoding: str | None = ...,
    errors: str | None = ...,
    on_output: Any = ...,
    on_line: Any = ...,
    **options: Unpack[RunOptions],
) -> CompletedPipeline[Any]: ...
async def pipeline(
    *commands: Any, merge_stderr: bool = False, **options: Any
) -> CompletedPipeline[Any]:
    """Run commands at the same time, each reading what the one before it writes. ::

        done = await aioproc.pipeline(
            aioproc.Command("git", "log", "--format=%an"),
            aioproc.Command("sort"),
            aioproc.Command("uniq", "-c"),
        )

    Between them are pipes of the system, no byte goes through this program. They end
    together: when time is up, on a cancellation, if one cannot be started or if a callback
    raises, all are ended with all that they have started, as `stop` says. One that merely
    fails ends nobody: the next one comes to the end of its input, and the one before it is
    ended by SIGPIPE when it writes, as in a shell. That is no failure but for the last stage.

    Args:
        *commands: Each a :class:`Command`, or a tuple or list of a program and its arguments.
            A Command's own options come first, where the place of its stage allows for them:
            `input` and `stdin` are for the first, `stdout` is for the last. Its `check` is
            about itself: a container of returncodes that are fine, or False for all of them.
            ``stderr=STDOUT`` of its own is as ``2>&1 |`` in a shell.
        merge_stderr: Whether all stages write their stderr into one pipe, which is
            ``result.stderr``. Else it is apart: ``result.stages[i].stderr``. Not on Windows.
        **options: As run()'s. `input`, `stdin`, `stdout` are for the two ends of the
            pipeline; `check`, `timeout`, `limiter` (one slot) and `name` for the whole;
            `idle_timeout` for the last stage; all others for each. `stderr` is a file for
            all of them; STDOUT is the stdout of the last (if that is PIPE, not on Windows).
            With `check`, True by default, a stage that fails raises. `on_output` and
            `on_line` hear the stdout of the last stage, and the stderr of all.

    Returns:
        A :class:`CompletedPipeline`: the stdout of the last stage, and in ``stages`` the
        results of all.

    Raises:
        CalledProcessError, TimeoutExpired, NotEnded: As run(). The error has ``stages``, the
            results, and ``stage``, which of them has failed, from 0, or None.
        OSError: One could not be started. It has ``stages`` and ``stage``, too.
        TypeError, ValueError: Arguments that cannot be taken; nothing has been started.
        NotImplementedError: Windows does not have it, see above.
    """
    return await _Pipeline(commands, merge_stderr, options).run()
