"""Without a command: what is in use here, and why not something else."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from .. import __version__, backend_info


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [f"aioproc {facts['aioproc']}: {facts['backend']} backend ({facts['strategy']})"]
    lines += [f"  not {name}: {why_not}" for name, why_not in facts["not_used"].items()]
    for name, value in facts["features"].items():
        shown = {True: "yes", False: "no"}.get(value, value)
        lines.append(f"  {name}: {shown}")
    for name in ("python", "system", "libc", "cffi", "uvloop"):
        lines.append(f"{name}: {facts[name] or 'not installed'}")
    return lines


def print_report(as_json: bool) -> int:
    try:
        facts = backend_info()
    except (OSError, RuntimeError) as error:
        # AIOPROC_BACKEND asks for what is not to be had, or there are no descriptors left.
        print(f"aioproc {__version__}: {error}", file=sys.stderr)
        return 1
    try:
        print(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)), flush=True)
    except BrokenPipeError:
        # `| head`, say. Python would complain once more at its exit ("Note on SIGPIPE" in
        # the documentation of its signal module).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
