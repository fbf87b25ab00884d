"""asyncio's transport over a backend's Child.

child's pipe -> ReadPipeTransport -> protocol.pipe_data_received
child's exit -> SubprocessTransport -> protocol.process_exited
the exit and the end of all pipes    -> protocol.connection_lost
"""

from __future__ import annotations

import asyncio
import os
import signal
import warnings
from collections.abc import Callable
from typing import Any

from .._backends.base import KILL, Child, ResourceUsage, Terminal, generation
from .._sink import LOOKS
from .._spec.spec import SpawnSpec
from .._spec.terminal import judge_size
from .._trees import ProcessTree, tree_of
from .extra import Popen
from .pipes import ReadPipeTransport, WritePipeTransport, logger
from .terminal import TerminalWriteTransport

#: Most characters of a command in a warning.
MOST_OF_COMMAND = 60

STREAMS = ("stdin", "stdout", "stderr")


def _shortened(args: Any) -> str:
    """A command as a line of text that is not too long."""
    parts = [args] if isinstance(args, (str, bytes, os.PathLike)) else args
    # Without what would break the line, or could not be printed.
    text = repr(" ".join(os.fsdecode(part) for part in parts))[1:-1]
    return text if len(text) <= MOST_OF_COMMAND else text[: MOST_OF_COMMAND - 3] + "..."


def check_loop(loop: asyncio.AbstractEventLoop) -> None:
    """RuntimeError for who would wait in one loop for what happens in another."""
    if asyncio.get_running_loop() is not loop:
        if loop.is_closed():
            advice = "which is closed"
        else:
            advice = "in which it has to be awaited (asyncio.run_coroutine_threadsafe())"
        raise RuntimeError(f"this process belongs to another event loop, {advice}: {loop!r}")


