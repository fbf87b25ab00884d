"""What the tests of endings have in common, on POSIX and on Windows: who is to be ended, and
when. conftest.py has the fixtures for all files."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from aioproc import _backends
from aioproc._run import attempts
from aioproc._run.run import Run
from aside import is_alive
from aside import settle_now as settle
from programs import WINDOWS

#: Seconds; a fuse.
FUSE = 30


def has_jobs() -> bool:
    """Whether a tree is known, on Windows."""
    return _backends.current().name == "native"


def gone(pid: int) -> bool:
    return settle(lambda: not is_alive(pid))


def end(pids: Iterable[int]) -> None:
    """Ends whoever is left of them."""
    for pid in pids:
        if is_alive(pid):
            os.kill(pid, signal.SIGTERM if WINDOWS else signal.SIGKILL)
    if WINDOWS:  # its last handles are gone with it, which the guards look for
        assert all(map(gone, pids))


@pytest.fixture
def family() -> Iterator[list[int]]:
    """Pids; whoever is left of them ends with the test."""
    pids: list[int] = []
    yield pids
    end(pids)


class Heard:
    """What a command says by its first line: pids. Whoever is left of them ends with the
    test."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.came = asyncio.Event()

    def __call__(self, stream: str, line: Any) -> None:
        if not self.pids:
            self.pids += map(int, line.split())
            self.came.set()


@pytest.fixture
def heard() -> Iterator[Heard]:
    one = Heard()
    yield one
    end(one.pids)


def pids_in(result: Any) -> list[int]:
    """What it has said by its first line."""
    return [int(pid) for pid in result.stdout.split(b"\n")[0].split()]


class Clock:
    """Says when time is up: when the command has given its word."""

    def __init__(self) -> None:
        self.runs: list[Any] = []

    @property
    def run(self) -> Any:
        return self.runs[-1]

    async def word_came(self) -> None:
        raise NotImplementedError

    async def time_is_up(self, running: Any) -> Any:
        """The TimeoutExpired of a run."""
        task = asyncio.ensure_future(running)
        await self.word_came()
        self.run._time_is_up()
        with pytest.raises(TimeoutError) as caught:
            await asyncio.wait_for(task, FUSE)
        return caught.value

    def record(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Gets hold of what run() makes."""
        runs = self.runs

        class Recorded(Run):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                runs.append(self)

        monkeypatch.setattr(attempts, "Run", Recorded)
