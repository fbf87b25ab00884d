"""What is wrong raises what subprocess.Popen raises on this Python: type, errno and
filename; and leaves nothing behind (see no_leaks in conftest.py)."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aioproc import _backends
from aside import collect
from conftest import open_fds
from helpers import script
from marks import posix_only
from programs import CAT, TRUE, WINDOWS

pytestmark = [pytest.mark.asyncio, pytest.mark.one_loop]


class NoString:
    pass


class BadPath:
    def __fspath__(self) -> int:
        return 5


class BadFile:
    def __init__(self, result: Any) -> None:
        self.result = result

    def fileno(self) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def unused_fd() -> int:
    fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)
    return fd + 500


#: name: arguments and keywords; {tmp} in strings is a directory made by `files`.
CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "nul in program": (["tr\0ue"], {}),
    "nul in path": (["/bin/tr\0ue"], {}),
    "nul in bytes program": ([b"tr\0ue"], {}),
    "nul in argument": (["true", "a\0b"], {}),
    "nul in bytes argument": (["true", b"a\0b"], {}),
    "nul in executable": (["true"], {"executable": "tr\0ue"}),
    "nul in cwd": (["true"], {"cwd": "/\0tmp"}),
    "nul in env value": (["true"], {"env": {"A": "b\0c"}}),
    "nul in env name": (["true"], {"env": {"A\0": "b"}}),
    "equals sign in env name": (["true"], {"env": {"A=B": "c"}}),
    "empty program": ([""], {}),
    "empty bytes program": ([b""], {}),
    "empty executable": (["true"], {"executable": ""}),
    "empty cwd": (["true"], {"cwd": ""}),
    "surrogate": (["\ud800"], {}),
    "program None": ([None], {}),
    "program int": ([5], {}),
    "program object": ([NoString()], {}),
    "program bad path": ([BadPath()], {}),
    "argument None": (["true", None], {}),
    "argument int": (["true", 5], {}),
    "argument list": (["true", ["a"]], {}),
    "executable int": (["true"], {"executable": 5}),
    "cwd int": (["true"], {"cwd": 5}),
    "env list": (["true"], {"env": [("A", "b")]}),
    "env int value": (["true"], {"env": {"A": 5}}),
    "env int name": (["true"], {"env": {5: "A"}}),
    "env None value": (["true"], {"env": {"A": None}}),
    "two paths": (["true"], {"env": {"PATH": "/bin", b"PATH": b"/bin"}}),
    "missing program": (["a-program-that-does-not-exist"], {}),
    "missing bytes program": ([b"a-program-that-does-not-exist"], {}),
    "missing path": (["/a-directory/that/does-not-exist"], {}),
    "missing pathlike": ([Path("/a-directory/that/does-not-exist")], {}),
    "missing executable": (["true"], {"executable": "/a/missing/program"}),
    "missing cwd": (["true"], {"cwd": "/a/missing/directory"}),
    "missing bytes cwd": (["true"], {"cwd": b"/a/missing/directory"}),
    "missing pathlike cwd": (["true"], {"cwd": Path("/a/missing/directory")}),
    "missing cwd and program": (["/missing/too"], {"cwd": "/a/missing/directory"}),
    "file as cwd": (["true"], {"cwd": "{tmp}/plain"}),
    "missing relative program": (["./true"], {"cwd": "{tmp}"}),
    "file as directory": (["{tmp}/plain/program"], {}),
    "not executable": (["{tmp}/plain"], {}),
    "not executable in PATH": (["plain"], {"env": {"PATH": "/missing:{tmp}:/bin"}}),
    "not executable after chdir": (["./plain"], {"cwd": "{tmp}"}),
    "directory as program": (["{tmp}"], {}),
    "directory in PATH": (["directory"], {"env": {"PATH": "{tmp}"}}),
    "script without a first line": (["{tmp}/script"], {}),
    "empty file": (["{tmp}/empty"], {}),
    "missing interpreter": (["{tmp}/no-interpreter"], {}),
    "loop of links": (["{tmp}/loop"], {}),
    "name too long": (["/bin/" + "x" * 5000], {}),
    "name too long in PATH": (["x" * 300], {}),
    "argument too long": (["true", "x" * (1 << 20)], {}),
    "too many arguments": (["true", *["x" * 100_000] * 100], {}),
    "closed stdin": (["true"], {"stdin": "{unused}"}),
    "closed stdout": (["true"], {"stdout": "{unused}"}),
    "closed stderr": (["true"], {"stderr": "{unused}"}),
    "huge fd": (["true"], {"stdin": 1 << 40}),
    "stream text": (["true"], {"stdin": "text"}),
    "stream object": (["true"], {"stdout": NoString()}),
    "stream without a number": (["true"], {"stdout": BadFile(ValueError("closed"))}),
    "closed pass_fds": (["true"], {"pass_fds": ["{unused}"]}),
    "negative pass_fds": (["true"], {"pass_fds": [-1]}),
    "huge pass_fds": (["true"], {"pass_fds": [1 << 40]}),
    "text pass_fds": (["true"], {"pass_fds": ["x"]}),
    "pass_fds int": (["true"], {"pass_fds": 5}),
    "user missing": (["true"], {"user": "no-such-user"}),
    "user negative": (["true"], {"user": -1}),
    "user float": (["true"], {"user": 1.5}),
    "user too big": (["true"], {"user": 1 << 64}),
    "user just too big": (["true"], {"user": 1 << 32}),
    "group missing": (["true"], {"group": "no-such-group"}),
    "group negative": (["true"], {"group": -1}),
    "group float": (["true"], {"group": 1.5}),
    "group too big": (["true"], {"group": 1 << 64}),
    "extra_groups text": (["true"], {"extra_groups": "daemon"}),
    "extra_groups int": (["true"], {"extra_groups": 5}),
    "extra_groups missing": (["true"], {"extra_groups": ["no-such-group"]}),
    "extra_groups negative": (["true"], {"extra_groups": [-1]}),
    "extra_groups too big": (["true"], {"extra_groups": [1 << 64]}),
    "extra_groups too many": (["true"], {"extra_groups": [1] * 70_000}),
    "umask text": (["true"], {"umask": "022"}),
    "pipesize text": (["true"], {"pipesize": "4096", "stdin": subprocess.PIPE}),
    "pipesize too big": (["true"], {"pipesize": 1 << 30, "stdin": subprocess.PIPE}),
    "preexec_fn no function": (["true"], {"preexec_fn": 5}),
    "unknown keyword": (["true"], {"no_such_option": 1}),
    "startupinfo": (["true"], {"startupinfo": 1}),
    "creationflags": (["true"], {"creationflags": 1}),
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, text in ("script", "echo hello\n"), ("empty", ""), ("no-interpreter", "#!/no/sh\n"):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def filled_in(value: Any, files: Path) -> Any:
    if value == "{unused}":
        return unused_fd()
    if isinstance(value, str):
        return value.replace("{tmp}", str(files))
    if isinstance(value, dict):
        return {key: filled_in(item, files) for key, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, files) for item in value]
    return value


def popen_error(args: list[Any], options: dict[str, Any]) -> BaseException | None:
    before = set(open_fds())
    try:
        process = subprocess.Popen(args, **options)
    except Exception as error:
        # Early releases of Python 3.11 leave the pipes open that nobody was given.
        collect()
        for fd in set(open_fds()) - before:
            os.close(fd)
        return error
    process.communicate()
    return None


def described(error: BaseException | None) -> Any:
    if isinstance(error, OSError):
        # A path-like program is named as such or as its string, depending on how Popen
        # starts it.
        filename = error.filename
        if isinstance(filename, os.PathLike):
            filename = os.fspath(filename)
        return type(error), error.errno, filename, error.strerror
    return type(error)


@posix_only("these cases; test_windows.py has its own")
async def test_as_popen(aioproc: Any, files: Path) -> None:
    wrong = {}
    for case, (args, options) in CASES.items():
        args, options = filled_in(args, files), filled_in(options, files)
        before = open_fds()
        expected = popen_error(args, options)
        for fd in set(open_fds()) - set(before):
            os.close(fd)  # Popen of Python 3.10 leaks a pipe that cannot be resized
        if case == "huge fd" and sys.implementation.name == "pypy":
            expected = OverflowError()  # PyPy's own takes the lower 32 bits of it
        assert expected is not None, f"{case} is not wrong at all"
        ours: BaseException | None = None
        try:
            process = await aioproc.create_subprocess_exec(*args, **options)
            await process.communicate()
        except BaseException as error:
            ours = error
        if described(ours) != described(expected):
            wrong[case] = ours, expected
    assert wrong == {}


async def test_shell_commands(api: Any) -> None:
    for wrong in None, 5, ["true"], Path("true"):
        with pytest.raises(ValueError, match="cmd must be a string"):
            await api.create_subprocess_shell(wrong)
    with pytest.raises(ValueError, match="embedded null"):
        await api.create_subprocess_shell("a\0b")


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("universal_newlines", True, "universal_newlines must be False"),
        ("bufsize", 1, "bufsize must be 0"),
        ("bufsize", -1, "bufsize must be 0"),
        ("text", True, "text must be False"),
        ("encoding", "utf-8", "encoding must be None"),
        ("errors", "strict", "errors must be None"),
    ],
)
async def test_text_options_are_refused(api: Any, option: str, value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        await api.create_subprocess_exec("true", **{option: value})
    with pytest.raises(ValueError, match=text):
        await api.create_subprocess_shell("true", **{option: value})
    with pytest.raises(ValueError, match=text):
        await api.subprocess_exec(asyncio.SubprocessProtocol, "true", **{option: value})
    with pytest.raises(ValueError, match=text):
        await api.subprocess_shell(asyncio.SubprocessProtocol, "true", **{option: value})


async def test_shell_option(api: Any) -> None:
    with pytest.raises(ValueError, match="shell must be False"):
        await api.create_subprocess_exec("true", shell=True)
    with pytest.raises(ValueError, match="shell must be True"):
        await api.create_subprocess_shell("true", shell=False)


async def test_text_options_that_mean_nothing(api: Any) -> None:
    process = await api.create_subprocess_exec(
        *TRUE, text=False, universal_newlines=False, encoding=None, errors=None, shell=False
    )
    assert await process.wait() == 0


async def test_streams_that_cannot_be(aioproc: Any) -> None:
    # Popen takes these for "inherit", or worse.
    for options in (
        {"stdin": aioproc.STDOUT},
        {"stdout": aioproc.STDOUT},
        {"stdin": -5},
        {"stderr": -10},
    ):
        with pytest.raises(ValueError):
            await aioproc.create_subprocess_exec("true", **options)
    with pytest.raises((TypeError, ValueError)):
        await aioproc.create_subprocess_exec("true", stdin=BadFile("text"))


def free_fds() -> list[int]:
    """The numbers that the next descriptors will have."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(12)]
    for fd in fds:
        os.close(fd)
    return fds


