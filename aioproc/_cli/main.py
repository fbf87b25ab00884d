"""The command line and its options."""

from __future__ import annotations

import argparse
import asyncio

from .. import __version__
from .._install import ASYNCIO_LIMIT
from .exec import execute
from .report import print_report
from .run import run


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


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m aioproc",
        description="Without a command: tells which backend is in use, and why not the others.",
    )
    parser.add_argument("--json", action="store_true", help="the same for programs")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="run | exec")
    running = commands.add_parser(
        "run",
        help="run one command through the library",
        usage="python -m aioproc run [--timeout S] [--stats] -- CMD [ARG ...]",
        description="Runs CMD with our stdin, stdout and stderr and returns its exit code; "
        "128+N for signal N (not on Windows), 1 if its exit code cannot be known, 124 after "
        "a timeout, 127 if CMD is not found, 126 if it cannot be started for another reason.",
    )
    running.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="after S seconds SIGTERM, after 5 more SIGKILL",
    )
    running.add_argument(
        "--stats", action="store_true", help="print time, CPU and memory to stderr"
    )
    running.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="CMD", help="a program and its arguments"
    )
    executing = commands.add_parser(
        "exec",
        help="run a Python program with aioproc in asyncio's place",
        usage="python -m aioproc exec [--limit N|none] SCRIPT.py|-m MODULE [ARG ...]",
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
    options = parser.parse_args(arguments)
    if options.command == "exec":
        program = _command_line(options, executing, "a program")
        execute(program, options.as_module, options.limit)
        return 0
    if options.command == "run":
        _command_line(options, running, "a command")
        # More seconds than a lock can wait mean no timeout.
        timeout = options.timeout if options.timeout and options.timeout < 1e8 else None
        return asyncio.run(run(options.argv, timeout, options.stats))
    return print_report(options.json)
