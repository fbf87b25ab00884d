"""communicate(): every combination of pipes, cancellation, input of every kind."""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from aioproc._asyncio.protocol import StreamProtocol
from aside import collect
from helpers import asyncio_since, readable
from marks import posix_only
from programs import CAT, NL, SLEEP, TEE, TRUE, WINDOWS, YES, python, sh, shell

pytestmark = pytest.mark.asyncio

MEGABYTE = 1 << 20


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@contextlib.contextmanager
def silence(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged, and the loop's exception handler is not called."""
    contexts: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: contexts.append(context))
    with caplog.at_level(logging.INFO):
        yield
        collect()
    loop.set_exception_handler(None)
    assert not contexts
    assert not caplog.records


@pytest.mark.parametrize("stderr", [None, "DEVNULL", "PIPE", "STDOUT"])
async def test_combinations(api: Any, stderr: str | None) -> None:
    for stdin in None, "DEVNULL", "PIPE":
        if stdin is None and (WINDOWS or not os.path.samefile("/dev/fd/0", os.devnull)):
            continue  # run by hand: the terminal is not ours to read
        for stdout in None, "DEVNULL", "PIPE":
            streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
            process = await api.create_subprocess_shell(
                shell("cat", "echo oops >&2"),
                **{name: value and getattr(api, value) for name, value in streams.items()},
            )
            result = await process.communicate(b"hello\n" if stdin == "PIPE" else None)
            expected = b"hello\n" if stdin == "PIPE" else b""
            both = expected + b"oops" + NL if stderr == "STDOUT" else expected
            assert result == (
                both if stdout == "PIPE" else None,
                b"oops" + NL if stderr == "PIPE" else None,
            ), streams
            assert process.returncode == 0


async def test_megabytes_through_cat(api: Any) -> None:
    data = noise(10 * MEGABYTE)
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    stdout, _ = await process.communicate(data)
    assert stdout == data


async def test_megabytes_on_both_outputs(api: Any) -> None:
    data = noise(2 * MEGABYTE)
    process = await api.create_subprocess_exec(
        *TEE, stdin=api.PIPE, stdout=api.PIPE, stderr=api.PIPE
    )
    stdout, stderr = await process.communicate(data)
    assert stdout == data
    assert stderr == data


