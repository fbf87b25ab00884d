"""One suite for every backend, every loop and, where behaviour is shared, asyncio.

A test takes one of these fixtures:

``aioproc``   the package, with each of our backends in turn
``api``       the same, and asyncio itself as the oracle: for behaviour that is
              asyncio's; has create_subprocess_exec/shell, subprocess_exec/shell, PIPE...
``aside``     a Python process of its own with each backend (tests/aside.py), the pure
              one's polling thread among them, and each loop, though not every pair

Coroutine tests run on asyncio's own loop and on uvloop's; the oracle on asyncio's only,
since uvloop has a subprocess implementation of its own. On Windows they run on asyncio's
two loops, and on winloop's; the oracle on the Proactor loop only. Elsewhere only the first
backend runs a test on each loop, the others on one, now this and now that: what a backend
does and what a loop does is the same whoever the other is, but for what is marked
`every_pair`. A backend that is alone (AIOPROC_BACKEND=pure) is the first.

AIOPROC_BACKEND=native or pure limits the backends. A missing extension, uvloop or winloop
is an error unless it is waived: ``--no-native``, ``--no-uvloop``. ``--loop NAME`` limits the
loops.

Every test is guarded: it must leave no file descriptor (on Windows: no handle of a file,
pipe, process, completion port or job), child, zombie, thread or task.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import os
import signal
import threading
import types
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import aioproc as aioproc_package
from aioproc import _backends
from aioproc._backends import pure
from aside import WINDOWS, Aside, children, collect, is_alive, open_fds, reap_orphans
from aside import run_on as run
from aside import settle_now as settle
from endings import FUSE, family, heard
from programs import CAT, python

__all__ = ["FUSE", "family", "heard", "is_alive", "python"]

Loop = asyncio.AbstractEventLoop


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-native", action="store_true", help="there is no extension here")
    parser.addoption("--no-uvloop", action="store_true", help="nor winloop, on Windows")
    parser.addoption("--loop", action="append", help="one of the loops to test, by its name")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "heavy: takes long; part of tools/check.py --full")
    config.addinivalue_line("markers", "root: needs to be root")
    config.addinivalue_line("markers", "primary: on the first backend and loop alone, unless")
    config.addinivalue_line("markers", "everywhere: on each of them, as what is not primary")
    config.addinivalue_line("markers", "every_pair: on each backend with each loop")
    config.addinivalue_line("markers", "one_loop: on each backend, with one of the loops")
    config.addinivalue_line("markers", "wine(reason): Wine does it in another way; fails there")
    with contextlib.suppress(ImportError):
        import ctypes

        # Newer libffi opens its own file for the first callback, and keeps it open: that is
        # no test's leak.
        ctypes.CFUNCTYPE(None)(int)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a shell starts what is to run in the background. Children would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    loops(config)
    subjects(config)


# -- what is tested


def subjects(config: pytest.Config) -> list[str]:
    wanted = os.environ.get("AIOPROC_BACKEND", "")
    if WINDOWS:
        return windows_subjects(config, wanted)
    native = [] if config.getoption("--no-native") else ["clone", "portable"]
    if native:
        try:
            from aioproc._backends.posix import native as posix
        except ImportError as error:
            if wanted != "pure":
                raise pytest.UsageError(
                    f"the extension cannot be imported ({error}); build it "
                    "(python setup.py build_ext --inplace) or pass --no-native"
                ) from None
            native = []
        else:
            forced = os.environ.get("AIOPROC_STRATEGY")
            # "copy" is little else than "clone"; it is tested when it is asked for.
            wanted_ones = [forced] if forced else ["clone", "portable"]
            native = [name for name in posix.STRATEGIES if name in wanted_ones]
            for strategy in native:
                why_not = posix.probe(strategy)
                if why_not and wanted != "pure":
                    raise pytest.UsageError(f"strategy {strategy}: {why_not}; see --no-native")
    elif wanted == "native":
        raise pytest.UsageError("AIOPROC_BACKEND=native and --no-native")
    return {"native": native, "pure": ["pure"], "": [*native, "pure"]}[wanted]


def windows_subjects(config: pytest.Config, wanted: str) -> list[str]:
    if config.getoption("--no-native"):
        if wanted == "native":
            raise pytest.UsageError("AIOPROC_BACKEND=native and --no-native")
        return ["pure"]
    if wanted != "pure":
        try:
            from aioproc._backends.windows import native as windows
        except ImportError as error:
            raise pytest.UsageError(
                f"the extension cannot be imported ({error}); build it or pass --no-native"
            ) from None
        why_not = windows.probe()
        if why_not:
            raise pytest.UsageError(f"native: {why_not}; see --no-native")
    return {"native": ["native"], "pure": ["pure"], "": ["native", "pure"]}[wanted]


def make_backend(name: str) -> _backends.Backend:
    if name == "pure":
        return pure.PureBackend()
    if name == "native":
        from aioproc._backends.windows import native as windows

        return windows.WindowsBackend()
    from aioproc._backends.posix import native as posix

    return posix.PosixBackend(name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = subjects(metafunc.config)
    if "new_loop" in metafunc.fixturenames:
        metafunc.parametrize("new_loop", loops(metafunc.config), indirect=True)
    if "aioproc" in metafunc.fixturenames:
        metafunc.parametrize("aioproc", names, indirect=True)
    if "api" in metafunc.fixturenames:
        here = loops(metafunc.config)
        oracle = ["oracle"] if "asyncio" in here or "proactor" in here else []
        metafunc.parametrize("api", [*names, *oracle], indirect=True)
    if "aside" in metafunc.fixturenames:
        pairs = [
            ("clone", "asyncio"),
            ("clone", "uvloop"),
            ("portable", "asyncio"),
            ("pure", "uvloop"),
            ("thread", "asyncio"),
        ]
        here = loops(metafunc.config)
        if WINDOWS:
            pairs = [("native", "proactor"), ("native", "selector"), ("pure", "selector")]
            pairs += [("native", "winloop"), ("pure", "winloop")] if "winloop" in here else []
            pairs = [pair for pair in pairs if pair[1] in here]
        elif "uvloop" not in here:
            pairs = [(name, "asyncio") for name in dict.fromkeys(name for name, _ in pairs)]
        if "pure" in names and not WINDOWS:
            names = [*names, "thread"]
        asides = [Aside(*pair) for pair in pairs if pair[0] in names]
        metafunc.parametrize("aside", asides, ids="-".join)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    loop_names, names = list(loops(config)), subjects(config)

    def pointless(item: pytest.Item) -> bool:
        others = ("uvloop", "selector" if WINDOWS else "uvloop", "winloop")
        if "oracle" in item.name and any(name in item.name for name in others):
            return True
        if item.get_closest_marker("every_pair"):
            return False
        function, _, rest = item.name.partition("[")
        parts = rest.rstrip("]").split("-")
        if item.get_closest_marker("primary") and not item.get_closest_marker("everywhere"):
            if "aside" in getattr(item, "fixturenames", ()):
                # The first, and the other backend on another loop.
                pairs = [(names[0], loop_names[0]), ("pure", loop_names[-1])]
                return not any("-".join(pair) in item.name for pair in pairs)
            return any(part in parts for part in (*loop_names[1:], *names[1:]))
        return not WINDOWS and "aside" not in item.fixturenames and unpaired(item, function, parts)

    def unpaired(item: pytest.Item, function: str, parts: list[str]) -> bool:
        """Each backend and each loop has each test, but only the first backend has it with
        each loop. Which loop the others have is by the test, so that there are all pairs."""
        its_names = [part for part in parts if part in names]
        its_loops = [part for part in parts if part in loop_names]
        if len(its_names) != 1 or len(its_loops) != 1:
            return False
        number = names.index(its_names[0])
        if number == 0 and not item.get_closest_marker("one_loop"):
            return False
        others = [part for part in parts if part not in (*names, *loop_names)]
        seed = zlib.crc32("-".join([function, *others]).encode())
        return its_loops[0] != loop_names[(seed + number) % len(loop_names)]

    items[:] = [item for item in items if not pointless(item)]
    if WINDOWS:
        import windows

        for item in items:
            for mark in item.iter_markers("wine"):
                if windows.WINE:
                    item.add_marker(pytest.mark.xfail(reason=f"Wine: {mark.args[0]}"))


@pytest.fixture
def aioproc(request: pytest.FixtureRequest) -> Iterator[Any]:
    previous = _backends.use(make_backend(request.param))
    yield aioproc_package
    _backends.use(previous)


@pytest.fixture
def native(request: pytest.FixtureRequest) -> Iterator[None]:
    """For what is the native backend's alone, on Windows."""
    if "native" not in subjects(request.config):
        pytest.skip("about Windows' native backend")
    previous = _backends.use(make_backend("native"))
    yield
    _backends.use(previous)


