"""A command as data."""

from __future__ import annotations

import os
from typing import Any

from .options import Settings


class Command:
    """A program, its arguments and how to run it: what :func:`run` takes, to be run later,
    or again.

    It cannot be changed, is equal to another that says the same, and can be pickled if all
    that it was given can be.

    Attributes:
        program: str, bytes or path-like.
        args: A tuple of its arguments.
    """

    __slots__ = ("_options", "args", "program")

    program: Any
    args: tuple[Any, ...]

    def __init__(self, program: Any, /, *args: Any, **options: Any) -> None:
        """Judge all of it, and start nothing.

        Args:
            program: As run()'s.
            *args: As run()'s.
            **options: As run()'s.

        Raises:
            TypeError, ValueError: As run() would.
        """
        Settings("Command", program, args, **options)
        set_attribute = super().__setattr__
        set_attribute("program", program)
        set_attribute("args", args)
        set_attribute("_options", options)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments for run(), a dict of its own each time."""
        return dict(self._options)  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Command cannot be changed: make another for another {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Command cannot be changed")

    def __repr__(self) -> str:
        name = self.options.get("name")
        if name is not None:  # what is in it may be a secret
            return f"Command(name={name!r})"
        parts = [repr(part) for part in (self.program, *self.args)]
        parts += [f"{name}={value!r}" for name, value in self.options.items()]
        return f"Command({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._data() == other._data()

    def __hash__(self) -> int:
        return hash((self.program, self.args))

    def _data(self) -> tuple[Any, ...]:
        return self.program, self.args, self.options

    def __reduce__(self) -> tuple[Any, ...]:
        return _command, self._data()

    def __copy__(self) -> Command:
        return self


def _command(program: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Command:
    return Command(program, *args, **options)


def parts_of(command: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Program, arguments and options of one among others: a Command, or a sequence."""
    if isinstance(command, Command):
        return command.program, command.args, command.options
    if isinstance(command, (tuple, list)) and command:
        return command[0], tuple(command[1:]), {}
    advice = ""
    if isinstance(command, (str, bytes, os.PathLike)):
        advice = f": give a tuple, ({command!r:.100},), or for a line shlex.split(line)"
    raise TypeError(
        "a command must be a Command, or a tuple or list of a program and its arguments, "
        f"not {command!r:.100}{advice}"
    )
