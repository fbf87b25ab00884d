"""The native backend on POSIX: children and their exits by the C port.

spawn -> ap_port_spawn -> token
loop sees the port readable -> _Port._drain -> ap_port_next
    STARTED, FAILED -> NativeChild.started
    EXITED -> NativeChild.returncode, rusage, on_exit()
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from signal import SIGKILL
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ... import _native
from ..base import (
    NOT_NOW,
    UNKNOWN_EXIT,
    Attempt,
    ResourceUsage,
    WithoutJobs,
    generation,
    spawn_error,
    warn_unknown_exit,
)
from ..child import BaseChild
from ..stdio import PIPE
from ..watcher import REJOIN, Watcher, Watchers, by_loop
from .environment import inherited
from .limited import Prctl, refuse
from .native_limits import c_limits, check_thread
from .pipes import Stdio, is_uvloops, make_blocking
from .popen import leads_group, popen, see_off
from .terminals import open_terminal

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec

ffi = _native.ffi
lib = _native.lib

_CODES = {"clone": lib.AP_CLONE, "copy": lib.AP_COPY, "portable": lib.AP_PORTABLE}

#: Those that this system has, the better ones first. "copy" is "clone" on a copy of our
#: memory, for where somebody looks on.
STRATEGIES = {name: code for name, code in _CODES.items() if code & lib.ap_strategies()}

#: Preloaded by valgrind into whatever it runs, with each of its tools. It ends a program
#: that makes a child on its memory without waiting for it.
_VALGRIND = "vgpreload" in os.environ.get("LD_PRELOAD", "")

_BATCH = 64
_SIZE = ffi.sizeof("ap_completion")

_PRCTL = Prctl(lib.ap_no_new_privs, lib.ap_die_with)

#: Bytes of program, arguments and environment that are worth more calls for fewer copies.
LONG = 128 * 1024


def is_watched() -> bool:
    """Whether a tool looks on that takes a child on our memory for something else."""
    return _VALGRIND or lib.ap_tracer() != 0


def _onlooker() -> str | None:
    """The same in words."""
    if _VALGRIND:
        return "run by valgrind"
    pid = lib.ap_tracer()
    if not pid:
        return None
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"traced by {file.read().rstrip()} (pid {pid})"
    except OSError:  # it has ended since
        return f"traced by pid {pid}"


def candidates() -> dict[str, str | None]:
    """The strategies to be tried here, the better ones first, with what speaks against
    one beforehand."""
    if hasattr(sys, "getandroidapilevel"):
        # Programs are where they are only for those who ask the C library, into which
        # termux-exec is preloaded. Our own child cannot ask it.
        return {"clone": "Android: the C library finds the programs", "portable": None}
    onlooker = _onlooker() if "clone" in STRATEGIES else None
    names = [name for name in STRATEGIES if name != "copy" or onlooker is not None]
    return {name: onlooker if name == "clone" else None for name in names}


def choose(attempts: list[Attempt]) -> PosixBackend | None:
    """The native backend with the best strategy that works here; what was tried is noted.

    OSError: as probe. RuntimeError: AIOPROC_STRATEGY asks for what there is not.
    """
    forced = os.environ.get("AIOPROC_STRATEGY", "")
    if forced and forced not in STRATEGIES:
        raise RuntimeError(f"AIOPROC_STRATEGY is {forced!r}; it can be {', '.join(STRATEGIES)}")
    # What is forced is used, whoever looks on.
    for strategy, why_not in ({forced: None} if forced else candidates()).items():
        why_not = why_not or probe(strategy)
        attempts.append(Attempt(f"native, {strategy}", why_not))
        if why_not is None:
            return PosixBackend(strategy, adapts=not forced)
    return None


def probe(strategy: str) -> str | None:
    """Why a strategy cannot be used here, or None. OSError: it cannot be told now."""
    what = ffi.new("const char *[1]")
    result = lib.ap_probe(STRATEGIES[strategy], what)
    if result >= 0:
        return None
    if -result in NOT_NOW:
        raise OSError(-result, os.strerror(-result))
    return f"{ffi.string(what[0]).decode()}: {os.strerror(-result)}"


def features() -> dict[str, bool]:
    """What this kernel and C library have, for reports."""
    bits = lib.ap_features()
    return {
        "close_range": bool(bits & lib.AP_HAS_CLOSE_RANGE),
        "pidfd_get_info": bool(bits & lib.AP_HAS_PIDFD_INFO),
        "addchdir_np": bool(bits & lib.AP_HAS_ADDCHDIR),
        "addclosefrom_np": bool(bits & lib.AP_HAS_ADDCLOSEFROM),
        "inline_syscalls": bool(bits & lib.AP_INLINE_SYSCALLS),
        "cloexec_default": bool(bits & lib.AP_HAS_CLOEXEC_DEFAULT),
        "spawn_setsid": bool(bits & lib.AP_HAS_SETSID),
        "kqueue": bool(bits & lib.AP_HAS_KQUEUE),
    }


def _usage(completion: Any) -> ResourceUsage | None:
    if not completion.has_usage:
        return None
    return ResourceUsage(
        completion.user_time / 1e6,
        completion.system_time / 1e6,
        completion.max_rss if completion.max_rss >= 0 else None,
        completion.minor_faults,
        completion.major_faults,
        completion.blocks_in,
        completion.blocks_out,
        completion.switches_voluntary,
        completion.switches_involuntary,
    )


def _usage_in(completion: bytes) -> ResourceUsage | None:
    return _usage(ffi.from_buffer("ap_completion *", completion))


#: How a group is signalled: by a pidfd, or its number (AP_BY_*). 0: as can be. For tests.
group_by = 0


class _Held:
    """A child that is not to be reaped, as long as this is there."""

    __slots__ = ("_generation", "_token")

    def __init__(self, token: int) -> None:
        self._token = token
        self._generation = generation.number

    def __del__(self) -> None:
        if hasattr(self, "_generation"):  # Ctrl-C may have come before it was set
            self.end()

    def end(self) -> bytes | None:
        """What the child has used, where it had ended."""
        token, self._token = self._token, 0
        if not token or self._generation != generation.number:
            return None
        completion = ffi.new("ap_completion *")
        if lib.ap_release(token, completion) != 1:
            return None
        usage: bytes = ffi.buffer(completion, _SIZE)[:]
        return usage


class NativeChild(BaseChild):
    """base.Child over a token of the C layer."""

    __slots__ = (
        "_held",
        "_port",
        "_spec",
        "_stdio",
        "_token",
        "_usage",
        "collected",
        "input_taken",
        "is_starting",
    )

    def __init__(self, port: _Port, token: int, pid: int, spec: SpawnSpec, stdio: Stdio) -> None:
        super().__init__(pid, stdio)
        self._port: _Port | None = port
        self._token = token
        #: For the error of a failed exec; let go of once it has worked.
        self._spec: SpawnSpec | None = spec
        #: Its exec's result is not known.
        self.is_starting = False
        #: An ap_completion, as bytes.
        self._usage: bytes | None = None
        self._held: _Held | None = None
        #: What has its pipes, as long as the C layer is to read them.
        self._stdio: Stdio | None = None
        self.collected: tuple[bytes | None, bytes | None] | None = None
        self.input_taken = 0

    @property
    def collects(self) -> bool:  # type: ignore[override]
        return self._stdio is not None

    def keep_output(self) -> None:
        if self._stdio is not None:
            lib.ap_keep_output(self._token)
            self._take_pipes()

    def _take_pipes(self) -> None:
        stdio, self._stdio = self._stdio, None
        assert stdio is not None
        stdio.take()
        stdio.finish()
        self.stdin, self.stdout, self.stderr = stdio.stdin, stdio.stdout, stdio.stderr

    @property
    def rusage(self) -> ResourceUsage | None:
        return None if self._usage is None else _usage_in(self._usage)

    def rusage_later(self) -> Callable[[], ResourceUsage | None] | None:
        return None if self._usage is None else partial(_usage_in, self._usage)

    def send_signal(self, signal: int) -> None:
        if self.returncode is not None or not self.is_ours():
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        result = lib.ap_signal(self._token, signal)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def hold(self) -> None:
        if self._held is None and self.returncode is None and self.is_ours():
            held = _Held(self._token)
            if lib.ap_hold(self._token) == 0:
                self._held = held

    def release(self) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        usage = held.end()
        if usage is not None:
            self._usage = usage
            port, self._port = self._port, None
            if port is not None:
                port.retire_when_idle()

    def signal_group(self, signal: int) -> None:
        if not self.is_ours() or (self.returncode is not None and self._held is None):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        result = lib.ap_signal_group(self._token, signal, group_by)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def poll(self) -> int | None:
        if self.returncode is None and self.is_ours():
            port = self._port
            if port is not None and port.loop_is_closed():
                port.close()
            completion = ffi.new("ap_completion *")
            if lib.ap_poll(self._token, completion) == 1:
                self.note(completion)
        return self.returncode

    def peek(self) -> int | None:
        if self.returncode is None and self.is_ours():
            completion = ffi.new("ap_completion *")
            if lib.ap_peek(self._token, completion) == 1:
                status = completion.status
                return UNKNOWN_EXIT if status < 0 else os.waitstatus_to_exitcode(status)
        # None again while the loop's thread takes the news from the port.
        return self.returncode

    def abandon(self) -> None:
        if self.is_ours():
            self.keep_output()
        self._leave()
        self.release()
        port = self._port
        if port is not None and self.returncode is None:
            port.abandon(self._token)

    def note(self, completion: Any) -> None:
        """AP_EXITED or AP_FAILED has come. Any thread; tells nobody."""
        if self._stdio is not None:
            self._note_output(completion)
        if self._held is None:
            self._port = None
        if completion.kind == lib.AP_FAILED:
            assert self._spec is not None
            self.error = spawn_error(self._spec, completion.error, completion.step)
            return
        self._spec = None
        # To be read when somebody asks, which few do.
        self._usage = ffi.buffer(completion, _SIZE)[:]
        status = completion.status
        if status < 0:
            self.returncode = UNKNOWN_EXIT
            warn_unknown_exit(self.pid)
        else:
            self.returncode = os.waitstatus_to_exitcode(status)

    def _note_output(self, completion: Any) -> None:
        stdio = self._stdio
        assert stdio is not None
        if completion.held:
            self._held = _Held(self._token)
        if not completion.collected:
            return
        ours = stdio.ours()
        output, (out, err) = completion.output, completion.sizes
        self.collected = (
            ffi.buffer(output, out)[:] if ours[1] >= 0 else None,
            ffi.buffer(output + out, err)[:] if ours[2] >= 0 else None,
        )
        if completion.open:
            stdio.note_closed(completion.open)
            self._take_pipes()
        else:
            stdio.forget()
            self._stdio = None

    def look(self) -> None:
        on_slow = self.on_slow
        if on_slow is None:
            return  # it has ended
        if self.is_starting and lib.ap_look(self._token) == 0:
            # On its way yet, on a busy machine; or a completion will tell.
            self.look_later(on_slow)
            return
        self.has_started()
        super().look()

    def has_started(self) -> None:
        self.is_starting = False
        self._spec = None


class _Port(Watcher[NativeChild]):
    """The C port of one event loop; children by token."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        handle = ffi.new("ap_port **")
        result = lib.ap_port_open(handle)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        self.handle: Any = handle[0]
        #: Asked once a port: the answer costs a good part of a spawn.
        self.is_watched = is_watched()
        self.is_uvloops = is_uvloops(loop)
        self._completions = ffi.new("ap_completion[]", _BATCH)
        #: How many of them there are, and how many have been told of.
        self._count = self._told = 0
        super().__init__(loop)
        try:
            by_loop(loop.add_reader, lib.ap_port_fd(self.handle), self._drain)
        except BaseException:
            self.close()
            raise

    def _release(self, loop: asyncio.AbstractEventLoop | None) -> None:
        port, self.handle = self.handle, None
        if loop is not None:
            loop.remove_reader(lib.ap_port_fd(port))
        # First, since from the next call on any thread may hear of their ends.
        _orphans.update(self.children)
        lib.ap_port_close(port)

    def is_idle(self) -> bool:
        # The C layer also counts those that are being reaped without being told of.
        return not self.children and not lib.ap_port_live(self.handle)

    def _rejoin(self, loop: asyncio.AbstractEventLoop, child: NativeChild) -> None:
        if child.has_ended():
            child.tell()
            return
        port = _ports.of(loop)
        result = lib.ap_port_rejoin(port.handle, child._token)
        if result >= 0:
            _orphans.pop(child._token, None)
            port.children[child._token] = child
            child._port = port
            if result == 1:
                child.has_started()
                child.tell()
        else:
            # No memory, or another thread has just heard of its end, and will note it.
            by_loop(loop.call_later, REJOIN, self._rejoin, loop, child)

    # -- children

    def abandon(self, token: int) -> None:
        self.children.pop(token, None)
        lib.ap_abandon(token)
        self.retire_when_idle()

    def _drain(self) -> None:
        if not self.is_open:
            return
        completions = self._completions
        if self._told >= self._count:
            self._told, self._count = 0, lib.ap_port_next(self.handle, completions, _BATCH)
            if self._count < 0:
                raise OSError(-self._count, os.strerror(-self._count))
        try:
            while self._told < self._count:
                completion = completions + self._told
                self._told += 1
                self._complete(completion)
        finally:
            if self._told < self._count:
                # Ctrl-C, say. The others are told of in the next round, since the port
                # tells of each only once.
                loop = self._loop()
                if loop is not None:
                    by_loop(loop.call_soon, self._drain)
        if not self.children:
            self.retire_when_idle()

    def _complete(self, completion: Any) -> None:
        kind = completion.kind
        if kind == lib.AP_STARTED:
            child = self.children.get(completion.token)
            if child is not None:
                child.has_started()
                child.tell()
        else:
            child = self.children.pop(completion.token, None)
            if child is not None:
                child.note(completion)
                child.tell()


