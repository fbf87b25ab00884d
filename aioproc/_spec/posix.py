"""What is judged on POSIX alone: ids, descriptors, and strings as the kernel takes them."""

from __future__ import annotations

import operator
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .environment import Environment, own_prefixes

if TYPE_CHECKING:
    from .spec import SpawnSpec, StrOrBytesPath

try:
    import grp
    import pwd
except ImportError:  # Windows, Emscripten
    pass

_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
_HAS_NUL = operator.methodcaller("__contains__", 0)

#: One less than what uid_t can hold: that one, -1, means "no change" to setreuid() and its
#: kin, so that the child would keep what it shall give up.
_MAX_ID = 2**32 - 2
_MAX_FD = 2**31 - 1


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


def judge_descriptors(spec: SpawnSpec, close_fds: bool, pass_fds: Iterable[int]) -> None:
    spec.pass_fds = sorted(set(map(int, pass_fds))) if pass_fds else []
    if spec.pass_fds and (spec.pass_fds[0] < 0 or spec.pass_fds[-1] > _MAX_FD):
        raise ValueError("bad value(s) in fds_to_keep")
    if spec.pass_fds and not close_fds:
        warnings.warn("pass_fds overriding close_fds.", RuntimeWarning, stacklevel=4)
        close_fds = True
    spec.close_fds = bool(close_fds)
    if spec.pass_fds:
        spec.given = [*spec.given, *spec.pass_fds]


def judge_ids(
    spec: SpawnSpec,
    user: str | int | None,
    group: str | int | None,
    extra_groups: Iterable[str | int] | None,
) -> None:
    spec.user = None if user is None else _database_id(user, "User")
    spec.group = None if group is None else _database_id(group, "Group")
    if extra_groups is not None:
        if isinstance(extra_groups, str):
            raise ValueError("Groups must be a list, not a string")
        try:
            spec.extra_groups = [_database_id(item, "Group") for item in extra_groups]
        except OverflowError as error:
            # Of this list Popen says so, of `user` and `group` it lets it through.
            raise ValueError(str(error)) from None
        if len(spec.extra_groups) > 65536:  # NGROUPS_MAX on Linux
            raise ValueError("too many extra_groups")


def refuse_session(start_new_session: bool | None, process_group: int | None) -> None:
    """Of a child with a terminal, which controls a session of its own."""
    if start_new_session is not None and not start_new_session:
        raise ValueError("start_new_session=False: a terminal needs a session of its own")
    if process_group is not None and process_group >= 0:
        raise ValueError("process_group may not be given with pty: it leads the session's own")


def judge_strings(
    spec: SpawnSpec,
    args: list[Any],
    executable: StrOrBytesPath | None,
    cwd: StrOrBytesPath | None,
    env: Mapping[Any, Any] | None,
) -> None:
    argv = _encoded(args)
    if env is not None:
        spec.env = env
        spec.environment = Environment(env)
    if cwd is not None:
        spec.cwd = cwd
        encoded_cwd = spec.encoded_cwd = os.fsencode(cwd)
        if b"\0" in encoded_cwd:
            raise ValueError("embedded null byte")
    _judge_command(spec, args, argv, executable)


def judge_command(spec: SpawnSpec, args: list[Any]) -> None:
    """In the place of one that has been judged with all else."""
    _judge_command(spec, args, _encoded(args), None)


def _encoded(args: list[Any]) -> list[bytes]:
    # os.fsencode(), whose own call would cost more than its work.
    return [
        arg.encode(_ENCODING, _ERRORS) if type(arg) is str else os.fsencode(arg) for arg in args
    ]


def _judge_command(
    spec: SpawnSpec, args: list[Any], argv: list[bytes], executable: StrOrBytesPath | None
) -> None:
    spec.args = args
    spec.argv = argv
    if executable is None:
        spec.executable = args[0]
        program = argv[0]
    else:
        spec.executable = executable
        program = os.fsencode(executable)
    if b"\0" in program or any(map(_HAS_NUL, argv)):
        raise ValueError("embedded null byte")
    if b"/" in program:
        spec.programs = [program]
    else:
        environment = spec.environment
        prefixes = own_prefixes() if environment is None else environment.prefixes()
        spec.programs = [prefix + program for prefix in prefixes]
