"""System calls refused, as containers do it: a seccomp filter made by hand.

For helper processes only: a filter stays, and every child inherits it. It holds for the
calling thread and the threads and processes that this one starts later.

Source: seccomp(2), linux/filter.h, linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Mapping

#: The numbers of the calls that tests refuse, and AUDIT_ARCH_*, by machine.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = {
    "x86_64": {
        "ioctl": 16,
        "clone": 56,
        "fork": 57,
        "vfork": 58,
        "fcntl": 72,
        "setsid": 112,
        "prlimit64": 302,
        "waitid": 247,
        "openat": 257,
        "timerfd_create": 283,
        "epoll_create1": 291,
        "pipe2": 293,
        "getdents64": 217,
        "pidfd_send_signal": 424,
        "pidfd_open": 434,
        "clone3": 435,
        "close_range": 436,
    },
    "aarch64": {
        "ioctl": 29,
        "clone": 220,
        "fcntl": 25,
        "setsid": 157,
        "prlimit64": 261,
        "waitid": 95,
        "openat": 56,
        "timerfd_create": 85,
        "epoll_create1": 20,
        "pipe2": 59,
        "getdents64": 61,
        "pidfd_send_signal": 424,
        "pidfd_open": 434,
        "clone3": 435,
        "close_range": 436,
    },
}

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
#: BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
#: Offsets in struct seccomp_data.
NUMBER, ARCH = 0, 4


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def supported() -> bool:
    """Whether deny() knows the numbers of this machine."""
    return platform.machine() in NUMBERS


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def deny(calls: Mapping[str, int]) -> None:
    """From now on each of these calls fails with its errno; {"pidfd_open": errno.EPERM}."""
    machine = platform.machine()
    numbers = NUMBERS[machine]
    program = [
        # A call by another architecture's numbers (32 bits) is none of ours.
        _instruction(LOAD, ARCH),
        _instruction(JUMP_IF_EQUAL, AUDIT_ARCH[machine], 1, 0),
        _instruction(RETURN, RET_ALLOW),
        _instruction(LOAD, NUMBER),
    ]
    for name, error in calls.items():
        program.append(_instruction(JUMP_IF_EQUAL, numbers[name], 0, 1))
        program.append(_instruction(RETURN, RET_ERRNO | error))
    program.append(_instruction(RETURN, RET_ALLOW))

    code = _Program(len(program), b"".join(program))
    libc = ctypes.CDLL(None, use_errno=True)
    # Without privileges a filter is allowed to those only who can gain no more of them.
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(code), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
