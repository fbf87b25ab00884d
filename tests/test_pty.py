"""Children with a terminal of their own (pty=True)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import hashlib
import os
import shutil
import signal
import threading
import warnings
from typing import Any

import pytest

import aioproc as package
from conftest import is_alive, run
from helpers import readable, script
from marks import posix_only
from programs import CAT, SLEEP, TRUE, WINDOWS, python

pytestmark = [pytest.mark.asyncio, posix_only("terminals for children")]

MIB = 1024 * 1024


def needs(program: str) -> Any:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"there is no {program} here")


async def start(api: Any, *command: str, pty: Any = True, **options: Any) -> Any:
    return await api.create_subprocess_exec(*command, pty=pty, **options)


async def rest(process: Any) -> bytes:
    """All that it shows from now on, and it ends well."""
    shown: bytes = await process.stdout.read()
    assert await process.wait() == 0
    return shown


async def said(process: Any, what: bytes) -> bytes:
    """All that it shows up to that."""
    shown: bytes = await process.stdout.readuntil(what)
    return shown


async def interrupt(process: Any, answer: bytes) -> None:
    """Types Ctrl-C until it is answered: what has been written while the kernel sends the
    signal is thrown away (isig() in its drivers/tty/n_tty.c), the answer perhaps."""
    while True:
        process.stdin.write(b"\x03")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(said(process, answer), 2)
            return


# -- what the child has


ABOUT = """
import fcntl, os, struct, termios
ours = os.getpid()
print(all(map(os.isatty, (0, 1, 2))), os.getsid(0) == ours, os.getpgid(0) == ours)
print(os.tcgetpgrp(0) == ours, len({os.ttyname(fd) for fd in (0, 1, 2)}))
with open("/dev/tty", "wb", buffering=0) as terminal:
    terminal.write(b"by its name\\n")
