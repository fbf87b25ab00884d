"""Where what is read goes: a scratch buffer of the thread, and what communicate() collects."""

from __future__ import annotations

import errno
import io
import mmap
import os
import sys
import threading
from typing import Any

from .._backends.base import ReadEnd

#: Most bytes read or written per pipe and wake-up: going on "until it blocks" stalls
#: the loop for as long as the other side keeps up.
CHUNK = 256 * 1024
#: Most bytes of one read(2) into a new bytes object. More than the 64 KiB that a pipe
#: holds by default would have the allocator map and unmap memory for each.
READ_SIZE = 64 * 1024
#: Bytes that make a flow bulky.
BULKY = 256 * 1024


class _Scratch(threading.local):
    """A buffer to read into, one a thread and so one a loop."""

    def __init__(self) -> None:
        self.buffer = bytearray(CHUNK)
        self.view = memoryview(self.buffer)


_scratch: _Scratch | None = None


def scratch() -> _Scratch:
    global _scratch
    if _scratch is None:
        _scratch = _Scratch()
    return _scratch


#: For memory as malloc takes it. Windows has but one kind.
_PRIVATE: dict[str, Any] = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}
#: More than a BytesIO takes beside what it holds, in bytes.
_OVERHEAD = 256


class Sink:
    """What communicate() reads from one pipe: pieces, and from BULKY bytes on one growing
    buffer, which is handed out without a copy.

    That is a BytesIO, which loses all that it holds when it cannot grow (CPython's
    _PyBytes_Resize frees what it cannot enlarge). So we look first whether as much memory
    as it may want is to be had. What is mapped for that is never touched.
    """

    __slots__ = ("_bulk", "_pieces", "_size", "is_lost")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._bulk: io.BytesIO | None = None
        self._size = 0
        #: Memory was short at a moment when nothing could be kept.
        self.is_lost = False

    def begin(self, pieces: list[bytes]) -> None:
        """With what has been read before. MemoryError, OSError: as read_from."""
        self._pieces = pieces
        self._size = sum(map(len, pieces))
        if self._size >= BULKY:
            self._begin_bulk()

    def _begin_bulk(self) -> None:
        self._assure(self._size + CHUNK)
        pieces = self._pieces
        pieces.reverse()
        try:
            # The first becomes the buffer itself if nobody else holds it.
            self._bulk = bulk = io.BytesIO(pieces.pop())
            bulk.seek(0, io.SEEK_END)
            while pieces:
                bulk.write(pieces.pop())
        except MemoryError:
            raise self._lose() from None

    def add(self, data: bytes) -> None:
        """For those who are given data rather than read."""
        self._pieces.append(data)

    def read_from(self, end: ReadEnd) -> int:
        """Reads once. How many bytes; 0 at the end.

        MemoryError: there is no room, and nothing has been lost. OSError with ENOMEM: it
        has, since another thread was quicker than we.
        """
        bulk = self._bulk
        if bulk is None:
            data = end.read(READ_SIZE)
            n = len(data)
            if n:
                try:
                    self._pieces.append(data)
                except MemoryError:
                    raise self._lose() from None
                self._size += n
                if self._size >= BULKY:
                    self._begin_bulk()
            return n
        if self._size + CHUNK > sys.getsizeof(bulk, 0) - _OVERHEAD:
            self._assure(self._size + CHUNK)
        buffer = scratch()
        n = end.readinto(buffer.buffer)
        try:
            bulk.write(buffer.view[:n])
        except MemoryError:
            raise self._lose() from None
        self._size += n
        return n

    def _lose(self) -> OSError:
        self.is_lost = True
        return self.loss()

    @staticmethod
    def loss() -> OSError:
        return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    @staticmethod
    def _assure(size: int) -> None:
        """MemoryError unless a BytesIO may grow to hold `size` bytes."""
        try:
            # It grows by an eighth more than what is asked for.
            mmap.mmap(-1, size + size // 8 + _OVERHEAD, **_PRIVATE).close()
        except OSError:
            raise MemoryError from None

    def empty(self) -> list[bytes]:
        """Gives all that there is, once."""
        pieces, self._pieces = self._pieces, []
        bulk, self._bulk = self._bulk, None
        if bulk is not None and not bulk.closed:
            pieces.insert(0, bulk.getvalue())
        return pieces