class SubprocessTransport(asyncio.SubprocessTransport):
    """A child process for a protocol: an :class:`asyncio.SubprocessTransport`.

    After the exit and the end of all pipes the protocol's connection_lost is called, and the
    transport lets go of the protocol.

    Source:
        "Subprocess Transports" in asyncio's documentation.
    """

    _child: Child | None = None
    # Until __init__ has taken charge.
    _closed = True
    _pipes_open = 0
    #: Stands for the command in messages.
    name: str | None = None
    #: Whether the protocol wants to see each piece of data, as soon as it comes.
    _in_person = True

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.SubprocessProtocol,
        child: Child,
        spec: SpawnSpec,
    ) -> None:
        self._loop = loop
        self._protocol: Any = protocol
        self._child = child
        self._context = child.context
        # Not the whole spec, which holds everything twice.
        self.user_args = spec.user_args
        self.leads_group = spec.leads_group
        #: What is ended with the child, if its spec asked for that.
        self.tree: ProcessTree | None = None
        if spec.tree:
            self.tree = tree_of(child, spec)
        self._generation = generation.number
        self._returncode: int | None = None
        self._finished = False
        self._exit_waiters: list[asyncio.Future[int]] = []
        #: Resolved when all pipes have ended as well.
        self._finish_waiters: list[asyncio.Future[None]] = []
        self._pipes: dict[int, ReadPipeTransport | WritePipeTransport] = {}
        #: How often it has been looked at while it lived.
        self._looks = 0
        #: The child's, until it is hung up.
        self.terminal: Terminal | None = child.terminal
        if child.terminal is not None:
            self._pipes[0] = TerminalWriteTransport(self, 0, child.terminal)
        elif child.stdin is not None:
            self._pipes[0] = WritePipeTransport(self, 0, child.stdin)
        if child.stdout is not None:
            self._pipes[1] = ReadPipeTransport(self, 1, child.stdout, spec.programs[0])
        if child.stderr is not None:
            self._pipes[2] = ReadPipeTransport(self, 2, child.stderr, spec.programs[0])
        self._popen: Popen | None = None
        self._pipes_open = len(self._pipes)
        self._closed = False
        # They are ours now. The backend may keep the child for longer than the loop lives.
        child.stdin = child.stdout = child.stderr = child.terminal = None

    def _start(self) -> None:
        """Connects the protocol; from here on it is told of everything."""
        child = self._child
        assert child is not None
        try:
            self._tell(self._protocol.connection_made, self)
            if not self._closed:  # by connection_made
                waits = False
                for pipe in self._pipes.values():
                    waits |= pipe.start()
                waits = waits and child.returncode is None
                if waits and not child.look_later(self._look_at_pipes):
                    self._watch_pipes()
        finally:
            if child.returncode is not None:
                self._loop.call_soon(self._exited)
            else:
                child.on_exit = self._exited

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._closed:
            info.append("closed")
        if self._child is not None:
            info.append(f"pid={self._child.pid}")
            if self._returncode is not None:
                info.append(f"returncode={self._returncode}")
            else:
                info.append("running")
            info += [f"{STREAMS[fd]}={pipe!r}" for fd, pipe in self._pipes.items()]
        return f"<{' '.join(info)}>"

    def __del__(self, _warn: Callable[..., Any] = warnings.warn) -> None:
        if self._closed and not self._pipes_open:
            return
        if self._generation != generation.number:
            return  # in a forked process: all of it is the parent's
        # First all that is to be done: a warning may be an error, and raised.
        what = self._abandon()
        if what:
            assert self._child is not None
            command = self.name or _shortened(self.user_args)
            _warn(f"process {self._child.pid} ({command}) {what}", ResourceWarning, source=self)

    def _abandon(self) -> str:
        """Nobody holds us: ends what is left. Returns what there is to warn of."""
        child = self._child
        assert child is not None
        when = "was dropped after its loop closed" if self._loop.is_closed() else "was dropped"
        if self._closed:
            # Its stdin can have waited for a reader, which no loop watches any more.
            stdin = self._pipes.get(0)
            unsent = stdin.give_up() if isinstance(stdin, WritePipeTransport) else 0
            return f"{when} with {unsent} bytes of its stdin unsent" if unsent else ""
        alive, missed = child.peek() is None, self._returncode is None
        left = [STREAMS[fd] for fd, pipe in self._pipes.items() if pipe._end.fileno() >= 0]
        killed = self._shut(True)
        if alive:
            ended = "killed" if killed else "it may not be killed"
            return f"was still running when it {when}; {ended}"
        if left:
            return f"{when} with its {' and '.join(left)} open"
        return f"{when} before its end was noticed" if missed else ""

    # -- asyncio.SubprocessTransport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known by that name: ``"subprocess"``, the child as a
        :class:`subprocess.Popen`."""
        return self._proc if name == "subprocess" else default

    @property
    def _proc(self) -> Popen:
        # asyncio's name for it, which others know.
        if self._popen is None:
            assert self._child is not None
            files = [
                None if pipe is None else pipe.get_extra_info("pipe")
                for pipe in map(self._pipes.get, (0, 1, 2))
            ]
            self._popen = Popen(self._child, self._look, self.user_args, *files)
        return self._popen

    def _look(self) -> int | None:
        """The returncode if the child has ended, though the loop may not know yet."""
        child = self._child
        assert child is not None
        # Nobody but us reaps it when the loop has closed.
        return child.poll() if self._loop.is_closed() else child.peek()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set another protocol, which is told of all that happens from now on."""
        self._protocol = protocol
        self._in_person = True
        for pipe in self._pipes.values():
            if isinstance(pipe, ReadPipeTransport):
                pipe.deliver_to(None)
                pipe.collect(None)
        self._watch_pipes()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        """Return True if it is closed or is being closed."""
        return self._closed

    def get_pid(self) -> int:
        """Return the child's number."""
        assert self._child is not None
        return self._child.pid

    def get_returncode(self) -> int | None:
        """Return what the child returned; None until the exit has been noticed."""
        if self._returncode is None and self._child is not None and self._loop.is_closed():
            # Nobody will tell any more.
            self._returncode = self._child.poll()
        return self._returncode

    def get_rusage(self) -> ResourceUsage | None:
        """Return what the child has used, as :attr:`Process.rusage`. Not in asyncio."""
        assert self._child is not None
        return self._child.rusage

    # The base class promises a BaseTransport; these are it.
    def get_pipe_transport(self, fd: int) -> Any:
        """Return the transport of stdin (0), stdout (1) or stderr (2); None if it is no pipe."""
        return self._pipes.get(fd)

    def send_signal(self, signal: int) -> None:
        """Send a signal to the child, as :meth:`Process.send_signal`.

        Args:
            signal: Its number (int).

        Raises:
            ProcessLookupError: The child has been reaped.
            OSError, TypeError, ValueError: As those of the Process.
        """
        assert self._child is not None
        self._child.send_signal(signal)

    def terminate(self) -> None:
        """Send SIGTERM to the child; on Windows as :meth:`kill`."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the child; on Windows it is terminated by TerminateProcess."""
        self.send_signal(KILL)

    def close(self) -> None:
        """Close the pipes, and kill the child if it lives."""
        self._shut(self._loop.is_closed())

    def _shut(self, now: bool) -> bool:
        """Closes. `now`: also a stdin that waits for its reader, or would have to. False: the
        child may not be killed and goes on."""
        first = not self._closed
        self._closed = True
        for pipe in self._pipes.values():
            if isinstance(pipe, WritePipeTransport) and (
                now or self.terminal or (first and self._returncode is None)
            ):
                pipe.abort()  # what is left to write would never go out
            elif first:
                pipe.close()
        if self.terminal is not None:
            self.terminal.hang_up()
        child = self._child
        # Only peek: at interpreter exit os.wait4, which poll() may need, works no more.
        if first and child is not None and child.peek() is None:
            if self._loop.get_debug():
                logger.warning("Close running child process: kill %r", self)
            try:
                child.send_signal(KILL)
            except ProcessLookupError:
                pass  # it has just ended
            except PermissionError:
                return False  # it runs setuid
        return True

    def resize(self, rows: int, columns: int) -> None:
        """See Process.resize. Not in asyncio."""
        if self.terminal is None:
            raise RuntimeError("this process has no terminal: create it with pty=True")
        self.terminal.resize(*judge_size(rows, columns))

    # -- what happens to the child

    async def _wait(self, timeout: float | None = None) -> int:
        """The returncode, as soon as the child has ended; asyncio.TimeoutError if that takes
        longer."""
        returncode = self.get_returncode()
        if returncode is not None:
            return returncode
        check_loop(self._loop)
        waiter = self._exit_future()
        timer = None
        if timeout is not None:
            timer = self._loop.call_later(max(timeout, 0), self._give_up, waiter, timeout)
        try:
            return await waiter
        finally:
            self._exit_waiters.remove(waiter)
            if timer is not None:
                timer.cancel()
            del waiter, timer  # which would hold their error, and that our frame

    def _give_up(self, waiter: asyncio.Future[int], timeout: float) -> None:
        # An end that the loop, busy till now, has not noticed is one in time.
        if not waiter.done() and self._look() is None:
            command = self.name or _shortened(self.user_args)
            text = f"process {self.get_pid()} ({command}) has not ended within {timeout:g} seconds"
            waiter.set_exception(asyncio.TimeoutError(text))

    def _exit_future(self) -> asyncio.Future[int]:
        """Done when the child's end has been noticed."""
        waiter: asyncio.Future[int] = self._loop.create_future()
        returncode = self.get_returncode()
        if returncode is not None:
            waiter.set_result(returncode)
        self._exit_waiters.append(waiter)
        return waiter

    def _finish_future(self) -> asyncio.Future[None]:
        """Done when the child and all its pipes have ended."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        if self._finished:
            waiter.set_result(None)
        else:
            self._finish_waiters.append(waiter)
        return waiter

    async def _wait_finished(self) -> None:
        """Returns when the child and all its pipes have ended."""
        if self._finished:
            return
        waiter = self._finish_future()
        try:
            await waiter
        finally:
            self._finish_waiters.remove(waiter)
            del waiter  # which would hold its error, and that our frame

    def _out_of_memory(self, exc: MemoryError) -> None:
        """A read of a pipe has failed: tells who waits for all of it."""
        for waiter in self._finish_waiters:
            if not waiter.done():
                waiter.set_exception(exc)

    def _tell(self, method: Callable[..., Any], *args: Any) -> None:
        """Calls the protocol, whose errors are not ours."""
        try:
            method(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(method.__name__, exc)

    def _report(self, method: str, exc: BaseException) -> None:
        self._loop.call_exception_handler(
            {
                "message": f"protocol.{method}() failed",
                "exception": exc,
                "transport": self,
                "protocol": self._protocol,
            }
        )

    def _look_at_pipes(self) -> None:
        """The child has not ended as soon as most do."""
        child = self._child
        assert child is not None
        self._looks += 1
        waits = False
        for pipe in list(self._pipes.values()):
            waits |= pipe.look()
        if waits and (self._looks == LOOKS or not child.look_later(self._look_at_pipes)):
            self._watch_pipes()

    def _watch_pipes(self) -> None:
        for pipe in list(self._pipes.values()):
            pipe.watch()

    def _exited(self) -> None:
        child = self._child
        assert child is not None
        assert child.returncode is not None
        if self._pipes_open:
            for pipe in self._pipes.values():
                pipe.finish_reading()
        if self._loop.get_debug():
            logger.info("%r exited with return code %r", self, child.returncode)
        self._returncode = child.returncode
        for waiter in self._exit_waiters:
            if not waiter.done():  # cancelled in this round of the loop
                waiter.set_result(child.returncode)
        self._tell(self._protocol.process_exited)
        if self._pipes_open:
            stdin = self._pipes.get(0)
            if stdin is not None:
                stdin.watch()  # somebody else may read it, or nobody
        self._maybe_finish()

    def _pipe_lost(self, fd: int, exc: Exception | None) -> None:
        self._pipes_open -= 1
        if self._returncode is None and self._child is not None:
            self._child.expect_exit()
        self._tell(self._protocol.pipe_connection_lost, fd, exc)
        self._maybe_finish()

    def _maybe_finish(self) -> None:
        if self._returncode is not None and self.terminal is not None and self._pipes_open == 1:
            stdin = self._pipes[0]
            assert isinstance(stdin, WritePipeTransport)
            if not stdin._lost:  # its end is ours to see: it comes with that of stdout
                stdin.abort()
        if self._returncode is not None and not self._pipes_open and not self._finished:
            self._finished = True
            # Nothing is left that close() would have to do.
            self._closed = True
            if self.terminal is not None:
                self.terminal.hang_up()
            self._tell(self._protocol.connection_lost, None)
            self._protocol = None
            for waiter in self._finish_waiters:
                if not waiter.done():
                    waiter.set_result(None)
