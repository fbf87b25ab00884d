"""What run() takes of memory while it runs, and what it leaves when it has: each in a process of
its own, whose resident size is looked at."""

from __future__ import annotations

import sys

import pytest

from aside import Aside
from marks import proc_only

pytestmark = [
    proc_only,
    pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy has memory to spare"),
]

#: For the code that runs aside. What is in kB in /proc is given in bytes.
STATUS = """
MIB = 1 << 20

def status(what):
    with open("/proc/self/status") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == what:
                return int(value.split()[0]) * 1024
    raise AssertionError(what)

async def warm_up():
    # What a first child has us open, import and probe.
    await aioproc.run(*CAT, input=b"hello")
    collect()
"""

BOUNDED = (
    STATUS
    + """
async def main(seconds):
    await warm_up()
    before = status("VmRSS")
    try:
        await aioproc.run("yes", max_output=MIB, timeout=seconds)
    except aioproc.TimeoutExpired as error:
        result = error.result
    else:
        raise AssertionError("yes has ended")
    grown = status("VmHWM") - before
    assert len(result.stdout) == MIB
    # Or little is said by that which follows.
    assert result.dropped[0] > 16 * MIB, result.dropped
    assert grown < 8 * MIB, f"{grown / MIB:.1f} MiB"

run(main(float(sys.argv[1])))
"""
)


@pytest.mark.parametrize("seconds", [0.5, pytest.param(2, marks=pytest.mark.heavy)])
def test_bounded_output_of_a_child_that_writes_for_ever(aside: Aside, seconds: float) -> None:
    aside.run(BOUNDED, seconds)


CAPTURED = (
    STATUS
    + """
async def main(size, code):
    await warm_up()
    before = status("VmRSS")
    script = f"head -c {size} /dev/zero; exit {code}"
    try:
        result = await aioproc.run("sh", "-c", script)
    except aioproc.CalledProcessError as error:
        result = error.result
    peak = status("VmHWM") - before
    assert (len(result.stdout), result.returncode) == (size, code)
    assert size <= peak <= 1.1 * size, f"{peak / size:.3f}"
    # The output goes with the result, and does not wait for the garbage collector.
    gc.disable()
    del result
    left = status("VmRSS") - before
    assert left < size // 8, f"{left / MIB:.1f} MiB"

run(main(int(sys.argv[1]) * MIB, int(sys.argv[2])))
"""
)


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("mebibytes", [64, pytest.param(256, marks=pytest.mark.heavy)])
def test_output_is_held_once(aside: Aside, mebibytes: int, code: int) -> None:
    aside.run(CAPTURED, mebibytes, code)


#: Runs of all kinds whose end is soon.
MANY = (
    STATUS
    + """
KILOBYTE = b"x" * 1024

async def captured():
    assert (await aioproc.run("echo", "hello")).stdout == b"hello\\n"

async def silent():
    await aioproc.run("true", stdout=aioproc.DEVNULL, stderr=aioproc.DEVNULL)

async def with_input():
    assert (await aioproc.run(*CAT, input=KILOBYTE)).stdout == KILOBYTE

async def with_lines():
    lines = []
    await aioproc.run("echo", "hello", text=True, on_line=lambda *line: lines.append(line))
    assert lines == [("stdout", "hello\\n")]

async def bounded():
    assert (await aioproc.run(*CAT, input=iter([KILOBYTE]), max_output=9)).dropped == (1015, 0)

async def failing():
    try:
        await aioproc.run("sh", "-c", "echo sorry >&2; exit 3")
    except aioproc.CalledProcessError as error:
        assert error.stderr == b"sorry\\n"
    else:
        raise AssertionError

async def missing():
    try:
        await aioproc.run("/nowhere/at/all")
    except FileNotFoundError:
        pass
    else:
        raise AssertionError

JOBS = [captured, silent, with_input, with_lines, bounded, failing, missing]

async def some(count):
    for number in range(count):
        await JOBS[number % len(JOBS)]()
    # What has been asked of the loop for later is done.
    await asyncio.sleep(0)

def state():
    return len(gc.get_objects()), status("VmRSS")

async def main(count):
    await some(20 * len(JOBS))
    gc.collect()
    gc.disable()  # nothing is left to it
    objects, size = state()
    await some(count)
    more_objects, more_size = state()
    assert more_objects - objects < 50, f"{more_objects - objects} objects"
    assert more_size - size < MIB, f"{(more_size - size) / MIB:.2f} MiB"

run(main(int(sys.argv[1])))
"""
)


@pytest.mark.parametrize("count", [210, pytest.param(10_000, marks=pytest.mark.heavy)])
def test_runs_in_a_row_leave_nothing(aside: Aside, count: int) -> None:
    aside.run(MANY, count, fuse=600)


REFUSED = """
import resource

async def main():
    await aioproc.run(*CAT, input=b"hello")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_fds()) + 1, hard))
    gc.disable()
    for _ in range(100):
        try:
            await aioproc.run(*CAT, input=b"hello")
        except OSError as error:
            assert error.errno == errno.EMFILE
            error.itself = error  # and so its traceback, with all that is in its frames
        else:
            raise AssertionError("not refused")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    gc.collect()
    for _ in range(100):
        bytearray(1000)

run(main())
"""


def test_input_of_what_was_refused_is_collected(aside: Aside) -> None:
    """Python's collector cannot take a memoryview whose buffer somebody has, and crashes."""
    aside.run(REFUSED)
