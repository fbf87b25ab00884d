"""The public functions."""

from __future__ import annotations

import asyncio
import errno
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from . import _backends
from ._asyncio.pipes import logger
from ._asyncio.process import Process
from ._asyncio.protocol import StreamProtocol
from ._asyncio.transport import SubprocessTransport
from ._backends.base import TEXT_BUSY_PAUSES, Child
from ._backends.watcher import crowded
from ._notes import add_note
from ._spec.advice import REFUSALS, explain_failure, explain_refusal, refuse_unknown
from ._spec.spec import SpawnSpec, Stream, StrOrBytesPath
from ._trees import spawn, tree_of

P = TypeVar("P", bound=asyncio.SubprocessProtocol)

PIPE = asyncio.subprocess.PIPE


def _value_error(text: str, advice: str) -> ValueError:
    error = ValueError(text)
    add_note(error, advice)
    return error


def _refuse_text(
    shell: bool,
    must_be_shell: bool,
    universal_newlines: bool,
    bufsize: int,
    encoding: str | None,
    errors: str | None,
    text: bool | None,
) -> None:
    """asyncio's own refusals, in its words."""
    decode = "streams are of bytes: decode() what is read, encode() what is written"
    if universal_newlines:
        raise _value_error("universal_newlines must be False", decode)
    if bool(shell) != must_be_shell:
        other = "exec" if must_be_shell else "shell"
        raise _value_error(f"shell must be {must_be_shell}", f"use create_subprocess_{other}()")
    if bufsize != 0:
        advice = "leave it out: streams have buffers of their own"
        raise _value_error("bufsize must be 0", advice)
    if text:
        raise _value_error("text must be False", decode)
    if encoding is not None:
        raise _value_error("encoding must be None", decode)
    if errors is not None:
        raise _value_error("errors must be None", decode)


def _exec_spec(
    function: str,
    program: StrOrBytesPath,
    args: tuple[StrOrBytesPath, ...],
    /,
    *,
    universal_newlines: bool = False,
    shell: bool = False,
    bufsize: int = 0,
    encoding: str | None = None,
    errors: str | None = None,
    text: bool | None = None,
    **kwds: Any,
) -> SpawnSpec:
    if universal_newlines or shell or bufsize or text or not (encoding is errors is None):
        _refuse_text(shell, False, universal_newlines, bufsize, encoding, errors, text)
    try:
        return SpawnSpec.build((program, *args), **kwds)
    except REFUSALS as error:
        if isinstance(error, TypeError):
            refuse_unknown(function, kwds)
        explain_refusal(error, (program, *args), kwds)
        raise


def _shell_spec(
    function: str,
    cmd: str | bytes,
    /,
    *,
    universal_newlines: bool = False,
    shell: bool = True,
    bufsize: int = 0,
    encoding: str | None = None,
    errors: str | None = None,
    text: bool | None = None,
    **kwds: Any,
) -> SpawnSpec:
    if not isinstance(cmd, (bytes, str)):
        advice = "for a program and its arguments use create_subprocess_exec(*command)"
        raise _value_error("cmd must be a string", advice)
    _refuse_text(shell, True, universal_newlines, bufsize, encoding, errors, text)
    try:
        return SpawnSpec.build(cmd, shell=True, **kwds)
    except REFUSALS as error:
        if isinstance(error, TypeError):
            refuse_unknown(function, kwds)
        explain_refusal(error, (cmd,), kwds)
        raise


def _give_up(child: Child, spec: SpawnSpec) -> None:
    """Ends a child that nobody gets, with what it may have started by now."""
    if spec.tree and child.error is None:
        tree_of(child, spec).kill_at_once()
    child.abandon()


async def _spawn(spec: SpawnSpec, loop: asyncio.AbstractEventLoop) -> Child:
    for pause in (*TEXT_BUSY_PAUSES, None):
        try:
            if crowded:
                turn = _backends.current().turn(loop)
                if turn is not None:
                    await turn
            child = spawn(spec, loop)
            try:
                if child.started is not None:
                    await child.started
                else:
                    # A spawn is a point where others run and a cancellation arrives,
                    # whatever the backend.
                    await asyncio.sleep(0)
            except BaseException:
                _give_up(child, spec)
                raise
            return child
        except OSError as error:
            if error.errno != errno.ETXTBSY or pause is None:
                raise
        await asyncio.sleep(pause)
    raise AssertionError("not reached")


