"""``python -m aioproc``: what is in use here; a command run through the library; a
program run with aioproc in asyncio's place."""

from __future__ import annotations

import sys

from ._cli.main import main

if __name__ == "__main__":
    sys.exit(main())
