"""The child's code runs in the parent's memory beside the running parent: it may call
nothing and touch nothing that is not its own (csrc/posix/spawn_clone.c).

So the built extension is disassembled: no way leads out of its functions, no instruction
names an address of data or thread-local storage.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from programs import WINDOWS

if WINDOWS:
    pytest.skip("not on Windows: the child's code on clone", allow_module_level=True)

PREFIX = "ap_child_"

FUNCTION = re.compile(r"^[0-9a-f]+ <(?P<name>[^>]+)>:$")
INSTRUCTION = re.compile(r"^\s*[0-9a-f]+:\s+(?P<mnemonic>\S+)(?:\s+(?P<operands>.*))?$")
TARGET = re.compile(r"<(?P<name>[^>+]+)(?:\+0x[0-9a-f]+)?>")

#: Per machine: what leads elsewhere, what leads to where nobody knows, what touches data
#: or thread-local storage.
BRANCHES, INDIRECT, OUTSIDE = {
    "x86_64": (
        re.compile(r"(j\w+|call\w*|loop\w*|xbegin)$"),
        re.compile(r"\*"),
        re.compile(r"%rip|%[fg]s\b"),
    ),
    "aarch64": (
        re.compile(r"(b|bl|b\.\w+|cbn?z|tbn?z|blr\w*|br\w*)$"),
        re.compile(r"^x\d+"),
        re.compile(r"tpidr|<"),
    ),
}.get(platform.machine(), (None, None, None))

needs_tools = pytest.mark.skipif(
    BRANCHES is None or not shutil.which("objdump"), reason="no disassembler for this machine"
)


def violations(binary: str) -> tuple[set[str], list[str]]:
    """The child's functions, and what is wrong with them."""
    assert BRANCHES is not None
    assert INDIRECT is not None
    assert OUTSIDE is not None
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", binary],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    ).stdout
    found, wrong = set(), []
    inside = ""
    for line in listing.splitlines():
        if header := FUNCTION.match(line):
            inside = header["name"] if header["name"].startswith(PREFIX) else ""
            if inside:
                found.add(inside)
            continue
        instruction = INSTRUCTION.match(line) if inside else None
        if instruction is None:
            continue
        mnemonic, operands = instruction["mnemonic"], instruction["operands"] or ""
        # "bnd jmp", "notrack jmp"
        if mnemonic in ("bnd", "notrack", "repz", "rep") and operands:
            mnemonic, _, operands = operands.partition(" ")
        if BRANCHES.match(mnemonic):
            target = TARGET.search(operands)
            if INDIRECT.search(operands) or target is None:
                wrong.append(f"{inside}: to an unknown place: {line.strip()}")
            elif not target["name"].startswith(PREFIX):
                wrong.append(f"{inside}: out: {line.strip()}")
        elif OUTSIDE.search(operands) or mnemonic in ("adr", "adrp"):
            wrong.append(f"{inside}: data: {line.strip()}")
    return found, wrong


@needs_tools
def test_no_way_leads_out(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--no-native"):
        pytest.skip("waived")
    native = importlib.import_module("aioproc._native")
    if not native.lib.ap_strategies() & native.lib.AP_CLONE:
        pytest.skip("this platform has no such code")
    found, wrong = violations(native.__file__)
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
    found, wrong = violations(compiled(GOOD, tmp_path))
    assert "ap_child_main" in found
    assert not wrong


@needs_tools
@pytest.mark.parametrize("what", BAD)
def test_the_check_can_fail(tmp_path: Path, what: str) -> None:
    flags = ["-fstack-protector-all"] if what == "a stack protector" else []
    found, wrong = violations(compiled(BAD[what], tmp_path, *flags))
    assert "ap_child_main" in found
    assert wrong
