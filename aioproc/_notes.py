"""Advice that goes with an error."""

from __future__ import annotations


def add_note(error: BaseException, text: str) -> None:
    """As BaseException.add_note; before Python 3.11 in the message."""
    if hasattr(error, "add_note"):
        error.add_note(text)
    elif isinstance(error, OSError) and error.strerror:
        error.strerror = f"{error.strerror} ({text})"
    else:
        error.args = (f"{error.args[0] if error.args else ''} ({text})", *error.args[1:])
