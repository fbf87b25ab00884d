"""Reading both outputs as they come, up to a pattern, and as text."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from conftest import FUSE
from helpers import script
from marks import posix_only
from programs import CAT, SLEEP, python

pytestmark = [pytest.mark.asyncio, pytest.mark.primary]

PIPE = asyncio.subprocess.PIPE
STDOUT = asyncio.subprocess.STDOUT

#: Does what it is told: "o TEXT" and "e TEXT" write without a newline of their own, "co" and
#: "ce" close.
ACTOR = python("""
import os, sys
for line in sys.stdin.buffer:
    what, _, data = line.rstrip(b"\\r\\n").partition(b" ")
    data = data.decode("unicode_escape").encode("latin-1")
    fd = 1 if what.endswith(b"o") else 2
    if what in (b"co", b"ce"):
        os.close(fd)
    elif what == b"x":
        os._exit(int(data))
    else:
        os.write(fd, data)
    # So that what is written next comes next.
    os.write(3 if fd < 0 else fd, b"") if what not in (b"co", b"ce") else None
""")


class Actor:
    """A child that writes when it is told to."""

    def __init__(self, process: Any) -> None:
        self.process = process

    def do(self, *lines: str) -> None:
        for line in lines:
            command = line + "\n"
            text = isinstance(self.process.stdin, asyncio.StreamWriter)
            self.process.stdin.write(command.encode() if text else command)


def opened(aioproc: Any, **options: Any) -> Any:
    return aioproc.open_process(*ACTOR, stderr=PIPE, stop=[("eof", FUSE)], **options)


# -- lines() and chunks()


@pytest.mark.everywhere
async def test_lines_of_both(aioproc: Any) -> None:
    async with opened(aioproc) as process:
        actor, lines = Actor(process), process.lines()
        actor.do(r"o one\ntwo\nth")
        assert [await anext(lines) for _ in range(2)] == [
            ("stdout", b"one\n"),
            ("stdout", b"two\n"),
        ]
        actor.do(r"e oops\n")
        assert await anext(lines) == ("stderr", b"oops\n")
        actor.do(r"o ree\n")
        assert await anext(lines) == ("stdout", b"three\n")
        # It closes one, and goes on with the other.
        actor.do(r"o last", "co")
        assert await anext(lines) == ("stdout", b"last")
        actor.do(r"e more\n", "x 3")
        assert [line async for line in lines] == [("stderr", b"more\n")]
        # Known at once.
        assert process.returncode == 3
        assert [line async for line in process.lines()] == []


async def test_chunks_of_both(aioproc: Any) -> None:
    async with opened(aioproc) as process:
        actor, chunks = Actor(process), process.chunks()
        actor.do("o a")
        assert await anext(chunks) == ("stdout", b"a")
        actor.do("e b")
        assert await anext(chunks) == ("stderr", b"b")
        actor.do("x 0")
        assert [chunk async for chunk in chunks] == []


async def test_neither_is_starved(aioproc: Any) -> None:
    """A flood on one does not hold back what comes on the other."""
    code = "import os\nwhile True: os.write(1, b'y\\n' * 1000)"
    options = {"stdin": aioproc.DEVNULL, "stderr": PIPE}
    async with aioproc.open_process(
        *python("import os; os.write(2, b'e\\n')\n" + code), **options
    ) as p:
        streams = set()
        async for stream, _ in p.lines():
            streams.add(stream)
            if len(streams) == 2:
                break


async def test_an_iteration_that_is_left_and_gone_on_with(aioproc: Any) -> None:
    async with opened(aioproc) as process:
        actor = Actor(process)
        actor.do(r"o 1\n2\n3\n4\n5 and ")
        async for item in process.lines():
            assert item == ("stdout", b"1\n")
            break
        assert await process.stdout.readline() == b"2\n"
        assert await anext(process.lines()) == ("stdout", b"3\n")
        # Cancelled while it waits: nothing is lost.
        assert await anext(process.lines()) == ("stdout", b"4\n")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(process.lines()), 0.01)
        actor.do(r"o more\n6")
        assert await anext(process.lines()) == ("stdout", b"5 and more\n")
        assert await process.read_until(b"6") == b"6"
        actor.do(r"o 7\n")
        assert await anext(process.chunks()) == ("stdout", b"7\n")
        for stream in (process.stdout, process.stderr):
            assert stream._waiter is None


async def test_two_readers_at_once(aioproc: Any) -> None:
    async with opened(aioproc) as process:
        task = asyncio.create_task(anext(process.lines()))
        await asyncio.sleep(0)
        for other in (process.stdout.read(1), process.stderr.readline(), process.read_until(b"x")):
            with pytest.raises(RuntimeError, match="already waiting"):
                await other
        with pytest.raises(RuntimeError, match="already waiting"):
            await anext(process.chunks())
        Actor(process).do(r"e x\n")
        assert await task == ("stderr", b"x\n")


@pytest.mark.everywhere
async def test_a_line_of_100_megabytes(aioproc: Any) -> None:
    size = 100 * 1000 * 1000
    code = f"import os\nfor _ in range({size} // 100000): os.write(1, b'x' * 100000)\nprint()"
    async with aioproc.open_process(*python(code), stdin=aioproc.DEVNULL, stderr=PIPE) as process:
        lines = [(stream, len(line)) async for stream, line in process.lines()]
    assert lines == [("stdout", size + 1)]
    assert process.returncode == 0


async def test_a_line_of_many_megabytes_as_text(aioproc: Any) -> None:
    size = 20 * 1000 * 1000
    code = f"import os\nfor _ in range({size} // 100000): os.write(1, b'x' * 100000)\nprint('\\n')"
    async with aioproc.open_process(*python(code), stdin=aioproc.DEVNULL, text=True) as process:
        lines = [(stream, len(line)) async for stream, line in process.lines()]
    assert lines == [("stdout", size + 1), ("stdout", 1)]


@pytest.mark.everywhere
async def test_both_pipes_full(aioproc: Any) -> None:
    """It writes more than a pipe holds to each of them, in turn."""
    code = """
