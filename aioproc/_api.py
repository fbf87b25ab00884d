"""The public functions."""

from __future__ import annotations

import asyncio
import errno
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
from ._spec.advice import explain_arguments, explain_missing, refuse_unknown
from ._spec.spec import SpawnSpec, Stream, StrOrBytesPath
from ._trees import tree_of

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
    except TypeError as error:
        refuse_unknown(function, kwds)
        explain_arguments(error, (program, *args))
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
    except TypeError:
        refuse_unknown(function, kwds)
        raise


def _give_up(child: Child, spec: SpawnSpec) -> None:
    """Ends a child that nobody gets, with what it may have started by now."""
    if spec.tree and child.error is None:
        tree = tree_of(
            child,
            session=spec.start_new_session,
            leads_group=spec.leads_group,
            mark=spec.mark,
        )
        tree.kill_at_once()
    child.abandon()


async def _spawn(spec: SpawnSpec, loop: asyncio.AbstractEventLoop) -> Child:
    for pause in (*TEXT_BUSY_PAUSES, None):
        try:
            backend = _backends.current()
            if crowded:
                turn = backend.turn(loop)
                if turn is not None:
                    await turn
            child = backend.spawn(spec, loop)
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
        transport.start()
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
    """Starts a program and returns once its exec has worked.

    program, args: str, bytes or path-like; a program without a directory is looked for
        in PATH, that of `env` if given.
    stdin, stdout, stderr: None (inherit), PIPE, DEVNULL, a file descriptor or an object
        with fileno(); for stderr also STDOUT.
    limit: bytes. None (default): lines of any length. A number: readline() and
        readuntil() raise for longer ones, as asyncio's do with its default of 65536.
    tree: bool. Whether what the child starts is to be signalled and ended together with
        it: by send_signal(tree=True), kill_tree() and `async with`. Such a child gets a
        variable AIOPROC_TREE in its environment and, unless stdin is inherited or
        start_new_session or process_group are given, a session of its own: without our
        terminal and its Ctrl-C. On Windows it is put into a job object, and its session is a
        process group (CREATE_NEW_PROCESS_GROUP); the pure backend has the child alone there.
        Not in asyncio. (docs/semantics.md, "Trees")
    pty: True or (rows, columns), or an os.terminal_size. A terminal of its own is the child's
        stdin, stdout and stderr, which may not be given then, and controls a new session.
        process.stdin is what is typed there, process.stdout what is to be seen, and
        process.stderr None. stdin.write_eof() types Ctrl-D, and more may follow;
        stdin.close() does so for the last time. resize() changes the size, which is 24 rows of
        80 columns by default. The terminal is hung up when the process has ended and its
        output has, or when nobody holds the process; `async with` and stop() begin with SIGHUP.
        Not on Windows (NotImplementedError); OSError where there is none to
        be had. Not in asyncio. (docs/semantics.md, "Terminals")
    echo: bool. Whether the terminal shows what is typed, as terminals do. Not in asyncio.
    rlimits, nice, cpu_affinity, oom_score_adj, no_new_privs, die_with_parent: what the child may
        use and do, from its program's first instruction; ValueError where the platform or the
        backend has no such thing, OSError that names the option where it is refused. Not in
        asyncio. (docs/semantics.md, "Limits")
        rlimits: {"nofile": 256} or {"nofile": (soft, hard)}, by the names of `resource`; on
            Windows job_memory (bytes), job_processes and job_cpu_rate (per cent).
        nice: the nice value, -20 to 19; on Windows also the name of a priority class.
        cpu_affinity: the numbers of the CPUs that it may use.
        oom_score_adj: -1000 to 1000; 1000 is the first to be killed for want of memory.
        no_new_privs: bool. Whether a setuid program and the like get no more rights.
        die_with_parent: bool. Whether it is killed when this process ends, in whatever way.
    kwds: those of subprocess.Popen that asyncio takes: executable, cwd, env, close_fds,
        pass_fds, start_new_session, process_group, user, group, extra_groups, umask,
        preexec_fn, restore_signals, pipesize, bufsize=0; on Windows also startupinfo and
        creationflags (docs/semantics.md says what differs there).

    Raises what Popen raises, before anything is left behind: OSError (FileNotFoundError,
    PermissionError, ...) with the filename, ValueError, TypeError; where there are no
    processes (Emscripten, WASI) OSError with ENOTSUP. RuntimeError if AIOPROC_BACKEND or
    AIOPROC_STRATEGY asks for what is not to be had. Cancelling it kills and reaps a child
    that has been made.

    The loop goes on while the program is loaded with the native backends of Linux and
    Windows; elsewhere, and with `preexec_fn`, it waits until the exec, as asyncio's does.

    Source: asyncio.create_subprocess_exec and subprocess.Popen in Python's documentation.
    """
    spec = _exec_spec(
        "create_subprocess_exec", program, args, stdin=stdin, stdout=stdout, stderr=stderr, **kwds
    )
    try:
        return await _open_process(spec, limit)
    except FileNotFoundError as error:
        explain_missing(error, spec)
        raise


async def create_subprocess_shell(
    cmd: str | bytes,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    limit: int | None = None,
    **kwds: Any,
) -> Process:
    """Runs a command in the shell (/bin/sh, on Windows %COMSPEC%; or `executable`).

    cmd: str or, not on Windows, bytes; ValueError or TypeError for anything else. Quoting
    is the caller's: shlex.quote (not for Windows). The rest as create_subprocess_exec.
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
    """The low-level form: a transport and a protocol, as loop.subprocess_exec returns.

    The protocol gets connection_made, pipe_data_received, pipe_connection_lost,
    process_exited, and connection_lost after the exit and the end of all pipes. All
    streams are pipes by default; with `pty`, the terminal, whose output is that of descriptor
    1. Keywords and errors as create_subprocess_exec.
    """
    stdin, stdout, stderr = _unless_terminal(kwds, stdin, stdout, stderr)
    spec = _exec_spec(
        "subprocess_exec", program, args, stdin=stdin, stdout=stdout, stderr=stderr, **kwds
    )
    protocol = protocol_factory()
    try:
        return await open_transport(spec, protocol, asyncio.get_running_loop()), protocol
    except FileNotFoundError as error:
        explain_missing(error, spec)
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
    """subprocess_exec for a shell command, as loop.subprocess_shell."""
    stdin, stdout, stderr = _unless_terminal(kwds, stdin, stdout, stderr)
    spec = _shell_spec("subprocess_shell", cmd, stdin=stdin, stdout=stdout, stderr=stderr, **kwds)
    protocol = protocol_factory()
    return await open_transport(spec, protocol, asyncio.get_running_loop()), protocol
