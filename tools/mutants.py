"""Plants mistakes in copies of this tree, and sees that the tool notices which is there for it.

    python tools/mutants.py                all of them
    python tools/mutants.py --only lost-status double-close

First each tool must be content with the tree as it is. Linux on x86_64, with a C compiler.
Exits with 0 only if every mistake was noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

#: Seconds; a fuse, and for some mistakes what they are noticed by.
FUSE = 300


class Mutant(NamedTuple):
    name: str
    file: str
    #: What is there once, and what stands there instead.
    old: str
    new: str
    #: The tool, and its arguments.
    tool: tuple[str, ...]


def faults(*words: str) -> tuple[str, ...]:
    return ("tools/faults.py", *words)


def soak(*words: str) -> tuple[str, ...]:
    return ("tools/soak.py", "--count", "4000", "--patience", "20", "--first", *words)


STREAMS = ("-m", "pytest", "-q", "-x", "tests/test_stateful_streams.py")
RUNS = ("-m", "pytest", "-q", "-x", "tests/test_stateful_run.py")

MUTANTS = [
    Mutant(
        "unclosed-end",  # of the pipe for an exec's result, where there is no child
        "csrc/posix/children.c",
        "  if (child->exec_fd >= 0) close(child->exec_fd);\n  process_close",
        "  process_close",
        faults("--only", "clone", "--operation", "spawn", "--call", "clone"),
    ),
    Mutant(
        "unclosed-theirs",  # the child's ends, always
        "csrc/posix/stdio.c",
        "if (theirs[i] >= 0) close(theirs[i]);",
        "if (theirs[i] >= 0 && i < 2) close(theirs[i]);",
        soak(),
    ),
    Mutant(
        "lost-status",
        "csrc/posix/pidfd.c",
        "out->status = (info.si_status & 0xff) << 8; break;",
        "out->status = (info.si_status & 0x1f) << 8; break;",
        soak(),
    ),
    Mutant(
        "double-close",  # of the number that a late failure of clone() has left
        "csrc/posix/spawn_clone.c",
        "if (pid >= 0) call->pidfd = made;",
        "call->pidfd = made;",
        faults("--only", "clone", "--operation", "spawn", "--call", "clone"),
    ),
    Mutant(
        "lost-memory",  # a child's, after its exec
        "csrc/posix/children.c",
        "  plan_free(child->plan);\n  child->plan = NULL;\n  child->rss_floor",
        "  child->plan = NULL;\n  child->rss_floor",
        soak(),
    ),
    Mutant(
        "zombie",  # whom somebody waits for in the moment of its release
        "csrc/posix/port.c",
        "      } else if (child->port) {\n",
        "      } else if (child->port && !child->told) {\n",
        faults("--only", "clone", "--operation", "run by lines", "--call", "waitid"),
    ),
    Mutant(
        "orphan",  # of a closed loop, and never looked at
        "aioproc/_backends/posix/native.py",
        "    if lib.ap_orphan_count():\n",
        "    if lib.ap_orphan_count() < 0:\n",
        soak("--only", "loops"),
    ),
    Mutant(
        "held-buffer",  # which crashes Python's collector
        "aioproc/_backends/posix/native.py",
        "                ffi.release(data)\n",
        "                pass\n",
        faults("--only", "clone", "--operation", "run", "--call", "pipe2"),
    ),
    Mutant(
        "swallowed-error",
        "aioproc/_run/feed.py",
        "            if not isinstance(error, READS_NO_MORE):\n",
        "            if isinstance(error, MemoryError):\n",
        faults("--only", "clone", "--operation", "run slowly", "--call", "write"),
    ),
    Mutant(
        "unwatched-child",  # where the loop cannot watch its pipes
        "aioproc/_asyncio/pipes.py",
        "            if not self._look_due:\n                self._look_due = True\n",
        "            if not self._look_due:\n                self._look_due = True\n"
        "                return\n",
        faults("--only", "clone", "--operation", "communicate", "--call", "epoll_ctl"),
    ),
    Mutant(
        "lost-output",  # of a communicate() that was cancelled
        "aioproc/_asyncio/streams.py",
        "        self._replace(sink.all())\n        self._fed += self._size\n",
        "        self._replace(sink.all()[:1])\n        self._fed += self._size\n",
        STREAMS,
    ),
    Mutant(
        "deaf-reader",  # who waits while its pipe breaks
        "aioproc/_asyncio/streams.py",
        "        self._exception = exc\n        self._fail_waiter(exc)\n",
        "        self._exception = exc\n",
        STREAMS,
    ),
    Mutant(
        "missed-member",  # of a tree, out of its session
        "csrc/posix/tree.c",
        "    if (t->marks && one->facts.alive",
        "    if (!t->marks && one->facts.alive",
        RUNS,
    ),
    Mutant(
        "no-force",  # for who does not mind SIGTERM
        "aioproc/_trees/ending.py",
        "            self.left = await self._insist(self._kill)\n",
        "            self.left = []\n",
        RUNS,
    ),
]


@contextlib.contextmanager
def copy_of_tree() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aioproc-mutants-") as directory:
        copy = Path(directory) / "aioproc"
        ignore = shutil.ignore_patterns(
            ".git", ".venv*", ".cache", ".*_cache", ".hypothesis", "build", "dist", "__pycache__"
        )
        shutil.copytree(ROOT, copy, ignore=ignore)
        yield copy


def build(tree: Path) -> None:
    environment = {**os.environ, "AIOPROC_BUILD_EXTENSION": "require", "AIOPROC_CFLAGS": "-O1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)


def run(tree: Path, tool: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the tool is content, and what it said of that."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "AIOPROC_BACKEND": "native"}
    environment["AIOPROC_STATEFUL_HURRIES"] = "1"
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, *tool],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            returncode = process.wait(FUSE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False, f"it hangs: {FUSE} s"
        output.seek(0)
        lines = output.read().splitlines()
    words = ("WRONG", "Fatal Python error", "E   ", "FAILED")
    said = [line.strip() for word in words for line in lines if line.startswith(word)]
    said += lines[-1:]
    return returncode == 0, f"{said[0] if said else ''} ({returncode})"[:160]


def plant(tree: Path, mutant: Mutant) -> None:
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.file} has that {text.count(mutant.old)} times")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="MUTANT")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    chosen = [one for one in MUTANTS if not options.only or one.name in options.only]
    if options.list:
        print("\n".join(one.name for one in chosen))
        return 0
    survivors = 0
    with copy_of_tree() as tree:
        build(tree)
        for tool in dict.fromkeys(one.tool for one in chosen):
            content, said = run(tree, tool)
            print(f"as it is: {' '.join(tool)}: {'content' if content else said}", flush=True)
            if not content:
                return 1
    for mutant in chosen:
        with copy_of_tree() as tree:
            plant(tree, mutant)
            if mutant.file.startswith("csrc"):
                build(tree)
            start = time.monotonic()
            content, said = run(tree, mutant.tool)
            seconds = time.monotonic() - start
        survivors += content
        verdict = "SURVIVES" if content else "noticed"
        print(f"{mutant.name:16} {verdict} after {seconds:.0f} s: {said}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mistakes noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
