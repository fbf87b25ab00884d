"""The standard library's Popen as a way to make a child, and nothing else of it.

For the pure backend, and for what the native strategies cannot do (preexec_fn).
"""

from __future__ import annotations

import marshal
import os
import signal
import subprocess
import sys
import traceback
from itertools import chain, starmap
from typing import TYPE_CHECKING, Any

from ..base import STEP_EXEC, spawn_error
from ..stdio import close_all
from .limited import LimitFailed, Prctl, limited
from .terminals import on_terminal

try:
    import fcntl
except ImportError:  # Emscripten, WASI: nothing will be spawned
    pass

if TYPE_CHECKING:
    from ..._spec.spec import SpawnSpec
    from .pure_child import PureChild


def _in_group(group: int, preexec_fn: Any) -> Any:
    def in_child() -> None:
        os.setpgid(0, group)
        if preexec_fn is not None:
            preexec_fn()

    return in_child


def leads_group(spec: SpawnSpec) -> bool:
    """Whether the child leads a process group, of all that it may have started by now."""
    return spec.start_new_session or spec.process_group == 0


def end_group(child: PureChild, spec: SpawnSpec) -> None:
    """Of a child that is given up, if it leads one."""
    spec.was_given_up = True
    if leads_group(spec):
        try:
            child.signal_group(signal.SIGKILL)
        except OSError:
            pass  # gone, or running setuid


def see_off(pid: int, spec: SpawnSpec) -> None:
    """Kills a child that nothing watches, with what it may have started by now if it leads a
    group, and waits for its end."""
    spec.was_given_up = True
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == 0:  # else the number may be another's by now
            if leads_group(spec):
                try:
                    os.killpg(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it does not lead it yet
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # taken by another wait
    except PermissionError:
        pass  # running setuid: it goes on, and so do we


class _Reported:
    """A preexec_fn whose exception the parent is told of: Popen says only that there was
    one."""

    #: Bytes; a pipe of any system holds as much, so that the child never waits.
    MOST = 8192

    def __init__(self, function: Any, ends: list[int]) -> None:
        """ends: where the numbers of a pipe are put, for the caller to close."""
        # Seldom needed: not imported with aioproc; and here, since a forked process should not
        # have to wait for the import lock. It may not be there any more, after a chroot() or with
        # another user's rights: then there is the text alone.
        try:
            import pickle
        except ImportError:
            self._pickle: Any = None
        else:
            self._pickle = pickle
        self._function = function
        # Not cut in two by Ctrl-C (see stdio.py).
        ends.extend(chain.from_iterable(starmap(os.pipe, ((),))))
        self._reader = ends[0]
        os.set_blocking(self._reader, False)
        if ends[1] < 3:  # closed here, and what the child needs for a stream
            ends.extend(starmap(fcntl.fcntl, ((ends[1], fcntl.F_DUPFD_CLOEXEC, 3),)))
        self._writer = ends[-1]
        self._identity = self._pipe_identity()

    def _pipe_identity(self) -> tuple[int, int]:
        status = os.fstat(self._writer)
        return status.st_dev, status.st_ino

    def __call__(self) -> None:
        """In the child."""
        try:
            self._function()
        except BaseException as error:
            try:
                # The function may have closed it, and opened something else.
                if self._pipe_identity() == self._identity:
                    os.write(self._writer, self._packed(error))
            except OSError:
                pass
            raise

    def _packed(self, error: BaseException) -> bytes:
        trace = error.__traceback__
        where = trace and trace.tb_next  # without __call__
        text = "".join(traceback.format_exception_only(type(error), error)).strip()
        full = "".join(traceback.format_exception(type(error), error, where)).strip()
        room = self.MOST // 16  # characters, of up to four bytes
        limit = error.args if isinstance(error, LimitFailed) else None
        pickled = b""
        if self._pickle is not None and limit is None:
            try:
                pickled = self._pickle.dumps(error)
            except Exception:
                pass  # not every exception can be pickled
        for cause in (pickled, b""):
            packed = marshal.dumps((text[:room], full[-2 * room :], limit, cause))
            if len(packed) <= self.MOST:
                return packed
        return b""

    def explain(self, error: subprocess.SubprocessError) -> None:
        """Adds to Popen's exception what the child has said."""
        try:
            text, full, limit, pickled = marshal.loads(os.read(self._reader, self.MOST))
        except (BlockingIOError, EOFError):
            return  # nothing
        error.args = (f"{error.args[0]} {text}", *error.args[1:])
        cause: Any = None
        if limit is not None:
            cause = LimitFailed(*limit)
        elif pickled:
            try:
                cause = self._pickle.loads(pickled)
            except Exception:
                return  # its class may refuse to be made anew
        if isinstance(cause, BaseException):
            if hasattr(cause, "add_note"):  # Python 3.11
                cause.add_note(f"In the child:\n{full}")
            error.__cause__ = cause


def _by_name(spec: SpawnSpec, error: BaseException) -> OSError | None:
    """The exception that names the limit, or those that may be the reason."""
    if isinstance(error.__cause__, LimitFailed):
        step, number = error.__cause__.args
        return spawn_error(spec, number, step)
    if isinstance(error, OSError) and error.errno and error.filename == spec.executable:
        return spawn_error(spec, error.errno, STEP_EXEC)
    return None


def popen(spec: SpawnSpec, fds: list[int], prctl: Prctl | None) -> int:
    """Starts the child on the calling thread, waits for the exec, returns its pid.

    The pid is the caller's to wait for. What cannot be done has been refused (limited.py).
    """
    options: dict[str, Any] = {}
    preexec_fn: Any = limited(spec, prctl)
    limited_too = preexec_fn is not spec.preexec_fn
    if spec.limits is None:
        options.update(user=spec.user, group=spec.group, extra_groups=spec.extra_groups)
    if spec.process_group is not None:
        if sys.version_info >= (3, 11):
            options["process_group"] = spec.process_group
        else:
            preexec_fn = _in_group(spec.process_group, preexec_fn)
    if spec.terminal is not None:
        preexec_fn = on_terminal(preexec_fn)
    # Made in two steps: where Ctrl-C interrupts it, there may be a child already.
    process: Any = subprocess.Popen.__new__(subprocess.Popen)
    reported: _Reported | None = None
    ends: list[int] = []
    try:
        if preexec_fn is not None:
            preexec_fn = reported = _Reported(preexec_fn, ends)
        subprocess.Popen.__init__(
            process,
            spec.args,
            executable=spec.executable,
            stdin=None if fds[0] < 0 else fds[0],
            stdout=None if fds[1] < 0 else fds[1],
            stderr=None if fds[2] < 0 else fds[2],
            bufsize=0,
            preexec_fn=preexec_fn,
            close_fds=spec.close_fds,
            cwd=spec.cwd,
            env=spec.marked_env(),
            restore_signals=spec.restore_signals,
            start_new_session=spec.start_new_session,
            pass_fds=spec.pass_fds,
            umask=-1 if spec.umask is None else spec.umask,
            **options,
        )
        close_all(ends, os.close)
    except BaseException as error:
        if reported is not None and isinstance(error, subprocess.SubprocessError):
            reported.explain(error)
        close_all(ends, os.close)
        if getattr(process, "pid", None) and process.returncode is None:
            process.returncode = 0
            see_off(process.pid, spec)
        other = _by_name(spec, error) if limited_too else None
        if other is not None:
            raise other from None
        raise
    # With a returncode Popen's destructor neither warns nor waits: from here on the
    # exit is watched and the child reaped by us.
    process.returncode = 0
    pid: int = process.pid
    return pid
