"""Process: what the user holds."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .._backends.base import READS_NO_MORE, ResourceUsage
from .._notes import add_note
from .._sink import Sink
from .._trees import ProcessTree
from .pipes import WritePipeTransport, logger
from .streams import StreamReader
from .transport import SubprocessTransport, check_loop
from .writer import Flow, StreamWriter

#: Seconds between SIGTERM and SIGKILL when `async with` is left.
GRACE = 5.0


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


def input_view(input: Any) -> memoryview:
    """What communicate() is given, as it is to be sent."""
    try:
        return memoryview(input)
    except TypeError as error:
        if isinstance(input, str):
            add_note(error, "pipes carry bytes: communicate(text.encode())")
        raise


class StreamProtocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Joins a SubprocessTransport to the streams of a Process.

    asyncio's class is the base for ``isinstance`` only. Names that code in the wild reads
    or derived classes use are asyncio's: _paused, _limit, _transport, _process_exited.
    """

    def __init__(self, limit: int | None, loop: asyncio.AbstractEventLoop) -> None:
        if limit is not None and limit <= 0:
            raise ValueError("Limit cannot be <= 0")
        self._limit = limit
        self._loop = loop
        #: By the numbers of the streams: what is there for the user, made when he asks for
        #: it. Most children are for communicate(), which needs none of it.
        self._streams: dict[int, Any] = {}
        #: What communicate() collects of pipes that have no reader.
        self._sinks: dict[int, Sink] = {}
        #: What broke pipes that had no stream then.
        self._errors: dict[int, Exception] = {}
        #: Of the writer, if there is one.
        self._flow: Flow | None = None
        self._pipes: Mapping[int, Any] = {}
        self._transport: SubprocessTransport | None = None
        self._process_exited = False
        self._readers_open = 0

    def __repr__(self) -> str:
        info = [type(self).__name__]
        for name in ("stdin", "stdout", "stderr"):
            stream = getattr(self, name)
            if stream is not None:
                info.append(f"{name}={stream!r}")
        return f"<{' '.join(info)}>"

    # -- the streams

    @property
    def stdin(self) -> StreamWriter | None:  # type: ignore[override]
        if 0 not in self._streams:
            self._streams[0] = self._make_writer()
        stream: StreamWriter | None = self._streams[0]
        return stream

    @property
    def stdout(self) -> StreamReader | None:  # type: ignore[override]
        return self._reader(1)

    @property
    def stderr(self) -> StreamReader | None:  # type: ignore[override]
        return self._reader(2)

    def _reader(self, fd: int) -> StreamReader | None:
        if fd not in self._streams:
            self._streams[fd] = self._make_reader(fd)
        stream: StreamReader | None = self._streams[fd]
        return stream

    def _make_reader(self, fd: int) -> StreamReader | None:
        pipe = self._pipes.get(fd)
        if pipe is None:
            return None
        reader = StreamReader(self._limit, self._loop)
        reader.set_transport(pipe)
        reader._sink = self._sinks.get(fd)  # so that nobody reads in the midst of it
        if not pipe._lost:
            pipe.deliver_to(reader.feed_data)
        elif fd in self._errors:
            reader.set_exception(self._errors[fd])
        else:
            reader.feed_eof()
        return reader

    def _make_writer(self) -> StreamWriter | None:
        pipe = self._pipes.get(0)
        if pipe is None:
            return None
        flow = self._flow = Flow(self._loop)
        if pipe._protocol_paused:
            flow.pause()
        if pipe._lost:
            flow.end(self._errors.get(0))
        return StreamWriter(pipe, flow, None, self._loop)

    # -- asyncio.SubprocessProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, SubprocessTransport)
        self._transport = transport
        pipes = self._pipes = transport._pipes
        self._readers_open = len(pipes) - (0 in pipes)
        # Straight to where they belong, unless a derived class wants to see the data.
        transport._in_person = (
            type(self).pipe_data_received is not StreamProtocol.pipe_data_received
        )

    def pipe_data_received(self, fd: int, data: Any) -> None:
        reader = self._reader(fd)
        if reader is not None:
            reader.feed_data(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if exc is not None:
            self._errors[fd] = exc
        if fd == 0:
            if self._flow is not None:
                self._flow.end(exc)
        else:
            reader = self._streams.get(fd)
            if reader is not None:
                if exc is None:
                    reader.feed_eof()
                else:
                    reader.set_exception(exc)
            self._readers_open -= 1
        self._progress()

    def pipe_out_of_memory(self, fd: int, exc: MemoryError) -> None:
        """A read of the pipe has failed, and has taken nothing out of it."""
        reader = self._reader(fd)
        assert reader is not None
        reader._out_of_memory(exc)
        if self._transport is not None:
            self._transport._out_of_memory(exc)

    def process_exited(self) -> None:
        self._process_exited = True
        self._progress()

    def connection_lost(self, exc: Exception | None) -> None:
        pass

    def _progress(self) -> None:
        if not self._process_exited or self._readers_open:
            return
        transport, self._transport = self._transport, None
        if transport is not None and transport._pipes_open:
            transport.close()  # stdin, if nobody did

    def pause_writing(self) -> None:
        if self._flow is not None:
            self._flow.pause()

    def resume_writing(self) -> None:
        if self._flow is not None:
            self._flow.resume()

    @property
    def _paused(self) -> bool:
        return self._flow is not None and self._flow._paused

    # -- for Process.communicate

    def start_collecting(self, fd: int) -> None:
        """All that is to come of a pipe is kept, out of the reach of others.

        MemoryError, OSError: it cannot be done, and nothing has changed.
        """
        if fd in self._streams:
            reader = self._streams[fd]
            if reader is not None:
                reader._check()
                reader.start_collecting()
        elif fd in self._pipes:
            if fd in self._errors:
                raise self._errors[fd]
            sink = self._sinks[fd] = Sink()
            self._pipes[fd].collect(sink)

    def stop_collecting(self) -> None:
        """What was collected is where it can be read."""
        for fd in (1, 2):
            if fd in self._sinks:
                reader = self._reader(fd)
                assert reader is not None
            else:
                reader = self._streams.get(fd)
            if reader is not None and reader._sink is not None:
                reader.stop_collecting()
        self._sinks.clear()

    def take_all(self) -> tuple[bytes | None, bytes | None]:
        """What was collected.

        MemoryError, or what broke a pipe: all of it stays where it is.
        """
        for fd, error in self._errors.items():
            if fd in self._pipes and not (fd == 0 and isinstance(error, READS_NO_MORE)):
                raise error
        outputs: list[Any] = [None, None]
        readers = []
        for fd in (1, 2):
            reader = self._streams.get(fd)
            if reader is not None:
                reader.stop_collecting()
                reader._join()
                readers.append((fd, reader))
            elif fd in self._sinks:
                outputs[fd - 1] = self._sinks[fd].value()
        # Nothing fails from here on.
        self._sinks.clear()
        for fd, reader in readers:
            outputs[fd - 1] = reader._take_all()
        return outputs[0], outputs[1]


class _Stream:
    """An attribute of a Process that is its protocol's, which makes it when somebody asks
    for it. An assignment replaces it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, process: Process | None, owner: object) -> Any:
        return self if process is None else getattr(process._protocol, self._name)


class Process(asyncio.subprocess.Process):
    """A child process, as :func:`create_subprocess_exec` and
    :func:`create_subprocess_shell` return it.

    stdin: StreamWriter; None unless stdin=PIPE was given.
    stdout, stderr: StreamReader; None unless stdout=PIPE, stderr=PIPE was given.
    pid: int; of a shell command that of the shell. It stays when the child has ended.
    returncode, args, rusage: see there.

    As an asynchronous context manager it ends the child when the block is left,
    however that happens: stdin is closed, the child gets SIGTERM, after 5 seconds
    SIGKILL, and is reaped. A second cancellation does not interrupt this. (That is
    not what ``with subprocess.Popen(...)`` does, which waits for as long as it takes.)
    The ``await`` belongs to it: ``async with await create_subprocess_exec(...) as process``.
    A child that we may not signal (sudo, su) and that has not ended by then goes on:
    its pipes are closed, and a warning is logged. Made with tree=True, it takes with it all
    that it has started: the grace lasts until the last of them has ended.

    Source: "Interacting with Subprocesses" in asyncio's documentation; additions are
    said to be such.
    """

    if TYPE_CHECKING:
        stdin: StreamWriter | None
        stdout: StreamReader | None
        stderr: StreamReader | None
    else:
        stdin, stdout, stderr = map(_Stream, ("stdin", "stdout", "stderr"))
    pid: int
    #: Whether communicate() ignores input for a stdin that is no pipe.
    _ignores_input = False

    def __init__(
        self,
        transport: SubprocessTransport,
        protocol: StreamProtocol,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._transport = transport
        self._protocol = protocol
        self._loop = loop
        self.pid = transport.get_pid()
        self._input: bytes | bytearray | memoryview | None = None
        self._communicating = False
        self._fed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid}>"

    @property
    def returncode(self) -> int | None:
        """int: 0 to 255, or -N for signal N; on Windows 0 to 0xFFFFFFFF. None until the exit
        has been noticed. :data:`UNKNOWN_EXIT` where nobody can tell it any more."""
        return self._transport.get_returncode()

    @property
    def args(self) -> Any:
        """What was run: (program, *arguments), or the shell's command. Not in asyncio."""
        return self._transport.user_args

    @property
    def rusage(self) -> ResourceUsage | None:
        """:class:`ResourceUsage`: CPU time, peak memory and so on. None until the exit, and
        where another wait in this process took the child. Not in asyncio."""
        return self._transport.get_rusage()

    async def wait(self) -> int:
        """Returns the returncode once the child has ended.

        Depends on the exit alone: a grandchild that keeps a pipe open delays nothing.
        Any number of tasks may wait. The child can block for ever if it writes to a
        pipe that nobody reads; use communicate() then.
        """
        return await self._transport._wait()

    def send_signal(self, signal: int, *, tree: bool = False) -> None:
        """Sends a signal to the child. On Windows: SIGTERM ends it, CTRL_C_EVENT and
        CTRL_BREAK_EVENT are sent to its process group, others are a ValueError.

        From any thread, also after the loop was closed. A process that got the number
        since is never hit (on POSIX without pidfds and kqueue: unless other code in this
        process has waited for the child).

        tree: also to all that the child has started, which has to be asked for when it is
            created (create_subprocess_exec's `tree`; RuntimeError otherwise). The members
            are looked for in a thread, so that they may have it a moment later, and nobody
            is told of those that refuse it, or of a child that has ended before. On Windows:
            SIGTERM ends all of them, CTRL_BREAK_EVENT is for a child's process group, if it
            has got one; anything else is a ValueError. Not in asyncio.

        ProcessLookupError: the child has been reaped. OSError: the system refuses (no such
        signal, or a child of another user). TypeError: no integer.
        """
        if tree:
            self._tree().send(signal)
        else:
            self._transport.send_signal(signal)

    def _tree(self) -> ProcessTree:
        tree = self._transport.tree
        if tree is None:
            raise RuntimeError("this process was made without its tree: create it with tree=True")
        return tree

    async def kill_tree(self) -> list[int] | None:
        """End the child and all that it has started, by SIGKILL; on Windows by terminating
        the job that they are in.

        What counts is who lives: members that have left the child's session are found by
        their parents and by a mark in their environment (docs/semantics.md). It takes a few
        milliseconds, and a second at most.

        Returns:
            The pids of members that cannot be ended: those of another user, or such as the
            kernel does not let go of just now. None where nobody can look: then the child
            and its process group have been ended, on Windows the child.

        Raises:
            RuntimeError: The process was created without tree=True.
        """
        check_loop(self._loop)
        tree = self._tree()
        try:
            left = await tree.kill()
            if left is None or self.pid not in left:
                await self.wait()
            return left
        finally:
            tree.close()

    def terminate(self) -> None:
        """Sends SIGTERM; see send_signal. (Windows: as kill.)"""
        self._transport.terminate()

    def kill(self) -> None:
        """Sends SIGKILL; see send_signal. (Windows: TerminateProcess.)"""
        self._transport.kill()

    async def communicate(
        self, input: bytes | bytearray | memoryview | None = None
    ) -> tuple[bytes, bytes]:
        """Write to stdin, read stdout and stderr to their ends, and wait for the exit.

        It can be cancelled (by a timeout, say) or fail, and be called again, and loses
        nothing: what has been read is kept for the next call, or for the methods of
        stdout and stderr, and the input goes on where it was. A child that does not read
        all of its input is no error.

        Args:
            input: Bytes for stdin, which is closed after them; without any it is closed at
                once. They must not be changed before this returns. They are given with
                the first call; the same again is taken as a repetition. Without a
                stdin=PIPE nothing but empty input has a meaning.

        Returns:
            (stdout, stderr): all that was not read before; None for what is no pipe.

        Raises:
            ValueError: Input without stdin=PIPE (objects that asyncio's own functions
                made under aioproc.install() ignore it, as asyncio does). Or other input
                than with the first call, as Popen's.
            RuntimeError: Somebody else is reading.
            MemoryError: There is no memory for the output. It is raised while there is
                still some: a buffer that grows may want as much again as it has. What has
                been read is kept, and the child waits, its pipes being paused. Read the
                rest in smaller parts, or end the child.
            OSError: A pipe broke. What it had given cannot be read any more.
        """
        if not isinstance(self._protocol, StreamProtocol):
            # Built by somebody's own hands, from a protocol of asyncio's.
            return await super().communicate(input)
        if self._communicating:
            raise RuntimeError(
                "communicate() called while another coroutine is already waiting for incoming data"
            )
        protocol = self._protocol
        if not protocol._process_exited or protocol._readers_open:
            check_loop(self._loop)
        self._communicating = True
        try:
            for fd in (1, 2):
                protocol.start_collecting(fd)
            if self._loop.get_debug():
                logger.debug("%r communicate: read %r", self, protocol)
            self._feed(input)
            await self._transport._wait_finished()
            # asyncio's type is a lie that users' type checkers count on: None for no pipe.
            return protocol.take_all()  # type: ignore[return-value]
        except BaseException:
            protocol.stop_collecting()
            raise
        finally:
            self._communicating = False

    def _feed(self, input: bytes | bytearray | memoryview | None) -> None:
        pipe: WritePipeTransport | None = self._transport.get_pipe_transport(0)
        if pipe is None and self._ignores_input:
            input = None
        if input is not None:
            view = input_view(input)
            if pipe is None:
                if view.nbytes:
                    raise ValueError("communicate() got input, but stdin is not a pipe")
                input = None
        if self._fed:
            if input is None or input is self._input:
                return
            if memoryview(b"" if self._input is None else self._input) != view:
                raise ValueError("Cannot send input after starting communication")
            return
        self._fed = True
        if pipe is None:
            return
        if input is not None:
            self._input = input
            if not pipe.is_closing():
                flat = view.contiguous and view.nbytes
                pipe.send(view.cast("B") if flat else memoryview(bytes(view)))
                if self._loop.get_debug():
                    logger.debug("%r communicate: feed stdin (%s bytes)", self, view.nbytes)
        pipe.finish()

    # -- the context manager

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        check_loop(self._loop)
        await to_the_end(self._loop.create_task(self._end()))

    async def _end(self) -> None:
        stdin = self._transport.get_pipe_transport(0)
        if stdin is not None:
            stdin.close()
        if self._transport.tree is not None:
            await self._end_tree(self._transport.tree)
        elif self.returncode is None:
            self._may_signal(self.terminate)
            try:
                await asyncio.wait_for(self.wait(), GRACE)
            except asyncio.TimeoutError:
                if self._may_signal(self.kill):
                    await self.wait()
                else:
                    logger.warning("%r goes on: it may not be killed by this user", self)
        # A grandchild may hold the pipes open for as long as it likes.
        self._transport.close()
        # Lets the readers learn that nothing will come.
        await asyncio.sleep(0)

    async def _end_tree(self, tree: ProcessTree) -> None:
        try:
            await tree.signal(signal.SIGTERM)
            if not await tree.gone(GRACE):
                left = await tree.kill()
                if left:
                    logger.warning("%r: %r cannot be ended", self, left)
                if left and self.pid in left:
                    return
            await self.wait()
        finally:
            tree.close()

    @staticmethod
    def _may_signal(send: Callable[[], None]) -> bool:
        """Sends a signal, if the child lives. False: one that runs as another user (sudo,
        su) refuses it."""
        try:
            send()
        except ProcessLookupError:
            pass
        except PermissionError:
            return False
        return True
