"""open_process(): asyncio's Process, with run()'s way of starting and ending it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import warnings
from collections.abc import Callable, Generator
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from . import _api
from ._asyncio.process import Process, TextProcess
from ._asyncio.protocol import StreamProtocol
from ._backends.base import logger
from ._messages import discreet
from ._run.options import (
    check_streams,
    judged_program,
    judged_string,
    open_paths,
    updated,
    without_paths,
)
from ._spec.advice import REFUSALS, explain_failure, explain_refusal, refuse_shell, refuse_unknown
from ._spec.limits import die_where_honest
from ._spec.spec import SpawnSpec
from ._text import check_pieces, judged_text
from ._trees.steps import GRACE, judged_steps

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._run.typed import OpenOptions, Path

PIPE = subprocess.PIPE

P = TypeVar("P", bound=Process)

#: What open_process() itself takes.
_OWN = ("stdin", "stdout", "stderr", "text", "encoding", "errors", "stop", "env_update", "name")
#: What to do in place of keywords of other functions.
_INSTEAD = {
    "bufsize": "leave it out: streams have buffers of their own",
    "capture_output": "use stdout=PIPE, stderr=PIPE",
    "check": "look at the process's returncode after wait()",
    "drain": "read to the end of stdout, or leave the block",
    "idle_timeout": "use read_until(..., timeout=), or run()",
    "input": "write to process.stdin, or use communicate(input) or run()",
    "leftovers": "all that is left is ended with the block",
    "limit": "lines may have any length: give it to read_until()",
    "loop": "the process belongs to the loop that runs",
    "on_line": "use process.lines(), or run()",
    "on_output": "use process.chunks(), or run()",
    "shell": 'use open_process("sh", "-c", command)',
    "timeout": "use wait(timeout=), read_until(..., timeout=) or asyncio.timeout()",
    "universal_newlines": "use text=True",
}


class _Protocol(StreamProtocol):
    """Logs the end of the process."""

    #: What is to be said of it.
    described = ""
    began = 0.0

    def process_exited(self) -> None:
        if self._transport is not None and logger.isEnabledFor(logging.INFO):
            code = self._transport.get_returncode()
            logger.info(
                "pid %s: %s: %s, returncode %s after %.3f s",
                self._transport.get_pid(),
                self.described,
                "signal" if code is not None and code < 0 else "exit",
                code,
                monotonic() - self.began,
            )
        super().process_exited()


class ProcessOpener(Generic[P]):
    """What open_process() returns: enter it by ``async with``, or await it; once."""

    def __init__(
        self,
        process_class: type[P],
        command: tuple[Any, ...],
        streams: tuple[Any, Any, Any],
        options: dict[str, Any],
        *,
        name: str | None,
        stop: Any,
        text: tuple[str, str, str] | None,
    ) -> None:
        self._class = process_class
        self._command = command
        self._streams = streams
        self._options = options
        self._name = name
        terminal = bool(options.get("pty"))
        if terminal and streams == (PIPE, PIPE, None):
            streams = self._streams = (None, None, None)  # they are the default's
        self._steps = judged_steps(stop, terminal)
        self._text = text
        self._has_paths = check_streams(streams, "write to process.stdin")
        # All is judged before any file is opened.
        self._spec = self._build(without_paths(streams))
        self._process: P | None = None
        self._was_started = False

    def __del__(self, _warn: Callable[..., Any] = warnings.warn) -> None:
        # As Python says it of a coroutine. (Of what was refused there is no such attribute.)
        if not getattr(self, "_was_started", True):
            _warn(
                f"open_process({self._command[0]!r:.60}, ...) was never entered: "
                "write 'async with' or 'await' before it",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )

    def __getattr__(self, name: str) -> Any:
        text = f"{type(self).__name__!r} object has no attribute {name!r}"
        if not name.startswith("_") and hasattr(self._class, name):
            text += ", but the process has: 'async with open_process(...) as process'"
        raise AttributeError(text)

    def _build(self, streams: list[Any]) -> SpawnSpec:
        stdin, stdout, stderr = streams
        try:
            return SpawnSpec.build(
                self._command, stdin=stdin, stdout=stdout, stderr=stderr, **self._options
            )
        except REFUSALS as error:
            if isinstance(error, TypeError):
                refuse_unknown("open_process", self._options, _OWN, _INSTEAD)
            explain_refusal(error, self._command, self._options, "open_process")
            raise

    async def _open(self) -> P:
        if self._was_started:
            raise RuntimeError("it has been started: call open_process() for another process")
        self._was_started = True
        loop = asyncio.get_running_loop()
        opened: list[Any] = []
        began = monotonic()
        protocol = _Protocol(None, loop)
        protocol.described = discreet(self._spec.user_args, self._name)
        protocol.began = began
        try:
            spec = self._spec
            if self._has_paths:
                spec = self._build(open_paths(self._streams, opened))
            transport = await _api.open_transport(spec, protocol, loop)
        except OSError as error:
            if not opened:
                explain_failure(error, self._spec)
            raise
        finally:
            for file in opened:
                file.close()
        transport.name = self._name
        process = self._class(transport, protocol, loop)
        process._steps = self._steps
        process._peeks = True
        if isinstance(process, TextProcess):
            assert self._text is not None
            process._text = self._text
        what = spec.user_args if self._name is None else repr(self._name)
        logger.debug("pid %s: started: %s", process.pid, what)
        return process

    def __await__(self) -> Generator[Any, None, P]:
        return self._open().__await__()

    async def __aenter__(self) -> P:
        self._process = await self._open()
        return self._process

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        await self._process.__aexit__(exc_type, exc, traceback)


@overload
def open_process(
    program: Path,
    *args: Path,
    text: Literal[False] = ...,
    encoding: None = ...,
    errors: None = ...,
    **options: Unpack[OpenOptions],
) -> ProcessOpener[Process]: ...
@overload
def open_process(
    program: Path,
    *args: Path,
    text: Literal[True],
    encoding: str | None = ...,
    errors: str | None = ...,
    **options: Unpack[OpenOptions],
) -> ProcessOpener[TextProcess]: ...
@overload
def open_process(
    program: Path,
    *args: Path,
    text: bool = ...,
    encoding: str,
    errors: str | None = ...,
    **options: Unpack[OpenOptions],
) -> ProcessOpener[TextProcess]: ...
@overload
def open_process(
    program: Path,
    *args: Path,
    text: bool = ...,
    encoding: str | None = ...,
    errors: str,
    **options: Unpack[OpenOptions],
) -> ProcessOpener[TextProcess]: ...
@overload
def open_process(
    program: Path,
    *args: Path,
    text: bool,
    encoding: str | None = ...,
    errors: str | None = ...,
    **options: Unpack[OpenOptions],
) -> ProcessOpener[Any]: ...
def open_process(
    program: Any,
    *args: Any,
    stdin: Any = PIPE,
    stdout: Any = PIPE,
    stderr: Any = None,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    stop: Any = GRACE,
    tree: bool = True,
    cwd: Any = None,
    env: Any = None,
    env_update: Any = None,
    name: str | None = None,
    **options: Any,
) -> ProcessOpener[Any]:
    """Start a process to talk to: a server, an interpreter, a watcher.

    ::

        async with aioproc.open_process("bc", "-q", text=True) as calculator:
            calculator.stdin.write("6 * 7\\n")
            print(await calculator.stdout.readline())

    The block is left, in whatever way, with the process and all that it has started ended, as
    `stop` says, and reaped; what had been read stays to be taken. ``await open_process(...)``
    gives the process as well: it is ended by its ``stop()`` then, or by ``async with`` it.

    Args:
        program: As :func:`run`'s.
        *args: Its arguments, one by one.
        stdin: PIPE (default), DEVNULL, None (inherit ours), a file descriptor, an open file
            or a path-like, which is opened for reading.
        stdout: PIPE (default), and what else stdin can be; a path is opened for writing and
            emptied.
        stderr: None (default: ours), what else stdout can be, or STDOUT. With PIPE it has to
            be read: by ``lines()`` or ``chunks()``, or by a task of its own.
        text: Whether the streams are of str. Newlines of all systems become ``\\n``.
        encoding: That of text, which it implies. Default: utf-8.
        errors: What to do about bytes that are no text; implies text. Default: "replace".
        stop: How it is ended. Seconds between SIGTERM and SIGKILL, stdin being closed first;
            or steps: ``[("eof", 5), (signal.SIGTERM, 5)]`` gives a server that ends with its
            stdin 5 seconds to finish its work. What it writes meanwhile is read and kept, up
            to 64 MiB of each stream.
        tree: Whether what the process starts is ended with it: see run().
        cwd: The directory to run it in.
        env: All of its environment. Default: ours.
        env_update: Changes to that: ``{"A": "1", "B": None}`` sets A and removes B.
        name: Stands for the command in errors, warnings and logs.
        **options: Those of :func:`create_subprocess_exec`; die_with_parent has run()'s
            default. With pty=True or (rows, columns) the
            process has a terminal in place of pipes: stdin is what is typed there, stdout what
            it shows, stderr None, and `stop`'s seconds are half between SIGHUP and SIGTERM.

    Returns:
        An asynchronous context manager of the :class:`Process`, with text a
        :class:`TextProcess`; it can be awaited, too.

    Raises:
        TypeError, ValueError: Arguments that cannot be taken; at the call.
        OSError: It could not be started: FileNotFoundError, PermissionError... When it is
            entered.

    Source: the name and the form are trio's and anyio's.
    """
    if not args and isinstance(program, (list, tuple)):
        raise TypeError(
            "open_process() takes the program and its arguments one by one: open_process(*command)"
        )
    refuse_shell("open_process", options, _INSTEAD["shell"])
    if name is not None:
        judged_string("name", name)
    judged = None
    if text or encoding is not None or errors is not None:
        judged = judged_text(encoding, errors)
        check_pieces(judged[0], "streams need")
    if env_update is not None:
        env = updated(env, env_update)
    command = (judged_program(program, cwd, options), *args)
    options.update(cwd=cwd, env=env, tree=bool(tree))
    die_where_honest(options)
    return ProcessOpener(
        Process if judged is None else TextProcess,
        command,
        (stdin, stdout, stderr),
        options,
        name=name,
        stop=stop,
        text=judged,
    )
