"""What has become of a command: CompletedProcess, and the errors that carry one."""

from __future__ import annotations

import asyncio
import reprlib
import signal
import subprocess
import sys
from collections.abc import Callable, Container
from typing import Any, Literal, TypeVar

from .._backends.base import UNKNOWN_EXIT, ResourceUsage
from .._messages import (
    MOST_OF_OUTPUT,
    escaped,
    label,
    lenient,
    shortened,
    status,
    translate_newlines,
)

Reason = Literal["exit", "signal", "timeout", "idle", "cancelled", "error"]
Forced = Literal["stop", "kill"]

T = TypeVar("T")

#: Bytes or characters of each output in a repr.
MOST_OF_REPR = 60


class CompletedProcess(subprocess.CompletedProcess[T]):
    """What has become of a command that was run: :class:`subprocess.CompletedProcess`, and more.

    ``CompletedProcess[bytes]`` is one whose output is bytes, ``CompletedProcess[str]`` one
    whose output is text. It can be pickled and copied, and is equal to itself only. Tests may
    make one by hand: ``CompletedProcess(["git", "status"], 0, b"clean\\n", b"")``, with other
    attributes as keywords; `accepted` are the returncodes that are `ok`, `encoding` and `errors`
    are for the `text` of bytes, and `timeout` is the seconds that were up.

    Attributes:
        args: The command, as it was given: a sequence, or the line of a shell.
        returncode: As asyncio's: the exit code; on POSIX ``-N`` for a child that signal N
            ended, and :data:`aioproc.UNKNOWN_EXIT` where nobody knows; on Windows
            0..0xFFFFFFFF. None if no child was started, or if it could not be ended.
        stdout: What was captured, up to the end also where that came early. None if it
            was not captured.
        stderr: The same.
        reason: Why it has ended: ``"exit"``, of its own accord; ``"signal"``, by one that
            was not ours; ``"timeout"``, ``"idle"`` or ``"cancelled"``, we ended it, since
            its time was up, it wrote nothing for too long, or the caller was cancelled;
            ``"error"``, it could not be started, or we ended it because of an error, both
            of which is in ``error``.
        duration: Seconds from the call to the result, waiting for a turn included.
        pid: Of the child. By now it may be another's. None if none was started.
        complete: False if a pipe was still open when reading ended, since somebody else
            holds it: there may be more output than was read.
        dropped: Bytes that were left out in the midst of stdout and of stderr because of
            ``max_output``.
        forced: What it took to end it: None, nothing, it ended by itself; ``"stop"``, it
            ended when it was told to; ``"kill"``, it had to be killed. On Windows most
            programs cannot be told.
        left: Pids of what the command had started, and could not be ended. Empty if all
            was; None where nobody has looked, or could: a normal end that leaves the
            leftovers alone, or Windows without a Job.
        error: The exception for the reason ``"error"``, else None.
        name: What stands for the command in messages, or None.
        index: Which of the commands of run_many() or run_all() it was, from 0; else None.
    """

    # Wider than the base's: None is there, but rarely, and checks for it would be tedious
    # (as typeshed says of stdout).
    returncode: int | Any
    index: int | None = None

    def __init__(
        self,
        args: Any,
        returncode: int | None,
        stdout: T | None = None,
        stderr: T | None = None,
        *,
        reason: Reason = "exit",
        duration: float = 0.0,
        rusage: ResourceUsage | Callable[[], ResourceUsage | None] | None = None,
        pid: int | None = None,
        complete: bool = True,
        dropped: tuple[int, int] = (0, 0),
        forced: Forced | None = None,
        left: list[int] | None = None,
        error: BaseException | None = None,
        name: str | None = None,
        accepted: Container[int] = (0,),
        encoding: str = "utf-8",
        errors: str = "replace",
        timeout: float | None = None,
    ) -> None:
        """Made by this library, and by hand in tests.

        Args:
            rusage: What the child has used, or what will tell: few ask for it.
            accepted: The returncodes that are `ok`.
            encoding: Of bytes, for `text` and messages.
            errors: What `text` does about bytes that cannot be decoded.
            timeout: The seconds that were up, if `reason` is "timeout" or "idle".
        """
        # For type checkers it is an int, see above.
        code: Any = returncode
        super().__init__(args, code, stdout, stderr)
        self.reason: Reason = reason
        self.duration = duration
        self._rusage = rusage
        self.pid = pid
        self.complete = complete
        self.dropped = dropped
        self.forced: Forced | None = forced
        self.left = left
        self.error = error
        self.name = name
        self._accepted = accepted
        self._encoding = encoding
        self._errors = errors
        self._timeout = timeout

    @property
    def rusage(self) -> ResourceUsage | None:
        """A :class:`aioproc.ResourceUsage`: what the child has used. None where the system did
        not tell."""
        usage = self._rusage
        if callable(usage):
            usage = self._rusage = usage()
        return usage

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rusage": self.rusage}

    @property
    def signal(self) -> signal.Signals | int | None:
        """The signal that has ended the child, whoever sent it; else None.

        An int if Python has no name for it (real-time signals). Always None on Windows.
        """
        code = self.returncode
        if code is None or code >= 0 or code == UNKNOWN_EXIT:
            return None
        try:
            return signal.Signals(-code)
        except ValueError:
            return -int(code)

    @property
    def ok(self) -> bool:
        """Whether it ended of its own accord, with a returncode that the caller accepts.

        That is 0, if run() was not told otherwise by ``check``. What had to be ended is
        never ok, even if it returned 0 then.
        """
        return self.reason in ("exit", "signal") and self.returncode in self._accepted

    @property
    def text(self) -> str:
        r"""stdout as text, without its last newline. Empty if it was not captured.

        Bytes are decoded as run() was told (utf-8, "replace"), and ``\r\n`` and ``\r``
        become ``\n``, as :mod:`subprocess` does it.
        """
        stdout: Any = self.stdout
        if stdout is None:
            return ""
        if isinstance(stdout, str):
            text = stdout
        else:
            text = bytes(stdout).decode(self._encoding, self._errors)
            text = translate_newlines(text)
        return text.removesuffix("\n")

    def check_returncode(self) -> None:
        """Does nothing if it is ok.

        Raises:
            TimeoutExpired: The reason is "timeout" or "idle".
            CalledProcessError: It is "exit", "signal" or "cancelled".
            BaseException: It is "error": the `error`.
        """
        if self.ok:
            return
        if self.error is not None and self.reason == "error":
            raise self.error
        if self.reason in ("timeout", "idle"):
            raise TimeoutExpired(self)
        raise CalledProcessError(self)

    def _label(self) -> str:
        """Which command it was, on one line."""
        return label(self.args, self.name)

    def _shown(self) -> str:
        # With a name, the command may be a secret.
        if self.name is None:
            return f"args={shortened(repr(self.args))}"
        return f"name={shortened(repr(self.name))}"

    @reprlib.recursive_repr()  # an error may hold the result that holds it
    def __repr__(self) -> str:
        info = [self._shown(), f"returncode={self.returncode!r}"]
        if self.reason != "exit":
            info.append(f"reason={self.reason!r}")
        for stream in ("stdout", "stderr"):
            output = getattr(self, stream)
            if output is not None:
                info.append(f"{stream}={_short_output(output)}")
        info.append(f"duration={self.duration:.3f}")
        if not self.complete:
            info.append("complete=False")
        for attribute in ("forced", "left", "error"):
            value = getattr(self, attribute)
            if value:
                info.append(f"{attribute}={shortened(repr(value))}")
        return f"{type(self).__name__}({', '.join(info)})"


