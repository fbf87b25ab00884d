"""What a run writes into its child's stdin."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from .._backends.base import READS_NO_MORE, WriteEnd, logger
from .._sink import BULKY, CHUNK, LOOK_AGAIN
from .source import pieces
from .tasks import Turn


class Feed:
    """The writing end of a child's stdin. A child that does not read is no error: what is
    left is dropped."""

    is_open = True
    _left: memoryview | bytes = b""
    _room: asyncio.Future[None] | None = None
    _closing = False
    _try_due = False

    def __init__(self, end: WriteEnd, failed: Callable[[Exception], None]) -> None:
        """failed: called if it cannot be written, though somebody may read it."""
        self._end = end
        self._failed = failed

    def send_all(self, data: memoryview) -> bool:
        """Writes and closes. Whether all of it has gone out already."""
        self._closing = True
        self._write(data)
        return not self.is_open

    def _write(self, data: memoryview | bytes) -> None:
        """Writes what fits, the rest when there is room."""
        if len(data) >= BULKY:
            self._end.enlarge()
        self._left = data
        self._go_on()
        if self.is_open and len(self._left):
            try:
                self._end.watch(self._go_on)
            except OSError as error:
                logger.warning("a pipe cannot be watched and is polled: %s", error)
                self._try_again()

    async def send(self, data: bytes) -> bool:
        """Writes it; returns when it has gone out. Whether there is somebody to read more."""
        if not self.is_open:
            return False
        self._write(memoryview(data))
        if self.is_open and len(self._left):
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None
        return self.is_open

    def close(self) -> None:
        """Closes it now."""
        if self.is_open:
            self.is_open = False
            self._left = b""
            self._end.close()
            self._wake()

    def _wake(self) -> None:
        room = self._room
        # The loop of one that is abandoned may have closed.
        if room is not None and not room.done() and not room.get_loop().is_closed():
            room.set_result(None)

    def _try_again(self) -> None:
        if self.is_open and len(self._left):
            self._go_on()
        if self.is_open and len(self._left):
            asyncio.get_running_loop().call_later(LOOK_AGAIN, self._try_again)

    def _go_on(self) -> None:
        left, budget = self._left, CHUNK
        try:
            while len(left) and budget > 0:
                n = self._end.write(left[:budget])
                left = left[n:]
                budget -= n
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.close()
            if not isinstance(error, READS_NO_MORE):
                self._failed(error)
            return
        self._left = left
        if not len(left):
            self._end.unwatch()
            self._wake()
            if self._closing:
                self.close()


async def feed(
    pipe: Feed,
    source: Any,
    encode: Callable[[Any], bytes],
    failed: Callable[[BaseException], None],
) -> None:
    """Writes all that a file, an iterable or an asynchronous iterable gives, and closes. What
    that raises is raised, and given to `failed` before the child can know of it."""
    chunks: Any = pieces(source) if hasattr(source, "read") else source
    turn = Turn()
    try:
        if hasattr(chunks, "__aiter__"):
            async for chunk in chunks:
                if not await pipe.send(encode(chunk)):
                    return
                if turn.is_over():
                    await turn.next()
        else:
            for chunk in chunks:
                if not await pipe.send(encode(chunk)):
                    return
                if turn.is_over():
                    await turn.next()
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        # The end of its stdin may be the child's own, which would look like success.
        failed(error)
        raise
    finally:
        pipe.close()
        # A generator that nobody takes anything from any more: its `finally` runs now, and
        # not when it is collected.
        if inspect.isasyncgen(chunks):
            await chunks.aclose()
        elif inspect.isgenerator(chunks):
            chunks.close()
