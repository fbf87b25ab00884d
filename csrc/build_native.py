"""Builds aioproc._native with cffi (out-of-line API mode).

The header is the cdef: lines that begin with ``#`` are for the C compiler, every
other line is read by both. One table says which C files a platform gets.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import cffi

HERE = Path(__file__).resolve().parent


class Platform(NamedTuple):
    """What is compiled; paths from csrc/, flags for the compiler and the linker."""

    header: str
    sources: tuple[str, ...]
    flags: tuple[str, ...]
    link_flags: tuple[str, ...]


def _files(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.c" for name in names)


_POSIX_FLAGS = ("-std=c11", "-pthread", "-Wall", "-Wextra", "-fvisibility=hidden")
_COMMON = ("tokens.c",)
_POSIX = (
    *_COMMON,
    *_files("posix", "usage", "limits", "plan", "stdio", "looks", "output", "children"),
    *_files("posix", "spawn_posix", "port", "spawn", "tree"),
)
# And one way to watch, by one kind of handle; and one to see all processes.
_EPOLL = (
    *_files("posix", "port_epoll", "pidfd"),
    *_files("posix", "child_code", "spawn_thread", "spawn_clone"),
)
_KQUEUE = _files("posix", "port_kqueue", "pid")
_PROCFS = _files("posix", "tree_procfs")
_KINFO = _files("posix", "tree_kinfo")

_LINUX = Platform(
    "posix/aioproc_posix.h", (*_POSIX, *_EPOLL, *_PROCFS), _POSIX_FLAGS, ("-pthread", "-ldl")
)
_MACOS = Platform(
    "posix/aioproc_posix.h", (*_POSIX, *_KQUEUE, *_KINFO), _POSIX_FLAGS, ("-pthread",)
)
# The C library hides what is not C11 otherwise.
_BSD = _MACOS._replace(flags=(*_POSIX_FLAGS, "-D_NETBSD_SOURCE", "-D_BSD_SOURCE"))

#: By setuptools that is for MSVC. Of Windows' libraries it takes what is linked anyway
#: (kernel32).
_WINDOWS = Platform(
    "windows/aioproc_windows.h",
    (*_COMMON, *_files("windows", "plan", "children", "news", "pipe", "job", "port", "spawn")),
    ("/std:c11", "/W3"),
    (),
)

#: sys.platform, without a version. A platform that is not here gets the pure-Python
#: backend.
PLATFORMS = {
    "linux": _LINUX,
    "darwin": _MACOS,
    "dragonfly": _BSD,
    "freebsd": _BSD,
    "netbsd": _BSD,
    "openbsd": _BSD,
    "win32": _WINDOWS,
    # Linux with the files of the BSDs, for the tests: see tests/shim.
    "linux-kqueue": _LINUX._replace(
        sources=(*_POSIX, *_KQUEUE, *_KINFO),
        flags=(*_POSIX_FLAGS, "-DAIOPROC_KQUEUE", "-Itests/shim"),
    ),
}


def platform_name() -> str:
    """The key in PLATFORMS, be it there or not. AIOPROC_PLATFORM is for tools/."""
    name = os.environ.get("AIOPROC_PLATFORM") or sys.platform
    return name if name in PLATFORMS else name.rstrip("0123456789.")


def make_ffibuilder(name: str) -> cffi.FFI:
    header, sources, flags, link_flags = PLATFORMS[name]
    text = (HERE / header).read_text(encoding="utf-8")
    builder = cffi.FFI()
    builder.cdef("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    # AIOPROC_CFLAGS: further flags for tools/check.py (sanitizers, -Werror).
    more = shlex.split(os.environ.get("AIOPROC_CFLAGS", ""))
    more_link = shlex.split(os.environ.get("AIOPROC_LDFLAGS", ""))
    folder = Path(header).parent.as_posix()
    builder.set_source(
        "aioproc._native",
        f'#include "{Path(header).name}"',
        # Relative to setup.py, which setuptools asks for.
        sources=[f"csrc/{source}" for source in sources],
        include_dirs=[f"csrc/{folder}"],
        depends=sorted(
            f"csrc/{file.relative_to(HERE).as_posix()}"
            for file in [*HERE.glob("*.h"), *(HERE / folder).glob("*.h")]
        ),
        extra_compile_args=[*flags, *more],
        extra_link_args=[*link_flags, *more_link],
    )
    return builder


if platform_name() in PLATFORMS:
    ffibuilder = make_ffibuilder(platform_name())
