"""What a child can be told on Windows, what is refused there, and in which words."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import is_alive
from programs import CAT, NL, PYTHON, SLEEP, TRUE, WINDOWS, python

if not WINDOWS:
    pytest.skip("about Windows", allow_module_level=True)

import msvcrt

import windows
from aioproc._backends import system
from helpers import output, shell_output

pytestmark = pytest.mark.asyncio

ARGUMENTS = "import json; print(json.dumps(sys.argv[1:]))"


# -- what to run


async def test_arguments_arrive_as_they_are(api: Any) -> None:
    given = [
        *("", " ", "a b", 'say "hi"', "\\", "\\\\", 'a\\"b', "ends in \\", 'c:\\a b\\"', "\t"),
        *("%PATH%", "a&b|c<d>e^f", "(x)", "!x!", "umläut €", "*", "--", "'single'"),
    ]
    assert json.loads(await output(api, *python(ARGUMENTS, *given))) == given


async def test_arguments_of_other_types(api: Any, tmp_path: Path) -> None:
    program = python(ARGUMENTS)
    stdout = await output(api, Path(program[0]), *program[1:], b"bytes", tmp_path)
    assert json.loads(stdout) == ["bytes", str(tmp_path)]


async def test_executable(api: Any) -> None:
    command = python("print('hello')")
    stdout = await output(api, "another name", *command[1:], executable=command[0])
    assert stdout == b"hello\n"


async def test_a_program_is_looked_for(api: Any) -> None:
    for name in ("cmd", "cmd.exe", "CMD", Path("cmd"), b"cmd"):
        assert await output(api, name, "/c", "echo hello") == b"hello" + NL


async def test_cwd(api: Any, tmp_path: Path) -> None:
    for kind in (str, os.fsencode, Path):
        stdout = await output(api, *python("import os; print(os.getcwd())"), cwd=kind(tmp_path))
        assert os.path.samefile(stdout.decode().strip(), tmp_path)


async def test_shell_is_comspec(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await shell_output(api, "echo %COMSPEC%&echo two") == (
        os.environ["COMSPEC"].encode() + NL + b"two" + NL
    )
    monkeypatch.delenv("COMSPEC")
    assert await shell_output(api, "echo hello") == b"hello" + NL
    monkeypatch.delenv("SYSTEMROOT")
    with pytest.raises(FileNotFoundError, match="shell not found"):
        await api.create_subprocess_shell("echo hello")


async def test_shell_of_ones_own(api: Any) -> None:
    comspec = os.environ["COMSPEC"]
    assert await shell_output(api, "echo hello", executable=comspec) == b"hello" + NL


async def test_shell_commands_with_quotes(api: Any) -> None:
    command = subprocess.list2cmdline([PYTHON, "-c", f"import sys; {ARGUMENTS}", "a b", "c"])
    assert json.loads(await shell_output(api, command)) == ["a b", "c"]


async def test_a_shell_command_in_bytes(api: Any) -> None:
    with pytest.raises(TypeError):
        await api.create_subprocess_shell(b"echo hello")


# -- the environment


SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


async def test_env(api: Any) -> None:
    env = {"SYSTEMROOT": os.environ["SYSTEMROOT"], "A": "umläut €", "B": "x=y"}
    found = json.loads(await output(api, *python(SHOW), env=env))
    assert {name: found[name] for name in ("A", "B")} == {"A": "umläut €", "B": "x=y"}
    assert "COMSPEC" not in {**found, "COMSPEC": 1} or "PATHEXT" not in found


async def test_env_is_inherited(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Of_This_Test", "value")
    assert json.loads(await output(api, *python(SHOW)))["OF_THIS_TEST"] == "value"


async def test_case_of_names_makes_no_difference(aioproc: Any) -> None:
    env = {**os.environ, "fRUit": "cherry", "FRUIT": "orange", "fruit": "banana"}
    stdout = await output(aioproc, "cmd", "/c", "set fruit", env=env)
    assert stdout == b"fruit=banana" + NL


# -- how to run it


@pytest.mark.wine("all processes have the same priority class")
async def test_creationflags(api: Any) -> None:
    below = subprocess.BELOW_NORMAL_PRIORITY_CLASS  # type: ignore[attr-defined]
    code = (
        "import ctypes; k = ctypes.WinDLL('kernel32')\n"
        "k.GetPriorityClass.argtypes = [ctypes.c_void_p]; print(k.GetPriorityClass(-1))"
    )
    assert int(await output(api, *python(code), creationflags=below)) == below


async def test_no_window_without_a_console(aioproc: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from aioproc._spec import spec as _spec
    from aioproc._spec import windows as _windows

    def flags(**options: int) -> int:
        return _spec.SpawnSpec.build(TRUE, **options).creationflags  # type: ignore[arg-type]

    assert system.has_console()
    assert flags() == 0
    monkeypatch.setattr(_windows, "has_console", lambda: False)
    assert flags() == subprocess.CREATE_NO_WINDOW  # type: ignore[attr-defined]
    own = subprocess.CREATE_NEW_CONSOLE  # type: ignore[attr-defined]
    assert flags(creationflags=own) == own
    process = await aioproc.create_subprocess_exec(*TRUE)
    assert await process.wait() == 0


async def test_startupinfo_is_not_changed(api: Any) -> None:
    info = subprocess.STARTUPINFO()  # type: ignore[attr-defined]
    process = await api.create_subprocess_shell("exit 3", startupinfo=info, stdin=api.PIPE)
    await process.communicate()
    assert process.returncode == 3
    assert (info.dwFlags, info.wShowWindow, info.hStdInput) == (0, 0, None)


READ_HANDLE = "import msvcrt, os\nos.write(msvcrt.open_osfhandle(int(sys.argv[1]), 0), b'x')"


async def test_handle_list(api: Any) -> None:
    reader, writer = os.pipe()
    handle = msvcrt.get_osfhandle(writer)  # type: ignore[attr-defined]
    os.set_handle_inheritable(handle, True)  # type: ignore[attr-defined]
    info = subprocess.STARTUPINFO(lpAttributeList={"handle_list": [handle]})  # type: ignore[attr-defined]
    for options in ({}, {"stdin": api.DEVNULL}):
        process = await api.create_subprocess_exec(
            *python(READ_HANDLE, str(handle)), startupinfo=info, **options
        )
        assert await process.wait() == 0
        assert os.read(reader, 10) == b"x"
    assert info.lpAttributeList == {"handle_list": [handle]}
    command = python(READ_HANDLE, str(handle))
    with pytest.warns(RuntimeWarning, match="overriding close_fds"):
        process = await api.create_subprocess_exec(*command, startupinfo=info, close_fds=False)
    assert await process.wait() == 0
    os.close(reader)
    os.close(writer)


async def test_close_fds(api: Any) -> None:
    reader, writer = os.pipe()
    handle = msvcrt.get_osfhandle(writer)  # type: ignore[attr-defined]
    os.set_handle_inheritable(handle, True)  # type: ignore[attr-defined]
    code = f"try:\n exec({READ_HANDLE!r})\nexcept OSError:\n sys.exit(7)"
    for close_fds in True, False:
        process = await api.create_subprocess_exec(
            *python(code, str(handle)), close_fds=close_fds, stdin=api.PIPE
        )
        await process.communicate()
        assert process.returncode == (7 if close_fds else 0)
    os.close(reader)
    os.close(writer)


async def test_descriptors_as_streams(api: Any, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"hello")
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as target:
        process = await api.create_subprocess_exec(*CAT, stdin=source, stdout=target.fileno())
        assert await process.wait() == 0
    assert (tmp_path / "out").read_bytes() == b"hello"


# -- batch files


@pytest.fixture
def batch(tmp_path: Path) -> str:
    script = tmp_path / "a script.bat"
    (tmp_path / "show.py").write_text(f"import sys; {ARGUMENTS}")
    script.write_text(f'@"{PYTHON}" "%~dp0show.py" %*\n@exit /b 5\n')
    return str(script)


async def run_batch(aioproc: Any, *args: Any, **options: Any) -> list[str]:
    process = await aioproc.create_subprocess_exec(*args, stdout=aioproc.PIPE, **options)
    stdout, _ = await process.communicate()
    assert process.returncode == 5
    return json.loads(stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("ending", ["", ".", " ", ". ."])
async def test_a_batch_file_gets_its_arguments(aioproc: Any, batch: str, ending: str) -> None:
    given = ["plain", "a b", "", "a&echo b", "x|y", "<in", ">out", "^", "(z)", "a b\\", "c:\\"]
    assert await run_batch(aioproc, batch + ending, *given) == given
    assert not (Path.cwd() / "out").exists()


async def test_a_batch_file_is_found_before_the_chdir(
    aioproc: Any, batch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(batch).parent)
    (tmp_path / "elsewhere").mkdir()
    name = Path(batch).name
    assert await run_batch(aioproc, name.upper(), "x", cwd=tmp_path / "elsewhere") == ["x"]
    assert await run_batch(aioproc, "another name", "x", executable=name) == ["x"]


@pytest.mark.parametrize("wrong", ['"', "%PATH%", '"&calc', "a\rb", "a\nb", "100%"])
async def test_what_a_batch_file_cannot_be_given(aioproc: Any, batch: str, wrong: str) -> None:
    with pytest.raises(ValueError, match="batch file"):
        await aioproc.create_subprocess_exec(batch, wrong)


async def test_a_batch_file_that_is_not_there(aioproc: Any) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await aioproc.create_subprocess_exec("no-such-script.cmd", "x")
    assert caught.value.winerror == 2  # type: ignore[attr-defined]


async def test_a_batch_file_hidden_behind_a_quote(aioproc: Any, batch: str) -> None:
    with pytest.raises(OSError) as caught:
        await aioproc.create_subprocess_exec(f'{batch}" x', "&calc")
    assert caught.value.winerror == 123  # type: ignore[attr-defined]


# -- how it ends


@pytest.mark.parametrize("code", [0, 1, 255, 256, 259, 0x7FFFFFFF, 0xC0000005, 0xFFFFFFFF])
async def test_exit_codes(api: Any, code: int) -> None:
    signed = code - (code >> 31 << 32)
    process = await api.create_subprocess_exec(*python(f"import os; os._exit({signed})"))
    assert await process.wait() == code


async def test_killed_from_outside(api: Any) -> None:
    process = await api.create_subprocess_exec(*SLEEP, stdout=api.PIPE)
    os.kill(process.pid, 77)  # TerminateProcess
    assert await process.wait() == 77
    assert await process.stdout.read() == b""


@pytest.mark.parametrize("wrong", [9, 2, 1000, -1])
async def test_signals_that_there_are_not(aioproc: Any, wrong: int) -> None:
    process = await aioproc.create_subprocess_exec(*SLEEP)
    with pytest.raises(ValueError, match=f"Unsupported signal: {wrong}"):
        process.send_signal(wrong)
    assert process.returncode is None
    assert is_alive(process.pid)
    process.kill()
    assert await process.wait() == 1


@pytest.mark.wine("the target ends without its handlers being run, with the code 1")
async def test_ctrl_break(api: Any) -> None:
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGBREAK, lambda *_: sys.exit(9))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.01)"
    )
    group = subprocess.CREATE_NEW_PROCESS_GROUP  # type: ignore[attr-defined]
    process = await api.create_subprocess_exec(*python(code), stdout=api.PIPE, creationflags=group)
    assert await process.stdout.readline() == b"ready\n"
    try:
        process.send_signal(signal.CTRL_BREAK_EVENT)  # type: ignore[attr-defined]
        returncode = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        del process  # a failure would keep it, and so its handle
    assert returncode == 9


async def test_ctrl_break_ends(api: Any) -> None:
    if windows.WINE and windows.wine_version() < (9,):
        pytest.skip("Wine 8 has no CTRL_BREAK_EVENT")
    group = subprocess.CREATE_NEW_PROCESS_GROUP  # type: ignore[attr-defined]
    process = await api.create_subprocess_exec(*SLEEP, creationflags=group)
    while process.returncode is None:
        # A child whose console is not ready yet does not hear of it.
        try:
            process.send_signal(signal.CTRL_BREAK_EVENT)  # type: ignore[attr-defined]
        except ProcessLookupError:
            break
        await asyncio.sleep(0.05)
    # STATUS_CONTROL_C_EXIT. Wine sends SIGQUIT, whose handler ends the thread with 0
    # (quit_handler in its ntdll); most often, and not always, the process has 1 then.
    # That is so for subprocess.Popen as well.
    assert await process.wait() in ((0, 1) if windows.WINE else (0xC000013A,))


# -- what is wrong, as Popen says it


#: name: arguments and keywords; {tmp} is a directory made by `files`.
CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "nul in program": (["tr\0ue"], {}),
    "nul in argument": (["cmd", "a\0b"], {}),
    "nul in executable": (["cmd"], {"executable": "c\0md"}),
    "nul in cwd": (["cmd"], {"cwd": "c:\\\0"}),
    "nul in env value": (["cmd"], {"env": {"A": "b\0c"}}),
    "nul in env name": (["cmd"], {"env": {"A\0": "b"}}),
    "equals sign in env name": (["cmd"], {"env": {"A=B": "c"}}),
    "bytes in env": (["cmd"], {"env": {b"A": b"c"}}),
    "int in env": (["cmd"], {"env": {"A": 5}}),
    "program None": ([None], {}),
    "program int": ([5], {}),
    "argument int": (["cmd", 5], {}),
    "executable int": (["cmd"], {"executable": 5}),
    "cwd int": (["cmd"], {"cwd": 5}),
    "missing program": (["a-program-that-does-not-exist"], {}),
    "missing path": (["c:\\a\\directory\\that\\does\\not\\exist"], {}),
    "missing executable": (["cmd"], {"executable": "c:\\a\\missing\\program.exe"}),
    "missing cwd": (["cmd"], {"cwd": "c:\\a\\missing\\directory"}),
    "file as cwd": (["cmd"], {"cwd": "{tmp}\\plain.exe"}),
    "no executable": (["{tmp}\\plain.exe"], {}),
    "directory as program": (["{tmp}"], {}),
    "closed stdin": (["cmd"], {"stdin": 500}),
    "closed stdout": (["cmd"], {"stdout": 500}),
    "stream text": (["cmd"], {"stdin": "text"}),
    "user": (["cmd"], {"user": "nobody"}),
    "group": (["cmd"], {"group": 5}),
    "extra_groups": (["cmd"], {"extra_groups": [5]}),
    "preexec_fn": (["cmd"], {"preexec_fn": print}),
    "creationflags text": (["cmd"], {"creationflags": "x"}),
    "pipesize text": (["cmd"], {"pipesize": "4096"}),
    "unknown keyword": (["cmd"], {"no_such_option": 1}),
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "plain.exe").write_text("this is no program")
    return tmp_path


def filled_in(value: Any, files: Path) -> Any:
    if isinstance(value, str):
        return value.replace("{tmp}", str(files))
    if isinstance(value, dict):
        return {key: filled_in(item, files) for key, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, files) for item in value]
    return value


def described(error: BaseException | None) -> Any:
    if isinstance(error, OSError):
        return type(error), error.errno, getattr(error, "winerror", None), error.strerror
    return type(error)


async def test_as_popen(aioproc: Any, files: Path) -> None:
    wrong = {}
    for case, (args, options) in CASES.items():
        args, options = filled_in(args, files), filled_in(options, files)
        expected: BaseException | None = None
        try:
            subprocess.Popen(args, **options).communicate()
        except Exception as error:
            expected = error
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


async def test_the_numbers_of_errors(aioproc: Any, files: Path) -> None:
    for number, args, options in (
        (2, ["no-such-program"], {}),
        (193, [str(files / "plain.exe")], {}),
        (267, ["cmd"], {"cwd": str(files / "plain.exe")}),
        (206, ["cmd", "x" * 33_000], {}),
    ):
        with pytest.raises(OSError, match=rf"WinError {number}") as caught:
            await aioproc.create_subprocess_exec(*args, **options)
        assert caught.value.winerror == number  # type: ignore[attr-defined]


async def test_what_is_not_for_windows(aioproc: Any) -> None:
    with pytest.raises(ValueError, match="pass_fds"):
        await aioproc.create_subprocess_exec(*TRUE, pass_fds=[5])
    with pytest.raises(ValueError, match="environment variable name"):
        await aioproc.create_subprocess_exec(*TRUE, env={"": "value"})
    with pytest.raises(TypeError, match="STARTUPINFO"):
        await aioproc.create_subprocess_exec(*TRUE, startupinfo=object())
    with pytest.raises(OverflowError):
        await aioproc.create_subprocess_exec(*TRUE, creationflags=1 << 32)


async def test_a_closed_handle_in_the_list(aioproc: Any) -> None:
    """It never becomes one of ours; nor is one taken that stands for something else."""
    import _winapi

    reading, writing = _winapi.CreatePipe(None, 0)  # type: ignore[attr-defined,unused-ignore]
    for handle in reading, writing:
        _winapi.CloseHandle(handle)  # type: ignore[attr-defined,unused-ignore]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), aioproc.PIPE)
    for handle in reading, writing, 0, -1, -2:
        info = subprocess.STARTUPINFO(lpAttributeList={"handle_list": [handle]})  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="WinError 6"):
            await aioproc.create_subprocess_exec(*TRUE, **pipes, startupinfo=info)


async def test_hundreds_of_failures(aioproc: Any, files: Path) -> None:
    """The guard of conftest.py counts the handles."""
    ways: list[tuple[list[Any], dict[str, Any], type[Exception]]] = [
        (["no-such-program"], {}, FileNotFoundError),
        ([str(files / "plain.exe")], {}, OSError),
        (["cmd"], {"cwd": "c:\\missing"}, NotADirectoryError),
        (["cmd"], {"stdout": 500}, OSError),
        (["a\0b"], {}, ValueError),
        (["cmd", 5], {}, TypeError),
    ]
    pipes = {"stdin": aioproc.PIPE, "stderr": aioproc.PIPE}
    for i in range(120):
        args, options, kind = ways[i % len(ways)]
        with pytest.raises(kind):
            await aioproc.create_subprocess_exec(*args, **pipes, **options)


async def test_sys_executable_runs(aioproc: Any) -> None:
    """Also in a virtual environment, where another process does the work."""
    assert await output(aioproc, sys.executable, "-c", "print(6 * 7)") == b"42" + NL


@pytest.mark.parametrize("handle", [0, -1, 0x7FFF0], ids=["none", "invalid", "closed"])
@pytest.mark.parametrize("number", [0, 1, 2])
async def test_without_a_standard_stream(aioproc: Any, number: int, handle: int) -> None:
    """As in a program without a console: the child has NUL."""
    code = "sys.stderr.write('e'); sys.stdout.write('o'); sys.exit(len(sys.stdin.read()))"
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), aioproc.PIPE)
    del streams[("stdin", "stdout", "stderr")[number]]
    with windows.standard_handle(number, handle):
        process = await aioproc.create_subprocess_exec(*python(code), **streams)
    expected = [None if number == 1 else b"o", None if number == 2 else b"e"]
    assert list(await process.communicate(None if number == 0 else b"x")) == expected
    assert process.returncode == (0 if number == 0 else 1)


async def test_no_terminals(aioproc: Any) -> None:
    for function in (aioproc.create_subprocess_exec, aioproc.run):
        with pytest.raises(NotImplementedError, match="Windows"):
            await function(*TRUE, pty=True)
