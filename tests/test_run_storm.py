"""Runs that are ended in every way, many at once: nobody of their trees survives, nothing of
them stays, no byte is lost. And what ends them is itself ended, refused, forked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shlex
import signal
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

if os.name == "nt":
    pytest.skip("not on Windows: signals, forks, sessions", allow_module_level=True)

from aioproc._trees.scanning import Gone, scanning
from aside import PROC, Aside, children, collect, is_alive, open_fds, settle
from conftest import FUSE, reap_orphans, run
from helpers import on_uvloop
from programs import TERMINATED, python

pytestmark = [
    pytest.mark.skipif(not PROC, reason="nobody can look without /proc"),
    pytest.mark.primary,
]
asynchronous = pytest.mark.asyncio

#: Runs at the same time.
AT_ONCE = 25

#: Does not mind SIGTERM; says so.
STUBBORN = python(
    "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "os.write(1, b'ready\\n'); signal.pause()"
)


# -- the storm


class Tree:
    """A random one, as a script. Its leader writes numbered lines, and into a file how many
    it has written by then; the others have its pipes open, or not."""

    def __init__(self, rng: random.Random, count: Path) -> None:
        self._rng = rng
        self._count = count
        lines = rng.choice([0, 1, 10, 300, 3000])
        self.script = (
            f"exec 3>{shlex.quote(str(count))}\n"
            f"{self._children(3)}{self._manners()}"
            f"i=0; while [ $i -lt {lines} ]; do echo $i; i=$((i+1)); echo $i >&3; done\n"
            + rng.choice(
                [
                    "exit 7",
                    "exit 7",
                    "exec sleep 1000",
                    "exec >&- 2>&- <&-; exec sleep 1000",
                    "cat >/dev/null; exit 7",
                    "while :; do echo $i; i=$((i+1)); echo $i >&3; sleep 0.01; done",
                    "wait; exec sleep 1000",
                ]
            )
        )

    def _manners(self) -> str:
        traps = ["", "echo bye >&2; exit 8", ":"]
        return self._rng.choice(["", "", "", *(f"trap {trap!r} TERM\n" for trap in traps)])

    def _children(self, depth: int) -> str:
        counts = {3: [0, 1, 2, 2], 2: [0, 1, 1, 2], 1: [0, 1]}[depth]
        return "".join(self._child(depth) for _ in range(self._rng.choice(counts)))

    def _child(self, depth: int) -> str:
        rng = self._rng
        body = self._children(depth - 1) if depth > 1 else ""
        body += self._manners() + rng.choice(
            [
                "exit 0",  # and those that it has started are nobody's
                "exec sleep 1000",
                "exec sleep 1000",
                "exec sleep 1000 >/dev/null 2>&1",
                "exec >&- 2>&- <&-; exec sleep 1000",
                "while :; do sleep 0.02; done",
                "sleep 0.05; setsid sleep 1000 & setsid sleep 1000 & exit 0",
                "wait; sleep 1000",
            ]
        )
        how = rng.choice(["({}) &\n", "sh -c {} &\n", "setsid sh -c {} &\n"])
        return how.format(body if how[0] == "(" else shlex.quote(body))

    def has_begun(self) -> bool:
        return self._count.exists()

    def written(self) -> bytes:
        """What the leader has written, at least."""
        try:
            said = self._count.read_text().rpartition("\n")[0].split("\n")[-1]
        except FileNotFoundError:
            return b""
        return b"".join(b"%d\n" % number for number in range(int(said or 0)))


def members(name: str) -> list[int]:
    """Who is alive of a tree."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if f"STORM={name}".encode() in environ.split(b"\0") and is_alive(int(pid)):
            found.append(int(pid))
    return found


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None  # gone by now


def end(name: str) -> None:
    """Ends those that were left, as they were to be."""
    while found := members(name):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Raised(Exception):
    """By a callback or an iterator."""


