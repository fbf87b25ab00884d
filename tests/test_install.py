"""aioproc in asyncio's place: install(), and what others look at beneath a Process."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from asyncio import create_subprocess_exec as early_exec
from asyncio import create_subprocess_shell as early_shell
from asyncio.subprocess import Process as EarlyProcess
from asyncio.subprocess import SubprocessStreamProtocol as EarlyProtocol
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aioproc as aioproc_package
from aioproc import _install
from aioproc._asyncio import extra as _extra
from aioproc._asyncio import process as _process
from conftest import FUSE, loops, run
from marks import posix_only
from programs import CAT, KILLED, NL, TERMINATED, TRUE, WINDOWS, python, sh, shell

PIPE = asyncio.subprocess.PIPE
LOOP_METHODS = ("subprocess_exec", "subprocess_shell")
ROOT = Path(aioproc_package.__file__).parent.parent


def loop_classes() -> list[type]:
    classes: list[type] = [asyncio.BaseEventLoop]
    for name in ("uvloop", "winloop"):
        if name in sys.modules:
            classes.append(sys.modules[name].Loop)
    return classes


def what_is_there() -> dict[tuple[str, str], Any]:
    """The very entries of the namespaces that install() writes to."""
    holders: list[Any] = [asyncio.subprocess, *loop_classes()]
    names = ("Process", "SubprocessStreamProtocol", *LOOP_METHODS)
    return {
        (holder.__name__, name): vars(holder)[name]
        for holder in holders
        for name in names
        if name in vars(holder)
    }


@pytest.fixture(autouse=True)
def asyncio_is_left_alone() -> Iterator[None]:
    before = what_is_there()
    yield
    assert what_is_there() == before


@pytest.fixture(autouse=True, scope="module")
def what_winloop_keeps(request: pytest.FixtureRequest) -> None:
    """With its first child libuv makes a job object for the whole process
    (uv__init_global_job), which is no leak of any test's."""

    async def first() -> None:
        await (await early_exec(*TRUE)).wait()

    if "winloop" in loops(request.config):
        run(loops(request.config)["winloop"], first())


@pytest.fixture
def installed(aioproc: Any) -> Iterator[Any]:
    with aioproc.installed():
        yield aioproc


def on_uvloop() -> bool:
    return type(asyncio.get_running_loop()).__module__.startswith(("uvloop", "winloop"))


def asyncio_must_serve() -> None:
    if WINDOWS and isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
        pytest.skip("asyncio's selector loop on Windows has no subprocesses")


def not_with_pipe_handles(api: Any) -> None:
    if WINDOWS and api.is_oracle:
        pytest.skip("asyncio's pipes on Windows show less")


def echo(text: str) -> list[str]:
    return ["cmd", "/c", f"echo {text}"] if WINDOWS else ["echo", text]


# -- what is served


@pytest.mark.asyncio
async def test_functions_imported_early_are_served(installed: Any) -> None:
    process = await early_exec(*CAT, stdin=PIPE, stdout=PIPE)
    assert isinstance(process, installed.Process)
    assert isinstance(process.stdout, installed.StreamReader)
    assert await process.communicate(b"words") == (b"words", None)
    process = await early_shell(shell("echo 42", "exit 3"), stdout=PIPE)
    assert isinstance(process, installed.Process)
    assert await process.communicate() == (b"42" + NL, None)
    assert process.returncode == 3


@pytest.mark.asyncio
async def test_input_without_a_pipe_is_ignored_as_by_asyncio(installed: Any) -> None:
    streams = {"stdin": installed.DEVNULL, "stdout": PIPE}
    process = await early_exec(*CAT, **streams)
    assert await process.communicate(b"words") == (b"", None)
    process = await installed.create_subprocess_exec(*CAT, **streams)
    with pytest.raises(ValueError, match="stdin is not a pipe"):
        await process.communicate(b"words")
    assert await process.communicate() == (b"", None)


@pytest.mark.asyncio
async def test_functions_are_asyncios_again_afterwards(aioproc: Any) -> None:
    asyncio_must_serve()
    with aioproc.installed():
        pass
    process = await early_exec(*TRUE)
    assert not isinstance(process, aioproc.Process)
    assert type(process) is EarlyProcess
    assert await process.wait() == 0


