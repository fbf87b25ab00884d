"""One suite for every backend, every loop and, where behaviour is shared, asyncio.

A test takes one of these fixtures:

``aioproc``   the package, with each of our backends in turn
``api``       the same, and asyncio itself as the oracle: for behaviour that is
              asyncio's; has create_subprocess_exec/shell, subprocess_exec/shell, PIPE...
``aside``     a Python process of its own with each backend (tests/aside.py), the pure
              one's polling thread among them, and each loop, though not every pair

Coroutine tests run on asyncio's own loop and on uvloop's; the oracle on asyncio's only,
since uvloop has a subprocess implementation of its own.

AIOPROC_BACKEND=native or pure limits the backends. A missing extension or uvloop is an
error unless it is waived: ``--no-native``, ``--no-uvloop``.

Every test is guarded: it must leave no file descriptor, child, zombie, thread or task.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aioproc as aioproc_package
from aioproc import _backends
from aioproc._backends import pure
from aside import Aside, children, collect, open_fds

Loop = asyncio.AbstractEventLoop

#: Seconds; a fuse, never part of what is tested.
FUSE = 30


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-native", action="store_true", help="there is no extension here")
    parser.addoption("--no-uvloop", action="store_true", help="there is no uvloop here")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "heavy: takes long; part of tools/check.py --full")
    config.addinivalue_line("markers", "root: needs to be root")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a shell starts what is to run in the background. Children would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    loops(config)
    subjects(config)


# -- what is tested


def subjects(config: pytest.Config) -> list[str]:
    wanted = os.environ.get("AIOPROC_BACKEND", "")
    native = [] if config.getoption("--no-native") else ["clone", "portable"]
    if native:
        try:
            from aioproc._backends import posix
        except ImportError as error:
            if wanted != "pure":
                raise pytest.UsageError(
                    f"the extension cannot be imported ({error}); build it "
                    "(python setup.py build_ext --inplace) or pass --no-native"
                ) from None
            native = []
        else:
            forced = os.environ.get("AIOPROC_STRATEGY")
            native = [name for name in posix.STRATEGIES if forced in (None, "", name)]
            for strategy in native:
                why_not = posix.probe(strategy)
                if why_not and wanted != "pure":
                    raise pytest.UsageError(f"strategy {strategy}: {why_not}; see --no-native")
    elif wanted == "native":
        raise pytest.UsageError("AIOPROC_BACKEND=native and --no-native")
    return {"native": native, "pure": ["pure"], "": [*native, "pure"]}[wanted]


def make_backend(name: str) -> _backends.Backend:
    if name == "pure":
        return pure.PureBackend()
    from aioproc._backends import posix

    return posix.PosixBackend(name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = subjects(metafunc.config)
    if "aioproc" in metafunc.fixturenames:
        metafunc.parametrize("aioproc", names, indirect=True)
    if "api" in metafunc.fixturenames:
        metafunc.parametrize("api", [*names, "oracle"], indirect=True)
    if "aside" in metafunc.fixturenames:
        pairs = [
            ("clone", "asyncio"),
            ("clone", "uvloop"),
            ("portable", "asyncio"),
            ("pure", "uvloop"),
            ("thread", "asyncio"),
        ]
        if "uvloop" not in loops(metafunc.config):
            pairs = [(name, "asyncio") for name in dict.fromkeys(name for name, _ in pairs)]
        if "pure" in names:
            names = [*names, "thread"]
        here = [Aside(*pair) for pair in pairs if pair[0] in names]
        metafunc.parametrize("aside", here, ids="-".join)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def pointless(item: pytest.Item) -> bool:
        return "oracle" in item.name and "uvloop" in item.name

    items[:] = [item for item in items if not pointless(item)]


@pytest.fixture
def aioproc(request: pytest.FixtureRequest) -> Iterator[Any]:
    previous = _backends.use(make_backend(request.param))
    yield aioproc_package
    _backends.use(previous)


def _oracle() -> Any:
    async def subprocess_exec(factory: Any, *args: Any, **kwds: Any) -> Any:
        return await asyncio.get_running_loop().subprocess_exec(factory, *args, **kwds)

    async def subprocess_shell(factory: Any, *args: Any, **kwds: Any) -> Any:
        return await asyncio.get_running_loop().subprocess_shell(factory, *args, **kwds)

    return types.SimpleNamespace(
        is_oracle=True,
        create_subprocess_exec=asyncio.create_subprocess_exec,
        create_subprocess_shell=asyncio.create_subprocess_shell,
        subprocess_exec=subprocess_exec,
        subprocess_shell=subprocess_shell,
        PIPE=asyncio.subprocess.PIPE,
        STDOUT=asyncio.subprocess.STDOUT,
        DEVNULL=asyncio.subprocess.DEVNULL,
    )


@pytest.fixture
def api(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "oracle":
        yield _oracle()
        return
    previous = _backends.use(make_backend(request.param))
    names = {name: getattr(aioproc_package, name) for name in aioproc_package.__all__}
    yield types.SimpleNamespace(is_oracle=False, **names)
    _backends.use(previous)


# -- loops


_last_loop: Loop | None = None


def loops(config: pytest.Config) -> dict[str, Callable[[], Loop]]:
    factories: dict[str, Callable[[], Loop]] = {"asyncio": asyncio.SelectorEventLoop}
    if not config.getoption("--no-uvloop"):
        if importlib.util.find_spec("uvloop") is None:
            raise pytest.UsageError("uvloop is missing; install it or pass --no-uvloop")
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Any:
    def remembered(make: Callable[[], Loop]) -> Callable[[], Loop]:
        def factory() -> Loop:
            global _last_loop
            _last_loop = make()
            return _last_loop

        return factory

    return {name: remembered(make) for name, make in loops(config).items()}


@pytest.fixture(params=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], Loop]:
    """For tests that are no coroutines: a factory of loops, of both kinds in turn."""
    factories = loops(request.config)
    if request.param not in factories:
        pytest.skip("waived by --no-uvloop")
    return factories[request.param]


def run(factory: Callable[[], Loop], main: Any) -> Any:
    """asyncio.run with a loop of one's own making, on every Python."""
    loop = factory()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        try:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


