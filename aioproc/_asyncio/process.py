"""Process: what the user holds."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .._backends.base import ResourceUsage
from .._messages import MOST_OF_OUTPUT, escaped, label, lenient, status, translate_newlines
from .._notes import add_note
from .._text import Encoder
from .._trees import ProcessTree
from .._trees.steps import DEFAULT_STEPS, GRACE, Step, judged_seconds, judged_steps
from .merged import Merged
from .pipes import WritePipeTransport, logger
from .protocol import StreamProtocol
from .stopping import Stopping, read_rest
from .streams import Deadline, StreamReader
from .text import TextReader, TextWriter
from .transport import SubprocessTransport, check_loop
from .until import compiled, until
from .writer import StreamWriter

if TYPE_CHECKING:
    from typing_extensions import Self

#: Bytes of each output that are kept, if nobody reads them, while the child is to go on.
KEPT = 64 * 1024 * 1024
#: Seconds in which a child ends that has closed all its output, mostly.
MOMENT = 0.5


def input_view(input: Any) -> memoryview:
    """What communicate() is given, as it is to be sent."""
    try:
        return memoryview(input)
    except TypeError as error:
        if isinstance(input, str):
            add_note(error, "pipes carry bytes: communicate(text.encode())")
        raise


class _Stream:
    """An attribute of a Process that is its protocol's, which makes it when somebody asks
    for it. An assignment replaces it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, process: Process | None, owner: object) -> Any:
        return self if process is None else getattr(process._protocol, self._name)


