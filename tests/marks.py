"""Where tests cannot run."""

from __future__ import annotations

import pytest

from programs import HAS_PROC, WINDOWS


def posix_only(why: str) -> pytest.MarkDecorator:
    """Says what it is that Windows has not."""
    return pytest.mark.skipif(WINDOWS, reason=f"not on Windows: {why}")


proc_only = pytest.mark.skipif(not HAS_PROC, reason="no /proc as Linux has it")
windows_only = pytest.mark.skipif(not WINDOWS, reason="about Windows")
