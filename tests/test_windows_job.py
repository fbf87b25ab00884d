"""Job: whole trees of processes, ended, counted and waited for."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aioproc as aioproc_package
from aioproc import Job, _job
from conftest import Loop, is_alive, run, settle
from programs import CAT, LEAVES_CAT, PYTHON, SLEEP, WINDOWS, ends, python

if not WINDOWS:
    pytest.skip("about Windows", allow_module_level=True)

import windows

Factory = Callable[[], Loop]

PIPE = aioproc_package.PIPE

pytestmark = pytest.mark.usefixtures("native")

#: Starts a grandchild, says its number, and waits for it.
TREE = python(
    f"import subprocess\nchild = subprocess.Popen({SLEEP!r})\n"
    "print(child.pid, flush=True)\nchild.wait()"
)


async def spawn(job: Job, *args: str, **options: Any) -> Any:
    return await aioproc_package.create_subprocess_exec(
        *args, startupinfo=job.startupinfo(), **options
    )


async def end(process: Any) -> int:
    """How it ended. A grandchild may have had its stdout for a moment longer."""
    returncode: int = await process.wait()
    if process.stdout is not None:
        assert await process.stdout.read() == b""
    return returncode


async def tree(job: Job) -> tuple[Any, int]:
    """A child, and the number of a grandchild that runs."""
    process = await spawn(job, *TREE, stdout=PIPE)
    return process, int(await process.stdout.readline())


def environment() -> dict[str, str]:
    """Of a process that uses aioproc itself."""
    here = Path(__file__).resolve().parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    return dict(os.environ, AIOPROC_BACKEND="native", PYTHONPATH=paths)


# -- ended as one


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [0, 1, 7, 259, 0xC000013A, 0xFFFFFFFF])
async def test_terminate_ends_a_tree(code: int) -> None:
    with Job() as job:
        assert job.active == 0
        await job.wait()
        process, grandchild = await tree(job)
        assert job.active == 2
        job.terminate(code)
        await job.wait()
        assert job.active == 0
        assert await end(process) == code
        assert settle(lambda: not is_alive(grandchild))


@pytest.mark.asyncio
async def test_terminate_without_a_process() -> None:
    with Job() as job:
        job.terminate()
        process = await spawn(job, *CAT, stdin=PIPE, stdout=PIPE)
        assert await process.communicate(b"x") == (b"x", None)
        await job.wait()
        job.terminate()


@pytest.mark.asyncio
async def test_close_ends_what_is_left() -> None:
    job = Job()
    process, grandchild = await tree(job)
    job.close()
    assert await end(process) == 1
    assert settle(lambda: not is_alive(grandchild))


@pytest.mark.asyncio
async def test_close_leaves_alone_what_is_left() -> None:
    job = Job(kill_on_close=False)
    process, grandchild = await tree(job)
    cat = await spawn(job, *CAT, stdin=PIPE, stdout=PIPE)
    job.close()
    assert await cat.communicate(b"x") == (b"x", None)
    assert is_alive(grandchild)
    # Which ends it: it waits for that.
    os.kill(grandchild, 5)
    assert await end(process) == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("kill_on_close", [True, False])
async def test_async_with(kill_on_close: bool) -> None:
    async with Job(kill_on_close=kill_on_close) as job:
        process, grandchild = await tree(job)
    assert repr(job) == "<Job closed>"
    assert await end(process) == 1
    assert settle(lambda: not is_alive(grandchild))
    async with Job():
        pass
    async with Job() as job:
        job.close()
    with pytest.raises(ZeroDivisionError):
        async with Job() as job:
            process = await spawn(job, *SLEEP)
            1 / 0  # noqa: B018
    assert await end(process) == 1


@pytest.mark.asyncio
async def test_async_with_cancelled() -> None:
    """Twice: once in the block, once when it is left."""
    running = asyncio.Event()
    found: list[Any] = []

    async def work() -> None:
        async with Job(kill_on_close=False) as job:
            found.extend((job, *await tree(job)))
            running.set()
            await asyncio.sleep(1000)

    task = asyncio.create_task(work())
    await running.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    job, process, grandchild = found
    with pytest.raises(ValueError, match="closed"):
        job.active  # noqa: B018
    assert await end(process) == 1
    assert settle(lambda: not is_alive(grandchild))


@pytest.mark.asyncio
async def test_async_with_ends_what_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has got into the job while the block is being left."""
    monkeypatch.setattr(_job, "LOOK_AGAIN", 0.01)
    late: list[subprocess.Popen[bytes]] = []

    class Late(Job):
        def terminate(self, exit_code: int = 1) -> None:
            super().terminate(exit_code)
            if not late:
                late.append(subprocess.Popen(SLEEP))
                windows.assign(late[0]._handle, self.handle)  # type: ignore[attr-defined]

    async with Late(kill_on_close=False) as job:
        process = await spawn(job, *SLEEP)
    assert late[0].wait() == 1
    assert await end(process) == 1


