"""Job objects: part of the native backend on Windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .lib import check, ffi, lib, windows_error
from .port import Port

ERROR_INVALID_HANDLE = 6
#: What sets SpawnSpec.limits.job.
_LIMITS = (
    (("job_memory", "job_processes"), lib.ap_job_limit),
    (("job_cpu_rate",), lib.ap_job_limit_cpu),
)
#: Most processes that are named.
NAMED = 256


def _check(result: int) -> int:
    if result == -ERROR_INVALID_HANDLE:
        raise ValueError("the job is closed")
    return check(result)


class NativeJob:
    """base.Job by an id of the C layer, which knows whether it is still open."""

    __slots__ = ("__weakref__", "_closes_itself", "_id", "_port", "on_empty")

    def __init__(self, port: Port, id: int, *, closes_itself: bool = False) -> None:
        """closes_itself: once its last process has ended, if the system tells of that."""
        self._port = port
        self._id = id
        self._closes_itself = closes_itself
        self.on_empty: Callable[[], None] | None = None
        port.jobs[id] = self

    def __del__(self) -> None:
        if hasattr(self, "_id"):  # Ctrl-C may have come before it was set
            self.close()

    @property
    def handle(self) -> int:
        return _check(lib.ap_job_handle(self._id))

    def limit(self, limits: Mapping[str, int]) -> None:
        """OSError that names the one that cannot be had."""
        for keys, function in _LIMITS:
            values = [limits.get(key, 0) for key in keys]
            if not any(values):
                continue
            result = function(self._id, *values)
            if result < 0:
                names = [f"rlimits[{key!r}]" for key in keys if key in limits]
                raise windows_error(-result, f" ({', '.join(names)})")

    def spare(self) -> None:
        """Its processes do not end with it any more. Harmless when it is closed."""
        lib.ap_job_spare(self._id)

    def active(self) -> int:
        return _check(lib.ap_job_active(self._id))

    def pids(self) -> list[int]:
        numbers = ffi.new("uint32_t[]", NAMED)
        return list(numbers[0 : _check(lib.ap_job_pids(self._id, numbers, NAMED))])

    def terminate(self, exit_code: int) -> None:
        _check(lib.ap_job_terminate(self._id, exit_code))

    def close(self) -> None:
        if lib.ap_job_close(self._id) == 0:
            self._port.remove_job(self._id)

    def tell(self) -> None:
        """In the loop: it seems to be empty."""
        if self._closes_itself and not self.active():
            self.close()
        if self.on_empty is not None:
            self.on_empty()
