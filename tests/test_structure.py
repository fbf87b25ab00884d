"""What design and promises say of the code itself: who imports whom, what is public."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aioproc
from aside import Aside

PACKAGE = Path(aioproc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
BACKENDS = [file for file in FILES if file.is_relative_to(PACKAGE / "_backends")]
#: The backends' files that import the C layer.
NATIVE = {
    "_backends/posix/environment.py",
    "_backends/posix/native.py",
    "_backends/posix/native_limits.py",
    "_backends/posix/native_trees.py",
    "_backends/windows/lib.py",
}
#: The one file that touches asyncio's own names.
INSTALL = "_install.py"


def path(file: Path) -> str:
    """From the package on, with slashes."""
    return file.relative_to(PACKAGE).as_posix()


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


@functools.cache
def nodes(file: Path) -> list[ast.AST]:
    return list(at_run_time(ast.parse(file.read_text(encoding="utf-8"))))


def own_imports(file: Path) -> set[str]:
    """Of our own modules, as paths from the package: "_backends/base", "_api"."""
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
                whole = inner.is_dir() or inner.with_suffix(".py").exists()
                whole = whole or alias.name == "_native"
                found.add((inner if whole else target).relative_to(PACKAGE).as_posix())
    return found


def test_the_files_are_seen() -> None:
    assert {"_api.py", "_spec/spec.py", "_asyncio/process.py"} <= set(map(path, FILES))
    seen = set(map(path, BACKENDS))
    assert {"_backends/base.py", "_backends/posix/native.py", "_backends/windows/pure.py"} <= seen
    assert not NATIVE - seen
    imports = own_imports(PACKAGE / "_backends" / "posix" / "native.py")
    assert imports >= {"_native", "_backends/base", "_backends/posix/pipes"}
    assert "_spec/spec" in own_imports(PACKAGE / "_api.py")


@pytest.mark.parametrize("file", BACKENDS, ids=path)
def test_backends_do_not_import_upward(file: Path) -> None:
    upward = {name for name in own_imports(file) if not name.startswith("_backends")}
    assert upward <= ({"_native"} if path(file) in NATIVE else set())


def test_systems_do_not_import_each_other() -> None:
    for file in BACKENDS:
        for system, other in (("posix", "windows"), ("windows", "posix")):
            if path(file).startswith(f"_backends/{system}/"):
                assert not any(other in name for name in own_imports(file)), path(file)


def everything_imported(file: Path) -> set[str]:
    """By a file of ours, by what it imports, and so on."""
    found: set[str] = set()
    left = [path(file).removesuffix(".py")]
    while left:
        for name in own_imports(PACKAGE / f"{left.pop()}.py"):
            if name not in found and (PACKAGE / f"{name}.py").exists():
                found.add(name)
                left.append(name)
    return found


def test_backends_do_not_import_each_other() -> None:
    """Native ones stand without pure ones, and pure ones without the C layer. Whatever they
    share belongs to neither."""
    for system in ("posix", "windows"):
        folder = PACKAGE / "_backends" / system
        native = everything_imported(folder / "native.py")
        pure = everything_imported(folder / "pure.py")
        assert not any("/pure" in name for name in native), native
        assert not any(f"{name}.py" in NATIVE for name in pure), pure


def test_the_choice_is_above_the_backends() -> None:
    """Nothing below the choice knows of it, and what is common knows of no system."""
    for file in BACKENDS:
        imported = own_imports(file)
        assert "_backends" not in imported, path(file)
        if file.parent == PACKAGE / "_backends" and file.name != "__init__.py":
            assert not any(name.count("/") > 1 for name in imported), path(file)


def test_native_is_imported_by_its_backends_only() -> None:
    assert {path(file) for file in FILES if "_native" in own_imports(file)} == NATIVE


#: Who may import whom among the folders, from the bottom up. Files of the top count as
#: folders of their own.
COMMON = {"_habits", "_messages", "_notes", "_sink", "_text"}
LAYERS = {
    "_notes": set(),
    "_text": set(),
    "_messages": {"_backends"},
    "_habits": set(),
    "_sink": {"_backends"},
    "_backends": {"_native"},
    "_spec": {"_backends", "_notes"},
    "_trees": {"_backends"},
    "_asyncio": {"_backends", *COMMON, "_spec", "_trees"},
    "_run": {"_backends", *COMMON, "_spec", "_trees"},
    "_job": {"_asyncio", "_backends", "_spec", "_trees"},
    "_api": {"_asyncio", "_backends", "_notes", "_spec", "_trees"},
    "_open": {"_api", "_asyncio", "_backends", "_messages", "_run", "_spec", "_text", "_trees"},
    "_install": {"_api", "_asyncio"},
    "_info": {".", "_backends"},
    "_cli": {".", "_backends", "_install", "_trees"},
    "__main__": {"_cli"},
    "__init__": {"_api", "_asyncio", "_backends", "_info", "_install", "_job", "_open", "_run"},
}


@pytest.mark.parametrize("file", FILES, ids=path)
def test_layers(file: Path) -> None:
    def layer(name: str) -> str:
        return name.partition("/")[0]

    own = layer(path(file).removesuffix(".py"))
    assert {layer(name) for name in own_imports(file)} <= LAYERS[own] | {own}


def test_what_stands_on_a_child() -> None:
    """The way up from a child to the user's Process, without a way back."""
    way = ["extra", "pipes", "terminal", "transport", "buffer", "streams", "writer", "process"]
    for i, name in enumerate(way):
        imported = own_imports(PACKAGE / "_asyncio" / f"{name}.py")
        above = {f"_asyncio/{other}" for other in way[i:]}
        assert not imported & above, name
    # Of the backends' world it knows the contract alone.
    for name in way:
        imported = own_imports(PACKAGE / "_asyncio" / f"{name}.py")
        assert {one for one in imported if one.startswith("_backends")} <= {"_backends/base"}


