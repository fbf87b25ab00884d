"""Environments and the search in PATH, as POSIX systems take them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def _prefixes(path: bytes) -> list[bytes]:
    """What to put before a program's name to find it in PATH, in order."""
    # An empty entry is the working directory (os.path.join's rule, and execvp's).
    return [os.path.join(directory, b"") for directory in path.split(b":")]


class Environment:
    """An environment that was given, as the kernel takes it."""

    __slots__ = ("_paths", "count", "text")

    #: NAME=value, each with its NUL.
    text: bytes
    count: int

    def __init__(self, variables: Mapping[Any, Any]) -> None:
        encode = os.fsencode
        entries = []
        paths = []
        for key, value in variables.items():
            name, encoded = encode(key), encode(value)
            # Popen passes an empty one on or not, depending on how it makes the child.
            if not name or b"=" in name:
                raise ValueError("illegal environment variable name")
            entries.append(name + b"=" + encoded + b"\0")
            if name == b"PATH":
                paths.append(encoded)
        self.text = b"".join(entries)
        self.count = len(entries)
        if self.text.count(b"\0") != self.count:
            raise ValueError("embedded null byte")
        self._paths = paths

    def prefixes(self) -> list[bytes]:
        if len(self._paths) > 1:
            raise ValueError("env cannot contain 'PATH' and b'PATH' keys")
        return _prefixes(self._paths[0] if self._paths else os.fsencode(os.defpath))


#: Of the last PATH that was ours.
_own_prefixes: tuple[str | None, list[bytes]] = (None, _prefixes(os.fsencode(os.defpath)))


def own_prefixes() -> list[bytes]:
    """By our own PATH: that of os.environ, as os.get_exec_path has it."""
    global _own_prefixes
    path = os.environ.get("PATH")
    cached = _own_prefixes
    if cached[0] != path:
        cached = (path, _prefixes(os.fsencode(os.defpath if path is None else path)))
        _own_prefixes = cached
    return cached[1]
