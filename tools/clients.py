"""Runs widely used clients of asyncio's subprocess API without and with aioproc.

    python tools/clients.py --venv DIR [--only NAME ...] [--markdown]

DIR gets a virtual environment with pinned versions of the clients, and the sources of
those that bring tests of their own. Every client's tests, or a real task, are run on
asyncio's own subprocesses, then with aioproc installed, native and pure; on asyncio's
loop and on uvloop. A table follows. The exit code is 1 if anything that works without
aioproc does not with it, or if aioproc was not asked for a single child.

It takes a quarter of an hour, and the network for the packages; see --only.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib
import json
import mmap
import os
import runpy
import subprocess
import sys
import tarfile
import tempfile
import venv
import warnings
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TASKS = ROOT / "tools" / "client_tasks"

VERSIONS = {
    "mcp": "2.3.0",
    "jupyter_client": "8.10.0",
    "asyncssh": "2.24.1",
    "anyio": "4.16.0",
    "shellous": "0.42.0",
    "pygls": "2.1.1",
    "playwright": "1.65.2",
    "ansible-runner": "2.4.3",
    "distributed": "2026.8.0",
}
#: What they and their tests need beside.
BESIDE = [
    *("uvloop==0.23.0", "cffi"),
    *("ansible-core==2.21.5", "ipykernel==7.4.0"),
    *("pytest", "pytest-mock", "pytest-timeout", "pytest-examples", "trio", "psutil"),
    *("coverage", "blockbuster", "trustme", "inline-snapshot", "dirty-equals", "hypothesis"),
    *("logfire", "opentelemetry-sdk", "bcrypt"),
]

WITHOUT, NATIVE, PURE = "without", "native", "pure"
LOOPS = ("asyncio", "uvloop")
#: Seconds for one run.
FUSE = 600


@dataclasses.dataclass
class Trial:
    client: str
    what: str
    #: Arguments of python.
    program: Sequence[str]
    loops: Sequence[str] = LOOPS
    #: The program is pytest, run in the client's unpacked sources.
    tests: bool = False
    #: Tests left out, and why.
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)


TRIALS = [
    Trial(
        "anyio",
        "its tests of subprocesses and worker processes (both loops inside)",
        ["tests/test_subprocesses.py", "tests/test_to_process.py"],
        loops=["asyncio"],
        tests=True,
    ),
    Trial(
        "mcp",
        "its tests of the stdio transport",
        [
            "tests/transports/stdio",
            "tests/client/test_stdio.py",
            "tests/interaction/transports/test_stdio.py",
        ],
        tests=True,
        left_out={
            "test_a_graceful_exit_with_a_surviving_child_leaks_no_pipe_fds": "counts the "
            "process's descriptors at the child's end; aioproc keeps two for its loop, "
            "for a second after the last child"
        },
    ),
    Trial("mcp", "a server's tools, called by stdio", [str(TASKS / "with_mcp.py")]),
    Trial(
        "asyncssh",
        "its tests of processes, keysign and proxy commands",
        [
            "tests/test_process.py",
            "tests/test_connection.py",
            "tests/test_connection_auth.py",
            *("-k", "Process or keysign or proxy"),
        ],
        tests=True,
    ),
    Trial(
        "asyncssh",
        "remote commands through a proxy command",
        [str(TASKS / "with_asyncssh.py")],
    ),
    Trial("shellous", "pipelines, timeouts, a terminal", [str(TASKS / "with_shellous.py")]),
    Trial("pygls", "a language server and a client", [str(TASKS / "with_pygls.py")]),
    Trial(
        "jupyter_client",
        "%%bash and %%script cells in a kernel",
        [str(TASKS / "with_jupyter.py")],
        loops=["asyncio"],
    ),
    Trial("playwright", "its driver, without a browser", [str(TASKS / "with_playwright.py")]),
    Trial(
        "distributed",
        "SubprocessCluster: a scheduler, two workers",
        [str(TASKS / "with_distributed.py")],
        loops=["asyncio"],
    ),
    Trial(
        "ansible-runner",
        "a module, run beside asyncio children",
        [str(TASKS / "with_ansible.py")],
    ),
]


# -- inside the clients' environment


def launch(mode: str, loop: str, program: list[str]) -> None:
    """Runs a program as asked for; tells of each child that aioproc makes."""
    if loop == "uvloop":
        import uvloop

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    if mode == WITHOUT:
        as_module = program[0] == "-m"
        sys.argv[:] = program[as_module:]
        sys.path[0] = os.getcwd() if as_module else os.path.dirname(program[0])
        if as_module:
            runpy.run_module(program[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(program[0], run_name="__main__")
        return

    from aioproc import _api
    from aioproc._cli.main import main

    if mode == PURE:
        _excuse_popen()
    spawn = _api.open_transport

    # In memory that all processes of a trial share: some clients' tests find whatever
    # does input or output within the loop.
    with open(os.environ["CLIENT_COUNT"], "r+b") as file:
        count = mmap.mmap(file.fileno(), 8)

    async def counted(*args: object) -> object:
        count[:] = (int.from_bytes(count, "little") + 1).to_bytes(8, "little")
        return await spawn(*args)  # type: ignore[arg-type]

    _api.open_transport = counted  # type: ignore[assignment]
    main(["exec", *program])


def _excuse_popen() -> None:
    """blockbuster, which clients' tests use, finds what blocks the loop. It knows that
    asyncio's subprocess_exec does, by its file; the pure backend does likewise."""
    blockbuster: Any = importlib.import_module("blockbuster")
    init = blockbuster.BlockBuster.__init__

    def excusing(self: Any, *args: Any, **kwds: Any) -> None:
        init(self, *args, **kwds)
        self.functions["os.read"].can_block_in("aioproc/_backends/posix/popen.py", "popen")

    blockbuster.BlockBuster.__init__ = excusing


