"""The C layer as the parts of the native backend on Windows see it."""

from __future__ import annotations

from ... import _native

ffi = _native.ffi
lib = _native.lib


def windows_error(number: int, note: str = "") -> OSError:
    """As Windows' own errors are raised, winerror and text included."""
    code, text = ffi.getwinerror(number)
    return OSError(0, text + note, None, code)


def check(result: int) -> int:
    if result < 0:
        raise windows_error(-result)
    return result
