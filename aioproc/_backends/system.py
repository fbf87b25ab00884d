"""What the layers above have to know of the system they run on."""

from __future__ import annotations

import sys
from typing import Any

WINDOWS = sys.platform == "win32"

_kernel32: Any = None


def has_console() -> bool:
    """Whether this process has a console, be it one without a window. (Windows)"""
    global _kernel32
    if _kernel32 is None:
        import ctypes

        _kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    # It fails without one. GetConsoleWindow says nothing of a console without a window.
    return bool(_kernel32.GetConsoleCP())
