"""Every keyword of subprocess.Popen that asyncio takes."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from programs import HAS_PROC, WINDOWS

if WINDOWS:
    pytest.skip("not on Windows: see test_windows.py", allow_module_level=True)
if not HAS_PROC:
    pytest.skip("children look at themselves by Linux' /proc", allow_module_level=True)

import fcntl

import seccomp
from conftest import open_fds, python
from helpers import output, script, shell_output

pytestmark = [pytest.mark.asyncio, pytest.mark.one_loop]

is_root = os.geteuid() == 0
#: In sh without a program in between: the descriptors a child has. 3 is the directory.
LIST_FDS = "cd /proc/self/fd && echo *"


# -- what to run


async def test_arguments_of_every_type(api: Any) -> None:
    stdout = await output(api, b"printf", "%s|", "text", b"\xff\xfe", Path("a/path"), "\udcff", "")
    assert stdout == b"text|\xff\xfe|a/path|\xff||"


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
async def test_a_program_of_every_type(api: Any, kind: Any) -> None:
    assert await output(api, kind("/bin/echo"), "hello") == b"hello\n"


async def test_executable(api: Any) -> None:
    name = await output(api, "not-sh", "-c", "echo $0", executable="/bin/sh")
    assert name == b"not-sh\n"
    assert await output(api, "not-sh", "-c", "echo $0", executable=b"sh") == b"not-sh\n"


async def test_executable_of_a_shell(api: Any, tmp_path: Path) -> None:
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/sh\necho "$# $1 $2"\n')
    shell.chmod(0o755)
    assert await shell_output(api, "exit 3", executable=str(shell)) == b"2 -c exit 3\n"


async def test_a_shell_command_in_bytes(api: Any) -> None:
    assert await shell_output(api, b"echo '\xff'") == b"\xff\n"


async def test_path_is_searched_in_order(api: Any, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "file").write_text("")
    for name, mode in ("refused", 0o644), ("first", 0o755), ("second", 0o755):
        (tmp_path / name).mkdir()
        program = tmp_path / name / "program"
        program.write_text(f"#!/bin/sh\necho {name}\n")
        program.chmod(mode)
    names = ["missing", "none", "file", "refused", "first", "second"]
    path = ":".join(str(tmp_path / name) for name in names)
    assert await output(api, "program", env={"PATH": path}) == b"first\n"
    assert await output(api, b"program", env={b"PATH": os.fsencode(path)}) == b"first\n"
    # The refusal is remembered over the misses.
    path = ":".join(str(tmp_path / name) for name in ["missing", "refused", "none"])
    with pytest.raises(PermissionError) as caught:
        await output(api, "program", env={"PATH": path})
    assert caught.value.filename == "program"


async def test_path_of_the_environment(
    api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "a-program-of-this-test"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert await output(api, program.name) == b"found\n"
    with pytest.raises(FileNotFoundError):
        await output(api, program.name, env={"PATH": "/bin"})


async def test_without_a_path_the_default_is_searched(api: Any) -> None:
    assert await output(api, "sh", "-c", "echo hello", env={}) == b"hello\n"


# -- where and with what


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
async def test_cwd(api: Any, tmp_path: Path, kind: Any) -> None:
    assert await output(api, "/bin/pwd", cwd=kind(tmp_path)) == b"%s\n" % bytes(tmp_path)


async def test_a_relative_program_is_looked_for_after_the_chdir(api: Any, tmp_path: Path) -> None:
    program = tmp_path / "a-program-of-this-test"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    assert await output(api, f"./{program.name}", cwd=tmp_path) == b"found\n"
    assert await output(api, f"{tmp_path.name}/{program.name}", cwd=tmp_path.parent) == b"found\n"
    assert await output(api, program.name, cwd=tmp_path, env={"PATH": "."}) == b"found\n"
    assert await output(api, program.name, cwd=tmp_path, env={"PATH": ""}) == b"found\n"
    with pytest.raises(FileNotFoundError):
        await output(api, f"./{program.name}", cwd=tmp_path.parent)


async def test_env(api: Any) -> None:
    env = {"A": "text", b"B": b"\xff", "C": "\udcff=", "D": ""}
    stdout = await output(api, "/usr/bin/env", env=env)
    assert sorted(stdout.splitlines()) == [b"A=text", b"B=\xff", b"C=\xff=", b"D="]


async def test_an_empty_env(api: Any) -> None:
    assert await output(api, "/usr/bin/env", env={}) == b""


async def test_env_is_inherited(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THIS_TEST", "\udcff value")
    stdout = await output(api, "/usr/bin/env")
    assert b"OF_THIS_TEST=\xff value\n" in stdout


async def test_umask(api: Any) -> None:
    assert int(await shell_output(api, "umask", umask=0o123), 8) == 0o123
    assert int(await shell_output(api, "umask", umask=0), 8) == 0
    before = os.umask(0o057)
    try:
        assert int(await shell_output(api, "umask"), 8) == 0o057
    finally:
        os.umask(before)


# -- descriptors


async def test_children_get_no_other_descriptors(api: Any) -> None:
    ours, theirs = os.pipe()
    os.set_inheritable(ours, True)
    os.set_inheritable(theirs, True)
    try:
        assert await shell_output(api, LIST_FDS) == b"0 1 2 3\n"
    finally:
        os.close(ours)
        os.close(theirs)


async def test_close_fds_off(api: Any) -> None:
    ours, theirs = os.pipe()
    os.set_inheritable(theirs, True)
    try:
        stdout = await output(
            api, *python("import os; print(*os.listdir('/proc/self/fd'))"), close_fds=False
        )
        assert b"%d" % theirs in stdout.split()
        assert b"%d" % ours not in stdout.split()  # it is not inheritable
    finally:
        os.close(ours)
        os.close(theirs)


async def test_pass_fds(api: Any) -> None:
    ours, theirs = os.pipe()
    other = os.dup(theirs)
    try:
        code = "import os, sys; [os.write(int(fd), b'x') for fd in sys.argv[1:]]"
        process = await api.create_subprocess_exec(
            *python(code, str(theirs), str(other)),
            pass_fds=[other, theirs, other],
        )
        assert await process.wait() == 0
        assert not os.get_inheritable(theirs)
        assert os.read(ours, 10) == b"xx"
        fds = await output(
            api, *python("import os; print(*os.listdir('/proc/self/fd'))"), pass_fds=(ours,)
        )
        assert sorted(map(int, fds.split()))[:-1] == sorted([0, 1, 2, ours]) or (
            # The directory that lists has the lowest free number.
            sorted(map(int, fds.split())) == sorted([0, 1, 2, 3, ours])
        )
    finally:
        for fd in ours, theirs, other:
            os.close(fd)


async def test_many_pass_fds(api: Any) -> None:
    fds = [os.open(os.devnull, os.O_RDWR) for _ in range(200)]
    kept = fds[::2]
    try:
        stdout = await output(
            api,
            *python("import os; print(*os.listdir('/proc/self/fd'))"),
            pass_fds=reversed(kept),
        )
    finally:
        for fd in fds:
            os.close(fd)
    found = set(map(int, stdout.split()))
    assert found >= {0, 1, 2, *kept}
    assert len(found) == len(kept) + 4  # and the one that lists


async def test_standard_streams_among_pass_fds(api: Any) -> None:
    assert await shell_output(api, "echo hello", pass_fds=(0, 1, 2)) == b"hello\n"


async def test_pass_fds_overrides_close_fds(api: Any) -> None:
    fd = os.open(os.devnull, os.O_RDWR)
    other = os.open(os.devnull, os.O_RDWR)
    os.set_inheritable(other, True)
    try:
        with pytest.warns(RuntimeWarning, match="pass_fds overriding close_fds"):
            stdout = await output(
                api,
                *python("import os; print(*os.listdir('/proc/self/fd'))"),
                pass_fds=[fd],
                close_fds=False,
            )
        assert b"%d" % fd in stdout.split()
        if other > fd + 1 or other > 3:
            assert len(stdout.split()) == 5
    finally:
        os.close(fd)
        os.close(other)


@pytest.mark.skipif(not seccomp.SUPPORTED, reason="no system call numbers for this machine")
@pytest.mark.parametrize("denied", ["ENOSYS", "EPERM"])
async def test_descriptors_are_closed_without_close_range(aioproc: Any, denied: str) -> None:
    await script(
        f"""
        import seccomp
        fds = [os.open(os.devnull, os.O_RDWR) for _ in range(300)]
        for fd in fds:
            os.set_inheritable(fd, True)
        seccomp.deny({{"close_range": errno.{denied}}})

        async def main():
            for kept in [], [fds[0], fds[10], fds[-1]]:
                process = await aioproc.create_subprocess_exec(
                    sys.executable, "-ISc", "import os; print(*os.listdir('/proc/self/fd'))",
                    stdout=PIPE, pass_fds=kept)
                stdout, _ = await process.communicate()
                found = set(map(int, stdout.split()))
                assert found >= {{0, 1, 2, *kept}}, found
                assert len(found) == len(kept) + 4, found

        run(new_event_loop, main())
        """
    )


async def test_stdio_is_blocking(api: Any) -> None:
    process = await api.create_subprocess_exec(
        *python(
            "import fcntl, os, sys\n"
            "flags = [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK for fd in range(3)]\n"
            "print(flags)"
        ),
        stdin=api.PIPE,
        stdout=api.PIPE,
        stderr=api.PIPE,
    )
    stdout, _ = await process.communicate()
    # asyncio's stdin is a socket; on all of them the flag is that of each end.
    assert stdout == b"[0, 0, 0]\n"


async def test_descriptors_as_streams(api: Any, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"hello")
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as target:
        process = await api.create_subprocess_shell(
            "cat; echo oops >&2", stdin=source, stdout=target.fileno(), stderr=target
        )
        assert process.stdin is process.stdout is process.stderr is None
        assert await process.wait() == 0
        assert not target.closed
    assert (tmp_path / "out").read_bytes() == b"hellooops\n"


async def test_devnull(api: Any) -> None:
    process = await api.create_subprocess_shell(
        "cat && echo hello && echo oops >&2",
        stdin=api.DEVNULL,
        stdout=api.DEVNULL,
        stderr=api.DEVNULL,
    )
    assert await process.wait() == 0


async def test_stderr_to_stdout(api: Any) -> None:
    process = await api.create_subprocess_shell(
        "echo one; echo two >&2; echo three", stdout=api.PIPE, stderr=api.STDOUT
    )
    assert process.stderr is None
    assert await process.communicate() == (b"one\ntwo\nthree\n", None)


#: Runs a child with our own 0, 1 and 2 being what the test wants, and puts what comes
#: out of 1 and 2 into two files.
STANDARD = """
out, err = sys.argv[1:]
for fd, path in (1, out), (2, err):
    new = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(new, fd)
    os.close(new)

