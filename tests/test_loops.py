"""Loops one after another, several at once, loops that end while a child lives."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aside import Aside, children, collect, open_fds, settle
from conftest import Loop, is_alive, loops, reap_orphans, run
from conftest import settle as settle_now
from programs import CAT, KILLED, SLEEP, TERMINATED, TRUE, WINDOWS, ends, sh

Factory = Callable[[], Loop]

#: How many loops in a row. Under Wine a child takes its time.
in_a_row = pytest.mark.parametrize(
    "count", [30 if WINDOWS else 60, pytest.param(300, marks=pytest.mark.heavy)]
)
pytestmark = pytest.mark.every_pair
COPY_AND_END = "sys.stdout.buffer.write(sys.stdin.buffer.read()); sys.exit({})"


@contextmanager
def noted() -> Iterator[list[str]]:
    """What is warned of, and what goes wrong where nobody can catch it."""
    notes: list[str] = []
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: notes.append(f"traceback: {unraisable.exc_value!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, category, *rest: notes.append(category.__name__)
            yield notes
            collect()
    finally:
        sys.unraisablehook = hook


@in_a_row
def test_many_loops_in_a_row(aioproc: Any, new_loop: Factory, count: int) -> None:
    async def main() -> None:
        process = await aioproc.create_subprocess_exec(*TRUE)
        assert await process.wait() == 0

    threads = threading.active_count()
    run(new_loop, main())
    fds = len(open_fds())
    for _ in range(count):
        run(new_loop, main())
    assert settle_now(lambda: len(open_fds()) <= fds)
    # The polling thread, where there is one, ends a moment after the last child.
    assert settle_now(lambda: threading.active_count() <= threads)


@in_a_row
def test_many_loops_that_each_leave_a_child(aioproc: Any, new_loop: Factory, count: int) -> None:
    async def main() -> None:
        await aioproc.create_subprocess_exec(*SLEEP, stdout=aioproc.PIPE)

    fds, threads = len(open_fds()), threading.active_count()

    def nothing_more() -> bool:
        collect()  # again: on Windows the port's thread looks whether the loop has closed
        reap_orphans()
        return len(open_fds()) <= fds

    with noted() as notes:
        for i in range(count):
            run(new_loop, main())
            if i % 50 == 49 or i == count - 1:
                assert settle_now(nothing_more)
    # One each, for a transport that nobody closed.
    assert set(notes) == {"ResourceWarning"}
    assert len(notes) <= count
    assert settle_now(lambda: threading.active_count() <= threads)
    # The guard of conftest.py sees that every child is gone.


def close(loop: Loop) -> None:
    """As hasty programs do."""
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.parametrize("hastily", [True, False], ids=["hastily", "properly"])
def test_a_child_outlives_its_loop(aioproc: Any, new_loop: Factory, hastily: bool) -> None:
    async def main() -> Any:
        return await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)

    if hastily:
        loop = new_loop()
        process = loop.run_until_complete(main())
        close(loop)
    else:
        process = run(new_loop, main())
    assert process.returncode is None
    if not WINDOWS:  # where it is CTRL_C_EVENT
        process.send_signal(0)
    process.terminate()
    assert settle_now(lambda: process.returncode is not None)
    assert process.returncode == TERMINATED
    with pytest.raises(ProcessLookupError):
        process.kill()
    assert process.pid not in children()
    with noted() as notes:
        process = None
    assert notes in ([], ["ResourceWarning"])


@pytest.mark.parametrize("hastily", [True, False], ids=["hastily", "properly"])
def test_a_live_process_is_dropped_after_its_loop(
    aioproc: Any, new_loop: Factory, hastily: bool
) -> None:
    async def main() -> Any:
        return await aioproc.create_subprocess_exec(
            *CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE, stderr=aioproc.PIPE
        )

    async def other() -> None:
        process = await aioproc.create_subprocess_exec(*TRUE)
        assert await process.wait() == 0

    with noted() as notes:
        if hastily:
            loop = new_loop()
            process = loop.run_until_complete(main())
            close(loop)
            del loop
        else:
            process = run(new_loop, main())
        del process
        run(new_loop, other())  # finds the closed loop and lets go of what it had
    assert notes == ["ResourceWarning"]


def test_another_loop_reaps_what_one_left(aioproc: Any, new_loop: Factory) -> None:
    """Who still holds the process is told how it ended."""

    async def leave() -> list[Any]:
        count = 20 if WINDOWS else 100
        return [
            await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE) for _ in range(count)
        ]

    async def other() -> None:
        for _ in range(10):
            process = await aioproc.create_subprocess_exec(*TRUE)
            assert await process.wait() == 0

    left: Any = run(new_loop, leave())
    for process in left:
        process.terminate()
    assert settle_now(lambda: run(new_loop, other()) or not {p.pid for p in left} & children())
    assert {process.returncode for process in left} == {TERMINATED}
    with noted():
        left = process = None


def test_generators_are_shut_down_in_the_middle(aioproc: Any, new_loop: Factory) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        early = await aioproc.create_subprocess_exec(
            *sh("cat; exit 7", COPY_AND_END.format(7)), stdin=aioproc.PIPE, stdout=aioproc.PIPE
        )
        ended = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE)
        waiting = [loop.create_task(process.wait()) for process in (early, ended)]
        starting = loop.create_task(aioproc.create_subprocess_exec(*TRUE))
        failing = loop.create_task(aioproc.create_subprocess_exec(__file__))
        await asyncio.sleep(0)
        await loop.shutdown_asyncgens()
        # One ends while nobody watches it, and its status is taken by the next spawn.
        ended.terminate()
        end = time.monotonic() + 10
        while time.monotonic() < end and ended.returncode is None and ended.pid in children():
            late = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE)
            assert late.returncode is None
            late.stdin.close()
            assert await late.wait() == 0
        assert await (await starting).wait() == 0
        with pytest.raises(OSError, match=r"193|denied"):  # 193: no executable
            await failing
        assert await waiting[1] == TERMINATED
        ended.stdin.close()
        assert not waiting[0].done()
        assert await early.communicate(b"x") == (b"x", None)
        assert await waiting[0] == 7
        await loop.shutdown_asyncgens()  # a second time: there is no guard any more
        late = await aioproc.create_subprocess_exec(*TRUE)
        assert await late.wait() == 0

    async def other() -> None:
        await (await aioproc.create_subprocess_exec(*TRUE)).wait()

    run(new_loop, asyncio.wait_for(main(), 30))
    run(new_loop, other())  # without a guard the port is closed by the next spawn


def test_several_loops_in_several_threads(request: pytest.FixtureRequest, aioproc: Any) -> None:
    kinds = list(loops(request.config).values())
    codes: list[int] = []
    count = 10 if WINDOWS else 50

    async def one(i: int) -> int:
        process = await aioproc.create_subprocess_exec(
            *sh(f"cat; exit {i}", COPY_AND_END.format(i)), stdin=aioproc.PIPE, stdout=aioproc.PIPE
        )
        output, _ = await process.communicate(b"%d" % i)
        assert output == b"%d" % i
        return process.returncode  # type: ignore[no-any-return]

    async def main() -> list[int]:
        found = []
        for start in range(0, count, 10):
            found += await asyncio.gather(*map(one, range(start, start + 10)))
        return found

    threads = [
        threading.Thread(target=lambda n=n: codes.extend(run(kinds[n % len(kinds)], main())))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == sorted([*range(count)] * 4)


def test_a_thread_ends_while_its_child_lives(aioproc: Any, new_loop: Factory) -> None:
    left: list[Any] = []

    async def main() -> None:
        left.append(await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE))

    thread = threading.Thread(target=lambda: run(new_loop, main()))
    thread.start()
    thread.join()
    assert left[0].returncode is None
    left[0].terminate()
    assert settle_now(lambda: left[0].returncode is not None)
    assert left[0].returncode == TERMINATED
    with noted():
        left.clear()


def test_debug_mode(aioproc: Any, new_loop: Factory) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_debug(True)
        process = await aioproc.create_subprocess_exec(
            *CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE
        )
        assert await process.communicate(b"x" * 300_000) == (b"x" * 300_000, None)
        process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE)
        process.kill()
        assert await process.wait() == KILLED
        process.stdin.close()
        with pytest.raises(FileNotFoundError):
            await aioproc.create_subprocess_exec("/nowhere/nothing")

    run(new_loop, main())


def test_from_callbacks(aioproc: Any, new_loop: Factory) -> None:
    async def one(done: asyncio.Future[int]) -> None:
        process = await aioproc.create_subprocess_exec(*ends(7))
        done.set_result(await process.wait())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        tasks: list[Any] = []
        done = [loop.create_future() for _ in range(3)]
        loop.call_soon(lambda: tasks.append(loop.create_task(one(done[0]))))
        loop.call_later(0.001, lambda: tasks.append(loop.create_task(one(done[1]))))
        thread = threading.Thread(
            target=loop.call_soon_threadsafe,
            args=(lambda: tasks.append(loop.create_task(one(done[2]))),),
        )
        thread.start()
        assert await asyncio.gather(*done) == [7, 7, 7]
        await asyncio.gather(*tasks)
        thread.join()

    run(new_loop, main())


def test_an_idle_loop_holds_nothing(
    aioproc: Any, new_loop: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioproc._backends.watcher.LINGER", 0.01)

    async def main() -> None:
        fds = set(open_fds())
        for _ in range(2):
            process = await aioproc.create_subprocess_exec(*TRUE)
            assert await process.wait() == 0
            assert await settle(lambda: set(open_fds()) == fds)

    run(new_loop, main())


# -- what is not touched, in a process of its own

UNTOUCHED = """
def refuse(*args, **kwds):
    raise AssertionError("touched")
