"""What a StreamReader holds: bytes as they came, taken in any bites in linear time."""

from __future__ import annotations

import collections
import io
from collections.abc import Sequence
from typing import Any

from .pipes import NOTHING

#: How much is made lines, or searched, at a time, in bytes.
PORTION = 128 * 1024
#: Bytes taken of a piece that are worth a copy of the rest, to have their memory back.
RECLAIM = 1024 * 1024


class Search:
    """A search for the separator that ends first, in pieces that come one by one."""

    __slots__ = ("_base", "_overlap", "_separators", "_tail", "pieces")

    def __init__(self, separators: Sequence[Any], longest: int) -> None:
        self._separators = separators
        #: Bytes of a separator that may lie before the piece in which it ends.
        self._overlap = longest - 1
        #: The last of what has been searched, as much as that.
        self._tail = b""
        #: How much has been searched, in bytes.
        self._base = 0
        #: How many of the reader's pieces have been searched; -1 before its lines have.
        self.pieces = -1

    def look(self, piece: bytes, start: int = 0) -> tuple[int, int] | None:
        """Searches the next piece, from `start` on. Where the separator begins and ends,
        counted from where the search began."""
        found = None
        overlap = self._overlap
        if self._tail:
            text = self._tail + piece[start : start + overlap]
            found = self._first(text, 0, len(text), self._base - len(self._tail))
        size = len(piece)
        # In portions: one of several separators that is far away, or nowhere, would have
        # the whole piece searched each time.
        for at in range(start, size, PORTION):
            nearest = self._first(piece, at, at + PORTION + overlap, self._base - start)
            if nearest is not None:
                if found is None or nearest[1] <= found[1]:
                    found = nearest
                break
            if found is not None:
                break
        if found is None:
            self._base += size - start
            if overlap:
                self._tail = (self._tail + piece[max(start, size - overlap) :])[-overlap:]
        return found

    def _first(self, text: bytes, start: int, stop: int, base: int) -> tuple[int, int] | None:
        first = None
        for separator in self._separators:
            at = text.find(separator, start, stop)
            if at >= 0:
                end = at + len(separator)
                first = base + at, base + end
                stop = end - 1  # for the others: only what ends before is nearer
        return first