# -- outside


@dataclasses.dataclass
class Outcome:
    #: What must be the same: a test's outcome by its name, or what a task has printed.
    results: dict[str, str]
    children: int
    log: str

    def summary(self) -> str:
        counts: dict[str, int] = {}
        for result in self.results.values():
            counts[result] = counts.get(result, 0) + 1
        known = [
            f"{counts[key]} {key}" for key in ("passed", "failed", "skipped") if key in counts
        ]
        return ", ".join(known) or "nothing"

    def works(self, trial: Trial) -> bool:
        if trial.tests:
            return "passed" in self.results.values()
        return self.results.get("exit") == "0"

    def worse_than(self, other: Outcome) -> list[str]:
        """What worked there and does not here."""
        bad = []
        for name, result in other.results.items():
            here = self.results.get(name, "missing")
            if here != result and not (here == "passed" and result in ("skipped", "failed")):
                bad.append(f"{name}: {result}, now {here}")
        return bad


class Environment:
    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.python = self.directory / "bin" / "python"

    def _pip(self, *args: str) -> None:
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", *args]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def prepare(self) -> None:
        if not self.python.exists():
            venv.create(self.directory, with_pip=True)
        wanted = [f"{name}=={version}" for name, version in VERSIONS.items()]
        self._pip("install", "-q", *wanted, *BESIDE)
        for client in {trial.client for trial in TRIALS if trial.tests}:
            if not self.sources(client).exists():
                self._unpack(client)

    def sources(self, client: str) -> Path:
        return self.directory / "sources" / f"{client}-{VERSIONS[client]}"

    def _unpack(self, client: str) -> None:
        into = self.directory / "sources"
        wanted = f"{client}=={VERSIONS[client]}"
        self._pip("download", "-q", "--no-deps", "--no-binary", client, "-d", str(into), wanted)
        with tarfile.open(into / f"{client}-{VERSIONS[client]}.tar.gz") as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(into, filter="data")
            else:
                archive.extractall(into)

    def run(self, trial: Trial, mode: str, loop: str) -> Outcome:
        with tempfile.TemporaryDirectory() as scratch:
            return self._run(trial, mode, loop, Path(scratch))

    def _run(self, trial: Trial, mode: str, loop: str, scratch: Path) -> Outcome:
        count, report = scratch / "count", scratch / "report.xml"
        count.write_bytes(bytes(8))
        launcher = [str(self.python), __file__, "--launch", mode, loop]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CLIENT_PYTHON": json.dumps(launcher),
            "CLIENT_COUNT": str(count),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        environment.pop("AIOPROC_BACKEND", None)
        if mode != WITHOUT:
            environment["AIOPROC_BACKEND"] = mode
        program = list(trial.program)
        if trial.tests:
            left_out = " and ".join(f"not {name}" for name in trial.left_out)
            # A plugin for asyncio would change what the clients' own plugins do.
            options = ["-q", "-p", "no:cacheprovider", "-p", "no:asyncio"]
            program = ["-m", "pytest", *options, f"--junitxml={report}", *program]
            if left_out and "-k" in program:
                at = program.index("-k") + 1
                program[at] = f"({program[at]}) and {left_out}"
            elif left_out:
                program += ["-k", left_out]
        try:
            done = subprocess.run(
                [*launcher, *program],
                cwd=self.sources(trial.client) if trial.tests else scratch,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if trial.tests else subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=FUSE,
            )
        except subprocess.TimeoutExpired as error:
            return Outcome({"run": "timed out"}, _number(count), str(error))
        if not trial.tests:
            results = {"exit": str(done.returncode), "output": done.stdout}
            log = done.stdout + done.stderr
        elif report.exists():
            results, log = _outcomes(report), done.stdout
        else:
            results, log = {"run": f"no report, exit code {done.returncode}"}, done.stdout
        return Outcome(results, _number(count), log)


