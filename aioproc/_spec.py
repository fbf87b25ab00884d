"""SpawnSpec: what a child is to be. The only judge of user input.

Everything is checked here, once, before anything is opened; what is wrong raises
what ``subprocess.Popen`` or asyncio would raise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, Union

StrOrBytesPath = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]
#: A stream argument: None, PIPE, STDOUT, DEVNULL, a file descriptor, or an object
#: with fileno().
Stream = int | IO[Any] | None

PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
DEVNULL = subprocess.DEVNULL

_SHELL = "/system/bin/sh" if hasattr(sys, "getandroidapilevel") else "/bin/sh"
_MAX_ID = 2**32 - 1
_MAX_FD = 2**31 - 1


def _stream(name: str, value: Stream) -> int | None:
    if value is None:
        return None
    if isinstance(value, int):
        if value == STDOUT:
            raise ValueError("STDOUT can only be used for stderr")
        if value < 0 and value not in (PIPE, DEVNULL):
            raise ValueError(f"{name} cannot be the file descriptor {value}")
        fd = value
    else:
        fd = value.fileno()
        if not isinstance(fd, int):
            raise TypeError(f"{name}.fileno() returned {fd!r}, which is not an integer")
    if fd > _MAX_FD:
        # PyPy's Popen would take the lower 32 bits of it.
        raise OverflowError(f"{name} cannot be the file descriptor {fd}")
    return fd


def _database_id(value: str | int, what: str) -> int:
    """A user's or group's number, from its name where that is given."""
    if isinstance(value, str):
        if what == "User":
            import pwd

            return pwd.getpwnam(value).pw_uid
        import grp

        return grp.getgrnam(value).gr_gid
    if not isinstance(value, int):
        raise TypeError(f"{what} must be a string or an integer, not {type(value)}")
    if value < 0:
        raise ValueError(f"{what} ID cannot be negative, got {value}")
    if value > _MAX_ID:
        raise OverflowError(f"{what} ID is greater than maximum, got {value}")
    return value


class Environment:
    """A child's environment as the kernel takes it."""

    __slots__ = ("block", "count", "prefixes")

    #: NAME=value, each with its NUL.
    block: bytes
    count: int
    #: What to put before a program's name to find it in PATH, in order.
    prefixes: list[bytes]

    def __init__(self, variables: Mapping[Any, Any]) -> None:
        encode = os.fsencode
        entries = []
        paths = []
        for key, value in variables.items():
            name, encoded = encode(key), encode(value)
            if b"=" in name:
                raise ValueError("illegal environment variable name")
            entries.append(name + b"=" + encoded + b"\0")
            if name == b"PATH":
                paths.append(encoded)
        self.block = b"".join(entries)
        self.count = len(entries)
        if self.block.count(b"\0") != self.count:
            raise ValueError("embedded null byte")
        if len(paths) > 1:
            raise ValueError("env cannot contain 'PATH' and b'PATH' keys")
        path = paths[0] if paths else os.fsencode(os.defpath)
        # An empty entry is the working directory (os.path.join's rule, and execvp's).
        self.prefixes = [os.path.join(directory, b"") for directory in path.split(b":")]


_inherited: tuple[dict[Any, Any], Environment] | None = None


def inherited_environment() -> Environment:
    """Our own; encoded anew only when it has changed, since that takes longer than all
    else in a spawn that Python does."""
    global _inherited
    # The plain dict behind os.environ, where it is one: comparing it costs a microsecond.
    variables = getattr(os.environ, "_data", None)
    if type(variables) is not dict:
        return Environment(os.environb)
    cached = _inherited
    if cached is None or cached[0] != variables:
        variables = dict(variables)
        _inherited = cached = (variables, Environment(variables))
    return cached[1]