class ReadBuffer:
    """The part of a StreamReader that keeps what has been read.

    A base and no part of it, since each look at another object would be felt.
    """

    # What was read is kept as a row: first `_cut`, lines that have been cut already, then
    # `_pieces`, as the pipe gave them. `_taken` bytes of the first piece are gone: it is
    # not copied for each part that is taken of it, however long it may be. The first
    # `_searched` pieces hold no newline. `async for` takes the lines out into `_run`, from
    # which each is given by one popleft(); whoever else reads puts back what is left.
    #
    # What needs memory is done before anything is changed.

    #: Whether the pipe is paused.
    _paused: bool
    #: Most bytes of a line; None: any.
    _limit: int | None

    def __init__(self) -> None:
        self._cut: collections.deque[bytes] = NOTHING
        self._pieces: collections.deque[bytes] = NOTHING
        self._taken = 0
        self._searched = 0
        #: Bytes in the row, but see `_run_size`.
        self._size = 0
        #: Bytes that were ever put into the row. Less `_size`: where in the stream we are.
        self._fed = 0
        #: Where in the stream the lines of `_cut` end.
        self._cut_end = 0
        self._run: collections.deque[bytes] = NOTHING
        #: What `_run` held at first, all of which `_size` still counts.
        self._run_size = 0

    def _maybe_resume(self) -> None:
        """Something has been taken: there may be room for more."""
        raise NotImplementedError

    def _take(self, n: int) -> bytes:
        """The first n bytes, out of the row; 0 < n <= size."""
        pieces = self._pieces
        start = self._taken
        end = start + n
        if self._cut or end > len(pieces[0]):
            data = self._take_parts(n)
        elif end < len(pieces[0]):
            data = pieces[0][start:end]
            self._taken = end
            if end >= RECLAIM:
                self._reclaim()
        else:
            data = pieces[0][start:] if start else pieces[0]
            pieces.popleft()
            self._taken = 0
            if self._searched:
                self._searched -= 1
        self._size -= n
        if self._paused:
            self._maybe_resume()
        return data

    def _take_parts(self, n: int) -> bytes:
        """That, where it is of several parts or of `_cut`; `_size` is left to the caller."""
        cut, pieces = self._cut, self._pieces
        parts: list[bytes | memoryview] = []
        rest = b""
        for line in cut:
            n -= len(line)
            if n <= 0:
                if n:
                    rest = line[n:]
                    line = line[:n]
                parts.append(line)
                break
            parts.append(line)
        lines = len(parts)
        whole = 0
        end = self._taken
        if n > 0:
            for piece in pieces:
                left = len(piece) - end
                if n < left:
                    parts.append(memoryview(piece)[end : end + n])
                    end += n
                    break
                parts.append(memoryview(piece)[end:] if end else piece)
                n -= left
                end = 0
                whole += 1
                if not n:
                    break
        data = b"".join(parts)

        if rest:
            lines -= 1
            cut[lines] = rest
        for _ in range(lines):
            cut.popleft()
        if len(parts) > lines:
            for _ in range(whole):
                pieces.popleft()
            self._searched = max(0, self._searched - whole)
            self._taken = end
            if end >= RECLAIM:
                self._reclaim()
        return data

    def _take_all(self) -> bytes:
        return self._take(self._size) if self._size else b""

    def _all(self) -> bytes:
        """Everything, which stays in the row."""
        parts: list[bytes | memoryview] = [*self._cut, *self._pieces]
        if self._taken:
            parts[len(self._cut)] = memoryview(self._pieces[0])[self._taken :]
        return b"".join(parts)

    def _replace(self, pieces: Sequence[bytes]) -> None:
        """Has others in the row, instead of all that was there."""
        self._cut = NOTHING
        self._taken = self._searched = 0
        if pieces:
            self._pieces = collections.deque(pieces)
            self._size = len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces))
        else:
            self._pieces = NOTHING
            self._size = 0

    def _reclaim(self) -> None:
        """Frees what has been taken of the first piece once that is more than half of it:
        so a byte is copied once at most, on the average."""
        head = self._pieces[0]
        if self._taken > len(head) // 2:
            try:
                self._pieces[0] = head[self._taken :]
                self._taken = 0
            except MemoryError:
                pass  # all is well without

    def _cut_lines(self) -> bytes | None:
        """The first line, out of the pieces, while there is none in `_cut`; the lines that
        follow it closely go there. None if there is no newline."""
        pieces = self._pieces
        count = len(pieces)
        newline = -1
        for i in range(self._searched, count):
            newline = pieces[i].find(b"\n", 0 if i else self._taken)
            if newline >= 0:
                break
        else:
            self._searched = count
            return None
        if not i and not self._taken and newline == len(pieces[0]) - 1:
            # A line as it came.
            self._size -= newline + 1
            return pieces.popleft()

        # The pieces up to that one, and more up to a portion. Of a long one only a part.
        parts: list[bytes | memoryview] = []
        total, whole, rest = 0, 0, 0
        start = self._taken
        for piece in pieces:
            size = len(piece) - start
            if whole == i and size > PORTION:
                rest = max(newline, piece.rfind(b"\n", start, start + PORTION)) + 1
                parts.append(memoryview(piece)[start:rest])
                if rest == len(piece):
                    whole, rest = i + 1, 0
                break
            if whole > i and (total >= PORTION or size > PORTION):
                break
            parts.append(memoryview(piece)[start:] if start else piece)
            total += size
            whole += 1
            start = 0
        text = b"".join(parts)
        lines = io.BytesIO(text).readlines()
        tail = b"" if lines[-1].endswith(b"\n") else lines.pop()
        cut = collections.deque(lines)
        line = cut.popleft()

        self._cut_end = self._fed - self._size + len(text) - len(tail)
        for _ in range(whole):
            pieces.popleft()
        if tail:
            pieces.appendleft(tail)
        self._searched = 1 if tail else 0
        self._taken = rest
        if rest >= RECLAIM:
            self._reclaim()
        self._cut = cut
        self._size -= len(line)
        return line

    def _begin_run(self) -> None:
        """Takes the lines that have been cut out for __anext__, if none is longer than the
        limit."""
        run = self._cut
        if self._limit is None or max(map(len, run)) - 1 <= self._limit:
            self._run, self._cut = run, NOTHING
            self._run_size = self._cut_end - (self._fed - self._size)

    def _exact_size(self) -> int:
        if self._run is NOTHING:
            return self._size
        return self._size - self._run_size + sum(map(len, self._run))

    def _end_run(self) -> None:
        """Accounts for what __anext__ has given, and puts back what it has not."""
        if self._run is not NOTHING:
            self._size = self._exact_size()
            self._cut, self._run = self._run, NOTHING
            self._maybe_resume()

    def _go_on(self, search: Search) -> tuple[int, int] | None:
        """Searches what of the row has not been searched."""
        pieces = self._pieces
        if search.pieces < 0:
            for line in self._cut:
                found = search.look(line)
                if found is not None:
                    return found
            search.pieces = 0
        for i in range(search.pieces, len(pieces)):
            found = search.look(pieces[i], 0 if i else self._taken)
            if found is not None:
                return found
        search.pieces = len(pieces)
        return None

    def _join(self) -> None:
        """Makes one piece of all, so that _take_all() cannot fail."""
        if len(self._pieces) > 1:
            self._replace([self._all()])
