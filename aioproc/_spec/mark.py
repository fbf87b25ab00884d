"""The mark of a tree: what a child and all that it starts have in their environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

#: As many trees inside each other are told apart.
_MOST = 8


#: The variable.
NAME = "AIOPROC_TREE"
_PREFIX = NAME.encode() + b"="


def in_block(text: bytes, count: int, mark: str) -> tuple[bytes, int]:
    """A block of NAME=value strings, each with its NUL, and their number: with the mark."""
    at = 0 if text.startswith(_PREFIX) else text.find(b"\0" + _PREFIX) + 1
    if at == 0 and not text.startswith(_PREFIX):
        return text + _PREFIX + mark.encode() + b"\0", count + 1
    start = at + len(_PREFIX)
    end = text.index(b"\0", start)
    return text[:start] + appended(text[start:end], mark) + text[end:], count


def in_mapping(env: Mapping[Any, Any] | None, mark: str) -> dict[Any, Any]:
    """An environment as Popen takes it, ours if there is none: with the mark."""
    variables: dict[Any, Any] = dict(os.environ if env is None else env)
    given = [variables.pop(name, b"") for name in (NAME, NAME.encode())]
    variables[NAME] = os.fsdecode(appended(os.fsencode(given[0] or given[1]), mark))
    return variables


def new_mark() -> str:
    """64 random bits, as 16 hexadecimal digits."""
    return os.urandom(8).hex()


def appended(value: bytes, mark: str) -> bytes:
    """The variable's value for a child, of the one that is inherited or was given."""
    marks = [one for one in value.split(b":") if one]
    return b":".join([*marks, mark.encode()][-_MOST:])