# -- waited for


@pytest.mark.asyncio
async def test_wait_is_for_grandchildren() -> None:
    with Job() as job:
        process = await spawn(job, *LEAVES_CAT, stdin=PIPE, stdout=PIPE)
        waiter = asyncio.create_task(job.wait())
        assert await process.stdout.readline() == b"hi\n"
        assert await process.wait() == 0
        process.stdin.write(b"there?\n")
        assert await process.stdout.readline() == b"there?\n"
        assert job.active == 1
        assert not waiter.done()
        process.stdin.close()
        await waiter
        assert job.active == 0
        assert await process.stdout.read() == b""


@pytest.mark.asyncio
async def test_wait_is_for_children() -> None:
    """One whose grandchild has ended, and that closed its pipes, is waited for."""
    program = python(
        "import os, subprocess\nsubprocess.run(['cmd', '/c', 'exit'])\nos.close(1)\n"
        "os.read(0, 1)\nos._exit(3)"
    )
    with Job() as job:
        process = await spawn(job, *program, stdin=PIPE, stdout=PIPE)
        waiter = asyncio.create_task(job.wait())
        assert await process.stdout.read() == b""
        assert job.active == 1
        assert not waiter.done()
        process.stdin.write(b"x")
        await waiter
        assert await end(process) == 3


@pytest.mark.asyncio
async def test_several_children_and_waiters(monkeypatch: pytest.MonkeyPatch) -> None:
    # By what the system tells.
    monkeypatch.setattr(_job, "LOOK_AGAIN", 1000)
    with Job() as job:
        cats = [await spawn(job, *CAT, stdin=PIPE, stdout=PIPE) for _ in range(4)]
        assert job.active == 4
        waiters = [asyncio.create_task(job.wait()) for _ in range(3)]
        for i, cat in enumerate(cats):
            assert not any(waiter.done() for waiter in waiters)
            assert await cat.communicate(b"x") == (b"x", None)
            assert settle(functools.partial(lambda n: job.active == n, 3 - i))
        await asyncio.gather(*waiters)
        # It fills and empties as often as one likes.
        for code in range(3):
            process = await spawn(job, *ends(code))
            await job.wait()
            assert await end(process) == code


@pytest.mark.asyncio
async def test_wait_can_be_cancelled() -> None:
    async with Job() as job:
        process = await spawn(job, *CAT, stdin=PIPE)
        waiters = [asyncio.create_task(job.wait()) for _ in range(2)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiters[0]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(job.wait(), 0.01)
        assert len(job._waiters) == 1
        process.stdin.close()
        await waiters[1]
        assert not job._waiters
        await process.wait()


@pytest.mark.asyncio
async def test_a_message_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_job, "LOOK_AGAIN", 0.01)
    with Job() as job:
        job._job.on_empty = None
        process = await spawn(job, *CAT, stdin=PIPE)
        waiter = asyncio.create_task(job.wait())
        await asyncio.sleep(0)
        process.stdin.close()
        await waiter
        await process.wait()


