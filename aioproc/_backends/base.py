"""What the layers above and the backends below agree on.

A *backend* (``native`` and ``pure``, in ``posix/`` and ``windows/``) is one way of spawning
children and noticing their exits. It owns every handle it opens, for that handle's
whole life, and knows nothing of transports, streams and processes.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from .._spec.spec import SpawnSpec

logger = logging.getLogger("aioproc")

#: What there is not now may be there again in a moment: these say nothing of what a
#: system can do.
NOT_NOW = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

#: That a child does not read all of what is written for it is the child's own affair.
READS_NO_MORE = (BrokenPipeError, ConnectionResetError)


#: A program that was written a moment ago cannot be executed while any process holds it
#: open for writing, be it a child of another thread on its way to its exec (ETXTBSY;
#: golang/go#22315). Seconds to wait between attempts, 100 ms in all.
TEXT_BUSY_PAUSES = (0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.04)


#: The signal that nobody survives. On Windows any ends a process, by TerminateProcess.
KILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)
#: What programs hear of the end of their terminal.
HANG_UP: int = getattr(signal, "SIGHUP", signal.SIGTERM)
CONTINUE: int = getattr(signal, "SIGCONT", 0)


class _UnknownExit(int):
    """The type of UNKNOWN_EXIT."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "aioproc.UNKNOWN_EXIT"

    __str__ = __repr__

    def __reduce__(self) -> str:
        return "UNKNOWN_EXIT"


#: The returncode of a child that has ended while nobody knows how: another wait in
#: this process took its status, or SIGCHLD is ignored, on a system that cannot tell
#: it again (Linux 6.15 and newer can). An ``int`` that is true and equals no real
#: code: those are -64..255 on POSIX and 0..0xFFFFFFFF on Windows.
UNKNOWN_EXIT = _UnknownExit(-1_000_000)


class ResourceUsage(NamedTuple):
    """What a child has used, as the kernel told when it was reaped.

    It counts the child itself and those of its descendants that it has waited for.

    Attributes:
        ru_utime: CPU time in user mode, in seconds (float).
        ru_stime: CPU time in the kernel, in seconds (float).
        ru_maxrss: Peak memory in KiB, on macOS in bytes. None where the kernel's number is
            not the child's own: exec carries over the peak of the process that made the
            child, so one that stays below its parent's peak has none of its own.
        ru_minflt: Page faults without I/O.
        ru_majflt: Page faults with I/O.
        ru_inblock: Reads of the file system, in blocks of 512 bytes.
        ru_oublock: Writes of the file system, in blocks of 512 bytes.
        ru_nvcsw: Voluntary context switches.
        ru_nivcsw: Involuntary context switches.

    Platforms:
        Windows has the times and the peak of the working set; the other numbers are 0.

    Source:
        :func:`resource.getrusage`, getrusage(2).
    """

    ru_utime: float
    ru_stime: float
    ru_maxrss: int | None
    ru_minflt: int
    ru_majflt: int
    ru_inblock: int
    ru_oublock: int
    ru_nvcsw: int
    ru_nivcsw: int


class ReadEnd(Protocol):
    """Our end of a child's stdout or stderr."""

    #: Whether read() gives what there is though nobody watches.
    is_lazy: bool

    def fileno(self) -> int: ...
    def read(self, n: int, /) -> bytes:
        """Up to n bytes; b"" at the end; BlockingIOError when there is nothing yet."""

    def readinto(self, buffer: bytearray, /) -> int:
        """As read, into a buffer; 0 at the end."""

    def is_arriving(self) -> bool:
        """Whether something has come that read() will give soon, and does not yet. Never of
        one that is lazy."""

    def watch(self, callback: Callable[[], None], /) -> None:
        """Calls back in the loop whenever read() has something to give. To be called in the
        contextvars that the callback is to have: a loop keeps them."""

    def unwatch(self) -> None: ...
    def enlarge(self) -> bool:
        """Makes room for a flow that has shown itself bulky. False: not to be had."""

    def close(self) -> None:
        """Harmless when closed already, and after the loop has closed."""


class WriteEnd(Protocol):
    """Our end of a child's stdin."""

    def fileno(self) -> int: ...
    def write(self, data: bytes | memoryview, /) -> int:
        """How much was taken; BlockingIOError when nothing can be just now."""

    def watch(self, callback: Callable[[], None], /) -> None:
        """Calls back in the loop whenever write() may take something."""

    def unwatch(self) -> None: ...
    def watch_reader(self, callback: Callable[[], None], /) -> None:
        """Calls back in the loop when nobody holds the reading end any more."""

    def enlarge(self) -> bool:
        """As ReadEnd's."""

    def close(self) -> None: ...


