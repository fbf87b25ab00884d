"""What tests/aside.py asks of a system without Linux' /proc: macOS and the BSDs."""

from __future__ import annotations

import os
import stat
import subprocess


def _ps(*columns: str) -> tuple[int, list[list[str]]]:
    """The pid of ps itself, and its lines."""
    words = ["ps", "-A", *(word for column in columns for word in ("-o", f"{column}="))]
    # procps' ps hangs with the address sanitizer's library (tools/check.py, "sanitizers").
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        return process.pid, [line.split() for line in process.stdout]


def children() -> set[int]:
    """Children of this process, zombies among them."""
    own = str(os.getpid())
    ps, lines = _ps("pid", "ppid")
    return {int(pid) for pid, parent in lines if parent == own} - {ps}


def is_alive(pid: int) -> bool:
    """False for a zombie, which waits for its parent only."""
    return any(int(number) == pid and state[0] != "Z" for number, state in _ps("pid", "state")[1])


def open_fds() -> dict[int, str]:
    fds = {}
    for name in os.listdir("/dev/fd"):
        try:
            status = os.fstat(int(name))
        except OSError:
            continue  # the one that lists
        fds[int(name)] = f"{stat.filemode(status.st_mode)} {status.st_ino}"
    return fds
