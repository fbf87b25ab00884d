"""Makes docs/python.inv: where Python's documentation has the names that our pages refer to.

    python tools/python_inventory.py

It is what Sphinx reads in place of the inventory of docs.python.org, so that the pages can be
built without a network. Names and kinds come from Python's own modules, pages from the table
below. Run it again when a reference to a name of Python's is "not found", with that name here.

The format is Sphinx's inventory, version 2: a head, then zlib's of lines "name domain:role
priority uri displayed name", where $ stands for the name and - for the same.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import sys
import zlib
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "docs" / "python.inv"

#: All public names of a module are on a page of its own name, but for these.
PAGES = {
    "asyncio": {
        "asyncio-eventloop": "AbstractEventLoop get_running_loop new_event_loop",
        "asyncio-exceptions": "CancelledError IncompleteReadError LimitOverrunError TimeoutError",
        "asyncio-future": "Future ensure_future",
        "asyncio-protocol": (
            "BaseProtocol BaseTransport ReadTransport SubprocessProtocol SubprocessTransport "
            "WriteTransport"
        ),
        "asyncio-runner": "Runner run",
        "asyncio-stream": "StreamReader StreamWriter",
        "asyncio-subprocess": "create_subprocess_exec create_subprocess_shell",
        "asyncio-sync": "Event Lock Semaphore",
        "asyncio-task": (
            "TaskGroup create_task gather run_coroutine_threadsafe shield sleep timeout wait_for"
        ),
    },
    "asyncio.subprocess": {"asyncio-subprocess": "Process"},
}
MODULES = [
    *("asyncio", "asyncio.subprocess", "logging", "os", "re", "resource", "shlex", "signal"),
    *("subprocess", "typing"),
]
#: Built-in types, which have a page together.
TYPES = [
    "bool",
    "bytearray",
    "bytes",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "memoryview",
    "range",
    "set",
    "str",
    "tuple",
]


def role(value: object) -> str:
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if callable(value) else "data"


def lines() -> list[str]:
    found = []
    for name in MODULES:
        module = importlib.import_module(name)
        found.append(f"{name} py:module 0 library/{name}.html#module-$ -")
        pages = {one: page for page, names in PAGES.get(name, {}).items() for one in names.split()}
        names = pages or {one: name for one in dir(module) if not one.startswith("_")}
        for one, page in names.items():
            value = getattr(module, one, None)
            if value is None or inspect.ismodule(value):
                continue
            found.append(f"{name}.{one} py:{role(value)} 1 library/{page}.html#$ -")
    for one, value in vars(builtins).items():
        if inspect.isclass(value) and issubclass(value, BaseException):
            found.append(f"{one} py:exception 1 library/exceptions.html#$ -")
    found += [f"{one} py:class 1 library/stdtypes.html#$ -" for one in TYPES]
    found.append("object py:class 1 library/functions.html#$ -")
    found.append("None py:data 1 library/constants.html#$ -")
    return sorted(found)


def main() -> None:
    head = "# Sphinx inventory version 2\n# Project: Python\n# Version: {}.{}\n".format(
        *sys.version_info
    )
    head += "# The remainder of this file is compressed using zlib.\n"
    text = "".join(f"{line}\n" for line in lines())
    OUT.write_bytes(head.encode() + zlib.compress(text.encode(), 9))
    print(f"{OUT}: {len(lines())} names")


if __name__ == "__main__":
    main()