async def test_a_child_that_does_not_read_its_input(
    api: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # Of 3.11 the later releases have it; Debian 12 has an early one.
    asyncio_since(api, (3, 12), "the error of the pipe is never retrieved")
    with silence(caplog):
        process = await api.create_subprocess_exec(*TRUE, stdin=api.PIPE, stdout=api.PIPE)
        assert await process.communicate(noise(10 * MEGABYTE)) == (b"", None)
        assert process.returncode == 0
        del process


async def test_a_child_that_closes_its_stdin_and_goes_on(api: Any) -> None:
    process = await api.create_subprocess_exec(
        *sh("exec 0<&-; echo hello", "import os; os.close(0); print('hello')"),
        stdin=api.PIPE,
        stdout=api.PIPE,
    )
    assert await process.communicate(noise(10 * MEGABYTE)) == (b"hello\n", None)


async def test_no_input_closes_stdin(api: Any) -> None:
    asyncio_since(api, (3, 12), "only input has stdin closed")
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    assert await process.communicate() == (b"", None)
    assert process.stdin.is_closing()


async def test_empty_input(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    assert await process.communicate(b"") == (b"", None)


async def test_input_after_what_was_written_by_hand(api: Any) -> None:
    first, second = noise(MEGABYTE), noise(MEGABYTE + 1)
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    process.stdin.write(first)
    stdout, _ = await process.communicate(second)
    assert stdout == first + second


async def test_output_that_was_read_in_part_before(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    process.stdin.write(b"one\ntwo\nthree\n")
    assert await process.stdout.readline() == b"one\n"
    assert await process.communicate(b"four\n") == (b"two\nthree\nfour\n", None)


async def test_twice(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    assert await process.communicate(b"hello") == (b"hello", None)
    assert await process.communicate() == (b"", None)
    assert await process.wait() == 0
    assert await process.stdout.read() == b""


async def test_after_the_exit(api: Any) -> None:
    process = await api.create_subprocess_shell(
        shell("echo out", "echo err >&2"), stdin=api.PIPE, stdout=api.PIPE, stderr=api.PIPE
    )
    while process.returncode is None:
        await asyncio.sleep(0.001)
    assert await process.communicate(b"nobody reads this") == (b"out" + NL, b"err" + NL)


@pytest.mark.parametrize(
    "given",
    [
        bytearray(b"some bytes"),
        memoryview(b"some bytes"),
        memoryview(bytearray(b"some bytes")),
        memoryview(b"some bytes")[5:],
    ],
    ids=["bytearray", "memoryview", "writable", "part"],
)
async def test_kinds_of_input(api: Any, given: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    assert await process.communicate(given) == (bytes(given), None)


# asyncio takes bytes, bytearray and memoryview only, and does not look at a view's form.
@pytest.mark.parametrize(
    "given",
    [
        array.array("i", [1, -2, 3] * 50_000),
        array.array("d"),
        memoryview(b"a1b2c3" * 50_000)[::2],
        memoryview(b"123456")[::-1],
        memoryview(array.array("H", range(6))),
        memoryview(bytes(range(6))).cast("B", (2, 3)),
    ],
    ids=["array", "empty", "every other", "backwards", "wide items", "two dimensions"],
)
async def test_more_kinds_of_input(aioproc: Any, given: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    stdout, _ = await process.communicate(given)
    assert stdout == memoryview(given).tobytes()


async def test_wrong_input(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    for wrong in "text", 5, [b"x"]:
        with pytest.raises(TypeError):
            await process.communicate(wrong)
    assert await process.communicate(b"right") == (b"right", None)


async def test_input_without_a_pipe(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*TRUE)
    with pytest.raises(ValueError, match="stdin is not a pipe"):
        await process.communicate(b"hello")
    assert await process.communicate() == (None, None)


@pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b"")], ids=type)
async def test_empty_input_without_a_pipe(api: Any, empty: Any) -> None:
    asyncio_since(api, (3, 12), "AttributeError")
    process = await api.create_subprocess_exec(*CAT, stdin=api.DEVNULL, stdout=api.PIPE)
    assert await process.communicate(empty) == (b"", None)


async def test_who_derives_sees_what_communicate_reads(aioproc: Any) -> None:
    class Watching(StreamProtocol):
        seen = b""

        def pipe_data_received(self, fd: int, data: Any) -> None:
            self.seen += data
            super().pipe_data_received(fd, data)

    loop = asyncio.get_running_loop()
    transport, protocol = await aioproc.subprocess_exec(lambda: Watching(None, loop), *CAT)
    process = aioproc.Process(transport, protocol, loop)
    process.stdin.write(b"begins ")
    assert await process.stdout.read(3) == b"beg"
    data = noise(MEGABYTE)
    assert await process.communicate(data) == (b"ins " + data, b"")
    assert protocol.seen == b"begins " + data


async def test_with_a_limit(api: Any) -> None:
    # The limit is for lines.
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE, limit=10)
    data = noise(MEGABYTE)
    stdout, _ = await process.communicate(data)
    assert stdout == data


# -- two at once


async def test_two_at_once(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    first = asyncio.create_task(process.communicate(noise(MEGABYTE)))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="already waiting"):
        await process.communicate()
    stdout, _ = await first
    assert stdout == noise(MEGABYTE)


async def test_while_somebody_reads(api: Any) -> None:
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    reading = asyncio.create_task(process.stdout.readline())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="already waiting"):
        await process.communicate()
    process.stdin.close()
    assert await reading == b""
    assert await process.wait() == 0


async def test_a_refused_call_changes_nothing(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    reading = asyncio.create_task(process.stdout.readline())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="already waiting"):
        await process.communicate(b"not this")
    process.stdin.write(b"but this\n")
    assert await reading == b"but this\n"
    assert await process.communicate(b"and this") == (b"and this", None)


@pytest.mark.parametrize("method", ["read", "readline", "readexactly", "readuntil"])
async def test_reading_meanwhile(aioproc: Any, method: str) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    process.stdin.write(b"hello")
    communicating = asyncio.create_task(process.communicate(noise(MEGABYTE)))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="already waiting"):
        await getattr(process.stdout, method)(*[5] if method == "readexactly" else [])
    stdout, _ = await communicating
    assert stdout == b"hello" + noise(MEGABYTE)


# -- cancelled and called again (asyncio loses what was read, up to 3.14)


@pytest.mark.parametrize("seed", range(4))
async def test_cancelled_at_any_moment(aioproc: Any, seed: int) -> None:
    moments = random.Random(seed)
    data = noise(3 * MEGABYTE)
    process = await aioproc.create_subprocess_exec(
        *TEE, stdin=aioproc.PIPE, stdout=aioproc.PIPE, stderr=aioproc.PIPE
    )
    outputs = []
    for i in range(8):
        # The same input again, none, or an equal one: all mean to go on.
        again = [data, None, bytearray(data)][moments.randrange(3)] if i else data
        task = asyncio.create_task(process.communicate(again))
        for _ in range(moments.randrange(12)):
            await asyncio.sleep(0)
        task.cancel()
        if i == 3:
            # Reading by hand in between is reading.
            head = asyncio.create_task(process.stdout.read(1000))
            await asyncio.gather(task, return_exceptions=True)
            head.cancel()
            early = (await asyncio.gather(head, return_exceptions=True))[0]
            if isinstance(early, bytes):
                outputs.append((early, b""))
        try:
            outputs.append(await task)
        except asyncio.CancelledError:
            continue
        break  # a cancellation may come too late
    outputs.append(await process.communicate())
    assert b"".join(stdout for stdout, _ in outputs) == data
    assert b"".join(stderr for _, stderr in outputs) == data
    assert process.returncode == 0


async def test_other_input_after_a_cancellation(aioproc: Any) -> None:
    data = noise(MEGABYTE)
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    task = asyncio.create_task(process.communicate(data))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(ValueError, match="Cannot send input after starting communication"):
        await process.communicate(data + b"x")
    stdout, _ = await process.communicate(data)
    assert stdout == data


@pytest.mark.parametrize("first", [None, b"x"])
async def test_input_comes_with_the_first_call(aioproc: Any, first: bytes | None) -> None:
    process = await aioproc.create_subprocess_exec(*SLEEP, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    task = asyncio.create_task(process.communicate(first))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(ValueError, match="Cannot send input after starting communication"):
        await process.communicate(b"y")
    process.kill()
    assert await process.communicate() == (b"", None)


@posix_only("pass_fds")
async def test_cancelled_then_read_by_hand(aioproc: Any) -> None:
    told, tell = os.pipe()
    size = 500_000
    # When it tells, all but what a pipe holds has been read by communicate().
    process = await aioproc.create_subprocess_exec(
        *python(
            "import os, sys\n"
            "sys.stdout.write('0123456789\\n' * (int(sys.argv[2]) // 11))\n"
            "sys.stdout.flush()\n"
            "os.write(int(sys.argv[1]), b'x')\n"
            "import signal; signal.pause()",
            str(tell),
            str(size),
        ),
        stdout=aioproc.PIPE,
        pass_fds=[tell],
    )
    os.close(tell)
    task = asyncio.create_task(process.communicate())
    await readable(told)
    os.close(told)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    lines = size // 11
    assert await process.stdout.readline() == b"0123456789\n"
    assert await process.stdout.readexactly(11 * (lines - 2)) == b"0123456789\n" * (lines - 2)
    process.kill()
    assert await process.stdout.read() == b"0123456789\n"
    await process.wait()


@posix_only("pass_fds")
async def test_a_timeout_loses_nothing(aioproc: Any) -> None:
    told, tell = os.pipe()
    process = await aioproc.create_subprocess_exec(
        *python(
            "import os, sys\n"
            "for i in range(50_000): print(i)\n"
            "sys.stdout.flush()\n"
            "os.write(int(sys.argv[1]), b'x')\n"
            "print('input:', len(sys.stdin.read()))",
            str(tell),
        ),
        stdin=aioproc.PIPE,
        stdout=aioproc.PIPE,
        pass_fds=[tell],
    )
    os.close(tell)
    attempt = asyncio.create_task(process.communicate(noise(MEGABYTE).hex().encode()))
    await readable(told)
    os.close(told)
    # Most of the output has been read. However far the rest is by then:
    attempt.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await attempt
    lines = b"".join(b"%d\n" % i for i in range(50_000))
    stdout, _ = await asyncio.wait_for(process.communicate(), 30)
    assert stdout == lines + b"input: %d\n" % (2 * MEGABYTE)


# -- many


async def echo(api: Any, text: bytes, code: int) -> None:
    process = await api.create_subprocess_shell(
        shell(f"echo {text.decode()}", f"exit {code}"), stdout=api.PIPE
    )
    assert await process.communicate() == (text + NL, None)
    assert process.returncode == code


async def many(api: Any, count: int, at_once: int) -> None:
    running = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with running:
            await echo(api, b"%d" % number, number % 100)

    await asyncio.gather(*map(one, range(count)))


async def test_hundreds_of_short_children(api: Any) -> None:
    await many(api, 40 if WINDOWS else 200, 20)


@pytest.mark.heavy
async def test_thousands_of_short_children_under_load(aioproc: Any) -> None:
    load = [await aioproc.create_subprocess_exec(*YES, stdout=aioproc.DEVNULL) for _ in range(2)]
    try:
        await many(aioproc, 10_000, 32)
    finally:
        for process in load:
            process.kill()
            await process.wait()


@posix_only("descriptors that can be replaced")
async def test_input_that_cannot_be_written(aioproc: Any) -> None:
    """Other than by a child that reads no more: what it has seen is not all there was."""
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    fd = process.stdin.transport.get_extra_info("pipe").fileno()
    with open(os.devnull, "rb") as file:
        os.dup2(file.fileno(), fd)
    with pytest.raises(OSError, match="Bad file descriptor") as info:
        await process.communicate(b"input")
    assert not isinstance(info.value, ConnectionError)
    assert await process.wait() == 0