for where in (asyncio, asyncio.events, getattr(asyncio, "unix_events", asyncio)):
    for name in ("get_child_watcher", "set_child_watcher"):
        if name in vars(where):
            setattr(where, name, refuse)
async def main():
    # asyncio.run and uvloop have set what they want by now.
    signal.signal = signal.set_wakeup_fd = refuse
    asyncio.get_event_loop_policy = asyncio.set_event_loop_policy = refuse
    asyncio.events.get_event_loop_policy = asyncio.events.set_event_loop_policy = refuse
    process = await aioproc.create_subprocess_shell(
        shell("cat", "exit 7"), stdin=aioproc.PIPE, stdout=aioproc.PIPE, stderr=aioproc.PIPE)
    assert await process.communicate(b"x") == (b"x", b"")
    async with await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE) as process:
        pass
    assert WINDOWS or signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    signal.signal, signal.set_wakeup_fd = keep
    asyncio.get_event_loop_policy, asyncio.set_event_loop_policy = policy
    asyncio.events.get_event_loop_policy, asyncio.events.set_event_loop_policy = policy
keep = signal.signal, signal.set_wakeup_fd
names = ("get_event_loop_policy", "set_event_loop_policy")
policy = [vars(asyncio.events)[name] for name in names]
run(main())
"""


def test_no_signal_handler_no_watcher_no_policy(aside: Aside) -> None:
    flags = ("-W", "error") if sys.version_info < (3, 14) else ()
    aside.run(UNTOUCHED, flags=flags)


STRICT = """
async def main():
    # Of slow callbacks a busy machine has enough.
    asyncio.get_running_loop().slow_callback_duration = 60
    process = await aioproc.create_subprocess_shell(
        shell("cat", "exit 7"), stdin=aioproc.PIPE, stdout=aioproc.PIPE, stderr=aioproc.PIPE)
    assert await process.communicate(b"x") == (b"x", b"")
    async with await aioproc.create_subprocess_exec(*YES, stdout=aioproc.PIPE) as process:
        assert await process.stdout.readline() == b"y\\n"
    try:
        await aioproc.create_subprocess_exec("/nowhere/nothing", stdout=aioproc.PIPE)
    except FileNotFoundError:
        pass
