"""run(): its input."""

from __future__ import annotations

import array
import asyncio
import io
import itertools
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from aside import Aside
from conftest import FUSE
from marks import posix_only
from programs import BOTH, CAT, TRUE, WINDOWS, python

pytestmark = [pytest.mark.primary]
everywhere = pytest.mark.everywhere

DEVNULL, PIPE, STDOUT = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT

MUCH = os.urandom(1 << 16) * 160


@pytest.mark.asyncio
@everywhere
@pytest.mark.parametrize(
    "input",
    [b"", b"abc", bytearray(b"abc"), memoryview(b"a.b.c.")[::2], array.array("H", [1, 2]), MUCH],
    ids=["empty", "bytes", "bytearray", "memoryview", "array", "much"],
)
async def test_input(aioproc: Any, input: Any) -> None:
    done = await aioproc.run(*CAT, input=input)
    assert done.stdout == bytes(input)


async def generated(chunks: Any, log: list[str]) -> AsyncIterator[Any]:
    try:
        for chunk in chunks:
            await asyncio.sleep(0)
            yield chunk
    finally:
        log.append("closed")


@pytest.mark.asyncio
@everywhere
async def test_input_from_others(aioproc: Any, tmp_path: Path) -> None:
    chunks = [b"a", bytearray(b"b"), memoryview(b"c"), MUCH]
    whole = b"".join(chunks)
    log: list[str] = []
    file = tmp_path / "file"
    file.write_bytes(whole)
    assert (await aioproc.run(*CAT, input=chunks)).stdout == whole
    assert (await aioproc.run(*CAT, input=iter(chunks))).stdout == whole
    assert (await aioproc.run(*CAT, input=generated(chunks, log))).stdout == whole
    assert log == ["closed"]
    assert (await aioproc.run(*CAT, input=io.BytesIO(whole))).stdout == whole
    with open(file, "rb") as opened:
        assert (await aioproc.run(*CAT, input=opened)).stdout == whole
        assert not opened.closed
    done = await aioproc.run(*CAT, input=io.StringIO("one\ntwo\n"), text=True)
    assert done.stdout == "one\ntwo\n"
    assert (await aioproc.run(*CAT, input=["x", "y\n"], text=True)).stdout == "xy\n"


@pytest.mark.asyncio
async def test_input_from_another_process(aioproc: Any) -> None:
    async with await aioproc.create_subprocess_exec(*BOTH, stdout=PIPE, stderr=DEVNULL) as one:
        done = await aioproc.run(*CAT, input=one.stdout)
    assert done.text == "out"


@pytest.mark.asyncio
@everywhere
@pytest.mark.parametrize("kind", ["pipe", "unbuffered", "not blocking", "socket"])
async def test_input_from_a_file_that_waits(aioproc: Any, kind: str) -> None:
    """What is there goes to the child at once, and nothing is read that it does not get."""
    if WINDOWS and kind in ("not blocking", "socket"):
        pytest.skip("no such files there")
    if kind == "socket":
        pair = socket.socketpair()
        reader, writer = (one.detach() for one in pair)
    else:
        reader, writer = os.pipe()
    if kind == "not blocking":
        os.set_blocking(reader, False)
    came = asyncio.Queue[bytes]()
    with open(reader, "rb", buffering=0 if kind == "unbuffered" else -1) as file:
        os.write(writer, b"one\n")
        running = asyncio.ensure_future(
            aioproc.run(*CAT, input=file, on_output=lambda _, data: came.put_nowait(data))
        )
        assert await came.get() == b"one\n"
        os.write(writer, b"two\n")
        assert await came.get() == b"two\n"
        os.close(writer)
        assert (await running).stdout == b"one\ntwo\n"


SILENT = """
async def main():
    reader, writer = os.pipe()
    with open(reader, "rb") as file:
        for _ in range(3):
            try:
                await aioproc.run(*CAT, input=file, timeout=0.05)
            except aioproc.TimeoutExpired:
                pass
        assert (await aioproc.run(*TRUE, input=file)).ok
        os.write(writer, b"later")
        assert file.read1(100) == b"later"
    os.close(writer)
run(main())
"""


def test_input_from_a_file_that_stays_silent(aside: Aside) -> None:
    """No thread waits for it, which would keep the loop from ending, and the program."""
    aside.run(SILENT)


@pytest.mark.asyncio
@everywhere
async def test_what_a_file_has_read_ahead_goes_first(aioproc: Any) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as file:
        os.write(writer, b"ours\nfirst\nsecond\n")
        assert file.readline() == b"ours\n"
        reads_a_line = python("import sys; sys.stdout.write(sys.stdin.readline())")
        done = await asyncio.wait_for(aioproc.run(*reads_a_line, input=file), FUSE)
        assert done.text == "first"
        os.write(writer, b"third\n")
        assert file.readline() == b"third\n"
    os.close(writer)