class Terminal(WriteEnd, Protocol):
    """Our side of a child's terminal: the end of what is typed. close() leaves it there,
    hang_up() does not."""

    def eof(self) -> bytes:
        """What has to be typed for an end of input."""

    def resize(self, rows: int, columns: int, /) -> None:
        """Tells its programs, by SIGWINCH. ProcessLookupError after hang_up(). In the loop's
        thread."""

    def hang_up(self) -> None:
        """Closes all. Who is left in its session gets SIGHUP. Harmless when done already, and
        after the loop has closed."""


class Child(Protocol):
    """A spawned child process."""

    pid: int
    #: -N for signal N; None while it lives and the exit has not been noticed.
    returncode: int | None
    #: Resolved when the exec has worked, OSError when it has not; None where that is
    #: known to have worked already, and for a child that was spawned lazily.
    started: asyncio.Future[None] | None
    #: Why the exec of such a one has failed; then it has no returncode.
    error: OSError | None
    #: Called once in the loop, after returncode and rusage were set, or error.
    on_exit: Callable[[], None] | None
    #: See look_later().
    on_slow: Callable[[], None] | None
    #: What a child with SpawnSpec.tree is in, with all that it starts; once it has been
    #: empty it may be closed. None where there are no jobs, or this child could enter none.
    job: Job | None
    stdin: WriteEnd | None
    stdout: ReadEnd | None
    stderr: ReadEnd | None
    #: `stdin`, where that is a terminal: to be hung up by whoever has taken it.
    terminal: Terminal | None

    #: Whether the backend is to read what there is at its end, as spawn() was asked for. Then
    #: it has no pipes until keep_output().
    @property
    def collects(self) -> bool: ...
    #: What it has read then, of stdout and stderr; None for no pipe. A pipe that is not among
    #: the child's by then has come to its end.
    @property
    def collected(self) -> tuple[bytes | None, bytes | None] | None: ...
    #: How much of the input has gone into its stdin, which is closed if that was all.
    @property
    def input_taken(self) -> int: ...

    #: That of the child's creation: on_exit and the callbacks of the pipes run in it, or
    #: in a copy.
    context: contextvars.Context

    @property
    def rusage(self) -> ResourceUsage | None:
        """None until the exit, and where somebody else has reaped the child."""

    def rusage_later(self) -> ResourceUsage | Callable[[], ResourceUsage | None] | None:
        """The same, or what returns it, for those who may not need it. Holds nothing of the
        child."""

    def send_signal(self, signal: int, /) -> None:
        """From any thread, also after the loop closed. ProcessLookupError once the
        child has been reaped: never reaches a process that got the number since."""

    def hold(self) -> None:
        """Keeps the child from being reaped when it ends: its end is told as ever, and its
        number, which is its group's, cannot become another's. Until release(), or till its
        loop has closed or nobody holds the child. Without effect once it has been reaped,
        and where there is no way to."""

    def release(self) -> None:
        """Ends that. Harmless without."""

    def signal_group(self, signal: int, /) -> None:
        """To the process group that the child leads; to the child alone while it has not
        come to lead it. From any thread; never to another group. ProcessLookupError: the
        child has been reaped. ValueError on Windows, which has none."""

    def is_ours(self) -> bool:
        """Not in a forked process."""

    def poll(self) -> int | None:
        """The returncode; looks for an exit that no loop will notice any more. From any
        thread; calls nobody."""

    def peek(self) -> int | None:
        """The returncode of a child that has ended, be it noticed or not; leaves the
        noticing to the loop. From any thread."""

    def keep_output(self) -> None:
        """Ends collecting: it has its pipes."""

    def look_later(self, on_slow: Callable[[], None], /) -> bool:
        """Has on_slow called in the loop, in the child's context, once the child has lived
        for a while from now on; not if its end is noticed before. In the loop's thread.
        False: the loop is about to end, look now."""

    def expect_exit(self) -> None:
        """A pipe has reached its end: the exit is likely near."""

    def abandon(self) -> None:
        """Kill it, close its pipes, reap it in the background, tell nothing."""


