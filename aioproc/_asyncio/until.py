"""Reading up to the first match of patterns, in output that grows."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from time import monotonic
from typing import Any, Protocol

from .._notes import add_note
from .streams import Deadline, StreamReader

#: Bytes, or characters, from which on it is not worth a search for each piece that comes.
LONG = 64 * 1024
#: Seconds between two searches of so much, for each second that the last has taken.
PATIENCE = 3


class _Reader(Protocol):
    """What of a TextReader is used here, which a StreamReader has as well."""

    #: Whose pipe it is.
    _source: StreamReader

    def _all(self) -> Any: ...
    def _take(self, n: int) -> Any: ...


def compiled(pattern: Any, kind: Any) -> tuple[list[re.Pattern[Any]], list[Any]]:
    """Patterns for output of this kind, bytes or str, and those of them that were given as
    texts to be found as they are: all, or not all.

    TypeError, ValueError: it cannot be searched for that.
    """
    patterns: list[re.Pattern[Any]] = []
    literals: list[Any] = []
    for one in pattern if isinstance(pattern, (tuple, list)) else (pattern,):
        if isinstance(one, re.Pattern):
            if not isinstance(one.pattern, kind):
                raise _wrong_kind(f"a pattern of {type(one.pattern).__name__}", kind)
            if one.search(kind()) is not None:
                raise ValueError(f"{one.pattern!r:.100} matches where nothing has come yet")
            patterns.append(one)
        elif isinstance(one, kind):
            if not one:
                raise ValueError("an empty pattern matches where nothing has come yet")
            literals.append(one)
            patterns.append(re.compile(re.escape(one)))
        else:
            raise _wrong_kind(type(one).__name__, kind)
    if not patterns:
        raise ValueError("there must be at least one pattern")
    return patterns, literals


def _wrong_kind(given: str, kind: Any) -> TypeError:
    error = TypeError(f"this output is {kind.__name__}, in which {given} cannot be looked for")
    if kind is bytes:
        add_note(error, 'give bytes: b"...", or open the process with text=True')
    else:
        add_note(error, "give str, or leave out text=True")
    return error


async def until(
    reader: _Reader,
    patterns: Sequence[re.Pattern[Any]],
    limit: int | None,
    caller: str,
    deadline: Deadline | None = None,
) -> Any:
    """What comes up to the end of the match that ends first, which is taken.

    Errors as StreamReader.readuntil's, and the deadline's.
    """
    source = reader._source
    while True:
        source._begin()
        began = monotonic()
        text = reader._all()
        found = _first(patterns, text)
        if found is not None:
            if limit is not None and found[0] > limit:
                raise asyncio.LimitOverrunError(
                    "Separator is found, but chunk is longer than limit", found[0]
                )
            return reader._take(found[1]) if found[1] else text[:0]
        if limit is not None and len(text) > limit:
            raise asyncio.LimitOverrunError(
                "Separator is not found, and chunk exceed the limit", len(text)
            )
        if source._eof:
            raise asyncio.IncompleteReadError(reader._take(len(text)) if text else text, None)
        pause = PATIENCE * (monotonic() - began)
        await source._more(caller, deadline)
        if len(text) >= LONG:
            await _let_grow(source, len(text) // 4, pause)


def _first(patterns: Sequence[re.Pattern[Any]], text: Any) -> tuple[int, int] | None:
    found = None
    for pattern in patterns:
        match = pattern.search(text)
        if match is not None and (found is None or match.end() < found[1]):
            found = match.span()
    return found


async def _let_grow(source: StreamReader, size: int, seconds: float) -> None:
    """Gives about that much more time to come: all would be searched again for each piece of
    it."""
    pause_at = source._pause_at
    source._pause_at = meanwhile = max(pause_at, 2 * (source._size + size))
    try:
        source._maybe_resume()
        await asyncio.sleep(seconds)
    finally:
        # Unless an ending has set it, which wants to have all.
        if source._pause_at == meanwhile:
            source._pause_at = pause_at