async def main():
    process = await aioproc.create_subprocess_shell("echo out; echo err >&2", {streams})
    assert await process.wait() == 0

run(new_event_loop, main())
"""


@pytest.mark.parametrize(
    ("streams", "out", "err"),
    [
        ("", "out\n", "err\n"),
        ("stdout=1, stderr=2", "out\n", "err\n"),
        ("stdout=2, stderr=1", "err\n", "out\n"),
        ("stdout=2", "", "out\nerr\n"),
        ("stderr=1", "out\nerr\n", ""),
        ("stderr=STDOUT", "out\nerr\n", ""),
        ("stdout=2, stderr=STDOUT", "", "out\nerr\n"),
        ("stdin=1, stdout=1, stderr=1", "out\nerr\n", ""),
        ("stdout=1, stderr=2, pass_fds=(0, 1, 2)", "out\n", "err\n"),
    ],
)
async def test_our_own_streams_for_the_child(
    aioproc: Any, tmp_path: Path, streams: str, out: str, err: str
) -> None:
    paths = [tmp_path / "out", tmp_path / "err"]
    await script(STANDARD.format(streams=streams), *map(str, paths))
    assert [path.read_text() for path in paths] == [out, err]


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)], ids=str)
async def test_with_our_own_streams_closed(
    aioproc: Any, closed: tuple[int, ...], tmp_path: Path
) -> None:
    report = tmp_path / "report"
    await script(
        f"""
        import json
        keep = [os.dup2(fd, 100 + fd) for fd in range(3)]
        sys.stderr = os.fdopen(102, "w")
        loop = new_event_loop()  # before: libuv refuses to have one of these numbers
        for fd in {closed}:
            os.close(fd)
        log = []

        async def main():
            process = await aioproc.create_subprocess_shell(
                "cat; echo err >&2", stdin=PIPE, stdout=PIPE, stderr=PIPE)
            log.append([text.decode() for text in await process.communicate(b"in")])
            process = await aioproc.create_subprocess_shell(
                "cat; echo err >&2", stdin=PIPE, stdout=PIPE, stderr=STDOUT)
            log.append((await process.communicate(b"in"))[0].decode())
            process = await aioproc.create_subprocess_exec(
                "sh", "-c", "echo /proc/self/fd/*", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
            log.append((await process.communicate())[0].decode())
            # Inherited: what is closed here is closed there.
            process = await aioproc.create_subprocess_exec(
                "sh", "-c", "cd /proc/self/fd; for i in 0 1 2; do test -e $i || exit 1; done")
            log.append(await process.wait())
            read, write = os.pipe()
            process = await aioproc.create_subprocess_exec(
                "sh", "-c", "echo out; echo err >&2", stdout=write, stderr=write)
            os.close(write)
            await process.wait()
            log.append(os.read(read, 100).decode())
            os.close(read)

        run(lambda: loop, main())
        with open(sys.argv[1], "w") as file:
            json.dump(log, file)
        """,
        str(report),
    )
    streams, merged, fds, inherited, written = json.loads(report.read_text())
    assert streams == ["in", "err\n"]
    assert merged == "inerr\n"
    assert [Path(name).name for name in fds.split()] == ["0", "1", "2", "3"]
    assert inherited in (0, 1)
    assert written == "out\nerr\n"


@pytest.mark.parametrize("size", [4096, 1 << 20])
async def test_pipesize(api: Any, size: int) -> None:
    process = await api.create_subprocess_exec(
        *python("import fcntl; print(fcntl.fcntl(1, 1032), fcntl.fcntl(2, 1032))"),
        stdout=api.PIPE,
        stderr=api.PIPE,
        pipesize=size,
    )
    stdout, _ = await process.communicate()
    assert stdout == b"%d %d\n" % (size, size)


async def test_bufsize(api: Any) -> None:
    assert await shell_output(api, "echo hello", bufsize=0) == b"hello\n"


# -- sessions, groups, signals


async def test_start_new_session(api: Any) -> None:
    code = "import os; print(os.getpid(), os.getsid(0), os.getpgid(0))"
    pid, session, group = map(int, (await output(api, *python(code))).split())
    assert (session, group) == (os.getsid(0), os.getpgid(0))
    stdout = await output(api, *python(code), start_new_session=True)
    pid, session, group = map(int, stdout.split())
    assert session == group == pid


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio's since 3.11; see the next test")
async def test_process_group(api: Any) -> None:
    await check_process_group(api)


async def test_process_group_of_ours(aioproc: Any) -> None:
    await check_process_group(aioproc)


async def check_process_group(api: Any) -> None:
    code = "import os, sys; print(os.getpid(), os.getpgid(0), flush=True); sys.stdin.read()"
    leader = await api.create_subprocess_exec(
        *python(code), stdin=api.PIPE, stdout=api.PIPE, process_group=0
    )
    pid, group = map(int, (await leader.stdout.readline()).split())
    assert pid == group == leader.pid
    stdout = await output(api, *python(code), stdin=api.DEVNULL, process_group=group)
    assert int(stdout.split()[1]) == group
    stdout = await output(api, *python(code), stdin=api.DEVNULL, process_group=None)
    assert int(stdout.split()[1]) == os.getpgid(0)
    leader.stdin.close()
    await leader.wait()


def ignored(status: bytes) -> set[int]:
    (line,) = [line for line in status.splitlines() if line.startswith(b"SigIgn:")]
    mask = int(line.split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


async def test_restore_signals(api: Any) -> None:
    # Python ignores both of these.
    restored = ignored(await output(api, "cat", "/proc/self/status"))
    assert not restored & {signal.SIGPIPE, signal.SIGXFSZ}
    kept = ignored(await output(api, "cat", "/proc/self/status", restore_signals=False))
    assert kept >= {signal.SIGPIPE, signal.SIGXFSZ}
    assert kept - restored == {signal.SIGPIPE, signal.SIGXFSZ}


async def test_ignored_signals_stay_ignored(api: Any) -> None:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        assert signal.SIGUSR2 in ignored(await output(api, "cat", "/proc/self/status"))
    finally:
        signal.signal(signal.SIGUSR2, before)


async def test_caught_signals_are_default(api: Any) -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        assert signal.SIGUSR2 not in ignored(await output(api, "cat", "/proc/self/status"))
    finally:
        signal.signal(signal.SIGUSR2, before)


async def test_the_signal_mask_is_inherited(api: Any) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        status = await output(api, "cat", "/proc/self/status")
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before | {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    (line,) = [line for line in status.splitlines() if line.startswith(b"SigBlk:")]
    assert int(line.split()[1], 16) == 1 << (signal.SIGUSR2 - 1)


# -- preexec_fn


async def test_preexec_fn(api: Any) -> None:
    ours, theirs = os.pipe()

    def in_child() -> None:
        os.write(theirs, b"%d" % os.getpid())
        os.setsid()

    code = "import os; print(os.getpid(), os.getsid(0))"
    process = await api.create_subprocess_exec(*python(code), stdout=api.PIPE, preexec_fn=in_child)
    stdout, _ = await process.communicate()
    assert int(os.read(ours, 100)) == process.pid
    assert list(map(int, stdout.split())) == [process.pid, process.pid]
    os.close(ours)
    os.close(theirs)


async def test_preexec_fn_with_everything_else(aioproc: Any, tmp_path: Path) -> None:
    stdout = await output(
        aioproc,
        *python("import os; print(os.getcwd(), os.environ['A'], os.getpgid(0) == os.getpid())"),
        cwd=tmp_path,
        env={"A": "text"},
        process_group=0,
        umask=0o77,
        preexec_fn=lambda: None,
    )
    assert stdout == b"%s text True\n" % bytes(tmp_path)


async def test_a_preexec_fn_that_raises(api: Any) -> None:
    def in_child() -> None:
        raise ZeroDivisionError

    with pytest.raises(subprocess.SubprocessError, match="Exception occurred in preexec_fn"):
        await api.create_subprocess_exec(
            "true", stdin=api.PIPE, stdout=api.PIPE, preexec_fn=in_child
        )


class Own(Exception):
    """Pickled by its name, with what its arguments were."""


class Stubborn(Exception):
    """It cannot be made anew from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def raising(error: BaseException) -> Callable[[], None]:
    def in_child() -> None:
        raise error

    return in_child


async def preexec_error(aioproc: Any, function: Any) -> subprocess.SubprocessError:
    with pytest.raises(subprocess.SubprocessError) as caught:
        await aioproc.create_subprocess_exec("true", stdout=aioproc.PIPE, preexec_fn=function)
    assert type(caught.value) is subprocess.SubprocessError
    return caught.value


@pytest.mark.parametrize(
    "cause", [PermissionError(errno.EPERM, "no", "file"), Own("a", 5), SystemExit(3)], ids=repr
)
async def test_the_cause_of_a_preexec_fn_that_raises(aioproc: Any, cause: BaseException) -> None:
    error = await preexec_error(aioproc, raising(cause))
    text = "".join(traceback.format_exception_only(type(cause), cause)).strip()
    assert str(error) == f"Exception occurred in preexec_fn. {text}"
    assert type(error.__cause__) is type(cause)
    assert error.__cause__.args == cause.args
    if sys.version_info >= (3, 11):
        (note,) = error.__cause__.__notes__
        assert note.startswith("In the child:\nTraceback")
        assert "raise error" in note
        assert note.endswith(text)
        assert "popen.py" not in note


async def test_a_cause_that_cannot_be_made_anew(aioproc: Any) -> None:
    for cause, text in (
        (Stubborn(1, 2), "test_options.Stubborn: 1 2"),
        (ValueError(lambda: None), "ValueError: <function "),
        (ValueError("x" * 100_000), "ValueError: xxx"),
        (ValueError("\U0001f600" * 100_000), "ValueError: \U0001f600"),
    ):
        error = await preexec_error(aioproc, raising(cause))
        assert str(error).startswith(f"Exception occurred in preexec_fn. {text}")
        assert error.__cause__ is None


async def test_a_preexec_fn_that_opens_something_else(aioproc: Any, tmp_path: Path) -> None:
    """What has the number of our pipe by then is not written to."""
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    before = set(open_fds())

    def is_new_pipe(fd: int) -> bool:
        try:
            mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        except OSError:  # that of listdir()
            return False
        return mode == os.O_WRONLY and fd not in before

    def in_child() -> None:
        # Ours, and then that of Popen, unless its own is made elsewhere (PyPy).
        ours, *_ = filter(is_new_pipe, sorted(map(int, os.listdir("/proc/self/fd"))))
        os.dup2(file, ours)
        raise ZeroDivisionError

    with pytest.raises(subprocess.SubprocessError) as caught:
        await aioproc.create_subprocess_exec("true", preexec_fn=in_child)
    os.close(file)
    assert str(caught.value) == "Exception occurred in preexec_fn."
    assert (tmp_path / "file").read_bytes() == b""


async def test_a_preexec_fn_that_raises_without_streams(aioproc: Any) -> None:
    """Our pipe has none of the numbers that the child's streams have."""
    await script(
        """
        def in_child():
            raise ZeroDivisionError("why")

        async def main():
            keep = os.dup2(2, 100)
            reader, writer = os.pipe()
            for fd in 0, 1, 2:
                os.close(fd)
            try:
                await aioproc.create_subprocess_exec(
                    "true", stdout=writer, stderr=writer, preexec_fn=in_child)
            except subprocess.SubprocessError as error:
                assert "ZeroDivisionError: why" in str(error), error
            else:
                raise AssertionError("no error")
            os.close(writer)
            # Nothing of it went where the program writes.
            assert os.read(reader, 100) == b""
            os.close(reader)

        run(new_event_loop, main())
        """
    )


# -- users and groups


def needs_to_be_root() -> None:
    if not is_root:
        pytest.skip("only root may change ids")


@pytest.mark.root
@pytest.mark.parametrize("user", ["nobody", 65534, 12345])
async def test_user(api: Any, user: str | int) -> None:
    needs_to_be_root()
    import pwd

    number = pwd.getpwnam(user).pw_uid if isinstance(user, str) else user
    status = await output(api, "cat", "/proc/self/status", user=user)
    assert b"Uid:\t%d\t%d\t%d\t%d\n" % ((number,) * 4) in status
    assert os.getuid() == os.geteuid() == 0


@pytest.mark.root
@pytest.mark.parametrize("group", ["daemon", 1, 12345])
async def test_group(api: Any, group: str | int) -> None:
    needs_to_be_root()
    import grp

    number = grp.getgrnam(group).gr_gid if isinstance(group, str) else group
    status = await output(api, "cat", "/proc/self/status", group=group)
    assert b"Gid:\t%d\t%d\t%d\t%d\n" % ((number,) * 4) in status


@pytest.mark.root
@pytest.mark.parametrize("groups", [[], ["daemon", 12345], (7, 7), [4294967294]], ids=str)
async def test_extra_groups(api: Any, groups: Any) -> None:
    needs_to_be_root()
    import grp

    wanted = {grp.getgrnam(item).gr_gid if isinstance(item, str) else item for item in groups}
    status = await output(api, "cat", "/proc/self/status", extra_groups=groups)
    (line,) = [line for line in status.splitlines() if line.startswith(b"Groups:")]
    assert set(map(int, line.split()[1:])) == wanted


@pytest.mark.root
async def test_all_ids_at_once(api: Any, tmp_path: Path) -> None:
    needs_to_be_root()
    stdout = await shell_output(
        api,
        "id -u; id -g; id -G; umask; pwd",
        user=65534,
        group=12345,
        extra_groups=[1, 2],
        umask=0o77,
        cwd="/",
        start_new_session=True,
    )
    uid, gid, groups, umask, cwd = stdout.splitlines()
    assert (uid, gid) == (b"65534", b"12345")
    assert set(groups.split()) == {b"12345", b"1", b"2"}
    assert int(umask, 8) == 0o77
    assert cwd == b"/"


async def test_ids_of_our_own(api: Any) -> None:
    # For everybody, since it changes nothing.
    stdout = await output(api, "id", "-u", user=os.getuid(), group=os.getgid())
    assert int(stdout) == os.getuid()


async def test_everything_at_once(aioproc: Any, tmp_path: Path) -> None:
    fd = os.open(os.devnull, os.O_RDWR)
    process = await aioproc.create_subprocess_exec(
        "not-sh",
        "-c",
        f"test -e /proc/self/fd/{fd} && pwd && umask && echo $A && cat",
        executable="/bin/sh",
        stdin=aioproc.PIPE,
        stdout=aioproc.PIPE,
        stderr=aioproc.STDOUT,
        limit=10,
        bufsize=0,
        cwd=tmp_path,
        env={"A": "text", "PATH": os.environ["PATH"]},
        close_fds=True,
        pass_fds=[fd],
        start_new_session=True,
        process_group=None,
        umask=0o27,
        restore_signals=False,
        preexec_fn=None,
        pipesize=8192,
        startupinfo=None,
        creationflags=0,
    )
    os.close(fd)
    stdout, _ = await process.communicate(b"in")
    assert stdout == b"%s\n0027\ntext\nin" % bytes(tmp_path)
    assert os.getsid(0) != process.pid
    assert asyncio.get_running_loop().is_running()
