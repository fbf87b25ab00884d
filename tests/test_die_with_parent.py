"""die_with_parent: a child that ends when this process does, in whatever way."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from programs import HAS_PROC, WINDOWS

if WINDOWS:
    pytest.skip("not on Windows: see test_windows_limits.py", allow_module_level=True)
if not HAS_PROC or not sys.platform.startswith("linux"):
    pytest.skip("Linux' alone", allow_module_level=True)

import seccomp
from aside import PREAMBLE, Aside
from conftest import FUSE, settle, subjects
from first import built, parsed

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root's rights")
NOBODY = 65534

#: How each of the processes here begins. A child says its number, by itself, and goes on.
COMMON = """
CHILD = ("sh", "-c", "echo $$; exec sleep 1000 <&- >&- 2>&-")
warnings.simplefilter("ignore")  # of children that nobody has waited for, and of forks

async def child(**options):
    return await aioproc.create_subprocess_exec(*CHILD, **options)

def in_thread(main):
    '''In a loop of another thread, which has ended then, for the kernel as well.'''
    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    number = thread.native_id
    thread.join()
    while os.path.exists(f"/proc/self/task/{number}"):
        time.sleep(0.001)

async def first():
    '''Has our thread started.'''
    process = await aioproc.create_subprocess_exec("true", die_with_parent=True)
    await process.wait()

def go_on():
    '''The test says when.'''
    assert sys.stdin.readline()
"""


class Parent:
    """A process that runs that code; its children are to be told apart by who lives."""

    def __init__(self, subject: str, code: str, *command: str) -> None:
        source = PREAMBLE.format(subject=subject) + COMMON + code
        self.process = subprocess.Popen(
            [*command, sys.executable, "-c", source],
            env=Aside(subject).environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.children: list[Who] = []

    def line(self) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], FUSE)[0], "it says nothing"
        line = self.process.stdout.readline().decode().rstrip()
        assert line, f"it has ended, with {self.process.wait(FUSE)}"
        return line

    def knows(self, pid: int) -> Who:
        self.children.append(Who(pid))
        return self.children[-1]

    def child(self) -> Who:
        """The next one that says its number."""
        return self.knows(int(self.line()))

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    def ends(self) -> None:
        self.go_on()
        self.process.wait(FUSE)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        for child in self.children:
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
                assert child.ends()


class Who:
    """A process, known by its number and its start: where many run at once, a number is soon
    another's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._start = self._start_now()

    def _start_now(self) -> str | None:
        """None: it has ended, be it that nobody has waited for it."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]

    def is_alive(self) -> bool:
        return self._start is not None and self._start_now() == self._start

    def ends(self) -> bool:
        return settle(lambda: not self.is_alive(), FUSE)

    def is_going_to_live(self) -> bool:
        """When its parent has been waited for, the kernel has signalled its children."""
        return self.is_alive() and not killed(self.pid)


def killed(pid: int) -> bool:
    """Whether the signal waits for it."""
    status = Path(f"/proc/{pid}/status").read_text()
    sets = [
        line.split()[1] for line in status.splitlines() if line.startswith(("ShdPnd", "SigPnd"))
    ]
    return any(int(one, 16) & 1 << signal.SIGKILL - 1 for one in sets)


Start = Callable[..., Parent]


@pytest.fixture
def start() -> Iterator[Start]:
    parents: list[Parent] = []

    def make(*args: str) -> Parent:
        parents.append(Parent(*args))
        return parents[-1]

    yield make
    for parent in parents:
        parent.close()


@pytest.fixture(params=["clone", "portable"])
def strategy(request: pytest.FixtureRequest) -> str:
    names = {"copy": "clone"}
    if names.get(request.param, request.param) not in subjects(request.config):
        pytest.skip("waived")
    name: str = request.param
    return name


@pytest.fixture
def clone(request: pytest.FixtureRequest) -> str:
    if "clone" not in subjects(request.config):
        pytest.skip("needs a child of our own")
    return "clone"


# -- the ends of a parent

ENDS = {
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "a signal": "os.kill(os.getpid(), signal.SIGTERM)",
    "_exit": "os._exit(0)",
    "a crash": "os.abort()",
    "an exception": "raise SystemExit(3)",
    "the end": "pass",
}


@pytest.mark.parametrize(
    ("strategy", "end"),
    [
        *(("clone", end) for end in ENDS),
        *(("copy", "SIGKILL"), ("portable", "SIGKILL"), ("portable", "the end")),
    ],
    indirect=["strategy"],
)
def test_it_ends_with_us(start: Start, strategy: str, end: str) -> None:
    parent = start(
        strategy,
        f"""
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
async def main():
    process = await child(die_with_parent=True)
    go_on()
    {ENDS[end]}
