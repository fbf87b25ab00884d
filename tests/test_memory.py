"""What readers do when memory is short, and how much they take when it is not."""

from __future__ import annotations

import asyncio
import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import aioproc as package
from aside import Aside
from marks import proc_only
from programs import CAT, YES

tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy has none")

MEGABYTE = 1 << 20

#: For the code that runs aside: `with limit(n)` leaves n MiB of address space, and thousands of
#: small objects' places within the allocator's own arenas, for whatever the loop needs.
LIMIT = """
import contextlib, resource
MEGABYTE = 1 << 20

@contextlib.contextmanager
def limit(megabytes):
    spare = [object() for _ in range(300_000)]
    held = spare[::32]
    del spare
    pages = int(open("/proc/self/statm").read().split()[0])
    space = pages * resource.getpagesize() + megabytes * MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (space, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

contexts = []

def watch():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: contexts.append(context))
"""

#: Who wants everything gets MemoryError; then all can be had in parts, and at last at once.
CHILD = (
    LIMIT
    + """
method = sys.argv[1]
TEXT = os.urandom(MEGABYTE - 3) * 48

async def main():
    watch()
    pipe = aioproc.PIPE
    first = await aioproc.create_subprocess_exec(*CAT, stdin=pipe, stdout=pipe)
    await first.communicate(b"for what a first child has the loop do")
    process = await aioproc.create_subprocess_exec(*CAT, stdin=pipe, stdout=pipe)
    out = process.stdout
    if method == "read":
        process.stdin.write(TEXT)
        process.stdin.close()

    async def everything():
        if method == "read":
            return await out.read()
        return (await process.communicate(TEXT))[0]

    with limit(24):
        for _ in range(3):
            try:
                await everything()
            except MemoryError:
                pass
            else:
                raise AssertionError("there was memory")
            assert process.returncode is None
            assert not out._transport.is_reading()
        # Within the same bounds:
        parts = [await out.read(10), await out.readexactly(400)]
    parts.append(await everything())
    assert b"".join(parts) == TEXT
    assert await process.wait() == 0
    assert not contexts, contexts

run(main())
"""
)


@proc_only
@pytest.mark.parametrize("method", ["communicate", "read"])
def test_out_of_memory(aside: Aside, method: str) -> None:
    aside.run(CHILD, method)


READER = (
    LIMIT
    + """
async def main():
    def fed():
        reader = aioproc.StreamReader()
        for i in range(24):
            reader.feed_data(b"%c" % (65 + i) * (MEGABYTE - 1) + b"\\n" * (i == 23))
        reader.feed_eof()
        return reader

    length = 24 * (MEGABYTE - 1) + 1
    for method, arguments in (
        ("read", (-1,)),
        ("read", (length,)),
        ("readexactly", (length,)),
        ("readexactly", (length - 1,)),
        ("readexactly", (length + 1,)),
        ("readline", ()),
        ("__anext__", ()),
        ("readuntil", (b"\\n",)),
        ("readuntil", ((b"X" * 100 + b"\\n", b"..."),)),
        ("readuntil", (b"?",)),
    ):
        reader = fed()
        assert await reader.read(5) == b"AAAAA"  # a part of a piece is gone
        size = repr(reader)
        with limit(12):
            for _ in range(2):
                try:
                    await getattr(reader, method)(*arguments)
                except MemoryError:
                    assert repr(reader) == size, method
                else:
                    raise AssertionError(method)
            assert await reader.readexactly(MEGABYTE) == b"A" * (MEGABYTE - 6) + b"B" * 6
        rest = await reader.read()
        assert len(rest) == length - 5 - MEGABYTE, method
        assert rest.startswith(b"BBBB") and rest.endswith(b"XXXX\\n")
        assert rest.count(b"C") == MEGABYTE - 1
        del reader, rest

run(main())
"""
)


@proc_only
def test_a_reader_out_of_memory_keeps_everything() -> None:
    # By a threshold that stays: or what was freed is kept for the next large block, now and then.
    Aside().run(READER, MALLOC_MMAP_THRESHOLD_="131072")


class Lost(io.BytesIO):
    """A buffer that cannot grow. That there is memory is found out before, but another
    thread may take it in the same moment, which no test can have happen."""

    def write(self, data: Any) -> int:
        self.close()
        raise MemoryError


async def is_broken(*calls: Any) -> None:
    for call in calls:
        with pytest.raises(OSError) as caught:
            await call()
        assert caught.value.errno == errno.ENOMEM


@pytest.mark.asyncio
async def test_a_loss_is_told(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*YES, stdout=aioproc.PIPE)
    out = process.stdout
    communicating = asyncio.create_task(process.communicate())
    while not (sink := out._sink) or sink._buffer is None:
        await asyncio.sleep(0)
    sink._buffer = Lost(sink._buffer.getvalue())
    await is_broken(lambda: communicating, process.communicate, out.read, out.readline)
    await process.wait()  # of SIGPIPE: nobody reads


