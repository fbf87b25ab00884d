"""nice, rlimits and die_with_parent on Windows: priority classes, and limits of jobs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aioproc._spec.spec import SpawnSpec
from conftest import is_alive, settle
from programs import LEAVES_CAT, PYTHON, TRUE, WINDOWS, python

if not WINDOWS:
    pytest.skip("about Windows", allow_module_level=True)

#: What the job is limited to that the process is in (QueryInformationJobObject).
SHOW = python(
    """
import ctypes
class Basic(ctypes.Structure):
    _fields_ = [("times", ctypes.c_int64 * 2), ("flags", ctypes.c_uint32),
                ("sets", ctypes.c_size_t * 2), ("processes", ctypes.c_uint32),
                ("affinity", ctypes.c_size_t), ("classes", ctypes.c_uint32 * 2)]
class Extended(ctypes.Structure):
    _fields_ = [("basic", Basic), ("io", ctypes.c_uint64 * 6),
                ("process_memory", ctypes.c_size_t), ("job_memory", ctypes.c_size_t),
                ("peaks", ctypes.c_size_t * 2)]
class Rate(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint32), ("rate", ctypes.c_uint32)]
query = ctypes.WinDLL("kernel32").QueryInformationJobObject
extended, rate = Extended(), Rate()
query(None, 9, ctypes.byref(extended), ctypes.sizeof(extended), None)
query(None, 15, ctypes.byref(rate), ctypes.sizeof(rate), None)
print(hex(extended.basic.flags), extended.job_memory, extended.basic.processes,
      rate.flags, rate.rate)
"""
)
KILL_ON_CLOSE, PROCESSES, MEMORY = 0x2000, 0x8, 0x200


def environment() -> dict[str, str]:
    """Of a process that uses aioproc itself."""
    here = Path(__file__).resolve().parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    return dict(os.environ, AIOPROC_BACKEND="native", PYTHONPATH=paths)


# -- priority classes


@pytest.mark.parametrize(
    ("nice", "flag"),
    [
        ("realtime", 0x100),
        ("high", 0x80),
        ("above_normal", 0x8000),
        ("normal", 0x20),
        ("below_normal", 0x4000),
        ("idle", 0x40),
        (-20, 0x80),
        (-8, 0x80),
        (-7, 0x8000),
        (-1, 0x8000),
        (0, 0x20),
        (1, 0x4000),
        (10, 0x4000),
        (11, 0x40),
        (19, 0x40),
    ],
)
def test_nice_is_a_priority_class(nice: Any, flag: int) -> None:
    assert SpawnSpec.build(TRUE, nice=nice).creationflags & 0xC1E0 == flag


@pytest.mark.asyncio
@pytest.mark.wine("all processes have the same priority class")
async def test_nice(aioproc: Any) -> None:
    code = (
        "import ctypes; k = ctypes.WinDLL('kernel32')\n"
        "k.GetPriorityClass.argtypes = [ctypes.c_void_p]; print(k.GetPriorityClass(-1))"
    )
    assert int((await aioproc.run(*python(code), nice="below_normal")).stdout) == 0x4000


@pytest.mark.primary
@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"nice": "polite"}, ValueError, "'polite'; there is realtime"),
        ({"nice": 20}, ValueError, "from -20 to 19"),
        ({"nice": 1.5}, TypeError, "integer"),
        ({"nice": 1, "creationflags": 0x40}, ValueError, "may not both"),
        ({"rlimits": {"nofile": 1}}, ValueError, "'nofile' on Windows; there is job_memory"),
        ({"rlimits": {"job_memory": 0}}, ValueError, "from 1"),
        ({"rlimits": {"job_memory": 1.5}}, TypeError, "integer"),
        ({"rlimits": {"job_processes": 2**32}}, ValueError, "from 1"),
        ({"rlimits": {"job_cpu_rate": 0}}, ValueError, "from 0.01 to 100"),
        ({"rlimits": {"job_cpu_rate": 101}}, ValueError, "from 0.01 to 100"),
        ({"rlimits": {"job_cpu_rate": "50"}}, TypeError, "per cent"),
        ({"rlimits": 5}, TypeError, "mapping"),
        ({"cpu_affinity": [0]}, ValueError, "not supported"),
        ({"oom_score_adj": 5}, ValueError, "it needs Linux"),
        ({"no_new_privs": True}, ValueError, "it needs Linux"),
    ],
    ids=str,
)
async def test_bad_input(aioproc: Any, options: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text):
        await aioproc.run("no-such-program", **options)


@pytest.mark.asyncio
@pytest.mark.parametrize("options", [{"rlimits": {"job_processes": 1}}, {"die_with_parent": True}])
async def test_what_popen_cannot_do(aioproc: Any, options: Any) -> None:
    if aioproc._backends.current().name == "native":
        pytest.skip("the pure backend's")
    with pytest.raises(ValueError, match="needs the native backend"):
        await aioproc.create_subprocess_exec(*TRUE, **options)


# -- jobs


async def shown(api: Any, **options: Any) -> list[str]:
    result: list[str] = (await api.run(*SHOW, **options)).text.split()
    return result


@pytest.mark.asyncio
@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("tree", [True, False])
@pytest.mark.wine("a job says nothing of its limits")
async def test_limits_of_a_job(tree: bool) -> None:
    import aioproc

    limits = {"job_memory": 10**9, "job_processes": 7, "job_cpu_rate": 12.5}
    flags, *others = await shown(aioproc, rlimits=limits, tree=tree, die_with_parent=False)
    assert int(flags, 16) & (MEMORY | PROCESSES | KILL_ON_CLOSE) == MEMORY | PROCESSES
    assert others == [str(10**9), "7", "5", "1250"]
    flags, *_ = await shown(aioproc, tree=tree)
    assert int(flags, 16) & (MEMORY | PROCESSES | KILL_ON_CLOSE) == KILL_ON_CLOSE


@pytest.mark.asyncio
@pytest.mark.usefixtures("native")
@pytest.mark.wine("a job limits nothing")
async def test_a_process_too_many() -> None:
    import aioproc

    code = f"import subprocess; subprocess.run({TRUE!r})"
    with pytest.raises(aioproc.CalledProcessError, match="OSError"):
        await aioproc.run(*python(code), rlimits={"job_processes": 1})
    await aioproc.run(*python(code), rlimits={"job_processes": 8})


@pytest.mark.asyncio
@pytest.mark.usefixtures("native")
@pytest.mark.wine("a job limits nothing")
async def test_too_much_memory() -> None:
    import aioproc

    with pytest.raises(aioproc.CalledProcessError, match="MemoryError"):
        await aioproc.run(*python("b'x' * (400 << 20)"), rlimits={"job_memory": 100 << 20})


# -- die_with_parent

CHILD = python("import os, time; print(os.getpid(), flush=True); time.sleep(1000)")
PARENT = f"""
import asyncio, os, sys
import aioproc

