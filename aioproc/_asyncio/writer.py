"""StreamWriter for a child's stdin, and what it waits for."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from .pipes import WritePipeTransport
from .transport import check_loop


class Flow:
    """What a StreamWriter waits for: room in the pipe, and its end.

    Apart from the protocol, which holds the writer: a cycle of these for each child
    would be left to the garbage collector. The names that begin with an underscore are
    those of asyncio's protocols, which code in the wild reads.
    """

    __slots__ = ("_close_waiters", "_drain_waiters", "_loop", "_paused", "error", "is_open")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._paused = False
        self._drain_waiters: list[asyncio.Future[None]] = []
        self._close_waiters: list[asyncio.Future[None]] = []
        self.is_open = True
        #: What broke the pipe; None after a quiet end.
        self.error: Exception | None = None

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        for waiter in self._drain_waiters:
            if not waiter.done():
                waiter.set_result(None)

    def end(self, exc: Exception | None) -> None:
        self.is_open = False
        self.error = exc
        for waiter in (*self._drain_waiters, *self._close_waiters):
            if not waiter.done():
                if exc is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(exc)

    async def _drain_helper(self) -> None:
        if not self.is_open:
            raise ConnectionResetError("Connection lost")
        if self._paused:
            await self._wait_among(self._drain_waiters)

    async def _get_close_waiter(self, stream: asyncio.StreamWriter) -> None:
        if self.is_open:
            await self._wait_among(self._close_waiters)
        elif self.error is not None:
            raise self.error

    async def _wait_among(self, waiters: list[asyncio.Future[None]]) -> None:
        check_loop(self._loop)
        waiter = self._loop.create_future()
        waiters.append(waiter)
        try:
            await waiter
        finally:
            waiters.remove(waiter)
            del waiter  # which would hold its error, and that our frame


class StreamWriter(asyncio.StreamWriter):
    """A child's stdin: an :class:`asyncio.StreamWriter`.

    Source:
        "Streams" in asyncio's documentation.
    """

    def __init__(
        self,
        transport: WritePipeTransport,
        protocol: Flow,
        reader: asyncio.StreamReader | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._transport = transport
        self._protocol = protocol
        self._reader = reader
        self._loop = loop

    def __repr__(self) -> str:
        return f"<StreamWriter transport={self._transport!r}>"

    @property
    def transport(self) -> WritePipeTransport:
        """The transport of the pipe."""
        return self._transport

    def write(self, data: Any) -> None:
        """Write data, or put it into a buffer if the pipe is full.

        Data for a pipe that is closed is dropped, as in asyncio; drain() tells of that.

        Args:
            data: Bytes, bytearray or memoryview.
        """
        self._transport.write(data)

    def writelines(self, data: Iterable[Any]) -> None:
        """Write several pieces of data. Newlines are not added."""
        self._transport.writelines(data)

    def write_eof(self) -> None:
        """Close the pipe once what was written has gone out.

        On a terminal type its character for the end of input, Ctrl-D; more may follow.
        """
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        """Return True: a pipe has an end."""
        return self._transport.can_write_eof()

    def close(self) -> None:
        """Close the pipe once what was written has gone out; the child sees the end then.

        On a terminal type Ctrl-D for the last time.
        """
        self._transport.close()

    def is_closing(self) -> bool:
        """Return True if the pipe is closed or is being closed."""
        return self._transport.is_closing()

    async def wait_closed(self) -> None:
        """Wait until the pipe is closed.

        Raises:
            BrokenPipeError, ConnectionResetError: The child has closed it before everything
                was written.
        """
        await self._protocol._get_close_waiter(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows by that name: ``"pipe"``, our end of the pipe."""
        return self._transport.get_extra_info(name, default)

    async def drain(self) -> None:
        """Wait until it is time to write more.

        Raises:
            BrokenPipeError, ConnectionResetError: The pipe is closed: the child has ended, or
                does not want more.
        """
        if self._transport._closing:
            # Lets the news of a closed pipe arrive, or a loop of write() and drain()
            # would never learn of it.
            await asyncio.sleep(0)
        flow = self._protocol
        if flow._paused or not flow.is_open:
            await flow._drain_helper()

    async def start_tls(self, *args: Any, **kwargs: Any) -> None:
        """Pipes have no TLS: always NotImplementedError."""
        raise NotImplementedError("a child's stdin is a pipe, which cannot be upgraded to TLS")

    def __del__(self, _warnings: Callable[..., Any] = warnings.warn) -> None:
        # The process's transport owns the pipe, and warns if nobody closed it.
        pass