class Process(asyncio.subprocess.Process):
    """A child process: an :class:`asyncio.subprocess.Process`, with more methods.

    :func:`open_process`, :func:`create_subprocess_exec` and :func:`create_subprocess_shell`
    make it.

    As an asynchronous context manager it ends the child when the block is left, however that
    happens: stdin is closed, the child gets SIGTERM, after 5 seconds SIGKILL, and is reaped
    (see :meth:`stop`). With tree=True, which is open_process()'s default, everything that it
    has started ends with it, and the seconds are for all of them. Unlike ``with
    subprocess.Popen(...)`` it does not wait for as long as the child likes: what the child
    shall finish is to be awaited in the block. ::

        async with await aioproc.create_subprocess_exec("make", tree=True) as process:
            await process.wait()

    A child that has closed all its output gets half a second to end by itself, if the block
    is left without an exception. A cancellation does not interrupt the ending; a second one
    leaves out what is left of the grace. A child that we may not signal (sudo, su) and that
    has not ended by then goes on: its pipes are closed, and a warning is logged.

    Attributes:
        stdin: A :class:`StreamWriter`; None unless it is a pipe or a terminal.
        stdout: A :class:`StreamReader`; None unless it is a pipe or a terminal.
        stderr: A :class:`StreamReader`; None unless it is a pipe.
        pid: The child's number (int); of a shell command that of the shell. It stays when the
            child has ended.

    Source:
        "Interacting with Subprocesses" in asyncio's documentation. What is not asyncio's is
        said to be so.
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
    #: Whether `returncode` looks whether the child has ended.
    _peeks = False
    #: How it is ended, unless stop() is told otherwise.
    _steps: list[Step] = DEFAULT_STEPS
    _stopping: Stopping | None = None
    _was_stopped = False

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
        if transport.terminal is not None:
            self._steps = judged_steps(GRACE, terminal=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid}>"

    @property
    def returncode(self) -> int | None:
        """What the child has returned, an int.

        0 to 255, or -N if signal N has ended it; on Windows 0 to 0xFFFFFFFF. None until the exit
        has been noticed. :data:`UNKNOWN_EXIT` where nobody can tell it any more.
        """
        code = self._transport.get_returncode()
        return self._transport._look() if code is None and self._peeks else code

    @property
    def args(self) -> Any:
        """What was run, as it was given.

        A tuple of the program and its arguments, or the line of a shell. Not in asyncio.
        """
        return self._transport.user_args

    @property
    def rusage(self) -> ResourceUsage | None:
        """What the child has used, a :class:`ResourceUsage`.

        CPU time, peak memory and so on. None until the exit, and where another wait in this
        process has taken the child. Not in asyncio.
        """
        return self._transport.get_rusage()

    async def wait(self, timeout: float | None = None) -> int:
        """Return the returncode once the child has ended.

        It depends on the exit alone: a grandchild that keeps a pipe open delays nothing.
        Any number of tasks may wait. The child can block for ever if it writes to a
        pipe that nobody reads; use communicate() then.

        Args:
            timeout: Seconds. None: as long as it takes. Not in asyncio.

        Raises:
            asyncio.TimeoutError: It has not ended in that time. Nothing else happens.
        """
        if timeout is not None:
            timeout = judged_seconds("timeout", timeout)
        return await self._transport._wait(timeout)

    def send_signal(self, signal: int, *, tree: bool = False) -> None:
        """Send a signal to the child.

        It may be called from any thread, also after the loop was closed. A process that got
        the number since is never hit (on POSIX without pidfds and kqueue: unless other code in
        this process has waited for the child).

        Args:
            signal: Its number (int).
            tree: Whether it goes to all that the child has started, too. The members are
                looked for in a thread, so that they may have it a moment later, and nobody is
                told of those that refuse it, or of a child that has ended before. Not in
                asyncio.

        Raises:
            ProcessLookupError: The child has been reaped.
            PermissionError: It is another user's.
            OSError: There is no such signal.
            TypeError: That is no integer.
            RuntimeError: With `tree`: the process was created without tree=True.
            ValueError: On Windows: there is no such signal there.

        Platforms:
            On Windows SIGTERM ends the child, with `tree` all of them; CTRL_C_EVENT (without
            `tree`) and CTRL_BREAK_EVENT are sent to its process group, if it has got one.
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
        """End the child and all that it has started, by SIGKILL.

        What counts is who lives: members that have left the child's session are found by
        their parents and by a mark in their environment (:doc:`Semantics </semantics>`,
        "Trees"). It takes a few milliseconds, and a second at most.

        Returns:
            The pids of members that cannot be ended: those of another user, or such as the
            kernel does not let go of just now. None where nobody can look: then the child
            and its process group have been ended, on Windows the child.

        Raises:
            RuntimeError: The process was created without tree=True.

        Platforms:
            On Windows the job that they are in is terminated.
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
        """Send SIGTERM to the child; see :meth:`send_signal`. On Windows as :meth:`kill`."""
        self._transport.terminate()

    def kill(self) -> None:
        """Send SIGKILL to the child; see :meth:`send_signal`. On Windows it is terminated by
        TerminateProcess."""
        self._transport.kill()

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the child's terminal (pty=True).

        Its programs are told by SIGWINCH. To be called in the loop's thread. Not in asyncio.

        Args:
            rows: 1 to 65535.
            columns: The same.

        Raises:
            RuntimeError: The process was created without a terminal.
            ProcessLookupError: The terminal has gone, with the process.
            ValueError, TypeError: That is no size.

        Source: TIOCSWINSZ in ioctl_tty(2).
        """
        self._transport.resize(rows, columns)

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
                protocol._start_collecting(fd)
            if self._loop.get_debug():
                logger.debug("%r communicate: read %r", self, protocol)
            self._feed(input)
            await self._transport._wait_finished()
            # asyncio's type is a lie that users' type checkers count on: None for no pipe.
            return protocol.take_all()  # type: ignore[return-value]
        except BaseException:
            protocol._stop_collecting()
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
            elif view.nbytes and self._transport.terminal is not None:
                # getpass and its kin drop it (TCSAFLUSH), and of a line that is longer than
                # the kernel's buffer the rest.
                raise ValueError(
                    "communicate() has no input for a terminal: programs drop what is typed "
                    "before they ask; use read_until() and stdin.write()"
                )
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

    # -- reading

    def lines(self) -> Merged[bytes]:
        """Return an iterator of the lines of stdout and stderr, as they come.

        ::

            async for stream, line in process.lines():
                print(stream, line)

        Not in asyncio.

        Returns:
            An asynchronous iterator of (stream, line): "stdout" or "stderr", and a line with
            its newline, the last of a stream perhaps without. It ends when both have ended.
            It can be left, and gone on with, by another call too: nothing is lost.

        Raises:
            ValueError: Neither stdout nor stderr is a pipe.
            RuntimeError: While waiting: somebody else is reading.
        """
        return self._merged("lines")

    def chunks(self) -> Merged[bytes]:
        """Return an iterator of what stdout and stderr give, as it comes.

        Not in asyncio.

        Returns:
            As :meth:`lines`, with pieces of any size in place of lines.

        Raises:
            ValueError, RuntimeError: As lines().
        """
        return self._merged("chunks")

    def _merged(self, caller: str) -> Merged[Any]:
        sources = []
        for name in ("stdout", "stderr"):
            reader = getattr(self, name)
            if reader is not None:
                take = reader._line_now if caller == "lines" else reader._chunk_now
                sources.append((name, reader._source, take))
        if not sources:
            raise ValueError(f"{caller}() needs output: stdout or stderr must be PIPE")
        return Merged(caller, sources, self._moment)

    async def read_until(
        self, pattern: Any, *, timeout: float | None = None, limit: int | None = None
    ) -> bytes:
        """Return what comes on stdout up to a pattern, with what matches it.

        It looks at stdout only. A prompt that a program writes to stderr, as Python's does
        without a terminal, needs stderr=STDOUT or pty=True.

        The first match that there is in what has come, which need not be all that a pattern
        could match. While it waits, up to 64 MiB of stderr are read and kept. ::

            await shell.read_until(b"$ ", timeout=10)
            shell.stdin.write(b"make\\n")
            answer = await shell.read_until(re.compile(rb"(done|failed)\\n"), timeout=60)

        Not in asyncio.

        Args:
            pattern: Bytes, which are looked for as they are; a compiled pattern of
                :mod:`re`, which is searched from the beginning of what has not been read, as
                more comes; or a tuple of these: the match that ends first counts. (With
                text=True str, and patterns of str.)
            timeout: Seconds. None: as long as it takes.
            limit: Most bytes before the match (characters of text). None: any number.

        Returns:
            The bytes; with text=True a str.

        Raises:
            asyncio.TimeoutError: It has not come in that time. What has come can be read.
            asyncio.IncompleteReadError: The output has ended before; its ``partial`` has what
                was left of it. A note says how the process has ended, if it has, and the last
                of its stderr that nobody has read.
            asyncio.LimitOverrunError: More than `limit` has come; it can be read.
            ValueError: stdout is no pipe, or the pattern matches where nothing is.
            TypeError: No such pattern.
            RuntimeError: Somebody else is reading.
        """
        return await self._read_until(bytes, pattern, timeout, limit)  # type: ignore[no-any-return]

    async def _read_until(
        self, kind: type, pattern: Any, timeout: float | None, limit: int | None
    ) -> Any:
        patterns, literals = compiled(pattern, kind)
        reader: Any = self.stdout
        if reader is None:
            raise ValueError("read_until() needs stdout=PIPE")
        if limit is not None:
            if isinstance(limit, bool) or not isinstance(limit, int):
                raise TypeError(f"limit must be an int or None, not {limit!r:.100}")
            if limit <= 0:
                raise ValueError(f"limit must be at least 1, not {limit}")
        deadline = None
        if timeout is not None:
            seconds = judged_seconds("timeout", timeout)
            deadline = Deadline(self._loop, seconds, f"{pattern!r:.100}")
        self._keep("stderr")
        try:
            if kind is bytes and len(literals) == len(patterns):
                literals.sort(key=len)
                return await reader._until(literals, limit, "read_until", deadline)
            return await until(reader, patterns, limit, "read_until", deadline)
        except asyncio.IncompleteReadError as error:
            try:
                await self._moment()
            except BaseException:
                reader._put_back(error.partial)
                raise
            add_note(error, self._last_words())
            raise

    async def _moment(self) -> None:
        """All output has ended, and most likely the child has."""
        if self.returncode is None:
            with contextlib.suppress(asyncio.TimeoutError):
                await self.wait(MOMENT)

    def _last_words(self) -> str:
        """How it has ended, and what it has said that nobody has read."""
        transport = self._transport
        text = f"{label(transport.user_args, transport.name)}: "
        text += status(self.returncode) or "still running"
        stderr: Any = self.stderr
        if stderr is not None and stderr._source._exception is None:
            last = stderr._unread()[-MOST_OF_OUTPUT:]
            if isinstance(last, bytes):
                last = lenient(last, "utf-8", len(last) == MOST_OF_OUTPUT)
            last = translate_newlines(last).rstrip()
            if last:
                text += "\n" + escaped(last, keep="\n\t")
        return text

    def _keep(self, *names: str) -> None:
        """What comes there does not have the child wait, though nobody reads it."""
        for name in names:
            reader = getattr(self, name)
            if reader is not None and reader._source._sink is None:
                with contextlib.suppress(OSError, MemoryError):
                    reader._source._keep_up_to(KEPT)

    # -- the end

    async def stop(self, stop: Any = None) -> int | None:
        """End the child, and all that it has started if it was made with its tree.

        Step by step, until nobody is left; whoever still lives after the last of them gets
        SIGKILL. Up to 64 MiB of what it writes meanwhile are kept, and can be read then, as
        can what it had written before. A child that has ended is no error, and what it has
        left behind is ended. Not in asyncio.

        A cancellation does not interrupt it, but is raised at its end; a second one leaves
        out what is left of the grace. If another task is ending it already, this waits for
        that, and its own `stop` has no effect.

        Args:
            stop: As :func:`run`'s: seconds between SIGTERM and SIGKILL, or steps:
                ``[("eof", 5), (signal.SIGTERM, 5)]`` closes stdin, if that has not been
                done, and gives a server 5 seconds to finish its work. Without an "eof" stdin
                is closed at once. On a terminal it stays open, and half of the seconds are
                between SIGHUP and SIGTERM. Default: what open_process() was given; else 5
                seconds.

        Returns:
            The returncode. None if it could not be ended (another user's, or the kernel does
            not let go of it); a warning is logged then.
        """
        check_loop(self._loop)
        steps = self._steps
        if stop is not None:
            steps = judged_steps(stop, self._transport.terminal is not None)
        await self._end(steps, None)
        return self.returncode

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        check_loop(self._loop)
        cancelled = exc if isinstance(exc, asyncio.CancelledError) else None
        try:
            if exc is None and self._has_fallen_silent():
                await self._moment()
        except asyncio.CancelledError as error:
            cancelled = error
        try:
            await self._end(self._steps, cancelled)
        finally:
            # A grandchild may hold the pipes open for as long as it likes.
            self._transport.close()
        # Lets the readers learn that nothing will come.
        await asyncio.sleep(0)
        if cancelled is not None and cancelled is not exc:
            raise cancelled

    def _has_fallen_silent(self) -> bool:
        """Whether there was output, and all of it has ended."""
        pipes = [pipe for fd, pipe in self._transport._pipes.items() if fd]
        return bool(pipes) and all(pipe._lost for pipe in pipes)

    async def _end(self, steps: list[Step], cancelled: asyncio.CancelledError | None) -> None:
        if self._stopping is not None:
            await self._stopping.join(cancelled)
        elif self._is_gone():
            read_rest(self._transport)
        else:
            self._keep("stdout", "stderr")
            self._stopping = stopping = Stopping(self._transport, steps, cancelled)
            try:
                self._was_stopped = await stopping.run()
            finally:
                self._stopping = None

    def _is_gone(self) -> bool:
        """Whether nobody is left that we would end."""
        if self._transport.get_returncode() is None:
            return False  # or it is to be reaped yet
        return self._was_stopped or self._transport.tree is None