SHARED = """
async def main():
    reader, writer = os.pipe()
    with open(reader, "rb") as file:
        async def one():
            try:
                return (await aioproc.run(*CAT, input=file, timeout=1)).stdout
            except aioproc.TimeoutExpired as error:
                return error.result.stdout
        asyncio.get_running_loop().call_later(0.2, os.write, writer, b"x")
        assert sorted(await asyncio.gather(one(), one())) == [b"", b"x"]
    os.close(writer)
run(main())
"""


def test_two_runs_read_one_file(aside: Aside) -> None:
    """What one has read the other does not wait for, in a thread that nobody could end."""
    aside.run(SHARED)


@pytest.mark.asyncio
@everywhere
@pytest.mark.parametrize("kind", ["iterable", "asynchronous", "of nothing"])
async def test_input_without_an_end(aioproc: Any, kind: str) -> None:
    """Others have their turns, the timeout among them."""

    async def asynchronous() -> AsyncIterator[bytes]:
        while True:
            yield b"" if kind == "of nothing" else b"x"

    source = itertools.repeat(b"x") if kind == "iterable" else asynchronous()
    with pytest.raises(aioproc.TimeoutExpired):
        await aioproc.run(*CAT, stdout=DEVNULL, input=source, timeout=0.2)
    if kind == "of nothing":
        assert (await aioproc.run(*TRUE, input=asynchronous())).ok


@pytest.mark.asyncio
@posix_only("FIFOs")
@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
async def test_a_fifo_by_its_path(aioproc: Any, stream: str, tmp_path: Path) -> None:
    """To open it would keep the loop waiting."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for call in (
        aioproc.run(*CAT, **{stream: fifo}),
        aioproc.pipeline(CAT, CAT, **{stream: fifo}),
        aioproc.open_process(*CAT, **{stream: fifo})._open(),
    ):
        with pytest.raises(ValueError, match="is a FIFO, and to open it is to wait"):
            await call


@pytest.mark.asyncio
@everywhere
@posix_only("its devices")
async def test_input_from_a_device(aioproc: Any) -> None:
    with open(os.devnull, "rb") as file:
        assert (await aioproc.run(*CAT, input=file)).stdout == b""
    with open("/dev/zero", "rb") as file:
        assert (await aioproc.run("head", "-c", "200000", input=file)).stdout == bytes(200_000)


@pytest.mark.asyncio
@everywhere
async def test_a_child_that_does_not_read_is_no_error(aioproc: Any) -> None:
    log: list[str] = []
    assert (await aioproc.run(*TRUE, input=MUCH)).ok
    assert (await aioproc.run(*TRUE, input=generated([MUCH] * 9, log))).ok
    assert log == ["closed"]


@pytest.mark.asyncio
async def test_input_comes_as_it_is_read(aioproc: Any) -> None:
    taken = 0

    def source() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(1 << 16)

    reads_a_little = python("import os; os.read(0, 1 << 16)")
    assert (await aioproc.run(*reads_a_little, input=source())).ok
    # What a pipe holds, and what has been read, and no more.
    assert taken <= 24


class Refuses(Exception):
    pass


@pytest.mark.asyncio
@everywhere
async def test_input_that_raises(aioproc: Any) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"the first"
        raise Refuses

    with pytest.raises(Refuses) as caught:
        await aioproc.run(*CAT, input=source())
    result = aioproc.partial_result(caught.value)
    assert (result.reason, result.ok, result.error) == ("error", False, caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("chunk", ["text", 5, None])
async def test_chunks_that_are_none(aioproc: Any, chunk: Any) -> None:
    with pytest.raises(TypeError, match="chunks of input must be bytes"):
        await aioproc.run(*CAT, input=[b"fine", chunk])


@pytest.mark.asyncio
async def test_input_that_fails_while_the_child_ends(aioproc: Any) -> None:
    """The child ends by the end of its stdin, before all of the input has."""

    async def source() -> AsyncIterator[Any]:
        try:
            yield b"fine"
            yield 5
        finally:
            await asyncio.sleep(0.3)

    with pytest.raises(TypeError, match="chunks of input must be bytes"):
        await aioproc.run(*CAT, input=source())


@pytest.mark.asyncio
@everywhere
@posix_only("descriptors that can be replaced")
async def test_input_that_cannot_be_written(aioproc: Any) -> None:
    """Other than by a child that reads no more: what it has seen is not all there was."""
    from aioproc._backends.posix import pipes

    came = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first\n"
        await came.wait()
        [(fd, _)] = [(fd, end) for fd, end in pipes._open.items() if hasattr(end, "write")]
        with open(os.devnull, "rb") as file:
            os.dup2(file.fileno(), fd)
        yield b"second\n"

    with pytest.raises(OSError, match="Bad file descriptor") as info:
        await aioproc.run(*CAT, input=chunks(), on_output=lambda *_: came.set())
    assert aioproc.partial_result(info.value).stdout == b"first\n"
