"""Refuses system calls, as containers do: a seccomp filter on the calling thread, for good.

To be used in a helper process (tests/aside.py), or for a whole command:

    python tests/seccomp.py pidfd_open,clone3 CMD ARGS     refuses them with EPERM

x86_64, aarch64 and riscv64.
"""

from __future__ import annotations

import errno
import os
import platform
import struct
import sys
from collections.abc import Mapping

try:
    import ctypes
except ImportError:  # without libffi: tools/musl.py
    ctypes = None  # type: ignore[assignment]

#: name -> number on x86_64 and on newer machines. A name in brackets stands for an
#: argument, below.
NUMBERS = {
    "clone": (56, 220),
    "clone(CLONE_PIDFD)": (56, 220),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "dup3": (292, 24),
    "epoll_create1": (291, 20),
    "getdents64": (217, 61),
    "ioctl(PIDFD_GET_INFO)": (16, 29),
    "ioctl(TCGETS)": (16, 29),
    "ioctl(TCGETS2)": (16, 29),
    "kill": (62, 129),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_send_signal(PROCESS_GROUP)": (424, 424),
    "prctl": (157, 167),
    "timerfd_create": (283, 85),
    "waitid": (247, 95),
}
_ARCHITECTURES = {
    "x86_64": (0, 0xC000003E),
    "aarch64": (1, 0xC00000B7),
    "riscv64": (1, 0xC00000F3),
}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
# Offsets in struct seccomp_data (linux/seccomp.h).
_NUMBER, _ARCHITECTURE, _ARGUMENT_0, _ARGUMENT_1, _ARGUMENT_3 = 0, 4, 16, 24, 40
# Classic BPF: load a word, compare, test bits, return.
_LOAD, _EQUAL, _BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_ARGUMENTS = {
    "clone(CLONE_PIDFD)": (_ARGUMENT_0, _BITS, 0x1000),
    "ioctl(PIDFD_GET_INFO)": (_ARGUMENT_1, _EQUAL, 0xC040FF0B),
    "ioctl(TCGETS)": (_ARGUMENT_1, _EQUAL, 0x5401),
    "ioctl(TCGETS2)": (_ARGUMENT_1, _EQUAL, 0x802C542A),
    "pidfd_send_signal(PROCESS_GROUP)": (_ARGUMENT_3, _BITS, 4),
}

SUPPORTED = sys.platform == "linux" and platform.machine() in _ARCHITECTURES and ctypes is not None


def deny(calls: Mapping[str, int]) -> None:
    """From now on these system calls fail with these errno in this thread, in threads that
    it starts, and in its children."""
    column, architecture = _ARCHITECTURES[platform.machine()]
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _ALLOW)]
    for name, error in calls.items():
        number = NUMBERS[name][column]
        program.append((_LOAD, 0, 0, _NUMBER))
        if name in _ARGUMENTS:
            offset, test, value = _ARGUMENTS[name]
            program += [(_EQUAL, 0, 3, number), (_LOAD, 0, 0, offset), (test, 0, 1, value)]
        else:
            program.append((_EQUAL, 0, 1, number))
        program.append((_RETURN, 0, 0, _ERRNO | error))
    program.append((_RETURN, 0, 0, _ALLOW))

    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *item) for item in program))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.create_string_buffer(head), 0, 0),
    ):
        if libc.prctl(*arguments) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    deny(dict.fromkeys(sys.argv[1].split(","), errno.EPERM))
    os.execvp(sys.argv[2], sys.argv[2:])