class _TextStream:
    """A stream of a TextProcess, made when somebody asks for it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, process: TextProcess | None, owner: object) -> Any:
        if process is None:
            return self
        stream = getattr(process._protocol, self._name)
        if stream is None:
            return None
        encoding, errors, input_errors = process._text
        text: Any
        if self._name == "stdin":
            text = TextWriter(stream, encoding, input_errors)
        else:
            text = TextReader(stream, encoding, errors)
        process.__dict__[self._name] = text
        return text


class TextProcess(Process):
    """A :class:`Process` whose streams are of text, as open_process(text=True) makes it.

    What reads gives str, what writes takes str.

    Attributes:
        stdin: A :class:`TextWriter`; None unless it is a pipe or a terminal.
        stdout: A :class:`TextReader`; None unless it is a pipe or a terminal.
        stderr: A :class:`TextReader`; None unless it is a pipe.
    """

    if TYPE_CHECKING:
        stdin: TextWriter | None  # type: ignore[assignment]
        stdout: TextReader | None  # type: ignore[assignment]
        stderr: TextReader | None  # type: ignore[assignment]
    else:
        stdin, stdout, stderr = map(_TextStream, ("stdin", "stdout", "stderr"))
    #: The encoding, what to do about bytes that are no text, and about text that has none.
    _text: tuple[str, str, str]
    #: What communicate() was given, and its bytes.
    _encoded: tuple[str, bytes] | None = None

    def lines(self) -> Merged[str]:  # type: ignore[override]
        """As :meth:`Process.lines`, of str."""
        return self._merged("lines")

    def chunks(self) -> Merged[str]:  # type: ignore[override]
        """As :meth:`Process.chunks`, of str."""
        return self._merged("chunks")

    async def read_until(  # type: ignore[override]
        self, pattern: Any, *, timeout: float | None = None, limit: int | None = None
    ) -> str:
        """As :meth:`Process.read_until`, of str."""
        text: str = await self._read_until(str, pattern, timeout, limit)
        return text

    async def communicate(  # type: ignore[override]
        self, input: str | None = None
    ) -> tuple[str, str]:
        """As :meth:`Process.communicate`, of str.

        Raises:
            UnicodeDecodeError: With errors="strict"; its ``object`` has the output. That of
                the other stream, and what had been decoded before, can be read.
        """
        data = None
        if input is not None:
            if not isinstance(input, str):
                error = TypeError(f"communicate() takes str, not {type(input).__name__}")
                add_note(error, "decode() it, or leave out text=True")
                raise error
            data = self._encode(input)
        outputs: Any = await super().communicate(data)
        out, err = outputs
        stdout: Any = self.stdout
        stderr: Any = self.stderr
        # What the error is not about can be read.
        try:
            text: Any = None if out is None else stdout._last(out)
        except UnicodeDecodeError:
            if err:
                stderr._source._put_back(err)
            raise
        try:
            return text, None if err is None else stderr._last(err)  # type: ignore[return-value]
        except UnicodeDecodeError:
            if text:
                stdout._put_back(text)
            raise

    def _encode(self, input: str) -> bytes:
        if self._encoded is None or self._encoded[0] != input:
            stdin = self.stdin
            if stdin is None:
                encoding, _, errors = self._text
                encoder = Encoder(encoding, errors)
            else:
                encoder = stdin._encoder  # which knows whether a byte order mark has gone
            self._encoded = input, encoder.encode(input)
        return self._encoded[1]
