"""contextvars: whatever is told of a child is told in the context of its creation."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import gc
import os
import weakref
from typing import Any

import pytest

from aside import settle
from marks import posix_only
from programs import CAT, TRUE, python

pytestmark = pytest.mark.asyncio

WHO: contextvars.ContextVar[Any] = contextvars.ContextVar("who", default="nobody")


class Noting(asyncio.SubprocessProtocol):
    """Notes in whose context it is told of what."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}
        self.end = asyncio.get_running_loop().create_future()

    def note(self, what: str) -> None:
        self.told[what] = WHO.get()

    def connection_made(self, transport: Any) -> None:
        self.note("made")

    def pipe_data_received(self, fd: int, data: Any) -> None:
        self.note(f"data {fd}")

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.note(f"lost {fd}")

    def process_exited(self) -> None:
        self.note("exited")

    def connection_lost(self, exc: Exception | None) -> None:
        self.note("connection lost")
        self.end.set_result(None)


async def spawned(aioproc: Any, who: str, *command: str, **options: Any) -> Any:
    """A transport and a protocol, made in a context of that name."""

    async def make() -> Any:
        WHO.set(who)
        return await aioproc.subprocess_exec(Noting, *command, **options)

    return await asyncio.create_task(make())


async def test_each_child_in_its_own(aioproc: Any) -> None:
    """The loop's first child opens what all of them share."""
    talk = python("import sys; sys.stdout.write('o'); sys.stderr.write('e')")
    children = [await spawned(aioproc, f"child {i}", *talk) for i in range(3)]
    for i, (_, protocol) in enumerate(children):
        await protocol.end
        names = ["made", "data 1", "data 2", "lost 1", "lost 2", "exited", "connection lost"]
        if "lost 0" in protocol.told:
            names.append("lost 0")
        assert protocol.told == dict.fromkeys(names, f"child {i}")


async def test_whoever_resumes_and_closes(aioproc: Any) -> None:
    """The task that happens to resume a pipe lends its context to nothing."""
    transport, protocol = await spawned(aioproc, "child", *CAT, stderr=None)
    WHO.set("somebody else")
    stdin, stdout = transport.get_pipe_transport(0), transport.get_pipe_transport(1)
    stdout.pause_reading()
    stdin.write(b"x")
    stdout.resume_reading()
    assert await settle(lambda: "data 1" in protocol.told)
    stdout.close()
    stdin.close()
    await protocol.end
    assert set(protocol.told.values()) == {"child"}


async def test_a_reader_that_goes_away(aioproc: Any) -> None:
    command = python("import os, time; os.close(0); time.sleep(1000)")
    transport, protocol = await spawned(aioproc, "child", *command, stdout=None, stderr=None)
    WHO.set("somebody else")
    assert await settle(lambda: "lost 0" in protocol.told)
    transport.kill()
    await protocol.end
    assert set(protocol.told.values()) == {"child"}


@posix_only("add_reader")
async def test_a_pipe_that_cannot_be_watched(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is looked at instead, when somebody else resumes it."""
    command = python("import sys; sys.stdin.read(1); print(7)")
    transport, protocol = await spawned(aioproc, "child", *command, stderr=None)
    WHO.set("somebody else")
    stdin, stdout = transport.get_pipe_transport(0), transport.get_pipe_transport(1)
    stdout.pause_reading()

    def refusing(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "add_reader", refusing)
        stdout.resume_reading()
        stdin.write(b"x")
        assert await settle(lambda: "data 1" in protocol.told)
    await protocol.end
    assert set(protocol.told.values()) == {"child"}


async def test_callbacks_may_resume_pipes(aioproc: Any) -> None:
    """From the midst of the context that they are registered in."""

    class Resuming(Noting):
        def connection_made(self, transport: Any) -> None:
            self.stdout = transport.get_pipe_transport(1)
            self.stdout.pause_reading()

        def process_exited(self) -> None:
            super().process_exited()
            self.stdout.resume_reading()

    async def make() -> Any:
        WHO.set("child")
        return await aioproc.subprocess_exec(Resuming, *python("print(7)"), stdin=None)

    _, protocol = await asyncio.create_task(make())
    await protocol.end
    assert protocol.told["data 1"] == protocol.told["connection lost"] == "child"


async def test_nothing_is_kept_alive(aioproc: Any) -> None:
    """What the first child's context held goes with it, though other children live."""

    class Request:
        pass

    async def first() -> weakref.ref[Request]:
        request = Request()
        WHO.set(request)
        process = await aioproc.create_subprocess_exec(*TRUE, stdout=aioproc.PIPE)
        await process.communicate()
        return weakref.ref(request)

    async def second() -> Any:
        WHO.set("another")
        return await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE)

    starting = asyncio.create_task(first())
    other = await asyncio.create_task(second())
    request = await starting
    del starting

    def gone() -> bool:
        gc.collect()
        return request() is None

    assert await settle(gone)
    assert other.returncode is None
    other.stdin.close()
    await other.wait()
