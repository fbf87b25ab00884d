"""What the soak does: jobs with a known result, drawn at random."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import aioproc
from aioproc import DEVNULL, PIPE, UNKNOWN_EXIT

SIZES = (0, 1, 100, 5000, 70_000, 300_000)


class Wrong(Exception):
    """Not the result that there must be."""


class Jobs:
    """Those of one thread."""

    def __init__(self, rng: random.Random, are_taken: bool, survive: bool, is_short: bool) -> None:
        """are_taken: somebody else waits for our children. survive: their statuses are told
        all the same. is_short: there are few descriptors."""
        self._rng = rng
        self._are_taken = are_taken
        self._survive = survive or not are_taken
        self._is_short = is_short

    def draw(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        names, weights = zip(*WEIGHTS.items(), strict=True)
        [name] = self._rng.choices(names, weights)
        return name, getattr(self, name)

    # -- what is checked

    def _status(self, found: Any, expected: int, by_popen: bool = False) -> None:
        # Popen's children are there before they are watched.
        if found is UNKNOWN_EXIT and (self._are_taken if by_popen else not self._survive):
            return
        if found != expected:
            raise Wrong(f"status {found!r}, not {expected}")

    def _same(self, found: Any, expected: Any) -> None:
        if found != expected:
            what = f"{len(found)} bytes" if isinstance(found, bytes) else repr(found)[:100]
            raise Wrong(f"output: {what}")

    def _data(self) -> bytes:
        size = self._rng.choice(SIZES)
        return self._rng.randbytes(16) * (size // 16) + b"x" * (size % 16)

    async def _moment(self) -> None:
        await asyncio.sleep(self._rng.random() * 0.003)

    # -- asyncio's

    async def waited(self) -> None:
        code = self._rng.choice([0, 1, 37, 255])
        process = await aioproc.create_subprocess_exec("/bin/sh", "-c", f"exit {code}")
        self._status(await process.wait(), code)

    async def bare(self) -> None:
        process = await aioproc.create_subprocess_exec("true")
        self._status(await process.wait(), 0)

    async def communicated(self) -> None:
        data = self._data()
        process = await aioproc.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        output, _ = await process.communicate(data)
        self._same(output, data)
        self._status(process.returncode, 0)

    async def killed(self) -> None:
        number = self._rng.choice([signal.SIGKILL, signal.SIGTERM])
        process = await aioproc.create_subprocess_exec("sleep", "1000", stdin=PIPE, stdout=PIPE)
        await self._moment()
        process.send_signal(number)
        self._status(await process.wait(), -number)

    async def cancelled(self) -> None:
        creation = asyncio.ensure_future(
            aioproc.create_subprocess_exec("sleep", "1000", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        )
        await asyncio.sleep(self._rng.random() * 0.002)
        creation.cancel()
        try:
            process = await creation
        except asyncio.CancelledError:
            return
        process.kill()
        self._status(await process.wait(), -signal.SIGKILL)

    async def missing(self) -> None:
        try:
            await aioproc.create_subprocess_exec("/nowhere/program", stdin=PIPE)
        except FileNotFoundError:
            return
        raise Wrong("started what is not there")

    async def block(self) -> None:
        async with await aioproc.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(self._data())
            await self._moment()

    async def communicated_twice(self) -> None:
        data = self._data()
        process = await aioproc.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        first = asyncio.ensure_future(process.communicate(data))
        await self._moment()
        first.cancel()
        try:
            output, _ = await first
        except asyncio.CancelledError:
            output, _ = await process.communicate()
            # Cancelled before its first step it has written nothing.
            if not output:
                return
        self._same(output, data)
        self._status(process.returncode, 0)

    async def lines(self) -> None:
        process = await aioproc.create_subprocess_exec("seq", "2000", stdout=PIPE)
        assert process.stdout is not None
        number = 0
        async for line in process.stdout:
            number += 1
            self._same(line, b"%d\n" % number)
        self._same(number, 2000)
        self._status(await process.wait(), 0)

    async def dropped(self) -> None:
        """Nobody waits for it: it is for the collector."""
        await aioproc.create_subprocess_exec("true", stdin=DEVNULL)

    async def preexec(self) -> None:
        process = await aioproc.create_subprocess_exec("true", preexec_fn=os.getpid)
        self._status(await process.wait(), 0, by_popen=True)

    # -- run()

    async def ran(self) -> None:
        data = self._data()
        done = await aioproc.run("cat", input=data, check=False)
        self._same(done.stdout, data)
        self._status(done.returncode, 0)

    async def ran_by_lines(self) -> None:
        found = []
        done = await aioproc.run(
            "seq", "300", on_line=lambda _, line: found.append(line), check=False
        )
        self._same(found, [b"%d\n" % (i + 1) for i in range(300)])
        self._status(done.returncode, 0)

    async def timed_out(self) -> None:
        """With a tree of its own, some of it out of its session."""
        command = "sleep 1000 & setsid sleep 1000 & echo up; wait"
        try:
            await aioproc.run(
                "/bin/sh", "-c", command, timeout=0.2 + self._rng.random() * 0.05, stop=0.05
            )
        except aioproc.TimeoutExpired as error:
            self._same(error.result.stdout in (b"up\n", b""), True)
            if error.result.forced != "kill":  # on a busy machine
                self._status(error.result.returncode, -signal.SIGTERM)
            return
        raise Wrong("no timeout")

    async def run_cancelled(self) -> None:
        running = asyncio.ensure_future(aioproc.run("sleep", "1000", stop=0.05))
        await self._moment()
        running.cancel()
        try:
            await running
        except asyncio.CancelledError:
            return
        raise Wrong("not cancelled")

    async def fed(self) -> None:
        pieces = [self._data() for _ in range(3)]
        done = await aioproc.run("cat", input=iter(pieces), check=False)
        self._same(done.stdout, b"".join(pieces))
        self._status(done.returncode, 0)

    async def opened(self) -> None:
        """By open_process(): it answers, and is ended with what it has started."""
        command = "sleep 1000 & exec cat"
        async with aioproc.open_process("/bin/sh", "-c", command, stop=0.05) as child:
            assert child.stdin is not None
            child.stdin.write(b"one\ntwo\n")
            self._same(await child.read_until(b"two\n"), b"one\ntwo\n")
        # By the end of its stdin, or by a signal, as the machine is busy.
        if child.returncode not in (0, -signal.SIGTERM, -signal.SIGKILL):
            self._status(child.returncode, 0)

    async def opened_lines(self) -> None:
        count = 0
        command = "seq 200; seq 100 >&2"
        async with aioproc.open_process("/bin/sh", "-c", command, stderr=PIPE) as child:
            async for _ in child.lines():
                count += 1
            self._status(await child.wait(), 0)
        self._same(count, 300)

    async def many(self) -> None:
        commands = [aioproc.Command("/bin/sh", "-c", f"echo {i}; exit {i}") for i in range(5)]
        results = await aioproc.run_all(commands, concurrency=self._rng.choice([1, 2, 5]))
        for i, result in enumerate(results):
            if result.error is not None:
                raise result.error
            self._same(result.stdout, b"%d\n" % i)
            self._status(result.returncode, i)

    async def many_halted(self) -> None:
        # With few descriptors, several of these can have taken all of them for their sleeps,
        # and each waits for room for its other command: they must end by themselves.
        seconds = "3" if self._is_short else "1000"
        commands = [aioproc.Command("sleep", seconds), aioproc.Command("false")]
        async with aioproc.run_many(commands, concurrency=2, halt="now", stop=0.05) as runs:
            async for result in runs:
                if result.error is not None:
                    raise result.error

    async def piped(self) -> None:
        data = self._data()
        done = await aioproc.pipeline(
            aioproc.Command("cat"), aioproc.Command("cat"), input=data, check=False
        )
        self._same(done.stdout, data)
        for stage in done.stages:
            self._status(stage.returncode, 0)


#: How often each is drawn.
WEIGHTS = {
    "waited": 10,
    "bare": 20,
    "communicated": 15,
    "killed": 8,
    "cancelled": 6,
    "missing": 5,
    "block": 4,
    "communicated_twice": 5,
    "lines": 4,
    "dropped": 3,
    "preexec": 1,
    "ran": 15,
    "ran_by_lines": 4,
    "timed_out": 2,
    "run_cancelled": 4,
    "fed": 4,
    "opened": 3,
    "opened_lines": 3,
    "many": 2,
    "many_halted": 2,
    "piped": 3,
}
