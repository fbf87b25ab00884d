"""subprocess_exec and subprocess_shell: asyncio's transports and protocols."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from aside import collect
from helpers import not_on_proactor
from programs import (
    CAT,
    DEAF,
    KILLED,
    LEAVES_CAT,
    NL,
    SILENT,
    SLEEP,
    TERMINATED,
    TRUE,
    WINDOWS,
    YES,
    python,
    sh,
    shell,
)

pytestmark = pytest.mark.asyncio


class Log(asyncio.SubprocessProtocol):
    """Notes every call. `done` is set by the last of them."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.output = {1: b"", 2: b""}
        self.done = asyncio.Event()
        self.exited = asyncio.Event()
        self.lost = asyncio.Event()
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()
        self.transport: Any = None

    def note(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.note("connection_made")

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        assert isinstance(data, bytes)
        self.output[fd] += data
        if self.calls[-1] != ("pipe_data_received", fd):
            self.note("pipe_data_received", fd)

    def pipe_connection_lost(self, fd: int, exc: BaseException | None) -> None:
        self.note("pipe_connection_lost", fd, exc)
        self.lost.set()

    def process_exited(self) -> None:
        self.note("process_exited")
        self.exited.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.note("connection_lost", exc)
        self.done.set()

    def pause_writing(self) -> None:
        self.note("pause_writing")
        self.paused.set()

    def resume_writing(self) -> None:
        self.note("resume_writing")
        self.resumed.set()

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


class Contexts(list[dict[str, Any]]):
    """What the loop's exception handler is called with, for as long as this is used."""

    def __enter__(self) -> Contexts:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.append(context))
        return self

    def __exit__(self, *exc_info: Any) -> None:
        asyncio.get_running_loop().set_exception_handler(None)

    def messages(self) -> list[str]:
        return [str(context["exception"]) for context in self]


async def test_the_order_of_calls(api: Any) -> None:
    transport, protocol = await api.subprocess_shell(Log, shell("cat", "echo err >&2", "exit 3"))
    assert protocol.transport is transport
    assert protocol.calls == [("connection_made",)]
    assert isinstance(transport, asyncio.SubprocessTransport)
    transport.get_pipe_transport(0).write(b"hello")
    transport.get_pipe_transport(0).write_eof()
    await protocol.done.wait()
    assert protocol.output == {1: b"hello", 2: b"err" + NL}
    calls = protocol.calls
    assert calls[0] == ("connection_made",)
    assert calls[-1] == ("connection_lost", None)
    # In between: the exit once, each pipe's end once and after its data, which may come in
    # pieces (cmd.exe's echo writes two).
    pieces = [call for call in calls if call[0] == "pipe_data_received"]
    assert len(calls) - len(pieces) == 6
    assert sorted(set(calls[1:-1]), key=str) == [
        ("pipe_connection_lost", 0, None),
        ("pipe_connection_lost", 1, None),
        ("pipe_connection_lost", 2, None),
        ("pipe_data_received", 1),
        ("pipe_data_received", 2),
        ("process_exited",),
    ]
    for fd in 1, 2:
        data, end = ("pipe_data_received", fd), ("pipe_connection_lost", fd, None)
        assert calls.index(data) < calls.index(end)
    assert transport.get_returncode() == 3
    transport.close()
    assert calls[-1] == ("connection_lost", None)


async def test_without_pipes(api: Any) -> None:
    transport, protocol = await api.subprocess_exec(
        Log, *TRUE, stdin=None, stdout=None, stderr=None
    )
    await protocol.done.wait()
    assert protocol.names == ["connection_made", "process_exited", "connection_lost"]
    assert [transport.get_pipe_transport(fd) for fd in range(3)] == [None] * 3
    transport.close()


async def test_stderr_to_stdout(api: Any) -> None:
    transport, protocol = await api.subprocess_shell(
        Log, shell("echo one", "echo two >&2"), stderr=api.STDOUT
    )
    assert transport.get_pipe_transport(2) is None
    await protocol.done.wait()
    assert protocol.output[1] == b"one" + NL + b"two" + NL
    transport.close()


