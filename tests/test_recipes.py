"""The programs of docs/recipes.md do what they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import FUSE, subjects
from marks import posix_only
from test_readme import ENVIRONMENTS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = {
    title: (language, program, output)
    for title, language, program, output in re.findall(
        r"^## ([^\n]*)\n(?:(?!^## ).)*?^```(python|sh)\n(.*?)^```$"
        r"(?:(?!^## ).)*?^```text\n(.*?)^```$",
        TEXT,
        re.M | re.S,
    )
}
MOST_LINES = 20
#: Two pipes are two.
ANY_ORDER = "Both streams, line by line, as they come"


def test_all_of_them_are_run_here() -> None:
    assert list(RECIPES) == re.findall(r"^## (.*)$", TEXT, re.M)
    assert len(RECIPES) >= 10
    assert "docs/recipes.md" in (ROOT / "README.md").read_text(encoding="utf-8")[:4000]


@pytest.mark.parametrize("title", RECIPES)
def test_it_is_short(title: str) -> None:
    lines = [line for line in RECIPES[title][1].splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith(("import ", "from ", "asyncio.run("))]
    assert len(own) <= MOST_LINES


@posix_only("the programs, which are POSIX'")
@pytest.mark.parametrize("title", RECIPES)
@pytest.mark.parametrize("backend", ["clone", "pure"])
def test_it_prints_what_it_says(pytestconfig: pytest.Config, backend: str, title: str) -> None:
    if backend not in subjects(pytestconfig):
        pytest.skip(f"{backend} is not among the backends to test")
    language, program, output = RECIPES[title]
    if "Talk to an interpreter" in title and sys.implementation.name == "pypy":
        pytest.skip("PyPy's prompt is another")
    for module in ("rich", "tqdm"):
        if f"from {module}" in program:
            pytest.importorskip(module)
    python = [sys.executable, "-W", "error"]
    if language == "sh":
        # As if it were installed.
        program = f'aioproc() {{ {shlex.join(python)} -m aioproc "$@"; }}\n{program}'
    done = subprocess.run(
        ["sh", "-c", program] if language == "sh" else [*python, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), **ENVIRONMENTS[backend]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * FUSE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert (sorted(lines) if title == ANY_ORDER else lines) == output.splitlines()
