"""Where what is read goes: a scratch buffer of the thread, and what communicate() collects."""

from __future__ import annotations

import errno
import io
import mmap
import os
import sys
import threading
from typing import Any

from ._backends.base import ReadEnd

#: Most bytes read or written per pipe and wake-up: going on "until it blocks" stalls
#: the loop for as long as the other side keeps up.
CHUNK = 256 * 1024
#: Most bytes of one read(2) into a new bytes object. More than the 64 KiB that a pipe
#: holds by default would have the allocator map and unmap memory for each.
READ_SIZE = 64 * 1024
#: Bytes of the first read after a child's end. Most have written less, and what a larger one
#: takes and gives back of memory costs more than a second one.
LAST_SIZE = 4 * 1024
#: Looks at pipes that nobody watches, before the loop does.
LOOKS = 4
#: Seconds between two looks at a pipe that the loop cannot watch.
LOOK_AGAIN = 0.01
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


#: Bytes. With so much memory, and four times what a Sink holds, there is no need to look
#: again, which costs two system calls, before it holds twice as much (or an eighth of this).
PLENTY = 64 * 1024 * 1024
#: More than a BytesIO takes beside what it holds, in bytes.
_OVERHEAD = 256
#: For memory as malloc takes it. Windows has but one kind.
_PRIVATE: dict[str, Any] = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}


class Sink:
    """What communicate() reads from one pipe: pieces, and from BULKY bytes on one growing
    buffer, which is handed out without a copy.

    That is a BytesIO, which loses all that it holds when it cannot grow (CPython's
    _PyBytes_Resize frees what it cannot enlarge). So before it grows we look whether as
    much memory as it may want is to be had; what is mapped for that is never touched.
    """

    __slots__ = ("_assured", "_buffer", "_pieces", "size")

    def __init__(self) -> None:
        self._buffer: io.BytesIO | None = None
        #: How much it may hold without another look for memory.
        self._assured = 0
        #: What comes after that which is in the buffer.
        self._pieces: list[bytes] = []
        self.size = 0

    def begin(self, pieces: list[bytes]) -> None:
        """With what has been read before. MemoryError: as read_from."""
        self._pieces = pieces
        self.size = sum(map(len, pieces))
        if self.size >= BULKY:
            self._join()

    def add(self, data: bytes) -> None:
        """For those who are given data rather than read."""
        self._pieces.append(data)
        self.size += len(data)

    def read_from(self, end: ReadEnd, size: int = READ_SIZE) -> int:
        """Reads once, `size` bytes at most while there are few. How many bytes; 0 at the end.

        MemoryError: there is no room, and nothing has been lost. OSError with ENOMEM: it
        has, since another thread was quicker than we.
        """
        buffer = self._buffer
        if buffer is None or self.size + CHUNK > self._assured:
            data = end.read(size)  # takes nothing before it has memory for it
            n = len(data)
            if n:
                try:
                    self._pieces.append(data)
                except MemoryError:
                    raise _loss() from None
                self.size += n
                if self.size >= BULKY:
                    self._join()
        else:
            chunk = scratch()
            n = end.readinto(chunk.buffer)
            try:
                buffer.write(chunk.view[:n])
            except MemoryError:
                raise _loss() from None
            self.size += n
        return n

    def _join(self) -> None:
        """Puts the pieces into the buffer."""
        pieces = self._pieces
        if self._buffer is None:
            # One piece alone becomes the buffer itself, since nobody else holds it then.
            self._buffer = io.BytesIO(b"".join(pieces))
            self._buffer.seek(0, io.SEEK_END)
            pieces.clear()
            return
        assured = self._assured
        if self.size > assured:
            if _is_free(max(4 * self.size, PLENTY)):
                assured = max(2 * self.size, PLENTY // 8)
            # A BytesIO grows by an eighth more than what is asked for.
            elif _is_free(self.size + self.size // 8 + _OVERHEAD):
                assured = 0
            else:
                raise MemoryError
        try:
            while pieces:
                self._buffer.write(pieces[0])
                del pieces[0]
        except MemoryError:
            raise _loss() from None
        # When memory is short: as far as it has grown. (PyPy cannot tell.)
        self._assured = assured or sys.getsizeof(self._buffer, 0) - _OVERHEAD

    def all(self) -> list[bytes]:
        """All that there is, at the end: nothing is read any more."""
        pieces = self._pieces
        buffer = self._buffer
        if buffer is not None and not buffer.closed:  # as after a loss
            pieces.insert(0, buffer.getvalue())
            self._buffer = None
        return pieces

    def value(self) -> bytes:
        """The same in one piece. MemoryError: all is as it was."""
        pieces = self.all()
        if len(pieces) != 1:
            pieces[:] = [b"".join(pieces)]
        return pieces[0]


def _is_free(size: int) -> bool:
    """Whether so much memory is to be had."""
    try:
        mmap.mmap(-1, size, **_PRIVATE).close()
    except OSError:
        return False
    return True


def _loss() -> OSError:
    return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