@pytest.mark.parametrize("option", ["stdout", "stderr", "pass_fds"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
async def test_a_closed_descriptor_never_becomes_one_of_ours(
    aioproc: Any, option: str, first: bool
) -> None:
    if WINDOWS and option == "pass_fds":
        pytest.skip("not on Windows")
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), aioproc.PIPE)
    if not first:  # then the loop has opened what it keeps for its children
        assert await (await aioproc.create_subprocess_exec(*TRUE)).wait() == 0
    for fd in free_fds():
        options = {**pipes, option: [fd] if option == "pass_fds" else fd}
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            await aioproc.create_subprocess_exec(*CAT, **options)
        assert (caught.value.errno, caught.value.filename) == (errno.EBADF, None)


@posix_only("there it has NUL then")
async def test_stderr_to_a_stdout_that_is_closed(aioproc: Any) -> None:
    await script(
        """
        async def main():
            os.close(1)
            try:
                await aioproc.create_subprocess_exec("cat", stdin=PIPE, stderr=STDOUT)
            except OSError as error:
                assert error.errno == errno.EBADF
            else:
                raise AssertionError("its stderr is the end of a pipe of ours")

        run(new_event_loop, main())
        """
    )


@pytest.mark.parametrize("number", [-1, -2, -3, -5])
@pytest.mark.parametrize("option", ["stdin", "stdout", "stderr"])
async def test_a_closed_file_means_nothing_else(aioproc: Any, option: str, number: int) -> None:
    """PIPE, STDOUT and DEVNULL are negative numbers, as fileno() of a closed socket is."""
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        await aioproc.create_subprocess_exec(*TRUE, **{option: BadFile(number)})
    assert caught.value.errno == errno.EBADF
    closed = socket.socket()
    closed.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await aioproc.create_subprocess_exec(*TRUE, **{option: closed})