def _described(spec: SpawnSpec) -> tuple[str, StrOrBytesPath]:
    """What is about to happen, and the program's name, in asyncio's words."""
    if isinstance(spec.user_args, (str, bytes)):
        return f"run shell command {spec.user_args!r}", spec.user_args
    program: StrOrBytesPath = spec.user_args[0]
    return f"execute program {program!r}", program


def _streams_described(spec: SpawnSpec) -> str:
    if spec.terminal is not None:
        return f" pty={spec.terminal}"
    stdin, stdout, stderr = (
        None if source is None else "<pipe>" if source == PIPE else str(source)
        for source in spec.stdio
    )
    text = "" if stdin is None else f" stdin={stdin}"
    if spec.stderr_to_stdout:
        return text + (" stderr=<stdout>" if stdout is None else f" stdout=stderr={stdout}")
    text += "" if stdout is None else f" stdout={stdout}"
    return text + ("" if stderr is None else f" stderr={stderr}")


async def open_transport(
    spec: SpawnSpec, protocol: asyncio.SubprocessProtocol, loop: asyncio.AbstractEventLoop
) -> SubprocessTransport:
    debug = loop.get_debug()
    if debug:
        # Not the arguments: they may hold secrets, and be long.
        what, program = _described(spec)
        logger.debug("%s%s", what, _streams_described(spec))
    child = await _spawn(spec, loop)
    transport = None
    try:
        transport = SubprocessTransport(loop, protocol, child, spec)
        if debug:
            logger.debug("process %r created: pid %s", program, child.pid)
        transport._start()
        if debug:
            logger.info("%s: %r", what, transport)
        return transport
    except BaseException:
        # The loop cannot watch one more descriptor, say, or Ctrl-C.
        if transport is None:
            _give_up(child, spec)
        else:
            if transport.tree is not None:
                transport.tree.kill_at_once()
            transport.close()
        raise


async def _open_process(spec: SpawnSpec, limit: int | None) -> Process:
    loop = asyncio.get_running_loop()
    protocol = StreamProtocol(limit, loop)
    transport = await open_transport(spec, protocol, loop)
    try:
        return Process(transport, protocol, loop)
    except BaseException:  # Ctrl-C
        transport.close()
        raise