async def main():
    how = sys.argv[1]
    if how == "run":
        show = lambda _, line: print(int(line), flush=True)
        asyncio.ensure_future(aioproc.run(*{CHILD!r}, on_line=show))
    else:
        options = {{"None": {{}}}}.get(how, {{"die_with_parent": True, "tree": how == "tree"}})
        process = await aioproc.create_subprocess_exec(*{CHILD!r}, **options)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    os._exit(3)

asyncio.run(main())
"""


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("end", ["by itself", "killed"])
@pytest.mark.parametrize("how", ["True", "tree", "run", "None"])
def test_it_ends_with_us(how: str, end: str) -> None:
    with subprocess.Popen(
        [PYTHON, "-c", PARENT, how],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_alive(pid)
        if end == "killed":
            process.kill()
        else:
            process.stdin.write(b"\n")
            process.stdin.flush()
        process.wait()
        if how == "None":
            assert is_alive(pid)
            os.kill(pid, 15)
        assert settle(lambda: not is_alive(pid))


@pytest.mark.asyncio
@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("tree", [True, False])
async def test_what_it_leaves_behind_goes_on(tree: bool) -> None:
    """It alone ends with us, as on Linux."""
    import aioproc

    pipe = aioproc.PIPE
    process = await aioproc.create_subprocess_exec(
        *LEAVES_CAT, stdin=pipe, stdout=pipe, die_with_parent=True, tree=tree
    )
    assert (await process.stdout.readline()).rstrip() == b"hi"
    assert await process.wait() == 0
    child = process._transport._child
    for job in (child.job, child.own_job):
        if job is not None:
            job.close()
    process.stdin.write(b"still here")
    process.stdin.close()
    assert await process.stdout.read() == b"still here"