@posix_only("users and groups")
@pytest.mark.parametrize("option", ["user", "group"])
async def test_an_id_that_means_no_change(
    aioproc: Any, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OverflowError, match="greater than maximum"):
        await aioproc.create_subprocess_exec("true", **{option: 2**32 - 1})
    with pytest.raises(ValueError, match="greater than maximum"):
        await aioproc.create_subprocess_exec("true", extra_groups=[2**32 - 1])
    # By a name that has it.
    import grp
    import pwd

    nobody, nogroup = list(pwd.getpwuid(0)), list(grp.getgrgid(0))
    nobody[2] = nogroup[2] = 2**32 - 1
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.struct_passwd(nobody))
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group(nogroup))
    with pytest.raises(OverflowError, match="greater than maximum"):
        await aioproc.create_subprocess_exec("true", **{option: "no-change"})


async def test_it_fails_at_once(aioproc: Any) -> None:
    # What does not need a child to be found out is raised before anything else runs.
    others: list[int] = []
    asyncio.get_running_loop().call_soon(others.append, 1)
    with pytest.raises(ValueError):
        await aioproc.create_subprocess_exec("a\0b")
    assert not others


# -- ETXTBSY

busy_text = posix_only("ETXTBSY")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    copy = tmp_path / "program"
    shutil.copy(shutil.which("true") or "/bin/true", copy)
    return copy


