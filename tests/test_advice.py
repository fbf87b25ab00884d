"""What errors say of what to do instead, in a note (before Python 3.11 in the message). Their
types are those of asyncio and Popen, in test_bad_input.py."""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import run, settle
from marks import posix_only
from programs import CAT, SLEEP, TRUE, WINDOWS

PIPE = asyncio.subprocess.PIPE


def said(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


async def advice(kind: type[Exception], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        await call()
    assert type(caught.value) is kind
    return said(caught.value)


@pytest.mark.asyncio
async def test_a_list_as_program(aioproc: Any) -> None:
    start = aioproc.create_subprocess_exec
    text = await advice(TypeError, lambda: start(["git", "log"]))
    assert "the program is ['git', 'log']" in text
    assert "create_subprocess_exec(*command)" in text
    text = await advice(TypeError, lambda: start("sleep", "--", 5))
    assert "argument 2 is 5; all of them are str, bytes or path-like objects" in text
    text = await advice(TypeError, lambda: start("git", ["log"] * 1000))
    assert "argument 1 is ['log', 'log'" in text
    assert len(text) < 400
    # Of something else it says nothing.
    assert "argument" not in await advice(TypeError, lambda: start("true", cwd=5))
    text = await advice(ValueError, lambda: aioproc.create_subprocess_shell(["git", "log"]))
    assert "create_subprocess_exec(*command)" in text


@pytest.mark.asyncio
async def test_a_command_line_as_program(aioproc: Any) -> None:
    start = aioproc.create_subprocess_exec
    for program in ("no-such -l", b"no-such -l", "/no-such/program -l", Path("no-such -l")):
        for call in (
            lambda program=program: start(program),
            lambda program=program: aioproc.subprocess_exec(asyncio.SubprocessProtocol, program),
        ):
            text = await advice(FileNotFoundError, call)
            assert "-l' was taken for the name of a program" in text
            assert "create_subprocess_shell()" in text
    for args, options in (
        (["no-such"], {}),
        (["no-such "], {}),
        (["no-such", "a b"], {}),
        (["true -l"], {"executable": "no-such"}),
    ):
        text = await advice(
            FileNotFoundError, lambda args=args, options=options: start(*args, **options)
        )
        assert "taken for" not in text


@pytest.mark.parametrize("function", ["create_subprocess_exec", "run", "open_process"])
@pytest.mark.asyncio
async def test_which_option_it_was(aioproc: Any, function: str, tmp_path: Path) -> None:
    start = getattr(aioproc, function)

    async def text(kind: type[Exception], *more: Any, **options: Any) -> str:
        async def call() -> None:
            await start(*TRUE, *more, **options)

        return await advice(kind, call)

    assert "cwd is 5; it is a str" in await text(TypeError, cwd=5)
    assert "executable is 5; it is a str" in await text(TypeError, executable=5)
    secret = await text(TypeError, env={"PATH": "x", "TOKEN": 12345})
    assert "'TOKEN' is of type int: give str(...)" in secret
    assert "12345" not in secret
    assert "variable is 7; it is a str" in await text(TypeError, env={7: "x"})
    assert "env={'NAME': 'value'}" in await text(AttributeError, env=["A=1"])
    assert "it is 'A=B'" in await text(ValueError, env={"A=B": "1"})
    assert "the environment variable 'A' has one" in await text(ValueError, env={"A": "\0"})
    assert f"argument {len(TRUE)} has one" in await text(ValueError, "a\0b")
    assert "cwd has one" in await text(ValueError, cwd="a\0b")
    if not WINDOWS:
        assert "pass_fds=[3]" in await text(TypeError, pass_fds=3)


@posix_only("files that are executable")
@pytest.mark.asyncio
async def test_files_that_cannot_be_executed(aioproc: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("echo\n")
    file.chmod(0o755)
    for start in (aioproc.create_subprocess_exec, aioproc.run):
        assert "(#!): give that" in await advice(OSError, lambda start=start: start(file))
        assert "name is empty" in await advice(PermissionError, lambda start=start: start(""))
    file.write_text("#!/no/such\n")
    start = aioproc.create_subprocess_exec
    for call in (
        lambda: start(file),
        lambda: start("./file", cwd=tmp_path),
        lambda: aioproc.run(file),
    ):
        text = await advice(FileNotFoundError, call)
        assert "the file is there: its interpreter is not" in text
    missing = await advice(FileNotFoundError, lambda: aioproc.run(tmp_path / "missing"))
    assert "the file is there" not in missing


@posix_only("the error names no directory there")
@pytest.mark.asyncio
async def test_a_directory_that_is_missing_is_no_command_line(aioproc: Any) -> None:
    start = aioproc.create_subprocess_exec
    text = await advice(FileNotFoundError, lambda: start("true -l", cwd="/no such/directory"))
    assert "taken for" not in text


@pytest.mark.asyncio
async def test_what_is_no_stream(aioproc: Any) -> None:
    def start(**options: Any) -> Callable[[], Any]:
        return lambda: aioproc.create_subprocess_exec(*TRUE, **options)

    text = await advice(AttributeError, start(stdout="out.txt"))
    assert "open it, stdout=open('out.txt', 'wb')" in text
    assert "stdin=open('in.txt', 'rb')" in await advice(AttributeError, start(stdin="in.txt"))
    assert "open it, stderr=open(" in await advice(AttributeError, start(stderr=Path("x")))
    text = await advice(AttributeError, start(stdin=b"data"))
    assert "communicate(input)" in text
    text = await advice(AttributeError, start(stdout=object()))
    assert "stdout can be None, PIPE, DEVNULL, a file descriptor" in text
    text = await advice(io.UnsupportedOperation, start(stdin=io.BytesIO()))
    assert "BytesIO has none: use PIPE" in text


@pytest.mark.asyncio
async def test_a_stream_of_another_process(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=PIPE, stdout=PIPE)
    for stream in (process.stdout, process.stdin, asyncio.StreamReader()):
        text = await advice(
            AttributeError,
            lambda stream=stream: aioproc.create_subprocess_exec(*CAT, stdin=stream),
        )
        assert "os.pipe()" in text
    # And that is how it goes.
    reader, writer = os.pipe()
    first = await aioproc.create_subprocess_exec(*CAT, stdin=PIPE, stdout=writer)
    second = await aioproc.create_subprocess_exec(*CAT, stdin=reader, stdout=PIPE)
    os.close(reader)
    os.close(writer)
    await first.communicate(b"through both")
    assert await second.communicate() == (b"through both", None)
    await process.communicate(b"")


@pytest.mark.asyncio
async def test_text_for_a_pipe(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=PIPE, stdout=PIPE)
    assert "communicate(text.encode())" in await advice(
        TypeError, lambda: process.communicate("text")
    )
    assert "encode" not in await advice(TypeError, lambda: process.communicate(5))
    assert await process.communicate(b"bytes") == (b"bytes", None)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("text", True, "streams are of bytes: decode()"),
        ("universal_newlines", True, "streams are of bytes: decode()"),
        ("encoding", "utf-8", "streams are of bytes: decode()"),
        ("errors", "strict", "streams are of bytes: decode()"),
        ("bufsize", 1, "leave it out"),
        ("shell", None, "use create_subprocess_"),
    ],
)
async def test_what_is_fixed(aioproc: Any, option: str, value: Any, what: str) -> None:
    for start, shell in (
        (aioproc.create_subprocess_exec, True),
        (aioproc.create_subprocess_shell, False),
    ):
        options = {option: shell if option == "shell" else value}
        text = await advice(
            ValueError, lambda start=start, options=options: start("true", **options)
        )
        assert what in text
        if option == "shell":
            assert f"use create_subprocess_{'shell' if shell else 'exec'}()" in text


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("keyword", "what"),
    [
        ("timeout", "asyncio.wait_for(process.communicate(), timeout)"),
        ("input", "communicate(input)"),
        ("capture_output", "stdout=PIPE, stderr=PIPE"),
        ("check", "returncode"),
        ("loop", "the loop that runs"),
        ("std_out", "did you mean 'stdout'?"),
        ("start_session", "did you mean 'start_new_session'?"),
        ("pas_fds", "did you mean 'pass_fds'?"),
        ("function", ""),
        ("args", ""),
        ("xyzzy", ""),
    ],
)
async def test_a_keyword_that_is_not_known(aioproc: Any, keyword: str, what: str) -> None:
    def factory() -> Any:
        raise AssertionError("too far")

    for name, args in (
        ("create_subprocess_exec", ["true"]),
        ("create_subprocess_shell", ["true"]),
        ("subprocess_exec", [factory, "true"]),
        ("subprocess_shell", [factory, "true"]),
    ):
        start = getattr(aioproc, name)
        text = await advice(
            TypeError, lambda start=start, args=args: start(*args, **{keyword: [1]}, cwd="/")
        )
        head = f"{name}() got an unexpected keyword argument '{keyword}'"
        assert text.startswith(head)
        assert what in text
        if not what:
            assert "instead" not in text


