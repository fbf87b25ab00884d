"""tools/faults.py, soak.py, mutants.py: that they do what they say, and can fail. What they find
is found in their own runs."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from conftest import subjects
from programs import WINDOWS

if WINDOWS or sys.platform != "linux":
    pytest.skip("on Linux: the tools", allow_module_level=True)

from tools import faults, mutants
from tools.reliability import jobs, ledger
from tools.reliability.operations import OPERATIONS

ROOT = Path(__file__).parents[1]

can_inject = pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("cc") or not find_spec("_ctypes"),
    reason="needs x86_64, a C compiler and ctypes",
)


def tool(name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"tools/{name}.py", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=env)


@pytest.fixture
def ours(pytestconfig: pytest.Config) -> str:
    """A way to make children that is sure to be here."""
    return "clone" if "clone" in subjects(pytestconfig) else "pure"


# -- the ledger


def test_the_ledger_finds_what_is_left() -> None:
    before = ledger.take()
    assert ledger.differences(before, ledger.take()) == []
    reader, writer = os.pipe()
    child = subprocess.Popen(["sleep", "1000"])
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="idle")
    thread.start()
    try:
        found = "\n".join(ledger.differences(before, ledger.take()))
        for words in (
            f"descriptor {reader} left open: pipe",
            f"descriptor {writer} left open: pipe",
            f"child {child.pid} left",
            "thread left: idle",
        ):
            assert words in found
        # And the other way round: what was there is gone, or another.
        with_pipe = ledger.take()
        os.close(reader)
        os.dup2(0, writer)
        found = "\n".join(ledger.differences(with_pipe, ledger.take()))
        assert f"descriptor {reader} closed: pipe" in found
        assert f"descriptor {writer} replaced: was pipe" in found
    finally:
        os.close(writer)
        child.kill()
        child.wait()
        release.set()
        thread.join()
    assert ledger.differences(before, ledger.take()) == []


@pytest.mark.asyncio
@pytest.mark.primary
async def test_the_ledger_knows_what_a_loop_has() -> None:
    loop = asyncio.get_running_loop()
    if not hasattr(loop, "_selector"):
        pytest.skip("only asyncio's own can be looked into")
    before = ledger.take(loop)
    reader, writer = os.pipe()
    loop.add_reader(reader, print)
    task = asyncio.ensure_future(asyncio.sleep(1000))
    found = ledger.differences(before, ledger.take(loop))
    assert f"descriptor {reader} still watched" in found
    assert "1 tasks left" in found
    loop.remove_reader(reader)
    task.cancel()
    os.close(reader)
    os.close(writer)
    assert await ledger.settled(before, lambda text: None) == []


@pytest.mark.asyncio
async def test_the_ledger_knows_the_c_layers_memory(aioproc: Any) -> None:
    if aioproc._backends.current().name != "native":
        pytest.skip("about the C layer")
    before = ledger.take()
    process = await aioproc.create_subprocess_exec("sleep", "1000")
    assert "1 children of the C layer left" in ledger.differences(before, ledger.take())
    process.kill()
    await process.wait()
    now = ledger.take()
    assert (now.tokens, now.plans) == (before.tokens, before.plans)


# -- faults


@can_inject
def test_faults_are_injected(ours: str, tmp_path: Path) -> None:
    saved = tmp_path / "faults.json"
    found = tool(
        "faults",
        *("--only", ours, "--operation", "spawn", "--warmth", "warm", "--json", str(saved)),
        *("--call", "pipe2", "epoll_ctl", "execve"),
    )
    assert found.returncode == 0, found.stdout + found.stderr
    rows = [json.loads(line) for line in saved.read_text().splitlines()]
    assert all(hit for _, hit, *_ in rows)
    by_call = {case.split("|")[4] for case, *_ in rows}
    assert by_call == {"pipe2", "epoll_ctl", "execve"} - ({"pipe2"} if ours == "pure" else set())
    # In the child, before its exec, too; and what was refused is told.
    assert {case.split("|")[3] for case, *_ in rows} == {"parent", "child"}
    assert {kind for _, _, kind, *_ in rows} == {"right", "raised"}


@can_inject
def test_a_sample_is_repeated_by_its_seed(ours: str) -> None:
    case = f"{ours}|spawn|warm|parent|epoll_wait|1|EINTR|refused"
    found = tool("faults", "--again", case, case)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("hit=True, kind='right'") == 2
    missed = tool("faults", "--again", case.replace("|1|", "|1000|"))
    assert missed.returncode == 1  # that nothing came about is no success
    assert "1 more did not come about" in missed.stdout


def case(**changes: Any) -> faults.Case:
    usual = faults.Case("clone", "spawn", "warm", "parent", "pipe2", 1, "EMFILE", "refused")
    return usual._replace(**changes)


RIGHT = {"kind": "right"}
TOLD = {"kind": "raised", "type": "OSError", "errno": 24, "text": ""}
USUAL = {"outcome": RIGHT, "after": [RIGHT, RIGHT], "left": [], "bad_closes": 0}


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ({}, ""),
        ({"outcome": TOLD}, ""),
        ({"outcome": {**TOLD, "errno": 2}}, "raised: OSError"),
        ({"outcome": {"kind": "hangs"}}, "hangs"),
        ({"outcome": {"kind": "returned", "text": "37"}}, "returned:  37"),
        ({"left": ["descriptor 9 left open: pipe"]}, "descriptor 9"),
        ({"bad_closes": 1}, "1 descriptors closed that were not open"),
        ({"after": [RIGHT, TOLD]}, "the next one"),
    ],
)
def test_what_is_wrong(answer: dict[str, Any], wrong: str) -> None:
    found = faults.verdict(case(), {**USUAL, **answer})
    assert bool(found) == bool(wrong)
    assert wrong in "".join(found)


def test_cases_are_read_as_they_are_written() -> None:
    assert faults.Case.parse(str(case())) == case()


def test_every_call_has_errors_of_this_system() -> None:
    for words in faults.ERRORS.values():
        for word in words.split():
            assert hasattr(__import__("errno"), word.partition(":")[0])
    assert not faults.CANNOT_FAIL & faults.ERRORS.keys()


@can_inject
def test_unknown_calls_are_named() -> None:
    rng, unknown = random.Random(0), set[str]()
    counts = {"parent": {"1": 2, "2": 1, "3": 1}, "child": {}}
    names = {1: "read", 2: "quotactl", 3: "futex"}
    found = list(faults.cases_of(counts, "clone", "run", "warm", names, rng, unknown))
    assert unknown == {"quotactl"}
    assert {one.call for one in found} == {"read"}
    assert {one.occurrence for one in found} == {1, 2}


# -- the soak


def test_a_soak(ours: str) -> None:
    backend = "pure" if ours == "pure" else "native"
    words = ("--count", "150", "--seed", "1", "--loop", "asyncio", "--only", "storm", "collect")
    found = tool("soak", *words, AIOPROC_BACKEND=backend)
    assert found.returncode == 0, found.stdout + found.stderr
    result = json.loads(found.stdout[found.stdout.index("{\n") :])
    assert (result["jobs"], result["wrong"], result["seed"]) == (150, 0, 1)
    assert result["backend"].startswith(backend)
    assert sum(result["done"].values()) >= 150


def test_jobs_are_drawn_by_their_seed() -> None:
    def drawn(seed: int) -> list[str]:
        own = jobs.Jobs(random.Random(seed), are_taken=False, survive=True, is_short=False)
        return [own.draw()[0] for _ in range(50)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert jobs.WEIGHTS.keys() == {name for name in vars(jobs.Jobs) if name[0] != "_"} - {"draw"}


def test_a_job_knows_a_wrong_status() -> None:
    own = jobs.Jobs(random.Random(0), are_taken=False, survive=True, is_short=False)
    own._status(0, 0)
    for found in (1, None, jobs.UNKNOWN_EXIT):
        with pytest.raises(jobs.Wrong):
            own._status(found, 0)
    # Not to be known where somebody else waits, and no pidfd keeps it.
    jobs.Jobs(random.Random(0), are_taken=True, survive=False, is_short=False)._status(
        jobs.UNKNOWN_EXIT, 0
    )


# -- mutants


def test_every_mistake_can_be_planted(tmp_path: Path) -> None:
    for mutant in mutants.MUTANTS:
        path = tmp_path / mutant.file
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / mutant.file, path)
        mutants.plant(tmp_path, mutant)
        assert path.read_text() != (ROOT / mutant.file).read_text()
        assert (ROOT / mutant.tool[0]).exists() or mutant.tool[0] == "-m"
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS) >= 8


def test_operations_are_named_in_the_list_of_what_is_tried() -> None:
    found = tool("faults", "--operation", "nothing", "--seconds", "1")
    assert found.returncode == 1
    assert "no such operation: nothing" in found.stderr
    assert {"run", "communicate", "time out"} <= OPERATIONS.keys()