@busy_text
async def test_a_program_that_is_still_being_written(aioproc: Any, program: Path) -> None:
    file = open(program, "ab")  # noqa: SIM115
    asyncio.get_running_loop().call_later(0.03, file.close)
    process = await aioproc.create_subprocess_exec(program)
    assert file.closed
    assert await process.wait() == 0


@busy_text
async def test_a_program_that_is_written_for_ever(aioproc: Any, program: Path) -> None:
    with open(program, "ab"):
        begin = time.monotonic()
        with pytest.raises(OSError, match="busy") as caught:
            await aioproc.create_subprocess_exec(program)
        assert time.monotonic() - begin >= 0.1
    assert caught.value.errno == errno.ETXTBSY
    assert os.fspath(caught.value.filename) == str(program)


@busy_text
async def test_a_busy_program_does_not_hold_up_the_loop(aioproc: Any, program: Path) -> None:
    with open(program, "ab"):
        spawning = asyncio.create_task(aioproc.create_subprocess_exec(program))
        ticks = 0
        while not spawning.done():
            await asyncio.sleep(0)
            ticks += 1
        assert ticks > 20
        with pytest.raises(OSError, match="busy"):
            await spawning


@busy_text
async def test_cancelled_while_a_program_is_busy(aioproc: Any, program: Path) -> None:
    with open(program, "ab"):
        spawning = asyncio.create_task(aioproc.create_subprocess_exec(program))
        await asyncio.sleep(0.01)
        spawning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await spawning


