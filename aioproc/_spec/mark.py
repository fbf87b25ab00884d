"""The mark of a tree: what a child and all that it starts have in their environment."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

#: As many trees inside each other are told apart.
_MOST = 8


#: The variable.
NAME = "AIOPROC_TREE"
_PREFIX = NAME.encode() + b"="


def in_block(text: bytes, count: int, mark: str) -> tuple[list[bytes], int]:
    """A block of NAME=value strings, each with its NUL, and their number: with the mark.
    In parts, between which there are to be NULs."""
    if _PREFIX not in text:
        return [_PREFIX + mark.encode(), text], count + 1
    at = 0 if text.startswith(_PREFIX) else text.find(b"\0" + _PREFIX) + 1
    if at == 0 and not text.startswith(_PREFIX):
        return [_PREFIX + mark.encode(), text], count + 1  # it is in another's value
    start = at + len(_PREFIX)
    end = text.index(b"\0", start)
    return [text[:start] + appended(text[start:end], mark) + text[end:]], count


def in_mapping(env: Mapping[Any, Any] | None, mark: str) -> dict[Any, Any]:
    """An environment as Popen takes it, ours if there is none: with the mark."""
    variables: dict[Any, Any] = dict(os.environ if env is None else env)
    given = [variables.pop(name, b"") for name in (NAME, NAME.encode())]
    variables[NAME] = os.fsdecode(appended(os.fsencode(given[0] or given[1]), mark))
    return variables


class _Marks:
    """64 random bits to begin with, which others cannot guess, and others that lie far
    apart: one call of the kernel for all of this process."""

    #: Odd, so that none comes again: 2**64 divided by the golden ratio.
    _STEP = 0x9E3779B97F4A7C15

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """In a forked process, too, which would have the same as its parent."""
        self._numbers = itertools.count(int.from_bytes(os.urandom(8), "big"), self._STEP)

    def new(self) -> str:
        return f"{next(self._numbers) & 0xFFFFFFFFFFFFFFFF:016x}"


_marks = _Marks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_marks.begin)

#: Returns 64 random bits, as 16 hexadecimal digits.
new_mark = _marks.new


def appended(value: bytes, mark: str) -> bytes:
    """The variable's value for a child, of the one that is inherited or was given."""
    marks = [one for one in value.split(b":") if one]
    return b":".join([*marks, mark.encode()][-_MOST:])
