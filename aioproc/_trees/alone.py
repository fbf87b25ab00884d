"""A child that was made without its tree: it alone is ended."""

from __future__ import annotations

from .._backends.base import CONTINUE, HANG_UP, KILL, Child
from .waiting import until_ended


class Alone:
    """As ChildTree, where nobody looks for others."""

    #: The child has not taken the last signal.
    refused = False

    def __init__(self, child: Child) -> None:
        self._child = child

    async def signal(self, number: int) -> int | None:
        self._send(number)
        if number == HANG_UP and CONTINUE:
            self._send(CONTINUE)  # as the kernel does: it may be stopped
        return None

    async def gone(self, seconds: float) -> bool | None:
        await until_ended(self._child, seconds)
        return None

    async def kill(self) -> list[int] | None:
        self.kill_at_once()
        return None

    def kill_at_once(self) -> None:
        self._send(KILL)

    def close(self) -> None:
        pass

    def _send(self, number: int) -> None:
        self.refused = False
        try:
            self._child.send_signal(number)
        except ProcessLookupError:
            pass  # gone
        except PermissionError:
            self.refused = True  # running setuid
