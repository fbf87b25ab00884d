"""Every check of this project in one command.

    python tools/check.py                       what CI runs
    python tools/check.py --full                everything that this machine can run
    python tools/check.py --only lint types     some of them (--list names them)
    python tools/check.py --docs                the documentation: its site, its examples
    python tools/check.py --repeat 50 tests/test_process.py

Needs the extra "check": pip install -e '.[check]'. With AIOPROC_BUILD_EXTENSION=no the
package is checked without its extension. Exits with 0 only if everything passed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Seconds; a fuse against whatever hangs.
FUSE = 1800

#: git's name of a tree without files, which everything differs from.
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

WITHOUT_EXTENSION = os.environ.get("AIOPROC_BUILD_EXTENSION") == "no"
WAIVED = ["--no-native"] if WITHOUT_EXTENSION else []

Env = Mapping[str, str]
NOTHING: Env = {}
#: Returns what is to be said of it in the table; raises Failed or Skipped.
Check = Callable[[], "str | None"]


class Failed(Exception):
    pass


class Skipped(Exception):
    """This machine has not what the check needs."""


# -- running things


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def start(argv: list[str], cwd: Path, env: Env, stdout: int) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": str(cwd)}
    for name in ("AIOPROC_BACKEND", "AIOPROC_STRATEGY"):
        environ.pop(name, None)
    environ.update(env)
    return subprocess.Popen(
        argv,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def run(*command: str | Path, cwd: Path = ROOT, env: Env = NOTHING) -> str:
    """Runs a command and shows what it says. Returns its last lines."""
    argv = [str(part) for part in command]
    print("$", *(f"{name}={value!r}" for name, value in env.items()), *argv, flush=True)
    process = start(argv, cwd, env, subprocess.PIPE)
    assert process.stdout is not None
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
    signal.alarm(FUSE)
    last: list[str] = []
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = [*last[-19:], line.rstrip()]
        returncode = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        signal.alarm(0)
        process.stdout.close()
    if returncode:
        raise Failed(f"exit code {returncode} {pytest_summary(last)}")
    return "\n".join(last)


def run_side_by_side(*commands: list[str]) -> list[str]:
    """As run, all at once; shows what they say one after the other."""
    with contextlib.ExitStack() as stack:
        started = []
        for argv in commands:
            output = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            process = start(argv, ROOT, NOTHING, output.fileno())
            stack.callback(process.wait)
            stack.callback(end, process)
            started.append((argv, process, output))
        answers, failures = [], []
        for argv, process, output in started:
            try:
                process.wait(FUSE)
            except subprocess.TimeoutExpired:
                end(process)
            print("$", *argv, flush=True)
            output.seek(0)
            lines = output.read().splitlines()
            print(*lines, sep="\n", flush=True)
            answers.append("\n".join(lines[-20:]))
            if process.wait():
                failures.append(f"exit code {process.returncode} {pytest_summary(lines[-20:])}")
    if failures:
        raise Failed("; ".join(failures))
    return answers


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def pytest_summary(lines: list[str]) -> str:
    """pytest's own last line, or nothing."""
    pattern = re.compile(r"=* ?\d+ (passed|failed|skipped|error|deselected).* in [\d.]+s.*")
    found = [line for line in lines if pattern.fullmatch(line)]
    return found[-1] if found else ""


def run_tests(*command: str, cwd: Path = ROOT, env: Env = NOTHING) -> str:
    """Runs pytest by some command; returns its summary."""
    return summary_of_run(run(*command, cwd=cwd, env=env))


def summary_of_run(output: str) -> str:
    summary = pytest_summary(output.splitlines())
    if " passed" not in summary:
        raise Failed("no test was run")
    return summary


def pytest(*arguments: str, cwd: Path = ROOT, env: Env = NOTHING) -> str:
    return run_tests(sys.executable, "-m", "pytest", *WAIVED, *arguments, cwd=cwd, env=env)


# -- what CI runs


