"""``run``: one command, run as timeout(1) would, and by the library."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .. import UNKNOWN_EXIT, CompletedProcess, NotEnded, TimeoutExpired, partial_result
from .._backends.system import WINDOWS
from .._run.options import Settings
from .._run.run import perform
from .._trees.steps import GRACE, Step, judged_steps
from .output import pass_on
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
#: More seconds than any timer takes mean no timeout.
_FOREVER = 1e8


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
        help="run CMD on a terminal of its own, which is shown on ours, or wherever our output "
        "goes, and at which our stdin is typed (not on Windows)",
    )
    parser.add_argument("--env", type=_variable, metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--cwd", metavar="DIR", help="run CMD there")
    parser.add_argument(
        "--stats", action="store_true", help="print time, CPU and memory to stderr"
    )


# -- the run


def run(options: argparse.Namespace) -> int:
    """Runs a command with our streams, in our session and process group."""
    with _interrupts_are_the_commands(), contextlib.ExitStack() as stack:
        terminal = None
        if options.pty and not WINDOWS:
            terminal = stack.enter_context(OwnTerminal())
        code = asyncio.run(_Run(options, terminal).main())
    if code == -signal.SIGINT:
        # So that a shell that runs us in a loop sees that it has been interrupted.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code if code >= 0 else 128 - code


@contextmanager
def _interrupts_are_the_commands() -> Iterator[None]:
    """Ctrl-C goes to all that is in the terminal's foreground: the command decides."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
    yield


class _Run:
    def __init__(self, options: argparse.Namespace, terminal: OwnTerminal | None) -> None:
        self._options = options
        self._terminal = terminal
        self._was_told_to_end = False

    async def main(self) -> int:
        """The exit code; -N for signal N."""
        options, terminal = self._options, self._terminal
        passes_on = options.idle_timeout is not None or options.pty
        where: dict[str, Any] = {"stdin": None, "start_new_session": False}
        if options.pty:
            where = {"pty": True if terminal is None else terminal.size()}
        try:
            settings = Settings(
                "run",
                options.argv[0],
                tuple(options.argv[1:]),
                capture_output=passes_on,
                check=False,
                timeout=_finite(options.timeout),
                idle_timeout=_finite(options.idle_timeout),
                stop=self._steps(options.signal),
                on_output=pass_on if passes_on else None,
                cwd=options.cwd,
                env_update=dict(options.env),
                **where,
            )
        except (ValueError, NotImplementedError) as error:
            return _complain(error, FAILED)
        if terminal is not None:
            settings.on_terminal = terminal.begin
            settings.source = terminal.typed()
        task = asyncio.ensure_future(perform(settings))

        def end(number: int) -> None:
            if not self._was_told_to_end:
                self._was_told_to_end = True
                settings.steps = self._steps(None if options.pty else number)
                task.cancel()

        self._handle_signals(end)
        try:
            result = await task
        except asyncio.CancelledError as error:
            cancelled = partial_result(error)
            if cancelled is None:
                return -signal.SIGTERM  # before there was a child
            result = cancelled
        except TimeoutExpired as error:
            result = error.result
            self._print_stats(result)
            idle = " without output" if result.reason == "idle" else ""
            _say(f"timed out after {error.timeout:g} seconds{idle}")
            # As timeout(1), whose caller is to know that it needed that.
            killed = result.returncode is not None and result.returncode == _KILLED
            return -_KILL if killed else TIMED_OUT
        except NotEnded as error:
            result = error.result
            self._print_stats(result)
            return _complain(error, TIMED_OUT if result.reason in ("timeout", "idle") else FAILED)
        except BrokenPipeError:
            return -int(getattr(signal, "SIGPIPE", 13))  # who reads our output has gone
        except (OSError, ValueError, RuntimeError) as error:
            # RuntimeError: AIOPROC_BACKEND asks for what is not to be had.
            if isinstance(error, OSError) and options.cwd and error.filename == options.cwd:
                return _complain(error, FAILED)
            missing = isinstance(error, FileNotFoundError)
            return _complain(error, NOT_FOUND if missing else NOT_EXECUTABLE)
        self._print_stats(result)
        code = result.returncode
        return 1 if code is None or code == UNKNOWN_EXIT else code

    def _steps(self, number: int | None) -> list[Step]:
        """To end the command, by that signal if it is given."""
        grace = self._options.kill_after
        if number is None:
            return judged_steps(grace, terminal=self._options.pty)
        return judged_steps([(number, grace)])

    def _handle_signals(self, end: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()

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

    def _print_stats(self, result: CompletedProcess[Any]) -> None:
        if self._options.stats:
            print("\n".join(_stats(result)), file=sys.stderr)


_KILL: int = getattr(signal, "SIGKILL", 9)
_KILLED = -_KILL


def _finite(seconds: float | None) -> float | None:
    return seconds if seconds is not None and seconds < _FOREVER else None


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
    print(f"aioproc: {text}", file=sys.stderr)


def _complain(error: BaseException, code: int) -> int:
    _say(str(error))
    return code


def _stats(result: CompletedProcess[Any]) -> list[str]:
    lines = [f"wall time   {result.duration:.3f} s"]
    usage = result.rusage
    if result.returncode is None:
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
