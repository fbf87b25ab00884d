"""Both outputs of a process in one iterator."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from .streams import StreamReader

T = TypeVar("T")


class Merged(Generic[T]):
    """An asynchronous iterator of ("stdout" or "stderr", what has come).

    It holds nothing itself: it can be left at any time, and begun again.
    """

    def __init__(
        self,
        caller: str,
        sources: list[tuple[str, StreamReader, Callable[[], T | None]]],
        at_end: Callable[[], Awaitable[object]],
    ) -> None:
        """sources: name, whose pipe it is, and what gives the next item of it, or what is
        false where there is none now. at_end: awaited when all have ended."""
        self._caller = caller
        self._sources = sources
        self._at_end = at_end

    def __aiter__(self) -> Merged[T]:
        return self

    async def __anext__(self) -> tuple[str, T]:
        while True:
            sources = self._sources
            for i, (name, reader, take) in enumerate(sources):
                reader._begin()
                item = take()
                if item:
                    if i == 0 and len(sources) > 1:
                        # The other is asked first, next time.
                        sources.append(sources.pop(0))
                    return name, item
            sources[:] = [source for source in sources if not source[1].at_eof()]
            if not sources:
                await self._at_end()
                raise StopAsyncIteration
            await self._wait([reader for _, reader, _ in sources])

    async def _wait(self, readers: list[StreamReader]) -> None:
        for reader in readers:
            reader._expect(self._caller)
        waiter: asyncio.Future[Any] = readers[0]._loop.create_future()
        for reader in readers:
            reader._waiter = waiter
        try:
            await waiter
        finally:
            for reader in readers:
                if reader._waiter is waiter:
                    reader._waiter = None
            del waiter  # which would hold its error, and that our frame
