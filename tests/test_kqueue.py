"""The C files of macOS and the BSDs, built on Linux against tests/shim.

Here the tests of exits, forks and trees; tools/check.py --full runs the whole suite so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import aside
import bsd
from conftest import FUSE, settle

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("setuptools", minversion="77")


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("ps"), reason="ps, and /proc")
def test_the_leak_guards_of_macos_see_what_those_of_linux_see() -> None:
    ours = set(os.pipe())
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        assert ours <= bsd.open_fds().keys()
        assert bsd.open_fds().keys() - ours == aside.open_fds().keys() - ours
        assert process.pid in bsd.children()
        assert bsd.children() == aside.children()
        assert bsd.is_alive(process.pid)
        process.kill()
        assert settle(lambda: not bsd.is_alive(process.pid))
        assert process.pid in bsd.children()
    finally:
        for fd in ours:
            os.close(fd)
        process.communicate()
    assert process.pid not in bsd.children()


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="the sources are not here")
@pytest.mark.skipif(sys.platform != "linux", reason="macOS and the BSDs have the real thing")
def test_exits_forks_and_trees(tmp_path: Path, request: pytest.FixtureRequest) -> None:
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
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--loop", "asyncio"]
    if request.config.getoption("--no-uvloop"):
        words.append("--no-uvloop")
    files = [f"tests/test_{name}.py" for name in ("exits", "fork", "groups", "process_trees")]
    # Where there is a choice, as of scanners.
    words += [*files, "tests/test_trees.py", "-k", "not pure"]
    assert " passed" in python(*words)
