"""``exec``: a program run with aioproc in asyncio's place."""

from __future__ import annotations

import importlib.machinery
import io
import os
import pkgutil
import runpy
import sys
import types

from .. import install


def execute(arguments: list[str], as_module: bool, limit: int | None) -> None:
    """As ``python SCRIPT ...`` or ``python -m MODULE ...`` would, but installed."""
    install(limit=limit)
    target = arguments[0]
    sys.argv[:] = arguments
    # Ours is the working directory's place, unless python -P or -I was asked for.
    safe_path = sys.flags.isolated or getattr(sys.flags, "safe_path", False)
    if not safe_path:
        sys.path[0] = os.getcwd() if as_module else os.path.dirname(os.path.realpath(target))
    if as_module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    elif pkgutil.get_importer(target) is not None:  # a directory, a zip file
        runpy.run_path(target, run_name="__main__")
    else:
        _exec_script(os.path.abspath(target))


def _exec_script(path: str) -> None:
    """Not by runpy, which gives the script a module of its own for a while, and the name
    that was asked for as __file__, where python gives the whole path."""
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        print(f"aioproc: can't open file {path!r}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    code = compile(source, path, "exec")
    module = types.ModuleType("__main__")
    module.__file__ = path
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    sys.modules["__main__"] = module
    exec(code, module.__dict__)
