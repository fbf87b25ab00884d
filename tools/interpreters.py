"""Runs the suite on every interpreter that can be had here, and prints a table.

    tools/interpreters.py [--only NAME]... [options] [-- PYTEST ARGUMENTS]
    tools/interpreters.py --list

CPython 3.10 and newer from PATH (or --python PATH), and, as root on Debian and its
like, what Debian's testing archive has beyond these: newer CPythons and PyPy, in a
folder made by debootstrap that is entered by chroot, in a mount namespace of its own.

Each interpreter has a virtual environment and a copy of the tree, in which the extension
is built; the suite runs there with every backend and loop under ``-X dev -W error``. With
--wheel DIR the wheel that pip takes from that folder is installed instead, and the copy has
the tests but no sources.

cffi, pytest and so on are wheels that this Python's pip fetches for the other (a fresh
chroot has neither certificates nor pip's configuration); PyPy brings its own cffi. uvloop
is waived only where there is none.

Everything lies in the cache folder, is made once, and is made anew with --refresh.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.debian import Failure, clean_environment, copy_tree, enter, make_root, must, run, say
from tools.distribution import NAME, STEM

OLDEST = (3, 10)
#: What the suite needs, and what a build of the extension does.
WHEELS = ("anyio", "pytest", "pytest-asyncio", "setuptools>=77")
CFFI, UVLOOP = "cffi>=1.17", "uvloop>=0.21"
#: pip judges a wheel's conditional requirements by the Python it runs on itself, so
#: those that depend on the version are named here: below which one they are needed.
BACKPORTS = {
    "exceptiongroup": (3, 11),
    "tomli": (3, 11),
    "backports.asyncio.runner": (3, 11),
    "typing_extensions": (3, 13),
}
#: A wheel for either of these runs wherever this script does.
PLATFORMS = [f"manylinux_2_{minor}_{platform.machine()}" for minor in (28, 17)]

#: Debian's names of interpreters; each has a -dev package with its headers.
PACKAGES = re.compile(r"python3\.\d+|python3\.\d+-nogil|pypy3")
#: What builds the extension, and what some tests run: python3 is for a user who cannot enter
#: the virtual environment's folder, or has only PATH.
PROGRAMS = ("gcc", "libc6-dev", "git", "procps", "python3", "tmux", "vim-tiny")

#: The columns of the table, as tests/conftest.py names them.
SUBJECTS = ("clone", "portable", "pure", "oracle")

#: Prints what the rest of this script has to know of an interpreter.
PROBE = """
import json, platform, sys, sysconfig
print(json.dumps({
    "implementation": sys.implementation.name,
    "version": sys.version_info[:2],
    "release": platform.python_version() + (
        " (PyPy %d.%d.%d)" % sys.pypy_version_info[:3]
        if sys.implementation.name == "pypy" else ""),
    "threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
}))
"""

# -- interpreters


@dataclass
class Interpreter:
    executable: str
    implementation: str
    version: tuple[int, int]
    release: str
    threaded: bool
    #: None: on this system itself.
    root: Path | None

    @property
    def name(self) -> str:
        suffix = "t" if self.threaded else ""
        return "{}{}.{}{}".format(self.implementation, *self.version, suffix)

    @property
    def where(self) -> str:
        return self.executable if self.root is None else f"Debian {self.root.name}"


def probe(executable: str, root: Path | None) -> Interpreter | None:
    words = [executable, "-c", PROBE]
    result = subprocess.run(
        words if root is None else enter(root, words, {}),
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    if result.returncode:
        return None  # a pyenv shim of a version that is not chosen, say
    facts = json.loads(result.stdout)
    return Interpreter(
        executable,
        facts["implementation"],
        tuple(facts["version"]),
        facts["release"],
        facts["threaded"],
        root,
    )


def local_interpreters(paths: list[str]) -> list[Interpreter]:
    found: dict[str, Interpreter] = {}
    for path in paths:
        interpreter = probe(os.path.abspath(path), None)
        if interpreter is None:
            raise Failure(f"{path} does not run")
        found.setdefault(interpreter.name, interpreter)
    on_path = [f"python3.{minor}{t}" for minor in range(OLDEST[1], 30) for t in ("", "t")]
    for command in [*on_path, "pypy3"]:
        executable = shutil.which(command)
        interpreter = probe(executable, None) if executable else None
        if interpreter is not None and interpreter.version >= OLDEST:
            found.setdefault(interpreter.name, interpreter)
    return list(found.values())


# -- Debian


def debian_packages(names: set[str]) -> list[str]:
    pythons = sorted(name for name in names if PACKAGES.fullmatch(name))
    headers = {f"{name}-dev" for name in pythons} & names
    return [*PROGRAMS, *pythons, *sorted(headers)]


def debian_root(cache: Path, suite: str, archive: str | None, refresh: bool) -> Path:
    """A Debian with its interpreters, made at the first call."""
    root, ready = cache / "debian" / suite, cache / "debian" / f"{suite}.ready"
    note = " ".join(PROGRAMS)
    if ready.exists() and not refresh and ready.read_text().startswith(note + "\n"):
        return root
    log = cache / "logs" / f"debian-{suite}.log"
    log.unlink(missing_ok=True)
    ready.unlink(missing_ok=True)
    packages = make_root(root, archive, debian_packages, log)
    pythons = [name for name in packages if PACKAGES.fullmatch(name)]
    ready.write_text("\n".join([note, *pythons]))
    return root


def debian_interpreters(root: Path) -> list[Interpreter]:
    names = root.with_name(f"{root.name}.ready").read_text().splitlines()[1:]
    # python3.14-nogil's program is python3.14t.
    commands = [name.replace("-nogil", "t") for name in names]
    found = [probe(f"/usr/bin/{command}", root) for command in commands]
    return [one for one in found if one is not None and one.version >= OLDEST]


# -- one interpreter


@dataclass
class Result:
    interpreter: Interpreter
    extension: str = ""
    uvloop: str = ""
    #: subject -> outcome -> how many
    counts: dict[str, collections.Counter[str]] = field(default_factory=dict)
    seconds: float = 0
    trouble: str = ""


class World:
    """Where one interpreter runs: its folders, as they are seen here and from inside."""

    def __init__(self, interpreter: Interpreter, cache: Path, timeout: float) -> None:
        name = interpreter.name
        self.interpreter = interpreter
        self.timeout = timeout
        self.log = cache / "logs" / f"{name}.log"
        self.tree = cache / "trees" / name
        self.venv = cache / "venvs" / name

    def seen(self, path: Path) -> str:
        return str(path) if self.interpreter.root is None else f"/mnt/{path.parent.name}"

    def run(self, words: list[str]) -> int:
        root, tree = self.interpreter.root, self.seen(self.tree)
        env = clean_environment(
            PYTHONPATH=tree,
            PYTHONDONTWRITEBYTECODE="1",
            AIOPROC_BUILD_EXTENSION="require",
            AIOPROC_CFLAGS="-Werror",
        )
        for path in (self.tree, self.venv):
            path.mkdir(parents=True, exist_ok=True)
        command: list[str | Path] = list(words)
        if root is not None:
            env |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
            env.pop("TMPDIR", None)
            command = enter(
                root,
                ["env", "-C", tree, *words],
                {path: self.seen(path) for path in (self.tree, self.venv)},
            )
        return run(command, self.log, env=env, cwd=self.tree, timeout=self.timeout)

    def python(self, *words: str) -> int:
        return self.run([f"{self.seen(self.venv)}/bin/python", *words])


def pip_options(interpreter: Interpreter) -> list[str]:
    major, minor = interpreter.version
    options = ["--python-version", f"{major}.{minor}", "--only-binary=:all:"]
    options += ["--implementation", "pp" if interpreter.implementation == "pypy" else "cp"]
    for name in PLATFORMS:
        options += ["--platform", name]
    if interpreter.threaded:
        options += ["--abi", f"cp{major}{minor}t", "--abi", "none"]
    return options


def environment(world: World, refresh: bool) -> str | None:
    """Makes the virtual environment. Why there is no uvloop in it, or None if there is."""
    interpreter, log = world.interpreter, world.log
    note = world.venv.with_name(f"{world.venv.name}.json")
    backports = [name for name, end in BACKPORTS.items() if interpreter.version < end]
    wanted: list[str] = [*WHEELS, *backports]
    if interpreter.implementation == "cpython":
        wanted.append(CFFI)
    key = [interpreter.release, interpreter.executable, *wanted, UVLOOP]
    if note.exists() and not refresh:
        former = json.loads(note.read_text())
        if former["key"] == key:
            why_not: str | None = former["no_uvloop"]
            return why_not
    note.unlink(missing_ok=True)
    say(f"{interpreter.name}: wheels")
    make = ["-m", "venv", "--clear", "--without-pip", world.seen(world.venv)]
    if world.run([interpreter.executable, *make]):
        raise Failure(f"venv failed, see {log}")
    [site] = world.venv.glob("lib/*/site-packages")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet"]
    pip += ["--disable-pip-version-check", "--root-user-action", "ignore", "--target", site]
    pip += pip_options(interpreter)
    must([*pip, *wanted], log, "pip")
    why_not = None
    if interpreter.implementation != "cpython":
        why_not = "not for PyPy"
    else:
        uvloop_log = log.with_name(f"{interpreter.name}-uvloop.log")
        uvloop_log.unlink(missing_ok=True)
        if run([*pip, "--no-deps", UVLOOP], uvloop_log):
            if "No matching distribution" not in uvloop_log.read_text(errors="replace"):
                raise Failure(f"pip failed for uvloop, see {uvloop_log}")
            why_not = "no wheel"
    note.write_text(json.dumps({"key": key, "no_uvloop": why_not}))
    return why_not


def install_wheel(world: World, folder: Path) -> str:
    """The wheel for this interpreter out of a release; what takes the sources' place."""
    for name in ("aioproc", "csrc"):
        shutil.rmtree(world.tree / name)
    (world.tree / "setup.py").unlink()
    [site] = world.venv.glob("lib/*/site-packages")
    for old in [*site.glob("aioproc"), *site.glob(f"{STEM}-*")]:
        shutil.rmtree(old)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    pip += ["--disable-pip-version-check", "--root-user-action", "ignore", "--target", site]
    pip += [*pip_options(world.interpreter), "--no-index", "--find-links", folder, NAME]
    start = time.monotonic()
    must(pip, world.log, "pip")
    seconds = time.monotonic() - start
    binaries = (site / "aioproc").glob("_native.*so")
    installed = next((path.name for path in binaries), "none")
    say(f"{world.interpreter.name}: the wheel installed in {seconds:.1f} s ({installed})")
    return installed


