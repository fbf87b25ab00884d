"""``run``: a command run through the library."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import signal
import sys
import time

from .. import UNKNOWN_EXIT, Process, create_subprocess_exec

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

#: What the shell and timeout(1) return in these cases.
TIMED_OUT, NOT_EXECUTABLE, NOT_FOUND = 124, 126, 127


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


async def run(command: list[str], timeout: float | None, stats: bool) -> int:
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
