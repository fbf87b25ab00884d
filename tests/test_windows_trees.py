"""A Process that was made with its tree, on Windows: by a job object of the native backend;
the pure one has the child alone."""

from __future__ import annotations

import asyncio
import functools
import signal
import subprocess
import threading
from typing import Any

import pytest

import aioproc as aioproc_package
from aioproc import Job, _backends
from aioproc._asyncio import process as process_module
from aioproc._spec.spec import SpawnSpec
from aioproc._trees import JobTree, job_tree
from aioproc._trees import tree_of as make_tree
from aioproc._trees.waiting import until, wake
from conftest import FUSE, Loop, is_alive, run, settle
from endings import gone, has_jobs
from helpers import TESTS, environment
from programs import CAT, PYTHON, SLEEP, WINDOWS, python

if not WINDOWS:
    pytest.skip("about Windows", allow_module_level=True)

import windows

try:
    from aioproc._backends.windows.lib import lib
    from aioproc._backends.windows.port import Port
except ImportError:
    pass  # without the extension nobody needs them

NULL = asyncio.subprocess.DEVNULL
PIPE = asyncio.subprocess.PIPE

BREAK: int = signal.CTRL_BREAK_EVENT  # type: ignore[attr-defined]
CTRL_C: int = signal.CTRL_C_EVENT  # type: ignore[attr-defined]
GROUP: int = subprocess.CREATE_NEW_PROCESS_GROUP  # type: ignore[attr-defined]
NO_WINDOW: int = subprocess.CREATE_NO_WINDOW  # type: ignore[attr-defined]
#: STATUS_CONTROL_C_EXIT; for Wine see test_ctrl_break_ends.
BROKEN = (0, 1) if windows.WINE else (0xC000013A,)

#: Both start a grandchild and say its number once it runs (a process whose console is not
#: ready yet hears of no event). It has no part in our pipes.
RUNS = python("import time; print(flush=True); time.sleep(1000)")
START = (
    "import subprocess, sys\nnull = subprocess.DEVNULL\n"
    f"child = subprocess.Popen({RUNS!r}, stdin=null, stdout=subprocess.PIPE, stderr=null)\n"
    "child.stdout.readline()\nprint(child.pid, flush=True)\n"
)
STAYS = python(START + "child.wait()")
LEAVES = python(START + "child.returncode = 0\nsys.exit(3)")

needs_break = pytest.mark.skipif(
    windows.WINE and windows.wine_version() < (9,), reason="Wine 8 has no CTRL_BREAK_EVENT"
)


async def start(aioproc: Any, family: list[int], *command: str, **options: Any) -> Any:
    """A child, once its grandchild is there as well."""
    options = {"stdin": NULL, "stdout": PIPE, "tree": True, **options}
    process = await aioproc.create_subprocess_exec(*command, **options)
    family.append(int(await process.stdout.readline()))
    assert is_alive(family[-1])
    return process


def tree_of(process: Any) -> JobTree:
    tree = process._transport.tree
    assert isinstance(tree, JobTree)
    return tree


# -- ended as one


@pytest.mark.asyncio
async def test_kill_tree(aioproc: Any, family: list[int]) -> None:
    process = await start(aioproc, family, *STAYS)
    (grandchild,) = family
    tree = tree_of(process)
    if has_jobs():
        assert await tree.alive() == 2
        assert await process.kill_tree() == []
        assert gone(grandchild)
        assert await tree.alive() == 0
        assert await process.kill_tree() == []
    else:
        assert await tree.alive() is None
        assert await process.kill_tree() is None
        assert is_alive(grandchild)
        assert await process.kill_tree() is None
    assert process.returncode == 1
    assert await process.communicate() == (b"", None)


@pytest.mark.asyncio
async def test_what_a_child_has_left_behind(aioproc: Any, family: list[int]) -> None:
    process = await start(aioproc, family, *LEAVES)
    (grandchild,) = family
    assert await process.wait() == 3
    assert is_alive(grandchild)
    if has_jobs():
        assert settle(lambda: tree_of(process)._active() == 1)
        assert await process.kill_tree() == []
        assert gone(grandchild)
    else:
        assert await process.kill_tree() is None
        assert is_alive(grandchild)
    assert process.returncode == 3


