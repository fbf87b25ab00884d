"""Builds the optional extension; everything else is in pyproject.toml.

AIOPROC_BUILD_EXTENSION decides:
  auto     (default) build it if possible; if not, warn and install pure Python
  require  fail if it cannot be built
  no       leave it out
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
import warnings
from typing import Any

from setuptools import setup

CHOICES = ("auto", "require", "no")
choice = os.environ.get("AIOPROC_BUILD_EXTENSION", "auto")
if choice not in CHOICES:
    raise SystemExit(f"AIOPROC_BUILD_EXTENSION is {choice!r}; it can be {', '.join(CHOICES)}")


def why_not() -> str | None:
    """Why the extension cannot be built here, or None."""
    if sys.platform != "linux":
        return f"there is no native backend for {sys.platform} yet"
    try:
        import cffi  # noqa: F401
    except ImportError as error:
        return f"cffi is missing ({error})"
    return None


arguments: dict[str, Any] = {}
if choice != "no":
    reason = why_not()
    if reason is None:
        arguments["cffi_modules"] = ["csrc/build_native.py:ffibuilder"]
        # One binary serves every CPython from 3.10 on. PyPy has no stable ABI, and
        # free-threaded builds have none before 3.15.
        if platform.python_implementation() == "CPython" and not sysconfig.get_config_var(
            "Py_GIL_DISABLED"
        ):
            arguments["options"] = {"bdist_wheel": {"py_limited_api": "cp310"}}
    elif choice == "require":
        raise SystemExit(f"aioproc: the extension is required, but {reason}")
    else:
        warnings.warn(f"aioproc: installing without the extension: {reason}", stacklevel=1)

setup(**arguments)