async def test_the_end_comes_after_all_pipes(api: Any) -> None:
    # cat lives on when the shell has ended, until its stdin is closed.
    transport, protocol = await api.subprocess_exec(Log, *LEAVES_CAT)
    await protocol.exited.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert "connection_lost" not in protocol.names
    assert transport.get_returncode() == 0
    transport.get_pipe_transport(0).write(b"more")
    transport.get_pipe_transport(0).close()
    await protocol.done.wait()
    assert protocol.output[1] == b"hi\nmore"
    transport.close()


async def test_the_end_comes_after_the_exit(api: Any) -> None:
    transport, protocol = await api.subprocess_exec(Log, *SILENT)
    while protocol.names.count("pipe_connection_lost") < 3:
        protocol.lost.clear()
        await protocol.lost.wait()
    assert protocol.names[1:] == ["pipe_connection_lost"] * 3
    assert transport.get_returncode() is None
    transport.kill()
    await protocol.done.wait()
    assert protocol.names[-2:] == ["process_exited", "connection_lost"]
    transport.close()


async def test_the_transport(api: Any) -> None:
    transport, protocol = await api.subprocess_exec(
        Log,
        *sh("echo $$; cat", "import os; print(os.getpid(), flush=True); sys.stdin.read()"),
    )
    assert transport.get_returncode() is None
    assert not transport.is_closing()
    assert transport.get_protocol() is protocol
    assert transport.get_extra_info("subprocess").pid == transport.get_pid()
    assert transport.get_extra_info("nothing") is None
    assert transport.get_extra_info("nothing", 5) == 5
    assert str(transport.get_pid()) in repr(transport)
    transport.get_pipe_transport(0).close()
    await protocol.done.wait()
    assert int(protocol.output[1]) == transport.get_pid()
    assert transport.get_returncode() == 0
    transport.close()
    assert transport.is_closing()


async def test_the_subprocess_of_a_transport(aioproc: Any) -> None:
    transport, protocol = await aioproc.subprocess_exec(Log, *CAT)
    child = transport.get_extra_info("subprocess")
    assert child.returncode is None
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    await protocol.done.wait()
    assert child.returncode == child.poll() == TERMINATED


@pytest.mark.parametrize("method", ["terminate", "kill", "send_signal"])
async def test_signals(api: Any, method: str) -> None:
    transport, protocol = await api.subprocess_exec(Log, *SLEEP)
    arguments = [signal.SIGTERM] if method == "send_signal" else []
    getattr(transport, method)(*arguments)
    await protocol.done.wait()
    assert transport.get_returncode() == (KILLED if method == "kill" else TERMINATED)
    with pytest.raises(ProcessLookupError):
        getattr(transport, method)(*arguments)
    transport.close()


async def test_changing_the_protocol(api: Any) -> None:
    transport, first = await api.subprocess_exec(Log, *CAT)
    second = Log()
    second.calls.append("made by hand")
    transport.set_protocol(second)
    assert transport.get_protocol() is second
    transport.get_pipe_transport(0).write(b"hello")
    transport.get_pipe_transport(0).close()
    await second.done.wait()
    assert second.output[1] == b"hello"
    assert first.names == ["connection_made"]
    transport.close()


# -- close


async def test_close_kills(api: Any) -> None:
    transport, protocol = await api.subprocess_exec(Log, *SLEEP)
    transport.close()
    transport.close()
    assert transport.is_closing()
    await protocol.done.wait()
    assert transport.get_returncode() == KILLED
    assert sorted(protocol.names[1:-1]) == ["pipe_connection_lost"] * 3 + ["process_exited"]
    assert protocol.names[-1] == "connection_lost"


async def test_close_drops_what_was_not_written(api: Any) -> None:
    transport, protocol = await api.subprocess_exec(Log, *SLEEP)
    transport.get_pipe_transport(0).write(bytes(1 << 20))
    transport.close()
    await protocol.done.wait()
    assert transport.get_returncode() == KILLED
    assert transport.get_pipe_transport(0).get_write_buffer_size() == 0


