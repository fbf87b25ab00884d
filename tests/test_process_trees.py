"""A Process that was made with its tree: what it has started is signalled and ended with it.

How members are found is tested in test_trees.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from programs import WINDOWS

if WINDOWS:
    pytest.skip("Windows has jobs for that: test_windows_trees.py", allow_module_level=True)

import seccomp
from aioproc import _backends
from aioproc._asyncio import process as process_module
from aioproc._spec import mark
from aioproc._trees import scanning
from aside import PROC, Aside, settle
from conftest import FUSE, is_alive
from conftest import settle as settle_now
from programs import TRUE, python

pytestmark = pytest.mark.skipif(not PROC, reason="nobody can look without /proc")

NULL = asyncio.subprocess.DEVNULL
PIPE = asyncio.subprocess.PIPE

#: In a session of its own, found by the mark alone once its parent has ended; and one that
#: does not mind SIGTERM. Writes their pids, and goes on.
FAMILY = """
setsid sleep 1000 >/dev/null &
daemon=$!
(trap '' TERM; echo $daemon $(exec sh -c 'echo $PPID'); exec sleep 1000 >/dev/null 2>&1) &
"""
STAYS = ("sh", "-c", FAMILY + "exec sleep 1000 >/dev/null")
LEAVES = ("sh", "-c", FAMILY + "exit 3")


async def start(aioproc: Any, family: list[int], *command: str, **options: Any) -> Any:
    """A family, once all of its members are there."""
    options = {"stdin": NULL, "stdout": PIPE, "tree": True, **options}
    process = await aioproc.create_subprocess_exec(*command, **options)
    family += map(int, (await process.stdout.readline()).split())
    assert len(family) == 2
    assert all(map(is_alive, family))
    return process


@pytest.mark.asyncio
async def test_kill_tree(aioproc: Any, family: list[int]) -> None:
    process = await start(aioproc, family, *STAYS)
    assert await process.kill_tree() == []
    assert process.returncode == -signal.SIGKILL
    assert not any(map(is_alive, family))
    assert await process.communicate() == (b"", None)
    assert await process.kill_tree() == []


@pytest.mark.asyncio
async def test_what_a_child_has_left_behind(aioproc: Any, family: list[int]) -> None:
    process = await start(aioproc, family, *LEAVES)
    assert await process.wait() == 3
    assert all(map(is_alive, family))
    assert await process.kill_tree() == []
    assert process.returncode == 3
    assert not any(map(is_alive, family))


@pytest.fixture
def by_proc(aioproc: Any) -> None:
    """For hoppers, and what is so where processes are seen by /proc."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        pytest.skip("the program is one for Linux on x86_64")
    if _backends.report()["features"].get("kqueue"):
        pytest.skip("about /proc")


def hopper(path: Path, segments: int) -> Path:
    """Makes a program for Linux on x86_64 that executes itself again and again. Each exec takes
    long for its many segments, and meanwhile the process has no environment."""
    code = bytes.fromhex(
        "488b7c2408"  # mov rdi, [rsp+8]: argv[0]
        "488d742408"  # lea rsi, [rsp+8]: argv
        "488b0424"  # mov rax, [rsp]: argc
        "488d54c608"  # lea rdx, [rsi+rax*8+8]: the environment
        "b83b000000"  # mov eax, 59: execve
        "0f05"  # syscall
        "0f0b"  # ud2
    )
    start, header, entry, page = 0x400000, 64, 56, 4096
    size = header + entry * segments + len(code)
    room = -(-size // page) * page
    begin = start + size - len(code)
    program = b"\x7fELF\2\1\1".ljust(16, b"\0")
    fields = (2, 62, 1, begin, header, 0, 0, header, entry, segments, 0, 0, 0)
    program += struct.pack("<HHIQQQIHHHHHH", *fields)
    for i in range(segments):
        program += struct.pack("<IIQQQQQQ", 1, 5, 0, start + i * room, 0, size, size, page)
    path.write_bytes(program + code)
    path.chmod(0o755)
    return path


@pytest.mark.usefixtures("by_proc")
@pytest.mark.asyncio
async def test_in_the_midst_of_an_exec(aioproc: Any, family: list[int], tmp_path: Path) -> None:
    """Out of the session, its parent gone, and no mark to be read of it: most of the time."""
    program = str(hopper(tmp_path / "hopper", 50))
    command = ("sh", "-c", 'setsid "$1" >/dev/null & echo $! $$; read end; exit 3', "sh", program)
    for _ in range(10):
        process = await aioproc.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, tree=True
        )
        hops = int((await process.stdout.readline()).split()[0])
        family.append(hops)
        assert await settle(lambda pid=hops: os.readlink(f"/proc/{pid}/exe") == program)
        process.stdin.write(b"\n")
        assert await process.wait() == 3
        assert await process.kill_tree() == []
        assert not is_alive(hops)


