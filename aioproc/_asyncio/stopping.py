"""The end of a process, and of all that it has started, when a user has enough of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools

from .._trees import Alone, ProcessTree
from .._trees.ending import Ending, Shield
from .._trees.steps import Step, possible_steps
from .pipes import ReadPipeTransport, logger
from .transport import SubprocessTransport

#: Most bytes that are read of a pipe at the end. Somebody who lives on may go on writing.
LAST = 1024 * 1024
#: Seconds for the end of the pipes when nobody of the tree is left.
DRAIN = 0.5


def read_rest(transport: SubprocessTransport) -> None:
    """What is in the pipes by now is not lost."""
    for pipe in list(transport._pipes.values()):
        if isinstance(pipe, ReadPipeTransport):
            end = pipe._total + LAST
            before = -1
            while before < pipe._total < end:
                before = pipe._total
                pipe.read_now()


def close_stdin(transport: SubprocessTransport) -> bool:
    """Whether there is one."""
    stdin = transport.get_pipe_transport(0)
    if stdin is None:
        return False
    # Who has closed it just before wants the process to have that time, too.
    stdin.close()
    return True


class Stopping:
    """It is done by one task, whoever cancels that meanwhile; others join it."""

    def __init__(
        self,
        transport: SubprocessTransport,
        steps: list[Step],
        cancelled: asyncio.CancelledError | None,
    ) -> None:
        """cancelled: what has brought this about."""
        self._transport = transport
        child = transport._child
        assert child is not None
        self._tree: ProcessTree | Alone = transport.tree or Alone(child)
        self._steps = possible_steps(steps, transport.leads_group)
        self._cause = cancelled
        self._ending = Ending(
            self._tree,
            self._steps,
            transport._exit_future(),
            lambda: transport._look() is not None,
            functools.partial(close_stdin, transport),
            cancelled,
        )
        self._done = transport._loop.create_future()

    async def run(self) -> bool:
        """Whether all of them have ended. Raises a cancellation that came meanwhile."""
        ending, transport = self._ending, self._transport
        # At the end of its input a shell leaves its jobs alone, at that of its terminal not.
        has_eof = any(action == "eof" for action, _ in self._steps)
        if not has_eof and transport.terminal is None:
            close_stdin(transport)
        try:
            with Shield():
                await ending.run()
                read_rest(transport)
                if ending.left == []:
                    # On Windows a pipe ends a moment after whoever has held it.
                    await ending.wait(transport._finish_future(), DRAIN)
        except BaseException:
            self._tree.kill_at_once()
            raise
        finally:
            self._tree.close()
            if not self._done.done():
                self._done.set_result(None)
        if transport._look() is None:
            why = "it may not be killed by this user" if self._tree.refused else "it does not end"
            logger.warning("%r goes on: %s", transport, why)
        elif ending.left:
            logger.warning("%r: %r cannot be ended", transport, ending.left)
        if ending.cancelled is not None and ending.cancelled is not self._cause:
            raise ending.cancelled
        return ending.left == [] or transport.tree is None

    async def join(self, cancelled: asyncio.CancelledError | None) -> None:
        """Waits until another task has done it."""
        cause = cancelled
        while not self._done.done():
            try:
                with Shield() if cancelled is not None else contextlib.nullcontext():
                    await asyncio.wait([self._done])
            except asyncio.CancelledError as error:
                if cancelled is not None:
                    self._ending.hurry()
                else:
                    cancelled = error
        if cancelled is not None and cancelled is not cause:
            raise cancelled