@pytest.mark.parametrize(
    "where",
    ["connection_made", "pipe_data_received", "pipe_connection_lost", "process_exited"],
)
async def test_close_inside_a_callback(api: Any, where: str) -> None:
    class Closing(Log):
        def note(self, name: str, *arguments: Any) -> None:
            super().note(name, *arguments)
            if name == where:
                self.transport.close()

    transport, protocol = await api.subprocess_exec(
        Closing, *sh("echo hello; exec cat", "print('hello', flush=True); sys.stdin.read()")
    )
    if where == "process_exited":
        transport.kill()
    elif where == "pipe_connection_lost":
        transport.get_pipe_transport(0).close()
    await protocol.done.wait()
    assert protocol.names[-1] == "connection_lost"
    assert protocol.names.count("process_exited") == 1
    assert protocol.names.count("connection_lost") == 1
    assert protocol.names.count("pipe_connection_lost") == 3
    assert transport.is_closing()


async def test_dropping_a_live_transport(aioproc: Any) -> None:
    transport, protocol = await aioproc.subprocess_exec(asyncio.SubprocessProtocol, *TRUE)
    child = transport.get_extra_info("subprocess")
    with pytest.warns(ResourceWarning, match=r"process \d+ \(.*\) was "):
        transport.__del__()
    assert transport.is_closing()
    while child.returncode is None:
        await asyncio.sleep(0.001)
    del transport, protocol
    collect()


# -- pipes


async def test_pausing_a_pipe(api: Any) -> None:
    not_on_proactor(api, "gives a bytearray after a pause")
    transport, protocol = await api.subprocess_exec(Log, *CAT)
    stdin, stdout = (transport.get_pipe_transport(fd) for fd in (0, 1))
    assert isinstance(stdout, asyncio.ReadTransport)
    stdout.pause_reading()
    stdin.write(b"hello")
    stdin.close()
    # cat ends though nobody reads; its output stays in the pipe.
    await protocol.exited.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert protocol.output[1] == b""
    assert "connection_lost" not in protocol.names
    stdout.resume_reading()
    await protocol.done.wait()
    assert protocol.output[1] == b"hello"
    transport.close()


async def test_pausing_twice(aioproc: Any) -> None:
    # asyncio's pipes forgive this since 3.7 only in part.
    transport, protocol = await aioproc.subprocess_exec(Log, *CAT)
    stdout = transport.get_pipe_transport(1)
    assert stdout.is_reading()
    stdout.resume_reading()
    stdout.pause_reading()
    stdout.pause_reading()
    assert not stdout.is_reading()
    stdout.resume_reading()
    stdout.resume_reading()
    assert stdout.is_reading()
    transport.get_pipe_transport(0).close()
    await protocol.done.wait()
    stdout.pause_reading()
    stdout.resume_reading()
    assert stdout.is_closing()
    assert not stdout.is_reading()


async def test_pausing_inside_a_callback(api: Any) -> None:
    not_on_proactor(api, "gives a bytearray after a pause")

    class Slow(Log):
        def pipe_data_received(self, fd: int, data: bytes) -> None:
            super().pipe_data_received(fd, data)
            pipe = self.transport.get_pipe_transport(fd)
            pipe.pause_reading()
            asyncio.get_running_loop().call_soon(pipe.resume_reading)

    transport, protocol = await api.subprocess_exec(
        Slow, *python("print('x' * 1_000_000, end='')")
    )
    await protocol.done.wait()
    assert protocol.output[1] == b"x" * 1_000_000
    transport.close()


async def test_closing_an_output(api: Any) -> None:
    transport, protocol = await api.subprocess_exec(Log, *YES)
    stdout = transport.get_pipe_transport(1)
    stdout.close()
    assert stdout.is_closing()
    await protocol.done.wait()
    assert transport.get_returncode() == (1 if WINDOWS else -signal.SIGPIPE)
    assert protocol.calls.count(("pipe_connection_lost", 1, None)) == 1
    transport.close()