@pytest.mark.asyncio
async def test_a_limit_without_streams(aioproc: Any) -> None:
    text = await advice(
        TypeError,
        lambda: aioproc.subprocess_exec(asyncio.SubprocessProtocol, *TRUE, limit=1),
    )
    assert "makes no streams" in text


# -- another loop


def in_another_loop(
    new_loop: Callable[[], Any], use: Callable[[Any], Any], process: Any, why: str
) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="belongs to another event loop") as caught:
            await asyncio.wait_for(use(process), 30)
        assert re.search(why, str(caught.value))

    run(new_loop, main())


async def leave(process: Any) -> None:
    async with process:
        pass


USES: list[Callable[[Any], Any]] = [
    lambda process: process.wait(),
    lambda process: process.communicate(),
    lambda process: process.stdout.read(),
    lambda process: process.stdout.readline(),
    lambda process: process.stdout.readexactly(1),
    lambda process: process.stderr.readuntil(),
    lambda process: process.stderr.__anext__(),
    lambda process: process.stdin.drain(),
    lambda process: process.stdin.wait_closed(),
    leave,
]


def test_a_process_of_another_loop(aioproc: Any, new_loop: Callable[[], Any]) -> None:
    """In another thread, while its own loop runs; and when that has closed."""

    async def main() -> Any:
        process = await aioproc.create_subprocess_exec(
            *SLEEP, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        process.stdin.write(b"x" * 1_000_000)  # so that drain() has to wait
        for use in USES:
            await asyncio.to_thread(
                in_another_loop, new_loop, use, process, "run_coroutine_threadsafe"
            )
        assert process.returncode is None
        await asyncio.get_running_loop().shutdown_default_executor()
        return process

    process = run(new_loop, main())
    for use in USES:
        in_another_loop(new_loop, use, process, "which is closed")
    process.kill()
    assert settle(lambda: process.returncode is not None)
    # What does not have to wait works on.
    assert run(new_loop, process.wait()) == process.returncode
    process._transport.close()


@pytest.mark.asyncio
async def test_text_for_a_stream_of_bytes(aioproc: Any) -> None:
    async with aioproc.open_process(*CAT) as process:

        async def write() -> None:
            process.stdin.write("text")

        text = await advice(TypeError, write)
    assert "must be a bytes-like object, not str" in text
    assert "open_process(text=True)" in text


@posix_only("limits of its kind")
@pytest.mark.asyncio
async def test_limits_by_other_names(aioproc: Any) -> None:
    import resource

    for key in ("RLIMIT_NOFILE", resource.RLIMIT_NOFILE):
        text = await advice(ValueError, lambda key=key: aioproc.run(*TRUE, rlimits={key: 100}))
        assert "write 'nofile'" in text
    assert "write" not in await advice(ValueError, lambda: aioproc.run(*TRUE, rlimits={"no": 1}))
