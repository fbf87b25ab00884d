"""What a run reads from one pipe of its child."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable
from typing import Protocol

from .. import _habits as habits
from .._backends.base import ReadEnd, logger
from .._sink import BULKY, CHUNK, LAST_SIZE, LOOK_AGAIN, READ_SIZE, Sink
from .listen import Listener

#: Bytes that are read of a pipe which is to end although others have it open: more than one
#: holds, so that nothing is missed that the child has written, and no more, since others may
#: write for ever.
LAST_OF_ALL = 1024 * 1024


class Bounded:
    """As a Sink, but keeps the first and the last bytes only."""

    def __init__(self, most: int) -> None:
        self._head = bytearray()
        self._most_head = most // 2
        self._most_tail = most - self._most_head
        #: Blocks of about READ_SIZE, however small the pieces are that come.
        self._tail: collections.deque[bytearray] = collections.deque()
        self._tail_size = 0
        self.size = 0

    def read_from(self, end: ReadEnd, size: int = READ_SIZE) -> int:
        data = end.read(size)
        self.add(data)
        return len(data)

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = self._most_head - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if not data:
            return
        tail = self._tail
        if tail and len(tail[-1]) + len(data) <= READ_SIZE:
            tail[-1] += data
        else:
            tail.append(bytearray(data))
        self._tail_size += len(data)
        # Whole blocks: what is too much of one is cut at the end, once.
        while self._tail_size - len(tail[0]) >= self._most_tail:
            self._tail_size -= len(tail.popleft())

    @property
    def dropped(self) -> int:
        return max(0, self.size - self._most_head - self._most_tail)

    def value(self) -> bytes:
        tail = b"".join(self._tail)
        return bytes(self._head) + tail[max(0, len(tail) - self._most_tail) :]


class Owner(Protocol):
    """Whom an Output tells."""

    def data_came(self) -> None: ...
    def output_ended(self, output: Output, error: Exception | None) -> None: ...


class Output:
    """A pipe of the child's, and what has come out of it.

    Without callbacks it is read by whoever has reason to: at the exit, at a look, or by the
    loop. With callbacks a task takes chunk after chunk.
    """

    is_open = True
    #: Its end has come, and not ours.
    has_ended = False
    #: What the pipe holds, where that was asked for.
    pipe_size = 0
    #: The task, while there is one, and what it has told.
    pump: asyncio.Task[None] | None = None
    listener: Listener | None = None
    #: Read later, unless the child lives on.
    _put_off = False
    #: Who waits in chunk().
    _waiter: asyncio.Future[None] | None = None
    #: How many bytes may still come, once it is to end without its end.
    _left: int | None = None
    _look_due = False

    def __init__(
        self, owner: Owner, fd: int, end: ReadEnd, program: bytes, sink: Sink | Bounded
    ) -> None:
        self._owner = owner
        self.fd = fd
        self._end = end
        self._program = program
        self.sink = sink

    # -- by whoever has reason to

    def start(self, at_once: bool) -> None:
        """at_once: it matters when something comes."""
        if at_once or not self._end.is_lazy or habits.is_bulky(self._program, self.fd):
            self._watch(self._read_some)
        else:
            self._put_off = True

    def look(self) -> bool:
        """The child is alive. Whether another look is wanted."""
        if self._put_off:
            before = self.sink.size
            self._read(False)
            if self.sink.size - before > habits.HALF:
                self.watch()
        return self._put_off

    def watch(self) -> None:
        if self._put_off:
            self._put_off = False
            if self.is_open:
                self._watch(self._read_some)

    def finish(self) -> None:
        """The child has ended: what it has written is read."""
        if self._put_off:
            self._read(True)
            if self.is_open:
                self.watch()  # somebody else has the other end

    def cut(self) -> None:
        """What is in the pipe by now is read; it ends with that."""
        if not self.is_open:
            return
        if self._left is None:
            self._left = max(LAST_OF_ALL, self.pipe_size)
        if self._waiter is not None:
            self._wake()  # chunk() sees to it
            return
        if self.pump is not None and not self.is_busy():
            # So it does if the task has not had its first turn yet: libuv has timers come
            # before those whose turn it is.
            return
        while self.is_open and self._left > 0:
            before = self.sink.size
            self._read(False)
            if self.sink.size == before:
                break
            self._left -= self.sink.size - before
        if self._left > 0 and self._is_arriving():
            asyncio.get_running_loop().call_later(LOOK_AGAIN, self.cut)
        else:
            self._stop()

    def is_busy(self) -> bool:
        """Whether a callback is at work, and so brakes the child."""
        return self.listener is not None and self.listener.is_busy

    def _is_arriving(self) -> bool:
        return self.is_open and not self._end.is_lazy and self._end.is_arriving()

    def close(self) -> None:
        """Whatever comes now does not count any more."""
        if self.is_open:
            self.is_open = self._put_off = False
            self._end.close()
            if self._waiter is not None:
                self._wake()

    def _stop(self) -> None:
        if self.is_open:
            self.close()
            self._owner.output_ended(self, None)

    def _watch(self, callback: Callable[[], None]) -> None:
        try:
            self._end.watch(callback)
        except OSError as error:
            # The limit of epoll, or no memory: raised from here, it would cost data.
            if not self._look_due:
                logger.warning("a pipe cannot be watched and is polled: %s", error)
                self._look_due = True
                self._look_later(callback)

    def _look_later(self, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(LOOK_AGAIN, self._look_again, callback)

    def _look_again(self, callback: Callable[[], None]) -> None:
        if self.is_open:
            callback()
        if self.is_open:
            self._look_later(callback)

    def _read_some(self) -> None:
        self._read(False)

    def _read(self, to_end: bool) -> None:
        """Reads until the pipe is empty; as much as is a loop's round at most."""
        sink = self.sink
        before = total = sink.size
        size = LAST_SIZE if to_end else READ_SIZE
        error: Exception | None = None
        try:
            while total - before < CHUNK:
                n = sink.read_from(self._end, size)
                if not n:
                    break
                total += n
                if n == size:
                    size = READ_SIZE
            else:
                n = -1
        except (BlockingIOError, InterruptedError):
            n = -1
        except (OSError, MemoryError) as exc:
            error, n = exc, 0
        if total > before:
            if total >= BULKY > before:
                self._end.enlarge()
            self._owner.data_came()
        if not n:
            self._ended(error)

    def _ended(self, error: Exception | None) -> None:
        self.has_ended = error is None
        if self._end.is_lazy:
            habits.note(self._program, self.fd, self.sink.size)
        self.close()
        self._owner.output_ended(self, error)

    # -- by a task

    async def chunk(self) -> bytes:
        """The next piece, in place of all of the others here; b"" at the end."""
        while self.is_open and self._left != 0:
            try:
                data = self._end.read(READ_SIZE)
            except (BlockingIOError, InterruptedError):
                if self._left is None:
                    await self._more()
                elif self._is_arriving():
                    await asyncio.sleep(LOOK_AGAIN)
                else:
                    break
                continue
            except (OSError, MemoryError) as exc:
                self._ended(exc)
                return b""
            if not data:
                self._ended(None)
                return b""
            before = self.sink.size
            self.sink.add(data)
            if self.sink.size >= BULKY > before:
                self._end.enlarge()
            if self._left is not None:
                self._left = max(0, self._left - len(data))
            self._owner.data_came()
            return data
        self._stop()
        return b""

    async def _more(self) -> None:
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            self._watch(self._wake)
            await waiter
            if self.listener is not None:
                self.listener.turn.begin()
        finally:
            self._waiter = None
            if self.is_open:
                self._end.unwatch()

    def _wake(self) -> None:
        waiter = self._waiter
        # The loop of one that is abandoned may have closed.
        if waiter is not None and not waiter.done() and not waiter.get_loop().is_closed():
            waiter.set_result(None)
