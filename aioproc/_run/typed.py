"""The types of run()'s options, for its overloads."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Awaitable, Callable, Container, Iterable, Mapping
from typing import IO, Any, Literal, TypedDict

from .limiter import Limiter

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
#: A stream that is inherited (None), DEVNULL, PIPE, a descriptor, an open file, or a path that is
#: opened for the run. For stderr also STDOUT.
Stream = int | IO[Any] | os.PathLike[str] | os.PathLike[bytes] | None

BytesLike = bytes | bytearray | memoryview
BytesInput = BytesLike | IO[bytes] | Iterable[BytesLike] | AsyncIterable[BytesLike] | Any
Input = BytesInput | str | IO[str] | Iterable[str] | AsyncIterable[str]

BytesCallback = Callable[[str, bytes], Awaitable[object] | object]
TextCallback = Callable[[str, str], Awaitable[object] | object]

Step = tuple[int | Literal["eof"], float]


class SpawnOptions(TypedDict, total=False):
    """What run() and open_process() have in common."""

    stdin: Stream
    stdout: Stream
    stderr: Stream
    stop: float | Iterable[Step]
    tree: bool
    cwd: Path | None
    env: Mapping[str, Path] | Mapping[bytes, Path] | None
    env_update: Mapping[str, Path | None] | Mapping[bytes, Path | None] | None
    name: str | None
    executable: Path | None
    close_fds: bool
    pass_fds: Iterable[int]
    start_new_session: bool | None
    process_group: int | None
    user: str | int | None
    group: str | int | None
    extra_groups: Iterable[str | int] | None
    umask: int
    preexec_fn: Callable[[], Any] | None
    restore_signals: bool
    pipesize: int
    pty: bool | tuple[int, int] | None
    echo: bool
    startupinfo: Any
    creationflags: int
    rlimits: Mapping[str, int | float | tuple[int | None, int | None]] | None
    nice: int | str | None
    cpu_affinity: Iterable[int] | None
    oom_score_adj: int | None
    no_new_privs: bool
    die_with_parent: bool | None


class OpenOptions(SpawnOptions, total=False):
    """Of open_process(), all that does not depend on whether streams are of text."""


class ManyOptions(SpawnOptions, total=False):
    """Of run_many() and run_all(), the same."""

    input: Input
    capture_output: bool
    check: bool | Container[int]
    timeout: float | None
    idle_timeout: float | None
    drain: float
    leftovers: Literal["leave", "kill"]
    max_output: int | None


class RunOptions(ManyOptions, total=False):
    """Of run(), the same."""

    limiter: Limiter | None
