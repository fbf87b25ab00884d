"""The pure room: children by the standard library's Popen, and nothing else beside it."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from .windows.pure import PureBackend, mechanism, orphans
else:
    from .posix.pure import PureBackend, mechanism, orphans

__all__ = ["PureBackend", "mechanism", "orphans"]