run(main())
run(main())
del main
collect()
"""


def test_development_mode_is_silent(aside: Aside) -> None:
    aside.run(STRICT, flags=("-X", "dev", "-W", "error"))


# -- the end of the interpreter

LEAVE = """
kept = []
async def main():
    kept.append(await aioproc.create_subprocess_exec(
        *CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE))
    print(kept[0].pid)
run(main())
"""


def test_the_interpreter_ends_while_a_child_lives(aside: Aside) -> None:
    """cat ends with its stdin; nothing is said, nothing hangs."""
    pid = int(aside.run(LEAVE))
    assert settle_now(lambda: not is_alive(pid))


STOPPED = """
import atexit

class Holder:
    "Python's collector finds it at the very end only."

async def main():
    holder = Holder()
    holder.process = await aioproc.create_subprocess_exec(
        *SLEEP, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    holder.holder = holder
    print(holder.process.pid)

def stay():
    for thing in gc.get_objects():
        if str(type(thing).__module__).startswith("aioproc."):
            for name in "_lock", "_condition", "_changed":
                if hasattr(thing, name):
                    getattr(thing, name).__enter__()
                    held.append(name)
    ready.set()
    time.sleep(1000)

gc.disable()
held = []
ready = threading.Event()
run(main())
atexit._run_exitfuncs()  # they may wait for the locks: no thread has been stopped by then
threading.Thread(target=stay, daemon=True).start()
ready.wait()
assert "_lock" in held, held
"""


def test_a_thread_that_is_stopped_with_our_locks(aside: Aside) -> None:
    """As a daemon thread is at the interpreter's end. Who finalizes then does not wait for
    them, and the child is killed."""
    pid = int(aside.run(STOPPED))
    assert settle_now(lambda: not is_alive(pid))


def test_closed_after_its_loop_with_data_left(aioproc: Any, new_loop: Factory) -> None:
    """What cannot go out any more keeps no pipe open."""

    async def main() -> Any:
        process = await aioproc.create_subprocess_exec(*SLEEP, stdin=aioproc.PIPE)
        process.stdin.write(b"x" * 1_000_000)
        return process

    process = run(new_loop, main())
    process.kill()
    assert settle_now(lambda: process.returncode is not None)
    process._transport.close()
    # The guard of conftest.py looks for the descriptor.


@pytest.mark.skipif(not WINDOWS, reason="a port has a thread on Windows only")
def test_a_loop_that_closes_and_nothing_else(aioproc: Any, new_loop: Factory) -> None:
    """Without shutdown_asyncgens(), and somebody keeps it."""

    def ports() -> int:
        return sum(thread.name == "aioproc-port" for thread in threading.enumerate())

    loop = new_loop()
    process = loop.run_until_complete(aioproc.create_subprocess_exec(*TRUE))
    assert loop.run_until_complete(process.wait()) == 0
    assert ports() == 1
    loop.close()
    assert settle_now(lambda: not ports())