def subject_of(test: str) -> str:
    """Which of SUBJECTS a test's parameters name, or ""."""
    parameters = test.partition("[")[2].rstrip("]").split("-")
    return next((subject for subject in SUBJECTS if subject in parameters), "")


def count(report: Path) -> dict[str, collections.Counter[str]]:
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for case in ElementTree.parse(report).iter("testcase"):
        outcomes = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcome = "passed"
        if outcomes:
            outcome = "skipped" if outcomes == {"skipped"} else "failed"
        counts[subject_of(case.get("name", ""))][outcome] += 1
    return counts


def test(interpreter: Interpreter, options: argparse.Namespace) -> Result:
    result, name = Result(interpreter), interpreter.name
    world = World(interpreter, options.cache, options.timeout)
    log = world.log
    log.unlink(missing_ok=True)
    no_uvloop = environment(world, options.refresh)
    result.uvloop = no_uvloop or "yes"
    copy_tree(world.tree)

    if options.wheel:
        result.extension = install_wheel(world, options.wheel)
    else:
        say(f"{name}: build")
        if world.python("setup.py", "-q", "build_ext", "--inplace"):
            raise Failure(f"the extension cannot be built, see {log}")
        result.extension = next((world.tree / "aioproc").glob("_native.*so")).name

    say(f"{name}: tests")
    arguments = ["-X", "dev", "-W", "error", "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    arguments += ["-o", "faulthandler_exit_on_timeout=true"]
    arguments += ["--junitxml", "report.xml", *(["--no-uvloop"] if no_uvloop else [])]
    arguments += ["--no-native"] if result.extension == "none" else []
    start = time.monotonic()
    code = world.python(*arguments, *options.pytest)
    result.seconds = time.monotonic() - start
    if (world.tree / "report.xml").exists():
        result.counts = count(world.tree / "report.xml")
    if code:
        result.trouble = f"pytest ended with {code}, see {log}"
    return result


# -- the table


def cell(counter: collections.Counter[str] | None) -> str:
    if counter is None:
        return "-"
    parts = [str(counter["passed"])]
    parts += [f"{counter[what]} {what}" for what in ("skipped", "failed") if counter[what]]
    return ", ".join(parts)


def table(results: list[Result]) -> str:
    head = ["interpreter", "version", "from", "extension", "uvloop"]
    head += [{"oracle": "asyncio", "": "other"}.get(name, name) for name in (*SUBJECTS, "")]
    rows = [[*head, "seconds"]]
    for result in results:
        one = result.interpreter
        row = [one.name, one.release, one.where, result.extension or "-", result.uvloop or "-"]
        row += [cell(result.counts.get(subject)) for subject in (*SUBJECTS, "")]
        rows.append([*row, f"{result.seconds:.0f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def parse() -> argparse.Namespace:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    parser = argparse.ArgumentParser(
        description="Runs the suite on every interpreter that can be had here.",
        epilog="What follows -- goes to pytest.",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(caches) / "aioproc-interpreters",
        help="the folder for everything (default %(default)s)",
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="as --list names it")
    parser.add_argument("--list", action="store_true", help="list the interpreters and end")
    parser.add_argument("--python", action="append", default=[], metavar="PATH", help="one more")
    parser.add_argument(
        "--wheel", type=Path, metavar="DIR", help="test the installed wheel from this folder"
    )
    parser.add_argument("--no-debian", action="store_true", help="only what is on this system")
    parser.add_argument("--suite", default="testing", help="of Debian (default %(default)s)")
    parser.add_argument("--mirror", help="of Debian (default: apt's own)")
    parser.add_argument("--refresh", action="store_true", help="make what is cached anew")
    parser.add_argument(
        "--timeout", type=float, default=900, help="seconds for one suite (default %(default)s)"
    )
    words, rest = sys.argv[1:], []
    if "--" in words:
        at = words.index("--")
        words, rest = words[:at], words[at + 1 :]
    options = parser.parse_args(words)
    options.cache = options.cache.resolve()
    options.wheel = options.wheel and options.wheel.resolve()
    options.pytest = rest
    return options


def interpreters(options: argparse.Namespace) -> list[Interpreter]:
    found = local_interpreters(options.python)
    if options.no_debian:
        return found
    if os.geteuid() != 0:
        say("not root: without Debian's interpreters")
        return found
    root = debian_root(options.cache, options.suite, options.mirror, options.refresh)
    names = {one.name for one in found}
    return found + [one for one in debian_interpreters(root) if one.name not in names]


def main() -> int:
    options = parse()
    try:
        found = interpreters(options)
    except Failure as failure:
        raise SystemExit(f"interpreters: {failure}") from None
    if options.list:
        for one in found:
            print(f"{one.name:14} {one.release:24} {one.where}")
        return 0
    unknown = set(options.only or ()) - {one.name for one in found}
    if unknown:
        raise SystemExit(f"interpreters: no {', '.join(sorted(unknown))} here; see --list")
    results = []
    for one in found:
        if options.only and one.name not in options.only:
            continue
        try:
            results.append(test(one, options))
        except Failure as failure:
            results.append(Result(one, trouble=str(failure)))
        if results[-1].trouble:
            say(f"{one.name}: {results[-1].trouble}")
    print(table(results))
    for result in results:
        if result.trouble:
            print(f"{result.interpreter.name}: {result.trouble}")
    return 1 if any(result.trouble for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
