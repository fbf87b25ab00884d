"""Runs CPython's own tests of asyncio's subprocess functions against aioproc.

    python tools/cpython_tests.py [--list] [--install] [-v]

The tests are test.test_asyncio.test_subprocess of the running interpreter, unchanged.
asyncio's functions and the event loops' methods are aioproc's meanwhile; with --install
that is done by aioproc.install() instead. What is left out is named below, each with
the reason; everything else must pass.
"""

from __future__ import annotations

import argparse
import asyncio
import asyncio.base_events
import importlib
import importlib.util
import sys
import time
import types
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aioproc
from aioproc import _backends

MODULE = "test.test_asyncio.test_subprocess"

Version = tuple[int, int]


class Exclusion(NamedTuple):
    """Tests that are about what is inside asyncio."""

    #: A class, or a method in whatever class.
    name: str
    reason: str
    #: The versions of Python that have it: from, up to and including.
    since: Version = (3, 10)
    until: Version = (3, 99)
    #: Only then.
    when: Callable[[], bool] = lambda: True


def on_posix() -> bool:
    return sys.platform != "win32"


def statuses_can_be_stolen() -> bool:
    """Before Linux 6.15 nobody can tell the status of a child that was reaped already."""
    return on_posix() and not _backends.report()["features"].get("pidfd_get_info")


EXCLUSIONS = [
    Exclusion(
        "SubprocessTransportTests",
        "calls private methods of asyncio's own transport class on a mock of Popen",
    ),
    Exclusion(
        "GenericWatcherTests",
        "about asyncio's child watchers, which aioproc does not use",
        since=(3, 11),
        until=(3, 13),
        when=on_posix,
    ),
    Exclusion(
        "MultiLoopChildWatcherTests",
        "about one of asyncio's child watchers, which aioproc does not use",
        since=(3, 12),
        until=(3, 13),
        when=on_posix,
    ),
    Exclusion(
        "SubprocessFastWatcherTests",
        "has one of asyncio's child watchers wait for any child, ours too; this kernel cannot "
        "tell us the status afterwards",
        until=(3, 13),
        when=statuses_can_be_stolen,
    ),
    Exclusion(
        "test_pause_reading",
        "replaces the loop's connect_read_pipe by a mock; aioproc's pipes do not use it",
    ),
    Exclusion(
        "test_close_kill_running",
        "replaces kill() of the Popen object and expects the transport's close() to call it",
    ),
    Exclusion(
        "test_popen_error",
        "expects an exception out of a mock of subprocess.Popen",
    ),
    Exclusion(
        "test_popen_error_with_stdin_pipe",
        "expects an exception out of a mock of subprocess.Popen",
    ),
]


def install_by_name() -> None:
    """Every name by which the tests reach asyncio's functions."""

    async def subprocess_exec(self: Any, factory: Any, *args: Any, **kwds: Any) -> Any:
        return await aioproc.subprocess_exec(factory, *args, **kwds)

    async def subprocess_shell(self: Any, factory: Any, cmd: Any, **kwds: Any) -> Any:
        return await aioproc.subprocess_shell(factory, cmd, **kwds)

    replacements: dict[str, Any] = {
        "create_subprocess_exec": aioproc.create_subprocess_exec,
        "create_subprocess_shell": aioproc.create_subprocess_shell,
    }
    for name, replacement in replacements.items():
        setattr(asyncio, name, replacement)
        setattr(asyncio.subprocess, name, replacement)
    for name in ("Process", "PIPE", "STDOUT", "DEVNULL"):
        setattr(asyncio.subprocess, name, getattr(aioproc, name))
    loop_class: Any = asyncio.base_events.BaseEventLoop
    loop_class.subprocess_exec = subprocess_exec
    loop_class.subprocess_shell = subprocess_shell


def flat(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flat(item)
        else:
            yield item


def names_of(test: unittest.TestCase) -> tuple[str, str]:
    _, class_name, method = test.id().rsplit(".", 2)
    return class_name, method


def use_tests_from(directory: Path) -> None:
    """Puts directory/test before what this Python has under that name, which may be a
    part or nothing."""
    found = importlib.util.find_spec("test")
    package = types.ModuleType("test")
    package.__path__ = [str(directory / "test")]
    if found is not None:
        package.__path__ += found.submodule_search_locations or []
    sys.modules["test"] = package


def has_tests() -> bool:
    return all(importlib.util.find_spec(name) for name in ("test", "test.test_asyncio"))


def load(directory: Path | None) -> Any:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    debian = Path(f"/usr/lib/python{version}")
    if directory is not None:
        use_tests_from(directory)
    elif not has_tests() and (debian / "test").exists():
        use_tests_from(debian)
    try:
        return importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        sys.exit(
            f"{error}: this Python comes without its tests. Debian and Ubuntu have them in "
            f"libpython{version}-testsuite; --tests-from names the directory that holds test/."
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="CPython's tests against aioproc")
    parser.add_argument("--install", action="store_true", help="use aioproc.install()")
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    parser.add_argument(
        "--tests-from", type=Path, metavar="DIR", help="where test/test_asyncio is"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="name every test")
    options = parser.parse_args()

    module = load(options.tests_from)
    version = sys.version_info[:2]
    exclusions = [e for e in EXCLUSIONS if e.since <= version <= e.until and e.when()]
    chosen = unittest.TestSuite()
    left_out: dict[str, int] = {exclusion.name: 0 for exclusion in exclusions}
    run: list[str] = []
    for test in flat(unittest.defaultTestLoader.loadTestsFromModule(module)):
        names = names_of(test)
        matches = [name for name in names if name in left_out]
        if matches:
            left_out[matches[0]] += 1
        else:
            chosen.addTest(test)
            run.append(".".join(names))

    backend = _backends.current()
    how = "aioproc.install()" if options.install else "names replaced"
    print(f"Python {sys.version.split()[0]}, {MODULE}, {how}")
    print(f"aioproc {aioproc.__version__}, {backend.name} backend ({backend.strategy})")
    print(f"\nExcluded ({sum(left_out.values())}):")
    for exclusion in exclusions:
        print(f"  {exclusion.name} ({left_out[exclusion.name]}): {exclusion.reason}")
    gone = [name for name, count in left_out.items() if not count]
    if gone:
        print(f"\nNo such tests, correct the list: {', '.join(gone)}")
        return 1
    print(f"\nRun ({len(run)}):")
    for name in run:
        print(f"  {name}")
    print(flush=True)
    if options.list:
        return 0

    if options.install:
        aioproc.install()
    else:
        install_by_name()
    served = count_spawns()
    start = time.perf_counter()
    runner = unittest.TextTestRunner(sys.stdout, verbosity=2 if options.verbose else 1)
    result = runner.run(chosen)
    print(f"{served()} children by aioproc, {time.perf_counter() - start:.1f} s")
    if not served():
        print("The tests did not reach aioproc.")
        return 1
    return 0 if result.wasSuccessful() and result.testsRun else 1


def count_spawns() -> Any:
    """Counts what the backend starts: tests that bypass aioproc prove nothing."""
    backend: Any = _backends.current()
    count = 0
    spawn = backend.spawn

    def counting(*args: Any) -> Any:
        nonlocal count
        count += 1
        return spawn(*args)

    backend.spawn = counting
    return lambda: count


if __name__ == "__main__":
    sys.exit(main())
