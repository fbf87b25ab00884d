"""The programs that the benchmark starts."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def _found(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"the benchmark needs the program {name!r}")
    return path


class Programs:
    """Paths, so that nobody's search in PATH is measured."""

    def __init__(self, directory: str) -> None:
        self.true = _found("true")
        self.echo = _found("echo")
        self.cat = _found("cat")
        self.head = _found("head")
        self.wc = _found("wc")
        self.child = os.path.join(directory, "child")
        self.limit = os.path.join(directory, "limit")
        self.os_exec = os.path.join(directory, "os_exec")


#: What is built is one file, by the Go that is here.
GO_ENVIRONMENT = {"GO111MODULE": "off", "GOFLAGS": "", "GOTOOLCHAIN": "local"}


def has_go() -> bool:
    return shutil.which("go") is not None


def go_version() -> str:
    command = ["go", "env", "GOVERSION"]
    environment = {**os.environ, **GO_ENVIRONMENT}
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return run.stdout.strip().removeprefix("go")


def build(directory: Path, *, go: bool = False) -> None:
    """Compiles child.c and limit.c; CC may name the compiler. With `go`, os_exec.go too."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        raise SystemExit(f"the benchmark needs a C compiler; there is no {compiler[0]!r}")
    # For everybody: the children may run as another user.
    directory.chmod(0o755)
    for name in ("child", "limit"):
        target, source = directory / name, HERE / f"{name}.c"
        subprocess.run([*compiler, "-O2", "-pthread", "-o", target, source], check=True)
        target.chmod(0o755)
    if go:
        target, source = directory / "os_exec", HERE / "os_exec.go"
        command = ["go", "build", "-o", str(target), str(source)]
        subprocess.run(command, check=True, env={**os.environ, **GO_ENVIRONMENT})
        target.chmod(0o755)