print(struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))[:2])
print(all(os.get_blocking(fd) for fd in (0, 1, 2)))
"""
ABOUT_SAYS = b"True True True\r\nTrue 1\r\nby its name\r\n(%d, %d)\r\nTrue\r\n"


@pytest.mark.parametrize(
    ("pty", "size"),
    [
        (True, (24, 80)),
        ((50, 132), (50, 132)),
        ([3, 65535], (3, 65535)),
        (os.terminal_size((100, 7)), (7, 100)),  # which is (columns, lines)
    ],
    ids=["True", "size", "list", "terminal_size"],
)
async def test_it_is_all_three_streams(aioproc: Any, pty: Any, size: Any) -> None:
    process = await start(aioproc, *python(ABOUT), pty=pty)
    assert process.stderr is None
    output, nothing = await process.communicate()
    assert (output, nothing) == (ABOUT_SAYS % size, None)
    assert process.returncode == 0


async def test_a_shell(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_shell("tty; stty size", pty=(3, 4))
    assert (await process.communicate())[0].endswith(b"\r\n3 4\r\n")


@pytest.mark.primary
@pytest.mark.parametrize(
    "options",
    [
        {"preexec_fn": lambda: os.chdir("/")},
        {"close_fds": False},
        {"tree": True},
        {"start_new_session": True},
        {"cwd": "/", "umask": 0o22},
        {"restore_signals": False},
        {"nice": 3, "rlimits": {"nofile": 50}},
    ],
    ids="-".join,
)
@pytest.mark.everywhere
async def test_with_other_options(aioproc: Any, options: Any) -> None:
    process = await start(aioproc, *python(ABOUT), **options)
    assert (await process.communicate())[0] == ABOUT_SAYS % (24, 80)


@pytest.mark.root
@pytest.mark.skipif(WINDOWS or os.geteuid() != 0, reason="needs root")
@pytest.mark.everywhere
@pytest.mark.primary
async def test_it_belongs_to_the_user(aioproc: Any) -> None:
    code = ABOUT + "print(os.getuid() == os.stat(os.ttyname(0)).st_uid == 65534)\n"
    code += "os.close(os.open(os.ttyname(0), os.O_RDWR))"
    process = await start(aioproc, "/usr/bin/env", "python3", "-c", code, user=65534, cwd="/")
    output = (await process.communicate())[0]
    assert output == ABOUT_SAYS % (24, 80) + b"True\r\n"


SIGNALS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTSTP", "SIGTTIN", "SIGTTOU")


async def test_what_its_keys_send_is_not_ignored(aioproc: Any) -> None:
    code = f"""
        for name in {SIGNALS}:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        async def main():
            cat = await aioproc.create_subprocess_exec("cat", pty=True)
            cat.stdin.write(b"a\\n")
            await cat.stdout.readuntil(b"a\\r\\na\\r\\n")
            cat.stdin.write(b"\\x03")
            print(await cat.wait(), cat.returncode == -signal.SIGINT)
            code = "import signal; print({{signal.getsignal(n) for n in {SIGNALS!r}}})"
            code = code.replace("getsignal(n)", "getsignal(getattr(signal, n)).name")
            child = [sys.executable, "-c", "import signal\\n"
                "signal.signal(2, signal.SIG_DFL)\\n"
                "print({{signal.getsignal(getattr(signal, n)).name for n in {SIGNALS!r}}})"]
            process = await aioproc.create_subprocess_exec(*child, pty=True)
            print((await process.communicate())[0])
        run(new_event_loop, main())
    """
    code = code.replace("{{", "{").replace("}}", "}")
    assert await script(code) == "-2 True\nb\"{'SIG_DFL'}\\r\\n\"\n"


@pytest.mark.primary
async def test_our_own_terminal_is_left_alone(aioproc: Any) -> None:
    """Nor does who has none come to have one, by opening it."""
    code = """
        import termios
        from programs import TRUE
        def state():
            try:
                fd = os.open("/dev/tty", os.O_RDWR)
            except OSError as error:
                return error.errno
            try:
                return os.tcgetpgrp(fd), termios.tcgetattr(fd)
            finally:
                os.close(fd)
        before = state()
        async def main():
            await aioproc.run(*TRUE, pty=True)
            process = await aioproc.create_subprocess_exec("cat", pty=True, echo=False)
            process.resize(10, 10)
            process.stdin.write(b"x\\n")
            await process.stdout.readline()
            process.stdin.close()
            await process.wait()
            return state()
        after = run(new_event_loop, main())
        assert before == after, (before, after)
        print("none" if before == errno.ENXIO else "same")
    """
    assert await script(code, start_new_session=True) == "none\n"


# -- what goes in


async def test_an_end_of_input(aioproc: Any) -> None:
    process = await start(aioproc, "sh", "-c", "cat; echo one; cat; echo two; cat", echo=False)
    process.stdin.write(b"line\n")
    process.stdin.write_eof()
    assert await said(process, b"one\r\n") == b"line\r\none\r\n"
    process.stdin.write(b"unfinished")  # then it takes two of them
    process.stdin.write_eof()
    assert await said(process, b"two\r\n") == b"unfinishedtwo\r\n"
    process.stdin.write(b"last\n")
    process.stdin.close()
    await process.stdin.wait_closed()
    assert process.stdin.is_closing()
    assert await rest(process) == b"last\r\n"


async def test_another_character_for_it(aioproc: Any) -> None:
    process = await start(aioproc, "sh", "-c", "stty eof x; echo ready; cat", echo=False)
    await said(process, b"ready\r\n")
    process.stdin.write(b"\x04\n")
    process.stdin.write_eof()
    assert await rest(process) == b"\x04\r\n"


async def test_it_shows_what_is_typed(aioproc: Any) -> None:
    process = await start(aioproc, *CAT)
    process.stdin.write(b"a\n")
    process.stdin.write_eof()
    assert await rest(process) == b"a\r\na\r\n"
    process = await start(aioproc, *CAT, echo=False)
    process.stdin.write(b"a\n")
    process.stdin.write_eof()
    assert await rest(process) == b"a\r\n"


READ_ALL = """
import hashlib, os, sys, tty
size, raw = int(sys.argv[1]), sys.argv[2] == "raw"
if raw: tty.setraw(0)
os.write(1, b"ready")
got = hashlib.sha256()
while size:
    data = os.read(0, 65536)
    got.update(data)
    size -= len(data)
