"""run() and its endings, by sequences that hypothesis makes up, against a model: what the child
has written, which processes it has started, how it minds SIGTERM; and then what the result says,
and who lives."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shlex
import signal
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="needs hypothesis")

import hypothesis.strategies as st
from hypothesis.stateful import precondition, rule

from aside import PROC, is_alive, settle
from programs import WINDOWS
from stateful import FUSE, Machine, explore

if WINDOWS:
    pytest.skip("not on Windows: a shell, signals, sessions", allow_module_level=True)

pytestmark = pytest.mark.skipif(not PROC, reason="nobody can look without /proc")

Loop = asyncio.AbstractEventLoop

#: Does what it is told by one pipe, and says so by another.
OBEYS = 'exec 8<"$1" 9>"$2"; while read -r line <&8; do eval "$line"; echo done >&9; done'

_numbers = itertools.count()


def members(mark: str) -> list[int]:
    """Who is alive of what a run has started, and the child itself."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            environ = Path(f"/proc/{name}/environ").read_bytes()
        except OSError:
            continue
        if mark.encode() in environ.split(b"\0") and is_alive(int(name)):
            found.append(int(name))
    return found


class Runs(Machine):
    """One run after the other, each child told what to do, and then an ending."""

    def __init__(self, aioproc: Any, loop: Loop) -> None:
        super().__init__(loop)
        self.aioproc = aioproc
        self.running: asyncio.Future[Any] | None = None

    @precondition(lambda self: not self.is_running)
    @rule(
        how=st.sampled_from([("leave", True), ("kill", True), ("leave", False)]),
        listens=st.booleans(),
        patient=st.booleans(),
    )
    def start(self, how: tuple[str, bool], listens: bool, patient: bool) -> None:
        self.mark = f"STATEFUL={os.getpid()}.{next(_numbers)}"
        self.output = {1: b"", 2: b""}
        #: Of those that the child has started: all, who has its pipes, who minds no SIGTERM.
        self.others = self.holders = self.stubborn = 0
        self.child_is_stubborn = self.raises = False
        self.directory = tempfile.TemporaryDirectory()
        paths = [os.path.join(self.directory.name, name) for name in ("orders", "answers")]
        for path in paths:
            os.mkfifo(path)
        # Both ways, so that nobody waits for the other to open it.
        self.orders, self.answers = (os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in paths)
        self.leftovers, self.tree = how
        self.listens = listens
        #: There is time for all who mind SIGTERM, and so there is to be nobody else.
        self.patient = patient
        name, _, value = self.mark.partition("=")
        options: dict[str, Any] = {"on_output": self.hear} if listens else {}
        self.running = asyncio.ensure_future(
            self.aioproc.run(
                *("/bin/sh", "-c", OBEYS, "sh", *paths),
                leftovers=self.leftovers,
                tree=self.tree,
                stop=FUSE if patient else 0.03,
                drain=0.02,
                check=False,
                env_update={name: value},
                **options,
            ),
            loop=self.loop,
        )
        self.order(":")

    def hear(self, stream: str, data: bytes) -> None:
        if self.raises:
            raise LookupError("enough")

    def order(self, command: str) -> None:
        """Returns when it has been done."""

        async def order() -> None:
            answered = self.loop.create_future()
            self.loop.add_reader(self.answers, lambda: answered.done() or answered.set_result(0))
            os.write(self.orders, command.encode() + b"\n")
            try:
                await answered
            finally:
                self.loop.remove_reader(self.answers)
            assert os.read(self.answers, 100) == b"done\n"

        self.do(order())

    @property
    def is_running(self) -> bool:
        return self.running is not None

    # -- what the child does

    @precondition(lambda self: self.is_running)
    @rule(fd=st.sampled_from([1, 2]), size=st.sampled_from([1, 1000, 70_000]))
    def write(self, fd: int, size: int) -> None:
        self.output[fd] += b"0" * size
        self.order(f"printf '%0{size}d' 0 >&{fd}")

    @precondition(lambda self: self.is_running and not self.patient)
    @rule()
    def mind_no_term(self) -> None:
        self.child_is_stubborn = True
        self.order("trap '' TERM")

    @precondition(lambda self: self.is_running and self.others < 4)
    @rule(holds=st.booleans(), minds=st.booleans(), leaves=st.sampled_from(["", "setsid "]))
    def beget(self, holds: bool, minds: bool, leaves: str) -> None:
        """A process of its own, which goes on."""
        minds = minds or self.patient
        self.others += 1
        self.holders += holds
        # What is ignored is inherited.
        self.stubborn += not minds or self.child_is_stubborn
        up = os.path.join(self.directory.name, f"up{self.others}")
        os.mkfifo(up)
        trap = "" if minds else "trap '' TERM; "
        body = f"{trap}echo up >{up}; exec sleep 1000"
        pipes = "" if holds else ">/dev/null 2>&1"
        command = f"{leaves}sh -c {shlex.quote(body)} {pipes} 8<&- 9>&- </dev/null"
        self.order(f"{command} & read -r _ <{up}")

    # -- how it ends

    def end(self) -> Any:
        """Waits for that; the result, or what was raised."""
        running, self.running = self.running, None
        assert running is not None

        async def end() -> Any:
            await asyncio.wait([running])
            if running.cancelled():
                with pytest.raises(asyncio.CancelledError) as info:
                    await running
                return info.value
            return running.exception() or running.result()

        result = self.do(end())
        if isinstance(result, BaseException):
            result = self.aioproc.partial_result(result)
            assert result is not None
        assert result.stdout == self.output[1]
        assert result.stderr == self.output[2]
        return result

    def live(self, expected: int) -> None:
        def as_expected() -> bool:
            return len(members(self.mark)) == expected

        assert self.do(settle(as_expected, FUSE / 2)), f"{members(self.mark)}, not {expected}"
        self.forget()

    @precondition(lambda self: self.is_running)
    @rule(code=st.sampled_from([0, 7]))
    def exit(self, code: int) -> None:
        os.write(self.orders, b"exit %d\n" % code)
        result = self.end()
        assert (result.reason, result.returncode) == ("exit", code)
        if not self.holders:
            assert result.complete
        if self.leftovers == "kill":
            assert result.left == []
            self.live(0)
        else:
            assert result.forced is None
            assert result.complete == (not self.holders)
            self.live(self.others)

    @precondition(lambda self: self.is_running)
    @rule()
    def die(self) -> None:
        os.write(self.orders, b"kill -KILL $$\n")
        result = self.end()
        assert (result.reason, result.signal) == ("signal", signal.SIGKILL)
        self.live(0 if self.leftovers == "kill" else self.others)

    @precondition(lambda self: self.is_running)
    @rule(times=st.sampled_from([1, 1, 2]))
    def cancel(self, times: int) -> None:
        assert self.running is not None
        for _ in range(times):
            self.running.cancel()
            self.turns(1)
        result = self.end()
        assert result.reason == "cancelled"
        self.is_ended(result, hurried=times == 2)

    @precondition(lambda self: self.is_running and self.listens)
    @rule()
    def raise_from_callback(self) -> None:
        self.raises = True
        self.output[1] += b"last"
        os.write(self.orders, b"printf last\n")
        result = self.end()
        assert result.reason == "error"
        assert isinstance(result.error, LookupError)
        self.is_ended(result)

    def is_ended(self, result: Any, hurried: bool = False) -> None:
        stubborn = self.child_is_stubborn or (self.tree and self.stubborn)
        if stubborn:
            assert result.forced == "kill"
        elif self.patient and not hurried:
            assert (result.forced, result.signal) == ("stop", signal.SIGTERM)
        if self.child_is_stubborn:
            assert result.signal == signal.SIGKILL
        if self.tree:
            assert result.left == []
            self.live(0)
        else:
            self.live(self.others)

    def forget(self) -> None:
        """The run is over."""
        while found := members(self.mark):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        os.close(self.orders)
        os.close(self.answers)
        self.directory.cleanup()

    def teardown(self) -> None:
        if self.running is not None:
            self.cancel(1)


@pytest.mark.parametrize("examples", [6, pytest.param(300, marks=pytest.mark.heavy)])
def test_runs(aioproc: Any, any_loop: Callable[[], Loop], examples: int) -> None:
    explore(partial(Runs, aioproc), any_loop, examples, 8)
