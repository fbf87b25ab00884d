"""A child of the native backend on Windows."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Callable
from typing import Any

from ..base import Job, ResourceUsage
from ..child import BaseChild
from .jobs import NativeJob
from .lib import check, ffi, lib, windows_error
from .pipes import Stdio
from .port import Port

ERROR_ACCESS_DENIED, ERROR_NOT_SUPPORTED = 5, 50
ERROR_INVALID_PARAMETER = 87

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

    __slots__ = ("_killed", "_look_due", "_port", "_token", "in_jobs", "job", "own_job")

    def __init__(self, port: Port, token: int, loop: asyncio.AbstractEventLoop, stdio: Stdio):
        super().__init__(0, stdio)  # without a pid until `started`
        self.started = loop.create_future()
        self._port: Port | None = port
        #: 0 once the C layer has forgotten it.
        self._token = token
        #: By __del__.
        self._killed = False
        #: A look that came before it had started.
        self._look_due = False
        #: Whether it is to be in job objects that the caller has given.
        self.in_jobs = False
        self.job: Job | None = None
        #: What limits it, or ends it with us; the same as `job`, if it has a tree.
        self.own_job: NativeJob | None = None

    def __del__(self) -> None:
        # Only an orphan can be forgotten by everybody before it has ended. The garbage
        # collector may come here first, and to those who would kill it later.
        if getattr(self, "_token", 0):  # or Ctrl-C came before it was set
            self.returncode = self.peek()
            lib.ap_abandon(self._token)
            self._killed = self.returncode is None

    def send_signal(self, number: int) -> None:
        if number == signal.SIGTERM:
            if not self._killed:
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
        self._spare()
        jobs, self.job, self.own_job = (self.job, self.own_job), None, None
        for job in jobs:
            if job is not None:
                job.close()
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
            if completion.result:
                self.job = self.own_job = None  # it could not be nested
            return
        self._spare()
        self._port = None
        self._token = 0
        if completion.kind == lib.AP_FAILED:
            self.error = self._failure(-completion.result)
        else:
            self._rusage = _usage(completion)
            self.returncode = completion.exit_code

    def _spare(self) -> None:
        """It has ended, or is to be ended alone: what it has started may go on."""
        if self.own_job is not None:
            self.own_job.spare()

    def tell(self) -> None:
        # A loop that goes on after shutdown_asyncgens() asks before there is an answer.
        if self.pid or self.has_ended():
            super().tell()
        if self._look_due and self.pid:
            self._look_due = False
            super().look()

    def look(self) -> None:
        if self.pid:
            super().look()
        else:
            self._look_due = True

    def _failure(self, number: int) -> OSError:
        if self.in_jobs and number in (ERROR_ACCESS_DENIED, ERROR_NOT_SUPPORTED):
            return windows_error(number, _JOBS_NOTE)
        return windows_error(number)
