"""The README's programs and commands do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import FUSE, subjects
from marks import posix_only

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.M | re.S)

ENVIRONMENTS = {
    "clone": {"AIOPROC_BACKEND": "native", "AIOPROC_STRATEGY": "clone"},
    "portable": {"AIOPROC_BACKEND": "native", "AIOPROC_STRATEGY": "portable"},
    "pure": {"AIOPROC_BACKEND": "pure", "AIOPROC_STRATEGY": ""},
}


def run(config: pytest.Config, name: str, *arguments: str) -> str:
    """Runs Python on a backend with every warning an error; returns its output."""
    if name not in subjects(config):
        pytest.skip(f"{name} is not among the backends to test")
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **ENVIRONMENTS[name]},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * FUSE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@posix_only("git and signals, of which the program tells")
@pytest.mark.parametrize("backend", ENVIRONMENTS)
def test_the_first_program(pytestconfig: pytest.Config, backend: str, tmp_path: Path) -> None:
    program = tmp_path / "readme.py"
    program.write_text(PROGRAMS[0], encoding="utf-8")
    lines = run(pytestconfig, backend, str(program)).splitlines()
    assert re.fullmatch(r"git version [\d.]+.*; HELLO; \d+ bytes", lines[0])
    assert lines[1:] == ["begun timeout SIGTERM", "hello! 0"]


def test_every_program_is_run_here() -> None:
    assert len(PROGRAMS) == 1


@posix_only("git, gzip and sh, which are its children")
@pytest.mark.parametrize("backend", ENVIRONMENTS)
def test_the_main_job(pytestconfig: pytest.Config, backend: str) -> None:
    output = run(pytestconfig, backend, "tools/demo.py", "--children", "40", "--at-once", "8")
    assert output.startswith("42 children: 10 git, 10 gzip, 10 python, 12 sh\n")
    assert "all answers right" in output


def test_the_commands_are_what_ci_runs() -> None:
    # .ci/run runs the second as it is written, and the first in its parts.
    job, tests = COMMANDS
    assert job.strip() == "bash tools/setup.sh && .venv/bin/python tools/demo.py"
    assert tests.strip() == "bash tools/setup.sh && .venv/bin/python -m pytest"
