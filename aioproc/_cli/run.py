"""``run``: one command, run as timeout(1) would, and by the library."""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import os
import platform
import signal
import sys
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import Any

from .. import PIPE, UNKNOWN_EXIT, Process, open_process
from .._backends.system import WINDOWS
from .._trees.steps import GRACE, judged_steps
from .output import pass_on, tell
from .terminal import OwnTerminal

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

#: What timeout(1) returns in these cases, and the shell.
TIMED_OUT, FAILED, NOT_EXECUTABLE, NOT_FOUND = 124, 125, 126, 127

#: Those that are for us, and end the command with all that it has started.
ENDING = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
#: Seconds: as long as a timer takes, on all loops.
FOREVER = 1e8
#: Seconds for what is on its way.
MOMENT = 0.5


# -- the options


def _seconds(text: str) -> float:
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        value = float(number) * _UNITS[unit]
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def _signal(text: str) -> int:
    name = text.upper()
    name = name if name.startswith(("SIG", "CTRL_")) else f"SIG{name}"
    number = int(text) if text.isdecimal() else int(getattr(signal, name, 0))
    try:
        judged_steps([(number, 0)])
    except ValueError:
        number = 0
    if not number:
        raise argparse.ArgumentTypeError(f"there is no signal {text!r} to end a command by")
    return number


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="end CMD, and all that it has started, after S seconds (also 5m, 2h, 1d)",
    )
    parser.add_argument(
        "--idle-timeout",
        type=_seconds,
        metavar="S",
        help="the same when it has written nothing for S seconds; its output goes through "
        "pipes then, not straight to ours",
    )
    parser.add_argument(
        "--kill-after",
        type=_seconds,
        metavar="S",
        default=GRACE,
        help=f"seconds between the signal and SIGKILL (default {GRACE:g})",
    )
    parser.add_argument(
        "--signal",
        type=_signal,
        metavar="SIG",
        help="the signal to end it by after a timeout, by name or number (default TERM; with "
        "--pty HUP, and then TERM)",
    )
    parser.add_argument(
        "--pty",
        action="store_true",
        help="run CMD on a terminal of its own, at which our stdin is typed, and what it shows is "
        "our output (not on Windows)",
    )
    parser.add_argument("--env", type=_variable, metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--cwd", metavar="DIR", help="run CMD there")
    parser.add_argument(
        "--stats", action="store_true", help="print time, CPU and memory to stderr"
    )


# -- the run


def run(options: argparse.Namespace) -> int:
    """Run a command with our streams, in our session and process group."""
    # What there is to be said we say ourselves.
    logging.getLogger("asyncio").addHandler(logging.NullHandler())
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        # Ctrl-C goes to all that is in the terminal's foreground: the command decides.
        signal.signal(signal.SIGINT, lambda *_: None)
    # Before the loop takes the numbers for files of its own; libffi may have done so by now.
    streams = {1: sys.stdout, 2: sys.stderr}
    is_open = [stream is not None and _is_open(fd) for fd, stream in streams.items()]
    if options.pty and not WINDOWS:
        with OwnTerminal() as terminal:
            code = asyncio.run(_main(options, is_open, terminal))
    else:
        code = asyncio.run(_main(options, is_open, None))
    if code == -signal.SIGINT:
        # So that a shell that runs us in a loop sees that it has been interrupted.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code if code >= 0 else 128 - code


async def _main(
    options: argparse.Namespace, is_open: Sequence[bool], terminal: OwnTerminal | None
) -> int:
    return await _Run(options, is_open, terminal).main()


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class _Run:
    """One run; the process is held by it alone, and ended by none but it."""

    def __init__(
        self, options: argparse.Namespace, is_open: Sequence[bool], terminal: OwnTerminal | None
    ) -> None:
        """is_open: whether we were started with stdout and stderr."""
        self._open = is_open
        self._options = options
        #: Ours, if the command has one of its own.
        self._terminal = terminal
        self._loop = asyncio.get_running_loop()
        self._began = monotonic()
        #: Resolved with the signal that is to end it.
        self._told: asyncio.Future[int] = self._loop.create_future()
        #: When there was the last output, if it goes through us.
        self._last = self._began
        self._is_writing = False

    async def main(self) -> int:
        """Return the exit code; -N for signal N."""
        options, terminal = self._options, self._terminal
        # What we were started without is nothing that we could pass it on to: the number is one
        # of our own files by now.
        stdout, stderr = (
            PIPE if options.idle_timeout is not None and is_open else None
            for is_open in self._open
        )
        where: dict[str, Any] = {
            "stdin": None,
            "stdout": stdout,
            "stderr": stderr,
            "start_new_session": False,
        }
        if options.pty:
            where = {"pty": True if terminal is None else terminal.size()}
        self._handle_signals()
        try:
            process = await open_process(
                *options.argv,
                **where,
                cwd=options.cwd,
                env_update=dict(options.env),
            )
        except NotImplementedError as error:  # Windows
            return _complain(error, FAILED)
        except (OSError, ValueError, RuntimeError) as error:
            # RuntimeError: AIOPROC_BACKEND asks for what is not to be had.
            if options.cwd is not None and not os.path.isdir(options.cwd):
                return _complain(error, FAILED)
            missing = isinstance(error, FileNotFoundError)
            return _complain(error, NOT_FOUND if missing else NOT_EXECUTABLE)
        tasks = []
        pump = None
        if stdout is not None or stderr is not None or terminal is not None:
            pump = self._loop.create_task(self._pass_on(process))
            tasks.append(pump)
        if terminal is not None:
            terminal.begin(process)
            tasks.append(self._loop.create_task(terminal.type_at(process)))
        try:
            return await self._follow(process, pump)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            if process.returncode is not None:
                # What it has left behind may have its pipes, or its terminal.
                process._transport.close()

    async def _follow(self, process: Process, pump: asyncio.Task[None] | None) -> int:
        options = self._options
        exit = self._loop.create_task(process.wait())
        over = await self._until_over(process, exit, pump)
        if over == "exit" and process.returncode in _DEADLY and self._terminal is None:
            # The same signal may be on its way to us.
            await asyncio.wait([self._told], timeout=MOMENT)
        if over != "exit" or self._told.done():
            number = self._told.result() if self._told.done() else options.signal
            if over == "broken" or number is None:
                number = signal.SIGTERM
            stop: Any = [(number, options.kill_after)]
            if self._terminal is not None and (self._told.done() or number == signal.SIGTERM):
                stop = options.kill_after  # as is usual there
            await process.stop(stop)
            if pump is not None:
                await asyncio.wait([pump], timeout=MOMENT)
        exit.cancel()
        if options.stats:
            tell("\n".join(_stats(process, monotonic() - self._began)))
        code = process.returncode
        if code is None:
            _say(f"pid {process.pid} goes on: it could not be ended")
        if over == "broken":
            assert pump is not None
            error = pump.exception()
            if not isinstance(error, BrokenPipeError):
                _say(f"output cannot be written: {error}")
                return FAILED
            return -int(getattr(signal, "SIGPIPE", 13))
        if over in ("timeout", "idle"):
            seconds = options.timeout if over == "timeout" else options.idle_timeout
            _say(f"timed out after {seconds:g} seconds{' without output' * (over == 'idle')}")
            # As timeout(1), whose caller is to know that it needed that.
            return -_KILL if code == -_KILL else TIMED_OUT
        if code is None:
            return FAILED
        return 1 if code == UNKNOWN_EXIT else code

    async def _until_over(
        self, process: Process, exit: asyncio.Task[int], pump: asyncio.Task[None] | None
    ) -> str:
        """Why it is over: "exit" (and all output has been passed on), "timeout", "idle",
        "told" (to end it), or "broken" (nobody reads what is passed on)."""
        waits_for: set[asyncio.Future[Any]] = {exit, self._told}
        if pump is not None:
            waits_for.add(pump)
        deadline = self._began + (self._options.timeout or inf)
        # How long there may be no output: while it lives; and for the end of its pipes, which
        # somebody else may have.
        most = self._options.idle_timeout or inf
        while True:
            now = monotonic()
            end = min(deadline, now + MOMENT if self._is_writing else self._last + most)
            done, waits_for = await asyncio.wait(
                waits_for,
                timeout=min(max(end - now, 0), FOREVER),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._told in done:
                return "told"
            if pump is not None and pump in done and pump.exception() is not None:
                return "broken"
            if exit.done() and (pump is None or pump.done()):
                return "exit"
            now = monotonic()
            if exit in done:
                self._last, most = now, MOMENT
            elif not exit.done() and process.returncode is not None:
                continue  # it has ended in time, and will be told of
            is_late = now >= deadline
            is_quiet = now >= self._last + most and not self._is_writing
            if is_late or is_quiet:
                return "exit" if exit.done() else "timeout" if is_late else "idle"

    async def _pass_on(self, process: Process) -> None:
        async for stream, data in process.chunks():
            self._last = monotonic()
            if not self._open[stream == "stderr"]:
                continue  # a terminal's, which is read all the same
            self._is_writing = True
            await pass_on(stream, data)
            self._is_writing = False
            self._last = monotonic()

    def _handle_signals(self) -> None:
        loop = self._loop

        def end(number: int) -> None:
            if not self._told.done():
                self._told.set_result(number)

        def interrupted(number: int) -> None:
            if self._terminal is not None:
                self._terminal.interrupt()
            elif not _is_in_foreground():
                # No terminal has sent it to the command as well.
                end(number)

        for name in (*ENDING, "SIGINT"):
            number = getattr(signal, name, None)
            # nohup(1) and the like have some ignored.
            if number is None or signal.getsignal(number) == signal.SIG_IGN:
                continue
            handler = interrupted if name == "SIGINT" else end
            try:
                loop.add_signal_handler(number, functools.partial(handler, number))
            except NotImplementedError:  # Windows
                if name != "SIGINT":
                    told = functools.partial(loop.call_soon_threadsafe, end, signal.SIGTERM)
                    signal.signal(number, lambda *_, told=told: told())


_KILL: int = getattr(signal, "SIGKILL", 9)
#: The returncodes of a command that one of those has ended.
_DEADLY = [-getattr(signal, name, 0) for name in ENDING if hasattr(signal, name)]


def _is_in_foreground() -> bool:
    """Whether Ctrl-C at our terminal reaches our process group."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _say(text: str) -> None:
    tell(f"aioproc: {text}")


def _complain(error: BaseException, code: int) -> int:
    _say(str(error))
    return code


def _stats(process: Process, seconds: float) -> list[str]:
    lines = [f"wall time   {seconds:.3f} s"]
    usage = process.rusage
    if process.returncode is None:
        lines.append("CPU and memory: unknown, the child goes on")
    elif usage is None:
        lines.append("CPU and memory: unknown, another wait has taken the child")
    else:
        cpu = usage.ru_utime + usage.ru_stime
        lines.append(
            f"CPU time    {cpu:.3f} s ({usage.ru_utime:.3f} user, {usage.ru_stime:.3f} system)"
        )
        peak = usage.ru_maxrss
        # A peak below our own cannot be told from it.
        below = "" if peak is not None else "below "
        if peak is None and resource is not None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 1 if platform.system() == "Darwin" else 1024
        if peak is not None:
            lines.append(f"peak memory {below}{peak * unit / 2**20:.1f} MiB")
    return lines