def _number(count: Path) -> int:
    return int.from_bytes(count.read_bytes(), "little")


def _outcomes(report: Path) -> dict[str, str]:
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "passed"
        if kinds & {"failure", "error"}:
            outcome = "failed"
        elif "skipped" in kinds:
            outcome = "skipped"
        found[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return found


def _told(trial: Trial, outcome: Outcome, reference: Outcome) -> str:
    if trial.tests:
        return outcome.summary()
    if outcome is reference:
        return "works" if outcome.works(trial) else "fails"
    return "the same" if outcome.results == reference.results else "DIFFERENT"


def compare(
    environment: Environment, trial: Trial, backends: Sequence[str]
) -> tuple[list[list[str]], list[str]]:
    rows, faults = [], []
    for loop in trial.loops:
        without = environment.run(trial, WITHOUT, loop)
        row = [trial.client, VERSIONS[trial.client], trial.what, loop]
        row.append(_told(trial, without, without))
        where = f"{trial.client}, {trial.what}, {loop}"
        if not without.works(trial):
            faults.append(f"{where}: fails without aioproc\n{without.log}")
        for backend in backends:
            outcome = environment.run(trial, backend, loop)
            row.append(f"{_told(trial, outcome, without)} (children: {outcome.children})")
            if bad := outcome.worse_than(without):
                faults.append(f"{where}, {backend}: " + "\n".join(bad) + f"\n{outcome.log}")
            if not outcome.children:
                faults.append(f"{where}, {backend}: aioproc was not asked for a child")
        rows.append(row)
        print(" | ".join(row), flush=True)
    return rows, faults


def main() -> int:
    if sys.argv[1:2] == ["--launch"]:
        launch(sys.argv[2], sys.argv[3], sys.argv[4:])
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--venv", type=Path, required=True, help="where to put the clients")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these clients")
    parser.add_argument("--backends", nargs="+", choices=[NATIVE, PURE], default=[NATIVE, PURE])
    parser.add_argument("--markdown", action="store_true", help="the table as in the docs")
    options = parser.parse_args()

    environment = Environment(options.venv)
    environment.prepare()
    rows, faults = [], []
    for trial in TRIALS:
        if options.only is None or trial.client in options.only:
            more_rows, more_faults = compare(environment, trial, options.backends)
            rows += more_rows
            faults += more_faults
    if options.markdown:
        head = ["client", "version", "what was run", "loop", "without", *options.backends]
        print()
        for row in [head, ["---"] * len(head), *rows]:
            print(f"| {' | '.join(row)} |")
    for trial in TRIALS:
        for name, reason in trial.left_out.items():
            print(f"left out of {trial.client}'s tests: {name}: {reason}")
    for fault in faults:
        print(f"\nFAULT {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