os.write(1, got.hexdigest().encode() + b".")
"""


@pytest.mark.parametrize("mode", ["raw", "lines"])
async def test_a_mebibyte_in(aioproc: Any, mode: str) -> None:
    data = os.urandom(MIB)
    if mode == "lines":
        # With its newline a line has 4096 bytes at most, which is what Linux has for it.
        data = b"".join(b"%04094d\n" % i for i in range(256))
    process = await start(aioproc, *python(READ_ALL, str(len(data)), mode), echo=False)
    await said(process, b"ready")
    process.stdin.write(data)
    assert process.stdin.transport.get_write_buffer_size() > 0  # it takes no more just now
    await process.stdin.drain()
    digest = hashlib.sha256(data).hexdigest().encode() + b"."
    assert await said(process, b".") == digest
    assert await process.wait() == 0
    assert await process.stdout.read() == b""


@pytest.mark.primary
async def test_a_line_that_is_too_long_is_cut(aioproc: Any) -> None:
    """By the system: what docs/semantics.md says."""
    code = "import os; os.write(1, b'ready'); print(len(os.read(0, 65536)))"
    process = await start(aioproc, *python(code), echo=False)
    await said(process, b"ready")
    process.stdin.write(b"x" * 5000 + b"\n")
    assert await rest(process) == b"4096\r\n"


async def test_nobody_reads(aioproc: Any) -> None:
    process = await start(aioproc, "sh", "-c", "stty raw -echo; echo ready; exec sleep 1000")
    await said(process, b"ready")
    process.stdin.write(b"x" * 4 * MIB)
    drain = asyncio.ensure_future(process.stdin.drain())
    await asyncio.sleep(0)
    assert not drain.done()
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    with contextlib.suppress(ConnectionError):
        await drain
    assert await process.stdout.read() == b"\r\n"[1:]
    await process.stdin.wait_closed()


@pytest.mark.primary
async def test_communicate_has_no_input(aioproc: Any) -> None:
    process = await start(aioproc, *CAT)
    with pytest.raises(ValueError, match="terminal"):
        await process.communicate(b"x")
    assert await process.communicate(b"") == (b"", None)
    assert process.returncode == 0


# -- what comes out


FLOOD = """
import hashlib, os, sys, tty
tty.setraw(1)
block, n = hashlib.sha512(b"aioproc").digest() * 160, 0
while n < int(sys.argv[1]):
    n += os.write(1, block[n % len(block):])
"""


async def test_ten_mebibytes_out(aioproc: Any) -> None:
    size = 10 * MIB
    process = await start(aioproc, *python(FLOOD, str(size)))
    output = (await process.communicate())[0]
    block = hashlib.sha512(b"aioproc").digest() * 160
    whole = (block * (len(output) // len(block) + 1))[: len(output)]
    assert len(output) >= size
    assert output == whole
    assert process.returncode == 0


class Protocol(asyncio.SubprocessProtocol):
    def __init__(self) -> None:
        self.data = bytearray()
        self.events: list[Any] = []
        self.lost = asyncio.get_running_loop().create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        assert fd == 1
        self.data += data

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.events.append(fd)

    def process_exited(self) -> None:
        self.events.append("exit")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


async def test_a_protocol(aioproc: Any) -> None:
    transport, protocol = await aioproc.subprocess_exec(Protocol, *CAT, pty=True)
    assert transport.get_pipe_transport(2) is None
    stdin = transport.get_pipe_transport(0)
    assert stdin.can_write_eof()
    stdin.write(b"hi\n")
    stdin.write_eof()
    await protocol.lost
    assert protocol.data == b"hi\r\nhi\r\n"
    assert sorted(map(str, protocol.events)) == ["0", "1", "exit"]
    transport, protocol = await aioproc.subprocess_shell(Protocol, "stty size", pty=(2, 3))
    transport.resize(2, 4)  # whoever is first
    await protocol.lost
    assert protocol.data in (b"2 3\r\n", b"2 4\r\n")


async def test_a_reader_that_pauses_brakes_the_child(aioproc: Any) -> None:
    """It says how much a terminal takes that nobody reads, and writes on when somebody does."""
    code = """
import os, sys, tty
tty.setraw(1, tty.TCSANOW)  # which drops nothing
os.set_blocking(1, False)
n = 0
os.read(0, 1)
try:
    while n < 1 << 20: n += os.write(1, b"x" * 4096)
except BlockingIOError:
    pass
