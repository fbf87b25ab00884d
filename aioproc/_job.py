"""Job: a tree of processes on Windows, ended and waited for as one."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

from . import _backends
from ._backends.system import WINDOWS
from ._trees.waiting import Waiters, until, wake

if WINDOWS:
    from ._spec.windows import own_startupinfo

#: Seconds after which wait() looks for itself. Windows does not promise to deliver what
#: it tells of a job ("JOBOBJECT_ASSOCIATE_COMPLETION_PORT structure").
LOOK_AGAIN = 1.0


async def to_the_end(ending: asyncio.Task[None]) -> None:
    """Waits for a task that no cancellation of ours interrupts; then it counts."""
    cancelled: asyncio.CancelledError | None = None
    while not ending.done():
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError as error:
            if ending.cancelled():
                raise
            cancelled = error
    ending.result()
    if cancelled is not None:
        raise cancelled


class Job:
    """A job object of Windows: children and everything that they start, as one.

    ``Process.terminate()`` ends one process there, and what it has started goes on. A
    child that is made with a job's :meth:`startupinfo` is in the job from its first
    moment, and so is everything that comes of it::

        async with aioproc.Job() as job:
            process = await aioproc.create_subprocess_shell(
                "build & test", startupinfo=job.startupinfo())
            await asyncio.wait_for(process.wait(), timeout=60)

    It is made while an event loop runs. Its methods may be called from any thread, also after
    the loop was closed, and wait() in any loop.

    As a context manager, ``with`` closes the job. ``async with`` ends what is left, waits
    until the job is empty and closes it, however the block is left, also with
    kill_on_close=False; a second cancellation does not interrupt this. An exit may reach
    a Process a moment later: await its wait().

    Args:
        kill_on_close: Whether the processes end with the job: when it is closed, or when our
            own process ends, in whatever way. False: closing it leaves them alone.

    Raises:
        NotImplementedError: This is not Windows, or not the native backend.
        RuntimeError: No event loop runs.
        OSError: The system gives no job.

    Platforms:
        Windows, with the native backend.

    Source:
        "Job Objects" in Microsoft's documentation; kill_on_close is
        JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE.
    """

    _job: Any = None

    def __init__(self, *, kill_on_close: bool = True) -> None:
        self._waiters: Waiters = set()
        loop = asyncio.get_running_loop()
        self._job = _backends.current().open_job(loop, kill_on_close=bool(kill_on_close))
        # Without a way back to this object: it shall go when nobody holds it.
        self._job.on_empty = functools.partial(wake, self._waiters)

    def __repr__(self) -> str:
        try:
            state = f"handle={self.handle} active={self.active}"
        except ValueError:
            state = "closed"
        return f"<{type(self).__name__} {state}>"

    def __int__(self) -> int:
        return self.handle

    def __del__(self, _warn: Callable[..., Any] = warnings.warn) -> None:
        if self._job is None:
            return
        try:
            alive = self._job.active()
        except (ValueError, OSError):
            alive = 0  # closed
        what = f"unclosed job {self!r}" if alive else ""
        self._job.close()
        if what:  # at the end: it may be an error, and raised
            _warn(what, ResourceWarning, source=self)

    @property
    def handle(self) -> int:
        """The handle's number (int), for other calls of Windows.

        It is not inheritable, and not to be closed by others. ValueError when the job is
        closed.
        """
        handle: int = self._job.handle
        return handle

    @property
    def active(self) -> int:
        """How many processes are in the job now (int), those that children have started
        included. ValueError when it is closed."""
        active: int = self._job.active()
        return active

    def startupinfo(self, base: Any = None) -> Any:
        """Return what create_subprocess_exec() and its kin take as `startupinfo` for a child
        in this job.

        Args:
            base: A STARTUPINFO to begin with, which stays as it is. With that of another job
                the child is in both, this one nested in the other; where Windows cannot nest
                them, creating the child raises OSError.

        Returns:
            A ``subprocess.STARTUPINFO`` with the job in ``lpAttributeList["job_list"]``.

        Raises:
            TypeError: base is something else.
            ValueError: The job is closed.
        """
        info = own_startupinfo("base", base)
        int(self)  # not closed
        attributes = dict(info.lpAttributeList or {})
        attributes["job_list"] = [*(attributes.get("job_list") or ()), self]
        info.lpAttributeList = attributes
        return info

    def terminate(self, exit_code: int = 1) -> None:
        """End all processes of the job at once. If there are none, that is no error.

        Args:
            exit_code: Their returncode, 0 to 0xFFFFFFFF.

        Raises:
            TypeError, OverflowError: That is no such number.
            ValueError: The job is closed.

        Source:
            TerminateJobObject in Microsoft's documentation.
        """
        if not isinstance(exit_code, int):
            raise TypeError(f"exit_code must be an integer, not {type(exit_code).__name__}")
        if not 0 <= exit_code <= 0xFFFFFFFF:
            raise OverflowError(f"exit_code cannot be {exit_code}")
        self._job.terminate(exit_code)

    async def wait(self) -> None:
        """Wait until there is no process in the job.

        It returns at once if there is none now. Any number of tasks may wait. Pipes play no
        part in it.

        Raises:
            ValueError: The job is closed, or has been closed meanwhile.
        """
        await self._until_empty(None)

    async def _until_empty(self, each_time: Callable[[], None] | None) -> None:
        await until(
            lambda: not self.active,
            self._waiters,
            pause=LOOK_AGAIN,
            longest_pause=LOOK_AGAIN,
            each_time=each_time,
        )

    def close(self) -> None:
        """Close the handle. With kill_on_close the processes end, with exit code 1.

        Whoever waits gets a ValueError. It is harmless when the job is closed already.
        """
        self._job.close()
        wake(self._waiters)

    # -- the context managers

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Job:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await to_the_end(asyncio.get_running_loop().create_task(self._end()))

    async def _end(self) -> None:
        try:
            # Again, if something has been started in it meanwhile.
            await self._until_empty(self.terminate)
        except ValueError:
            pass  # closed by somebody else
        finally:
            self.close()
