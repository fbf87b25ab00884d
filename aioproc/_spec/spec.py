"""SpawnSpec: what a child is to be. The only judge of user input.

Everything is checked here, once, before anything is opened; what is wrong raises
what ``subprocess.Popen`` or asyncio would raise.
"""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, Union

from .._backends.system import WINDOWS
from .._notes import add_note
from . import limits as _limits
from . import mark, posix
from .environment import Environment
from .terminal import judge_pty

if WINDOWS:
    from . import windows

StrOrBytesPath = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]
#: A stream argument: None, PIPE, STDOUT, DEVNULL, a file descriptor, or an object
#: with fileno().
Stream = int | IO[Any] | None

PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
DEVNULL = subprocess.DEVNULL

_SHELL = "/system/bin/sh" if hasattr(sys, "getandroidapilevel") else "/bin/sh"
_MAX_FD = 2**31 - 1


def _stream_advice(name: str, value: Any) -> str:
    """For what is neither a descriptor nor has one."""
    import asyncio

    if isinstance(value, (asyncio.StreamReader, asyncio.StreamWriter)):
        return (
            f"{name} cannot be a stream of another process: make a pipe by os.pipe(), give its "
            "ends to the two processes as stdout and stdin, and close both"
        )
    if isinstance(value, bytes) and name == "stdin":
        return "use stdin=PIPE, and communicate(input) or stdin.write() for the data"
    if isinstance(value, (str, bytes, os.PathLike)):
        mode = "rb" if name == "stdin" else "wb"
        return f"{name} cannot be the name of a file: open it, {name}=open({value!r}, {mode!r})"
    return (
        f"{name} can be None, PIPE, DEVNULL, a file descriptor or an object with one "
        f"(fileno()); {type(value).__name__} has none: use PIPE, and pass the data on"
    )


def _stream(name: str, value: int | IO[Any]) -> int:
    if isinstance(value, int):
        if value == STDOUT:
            raise ValueError("STDOUT can only be used for stderr")
        if value < 0 and value not in (PIPE, DEVNULL):
            raise ValueError(f"{name} cannot be the file descriptor {value}")
        fd = value
    else:
        try:
            fd = value.fileno()
        except (AttributeError, io.UnsupportedOperation) as error:
            add_note(error, _stream_advice(name, value))
            raise
        if not isinstance(fd, int):
            raise TypeError(f"{name}.fileno() returned {fd!r}, which is not an integer")
        if fd < 0:
            # A closed socket's, say; never one of the numbers that mean something here.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if fd > _MAX_FD:
        # PyPy's Popen would take the lower 32 bits of it.
        raise OverflowError(f"{name} cannot be the file descriptor {fd}")
    return int(fd)