os.write(int(sys.argv[1]), b"%d" % n)
os.set_blocking(1, True)
while n < 1 << 20: n += os.write(1, b"x" * 4096)
"""
    reader, writer = os.pipe()
    try:
        transport, protocol = await aioproc.subprocess_exec(
            Protocol, *python(code, str(writer)), pty=True, echo=False, pass_fds=[writer]
        )
        stdout = transport.get_pipe_transport(1)
        stdout.pause_reading()
        transport.get_pipe_transport(0).write(b"\n")
        await readable(reader)
        taken = int(os.read(reader, 100))
        assert 4096 <= taken < MIB
        assert not protocol.data
        stdout.resume_reading()
        await protocol.lost
        assert MIB <= len(protocol.data) < MIB + 4096
    finally:
        os.close(reader)
        os.close(writer)


async def test_what_was_written_before_the_end(aioproc: Any) -> None:
    """It is there though nobody has the other side open any more."""
    for _ in range(20):
        process = await start(aioproc, "sh", "-c", "printf '%8000d'")
        assert await process.wait() == 0
        assert len(await process.stdout.read()) == 8000


# -- its size


#: Till it is interrupted, or its terminal hung up.
TELLS_SIZE = """
import os, signal
signals = {signal.SIGWINCH, signal.SIGINT, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
number = signal.SIGWINCH
while number == signal.SIGWINCH:
    os.write(1, b"%d %d." % os.get_terminal_size(0)[::-1])
    number = signal.sigwait(signals)
"""


async def test_resize(aioproc: Any) -> None:
    process = await start(aioproc, *python(TELLS_SIZE))
    assert await said(process, b".") == b"24 80."
    process.resize(40, 100)
    assert await said(process, b".") == b"40 100."
    process.resize(columns=5, rows=6)
    assert await said(process, b".") == b"6 5."
    process.stdin.write(b"\x03")
    process.stdin.close()
    assert await rest(process) == b"^C"
    with pytest.raises(ProcessLookupError):
        process.resize(1, 1)


@pytest.mark.primary
async def test_no_size(aioproc: Any) -> None:
    process = await start(aioproc, *CAT)
    for rows, columns in ((0, 80), (24, 0), (-1, 1), (1, 65536)):
        with pytest.raises(ValueError, match="1 to 65535"):
            process.resize(rows, columns)
    for size in ((None, 80), (24.0, 80), (24, "80"), (True, 1)):
        with pytest.raises(TypeError, match="must be an integer"):
            process.resize(*size)
    process.stdin.close()
    await process.communicate()
    process = await aioproc.create_subprocess_exec(*TRUE)
    with pytest.raises(RuntimeError, match="pty=True"):
        process.resize(24, 80)
    await process.wait()


# -- its end


PARTING = """
import os, signal, sys
told, go = map(int, sys.argv[1:])
signal.signal(signal.SIGHUP, lambda *_: (os.write(told, b"hung up"), os._exit(1)))
for fd in 0, 1, 2: os.close(fd)
os.read(go, 1)
os.write(told, b"alive")
os._exit(3)
"""


async def test_a_child_that_closes_its_terminal_lives_on(aioproc: Any) -> None:
    told, tell = os.pipe()
    wait, go = os.pipe()
    try:
        process = await start(
            aioproc, *python(PARTING, str(tell), str(wait)), pass_fds=[tell, wait]
        )
        assert await process.stdout.read() == b""
        # Nobody reads that, which is no reason to hang up either.
        process.stdin.write(b"x\n")
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        await asyncio.sleep(0)
        os.write(go, b"x")
        assert await process.wait() == 3
        assert os.read(told, 100) == b"alive"
    finally:
        for fd in (told, tell, wait, go):
            os.close(fd)


HEARS = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
print("ready", flush=True)
signal.sigwait({signal.SIGHUP})
os.write(int(sys.argv[1]), b"hung up")
"""


@pytest.mark.parametrize("way", ["close", "loop closed", "async with", "kill"])
async def test_it_is_hung_up_with_the_process(aioproc: Any, way: str) -> None:
    """Whoever is in the foreground hears of it, not only the child."""
    told, tell = os.pipe()
    os.set_blocking(told, False)
    try:
        child = python(HEARS, str(tell))
        code = "import os, subprocess, sys; subprocess.run(sys.argv[1:], close_fds=False)"

        async def make() -> Any:
            options = {"pass_fds": [tell], "tree": way != "kill"}
            process = await start(aioproc, *python(code, *child), **options)
            await said(process, b"ready\r\n")
            return process

        if way == "loop closed":

            def elsewhere() -> None:
                run(loop, make())  # and drops it
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ResourceWarning)
                    gc.collect()

            loop = type(asyncio.get_running_loop())
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
        else:
            process = await make()
        if way == "close":
            process._transport.close()
        elif way == "kill":
            process.kill()
            assert await process.wait() == -signal.SIGKILL
        elif way == "async with":
            async with process:
                pass
            assert process.returncode == -signal.SIGHUP
        await readable(told)
        assert os.read(told, 100) == b"hung up"
        if way != "loop closed":
            await process.stdout.read()
            await process.wait()
    finally:
        os.close(told)
        os.close(tell)


