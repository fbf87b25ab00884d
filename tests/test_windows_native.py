"""The native backend on Windows: handles, jobs, pipes to their last byte."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aioproc
from aioproc import _backends
from conftest import Loop, is_alive, make_backend, run, settle
from programs import CAT, SLEEP, TRUE, WINDOWS, ends, python

if not WINDOWS:
    pytest.skip("about Windows", allow_module_level=True)

import msvcrt

import windows

Factory = Callable[[], Loop]

PIPE = aioproc.PIPE


pytestmark = pytest.mark.usefixtures("native")


# -- nothing is left


def test_cancelled_spawns_leave_nothing(new_loop: Factory) -> None:
    async def one(rounds: int) -> None:
        task = asyncio.create_task(
            aioproc.create_subprocess_exec(*SLEEP, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        )
        # From not begun at all to running.
        if rounds < 20:
            for _ in range(rounds):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(0.001 * (rounds - 20))
        task.cancel()
        try:
            process = await task
        except asyncio.CancelledError:
            return
        process.kill()
        await process.wait()

    async def main() -> None:
        await asyncio.gather(*map(one, range(50)))

    # Wine makes its desktop a child of whoever needs it first.
    others = windows.children()
    run(new_loop, main())
    before = windows.count_handles()
    run(new_loop, main())
    assert settle(lambda: not windows.children() - others)
    assert settle(lambda: gc.collect() < 0 or windows.count_handles() <= before)


def test_a_loop_closes_in_the_midst_of_a_spawn(new_loop: Factory) -> None:
    """And the garbage collector finds the child before the coroutine that would end it."""

    async def main() -> None:
        task = asyncio.ensure_future(aioproc.create_subprocess_exec(*SLEEP, stdin=PIPE))
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    others = windows.children()
    loop = new_loop()
    loop.run_until_complete(main())
    loop.close()
    del loop
    assert settle(lambda: gc.collect() < 0 or not windows.children() - others)


@pytest.mark.parametrize("ended", [False, True], ids=["alive", "ended"])
def test_a_child_is_finalized_before_its_transport(new_loop: Factory, ended: bool) -> None:
    """The garbage collector takes them in any order; the warning is true in each."""

    async def main() -> Any:
        return await aioproc.create_subprocess_exec(*SLEEP)

    process = run(new_loop, main())
    pid = process.pid
    if ended:
        os.kill(pid, signal.SIGTERM)
        assert settle(lambda: not is_alive(pid))
    child = process._transport._child
    port = child._port
    assert settle(lambda: not port.is_open)
    child.__del__()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del process, child
        assert settle(lambda: gc.collect() < 0 or bool(caught))
    (warning,) = caught
    said = "before its end was noticed" if ended else "still running"
    assert said in str(warning.message)
    assert str(warning.message).endswith("; killed") is not ended
    assert settle(lambda: not is_alive(pid))


# -- exits


@pytest.mark.asyncio
async def test_signalled_after_its_end() -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=PIPE)
    process.stdin.close()
    assert settle(lambda: not is_alive(process.pid))
    process.kill()  # it has not been noticed
    assert await process.wait() == 0
    for sig in (signal.SIGTERM, signal.CTRL_BREAK_EVENT):  # type: ignore[attr-defined]
        with pytest.raises(ProcessLookupError):
            process.send_signal(sig)


@pytest.mark.asyncio
async def test_rusage() -> None:
    code = "import time; end = time.process_time() + 0.05\nwhile time.process_time() < end: pass"
    process = await aioproc.create_subprocess_exec(*python(code))
    await process.wait()
    assert process.rusage is not None
    assert process.rusage.ru_utime + process.rusage.ru_stime >= 0.05
    peak = process.rusage.ru_maxrss
    assert peak is None or peak > 1000  # Wine may have none


# -- handles that are none


@pytest.mark.asyncio
async def test_an_invalid_handle() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        await aioproc.create_subprocess_exec(*TRUE, stdin=PIPE, stdout=999)
    info = subprocess.STARTUPINFO(lpAttributeList={"job_list": [0x7FFF0]})  # type: ignore[attr-defined]
    with pytest.raises(OSError) as caught:
        await aioproc.create_subprocess_exec(*TRUE, stdin=PIPE, startupinfo=info)
    assert caught.value.winerror == 6  # type: ignore[attr-defined]


# -- what a child inherits

WRITES_TO = """
import msvcrt, os, sys
try:
    fd = msvcrt.open_osfhandle(int(sys.argv[1]), 0)
    os.write(fd, b"x")
