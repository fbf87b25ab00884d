"""What the layers above have to know of the system they run on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T", bound="tuple[Any, float]")

WINDOWS = sys.platform == "win32"
LINUX = sys.platform in ("linux", "android")
#: Whether a process can be kept to some of the CPUs: not on macOS. (PyPy has no call for it.)
HAS_CPUS = LINUX or hasattr(os, "sched_setaffinity")

#: 0 is the other of the console's events there.
CTRL_BREAK: int = getattr(signal, "CTRL_BREAK_EVENT", 1)

_kernel32: Any = None
if sys.platform == "win32":
    import ctypes
    import shutil  # a tenth of our own time to import elsewhere, for nothing

    _kernel32 = ctypes.WinDLL("kernel32")


def has_console() -> bool:
    """Whether this process has a console, be it one without a window. (Windows)"""
    # It fails without one. GetConsoleWindow says nothing of a console without a window.
    return bool(_kernel32.GetConsoleCP())


def has_input(fd: int) -> bool | None:
    """Whether a pipe has something to read, or has ended; None if it is none. (Windows)"""
    if sys.platform != "win32":
        raise NotImplementedError
    import _winapi
    import msvcrt

    try:
        return _winapi.PeekNamedPipe(msvcrt.get_osfhandle(fd), 0)[0] > 0
    except BrokenPipeError:
        return True
    except OSError:  # a console, say
        return None


def spellings(name: str | bytes, names: Iterable[Any]) -> list[Any]:
    """What of these names of environment variables, or in place of them, means the same."""
    if WINDOWS and isinstance(name, str):
        # Case makes no difference there.
        return [one for one in names if isinstance(one, str) and one.upper() == name.upper()]
    return [os.fsencode(name), os.fsdecode(name)]


def relative(program: Any) -> Any:
    """A program as CreateProcess does not look for it in PATH: that it does with `a\\b`, in
    every directory, but not with `.\\a\\b`."""
    if not WINDOWS or not isinstance(program, (str, bytes, os.PathLike)):
        return program
    path = os.fsdecode(program)
    first = path.replace("/", "\\").partition("\\")[0]
    if not os.path.dirname(path) or first in ("", ".", "..") or os.path.splitdrive(path)[0]:
        return program
    return os.path.join(os.curdir, path)


def from_here(program: Any) -> str | bytes | None:
    """A program as seen from another directory; None if its name says the same there."""
    # Windows looks from our directory, wherever the child is to be.
    path: str | bytes = os.fspath(program)
    if WINDOWS or not os.path.dirname(path) or os.path.isabs(path):
        return None
    return os.path.abspath(path)


def check_stop_signal(number: int) -> None:
    """ValueError for one that nobody can be given, to end by it."""
    if not WINDOWS:
        if number not in signal.valid_signals():
            raise ValueError(f"there is no signal {number}")
        return
    if number not in (signal.SIGTERM, CTRL_BREAK):
        # Whoever leads a process group does not hear of CTRL_C_EVENT, and nobody else can be
        # given it without us.
        raise ValueError(
            f"no signal {number} can be given on Windows: a step of stop can be SIGTERM or "
            "CTRL_BREAK_EVENT there"
        )


def possible_steps(steps: list[T], leads_group: bool) -> list[T]:
    """Those steps of an ending of which the child can hear."""
    if not WINDOWS or leads_group:
        return steps
    # Console events are for process groups, and there are no signals.
    return [step for step in steps if step[0] == "eof"]


def process_state(pid: int) -> str | None:
    """The letter of a process's state, as ps shows it; None where nobody knows."""
    if WINDOWS:
        return None  # under Wine there is a /proc, with other numbers
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # What precedes it is the program's name, in which anything may stand.
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError, UnicodeDecodeError):
        return None


def find_shell(shell: Any) -> Any:
    """A shell as `executable` wants it."""
    if sys.platform == "win32":
        # With that, CreateProcess looks in no PATH, and wants the whole name.
        return shutil.which(shell) or shell
    return shell


def shell_flag(shell: Any) -> list[str] | None:
    """What goes between a shell's name and a command; None: as Popen's shell=True has it."""
    name = os.path.basename(os.fsdecode(shell)).lower()
    if name.removesuffix(".exe") in ("powershell", "pwsh"):
        return ["-NoProfile", "-NonInteractive", "-Command"]
    if not WINDOWS or name.removesuffix(".exe") == "cmd":
        return None
    return ["-c"]