@needs("bash")
async def test_background_jobs_of_a_shell(aioproc: Any) -> None:
    """They are in groups of their own; one is stopped, one does not hear of the end."""
    process = await start(
        aioproc, "bash", "--norc", "-i", tree=True, env={"PS1": "$", "PATH": os.environ["PATH"]}
    )
    pids = []
    async with process:
        for command in (
            b"sleep 1000 &",
            b"(trap '' HUP; exec sleep 1000) &",
            b"nohup sleep 1000 </dev/null >/dev/null 2>&1 &",
        ):
            process.stdin.write(command + b" echo started: $!.\n")
            await said(process, b"\r\nstarted: ")
            pids.append(int((await said(process, b"."))[:-1]))
        process.stdin.write(b"kill -STOP %1; echo stop''ped; sleep 2000; \n")
        await said(process, b"stopped")
        assert all(map(is_alive, pids))
        assert len({os.getpgid(pid) for pid in (process.pid, *pids)}) == 4
        assert {os.getsid(pid) for pid in pids} == {process.pid}
        assert await process.kill_tree() == []
    assert not any(map(is_alive, pids))


@needs("bash")
@pytest.mark.primary
async def test_a_shell_ends_with_its_terminal(aioproc: Any) -> None:
    """It passes over SIGTERM."""
    process = await start(aioproc, "bash", "--norc", "-i")
    process.stdin.write(b"PS1=''prom''pt; echo re''ady\n")
    await said(process, b"ready")
    await said(process, b"prompt")
    async with process:
        pass
    assert process.returncode == -signal.SIGHUP
    process = await start(aioproc, *SLEEP)
    async with process:
        process.send_signal(signal.SIGSTOP)
    assert process.returncode == -signal.SIGHUP


# -- what people do on terminals


async def test_getpass(aioproc: Any) -> None:
    code = "import getpass; print(len(getpass.getpass('Password for %s: ' % 'x')))"
    process = await start(aioproc, *python(code))
    assert await said(process, b"x: ") == b"Password for x: "
    process.stdin.write(b"secret\n")
    assert await rest(process) == b"\r\n6\r\n"  # and it is not shown


@needs("bash")
@pytest.mark.primary
async def test_read_silently(aioproc: Any) -> None:
    process = await start(aioproc, "bash", "-c", "read -r -s -p 'PIN: ' pin; echo; echo ${#pin}")
    assert await said(process, b"PIN: ") == b"PIN: "
    process.stdin.write(b"12345\n")
    assert (await rest(process)).endswith(b"\r\n5\r\n")


@pytest.mark.primary
async def test_python_interactively(aioproc: Any) -> None:
    env = {**os.environ, "PYTHON_BASIC_REPL": "1", "TERM": "dumb"}
    process = await start(aioproc, python("")[0], "-q", "-i", env=env)
    await said(process, b">>> ")
    process.stdin.write(b"6 * 7\n")
    assert b"\n42\r\n" in await said(process, b">>> ")
    process.stdin.write(b"while True: pass\n\n")
    await said(process, b"pass")
    await said(process, b"... ")
    await interrupt(process, b">>> ")
    process.stdin.write_eof()
    # Python's own way to end after an interrupt that nobody has caught.
    assert await process.wait() in (0, -signal.SIGINT)


#: Without what the sanitizers need, under which top hangs.
ON_XTERM = {"TERM": "xterm", "LD_PRELOAD": None}


@pytest.mark.primary
async def test_vim(aioproc: Any) -> None:
    program = shutil.which("vim") or shutil.which("vim.tiny")
    if program is None:
        pytest.skip("there is no vim here")
    done = await aioproc.run(program, "-u", "NONE", "-c", "q", pty=True, env_update=ON_XTERM)
    assert done.stdout.startswith(b"\x1b")
    assert done.complete


