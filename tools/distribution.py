"""The distribution's name, which pip installs, as pyproject.toml has it: the one place.

Not the package's, which people import. After a change there, the extras that name the
distribution are to be changed with it; tests/test_build.py holds them together.
"""

from __future__ import annotations

import re
from pathlib import Path

_TEXT = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
_MATCH = re.search(r'^\[project\]\nname = "([^"]+)"$', _TEXT, re.M)
assert _MATCH is not None, "pyproject.toml has no name"

NAME = _MATCH[1]
#: What the names of its files begin with.
STEM = re.sub(r"[-_.]+", "_", NAME).lower()