@pytest.mark.asyncio
async def test_a_loss_between_pipe_and_reader_is_told(aioproc: Any) -> None:
    def fails(data: bytes) -> None:
        raise MemoryError

    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    assert process.stdout is not None  # or the first look at it would have it delivered there
    process._transport.get_pipe_transport(1).deliver_to(fails)
    process.stdin.write(b"hello")
    process.stdin.close()
    for call in process.stdout.read, process.stdout.readline, process.communicate:
        with pytest.raises(MemoryError):
            await call()
    await process.wait()


# -- what reading takes


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No more memory is wanted at any moment than there was, and this. As good as a
    clock: what needs little memory has copied little."""
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    yield
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before <= size, f"{(peak - before) / MEGABYTE:.1f} MiB"


LINE = b"0123456789abcdef" * 4 + b";\n"
LINES = LINE * (8 * MEGABYTE // len(LINE))


async def reads(reader: Any) -> None:
    """Small bites in every way, each of what the other left."""
    assert await reader.read(10) == LINE[:10]
    assert await reader.readexactly(5) == LINE[10:15]
    assert await reader.readuntil(b"f;") == LINE[15:-1]
    assert await reader.readuntil((b"nowhere", b";\n", b"never")) == b"\n" + LINE
    assert await reader.readuntil((b";", b"\n", b"nowhere")) == LINE[:-1]
    assert await reader.readline() == b"\n"
    assert await reader.__anext__() == LINE
    assert await reader.__anext__() == LINE
    assert await reader.readuntil(b"f;") == LINE[:-1]
    assert await reader.readexactly(3 * len(LINE)) == (b"\n" + LINE * 3)[:-1]
    assert await reader.read(1) == b"\n"
    # Over all that was cut into lines.
    assert await reader.readexactly(5000 * len(LINE)) == LINE * 5000
    assert await reader.readline() == LINE


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [8 * MEGABYTE, 65536, 700])
async def test_small_bites_of_much(size: int) -> None:
    reader = package.StreamReader()
    for start in range(0, len(LINES), size):
        reader.feed_data(LINES[start : start + size])
    with traced(), at_most(MEGABYTE):
        await reads(reader)
    eaten = 5010 * len(LINE)
    assert await reader.read(len(LINES)) == LINES[eaten:]


@pytest.mark.asyncio
async def test_small_bites_of_a_buffer_that_was_set() -> None:
    reader = package.StreamReader()
    reader.feed_data(b"x")
    reader._buffer = LINES  # type: ignore[assignment]
    with traced(), at_most(MEGABYTE):
        await reads(reader)


@pytest.mark.asyncio
async def test_memory_comes_back_while_a_piece_is_read() -> None:
    reader = package.StreamReader()
    with traced():
        reader.feed_data(bytes(8 * MEGABYTE))
        while not repr(reader).startswith("<StreamReader 262144 bytes"):
            await reader.read(4096)
        now, _ = tracemalloc.get_traced_memory()
    assert now < 2 * MEGABYTE


async def cancelled(process: Any, size: int) -> None:
    """communicate() of a child that goes on, cancelled when it has so much."""
    task = asyncio.create_task(process.communicate())
    while (sink := process.stdout._sink) is None or sink.size < size:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.asyncio
async def test_small_bites_after_a_cancelled_communicate(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*YES, stdout=aioproc.PIPE)
    out = process.stdout
    with traced():
        with at_most(11 * MEGABYTE):
            await cancelled(process, 8 * MEGABYTE)
        with at_most(6 * MEGABYTE):  # the shortest of lines are cut 65,536 at a time
            parts = [
                await out.read(4),
                await out.readline(),
                await out.readuntil(b"\n"),
                await out.readexactly(40_000),
                await out.__anext__(),
                await out.__anext__(),
            ]
    process.kill()
    stdout = b"".join([*parts, await out.read()])
    assert list(map(len, parts)) == [4, 2, 2, 40_000, 2, 2]
    assert len(stdout) >= 8 * MEGABYTE
    assert stdout == (b"y\n" * (len(stdout) // 2 + 1))[: len(stdout)]
    await process.wait()


@pytest.mark.asyncio
async def test_cancelled_again_and_again(aioproc: Any) -> None:
    # What has been read is not copied by each call.
    process = await aioproc.create_subprocess_exec(*YES, stdout=aioproc.PIPE)
    with traced(), at_most(13 * MEGABYTE):
        for size in range(7, 10):
            await cancelled(process, size * MEGABYTE)
    process.kill()
    stdout, _ = await process.communicate()
    assert len(stdout) >= 9 * MEGABYTE
    assert stdout == (b"y\n" * (len(stdout) // 2 + 1))[: len(stdout)]


@pytest.mark.asyncio
async def test_output_is_held_once(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    with traced(), at_most(11 * MEGABYTE):
        stdout, _ = await process.communicate(LINES)
    assert stdout == LINES