@needs("top")
@pytest.mark.primary
async def test_top(aioproc: Any) -> None:
    done = await aioproc.run("top", "-n", "1", pty=True, env_update=ON_XTERM)
    assert b"load average" in done.stdout


# -- open_process()


async def test_open_process(aioproc: Any) -> None:
    options = {"pty": (5, 6), "text": True, "echo": False}
    async with aioproc.open_process("sh", "-c", "stty size; cat", **options) as process:
        assert await process.read_until("\n") == "5 6\n"
        assert process.stderr is None
        process.stdin.write("line\nunfinished")
        process.stdin.write_eof()
        assert await process.stdout.read() == "line\nunfinished"
        assert await process.wait() == 0
    chunks = []
    async with aioproc.open_process("sh", "-c", "echo a; echo b >&2", pty=True) as process:
        async for stream, line in process.lines():
            chunks.append((stream, line))
    assert chunks == [("stdout", b"a\r\n"), ("stdout", b"b\r\n")]
    with pytest.raises(ValueError, match="all of them are the terminal"):
        aioproc.open_process(*CAT, pty=True, stderr=aioproc.PIPE)


PERSISTS = """
import os, signal
signals = {signal.SIGHUP, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
os.write(1, b"ready.")
while signal.sigwait(signals) == signal.SIGHUP: os.write(1, b"hup.")
os.write(1, b"term.")
os._exit(3)
"""


async def test_stop(aioproc: Any) -> None:
    """Step by step, and what is said meanwhile is there."""
    for tree in (True, False):
        options = {"pty": True, "stop": 0.2, "tree": tree}
        process = await aioproc.open_process(*python(PERSISTS), **options)
        await process.read_until(b"ready.")
        assert await process.stop() == 3
        said_so = await process.stdout.read()
        assert said_so in (b"hup.hup.term.", b"hup.term.")  # two that wait are one
    process = await aioproc.open_process(*CAT, pty=True)
    assert await process.stop([("eof", 30)]) == 0
    assert await process.stdout.read() == b""
    process = await aioproc.open_process(*CAT, pty=True)
    assert await process.stop(10) == -signal.SIGHUP
    assert await process.stdout.read() == b""


# -- run()


async def test_run(aioproc: Any) -> None:
    done = await aioproc.run("sh", "-c", "stty size; echo oops >&2", pty=(5, 6))
    assert (done.stdout, done.stderr) == (b"5 6\r\noops\r\n", None)
    assert done.complete
    done = await aioproc.run_shell("echo a; echo b >&2", pty=True, text=True)
    assert (done.stdout, done.stderr) == ("a\nb\n", None)
    lines: list[Any] = []
    await aioproc.run_shell(
        "echo a; echo b", pty=True, on_line=lambda name, line: lines.append((name, line))
    )
    assert lines == [("stdout", b"a\r\n"), ("stdout", b"b\r\n")]


async def test_a_run_of_ten_mebibytes(aioproc: Any) -> None:
    done = await aioproc.run(*python(FLOOD, str(10 * MIB)), pty=True, max_output=1000)
    assert len(done.stdout) == 1000
    assert done.dropped[0] >= 10 * MIB - 1000
    done = await aioproc.run(*python(FLOOD, str(10 * MIB)), pty=True)
    assert 10 * MIB <= len(done.stdout) < 10 * MIB + 65536


async def test_a_run_that_takes_too_long(aioproc: Any) -> None:
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run("sh", "-c", "trap '' TERM; echo a; sleep 1000", pty=True, timeout=0.2)
    result = caught.value.result
    assert (result.stdout, result.forced, result.returncode) == (b"a\r\n", "stop", -1)
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run("cat", pty=True, timeout=0.1, stop=[("eof", 30)])
    assert (caught.value.result.returncode, caught.value.result.forced) == (0, "stop")
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run(*SLEEP, pty=True, timeout=0.05, tree=False)
    assert caught.value.result.returncode == -signal.SIGHUP


async def test_who_is_left_behind_by_a_run(aioproc: Any) -> None:
    """It has the terminal open; it is no end of what is to be read, but of the wait."""
    command = "trap '' HUP; sleep 1000 & echo $!"
    options = {"leftovers": "kill", "drain": 0.02, "stop": 0.2}
    done = await aioproc.run("sh", "-c", f"trap 'exit' TERM; {command}", pty=True, **options)
    assert not is_alive(int(done.stdout))
    done = await aioproc.run("sh", "-c", command, pty=True, drain=0.02)
    assert not done.complete
    os.kill(int(done.stdout), signal.SIGKILL)


