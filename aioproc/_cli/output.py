"""Passing a command's output on to our own stdout and stderr, which may be slow; what we say
there ourselves."""

from __future__ import annotations

import asyncio
import os
import select
import sys

_FDS = {"stdout": 1, "stderr": 2}
#: A pipe that poll() calls writable takes that much without a wait (pipe(7)).
_AT_ONCE: int = getattr(select, "PIPE_BUF", 512)


async def pass_on(stream: str, data: bytes) -> None:
    """Write all of it; the command waits meanwhile, and our timers go on.

    Raises:
        BrokenPipeError: Nobody reads what we write.
        OSError: The disk is full, say.
    """
    fd = _FDS[stream]
    view = memoryview(data)
    while view:
        if await _is_writable(fd):
            view = view[os.write(fd, view[:_AT_ONCE]) :]
        else:
            # A file, which is never slow, or Windows, where nobody can ask.
            view = view[os.write(fd, view) :]


async def _is_writable(fd: int) -> bool:
    """Waits until it is. False: that cannot be waited for."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def tell() -> None:
        loop.remove_writer(fd)
        if not ready.done():
            ready.set_result(None)

    try:
        loop.add_writer(fd, tell)
    except (OSError, NotImplementedError, ValueError):
        return False
    try:
        await ready
    finally:
        loop.remove_writer(fd)
    return True


def tell(text: str) -> None:
    """Say a line on stderr; a full disk does not change how we end."""
    if sys.stderr is None:
        return  # print() would take stdout
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        # Python would try again at its end, and exit with 120 (3.14, and PyPy).
        sys.stderr = None
