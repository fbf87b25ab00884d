"""Builds the optional extension; everything else is in pyproject.toml.

AIOPROC_BUILD_EXTENSION decides:
  auto     (default) build it if possible; if not, warn and install pure Python
  require  fail if it cannot be built
  no       leave it out
"""

from __future__ import annotations

import os
import platform
import re
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))

CHOICES = ("auto", "require", "no")
CHOICE = os.environ.get("AIOPROC_BUILD_EXTENSION") or "auto"
if CHOICE not in CHOICES:
    raise SystemExit(f"AIOPROC_BUILD_EXTENSION is {CHOICE!r}; it can be {', '.join(CHOICES)}")


def why_not() -> str | None:
    """Why the extension cannot be built here, or None."""
    try:
        from build_native import PLATFORMS, platform_name
    except ImportError as error:
        return f"cffi is missing ({error})"
    if platform_name() not in PLATFORMS:
        return f"there is no native backend for {sys.platform}"
    return None


def has_stable_abi() -> bool:
    """One binary serves every CPython from 3.10 on. PyPy has no stable ABI, and
    free-threaded builds have none before 3.15."""
    return platform.python_implementation() == "CPython" and not sysconfig.get_config_var(
        "Py_GIL_DISABLED"
    )


class BuildExtension(build_ext):
    """With ``auto`` a failed compile makes the package a pure one."""

    def get_ext_filename(self, fullname: str) -> str:
        # From 3.15 on the name has the platform in it, and no older Python would find
        # the extension of a wheel that says it is for all.
        name: str = super().get_ext_filename(fullname)  # type: ignore[no-untyped-call]
        return re.sub(r"\.abi3-[^.]+\.so$", ".abi3.so", name)

    def run(self) -> None:
        inplace = self.inplace
        try:
            super().run()
        except Exception as error:
            # Whatever went wrong: no compiler, no Python.h, an old libc.
            if CHOICE == "require":
                raise SystemExit(
                    f"aioproc: AIOPROC_BUILD_EXTENSION=require, but the extension cannot be built "
                    f"(Python's headers and a C compiler are needed): {error}"
                ) from error
            warnings.warn(
                f"aioproc: installing without the extension: {error}; "
                "set AIOPROC_BUILD_EXTENSION=require to make this an error",
                stacklevel=1,
            )
            self.inplace = inplace  # as it is after a run that worked
            self._leave_it_out()

    def _leave_it_out(self) -> None:
        for extension in self.extensions:
            # One from an earlier build would be installed in its place.
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        self.extensions = []
        self.distribution.ext_modules = []
        wheel: Any = self.distribution.get_command_obj("bdist_wheel", create=False)
        if wheel is not None:
            wheel.root_is_pure = True  # py3-none-any, which is what it is now


arguments: dict[str, Any] = {}
if CHOICE != "no":
    reason = why_not()
    if reason is None:
        arguments["cffi_modules"] = ["csrc/build_native.py:ffibuilder"]
        arguments["cmdclass"] = {"build_ext": BuildExtension}
        if has_stable_abi():
            arguments["options"] = {"bdist_wheel": {"py_limited_api": "cp310"}}
    elif CHOICE == "require":
        raise SystemExit(f"aioproc: AIOPROC_BUILD_EXTENSION=require, but {reason}")
    else:
        warnings.warn(f"aioproc: installing without the extension: {reason}", stacklevel=1)

setup(**arguments)
