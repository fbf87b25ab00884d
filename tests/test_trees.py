"""Finding and ending what a child has started: the scanners, native and pure, and the
thread that serves all endings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if os.name == "nt":
    pytest.skip("not on Windows: a job is the tree there", allow_module_level=True)

import seccomp
from aioproc import _backends
from aioproc._spec.mark import appended, new_mark
from aioproc._trees import Tree, scanning
from aside import Aside
from conftest import FUSE, is_alive, make_backend, settle, subjects
from programs import HAS_PROC, python

pytestmark = pytest.mark.skipif(not HAS_PROC, reason="no /proc as Linux has it")
asynchronous = pytest.mark.asyncio
is_root = os.geteuid() == 0


@pytest.fixture(params=["native", "pure"])
def scanner(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the scanner that is used."""
    names = {"pure": {"pure"}, "native": {"clone", "copy", "portable"}}[request.param]
    names &= set(subjects(request.config))
    if not names:
        pytest.skip("waived")
    previous = _backends.use(make_backend(names.pop()))
    yield request.param
    # The thread ends before the next one comes with another backend.
    assert settle(lambda: scanning.scanning._thread is None)
    _backends.use(previous)


@pytest.fixture
def by_proc(scanner: str) -> None:
    """For what is not so where processes are seen by sysctl."""
    if scanner == "native" and _backends.report()["features"]["kqueue"]:
        pytest.skip("about /proc")


@pytest.fixture
def another(scanner: str) -> Aside:
    """A Python of its own with that scanner."""
    return Aside(scanner)


