"""All platform wheels on one Linux machine, by zig's C compiler, and what can be checked
of them without the platforms.

    tools/cross.py [--out DIR] [--only NAME]...      --list names them

Makes the sdist, the pure wheel and one abi3 wheel a platform, all of what git would
commit, and checks

  every wheel     name, tags, contents, one list of dependencies (tools/release_files.py);
                  abi3audit
  Linux           each symbol it needs is in glibc 2.17 (auditwheel) or in musl; what its
                  child does before the exec calls nothing (tools/child_code.py, where
                  there is an objdump for the machine: binutils-aarch64-linux-gnu)
  macOS           each is in libSystem
  Windows         each is in python3.dll's stable part or in a DLL that Windows has

The compiler and the checkers are wheels, in a virtual environment of their own in the
cache folder. tools/interpreters.py --wheel and tools/musl.py run the suite against what
this makes. Releases are made by cibuildwheel (.github/workflows/release.yml).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import child_code
from tools.debian import TREE as ROOT
from tools.debian import copy_tree, say
from tools.distribution import STEM

PACKAGES = [
    "ziglang>=0.15",
    "cffi>=1.17",
    "setuptools>=77",
    "auditwheel>=6",
    "abi3audit",
    "lief>=0.16",
]

#: The oldest Python of the wheels.
LIMITED_API = "0x030a0000"
TAG = "cp310-abi3"

COMPILE = ["-O2", "-fPIC", "-fno-sanitize=undefined", "-Wall", "-Wextra", "-Werror"]


class Failure(Exception):
    pass


class Target(NamedTuple):
    #: A row of PLATFORMS in csrc/build_native.py.
    platform: str
    #: As zig calls it.
    triple: str
    #: Of the wheel.
    tags: str


TARGETS = {
    "manylinux-x86_64": Target(
        "linux", "x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64.manylinux2014_x86_64"
    ),
    "manylinux-aarch64": Target(
        "linux", "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64.manylinux2014_aarch64"
    ),
    "musllinux-x86_64": Target("linux", "x86_64-linux-musl", "musllinux_1_2_x86_64"),
    "musllinux-aarch64": Target("linux", "aarch64-linux-musl", "musllinux_1_2_aarch64"),
    "macos-x86_64": Target("darwin", "x86_64-macos.10.15", "macosx_10_15_x86_64"),
    "macos-arm64": Target("darwin", "aarch64-macos.11.0", "macosx_11_0_arm64"),
    "windows-amd64": Target("win32", "x86_64-windows-gnu", "win_amd64"),
    "windows-arm64": Target("win32", "aarch64-windows-gnu", "win_arm64"),
}


def run(*words: str | Path, cwd: Path | None = None, **env: str) -> str:
    """What the command says; Failure with it if it fails."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise Failure(f"{' '.join(map(str, words))}\n{done.stdout}")
    return done.stdout


# -- the tools


def enter_environment(cache: Path) -> None:
    """Goes on in the virtual environment that has PACKAGES, making it if need be."""
    venv, note = cache / "venv", cache / "venv.json"
    python = venv / "bin" / "python"
    wanted = json.dumps([sys.version, *PACKAGES])
    if Path(sys.prefix) == venv:
        return
    if not note.exists() or note.read_text() != wanted:
        note.unlink(missing_ok=True)
        say(f"making {venv}")
        run(sys.executable, "-m", "venv", "--clear", venv)
        pip = ["-m", "pip", "install", "-q", "--disable-pip-version-check"]
        run(python, *pip, *PACKAGES)
        note.write_text(wanted)
    os.environ["ZIG_GLOBAL_CACHE_DIR"] = str(cache / "zig")
    os.execv(python, [str(python), *sys.argv])


def zig(*words: str | Path, cwd: Path | None = None) -> str:
    return run(sys.executable, "-m", "ziglang", *words, cwd=cwd)


# -- what all wheels have in common


