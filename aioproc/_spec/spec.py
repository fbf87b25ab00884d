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
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, Union

from .._backends.system import WINDOWS, has_console
from .._notes import add_note

if WINDOWS:
    from . import command_line as _command_line

try:
    import grp
    import pwd
except ImportError:  # Windows, Emscripten
    pass

StrOrBytesPath = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]
#: A stream argument: None, PIPE, STDOUT, DEVNULL, a file descriptor, or an object
#: with fileno().
Stream = int | IO[Any] | None

PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
DEVNULL = subprocess.DEVNULL

_SHELL = "/system/bin/sh" if hasattr(sys, "getandroidapilevel") else "/bin/sh"
#: One less than what uid_t can hold: that one, -1, means "no change" to setreuid() and its
#: kin, so that the child would keep what it shall give up.
_MAX_ID = 2**32 - 2
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


def _database_id(value: str | int, what: str) -> int:
    """A user's or group's number, from its name where that is given."""
    if isinstance(value, str):
        value = pwd.getpwnam(value).pw_uid if what == "User" else grp.getgrnam(value).gr_gid
    if not isinstance(value, int):
        raise TypeError(f"{what} must be a string or an integer, not {type(value)}")
    if value < 0:
        raise ValueError(f"{what} ID cannot be negative, got {value}")
    if value > _MAX_ID:
        raise OverflowError(f"{what} ID is greater than maximum, got {value}")
    return value


def _prefixes(path: bytes) -> list[bytes]:
    """What to put before a program's name to find it in PATH, in order."""
    # An empty entry is the working directory (os.path.join's rule, and execvp's).
    return [os.path.join(directory, b"") for directory in path.split(b":")]


class Environment:
    """An environment that was given, as the kernel takes it."""

    __slots__ = ("_paths", "count", "text")

    #: NAME=value, each with its NUL.
    text: bytes
    count: int

    def __init__(self, variables: Mapping[Any, Any]) -> None:
        encode = os.fsencode
        entries = []
        paths = []
        for key, value in variables.items():
            name, encoded = encode(key), encode(value)
            # Popen passes an empty one on or not, depending on how it makes the child.
            if not name or b"=" in name:
                raise ValueError("illegal environment variable name")
            entries.append(name + b"=" + encoded + b"\0")
            if name == b"PATH":
                paths.append(encoded)
        self.text = b"".join(entries)
        self.count = len(entries)
        if self.text.count(b"\0") != self.count:
            raise ValueError("embedded null byte")
        self._paths = paths

    def prefixes(self) -> list[bytes]:
        if len(self._paths) > 1:
            raise ValueError("env cannot contain 'PATH' and b'PATH' keys")
        return _prefixes(self._paths[0] if self._paths else os.fsencode(os.defpath))


#: Of the last PATH that was ours.
_own_prefixes: tuple[str | None, list[bytes]] = (None, _prefixes(os.fsencode(os.defpath)))


def own_prefixes() -> list[bytes]:
    """By our own PATH: that of os.environ, as os.get_exec_path has it."""
    global _own_prefixes
    path = os.environ.get("PATH")
    cached = _own_prefixes
    if cached[0] != path:
        cached = (path, _prefixes(os.fsencode(os.defpath if path is None else path)))
        _own_prefixes = cached
    return cached[1]


def windows_environment(variables: Mapping[Any, Any]) -> dict[str, str]:
    """As CreateProcess wants it: sorted, and each name once. Case makes no difference
    there; of several spellings the last one counts, as in Popen since Python 3.13."""
    found: dict[str, tuple[str, str]] = {}
    for name, value in variables.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError("environment can only contain strings")
        if "\0" in name or "\0" in value:
            raise ValueError("embedded null character")
        # One that begins with it is Windows' own: the working directory of a drive.
        if not name or "=" in name[1:]:
            raise ValueError("illegal environment variable name")
        found[name.upper()] = name, value
    return dict(found[key] for key in sorted(found))


#: As a module of any content: type checkers know it by the platform they run for.
_subprocess: Any = subprocess


