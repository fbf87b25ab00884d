# mypy: ignore-errors
"""Pipelines, redirections, timeouts, cancellation and a pseudo-terminal by shellous."""

import asyncio
import io

from shellous import sh


async def main() -> None:
    print(await sh("echo", "a", "b"))
    print(await (sh("printf", "c\\nb\\na\\n") | sh("sort") | sh("tr", "a-z", "A-Z")))
    print(len(await sh("cat").stdin("x" * 1_000_000)))
    sink = io.BytesIO()
    await sh("sh", "-c", "echo out; echo err >&2").stderr(sink)
    print(sink.getvalue())
    print([line.rstrip() async for line in sh("seq", "5")])
    async with sh("head", "-c", "300000", "/dev/zero").stdout(sh.CAPTURE) as run:
        print(len(await run.stdout.read()))
    result = await sh("sh", "-c", "echo bad; exit 4").result
    print(result.exit_code, result.output)
    try:
        await sh("sleep", "60").set(timeout=0.1)
    except asyncio.TimeoutError:
        print("timed out")
    task = asyncio.create_task(sh("sleep", "60").coro())
    await asyncio.sleep(0.1)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        print("cancelled")
    if isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        # uvloop does not take shellous' terminals.
        print(repr(await sh("sh", "-c", "test -t 1 && echo a terminal").set(pty=True)))
    try:
        await sh("no-such-program")
    except FileNotFoundError as error:
        print(type(error).__name__, error.filename)
    print(len(asyncio.all_tasks()), "task")


asyncio.run(main())