class SpawnSpec:
    """Plain data, judged; not to be changed once built. What is rarely given has its value
    here."""

    #: As the user gave them: Process.args (a sequence, or the shell's command).
    user_args: Any
    #: The argument list and what to execute, as given; for errors and for Popen.
    #: On Windows str, or None: then the command line says what to execute; and env is a
    #: dict, sorted as CreateProcess wants it.
    args: list[Any]
    executable: Any
    cwd: Any = None
    env: Mapping[Any, Any] | None = None
    #: What may be executed, the first that is found; on Windows the one name there is.
    programs: list[bytes]
    #: POSIX: the same as the kernel takes them.
    argv: list[bytes]
    encoded_cwd: bytes | None = None
    #: None: ours, as it is when the child is made.
    environment: Environment | None = None
    #: Windows: what CreateProcess takes. The STARTUPINFO is a copy of the user's.
    command_line: str
    creationflags: int
    startupinfo: Any
    #: Per standard stream: None (inherit), PIPE, DEVNULL or a descriptor.
    stdio: tuple[int | None, int | None, int | None]
    stderr_to_stdout: bool = False
    #: All descriptors that were given; and handles, on Windows.
    given: Sequence[int] = ()
    given_handles: Sequence[int] = ()
    close_fds: bool = True
    pass_fds: Sequence[int] = ()
    start_new_session: bool = False
    process_group: int | None = None
    user: int | None = None
    group: int | None = None
    extra_groups: list[int] | None = None
    umask: int | None = None
    restore_signals: bool = True
    preexec_fn: Callable[[], Any] | None = None
    pipesize: int = -1
    #: POSIX: rows and columns of the terminal that is its stdin, stdout and stderr, and what
    #: controls its session; `stdio` has None for them then. And whether it echoes input.
    terminal: tuple[int, int] | None = None
    echo: bool = True
    limits: _limits.Limits | None = None
    #: Whether the child is to end with this process; and whether only where that costs nothing
    #: and means the process, not a thread.
    die_with_parent: bool = False
    die_if_honest: bool = False
    #: Whether what the child starts is to be ended with it.
    tree: bool = False
    #: Set by the backend, where a child that had begun has been ended, and nobody gets it:
    #: what it has started by then may live.
    was_given_up: bool = False
    #: With `tree`: whether the child leads a process group; on Windows, one on our console.
    leads_group: bool = False
    #: POSIX: what it will be known by; "" without `tree`.
    mark: str = ""
    #: POSIX: whether there is more to it than what to run, where, and its streams.
    has_more: bool

    @classmethod
    def build(
        cls,
        args: Sequence[Any] | str | bytes,
        *,
        shell: bool = False,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        executable: StrOrBytesPath | None = None,
        cwd: StrOrBytesPath | None = None,
        env: Mapping[Any, Any] | None = None,
        close_fds: bool = True,
        pass_fds: Iterable[int] = (),
        start_new_session: bool | None = None,
        process_group: int | None = None,
        tree: bool = False,
        user: str | int | None = None,
        group: str | int | None = None,
        extra_groups: Iterable[str | int] | None = None,
        umask: int = -1,
        preexec_fn: Callable[[], Any] | None = None,
        restore_signals: bool = True,
        pipesize: int = -1,
        pty: Any = None,
        echo: bool = True,
        startupinfo: Any = None,
        creationflags: int = 0,
        rlimits: Mapping[str, Any] | None = None,
        nice: int | str | None = None,
        cpu_affinity: Iterable[int] | None = None,
        oom_score_adj: int | None = None,
        no_new_privs: bool = False,
        die_with_parent: bool | None = None,
    ) -> SpawnSpec:
        """Judges a child's description: a program with its arguments, or a command for
        the shell. The keywords are ``subprocess.Popen``'s; but for `tree`, with which a new
        session is the default unless stdin is inherited or a process group is asked for, and
        `pty` and `echo`, of a terminal of its own."""
        if not isinstance(pipesize, int):
            raise TypeError("pipesize must be an integer")
        if not isinstance(umask, int):
            raise TypeError("umask must be an integer")
        if process_group is not None and not isinstance(process_group, int):
            raise TypeError("process_group must be an integer or None")

        self = cls()
        self.user_args = args
        if tree:
            self.tree = True
        if pipesize != -1:
            self.pipesize = pipesize
        if pty is not None or echo is not True:
            self._judge_terminal(pty, echo, (stdin, stdout, stderr))
            if self.terminal is not None:
                posix.refuse_session(start_new_session, process_group)
                start_new_session = True
        if die_with_parent is not None:
            _limits.judge_parent(self, die_with_parent)
        if stdin is stdout is stderr is None:
            self.stdio = (None, None, None)
        else:
            self._judge_streams(stdin, stdout, stderr)
        if WINDOWS:
            windows.refuse_posix(preexec_fn, pass_fds, user, group, extra_groups)
            windows.judge_strings(self, args, shell, executable, cwd, env)
            windows.judge_startup(self, startupinfo, creationflags, close_fds, shell)
            if start_new_session is None:
                start_new_session = stdin is not None
            windows.judge_group(self, tree and bool(start_new_session))
            self._judge_limits(rlimits, nice, cpu_affinity, oom_score_adj, no_new_privs)
            return self

        if startupinfo is not None:
            raise ValueError("startupinfo is only supported on Windows platforms")
        if creationflags != 0:
            raise ValueError("creationflags is only supported on Windows platforms")
        if tree:
            self.mark = mark.new_mark()
            if start_new_session is None:
                # One that reads our terminal would lose it.
                start_new_session = process_group is None and stdin is not None
            self.leads_group = bool(start_new_session) or process_group == 0
        self.has_more = (
            pipesize > 0
            or bool(pass_fds)
            or process_group is not None
            or not (user is group is None)
            or extra_groups is not None
            or umask >= 0
            or self.terminal is not None
        )
        if pass_fds or close_fds is not True:
            posix.judge_descriptors(self, close_fds, pass_fds)
        if user is not None or group is not None or extra_groups is not None:
            posix.judge_ids(self, user, group, extra_groups)
        argv = [executable or _SHELL, "-c", args] if shell else list(args)
        posix.judge_strings(self, argv, executable, cwd, env)
        if start_new_session:
            self.start_new_session = True
        if process_group is not None and process_group >= 0:
            self.process_group = process_group
        if umask >= 0:
            self.umask = umask
        if not restore_signals:
            self.restore_signals = False
        if preexec_fn is not None:
            self.preexec_fn = preexec_fn
        self._judge_limits(rlimits, nice, cpu_affinity, oom_score_adj, no_new_privs)
        return self

    def again(self, args: Sequence[Any]) -> SpawnSpec | None:
        """The same for another program and its arguments; None where that has to be built anew,
        since other things depend on it. Not of a shell's command, nor with `executable`."""
        if WINDOWS:
            return None
        other = type(self)()
        other.__dict__.update(self.__dict__)
        other.user_args = args
        posix.judge_command(other, list(args))
        if self.mark:
            other.mark = mark.new_mark()
        return other

    def _judge_limits(self, *given: Any) -> None:
        if given != (None, None, None, None, False):
            _limits.judge(self, *given)

    def marked_block(self, text: bytes, count: int) -> tuple[list[bytes], int]:
        """The environment with the mark: NAME=value strings, each with its NUL, in parts that
        are to have one between them, and how many. The mark stands there alone: not in
        `env`, which others see."""
        return mark.in_block(text, count, self.mark)

    def marked_env(self) -> Mapping[Any, Any] | None:
        """The same as Popen takes it."""
        return mark.in_mapping(self.env, self.mark) if self.mark else self.env

    def check_open(self) -> None:
        """OSError for a descriptor or handle that is closed. To be called before anything
        is opened, or the number may be that of a pipe of ours by then, for the child to
        keep."""
        for fd in self.given:
            os.get_inheritable(fd)
        for handle in self.given_handles:
            windows.check_handle(handle)

    def _judge_terminal(self, pty: Any, echo: Any, streams: tuple[Any, Any, Any]) -> None:
        self.terminal = judge_pty(pty)
        if self.terminal is None:
            if echo is not True:
                raise ValueError("echo is of a terminal: it needs pty=True")
            return
        if WINDOWS:
            raise NotImplementedError(
                "pty is for POSIX systems: there are no terminals for children on Windows yet"
            )
        if streams != (None, None, None):
            raise ValueError(
                "stdin, stdout and stderr may not be given with pty: all of them are the terminal"
            )
        self.echo = bool(echo)

    def _judge_streams(self, stdin: Stream, stdout: Stream, stderr: Stream) -> None:
        # The most frequent ones without a call.
        if stdin is not None and stdin is not PIPE:
            stdin = _stream("stdin", stdin)
        if stdout is not None and stdout is not PIPE:
            stdout = _stream("stdout", stdout)
        to_stdout = False
        if stderr is not None and stderr is not PIPE:
            to_stdout = isinstance(stderr, int) and stderr == STDOUT
            stderr = None if to_stdout else _stream("stderr", stderr)
        self.stderr_to_stdout = to_stdout
        self.stdio = (stdin, stdout, stderr)
        self.given = [fd for fd in self.stdio if fd is not None and fd >= 0]
        if to_stdout and stdout is None and not WINDOWS:
            self.given.append(1)
