"""What is said of a child's terminal, judged."""

from __future__ import annotations

import os
from typing import Any

#: Rows and columns of a terminal whose size nobody has given: what terminals had.
SIZE = (24, 80)
#: winsize has 16 bits for each (ioctl_tty(2)).
_MOST = 2**16 - 1


def judge_size(rows: Any, columns: Any) -> tuple[int, int]:
    for name, value in (("rows", rows), ("columns", columns)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, not {value!r:.100}")
        if not 1 <= value <= _MOST:
            raise ValueError(f"{name} must be 1 to {_MOST}, not {value}")
    return int(rows), int(columns)


def judge_pty(pty: Any) -> tuple[int, int] | None:
    """Rows and columns; None: no terminal."""
    if pty is None or pty is False:
        return None
    if pty is True:
        return SIZE
    if isinstance(pty, os.terminal_size):
        # It has them in the other order.
        return judge_size(pty.lines, pty.columns)
    if not isinstance(pty, (tuple, list)) or len(pty) != 2:
        raise TypeError(f"pty must be True, False or (rows, columns), not {pty!r:.100}")
    return judge_size(*pty)
