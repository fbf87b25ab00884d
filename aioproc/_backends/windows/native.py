"""The native backend on Windows: children, pipes and exits by the C port.

spawn -> ap_port_spawn -> token; a thread of the C layer calls CreateProcessW
a thread a loop: ap_port_wait -> call_soon_threadsafe(_Port._drain) -> ap_port_next
    AP_STARTED, AP_FAILED -> NativeChild.started
    AP_EXITED -> NativeChild.returncode, rusage, on_exit()
    AP_READ, AP_WRITTEN -> the pipe's end, which calls whoever watches it
    AP_JOB_EMPTY -> NativeJob.on_empty()
"""

from __future__ import annotations

import asyncio
import codecs
import contextvars
import errno
import itertools
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..base import Attempt, ResourceUsage, logger
from ..child import BaseChild
from ..watcher import REJOIN, Watcher, Watchers, by_loop, shut_down
from .jobs import NativeJob
from .lib import check, ffi, lib, windows_error
from .pipes import End, Stdio

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec

_BATCH = 64
#: Milliseconds between two looks whether a loop has closed: of one that has just shut its
#: generators down, of one that has gone on since, and of one that may close without.
_OFTEN, _AT_TIMES, _SELDOM = 10, 250, 1000

STARTF_USESTDHANDLES = 0x100
ERROR_ACCESS_DENIED, ERROR_NOT_SUPPORTED = 5, 50
ERROR_INVALID_PARAMETER = 87
#: Windows' own for base.NOT_NOW: ERROR_TOO_MANY_OPEN_FILES, ERROR_NOT_ENOUGH_MEMORY,
#: ERROR_OUTOFMEMORY, ERROR_NO_SYSTEM_RESOURCES, ERROR_COMMITMENT_LIMIT.
NOT_NOW = (4, 8, 14, 1450, 1455)


def choose(attempts: list[Attempt]) -> WindowsBackend | None:
    """The native backend, if it works here; what was tried is noted. OSError: as probe."""
    why_not = probe()
    attempts.append(Attempt("native", why_not))
    return WindowsBackend() if why_not is None else None


def features() -> dict[str, bool]:
    """Of what this system may or may not have, for reports: nothing matters here."""
    return {}


def probe() -> str | None:
    """Why the C layer cannot be used here, or None. OSError: it cannot be told now."""
    port = ffi.new("ap_port **")
    result = lib.ap_port_open(port)
    if -result in NOT_NOW:
        raise windows_error(-result)
    if result < 0:
        return str(windows_error(-result))
    lib.ap_port_close(port[0])
    lib.ap_port_wait(port[0], 0)
    return None


# -- children


#: Windows says the same of jobs as of programs ("Nested Jobs").
_JOBS_NOTE = (
    "; it may be that its job objects cannot be nested, in each other or in the one that "
    "this process is in"
)


def _usage(completion: Any) -> ResourceUsage | None:
    if not completion.has_usage:
        return None
    peak = completion.max_rss
    return ResourceUsage(
        completion.user_time / 1e6,
        completion.system_time / 1e6,
        peak if peak >= 0 else None,
        *[0] * 6,
    )