def build() -> None:
    """The extension, with every warning an error."""
    env = {
        "AIOPROC_BUILD_EXTENSION": "require",
        "AIOPROC_CFLAGS": "-Werror -Wshadow -Wvla",
    }
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force", env=env)


def lint() -> None:
    run(sys.executable, "-m", "ruff", "check", ".")
    run(sys.executable, "-m", "ruff", "format", "--check", ".")
    if (ROOT / ".git").exists():
        # Markers of conflicts and stray blanks, in all that is not Python.
        run("git", "diff", "--check", EMPTY_TREE, "--", ".", ":!*.svg")


def types() -> None:
    run(sys.executable, "-m", "mypy")
    windows = sorted((ROOT / "aioproc" / "_backends" / "windows").glob("*.py"))
    words = ["--platform", "win32", "--follow-imports", "silent"]
    run(sys.executable, "-m", "mypy", *words, *windows)


def docs() -> str:
    """The site, with every warning an error; the pages' examples are tests of the suite."""
    if sys.version_info < (3, 11):
        raise Skipped("Sphinx needs Python 3.11")
    if importlib.util.find_spec("sphinx") is None:
        raise Failed('no Sphinx: pip install -e ".[docs]"')
    return run(sys.executable, "tools/site.py").splitlines()[-1]


def docs_examples() -> str:
    return pytest("-q", *(f"tests/test_{name}.py" for name in ("docs", "readme", "recipes")))


def demo() -> None:
    """The main job: real programs by the hundred."""
    run(sys.executable, "tools/demo.py")


def servers() -> None:
    """A language server and an MCP server, driven through open_process()."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "tools/servers.py", "--venv", Path(folder, "venv"))


def cpython() -> None:
    """CPython's own tests, served by aioproc."""
    run(sys.executable, "tools/cpython_tests.py", "--install")


def faults(*words: str) -> Check:
    """System calls that fail: all of them, or a sample."""

    def check() -> str:
        if sys.platform != "linux" or platform.machine() != "x86_64":
            raise Skipped("Linux on x86_64 only")
        if shutil.which("cc") is None:
            raise Skipped("no C compiler")
        own = ["--only", "pure"] if WITHOUT_EXTENSION else []
        return run(sys.executable, "tools/faults.py", *words, *own).splitlines()[-1]

    return check


def suite() -> str:
    return pytest()


def readme_suite() -> str:
    """The suite, by the command that the README gives for a fresh machine."""
    return run_tests("bash", "-euc", readme_command("pytest"))


def readme_command(word: str) -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S):
        if word in block:
            return str(block)
    raise Failed(f"the README has no command with {word}")


# -- the long ones


def forced(name: str, value: str) -> Check:
    def check() -> str:
        if WITHOUT_EXTENSION and value != "pure":
            raise Skipped("no extension")
        return pytest(env={name: value})

    return check


def seccomp() -> str:
    """Without pidfd_open: the pure backend with its polling thread."""
    if sys.platform != "linux":
        raise Skipped("Linux only")
    denied = [sys.executable, "tests/seccomp.py", "pidfd_open"]
    command = [sys.executable, "-m", "pytest", *WAIVED]
    # What builds and probes the native backend, which cannot be had in this way.
    left_out = ("bench", "build", "denied", "reliability")
    command += [f"--ignore=tests/test_{name}.py" for name in left_out]
    command += ["--deselect=tests/test_exits.py::test_this_is_where_statuses_survive"]
    return run_tests(*denied, *command, env={"AIOPROC_BACKEND": "pure"})


def strict() -> str:
    """Development mode, warnings are errors."""
    return run_tests(sys.executable, "-X", "dev", "-W", "error", "-m", "pytest", *WAIVED)


def heavy() -> str:
    return pytest("-m", "heavy")


def soak() -> None:
    """Children of all kinds, and what can come between: two minutes."""
    if sys.platform != "linux":
        raise Skipped("Linux only")
    run(sys.executable, "tools/soak.py")