class Family:
    """Children of this process, and whoever they have started that is named here."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[str]] = []
        self.others: list[int] = []

    def start(self, *words: str, mark: str = "", **options: Any) -> subprocess.Popen[str]:
        env = {"PATH": os.environ["PATH"], **options.pop("env", {})}
        if mark:
            env["AIOPROC_TREE"] = mark
        options = {"start_new_session": True, "stdout": subprocess.PIPE, **options}
        child = subprocess.Popen(words, env=env, text=True, **options)
        self.children.append(child)
        return child

    def sh(self, script: str, mark: str = "", **options: Any) -> subprocess.Popen[str]:
        return self.start("/bin/sh", "-c", script, mark=mark, **options)

    def member(self, of: subprocess.Popen[str]) -> int:
        """The number that it says."""
        self.others.append(int(line(of)))
        return self.others[-1]

    def end(self) -> None:
        for pid in self.others:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        for child in self.children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    pipe.close()


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    yield made
    made.end()


def line(of: subprocess.Popen[str]) -> str:
    assert of.stdout is not None
    return of.stdout.readline().rstrip("\n")


def of(child: subprocess.Popen[str], mark: str = "") -> Tree:
    return Tree(child.pid, session=True, mark=mark)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def settled(condition: Callable[[], bool]) -> bool:
    return await asyncio.to_thread(settle, condition)


#: A member that says its number and is there for long.
SLEEPER = "echo $$; exec sleep 1000"

# -- marks


def test_marks() -> None:
    marks = {new_mark() for _ in range(100)}
    assert len(marks) == 100
    assert all(re.fullmatch("[0-9a-f]{16}", mark) for mark in marks)


def test_marks_in_each_other() -> None:
    assert appended(b"", "a") == b"a"
    assert appended(b"outer", "inner") == b"outer:inner"
    assert appended(b":", "a") == b"a"
    eight = b":".join(b"%d" % number for number in range(8))
    assert appended(eight, "new") == b"1:2:3:4:5:6:7:new"


# -- who is a member


@asynchronous
async def test_a_member_that_outlives_its_leader(scanner: str, family: Family) -> None:
    leader = family.sh(f"sh -c 'trap \"\" TERM; {SLEEPER}' & wait")
    member = family.member(leader)
    tree = of(leader)
    assert await tree.alive() == 2
    assert await tree.signal(signal.SIGTERM) == 2
    assert await settled(lambda: not is_alive(leader.pid))
    assert await tree.gone(0) is False
    assert await tree.alive() == 1
    assert is_alive(member)
    assert await tree.kill() == []
    assert not is_alive(member)
    assert await tree.gone(FUSE) is True


@asynchronous
@pytest.mark.parametrize("place", ["{0}", "{0}:{1}", "{1}:{0}", ":{1}::{0}:"])
async def test_a_daemon_by_its_mark(scanner: str, family: Family, place: str) -> None:
    mark = new_mark()
    leader = family.sh(f"setsid sh -c '{SLEEPER}' &", mark=place.format(mark, new_mark()))
    member = family.member(leader)
    leader.wait()
    tree = of(leader, mark)
    tree.leader_reaped()
    assert await tree.alive() == 1
    assert await tree.kill() == []
    assert not is_alive(member)


@asynchronous
async def test_a_run_inside_a_run(scanner: str, family: Family) -> None:
    outer, inner = new_mark(), new_mark()
    leader = family.sh(
        f"setsid sh -c '{SLEEPER}' & read line; "
        f"AIOPROC_TREE={outer}:{inner} setsid sh -c '{SLEEPER}' & wait",
        mark=outer,
        stdin=subprocess.PIPE,
    )
    mine = family.member(leader)
    assert leader.stdin is not None
    leader.stdin.close()
    its = family.member(leader)
    outside, inside = of(leader, outer), Tree(0, session=False, mark=inner)
    assert await asyncio.gather(outside.alive(), inside.alive()) == [3, 1]
    assert await inside.kill() == []
    assert [is_alive(pid) for pid in (leader.pid, mine, its)] == [True, True, False]
    assert await outside.kill() == []
    assert not any(map(is_alive, (leader.pid, mine)))


@asynchronous
async def test_the_outer_run_takes_the_inner(scanner: str, family: Family) -> None:
    outer, inner = new_mark(), new_mark()
    leader = family.sh(f"setsid sh -c '{SLEEPER}' &", mark=f"{outer}:{inner}")
    member = family.member(leader)
    leader.wait()
    tree = Tree(0, session=False, mark=outer)
    assert await tree.kill() == []
    assert not is_alive(member)


@asynchronous
async def test_of_a_daemon_without_mark_nothing_is_claimed(scanner: str, family: Family) -> None:
    mark = new_mark()
    leader = family.sh(f"env -i setsid /bin/sh -c '{SLEEPER}' &", mark=mark)
    member = family.member(leader)
    assert await settled(lambda: not is_alive(leader.pid))
    tree = of(leader, mark)
    assert await tree.alive() == 0
    assert await tree.kill() == []
    assert is_alive(member)


@asynchronous
@pytest.mark.parametrize("whose", ["its own", "another"])
async def test_who_was_seen_by_its_parent_is_remembered(
    scanner: str, family: Family, whose: str
) -> None:
    """As long as there is an ending under way."""
    mark = new_mark()
    other = of(family.start("sleep", "1000"))
    leader = family.sh(f"env -i setsid /bin/sh -c '{SLEEPER}' & wait", mark=mark)
    member = family.member(leader)
    tree = of(leader, mark)
    gone = (tree if whose == "its own" else other).gone(FUSE)
    assert await tree.alive() == 2
    assert await other.alive() == 1
    leader.kill()
    leader.wait()
    tree.leader_reaped()
    assert await tree.alive() == 1
    assert await tree.kill() == []
    assert not is_alive(member)
    assert await other.kill() == []
    assert await gone is True


@asynchronous
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
async def test_who_is_known_by_a_parent_that_ends_as_well(
    scanner: str, family: Family, number: int
) -> None:
    daemon = "env -i setsid /bin/sh -c"
    leader = family.sh(
        f"{daemon} '{daemon} \"{SLEEPER.replace('$', chr(92) + '$')}\" & wait' & wait"
    )
    member = family.member(leader)
    tree = of(leader)
    if number == signal.SIGKILL:
        assert await tree.kill() == []
    else:
        assert await tree.signal(number) == 3
        assert await tree.gone(FUSE) is True
    assert not is_alive(member)


@asynchronous
async def test_an_empty_mark_takes_a_daemon_out(scanner: str, family: Family) -> None:
    mark = new_mark()
    leader = family.sh(f"AIOPROC_TREE= setsid sh -c '{SLEEPER}' &", mark=mark)
    member = family.member(leader)
    assert await settled(lambda: not is_alive(leader.pid))
    assert await of(leader, mark).kill() == []
    assert is_alive(member)


@asynchronous
async def test_a_mark_is_a_whole_one(scanner: str, family: Family) -> None:
    mark = "abcdef0123456789"
    members = [family.start("sleep", "1000", mark=one).pid for one in (mark, f"x:{mark}")]
    others = [
        family.start("sleep", "1000", mark=one).pid
        for one in (
            "x" + mark,
            "0" + mark,
            mark + "0",
            mark[1:],
            mark.upper(),
            f"x={mark}",
            f"{mark} ",
        )
    ]
    names = ("XAIOPROC_TREE", "AIOPROC_TREE2", "AIOPROC_TRE", "A")
    others += [family.start("sleep", "1000", env={name: mark}).pid for name in names]
    line_break = {"A": f"\nAIOPROC_TREE={mark}"}
    others.append(family.start("sleep", "1000", env=line_break).pid)
    assert await Tree(0, session=False, mark=mark).kill() == []
    assert not any(map(is_alive, members))
    assert all(map(is_alive, others))


@asynchronous
async def test_a_mark_anywhere_in_a_large_environment(scanner: str, family: Family) -> None:
    mark = new_mark()
    # PATH comes first. An environment is read in pieces of 32 KiB.
    first = len(f"PATH={os.environ['PATH']}\0A=\0")
    for place in (1, 12, 13, 14, 20, 29, 30):
        env = {"A": "x" * (2**15 - first - place), "AIOPROC_TREE": mark, "B": "x" * 100_000}
        family.start("sleep", "1000", env=env)
    tree = Tree(0, session=False, mark=mark)
    # Between fork and exec they have our environment.
    assert await settled(lambda: all(b"AIOPROC" in environ(one.pid) for one in family.children))
    assert await tree.alive() == 7
    assert await tree.kill() == []


def environ(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@asynchronous
async def test_zombies_count_as_gone(scanner: str, family: Family) -> None:
    leader = family.start(
        *python("import os, time\npid = os.fork()\nif not pid: os._exit(0)\n"
                "print(pid, flush=True)\ntime.sleep(1000)")
    )  # fmt: skip
    member = int(line(leader))
    assert await settled(lambda: state(member) == "Z")
    tree = of(leader)
    assert await tree.alive() == 1
    assert await tree.kill() == []
    assert leader.returncode is None
    assert await tree.alive() == 0  # though nobody has reaped the leader
    assert leader.wait() == -signal.SIGKILL


@asynchronous
async def test_a_process_whose_first_thread_has_ended_is_alive(
    scanner: str, family: Family
) -> None:
    pytest.importorskip("ctypes")
    leader = family.start(
        *python(
            "import ctypes, threading, time\n"
            "def later():\n print(flush=True)\n time.sleep(1000)\n"
            "threading.Thread(target=later).start()\n"
            "ctypes.CDLL(None).pthread_exit(None)"
        )
    )
    line(leader)
    assert await settled(lambda: state(leader.pid) == "Z")
    tree = of(leader)
    assert await tree.alive() == 1
    assert await tree.gone(0) is False
    assert await tree.kill() == []
    assert leader.wait() == -signal.SIGKILL


@asynchronous
@pytest.mark.usefixtures("by_proc")  # starts that say which process is older
async def test_a_number_that_is_anothers_by_now(scanner: str, family: Family) -> None:
    stranger = family.start("sleep", "1000")
    tree = Tree(stranger.pid, session=True, mark=new_mark(), born=1)
    assert await tree.signal(signal.SIGTERM) == 0
    assert await tree.kill() == []
    assert is_alive(stranger.pid)


def test_the_number_of_a_member_that_is_anothers_by_now(scanner: str, family: Family) -> None:
    stranger = family.start("sleep", "1000")
    look = _backends.open_scanner()
    assert look is not None
    with contextlib.closing(look):
        tree = look.sought()
        tree.leader = tree.session = stranger.pid
        look.round([tree])
        assert tree.alive == 1
        start = tree.start
        # Who was seen is not who is there; another has got the number.
        other = look.sought()
        other.leader = other.session = stranger.pid
        other.start, other.signal = start - 1, signal.SIGKILL
        look.round([other])
        assert (other.alive, other.signalled) == (0, 0)
    assert is_alive(stranger.pid)


# -- signals

#: Says which signals it gets; ends by TERM.
COUNTS = python(
    "import os, signal\n"
    "for one in (signal.SIGINT, signal.SIGUSR1):\n"
    " signal.signal(one, lambda number, _: os.write(1, b'%d\\n' % number))\n"
    "print('ready', flush=True)\n"
    "while True: signal.pause()"
)


@asynchronous
async def test_a_signal_comes_once(scanner: str, family: Family) -> None:
    leader = family.start(*COUNTS)
    assert line(leader) == "ready"
    tree = of(leader)
    gone = tree.gone(FUSE)
    assert await tree.signal(signal.SIGINT) == 1
    assert line(leader) == str(int(signal.SIGINT))
    for _ in range(3):
        assert await tree.alive() == 1
    await tree.signal(signal.SIGUSR1)
    assert line(leader) == str(int(signal.SIGUSR1))
    await tree.signal(signal.SIGTERM)
    assert await gone is True
    assert leader.communicate()[0] == ""
    assert leader.returncode == -signal.SIGTERM


@asynchronous
async def test_who_has_it_by_the_group(scanner: str, family: Family) -> None:
    leader = family.start(*COUNTS)
    assert line(leader) == "ready"
    tree = of(leader)
    gone = tree.gone(FUSE)
    os.killpg(leader.pid, signal.SIGINT)
    await tree.signal(signal.SIGINT, group=leader.pid)
    assert line(leader) == str(int(signal.SIGINT))
    leader.send_signal(signal.SIGUSR1)
    await tree.signal(signal.SIGUSR1, leader=True)
    assert await tree.alive() == 1
    assert line(leader) == str(int(signal.SIGUSR1))
    await tree.signal(signal.SIGTERM)
    assert await gone is True
    assert leader.communicate()[0] == ""


@asynchronous
async def test_who_is_born_later_gets_it(scanner: str, family: Family) -> None:
    leader = family.start(
        *python(
            "import signal, subprocess, sys\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
            "print('ready', flush=True)\n"
            "signal.sigwait([signal.SIGTERM])\n"
            "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])\n"
            "print(subprocess.call(['sleep', '1000']), flush=True)\n"
        )
    )
    assert line(leader) == "ready"
    tree = of(leader)
    await tree.signal(signal.SIGTERM)
    assert await tree.gone(FUSE) is True
    assert line(leader) == str(-signal.SIGTERM)


@asynchronous
async def test_a_stopped_member(scanner: str, family: Family) -> None:
    leader = family.sh(f"setsid sh -c '{SLEEPER}' & wait")
    member = family.member(leader)
    os.kill(member, signal.SIGSTOP)
    assert await settled(lambda: state(member) == "T")
    tree = of(leader)
    tree.send(signal.SIGHUP)
    assert await tree.alive() is not None
    assert state(member) == "T"
    await tree.signal(signal.SIGTERM)
    assert await tree.gone(FUSE) is True
    assert not is_alive(member)


@asynchronous
async def test_from_any_thread(scanner: str, family: Family) -> None:
    leader = family.start("sleep", "1000")
    tree = of(leader)
    await asyncio.to_thread(tree.send, signal.SIGTERM)
    assert await tree.gone(FUSE) is True


@asynchronous
async def test_a_signal_that_was_sent_does_not_stay(scanner: str, family: Family) -> None:
    leader = family.start(
        *python(
            "import os, signal, subprocess\n"
            "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'got\\n'))\n"
            "print('ready', flush=True)\n"
            "input()\n"
            "print(subprocess.Popen(['sleep', '1000']).pid, flush=True)\n"
            "input()"
        ),
        stdin=subprocess.PIPE,
    )
    assert line(leader) == "ready"
    tree = of(leader)
    gone = tree.gone(FUSE)
    tree.send(signal.SIGTERM)
    assert line(leader) == "got"
    assert leader.stdin is not None
    leader.stdin.write("\n")
    leader.stdin.flush()
    member = family.member(leader)
    for _ in range(3):
        assert await tree.alive() == 2
    assert is_alive(member)
    leader.stdin.close()
    assert await tree.kill() == []
    assert await gone is True


# -- those that are hard to end

#: Forks, and a session for each, without a pause, till it is ended or by itself says so.
HOPPER = python(
    "import os, time\n"
    "end = time.monotonic() + 5\n"
    "os.write(1, b'ready\\n')\n"
    "while time.monotonic() < end:\n"
    " if os.fork(): os._exit(0)\n"
    " os.setsid()\n"
    "os.write(1, b'survived\\n')\n"
)


@asynchronous
@pytest.mark.usefixtures("by_proc")  # a list is of a moment ago
async def test_a_hopper(scanner: str, family: Family) -> None:
    mark = new_mark()
    leader = family.start(*HOPPER, mark=mark)
    assert line(leader) == "ready"
    assert leader.stdout is not None
    tree = of(leader, mark)
    # Once is enough in nearly all cases.
    while not select.select([leader.stdout], [], [], 0)[0]:
        await tree.kill()
    assert leader.stdout.read() == ""


@pytest.mark.root
@pytest.mark.skipif(not is_root, reason="needs to be root")
def test_another_users(another: Aside, family: Family) -> None:
    said = another.run(
        """