class NativeChild(BaseChild):
    """base.Child over a token of the C layer."""

    __slots__ = ("_in_jobs", "_port", "_token")

    def __init__(self, port: _Port, token: int, loop: asyncio.AbstractEventLoop, stdio: Stdio):
        super().__init__(0, stdio)  # without a pid until `started`
        self.started = loop.create_future()
        self._port: _Port | None = port
        #: 0 once the C layer has forgotten it.
        self._token = token
        self._in_jobs = False

    def __del__(self) -> None:
        # Only an orphan can be forgotten by everybody before it has ended. The garbage
        # collector may come here first, and to those who would kill it later.
        if self._token:
            lib.ap_abandon(self._token)

    def send_signal(self, number: int) -> None:
        if number == signal.SIGTERM:
            self._send(lib.ap_terminate)
        elif number in (signal.CTRL_C_EVENT, signal.CTRL_BREAK_EVENT):
            self._send(lib.ap_console_event, number)
        else:
            raise ValueError(f"Unsupported signal: {number}")

    def _send(self, function: Callable[..., int], *args: int) -> None:
        token = self._token
        result = function(token, *args) if token else -ERROR_INVALID_PARAMETER
        if result == -ERROR_INVALID_PARAMETER:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        check(result)

    def poll(self) -> int | None:
        token = self._token
        if self.returncode is None and token:
            port = self._port
            if port is not None and port.loop_is_closed():
                port.close()
            completion = ffi.new("ap_completion *")
            if lib.ap_poll(token, completion) == 1:
                self.note(completion)
        return self.returncode

    def peek(self) -> int | None:
        token = self._token
        if self.returncode is None and token:
            completion = ffi.new("ap_completion *")
            if lib.ap_peek(token, completion) == 1:
                code: int = completion.exit_code
                return code
        # None again while the loop's thread takes the news from the port.
        return self.returncode

    def abandon(self) -> None:
        self._leave()
        token, self._token = self._token, 0
        if token:
            lib.ap_abandon(token)
            port = self._port
            if port is not None:
                port.remove_child(token)

    def note(self, completion: Any) -> None:
        """A completion has come. Any thread; tells nobody."""
        if completion.kind == lib.AP_STARTED:
            self.pid = completion.pid
            return
        self._port = None
        self._token = 0
        if completion.kind == lib.AP_FAILED:
            self._error = self._failure(-completion.result)
        else:
            self.rusage = _usage(completion)
            self.returncode = completion.exit_code

    def tell(self) -> None:
        # A loop that goes on after shutdown_asyncgens() asks before there is an answer.
        if self.pid or self.has_ended():
            super().tell()

    def _failure(self, number: int) -> OSError:
        if self._in_jobs and number in (ERROR_ACCESS_DENIED, ERROR_NOT_SUPPORTED):
            return windows_error(number, _JOBS_NOTE)
        return windows_error(number)


# -- the port


def _wait(port: Any, watcher: weakref.ref[_Port], milliseconds: int) -> None:
    """The thread of a port, which holds neither it nor its loop."""
    while True:
        what = lib.ap_port_wait(port, milliseconds)
        if what == lib.AP_CLOSED:
            return
        owner = watcher()
        if owner is None:
            continue  # it has just been closed
        if what < 0:
            logger.error("the port of a loop does not work: %s", windows_error(-what))
            owner.close()
        else:
            milliseconds = owner.woken(what == lib.AP_NEWS)
        del owner