class ProcessError(subprocess.SubprocessError):
    """A command did not do what it was run for.

    Its text is a line (which command, the reason, how long it took), and the last 2 KiB of
    stderr, or of stdout where stderr is empty. With a ``name`` for the command its
    arguments are not shown. It can be pickled and copied.

    Attributes:
        result: The :class:`CompletedProcess`: all that is known, the output so far
            included.
        stages: Of a :func:`pipeline`: the results of its stages; else None.
        stage: Which of them has failed, from 0; None if it was none alone.
    """

    stages: list[CompletedProcess[Any]] | None = None
    stage: int | None = None

    def __init__(self, result: CompletedProcess[Any]) -> None:
        self.result = result
        self.args = (result,)
        stages: list[CompletedProcess[Any]] | None = getattr(result, "stages", None)
        if stages is not None:
            self.stages, self.stage = stages, result.stage  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception's own calls the class with args, which suits neither all of our bases
        # nor all classes derived from ours. And args have to be state: they are part of a
        # cycle if result.error is this error.
        return _blank, (type(self),), {**self.__dict__, "args": self.args}

    def __setstate__(self, state: Any) -> None:
        # PyPy's own would put args into __dict__.
        for name, value in state.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        result = self.result
        line = f"{result._label()}: {self._outcome()}"
        if not result.complete:
            line += "; the output is incomplete, since a pipe was still open"
        return line + _tail(result)

    def _outcome(self) -> str:
        """What has become of it, as the rest of a line."""
        return _outcome(self.result)


