"""The native backend on Windows: children, pipes and exits by the C port.

spawn -> ap_port_spawn -> token; a thread of the C layer calls CreateProcessW
a thread a loop: ap_port_wait -> call_soon_threadsafe(Port._drain) -> ap_port_next
    AP_STARTED, AP_FAILED -> NativeChild.started
    AP_EXITED -> NativeChild.returncode, rusage, on_exit()
    AP_READ, AP_WRITTEN -> the pipe's end, which calls whoever watches it
    AP_JOB_EMPTY -> NativeJob.on_empty()
"""

from __future__ import annotations

import asyncio
import codecs
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..base import Attempt
from ..watcher import Watchers
from .jobs import NativeJob
from .lib import ffi, lib, windows_error
from .native_child import NativeChild
from .pipes import Stdio
from .port import Port

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec

STARTF_USESTDHANDLES = 0x100
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


_ports = Watchers(Port)


#: Found now: a spawn imports nothing.
_utf_16 = codecs.lookup("utf-16-le").encode


def _encode(text: str | None) -> bytes:
    """UTF-16 as Windows has it, with its NUL; surrogates need not be in pairs."""
    return b"" if text is None else _utf_16(text + "\0", "surrogatepass")[0]


class WindowsBackend:
    """base.Backend by the C layer."""

    name = "native"
    strategy = "CreateProcess, IOCP"

    def turn(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None] | None:
        return _ports.turn(loop)

    def spawn(
        self,
        spec: SpawnSpec,
        loop: asyncio.AbstractEventLoop,
        lazy: bool = False,
        collect: bool = False,
        input: memoryview | None = None,
    ) -> NativeChild:
        spec.check_open()
        began = perf_counter()
        port = _ports.of(loop)
        stdio = Stdio(port)
        child = None
        try:
            stdio.open(spec, port, loop)
            child = self._spawn(spec, loop, port, stdio)
            if lazy:
                child.started = None
            stdio.finish()
            port.spend(perf_counter() - began)
            return child
        except BaseException:
            stdio.undo(child)
            raise

    def open_job(self, loop: asyncio.AbstractEventLoop, *, kill_on_close: bool) -> NativeJob:
        port = _ports.of(loop)
        try:
            return NativeJob(port, port.open_job(lib.AP_KILL_ON_CLOSE if kill_on_close else 0))
        except BaseException:
            port.retire_when_idle()
            raise

    def _spawn(
        self, spec: SpawnSpec, loop: asyncio.AbstractEventLoop, port: Port, stdio: Stdio
    ) -> NativeChild:
        # What subprocess.Popen raises, before anything is started (PEP 578).
        sys.audit("subprocess.Popen", spec.executable, spec.command_line, spec.cwd, spec.env)
        attributes = spec.startupinfo.lpAttributeList or {}
        handles = list(attributes.get("handle_list") or ())
        jobs = list(attributes.get("job_list") or ())
        limits = spec.limits.job if spec.limits is not None else {}
        dies = spec.die_with_parent or spec.die_if_honest
        # Without one of these there is to be no child.
        needed = bool(jobs or limits or spec.die_with_parent)
        own = None
        if spec.tree or limits or dies:
            # The last, in which nobody is yet: it can be nested in each of the others.
            flags = lib.AP_KILL_ON_CLOSE if dies else 0
            own = NativeJob(port, port.open_job(flags), closes_itself=True)
        request, strings = self._request(spec, stdio)
        try:
            if own is not None:
                own.limit(limits)
                jobs.append(own.handle)
                if not limits and not spec.die_with_parent:
                    request.flags |= lib.AP_LAST_JOB_IF_POSSIBLE
            request.handle_count = len(handles)
            request.job_count = len(jobs)
            token = port.spawn(request, strings, handles, jobs)
            child = NativeChild(port, token, loop, stdio)
            child.in_jobs = needed
            child.job = own if spec.tree else None
            child.own_job = own
            port.children[token] = child
            return child
        except BaseException:
            # Ctrl-C may come before the token is known here.
            if request.token > 0:
                lib.ap_abandon(request.token)
            if own is not None:
                own.close()
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
