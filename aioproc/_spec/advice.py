"""What to say to those who gave arguments that cannot be taken."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from .._notes import add_note
from .spec import SpawnSpec

#: What all functions take, each with the parameters of its own.
KEYWORDS = frozenset(SpawnSpec.build.__func__.__kwdefaults__)  # type: ignore[attr-defined]

#: What to do in place of keywords of subprocess.run() and of former versions of asyncio.
INSTEAD = {
    "capture_output": "use stdout=PIPE, stderr=PIPE and communicate()",
    "check": "look at the process's returncode after wait() or communicate()",
    "input": "use stdin=PIPE and communicate(input)",
    "limit": "this function makes no streams that could have one",
    "loop": "the process belongs to the loop that runs",
    "timeout": "use asyncio.wait_for(process.communicate(), timeout), or with wait()",
}


def refuse_unknown(
    function: str,
    names: Iterable[str],
    own: Iterable[str] = ("stdin", "stdout", "stderr", "limit"),
    instead: Mapping[str, str] = INSTEAD,
) -> None:
    """TypeError for a keyword that is none of a spawn's.

    own: what the function itself takes. instead: what to do in place of others.
    """
    for name in names:
        if name in KEYWORDS:
            continue
        error = TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        if name in instead:
            add_note(error, instead[name])
        else:
            import difflib

            for similar in difflib.get_close_matches(name, [*KEYWORDS, *own], n=1):
                add_note(error, f"did you mean {similar!r}?")
        raise error from None


def refuse_shell(function: str, options: Mapping[str, Any], instead: str) -> None:
    """TypeError for `shell`, which is for SpawnSpec.build() alone."""
    if "shell" in options:
        error = TypeError(f"{function}() got an unexpected keyword argument 'shell'")
        add_note(error, instead)
        raise error


def explain_arguments(
    error: TypeError, arguments: tuple[Any, ...], function: str = "create_subprocess_exec"
) -> None:
    """Says which of them was meant, and what it should have been."""
    for i, argument in enumerate(arguments):
        if isinstance(argument, (str, bytes, os.PathLike)):
            continue
        what = f"argument {i}" if i else "the program"
        if isinstance(argument, (list, tuple)):
            advice = f"give its items one by one: {function}(*command)"
        else:
            advice = "all of them are str, bytes or path-like objects"
        add_note(error, f"{what} is {argument!r:.100}; {advice}")
        return


def explain_missing(
    error: FileNotFoundError, spec: SpawnSpec, shell: str = "create_subprocess_shell"
) -> None:
    """For a whole command line in the place of a program."""
    program = os.fsdecode(spec.user_args[0])
    # Windows' errors name no file.
    named = spec.executable in (None, spec.user_args[0])
    named = named and error.filename in (None, spec.user_args[0])
    if named and len(program.split()) > 1:
        add_note(
            error,
            f"{program!r:.100} was taken for the name of a program, with the spaces in it: give "
            "its arguments one by one (shlex.split() makes them of a line), or use "
            f"{shell}()",
        )
