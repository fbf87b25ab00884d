"""The pages' examples do what the pages say; what they link to is there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from aside import Aside
from conftest import FUSE
from examples import Example, examples
from marks import posix_only
from programs import WINDOWS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
#: Has tests of its own, on more backends.
RECIPES = DOCS / "recipes.md"

pytestmark = pytest.mark.primary
#: The programs of the pages, and what they say.
not_elsewhere = pytest.mark.skipif(
    not (WINDOWS or sys.platform == "linux"), reason="the pages were written on Linux"
)
with_sources = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="the sources are not here"
)

#: A process for each page, its output and its errors.
Runs = dict[Path, tuple[subprocess.Popen[str], IO[str], IO[str]]]


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


PAGES = sorted(DOCS.rglob("*.md"))
WITH_EXAMPLES = [
    page
    for page in PAGES
    if page != RECIPES
    and any("pytest" not in one.words and one.is_for_this_system for one in examples(page))
    # The others are about programs that Windows has not.
    and (not WINDOWS or name(page) == "guide/windows.md")
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """All pages, side by side: most of them wait for something."""
    with contextlib.ExitStack() as stack:
        running: Runs = {}
        for page in WITH_EXAMPLES:
            output = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            errors = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            process = subprocess.Popen(
                [sys.executable, "-W", "error", str(ROOT / "tests" / "examples.py"), str(page)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                cwd=tmp_path_factory.mktemp("page"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            running[page] = (process, output, errors)
        yield running


@not_elsewhere
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name)
def test_examples(page: Path, runs: Runs) -> None:
    process, output, errors = runs[page]
    returncode = process.wait(2 * FUSE)
    output.seek(0)
    errors.seek(0)
    assert (returncode, errors.read()) == (0, "")
    done = [Example(**example) for example in json.load(output)]
    assert done
    for example in done:
        assert not example.error, example.error
        where = f"{page}:{example.line}"
        if example.expected is not None:
            assert lines(example.printed) == lines(example.expected), where
        else:
            assert not example.printed, f"{where} does not say what it prints"


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


@posix_only("scripts as programs")
def test_examples_for_pytest(tmp_path: Path) -> None:
    page = DOCS / "guide" / "testing.md"
    found = [one for one in examples(page) if "pytest" in one.words]
    assert found
    for number, example in enumerate(found):
        (tmp_path / f"test_{number}.py").write_text(example.code, encoding="utf-8")
    command = ["-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(
        [sys.executable, *command, "--rootdir", str(tmp_path), str(tmp_path)],
        env=Aside().environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * FUSE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


@with_sources
@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("*.md"))], ids=lambda page: page.name)
def test_links(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        assert file.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(file), f"{page}: {link}"


def test_every_page_can_be_found() -> None:
    """There is a way to it from the start page's contents."""
    found = set()
    left = [DOCS / "index.md"]
    while left:
        page = left.pop()
        found.add(page)
        for body in re.findall(
            r"^```\{toctree\}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S
        ):
            for entry in re.findall(r"^(?:.* <)?([\w/]+)>?$", body, re.M):
                left.append(page.parent / f"{entry}.md")
    assert found == set(PAGES)


def test_every_public_name_is_in_the_reference() -> None:
    import aioproc

    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    described = set(
        re.findall(r"^\.\. (?:auto)?(?:function|class|exception|data):: (\w+)", text, re.M)
    )
    assert described == set(aioproc.__all__)


def test_how_it_is_installed() -> None:
    """Not by that name from the public index, which belongs to another project."""
    for page in [*PAGES, *ROOT.glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for line in re.findall(r"^.*pip install.*aioproc.*$", text, re.M):
            assert "Do not" in line, f"{page}: {line}"