except OSError:
    print("no")
else:
    print("yes")
"""


@pytest.mark.asyncio
async def test_inherited_handles() -> None:
    reader, writer = os.pipe()
    handle = msvcrt.get_osfhandle(writer)  # type: ignore[attr-defined]
    os.set_handle_inheritable(handle, True)  # type: ignore[attr-defined]
    program = python(WRITES_TO, str(handle))

    async def output(**options: Any) -> bytes:
        process = await aioproc.create_subprocess_exec(*program, stdout=PIPE, **options)
        stdout, _ = await process.communicate()
        return stdout  # type: ignore[no-any-return]

    assert await output() == b"no\n"
    assert await output(close_fds=False) == b"yes\n"
    # Windows refuses a list that names one twice.
    info = subprocess.STARTUPINFO(  # type: ignore[attr-defined]
        lpAttributeList={"handle_list": [handle, handle]}
    )
    assert await output(startupinfo=info) == b"yes\n"
    assert await output(startupinfo=info, stderr=aioproc.STDOUT) == b"yes\n"
    # With no stream redirected.
    process = await aioproc.create_subprocess_exec(*program, startupinfo=info)
    assert await process.wait() == 0
    os.close(writer)
    assert os.read(reader, 100) == b"xxxx"
    os.close(reader)


@pytest.mark.asyncio
async def test_startupinfo_with_handles_of_its_own(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file:
        handle = msvcrt.get_osfhandle(file.fileno())  # type: ignore[attr-defined]
        os.set_handle_inheritable(handle, True)  # type: ignore[attr-defined]
        info = subprocess.STARTUPINFO(  # type: ignore[attr-defined]
            dwFlags=subprocess.STARTF_USESTDHANDLES,  # type: ignore[attr-defined]
            hStdOutput=handle,
            lpAttributeList={"handle_list": [handle]},
        )
        process = await aioproc.create_subprocess_exec(
            *python("print('hello', flush=True)"), startupinfo=info
        )
        assert await process.wait() == 0
    assert (tmp_path / "out").read_bytes() == b"hello\n"


@pytest.mark.asyncio
async def test_our_handles_stay_ours(tmp_path: Path) -> None:
    """Children that inherit everything, made at the same time as others with pipes, get
    none of those."""

    async def piped() -> None:
        process = await aioproc.create_subprocess_exec(*CAT, stdin=PIPE, stdout=PIPE)
        assert await process.communicate(b"x") == (b"x", None)

    async def greedy() -> Any:
        return await aioproc.create_subprocess_exec(
            *SLEEP, stdout=aioproc.DEVNULL, close_fds=False
        )

    results = await asyncio.gather(*(greedy() if i % 2 else piped() for i in range(20)))
    for process in filter(None, results):
        process.kill()
        await process.wait()


@pytest.mark.asyncio
async def test_the_environment_is_that_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOPROC_TEST", "ä€\U0001f600")
    program = python("import os; print(os.environ.get('AIOPROC_TEST'))")
    spawning = asyncio.ensure_future(aioproc.create_subprocess_exec(*program, stdout=PIPE))
    await asyncio.sleep(0)
    monkeypatch.delenv("AIOPROC_TEST")
    stdout, _ = await (await spawning).communicate()
    assert stdout.decode() == "ä€\U0001f600\n"


@pytest.mark.asyncio
async def test_an_empty_environment() -> None:
    process = await aioproc.create_subprocess_exec(
        os.environ["COMSPEC"], "/d", "/c", "exit 7", env={}
    )
    assert await process.wait() == 7


# -- pipes


@pytest.mark.asyncio
async def test_what_was_taken_goes_out_after_close() -> None:
    program = (
        "import sys; sys.stdin.buffer.read(1); print('ready', flush=True)\n"
        "print(len(sys.stdin.buffer.read()))"
    )
    process = await aioproc.create_subprocess_exec(*python(program), stdin=PIPE, stdout=PIPE)
    # More than Windows keeps for a reader: the last write is under way when it is closed.
    process.stdin.write(b"x" * 1_000_001)
    process.stdin.close()
    assert await process.communicate() == (b"ready\n1000000\n", None)


@pytest.mark.asyncio
async def test_a_write_of_nothing_is_no_end() -> None:
    """A reader's operation comes back with no bytes then, as nowhere else."""
    program = (
        "import ctypes, msvcrt, os, sys\n"
        "write = ctypes.WinDLL('kernel32').WriteFile\n"
        "handle, done = ctypes.c_void_p(msvcrt.get_osfhandle(1)), ctypes.c_ulong()\n"
        "for i in range(3):\n"
        "    assert write(handle, b'', 0, ctypes.byref(done), None)\n"
        "    sys.stdin.buffer.raw.read(1)\n"
        "    os.write(1, b'x')\n"
    )
    process = await aioproc.create_subprocess_exec(*python(program), stdin=PIPE, stdout=PIPE)
    for _ in range(3):
        process.stdin.write(b"x")
        assert await process.stdout.readexactly(1) == b"x"
    assert await process.communicate() == (b"", None)


