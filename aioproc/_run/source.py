"""Reading the file that is a run's input."""

from __future__ import annotations

import asyncio
import io
import os
import stat
from collections.abc import AsyncIterator
from typing import Any

from .._backends.system import WINDOWS, has_input
from .._sink import LOOK_AGAIN

#: Bytes, or characters, of one read.
PIECE = 64 * 1024


async def pieces(file: Any) -> AsyncIterator[Any]:
    """A file's contents, as they come; read in a thread, since that may take a while, unless
    it is in memory."""
    if hasattr(file, "getbuffer") or hasattr(file, "getvalue"):
        while piece := file.read(PIECE):
            yield piece
        return
    loop = asyncio.get_running_loop()
    waits = _wait_for(file)
    # Who reads more than there is waits for the rest, which the child should not have to.
    read = getattr(file, "read1", file.read) if waits else file.read
    fd = os.dup(file.fileno()) if waits else -1  # the caller may be watching his own
    try:
        while True:
            if fd >= 0 and not await _readable(loop, fd):
                os.close(fd)
                fd = -1
            piece = await loop.run_in_executor(None, read, PIECE)
            if asyncio.iscoroutine(piece):  # an asynchronous file, or a StreamReader
                piece = await piece
            if piece is None:  # it does not block, and there is nothing now
                if fd < 0:
                    await asyncio.sleep(LOOK_AGAIN)
            elif piece:
                yield piece
            else:
                return
    finally:
        if fd >= 0:
            os.close(fd)


def _wait_for(file: Any) -> bool:
    """Whether there may be nothing to read for ever: a thread that reads then keeps the loop
    from ending, and the program. What a text file has decoded ahead nobody can know."""
    if not isinstance(file, (io.BufferedReader, io.FileIO)):
        return False
    try:
        mode = os.fstat(file.fileno()).st_mode
    except (OSError, ValueError):  # it has no descriptor, or is closed: reading says so
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


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
