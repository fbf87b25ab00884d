"""A child that the kernel refuses late, when it has given the pidfd a number already: in a
pids cgroup that is full (docker's --pids-limit, systemd's TasksMax). The number may be
another thread's by the time we hear of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from programs import WINDOWS

if WINDOWS:
    pytest.skip("not on Windows: clone()", allow_module_level=True)

import seccomp
from aside import Aside
from conftest import FUSE, settle, subjects
from preload import preload


@pytest.fixture(params=["clone", "copy"])
def own(request: pytest.FixtureRequest) -> Aside:
    """The strategies that call clone() themselves."""
    if not {"clone", "copy"} & set(subjects(request.config)):
        pytest.skip("waived, or built with tests/shim, which has no clone()")
    return Aside(request.param)


COMMON = """
import ctypes
from aioproc import _native
preloaded = ctypes.CDLL(None)
victim, bad_closes = (ctypes.c_int.in_dll(preloaded, n) for n in ("victim", "bad_closes"))

async def works():
    assert await (await aioproc.create_subprocess_exec("true")).wait() == 0

async def is_refused(**options):
    try:
        await aioproc.create_subprocess_exec("true", **options)
    except BlockingIOError:
        pass
    else:
        raise AssertionError("not refused")

def probe():
    what = _native.ffi.new("const char *[1]")
    code = {"clone": _native.lib.AP_CLONE, "copy": _native.lib.AP_COPY}[subject]
    return _native.lib.ap_probe(code, what)

#: With a change of ids the child is on a copy of our memory.
options = ({}, {"user": os.getuid()}, {"group": os.getgid()})
"""

WRAPPED = """
theirs = os.open("/dev/null", os.O_RDONLY)

async def main():
    for each in options:
        await works()
        victim.value = theirs
        await is_refused(**each)
        victim.value = -1
        os.fstat(theirs)
    await works()
run(main())
victim.value = theirs
assert probe() == -errno.EAGAIN
os.fstat(theirs)
os.close(theirs)
assert bad_closes.value == 0
"""


def test_the_number_is_not_ours(own: Aside, tmp_path: Path) -> None:
    own.run(COMMON + WRAPPED, LD_PRELOAD=preload(tmp_path))


def mounts() -> Iterator[tuple[Path, str, str]]:
    """Where cgroups are, which version, and our own's path in there."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths[controllers] = path
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, given, *_ = line.split()
        if kind == "cgroup" and "pids" in given.split(","):
            own = [path for names, path in paths.items() if "pids" in names.split(",")]
            yield Path(point), kind, own[0] if own else "/"
        elif kind == "cgroup2":
            yield Path(point), kind, paths.get("", "/")


@contextlib.contextmanager
def made(group: Path) -> Iterator[bool]:
    """A new cgroup; whether it counts processes."""
    try:
        group.mkdir()
    except OSError:
        yield False
        return
    try:
        yield (group / "pids.max").exists() and os.access(group / "cgroup.procs", os.W_OK)
    finally:
        # Its last process may be a zombie of somebody else's for a moment.
        def remove() -> bool:
            with contextlib.suppress(OSError):
                group.rmdir()
            return not group.exists()

        assert settle(remove, FUSE)


@pytest.fixture
def pids_cgroup() -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        if Path("/proc/self/cgroup").exists():
            for point, kind, own in mounts():
                for parent in dict.fromkeys((point / own.lstrip("/"), point)):
                    if kind == "cgroup2":
                        with contextlib.suppress(OSError):
                            (parent / "cgroup.subtree_control").write_text("+pids")
                    group = parent / f"aioproc-tests-{os.getpid()}"
                    if stack.enter_context(made(group)):
                        yield group
                        return
    pytest.skip("no pids cgroup can be made here: not root, or none that is writable")


IN_CGROUP = """
from pathlib import Path
group = Path(sys.argv[1])

async def main():
    await works()
    (group / "cgroup.procs").write_text(str(os.getpid()))
    before = set(open_fds())
    bad_closes.value = 0
    for each in options:
        (group / "pids.max").write_text((group / "pids.current").read_text())
        await is_refused(**each)
        assert probe() == -errno.EAGAIN
        assert bad_closes.value == 0, bad_closes.value
        (group / "pids.max").write_text("max")
        await works()
    assert set(open_fds()) == before
run(main())
"""


@pytest.mark.root
def test_in_a_pids_cgroup(own: Aside, tmp_path: Path, pids_cgroup: Path) -> None:
    own.run(COMMON + IN_CGROUP, pids_cgroup, LD_PRELOAD=preload(tmp_path))


UNWATCHED = r"""
import ctypes, seccomp
from aside import is_alive
from aioproc._backends import current
fifo = sys.argv[1]
os.mkfifo(fifo)
assert current().name == ("pure" if subject == "pure" else "native")
# One of the two leaves the group that can be signalled.
command = (
    'sleep 1000 & one=$!; setsid sh -c "echo $$ $one \\$\\$ >$1; echo >$2; exec sleep 1000" & wait'
)
pids = os.path.join(os.path.dirname(fifo), "pids")

async def main():
    await aioproc.run("true")
    if subject == "pure":
        pidfd_open = os.pidfd_open

        def after_the_child(*args):
            with open(fifo) as file:
                file.read()
            return pidfd_open(*args)

        os.pidfd_open = after_the_child
    else:
        ctypes.CDLL(None).setenv(b"WAIT_AFTER_SPAWN", os.fsencode(fifo), 1)
    seccomp.deny({"pidfd_open": errno.ENOMEM})
    try:
        await aioproc.run("/bin/sh", "-c", command, "sh", pids, fifo)
    except OSError as error:
        assert error.errno == errno.ENOMEM, error
    else:
        raise AssertionError("not refused")
    with open(pids) as file:
        family = list(map(int, file.read().split()))
    assert len(family) == 3
    assert await settle(lambda: not any(map(is_alive, family)))

run(main())
"""


@pytest.mark.skipif(not seccomp.SUPPORTED, reason="no numbers, or no ctypes")
@pytest.mark.parametrize("subject", ["portable", "pure"])
def test_what_it_has_started_by_then(
    request: pytest.FixtureRequest, subject: str, tmp_path: Path
) -> None:
    """A child that runs already, and cannot be watched: it is ended with what it has started."""
    if subject not in subjects(request.config):
        pytest.skip("waived")
    if subject == "pure" and not hasattr(os, "pidfd_open"):
        pytest.skip("PyPy has no os.pidfd_open(), which is made to fail here")
    environment = {"LD_PRELOAD": preload(tmp_path)} if subject == "portable" else {}
    Aside(subject).run(UNWATCHED, tmp_path / "fifo", **environment)
