"""What the layers above have to know of the system they run on."""

from __future__ import annotations

import sys
from typing import Any

WINDOWS = sys.platform == "win32"

_kernel32: Any = None
if sys.platform == "win32":
    import ctypes

    _kernel32 = ctypes.WinDLL("kernel32")


def has_console() -> bool:
    """Whether this process has a console, be it one without a window. (Windows)"""
    # It fails without one. GetConsoleWindow says nothing of a console without a window.
    return bool(_kernel32.GetConsoleCP())