async def create_subprocess_exec(
    program: StrOrBytesPath,
    *args: StrOrBytesPath,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    limit: int | None = None,
    **kwds: Any,
) -> Process:
    """Start a program, and return its process.

    It returns once the program has begun (its exec has worked). With the native backends of
    Linux and Windows the event loop goes on meanwhile; elsewhere, and with `preexec_fn`, it
    waits for the exec, as asyncio's does. Cancelling it kills and reaps a child that has been
    made.

    Args:
        program: str, bytes or path-like. Without a directory it is looked for in PATH, that
            of `env` if given.
        *args: Its arguments, one by one: str, bytes or path-like.
        stdin: None (default: inherit ours), PIPE, DEVNULL, a file descriptor, or an object
            with ``fileno()``.
        stdout: The same.
        stderr: The same, or STDOUT.
        limit: The longest line in bytes, beyond which readline() and readuntil() raise, as
            asyncio's do with its default of 65536. None (default): lines of any length.
        tree: Whether what the child starts is signalled and ended together with it, by
            ``send_signal(tree=True)``, ``kill_tree()`` and ``async with``. Such a child gets
            a variable AIOPROC_TREE in its environment and, unless stdin is inherited or
            start_new_session or process_group are given, a session of its own: without our
            terminal and its Ctrl-C. Not in asyncio.
        pty: True, (rows, columns) or an os.terminal_size: a terminal of its own is the
            child's stdin, stdout and stderr, which may not be given then, and controls a new
            session. ``process.stdin`` is what is typed there, ``process.stdout`` what is to
            be seen, and ``process.stderr`` None. ``stdin.write_eof()`` types Ctrl-D, and more
            may follow; ``stdin.close()`` does so for the last time. The terminal is hung up
            when the process and its output have ended, or when nobody holds the process;
            ``async with`` and stop() begin with SIGHUP. The size is 24 rows of 80 columns
            by default. Not in asyncio.
        echo: Whether the terminal shows what is typed, as terminals do. Not in asyncio.
        rlimits: ``{"nofile": 256}`` or ``{"nofile": (soft, hard)}``, by the names of
            :mod:`resource`; on Windows job_memory (bytes), job_processes and job_cpu_rate
            (per cent). This and the next five hold from the program's first instruction;
            they are not in asyncio.
        nice: The nice value, -20 to 19; on Windows also the name of a priority class.
        cpu_affinity: The numbers of the CPUs that it may use.
        oom_score_adj: -1000 to 1000; 1000 is the first to be killed for want of memory.
        no_new_privs: Whether setuid programs and the like get no more rights.
        die_with_parent: Whether it is killed when this process ends, in whatever way.
        executable: The file to execute, in place of the one that `program` names.
        cwd: The directory to run it in.
        env: All of its environment. Default: ours.
        close_fds: Whether it gets no descriptors but 0, 1, 2 and `pass_fds` (default: True).
        pass_fds: Descriptors that it gets. POSIX.
        start_new_session: Whether it calls setsid(). POSIX.
        process_group: The group that it joins; 0: a new one. POSIX.
        user: The user that it runs as: a name or a number. POSIX.
        group: The group that it runs as, in the same way. POSIX.
        extra_groups: Its supplementary groups. POSIX.
        umask: Its umask. POSIX.
        preexec_fn: What is called in the child before the exec. The event loop waits for it,
            and memory is copied. POSIX.
        restore_signals: Whether SIGPIPE and SIGXFSZ, which Python ignores, have their default
            action (default: True). POSIX.
        pipesize: How many bytes its pipes hold. Linux.
        startupinfo: A subprocess.STARTUPINFO. Windows.
        creationflags: Flags of CreateProcess. Windows.
        **kwds: `bufsize`, `universal_newlines`, `shell`, `text`, `encoding` and `errors` may be
            given the values that asyncio allows, which change nothing.

    Returns:
        The :class:`Process`.

    Raises:
        OSError: It could not be started: FileNotFoundError, PermissionError and so on, with
            the ``filename``. Nothing is left behind. Where a limit is refused, the message
            names it. Where there are no processes (Emscripten, WASI) the errno is ENOTSUP.
        ValueError, TypeError: Arguments that cannot be taken, or that this platform or backend
            does not have.
        NotImplementedError: `pty` on Windows.
        RuntimeError: AIOPROC_BACKEND or AIOPROC_STRATEGY asks for what is not to be had.

    Platforms:
        On Windows a tree is a job object, and its session a process group
        (CREATE_NEW_PROCESS_GROUP); the pure backend has the child alone there. What limits
        there are is in :doc:`Semantics </semantics>`, "Limits".

    Source:
        :func:`asyncio.create_subprocess_exec`, :class:`subprocess.Popen`. For what is not
        asyncio's: setrlimit(2), nice(2), sched_setaffinity(2), prctl(2), pty(7).
    """
    spec = _exec_spec(
        "create_subprocess_exec", program, args, stdin=stdin, stdout=stdout, stderr=stderr, **kwds
    )
    try:
        return await _open_process(spec, limit)
    except OSError as error:
        explain_failure(error, spec)
        raise


async def create_subprocess_shell(
    cmd: str | bytes,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    limit: int | None = None,
    **kwds: Any,
) -> Process:
    """Start a command line in a shell, and return its process: the shell.

    Args:
        cmd: What the shell is to do: str or, not on Windows, bytes. Quoting is the caller's:
            :func:`shlex.quote` (not for Windows).
        stdin: As create_subprocess_exec()'s; so are the others.
        stdout: The same.
        stderr: The same.
        limit: The same.
        **kwds: As the keyword arguments of :func:`create_subprocess_exec`; `executable` is
            another shell.

    Returns:
        The :class:`Process`.

    Raises:
        OSError, ValueError, TypeError: As create_subprocess_exec().

    Platforms:
        The shell is /bin/sh, on Windows %COMSPEC%.

    Source:
        :func:`asyncio.create_subprocess_shell`.
    """
    spec = _shell_spec(
        "create_subprocess_shell", cmd, stdin=stdin, stdout=stdout, stderr=stderr, **kwds
    )
    return await _open_process(spec, limit)


