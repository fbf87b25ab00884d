"""Without a command: what is in use here, and why not something else."""

from __future__ import annotations

import json
import sys

from .. import __version__, backend_info


def print_report(as_json: bool) -> int:
    try:
        facts = backend_info()
    except RuntimeError as error:
        # AIOPROC_BACKEND asks for what is not to be had.
        print(f"aioproc {__version__}: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"aioproc {facts['aioproc']}: {facts['backend']} backend ({facts['strategy']})")
    for name, why_not in facts["not_used"].items():
        print(f"  not {name}: {why_not}")
    for name, value in facts["features"].items():
        shown = {True: "yes", False: "no"}.get(value, value)
        print(f"  {name}: {shown}")
    for name in ("python", "system", "libc", "cffi", "uvloop"):
        print(f"{name}: {facts[name] or 'not installed'}")
    return 0