asyncio.run(main())
""",
    )
    process = parent.child()
    assert process.is_alive()
    parent.ends()
    assert process.ends()


def test_who_is_asked_for_nothing_lives_on(start: Start, clone: str) -> None:
    parent = start(
        clone,
        """
async def main():
    process = await child()
    go_on()
    os._exit(0)
asyncio.run(main())
""",
    )
    process = parent.child()
    parent.ends()
    assert process.is_going_to_live()


RUNS = """
async def main():
    task = asyncio.ensure_future({run})
    await asyncio.get_running_loop().run_in_executor(None, go_on)
    os._exit(0)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    "more",
    [
        "stdout=None",
        "stdout=None, nice=3",
        "stdout=None, user=os.getuid()",
        "on_line=lambda _, line: print(int(line), flush=True)",
        "stdout=None, preexec_fn=lambda: None",
    ],
)
def test_run_does_so_by_default(start: Start, clone: str, more: str) -> None:
    parent = start(clone, RUNS.format(run=f"aioproc.run(*CHILD, {more})"))
    process = parent.child()
    parent.ends()
    assert process.ends()


def test_open_process_does_so_by_default(start: Start, clone: str) -> None:
    parent = start(
        clone,
        """
async def main():
    await aioproc.open_process(*CHILD, stdout=None)
    await aioproc.open_process(*CHILD, stdout=None, die_with_parent=False)
    go_on()
    os._exit(0)
asyncio.run(main())
""",
    )
    both = {parent.child(), parent.child()}
    parent.ends()
    assert settle(lambda: sum(one.is_alive() for one in both) == 1, FUSE)
    assert any(one.is_going_to_live() for one in both)


def test_run_need_not(start: Start, clone: str) -> None:
    run = "aioproc.run(*CHILD, stdout=None, die_with_parent=False)"
    parent = start(clone, RUNS.format(run=run))
    process = parent.child()
    parent.ends()
    assert process.is_going_to_live()


def test_the_default_costs_no_fork(start: Start) -> None:
    """posix_spawn() cannot say it: there it has to be asked for."""
    parent = start("portable", RUNS.format(run="aioproc.run(*CHILD, stdout=None)"))
    process = parent.child()
    parent.ends()
    assert process.is_going_to_live()


@pytest.mark.parametrize("thread", [False, True], ids=["main", "another"])
def test_exec_of_the_parent(start: Start, clone: str, thread: bool) -> None:
    """The process goes on, and so does the thread if it is the main one. Another thread's exec
    ends that."""
    parent = start(
        clone,
        f"""
def execute():
    os.execvp("sh", ["sh", "-c", "echo in; read line"])
async def main():
    process = await child(die_with_parent=True)
    await asyncio.get_running_loop().run_in_executor(None, go_on)
    if {thread}:
        threading.Thread(target=execute).start()
        time.sleep(1000)
    execute()
asyncio.run(main())
""",
    )
    process = parent.child()
    parent.go_on()
    assert parent.line() == "in"
    if thread:
        assert process.ends()
    else:
        assert process.is_going_to_live()
        parent.ends()
        assert process.ends()


def test_with_a_preexec_fn(start: Start, strategy: str) -> None:
    parent = start(
        strategy,
        """
async def main():
    process = await child(die_with_parent=True, preexec_fn=lambda: os.umask(0))
    go_on()
    os._exit(0)
asyncio.run(main())
""",
    )
    process = parent.child()
    parent.ends()
    assert process.ends()


@pytest.mark.skipif(not seccomp.SUPPORTED, reason="no seccomp filters here")
@pytest.mark.parametrize("more", ["", "preexec_fn=lambda: None"])
def test_where_it_is_refused(start: Start, clone: str, more: str) -> None:
    """By default children are made all the same; who asks for it hears of it."""
    parent = start(
        clone,
        f"""
import seccomp
seccomp.deny({{"prctl": errno.EPERM}})
async def main():
    await aioproc.run("echo", "fine", stdout=None, {more})
    try:
        await child(die_with_parent=True, {more})
    except PermissionError as error:
        print(error, flush=True)
    try:
        await child(no_new_privs=True, {more})
    except PermissionError as error:
        print(error, flush=True)
asyncio.run(main())
""",
    )
    assert parent.line() == "fine"
    assert parent.line() == "[Errno 1] die_with_parent: Operation not permitted"
    assert parent.line() == "[Errno 1] no_new_privs: Operation not permitted"


