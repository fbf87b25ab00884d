"""Text that comes and goes by pieces."""

from __future__ import annotations

import codecs
import io
import os
from typing import Any


class Decoder:
    """Text as subprocess makes it: newlines of all systems become \\n."""

    def __init__(self, encoding: str, errors: str) -> None:
        decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)

    def decode(self, data: bytes, final: bool = False) -> str:
        """UnicodeDecodeError: its ``object`` has this, after the part of a character that came
        before; both are done with."""
        try:
            return self._decoder.decode(data, final)
        except UnicodeDecodeError:
            # codecs' decoders keep that part, and would fail again with all that follows.
            _, flag = self._decoder.getstate()
            self._decoder.setstate((b"", flag))
            raise


class Encoder:
    """Text as subprocess makes it: \\n becomes the newline of the system."""

    def __init__(self, encoding: str, errors: str) -> None:
        make = codecs.lookup(encoding).incrementalencoder or codecs.IncrementalEncoder
        # One for all pieces: the byte order mark of utf-16, say, comes but once.
        self._encoder = make(errors)

    def encode(self, text: str) -> bytes:
        if os.linesep != "\n":
            text = text.replace("\n", os.linesep)
        return self._encoder.encode(text)


class LineSplitter:
    """Cuts what comes by pieces, bytes or str, into lines with their newlines."""

    def __init__(self) -> None:
        #: Of a line whose end has not come.
        self._rest: list[Any] = []

    def split(self, piece: Any) -> list[Any]:
        """The lines that end in this piece."""
        newline: Any = b"\n" if isinstance(piece, bytes) else "\n"
        *whole, rest = piece.split(newline)
        lines = [line + newline for line in whole]
        if lines and self._rest:
            lines[0] = type(piece)().join([*self._rest, lines[0]])
            self._rest.clear()
        if rest:
            self._rest.append(rest)
        return lines

    def rest(self) -> list[Any]:
        """At the end: the last line, if it has no newline."""
        if not self._rest:
            return []
        line = type(self._rest[0])().join(self._rest)
        self._rest.clear()
        return [line]


def judged_text(encoding: str | None, errors: str | None) -> tuple[str, str, str]:
    """The encoding, what to do about bytes that are no text, and about text that has none.

    LookupError: there is no such thing. TypeError: no strings.
    """
    if encoding is None:
        encoding = "utf-8"
    elif not isinstance(encoding, str):
        raise TypeError(f"encoding must be a str, not {encoding!r:.100}")
    else:
        # LookupError also for those that are no encodings of text ("hex").
        "".encode(encoding)
        b"".decode(encoding)
    if errors is None:
        return encoding, "replace", "strict"
    if not isinstance(errors, str):
        raise TypeError(f"errors must be a str, not {errors!r:.100}")
    codecs.lookup_error(errors)
    return encoding, errors, errors


def check_pieces(encoding: str, what: str) -> None:
    """LookupError for an encoding that cannot be decoded piece by piece."""
    if codecs.lookup(encoding).incrementaldecoder is None:
        raise LookupError(f"{encoding} cannot be decoded piece by piece, as {what} it")