# -- what runs out


@posix_only("limits of the system")
async def test_descriptors_run_out_at_every_point(aioproc: Any) -> None:
    await script(
        """
        # No number below 60 is free.
        while (fd := os.open(os.devnull, os.O_RDONLY)) < 60:
            pass
        os.close(fd)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

        async def main(free):
            # Everything the loop itself needs is open by now.
            used = len(open_fds())
            highest = max(open_fds())
            assert used == highest + 1, open_fds()
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + free, hard))
            try:
                process = await aioproc.create_subprocess_exec(
                    "cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
            except OSError as error:
                assert error.errno == errno.EMFILE, error
                return "EMFILE"
            else:
                assert await process.communicate(b"hello") == (b"hello", b"")
                return "works"
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

        run(new_event_loop, asyncio.sleep(0))  # libuv opens two for good
        results = []
        for free in range(16):
            before = open_fds()
            results.append(run(new_event_loop, main(free)))
            reap_orphans()
            assert settle(lambda: not children() and not reap_orphans()), free
            after = open_fds()
            assert before == after, (free, before, after)
        # Too few, then enough.
        assert results == sorted(results), results
        assert results[0] == "EMFILE", results
        assert results[-1] == "works", results
        """
    )


@posix_only("limits of the system")
async def test_processes_run_out(aioproc: Any) -> None:
    await script(
        """
        async def main():
            # Once with room, so that all is open that stays open.
            process = await aioproc.create_subprocess_exec("true", stdin=PIPE, stdout=PIPE)
            await process.communicate()
            del process
            before = open_fds()
            if os.getuid() == 0:
                os.setresgid(12345, 12345, 12345)
                os.setresuid(12345, 12345, 12345)
            resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
            for _ in range(20):
                try:
                    await aioproc.create_subprocess_exec("true", stdin=PIPE, stdout=PIPE)
                except BlockingIOError as error:
                    assert error.errno == errno.EAGAIN
                    assert error.filename is None
                else:
                    raise AssertionError("no error")
            assert not children()
            assert open_fds() == before

        run(new_event_loop, main())
        """
    )


# -- thousands


async def fail_in_every_way(aioproc: Any, files: Path, times: int) -> None:
    fd = unused_fd()
    ways = [
        (["/no/such/program"], {}, FileNotFoundError),
        (["no-such-program"], {}, FileNotFoundError),
        ([str(files / "plain")], {}, PermissionError),
        ([str(files / "script")], {}, OSError),
        (["true"], {"cwd": "/no/such/directory"}, FileNotFoundError),
        (["true"], {"stdout": fd}, OSError),
        (["a\0b"], {}, ValueError),
        (["true", 5], {}, TypeError),
        (["true"], {"user": "no-such-user"}, KeyError),
        (["true"], {"pass_fds": [-1]}, ValueError),
    ]
    pipes = {"stdin": aioproc.PIPE, "stderr": aioproc.PIPE}
    for i in range(times):
        args, options, kind = ways[i % len(ways)]
        with pytest.raises(kind):
            await aioproc.create_subprocess_exec(*args, **pipes, **options)


@posix_only("these cases; test_windows.py has its own")
async def test_hundreds_of_failures(aioproc: Any, files: Path) -> None:
    await fail_in_every_way(aioproc, files, 200)


@posix_only("these cases; test_windows.py has its own")
@pytest.mark.heavy
async def test_thousands_of_failures(aioproc: Any, files: Path) -> None:
    await fail_in_every_way(aioproc, files, 10_000)


async def test_job_objects_are_not_everywhere(aioproc: Any) -> None:
    if WINDOWS and _backends.current().name == "native":
        pytest.skip("tests/test_windows_job.py")
    for options in ({}, {"kill_on_close": False}):
        with pytest.raises(NotImplementedError, match="Windows and the native backend"):
            aioproc.Job(**options)
