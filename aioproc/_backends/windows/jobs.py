"""Job objects: part of the native backend on Windows."""

from __future__ import annotations

from collections.abc import Callable

from .lib import check, lib
from .port import Port

ERROR_INVALID_HANDLE = 6


def _check(result: int) -> int:
    if result == -ERROR_INVALID_HANDLE:
        raise ValueError("the job is closed")
    return check(result)


class NativeJob:
    """base.Job by an id of the C layer, which knows whether it is still open."""

    __slots__ = ("__weakref__", "_id", "_port", "on_empty")

    def __init__(self, port: Port, id: int) -> None:
        self._port = port
        self._id = id
        self.on_empty: Callable[[], None] | None = None
        port.jobs[id] = self

    def __del__(self) -> None:
        self.close()

    @property
    def handle(self) -> int:
        return _check(lib.ap_job_handle(self._id))

    def active(self) -> int:
        return _check(lib.ap_job_active(self._id))

    def terminate(self, exit_code: int) -> None:
        _check(lib.ap_job_terminate(self._id, exit_code))

    def close(self) -> None:
        if lib.ap_job_close(self._id) == 0:
            self._port.remove_job(self._id)

    def tell(self) -> None:
        """In the loop: it seems to be empty."""
        if self.on_empty is not None:
            self.on_empty()
