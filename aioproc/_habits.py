"""What programs have done before, as far as it says what they will do next."""

from __future__ import annotations

#: What a pipe holds by default (pipe(7)), in bytes.
PIPE_HOLDS = 64 * 1024
#: What of a pipe that is read at a look makes the loop watch it, in bytes.
HALF = PIPE_HOLDS // 2
#: Programs that are remembered, for each of their streams.
MOST = 256

#: Those whose last output was more than a pipe holds, for stdout (1) and stderr (2).
_bulky: tuple[set[bytes], ...] = (set(), set(), set())


def is_bulky(program: bytes, fd: int) -> bool:
    """Whether it has to be expected that a child has to wait if its pipe is not read at
    once."""
    return program in _bulky[fd]


def note(program: bytes, fd: int, size: int) -> None:
    """So many bytes have come from one."""
    known = _bulky[fd]
    if size <= PIPE_HOLDS:
        known.discard(program)
    elif len(known) < MOST or program in known:
        known.add(program)
    else:
        known.clear()
