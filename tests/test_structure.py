"""What design and promises say of the code itself: who imports whom, what is public."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aioproc
from aside import Aside

PACKAGE = Path(aioproc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
BACKENDS = [file for file in FILES if file.parent.name == "_backends"]
#: The files of rooms that import the C layer.
NATIVE = {"posix.py", "posix_environment.py", "windows_native.py"}
#: The one room that touches asyncio's own names.
INSTALL = "_install.py"


def at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, but for what is read by type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            for other in node.orelse:
                yield other
                yield from at_run_time(other)
            continue
        yield node
        yield from at_run_time(node)


def nodes(file: Path) -> list[ast.AST]:
    return list(at_run_time(ast.parse(file.read_text(encoding="utf-8"))))


def own_imports(file: Path) -> set[str]:
    """Of our own modules, as paths from the package: "_backends/posix", "_spec"."""
    found = set()
    for node in nodes(file):
        if isinstance(node, ast.Import):
            found.update(
                alias.name.partition(".")[2].replace(".", "/")
                for alias in node.names
                if alias.name.partition(".")[0] == "aioproc"
            )
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = file.parent
                for _ in range(node.level - 1):
                    base = base.parent
            elif (node.module or "").partition(".")[0] == "aioproc":
                base = PACKAGE.parent
            else:
                continue
            target = base.joinpath(*(node.module or "").split("."))
            for alias in node.names:
                inner = target / alias.name
                whole = inner.with_suffix(".py").exists() or alias.name == "_native"
                found.add((inner if whole else target).relative_to(PACKAGE).as_posix())
    return found


def test_the_files_are_seen() -> None:
    assert {"_api.py", "_spec.py", "_process.py"} <= {file.name for file in FILES}
    assert {"base.py", "posix.py", "pure.py"} <= {file.name for file in BACKENDS}
    assert own_imports(PACKAGE / "_backends" / "posix.py") >= {"_native", "_backends/base"}
    assert "_spec" in own_imports(PACKAGE / "_api.py")


@pytest.mark.parametrize("file", BACKENDS, ids=lambda file: file.name)
def test_backends_do_not_import_upward(file: Path) -> None:
    upward = {name for name in own_imports(file) if not name.startswith("_backends")}
    assert upward <= ({"_native"} if file.name in NATIVE else set())


def test_rooms_do_not_import_each_other() -> None:
    """A room has parts, each with the room's name before its own."""
    rooms = {"posix", "pure", "windows"}
    for file in BACKENDS:
        room = file.stem.partition("_")[0]
        if room in rooms:
            imported = {name.rpartition("/")[2].partition("_")[0] for name in own_imports(file)}
            assert not imported & (rooms - {room}), file.name


def test_native_is_imported_by_its_rooms_only() -> None:
    importers = {file.name for file in FILES if "_native" in own_imports(file)}
    assert importers == NATIVE


def test_layers() -> None:
    """Who may import whom, from the bottom up."""
    assert own_imports(PACKAGE / "_command_line.py") == set()
    assert own_imports(PACKAGE / "_notes.py") == set()
    assert own_imports(PACKAGE / "_spec.py") <= {"_backends/system", "_command_line", "_notes"}
    assert own_imports(PACKAGE / "_extra.py") <= {"_backends/base"}
    assert own_imports(PACKAGE / "_transport.py") <= {"_backends/base", "_extra", "_spec"}
    assert own_imports(PACKAGE / "_streams.py") <= {"_transport"}
    below = {"_backends/base", "_notes", "_streams", "_transport"}
    assert own_imports(PACKAGE / "_process.py") <= below
    assert own_imports(PACKAGE / "_job.py") <= {".", "_process", "_spec"}  # the package _backends
    assert not any(name.startswith("_backends/p") for name in own_imports(PACKAGE / "_api.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_platform_is_the_backends_affair(file: Path) -> None:
    if file in BACKENDS:
        return
    asked = {
        f"{node.value.id}.{node.attr}"
        for node in nodes(file)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    } & {"sys.platform", "os.name", "platform.system"}
    # python -m aioproc reports it.
    assert not asked or file.name == "__main__.py"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_only_public_api_of_asyncio(file: Path) -> None:
    if file.name == INSTALL:
        return
    for node in nodes(file):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = node.value
            name = (
                owner.id
                if isinstance(owner, ast.Name)
                else owner.attr
                if isinstance(owner, ast.Attribute)
                else ""
            )
            assert name not in ("loop", "_loop", "asyncio"), ast.unparse(node)
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "asyncio":
                assert not any(part.startswith("_") for part in parts), module
                assert parts[1:2] not in (["base_events"], ["unix_events"], ["events"]), module


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_watcher_no_policy_no_handler(file: Path) -> None:
    names = {node.attr for node in nodes(file) if isinstance(node, ast.Attribute)}
    forbidden = {
        "get_child_watcher",
        "set_child_watcher",
        "get_event_loop_policy",
        "set_event_loop_policy",
        "get_event_loop",
        "set_wakeup_fd",
    }
    if file.name != "__main__.py":  # a program of its own
        forbidden.add("add_signal_handler")
    assert not names & forbidden
    calls = {ast.unparse(node.func) for node in nodes(file) if isinstance(node, ast.Call)}
    assert not calls & {"signal.signal", "os.wait", "os.wait3"}
    if file.name != INSTALL:
        assert "signal.SIGCHLD" not in {
            ast.unparse(node) for node in nodes(file) if isinstance(node, ast.Attribute)
        }


def test_every_public_name_says_what_it_is() -> None:
    for name in aioproc.__all__:
        value = getattr(aioproc, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__dict__.get("__doc__") or getattr(value, "__doc__", ""), name
            if inspect.isclass(value):
                assert value.__dict__["__doc__"], name  # its own, not its base's
        else:
            assert type(value).__doc__, name
    assert aioproc.__doc__
    assert set(aioproc.__all__) <= set(dir(aioproc))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))


def test_a_strict_import() -> None:
    aside = Aside()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", "import aioproc"],
        env=aside.environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


WITHOUT_PROCESSES = """
import asyncio, errno, os, select, signal, sys
import subprocess  # knows its platform by more than the name
sys.platform = sys.argv[1]
for name in ("fork", "posix_spawn", "register_at_fork", "pidfd_open", "waitid", "wait4"):
    if hasattr(os, name):  # PyPy has some
        delattr(os, name)
if hasattr(signal, "pidfd_send_signal"):
    del signal.pidfd_send_signal
for name in ("aioproc._native", "resource", "pwd", "grp"):
    sys.modules[name] = None

import aioproc
async def main():
    for spawn in (
        aioproc.create_subprocess_exec("true"),
        aioproc.create_subprocess_shell("true", stdout=aioproc.PIPE),
        aioproc.subprocess_exec(asyncio.SubprocessProtocol, "true"),
    ):
        try:
            await spawn
        except OSError as error:
            assert error.errno == errno.ENOTSUP, error
            assert sys.platform in str(error) and "process" in str(error), error
        else:
            raise AssertionError("spawned")
    assert "true" in repr(aioproc.PIPE) or aioproc.PIPE == -1
asyncio.run(main())
"""


@pytest.mark.parametrize("system", ["emscripten", "wasi"])
def test_a_system_without_processes(system: str) -> None:
    aside = Aside()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_PROCESSES, system],
        env=aside.environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
