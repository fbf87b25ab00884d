"""The command line and its options."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import NoReturn

from .. import __version__
from .._install import ASYNCIO_LIMIT
from . import run as running
from .exec import execute
from .output import tell
from .report import print_report


def _limit(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of bytes nor none")
    return int(text)


def _command_line(
    options: argparse.Namespace, parser: argparse.ArgumentParser, what: str
) -> list[str]:
    argv: list[str] = options.argv
    if argv[:1] == ["--"]:
        del argv[0]
    if not argv:
        parser.error(f"{what} is needed")
    return argv


class _Parser(argparse.ArgumentParser):
    #: The exit code for misuse.
    misuse = 2

    def error(self, message: str) -> NoReturn:
        if sys.stderr is not None:  # or print_usage() would take stdout
            with contextlib.suppress(OSError):
                self.print_usage(sys.stderr)
        tell(f"{self.prog}: error: {message}")
        sys.exit(self.misuse)


def main(arguments: list[str] | None = None) -> int:
    """Does what the command line says, and returns the exit code."""
    name = os.path.basename(sys.argv[0])
    prog = "python -m aioproc" if name == "__main__.py" else name
    parser = _Parser(
        prog=prog,
        description="Without a command: tells which backend is in use, and why not the others.",
    )
    parser.add_argument("--json", action="store_true", help="the same for programs")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="run | exec")
    run = commands.add_parser(
        "run",
        help="run one command, and end it with all that it has started when its time is up",
        usage=f"{prog} run [--timeout S] [--idle-timeout S] [--kill-after S] [--signal SIG]\n"
        "           [--env NAME=VALUE] [--cwd DIR] [--stats] [--pty] [--] CMD [ARG ...]",
        description="Runs CMD with our stdin, stdout and stderr, in our session and process "
        "group, and returns its exit code; 128+N for signal N (not on Windows); 124 after a "
        "timeout, 137 if it took SIGKILL to end it then; 125 if the options cannot be taken, "
        "126 if CMD cannot be started, 127 if it is not found; 1 if its exit code cannot be "
        "known. SIGTERM, SIGHUP and SIGQUIT end CMD with all that it has started. Ctrl-C is "
        "CMD's own: if it ends by it, so do we.",
    )
    run.misuse = running.FAILED  # as timeout(1)
    running.add_options(run)
    run.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="CMD", help="a program and its arguments"
    )
    executing = commands.add_parser(
        "exec",
        help="run a Python program with aioproc in asyncio's place",
        usage=f"{prog} exec [--limit N|none] SCRIPT.py|-m MODULE [ARG ...]",
        description="Runs a Python program as python itself would, after aioproc.install(): "
        "its use of asyncio's subprocess functions is served by aioproc.",
    )
    executing.add_argument(
        "--limit",
        type=_limit,
        default=ASYNCIO_LIMIT,
        metavar="N|none",
        help=f"bytes a line may have where the program sets no limit (default {ASYNCIO_LIMIT})",
    )
    executing.add_argument("-m", dest="as_module", action="store_true", help="a module by name")
    executing.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="PROGRAM", help="and its arguments"
    )
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        theirs = run if options.command == "run" else parser
        theirs.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.command == "exec":
        program = _command_line(options, executing, "a program")
        execute(program, options.as_module, options.limit)
        return 0
    if options.command == "run":
        _command_line(options, run, "a command")
        return running.run(options)
    return print_report(options.json)
