"""The child's code runs in the parent's memory beside the running parent: it may call
nothing and touch nothing that is not its own (csrc/posix/child_code.c).

So the built extension is disassembled (tools/child_code.py).
"""

from __future__ import annotations

import importlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from programs import WINDOWS
from tools.child_code import disassembler, violations

if WINDOWS:
    pytest.skip("not on Windows: the child's code on clone", allow_module_level=True)

MACHINE = platform.machine()

needs_tools = pytest.mark.skipif(
    disassembler(MACHINE) is None, reason="no disassembler for this machine"
)


@needs_tools
def test_no_way_leads_out(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--no-native"):
        pytest.skip("waived")
    native = importlib.import_module("aioproc._native")
    if not native.lib.ap_strategies() & native.lib.AP_CLONE:
        pytest.skip("this platform has no such code")
    found, wrong = violations(native.__file__, MACHINE)
    # Some are inlined, and which, is the compiler's choice; these two are pointed at.
    assert {"ap_child_main", "ap_child_probe"} <= found
    assert not wrong, "\n".join(wrong)


GOOD = """
__attribute__((noinline)) static long ap_child_sum(const long *p, long n) {
  long sum = 0;
  for (long i = 0; i < n; i++) if (p[i] > 3) sum += p[i];
  return sum;
}
long ap_child_main(const long *p, long n) { return n ? ap_child_sum(p, n) : 0; }
"""

BAD = {
    "a library function": (
        "#include <string.h>\nvoid ap_child_main(char *p, long n) { memset(p, 0, n); }"
    ),
    "a tail call": "void other(void); void ap_child_main(void) { other(); }",
    "a function pointer": "int ap_child_main(int (*f)(void)) { return f() + 1; }",
    "a variable": "extern int variable; int ap_child_main(void) { return variable; }",
    "a constant": "double ap_child_main(double a) { return a * 3.7; }",
    "errno": "#include <errno.h>\nint ap_child_main(void) { return errno; }",
    "thread-local": "static __thread int own; int *ap_child_main(void) { return &own; }",
    "a stack protector": (
        "#include <stddef.h>\n"
        'void fill(char *, size_t) __attribute__((visibility("hidden")));\n'
        "__attribute__((noinline)) void ap_child_fill(char *p, size_t n)"
        " { while (n--) ((volatile char *)p)[n] = 1; }\n"
        "void ap_child_main(void) { char room[64]; ap_child_fill(room, sizeof room); }"
    ),
}


def compiled(source: str, directory: Path, *flags: str) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    file, binary = directory / "code.c", directory / "code.so"
    file.write_text(source)
    options = ["-shared", "-fPIC", "-O2", "-fno-stack-protector", *flags]
    subprocess.run([compiler, *options, "-o", str(binary), str(file)], check=True)
    return str(binary)


@needs_tools
def test_the_check_lets_good_code_pass(tmp_path: Path) -> None:
    found, wrong = violations(compiled(GOOD, tmp_path), MACHINE)
    assert "ap_child_main" in found
    assert not wrong


@needs_tools
@pytest.mark.parametrize("what", BAD)
def test_the_check_can_fail(tmp_path: Path, what: str) -> None:
    flags = ["-fstack-protector-all"] if what == "a stack protector" else []
    found, wrong = violations(compiled(BAD[what], tmp_path, *flags), MACHINE)
    assert "ap_child_main" in found
    assert wrong