def _unless_terminal(kwds: dict[str, Any], *streams: Stream) -> tuple[Stream, Stream, Stream]:
    """The default of these functions are pipes; of a child with a terminal, that."""
    stdin, stdout, stderr = streams
    if kwds.get("pty") and stdin == stdout == stderr == PIPE:
        return None, None, None
    return stdin, stdout, stderr


async def subprocess_exec(
    protocol_factory: Callable[[], P],
    program: StrOrBytesPath,
    *args: StrOrBytesPath,
    stdin: Stream = PIPE,
    stdout: Stream = PIPE,
    stderr: Stream = PIPE,
    **kwds: Any,
) -> tuple[SubprocessTransport, P]:
    """Start a program for a protocol, as the method of asyncio's event loops does.

    The protocol's connection_made, pipe_data_received, pipe_connection_lost and
    process_exited are called, and connection_lost after the exit and the end of all pipes.

    Args:
        protocol_factory: Called without arguments; returns an
            :class:`asyncio.SubprocessProtocol`.
        program: As create_subprocess_exec()'s; so are the others.
        *args: The same.
        stdin: The same, but PIPE by default.
        stdout: The same, but PIPE by default.
        stderr: The same, but PIPE by default.
        **kwds: As the keyword arguments of :func:`create_subprocess_exec`, without limit. With
            `pty` there is the terminal in place of the pipes; its output is that of
            descriptor 1.

    Returns:
        (transport, protocol): a :class:`SubprocessTransport`, and what the factory made.

    Raises:
        OSError, ValueError, TypeError: As create_subprocess_exec().

    Source:
        ``loop.subprocess_exec`` in asyncio's documentation.
    """
    stdin, stdout, stderr = _unless_terminal(kwds, stdin, stdout, stderr)
    spec = _exec_spec(
        "subprocess_exec", program, args, stdin=stdin, stdout=stdout, stderr=stderr, **kwds
    )
    protocol = protocol_factory()
    try:
        return await open_transport(spec, protocol, asyncio.get_running_loop()), protocol
    except OSError as error:
        explain_failure(error, spec)
        raise


async def subprocess_shell(
    protocol_factory: Callable[[], P],
    cmd: str | bytes,
    *,
    stdin: Stream = PIPE,
    stdout: Stream = PIPE,
    stderr: Stream = PIPE,
    **kwds: Any,
) -> tuple[SubprocessTransport, P]:
    """Start a command line in a shell for a protocol; see :func:`subprocess_exec`.

    Args:
        protocol_factory: As subprocess_exec()'s.
        cmd: As create_subprocess_shell()'s.
        stdin: As subprocess_exec()'s; so are the others.
        stdout: The same.
        stderr: The same.
        **kwds: The same.

    Returns:
        (transport, protocol).

    Raises:
        OSError, ValueError, TypeError: As create_subprocess_exec().

    Source:
        ``loop.subprocess_shell`` in asyncio's documentation.
    """
    stdin, stdout, stderr = _unless_terminal(kwds, stdin, stdout, stderr)
    spec = _shell_spec("subprocess_shell", cmd, stdin=stdin, stdout=stdout, stderr=stderr, **kwds)
    protocol = protocol_factory()
    return await open_transport(spec, protocol, asyncio.get_running_loop()), protocol


def _show_keywords() -> None:
    """help() and editors show all keywords, which these functions only hand on."""
    judged = inspect.signature(SpawnSpec.build).parameters.values()
    functions: list[Any] = [create_subprocess_exec, create_subprocess_shell]
    functions += [subprocess_exec, subprocess_shell]
    for function in functions:
        signature = inspect.signature(function)
        own = dict(signature.parameters)
        kwds = own.pop("kwds")
        more = [
            one
            for one in judged
            if one.kind is one.KEYWORD_ONLY and one.name != "shell" and one.name not in own
        ]
        function.__signature__ = signature.replace(parameters=[*own.values(), *more, kwds])


_show_keywords()