async def test_a_run_that_is_cancelled(aioproc: Any) -> None:
    task = asyncio.ensure_future(aioproc.run("sh", "-c", "echo a; exec sleep 1000", pty=True))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.result.returncode == -signal.SIGHUP  # type: ignore[attr-defined]


# -- what is refused


@pytest.mark.primary
@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"stdin": package.PIPE}, ValueError, "all of them are the terminal"),
        ({"stdout": package.DEVNULL}, ValueError, "all of them are the terminal"),
        ({"stderr": package.STDOUT}, ValueError, "all of them are the terminal"),
        ({"start_new_session": False}, ValueError, "a session of its own"),
        ({"process_group": 0}, ValueError, "process_group"),
        ({"pty": (0, 80)}, ValueError, "rows must be 1 to 65535"),
        ({"pty": (24, 65536)}, ValueError, "columns must be 1 to 65535"),
        ({"pty": (24, 80, 1)}, TypeError, "rows, columns"),
        ({"pty": "yes"}, TypeError, "rows, columns"),
        ({"pty": 24}, TypeError, "rows, columns"),
        ({"pty": (24, True)}, TypeError, "columns must be an integer"),
        ({"pty": False, "echo": False}, ValueError, "needs pty=True"),
        ({"pty": None, "echo": False}, ValueError, "needs pty=True"),
    ],
    ids=repr,
)
async def test_refused(aioproc: Any, options: Any, error: Any, says: str) -> None:
    for function in (aioproc.create_subprocess_exec, aioproc.run):
        with pytest.raises(error, match=says):
            await function(*TRUE, **{"pty": True, **options})


@pytest.mark.primary
async def test_a_run_has_no_input(aioproc: Any) -> None:
    with pytest.raises(ValueError, match="read_until"):
        await aioproc.run(*CAT, pty=True, input=b"x")
    with pytest.raises(ValueError, match="capture_output"):
        await aioproc.run(*CAT, pty=True, capture_output=False)


# -- shortages


async def test_no_program(aioproc: Any) -> None:
    for function in (aioproc.create_subprocess_exec, aioproc.run):
        with pytest.raises(FileNotFoundError) as caught:
            await function("/no/such/program", pty=True)
        assert caught.value.filename == "/no/such/program"


async def test_cancelled_while_it_is_made(aioproc: Any) -> None:
    for rounds in range(5):
        task = asyncio.ensure_future(start(aioproc, *SLEEP))
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            process = await task
            process.kill()
            await process.communicate()


@pytest.mark.parametrize("n", [20, pytest.param(500, marks=pytest.mark.heavy)])
async def test_one_after_the_other(aioproc: Any, n: int) -> None:
    for _ in range(n):
        done = await aioproc.run("echo", "hi", pty=True)
        assert done.stdout == b"hi\r\n"
        process = await start(aioproc, "echo", "hi")
        assert (await process.communicate())[0] == b"hi\r\n"


@pytest.mark.parametrize("n", [30, pytest.param(200, marks=pytest.mark.heavy)])
async def test_many_at_once(aioproc: Any, n: int) -> None:
    async def one(i: int) -> None:
        process = await start(aioproc, *CAT, echo=False)
        process.stdin.write(b"%d\n" % i)
        assert await process.stdout.readline() == b"%d\r\n" % i
        names.add(os.ttyname(process._transport.get_pipe_transport(1)._end.fileno()))
        barrier.append(i)
        while len(barrier) < n:
            await asyncio.sleep(0.005)
        process.stdin.close()
        assert await process.wait() == 0
        assert await process.stdout.read() == b""

    barrier: list[int] = []
    names: set[str] = set()
    await asyncio.gather(*map(one, range(n)))


async def test_no_descriptors(aioproc: Any) -> None:
    """Wherever they come to an end, nothing stays."""
    code = """
        async def main():
            await aioproc.run("true", pty=True)
            before = len(open_fds())
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            first = max(open_fds()) + 1
            failed = 0
            for more in range(12):
                for function in (aioproc.create_subprocess_exec, aioproc.run):
                    resource.setrlimit(resource.RLIMIT_NOFILE, (before + more, hard))
                    try:
                        made = await function("cat" if function is not aioproc.run else "true",
                                              pty=True)
                    except OSError as error:
                        assert error.errno == errno.EMFILE, error
                        failed += 1
                    else:
                        if function is not aioproc.run:
                            await made.communicate()
                    finally:
                        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                    reap_orphans()
                    assert len(open_fds()) == before, open_fds()
            assert 2 < failed < 24, failed
            print("done")
        run(new_event_loop, main())
        assert settle(lambda: not children())
    """
    assert await script(code) == "done\n"


