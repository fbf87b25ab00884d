"""Python without processes: aioproc in Pyodide (Emscripten), under Node.

    tools/pyodide.py [--cache DIR]

Pyodide comes from npm. What is tried: the pure wheel's files are imported, python -m
aioproc reports, and every way to start a child raises the documented error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Its Python is 3.14.
PYODIDE = "pyodide@314.0.7"

PROGRAM = """
import asyncio, errno, platform, runpy, sys
sys.path.insert(0, "/aioproc.whl")
import aioproc

print(sys.platform, platform.python_version())
sys.argv[1:] = []
try:
    runpy.run_module("aioproc", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code

protocol = asyncio.SubprocessProtocol
for spawn in (
    lambda: aioproc.create_subprocess_exec("true"),
    lambda: aioproc.create_subprocess_exec("cat", stdin=aioproc.PIPE, stdout=aioproc.PIPE),
    lambda: aioproc.create_subprocess_shell("true", stdout=aioproc.DEVNULL),
    lambda: aioproc.subprocess_exec(protocol, "true"),
    lambda: aioproc.subprocess_shell(protocol, "true"),
):
    try:
        await spawn()
    except OSError as error:
        assert error.errno == errno.ENOTSUP, error
        print(repr(error))
    else:
        raise AssertionError("spawned")
# What is wrong is said first, as everywhere.
try:
    await aioproc.create_subprocess_exec("true", stdin="nonsense")
except (TypeError, ValueError, AttributeError) as error:
    print(repr(error))
else:
    raise AssertionError("accepted")
print("passed")
"""

SCRIPT = """
import { readFileSync } from "node:fs";
import { loadPyodide } from "pyodide";
const [wheel, program] = process.argv.slice(2);
const pyodide = await loadPyodide();
pyodide.FS.writeFile("/aioproc.whl", readFileSync(wheel));
await pyodide.runPythonAsync(readFileSync(program, "utf8"));
"""


def main() -> int:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    parser = argparse.ArgumentParser(description="Tries aioproc in Pyodide, under Node.")
    parser.add_argument(
        "--cache", type=Path, default=Path(caches) / "aioproc-pyodide", help="(%(default)s)"
    )
    options = parser.parse_args()
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        print("pyodide: there is no node and npm here", file=sys.stderr)
        return 1
    folder: Path = options.cache.resolve()
    if not (folder / "node_modules" / "pyodide").exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = ["install", "--no-audit", "--no-fund", "--prefix", str(folder), PYODIDE]
        subprocess.run([npm, *words], check=True, timeout=600, stdin=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory(prefix="aioproc-") as name:
        work = Path(name)
        tree = work / "tree"
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / "aioproc", tree / "aioproc", ignore=ignore)
        shutil.copytree(ROOT / "csrc", tree / "csrc", ignore=ignore)
        for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, tree)
        subprocess.run(
            [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", work],
            cwd=tree,
            env={**os.environ, "AIOPROC_BUILD_EXTENSION": "no", "PYTHONPATH": ""},
            check=True,
            timeout=600,
        )
        [wheel] = work.glob("*.whl")
        (work / "program.py").write_text(PROGRAM)
        script = folder / "aioproc.mjs"
        script.write_text(SCRIPT)
        done = subprocess.run(
            [node, script, wheel, work / "program.py"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
        )
    print(done.stdout, end="")
    return 0 if done.returncode == 0 and done.stdout.endswith("passed\n") else 1


if __name__ == "__main__":
    sys.exit(main())