@needs_root
def test_in_another_pid_namespace(start: Start, strategy: str) -> None:
    """There the child's parent has no number."""
    pytest.importorskip("ctypes")
    parent = start(
        strategy,
        """
import ctypes
# The first child there is its process 1, and this has made some to try what works.
asyncio.run(aioproc.run("true"))
if ctypes.CDLL(None).unshare(0x20000000) < 0:  # CLONE_NEWPID
    print("skip", flush=True)
    sys.exit()
async def main():
    process = await aioproc.create_subprocess_exec(*CHILD, die_with_parent=True,
        stdout=aioproc.DEVNULL)
    print(process.pid, flush=True)
    go_on()
    os._exit(0)
asyncio.run(main())
""",
    )
    line = parent.line()
    if line == "skip":
        pytest.skip("no namespaces here")
    process = parent.knows(int(line))
    assert process.is_alive()
    parent.ends()
    assert process.ends()


def test_a_parent_that_has_ended_before(start: Start, clone: str) -> None:
    """Whoever has the child by then is none."""
    parent = start(
        clone,
        """
from aioproc import _native
pid = os.fork()
if pid == 0:
    _native.lib.ap_die_with(os.getpid())  # which is no parent's
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
pid = os.fork()
if pid == 0:
    os._exit(_native.lib.ap_die_with(os.getppid()))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
""",
    )
    assert parent.line() == "127"
    assert parent.line() == "0"


# -- threads


@pytest.mark.parametrize("more", ["", "user=os.getuid()"])
def test_a_thread_that_ends_leaves_it_alive(start: Start, clone: str, more: str) -> None:
    """The kernel would end it with the thread that has made it."""
    parent = start(
        clone,
        f"""
for _ in range(2):
    in_thread(lambda: child(die_with_parent=True, {more}))
print("they have ended", flush=True)
go_on()
os._exit(0)
""",
    )
    # In any order; a child says that it lives when the thread may have ended already.
    lines = [parent.line() for _ in range(3)]
    lines.remove("they have ended")
    both = [parent.knows(int(line)) for line in lines]
    assert all(one.is_going_to_live() for one in both)
    parent.ends()
    assert all(one.ends() for one in both)


def test_run_in_a_thread_has_it_off(start: Start, clone: str) -> None:
    parent = start(
        clone,
        """
def work():
    async def main():
        await aioproc.run(*CHILD, stdout=None)
    asyncio.run(main())
threading.Thread(target=work, daemon=True).start()
go_on()
os._exit(0)
""",
    )
    process = parent.child()
    parent.ends()
    assert process.is_going_to_live()


def test_what_the_child_has_of_the_callers_thread(start: Start, clone: str) -> None:
    """And not of ours, which makes it."""
    cpus = sorted(os.sched_getaffinity(0))
    parent = start(
        clone,
        f"""
in_thread(first)  # our thread is there

async def main():
    # Of a thread alone, on Linux.
    os.setpriority(os.PRIO_PROCESS, 0, 6)
    os.sched_setaffinity(0, {{{cpus[-1]}}})
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    process = await aioproc.create_subprocess_exec(
        "sh", "-c", 'echo $(cat /proc/self/stat | cut -d" " -f19) '
        '$(grep -E "Cpus_allowed_list|SigBlk" /proc/self/status | cut -f2)',
        die_with_parent=True,
    )
    await process.wait()
in_thread(main)
print(os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0)), flush=True)
go_on()
os._exit(0)
""",
    )
    nice, mask, cpu = parent.line().split()
    assert (nice, cpu) == ("6", str(cpus[-1]))
    assert int(mask, 16) == 1 << signal.SIGUSR1 - 1
    assert parent.line() == f"{os.getpriority(os.PRIO_PROCESS, 0)} {cpus}"
    parent.ends()