class Job(Protocol):
    """A job object of Windows. Its methods are for any thread, also after the loop
    closed; but for close() they raise ValueError when it is closed."""

    #: Called in the loop when the last process has ended, as far as the system says so:
    #: a hint, which can be lost and come too late.
    on_empty: Callable[[], None] | None

    @property
    def handle(self) -> int: ...
    def active(self) -> int:
        """How many processes it has."""

    def pids(self) -> list[int]:
        """Of its processes, the first few hundred."""

    def terminate(self, exit_code: int, /) -> None:
        """Ends all of them."""

    def close(self) -> None:
        """Harmless when closed already."""


class Backend(Protocol):
    @property
    def name(self) -> str:
        """ "native" or "pure"."""

    @property
    def strategy(self) -> str:
        """How children are made and exits noticed, for people."""

    def turn(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None] | None:
        """What to wait for before each spawn, so that many of them leave the loop time for
        others; None: nothing."""

    def spawn(
        self,
        spec: SpawnSpec,
        loop: asyncio.AbstractEventLoop,
        lazy: bool = False,
        collect: bool = False,
        input: memoryview | None = None,
    ) -> Child:
        """Starts a child; to be called in the loop's thread. OSError when there is
        none; what failed later comes by Child.started.

        lazy: nothing but its end, which most children come to soon, wakes the loop. What
        failed later comes by Child.error and on_exit; to be used with look_later(), whose
        callback then also means that the exec has worked.

        collect: with lazy; the backend may read what the child has written when it has ended
        (Child.collects), and holds it then if somebody else has its pipes open.

        input: what goes into its stdin, a pipe, as far as there is room in it. The backend may
        leave it alone (Child.input_taken).
        """

    def open_job(self, loop: asyncio.AbstractEventLoop, *, kill_on_close: bool) -> Job:
        """In the loop's thread. NotImplementedError where there are none."""


class WithoutJobs:
    """That part of a Backend where there are none."""

    def open_job(self, loop: asyncio.AbstractEventLoop, *, kill_on_close: bool) -> Job:
        raise NotImplementedError("job objects need Windows and the native backend")


class Attempt(NamedTuple):
    """One backend or strategy that was thought of, and why not it."""

    name: str
    why_not: str | None


#: What a spawn was doing when it failed.
STEP_SETUP, STEP_CHDIR, STEP_EXEC = 1, 2, 3
#: The same for what is set by SpawnSpec.limits and die_with_parent; a resource limit's is
#: STEP_RLIMIT and its number.
STEP_NICE, STEP_CPUS, STEP_OOM, STEP_NO_NEW_PRIVS, STEP_DIE = range(16, 21)
STEP_RLIMIT = 64

#: Resource limits that an exec may have failed for.
_SUSPECTS = {
    errno.ENOMEM: ("as", "data", "stack"),
    errno.E2BIG: ("stack",),
    # Of a user's processes there are more, which is looked at after a change of ids
    # (execve(2)).
    errno.EAGAIN: ("nproc",),
}


def spawn_error(spec: SpawnSpec, number: int, step: int) -> OSError:
    """The exception that subprocess.Popen would raise, filename included; and the name of the
    option that has failed."""
    text = os.strerror(number)
    limits = spec.limits
    if step >= STEP_NICE:
        if step == STEP_CPUS and number == errno.EINVAL:
            text = "not all of these CPUs are there, for this process"
        return OSError(number, f"{limits.option(step) if limits else 'die_with_parent'}: {text}")
    if step == STEP_EXEC and limits is not None:
        suspects = limits.suspects(_SUSPECTS.get(number, ()))
        text += f" ({' or '.join(suspects)} may be too low)" if suspects else ""
    if step == STEP_CHDIR:
        filename = spec.cwd
    elif step == STEP_EXEC:
        filename = spec.executable
    else:
        filename = None
    return OSError(number, text) if filename is None else OSError(number, text, filename)


def warn_unknown_exit(pid: int) -> None:
    logger.warning(
        "the exit status of child %d was taken by another wait in this process; "
        "its returncode is UNKNOWN_EXIT",
        pid,
    )


class _Generation:
    """Counts the forks that lead to this process.

    What was made in another generation belongs to the parent. An object of ours that
    is collected in a forked child must not unregister from the event loop (the epoll
    instance is shared: the parent's registration would go), nor signal, nor wait.
    """

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0

    def advance(self) -> None:
        self.number += 1


generation = _Generation()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=generation.advance)