import subprocess
from aioproc._trees import Tree, scanning
scanning.KILL_TIME = 0.1
null = subprocess.DEVNULL
process = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=null, stderr=null)
async def main():
    tree = Tree(process.pid, session=True, mark="")
    os.setresuid(65534, 65534, 65534)
    print(process.pid, await tree.signal(signal.SIGTERM), await tree.kill())
run(main())
"""
    )
    pid = int(said.split()[0])
    family.others.append(pid)
    assert said.split() == [str(pid), "1", f"[{pid}]"]
    assert is_alive(pid)


FREEZER = Path("/sys/fs/cgroup/freezer")


@asynchronous
@pytest.mark.root
@pytest.mark.skipif(not is_root, reason="needs to be root")
@pytest.mark.skipif(not FREEZER.is_dir(), reason="no freezer of cgroups, version 1")
async def test_one_that_the_kernel_cannot_end(
    scanner: str, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "KILL_TIME", 0.1)
    group = FREEZER / f"aioproc-{os.getpid()}"
    group.mkdir()
    try:
        leader = family.start("sleep", "1000")
        (group / "cgroup.procs").write_text(str(leader.pid))
        (group / "freezer.state").write_text("FROZEN")
        assert await settled(lambda: (group / "freezer.state").read_text() == "FROZEN\n")
        tree = of(leader)
        assert await tree.kill() == [leader.pid]
        (group / "freezer.state").write_text("THAWED")
        assert await tree.gone(FUSE) is True
        leader.wait()
    finally:
        (group / "freezer.state").write_text("THAWED")
        family.end()
        assert settle(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


#: In another process: a leader, a daemon of it, and their tree.
TREE = """
import subprocess
from aside import is_alive
from aioproc._spec.mark import new_mark
from aioproc._trees import Tree, scanning
mark = new_mark()
leader = subprocess.Popen(
    ["sh", "-c", "setsid sh -c 'echo $$; exec sleep 1000' & wait"],
    start_new_session=True, env={**os.environ, "AIOPROC_TREE": mark},
    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
)
member = int(leader.stdout.readline())
leader.stdout.close()
tree = Tree(leader.pid, session=True, mark=mark)
def ended():
    leader.wait()
    return not is_alive(member)
