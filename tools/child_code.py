"""Reads the machine code of what runs between clone and exec (csrc/posix/child_code.c): it
may call nothing and touch nothing that is not its own, since it runs in the parent's memory
beside the running parent.

    tools/child_code.py BINARY [MACHINE]

Disassembles the built extension: no way leads out of these functions, no instruction names
an address of data or thread-local storage. Needs objdump for the machine.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys

PREFIX = "ap_child_"

FUNCTION = re.compile(r"^[0-9a-f]+ <(?P<name>[^>]+)>:$")
INSTRUCTION = re.compile(r"^\s*[0-9a-f]+:\s+(?P<mnemonic>\S+)(?:\s+(?P<operands>.*))?$")
TARGET = re.compile(r"<(?P<name>[^>+]+)(?:\+0x[0-9a-f]+)?>")

#: Per machine: what leads elsewhere, what leads to where nobody knows, what touches data
#: or thread-local storage.
RULES = {
    "x86_64": (
        re.compile(r"(j\w+|call\w*|loop\w*|xbegin)$"),
        re.compile(r"\*"),
        re.compile(r"%rip|%[fg]s\b"),
    ),
    "aarch64": (
        re.compile(r"(b|bl|b\.\w+|cbn?z|tbn?z|blr\w*|br\w*)$"),
        # br x8, blr x8; but tbz x0, #63, <place>
        re.compile(r"^x\d+$"),
        re.compile(r"tpidr|<"),
    ),
}


def disassembler(machine: str) -> str | None:
    """The program that reads this machine's code, if there are one and rules for it."""
    name = "objdump" if machine == platform.machine() else f"{machine}-linux-gnu-objdump"
    return shutil.which(name) if machine in RULES else None


def violations(binary: str, machine: str) -> tuple[set[str], list[str]]:
    """The child's functions, and what is wrong with them."""
    program = disassembler(machine)
    assert program is not None
    branches, indirect, outside = RULES[machine]
    listing = subprocess.run(
        [program, "--disassemble", "--no-show-raw-insn", binary],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    ).stdout
    found: set[str] = set()
    wrong: list[str] = []
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
        if branches.match(mnemonic):
            target = TARGET.search(operands)
            if indirect.search(operands) or target is None:
                wrong.append(f"{inside}: to an unknown place: {line.strip()}")
            elif not target["name"].startswith(PREFIX):
                wrong.append(f"{inside}: out: {line.strip()}")
        elif outside.search(operands) or mnemonic in ("adr", "adrp"):
            wrong.append(f"{inside}: data: {line.strip()}")
    return found, wrong


def main() -> int:
    binary, *machine = sys.argv[1:]
    found, wrong = violations(binary, *machine or [platform.machine()])
    # Some are inlined, and which, is the compiler's choice; these two are pointed at.
    wrong += [f"no {name}" for name in ("ap_child_main", "ap_child_probe") if name not in found]
    print("\n".join(wrong) or f"{len(found)} functions, all by themselves")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
