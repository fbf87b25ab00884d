"""The environment that a child of the native backend inherits: C's ``environ``.

``os.environ`` is a copy of it, made when Python started: ``os.putenv``, ``os.unsetenv`` and
C's ``setenv`` pass it by (python/cpython#113119). Other threads change ``environ``, if
they do, by Python functions that hold the GIL. So it is read in single calls: between
two of them another thread may have its turn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import count, repeat, takewhile
from operator import getitem
from typing import Any

from ... import _native

ffi = _native.ffi
lib = _native.lib

_environ = lib.ap_environ()
_KEPT = bool(lib.ap_features() & lib.AP_KEEPS_ENVIRON)

#: Without the GIL nothing keeps others from changing it meanwhile. (Python 3.13)
_GUARDED = getattr(sys, "_is_gil_enabled", lambda: True)()


def _pointers() -> Iterator[Any]:
    """environ[0], environ[1] and so on, up to the NULL; to be used up in one call."""
    if not _environ[0]:
        return iter(())  # after clearenv()
    arrays = map(getitem, repeat(_environ), repeat(0))
    return takewhile(bool, map(getitem, arrays, count()))


def _of_python() -> list[bytes]:
    # The plain dict behind it, which is copied at once.
    variables = dict(getattr(os.environ, "_data", None) or os.environb)
    return [b"%b=%b" % item for item in variables.items()]


class _Block:
    """NAME=value strings, each with its NUL, one after the other; and whether that is
    still what there is."""

    __slots__ = ("_found", "_places", "count", "text")

    def __init__(self) -> None:
        #: Memory, and what is in it as long as nothing has changed.
        self._places: list[Any] = []
        self._found: list[bytes] = []
        if not _GUARDED:
            entries = _of_python()
        elif _KEPT:
            pointers = list(_pointers())
            entries = list(map(ffi.string, pointers))
            self._remember(pointers, entries)
        else:
            entries = list(map(ffi.string, _pointers()))
        self.count = len(entries)
        self.text = b"\0".join([*entries, b""])

    def _remember(self, pointers: list[Any], entries: list[bytes]) -> None:
        array = _environ[0]
        if not array:
            return
        for place, content in (
            (_environ, ffi.new("char **[]", [array])),
            (array, ffi.new("char *[]", [*pointers, ffi.NULL])),
        ):
            found = ffi.buffer(content)[:]
            self._places.append(ffi.buffer(place, len(found)))
            self._found.append(found)
        # Those that lie side by side, as the kernel has put them there, are one place.
        start: Any = None
        end: Any = None
        for pointer, entry in zip(pointers, entries, strict=True):
            text = entry + b"\0"
            if pointer == end:
                text = self._found.pop() + text
                self._places.pop()
            else:
                start = pointer
            self._places.append(ffi.buffer(start, len(text)))
            self._found.append(text)
            end = start + len(text)

    def is_current(self) -> bool:
        # In one call, and in this order: is it the same array, has that the same
        # pointers, do they point to the same?
        return bool(self._found) and self._places == self._found


_cached: _Block | None = None


def inherited() -> _Block:
    """What there is now. Read anew only when it has changed, where that can be seen:
    reading it takes ten times as long as looking."""
    global _cached
    cached = _cached
    if cached is None or not cached.is_current():
        _cached = cached = _Block()
    return cached
