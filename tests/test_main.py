"""``python -m aioproc``; its ``run`` is in test_cli_run.py, ``exec`` in test_install.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import aioproc as aioproc_package
from conftest import FUSE
from helpers import environment
from marks import posix_only
from programs import TRUE

ROOT = Path(aioproc_package.__file__).parent.parent


def main(
    *arguments: str, env: dict[str, str] | None = None, input: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs python -m aioproc."""
    env = {**(os.environ if env is None else env), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", "aioproc", *arguments]
    return subprocess.run(
        command, env=env, input=input, capture_output=True, text=True, timeout=FUSE
    )


@posix_only("pipes as files")
def test_nobody_reads_the_report(aioproc: Any) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "aioproc"],
        env={**environment(aioproc), "PYTHONPATH": str(ROOT)},
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=FUSE,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_report(aioproc: Any) -> None:
    backend = aioproc._backends.current()
    done = main(env=environment(aioproc))
    assert (done.returncode, done.stderr) == (0, "")
    head = f"aioproc {aioproc.__version__}: {backend.name} backend ({backend.strategy})\n"
    assert done.stdout.startswith(head)
    done = main("--json", env=environment(aioproc))
    facts = json.loads(done.stdout)
    assert facts["backend"] == backend.name
    # In this process the tests have chosen the backend, by other means.
    own = aioproc.backend_info()
    assert (own["backend"], own["strategy"]) == (backend.name, backend.strategy)
    for name in ("aioproc", "features", "python", "system", "kernel", "libc", "cffi", "uvloop"):
        assert own[name] == facts[name]


@pytest.mark.parametrize("arguments", [["run", "--", *TRUE], []], ids=["run", "report"])
def test_a_backend_that_is_not_to_be_had(arguments: list[str]) -> None:
    done = main(*arguments, env={**os.environ, "AIOPROC_BACKEND": "other"})
    assert done.returncode == (126 if arguments else 1)
    assert "AIOPROC_BACKEND is 'other'; it can be native or pure" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["exec"], "a program is needed"),
        (["exec", "--limit", "0", "x.py"], "'0' is neither a number of bytes nor none"),
        (["exec", "--limit", "much", "x.py"], "'much' is neither a number of bytes nor none"),
    ],
)
def test_misuse(arguments: list[str], why: str) -> None:
    done = main(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"usage: python -m aioproc {arguments[0]}" in done.stderr
    assert done.stderr.endswith(f"{why}\n")
