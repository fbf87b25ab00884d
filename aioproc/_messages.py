"""The parts of messages: which command it is, how it has ended, what it has said."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from typing import Any

from ._backends.base import UNKNOWN_EXIT

#: Characters of a command (or its name) in a message.
MOST_OF_COMMAND = 200
#: Bytes (characters of text) of the output's end in a message: 2 KiB.
MOST_OF_OUTPUT = 2048
#: Not "printable" for Python, but harmless in people's languages: they are not escaped.
SPACES = "\u00a0\u2009\u202f\u3000"


def label(args: Any, name: str | None) -> str:
    """Which command it is, on one line."""
    if name is not None:
        return shortened(escaped(name))
    if isinstance(args, (str, bytes, os.PathLike)):
        return shortened(escaped(_decoded(args)[: MOST_OF_COMMAND + 1]))
    text = ""
    for part in args:
        # No more of it than is shown: there may be megabytes.
        quoted = shlex.quote(_decoded(part)[: MOST_OF_COMMAND + 1])
        text = f"{text} {quoted}" if text else quoted
        if len(text) > MOST_OF_COMMAND:
            break
    return shortened(escaped(text))


def discreet(args: Any, name: str | None) -> str:
    """The same for logs, without arguments, which may be secrets."""
    if name is not None:
        return repr(name)
    if isinstance(args, (str, bytes)):
        return "a shell command"
    return f"{args[0]!r:.100} with {len(args) - 1} arguments"


def status(returncode: int | None) -> str:
    """How it has ended; "" if it has not."""
    if returncode is None:
        return ""
    if returncode == UNKNOWN_EXIT:
        return "exit code unknown"
    if returncode < 0:
        try:
            return signal.Signals(-returncode).name
        except ValueError:
            return f"signal {-returncode}"
    # NTSTATUS, such as 0xC0000005, an access violation
    return (
        f"exit code {returncode}" if returncode < 0x8000_0000 else f"exit code 0x{returncode:08X}"
    )


def _decoded(part: str | bytes | os.PathLike[Any]) -> str:
    part = os.fspath(part)
    if isinstance(part, str):
        return part
    # os.fsdecode() would fail on Windows for bytes that are no text.
    return part.decode(sys.getfilesystemencoding(), "backslashreplace")


def lenient(data: bytes, encoding: str, cut: bool) -> str:
    """Decodes what may begin within a character, by what may be a codec of another system."""
    try:
        text = data.decode(encoding, "replace")
    except (LookupError, UnicodeError):
        text = data.decode("utf-8", "replace")
    return text.lstrip("\ufffd") if cut else text


def translate_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def escaped(text: str, keep: str = "") -> str:
    """Without what would do something to a terminal, or break the line."""
    if text.isprintable():
        return text
    kept = SPACES + keep
    return "".join(
        one if one.isprintable() or one in kept else one.encode("unicode_escape").decode()
        for one in text
    )


def shortened(text: str) -> str:
    return text if len(text) <= MOST_OF_COMMAND else text[: MOST_OF_COMMAND - 3] + "..."
