"""What is judged on Windows alone: the command line, the environment, STARTUPINFO."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .._backends.system import has_console
from . import command_line

if TYPE_CHECKING:
    from .spec import SpawnSpec, StrOrBytesPath


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

#: Of CreateProcess: CREATE_NEW_CONSOLE, DETACHED_PROCESS, CREATE_NO_WINDOW.
OWN_CONSOLE = 0x10 | 0x8 | 0x8000000


def own_startupinfo(name: str, given: Any) -> Any:
    """A copy of it, to be changed; a new one for None. (Windows)"""
    if given is None:
        return _subprocess.STARTUPINFO()
    if isinstance(given, _subprocess.STARTUPINFO):
        return given.copy()
    kind = type(given).__name__
    raise TypeError(f"{name} must be a subprocess.STARTUPINFO, not {kind}")


def refuse_posix(
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
            raise ValueError(f"The '{name}' parameter is not supported on the current platform")


def judge_strings(
    spec: SpawnSpec,
    args: Any,
    shell: bool,
    executable: StrOrBytesPath | None,
    cwd: StrOrBytesPath | None,
    env: Mapping[Any, Any] | None,
) -> None:
    program = None if executable is None else os.fsdecode(executable)
    spec.cwd = None if cwd is None else os.fsdecode(cwd)
    if shell:
        if isinstance(args, bytes):
            raise TypeError("bytes args is not allowed on Windows")
        spec.args = [args]
        line, program = command_line.shell_command_line(args, program)
    else:
        spec.args = list(args)
        line = command_line.command_line(spec.args)
    if any("\0" in text for text in (line, program or "", spec.cwd or "")):
        raise ValueError("embedded null character")
    if not shell:
        script = os.fsdecode(spec.args[0]) if program is None else program
        command_line.check_program(script)
        if command_line.is_batch_file(script):
            line, program = command_line.batch_command_line(script, spec.args[1:])
    command_line.check_length(line)
    spec.command_line = line
    spec.executable = program
    spec.programs = [os.fsencode(spec.args[0] if program is None else program)]
    spec.env = None if env is None else windows_environment(env)


def judge_startup(
    spec: SpawnSpec, startupinfo: Any, creationflags: int, close_fds: bool, shell: bool
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
        handles = spec.given_handles = list(map(int, attributes["handle_list"]))
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
    # A program for the console gets one when we have none, with a window that pops
    # up, from a service or a GUI program.
    if not creationflags & OWN_CONSOLE and not has_console():
        creationflags |= _subprocess.CREATE_NO_WINDOW
    spec.startupinfo = startupinfo
    spec.creationflags = creationflags
    spec.close_fds = bool(close_fds)


def judge_group(spec: SpawnSpec, wanted: bool) -> None:
    """What on Windows comes nearest to a session of POSIX: a process group, which console
    events can be sent to, and which the console's own Ctrl-C does not reach."""
    # From another console events do not come, and there Windows ignores the flag.
    if not spec.creationflags & OWN_CONSOLE:
        if wanted:
            spec.creationflags |= _subprocess.CREATE_NEW_PROCESS_GROUP
        spec.leads_group = bool(spec.creationflags & _subprocess.CREATE_NEW_PROCESS_GROUP)


def check_handle(handle: int) -> None:
    """OSError for one that is closed."""
    if handle <= 0:  # -1 is this process, -2 this thread, of which Windows knows
        raise command_line.windows_error(6, "The handle is invalid", None)
    os.get_handle_inheritable(handle)  # type: ignore[attr-defined,unused-ignore]
