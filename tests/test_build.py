"""The package as it is built: three states of the extension, and what is inside."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from programs import WINDOWS

if WINDOWS:
    pytest.skip("not on Windows: builds of the extension for POSIX", allow_module_level=True)

from conftest import FUSE

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import release_files  # noqa: E402

from tools.distribution import NAME, STEM  # noqa: E402

PROGRAM = """
import asyncio, sys, aioproc
async def main():
    process = await aioproc.create_subprocess_exec("echo", "hello", stdout=aioproc.PIPE)
    assert await process.communicate() == (b"hello\\n", None)
asyncio.run(main())
from aioproc import _backends
print(_backends.current().name, "_cffi_backend" in sys.modules)
"""

PYPY = sys.implementation.name == "pypy"
STABLE_ABI = not PYPY and not sysconfig.get_config_var("Py_GIL_DISABLED")

pytest.importorskip("setuptools", minversion="77")  # older ones cannot read pyproject.toml
pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="the sources are not here"
)


def listed() -> list[str]:
    """The files of the project."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git clone")
    git = subprocess.run(
        ["git", "ls-files"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return sorted(name for name in git.stdout.splitlines() if (ROOT / name).exists())


def copy_of_sources(directory: Path) -> Path:
    """Without anything built."""
    copy = directory / "tree"
    ignore = shutil.ignore_patterns(
        "*.so", "__pycache__", "build", "dist", ".git", ".venv*", ".*cache", "*.egg-info"
    )
    shutil.copytree(ROOT, copy, ignore=ignore)
    return copy


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_of_sources(tmp_path)


def setup(
    tree: Path, command: str, state: str | None, **env: str
) -> subprocess.CompletedProcess[str]:
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIOPROC_", "PYTHON")) and name not in ("CC", "CFLAGS")
    }
    if state is not None:
        environ["AIOPROC_BUILD_EXTENSION"] = state
    return subprocess.run(
        [sys.executable, "setup.py", "-q", command, "--dist-dir", "../out"],
        cwd=tree, env=environ | env, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=10 * FUSE,
    )  # fmt: skip


def product(tree: Path) -> Path:
    [path] = (tree.parent / "out").iterdir()
    return path


def run_from(wheel: Path, *flags: str) -> list[str]:
    """Runs PROGRAM against an unpacked wheel; returns what it says."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "site")
    environ = {k: v for k, v in os.environ.items() if not k.startswith("AIOPROC_")}
    done = subprocess.run(
        [sys.executable, *flags, "-c", PROGRAM], cwd=wheel.parent,
        env=environ | {"PYTHONPATH": str(wheel.parent / "site")},
        capture_output=True, text=True, timeout=FUSE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def assert_pure(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
    # -S: without site-packages, so without cffi; which PyPy itself uses.
    assert run_from(wheel, "-S") == ["pure", str(PYPY)]


def assert_whole(wheel: Path) -> None:
    """All modules of the tree are in it, in whatever folder, and nothing else is."""
    expected = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "aioproc").rglob("*")
        if file.suffix in (".py", ".pyi", ".typed") or file.name == "py.typed"
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name for name in found if not name.endswith((".so", ".pyd"))} == expected


def a_wheel(directory: Path, state: str | None) -> Path:
    tree = copy_of_sources(directory)
    done = setup(tree, "bdist_wheel", state)
    assert done.returncode == 0, done.stderr
    assert "without the extension" not in done.stderr
    return product(tree)


@pytest.fixture(scope="module")
def whole_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is made where nothing is said; for all that only look at it."""
    return a_wheel(tmp_path_factory.mktemp("whole"), None)


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_wheel(tmp_path_factory.mktemp("pure"), "no")


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    def copy(wheel: Path) -> Path:
        (tmp_path / "out").mkdir(exist_ok=True)
        return Path(shutil.copy(wheel, tmp_path / "out"))

    return copy


@pytest.mark.heavy
def test_the_extension_is_required(tmp_path: Path) -> None:
    assert_native(a_wheel(tmp_path, "require"))


def test_the_extension_is_built(whole_wheel: Path, copied: Callable[[Path], Path]) -> None:
    assert_native(copied(whole_wheel))


def assert_native(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [binary] = [name for name in archive.namelist() if name.endswith(".so")]
        assert binary.startswith("aioproc/_native.")
        if STABLE_ABI:  # and every CPython finds it
            assert "-cp310-abi3-" in wheel.name
            assert binary == "aioproc/_native.abi3.so"
    assert_whole(wheel)
    assert run_from(wheel) == ["native", "True"]


def test_no_extension_when_told_so(pure_wheel: Path, copied: Callable[[Path], Path]) -> None:
    wheel = copied(pure_wheel)
    assert_whole(wheel)
    assert_pure(wheel)


@pytest.mark.parametrize("state", [None, "auto"])
def test_a_failed_compile_is_a_warning(tree: Path, state: str | None) -> None:
    done = setup(tree, "bdist_wheel", state, CC="false")
    assert done.returncode == 0, done.stderr
    assert "installing without the extension" in done.stderr
    assert_pure(product(tree))


def test_a_failed_compile_leaves_no_older_extension(tree: Path) -> None:
    suffix = ".abi3.so" if STABLE_ABI else sysconfig.get_config_var("EXT_SUFFIX")
    older = tree / "aioproc" / f"_native{suffix}"
    older.write_bytes(b"not any more")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree,
        env={**os.environ, "CC": "false", "AIOPROC_BUILD_EXTENSION": "auto"},
        capture_output=True, text=True, timeout=FUSE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not older.exists()


def test_a_failed_compile_is_an_error_when_the_extension_is_required(tree: Path) -> None:
    done = setup(tree, "bdist_wheel", "require", CC="false")
    assert done.returncode != 0
    assert "AIOPROC_BUILD_EXTENSION=require, but the extension cannot be built" in done.stderr
    assert not (tree.parent / "out").exists()


def test_other_states_are_refused(tree: Path) -> None:
    done = setup(tree, "bdist_wheel", "maybe")
    assert done.returncode != 0
    assert "AIOPROC_BUILD_EXTENSION is 'maybe'" in done.stderr


def test_every_file_of_a_release_has_the_same_dependencies(
    tree: Path, whole_wheel: Path, pure_wheel: Path
) -> None:
    done = setup(tree, "sdist", "no")
    assert done.returncode == 0, done.stderr
    # The one that asks for cffi by platforms comes first.
    files = [whole_wheel, pure_wheel, product(tree)]
    release_files.check(files)
    # What cannot be seen from one of them: cffi is asked for where there are wheels.
    [cffi] = [
        line
        for line in release_files.metadata_of(files[0]).get_all("Requires-Dist", [])
        if line.startswith("cffi") and "extra ==" not in line
    ]
    for name in release_files.PLATFORMS:
        assert f'"{name.split()[1]}"' in cffi, cffi
    assert "FreeBSD" not in cffi
    assert 'platform_python_implementation == "CPython"' in cffi


def repacked(wheel: Path, name: str, *changes: tuple[str, str, str]) -> Path:
    """A copy with other contents: (end of a file's name, old text, new text)."""
    path = wheel.parent.parent / name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(path, "w") as target:
        for file in source.namelist():
            data = source.read(file)
            for end, old, new in changes:
                if file.endswith(end):
                    assert old.encode() in data
                    data = data.replace(old.encode(), new.encode())
            target.writestr(file, data)
    return path


@pytest.mark.parametrize(
    ("tag", "changes", "why"),
    [
        ("py3-none-linux_x86_64", [], "WHEEL says"),
        ("py3-none-any", [("WHEEL", "Purelib: true", "Purelib: false")], "Root-Is-Purelib"),
        (
            "cp310-abi3-win_amd64",
            [
                ("WHEEL", "Tag: py3-none-any", "Tag: cp310-abi3-win_amd64"),
                ("WHEEL", "Purelib: true", "Purelib: false"),
            ],
            "binaries",
        ),
        ("py3-none-any", [("METADATA", "Requires-Dist: cffi", "Requires-Dist: more")], "not one"),
        ("py3-none-any", [("METADATA", "Version: 0", "Version: 9")], "not one"),
    ],
)
def test_files_that_must_not_be_released(
    pure_wheel: Path,
    copied: Callable[[Path], Path],
    tag: str,
    changes: list[tuple[str, str, str]],
    why: str,
) -> None:
    wheel = copied(pure_wheel)
    release_files.check([wheel])
    with pytest.raises(release_files.Wrong, match="missing: sdist, cp310-abi3 wheel for many"):
        release_files.check([wheel], release_files.WHEELS)
    version = wheel.name.split("-")[1]
    other = repacked(wheel, f"{STEM}-{version}-{tag}.whl", *changes)
    with pytest.raises(release_files.Wrong, match=why):
        release_files.check([wheel, other])


def test_what_must_not_be_published(pure_wheel: Path, copied: Callable[[Path], Path]) -> None:
    wheel = copied(pure_wheel)
    version = wheel.name.split("-")[1]
    urls = release_files.metadata_of(wheel).get_all("Project-URL", [])
    assert len(urls) >= 3
    host = re.sub(r".*(//[^/]+/).*", r"\1", urls[0])
    with pytest.raises(release_files.Wrong, match="not that of the tag"):
        release_files.check_tag([wheel], "v99")
    with pytest.raises(release_files.Wrong, match="no real address"):
        release_files.check_tag(
            [repacked(wheel, wheel.name, ("METADATA", host, "//pages.example.org/"))],
            f"v{version}",
        )
    real = ("METADATA", host, "//docs.python.org/")
    release_files.check_tag([repacked(wheel, wheel.name, real)], f"v{version}")
    other = ("METADATA", f"Name: {NAME}", "Name: another")
    with pytest.raises(release_files.Wrong, match="its name is another"):
        release_files.check_tag([repacked(wheel, wheel.name, real, other)], f"v{version}")


def test_the_distribution_is_named_in_one_place() -> None:
    """And in its own extras, which pip has no other word for."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert set(re.findall(r'"([\w.-]+)\[[\w,]+\]"', text)) == {NAME}


#: Names as cibuildwheel gives them to the wheels of [tool.cibuildwheel].
PLATFORM_TAGS = {
    "manylinux x86_64": "manylinux2014_x86_64.manylinux_2_17_x86_64.manylinux_2_28_x86_64",
    "manylinux aarch64": "manylinux_2_28_aarch64",
    "musllinux x86_64": "musllinux_1_2_x86_64",
    "musllinux aarch64": "musllinux_1_2_aarch64",
    "macOS x86_64": "macosx_10_15_x86_64",
    "macOS arm64": "macosx_11_0_arm64",
    "Windows AMD64": "win_amd64",
    "Windows ARM64": "win_arm64",
}


def test_what_a_release_must_have() -> None:
    wheels = {
        (wheel, platform): f"{STEM}-1.0-{wheel}-{PLATFORM_TAGS[platform]}.whl"
        for wheel, never in release_files.WHEELS.items()
        for platform in release_files.PLATFORMS
        if platform not in never
    }
    assert len(wheels) == 4 * 8 - 3
    names = [f"{STEM}-1.0.tar.gz", f"{STEM}-1.0-py3-none-any.whl", *wheels.values()]
    assert release_files.missing(names) == []
    for (wheel, platform), name in wheels.items():
        others = [other for other in names if other != name]
        assert release_files.missing(others) == [f"{wheel} wheel for {platform}"]
    assert release_files.missing(names[1:]) == ["sdist"]
    assert release_files.missing([names[0], *names[2:]]) == ["pure wheel"]


def test_cibuildwheel_makes_what_a_release_must_have() -> None:
    tomllib = pytest.importorskip("tomllib")  # 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    settings = project["tool"]["cibuildwheel"]
    parts = (wheel.split("-") for wheel in release_files.WHEELS)
    made = {f"{abi if abi.endswith('t') else python}-*" for python, abi in parts}
    # Where 3.10 cannot make the one for all, and on what else that is tested.
    assert set(settings["build"]) == made | {"cp311-win_arm64", "cp315-*"}
    families = {"linux": ("manylinux", "musllinux"), "macos": ("macOS",), "windows": ("Windows",)}
    assert set(release_files.PLATFORMS) == {
        f"{family} {arch}"
        for name, its in families.items()
        for arch in settings[name]["archs"]
        for family in its
    }


def test_the_sdist_has_what_git_has_and_no_more(tmp_path: Path) -> None:
    files = listed()
    tree = tmp_path / "tree"
    for name in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    done = setup(tree, "sdist", "no")
    assert done.returncode == 0, done.stderr
    with tarfile.open(product(tree)) as archive:
        members = {m.name.partition("/")[2]: m for m in archive.getmembers() if not m.isdir()}
        # setuptools adds these.
        generated = {name for name in members if name.startswith("aioproc.egg-info/")}
        assert members.keys() - generated - {"PKG-INFO", "setup.cfg"} == set(files)
        for name in files:
            content = archive.extractfile(members[name])
            assert content is not None
            assert content.read() == (ROOT / name).read_bytes(), name
            assert (members[name].mode ^ (ROOT / name).stat().st_mode) & 0o100 == 0, name


def test_pip_without_a_compiler(tree: Path) -> None:
    """From the sdist: a pure package, which says so."""
    pytest.importorskip("pip")
    pytest.importorskip("setuptools")
    assert setup(tree, "sdist", "no").returncode == 0
    site = tree.parent / "installed"
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("AIOPROC_", "PYTHON"))}
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    pip += ["--no-index", "--disable-pip-version-check", "--target", str(site), "-v"]
    done = subprocess.run(
        [*pip, str(product(tree))], env=environ | {"CC": "false"}, cwd=tree.parent,
        capture_output=True, text=True, timeout=10 * FUSE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "installing without the extension" in done.stdout + done.stderr
    done = subprocess.run(
        # -S: or the finder of an editable install would lend it that one's extension.
        [sys.executable, "-S", "-m", "aioproc"], env=environ | {"PYTHONPATH": str(site)},
        cwd=tree.parent, capture_output=True, text=True, timeout=FUSE,
    )  # fmt: skip
    assert ": pure backend" in done.stdout, done.stdout + done.stderr
    assert "not native: the extension cannot be imported" in done.stdout


def test_types_are_part_of_the_package(pure_wheel: Path) -> None:
    with zipfile.ZipFile(pure_wheel) as archive:
        names = set(archive.namelist())
    assert {"aioproc/py.typed", "aioproc/_native.pyi"} <= names
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "aioproc").rglob("*.py")}
    assert sources <= names