"""

FULL = """
import resource
def fill():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    more = []
    try:
        while True: more.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.EMFILE
    return more
"""


@pytest.mark.usefixtures("by_proc")
def test_without_descriptors(another: Aside) -> None:
    said = another.run(
        TREE
        + FULL
        + """
async def main():
    gone = tree.gone(60)
    assert await tree.alive() == 2
    more = fill()
    assert await tree.alive() == 2
    assert await tree.kill() == []
    assert await gone is True
    for fd in more: os.close(fd)
run(main())
print(ended())
"""
    )
    assert said == "True\n"


@pytest.mark.usefixtures("by_proc")
def test_without_descriptors_from_the_beginning(another: Aside) -> None:
    """One is needed, and waited for."""
    said = another.run(
        TREE
        + FULL
        + """
async def main():
    more = fill()
    assert await tree.alive() is None
    scanning.KILL_TIME = 0.01
    assert await tree.kill() is None
    scanning.KILL_TIME = 60
    kill = tree.kill()
    await asyncio.sleep(0)
    for fd in more: os.close(fd)
    assert await kill == []
run(main())
print(ended())
"""
    )
    assert said == "True\n"


@pytest.mark.skipif(not seccomp.SUPPORTED, reason="no numbers, or no ctypes")
def test_where_signals_by_descriptors_are_refused(another: Aside) -> None:
    said = another.run(
        TREE
        + """
