"""Streams of text over those of bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .._messages import lenient
from .._notes import add_note
from .._text import Decoder, Encoder
from .pipes import WritePipeTransport
from .streams import Deadline, StreamReader
from .until import until
from .writer import StreamWriter


class TextReader:
    """A child's stdout or stderr as text.

    Characters whose bytes come by pieces are put together, and newlines of all systems become
    ``\\n``. Lines may have any length. Lengths are in characters.

    One task reads at a time, as with :class:`StreamReader`. With errors="strict" a piece that
    is no text raises UnicodeDecodeError, whose ``object`` has its bytes; what comes after it
    can be read.
    """

    def __init__(self, reader: StreamReader, encoding: str, errors: str) -> None:
        self._source = reader
        self._encoding = encoding
        self._decoder = Decoder(encoding, errors)
        # What has been decoded and not been given: of `_text` what begins at `_at`, then the
        # pieces of `_more`, which are put together when a line ends. The first `_clean` of
        # them have no newline, and `_text` has none if it says so.
        self._text = ""
        self._at = 0
        self._is_searched = False
        self._more: list[str] = []
        self._clean = 0
        self._has_ended = False

    def __repr__(self) -> str:
        return f"<TextReader reader={self._source!r}>"

    def __aiter__(self) -> TextReader:
        return self

    async def __anext__(self) -> str:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    def at_eof(self) -> bool:
        """Return True when everything has been read and no more will come."""
        return self._is_empty() and (
            self._has_ended or (self._source.at_eof() and not self._decode())
        )

    async def readline(self) -> str:
        """Return a line with its newline; at the end what is left, or ""."""
        while True:
            line = self._line_now()
            if line is not None:
                return line
            await self._wait("readline")

    async def read(self, n: int = -1) -> str:
        """Return up to n characters, as soon as there are any; "" at the end.

        Args:
            n: How many at most. With n < 0 everything up to the end.
        """
        if n == 0:
            return ""
        while n < 0 or self._is_empty():
            if not self._decode():
                if self._has_ended:
                    break
                await self._wait("read")
        return self._take(self._size() if n < 0 else n)

    async def readuntil(self, separator: str = "\n") -> str:
        """Return what comes up to the separator, and the separator.

        Raises:
            asyncio.IncompleteReadError: The output has ended first. Its ``partial`` has
                everything that was left.
        """
        if not separator:
            raise ValueError("Separator should contain at least one character")
        text: str = await until(self, [re.compile(re.escape(separator))], None, "readuntil")
        return text

    # -- what is here

    def _is_empty(self) -> bool:
        return self._at == len(self._text) and not self._more

    def _size(self) -> int:
        return len(self._text) - self._at + sum(map(len, self._more))

    def _decode(self) -> bool:
        """Decodes the next piece of what has come. Whether there was any."""
        if self._has_ended:
            return False
        source = self._source
        source._begin()
        while True:
            data = source._chunk_now()
            if not data:
                if not source.at_eof():
                    return False
                self._has_ended = True
            text = self._decoder.decode(data, not data)
            if text or not data:
                break
        if text:
            self._more.append(text)
        return bool(text)

    async def _wait(self, caller: str, deadline: Deadline | None = None) -> None:
        # What the reader was fed meanwhile may be part of a character, or nothing.
        if not self._has_ended and not self._source.at_eof():
            await self._source._more(caller, deadline)

    def _line_now(self) -> str | None:
        """As readline, of what is here; None: the line's end has not come."""
        while True:
            if not self._is_searched:
                end = self._text.find("\n", self._at) + 1
                if end:
                    line = self._text[self._at : end]
                    self._at = end
                    return line
                self._is_searched = True
            more = self._more
            while self._clean < len(more) and "\n" not in more[self._clean]:
                self._clean += 1
            if self._clean < len(more):
                self._join()
            elif not self._decode():
                return self._take(self._size()) if self._has_ended else None

    def _chunk_now(self) -> str:
        """What came at once, of what is here; "": nothing is."""
        if self._is_empty():
            self._decode()
        return self._take(self._size())

    def _join(self) -> None:
        if self._at or self._more:
            self._text = "".join([self._text[self._at :], *self._more])
            self._at = self._clean = 0
            self._more.clear()
            self._is_searched = False

    def _all(self) -> str:
        """Everything that is here, which stays."""
        while self._decode():
            pass
        self._join()
        return self._text

    def _put_back(self, text: str) -> None:
        """It comes first again."""
        self._text = text + self._text[self._at :]
        self._at = 0
        self._is_searched = False

    def _unread(self) -> str:
        """What is here, for a message: nothing is decoded for good, and errors do not matter."""
        rest = lenient(self._source._unread(), self._encoding, False)
        return "".join([self._text[self._at :], *self._more, rest])

    def _last(self, data: bytes) -> str:
        """All there is, with this as its end."""
        text = self._all()
        last = self._decoder.decode(data, True)
        self._at = len(text)
        return text + last

    def _take(self, n: int) -> str:
        """The first n characters, or all there are."""
        if self._more:
            self._join()
        at = self._at
        text = self._text[at : at + n]
        self._at = at + len(text)
        return text


class TextWriter:
    """A child's stdin for text: encoded, with the system's newline for ``\\n``."""

    def __init__(self, writer: StreamWriter, encoding: str, errors: str) -> None:
        self._writer = writer
        self._encoder = Encoder(encoding, errors)

    def __repr__(self) -> str:
        return f"<TextWriter writer={self._writer!r}>"

    @property
    def transport(self) -> WritePipeTransport:
        """The transport of the pipe."""
        return self._writer.transport

    def write(self, text: str) -> None:
        """Write text, or put it into a buffer if the pipe is full.

        Text for a pipe that is closed is dropped, as in asyncio; drain() tells of that.

        Args:
            text: str.

        Raises:
            TypeError: That is no str.
            UnicodeEncodeError: It has a character that the encoding does not have.
        """
        if not isinstance(text, str):
            error = TypeError(f"write() takes str, not {type(text).__name__}")
            add_note(error, "decode() it, or leave out text=True")
            raise error
        self._writer.write(self._encoder.encode(text))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several strings. Newlines are not added."""
        self.write("".join(lines))

    def write_eof(self) -> None:
        """Close the pipe once what was written has gone out.

        On a terminal type its character for the end of input, Ctrl-D; more may follow.
        """
        self._writer.write_eof()

    def can_write_eof(self) -> bool:
        """Return True: a pipe has an end."""
        return self._writer.can_write_eof()

    def close(self) -> None:
        """Close the pipe once what was written has gone out; the child sees the end then.

        On a terminal type Ctrl-D for the last time.
        """
        self._writer.close()

    def is_closing(self) -> bool:
        """Return True if the pipe is closed or is being closed."""
        return self._writer.is_closing()

    async def wait_closed(self) -> None:
        """Wait until the pipe is closed.

        Raises:
            BrokenPipeError, ConnectionResetError: The child has closed it before everything
                was written.
        """
        await self._writer.wait_closed()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows by that name: ``"pipe"``, our end of the pipe."""
        return self._writer.get_extra_info(name, default)

    async def drain(self) -> None:
        """Wait until it is time to write more.

        Raises:
            BrokenPipeError, ConnectionResetError: The pipe is closed: the child has ended, or
                does not want more.
        """
        await self._writer.drain()