import os
for _ in range(20):
    os.write(2, b"e" * 50_000 + b"\\n")
    os.write(1, b"o" * 50_000 + b"\\n")
os.write(1, b"done")
"""
    size = {"stdout": 20 * 50_001 + 4, "stderr": 20 * 50_001}
    for method in ("lines", "chunks"):
        total = {"stdout": 0, "stderr": 0}
        options = {"stdin": aioproc.DEVNULL, "stderr": PIPE}
        async with aioproc.open_process(*python(code), **options) as process:
            async for stream, data in getattr(process, method)():
                total[stream] += len(data)
        assert total == size
    # Who waits for one of them has the other read meanwhile.
    async with aioproc.open_process(*python(code), **options) as process:
        assert len(await process.read_until(b"done")) == size["stdout"]
        assert len(await process.stderr.read()) == size["stderr"]


async def test_without_output(aioproc: Any) -> None:
    async with aioproc.open_process(*SLEEP, stdout=aioproc.DEVNULL) as process:
        for method in (process.lines, process.chunks):
            with pytest.raises(ValueError, match="stdout or stderr must be PIPE"):
                method()
        with pytest.raises(ValueError, match="needs stdout=PIPE"):
            await process.read_until(b"x")


async def test_of_a_process_of_asyncios_functions(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*ACTOR, stdin=PIPE, stdout=PIPE)
    Actor(process).do(r"o a\nb", "x 0")
    assert [line async for line in process.lines()] == [("stdout", b"a\n"), ("stdout", b"b")]
    assert process.returncode == 0


async def test_lines_keep_to_a_limit(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*ACTOR, stdin=PIPE, stdout=PIPE, limit=4)
    Actor(process).do(r"o too long\nok\n", "x 0")
    lines = process.lines()
    with pytest.raises(ValueError, match="longer than limit"):
        await anext(lines)
    assert await anext(lines) == ("stdout", b"ok\n")
    assert await process.wait() == 0


# -- read_until()


@pytest.mark.everywhere
async def test_read_until_of_what_comes_by_pieces(aioproc: Any) -> None:
    async with opened(aioproc) as process:
        actor = Actor(process)
        for pattern in (b"end", re.compile(rb"e.d"), (b"never", re.compile(b"[e]nd"))):
            waiting = asyncio.create_task(process.read_until(pattern))
            for piece in ("begin e", "n", "d and more"):
                actor.do(f"o {piece}")
                while process.stdout._size != len(piece) and not waiting.done():
                    await asyncio.sleep(0)
                    if process.stdout._fed and process.stdout._size >= len(piece):
                        break
            assert await waiting == b"begin end"
            assert await process.read_until(b"more") == b" and more"


async def test_the_earliest_match(aioproc: Any) -> None:
    async with opened(aioproc) as process:
        Actor(process).do("o one two three")
        assert await process.read_until((b"two", b"one", re.compile(b"th"))) == b"one"
        assert await process.read_until((re.compile(b"three"), b"tw")) == b" tw"
        # What has come counts, though the pattern could take more.
        assert await process.read_until(re.compile(b"thr?e*")) == b"o three"
        # The beginning is that of what has not been read.
        Actor(process).do("o one one")
        assert await process.read_until(re.compile(b"^one")) == b"one"
        assert await process.read_until(re.compile(rb"\A one")) == b" one"


@pytest.mark.everywhere
async def test_read_until_a_timeout_loses_nothing(aioproc: Any) -> None:
    async with opened(aioproc) as process:
        actor = Actor(process)
        actor.do("o half of")
        for pattern in (b"it", re.compile(b"it")):
            with pytest.raises(asyncio.TimeoutError, match=r"has not come within 0\.01 seconds"):
                await process.read_until(pattern, timeout=0.01)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(process.read_until(b"it"), 0.01)
        assert await process.read_until(b"half of", timeout=FUSE) == b"half of"
        with pytest.raises(asyncio.TimeoutError):
            await process.read_until(b"it", timeout=-1)
        # So long that no timer takes it.
        actor.do("o it")
        assert await process.read_until(b"it", timeout=1e300) == b"it"


async def test_what_has_come_in_time(aioproc: Any) -> None:
    """It is in the pipe, though the loop has had no time for it; and with no time at all."""
    async with opened(aioproc) as process:
        actor = Actor(process)
        actor.do("e ready")
        assert await anext(process.chunks()) == ("stderr", b"ready")
        actor.do("o a", "e ready")
        assert await process.stderr.readexactly(5) == b"ready"
        assert await process.read_until(b"a", timeout=0) == b"a"


async def test_a_timeout_while_it_writes_without_end(aioproc: Any) -> None:
    code = "import os\nwhile True: os.write(1, b'y' * 1000)"
    async with aioproc.open_process(*python(code), stdin=aioproc.DEVNULL) as process:
        await process.stdout.readexactly(1)
        for pattern in (b"never", re.compile(b"never")):
            with pytest.raises(asyncio.TimeoutError, match="bytes of other output have"):
                await process.read_until(pattern, timeout=0.1)


async def test_read_until_at_the_end(aioproc: Any) -> None:
    for pattern in (b"never", re.compile(b"never")):
        async with opened(aioproc) as process:
            Actor(process).do(r"e first\nTraceback:\n", r"e no more\x1b \n", "o rest", "x 7")
            with pytest.raises(asyncio.IncompleteReadError) as info:
                await process.read_until(pattern)
            assert info.value.partial == b"rest"
            assert process.returncode == 7
            notes = "\n".join(getattr(info.value, "__notes__", info.value.args[:1]))
            assert "exit code 7" in notes
            assert "first\nTraceback:\nno more\\x1b" in notes
            # Nobody has taken it.
            assert (await process.stderr.read()).startswith(b"first\n")
            with pytest.raises(asyncio.IncompleteReadError) as info:
                await process.read_until(pattern)
            assert info.value.partial == b""


async def test_last_words_take_nothing(aioproc: Any) -> None:
    """Neither errors of decoding nor lines that an iteration has cut are in their way."""
    async with opened(aioproc, errors="strict") as process:
        Actor(process).do(r"e \xffbad\n", "o rest", "x 1")
        with pytest.raises(asyncio.IncompleteReadError) as info:
            await process.read_until("never")
        assert info.value.partial == "rest"
        assert "bad" in "\n".join(getattr(info.value, "__notes__", info.value.args[:1]))
        with pytest.raises(UnicodeDecodeError):
            await process.stderr.read()
    async with opened(aioproc) as process:
        Actor(process).do(r"e one\ntwo\nthree\n", "x 1")
        async for line in process.stderr:
            assert line == b"one\n"
            break
        with pytest.raises(asyncio.IncompleteReadError) as info:
            await process.read_until(b"never")
        assert "two\nthree" in "\n".join(getattr(info.value, "__notes__", info.value.args[:1]))
        assert await process.stderr.read() == b"two\nthree\n"


@pytest.mark.parametrize("options", [{}, {"text": True}])
async def test_a_cancellation_at_the_end_of_the_output_loses_nothing(
    aioproc: Any, options: dict[str, Any]
) -> None:
    """It goes on without its stdout, and is given a moment to end."""
    rest, never = ("rest", "never") if options else (b"rest", b"never")
    async with opened(aioproc, **options) as process:
        Actor(process).do("o rest", "co")
        task = asyncio.create_task(process.read_until(never))
        source = process.stdout._source
        while not source.at_eof():
            await asyncio.sleep(0.001)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await process.stdout.read() == rest
        assert process.stdout.at_eof()


async def test_read_until_of_one_that_goes_on_without_output(aioproc: Any) -> None:
    async with opened(aioproc, name="the server") as process:
        Actor(process).do("co")
        with pytest.raises(asyncio.IncompleteReadError) as info:
            await process.read_until(b"x")
        notes = "\n".join(getattr(info.value, "__notes__", info.value.args[:1]))
        assert "the server: still running" in notes


async def test_read_until_with_a_limit(aioproc: Any) -> None:
    async with opened(aioproc) as process:
        actor = Actor(process)
        actor.do("o 0123456789end")
        for pattern in (b"end", re.compile(b"end")):
            with pytest.raises(asyncio.LimitOverrunError):
                await process.read_until(pattern, limit=5)
        for pattern in (b"never", re.compile(b"never")):
            with pytest.raises(asyncio.LimitOverrunError):
                await process.read_until(pattern, limit=5)
        for limit, error in ((0, ValueError), (1.5, TypeError), ("1", TypeError)):
            with pytest.raises(error, match="limit must be"):
                await process.read_until(b"end", limit=limit)
        assert await process.read_until(re.compile(b"end"), limit=10) == b"0123456789end"


async def test_a_pattern_in_much_output(aioproc: Any) -> None:
    """It is not searched from its beginning for each piece: that would take minutes."""
    size = 30_000_000
    code = f"import os\nfor _ in range({size} // 10000): os.write(1, b'x' * 10000)\nprint('end')"
    async with aioproc.open_process(*python(code), stdin=aioproc.DEVNULL) as process:
        assert len(await process.read_until(re.compile(b"end"))) == size + 3
    async with aioproc.open_process(*python(code), stdin=aioproc.DEVNULL, text=True) as process:
        assert len(await process.read_until("end")) == size + 3


@pytest.mark.parametrize(
    ("pattern", "error", "why"),
    [
        ("text", TypeError, "in which str cannot be looked for"),
        (re.compile("text"), TypeError, "a pattern of str cannot"),
        (3, TypeError, "int cannot"),
        (b"", ValueError, "an empty pattern"),
        (re.compile(b"x*"), ValueError, "matches where nothing has come yet"),
        ((), ValueError, "at least one pattern"),
        ((b"x", None), TypeError, "NoneType cannot"),
    ],
)
async def test_patterns_that_cannot_be(
    aioproc: Any, pattern: Any, error: type[Exception], why: str
) -> None:
    async with aioproc.open_process(*CAT) as process:
        with pytest.raises(error, match=why):
            await process.read_until(pattern)
        with pytest.raises(TypeError, match="timeout must be a number"):
            await process.read_until(b"x", timeout="1")
        with pytest.raises(ValueError, match="limit must be"):
            await process.read_until(b"x", limit=0)


async def test_an_ending_has_all_of_the_output_while_a_pattern_is_awaited(aioproc: Any) -> None:
    """A search that lets more come has set the pause aside."""
    size = 5_000_000
    async with opened(aioproc) as process:
        Actor(process).do(r"o .")
        process.stdin.write(b"o " + b"x" * size + b"\n")
        task = asyncio.create_task(process.read_until(re.compile(b"never$")))
        reader = process.stdout
        before = reader._pause_at
        while reader._pause_at == before:
            await asyncio.sleep(0)
        stopping = asyncio.create_task(process.stop([("eof", FUSE)]))
        await asyncio.sleep(0)
        assert reader._pause_at >= 64 * 1024 * 1024
        task.cancel()
        await asyncio.wait([task])
        assert reader._pause_at >= 64 * 1024 * 1024
        assert await stopping == 0
        assert len(await reader.read()) == size + 1


# -- text


@pytest.mark.everywhere
async def test_text_by_pieces(aioproc: Any) -> None:
    """Characters and newlines whose bytes come one by one."""
    async with opened(aioproc, text=True) as process:
        actor = Actor(process)
        lines = process.lines()
        for piece in (r"gr\xc3", r"\xbc\xc3", r"\x9fe\r", r"\nzwei\r\ndrei\rvier"):
            actor.do(f"o {piece}", "e .")
            assert await process.stderr.read(1) == "."
        assert [await anext(lines) for _ in range(3)] == [
            ("stdout", "grüße\n"),
            ("stdout", "zwei\n"),
            ("stdout", "drei\n"),
        ]
        actor.do(r"o  \xff\xe2\x82", "x 0")
        assert [line async for line in lines] == [("stdout", "vier \ufffd\ufffd")]
        assert process.stdout.at_eof()
        assert await process.stdout.read() == await process.stdout.readline() == ""


async def test_reads_of_text(aioproc: Any) -> None:
    async with opened(aioproc, text=True) as process:
        actor = Actor(process)
        actor.do(r"o \xc3\xa4\xc3\xb6\xc3\xbc123\nabc\nrest", "x 0")
        assert await process.stdout.read(0) == ""
        assert await process.stdout.read(2) == "äö"
        assert await process.stdout.readuntil("2") == "ü12"
        assert await process.stdout.readline() == "3\n"
        assert await process.read_until(re.compile("[b]")) == "ab"
        assert [line async for line in process.stdout] == ["c\n", "rest"]
        with pytest.raises(asyncio.IncompleteReadError) as info:
            await process.read_until("x")
        assert info.value.partial == ""
        with pytest.raises(ValueError, match="at least one character"):
            await process.stdout.readuntil("")
    with pytest.raises(TypeError, match="this output is str"):
        await process.read_until(b"x")


async def test_small_reads_of_much_text(aioproc: Any) -> None:
    size = 300_000
    async with aioproc.open_process(
        *python(f"print('é' * {size}, end='', flush=True)"), stdin=None, text=True
    ) as process:
        text = ""
        while piece := await process.stdout.read(7):
            text += piece
    assert text == "é" * size


async def test_texts_that_are_none(aioproc: Any) -> None:
    async with opened(aioproc, errors="strict") as process:
        Actor(process).do(r"o \xff\n", "e .")
        assert await process.stderr.read(1) == "."
        with pytest.raises(UnicodeDecodeError) as info:
            await process.stdout.readline()
        assert info.value.object == b"\xff\n"
        Actor(process).do(r"o ok\n")
        assert await process.stdout.readline() == "ok\n"
    async with opened(aioproc, encoding="latin-1") as process:
        Actor(process).do(r"o \xff\n")
        assert await process.stdout.readline() == "ÿ\n"
        with pytest.raises(UnicodeEncodeError):
            process.stdin.write("€")
        with pytest.raises(TypeError, match="decode"):
            process.stdin.write(b"x")


async def test_a_part_of_a_character_before_what_is_no_text(aioproc: Any) -> None:
    async with opened(aioproc, errors="strict") as process:
        Actor(process).do(r"o a\n\xe2\x82")
        assert await process.stdout.readline() == "a\n"
        Actor(process).do(r"o \xff\n")
        with pytest.raises(UnicodeDecodeError) as info:
            await process.stdout.readline()
        assert info.value.object == b"\xe2\x82\xff\n"
        Actor(process).do(r"o ok\n")
        assert await process.stdout.readline() == "ok\n"


async def test_an_encoding_with_a_mark(aioproc: Any) -> None:
    async with aioproc.open_process(*CAT, encoding="utf-16") as process:
        process.stdin.write("ä\n")
        process.stdin.writelines(["b\n", "c"])
        process.stdin.close()
        assert [line async for _, line in process.lines()] == ["ä\n", "b\n", "c"]
    async with aioproc.open_process(*CAT, encoding="utf-16") as process:
        process.stdin.write("ä\n")
        task = asyncio.create_task(process.communicate("b"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await process.communicate("b") == ("ä\nb", None)


async def test_communicate_with_text(aioproc: Any) -> None:
    async with aioproc.open_process(*CAT, text=True) as process:
        process.stdin.write("1\n2\n")
        assert await process.stdout.readline() == "1\n"
        with pytest.raises(TypeError, match="takes str"):
            await process.communicate(b"3")
        assert await process.communicate("ü\n") == ("2\nü\n", None)
        assert await process.communicate() == ("", None)


async def test_communicate_with_what_is_no_text(aioproc: Any) -> None:
    """What the error is not about is not lost."""
    for bad, other in ("oe", "eo"):
        async with opened(aioproc, errors="strict") as process:
            stream = {"o": process.stdout, "e": process.stderr}
            Actor(process).do(rf"{bad} a\nb", f"{other} fine")
            assert await stream[bad].readline() == "a\n"
            Actor(process).do(rf"{bad} \xff")
            with pytest.raises(UnicodeDecodeError) as info:
                await process.communicate()
            assert info.value.object == b"\xff"
            assert await stream[other].read() == "fine"
            assert await stream[bad].read() == "b"
            assert stream[bad].at_eof()


@posix_only("signals of the system that ends reads")
async def test_lines_in_a_debug_loop(aioproc: Any) -> None:
    """Nothing is said, no warning is given."""
    await script("""
        async def main():
            async with aioproc.open_process(
                *python("print('a')"), stdin=DEVNULL, stderr=PIPE, text=True
            ) as process:
                assert [item async for item in process.lines()] == [("stdout", "a\\n")]
            assert process.returncode == 0
        asyncio.run(main(), debug=True)
    """)