@pytest.mark.usefixtures("by_proc")
@pytest.mark.asyncio
async def test_others_in_the_midst_of_an_exec(aioproc: Any, tmp_path: Path) -> None:
    """On a busy machine there are some at any time, and nobody waits for them: who is the
    child of another than those that are given orphans is none of the tree."""
    program = str(hopper(tmp_path / "hopper", 50))
    twenty = 'for i in 1 2 3 4 5 6 7 8 9 0; do "$1" >/dev/null & "$1" >/dev/null & done'
    script = twenty + "; echo; read end; kill 0"
    command = ("sh", "-c", script, "sh", program)
    options = {"stdin": PIPE, "stdout": PIPE, "start_new_session": True}
    younger = await aioproc.create_subprocess_exec("cat", stdin=PIPE, tree=True)
    others = await aioproc.create_subprocess_exec(*command, **options)
    try:
        assert await others.stdout.readline() == b"\n"
        older = await aioproc.create_subprocess_exec("cat", stdin=PIPE, tree=True)
        for process in (younger, older):
            process.stdin.close()
            assert await process.wait() == 0
            began = scanning.scanning.rounds
            assert await process.kill_tree() == []
            assert scanning.scanning.rounds - began < 10
            assert await process._transport.tree.gone(FUSE)
            assert scanning.scanning.rounds - began < 20
            await process.communicate()
    finally:
        await others.communicate()


@pytest.mark.usefixtures("by_proc")
@pytest.mark.asyncio
async def test_a_stranger_in_the_midst_of_an_exec_is_not_counted(
    aioproc: Any, tmp_path: Path
) -> None:
    """Another child of ours: who has lost his parent may be given to us, so it is suspected."""
    process = await aioproc.create_subprocess_exec("cat", stdin=PIPE, tree=True)
    program = str(hopper(tmp_path / "hopper", 50))
    stranger = await aioproc.create_subprocess_exec(program)
    await process.communicate()
    assert await process._transport.tree.alive() == 0
    stranger.kill()
    await stranger.wait()


@pytest.mark.asyncio
async def test_a_signal_for_all(aioproc: Any, family: list[int]) -> None:
    process = await start(aioproc, family, *STAYS)
    process.send_signal(signal.SIGTERM, tree=True)
    assert await process.wait() == -signal.SIGTERM
    daemon, stubborn = family
    assert await settle(lambda: not is_alive(daemon))
    assert is_alive(stubborn)
    assert await process.kill_tree() == []
    assert not is_alive(stubborn)