async def test_writing_to_a_pipe(api: Any) -> None:
    # The child takes nothing until its output, which nobody reads, is read.
    transport, protocol = await api.subprocess_exec(Log, *CAT)
    stdin, stdout = (transport.get_pipe_transport(fd) for fd in (0, 1))
    assert isinstance(stdin, asyncio.WriteTransport)
    stdout.pause_reading()
    assert stdin.get_write_buffer_size() == 0
    assert stdin.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
    data = bytes(range(256)) * 8192
    stdin.write(b"")
    assert stdin.get_write_buffer_size() == 0
    stdin.write(data)
    assert 0 < stdin.get_write_buffer_size() <= len(data)
    assert protocol.names == ["connection_made", "pause_writing"]
    stdin.write(b"more")
    assert protocol.names == ["connection_made", "pause_writing"]
    stdout.resume_reading()
    await protocol.resumed.wait()
    assert stdin.get_write_buffer_size() <= 16 * 1024
    stdin.write(b"!")
    stdin.write_eof()
    assert stdin.is_closing()
    await protocol.done.wait()
    assert protocol.output[1] == data + b"more!"
    assert protocol.names.count("pause_writing") == protocol.names.count("resume_writing") == 1
    transport.close()


async def test_write_buffer_limits(api: Any) -> None:
    transport, protocol = await api.subprocess_exec(Log, *SLEEP)
    stdin = transport.get_pipe_transport(0)
    for given, expected in [
        ({}, (16384, 65536)),
        ({"high": 100}, (25, 100)),
        ({"low": 100}, (100, 400)),
        ({"high": 100, "low": 100}, (100, 100)),
        ({"high": 0}, (0, 0)),
        ({"high": 10 << 20}, (10 << 18, 10 << 20)),
    ]:
        stdin.set_write_buffer_limits(**given)
        assert stdin.get_write_buffer_limits() == expected
    for high, low in (100, 101), (100, -1), (-1, -1):
        with pytest.raises(ValueError):
            stdin.set_write_buffer_limits(high=high, low=low)
    stdin.write(bytes(1 << 20))
    assert "pause_writing" not in protocol.names
    stdin.set_write_buffer_limits(high=1000)  # applies at once
    assert "pause_writing" in protocol.names
    transport.close()
    await protocol.done.wait()


async def test_no_buffer_at_all(api: Any) -> None:
    # high=0: every write that is not taken at once pauses.
    transport, protocol = await api.subprocess_exec(Log, *CAT)
    stdin, stdout = (transport.get_pipe_transport(fd) for fd in (0, 1))
    stdin.set_write_buffer_limits(high=0)
    stdout.pause_reading()
    stdin.write(bytes(1 << 20))
    assert protocol.names[-1] == "pause_writing"
    stdout.resume_reading()
    await protocol.resumed.wait()
    assert stdin.get_write_buffer_size() == 0
    stdin.close()
    await protocol.done.wait()
    assert len(protocol.output[1]) == 1 << 20
    transport.close()


async def test_aborting_an_input(api: Any) -> None:
    transport, protocol = await api.subprocess_exec(
        Log, *python("import sys; print('ready', flush=True); print(len(sys.stdin.read()))")
    )
    stdin = transport.get_pipe_transport(0)
    stdin.abort()
    stdin.abort()
    assert stdin.is_closing()
    stdin.write(b"not this")
    await protocol.done.wait()
    assert protocol.output[1] == b"ready\n0\n"
    assert protocol.calls.count(("pipe_connection_lost", 0, None)) == 1
    transport.close()


async def test_an_input_that_breaks(api: Any) -> None:
    transport, protocol = await api.subprocess_exec(Log, *SLEEP)
    stdin = transport.get_pipe_transport(0)
    stdin.write(bytes(1 << 20))
    transport.kill()
    await protocol.done.wait()
    (error,) = [call[2] for call in protocol.calls if call[:2] == ("pipe_connection_lost", 0)]
    assert isinstance(error, BrokenPipeError)
    assert protocol.names.count("connection_lost") == 1
    transport.close()