_ports = Watchers(_Port)

#: Children whose port was closed, by token, as long as somebody holds them.
_orphans: weakref.WeakValueDictionary[int, NativeChild] = weakref.WeakValueDictionary()


def reap_orphans() -> None:
    """Looks at some of the children that outlived their ports, so that no zombie stays."""
    if lib.ap_orphan_count():
        completions = ffi.new("ap_completion[]", _BATCH)
        for i in range(lib.ap_reap_orphans(completions, _BATCH)):
            child = _orphans.pop(completions[i].token, None)
            if child is not None:
                child.note(completions + i)


def _after_fork_in_child() -> None:
    _orphans.clear()
    _ports.forget()
    lib.ap_after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


class PosixBackend(WithoutJobs):
    """base.Backend by the C layer, with one of its strategies."""

    name = "native"

    def __init__(self, strategy: str, *, adapts: bool = False) -> None:
        """adapts: "clone" gives way to "copy" on ports that open while somebody looks on,
        a debugger that was attached later, say."""
        self._strategy = strategy
        self._code = STRATEGIES[strategy]
        self._watched_strategy = "copy" if adapts and strategy == "clone" else strategy
        self._watched_code = STRATEGIES[self._watched_strategy]

    @property
    def strategy(self) -> str:
        """That of a port that would open now."""
        return self._watched_strategy if is_watched() else self._strategy

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
        if spec.given:
            spec.check_open()
        began = perf_counter()
        port = _ports.of(loop)
        port.used = True
        stdio = Stdio(port)
        child = None
        try:
            if spec.preexec_fn is None:
                child = self._spawn(spec, loop, port, stdio, lazy, collect, input)
            else:
                child = self._spawn_by_popen(spec, loop, port, stdio)
            if child._stdio is None:
                stdio.finish()
            port.spend(perf_counter() - began)
            return child
        except BaseException:
            stdio.undo(child)
            raise

    def _spawn(
        self,
        spec: SpawnSpec,
        loop: asyncio.AbstractEventLoop,
        port: _Port,
        stdio: Stdio,
        lazy: bool,
        collect: bool,
        input: memoryview | None,
    ) -> NativeChild:
        # What subprocess.Popen raises, before anything is started (PEP 578).
        sys.audit("subprocess.Popen", spec.executable, spec.args, spec.cwd, spec.env)
        sources: Sequence[int | None] = spec.stdio
        if spec.terminal is not None:
            open_terminal(stdio, spec, loop)
            sources = stdio.theirs
        elif port.is_uvloops:
            make_blocking(spec)
        request, strings = self._request(spec, port, lazy, sources)
        pipes = PIPE in spec.stdio
        if pipes:
            stdio.expect(request)
            if collect:
                request.flags |= lib.AP_COLLECT
        limits = None
        if spec.limits is not None:
            # Held until the call is over.
            limits = c_limits(spec.limits)
            request.limits = limits[0]
        if spec.die_with_parent and request.strategy != lib.AP_PORTABLE:
            check_thread()
        data = None if input is None else ffi.from_buffer(input)
        if data is not None:
            request.input, request.input_size = data, len(data)
        try:
            token = lib.ap_port_spawn(
                port.handle,
                request,
                strings,
                spec.pass_fds or ffi.NULL,
                spec.extra_groups or ffi.NULL,
            )
            if request.orphans:
                reap_orphans()
            if token < 0:
                if token == -errno.ENOTSUP:
                    return self._spawn_by_popen(spec, loop, port, stdio)
                spec.was_given_up = bool(request.started)
                raise spawn_error(spec, -token, request.step)
            kept = not collect or request.ours[0] >= 0
            if pipes and kept:
                if collect:
                    lib.ap_keep_output(token)
                stdio.take()
            child = NativeChild(port, token, request.pid, spec, stdio)
            if pipes and not kept:
                child._stdio = stdio
            if data is not None:
                child.input_taken = request.input_taken
            if not request.started:
                child.is_starting = True
                if not lazy:
                    child.started = loop.create_future()
            port.children[token] = child
            return child
        except BaseException:
            # Ctrl-C may come before the token is known here.
            if request.token > 0:
                spec.was_given_up = True
                port.abandon(request.token)
            raise
        finally:
            if data is not None:
                # An error's traceback holds us, and may be in a cycle. Python's collector
                # would then clear the memoryview first, under what has taken its buffer, and
                # crash at the release of that.
                ffi.release(data)
            if request.text:
                lib.ap_text_free(request.text)

    def _spawn_by_popen(
        self, spec: SpawnSpec, loop: asyncio.AbstractEventLoop, port: _Port, stdio: Stdio
    ) -> NativeChild:
        refuse(spec, _PRCTL)
        if spec.terminal is None:
            stdio.open(spec, loop)
        elif stdio.terminal is None:  # C has not been tried
            open_terminal(stdio, spec, loop)
        pid = popen(spec, stdio.theirs, _PRCTL)
        token = 0
        try:
            token = lib.ap_port_adopt(port.handle, pid)
            if token < 0:
                raise OSError(-token, os.strerror(-token))
            child = NativeChild(port, token, pid, spec, stdio)
            port.children[token] = child
            return child
        except BaseException:
            if token <= 0:
                see_off(pid, spec)
            else:
                spec.was_given_up = True
                if leads_group(spec):
                    lib.ap_signal_group(token, SIGKILL, group_by)
                port.abandon(token)
            raise

    def _request(
        self, spec: SpawnSpec, port: _Port, lazy: bool, sources: Sequence[int | None]
    ) -> tuple[Any, bytes]:
        flags: int = lib.AP_LAZY if lazy else 0
        if spec.close_fds:
            flags |= lib.AP_CLOSE_FDS
        if spec.restore_signals:
            flags |= lib.AP_RESTORE_SIGNALS
        programs, argv = spec.programs, spec.argv
        environment = spec.environment or inherited()
        if spec.start_new_session:
            flags |= lib.AP_SETSID
        if spec.die_with_parent:
            flags |= lib.AP_DIE_WITH_PARENT
        elif spec.die_if_honest:
            flags |= lib.AP_DIE_IF_MAIN
        count = environment.count
        parts = [*programs, *argv, environment.text]
        if spec.mark:
            parts[-1:], count = spec.marked_block(parts[-1], count)
        request = ffi.new(
            "ap_request *",
            # The struct's fields in their order: one call, not one for each.
            (
                self._watched_code if port.is_watched else self._code,
                flags,
                len(programs),
                len(argv),
                count,
                spec.encoded_cwd is not None,
                [lib.AP_INHERIT if source is None else source for source in sources],
                spec.stderr_to_stdout,
                (-1, -1, -1),
            ),
        )
        if spec.has_more:
            self._request_more(spec, request)
        if spec.encoded_cwd is not None:
            parts[-1] += spec.encoded_cwd + b"\0"
        size = sum(map(len, parts)) + len(parts)
        if size < LONG:
            return request, b"\0".join(parts)
        self._write_text(request, parts, size)
        return request, b""

    @staticmethod
    def _request_more(spec: SpawnSpec, request: Any) -> None:
        """What is rarely asked for."""
        flags: int = request.flags
        if spec.pipesize > 0:
            request.pipe_size = spec.pipesize
        request.pass_count = len(spec.pass_fds)
        if spec.process_group is not None:
            flags |= lib.AP_SETPGID
            request.process_group = spec.process_group
        if spec.terminal is not None:
            flags |= lib.AP_TERMINAL
        if spec.umask is not None:
            flags |= lib.AP_UMASK
            request.file_mode_mask = spec.umask
        if spec.extra_groups is not None:
            flags |= lib.AP_SETGROUPS
            request.group_count = len(spec.extra_groups)
        if spec.group is not None:
            flags |= lib.AP_SETGID
            request.gid = spec.group
        if spec.user is not None:
            flags |= lib.AP_SETUID
            request.uid = spec.user
        request.flags = flags

    @staticmethod
    def _write_text(request: Any, parts: list[bytes], size: int) -> None:
        """Puts long strings where the child will read them, without a copy in between."""
        text = lib.ap_text_new(size)
        if not text:
            raise MemoryError
        request.text = text
        at = 0
        for part in parts:
            end = at + len(part)
            ffi.memmove(text + at, part, end - at)
            text[end] = b"\0"
            at = end + 1
