"""Reading the file that is a run's input."""

from __future__ import annotations

import asyncio
import io
import os
import select
import stat
from collections.abc import AsyncIterator
from typing import Any

from .._backends.system import WINDOWS, has_input
from .._sink import LOOK_AGAIN

#: Bytes, or characters, of one read.
PIECE = 64 * 1024


#: By id(): files that are being read. Of two runs that read the same one, one would wait for
#: what the other has read.
_being_read: set[int] = set()


async def pieces(file: Any) -> AsyncIterator[Any]:
    """A file's contents, as they come; read in a thread, since that may take a while, unless
    it is in memory."""
    if hasattr(file, "getbuffer") or hasattr(file, "getvalue"):
        while piece := file.read(PIECE):
            yield piece
        return
    loop = asyncio.get_running_loop()
    if not _may_wait(file):
        while True:
            piece = await loop.run_in_executor(None, file.read, PIECE)
            if asyncio.iscoroutine(piece):  # an asynchronous file, or a StreamReader
                piece = await piece
            if not piece:
                return
            yield piece
    if held := _read_ahead(file):
        yield held
    # Who reads more than there is waits for the rest, which the child should not have to.
    read = getattr(file, "read1", file.read)
    fd = os.dup(file.fileno())  # the caller may be watching his own
    try:
        can_wait = True
        while True:
            can_wait = can_wait and await _readable(loop, fd)
            if id(file) in _being_read:
                await asyncio.sleep(LOOK_AGAIN)
                continue
            _being_read.add(id(file))
            try:
                if can_wait and not _has_input(fd):
                    continue  # the other one has it
                piece = await loop.run_in_executor(None, read, PIECE)
            finally:
                _being_read.discard(id(file))
            if piece is None:  # it does not block, and there is nothing now
                if not can_wait:
                    await asyncio.sleep(LOOK_AGAIN)
            elif piece:
                yield piece
            else:
                return
    finally:
        os.close(fd)


def _read_ahead(file: Any) -> bytes:
    """What the file has in its buffer, without another read of its descriptor: that may
    wait."""
    if not isinstance(file, io.BufferedReader):
        return b""
    raw: Any = file.raw
    try:
        raw.readinto = lambda _: None  # as of one that does not block, and has nothing
    except AttributeError:
        return b""  # it comes with what the descriptor has next
    try:
        return file.read1(len(file.peek()))
    finally:
        del raw.readinto


def _may_wait(file: Any) -> bool:
    """Whether there may be nothing to read for ever: a thread that reads then keeps the loop
    from ending, and the program. What a text file has decoded ahead nobody can know."""
    if not isinstance(file, (io.BufferedReader, io.FileIO)):
        return False
    try:
        mode = os.fstat(file.fileno()).st_mode
    except (OSError, ValueError):  # it has no descriptor, or is closed: reading says so
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


def _has_input(fd: int) -> bool:
    if WINDOWS:
        return has_input(fd) is not False
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


async def _readable(loop: asyncio.AbstractEventLoop, fd: int) -> bool:
    """Waits until there is something to read. False where that cannot be waited for: devices
    that always have it, a console on Windows."""
    if WINDOWS:
        while (is_there := has_input(fd)) is False:
            await asyncio.sleep(LOOK_AGAIN)
        return is_there is True
    ready = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    try:
        loop.add_reader(fd, tell)
    except OSError:
        return False
    try:
        await ready
    finally:
        loop.remove_reader(fd)
    return True