@pytest.mark.asyncio
async def test_closed_while_a_read_is_pending() -> None:
    transport, _ = await aioproc.subprocess_exec(asyncio.SubprocessProtocol, *CAT, stderr=None)
    await asyncio.sleep(0.05)  # nothing comes of it but that reads are under way
    transport.get_pipe_transport(1).close()
    transport.get_pipe_transport(0).write(b"x" * 1_000_000)
    transport.close()
    assert await transport._wait() == 1


class Counts(asyncio.SubprocessProtocol):
    def __init__(self) -> None:
        self.received = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.received += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set_result(None)


@pytest.mark.asyncio
async def test_back_pressure() -> None:
    """A transport that is paused reads no more than what was under way; then the child
    stands still."""
    size = 4_000_000
    program = f"import os, sys; os.write(1, b'x' * {size}); sys.stdin.read()"
    transport, protocol = await aioproc.subprocess_exec(Counts, *python(program), stderr=None)
    pipe = transport.get_pipe_transport(1)
    pipe.pause_reading()
    received = protocol.received
    await asyncio.sleep(0.3)  # in which all of it would come otherwise
    assert protocol.received == received < size / 2
    for _ in range(5):
        pipe.resume_reading()
        pipe.pause_reading()
    pipe.resume_reading()
    while protocol.received < size:
        await asyncio.sleep(0.001)
    transport.get_pipe_transport(0).close()
    await protocol.over
    assert protocol.received == size
    transport.close()


def test_a_pipe_outlives_the_port_of_its_loop(new_loop: Factory) -> None:
    """The loop is closed with a read and a write under way; the ends can be closed."""

    async def main() -> Any:
        process = await aioproc.create_subprocess_exec(*SLEEP, stdin=PIPE, stdout=PIPE)
        process.stdin.write(b"x" * 1_000_000)
        await asyncio.sleep(0)
        return process

    process = run(new_loop, main())
    assert is_alive(process.pid)
    process.kill()
    assert settle(lambda: process.returncode is not None)
    assert process.returncode == 1
    process._transport.close()