IN_A_NAMESPACE = """
    try:
        done = subprocess.run(["unshare", "-m", *(["-Ur"] if os.geteuid() else []), "sh", "-c",
            {mount!r} + "; exec \\"$@\\"", "sh", sys.executable, "-c", {code!r}],
            capture_output=True, text=True)
    except FileNotFoundError:
        print("unshare is missing")
    else:
        print(done.stdout + done.stderr, end="")
"""
TRIES = """
import asyncio, os, aioproc
async def main():
    print(os.path.exists('/dev/ptmx'), flush=True)
    held = []
    try:
        for _ in range(10):
            held.append(await aioproc.create_subprocess_exec('cat', pty=True))
    except OSError as error:
        print(len(held), error.errno, type(error).__name__, error.filename, error.strerror)
    for process in held:
        await process.communicate()
    try:
        done = await aioproc.run('true', pty=True)
        print(done.returncode)
    except OSError as error:
        print(type(error).__name__)
    print(len(os.listdir('/proc/self/fd')) < 10)
asyncio.run(main())
"""


async def in_a_namespace(mount: str) -> list[str]:
    output = await script(IN_A_NAMESPACE.format(mount="set -e; " + mount, code=TRIES))
    if not output.startswith(("True\n", "False\n")):
        pytest.skip(f"no mounts here: {output}")
    return output.splitlines()


@pytest.mark.primary
async def test_all_terminals_are_in_use(aioproc: Any) -> None:
    lines = await in_a_namespace(
        "mount -t devpts -o newinstance,max=3,ptmxmode=666 devpts /dev/pts;"
        "mount --bind /dev/pts/ptmx /dev/ptmx"
    )
    assert lines[1].startswith(f"3 {errno.ENOSPC} OSError /dev/ptmx No space left on device: all")
    assert lines[2:] == ["0", "True"]


@pytest.mark.primary
@pytest.mark.parametrize("where", ["/dev/pts", pytest.param("/dev", marks=pytest.mark.heavy)])
async def test_there_are_no_terminals(aioproc: Any, where: str) -> None:
    """As in some containers."""
    lines = await in_a_namespace(f"mount -t tmpfs none {where}")
    assert lines[1].startswith(f"0 {errno.ENODEV} OSError /dev/ptmx no terminal can be opened")
    assert lines[2:] == ["OSError", "True"]


# -- elsewhere


async def test_in_a_thread(aioproc: Any) -> None:
    results = []

    async def main() -> None:
        process = await start(aioproc, *CAT, echo=False, tree=True)
        process.stdin.write(b"a\n")
        results.append(await process.stdout.readline())
        async with process:
            pass
        results.append(process.returncode)
        results.append((await aioproc.run("echo", "hi", pty=True)).stdout)

    thread = threading.Thread(target=run, args=(type(asyncio.get_running_loop()), main()))
    thread.start()
    thread.join()
    assert results == [b"a\r\n", -signal.SIGHUP, b"hi\r\n"]


@pytest.mark.primary
async def test_a_fork_does_not_keep_it(aioproc: Any) -> None:
    """A worker that lives on would keep the terminal from its end."""
    code = """
        async def main():
            process = await aioproc.create_subprocess_exec("cat", pty=True)
            ready, tell = os.pipe()
            wait, go = os.pipe()
            pid = os.fork()
            if not pid:
                os.close(go)
                os.write(tell, b"x")
                os.read(wait, 1)
                os._exit(0)
            os.read(ready, 1)
            fds = os.listdir(f"/proc/{pid}/fd")
            held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in fds]
            assert not any("ptmx" in name for name in held), held
            process.stdin.write(b"a\\n")
            await process.stdout.readuntil(b"a\\r\\na\\r\\n")
            process.stdin.close()
            print(await process.wait())
            os.close(go)
            os.waitpid(pid, 0)
        import warnings
        warnings.simplefilter("ignore")
        run(new_event_loop, main())
    """
    assert await script(code) == "0\n"