def _options(how: str, rng: random.Random) -> dict[str, Any]:
    """Of a run that is to be ended that way."""
    options: dict[str, Any] = {
        "timeout": 0.6,
        "stop": rng.choice([0, 0.02, 0.1, 0.3]),
        "drain": rng.choice([0, 0.02, 0.2]),
        "check": rng.choice([True, False]),
        "leftovers": rng.choice(["leave", "kill"]),
    }
    moment = rng.choice([0.0, 0.02, 0.1, 0.4]) * rng.random()
    if how == "timeout":
        options["timeout"] = moment
    elif how == "idle":
        options["idle_timeout"] = moment
    elif how == "callback":
        left = rng.choice([0, 1, 20, 500])
        waits = rng.choice([True, False])

        def raising(stream: str, data: bytes) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Raised
            return asyncio.sleep(0) if waits else None

        options[rng.choice(["on_line", "on_output"])] = raising
    elif how == "slow callback":
        options["timeout"] = moment
        options["on_output"] = lambda stream, data: asyncio.sleep(rng.random() * 0.2)
    elif how == "input":

        async def input() -> AsyncIterator[bytes]:
            for _ in range(rng.choice([0, 1, 20])):
                yield b"x" * 10_000
            await asyncio.sleep(moment)
            raise Raised

        options["input"] = input()
    elif how == "eof":

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 10_000
                await asyncio.sleep(0.01)

        options["input"] = endless()
        options["timeout"] = moment
        options["stop"] = [("eof", 0.05), (signal.SIGINT, 0.02), (signal.SIGTERM, 0.1)]
    return options


HOWS = ["exit", "timeout", "idle", "cancel", "cancel twice", "callback", "slow callback"]
HOWS += ["input", "eof"]


async def one(aioproc: Any, seed: int, directory: Path) -> None:
    """One run, its end, and what must be so then."""
    rng = random.Random(seed)
    name = f"{os.getpid()}-{seed}"
    tree = Tree(rng, directory / name)
    how = rng.choice(HOWS)
    options = _options(how, rng)
    result: Any = None
    try:
        try:
            result = await _run(aioproc, how, rng, name, tree, options)
        except (
            aioproc.TimeoutExpired,
            aioproc.CalledProcessError,
            asyncio.CancelledError,
            Raised,
        ) as error:
            result = aioproc.partial_result(error)
            if result is None and isinstance(error, asyncio.CancelledError):
                assert how.startswith("cancel")
                assert members(name) == []
                assert not tree.has_begun()
                return
        assert result is not None
        if result.pid is None:
            assert options["timeout"] <= 0
            return
        assert result.returncode is not None
        by_itself = result.reason in ("exit", "signal") or (
            result.reason in ("timeout", "idle") and result.forced is None
        )
        if not by_itself or options["leftovers"] == "kill":
            assert result.left is not None
            if result.left:
                # They had been killed, but on a busy machine dying may take a while.
                assert await settle(lambda: not members(name))
            assert members(name) == []
        written = tree.written()
        assert result.stdout.startswith(written), (len(result.stdout), len(written))
    except BaseException as error:
        error.args = (f"seed {seed}, {how}, {options}, {result}: {error!r}\n{tree.script}",)
        raise
    finally:
        end(name)


async def _run(
    aioproc: Any, how: str, rng: random.Random, name: str, tree: Tree, options: Any
) -> Any:
    running = asyncio.ensure_future(
        aioproc.run("sh", "-c", tree.script, env_update={"STORM": name}, **options)
    )
    if how.startswith("cancel"):
        waits = rng.random() < 0.9
        while waits and not (tree.has_begun() or running.done()):
            await asyncio.sleep(0.002)
        for _ in range(2 if how == "cancel twice" else 1):
            await asyncio.sleep(rng.choice([0.0, 0.01, 0.1]) * rng.random())
            running.cancel()
    try:
        return await running
    finally:
        del running


async def storm(aioproc: Any, seeds: range, directory: Path) -> None:
    await aioproc.run("true")
    before, kids = open_fds(), children()
    for first in range(seeds.start, seeds.stop, AT_ONCE):
        batch = range(first, min(first + AT_ONCE, seeds.stop))
        results = await asyncio.gather(
            *(one(aioproc, seed, directory) for seed in batch), return_exceptions=True
        )
        faults = [str(result) for result in results if result is not None]
        assert not faults, "\n\n".join(faults)
        assert await settle(lambda: _nothing_but(kids, before)), (batch, children(), open_fds())
    assert len(asyncio.all_tasks()) == 1


