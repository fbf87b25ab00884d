"""The callbacks of a run: who hears of what its child writes."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from .._text import Decoder, LineSplitter
from .tasks import Turn

Callback = Callable[[str, Any], object]


class Listener:
    """The callbacks of one pipe."""

    def __init__(
        self,
        stream: str,
        on_output: Callback | None,
        on_line: Callback | None,
        decoder: Decoder | None,
    ) -> None:
        self._stream = stream
        self._on_output = on_output
        self._on_line = on_line
        self._decoder = decoder
        self._splitter = LineSplitter()
        self.turn = Turn()
        #: It is with a callback just now, and so brakes the child.
        self.is_busy = False

    async def take(self, data: bytes) -> None:
        """Has the callbacks called; waits for those that return an awaitable. b"" is the
        end."""
        piece: Any = data if self._decoder is None else self._decoder.decode(data, not data)
        self.is_busy = True
        try:
            if piece and self._on_output is not None:
                await _call(self._on_output, self._stream, piece)
            if self._on_line is not None:
                lines = self._splitter.split(piece)
                if not data:
                    lines += self._splitter.rest()
                for line in lines:
                    await _call(self._on_line, self._stream, line)
                    if self.turn.is_over():
                        await self._rest()
        finally:
            self.is_busy = False
        if self.turn.is_over():
            await self.turn.next()

    async def _rest(self) -> None:
        self.is_busy = False  # it is not the callback that takes so long
        await self.turn.next()
        self.is_busy = True


async def _call(callback: Callback, stream: str, data: Any) -> None:
    result = callback(stream, data)
    if inspect.isawaitable(result):
        awaitable: Awaitable[object] = result
        await awaitable
