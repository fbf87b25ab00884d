"""Runs the examples of a page, one after the other, as one reader would: examples.py PAGE

A page's Python is one namespace and one event loop. What has an ``await`` outside of a function
runs as it does in ``python -m asyncio``. Prints as JSON what each example printed, with its line
and what the page says that it prints (None: nothing is said of that). A sys.exit() prints its
code.

    ```python             is run
    ```python windows     on Windows only
    ```python pytest      is for pytest: given to it by test_docs.py
    <!-- python ... -->   is run and not shown
    ```text               what the example above it prints
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^(?:```|<!-- (?=python))([\w-]+) ?([\w ]*)\n(.*?)^(?:```|-->)$", re.M | re.S)


@dataclass
class Example:
    line: int
    words: list[str]
    code: str
    expected: str | None = None
    printed: str = ""
    error: str = ""

    @property
    def is_for_this_system(self) -> bool:
        return ("windows" in self.words) == (os.name == "nt")


def examples(page: Path) -> list[Example]:
    text = page.read_text(encoding="utf-8")
    found: list[Example] = []
    end = 0
    for match in FENCE.finditer(text):
        language, words, body = match.groups()
        if language == "python":
            line = text.count("\n", 0, match.start(3)) + 1
            found.append(Example(line, words.split(), body))
        elif language == "text" and found and not text[end : match.start()].strip():
            found[-1].expected = body
        end = match.end()
    return found


class Output:
    """What is written to our stdout, by children too."""

    def __enter__(self) -> Output:
        sys.stdout.flush()
        self.file = tempfile.TemporaryFile()
        self.saved = os.dup(1)
        os.dup2(self.file.fileno(), 1)
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        os.dup2(self.saved, 1)
        os.close(self.saved)
        self.file.seek(0)
        self.text = self.file.read().decode("utf-8", "replace").replace("\r\n", "\n")
        self.file.close()


def run(page: Path) -> list[Example]:
    done = []
    namespace: dict[str, Any] = {"__name__": "__main__"}
    loop = asyncio.new_event_loop()
    try:
        for example in examples(page):
            if "pytest" in example.words or not example.is_for_this_system:
                continue
            done.append(example)
            # So that a traceback names the page's line.
            code: Any = compile(
                "\n" * (example.line - 1) + example.code,
                str(page),
                "exec",
                flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                dont_inherit=True,
            )
            with Output() as output:
                try:
                    if code.co_flags & inspect.CO_COROUTINE:
                        loop.run_until_complete(eval(code, namespace))
                    else:
                        exec(code, namespace)
                except SystemExit as end:
                    print(f"exit code {end.code}")
                except Exception:
                    example.error = traceback.format_exc()
            example.printed = output.text
            if example.error:
                break
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    return done


if __name__ == "__main__":
    print(json.dumps([asdict(example) for example in run(Path(sys.argv[1]))]))
