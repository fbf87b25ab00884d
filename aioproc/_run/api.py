"""run() and run_shell()."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, overload

from .attempts import perform
from .command import Command
from .options import Settings
from .result import CompletedProcess

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .typed import BytesCallback, Path, RunOptions, TextCallback


@overload
async def run(
    program: Path,
    *args: Path,
    text: Literal[False] = ...,
    encoding: None = ...,
    errors: None = ...,
    on_output: BytesCallback | None = ...,
    on_line: BytesCallback | None = ...,
    **options: Unpack[RunOptions],
) -> CompletedProcess[bytes]: ...
@overload
async def run(
    program: Path,
    *args: Path,
    text: Literal[True],
    encoding: str | None = ...,
    errors: str | None = ...,
    on_output: TextCallback | None = ...,
    on_line: TextCallback | None = ...,
    **options: Unpack[RunOptions],
) -> CompletedProcess[str]: ...
@overload
async def run(
    program: Path,
    *args: Path,
    text: bool = ...,
    encoding: str,
    errors: str | None = ...,
    on_output: TextCallback | None = ...,
    on_line: TextCallback | None = ...,
    **options: Unpack[RunOptions],
) -> CompletedProcess[str]: ...
@overload
async def run(
    program: Path,
    *args: Path,
    text: bool = ...,
    encoding: str | None = ...,
    errors: str,
    on_output: TextCallback | None = ...,
    on_line: TextCallback | None = ...,
    **options: Unpack[RunOptions],
) -> CompletedProcess[str]: ...
@overload
async def run(
    program: Path,
    *args: Path,
    text: bool,
    encoding: str | None = ...,
    errors: str | None = ...,
    on_output: Any = ...,
    on_line: Any = ...,
    **options: Unpack[RunOptions],
) -> CompletedProcess[Any]: ...
@overload
async def run(program: Command, **options: Any) -> CompletedProcess[Any]: ...
async def run(program: Any, *args: Any, **options: Any) -> CompletedProcess[Any]:
    """Run a command and return what has become of it.

    It always ends, leaves nothing behind of what it was told to end, and loses no byte that
    was written. Output is captured; a returncode other than 0 raises. ::

        done = await aioproc.run("git", "log", "-1", "--format=%H", cwd=repository)
        commit = done.text

    Cancelling it ends the command and all that it has started, as `stop` says; the
    CancelledError comes when that is done, with the result so far as its ``result``
    (:func:`partial_result`). A second cancellation leaves out what is left of the grace.

    Args:
        program: What to run: str, bytes or path-like, or a :class:`Command`, whose options
            those that are given here replace. A str without a directory is looked for in
            PATH, that of `env` if given; a path-like names a file, ``Path("x")`` being
            ``./x``. With a directory it is relative to the caller's, whatever `cwd` is.
        *args: Its arguments, one by one.
        input: What goes into stdin, which is closed after it: bytes; str (with text); a
            file opened for reading, read in a thread; an iterable or asynchronous iterable
            of chunks, taken as the child reads them. What a pipe, a socket or a terminal has,
            opened in binary mode, goes in as it comes (on Windows: a pipe). Without it stdin
            is empty. A child that does not read all of it is no error.
        stdin: DEVNULL (default), None (inherit ours), a file descriptor, an open file or a
            path-like, which is opened for reading. Not together with input.
        stdout: PIPE (default: capture), DEVNULL, None (inherit), a file descriptor, an open
            file or a path-like, which is opened for writing and emptied.
        stderr: The same; or STDOUT.
        text: Whether input and output are str. Newlines of all systems become ``\\n``.
        encoding: That of text, which it implies. Default: utf-8, on every system ("oem" is
            there for old programs on Windows).
        errors: What to do about bytes that are no text; implies text. Default: "replace",
            since an error would throw away the output of a command that has run.
        check: Whether a command that fails, by its returncode or by a signal, raises
            CalledProcessError; with False its result is returned. A timeout, and a program
            that cannot be started, raise in any case (in :func:`run_all` and
            :func:`run_many` they are results). A container of ints: these returncodes are
            no failure: ``check={0, 1}``.
        timeout: Seconds from the call, for everything: input, the child's life, callbacks.
            Then the command and all that it has started is ended, as `stop` says. With 0 or
            less nothing is started. A child that has ended in time is no timeout.
        idle_timeout: Seconds since something was written to a pipe that is captured.
        stop: Seconds between SIGTERM and SIGKILL when it has to be ended. Or steps, each a
            signal or "eof" (stdin is closed) and its seconds:
            ``[("eof", 2), (signal.SIGINT, 2), (signal.SIGTERM, 5)]``. A step ends when
            nobody is left; SIGKILL always follows if somebody is. On Windows SIGTERM is
            CTRL_BREAK_EVENT, and left out where that cannot be sent.
        drain: Seconds. When the child has ended, and somebody else has its pipes open (a
            process that it has left behind), what comes until then is waited for: counted
            from the last byte, and ten times that in all. A pipe that is still open then is
            no error: ``result.complete`` is False.
        leftovers: "leave" or "kill": what is to become of what a child that has ended by
            itself has started and left behind. "kill" ends it as `stop` says, when the
            pipes have ended or `drain` is over.
        tree: Whether what the child starts is ended with it. It is found by a session of
            the child's own, unless stdin is inherited or start_new_session=False; by its
            parents; by a variable AIOPROC_TREE in its environment; on Windows by a job
            (:doc:`Semantics </semantics>`, "Trees"). False: the child alone is ended.
        max_output: Bytes. So many are kept of each pipe, half of them from its beginning,
            half from its end; all is read. ``result.dropped`` says how many are left out.
        on_output: Called with ("stdout" or "stderr", data) for each piece as it comes: bytes,
            or str with text. If it returns an awaitable, that is awaited, and the child has
            to wait meanwhile. What it raises ends the command, and is raised.
        on_line: The same for each line, with its newline; the last may have none.
        cwd: The directory to run it in.
        env: All of its environment. Default: ours.
        env_update: Changes to that: ``{"A": "1", "B": None}`` sets A and removes B.
        name: Stands for the command in errors and logs.
        limiter: A :class:`Limiter`: the command waits for a slot of it first, which is part
            of `timeout`: if its turn does not come in time, TimeoutExpired is raised with
            nothing started (``error.result.pid`` is None). To time the command alone, use
            ``async with limiter:`` around a run() without it. If it cannot be started for want
            of descriptors, processes or memory, it waits for the end of others that have a slot.
        die_with_parent: Whether it is killed when this process ends, in whatever way. Default:
            in the main thread, where it can be had without a cost: on Linux with a child of
            our own, and on Windows with the native backend.
        **options: Those of :func:`create_subprocess_exec`: executable, close_fds, pass_fds,
            start_new_session, process_group, user, group, extra_groups, umask, preexec_fn,
            restore_signals, pipesize, startupinfo, creationflags; rlimits, nice, cpu_affinity,
            oom_score_adj, no_new_privs; capture_output=False for stdout=None, stderr=None.
            With pty=True or (rows, columns) the command runs on a terminal, at which nobody
            types; what it writes is captured as stdout, stderr is None, and a `stop` of
            seconds begins with SIGHUP. There is no input= then: use :func:`open_process`.

    Returns:
        A :class:`CompletedProcess`: returncode, stdout, stderr, and what else is known.

    Raises:
        CalledProcessError: It failed, and `check` says so. Its ``result`` has all.
        TimeoutExpired: Its time was up, be it `timeout` or `idle_timeout`; with all output
            so far. It is subprocess's and asyncio's, and so an OSError: catch it first.
        NotEnded: It could not be ended, not even by SIGKILL within 5 seconds.
        OSError: It could not be started: FileNotFoundError, PermissionError...
        TypeError, ValueError: Arguments that cannot be taken; nothing has been started.
        UnicodeDecodeError: With errors="strict". The output is in ``partial_result(error)``.

    Source: subprocess.run in Python's documentation, whose words have the same meaning;
    what differs is the defaults of check, stdin, stdout and stderr.
    """
    if isinstance(program, Command):
        if args:
            raise TypeError("a Command has its arguments: run(command, **options)")
        program, args, options = program.program, program.args, {**program.options, **options}
    return await perform(Settings("run", program, args, **options))


@overload
async def run_shell(
    command: str | bytes,
    *,
    shell: Path | None = ...,
    text: Literal[False] = ...,
    encoding: None = ...,
    errors: None = ...,
    on_output: BytesCallback | None = ...,
    on_line: BytesCallback | None = ...,
    **options: Unpack[RunOptions],
) -> CompletedProcess[bytes]: ...
@overload
async def run_shell(
    command: str | bytes,
    *,
    shell: Path | None = ...,
    text: Literal[True],
    encoding: str | None = ...,
    errors: str | None = ...,
    on_output: TextCallback | None = ...,
    on_line: TextCallback | None = ...,
    **options: Unpack[RunOptions],
) -> CompletedProcess[str]: ...
@overload
async def run_shell(
    command: str | bytes,
    *,
    shell: Path | None = ...,
    text: bool = ...,
    encoding: str,
    errors: str | None = ...,
    on_output: TextCallback | None = ...,
    on_line: TextCallback | None = ...,
    **options: Unpack[RunOptions],
) -> CompletedProcess[str]: ...
@overload
async def run_shell(
    command: str | bytes,
    *,
    shell: Path | None = ...,
    text: bool = ...,
    encoding: str | None = ...,
    errors: str,
    on_output: TextCallback | None = ...,
    on_line: TextCallback | None = ...,
    **options: Unpack[RunOptions],
) -> CompletedProcess[str]: ...
@overload
async def run_shell(
    command: str | bytes,
    *,
    shell: Path | None = ...,
    text: bool,
    encoding: str | None = ...,
    errors: str | None = ...,
    on_output: Any = ...,
    on_line: Any = ...,
    **options: Unpack[RunOptions],
) -> CompletedProcess[Any]: ...
async def run_shell(command: Any, *, shell: Any = None, **options: Any) -> CompletedProcess[Any]:
    """Run a command line in a shell, as :func:`run` does with a program.

    Quoting is the caller's: :func:`shlex.quote` (not for Windows).

    Args:
        command: What the shell is to do: str or, not on Windows, bytes.
        shell: The shell: a name, looked for in PATH, or a path. Default: /bin/sh; on Windows
            cmd.exe, by %COMSPEC%. It gets the command by ``-c``; PowerShell ("powershell",
            "pwsh") by ``-Command``.
        **options: As run()'s.

    Returns:
        As run().

    Raises:
        ValueError: `executable` was given in place of `shell`.
        CalledProcessError, TimeoutExpired, NotEnded, OSError, TypeError: As run().
    """
    if options.get("executable") is not None:
        raise ValueError("executable may not be given: use shell=")
    settings = Settings("run_shell", command, (), is_shell=True, shell_program=shell, **options)
    return await perform(settings)


def _signature(first: list[inspect.Parameter]) -> inspect.Signature:
    """With all keywords: the function itself only hands them on."""
    own = inspect.signature(Settings.__init__).parameters.values()
    left_out = ("is_shell", "shell_program")
    first += [one for one in own if one.kind is one.KEYWORD_ONLY and one.name not in left_out]
    first.append(inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(first)


_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_any: Any = run
_any.__signature__ = _signature(
    [
        inspect.Parameter("program", _POSITIONAL),
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
    ],
)
_any = run_shell
_any.__signature__ = _signature(
    [
        inspect.Parameter("command", _POSITIONAL),
        inspect.Parameter("shell", inspect.Parameter.KEYWORD_ONLY, default=None),
    ],
)