import seccomp
aioproc._backends.current()  # which would not be native
seccomp.deny({"pidfd_send_signal": errno.EPERM})
async def main():
    await tree.signal(signal.SIGTERM)
    assert await tree.gone(60) is True
run(main())
print(ended())
"""
    )
    assert said == "True\n"


@pytest.mark.root
@pytest.mark.skipif(not is_root, reason="needs to be root")
def test_where_nobody_can_look(another: Aside, tmp_path: Path) -> None:
    said = another.run(
        TREE
        + """
async def main():
    await tree.kill()
    while scanning.scanning._thread is not None: await asyncio.sleep(0.01)
    os.chroot(sys.argv[1])
    for future in (tree.signal(signal.SIGTERM), tree.alive(), tree.gone(60), tree.kill()):
        print(await future)
run(main())
leader.wait()
""",
        tmp_path,
    )
    assert said == "None\n" * 4


# -- the thread


@asynchronous
async def test_many_endings_share_their_rounds(scanner: str, family: Family) -> None:
    trees = [of(family.start("sleep", "1000")) for _ in range(50)]
    before = scanning.scanning.rounds
    assert await asyncio.gather(*(tree.kill() for tree in trees)) == [[]] * 50
    # Each alone has a round to find its members, and two without.
    assert scanning.scanning.rounds - before < 50


@asynchronous
async def test_one_that_is_not_waited_for_any_more(scanner: str, family: Family) -> None:
    leader = family.start("sleep", "1000")
    tree = of(leader)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(tree.gone(FUSE), 0.01)
    tree.kill().cancel()
    # With nothing to do the thread ends.
    assert await settled(lambda: scanning.scanning._thread is None)


@asynchronous
async def test_a_tree_that_nobody_has_is_forgotten(scanner: str, family: Family) -> None:
    leader = family.start("sleep", "1000")
    tree = of(leader)
    assert await tree.alive() == 1
    del tree
    other = of(leader)
    assert await other.kill() == []


def test_a_fork_in_the_midst(another: Aside) -> None:
    said = another.run(
        TREE
        + """
warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads
async def main():
    gone = tree.gone(60)
    assert await tree.alive() == 2
    pid = os.fork()
    if not pid:
        # Of the loop the forked process makes no use.
        try:
            assert scanning.scanning._thread is None
            assert not [name for name in open_fds().values() if name == "/proc"]
            asyncio._set_running_loop(None)
            async def look():
                return await tree.alive()
            loop = asyncio.new_event_loop()
            assert loop.run_until_complete(look()) == 2
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert await tree.kill() == []
    assert await gone is True
run(main())
print(ended())
"""
    )
    assert said == "True\n"


def test_a_loop_that_closes_in_the_midst(another: Aside) -> None:
    said = another.run(
        TREE
        + """
def half(kills):
    loop = asyncio.new_event_loop()
    async def main():
        tree.gone(60)
        assert await tree.alive() == 2
        if kills: tree.kill()
    loop.run_until_complete(main())
    loop.close()
half(False)
while scanning.scanning._thread is not None: time.sleep(0.001)
assert is_alive(member)
half(True)
# What was told to end ends all the same.
leader.wait()
async def main():
    assert await settle(lambda: not is_alive(member) and scanning.scanning._thread is None)
run(main())
print(ended())
"""
    )
    assert said == "True\n"


@pytest.mark.parametrize("how", ["gone", "kill"])
def test_an_exit_in_the_midst(another: Aside, family: Family, how: str) -> None:
    said = another.run(
        TREE
        + """
async def main():
    assert await tree.alive() == 2
    future = tree.gone(60) if sys.argv[1] == "gone" else tree.kill()
    print(leader.pid, member)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
leader.returncode = 0  # no warning of it
""",
        how,
    )
    members = [int(pid) for pid in said.split()]
    family.others += members
    # What was told to end ends all the same.
    assert list(map(is_alive, members)) == [how == "gone"] * 2
