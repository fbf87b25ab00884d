"""The main job: real programs by the hundred, from one asyncio program.

    python tools/demo.py [--children N] [--at-once N]

Runs git, gzip, sh and python on the files of this project, many at a time. Every answer
is compared with what this process knows better. Then a child is read line by line while
it runs, and one that would never end is ended by a timeout.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gzip
import hashlib
import itertools
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import aioproc  # noqa: E402
from aioproc import PIPE  # noqa: E402

SUFFIXES = {".py", ".c", ".h", ".md", ".toml", ".in"}


class Wrong(Exception):
    """A child has answered something else than the truth."""


class Tally:
    """What was run, and what it used."""

    def __init__(self) -> None:
        self.children: collections.Counter[str] = collections.Counter()
        self.cpu = 0.0

    def count(self, name: str, process: aioproc.Process) -> None:
        self.children[name] += 1
        if process.rusage is not None:
            self.cpu += process.rusage.ru_utime + process.rusage.ru_stime


tally = Tally()


async def output_of(*command: str, input: bytes | None = None) -> bytes:
    """Runs a command; returns its stdout. Fails unless it exits with 0."""
    process = await aioproc.create_subprocess_exec(
        *command, stdin=PIPE if input is not None else aioproc.DEVNULL, stdout=PIPE
    )
    async with process:
        stdout, _ = await process.communicate(input)
    tally.count("python" if command[0] == sys.executable else command[0], process)
    if process.returncode != 0:
        raise Wrong(f"{command}: exit code {process.returncode}")
    return stdout


def check(command: str, got: object, expected: object) -> None:
    if got != expected:
        raise Wrong(f"{command}: {got!r} instead of {expected!r}")


# -- four questions to four programs, about one file


async def ask_git(path: Path) -> None:
    data = path.read_bytes()
    truth = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    got = await output_of("git", "hash-object", "--no-filters", str(path))
    check("git hash-object", got.decode().strip(), truth)


async def ask_gzip(path: Path) -> None:
    data = path.read_bytes()
    check("gzip", gzip.decompress(await output_of("gzip", "-c", input=data)), data)


async def ask_sh(path: Path) -> None:
    got = await output_of("sh", "-c", 'cat "$1" | wc -c', "sh", str(path))
    check("sh", int(got), path.stat().st_size)


PYTHON = "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"


async def ask_python(path: Path) -> None:
    data = path.read_bytes()
    got = await output_of(sys.executable, "-I", "-S", "-c", PYTHON, input=data)
    check("python", got.decode().strip(), hashlib.sha256(data).hexdigest())


QUESTIONS: list[Callable[[Path], Awaitable[None]]] = [ask_git, ask_gzip, ask_sh, ask_python]

# -- two things that are awkward elsewhere


async def read_lines(count: int) -> None:
    """Line by line, as they come, until we have seen enough."""
    process = await aioproc.create_subprocess_exec(
        "sh", "-c", "while :; do echo $$; done", stdout=PIPE
    )
    async with process:  # ends the endless child when we leave
        assert process.stdout is not None
        for _ in range(count):
            check("sh", int(await process.stdout.readline()), process.pid)
    tally.count("sh", process)
    check("sh, ended", process.returncode, -signal.SIGTERM)


async def time_out() -> None:
    """A timeout that loses nothing of what was said before it."""
    process = await aioproc.create_subprocess_exec(
        "sh", "-c", "echo first words; exec sleep 1000", stdout=PIPE
    )
    async with process:
        try:
            await asyncio.wait_for(process.communicate(), 0.5)
        except asyncio.TimeoutError:
            process.kill()
        stdout, _ = await process.communicate()
    tally.count("sh", process)
    check("sh, timed out", (stdout, process.returncode), (b"first words\n", -signal.SIGKILL))


async def run(children: int, at_once: int) -> None:
    files = sorted(path for path in ROOT.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    files = [path for path in files if not any(p.startswith(".venv") for p in path.parts)]
    pairs = itertools.cycle(itertools.product(files, QUESTIONS))
    places = asyncio.Semaphore(at_once)

    async def one(question: Callable[[Path], Awaitable[None]], path: Path) -> None:
        async with places:
            await question(path)

    await asyncio.gather(
        *(one(question, path) for path, question in itertools.islice(pairs, children)),
        read_lines(1000),
        time_out(),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Real programs by the hundred.")
    parser.add_argument("--children", type=int, default=600, metavar="N")
    parser.add_argument("--at-once", type=int, default=50, metavar="N")
    options = parser.parse_args()
    start = time.perf_counter()
    try:
        asyncio.run(run(options.children, options.at_once))
    except (Wrong, FileNotFoundError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - start
    named = ", ".join(f"{count} {name}" for name, count in sorted(tally.children.items()))
    print(f"{tally.children.total()} children: {named}")
    print(f"all answers right; {seconds:.1f} s, {tally.cpu:.1f} s of the children's CPU time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
