"""The package as it is built: three states of the extension, and what is inside."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from programs import WINDOWS

if WINDOWS:
    pytest.skip("not on Windows: builds of the extension for POSIX", allow_module_level=True)

from conftest import FUSE

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import asyncio, sys, aioproc
async def main():
    process = await aioproc.create_subprocess_exec("echo", "hello", stdout=aioproc.PIPE)
    assert await process.communicate() == (b"hello\\n", None)
asyncio.run(main())
from aioproc import _backends
print(_backends.current().name, "_cffi_backend" in sys.modules)
"""

PYPY = sys.implementation.name == "pypy"
STABLE_ABI = not PYPY and not sysconfig.get_config_var("Py_GIL_DISABLED")

pytest.importorskip("setuptools", minversion="77")  # older ones cannot read pyproject.toml


def listed() -> list[str]:
    """The files of the project."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git clone")
    git = subprocess.run(
        ["git", "ls-files"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return sorted(name for name in git.stdout.splitlines() if (ROOT / name).exists())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources, without anything built."""
    copy = tmp_path / "tree"
    ignore = shutil.ignore_patterns(
        "*.so", "__pycache__", "build", "dist", ".git", ".venv*", ".*cache", "*.egg-info"
    )
    shutil.copytree(ROOT, copy, ignore=ignore)
    return copy


def setup(
    tree: Path, command: str, state: str | None, **env: str
) -> subprocess.CompletedProcess[str]:
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIOPROC_", "PYTHON")) and name not in ("CC", "CFLAGS")
    }
    if state is not None:
        environ["AIOPROC_BUILD_EXTENSION"] = state
    return subprocess.run(
        [sys.executable, "setup.py", "-q", command, "--dist-dir", "../out"],
        cwd=tree, env=environ | env, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=10 * FUSE,
    )  # fmt: skip


def product(tree: Path) -> Path:
    [path] = (tree.parent / "out").iterdir()
    return path


def run_from(wheel: Path, *flags: str) -> list[str]:
    """Runs PROGRAM against an unpacked wheel; returns what it says."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "site")
    environ = {k: v for k, v in os.environ.items() if not k.startswith("AIOPROC_")}
    done = subprocess.run(
        [sys.executable, *flags, "-c", PROGRAM], cwd=wheel.parent,
        env=environ | {"PYTHONPATH": str(wheel.parent / "site")},
        capture_output=True, text=True, timeout=FUSE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def assert_pure(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
    # -S: without site-packages, so without cffi; which PyPy itself uses.
    assert run_from(wheel, "-S") == ["pure", str(PYPY)]


@pytest.mark.parametrize("state", [None, pytest.param("require", marks=pytest.mark.heavy)])
def test_the_extension_is_built(tree: Path, state: str | None) -> None:
    done = setup(tree, "bdist_wheel", state)
    assert done.returncode == 0, done.stderr
    wheel = product(tree)
    assert "without the extension" not in done.stderr
    with zipfile.ZipFile(wheel) as archive:
        [binary] = [name for name in archive.namelist() if name.endswith(".so")]
        assert binary.startswith("aioproc/_native.")
        if STABLE_ABI:  # and every CPython finds it
            assert "-cp310-abi3-" in wheel.name
            assert binary == "aioproc/_native.abi3.so"
        [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        assert re.search(
            r"^Requires-Dist: cffi>=[\d.]+; platform", archive.read(metadata).decode(), re.M
        )
    assert run_from(wheel) == ["native", "True"]


def test_no_extension_and_no_cffi_when_told_so(tree: Path) -> None:
    done = setup(tree, "bdist_wheel", "no")
    assert done.returncode == 0, done.stderr
    wheel = product(tree)
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        needs = re.findall(r"^Requires-Dist: (.*)$", archive.read(metadata).decode(), re.M)
    assert [line for line in needs if "extra ==" not in line] == []
    assert_pure(wheel)


@pytest.mark.parametrize("state", [None, "auto"])
def test_a_failed_compile_is_a_warning(tree: Path, state: str | None) -> None:
    done = setup(tree, "bdist_wheel", state, CC="false")
    assert done.returncode == 0, done.stderr
    assert "installing without the extension" in done.stderr
    assert_pure(product(tree))


def test_a_failed_compile_leaves_no_older_extension(tree: Path) -> None:
    suffix = ".abi3.so" if STABLE_ABI else sysconfig.get_config_var("EXT_SUFFIX")
    older = tree / "aioproc" / f"_native{suffix}"
    older.write_bytes(b"not any more")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree,
        env={**os.environ, "CC": "false", "AIOPROC_BUILD_EXTENSION": "auto"},
        capture_output=True, text=True, timeout=FUSE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not older.exists()


def test_a_failed_compile_is_an_error_when_the_extension_is_required(tree: Path) -> None:
    done = setup(tree, "bdist_wheel", "require", CC="false")
    assert done.returncode != 0
    assert not (tree.parent / "out").exists()


def test_other_states_are_refused(tree: Path) -> None:
    done = setup(tree, "bdist_wheel", "maybe")
    assert done.returncode != 0
    assert "AIOPROC_BUILD_EXTENSION is 'maybe'" in done.stderr


@pytest.mark.parametrize(("state", "needs"), [("no", False), ("auto", True), ("require", True)])
def test_cffi_is_fetched_only_for_the_extension(state: str, needs: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import backend; print(backend.get_requires_for_build_wheel({}))"],
        cwd=ROOT / "csrc", env={**os.environ, "AIOPROC_BUILD_EXTENSION": state},
        capture_output=True, text=True, timeout=FUSE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ("cffi" in done.stdout) is needs


def test_the_sdist_has_what_git_has(tree: Path) -> None:
    files = listed()
    done = setup(tree, "sdist", "no")
    assert done.returncode == 0, done.stderr
    with tarfile.open(product(tree)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert [name for name in files if name not in names] == []


def test_types_are_part_of_the_package(tree: Path) -> None:
    assert setup(tree, "bdist_wheel", "no").returncode == 0
    with zipfile.ZipFile(product(tree)) as archive:
        names = set(archive.namelist())
    assert {"aioproc/py.typed", "aioproc/_native.pyi"} <= names
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "aioproc").rglob("*.py")}
    assert sources <= names
