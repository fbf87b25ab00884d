"""``python -m aioproc``: what is in use here; a command run through the library; a
program run with aioproc in asyncio's place."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.machinery
import io
import json
import os
import pkgutil
import platform
import runpy
import signal
import sys
import time
import types

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from . import UNKNOWN_EXIT, Process, __version__, backend_info, create_subprocess_exec, install
from ._install import ASYNCIO_LIMIT

#: What the shell and timeout(1) return in these cases.
TIMED_OUT, NOT_EXECUTABLE, NOT_FOUND = 124, 126, 127


def _print_report(as_json: bool) -> int:
    try:
        facts = backend_info()
    except RuntimeError as error:
        # AIOPROC_BACKEND asks for what is not to be had.
        print(f"aioproc {__version__}: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"aioproc {facts['aioproc']}: {facts['backend']} backend ({facts['strategy']})")
    for name, why_not in facts["not_used"].items():
        print(f"  not {name}: {why_not}")
    for name, value in facts["features"].items():
        shown = {True: "yes", False: "no"}.get(value, value)
        print(f"  {name}: {shown}")
    for name in ("python", "system", "libc", "cffi", "uvloop"):
        print(f"{name}: {facts[name] or 'not installed'}")
    return 0


def _print_stats(process: Process, seconds: float) -> None:
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
    print("\n".join(lines), file=sys.stderr)


def _pass_on(process: Process) -> None:
    try:
        process.terminate()
    except ProcessLookupError:
        pass
    except PermissionError as error:  # it runs setuid
        print(f"aioproc: {error}", file=sys.stderr)


async def _run(command: list[str], timeout: float | None, stats: bool) -> int:
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    try:
        process = await create_subprocess_exec(*command)
    except (OSError, ValueError, RuntimeError) as error:
        # RuntimeError: AIOPROC_BACKEND asks for what is not to be had.
        print(f"aioproc: {error}", file=sys.stderr)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    timed_out = False
    async with process:
        # Ctrl-C reaches the child as well, which decides; what is sent to us alone is
        # passed on.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(signal.SIGINT, lambda: None)
            loop.add_signal_handler(signal.SIGTERM, _pass_on, process)
        try:
            await asyncio.wait_for(process.wait(), timeout)
        except asyncio.TimeoutError:
            timed_out = True
    if stats:
        _print_stats(process, time.perf_counter() - start)
    if timed_out:
        print(f"aioproc: timed out after {timeout:g} seconds", file=sys.stderr)
        return TIMED_OUT
    returncode = process.returncode
    assert returncode is not None
    if returncode is UNKNOWN_EXIT:
        return 1
    return returncode if returncode >= 0 else 128 - returncode


def _exec(arguments: list[str], as_module: bool, limit: int | None) -> None:
    """As ``python SCRIPT ...`` or ``python -m MODULE ...`` would, but installed."""
    install(limit=limit)
    target = arguments[0]
    sys.argv[:] = arguments
    # Ours is the working directory's place, unless python -P or -I was asked for.
    safe_path = sys.flags.isolated or getattr(sys.flags, "safe_path", False)
    if not safe_path:
        sys.path[0] = os.getcwd() if as_module else os.path.dirname(os.path.realpath(target))
    if as_module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    elif pkgutil.get_importer(target) is not None:  # a directory, a zip file
        runpy.run_path(target, run_name="__main__")
    else:
        _exec_script(os.path.abspath(target))


def _exec_script(path: str) -> None:
    """Not by runpy, which gives the script a module of its own for a while, and the name
    that was asked for as __file__, where python gives the whole path."""
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        print(f"aioproc: can't open file {path!r}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    code = compile(source, path, "exec")
    module = types.ModuleType("__main__")
    module.__file__ = path
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


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
    run = commands.add_parser(
        "run",
        help="run one command through the library",
        usage="python -m aioproc run [--timeout S] [--stats] -- CMD [ARG ...]",
        description="Runs CMD with our stdin, stdout and stderr and returns its exit code; "
        "128+N for signal N (not on Windows), 1 if its exit code cannot be known, 124 after "
        "a timeout, 127 if CMD is not found, 126 if it cannot be started for another reason.",
    )
    run.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="after S seconds SIGTERM, after 5 more SIGKILL",
    )
    run.add_argument("--stats", action="store_true", help="print time, CPU and memory to stderr")
    run.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="CMD", help="a program and its arguments"
    )
    execute = commands.add_parser(
        "exec",
        help="run a Python program with aioproc in asyncio's place",
        usage="python -m aioproc exec [--limit N|none] SCRIPT.py|-m MODULE [ARG ...]",
        description="Runs a Python program as python itself would, after aioproc.install(): "
        "its use of asyncio's subprocess functions is served by aioproc.",
    )
    execute.add_argument(
        "--limit",
        type=_limit,
        default=ASYNCIO_LIMIT,
        metavar="N|none",
        help=f"bytes a line may have where the program sets no limit (default {ASYNCIO_LIMIT})",
    )
    execute.add_argument("-m", dest="as_module", action="store_true", help="a module by name")
    execute.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="PROGRAM", help="and its arguments"
    )
    options = parser.parse_args(arguments)
    if options.command == "exec":
        _exec(_command_line(options, execute, "a program"), options.as_module, options.limit)
        return 0
    if options.command == "run":
        _command_line(options, run, "a command")
        # More seconds than a lock can wait mean no timeout.
        timeout = options.timeout if options.timeout and options.timeout < 1e8 else None
        return asyncio.run(_run(options.argv, timeout, options.stats))
    return _print_report(options.json)


if __name__ == "__main__":
    sys.exit(main())
