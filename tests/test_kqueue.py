"""The C files of macOS and the BSDs, built on Linux against tests/shim.

Here the tests of exits and forks; tools/check.py --full runs the whole suite so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import FUSE

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("setuptools", minversion="77")


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="the sources are not here")
@pytest.mark.skipif(sys.platform != "linux", reason="macOS and the BSDs have the real thing")
def test_exits_and_forks_by_kqueue(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--no-native"):
        pytest.skip("waived")
    for folder in ("aioproc", "csrc", "tests"):
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    environ = {name: value for name, value in os.environ.items() if "AIOPROC" not in name}
    environ |= {"AIOPROC_PLATFORM": "linux-kqueue", "AIOPROC_BUILD_EXTENSION": "require"}
    environ |= {"AIOPROC_CFLAGS": "-Werror -Wshadow", "PYTHONPATH": str(tmp_path)}
    environ |= {"AIOPROC_BACKEND": "native"}

    def python(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environ, timeout=4 * FUSE,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    python("setup.py", "-q", "build_ext", "--inplace")
    assert "kqueue: yes" in python("-m", "aioproc")
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_exits.py"]
    words += ["tests/test_fork.py", "-k", "portable and asyncio"]
    if request.config.getoption("--no-uvloop"):
        words.append("--no-uvloop")
    assert " passed" in python(*words)