class _Port(Watcher[NativeChild]):
    """The C port of one event loop; children by token, ends of pipes by key, jobs by id."""

    held_by_timer = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        handle = ffi.new("ap_port **")
        check(lib.ap_port_open(handle))
        self._port: Any = handle[0]
        self._completions = ffi.new("ap_completion[]", _BATCH)
        #: The completions that have been fetched and not been dealt with.
        self._fetched = range(0)
        self._keys = itertools.count(1)
        self.ends: dict[int, End] = {}
        #: Who is told of them holds them, and often the loop, which must not hold them.
        self.jobs: weakref.WeakValueDictionary[int, NativeJob] = weakref.WeakValueDictionary()
        self._pause = _AT_TIMES
        super().__init__(loop)
        self._thread = threading.Thread(
            target=_wait,
            args=(self._port, weakref.ref(self), self._patience()),
            name="aioproc-port",
            daemon=True,
        )
        try:
            # Newer Pythons may hand the contextvars on.
            contextvars.Context().run(self._thread.start)
        except BaseException:
            port = self._port
            self.close()
            lib.ap_port_wait(port, 0)  # in the thread's place
            raise

    def _release(self, loop: asyncio.AbstractEventLoop | None) -> None:
        port, self._port = self._port, None
        lib.ap_port_close(port)
        for i in self._fetched:
            # An interrupted loop has not come to it, and the port has forgotten it.
            child = self.children.get(self._completions[i].token)
            if child is not None:
                child.note(self._completions[i])
        for end in list(self.ends.values()):
            end.forget()
        self.ends.clear()

    def is_idle(self) -> bool:
        # The C layer also counts those that are being seen off.
        return not lib.ap_port_live(self._port)

    def _loop_ends(self) -> None:
        loop = self._loop()
        if not self.is_open or loop is None:
            return
        if self.is_idle():
            super()._loop_ends()
            # Who counts threads when a loop has closed shall find as many as before.
            if threading.current_thread() is not self._thread:
                self._thread.join(1)
            return
        # The loop may go on, with pipes that cannot change ports. So the thread watches
        # from now on whether it closes; and till it has proved to go on, it alone holds
        # whoever is to be told.
        self._guard = None
        self._pause = _OFTEN
        shut_down(loop)
        lib.ap_port_wake(self._port)
        told = [(child, child.on_exit) for child in self.children.values()]
        for child, _ in told:
            child.on_exit = None
        watched = [(end, end.suspend()) for end in self.ends.values()]
        by_loop(loop.call_later, REJOIN, self._go_on, told, watched)

    def _go_on(
        self,
        told: list[tuple[NativeChild, Callable[[], None] | None]],
        watched: list[tuple[End, list[Callable[[], None] | None]]],
    ) -> None:
        self._pause = _AT_TIMES
        for child, on_exit in told:
            if child.on_exit is None:  # or it has got one meanwhile
                child.on_exit = on_exit
            child.tell()
        for end, callbacks in watched:
            end.resume(callbacks)

    def woken(self, news: bool) -> int:
        """In the port's thread. For how long, in milliseconds, to wait again."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            self.close()
        elif news:
            try:
                by_loop(loop.call_soon_threadsafe, self._drain)
            except RuntimeError:  # closed meanwhile
                self.close()
        return self._patience()

    def _patience(self) -> int:
        return _SELDOM if self._guard is not None else self._pause

    # -- pipes

    def open_pipe(self, what: int, size: int) -> tuple[int, Any, int]:
        """A key, our end, and the handle of theirs."""
        self.touch()
        key = next(self._keys)
        ours, theirs = ffi.new("ap_pipe **"), ffi.new("int64_t *")
        try:
            check(lib.ap_pipe_open(self._port, key, what, size, ours, theirs))
            return key, ours[0], theirs[0]
        except BaseException:
            if ours[0]:  # Ctrl-C
                lib.ap_pipe_close(ours[0])
                lib.ap_handle_close(theirs[0])
            raise

    def remove_end(self, key: int) -> None:
        # By the garbage collector in any thread.
        self.ends.pop(key, None)

    # -- jobs

    def open_job(self, flags: int) -> NativeJob:
        self.touch()
        job = NativeJob(self, check(lib.ap_job_open(self._port, flags)))
        self.jobs[job._id] = job
        return job

    def remove_job(self, id: int) -> None:
        """In any thread."""
        self.jobs.pop(id, None)
        loop = self._loop()
        if self.is_open and loop is not None:
            try:
                by_loop(loop.call_soon_threadsafe, self.retire_when_idle)
            except RuntimeError:
                pass  # closed: the port's thread looks for that

    # -- children

    def spawn(self, request: Any, strings: bytes, handles: list[int], jobs: list[int]) -> int:
        self.touch()
        return check(lib.ap_port_spawn(self._port, request, strings, handles, jobs))

    def remove_child(self, token: int) -> None:
        self.children.pop(token, None)
        self.retire_when_idle()

    def _drain(self) -> None:
        if not self.is_open:
            return
        more = bool(self._fetched)  # of a round that was cut short
        if not more:
            self._fetched = range(lib.ap_port_next(self._port, self._completions, _BATCH))
            more = len(self._fetched) == _BATCH
        try:
            while self._fetched:
                i = self._fetched[0]
                self._fetched = self._fetched[1:]
                self._complete(self._completions[i])
        finally:
            loop = self._loop()
            if (more or self._fetched) and loop is not None and not loop.is_closed():
                # Ctrl-C, say, or an error in a callback. The others are told of in the
                # next round, since the port tells of each only once.
                by_loop(loop.call_soon, self._drain)
        if not self.children:
            self.retire_when_idle()

    def _complete(self, completion: Any) -> None:
        kind = completion.kind
        if kind == lib.AP_READ or kind == lib.AP_WRITTEN:
            end = self.ends.get(completion.token)
            if end is None:
                pass  # closed
            elif kind == lib.AP_READ:
                end.read_done(completion.result)
            else:
                end.write_done()
            return
        if kind == lib.AP_JOB_EMPTY:
            job = self.jobs.get(completion.token)
            if job is not None:
                job.tell()
            return
        if kind == lib.AP_STARTED:
            child = self.children.get(completion.token)
        else:
            child = self.children.pop(completion.token, None)
        if child is not None:
            child.note(completion)
            child.tell()


_ports = Watchers(_Port)


#: Found now: a spawn imports nothing.
_utf_16 = codecs.lookup("utf-16-le").encode


def _encode(text: str | None) -> bytes:
    """UTF-16 as Windows has it, with its NUL; surrogates need not be in pairs."""
    return b"" if text is None else _utf_16(text + "\0", "surrogatepass")[0]


class WindowsBackend:
    """base.Backend by the C layer."""

    name = "native"
    strategy = "CreateProcess, IOCP"

    def spawn(self, spec: SpawnSpec, loop: asyncio.AbstractEventLoop) -> NativeChild:
        spec.check_open()
        port = _ports.of(loop)
        stdio = Stdio(port)
        child = None
        try:
            stdio.open(spec, port, loop)
            child = self._spawn(spec, loop, port, stdio)
            stdio.finish()
            return child
        except BaseException:
            stdio.undo(child)
            raise

    def open_job(self, loop: asyncio.AbstractEventLoop, *, kill_on_close: bool) -> NativeJob:
        port = _ports.of(loop)
        try:
            return port.open_job(lib.AP_KILL_ON_CLOSE if kill_on_close else 0)
        except BaseException:
            port.retire_when_idle()
            raise

    def _spawn(
        self, spec: SpawnSpec, loop: asyncio.AbstractEventLoop, port: _Port, stdio: Stdio
    ) -> NativeChild:
        # What subprocess.Popen raises, before anything is started (PEP 578).
        sys.audit("subprocess.Popen", spec.executable, spec.command_line, spec.cwd, spec.env)
        attributes = spec.startupinfo.lpAttributeList or {}
        handles = list(attributes.get("handle_list") or ())
        jobs = list(attributes.get("job_list") or ())
        request, strings = self._request(spec, stdio)
        request.handle_count = len(handles)
        request.job_count = len(jobs)
        try:
            token = port.spawn(request, strings, handles, jobs)
            child = NativeChild(port, token, loop, stdio)
            child._in_jobs = bool(jobs)
            port.children[token] = child
            return child
        except BaseException:
            # Ctrl-C may come before the token is known here.
            if request.token > 0:
                lib.ap_abandon(request.token)
            raise

    def _request(self, spec: SpawnSpec, stdio: Stdio) -> tuple[Any, bytes]:
        request = ffi.new("ap_request *")
        info = spec.startupinfo
        request.flags = lib.AP_CLOSE_FDS if spec.close_fds else 0
        request.creation_flags = spec.creationflags
        request.startup_flags = info.dwFlags
        request.show_window = info.wShowWindow
        if stdio.theirs is not None:
            request.flags |= lib.AP_STD_HANDLES
            request.std = stdio.theirs
            if spec.stderr_to_stdout:
                request.flags |= lib.AP_STDERR_TO_STDOUT
        elif info.dwFlags & STARTF_USESTDHANDLES:
            given = (info.hStdInput, info.hStdOutput, info.hStdError)
            request.std = [0 if handle is None else int(handle) for handle in given]
        program, command = _encode(spec.executable), _encode(spec.command_line)
        cwd = _encode(spec.cwd)
        # Of none at all the block is two NULs.
        environment = None
        if spec.env is not None:
            entries = [f"{name}={value}\0" for name, value in spec.env.items()]
            environment = "".join(entries) or "\0"
        block = _encode(environment)
        request.program_length = len(program) // 2 - 1
        request.command_length = len(command) // 2 - 1
        request.cwd_length = len(cwd) // 2 - 1
        request.environment_length = len(block) // 2 - 1
        return request, program + command + cwd + block