def mutants() -> str:
    """Planted mistakes, which the tools have to notice."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or WITHOUT_EXTENSION:
        raise Skipped("Linux on x86_64 with the extension only")
    return run(sys.executable, "tools/mutants.py").splitlines()[-1]


def cpython_more() -> None:
    """CPython's tests again, after aioproc.install(), and on the pure backend."""
    run(sys.executable, "tools/cpython_tests.py")
    run(sys.executable, "tools/cpython_tests.py", env={"AIOPROC_BACKEND": "pure"})


@contextmanager
def copy_of_tree() -> Iterator[Path]:
    """For a build that nobody else is to find."""
    with tempfile.TemporaryDirectory(prefix="aioproc-") as directory:
        copy = Path(directory) / "aioproc"
        ignore = shutil.ignore_patterns(
            *("*.so", ".git", ".venv*", ".cache", ".*_cache", ".hypothesis"),
            *("build", "dist", "__pycache__"),
        )
        shutil.copytree(ROOT, copy, ignore=ignore)
        yield copy


def runtimes(*names: str) -> str:
    """The paths of the compiler's own libraries, for LD_PRELOAD."""
    compiler = os.environ.get("CC", "gcc").split()[0]
    paths = []
    for name in names:
        answer = subprocess.run(
            [compiler, f"-print-file-name={name}"], stdout=subprocess.PIPE, text=True, check=True
        )
        path = answer.stdout.strip()
        if not os.path.isabs(path):
            raise Skipped(f"{compiler} has no {name}")
        paths.append(os.path.realpath(path))
    return " ".join(paths)


def build_with(tree: Path, sanitizer: str) -> None:
    building = {
        "AIOPROC_BUILD_EXTENSION": "require",
        "AIOPROC_CFLAGS": f"{sanitizer} -O1 -g -fno-omit-frame-pointer",
        "AIOPROC_LDFLAGS": sanitizer,
    }
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree, env=building)


def sanitizers() -> str:
    """The extension built with ASan and UBSan. Python itself is not, so the runtimes are
    preloaded; what Python keeps until its exit is no leak of ours."""
    if sys.platform != "linux" or WITHOUT_EXTENSION:
        raise Skipped("no extension")
    testing = {
        "AIOPROC_BACKEND": "native",
        "LD_PRELOAD": runtimes("libasan.so", "libubsan.so"),
        # Programs of tests end by SIGSEGV, and are to be seen to.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:handle_segv=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    # ASan ends a program that runs out of memory or addresses, and keeps for a while what is
    # freed.
    left_out = [
        "--ignore=tests/test_memory.py",
        "--ignore=tests/test_run_memory.py",
        "--deselect=tests/test_limits.py::test_in_a_shell",
        "-k=not memory-life",
        "--deselect=tests/test_many.py::test_what_is_kept_for_the_next_spawns",
    ]
    with copy_of_tree() as tree:
        build_with(tree, "-fsanitize=address,undefined -fno-sanitize-recover=undefined")
        summary = pytest(*left_out, cwd=tree, env=testing)
        words = ["--seconds", "60", "--any-memory", "--loop", "asyncio"]
        run(sys.executable, "tools/soak.py", *words, cwd=tree, env=testing)
        return summary


def threads() -> str:
    """The soak with the thread sanitizer, which takes a child on our memory for a thread that it
    has not seen begin: with the strategies that share none."""
    if sys.platform != "linux" or WITHOUT_EXTENSION or not shutil.which("setarch"):
        raise Skipped("no extension, or no setarch")
    with copy_of_tree() as tree:
        build_with(tree, "-fsanitize=thread")
        known = tree.parent / "known"
        known.write_text("race:_dl_deallocate_tls\n")  # the C library's own
        soaking = {
            "AIOPROC_BACKEND": "native",
            "LD_PRELOAD": runtimes("libtsan.so"),
            "TSAN_OPTIONS": f"die_after_fork=0:suppressions={known}",
        }
        # It wants to have addresses to itself. A report is its exit code, 66.
        soak = ["setarch", "-R", sys.executable, "tools/soak.py", "--seconds", "60"]
        words = ["--any-memory", "--loop", "asyncio"]
        for strategy in ("portable", "copy"):
            run(*soak, *words, cwd=tree, env={**soaking, "AIOPROC_STRATEGY": strategy})
    return "no report"


def kqueue() -> str:
    """The files of macOS and the BSDs, against tests/shim."""
    if sys.platform != "linux" or WITHOUT_EXTENSION:
        raise Skipped("no extension")
    building = {
        "AIOPROC_PLATFORM": "linux-kqueue",
        "AIOPROC_BUILD_EXTENSION": "require",
        "AIOPROC_CFLAGS": "-Werror -Wshadow -Wvla",
    }
    with copy_of_tree() as tree:
        run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree, env=building)
        return pytest(cwd=tree, env={"AIOPROC_BACKEND": "native"})