@pytest.mark.asyncio
async def test_sigterm_for_all(aioproc: Any, family: list[int]) -> None:
    """Which is TerminateProcess, here as without the tree."""
    process = await start(aioproc, family, *STAYS)
    thread = threading.Thread(
        target=process.send_signal, args=(signal.SIGTERM,), kwargs={"tree": True}
    )
    thread.start()
    thread.join()
    assert await process.wait() == 1
    assert gone(family[0]) if has_jobs() else is_alive(family[0])
    process.send_signal(signal.SIGTERM, tree=True)  # to nobody


@pytest.mark.asyncio
async def test_the_end_of_a_block(
    aioproc: Any, family: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who leads no group cannot be asked to end: there is no grace."""
    monkeypatch.setattr(process_module.Process, "_steps", [(signal.SIGTERM, 1000)])
    async with await start(aioproc, family, *STAYS, start_new_session=False) as process:
        pass
    assert process.returncode == 1
    assert gone(family[0]) if has_jobs() else is_alive(family[0])


@pytest.mark.asyncio
async def test_the_end_of_a_block_ends_what_is_left(aioproc: Any, family: list[int]) -> None:
    async with await start(aioproc, family, *LEAVES) as process:
        assert await process.wait() == 3
        assert is_alive(family[0])
    assert process.returncode == 3
    assert gone(family[0]) if has_jobs() else is_alive(family[0])


@pytest.mark.asyncio
async def test_a_cancelled_block(aioproc: Any, family: list[int]) -> None:
    process: Any = None
    there = asyncio.Event()

    async def block() -> None:
        nonlocal process
        options = {"start_new_session": False}
        async with await start(aioproc, family, *STAYS, **options) as process:
            there.set()
            await asyncio.sleep(1000)

    task = asyncio.create_task(block())
    await asyncio.wait_for(there.wait(), FUSE)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert process.returncode == 1
    assert gone(family[0]) if has_jobs() else is_alive(family[0])


# -- asked to end


#: Says "asked" when it is, and needs a moment to end. Its grandchild is in the same group.
ASKED = python(
    START + "import signal, time\n"
    "def asked(*_):\n    print('asked', flush=True)\n    sys.exit(9)\n"
    "signal.signal(signal.SIGBREAK, asked)\nprint('ready', flush=True)\n"
    "while True: time.sleep(0.01)"
)


@needs_break
@pytest.mark.wine("it runs no handlers of console events")
@pytest.mark.asyncio
async def test_a_block_asks_first(aioproc: Any, family: list[int]) -> None:
    async with await start(aioproc, family, *ASKED) as process:
        assert await process.stdout.readline() == b"ready\n"
    assert process.returncode == 9
    assert await process.stdout.read() == b"asked\n"
    assert gone(family[0])


@needs_break
@pytest.mark.asyncio
async def test_ctrl_break_for_a_group(aioproc: Any, family: list[int]) -> None:
    process = await start(aioproc, family, *STAYS)
    while process.returncode is None:
        process.send_signal(BREAK, tree=True)
        await asyncio.sleep(0.02)
    assert process.returncode in BROKEN
    assert gone(family[0])
    process.send_signal(BREAK, tree=True)  # to nobody
    if has_jobs():
        assert await process.kill_tree() == []


@needs_break
@pytest.mark.asyncio
async def test_who_is_not_in_the_group_is_ended_after_the_grace(
    aioproc: Any, family: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_jobs():
        pytest.skip("about jobs")
    monkeypatch.setattr(process_module.Process, "_steps", [(signal.SIGTERM, 0.3)])
    code = START.replace("stdin=null", f"creationflags={GROUP}, stdin=null")
    async with await start(aioproc, family, *python(code + "child.wait()")) as process:
        pass
    assert process.returncode in (*BROKEN, 1)
    assert gone(family[0])


@pytest.mark.asyncio
async def test_the_grace_is_for_the_last(
    aioproc: Any, family: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends by itself, after the child, and nobody ends it before."""
    if not has_jobs():
        pytest.skip("about jobs")
    monkeypatch.setattr(process_module.Process, "_steps", [(signal.SIGTERM, FUSE)])
    monkeypatch.setattr(JobTree, "_ask", lambda tree: True)
    # The end of its stdin is the child's reason to end, and that of its own the grandchild's.
    last = "import os, time\nos.read(0, 1)\ntime.sleep(0.1)\nos.write(1, b'done')"
    code = (
        "import os, subprocess\n"
        f"child = subprocess.Popen({python(last)!r}, stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\nos.read(0, 1)\nos._exit(4)"
    )
    async with await start(aioproc, family, *python(code), stdin=PIPE) as process:
        reader = asyncio.create_task(process.stdout.read())
        await asyncio.sleep(0)
    assert process.returncode == 4
    assert await reader == b"done"


# -- who leads a group


@pytest.mark.asyncio
async def test_who_gets_a_group(aioproc: Any) -> None:
    async def leads(**options: Any) -> bool:
        process = await aioproc.create_subprocess_exec(*CAT, tree=True, **options)
        try:
            return bool(tree_of(process)._leads_group)
        finally:
            process.kill()
            await process.wait()
            process._transport.close()

    assert await leads(stdin=NULL)
    assert await leads(stdin=PIPE)
    assert not await leads()  # it may read our console
    assert await leads(start_new_session=True)
    assert not await leads(stdin=NULL, start_new_session=False)
    assert await leads(creationflags=GROUP)
    assert await leads(creationflags=GROUP, start_new_session=False)
    assert not await leads(stdin=NULL, creationflags=NO_WINDOW)
    assert not await leads(stdin=NULL, creationflags=NO_WINDOW | GROUP)


@pytest.mark.asyncio
async def test_what_is_refused(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*SLEEP, tree=True)
    with pytest.raises(ValueError, match="has not got one on our console"):
        process.send_signal(BREAK, tree=True)
    for number in (CTRL_C, 9, 2, 99):
        with pytest.raises(ValueError, match=f"Unsupported signal for a tree: {number}"):
            process.send_signal(number, tree=True)
    assert process.returncode is None
    await process.kill_tree()
    process = await aioproc.create_subprocess_exec(*SLEEP, stdin=PIPE)
    with pytest.raises(RuntimeError, match="tree=True"):
        process.send_signal(BREAK, tree=True)
    with pytest.raises(RuntimeError, match="tree=True"):
        await process.kill_tree()
    process.kill()
    await process.wait()


# -- the job


@pytest.mark.asyncio
@pytest.mark.usefixtures("native")
async def test_the_job_of_a_child_that_is_alone_goes_with_it() -> None:
    process = await aioproc_package.create_subprocess_exec(
        *CAT, stdin=PIPE, stdout=PIPE, tree=True
    )
    job = process._transport._child.job  # type: ignore[union-attr]
    assert job is not None
    assert job.pids() == [process.pid]
    handle = job.handle
    assert windows.open_handles()[handle] == "job"
    assert await process.communicate(b"x") == (b"x", None)

    def closed() -> bool:
        try:
            job.handle  # noqa: B018
        except ValueError:
            return True
        return False

    for _ in range(1000):
        if closed():
            break
        await asyncio.sleep(0.01)
    assert closed()
    assert await tree_of(process).alive() == 0
    assert await process.kill_tree() == []


@pytest.mark.asyncio
async def test_a_dropped_process_leaves_its_tree_alone(aioproc: Any, family: list[int]) -> None:
    process = await start(aioproc, family, *LEAVES)
    await process.communicate()
    handles = windows.open_handles()
    jobs = [handle for handle, kind in handles.items() if kind == "job"]
    assert len(jobs) == has_jobs()
    del process
    for _ in range(3):
        await asyncio.sleep(0)
    assert settle(lambda: "job" not in windows.open_handles().values())
    assert is_alive(family[0])


@pytest.mark.asyncio
async def test_a_failed_spawn(aioproc: Any) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await aioproc.create_subprocess_exec("no-such-program", stdin=PIPE, tree=True)
    assert "job" not in str(caught.value)
    assert "job" not in windows.open_handles().values()


@pytest.mark.asyncio
async def test_a_cancelled_creation(aioproc: Any) -> None:
    task = asyncio.create_task(aioproc.create_subprocess_exec(*SLEEP, stdin=PIPE, tree=True))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    assert settle(lambda: "job" not in windows.open_handles().values())


@pytest.mark.asyncio
async def test_many(aioproc: Any) -> None:
    async def one() -> None:
        async with await aioproc.create_subprocess_exec(
            *CAT, stdin=PIPE, stdout=PIPE, tree=True
        ) as process:
            assert await process.communicate(b"x") == (b"x", None)

    await asyncio.gather(*(one() for _ in range(20)))


def test_after_the_loop(aioproc: Any, new_loop: Any, family: list[int]) -> None:
    async def main() -> Any:
        return await start(aioproc, family, *STAYS)

    process = run(new_loop, main())
    assert process.returncode is None
    process.send_signal(signal.SIGTERM, tree=True)
    assert settle(lambda: process.returncode is not None)
    assert process.returncode == 1
    assert gone(family[0]) if has_jobs() else is_alive(family[0])
    process._transport.close()


@pytest.mark.parametrize("asks_first", [False, True])
@pytest.mark.asyncio
async def test_a_child_that_is_only_about_to_start(aioproc: Any, asks_first: bool) -> None:
    """By a lazy spawn, after which nobody waits for it."""
    loop = asyncio.get_running_loop()
    spec = SpawnSpec.build(SLEEP, stdin=NULL, tree=True)
    child = _backends.current().spawn(spec, loop, lazy=True)
    ended: asyncio.Future[None] = loop.create_future()
    child.on_exit = functools.partial(ended.set_result, None)
    tree = make_tree(child, spec)
    if not has_jobs():
        assert await tree.kill() is None
    elif asks_first:  # what cannot be asked yet
        assert await tree.signal(signal.SIGTERM) == 1
        assert await tree.gone(FUSE) is True
    else:
        tree.close()  # too early
        assert await tree.alive() == 1
        assert await tree.kill() == []
    await ended
    assert child.returncode == 1
    tree.close()


# -- in each other


INNER = f"""
import asyncio, sys
import aioproc

async def main():
    process = await aioproc.create_subprocess_exec(
        *{STAYS!r}, stdin=aioproc.DEVNULL, stdout=aioproc.PIPE, tree=True)
    grandchild = int(await process.stdout.readline())
    print(grandchild, process.pid, flush=True)
    sys.stdin.readline()
    assert await process.kill_tree() == []
    print("ended", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_a_tree_inside_a_tree(aioproc: Any, family: list[int]) -> None:
    if not has_jobs():
        pytest.skip("about jobs")
    env = {**environment(aioproc), "PYTHONPATH": str(TESTS.parent)}
    options: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE, "tree": True, "env": env}
    command = PYTHON, "-c", INNER
    # The inner one ends: the outer one lives on.
    outer = await aioproc.create_subprocess_exec(*command, **options)
    family += map(int, (await outer.stdout.readline()).split())
    assert await tree_of(outer).alive() == 3
    outer.stdin.write(b"\n")
    assert (await outer.stdout.readline()).rstrip() == b"ended"
    assert all(map(gone, family))
    assert outer.returncode is None
    assert await outer.kill_tree() == []
    # The outer one ends, and takes the inner one along.
    outer = await aioproc.create_subprocess_exec(*command, **options)
    family[:] = map(int, (await outer.stdout.readline()).split())
    assert all(map(is_alive, family))
    assert await outer.kill_tree() == []
    assert all(map(gone, family))
    assert outer.returncode == 1


@pytest.mark.asyncio
async def test_jobs_of_the_callers_own(aioproc: Any, family: list[int]) -> None:
    if not has_jobs():
        pytest.skip("about jobs")
    async with Job() as job:
        process = await start(aioproc, family, *STAYS, startupinfo=job.startupinfo())
        other = await aioproc.create_subprocess_exec(
            *SLEEP, startupinfo=job.startupinfo(), tree=True
        )
        assert job.active == 3
        assert await tree_of(process).alive() == 2
        assert await tree_of(other).alive() == 1
        assert await process.kill_tree() == []
        assert gone(family[0])
        assert settle(lambda: job.active == 1)
        assert other.returncode is None
    assert await other.wait() == 1


@pytest.mark.asyncio
async def test_a_job_that_cannot_be_nested(
    aioproc: Any, family: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since it has a member of its own, as one may in which we are ourselves by rules of
    others'. The child is made without it, and then it is alone."""
    if not has_jobs():
        pytest.skip("about jobs")
    async with Job() as job:
        stranger = subprocess.Popen(SLEEP)
        make = Port.open_job

        def open_job(port: Port, flags: int) -> int:
            made = make(port, flags)
            windows.assign(stranger._handle, lib.ap_job_handle(made))  # type: ignore[attr-defined]
            return made

        member = await aioproc.create_subprocess_exec(
            *SLEEP, startupinfo=job.startupinfo()
        )  # or the job could still be nested in the other one
        with monkeypatch.context() as patch:
            patch.setattr(Port, "open_job", open_job)
            process = await start(aioproc, family, *STAYS, startupinfo=job.startupinfo())
            with pytest.raises(FileNotFoundError):
                await aioproc.create_subprocess_exec("no-such-program", tree=True)
        assert job.active == 3
        assert process._transport._child.job is None
        assert await tree_of(process).alive() is None
        assert await process.kill_tree() is None
        assert process.returncode == 1
        assert is_alive(family[0])
        assert stranger.poll() is None
        stranger.kill()
        stranger.wait()
    assert await member.wait() == 1
    assert gone(family[0])


# -- who does not end


@pytest.mark.asyncio
async def test_who_cannot_be_ended(
    aioproc: Any, family: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_jobs():
        pytest.skip("about jobs")
    process = await start(aioproc, family, *STAYS)
    tree = tree_of(process)
    assert await tree.gone(0.05) is False
    with monkeypatch.context() as patch:
        patch.setattr(job_tree, "KILL_TIME", 0.1)
        patch.setattr(JobTree, "_terminate", lambda tree: None)
        assert sorted(await process.kill_tree() or ()) == sorted([process.pid, *family])
    assert await tree.alive() == 2
    assert await process.kill_tree() == []


@pytest.mark.asyncio
async def test_a_child_alone_has_its_grace(aioproc: Any) -> None:
    if has_jobs():
        pytest.skip("about who has none")
    process = await aioproc.create_subprocess_exec(*CAT, stdin=PIPE, tree=True)
    tree = tree_of(process)
    assert await tree.gone(0.05) is None
    assert process.returncode is None
    waiter = asyncio.create_task(tree.gone(1000))
    await asyncio.sleep(0)
    process.stdin.close()
    assert await waiter is None
    assert await process.wait() == 0


# -- waiting


@pytest.mark.asyncio
async def test_a_hint() -> None:
    answers = iter([False, False, True])
    asked: list[bool] = []

    def ended() -> bool:
        asked.append(next(answers))
        return asked[-1]

    waiters: set[asyncio.Future[None]] = set()
    waits = until(ended, waiters, pause=1000, longest_pause=1000, seconds=1000)
    task = asyncio.create_task(waits)
    for number in (1, 2):
        while len(asked) < number:
            await asyncio.sleep(0)
        assert len(waiters) == 1
        wake(waiters)
    assert await task
    assert not waiters
    assert asked == [False, False, True]


@pytest.mark.asyncio
async def test_without_hints() -> None:
    loop = asyncio.get_running_loop()
    waiters: set[asyncio.Future[None]] = set()
    assert not await until(lambda: False, waiters, pause=0.001, longest_pause=0.01, seconds=0.05)
    assert not await until(lambda: False, waiters, pause=1000, longest_pause=1000, seconds=0)
    end = loop.time() + 0.05
    assert await until(lambda: loop.time() >= end, waiters, pause=0.001, longest_pause=0.01)
    assert not waiters


def test_a_hint_for_a_loop_that_has_closed(new_loop: Any) -> None:
    waiters: set[asyncio.Future[None]] = set()
    loop: Loop = new_loop()
    waiters.add(loop.create_future())
    loop.close()
    wake(waiters)
