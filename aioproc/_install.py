"""install(): asyncio's subprocess functions served by aioproc, in the whole process.

The one file that touches asyncio's own names. What is replaced, and why that is enough:

- the loops' subprocess_exec and subprocess_shell, which everything ends in;
- asyncio.subprocess.Process and SubprocessStreamProtocol, which asyncio's functions look
  up when they are called, so that ``from asyncio import create_subprocess_exec``, done
  long before, is served too.

No function's code is exchanged. Whoever has imported those two classes by name before
keeps asyncio's, on our transport; that works, but with asyncio's communicate().
"""

from __future__ import annotations

import asyncio
import asyncio.base_events
import importlib
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import _api
from ._asyncio.process import Process
from ._asyncio.protocol import StreamProtocol

#: asyncio's default for the length of a line, in bytes.
ASYNCIO_LIMIT = 64 * 1024

#: Packages with an event loop class that has these methods of its own.
LOOP_PACKAGES = ("uvloop", "winloop")

Name = tuple[Any, str]

_lock = threading.RLock()
#: What was there, and what we put there.
_originals: dict[Name, Any] = {}
_replacements: dict[Name, Any] = {}
_limit: int | None = ASYNCIO_LIMIT


class _InPlaceOfAsyncios(type):
    """asyncio's own objects, made before install(), are instances of what stands in the
    place of their class."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return cls.__subclasscheck__(type(instance))

    def __subclasscheck__(cls, subclass: type) -> bool:
        if cls is _InstalledProcess:
            return issubclass(subclass, _Process)
        if cls is _InstalledProtocol:
            return issubclass(subclass, _SubprocessStreamProtocol)
        return super().__subclasscheck__(subclass)


_Process: type = asyncio.subprocess.Process
_SubprocessStreamProtocol: type = asyncio.subprocess.SubprocessStreamProtocol


class _InstalledProcess(Process, metaclass=_InPlaceOfAsyncios):
    """What asyncio's functions make while we are installed."""

    _ignores_input = True


class _InstalledProtocol(StreamProtocol, metaclass=_InPlaceOfAsyncios):
    """The same, with asyncio's limit."""

    def __init__(self, limit: int | None, loop: asyncio.AbstractEventLoop) -> None:
        # asyncio's functions pass their default like a limit that was asked for.
        super().__init__(_limit if limit == ASYNCIO_LIMIT else limit, loop)


_InstalledProcess.__name__ = "Process"
_InstalledProtocol.__name__ = "SubprocessStreamProtocol"


async def _loop_subprocess_exec(
    self: asyncio.AbstractEventLoop, protocol_factory: Callable[[], Any], *args: Any, **kwds: Any
) -> tuple[Any, Any]:
    return await _api.subprocess_exec(protocol_factory, *args, **kwds)


async def _loop_subprocess_shell(
    self: asyncio.AbstractEventLoop, protocol_factory: Callable[[], Any], cmd: Any, **kwds: Any
) -> tuple[Any, Any]:
    return await _api.subprocess_shell(protocol_factory, cmd, **kwds)


_loop_subprocess_exec.__name__ = "subprocess_exec"
_loop_subprocess_shell.__name__ = "subprocess_shell"


def _loop_classes() -> list[type]:
    classes: list[type] = [asyncio.base_events.BaseEventLoop]
    for package in LOOP_PACKAGES:
        from importlib.util import find_spec

        # Imported now, since importing it later would bring its own methods back.
        if find_spec(package) is not None:
            try:
                classes.append(importlib.import_module(package).Loop)
            except (ImportError, AttributeError) as error:
                warnings.warn(f"aioproc: {package} is left out: {error}", stacklevel=4)
    return classes


def _wanted() -> dict[Name, Any]:
    names: dict[Name, Any] = {
        (asyncio.subprocess, "Process"): _InstalledProcess,
        (asyncio.subprocess, "SubprocessStreamProtocol"): _InstalledProtocol,
    }
    for loop_class in _loop_classes():
        names[loop_class, "subprocess_exec"] = _loop_subprocess_exec
        names[loop_class, "subprocess_shell"] = _loop_subprocess_shell
    return names


def install(*, limit: int | None = ASYNCIO_LIMIT) -> None:
    """Have aioproc serve asyncio's subprocess functions, for all code in this process.

    That covers :func:`asyncio.create_subprocess_exec` and
    :func:`asyncio.create_subprocess_shell`, also where they were imported before; the methods
    subprocess_exec and subprocess_shell of asyncio's loops, uvloop's and winloop's; and
    :class:`asyncio.subprocess.Process`. Children that exist already stay what they are.

    Calling it again is harmless, and changes the limit. A loop class whose methods cannot be
    replaced is left out with a RuntimeWarning.

    Args:
        limit: The longest line in bytes, for calls that do not ask for a limit. The default
            is asyncio's, with asyncio's errors for longer lines: nothing changes for programs
            that count on them. None: lines of any length, also for libraries that never
            thought of a limit. (A call that asks for exactly 65536 cannot be told from one
            that does not ask.)

    Raises:
        ValueError: The limit is not positive.
    """
    global _limit
    if limit is not None and limit <= 0:
        raise ValueError("Limit cannot be <= 0")
    with _lock:
        _limit = limit
        for name, replacement in _wanted().items():
            holder, attribute = name
            if name in _originals:
                continue
            original = vars(holder).get(attribute)
            try:
                setattr(holder, attribute, replacement)
            except TypeError as error:  # a class of an extension
                warnings.warn(
                    f"aioproc: {holder.__name__}.{attribute} cannot be replaced: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            else:
                _originals[name] = original
                _replacements[name] = replacement


def uninstall() -> None:
    """Restore exactly what was there before install().

    It is harmless if that was not called. Children that exist already stay aioproc's.

    Raises:
        RuntimeError: Somebody has replaced one of the same names since. Nothing is changed.
    """
    with _lock:
        for (holder, attribute), replacement in _replacements.items():
            if vars(holder).get(attribute) is not replacement:
                raise RuntimeError(
                    f"{holder.__name__}.{attribute} has been replaced since aioproc.install(); "
                    "undo that first"
                )
        for (holder, attribute), original in _originals.items():
            if original is None:
                delattr(holder, attribute)
            else:
                setattr(holder, attribute, original)
        _originals.clear()
        _replacements.clear()


def is_installed() -> bool:
    """Tell whether aioproc serves asyncio's subprocess functions in this process.

    Returns:
        True from install() to uninstall(), and in a block of installed(). True as well if
        somebody has replaced one of asyncio's names since.
    """
    return bool(_originals)


@contextmanager
def installed(*, limit: int | None = ASYNCIO_LIMIT) -> Iterator[None]:
    """Return a context manager that installs for a block of code, and uninstalls after it.

    It concerns the whole process, and not only this task or thread. (Whether aioproc is
    installed is what :func:`is_installed` tells.) Inside a block of the same kind, or after
    install(), it only sets the limit and puts the former one back.

    Args:
        limit: As that of :func:`install`.

    Raises:
        ValueError, RuntimeError: As install() and uninstall().
    """
    global _limit
    with _lock:
        nested, former = bool(_originals), _limit
        install(limit=limit)
    try:
        yield
    finally:
        with _lock:
            if nested:
                _limit = former
            else:
                uninstall()