class CalledProcessError(ProcessError, subprocess.CalledProcessError):
    """A command returned what is not accepted, or was ended by a signal.

    It is a :exc:`subprocess.CalledProcessError`, too.

    Attributes:
        result: The :class:`CompletedProcess`.
        returncode: Its returncode.
        cmd: Its args.
        output: Its stdout; ``stdout`` is the same.
        stderr: Its stderr.
    """

    def __init__(self, result: CompletedProcess[Any]) -> None:
        subprocess.CalledProcessError.__init__(
            self, result.returncode, result.args, result.stdout, result.stderr
        )
        ProcessError.__init__(self, result)


if sys.version_info >= (3, 11):
    _TimeoutError = TimeoutError  # asyncio's is the same
else:

    class _TimeoutError(asyncio.TimeoutError, TimeoutError):
        """Both, as it is on later Pythons."""


class TimeoutExpired(ProcessError, subprocess.TimeoutExpired, _TimeoutError):
    """A command's time was up, and it has been ended.

    It is a :exc:`subprocess.TimeoutExpired`, an :exc:`asyncio.TimeoutError` and a
    :exc:`TimeoutError`, and by that an :exc:`OSError`: catch it before OSError, which is
    what a command raises that cannot be started. Its ``errno`` is None.

    Attributes:
        result: The :class:`CompletedProcess`.
        timeout: Seconds: what it was given, or, with the reason "idle", how long it was
            allowed to write nothing.
        cmd: The result's args.
        output: Its stdout so far; ``stdout`` is the same.
        stderr: Its stderr so far.
    """

    def __init__(self, result: CompletedProcess[Any], timeout: float | None = None) -> None:
        if timeout is None:
            timeout = result.duration if result._timeout is None else result._timeout
        subprocess.TimeoutExpired.__init__(
            self, result.args, timeout, result.stdout, result.stderr
        )
        ProcessError.__init__(self, result)
        self.args = (result, timeout)

    def _outcome(self) -> str:
        return _outcome(self.result, self.timeout)


class NotEnded(ProcessError):
    """A child could not be ended, not even by SIGKILL, and is still there.

    In most cases it hangs in the kernel (a file system that does not answer), and ends
    when that lets it go. It is reaped then, nobody needs to wait for it.

    Attributes:
        result: The :class:`CompletedProcess`; its returncode is None.
        pid: Of the child.
        state: The letter of its state, as ps shows it, such as ``"D"``: it waits in the
            kernel. None where it is not known.
    """

    def __init__(self, result: CompletedProcess[Any], state: str | None = None) -> None:
        super().__init__(result)
        self.pid = result.pid
        self.state = state
        self.args = (result, state)

    def _outcome(self) -> str:
        state = "" if self.state is None else f" (state {self.state})"
        return f"{super()._outcome()}; pid {self.pid} could not be killed{state}"