class Recorder(asyncio.SubprocessProtocol):
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.output = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.output += data

    def process_exited(self) -> None:
        self.events.append("exited")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.done.set_result(None)


@pytest.mark.asyncio
async def test_methods_of_the_loop_are_served(installed: Any) -> None:
    loop = asyncio.get_running_loop()
    for start in (
        loop.subprocess_exec(Recorder, *echo("hi"), stdin=None),
        loop.subprocess_shell(Recorder, "echo hi", stdin=None),
    ):
        transport, protocol = await start
        assert isinstance(transport, installed.SubprocessTransport)
        await protocol.done
        assert protocol.events == ["made", "exited", "lost"]
        assert protocol.output == b"hi" + NL


@pytest.mark.asyncio
@pytest.mark.parametrize("process_class", ["early", "late"])
@pytest.mark.parametrize("protocol_class", ["early", "late", "derived"])
async def test_process_built_by_hand(
    installed: Any, process_class: str, protocol_class: str
) -> None:
    # Some want the transport and the protocol, and build the rest as asyncio does.
    loop = asyncio.get_running_loop()
    exits: list[int | None] = []

    class Derived(EarlyProtocol):
        def process_exited(self) -> None:
            super().process_exited()
            exits.append(transport.get_returncode())

    protocols = {
        "early": EarlyProtocol,
        "late": asyncio.subprocess.SubprocessStreamProtocol,
        "derived": Derived,
    }
    processes = {"early": EarlyProcess, "late": asyncio.subprocess.Process}
    transport, protocol = await loop.subprocess_exec(
        lambda: protocols[protocol_class](limit=2**16, loop=loop),
        *python(
            "import sys; print(sys.stdin.readline().upper(), end='', flush=True);"
            "sys.stderr.write(sys.stdin.read()); sys.exit(9)"
        ),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert isinstance(transport, installed.SubprocessTransport)
    process = processes[process_class](transport, protocol, loop)
    assert process.pid == transport.get_pid()
    process.stdin.write(b"first line\n")
    # anyio's own question before each write.
    assert process.stdin._protocol._paused is False
    await process.stdin.drain()
    assert await process.stdout.readline() == b"FIRST LINE\n"
    assert await process.communicate(b"rest") == (b"", b"rest")
    assert await process.wait() == 9
    assert process.returncode == 9
    assert exits == ([9] if protocol_class == "derived" else [])


@pytest.mark.asyncio
async def test_isinstance_in_all_directions(installed: Any) -> None:
    late = asyncio.subprocess.Process
    late_protocol = asyncio.subprocess.SubprocessStreamProtocol

    class Derived(late):  # type: ignore[valid-type, misc]
        pass

    served = await early_exec(*TRUE, stdout=PIPE)
    own = await installed.create_subprocess_exec(*TRUE, stdout=PIPE)
    for process in (served, own):
        assert isinstance(process, EarlyProcess)
        assert isinstance(process, late)
        assert isinstance(process, installed.Process)
        assert not isinstance(process, Derived)
        assert isinstance(process._protocol, EarlyProtocol)
        assert isinstance(process._protocol, late_protocol)
        assert isinstance(process._transport, asyncio.SubprocessTransport)
        assert isinstance(process.stdout, asyncio.StreamReader)
        await process.communicate()
    assert isinstance(Derived(served._transport, served._protocol, served._loop), late)
    assert issubclass(EarlyProcess, late)
    assert issubclass(installed.Process, late)
    assert not issubclass(int, late)
    assert not isinstance(served, late_protocol)
    assert served._transport is not None


@pytest.mark.asyncio
async def test_children_go_on_across_install_and_uninstall(aioproc: Any) -> None:
    asyncio_must_serve()
    before = await early_exec(*CAT, stdin=PIPE, stdout=PIPE)
    with aioproc.installed():
        during = await early_exec(*CAT, stdin=PIPE, stdout=PIPE)
        assert isinstance(before, asyncio.subprocess.Process)
        assert not isinstance(before, aioproc.Process)
        assert await before.communicate(b"before") == (b"before", None)
    assert isinstance(during, asyncio.subprocess.Process)
    assert await during.communicate(b"during") == (b"during", None)
    assert (before.returncode, during.returncode) == (0, 0)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("call", "options", "error", "text"),
    [
        ("exec", {"universal_newlines": True}, ValueError, "universal_newlines must be False"),
        ("exec", {"shell": True}, ValueError, "shell must be False"),
        ("exec", {"bufsize": 1}, ValueError, "bufsize must be 0"),
        ("exec", {"text": True}, ValueError, "text must be False"),
        ("exec", {"encoding": "utf-8"}, ValueError, "encoding must be None"),
        ("exec", {"errors": "strict"}, ValueError, "errors must be None"),
        pytest.param(
            *("exec", {"cwd": "/no/such/directory"}, FileNotFoundError, "/no/such/directory"),
            marks=posix_only("the name in the error"),
        ),
        pytest.param(
            *("exec", {"startupinfo": object()}, ValueError, "startupinfo is only supported on"),
            marks=posix_only("a startupinfo that is refused"),
        ),
        ("exec", {"no_such_keyword": 1}, TypeError, "no_such_keyword"),
        ("shell", {"shell": False}, ValueError, "shell must be True"),
        ("shell", {"text": True}, ValueError, "text must be False"),
        ("shell", {"cmd": ["true"]}, ValueError, "cmd must be a string"),
    ],
)
async def test_wrong_arguments(
    aioproc: Any, call: str, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    async def attempt() -> None:
        with pytest.raises(error, match=text):
            if call == "exec":
                await early_exec(*TRUE, **options)
            else:
                await early_shell(**{"cmd": "true", **options})

    selector = isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
    # uvloop has texts of its own, Windows' selector loop no subprocesses.
    if not on_uvloop() and not (WINDOWS and selector):
        await attempt()
    with aioproc.installed():
        await attempt()


@pytest.mark.asyncio
async def test_missing_program(installed: Any) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await early_exec("no-such-program", "arg")
    assert caught.value.filename == (None if WINDOWS else "no-such-program")


# -- the limit


LONG = 100_000
LONG_LINE = sh(f"printf %0{LONG}d 0; echo", f"print('0' * {LONG})")


async def read_long_line(**options: Any) -> bytes:
    process = await early_exec(*LONG_LINE, stdout=PIPE, **options)
    assert process.stdout is not None
    try:
        return await process.stdout.readline()
    finally:
        await process.communicate()


@pytest.mark.asyncio
async def test_limit_is_asyncios_unless_said_otherwise(installed: Any) -> None:
    with pytest.raises(ValueError, match=r"(?i)separator.*limit"):
        await read_long_line()
    assert len(await read_long_line(limit=2 * LONG)) == LONG + 1


@pytest.mark.asyncio
async def test_no_limit_while_installed(aioproc: Any) -> None:
    with aioproc.installed(limit=None):
        assert len(await read_long_line()) == LONG + 1
        with pytest.raises(ValueError, match=r"(?i)separator.*limit"):
            await read_long_line(limit=1000)


@pytest.mark.asyncio
async def test_a_limit_of_ones_own_while_installed(aioproc: Any) -> None:
    with aioproc.installed(limit=LONG - 1), pytest.raises(ValueError, match="limit"):
        await read_long_line()
    with aioproc.installed(limit=LONG):
        assert len(await read_long_line()) == LONG + 1


@pytest.mark.asyncio
async def test_installing_again_changes_the_limit_only(aioproc: Any) -> None:
    aioproc.install()
    try:
        there = what_is_there()
        aioproc.install(limit=None)
        assert what_is_there() == there
        assert len(await read_long_line()) == LONG + 1
    finally:
        aioproc.uninstall()


@pytest.mark.asyncio
async def test_blocks_within_blocks(aioproc: Any) -> None:
    with aioproc.installed():
        there = what_is_there()
        with aioproc.installed(limit=None):
            assert what_is_there() == there
            assert len(await read_long_line()) == LONG + 1
        assert what_is_there() == there
        with pytest.raises(ValueError, match="limit"):
            await read_long_line()


def test_whether_it_is_installed() -> None:
    assert aioproc_package.is_installed() is False
    with aioproc_package.installed():
        assert aioproc_package.is_installed() is True
        with aioproc_package.installed(limit=None):
            pass
        assert aioproc_package.is_installed() is True
    assert aioproc_package.is_installed() is False
    aioproc_package.install()
    try:
        assert aioproc_package.is_installed() is True
    finally:
        aioproc_package.uninstall()
    assert aioproc_package.is_installed() is False


def test_block_after_install_leaves_it_installed() -> None:
    aioproc_package.install()
    try:
        there = what_is_there()
        with aioproc_package.installed():
            pass
        assert what_is_there() == there
    finally:
        aioproc_package.uninstall()


@pytest.mark.parametrize("limit", [0, -1])
def test_impossible_limit(limit: int) -> None:
    before = what_is_there()
    with pytest.raises(ValueError, match="Limit cannot be <= 0"):
        aioproc_package.install(limit=limit)
    assert what_is_there() == before


# -- putting it back


def test_every_name_is_replaced_and_restored() -> None:
    before = what_is_there()
    aioproc_package.install()
    try:
        during = what_is_there()
        # uvloop's class gets its own entries, and inherits them otherwise.
        assert len(during) == 2 + len(LOOP_METHODS) * len(loop_classes())
        assert not [name for name in before if before[name] is during[name]]
    finally:
        aioproc_package.uninstall()
    assert what_is_there() == before


def test_uninstall_without_install_is_harmless() -> None:
    aioproc_package.uninstall()
    aioproc_package.uninstall()


def test_uninstall_after_an_error_in_the_block() -> None:
    before = what_is_there()
    with pytest.raises(KeyError), aioproc_package.installed():
        raise KeyError
    assert what_is_there() == before


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_uninstall_refuses_when_patched_on_top(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    aioproc_package.install()
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.BaseEventLoop, name, lambda: None)
        there = what_is_there()
        with pytest.raises(RuntimeError, match=f"BaseEventLoop.{name} has been replaced"):
            aioproc_package.uninstall()
        assert what_is_there() == there
    aioproc_package.uninstall()


def test_a_class_that_cannot_be_changed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_install, "_loop_classes", lambda: [asyncio.BaseEventLoop, int])
    with pytest.warns(RuntimeWarning, match=r"int\.subprocess_\w+ cannot be replaced") as caught:
        aioproc_package.install()
    aioproc_package.uninstall()
    assert len(caught) == len(LOOP_METHODS)


