"""Child processes for asyncio, on every event loop and thread.

The API of :mod:`asyncio.subprocess`, without its faults::

    import asyncio, aioproc

    async def main():
        process = await aioproc.create_subprocess_exec(
            "git", "log", "-1", stdout=aioproc.PIPE)
        stdout, _ = await process.communicate()
        print(stdout.decode())

    asyncio.run(main())

``python -m aioproc`` tells which backend is in use, and why; :func:`backend_info` does so
for programs.
"""

from __future__ import annotations

from subprocess import DEVNULL, PIPE, STDOUT

from ._api import (
    create_subprocess_exec,
    create_subprocess_shell,
    subprocess_exec,
    subprocess_shell,
)
from ._asyncio.process import Process
from ._asyncio.streams import StreamReader
from ._asyncio.transport import SubprocessTransport
from ._asyncio.writer import StreamWriter
from ._backends.base import UNKNOWN_EXIT, ResourceUsage
from ._info import backend_info
from ._install import install, installed, is_installed, uninstall
from ._job import Job

__version__ = "0.1.0"

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "UNKNOWN_EXIT",
    "Job",
    "Process",
    "ResourceUsage",
    "StreamReader",
    "StreamWriter",
    "SubprocessTransport",
    "backend_info",
    "create_subprocess_exec",
    "create_subprocess_shell",
    "install",
    "installed",
    "is_installed",
    "subprocess_exec",
    "subprocess_shell",
    "uninstall",
]