# -- the leak guards


def reap_orphans() -> None:
    """What every spawn does first."""
    pure.orphans.reap()
    if "aioproc._native" in sys.modules:
        from aioproc._backends import posix

        posix.reap_orphans()


def is_alive(pid: int) -> bool:
    """False for a zombie, which waits for its parent only."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def settle(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Waits for the kernel: a killed child needs a moment to be gone."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    gc.collect()
    reap_orphans()
    fds, kids, threads = open_fds(), children(), set(threading.enumerate())
    yield
    gc.collect()

    def clean() -> bool:
        reap_orphans()
        if (
            not set(open_fds()) - set(fds)
            and not children() - kids
            and not set(threading.enumerate()) - threads
        ):
            return True
        collect()
        return False

    if not settle(clean):
        now = open_fds()
        leaked = {fd: name for fd, name in now.items() if fd not in fds}
        pytest.fail(
            f"leaked descriptors {leaked}, children {children() - kids}, "
            f"threads {set(threading.enumerate()) - threads}"
        )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    result = yield
    loop = _last_loop
    if pyfuncitem.get_closest_marker("asyncio") and loop is not None and not loop.is_closed():
        tasks = asyncio.all_tasks(loop)
        assert not tasks, f"left running: {tasks}"
    return result


# -- child programs


def python(code: str, *args: str) -> list[str]:
    """A child that runs Python code, the same everywhere."""
    return [sys.executable, "-I", "-S", "-c", code, *args]


@pytest.fixture(scope="session", autouse=True)
def warm_up(request: pytest.FixtureRequest) -> None:
    """What a first use opens for good must not look like a leak of the first test."""
    for factory in loops(request.config).values():
        run(factory, asyncio.sleep(0))
    # What is there by now stays; the guards' collections need not go through it.
    gc.collect()
    if hasattr(gc, "freeze"):  # PyPy has generations of its own
        gc.freeze()