def _nothing_but(kids: set[int], fds: dict[int, str]) -> bool:
    # A port and the scanner go when they have been idle for a while.
    reap_orphans()
    return children() == kids and not open_fds().keys() - fds.keys()


@asynchronous
@pytest.mark.everywhere
async def test_runs_that_are_ended_in_every_way(aioproc: Any, tmp_path: Path) -> None:
    strategy = aioproc._backends.current().strategy
    count = 40 if strategy == "clone" and not on_uvloop() else 20
    await storm(aioproc, range(count), tmp_path)


@asynchronous
@pytest.mark.heavy
@pytest.mark.everywhere
async def test_1000_runs_that_are_ended_in_every_way(aioproc: Any, tmp_path: Path) -> None:
    await storm(aioproc, range(1000, 2000), tmp_path)


# -- what an ending meets


@asynchronous
@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_the_end_of_a_child_whose_exec_fails(
    aioproc: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Which is not known yet when the time is up."""
    for seconds in (1e-6, 1e-4, 1e-3, 1):
        running = asyncio.ensure_future(
            aioproc.run("/nowhere/nothing", timeout=seconds if how == "timeout" else None)
        )
        if how == "cancel":
            await asyncio.sleep(0)
            running.cancel()
        ends = (FileNotFoundError, asyncio.CancelledError, aioproc.TimeoutExpired)
        with pytest.raises(ends) as caught:
            await running
        if caught.type is aioproc.TimeoutExpired:
            assert caught.value.result.returncode == TERMINATED  # before its exec
        else:
            assert how == "cancel" or caught.type is FileNotFoundError
        del caught, running
    collect()
    assert not caplog.records  # no exception that nobody has retrieved


@asynchronous
async def test_a_callback_that_stays_with_the_last_words(aioproc: Any) -> None:
    """It is called while the child is being ended."""
    cancelled = []

    async def callback(stream: str, data: bytes) -> None:
        if data == b"bye\n":
            try:
                await asyncio.sleep(FUSE)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

    script = "trap 'echo bye; exit 0' TERM; echo hi; while :; do sleep 0.01; done"
    began = time.monotonic()
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run("sh", "-c", script, timeout=0.2, drain=0.1, on_line=callback)
    assert caught.value.stdout == b"hi\nbye\n"
    assert cancelled
    assert time.monotonic() - began < FUSE / 2


@asynchronous
@pytest.mark.parametrize("times", [1, 1000], ids=["once", "each round"])
async def test_all_tasks_are_cancelled(aioproc: Any, times: int) -> None:
    """As asyncio.run() does at its end, those that serve an ending among them."""
    ready = asyncio.Event()
    running = asyncio.ensure_future(
        aioproc.run(*STUBBORN, on_output=lambda stream, data: ready.set(), stop=FUSE)
    )
    await ready.wait()
    running.cancel()
    await asyncio.sleep(0)
    while not running.done():
        for task in asyncio.all_tasks() - {asyncio.current_task()} if times else ():
            task.cancel()
        times -= times > 0
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError) as caught:
        await running
    result = aioproc.partial_result(caught.value)
    assert result.returncode == -signal.SIGKILL
    assert result.stdout == b"ready\n"
    assert result.complete


# -- a coroutine that is closed, or dropped

#: Does not mind SIGTERM, and tells of it; so do one in its group and one in a session of its
#: own. Each writes its pid.
FAMILY = """
member="trap : TERM; echo \\$\\$; while :; do sleep 1000 >/dev/null 2>&1 & wait; done"
sh -c "$member" &
setsid sh -c "$member" &
trap 'echo term' TERM
echo $$
while :; do sleep 1000 >/dev/null 2>&1 & wait $!; done
"""
LEAVES_FAMILY = FAMILY.partition("trap")[0].strip() + "\necho $$\nsleep 0.05; exit 0"


@types.coroutine
def some_steps(coroutine: Coroutine[Any, Any, Any], count: int) -> Generator[Any, None, bool]:
    """So many of its awaits. Whether it goes on."""
    for _ in range(count):
        try:
            future = coroutine.send(None)
        except BaseException:
            return False
        yield future
    return True


@asynchronous
async def test_closed_in_the_grace(aioproc: Any, family: list[int]) -> None:
    """What it waited for is not waited for any more."""

    def on_line(stream: str, line: bytes) -> None:
        if line != b"term\n":
            family.append(int(line))

    coroutine = aioproc.run("sh", "-c", FAMILY, timeout=0.2, stop=FUSE, on_line=on_line)

    async def steps() -> None:
        await some_steps(coroutine, 1000)

    task = asyncio.ensure_future(steps())
    assert await settle(lambda: any(isinstance(one, Gone) for one in scanning._requests))
    coroutine.close()
    task.cancel()
    assert await settle(lambda: len(asyncio.all_tasks()) == 1, FUSE / 3), asyncio.all_tasks()


@asynchronous
@pytest.mark.parametrize("how", ["timeout", "leftovers", "callback"])
async def test_closed_at_each_stage(
    aioproc: Any, how: str, family: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    await aioproc.run("true")
    before, kids = open_fds(), children()
    steps = 0
    goes_on = True
    while goes_on:
        name = f"{os.getpid()}-{how}-{steps}"
        options: dict[str, Any] = {"env_update": {"STORM": name}, "stop": 0.03, "drain": 0.02}
        if how == "callback":
            options["on_line"] = lambda stream, line: asyncio.sleep(0.001)
        script = LEAVES_FAMILY if how == "leftovers" else FAMILY
        if how == "leftovers":
            options["leftovers"] = "kill"
        else:
            options["timeout"] = 0.1
        coroutine = aioproc.run("sh", "-c", script, **options)
        goes_on = await some_steps(coroutine, steps)
        coroutine.close()
        del coroutine
        if not goes_on:
            assert members(name) == []
        # Those in other sessions are not looked for.
        leaders = [pid for pid in members(name) if session_of(pid) in kids | children()]
        assert await settle(lambda: not any(map(is_alive, leaders)))  # noqa: B023
        end(name)
        assert await settle(lambda: len(asyncio.all_tasks()) == 1, 1), asyncio.all_tasks()
        assert await settle(lambda: _nothing_but(kids, before)), (steps, children(), open_fds())
        steps += 1
    assert steps > 3
    assert not caplog.records


# -- programs that are interrupted, closed, forked in the midst of an ending

PROGRAM = """
import resource
script, = sys.argv[1:2]
pids, ready, term = [], threading.Event(), threading.Event()
def on_line(stream, line):
    if line == b"term\\n":
        term.set()
    else:
        pids.append(int(line))
        if len(pids) == 3:
            ready.set()
def reap_orphans():
    # As every spawn does.
    if subject in ("clone", "portable"):
        from aioproc._backends.posix import native as posix
        posix.reap_orphans()
    else:
        from aioproc._backends import pure
        pure.orphans.reap()
from aside import is_alive
def alive():
    return [pid for pid in pids if is_alive(pid)]
def wait(condition, what):
    end = time.monotonic() + 20
    while not condition():
        collect()
        reap_orphans()
        state = what, children(), alive(), open_fds(), threading.enumerate()
        assert time.monotonic() < end, state
        time.sleep(0.001)
def clean(but=0):
    "Nothing is left, but for those out of the child's group."
    wait(lambda: not children(), "children")
    wait(lambda: len(alive()) <= but, "survivors")
    wait(lambda: open_fds().keys() <= before.keys(), "descriptors")
    wait(lambda: threading.enumerate() == [threading.main_thread()], "threads")
    for pid in alive():
        # With what it has started: it leads a group of its own.
        assert os.getpgid(pid) == pid
        os.killpg(pid, signal.SIGKILL)
    print("clean")
run(aioproc.run("true"))
collect()
before = open_fds()
"""

INTERRUPTED = (
    PROGRAM
    + """
times, gap = int(sys.argv[2]), float(sys.argv[3])
over = threading.Event()
def interrupt():
    ready.wait()
    os.kill(os.getpid(), signal.SIGINT)
    if times > 1: term.wait()
    for _ in range(times - 1):
        if not over.is_set(): os.kill(os.getpid(), signal.SIGINT)
        time.sleep(gap)
async def main():
    try:
        await aioproc.run(
            "sh", "-c", script, on_line=on_line, stop=60 if times > 1 else 0.1)
    except asyncio.CancelledError as error:
        result = aioproc.partial_result(error)
        assert result.returncode == -9, result
        assert result.left == [], result
        assert alive() == []
        os.write(1, b"ended\\n")  # in one piece: print() may be interrupted before the line's end
        raise
thread = threading.Thread(target=interrupt)
thread.start()
try:
    try:
        run(main())
    finally:
        over.set()
        thread.join()
except KeyboardInterrupt:
    pass
try:
    thread.join()
except KeyboardInterrupt:
    thread.join()
"""
)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(aside: Aside, times: int) -> None:
    # One in the midst of add_reader() leaves the descriptor in the epoll: it cannot be added.
    quiet = "logging.getLogger('aioproc').setLevel(logging.ERROR)\n"
    said = aside.run(quiet + INTERRUPTED + "clean()", FAMILY, times, 0)
    assert said.split() == ["ended", "clean"]


@pytest.mark.parametrize("gap", [0, 0.0003, 0.001, 0.003, 0.01])
def test_ctrl_c_again_and_again(aside: Aside, gap: float) -> None:
    """The third may end the loop with all that was to be done in it."""
    if aside.loop == "uvloop":
        pytest.skip("in the midst of uvloop's own code it leaves a loop that cannot be closed")
    quiet = (
        "logging.disable(); warnings.simplefilter('ignore')\n"
        # The loop's own, when its close() has been interrupted. Python 3.14 has the function in
        # the text alone.
        "report = sys.unraisablehook\n"
        "def hook(found):\n"
        "    where = repr(asyncio.BaseEventLoop.__del__)\n"
        "    if where not in (found.err_msg or repr(found.object)): report(found)\n"
        "sys.unraisablehook = hook\n"
    )
    said = aside.run(quiet + INTERRUPTED + "clean(but=1)", FAMILY, 6, gap)
    assert said.split()[-1] == "clean"


CLOSED = (
    PROGRAM
    + """
logging.disable()  # Task was destroyed but it is pending!
loop = asyncio.new_event_loop() if os.environ["ASIDE_LOOP"] == "asyncio" else \
    __import__("uvloop").new_event_loop()
async def main():
    global task
    task = asyncio.ensure_future(
        aioproc.run("sh", "-c", script, on_line=on_line, stop=60))
    await settle(ready.is_set)
    if sys.argv[2] == "grace":
        task.cancel()
        await settle(term.is_set)
loop.run_until_complete(main())
assert len(alive()) == 3
loop.close()
del loop, task
clean(but=1)
"""
)


@pytest.mark.parametrize("stage", ["life", "grace"])
def test_a_loop_that_is_closed(aside: Aside, stage: str) -> None:
    assert aside.run(CLOSED, FAMILY, stage) == "clean\n"


FORKED = (
    PROGRAM
    + """
warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads
how = sys.argv[2]
def fork():
    pid = os.fork()
    if not pid:
        collect()
        os.close(1)
        if how == "thread":
            # There sys.exit() ends the thread alone: what else an exit does.
            import atexit
            atexit._run_exitfuncs()
            os._exit(0)
        logging.disable()
        if sys.version_info >= (3, 14):
            # Nobody is in the loop there now, and it would swallow the SystemExit.
            asyncio._set_running_loop(loop)
            asyncio.tasks._enter_task(loop, current)
        sys.exit(0)
    return pid
async def main():
    global loop, current
    loop, current = asyncio.get_running_loop(), asyncio.current_task()
    task = asyncio.ensure_future(
        aioproc.run("sh", "-c", script, on_line=on_line, stop=60))
    await settle(ready.is_set)
    if sys.argv[3] == "grace":
        task.cancel()
        await settle(term.is_set)
    if how == "thread":
        forked = []
        thread = threading.Thread(target=lambda: forked.append(fork()))
        thread.start()
        thread.join()
        pid, = forked
    else:
        pid = fork()
    deadline = time.monotonic() + 30
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
    assert ended[1] == 0, ended
    assert len(alive()) == 3, alive()
    if sys.argv[3] == "life":
        task.cancel()
        await settle(term.is_set)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError as error:
        result = aioproc.partial_result(error)
    assert result.returncode == -9, result
    assert result.complete, result
    assert result.left == [], result
run(main())
clean()
"""
)


@pytest.mark.parametrize("how", ["thread", "loop"])
@pytest.mark.parametrize("stage", ["life", "grace"])
def test_a_fork(aside: Aside, how: str, stage: str) -> None:
    """The forked process ends like any other, and lets its parent's children be."""
    if how == "loop" and aside.loop == "uvloop":
        pytest.skip(
            "a copy of libuv's loop aborts in the forked process, or disturbs the parent's"
        )
    assert aside.run(FORKED, FAMILY, how, stage) == "clean\n"


SHORT = (
    PROGRAM
    + """
what, when = sys.argv[2:4]
limits = {
    "descriptors": (resource.RLIMIT_NOFILE, lambda: max(open_fds()) + 1),
    "a limit that is passed already": (resource.RLIMIT_NOFILE, lambda: 3),
    # No thread can be made, to begin with.
    "memory": (resource.RLIMIT_AS, lambda: int(open("/proc/self/statm").read().split()[0]) * 4096),
    "processes": (resource.RLIMIT_NPROC, lambda: 0),
}
if what == "processes":
    os.setuid(65534)
if when == "life" or "limit" in what:
    # Nobody can look, perhaps, which is tried for so long.
    from aioproc._trees import scanning
    scanning.KILL_TIME = 0.2
async def main():
    task = asyncio.ensure_future(
        aioproc.run("sh", "-c", script, on_line=on_line, stop=60 if when == "grace" else 0.3))
    await settle(ready.is_set)
    if when == "grace":
        task.cancel()
        await settle(term.is_set)
    limit, value = limits[what]
    value = value()
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value, hard))
    taken = []
    while limit == resource.RLIMIT_NOFILE:
        try:
            taken.append(os.dup(0))
        except OSError:
            break
    task.cancel()
    began = time.monotonic()
    try:
        await task
    except asyncio.CancelledError as error:
        result = aioproc.partial_result(error)
    finally:
        resource.setrlimit(limit, (soft, hard))
        for fd in taken:
            os.close(fd)
    assert time.monotonic() - began < 5
    assert result.returncode == -9, result
    assert pids[-1] and result.stdout.count(b"\\n") == 3 + term.is_set(), result
    print("none" if result.left == [] else "some")
    # The one in a session of its own is there if nobody could look, or get at it.
    assert len(alive()) <= (result.left != []), (result, alive())
run(main())
clean(but=1)
"""
)


@pytest.mark.parametrize("when", ["life", "grace"])
@pytest.mark.parametrize(
    "what", ["descriptors", "a limit that is passed already", "memory", "processes"]
)
def test_an_ending_without(aside: Aside, what: str, when: str) -> None:
    if what == "processes" and os.geteuid() != 0:
        pytest.skip("needs root, to be nobody then")
    left, clean = aside.run(SHORT, FAMILY, what, when).split()
    assert clean == "clean"
    # In a grace there is all that is needed.
    assert left == "none" or when == "life" or "limit" in what


# -- in other threads


@pytest.mark.parametrize("threads", [3])
def test_loops_of_threads(
    aioproc: Any, new_loop: Callable[[], Any], threads: int, tmp_path: Path
) -> None:
    """Each has its storm; one thread looks for the members of all."""

    def work(number: int) -> None:
        async def main() -> None:
            first = 3000 + number * 100
            results = await asyncio.gather(
                *(one(aioproc, seed, tmp_path) for seed in range(first, first + 6)),
                return_exceptions=True,
            )
            faults.extend(str(result) for result in results if result is not None)

        try:
            run(new_loop, main())
        except BaseException as error:
            faults.append(repr(error))

    faults: list[str] = []
    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not faults, "\n\n".join(faults)