@pytest.mark.asyncio
async def test_the_end_of_a_block(
    aioproc: Any, family: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ignores SIGTERM, after its leader has died of it."""
    monkeypatch.setattr(process_module.Process, "_steps", [(signal.SIGTERM, 0.2)])
    async with await start(aioproc, family, *STAYS) as process:
        pass
    assert process.returncode == -signal.SIGTERM
    assert not any(map(is_alive, family))


@pytest.mark.asyncio
async def test_the_end_of_a_block_comes_with_that_of_the_last(aioproc: Any) -> None:
    """The grace is for all of them: here the last needs a moment, and gets it."""
    code = """
import os, signal, sys, time
asked = {signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, asked)
pid = os.fork()
if pid == 0:
    os.write(1, b"ready\\n")
    signal.sigwait(asked)
    time.sleep(0.1)
    os.write(1, b"done\\n")
    os._exit(0)
signal.sigwait(asked)
"""
    async with await aioproc.create_subprocess_exec(
        *python(code), stdin=NULL, stdout=PIPE, tree=True
    ) as process:
        assert await process.stdout.readline() == b"ready\n"
        reader = asyncio.create_task(process.stdout.read())
        await asyncio.sleep(0)
    assert await reader == b"done\n"


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system where nobody can look for processes."""
    assert settle_now(lambda: scanning.scanning._thread is None)
    monkeypatch.setattr(_backends, "open_scanner", lambda: None)


@pytest.mark.asyncio
async def test_the_grace_where_nobody_can_look(aioproc: Any, blind: None) -> None:
    code = (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "print('ready', flush=True)\nsignal.sigwait([signal.SIGTERM])\nraise SystemExit(7)"
    )
    async with await aioproc.create_subprocess_exec(
        *python(code), stdout=PIPE, tree=True
    ) as process:
        assert await process.stdout.readline() == b"ready\n"
    assert process.returncode == 7
    with pytest.raises(aioproc.TimeoutExpired) as caught:
        await aioproc.run("sh", "-c", "sleep 1000 & exec sleep 1000", timeout=0.3)
    result = caught.value.result
    assert (result.returncode, result.forced, result.left) == (-signal.SIGTERM, "stop", None)


REFUSED = """
import errno, seccomp
from aioproc import _backends
async def main():
    process = await aioproc.create_subprocess_exec(
        "sh", "-c", "read x", stdin=aioproc.PIPE, tree=True)
    # As with a setuid program; and nobody can look.
    _backends.open_scanner = lambda: None
    seccomp.deny(dict.fromkeys(("kill", "pidfd_send_signal"), errno.EPERM))
    assert await asyncio.wait_for(process.kill_tree(), 30) == [process.pid]
    process.stdin.close()
    assert await process.wait() == 1
    print("ok")
run(main())
"""


@pytest.mark.skipif(not seccomp.SUPPORTED, reason="no numbers, or no ctypes")
def test_one_that_may_not_be_ended_where_nobody_can_look(aside: Aside) -> None:
    assert aside.run(REFUSED) == "ok\n"


@pytest.mark.asyncio
async def test_a_cancelled_block(
    aioproc: Any, family: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second cancellation leaves out the grace."""
    process: Any = None
    there = asyncio.Event()

    async def block() -> None:
        nonlocal process
        async with await start(aioproc, family, *STAYS[:2], FAMILY + "exec sleep 1000") as process:
            there.set()
            await asyncio.sleep(1000)

    monkeypatch.setattr(process_module.Process, "_steps", [(signal.SIGTERM, 1000)])
    task = asyncio.create_task(block())
    await asyncio.wait_for(there.wait(), FUSE)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, FUSE)
    assert not any(map(is_alive, family))
    assert process.returncode is not None


@pytest.mark.asyncio
async def test_our_own_group_is_nobody_elses(aioproc: Any) -> None:
    """A child in it leads none."""
    process = await aioproc.create_subprocess_exec(
        "sleep", "1000", process_group=os.getpgrp(), tree=True, stdin=NULL
    )
    process.send_signal(signal.SIGTERM, tree=True)
    assert await process.wait() == -signal.SIGTERM
    process = await aioproc.create_subprocess_exec(
        "sleep", "1000", process_group=os.getpgrp(), tree=True, stdin=NULL
    )
    assert await process.kill_tree() == []
    assert process.returncode == -signal.SIGKILL


@pytest.mark.asyncio
async def test_who_was_reaped_by_others(aioproc: Any, family: list[int]) -> None:
    process = await start(aioproc, family, *STAYS)
    process.kill()
    os.waitpid(process.pid, 0)
    assert await process.kill_tree() == []
    assert not any(map(is_alive, family))


@pytest.mark.asyncio
async def test_without_a_tree(aioproc: Any) -> None:
    process = await aioproc.create_subprocess_exec(*TRUE)
    with pytest.raises(RuntimeError, match="tree=True"):
        process.send_signal(signal.SIGTERM, tree=True)
    with pytest.raises(RuntimeError, match="tree=True"):
        await process.kill_tree()
    await process.wait()


# -- sessions

SHOW = (
    "import json, os; print(json.dumps("
    "[os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid(), os.environ.get('AIOPROC_TREE')]))"
)


async def shown(aioproc: Any, **options: Any) -> Any:
    process = await aioproc.create_subprocess_exec(*python(SHOW), stdout=PIPE, **options)
    return json.loads((await process.communicate())[0])


@pytest.mark.asyncio
async def test_who_gets_a_session(aioproc: Any) -> None:
    assert (await shown(aioproc, tree=True, stdin=NULL))[0] is True
    assert (await shown(aioproc, tree=True, stdin=PIPE))[0] is True
    assert (await shown(aioproc, tree=True))[0] is False  # it may read our terminal
    assert (await shown(aioproc, tree=True, start_new_session=True))[0] is True
    assert (await shown(aioproc, tree=True, stdin=NULL, start_new_session=False))[0] is False
    assert (await shown(aioproc, tree=True, stdin=NULL, process_group=0))[:2] == [False, True]
    assert (await shown(aioproc, stdin=NULL))[0] is False


# -- the mark


@pytest.mark.asyncio
async def test_the_mark_is_in_the_environment_alone(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOPROC_TREE", raising=False)
    _, _, first = await shown(aioproc, tree=True)
    assert len(first) == 16
    int(first, 16)
    assert (await shown(aioproc, tree=True))[2] != first
    assert (await shown(aioproc))[2] is None
    assert "AIOPROC_TREE" not in os.environ
    env = {"PATH": os.environ["PATH"], "A": "1"}
    given = dict(env)
    assert len((await shown(aioproc, tree=True, env=env))[2]) == 16
    assert env == given
    # One that is there already is nested: in what is inherited, and in what is given.
    monkeypatch.setenv("AIOPROC_TREE", "outer")
    assert (await shown(aioproc, tree=True))[2].startswith("outer:")
    assert (await shown(aioproc))[2] == "outer"
    nested = await shown(aioproc, tree=True, env={**env, "AIOPROC_TREE": "given"})
    assert nested[2].startswith("given:")
    # An empty one has taken its process out of all trees, and begins anew.
    monkeypatch.setenv("AIOPROC_TREE", "")
    assert len((await shown(aioproc, tree=True))[2]) == 16
    monkeypatch.setenv("AIOPROC_TREE", ":".join("abcdefgh"))
    marks = (await shown(aioproc, tree=True))[2].split(":")
    assert marks[:-1] == list("bcdefgh")


@pytest.mark.asyncio
async def test_audit_hooks_see_what_was_given(aside: Aside) -> None:
    if aside.subject in ("pure", "thread"):
        pytest.skip("Popen's own event has what Popen is given")
    aside.run("""
seen = []
sys.addaudithook(lambda event, args: seen.append(args) if event == "subprocess.Popen" else None)

async def main():
    process = await aioproc.create_subprocess_exec("true", env={"A": "1"}, tree=True)
    await process.wait()
    assert seen[-1][3] == {"A": "1"}, seen

run(main())
""")


def test_a_block_with_the_mark() -> None:
    def in_block(text: bytes, count: int) -> tuple[bytes, int]:
        parts, count = mark.in_block(text, count, "m")
        return b"\0".join(parts), count

    assert in_block(b"", 0) == (b"AIOPROC_TREE=m\0", 1)
    assert in_block(b"A=1\0", 1) == (b"AIOPROC_TREE=m\0A=1\0", 2)
    assert in_block(b"AIOPROC_TREE=\0A=1\0", 2) == (b"AIOPROC_TREE=m\0A=1\0", 2)
    block = b"A=1\0AIOPROC_TREE=a:b\0B=2\0"
    assert in_block(block, 3) == (b"A=1\0AIOPROC_TREE=a:b:m\0B=2\0", 3)
    # Another variable, whose name ends like it.
    block = b"XAIOPROC_TREE=a\0"
    assert in_block(block, 1) == (b"AIOPROC_TREE=m\0" + block, 2)
    assert mark.in_mapping({b"AIOPROC_TREE": b"a"}, "m") == {"AIOPROC_TREE": "a:m"}
    assert mark.in_mapping({"AIOPROC_TREE": "a", "B": "2"}, "m") == {
        "AIOPROC_TREE": "a:m",
        "B": "2",
    }


INNER = """
import asyncio, os, sys
import aioproc

async def main():
    process = await aioproc.create_subprocess_exec(
        "sh", "-c", "setsid sleep 1000 & exec sleep 1000", stdin=aioproc.DEVNULL,
        stdout=aioproc.DEVNULL, tree=True)
    print(process.pid, flush=True)
    sys.stdin.readline()
    assert await process.kill_tree() == []
    print("ended", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_a_tree_inside_a_tree(aioproc: Any) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    options: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE, "tree": True, "env": environment}
    # The inner one ends: the outer one lives on.
    outer = await aioproc.create_subprocess_exec(sys.executable, "-c", INNER, **options)
    inner = int(await outer.stdout.readline())
    outer.stdin.write(b"\n")
    assert await outer.stdout.readline() == b"ended\n"
    assert not is_alive(inner)
    assert outer.returncode is None
    assert await outer.kill_tree() == []
    # The outer one ends, and takes the inner one along.
    outer = await aioproc.create_subprocess_exec(sys.executable, "-c", INNER, **options)
    inner = int(await outer.stdout.readline())
    assert await outer.kill_tree() == []
    assert not is_alive(inner)


@pytest.mark.asyncio
async def test_a_creation_that_is_cancelled(aioproc: Any, tmp_path: Path) -> None:
    """Before anybody has the process, and when it has started another already."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    # One of the two leaves the group that can be signalled.
    script = 'sleep 1000 & one=$!; setsid sh -c "echo $$ $one \\$\\$ >$1; exec sleep 1000" & wait'
    command = ("sh", "-c", script, "sh", fifo)
    creation = asyncio.ensure_future(
        aioproc.create_subprocess_exec(*command, stdin=NULL, tree=True)
    )
    await asyncio.sleep(0)
    # The loop stands still meanwhile, and so hears nothing of it.
    with open(fifo) as file:
        family = list(map(int, file.read().split()))
    assert len(family) == 3
    creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation
    assert await settle(lambda: not any(map(is_alive, family)))


LEFT_HANGING = """
import asyncio, os, sys
import aioproc

fifo, what = sys.argv[1:]
script = 'setsid sh -c "echo \\$\\$ >$1; exec sleep 1000" & exec sleep 1000'
command = ("sh", "-c", script, "sh", fifo)
none = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.DEVNULL)
loop = asyncio.new_event_loop()

def begun():
    # The loop stands still meanwhile.
    with open(fifo) as file:
        print(file.read(), flush=True)

async def creation():
    global coroutine, future
    coroutine = aioproc.create_subprocess_exec(*command, tree=True, **none)
    future = coroutine.send(None)
    begun()

async def run():
    global coroutine, future
    coroutine = aioproc.run(*command)
    future = coroutine.send(None)
    begun()

loop.run_until_complete(globals()[what]())
"""


@pytest.mark.parametrize("what", ["creation", "run"])
@pytest.mark.parametrize("backend", ["native", "pure"])
def test_left_hanging_at_the_end(
    what: str, backend: str, family: list[int], tmp_path: Path
) -> None:
    """A coroutine that the interpreter closes when no thread can be started any more."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    done = subprocess.run(
        [sys.executable, "-c", LEFT_HANGING, fifo, what],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "AIOPROC_BACKEND": backend},
        timeout=FUSE,
    )
    family.append(int(done.stdout))
    assert done.returncode == 0, done.stderr
    assert not is_alive(family[0])