def sdist() -> str:
    """Builds and passes its tests from the unpacked archive."""
    building = {"AIOPROC_BUILD_EXTENSION": "no" if WITHOUT_EXTENSION else "require"}
    with copy_of_tree() as tree:
        run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", "../dist", cwd=tree)
        [archive] = (tree.parent / "dist").iterdir()
        shutil.unpack_archive(archive, tree.parent, filter="data")
        unpacked = tree.parent / archive.name.removesuffix(".tar.gz")
        setup = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        run(*setup, cwd=unpacked, env=building)
        return pytest(cwd=unpacked)


def emscripten() -> None:
    """Where there are no processes."""
    if shutil.which("npm") is None:
        raise Skipped("no Node")
    run(sys.executable, "tools/pyodide.py")


def cross() -> None:
    """All platform wheels, and the suite against those that run here."""
    if sys.platform != "linux" or WITHOUT_EXTENSION:
        raise Skipped("no extension")
    run(sys.executable, "tools/cross.py")
    run(sys.executable, "tools/interpreters.py", "--no-debian", "--wheel", "dist")


def interpreters(given: list[str]) -> Check:
    """The suite on the other interpreters that can be had here."""

    def check() -> None:
        if WITHOUT_EXTENSION:
            raise Skipped("no extension")
        more = [word for python in given for word in ("--python", python)]
        run(sys.executable, "tools/interpreters.py", *more)

    return check


#: CPythons for Windows that tools/wine.py knows.
WINDOWS_PYTHONS = ((3, 11), (3, 13))


def wine() -> str:
    """The suite on CPython for Windows, each backend on another loop; and CPython's own
    tests, if this Python, which has them, is of a version that is there."""
    command = [sys.executable, "tools/wine.py"]
    # All that they share is made once, beforehand.
    version = "{}.{}".format(*sys.version_info)
    pythons = [version] if sys.version_info[:2] in WINDOWS_PYTHONS else []
    for name in [*pythons, "3.13"]:
        run(*command, "--python", name, "--setup")
    # What is no backend's, and asyncio itself, are for "wine-all".
    suites = [
        [*command, "--backend", backend, "--loop", loop, "--", "-q", *chosen]
        for backend, loop, *chosen in (
            ("native", "proactor", "-k", "(native or windows) and not oracle"),
            ("pure", "selector", "-k", "pure and not oracle"),
        )
    ]
    cpython = [[*command, "--python", name, "--cpython"] for name in pythons]
    answers = run_side_by_side(*suites, *cpython)
    summaries = [summary_of_run(answer) for answer in answers[: len(suites)]]
    return "; ".join(summary.strip("= ") for summary in summaries)


def wine_everywhere() -> str:
    command = [sys.executable, "tools/wine.py", "--timeout", str(FUSE - 60)]
    return run_tests(*command, "--", "-q")


# -- the table