def pure_files(tree: Path, out: Path) -> tuple[Path, Path]:
    """The sdist and the pure wheel."""
    for command in ("sdist", "bdist_wheel"):
        env = {"AIOPROC_BUILD_EXTENSION": "no", "PYTHONPATH": ""}
        run(sys.executable, "setup.py", "-q", command, "--dist-dir", out, cwd=tree, **env)
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*-py3-none-any.whl")
    return sdist, wheel


def digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def wheel_with(pure: Path, binary: Path, tags: str, out: Path) -> Path:
    """The pure wheel's files and the extension: metadata is the same by construction."""
    name, version = pure.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    path = out / f"{name}-{version}-{TAG}-{tags}.whl"
    record = []
    with zipfile.ZipFile(pure) as source, zipfile.ZipFile(path, "w") as target:

        def add(file: str, data: bytes, mode: int) -> None:
            item = zipfile.ZipInfo(file, (2020, 1, 1, 0, 0, 0))
            item.external_attr = (0o100000 | mode) << 16
            target.writestr(item, data, zipfile.ZIP_DEFLATED)

        for file in source.namelist():
            data = source.read(file)
            if file == f"{info}/RECORD":
                continue
            if file == f"{info}/WHEEL":
                lines = data.decode().splitlines()
                lines = [line for line in lines if not line.startswith(("Tag:", "Root-Is"))]
                lines = [line for line in lines if line] + ["Root-Is-Purelib: false"]
                lines += [f"Tag: {TAG}-{tag}" for tag in tags.split(".")]
                data = "\n".join([*lines, ""]).encode()
            add(file, data, 0o644)
            record.append(f"{file},sha256={digest(data)},{len(data)}")
        data = binary.read_bytes()
        add(f"{name}/{binary.name}", data, 0o755)
        record.append(f"{name}/{binary.name},sha256={digest(data)},{len(data)}")
        add(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,", ""]).encode(), 0o644)
    return path


# -- one binary

#: Windows' pyconfig.h as far as the limited API asks: the sizes of 64-bit Windows, and
#: that Python is a DLL.
WINDOWS_PYCONFIG = """
#define Py_PYCONFIG_H
#define MS_WINDOWS
#define MS_WIN64
#define NT_THREADS
#define HAVE_DECLSPEC_DLL
#define Py_ENABLE_SHARED
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_TIME_T 8
#define SIZEOF_WCHAR_T 2
#define ALIGNOF_LONG 4
#define ALIGNOF_SIZE_T 8
#define ALIGNOF_MAX_ALIGN_T 16
"""


def stable_names() -> tuple[set[str], set[str]]:
    """Functions and data of python3.dll that 3.10 has."""
    from abi3info import DATAS, FUNCTIONS

    def names(symbols: Iterable[Any]) -> set[str]:
        return {
            one.symbol.name for one in symbols if (one.added.major, one.added.minor) <= (3, 10)
        }

    return names(FUNCTIONS.values()), names(DATAS.values())


def headers(windows: bool, work: Path) -> Path:
    """Python's headers. Linux' own serve macOS and the other machine as well: the limited
    API asks for sizes only, which are the same."""
    own = Path(sysconfig.get_path("include"))
    if not windows:
        return own
    # Python.h prefers the pyconfig.h beside it.
    copy = work / "include"
    shutil.copytree(own, copy)
    (copy / "pyconfig.h").write_text(WINDOWS_PYCONFIG)
    return copy


def import_library(target: Target, work: Path) -> Path:
    functions, datas = stable_names()
    lines = ["LIBRARY python3.dll", "EXPORTS", *sorted(functions)]
    lines += [f"{name} DATA" for name in sorted(datas)]
    (work / "python3.def").write_text("\n".join([*lines, ""]))
    machine = "arm64" if target.triple.startswith("aarch64") else "i386:x86-64"
    library = work / "libpython3.a"
    zig("dlltool", "-m", machine, "-d", work / "python3.def", "-l", library)
    return library


def builder() -> Any:
    """csrc/build_native.py, which needs cffi."""
    folder = str(ROOT / "csrc")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("build_native")


def binary_of(target: Target, tree: Path, work: Path) -> Path:
    build_native = builder()
    row = build_native.PLATFORMS[target.platform]
    windows = target.platform == "win32"
    macos = target.platform == "darwin"
    code = work / "_native.c"
    with contextlib.redirect_stdout(sys.stderr):
        build_native.make_ffibuilder(target.platform).emit_c_code(str(code))
    binary = work / ("_native.pyd" if windows else "_native.abi3.so")
    include = headers(windows, work)
    folder = tree / "csrc" / Path(row.header).parent
    words: list[str | Path] = ["cc", "-target", target.triple, *COMPILE, "-shared"]
    words += [f"-DPy_LIMITED_API={LIMITED_API}", "-isystem", include, "-I", folder]
    words += ["-std=c11"] if windows else [*row.flags]
    words += ["-o", binary, code, *(tree / "csrc" / source for source in row.sources)]
    if windows:
        words += [import_library(target, work)]
    else:
        words += [*row.link_flags]
    if macos:
        words += ["-undefined", "dynamic_lookup", f"-Wl,-install_name,@rpath/{binary.name}"]
    zig(*words, cwd=tree)
    return binary


# -- its symbols


def is_python(name: str) -> bool:
    return re.match(r"_*(Py|_Py)", name) is not None


def musl_symbols() -> set[str]:
    """What zig knows of musl's."""
    import ziglang

    path = Path(ziglang.__file__).parent / "lib" / "libc" / "musl" / "libc.S"
    return set(re.findall(r"^\.(?:globl|weak) (\w+)$", path.read_text(), re.M))


def check_elf(target: Target, binary: Path) -> str:
    import lief

    elf = lief.ELF.parse(str(binary))
    assert elf is not None
    musl = "musl" in target.triple
    # The C library in its old and its new parts.
    libraries = {"libc.so"} if musl else {"libc.so.6", "libdl.so.2", "libpthread.so.0"}
    libraries |= {"ld-linux-aarch64.so.1"}
    if set(elf.libraries) - libraries:
        raise Failure(f"{target.triple}: needs {elf.libraries}")
    known = musl_symbols() if musl else set()
    count = 0
    for symbol in elf.dynamic_symbols:
        name = str(symbol.name)
        if not symbol.imported or is_python(name):
            continue
        count += 1
        weak = symbol.binding == lief.ELF.Symbol.BINDING.WEAK
        version = symbol.symbol_version.symbol_version_auxiliary if symbol.symbol_version else None
        versioned = version is not None and str(version.name).startswith("GLIBC_2.")
        if not weak and not (name in known if musl else versioned):
            raise Failure(f"{target.triple}: {name} is not in the C library")
    return f"{count} symbols, all in {'musl' if musl else 'glibc'}"


def check_macho(target: Target, binary: Path) -> str:
    import lief

    lief.logging.disable()  # it wonders at what zig leaves out
    fat = lief.MachO.parse(str(binary))
    assert fat is not None
    [macho] = fat
    libraries = [library.name for library in macho.libraries]
    if libraries[1:] != ["/usr/lib/libSystem.B.dylib"]:  # the first is its own name
        raise Failure(f"{target.triple}: needs {libraries}")
    count = 0
    for symbol in macho.symbols:
        if symbol.category != lief.MachO.Symbol.CATEGORY.UNDEFINED:
            continue
        # With -undefined dynamic_lookup the linker does not complain of what is in no
        # library; but then the symbol names none.
        if not is_python(str(symbol.name)):
            count += 1
            if symbol.library_ordinal != 1:
                raise Failure(f"{target.triple}: {symbol.name} is not in libSystem")
    minimum = macho.build_version.minos if macho.has_build_version else "?"
    if ".".join(map(str, minimum[:2])) != target.triple.partition("macos.")[2]:
        raise Failure(f"{target.triple}: made for macOS {minimum}")
    if "arm64" in target.tags and not macho.has_code_signature:
        raise Failure(f"{target.triple}: not signed, which arm64 asks for")
    return f"{count} symbols, all in libSystem"


def check_pe(target: Target, binary: Path) -> str:
    import lief

    pe = lief.PE.parse(str(binary))
    assert pe is not None
    functions, datas = stable_names()
    count = 0
    for library in pe.imports:
        name = str(library.name).lower()
        if name == "python3.dll":
            unknown = {str(entry.name) for entry in library.entries} - functions - datas
            if unknown:
                raise Failure(f"{target.triple}: {unknown} not in {name}")
        elif name in ("kernel32.dll", "ntdll.dll") or name.startswith("api-ms-win-crt-"):
            count += len(library.entries)
        else:
            raise Failure(f"{target.triple}: needs {name}")
    return f"{count} symbols, all in Windows' own DLLs"


def check_binary(target: Target, binary: Path) -> str:
    check = {"darwin": check_macho, "win32": check_pe}.get(target.platform, check_elf)
    words = check(target, binary)
    if target.platform == "linux":
        machine = target.triple.partition("-")[0]
        if child_code.disassembler(machine) is None:
            return f"{words}; its child's code not read (no objdump)"
        run(sys.executable, Path(child_code.__file__), binary, machine)
        words += "; its child's code stays inside"
    return words


def check_wheel(target: Target, wheel: Path) -> str:
    audit = Path(sys.executable).with_name("abi3audit")
    said = run(audit, "--strict", "--summary", wheel)
    if "0 ABI version mismatches and 0 ABI violations" not in " ".join(said.split()):
        raise Failure(said)
    words = "abi3audit"
    if target.tags.startswith("manylinux"):
        audit = Path(sys.executable).with_name("auditwheel")
        said = " ".join(run(audit, "show", wheel).split())
        tag = target.tags.partition(".")[0]
        if f'is consistent with the following platform tag: "{tag}"' not in said:
            raise Failure(said)
        words += ", auditwheel"
    return words


# -- all


def make(name: str, tree: Path, pure: Path, out: Path) -> str:
    target = TARGETS[name]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aioproc-") as work:
        binary = binary_of(target, tree, Path(work))
        words = check_binary(target, binary)
        wheel = wheel_with(pure, binary, target.tags, out)
        words += "; " + check_wheel(target, wheel)
    return f"{wheel.name:<88} {words} ({time.monotonic() - start:.1f} s)"


def main() -> int:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    parser = argparse.ArgumentParser(description="All platform wheels on one Linux machine.")
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "dist", help="(default %(default)s)")
    add("--only", action="append", metavar="NAME", choices=TARGETS, help="as --list names it")
    add("--list", action="store_true", help="list the wheels and end")
    add("--cache", type=Path, default=Path(caches) / "aioproc-cross", help="(%(default)s)")
    options = parser.parse_args()
    if options.list:
        print("\n".join(TARGETS))
        return 0
    options.cache.mkdir(parents=True, exist_ok=True)
    try:
        enter_environment(options.cache.resolve())
        return build(options)
    except Failure as failure:
        say(f"cross: {failure}")
        return 1


def build(options: argparse.Namespace) -> int:
    from tools import release_files

    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob(f"{STEM}-*.whl"), *out.glob(f"{STEM}-*.tar.gz")]:
        old.unlink()
    missing = []
    with tempfile.TemporaryDirectory(prefix="aioproc-") as directory:
        tree = Path(directory) / "tree"
        copy_tree(tree)
        sdist, pure = pure_files(tree, out)
        print(sdist.name, pure.name, sep="\n", flush=True)
        for name in options.only or TARGETS:
            if TARGETS[name].platform in builder().PLATFORMS:
                print(make(name, tree, pure, out), flush=True)
            else:
                missing.append(name)
    files = sorted(out.glob(f"{STEM}-*"))
    try:
        # The others need a Python of their own: see the release's workflow.
        release_files.check(files, [] if missing or options.only else [release_files.STABLE])
    except release_files.Wrong as wrong:
        raise Failure(str(wrong)) from None
    for name in missing:
        print(f"{name}: no C files for this platform")
    return 0


if __name__ == "__main__":
    sys.exit(main())