@pytest.fixture
def any_loop(request: pytest.FixtureRequest) -> Callable[[], Loop]:
    """For what takes long and has nothing to do with the kind of loop."""
    return next(iter(loops(request.config).values()))


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
    if WINDOWS:
        factories = {
            "proactor": asyncio.ProactorEventLoop,  # type: ignore[attr-defined,unused-ignore]
            "selector": asyncio.SelectorEventLoop,
        }
    if not config.getoption("--no-uvloop"):
        name = "winloop" if WINDOWS else "uvloop"
        if importlib.util.find_spec(name) is None:
            raise pytest.UsageError(f"{name} is missing; install it or pass --no-uvloop")
        factories[name] = importlib.import_module(name).new_event_loop
    chosen = config.getoption("--loop") or list(factories)
    unknown = set(chosen) - set(factories)
    if unknown:
        raise pytest.UsageError(f"no loop {', '.join(unknown)} here; there is {list(factories)}")
    return {name: factories[name] for name in chosen}


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Any:
    def remembered(make: Callable[[], Loop]) -> Callable[[], Loop]:
        def factory() -> Loop:
            global _last_loop
            _last_loop = make()
            return _last_loop

        return factory

    return {name: remembered(make) for name, make in loops(config).items()}


@pytest.fixture
def new_loop(request: pytest.FixtureRequest) -> Callable[[], Loop]:
    """For tests that are no coroutines: a factory of loops, of each kind in turn."""
    return loops(request.config)[request.param]