async def test_an_input_whose_reader_has_gone(api: Any) -> None:
    # Nothing is written: still the end is noticed.
    transport, protocol = await api.subprocess_exec(Log, *DEAF, stdout=None, stderr=None)
    await protocol.lost.wait()
    assert protocol.calls[1:] == [("pipe_connection_lost", 0, None)]
    transport.close()
    await protocol.done.wait()


# -- protocols that raise


async def test_a_factory_that_raises(aioproc: Any, tmp_path: Any) -> None:
    trace = tmp_path / "trace"

    def factory() -> asyncio.SubprocessProtocol:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await aioproc.subprocess_exec(factory, *python("open(sys.argv[1], 'w')", str(trace)))
    with pytest.raises(ZeroDivisionError):
        await aioproc.subprocess_shell(factory, f"echo hello > {trace}")
    # Another child of the same loop has come and gone; there was none before it.
    process = await aioproc.create_subprocess_exec(*TRUE)
    await process.wait()
    assert not trace.exists()


@pytest.mark.parametrize(
    "where",
    [
        "connection_made",
        "pipe_data_received",
        "pipe_connection_lost",
        "process_exited",
        "connection_lost",
    ],
)
async def test_callbacks_that_raise(api: Any, where: str) -> None:
    class Raising(Log):
        def note(self, name: str, *arguments: Any) -> None:
            super().note(name, *arguments)
            if name == where:
                # After what the test waits for.
                if name == "connection_lost":
                    self.done.set()
                raise ZeroDivisionError(name)

    with Contexts() as contexts:
        transport, protocol = await api.subprocess_shell(Raising, shell("echo hello", "exit 3"))
        await protocol.done.wait()
    assert contexts.messages()
    assert set(contexts.messages()) == {where}
    assert protocol.output[1] == b"hello" + NL
    assert protocol.names[-1] == "connection_lost"
    assert protocol.names.count("pipe_connection_lost") == 3
    assert protocol.names.count("process_exited") == 1
    assert transport.get_returncode() == 3
    transport.close()


@pytest.mark.parametrize("where", ["pause_writing", "resume_writing"])
async def test_flow_control_that_raises(api: Any, where: str) -> None:
    class Raising(Log):
        def note(self, name: str, *arguments: Any) -> None:
            super().note(name, *arguments)
            if name == where:
                raise ZeroDivisionError(name)

    with Contexts() as contexts:
        transport, protocol = await api.subprocess_exec(Raising, *CAT)
        stdin = transport.get_pipe_transport(0)
        stdin.write(bytes(1 << 20))
        stdin.write_eof()
        await protocol.done.wait()
    assert contexts.messages() == [where]
    assert len(protocol.output[1]) == 1 << 20
    transport.close()


async def test_data_after_an_error(api: Any) -> None:
    # An error in one call does not stop the next.
    class Raising(Log):
        def pipe_data_received(self, fd: int, data: bytes) -> None:
            super().pipe_data_received(fd, data)
            self.received = getattr(self, "received", 0) + 1
            if self.received == 1:
                raise ZeroDivisionError("first")

    with Contexts() as contexts:
        transport, protocol = await api.subprocess_exec(
            Raising, *python("print('x' * 300_000, end='')")
        )
        await protocol.done.wait()
    assert contexts.messages() == ["first"]
    assert protocol.output[1] == b"x" * 300_000
    transport.close()


async def test_a_plain_protocol(api: Any) -> None:
    transport, protocol = await api.subprocess_exec(asyncio.SubprocessProtocol, *CAT)
    assert type(protocol) is asyncio.SubprocessProtocol
    transport.get_pipe_transport(0).write(b"hello")
    transport.get_pipe_transport(0).close()
    while transport.get_returncode() is None:
        await asyncio.sleep(0.001)
    assert transport.get_returncode() == 0
    while not all(transport.get_pipe_transport(fd).is_closing() for fd in range(3)):
        await asyncio.sleep(0.001)
    transport.close()
