"""What to say to those who gave arguments that cannot be taken."""

from __future__ import annotations

import errno
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


#: What SpawnSpec.build() raises for what it cannot take.
REFUSALS = (TypeError, ValueError, AttributeError)


def explain_refusal(
    error: Exception,
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
    function: str = "create_subprocess_exec",
) -> None:
    """Says which argument or option was meant, and what it should have been."""
    if isinstance(error, TypeError):
        advice = _about_types(arguments, options, function)
    elif isinstance(error, ValueError):
        advice = _about_contents(str(error), arguments, options)
    else:
        env = options.get("env")
        is_none = env is None or hasattr(env, "items")
        advice = "" if is_none else "env is a mapping of names to values: env={'NAME': 'value'}"
    if advice:
        add_note(error, advice)


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, bytes, os.PathLike))


def _about_types(arguments: tuple[Any, ...], options: Mapping[str, Any], function: str) -> str:
    for i, argument in enumerate(arguments):
        if _is_text(argument):
            continue
        what = f"argument {i}" if i else "the program"
        if isinstance(argument, (list, tuple)):
            advice = f"give its items one by one: {function}(*command)"
        else:
            advice = "all of them are str, bytes or path-like objects"
        return f"{what} is {argument!r:.100}; {advice}"
    for name in ("cwd", "executable"):
        value = options.get(name)
        if value is not None and not _is_text(value):
            return f"{name} is {value!r:.100}; it is a str, bytes or path-like object"
    fds = options.get("pass_fds")
    if isinstance(fds, int):
        return f"pass_fds is a sequence of descriptors: pass_fds=[{fds}]"
    for name, value in _variables(options):
        # Not the value, which may be a secret.
        if not _is_text(name):
            return f"the name of an environment variable is {name!r:.100}; it is a str"
        if not _is_text(value):
            kind = type(value).__name__
            return f"the environment variable {name!r:.100} is of type {kind}: give str(...)"
    return ""


def _about_contents(text: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> str:
    if text == "illegal environment variable name":
        wrong = [name for name, _ in _variables(options) if not name or "=" in os.fsdecode(name)]
        return f"it is {wrong[0]!r:.100}" if wrong else ""
    if not text.startswith("embedded null"):
        return ""
    for i, argument in enumerate(arguments):
        if _has_nul(argument):
            return f"{f'argument {i}' if i else 'the program'} has one, which none can be given"
    for name in ("cwd", "executable"):
        if _has_nul(options.get(name)):
            return f"{name} has one"
    for name, value in _variables(options):
        if _has_nul(name) or _has_nul(value):
            return f"the environment variable {name!r:.100} has one"
    return ""


def _variables(options: Mapping[str, Any]) -> Iterable[tuple[Any, Any]]:
    env: Any = options.get("env")
    return env.items() if hasattr(env, "items") else ()


def _has_nul(value: Any) -> bool:
    return _is_text(value) and "\0" in os.fsdecode(value)


def explain_failure(
    error: OSError, spec: SpawnSpec, shell: str = "create_subprocess_shell"
) -> None:
    """Says what may have been meant by a command that could not be started."""
    # Windows' errors name no file.
    if spec.executable not in (None, spec.user_args[0]):
        return
    if error.filename not in (None, spec.user_args[0]):
        return
    program = os.fsdecode(spec.user_args[0])
    if not program:
        add_note(error, "the program's name is empty")
    elif error.errno == errno.ENOEXEC:
        add_note(
            error,
            "it is no program of this system, or a script whose first line does not name its "
            "interpreter (#!): give that as the program, and the script as its argument",
        )
    elif isinstance(error, FileNotFoundError):
        if len(program.split()) > 1:
            add_note(
                error,
                f"{program!r:.100} was taken for the name of a program, with the spaces in it: "
                "give its arguments one by one (shlex.split() makes them of a line), or use "
                f"{shell}()",
            )
        elif os.path.dirname(program) and os.path.isfile(
            os.path.join(os.fsdecode(spec.cwd or ""), program)
        ):
            add_note(
                error,
                "the file is there: its interpreter is not (the first line of a script, after #!; "
                "of a program, the dynamic linker that it was built for)",
            )