# -- the leak guards


def more_fds(before: dict[int, str]) -> dict[int, str]:
    """What is open now and was not before."""
    now = open_fds()
    more = {fd: name for fd, name in now.items() if fd not in before}
    if WINDOWS:
        # pytest's capture moves its files to other handles.
        kinds = Counter(now.values()) - Counter(before.values())
        return {fd: name for fd, name in more.items() if kinds[name]}
    return more


#: How many tests have been guarded.
_guarded = 0


def leave_alone_what_stays() -> None:
    """Has the guards' collections not go through what is there for good: pytest keeps
    something of each test, and after some thousands a collection took 20 ms. It comes right
    after one, so that no garbage is kept."""
    if hasattr(gc, "freeze"):  # PyPy has generations of its own
        gc.freeze()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    global _guarded
    gc.collect()
    _guarded += 1
    if _guarded % 32 == 0:
        leave_alone_what_stays()
    reap_orphans()
    fds, kids, threads = open_fds(), children(), set(threading.enumerate())
    yield
    gc.collect()

    def clean() -> bool:
        reap_orphans()
        if (
            not more_fds(fds)
            and not children() - kids
            and not set(threading.enumerate()) - threads
        ):
            return True
        collect()
        return False

    if not settle(clean):
        pytest.fail(
            f"leaked descriptors {more_fds(fds)}, children {children() - kids}, "
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


async def a_child_with_pipes() -> None:
    pipe = aioproc_package.PIPE
    process = await aioproc_package.create_subprocess_exec(*CAT, stdin=pipe, stdout=pipe)
    await process.communicate(b"")


@pytest.fixture(scope="session", autouse=True)
def warm_up(request: pytest.FixtureRequest) -> None:
    """What a first use opens for good must not look like a leak of the first test."""
    for factory in loops(request.config).values():
        run(factory, asyncio.sleep(0))
        if WINDOWS:  # where modules and the system keep handles of their own
            for name in subjects(request.config):
                previous = _backends.use(make_backend(name))
                run(factory, a_child_with_pipes())
                _backends.use(previous)
    gc.collect()
    leave_alone_what_stays()
