"""Builds aioproc._native with cffi (out-of-line API mode).

The header is the cdef: lines that begin with ``#`` are for the C compiler, every
other line is read by both. One table says which C files a platform gets.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent

#: sys.platform -> header and C files, from csrc/. A platform that is not here
#: gets the pure-Python backend.
PLATFORMS = {
    "linux": (
        "posix/aioproc_posix.h",
        (
            "posix/children.c",
            "posix/pidfd.c",
            "posix/plan.c",
            "posix/port_epoll.c",
            "posix/spawn_clone.c",
            "posix/spawn_posix.c",
        ),
    ),
    "win32": (
        "windows/aioproc_windows.h",
        (
            "windows/children.c",
            "windows/pipe.c",
            "windows/port.c",
            "windows/spawn.c",
        ),
    ),
}


#: For the compiler and the linker of setuptools: MSVC on Windows. Windows' libraries are
#: the ones it links by itself (kernel32).
POSIX_FLAGS = (["-std=c11", "-pthread", "-Wall", "-Wextra", "-fvisibility=hidden"], ["-pthread"])
FLAGS: dict[str, tuple[list[str], list[str]]] = {"win32": (["/std:c11", "/W3"], [])}


def make_ffibuilder(platform: str = sys.platform) -> cffi.FFI:
    """For setuptools; another platform than ours is for cross compilers, which take
    emit_c_code() and the sources."""
    header, sources = PLATFORMS[platform]
    text = (HERE / header).read_text(encoding="utf-8")
    builder = cffi.FFI()
    builder.cdef("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    # AIOPROC_CFLAGS: further flags for tools/check.py (sanitizers, -Werror).
    flags, link_flags = FLAGS.get(platform, POSIX_FLAGS)
    folder = Path(header).parent.as_posix()
    builder.set_source(
        "aioproc._native",
        f'#include "{Path(header).name}"',
        # Relative to setup.py, which setuptools asks for.
        sources=[f"csrc/{source}" for source in sources],
        include_dirs=[f"csrc/{folder}"],
        depends=[f"csrc/{header}", f"csrc/{folder}/internal.h"],
        extra_compile_args=[*flags, *shlex.split(os.environ.get("AIOPROC_CFLAGS", ""))],
        extra_link_args=[*link_flags, *shlex.split(os.environ.get("AIOPROC_LDFLAGS", ""))],
    )
    return builder


ffibuilder = make_ffibuilder()
