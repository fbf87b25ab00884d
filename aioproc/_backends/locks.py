"""The lock of what finalizers use."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable


class Lock:
    """A reentrant lock for which nobody waits when the interpreter is being taken down.

    Daemon threads are stopped for good then, in whatever they are doing (Py_FinalizeEx in
    Python's C API), also those of the application; and a lock that one of them has is never
    given back. Nobody is left whom it could exclude.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.RLock()

    # As arguments, since a module's names may be gone by then.
    def __enter__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():
            self._lock.acquire()

    def __exit__(
        self, *exc_info: object, is_finalizing: Callable[[], bool] = sys.is_finalizing
    ) -> None:
        if not is_finalizing():
            self._lock.release()