class SpawnSpec:
    """Plain data, judged; not to be changed once built."""

    __slots__ = (
        "args",
        "argv",
        "close_fds",
        "cwd",
        "encoded_cwd",
        "env",
        "environment",
        "executable",
        "extra_groups",
        "group",
        "pass_fds",
        "pipesize",
        "preexec_fn",
        "process_group",
        "programs",
        "restore_signals",
        "start_new_session",
        "stderr_to_stdout",
        "stdio",
        "umask",
        "user",
        "user_args",
    )

    #: As the user gave them: Process.args (a sequence, or the shell's command).
    user_args: Any
    #: The argument list and what to execute, as given; for errors and for Popen.
    args: list[Any]
    executable: Any
    cwd: Any
    env: Mapping[Any, Any] | None
    #: The same as the kernel takes them.
    argv: list[bytes]
    programs: list[bytes]
    encoded_cwd: bytes | None
    environment: Environment
    #: Per standard stream: None (inherit), PIPE, DEVNULL or a descriptor.
    stdio: tuple[int | None, int | None, int | None]
    stderr_to_stdout: bool
    close_fds: bool
    pass_fds: list[int]
    start_new_session: bool
    process_group: int | None
    user: int | None
    group: int | None
    extra_groups: list[int] | None
    umask: int | None
    restore_signals: bool
    preexec_fn: Callable[[], Any] | None
    pipesize: int

    @classmethod
    def build(
        cls,
        args: Sequence[Any],
        user_args: Any,
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        executable: StrOrBytesPath | None = None,
        cwd: StrOrBytesPath | None = None,
        env: Mapping[Any, Any] | None = None,
        close_fds: bool = True,
        pass_fds: Iterable[int] = (),
        start_new_session: bool = False,
        process_group: int | None = None,
        user: str | int | None = None,
        group: str | int | None = None,
        extra_groups: Iterable[str | int] | None = None,
        umask: int = -1,
        preexec_fn: Callable[[], Any] | None = None,
        restore_signals: bool = True,
        pipesize: int = -1,
        startupinfo: Any = None,
        creationflags: int = 0,
    ) -> SpawnSpec:
        """Judges a child's description; the keywords are ``subprocess.Popen``'s."""
        if startupinfo is not None:
            raise ValueError("startupinfo is only supported on Windows platforms")
        if creationflags != 0:
            raise ValueError("creationflags is only supported on Windows platforms")
        if not isinstance(pipesize, int):
            raise TypeError("pipesize must be an integer")
        if not isinstance(umask, int):
            raise TypeError("umask must be an integer")
        if process_group is not None and not isinstance(process_group, int):
            raise TypeError("process_group must be an integer or None")

        self = cls()
        self.user_args = user_args
        self._judge_streams(stdin, stdout, stderr)
        self._judge_descriptors(close_fds, pass_fds)
        self._judge_ids(user, group, extra_groups)
        self._judge_strings(list(args), executable, cwd, env)
        self.start_new_session = bool(start_new_session)
        self.process_group = None if process_group is None or process_group < 0 else process_group
        self.umask = None if umask < 0 else umask
        self.restore_signals = bool(restore_signals)
        self.preexec_fn = preexec_fn
        self.pipesize = pipesize
        return self

    @staticmethod
    def shell_args(command: str | bytes, executable: StrOrBytesPath | None) -> list[Any]:
        """The argument list that runs a command in the shell, as Popen makes it."""
        return [executable or _SHELL, "-c", command]

    def _judge_streams(self, stdin: Stream, stdout: Stream, stderr: Stream) -> None:
        self.stderr_to_stdout = isinstance(stderr, int) and stderr == STDOUT
        self.stdio = (
            _stream("stdin", stdin),
            _stream("stdout", stdout),
            None if self.stderr_to_stdout else _stream("stderr", stderr),
        )

    def _judge_descriptors(self, close_fds: bool, pass_fds: Iterable[int]) -> None:
        self.pass_fds = sorted(set(map(int, pass_fds))) if pass_fds else []
        if self.pass_fds and (self.pass_fds[0] < 0 or self.pass_fds[-1] > _MAX_FD):
            raise ValueError("bad value(s) in fds_to_keep")
        if self.pass_fds and not close_fds:
            warnings.warn("pass_fds overriding close_fds.", RuntimeWarning, stacklevel=4)
            close_fds = True
        self.close_fds = bool(close_fds)

    def _judge_ids(
        self,
        user: str | int | None,
        group: str | int | None,
        extra_groups: Iterable[str | int] | None,
    ) -> None:
        self.user = None if user is None else _database_id(user, "User")
        self.group = None if group is None else _database_id(group, "Group")
        self.extra_groups = None
        if extra_groups is not None:
            if isinstance(extra_groups, str):
                raise ValueError("Groups must be a list, not a string")
            try:
                self.extra_groups = [_database_id(item, "Group") for item in extra_groups]
            except OverflowError as error:
                # Of this list Popen says so, of `user` and `group` it lets it through.
                raise ValueError(str(error)) from None
            if len(self.extra_groups) > 65536:  # NGROUPS_MAX on Linux
                raise ValueError("too many extra_groups")

    def _judge_strings(
        self,
        args: list[Any],
        executable: StrOrBytesPath | None,
        cwd: StrOrBytesPath | None,
        env: Mapping[Any, Any] | None,
    ) -> None:
        encode = os.fsencode
        self.args = args
        self.argv = [encode(arg) for arg in args]
        self.executable = args[0] if executable is None else executable
        self.cwd = cwd
        self.encoded_cwd = None if cwd is None else encode(cwd)
        self.env = env
        self.environment = inherited_environment() if env is None else Environment(env)
        program = encode(self.executable)
        if b"\0" in b"".join([program, self.encoded_cwd or b"", *self.argv]):
            raise ValueError("embedded null byte")
        if b"/" in program:
            self.programs = [program]
        else:
            self.programs = [prefix + program for prefix in self.environment.prefixes]
