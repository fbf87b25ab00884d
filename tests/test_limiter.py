"""Limiter, and how many CPUs there are."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from aioproc import Command, Limiter
from aioproc._backends.cpus import usable_cpus
from aside import PROC, children
from conftest import FUSE
from conftest import run as run_loop
from marks import posix_only
from programs import TRUE

pytestmark = pytest.mark.primary
asynchronous = pytest.mark.asyncio
everywhere = pytest.mark.everywhere


async def some_rounds() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@asynchronous
async def test_a_limiter_is_first_come_first_served(aioproc: Any) -> None:
    limiter = Limiter(1)
    order = []

    async def one(number: int) -> None:
        async with limiter:
            order.append(number)
            await asyncio.sleep(0)

    async with limiter:
        tasks = [asyncio.ensure_future(one(number)) for number in range(4)]
        await some_rounds()
        assert (limiter.in_use, limiter.waiting, order) == (1, 4, [])
        tasks[1].cancel()
        await some_rounds()
        assert limiter.waiting == 3
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]
    assert (limiter.in_use, limiter.waiting) == (0, 0)
    with pytest.raises(RuntimeError, match="no slot"):
        limiter.release()


@asynchronous
async def test_a_slot_that_comes_too_late_is_handed_on(aioproc: Any) -> None:
    limiter = Limiter(1)
    await limiter.acquire()
    first = asyncio.ensure_future(limiter.acquire())
    second = asyncio.ensure_future(limiter.acquire())
    await some_rounds()
    limiter.release()
    first.cancel()  # it has the slot, and has not heard of it
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.wait_for(second, FUSE)
    limiter.release()
    assert limiter.in_use == 0


@asynchronous
@pytest.mark.skipif(not PROC, reason="nobody can look without /proc")
@everywhere
async def test_a_limiter_is_shared(aioproc: Any) -> None:
    before = children()
    limiter = Limiter(2)
    most = most_in_use = 0
    done = False

    async def ticker() -> None:
        nonlocal most, most_in_use
        while not done:
            most = max(most, len(children() - before))
            most_in_use = max(most_in_use, limiter.in_use)
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(ticker())
    await asyncio.gather(
        aioproc.run_all([TRUE] * 8, limiter=limiter),
        aioproc.run_all([TRUE] * 8, limiter=limiter, concurrency=5),
        aioproc.run_all([Command(*TRUE, limiter=limiter)] * 8, concurrency=5),
        *(aioproc.run(*TRUE, limiter=limiter) for _ in range(8)),
    )
    done = True
    await ticking
    # They live for less than it takes to look.
    assert 0 < most <= 2
    assert most_in_use == 2
    assert limiter.in_use == 0


@asynchronous
async def test_waiting_for_a_slot_counts(aioproc: Any) -> None:
    limiter = Limiter(1)
    async with limiter:
        with pytest.raises(aioproc.TimeoutExpired) as caught:
            await aioproc.run(*TRUE, limiter=limiter, timeout=0.02)
        result = caught.value.result
        assert (result.pid, result.returncode, result.reason) == (None, None, "timeout")
        assert result.duration >= 0.02
        waits = asyncio.ensure_future(aioproc.run(*TRUE, limiter=limiter))
        await some_rounds()
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
    assert (await aioproc.run(*TRUE, limiter=limiter, timeout=FUSE)).ok
    with pytest.raises(FileNotFoundError):
        await aioproc.run("/nowhere", limiter=limiter)
    assert limiter.in_use == 0
    # A slot is not taken twice for one command.
    results = await aioproc.run_all([Command(*TRUE, limiter=limiter)] * 2, limiter=limiter)
    assert all(result.ok for result in results)


def test_a_limiter_is_for_one_loop_at_a_time(new_loop: Any) -> None:
    limiter = Limiter(1)

    async def use() -> None:
        async with limiter:
            pass

    run_loop(new_loop, use())
    run_loop(new_loop, use())
    run_loop(new_loop, limiter.acquire())
    run_loop(new_loop, use())  # the slot has gone with its loop

    async def in_another() -> None:
        def other() -> None:
            with pytest.raises(RuntimeError, match="another event loop"):
                run_loop(new_loop, use())

        async with limiter:
            await asyncio.get_running_loop().run_in_executor(None, other)
        await asyncio.get_running_loop().shutdown_default_executor()

    run_loop(new_loop, in_another())


def test_how_many_a_limiter_has() -> None:
    assert Limiter().concurrency == usable_cpus() >= 1
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            Limiter(wrong)
    for kind in (1.5, True, "2"):
        with pytest.raises(TypeError, match="concurrency"):
            Limiter(kind)  # type: ignore[arg-type]
    assert "0 of 3" in repr(Limiter(3))


# -- CPUs


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def mounts(root: Path, cgroup: str, mountinfo: str) -> str:
    write(root / "proc" / "self", cgroup=cgroup, mountinfo=mountinfo)
    return str(root)


V2 = "24 30 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
V1 = (
    "22 28 0:20 / /sys rw - sysfs sysfs rw\n"
    "32 24 0:27 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
)


@posix_only("cgroups")
@pytest.mark.parametrize(
    ("outer", "inner", "cpus"),
    [
        ("max 100000", "max 100000", None),
        ("max 100000", "100000 100000", 1),
        ("max 100000", "50000 100000", 1),
        ("150000 100000", "max 100000", 2),
        ("100000 100000", "900000 100000", 1),
        ("nonsense", "100000 100000", 1),
    ],
)
def test_a_cgroups_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outer: str, inner: str, cpus: int | None
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(48)), raising=False)
    root = mounts(tmp_path, "0::/a/b\n", V2)
    write(tmp_path / "sys/fs/cgroup/a", cpu__max=outer + "\n")
    write(tmp_path / "sys/fs/cgroup/a/b", cpu__max=inner + "\n")
    assert usable_cpus(root) == (48 if cpus is None else cpus)


@posix_only("cgroups")
@pytest.mark.parametrize("mounted", ["/", "/docker/x"])
def test_a_quota_of_the_old_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounted: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(48)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)
    path = "/y" if mounted == "/" else "/docker/x/y"
    root = mounts(tmp_path, f"4:cpu,cpuacct:{path}\n0::/z\n", V1.format(root=mounted))
    folder = tmp_path / "sys/fs/cgroup/cpu,cpuacct/y"
    write(folder, cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert usable_cpus(root) == 48
    write(folder, cpu__cfs_quota_us="250000\n")
    assert usable_cpus(root) == 3


@posix_only("cgroups")
def test_no_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)
    assert usable_cpus(str(tmp_path)) == 3
    assert usable_cpus(mounts(tmp_path, "nonsense\n", V2)) == 3
    assert usable_cpus(mounts(tmp_path, "0::/\n", "nonsense\n")) == 3
