"""Child processes for asyncio, on every event loop and thread.

:func:`run` runs a command, always ends, and says what has become of it::

    import asyncio, aioproc

    async def main():
        done = await aioproc.run("git", "log", "-1", timeout=10)
        print(done.text)

    asyncio.run(main())

:func:`run_many` and :func:`run_all` run many, some at a time, :func:`pipeline` some with pipes
between them. :func:`open_process` starts a process to talk to, and ends it with all that it has
started.
And there is the API of :mod:`asyncio.subprocess`, without its faults:
:func:`create_subprocess_exec` and so on.

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
from ._asyncio.process import Process, TextProcess
from ._asyncio.streams import StreamReader
from ._asyncio.text import TextReader, TextWriter
from ._asyncio.transport import SubprocessTransport
from ._asyncio.writer import StreamWriter
from ._backends.base import UNKNOWN_EXIT, ResourceUsage
from ._info import backend_info
from ._install import install, installed, is_installed, uninstall
from ._job import Job
from ._open import open_process
from ._run.api import run, run_shell
from ._run.command import Command
from ._run.limiter import Limiter
from ._run.many import Runs, run_all, run_many
from ._run.pipeline import CompletedPipeline, pipeline
from ._run.result import (
    CalledProcessError,
    CompletedProcess,
    NotEnded,
    ProcessError,
    TimeoutExpired,
    partial_result,
)

__version__ = "0.1.0"

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "UNKNOWN_EXIT",
    "CalledProcessError",
    "Command",
    "CompletedPipeline",
    "CompletedProcess",
    "Job",
    "Limiter",
    "NotEnded",
    "Process",
    "ProcessError",
    "ResourceUsage",
    "Runs",
    "StreamReader",
    "StreamWriter",
    "SubprocessTransport",
    "TextProcess",
    "TextReader",
    "TextWriter",
    "TimeoutExpired",
    "backend_info",
    "create_subprocess_exec",
    "create_subprocess_shell",
    "install",
    "installed",
    "is_installed",
    "open_process",
    "partial_result",
    "pipeline",
    "run",
    "run_all",
    "run_many",
    "run_shell",
    "subprocess_exec",
    "subprocess_shell",
    "uninstall",
]