def test_the_thread_of_a_port(new_loop: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a loop, from the first child to some time after the last."""
    monkeypatch.setattr("aioproc._backends.watcher.LINGER", 0.01)

    def ports() -> int:
        return sum(thread.name == "aioproc-port" for thread in threading.enumerate())

    async def main() -> None:
        for _ in range(2):
            assert not ports()
            processes = [
                await aioproc.create_subprocess_exec(*CAT, stdin=PIPE, stdout=PIPE)
                for _ in range(5)
            ]
            assert ports() == 1
            for process in processes:
                await process.communicate(b"")
            end = time.monotonic() + 30
            while ports():
                assert time.monotonic() < end
                await asyncio.sleep(0.001)

    assert not ports()
    run(new_loop, main())


@pytest.mark.parametrize("program", [TRUE[0], __file__], ids=["starts", "fails"])
@pytest.mark.asyncio
async def test_generators_are_shut_down_while_a_child_is_made(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """The loop goes on before CreateProcessW has come to an end."""
    monkeypatch.setattr("aioproc._backends.windows.port.REJOIN", 0)
    loop = asyncio.get_running_loop()
    words = [program, *TRUE[1:]]
    starting = [loop.create_task(aioproc.create_subprocess_exec(*words)) for _ in range(8)]
    await asyncio.sleep(0)
    await loop.shutdown_asyncgens()
    for process in await asyncio.gather(*starting, return_exceptions=True):
        if program == __file__:
            assert isinstance(process, OSError)
        else:
            assert process.pid > 0
            assert await process.wait() == 0


# -- jobs

JOB = """
import asyncio, ctypes, os, subprocess, sys
import aioproc
from programs import *
kernel32 = ctypes.WinDLL("kernel32")
kernel32.CreateJobObjectW.restype = ctypes.c_size_t
kernel32.SetInformationJobObject.argtypes = [
    ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong]
job = kernel32.CreateJobObjectW(None, None)
limits = bytearray(144)  # JOBOBJECT_EXTENDED_LIMIT_INFORMATION
limits[16:20] = (0x2000).to_bytes(4, "little")  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
assert kernel32.SetInformationJobObject(job, 9, bytes(limits), len(limits))

async def main():
    info = subprocess.STARTUPINFO(lpAttributeList={"job_list": [job]})
    process = await aioproc.create_subprocess_exec(
        *python("import subprocess, sys\\n"
                f"child = subprocess.Popen({SLEEP!r})\\n"
                "print(child.pid, flush=True); child.wait()"),
        stdout=aioproc.PIPE, startupinfo=info)
    grandchild = await process.stdout.readline()
    print(process.pid, int(grandchild), flush=True)
    sys.stdin.read()
asyncio.run(main())
"""


def test_a_job_ends_with_the_parent() -> None:
    """Where asked: a job that kills on close, whose handle dies with us."""
    here = Path(__file__).resolve().parent
    env = dict(os.environ, AIOPROC_BACKEND="native")
    env["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])
    parent = subprocess.Popen(
        [getattr(sys, "_base_executable", sys.executable), "-c", JOB],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdout is not None
        child, grandchild = map(int, parent.stdout.readline().split())
        assert is_alive(child)
        assert is_alive(grandchild)
        parent.kill()
        parent.wait()
        assert settle(lambda: not is_alive(child) and not is_alive(grandchild))


@pytest.mark.asyncio
async def test_jobs_are_refused_by_the_pure_backend() -> None:
    previous = _backends.use(make_backend("pure"))
    try:
        info = subprocess.STARTUPINFO(lpAttributeList={"job_list": [1]})  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="job_list"):
            await aioproc.create_subprocess_exec(*TRUE, startupinfo=info)
    finally:
        _backends.use(previous)


# -- the file


def imported_libraries(path: Path) -> set[str]:
    """The names in a PE file's import table (PE Format, "The .idata Section")."""
    data = path.read_bytes()

    def number(at: int, size: int = 4) -> int:
        return int.from_bytes(data[at : at + size], "little")

    header = number(0x3C)
    optional = header + 24
    assert data[header : header + 4] == b"PE\0\0"
    assert number(optional, 2) == 0x20B  # 64 bits
    sections = optional + number(header + 20, 2)

    def offset(address: int) -> int:
        for i in range(number(header + 6, 2)):
            at = sections + 40 * i
            start, size, raw = number(at + 12), number(at + 8), number(at + 20)
            if start <= address < start + size:
                return raw + address - start
        raise AssertionError(f"no section holds {address:#x}")

    found = set()
    at = offset(number(optional + 112 + 8))
    while number(at + 12):
        name = offset(number(at + 12))
        found.add(data[name : data.index(b"\0", name)].decode().lower())
        at += 20
    return found


def test_what_the_extension_imports() -> None:
    """One file for every CPython, and nothing of a compiler's own."""
    spec = importlib.util.find_spec("aioproc._native")
    assert spec is not None
    assert spec.origin is not None
    names = imported_libraries(Path(spec.origin))
    c_library = {name for name in names if name.startswith(("api-ms-win-crt-", "ucrtbase"))}
    assert names - c_library - {"msvcrt.dll", "vcruntime140.dll"} == {
        "kernel32.dll",
        "python3.dll",
    }


def test_the_report() -> None:
    report = _backends.report()
    assert report["backend"] in ("native", "pure")
    assert "native" not in report["not_used"] or os.environ.get("AIOPROC_BACKEND") == "pure"


def test_many_at_once(any_loop: Factory) -> None:
    """More than there are threads that create, and than one batch tells of."""

    async def one(code: int) -> int:
        process = await aioproc.create_subprocess_exec(*ends(code))
        return await process.wait()  # type: ignore[no-any-return]

    async def main() -> None:
        assert await asyncio.gather(*map(one, range(80))) == list(range(80))

    run(any_loop, main())