def test_a_broken_loop_package_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "brokenloop.py").write_text("raise ImportError('no luck')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_install, "LOOP_PACKAGES", ("brokenloop", "a_package_that_is_not_here"))
    with pytest.warns(UserWarning, match="brokenloop is left out: no luck"):
        aioproc_package.install()
    aioproc_package.uninstall()


# -- what is beneath a Process


@pytest.mark.asyncio
async def test_popen_beneath_the_transport(api: Any) -> None:
    not_with_pipe_handles(api)
    process = await api.create_subprocess_exec(
        *CAT, "-", stdin=api.PIPE, stdout=api.PIPE, stderr=api.PIPE
    )
    transport = process._transport
    popen = transport.get_extra_info("subprocess")
    assert popen is transport.get_extra_info("subprocess")
    assert popen is transport._proc
    assert isinstance(popen, subprocess.Popen)
    assert popen.pid == process.pid
    assert list(popen.args) == [*CAT, "-"]
    assert popen.returncode is None
    assert popen.poll() is None
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        file = getattr(popen, name)
        assert file is transport.get_pipe_transport(fd).get_extra_info("pipe")
        assert WINDOWS or os.fstat(file.fileno())  # where it is a handle
        assert not file.closed
        assert not file.isatty()
        assert (file.readable(), file.writable()) == (fd != 0, fd == 0)
    with pytest.raises(subprocess.TimeoutExpired):
        popen.wait(timeout=0.01)
    popen.send_signal(signal.SIGTERM)
    assert await process.wait() == TERMINATED
    assert popen.returncode == TERMINATED
    popen.kill()  # silent, as Popen's
    assert transport.get_extra_info("no such thing", "default") == "default"
    assert transport.get_pipe_transport(1).get_extra_info("no such thing") is None
    await process.communicate()


@pytest.mark.asyncio
async def test_popen_of_a_shell_command_without_pipes(api: Any) -> None:
    process = await api.create_subprocess_shell("exit 4")
    popen = process._transport.get_extra_info("subprocess")
    assert popen.args == "exit 4" or popen.args[-1] == "exit 4"
    assert (popen.stdin, popen.stdout, popen.stderr) == (None, None, None)
    assert await process.wait() == 4
    assert popen.returncode == 4


@pytest.mark.asyncio
async def test_blocking_wait_leaves_the_exit_to_the_loop(aioproc: Any) -> None:
    # asyncio's Popen takes the status away from its loop: 255.
    process = await aioproc.create_subprocess_shell("exit 5")
    popen = process._transport.get_extra_info("subprocess")
    assert popen.wait(FUSE) == 5
    assert popen.poll() == 5
    assert process.returncode is None
    assert "running" in repr(process._transport)
    assert await process.wait() == 5


@posix_only("another wait that takes a status")
@pytest.mark.asyncio
async def test_blocking_wait_after_somebody_elses(aioproc: Any) -> None:
    # The loop, which would give up on the child, is blocked meanwhile.
    process = await aioproc.create_subprocess_shell("exit 5")
    popen = process._transport.get_extra_info("subprocess")
    with contextlib.suppress(ChildProcessError):  # a polling thread may be faster
        os.waitpid(process.pid, 0)
    returncode = popen.wait(FUSE)
    assert returncode in (5, aioproc.UNKNOWN_EXIT)
    assert await process.wait() == returncode


@pytest.mark.asyncio
async def test_popen_polled_while_the_loop_runs(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=PIPE)
    popen = process._transport.get_extra_info("subprocess")
    thread_saw: list[int] = []
    thread = threading.Thread(target=lambda: thread_saw.append(popen.wait()))
    thread.start()
    process.stdin.close()
    while popen.poll() is None:
        await asyncio.sleep(0)
    assert await process.wait() == 0
    thread.join(FUSE)
    assert thread_saw == [0]


@pytest.mark.asyncio
async def test_popen_as_a_context_manager(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=PIPE, stdout=PIPE)
    with process._transport.get_extra_info("subprocess") as popen:
        popen.kill()
    assert popen.poll() == KILLED
    assert await process.wait() == KILLED
    await asyncio.sleep(0)
    assert popen.stdin.closed
    with pytest.raises(ValueError, match="closed file"):
        popen.stdout.fileno()


@pytest.mark.asyncio
async def test_popen_does_not_read_the_loops_pipes(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*echo("hi"), stdout=PIPE)
    with pytest.raises(RuntimeError, match="belong to the event loop"):
        process._transport.get_extra_info("subprocess").communicate()
    assert await process.communicate() == (b"hi" + NL, None)


def test_popen_after_the_loop(aioproc: Any, new_loop: Any) -> None:
    loop = new_loop()
    process = loop.run_until_complete(
        _in_loop(lambda: aioproc.create_subprocess_exec(*CAT, stdin=PIPE))
    )
    popen = process._transport.get_extra_info("subprocess")
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert popen.poll() is None
    popen.terminate()
    assert popen.wait(FUSE) == TERMINATED
    assert process.returncode == TERMINATED
    process._transport.close()


async def _in_loop(function: Any) -> Any:
    return await function()


@pytest.mark.asyncio
async def test_close_does_not_kill_what_has_ended(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # asyncio's does not either, but its Popen has taken the status from its loop.
    process = await aioproc.create_subprocess_shell("exit 6")
    assert process._transport.get_extra_info("subprocess").wait(FUSE) == 6
    signals: list[int] = []
    monkeypatch.setattr(
        type(process._transport._child),
        "send_signal",
        lambda child, number: signals.append(number),
    )
    process._transport.close()
    assert not signals
    assert await process.wait() == 6


def test_every_public_name_of_popen_is_ours() -> None:
    theirs = {name for name in dir(subprocess.Popen) if not name.startswith("_")}
    assert theirs - set(vars(_extra.Popen)) == set()


def test_every_public_method_of_asyncios_protocol_is_ours() -> None:
    theirs = {
        name
        for base in EarlyProtocol.__mro__
        if base.__module__ in ("asyncio.subprocess", "asyncio.streams")
        for name in vars(base)
        if not name.startswith("_") or name in ("__repr__", "__init__", "__del__")
    }
    assert theirs - set(vars(_process.StreamProtocol)) == set()


@pytest.mark.asyncio
async def test_repr(api: Any) -> None:
    not_with_pipe_handles(api)
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    transport = process._transport
    assert repr(process) == f"<Process {process.pid}>"
    assert f"pid={process.pid} running" in repr(transport)
    fd = transport.get_pipe_transport(1).get_extra_info("pipe").fileno()
    assert f"fd={fd} polling" in repr(transport.get_pipe_transport(1))
    assert "idle bufsize=0" in repr(transport.get_pipe_transport(0))
    assert repr(transport.get_pipe_transport(1)) in repr(transport)
    assert repr(process.stdout).startswith("<StreamReader ")
    assert repr(process.stdin).startswith("<StreamWriter transport=<")
    assert repr(process.stdout) in repr(process._protocol)
    await process.communicate(b"")  # which closes stdin, also on 3.10
    assert f"pid={process.pid} returncode=0" in repr(transport)
    if not api.is_oracle:  # up to 3.11 asyncio's may be closed a little later
        assert "Transport closed pid=" in repr(transport)


@pytest.mark.asyncio
async def test_coroutine_functions_are_seen_as_such(api: Any) -> None:
    process = await api.create_subprocess_exec(*TRUE)
    for method in (process.wait, process.communicate):
        assert inspect.iscoroutinefunction(method)
    assert not inspect.iscoroutinefunction(process.kill)
    await process.wait()


@pytest.mark.asyncio
async def test_no_tasks_are_left(api: Any) -> None:
    me = asyncio.current_task()
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    if not api.is_oracle:
        assert asyncio.all_tasks() == {me}
    await process.communicate(b"")
    assert asyncio.all_tasks() == {me}


@pytest.mark.asyncio
async def test_output_so_far(api: Any) -> None:
    # What programs do that run a shell beside them: look, decode, throw away.
    process = await api.create_subprocess_exec(*CAT, stdin=api.PIPE, stdout=api.PIPE)
    for words in (b"one\ntwo", b"three\n"):
        process.stdin.write(words)
        end = time.monotonic() + FUSE
        while words.decode() not in process.stdout._buffer.decode():
            assert time.monotonic() < end
            await asyncio.sleep(0.001)
        assert process.stdout._buffer == words
        if words == b"one\ntwo":
            process.stdout._buffer.clear()
            assert not process.stdout._buffer
    del process.stdout._buffer[:2]
    process.stdin.close()
    assert await process.stdout.read() == b"ree\n"
    assert await process.wait() == 0


@pytest.mark.asyncio
async def test_limit_raised_later(api: Any) -> None:
    process = await api.create_subprocess_exec(*LONG_LINE, stdout=api.PIPE, limit=100)
    process.stdout._limit = 2 * LONG
    assert len(await process.stdout.readline()) == LONG + 1
    assert await process.wait() == 0


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("exec", f"execute program {CAT[0]!r} stdin=<pipe> stdout=stderr=<pipe>"),
        ("shell", f"run shell command {shell('cat')!r} stdin=<pipe> stdout=stderr=<pipe>"),
    ],
    ids=["exec", "shell"],
)
async def test_debug_mode_tells(
    api: Any, caplog: pytest.LogCaptureFixture, call: str, said: str
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = FUSE  # or a busy machine has something to tell
    options = {"stdin": api.PIPE, "stdout": api.PIPE, "stderr": api.STDOUT}
    with caplog.at_level(logging.DEBUG, logger="asyncio"):
        if call == "exec":
            process = await api.create_subprocess_exec(*CAT, **options)
        else:
            process = await api.create_subprocess_shell(shell("cat"), **options)
        await process.communicate(b"12345")
    loop.set_debug(False)
    # As it was said then: the objects look different by now.
    told = [record.message for record in caplog.records]
    caplog.clear()  # the records hold asyncio's Popen, and with it a process's handle
    assert told[0] == said
    program = CAT[0] if call == "exec" else shell("cat")
    assert told[1] == f"process {program!r} created: pid {process.pid}"
    what = said.partition(" stdin")[0]
    assert any(text.startswith(f"{what}: <") and "running" in text for text in told)
    assert any(text.endswith("communicate: feed stdin (5 bytes)") for text in told)
    assert any(text.endswith("exited with return code 0") for text in told)


# -- python -m aioproc exec


PROGRAM = """
import asyncio, json, sys
from asyncio import create_subprocess_exec

async def main():
    process = await create_subprocess_exec(
        sys.executable, "-ISc", "import os; os.write(1, b'0' * 100000 + bytes([10]))", stdout=-1)
    try:
        length = len(await process.stdout.readline())
    except ValueError:
        length = None
    await process.communicate()
    return type(process._transport).__module__.partition(".")[0], length

by, length = asyncio.run(main())
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__,
    "package": __package__, "main": sys.modules["__main__"].__dict__ is globals(),
    "by": by, "length": length,
}))
sys.exit(23)
"""


def run_python(*args: str, cwd: Path) -> tuple[int, Any, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=FUSE,
    )
    try:
        told = json.loads(done.stdout)
    except ValueError:
        told = None
    return done.returncode, told, done.stderr


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    for file in ("scripts/script.py", "package/module.py"):
        (tmp_path / file).write_text(PROGRAM)
    return tmp_path


@pytest.mark.parametrize(
    "how", [["scripts/script.py"], ["-m", "package.module"]], ids=["script", "module"]
)
def test_exec_runs_a_program_as_python_would(program: Path, how: list[str]) -> None:
    arguments = [*how, "-m", "--limit", "a b"]
    code, plain, errors = run_python(*arguments, cwd=program)
    assert (code, plain["by"], errors) == (23, "asyncio", "")
    code, ours, errors = run_python("-m", "aioproc", "exec", *arguments, cwd=program)
    assert (code, ours["by"], errors) == (23, "aioproc", "")
    assert {**ours, "by": "asyncio"} == plain


@pytest.mark.parametrize(
    ("limit", "length"), [("none", 100_001), ("200000", 100_001), ("9", None)]
)
def test_exec_with_a_limit(program: Path, limit: str, length: int | None) -> None:
    code, told, _ = run_python(
        "-m", "aioproc", "exec", "--limit", limit, "--", "scripts/script.py", cwd=program
    )
    assert (code, told["length"], told["argv"]) == (23, length, ["scripts/script.py"])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="python -P is of 3.11")
