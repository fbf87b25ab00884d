"""The programs that tests run as children: small ones of the system on POSIX, Python on
Windows, where there are none. Each is an argument list; what it does is the same.

Hundreds of Pythons that run aside import this, so it does without pytest, which would be
half of their time.
"""

from __future__ import annotations

import os
import subprocess
import sys

WINDOWS = os.name == "nt"

#: How a line ends that the system's shell writes.
NL = os.linesep.encode()

#: The returncodes of a child that was killed, terminated, interrupted by us.
KILLED, TERMINATED = (1, 1) if WINDOWS else (-9, -15)

# Under Wine the drive is Linux' own root.
HAS_PROC = os.name != "nt" and os.path.isdir("/proc/self/fd")

#: Lines end by \n alone, and the streams are in UTF-8, as on POSIX.
_AS_ON_POSIX = (
    "import sys\n"
    "for _ in sys.stdin, sys.stdout, sys.stderr:\n"
    "    if _: _.reconfigure(newline='\\n', encoding='utf-8')\n"
)


#: On Windows, in a virtual environment, sys.executable starts another, which does the work.
PYTHON: str = getattr(sys, "_base_executable", sys.executable) if WINDOWS else sys.executable


def python(code: str, *args: str) -> list[str]:
    """A child that runs Python code, the same everywhere."""
    return [PYTHON, "-I", "-S", "-c", _AS_ON_POSIX + code if WINDOWS else code, *args]


def _either(posix: str, windows: str) -> list[str]:
    return python(windows) if WINDOWS else posix.split()


def sh(script: str, windows: str) -> list[str]:
    """A script for POSIX' shell, and the Python code that does the same on Windows."""
    return python(windows) if WINDOWS else ["/bin/sh", "-c", script]


_COPY = "import os\nwhile True:\n data = os.read(0, 65536)\n if not data: break\n"

CAT = _either("cat", _COPY + " os.write(1, data)\n")
TRUE = _either("true", "")
SLEEP = _either("sleep 1000", "import time; time.sleep(1000)")
YES = _either("yes", "import os\nwhile True: os.write(1, b'y\\n' * 4096)")
#: Copies stdin to stdout and stderr.
TEE = _either("tee /dev/stderr", _COPY + " os.write(1, data)\n os.write(2, data)\n")
#: Writes "out" and "err", a line each.
BOTH = python("import sys; sys.stdout.write('out\\n'); sys.stderr.write('err\\n')")
#: Closes its stdin, and goes on.
DEAF = sh("exec 0<&-; exec sleep 1000", "import os, time; os.close(0); time.sleep(1000)")
#: Closes all three streams, and goes on.
SILENT = sh(
    "exec <&- >&- 2>&-; exec sleep 1000",
    "import os, time; [os.close(fd) for fd in (0, 1, 2)]; time.sleep(1000)",
)
#: Says "hi" and ends, while a grandchild goes on that copies stdin to stdout.
LEAVES_CAT = sh(
    "exec 3<&0; cat <&3 & echo hi",
    f"import os, subprocess\nsubprocess.Popen({python(_COPY + ' os.write(1, data)')!r})\n"
    "os.write(1, b'hi\\n')",
)


def shell(*commands: str) -> str:
    """One after the other, for the system's shell: `cat`, `echo TEXT`, `exit N`..."""
    if not WINDOWS:
        return "; ".join(commands)
    # For cmd.exe a line is a command; and a space before the next thing is text.
    copy = "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
    words = {"cat": subprocess.list2cmdline([PYTHON, "-I", "-S", "-c", copy])}
    return "& ".join(words.get(text, text.replace(" >&2", ">&2")) for text in commands)


def ends(code: int) -> list[str]:
    return ["cmd", "/c", f"exit {code}"] if WINDOWS else ["/bin/sh", "-c", f"exit {code}"]