def partial_result(error: BaseException) -> CompletedProcess[Any] | None:
    """What is known of the command that an exception has ended.

    For the :exc:`asyncio.CancelledError` of a cancelled run, and for what became of it on
    its way: the TimeoutError of :func:`asyncio.timeout`, an exception group. ::

        try:
            async with asyncio.timeout(60):
                await aioproc.run("make")
        except TimeoutError as error:
            result = aioproc.partial_result(error)
            if result is not None:
                print(result.text)

    Args:
        error: Any exception.

    Returns:
        The first result that is found: the exception's own, or one of the exceptions in
        a group, then of its ``__cause__`` and its ``__context__``, and theirs. None if
        there is none.
    """
    stack: list[BaseException | None] = [error]
    seen: set[int] = set()
    while stack:
        one = stack.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        result = getattr(one, "result", None)
        if isinstance(result, CompletedProcess):
            return result
        stack += (one.__context__, one.__cause__)
        # By the attribute: on Python 3.10 there are groups of other makers only.
        inner = getattr(one, "exceptions", None)
        if isinstance(inner, (tuple, list)):
            stack += (other for other in reversed(inner) if isinstance(other, BaseException))
    return None


def _blank(cls: type[ProcessError]) -> ProcessError:
    """What is unpickled, before its state is put in."""
    return cls.__new__(cls)


# -- the parts of a message


def _outcome(result: CompletedProcess[Any], timeout: float | None = None) -> str:
    duration = _seconds(result.duration)
    reason = result.reason
    how = status(result.returncode)
    if reason in ("timeout", "idle"):
        limit = f"{result.duration if timeout is None else timeout:g} s"
        said = f"timed out after {limit}" + (" without output" if reason == "idle" else "")
    elif reason == "cancelled":
        said = f"cancelled after {duration}"
    elif reason == "error":
        error = result.error
        said = "failed" if error is None else type(error).__name__
        # The text of one of ours may be what is being made.
        if error is not None and not isinstance(error, ProcessError):
            said += f": {shortened(escaped(str(error)))}"
        said += f" after {duration}"
    elif result.signal is not None:
        return f"killed by {how} after {duration}"
    else:
        return f"{how or 'still running'} after {duration}"
    return f"{said} ({how})" if how else said


def _seconds(duration: float) -> str:
    return f"{duration:.2f} s" if duration >= 0.1 else f"{duration:.3f} s"


def _tail(result: CompletedProcess[Any]) -> str:
    """The end of what it has said of its failure, on lines of its own."""
    streams = zip(("stderr", "stdout"), reversed(result.dropped), strict=True)
    for stream, dropped in streams:
        output = getattr(result, stream)
        if not output:
            continue
        end = output[-MOST_OF_OUTPUT:]
        cut = len(output) > MOST_OF_OUTPUT
        if isinstance(end, str):
            text, unit = end, "characters"
        else:
            text, unit = lenient(bytes(end), result._encoding, cut), "bytes"
            text = translate_newlines(text)
        text = text.rstrip()
        if not text:
            continue
        hints = []
        if cut:
            hints.append(f"the last {len(end)} of {len(output)} {unit}")
        if dropped:
            hints.append(f"{dropped} bytes were dropped by max_output")
        hint = f"\n[{stream}: {'; '.join(hints)}]" if hints else ""
        return f"{hint}\n{escaped(text, keep=chr(10) + chr(9))}"
    return ""


def _short_output(output: Any) -> str:
    if not isinstance(output, (bytes, str)) or len(output) <= MOST_OF_REPR:
        return shortened(repr(output))
    unit = "bytes" if isinstance(output, bytes) else "characters"
    return f"<{len(output)} {unit}: {output[:MOST_OF_REPR]!r}...>"
