"""What aioproc is asked to do while something fails, and what it must come to otherwise."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import aioproc
from aioproc import DEVNULL, PIPE, _backends

#: More than a pipe holds.
LARGE = b"0123456789abcde\n" * 8192
SMALL = b"a line\n" * 100
#: Seconds; a fuse.
PATIENCE = 3.0


class Operation(NamedTuple):
    perform: Callable[[], Awaitable[Any]]
    #: What it returns when nothing fails.
    expected: Any
    #: Whether more than a child may have to be ended.
    makes_trees: bool = False


async def spawn() -> Any:
    process = await aioproc.create_subprocess_exec("true")
    return await process.wait()


async def options() -> Any:
    process = await aioproc.create_subprocess_exec(
        "/bin/sh",
        "-c",
        "pwd; umask; echo $WORD",
        stdin=DEVNULL,
        stdout=PIPE,
        cwd="/",
        env={"WORD": "yes", "PATH": os.environ["PATH"]},
        start_new_session=True,
        pass_fds=[2],
        umask=0o27,
    )
    return await process.communicate(), process.returncode


async def ids() -> Any:
    process = await aioproc.create_subprocess_exec(
        "true", user=os.getuid(), group=os.getgid(), extra_groups=os.getgroups()
    )
    return await process.wait()


def _nothing() -> None:
    pass


async def preexec() -> Any:
    process = await aioproc.create_subprocess_exec("true", preexec_fn=_nothing)
    return await process.wait()


async def missing() -> Any:
    try:
        await aioproc.create_subprocess_exec("/nowhere/program", stdin=PIPE, stdout=PIPE)
    except FileNotFoundError as error:
        return error.filename
    return "started"


async def communicate() -> Any:
    process = await aioproc.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    return await process.communicate(LARGE), process.returncode


async def streams() -> Any:
    async with await aioproc.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"first\n")
        await process.stdin.drain()
        first = await process.stdout.readline()
        process.stdin.write_eof()
        rest = await process.stdout.read()
        return first, rest, await process.wait()


async def kill() -> Any:
    process = await aioproc.create_subprocess_exec("sleep", "1000", stdin=PIPE, stdout=PIPE)
    async with process:
        process.kill()
        return await process.communicate(), await process.wait()


async def run() -> Any:
    done = await aioproc.run("cat", input=SMALL)
    return done.stdout, done.stderr, done.returncode


async def run_slowly() -> Any:
    """Long enough to be looked at, more than the pipes hold."""
    done = await aioproc.run("/bin/sh", "-c", "sleep 0.02; cat; echo >&2", input=LARGE)
    return done.stdout, done.stderr, done.returncode


async def run_by_lines() -> Any:
    lines = []

    async def take(stream: str, line: str) -> None:
        lines.append(line)

    with tempfile.TemporaryFile() as file:
        file.write(SMALL)
        file.seek(0)
        await aioproc.run("cat", stdin=file, on_line=take, text=True)
    return lines


#: It minds no SIGTERM, and neither does what it starts, some of it out of its session.
FAMILY = "trap '' TERM; sleep 1000 & (sleep 1000 & setsid sleep 1000 & wait) & echo up; wait; wait"


async def _ended(how: Callable[[], Awaitable[Any]]) -> Any:
    try:
        await how()
    except (aioproc.TimeoutExpired, asyncio.CancelledError) as error:
        result = aioproc.partial_result(error)
        assert result is not None
        if result.error is not None:
            raise result.error from None
        # Who is left is for the ledger to say.
        return result.reason, result.stdout, result.returncode
    return "nothing"


async def time_out() -> Any:
    async def how() -> Any:
        # Which nobody waits for: it is up when the line has come.
        await aioproc.run("/bin/sh", "-c", FAMILY, idle_timeout=0.2, stop=0.02)

    return await _ended(how)


async def cancel() -> Any:
    async def how() -> Any:
        up = asyncio.Event()
        command = ("/bin/sh", "-c", FAMILY)
        listening = aioproc.run(*command, on_line=lambda *_: up.set(), stop=0.01)
        task = asyncio.ensure_future(listening)
        waiter = asyncio.ensure_future(up.wait())
        try:
            await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        task.cancel()
        await task

    return await _ended(how)


async def leftovers() -> Any:
    command = ("/bin/sh", "-c", "sleep 1000 & setsid sleep 1001 & exit 3")
    done = await aioproc.run(*command, check=False, leftovers="kill", drain=0.01, stop=0)
    return done.returncode, done.reason


async def talk() -> Any:
    """open_process(): a line there and back, and the end of a block."""
    async with aioproc.open_process("cat", text=True, stop=[("eof", PATIENCE)]) as process:
        assert process.stdin is not None
        process.stdin.write("a line\n")
        answer = await process.read_until("line\n", timeout=PATIENCE)
    return answer, process.returncode


async def both_outputs() -> Any:
    """open_process(): stdout and stderr as they come."""
    lines: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    command = ("/bin/sh", "-c", "cat; echo last >&2; exit 3")
    async with aioproc.open_process(*command, stderr=PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(SMALL)
        process.stdin.close()
        async for stream, line in process.lines():
            lines[stream] += line
        await process.wait()
    return lines, process.returncode


async def many() -> Any:
    """run_many(): four commands, two at a time. An error is a result."""
    commands = [aioproc.Command("/bin/sh", "-c", f"echo {i}; exit {i}") for i in range(4)]
    results = {}
    async with aioproc.run_many(commands, concurrency=2) as runs:
        async for result in runs:
            if result.error is not None:
                raise result.error
            results[result.index] = result.stdout, result.returncode
    return results


async def many_broken_off() -> Any:
    """The block is left with one of them at work, and more to come."""
    commands = (
        aioproc.Command("/bin/sh", "-c", script) for script in ("exit 3", FAMILY, "exit 4")
    )
    async with aioproc.run_many(commands, concurrency=2, stop=0.01) as runs:
        async for result in runs:
            if result.error is not None:
                raise result.error
            return result.index, result.returncode
    return "nothing"


async def pipeline() -> Any:
    done = await aioproc.pipeline(
        aioproc.Command("cat"),
        aioproc.Command("/bin/sh", "-c", "cat; echo last >&2"),
        input=LARGE,
    )
    return done.stdout, [stage.returncode for stage in done.stages], done.stages[1].stderr


async def limited() -> Any:
    """With all that the child does to itself before its exec."""
    native: Any = {}
    if _backends.current().name == "native":
        native = {"no_new_privs": True, "die_with_parent": True}
    done = await aioproc.run(
        *("/bin/sh", "-c", "ulimit -n; nice"),
        rlimits={"nofile": 64},
        nice=1,
        cpu_affinity=os.sched_getaffinity(0),
        oom_score_adj=500,
        **native,
    )
    return done.stdout


async def terminal() -> Any:
    """A line there and back by a terminal of its own, and what ends its input."""
    end: Any = [("eof", PATIENCE / 2)]
    async with aioproc.open_process("cat", pty=True, echo=False, stop=end) as process:
        assert process.stdin is not None
        process.stdin.write(b"a line\n")
        await process.stdin.drain()
        return await process.read_until(b"line\r\n", timeout=PATIENCE)


OPERATIONS = {
    "spawn": Operation(spawn, 0),
    "options": Operation(options, ((b"/\n0027\nyes\n", None), 0)),
    "ids": Operation(ids, 0),
    "preexec": Operation(preexec, 0),
    "limited": Operation(limited, b"64\n1\n"),
    "missing": Operation(missing, "/nowhere/program"),
    "communicate": Operation(communicate, ((LARGE, b""), 0)),
    "streams": Operation(streams, (b"first\n", b"", 0)),
    "kill": Operation(kill, ((b"", None), -signal.SIGKILL)),
    "run": Operation(run, (SMALL, b"", 0)),
    "run slowly": Operation(run_slowly, (LARGE, b"\n", 0)),
    "run by lines": Operation(run_by_lines, SMALL.decode().splitlines(keepends=True)),
    "time out": Operation(time_out, ("idle", b"up\n", -signal.SIGKILL), True),
    "cancel": Operation(cancel, ("cancelled", b"up\n", -signal.SIGKILL), True),
    "talk": Operation(talk, ("a line\n", 0), True),
    "both outputs": Operation(both_outputs, ({"stdout": SMALL, "stderr": b"last\n"}, 3), True),
    "many": Operation(many, {i: (b"%d\n" % i, i) for i in range(4)}),
    "many broken off": Operation(many_broken_off, (0, 3), True),
    "pipeline": Operation(pipeline, (LARGE, [0, 0], b"last\n"), True),
    "terminal": Operation(terminal, b"a line\r\n", True),
    "leftovers": Operation(leftovers, (3, "exit"), True),
}
