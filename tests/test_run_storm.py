"""Runs that are ended in every way, many at once: nobody of their trees survives, nothing of
them stays, no byte is lost. And what ends them is itself ended, refused, forked."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

if os.name == "nt":
    pytest.skip("not on Windows: signals, forks, sessions", allow_module_level=True)

from aside import PROC, collect
from conftest import FUSE
from programs import python

pytestmark = pytest.mark.skipif(not PROC, reason="nobody can look without /proc")
asynchronous = pytest.mark.asyncio

#: Does not mind SIGTERM; says so.
STUBBORN = python(
    "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "os.write(1, b'ready\\n'); signal.pause()"
)


# -- what an ending meets


@asynchronous
@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_the_end_of_a_child_whose_exec_fails(
    aioproc: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Which is not known yet when the time is up."""
    for seconds in (1e-6, 1e-4, 1e-3, 1):
        running = asyncio.ensure_future(
            aioproc.run("/nowhere/nothing", timeout=seconds if how == "timeout" else None)
        )
        if how == "cancel":
            await asyncio.sleep(0)
            running.cancel()
        with pytest.raises((FileNotFoundError, asyncio.CancelledError)) as caught:
            await running
        assert how == "cancel" or caught.type is FileNotFoundError
        del caught, running
    collect()
    assert not caplog.records  # no exception that nobody has retrieved


@asynchronous
async def test_a_callback_that_stays_with_the_last_words(aioproc: Any) -> None:
    """It is called while the child is being ended."""
    cancelled = []

    async def callback(stream: str, data: bytes) -> None:
        if data == b"bye\n":
            try:
                await asyncio.sleep(FUSE)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

    script = "trap 'echo bye; exit 0' TERM; echo hi; while :; do sleep 0.01; done"
    began = time.monotonic()
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run("sh", "-c", script, timeout=0.2, drain=0.1, on_line=callback)
    assert caught.value.stdout == b"hi\nbye\n"
    assert cancelled
    assert time.monotonic() - began < FUSE / 2


@asynchronous
@pytest.mark.parametrize("times", [1, 1000], ids=["once", "each round"])
async def test_all_tasks_are_cancelled(aioproc: Any, times: int) -> None:
    """As asyncio.run() does at its end, those that serve an ending among them."""
    ready = asyncio.Event()
    running = asyncio.ensure_future(
        aioproc.run(*STUBBORN, on_output=lambda stream, data: ready.set(), stop=FUSE)
    )
    await ready.wait()
    running.cancel()
    await asyncio.sleep(0)
    while not running.done():
        for task in asyncio.all_tasks() - {asyncio.current_task()} if times else ():
            task.cancel()
        times -= times > 0
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError) as caught:
        await running
    result = aioproc.partial_result(caught.value)
    assert result.returncode == -signal.SIGKILL
    assert result.stdout == b"ready\n"
    assert result.complete