def test_wait_in_another_loop(new_loop: Factory) -> None:
    async def main() -> None:
        with Job() as job:
            process = await spawn(job, *CAT, stdin=PIPE)
            thread = threading.Thread(target=lambda: run(new_loop, job.wait()))
            thread.start()
            assert settle(lambda: bool(job._waiters))
            process.stdin.close()
            await process.wait()
            await asyncio.get_running_loop().run_in_executor(None, thread.join)

    run(new_loop, main())


# -- closed


@pytest.mark.asyncio
@pytest.mark.parametrize("in_thread", [False, True])
async def test_closed_while_somebody_waits(in_thread: bool) -> None:
    job = Job()
    process = await spawn(job, *SLEEP)
    waiters = [asyncio.create_task(job.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    if in_thread:
        thread = threading.Thread(target=job.close)
        thread.start()
        thread.join()
    else:
        job.close()
    for waiter in waiters:
        with pytest.raises(ValueError, match="the job is closed"):
            await waiter
    assert await end(process) == 1


@pytest.mark.asyncio
async def test_what_a_closed_job_says() -> None:
    job = Job()
    info = job.startupinfo()
    job.close()
    job.close()
    for use in (
        lambda: job.handle,
        lambda: int(job),
        lambda: job.active,
        job.terminate,
        job.startupinfo,
    ):
        with pytest.raises(ValueError, match="the job is closed"):
            use()  # type: ignore[operator]
    with pytest.raises(ValueError, match="the job is closed"):
        await job.wait()
    with pytest.raises(ValueError, match="the job is closed"):
        await aioproc_package.create_subprocess_exec(*CAT, startupinfo=info)
    assert repr(job) == "<Job closed>"
    with job:
        pass


@pytest.mark.asyncio
async def test_bad_input() -> None:
    with Job() as job:
        process = await spawn(job, *CAT, stdin=PIPE)
        for wrong in (-1, 1 << 32):
            with pytest.raises(OverflowError, match="exit_code"):
                job.terminate(wrong)
        for wrong in (None, 1.0, "1"):
            with pytest.raises(TypeError, match="exit_code"):
                job.terminate(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="STARTUPINFO"):
            job.startupinfo(object())
        assert job.active == 1
        process.stdin.close()
        assert await end(process) == 0
    with pytest.raises(TypeError):
        Job(True)  # type: ignore[misc]
    info = subprocess.STARTUPINFO(lpAttributeList={"job_list": [None]})  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        await aioproc_package.create_subprocess_exec(*CAT, startupinfo=info)


def test_without_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        Job()


def test_the_loop_is_closed_with_an_open_job(new_loop: Factory) -> None:
    async def main() -> Any:
        job = Job()
        return job, *await tree(job)

    job, process, grandchild = run(new_loop, main())
    assert job.active == 2
    assert is_alive(grandchild)
    thread = threading.Thread(target=job.terminate, args=(3,))
    thread.start()
    thread.join()
    assert settle(lambda: job.active == 0)
    assert settle(lambda: process.returncode is not None)
    assert process.returncode == 3
    # In a loop of another time.
    run(new_loop, job.wait())
    job.close()
    job.close()
    process._transport.close()


def test_the_loop_is_closed_with_a_job_that_nobody_holds(new_loop: Factory) -> None:
    async def main() -> Any:
        Job()
        job = Job(kill_on_close=False)
        process = await spawn(job, *SLEEP)
        return process, job.handle

    with pytest.warns(ResourceWarning, match=r"unclosed job <Job handle=\d+ active=1>"):
        process, handle = run(new_loop, main())
    assert handle not in windows.open_handles()
    process.kill()
    assert settle(lambda: process.returncode is not None)
    process._transport.close()


AT_EXIT = """
import asyncio, sys, aioproc
from programs import *
jobs = []
async def main():
    jobs.extend((aioproc.Job(), aioproc.Job(kill_on_close=False)))
    program = python(
        "import subprocess\\n"
        "nothing = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}\\n"
        f"child = subprocess.Popen({SLEEP!r}, **nothing)\\n"
        "print(child.pid, flush=True)")
    for job in jobs:
        process = await aioproc.create_subprocess_exec(
            *program, stdout=aioproc.PIPE, startupinfo=job.startupinfo())
        pid, _ = await process.communicate()
        print(int(pid), flush=True)
asyncio.run(main())
"""


def test_the_interpreter_ends_with_open_jobs() -> None:
    done = subprocess.run(
        [PYTHON, "-c", AT_EXIT], env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    killed, left = map(int, done.stdout.split())
    assert settle(lambda: not is_alive(killed))
    assert is_alive(left)
    os.kill(left, 5)
    assert settle(lambda: not is_alive(left))


@pytest.mark.asyncio
async def test_a_job_is_dropped() -> None:
    job = Job()
    process = await spawn(job, *SLEEP)
    handle = job.handle
    with pytest.warns(ResourceWarning, match="unclosed job"):
        del job
    assert await end(process) == 1
    assert handle not in windows.open_handles()
    Job()  # without a process there is nothing to warn of


def test_a_job_outlives_the_shutdown_of_generators(new_loop: Factory) -> None:
    """Somebody does that and goes on using the loop."""

    async def main() -> None:
        with Job() as job:
            process = await spawn(job, *CAT, stdin=PIPE)
            await asyncio.get_running_loop().shutdown_asyncgens()
            waiter = asyncio.create_task(job.wait())
            await asyncio.sleep(0)
            process.stdin.close()
            await waiter
            assert await end(process) == 0

    run(new_loop, main())


def test_a_port_lives_as_long_as_its_jobs(
    new_loop: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioproc._backends.watcher.LINGER", 0.01)

    def ports() -> int:
        return sum(thread.name == "aioproc-port" for thread in threading.enumerate())

    async def main() -> None:
        for spawns in (False, True):
            job = Job()
            assert ports() == 1
            if spawns:
                process = await spawn(job, *CAT, stdin=PIPE)
                await process.communicate(b"")
                await job.wait()
            await asyncio.sleep(0.1)  # in which the port would end
            assert ports() == 1
            job.close()
            for _ in range(3000):
                if not ports():
                    break
                await asyncio.sleep(0.01)
            assert not ports()

    run(new_loop, main())


def test_hundreds_of_loops_leave_nothing(any_loop: Factory) -> None:
    async def main(number: int) -> None:
        if number % 3:
            Job()  # dropped
            return
        async with Job() as job:
            if number % 30:
                return
            process = await spawn(job, *SLEEP, stdin=PIPE)
        await process.wait()

    def some(count: int) -> None:
        for number in range(count):
            run(any_loop, main(number))
        gc.collect()

    some(31)
    before, threads = windows.count_handles(), threading.active_count()
    some(300)
    assert settle(lambda: gc.collect() < 0 or windows.count_handles() <= before)
    assert threading.active_count() == threads


def test_many_threads(any_loop: Factory) -> None:
    """Uses and closings at the same time."""

    async def main() -> None:
        for _ in range(20):
            job = Job()
            process = await spawn(job, *ends(0))
            go = threading.Event()

            def use(job: Job = job, go: threading.Event = go) -> None:
                go.wait()
                try:
                    while True:
                        job.active  # noqa: B018
                        job.terminate()
                except ValueError:
                    pass

            def close(job: Job = job, go: threading.Event = go) -> None:
                go.wait()
                job.close()

            threads = [threading.Thread(target=target) for target in (use, use, close, close)]
            for thread in threads:
                thread.start()
            go.set()
            for thread in threads:
                thread.join()
            assert await end(process) in (0, 1)

    run(any_loop, main())


# -- in each other


@pytest.mark.asyncio
async def test_nested() -> None:
    async with Job() as outer, Job() as inner:
        info = inner.startupinfo(outer.startupinfo())
        assert info.lpAttributeList["job_list"] == [outer, inner]
        both = await aioproc_package.create_subprocess_exec(*CAT, stdin=PIPE, startupinfo=info)
        one = await spawn(outer, *CAT, stdin=PIPE)
        assert (outer.active, inner.active) == (2, 1)
        inner.terminate(5)
        await inner.wait()
        assert await both.wait() == 5
        assert settle(lambda: outer.active == 1)
        one.stdin.close()
        await outer.wait()
        assert await one.wait() == 0


@pytest.mark.asyncio
async def test_what_cannot_be_nested() -> None:
    """Jobs that have members of their own; and nothing is left of the child."""
    async with Job() as one, Job() as other:
        kept = [await spawn(job, *SLEEP) for job in (one, other)]
        with pytest.raises(OSError, match="job objects cannot be nested") as caught:
            await aioproc_package.create_subprocess_exec(
                *CAT, stdin=PIPE, stdout=PIPE, startupinfo=other.startupinfo(one.startupinfo())
            )
        assert caught.value.winerror in (5, 50)  # type: ignore[attr-defined]
        assert (one.active, other.active) == (1, 1)
    for process in kept:
        assert await end(process) == 1


IN_A_JOB = """
import asyncio, aioproc
from programs import *
async def main():
    async with aioproc.Job() as job:
        process = await aioproc.create_subprocess_exec(*SLEEP, startupinfo=job.startupinfo())
        print(job.active, process.pid, flush=True)
        job.terminate(9)
        await job.wait()
        print(await process.wait(), flush=True)
        process = await aioproc.create_subprocess_exec(*SLEEP, startupinfo=job.startupinfo())
        print("ready", flush=True)
        await process.wait()
asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_we_are_in_a_job_ourselves() -> None:
    async with Job() as job:
        process = await spawn(job, PYTHON, "-c", IN_A_JOB, stdout=PIPE, env=environment())
        assert (await process.stdout.readline()).split()[0] == b"1"
        assert await process.stdout.readline() == b"9\r\n"
        assert await process.stdout.readline() == b"ready\r\n"
        assert job.active == 2
        job.terminate(4)
        await job.wait()
        assert await end(process) == 4


# -- how a child gets into it


@pytest.mark.asyncio
async def test_startupinfo() -> None:
    base = subprocess.STARTUPINFO(  # type: ignore[attr-defined]
        dwFlags=1, wShowWindow=0, lpAttributeList={"handle_list": []}
    )
    async with Job() as job:
        info = job.startupinfo(base)
        assert (info.dwFlags, info.wShowWindow) == (1, 0)
        assert info.lpAttributeList == {"handle_list": [], "job_list": [job]}
        assert base.lpAttributeList == {"handle_list": []}
        for member in (job, job.handle):  # the object or its handle
            info = subprocess.STARTUPINFO(lpAttributeList={"job_list": [member]})  # type: ignore[attr-defined]
            process = await aioproc_package.create_subprocess_exec(
                *CAT, stdin=PIPE, startupinfo=info
            )
            assert job.active == 1
            assert info.lpAttributeList == {"job_list": [member]}
            process.stdin.close()
            await process.wait()
            await job.wait()


@pytest.mark.asyncio
async def test_a_shell_command_after_a_timeout() -> None:
    """What Process.kill() leaves alive, a job ends."""
    command = subprocess.list2cmdline(TREE)
    async with Job() as job:
        process = await aioproc_package.create_subprocess_shell(
            f"{command}& echo over", stdout=PIPE, startupinfo=job.startupinfo()
        )
        pid = int(await process.stdout.readline())
        process.kill()
        assert await process.wait() == 1
        assert is_alive(pid)
        assert job.active == 2
    assert settle(lambda: not is_alive(pid))
    assert await process.stdout.read() == b""


@pytest.mark.asyncio
async def test_a_failed_spawn_in_a_job() -> None:
    async with Job() as job:
        with pytest.raises(FileNotFoundError) as caught:
            await spawn(job, "no-such-program", stdin=PIPE)
        assert "job" not in str(caught.value)
        assert job.active == 0
        await job.wait()