def test_exec_leaves_a_safe_path_alone(program: Path) -> None:
    (program / "path.py").write_text("import json, sys; print(json.dumps(sys.path))")
    _, plain, _ = run_python("-P", "path.py", cwd=program)
    _, ours, _ = run_python("-P", "-m", "aioproc", "exec", "path.py", cwd=program)
    assert ours == plain


def test_exec_of_a_failing_program(program: Path) -> None:
    (program / "fails.py").write_text("raise KeyError('told to')")
    code, _, errors = run_python("-m", "aioproc", "exec", "fails.py", cwd=program)
    assert code == 1
    assert errors.endswith("KeyError: 'told to'\n")


def test_exec_of_a_program_that_is_not_there(program: Path) -> None:
    code, _, errors = run_python("-m", "aioproc", "exec", "nothing.py", cwd=program)
    plain, _, _ = run_python("nothing.py", cwd=program)
    assert code == plain == 2
    assert "can't open file" in errors


def test_exec_of_a_directory(program: Path) -> None:
    (program / "scripts" / "script.py").rename(program / "scripts" / "__main__.py")
    code, plain, _ = run_python("scripts", cwd=program)
    ours_code, ours, _ = run_python("-m", "aioproc", "exec", "scripts", cwd=program)
    assert code == ours_code == 23
    assert (ours["by"], ours["argv"]) == ("aioproc", plain["argv"])


@pytest.mark.parametrize(
    "arguments", [[], ["--"], ["--limit", "0", "x.py"], ["--limit", "much", "x.py"]]
)
def test_exec_misused(program: Path, arguments: list[str]) -> None:
    code, _, errors = run_python("-m", "aioproc", "exec", *arguments, cwd=program)
    assert code == 2
    assert "usage: python -m aioproc exec" in errors