def own_startupinfo(name: str, given: Any) -> Any:
    """A copy of it, to be changed; a new one for None. (Windows)"""
    if given is None:
        return _subprocess.STARTUPINFO()
    if isinstance(given, _subprocess.STARTUPINFO):
        return given.copy()
    kind = type(given).__name__
    raise TypeError(f"{name} must be a subprocess.STARTUPINFO, not {kind}")


class SpawnSpec:
    """Plain data, judged; not to be changed once built."""

    __slots__ = (
        "args",
        "argv",
        "close_fds",
        "command_line",
        "creationflags",
        "cwd",
        "encoded_cwd",
        "env",
        "environment",
        "executable",
        "extra_groups",
        "given",
        "given_handles",
        "group",
        "pass_fds",
        "pipesize",
        "preexec_fn",
        "process_group",
        "programs",
        "restore_signals",
        "start_new_session",
        "startupinfo",
        "stderr_to_stdout",
        "stdio",
        "umask",
        "user",
        "user_args",
    )

    #: As the user gave them: Process.args (a sequence, or the shell's command).
    user_args: Any
    #: The argument list and what to execute, as given; for errors and for Popen.
    #: On Windows str, or None: then the command line says what to execute; and env is a
    #: dict, sorted as CreateProcess wants it.
    args: list[Any]
    executable: Any
    cwd: Any
    env: Mapping[Any, Any] | None
    #: POSIX: the same as the kernel takes them.
    argv: list[bytes]
    programs: list[bytes]
    encoded_cwd: bytes | None
    #: None: ours, as it is when the child is made.
    environment: Environment | None
    #: Windows: what CreateProcess takes. The STARTUPINFO is a copy of the user's.
    command_line: str
    creationflags: int
    startupinfo: Any
    #: Per standard stream: None (inherit), PIPE, DEVNULL or a descriptor.
    stdio: tuple[int | None, int | None, int | None]
    stderr_to_stdout: bool
    #: All descriptors that were given; and handles, on Windows.
    given: list[int]
    given_handles: list[int]
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
        """Judges a child's description: a program with its arguments, or a command for
        the shell. The keywords are ``subprocess.Popen``'s."""
        if not isinstance(pipesize, int):
            raise TypeError("pipesize must be an integer")
        if not isinstance(umask, int):
            raise TypeError("umask must be an integer")
        if process_group is not None and not isinstance(process_group, int):
            raise TypeError("process_group must be an integer or None")

        self = cls()
        self.user_args = args
        self.pipesize = pipesize
        self._judge_streams(stdin, stdout, stderr)
        self.given = [fd for fd in self.stdio if fd is not None and fd >= 0]
        self.given_handles = []
        if WINDOWS:
            self._refuse_posix(preexec_fn, pass_fds, user, group, extra_groups)
            self._judge_windows(args, shell, executable, cwd, env)
            self._judge_startup(startupinfo, creationflags, close_fds, shell)
            return self

        if startupinfo is not None:
            raise ValueError("startupinfo is only supported on Windows platforms")
        if creationflags != 0:
            raise ValueError("creationflags is only supported on Windows platforms")
        self._judge_descriptors(close_fds, pass_fds)
        self.given += self.pass_fds
        if self.stderr_to_stdout and stdout is None:
            self.given.append(1)
        self._judge_ids(user, group, extra_groups)
        argv = [executable or _SHELL, "-c", args] if shell else list(args)
        self._judge_strings(argv, executable, cwd, env)
        self.start_new_session = bool(start_new_session)
        self.process_group = None if process_group is None or process_group < 0 else process_group
        self.umask = None if umask < 0 else umask
        self.restore_signals = bool(restore_signals)
        self.preexec_fn = preexec_fn
        return self

    def check_open(self) -> None:
        """OSError for a descriptor or handle that is closed. To be called before anything
        is opened, or the number may be that of a pipe of ours by then, for the child to
        keep."""
        for fd in self.given:
            os.get_inheritable(fd)
        for handle in self.given_handles:
            if handle <= 0:  # -1 is this process, -2 this thread, of which Windows knows
                raise _command_line.windows_error(6, "The handle is invalid", None)
            os.get_handle_inheritable(handle)  # type: ignore[attr-defined,unused-ignore]

    # -- Windows

    @staticmethod
    def _refuse_posix(
        preexec_fn: Any, pass_fds: Iterable[int], user: Any, group: Any, extra_groups: Any
    ) -> None:
        """In Popen's words; what that passes over in silence on Windows (umask,
        start_new_session, process_group, restore_signals), we do."""
        if preexec_fn is not None:
            raise ValueError("preexec_fn is not supported on Windows platforms")
        if pass_fds:
            raise ValueError("pass_fds not supported on Windows.")
        names = {"user": user, "group": group, "extra_groups": extra_groups}
        for name, value in names.items():
            if value is not None:
                raise ValueError(
                    f"The '{name}' parameter is not supported on the current platform"
                )

    def _judge_windows(
        self,
        args: Any,
        shell: bool,
        executable: StrOrBytesPath | None,
        cwd: StrOrBytesPath | None,
        env: Mapping[Any, Any] | None,
    ) -> None:
        program = None if executable is None else os.fsdecode(executable)
        self.cwd = None if cwd is None else os.fsdecode(cwd)
        if shell:
            if isinstance(args, bytes):
                raise TypeError("bytes args is not allowed on Windows")
            self.args = [args]
            line, program = _command_line.shell_command_line(args, program)
        else:
            self.args = list(args)
            line = _command_line.command_line(self.args)
        if any("\0" in text for text in (line, program or "", self.cwd or "")):
            raise ValueError("embedded null character")
        if not shell:
            script = os.fsdecode(self.args[0]) if program is None else program
            _command_line.check_program(script)
            if _command_line.is_batch_file(script):
                line, program = _command_line.batch_command_line(script, self.args[1:])
        _command_line.check_length(line)
        self.command_line = line
        self.executable = program
        self.env = None if env is None else windows_environment(env)

    def _judge_startup(
        self, startupinfo: Any, creationflags: int, close_fds: bool, shell: bool
    ) -> None:
        if not isinstance(creationflags, int):
            raise TypeError("creationflags must be an integer")
        if not 0 <= creationflags < 2**32:
            raise OverflowError(f"creationflags cannot be {creationflags}")
        startupinfo = own_startupinfo("startupinfo", startupinfo)
        if shell:
            startupinfo.dwFlags |= _subprocess.STARTF_USESHOWWINDOW
            startupinfo.wShowWindow = _subprocess.SW_HIDE
        attributes = startupinfo.lpAttributeList
        if attributes and attributes.get("handle_list"):
            handles = self.given_handles = list(map(int, attributes["handle_list"]))
            startupinfo.lpAttributeList = {**attributes, "handle_list": handles}
            if not close_fds:
                warnings.warn(
                    "startupinfo.lpAttributeList['handle_list'] overriding close_fds",
                    RuntimeWarning,
                    stacklevel=4,
                )
                close_fds = True
        if attributes and attributes.get("job_list"):
            # Objects of ours are numbers too.
            jobs = list(map(int, attributes["job_list"]))
            startupinfo.lpAttributeList = {**startupinfo.lpAttributeList, "job_list": jobs}
        own_console = (
            _subprocess.CREATE_NEW_CONSOLE
            | _subprocess.DETACHED_PROCESS
            | _subprocess.CREATE_NO_WINDOW
        )
        # A program for the console gets one when we have none, with a window that pops
        # up, from a service or a GUI program.
        if not creationflags & own_console and not has_console():
            creationflags |= _subprocess.CREATE_NO_WINDOW
        self.startupinfo = startupinfo
        self.creationflags = creationflags
        self.close_fds = bool(close_fds)

    # -- every system, and POSIX

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
        environment = self.environment = None if env is None else Environment(env)
        program = encode(self.executable)
        if b"\0" in b"".join([program, self.encoded_cwd or b"", *self.argv]):
            raise ValueError("embedded null byte")
        if b"/" in program:
            self.programs = [program]
        else:
            prefixes = own_prefixes() if environment is None else environment.prefixes()
            self.programs = [prefix + program for prefix in prefixes]
