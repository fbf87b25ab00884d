"""What the transports' get_extra_info() gives.

Nothing of ours needs these objects. They are for code that looks beneath asyncio's
transports: at the Popen of a child, at the file of a pipe.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from .._backends.base import KILL, Child, ReadEnd, WriteEnd


class PipeFile:
    """Our end of a child's pipe, as far as a transport's file can be used by others."""

    def __init__(self, end: ReadEnd | WriteEnd, mode: str, close: Callable[[], None]) -> None:
        self._end = end
        self._close = close
        self.mode = mode

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd={self._end.fileno()}"
        return f"<{type(self).__name__} {state} mode={self.mode!r}>"

    def fileno(self) -> int:
        fd = self._end.fileno()
        if fd < 0:
            raise ValueError("I/O operation on closed file")
        return fd

    @property
    def name(self) -> int:
        return self._end.fileno()

    @property
    def closed(self) -> bool:
        return self._end.fileno() < 0

    def close(self) -> None:
        """Closes the transport, which owns the descriptor."""
        self._close()

    def isatty(self) -> bool:
        return False

    def readable(self) -> bool:
        return self.mode == "rb"

    def writable(self) -> bool:
        return self.mode == "wb"


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """A child as the standard library's Popen shows it.

    Safe beside the loop, unlike the Popen under asyncio's transport: poll() and wait()
    look without reaping, so that the loop still gets the exit and its status.

    A Popen for ``isinstance`` only; nothing of that class's state exists.
    """

    # Those of Popen that nothing here can be different from.
    universal_newlines: Any = False
    text_mode: Any = False
    encoding: Any = None
    errors: Any = None

    def __init__(
        self,
        child: Child,
        look: Callable[[], int | None],
        args: Any,
        stdin: PipeFile | None,
        stdout: PipeFile | None,
        stderr: PipeFile | None,
    ) -> None:
        self._child = child
        self._look = look
        self.args = args
        self.pid = child.pid
        self.stdin: Any = stdin
        self.stdout: Any = stdout
        self.stderr: Any = stderr

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: returncode: {self.returncode} args: {self.args!r}>"

    def __del__(self, _maxsize: Any = None, _warn: Any = None) -> None:
        # The transport warns of what was forgotten.
        pass

    @property
    def returncode(self) -> int | None:  # type: ignore[override]
        """None until the loop has noticed the exit."""
        return self._child.returncode

    def poll(self) -> int | None:
        """The returncode, be the exit noticed by the loop or not. From any thread."""
        return self._look()

    def wait(self, timeout: float | None = None) -> int:
        """Blocks the calling thread until the child has ended. TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.0005
        while True:
            returncode = self.poll()
            if returncode is not None:
                return returncode
            if end is not None:
                left = end - time.monotonic()
                if left <= 0:
                    assert timeout is not None
                    raise subprocess.TimeoutExpired(self.args, timeout)
                pause = min(pause, left)
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def communicate(self, input: Any = None, timeout: float | None = None) -> Any:
        raise RuntimeError("the pipes belong to the event loop; see Process.communicate()")

    def send_signal(self, sig: int) -> None:
        """As Popen's: silent when the child has ended."""
        if self.poll() is None:
            try:
                self._child.send_signal(sig)
            except ProcessLookupError:
                pass

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(KILL)

    def __enter__(self) -> Popen:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in (self.stdout, self.stderr, self.stdin):
            if file is not None:
                file.close()
        self.wait()
