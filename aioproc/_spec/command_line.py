"""Windows' command lines: a program and its arguments as the one string that
CreateProcess takes.

A batch file is run by cmd.exe, which reads the line by rules of its own: there, quotes
made for a C program let an argument run commands (CVE-2024-24576). So for .bat and .cmd
the line is made for cmd.exe, and what cannot be quoted for it is refused.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

#: What cmd.exe takes as it is, outside of quotes.
_PLAIN = re.compile(r"[\w#$*+\-./:?@\\]+", re.ASCII)
#: What means something to cmd.exe even between quotes, or ends the line.
_UNQUOTABLE = re.compile(r'["%\r\n]')


def command_line(args: Iterable[Any]) -> str:
    """As Popen makes it from a list: str, bytes or path-likes."""
    return subprocess.list2cmdline(list(map(os.fsdecode, args)))


def windows_error(winerror: int, text: str, filename: str | None) -> OSError:
    """OSError or a subclass, as for an error of Windows' own."""
    error: Any = OSError
    made: OSError = error(0, text, filename, winerror)
    return made


def is_batch_file(program: str) -> bool:
    # Windows ignores dots and spaces at the end of a name.
    return program.rstrip(". ").lower().endswith((".bat", ".cmd"))


def system_shell() -> str:
    """cmd.exe, where it is known to be; as Popen looks for it (gh-101283)."""
    comspec = os.environ.get("ComSpec")  # noqa: SIM112  Windows' own spelling
    if not comspec:
        root = os.environ.get("SystemRoot", "")  # noqa: SIM112
        comspec = os.path.join(root, "System32", "cmd.exe")
        if not os.path.isabs(comspec):
            raise FileNotFoundError("shell not found: neither %ComSpec% nor %SystemRoot% is set")
    return comspec


def shell_command_line(command: str, executable: str | None) -> tuple[str, str | None]:
    """The line that has the shell run a command, and what to execute."""
    shell = executable
    if shell is None:
        shell = system_shell()
        if os.path.isabs(shell):
            executable = shell
    return f'{shell} /c "{command}"', executable


def check_program(program: str) -> None:
    """Quotes are in no file's name; in a command line CreateProcess would find another
    program's name between them."""
    if '"' in program:
        text = "The filename, directory name, or volume label syntax is incorrect"
        raise windows_error(123, text, program)


def check_length(line: str) -> None:
    # CreateProcess's own limit, with the NUL, in UTF-16 units. Wine has none.
    if len(line.encode("utf-16-le", "surrogatepass")) // 2 >= 32767:
        raise windows_error(206, "The filename or extension is too long", None)


def batch_command_line(script: str, args: Iterable[Any]) -> tuple[str, str]:
    """The line that has cmd.exe run a batch file, and cmd.exe's own path.

    ValueError for arguments that cmd.exe would change or run; FileNotFoundError.
    """
    words = [_quoted(_found(script), always=True), *(_quoted(os.fsdecode(arg)) for arg in args)]
    root = os.environ.get("SystemRoot", r"C:\Windows")  # noqa: SIM112
    shell = os.path.join(root, "System32", "cmd.exe")
    # /d: no AutoRun. /e:on /v:off: the rules that _quoted counts on. /s: of the quotes
    # around everything the first and the last go, and no other ("cmd /?").
    return f'"{shell}" /d /e:on /v:off /s /c "{" ".join(words)}"', shell


def _quoted(word: str, always: bool = False) -> str:
    unquotable = _UNQUOTABLE.search(word)
    if unquotable:
        raise ValueError(
            f"{unquotable[0]!r} cannot be passed to a batch file without cmd.exe reading more "
            f"than text in it: {word!r}"
        )
    if not always and _PLAIN.fullmatch(word) and not word.endswith("\\"):
        return word
    # Backslashes before a quote are halved by the C programs that get the argument.
    backslashes = len(word) - len(word.rstrip("\\"))
    return f'"{word}{word[len(word) - backslashes :]}"'


def _found(script: str) -> str:
    """The batch file's full path, by CreateProcess's rules: a relative one is looked for
    from our working directory, not from the child's."""
    name = script.rstrip(". ")
    places = [os.path.dirname(sys.executable), os.getcwd()]
    root = os.environ.get("SystemRoot")  # noqa: SIM112
    if root:
        places += [os.path.join(root, "System32"), root]
    places.append(os.environ.get("PATH", ""))
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise windows_error(2, "The system cannot find the file specified", script)
    return os.path.abspath(found)
