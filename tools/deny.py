"""Runs a command that may not use some system calls, as in a strict container.

    python tools/deny.py pidfd_open -- CMD ARGS

The calls fail with EPERM, by a seccomp filter (seccomp(2)). For tests, on Linux.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

# Numbers from 424 on are the same on every architecture.
CALLS = {
    "pidfd_send_signal": dict.fromkeys(("x86_64", "aarch64"), 424),
    "pidfd_open": dict.fromkeys(("x86_64", "aarch64"), 434),
    "clone3": dict.fromkeys(("x86_64", "aarch64"), 435),
    "close_range": dict.fromkeys(("x86_64", "aarch64"), 436),
    "waitid": {"x86_64": 247, "aarch64": 95},
}

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
RETURN_ERRNO, RETURN_ALLOW = 0x00050000, 0x7FFF0000
NUMBER = 0  # offset of seccomp_data.nr


def program(numbers: list[int]) -> bytes:
    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    parts = [instruction(LOAD, NUMBER)]
    for i, number in enumerate(numbers):
        parts.append(instruction(JUMP_IF_EQUAL, number, if_true=len(numbers) - i))
    parts.append(instruction(RETURN, RETURN_ALLOW))
    parts.append(instruction(RETURN, RETURN_ERRNO | errno.EPERM))
    return b"".join(parts)


def deny(numbers: list[int]) -> None:
    """This process and all its descendants can no longer make these calls."""
    code = ctypes.create_string_buffer(program(numbers))
    fprog = struct.pack("@HP", len(numbers) + 3, ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 4]
    # Only without the privilege does a filter need no_new_privs, which tests would notice.
    if prctl(PR_SET_SECCOMP, MODE_FILTER, fprog, 0, 0) == 0:
        return
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if prctl(PR_SET_SECCOMP, MODE_FILTER, fprog, 0, 0) == 0:
        return
    number = ctypes.get_errno()
    raise OSError(number, f"seccomp: {os.strerror(number)}")


def main() -> None:
    arguments = sys.argv[1:]
    if "--" not in arguments or not set(arguments[: arguments.index("--")]) <= set(CALLS):
        sys.exit(f"{__doc__}\nThe calls: {', '.join(CALLS)}")
    split = arguments.index("--")
    calls, command = arguments[:split], arguments[split + 1 :]
    deny([CALLS[call][platform.machine()] for call in calls])
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
