"""The mark of a tree: what a child and all that it starts have in their environment."""

from __future__ import annotations

import os

#: As many trees inside each other are told apart.
_MOST = 8


def new_mark() -> str:
    """64 random bits, as 16 hexadecimal digits."""
    return os.urandom(8).hex()


def appended(value: bytes, mark: str) -> bytes:
    """The variable's value for a child, of the one that is inherited or was given."""
    marks = [one for one in value.split(b":") if one]
    return b":".join([*marks, mark.encode()][-_MOST:])
