"""The build backend: setuptools, which asks for cffi only if the extension is wanted.

Named in pyproject.toml. With AIOPROC_BUILD_EXTENSION=no the package installs where
there is neither a wheel of cffi nor a compiler to make one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from setuptools.build_meta import *  # noqa: F403

CHOICES = ("auto", "require", "no")

# PyPy has its own cffi.
RUN_REQUIREMENTS = [
    "cffi>=1.17; platform_python_implementation == 'CPython' "
    "and (sys_platform == 'linux' or sys_platform == 'win32')"
]

Settings = Mapping[str, Any] | None


def choice() -> str:
    """AIOPROC_BUILD_EXTENSION, judged."""
    value = os.environ.get("AIOPROC_BUILD_EXTENSION") or "auto"
    if value not in CHOICES:
        raise SystemExit(f"AIOPROC_BUILD_EXTENSION is {value!r}; it can be {', '.join(CHOICES)}")
    return value


def get_requires_for_build_wheel(  # type: ignore[no-redef]
    config_settings: Settings = None,
) -> list[str]:
    return [] if choice() == "no" else RUN_REQUIREMENTS


get_requires_for_build_editable = get_requires_for_build_wheel