ADOPTS = """
import ctypes
from aside import is_alive
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

FAMILY = "sleep 1000 & setsid sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & "

async def main():
    for _ in range(5):
        try:
            await aioproc.run("sh", "-c", FAMILY + "echo; exec sleep 1000", timeout=0.1)
        except aioproc.TimeoutExpired:
            pass
        done = await aioproc.run("sh", "-c", FAMILY + "echo", leftovers="kill", drain=0)
        assert done.ok, done
        async with aioproc.open_process("sh", "-c", FAMILY + "echo; wait", stop=0) as process:
            await process.stdout.readline()
        assert process.returncode < 0
    # A child of somebody else's, which nobody of ours waits for.
    other = os.spawnlp(os.P_NOWAIT, "true", "true")
    await settle(lambda: not is_alive(other))
    await aioproc.run("sh", "-c", FAMILY + "echo", leftovers="kill", drain=0)
    assert os.waitpid(other, 0) == (other, 0)
run(main())
assert not children(), [open(f"/proc/{pid}/stat").read() for pid in children()]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about prctl(2)")
def test_orphans_that_are_given_to_us_are_reaped(aside: Aside) -> None:
    """As to process 1 of a container, where nobody else does."""
    aside.run(ADOPTS)


AT_EXIT = """
import atexit, asyncio, sys

def last():
    import aioproc
    script = "setsid sh -c 'echo $$; exec sleep 1000' & echo $$; sleep 1000"
    try:
        asyncio.run(aioproc.run("sh", "-c", script, timeout=0.3))
    except aioproc.TimeoutExpired as error:
        print(error.result.left, error.result.text)

if sys.argv[1] == "after":
    atexit.register(last)
import aioproc
from aioproc._trees import scanning
scanning.STUCK = 1000
asyncio.run(aioproc.run("true"))
if sys.argv[1] == "before":
    atexit.register(last)
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("backend", ["native", "pure"])
def test_a_function_of_atexit(when: str, backend: str, family: list[int]) -> None:
    """It runs before ours, or after: then there is no thread any more, which it does not have
    to wait for; and Python 3.12 starts none in either case."""
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, when],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "AIOPROC_BACKEND": backend},
        timeout=FUSE,
    )
    left, *pids = done.stdout.split()
    family += map(int, pids)
    assert (done.returncode, done.stderr, left) == (0, "", "[]")
    assert len(pids) == 2
    assert not any(map(is_alive, family))
