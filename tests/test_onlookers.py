"""Debuggers, emulators, preloaded libraries: who looks at children, or finds their programs,
in a way of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from programs import HAS_PROC

if not HAS_PROC:
    pytest.skip("Linux: ptrace, /proc", allow_module_level=True)

from aside import Aside
from conftest import FUSE, subjects
from preload import preload

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def clone_is_there(request: pytest.FixtureRequest) -> None:
    if not {"clone", "copy"} & set(subjects(request.config)):
        pytest.skip("waived, or built with tests/shim, which has no clone()")


SHARES = """
import ctypes, json, subprocess
from aioproc import _backends
libc = ctypes.CDLL(None)
last_flags = ctypes.c_int.in_dll(libc, "last_flags")
CLONE_VM = 0x100

async def one():
    process = await aioproc.create_subprocess_exec(
        "/bin/sh", "-c", "cat; exit 7", stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    assert await process.communicate(b"x" * 100_000) == (b"x" * 100_000, None)
    assert process.returncode == 7
    return bool(last_flags.value & CLONE_VM)

def told():
    report = _backends.report()
    return report["strategy"], report["not_used"].get("native, clone")
"""

ATTACHED = """
# The loop's port is open: it stays what it is. The next loop has another.
result = [run(one()), *told()]
libc.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER: anybody (Yama)
tracer = subprocess.Popen(
    [sys.executable, sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE, text=True)
answer = tracer.stdout.readline().rstrip()
if answer == "attached":
    result += [run(one()), *told(), tracer.pid]
else:
    result = answer
print(json.dumps(result))
tracer.stdout.close()
tracer.returncode = 0  # it ends with us
"""


@pytest.mark.parametrize("forced", ["", "clone", "copy"])
def test_a_debugger_that_is_attached_later(forced: str, tmp_path: Path) -> None:
    output = Aside(forced).run(
        SHARES + ATTACHED, TESTS / "tracer.py", LD_PRELOAD=preload(tmp_path)
    )
    answer = json.loads(output)
    if isinstance(answer, str):
        pytest.skip(f"ptrace is refused here: {answer}")
    *found, pid = answer
    if forced:
        assert found == [forced == "clone", forced, None] * 2
    else:
        *found, why_not = found
        assert found == [True, "clone", None, False, "copy"]
        assert why_not.startswith("traced by python")
        assert why_not.endswith(f" (pid {pid})")


def test_the_report_under_a_tool(tmp_path: Path) -> None:
    """valgrind is known by the library that it preloads, whose name is what this has."""
    env = Aside().environment() | {"LD_PRELOAD": preload(tmp_path, "vgpreload_x.so")}
    done = subprocess.run(
        [sys.executable, "-m", "aioproc"], env=env, capture_output=True, text=True, timeout=FUSE
    )
    assert (done.returncode, done.stderr) == (0, "")
    head, why_not, *_ = done.stdout.splitlines()
    assert head.endswith(": native backend (copy)")
    assert why_not == "  not native, clone: run by valgrind"
    # From its first child on.
    assert Aside().run(SHARES + "print(run(one()))", LD_PRELOAD=env["LD_PRELOAD"]) == "False\n"


# -- the tools themselves


def under(tool: list[str], code: str, tmp_path: Path) -> str:
    """Runs code under a tool; returns what the two said."""
    if shutil.which(tool[0]) is None:
        pytest.skip(f"{tool[0]} is not installed")
    if "LD_PRELOAD" in os.environ:
        pytest.skip(f"{tool[0]} would have to bear with {os.environ['LD_PRELOAD']}")
    script = tmp_path / "script.py"
    script.write_text(code)
    env = Aside().environment()
    done = subprocess.run(
        [*tool, sys.executable, str(script)],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=4 * FUSE,
    )
    for refusal in ("Operation not permitted", "ptrace(TRACEME)", "ptrace: "):
        if refusal in done.stdout and "well" not in done.stdout:
            pytest.skip(f"{tool[0]} cannot trace here")
    return done.stdout


BREAKPOINT = """
import asyncio, ctypes, aioproc
libc = ctypes.CDLL(None)
async def main():
    for _ in range(2):
        process = await aioproc.create_subprocess_exec(
            "/bin/sh", "-c", "echo $$; exit 7", stdout=aioproc.PIPE)
        output, _ = await process.communicate()
        assert (process.returncode, int(output)) == (7, process.pid)
        libc.getppid()
asyncio.run(main())
print("well")
"""

COMMANDS = """
set breakpoint pending on
break getppid
commands
silent
echo stopped\\n
continue
end
run
"""


def test_gdbs_breakpoints_hold(tmp_path: Path) -> None:
    (tmp_path / "commands").write_text(COMMANDS)
    gdb = ["gdb", "-q", "-nx", "-batch", "-iex", "set debuginfod enabled off"]
    said = under([*gdb, "-x", str(tmp_path / "commands"), "--args"], BREAKPOINT, tmp_path)
    assert "well" in said.splitlines(), said
    assert said.splitlines().count("stopped") == 2, said


HEAP = """
import asyncio, aioproc
async def one():
    process = await aioproc.create_subprocess_exec("true", stdout=aioproc.PIPE)
    await process.communicate()
async def main():
    keep = []
    for _ in range(8):
        await asyncio.gather(*(one() for _ in range(20)))
        keep.extend(bytearray(60_000) for _ in range(20))
asyncio.run(main())
print("well")
"""


def test_proot_keeps_our_heap(tmp_path: Path) -> None:
    """It keeps the heaps of all processes itself; of two on the same memory it makes one."""
    said = under(["proot", "-r", "/"], HEAP, tmp_path)
    assert said.splitlines()[-1:] == ["well"], said


@pytest.mark.heavy
def test_valgrind_goes_on(tmp_path: Path) -> None:
    said = under(["valgrind", "-q", "--tool=none"], BREAKPOINT, tmp_path)
    assert "well" in said.splitlines(), said


# -- preloaded libraries

ELSEWHERE = """
async def main():
    process = await aioproc.create_subprocess_exec(
        "/elsewhere/bin/echo", "found", stdout=aioproc.PIPE)
    output, _ = await process.communicate()
    print(output.decode(), end="")
    try:
        await aioproc.create_subprocess_exec("/elsewhere/bin/nothing")
    except FileNotFoundError as error:
        assert error.filename == "/elsewhere/bin/nothing"
    else:
        raise AssertionError("started what is not there")
run(main())
"""


def test_a_library_that_finds_programs_elsewhere(tmp_path: Path) -> None:
    """The portable strategy asks it, and nobody before."""
    assert Aside("portable").run(ELSEWHERE, LD_PRELOAD=preload(tmp_path)) == "found\n"