def repeated(times: int, tests: list[str]) -> Check:
    def check() -> str:
        for i in range(times):
            say(f"{i + 1} of {times}")
            pytest("-q", "-x", *tests)
        return f"{times} times"

    return check


def chosen(options: argparse.Namespace) -> dict[str, Check]:
    everything = options.full or options.only or options.list
    checks: dict[str, Check] = {}
    if not WITHOUT_EXTENSION:
        checks["build"] = build
    checks |= {"lint": lint, "types": types, "docs": docs, "demo": demo, "cpython": cpython}
    # A part of them, always the same: what is new in a run is what the change has done.
    checks["faults"] = faults("--seconds", "40", "--seed", "1")
    if everything:
        checks |= {
            "native": forced("AIOPROC_BACKEND", "native"),
            "pure": forced("AIOPROC_BACKEND", "pure"),
            "clone": forced("AIOPROC_STRATEGY", "clone"),
            "copy": forced("AIOPROC_STRATEGY", "copy"),
            "portable": forced("AIOPROC_STRATEGY", "portable"),
            "seccomp": seccomp,
            "strict": strict,
            "heavy": heavy,
            "sanitizers": sanitizers,
            "threads": threads,
            "faults-all": faults(),
            "soak": soak,
            "mutants": mutants,
            "kqueue": kqueue,
            "sdist": sdist,
            "emscripten": emscripten,
            "cross": cross,
            "cpython-more": cpython_more,
            "servers": servers,
        }
    if everything or options.wine:
        checks["wine"] = wine
    if everything:
        checks["wine-all"] = wine_everywhere
    if everything or options.python:
        checks["interpreters"] = interpreters(options.python)
    # Last, so that its summary is the end of the output.
    checks["suite"] = readme_suite if options.readme else suite
    if options.only:
        unknown = sorted(set(options.only) - set(checks))
        if unknown:
            sys.exit(f"no such check: {', '.join(unknown)} (--list names them)")
        checks = {name: check for name, check in checks.items() if name in options.only}
    return checks


def main() -> int:
    parser = argparse.ArgumentParser(description="Every check of this project.")
    add = parser.add_argument
    add("--full", action="store_true", help="the long ones too")
    add("--list", action="store_true", help="name the checks")
    add("--only", nargs="+", metavar="CHECK", help="these alone")
    add("--docs", action="store_true", help="the site and the pages' examples, and nothing else")
    add("--readme", action="store_true", help="the suite by the README's command")
    add("--wine", action="store_true", help="the suite on CPython for Windows, too")
    add("--python", action="append", default=[], help="for tools/interpreters.py; implies it")
    add("--repeat", type=int, metavar="N", help="run TESTS N times, and nothing else")
    add("tests", nargs="*", metavar="TESTS", help="for --repeat")
    options = parser.parse_args()
    if options.tests and not options.repeat:
        parser.error("TESTS are for --repeat")
    if options.docs:
        checks: dict[str, Check] = {"docs": docs, "examples": docs_examples}
    elif options.repeat:
        checks = {"repeat": repeated(options.repeat, options.tests)}
    else:
        checks = chosen(options)
    if options.list:
        print("\n".join(checks))
        return 0

    rows: list[tuple[str, float, str]] = []
    failed = False
    words = ""
    for i, (name, check) in enumerate(checks.items(), 1):
        say(f"[{i}/{len(checks)}] {name}")
        start = time.monotonic()
        try:
            words = check() or ""
            result = "passed"
        except Skipped as error:
            words, result = str(error), "skipped"
        except Failed as error:
            words, result = str(error), "FAILED"
            failed = True
        rows.append((name, time.monotonic() - start, f"{result:<8}{words.replace('=', '')}"))

    say("Checks")
    for name, seconds, text in rows:
        print(f"  {name:<14}{seconds:7.1f} s  {text}")
    print("FAILED" if failed else "All passed.")
    summary = re.search(r"=+ .* =+$", words)
    if summary:
        print(summary[0])
    sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