@pytest.mark.skipif(not seccomp.SUPPORTED, reason="no seccomp filters here")
def test_a_thread_of_other_rights_is_refused(start: Start, clone: str) -> None:
    """What a child of it would have, one of ours would not."""
    parent = start(
        clone,
        """
import seccomp
in_thread(first)

async def main():
    seccomp.deny({"getdents64": errno.EPERM})
    for options in ({}, {"nice": 3}):
        try:
            await child(die_with_parent=True, **options)
        except OSError as error:
            print(error, flush=True)
    process = await aioproc.create_subprocess_exec("echo", "fine")
    await process.wait()
in_thread(main)
go_on()
""",
    )
    for _ in range(2):
        line = parent.line()
        assert "die_with_parent: " in line
        assert "NoNewPrivs, Seccomp" in line
    assert parent.line() == "fine"
    parent.ends()


def test_a_nice_value_that_cannot_be_had_again(start: Start, clone: str) -> None:
    """Our thread has that of the first caller's; an ordinary user cannot go back to less."""
    if os.geteuid() != 0:
        pytest.skip("needs root's rights, to give them up")
    parent = start(
        clone,
        f"""
def polite():
    os.setpriority(os.PRIO_PROCESS, 0, 10)
    asyncio.run(first())
thread = threading.Thread(target=polite)
thread.start()
thread.join()
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})

async def main():
    try:
        await child(die_with_parent=True)
    except PermissionError as error:
        print(error, flush=True)
in_thread(main)
go_on()
os._exit(0)
""",
    )
    assert "die_with_parent: " in parent.line()
    parent.ends()


@pytest.mark.parametrize("strategy", ["portable", "clone"])
def test_popen_in_another_thread_is_refused(
    start: Start, strategy: str, request: pytest.FixtureRequest
) -> None:
    if strategy not in subjects(request.config):
        pytest.skip("waived")
    options = "preexec_fn=lambda: None" if strategy == "clone" else ""
    parent = start(
        strategy,
        f"""
async def main():
    try:
        await child(die_with_parent=True, {options})
    except OSError as error:
        assert error.errno == errno.ENOTSUP
        print(error, flush=True)
in_thread(main)
go_on()
""",
    )
    assert "main thread alone" in parent.line()
    parent.ends()


def test_a_forked_parent(start: Start, clone: str) -> None:
    """Each of them has its own children, and a thread of its own to make them."""
    parent = start(
        clone,
        """
in_thread(lambda: child(die_with_parent=True))
go_on()
forked = os.fork()
if forked == 0:
    in_thread(lambda: child(die_with_parent=True))
    asyncio.run(child(die_with_parent=True))
    go_on()
    os._exit(0)
os.waitpid(forked, 0)
print("reaped", flush=True)
go_on()
os._exit(0)
""",
    )
    process = parent.child()
    parent.go_on()
    others = [parent.child(), parent.child()]
    assert all(one.is_alive() for one in others)
    parent.go_on()
    assert parent.line() == "reaped"
    assert all(one.ends() for one in others)
    assert process.is_going_to_live()
    parent.ends()
    assert process.ends()


# -- programs with other rights


@needs_root
def test_a_setuid_program(start: Start, strategy: str, tmp_path: Path) -> None:
    """The kernel takes it back from a program with more rights than its caller has; but with
    no_new_privs it has none."""
    program = Path(built()).with_name("setuid")
    shutil.copy(built(), program)
    program.chmod(0o4755)
    options = f"user={NOBODY}, die_with_parent=True"
    parent = start(
        strategy,
        f"""
async def main():
    for more in ({{}}, {{"no_new_privs": True}}):
        process = await aioproc.create_subprocess_exec({str(program)!r}, {options},
            stdout=aioproc.PIPE, **more)
        output, _ = await process.communicate()
        for line in output.decode().splitlines():
            if line.startswith(("death", "uid")):
                print(line, flush=True)
asyncio.run(main())
""",
    )
    lines = [parent.line() for _ in range(4)]
    if lines[1] == f"uid {NOBODY} {NOBODY}":
        pytest.skip("mounted nosuid")
    assert lines == [
        "death 0",
        f"uid {NOBODY} 0",
        f"death {int(signal.SIGKILL)}",
        f"uid {NOBODY} {NOBODY}",
    ]


@needs_root
@pytest.mark.asyncio
async def test_a_change_of_ids_does_not_take_it_back(aioproc: Any) -> None:
    if aioproc._backends.current().name == "pure":
        pytest.skip("the native backend's")
    shown = parsed((await aioproc.run(built(), user=NOBODY, die_with_parent=True)).stdout)
    assert shown["death"] == [str(int(signal.SIGKILL))]
    assert shown["uid"] == [str(NOBODY)] * 2