@pytest.mark.parametrize("file", FILES, ids=path)
def test_the_platform_is_the_backends_affair(file: Path) -> None:
    if file in BACKENDS:
        return
    asked = {
        f"{node.value.id}.{node.attr}"
        for node in nodes(file)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    } & {"sys.platform", "os.name", "platform.system"}
    # python -m aioproc reports it.
    assert not asked or path(file) == "_cli/run.py"


@pytest.mark.parametrize("file", FILES, ids=path)
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


@pytest.mark.parametrize("file", FILES, ids=path)
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
    is_a_program = path(file) in ("_cli/run.py", "_cli/terminal.py")
    if not is_a_program:
        forbidden.add("add_signal_handler")
    assert not names & forbidden
    calls = {ast.unparse(node.func) for node in nodes(file) if isinstance(node, ast.Call)}
    if is_a_program or path(file) == "_backends/posix/terminals.py":  # in a child, before its exec
        calls.discard("signal.signal")
    assert not calls & {"signal.signal", "os.wait", "os.wait3"}
    if file.name != INSTALL:
        assert "signal.SIGCHLD" not in {
            ast.unparse(node) for node in nodes(file) if isinstance(node, ast.Attribute)
        }


def c_order(header: str) -> list[tuple[str, ...]]:
    """The C files of a folder from the bottom up, as its internal.h lists them."""
    lines = re.findall(r"^ \*   (.*\.c\b.*)$", header, re.M)
    return [tuple(re.findall(r"\b\w+\.c\b", line)) for line in lines]


@pytest.mark.parametrize("system", ["posix", "windows"])
def test_c_files_call_those_below_them(system: str) -> None:
    folder = PACKAGE.parent / "csrc" / system
    if not folder.is_dir():
        pytest.skip("the sources are not here")
    rows = c_order((folder / "internal.h").read_text(encoding="utf-8"))
    files = {name for row in rows for name in row}
    assert files == {file.name for file in folder.glob("*.c")} | {"tokens.c"}
    texts = {}
    defined: dict[str, set[int]] = {}
    for level, row in enumerate(rows):
        for name in row:
            file = folder.parent / name if name == "tokens.c" else folder / name
            text = re.sub(r"/\*.*?\*/", "", file.read_text(encoding="utf-8"), flags=re.S)
            texts[name] = level, text
            for function in re.findall(
                r"^(?!static|typedef|enum|return|else|#)[A-Za-z_][\w \*]*?\b(\w+)\([^;{]*\)\s*\{",
                text,
                re.M,
            ):
                defined.setdefault(function, set()).add(level)
    assert len(defined) > 20
    for name, (level, text) in texts.items():
        called = {word for word in re.findall(r"\b(\w+)\(", text) if word in defined}
        up = {word for word in called if min(defined[word]) > level}
        assert not up, f"{name} calls {up}"


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


@pytest.mark.parametrize("file", FILES, ids=path)
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
