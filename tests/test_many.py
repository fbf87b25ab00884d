"""Many children: alive at once, in a row, made by many threads at the same time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aside import children, open_fds, settle
from conftest import run
from marks import proc_only
from programs import CAT, TRUE, WINDOWS, python, sh

asynchronous = pytest.mark.asyncio


@contextmanager
def room_for(fds: int) -> Iterator[None]:
    if WINDOWS:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < fds:
        pytest.skip(f"no more than {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, fds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def polls(aioproc: Any) -> bool:
    """Where the pure backend has no pidfds, it has one thread for all."""
    return "thread" in aioproc._backends.current().strategy


#: Of the loop's port.
THREADS = 1 if WINDOWS else 0


async def alive_at_once(aioproc: Any, count: int) -> None:
    # All end when nobody can write to this any more.
    reader, writer = os.pipe()
    before, fds, threads = children(), len(open_fds()), threading.active_count()
    processes = []
    for start in range(0, count, 50):
        processes += await asyncio.gather(
            *(
                aioproc.create_subprocess_exec(*CAT, stdin=reader)
                for _ in range(min(50, count - start))
            )
        )
    assert len({process.pid for process in processes}) == count
    assert len(children() - before) == count
    assert threading.active_count() == threads + polls(aioproc) + THREADS
    # A pidfd each; the port has an epoll and a timer descriptor, or is one handle.
    assert len(open_fds()) - fds <= count + 2
    os.close(reader)
    os.close(writer)
    assert await asyncio.gather(*(process.wait() for process in processes)) == [0] * count
    assert children() == before
    # The pipe went, the port is here; on Windows the last processes are closed meanwhile.
    assert await settle(lambda: len(open_fds()) <= fds)


@asynchronous
async def test_200_at_once(aioproc: Any) -> None:
    with room_for(400):
        await alive_at_once(aioproc, 30 if WINDOWS else 200)


@asynchronous
@pytest.mark.heavy
async def test_2000_at_once(aioproc: Any) -> None:
    with room_for(3000):
        await alive_at_once(aioproc, 2000)


@asynchronous
async def test_pipes_cost_one_descriptor_each(aioproc: Any) -> None:
    await (await aioproc.create_subprocess_exec(*TRUE)).wait()
    fds = len(open_fds())
    processes = [
        await aioproc.create_subprocess_exec(
            *CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE, stderr=aioproc.PIPE
        )
        for _ in range(20)
    ]
    pidfd = not polls(aioproc)
    assert len(open_fds()) == fds + (3 + pidfd) * 20
    for process in processes:
        await process.communicate()
    assert await settle(lambda: len(open_fds()) == fds)


async def in_a_row(aioproc: Any, count: int, at_once: int) -> None:
    async def one(i: int) -> None:
        process = await aioproc.create_subprocess_exec(
            *sh(f"echo {i}; exit {i % 256}", f"print({i}); sys.exit({i % 256})"),
            stdout=aioproc.PIPE,
        )
        assert await process.communicate() == (b"%d\n" % i, None)
        assert process.returncode == i % 256

    for start in range(0, count, at_once):
        await asyncio.gather(*(one(i) for i in range(start, min(start + at_once, count))))


@asynchronous
async def test_300_in_a_row(aioproc: Any) -> None:
    await in_a_row(aioproc, 32 if WINDOWS else 300, 16)


@asynchronous
@pytest.mark.heavy
async def test_10000_in_a_row_under_load(aioproc: Any) -> None:
    load = subprocess.Popen(python("while True: pass"))
    try:
        await in_a_row(aioproc, 10_000, 8)
    finally:
        load.kill()
        load.wait()


@proc_only
def test_50_threads_at_once(aioproc: Any) -> None:
    """No child sees a pipe that is another's."""
    start = threading.Barrier(50)
    inheritable = {fd for fd in open_fds() if os.get_inheritable(fd)}
    seen: list[tuple[int, bytes]] = []
    errors: list[BaseException] = []

    async def main(n: int) -> None:
        # close_fds=False: what is not to be inherited must have been closed by its flag.
        process = await aioproc.create_subprocess_exec(
            "/bin/ls",
            "-l",
            "/proc/self/fd",
            stdin=aioproc.PIPE,
            stdout=aioproc.PIPE,
            stderr=aioproc.PIPE,
            close_fds=n % 2 == 0,
        )
        output, _ = await process.communicate()
        seen.append((n, output))

    def thread(n: int) -> None:
        try:
            start.wait(30)
            run(asyncio.SelectorEventLoop, main(n))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=thread, args=(n,)) for n in range(50)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not errors
    assert len(seen) == 50
    owners: dict[bytes, int] = {}
    for n, output in seen:
        links = dict(line.split()[-3::2] for line in output.splitlines()[1:])
        # 3 is the directory that is being listed.
        expected = {0, 1, 2, 3} | (inheritable if n % 2 else set())
        assert set(map(int, links)) <= expected, output.decode()
        for fd in (b"0", b"1", b"2"):
            assert owners.setdefault(links[fd], n) == n


@asynchronous
@proc_only
async def test_what_is_kept_for_the_next_spawns(aioproc: Any) -> None:
    """Memory that children were made in is used again, and little of it is kept."""

    def mapped() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

    async def spawn(size: int) -> None:
        args = ["x" * 1000] * (size // 1000)
        process = await aioproc.create_subprocess_exec("true", *args)
        assert await process.wait() == 0

    async def turn() -> None:
        await asyncio.gather(*(spawn(size) for size in (0, 10_000, 400_000) for _ in range(30)))

    await turn()
    before = mapped()
    for _ in range(3):
        await turn()
    # Of 12 MiB a round; other things breathe as well.
    assert mapped() - before < 4 * 2**20
