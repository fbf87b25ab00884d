"""Traces a process as a debugger does, and lets it go on: python tests/tracer.py PID

Says "attached", or why not, and ends with the process.
"""

from __future__ import annotations

import ctypes
import os
import sys

# linux/ptrace.h, linux/wait.h
SEIZE, CONT, ALL_KINDS = 0x4206, 7, 0x40000000


def main(pid: int) -> None:
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    ptrace.restype = ctypes.c_long
    if ptrace(SEIZE, pid, None, None) < 0:
        print(os.strerror(ctypes.get_errno()), flush=True)
        return
    print("attached", flush=True)
    while True:
        _, status = os.waitpid(pid, ALL_KINDS)
        if not os.WIFSTOPPED(status):
            return
        # A signal on its way to the process, or (with an event) none.
        ptrace(CONT, pid, None, None if status >> 16 else os.WSTOPSIG(status))


if __name__ == "__main__":
    main(int(sys.argv[1]))
