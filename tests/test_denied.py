"""What containers refuse: which backend is chosen then, and that it works."""

from __future__ import annotations

import errno
import json

import pytest

from programs import WINDOWS

if WINDOWS:
    pytest.skip("not on Windows: seccomp", allow_module_level=True)

import seccomp
from aioproc._backends import pure
from aside import Aside

pytestmark = pytest.mark.skipif(not seccomp.SUPPORTED, reason="no numbers, or no ctypes")

CHOICE = """
import json, seccomp
seccomp.deny(json.loads(sys.argv[1]))
from aioproc import _backends
report = _backends.report()

async def main():
    # All that a backend does: exit codes, pipes, signals, errors, descriptors, Popen's way.
    process = await aioproc.create_subprocess_exec(
        "/bin/sh", "-c", "cat; exit 7", stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    assert await process.communicate(b"x" * 100000) == (b"x" * 100000, None)
    assert process.returncode == 7
    process = await aioproc.create_subprocess_exec("cat", stdin=aioproc.PIPE)
    process.terminate()
    assert await process.wait() == -signal.SIGTERM
    process.stdin.close()
    try:
        await aioproc.create_subprocess_exec("/nowhere/nothing")
    except FileNotFoundError:
        pass
    else:
        raise AssertionError("started what is not there")
    process = await aioproc.create_subprocess_exec("true", preexec_fn=lambda: None)
    assert await process.wait() == 0

    extra = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
    passed = extra[50]
    for fd in extra:
        os.set_inheritable(fd, True)
    process = await aioproc.create_subprocess_exec(
        "/bin/sh", "-c",
        "i=3; while [ $i -lt 200 ]; do [ -e /proc/self/fd/$i ] && echo $i; i=$((i + 1)); done",
        pass_fds=[passed], stdout=aioproc.PIPE)
    output, _ = await process.communicate()
    seen = set(map(int, output.split()))
    assert seen == {passed}, seen
    for fd in extra:
        os.close(fd)

run(main())
print(report["backend"], report["strategy"], sep=", ")
print(report["not_used"])
"""


def skip_without_clone(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--no-native"):
        pytest.skip("waived")
    from aioproc._backends.posix import native as posix

    if "clone" not in posix.STRATEGIES:
        pytest.skip("built with tests/shim, which needs none of these calls")


@pytest.mark.parametrize(
    ("calls", "choice", "reason"),
    [
        ({}, "native, clone", ""),
        ({"clone3": errno.ENOSYS}, "native, clone", ""),
        ({"close_range": errno.ENOSYS}, "native, clone", ""),
        ({"close_range": errno.EPERM}, "native, clone", ""),
        # No /proc to be read either.
        ({"close_range": errno.ENOSYS, "getdents64": errno.EPERM}, "native, clone", ""),
        (
            {"clone(CLONE_PIDFD)": errno.EPERM, "clone3": errno.ENOSYS},
            "native, portable",
            "clone(CLONE_VM | CLONE_PIDFD): Operation not permitted",
        ),
        ({"pidfd_open": errno.EPERM}, "pure, Popen, thread", "pidfd_open: Operation not p"),
        ({"pidfd_open": errno.ENOSYS}, "pure, Popen, thread", "pidfd_open: Function not impl"),
        ({"pidfd_send_signal": errno.EPERM}, "pure, Popen, thread", "pidfd_send_signal: Oper"),
        (
            {"waitid": errno.ENOSYS},
            f"pure, Popen, {pure.mechanism()}",
            "waitid(P_PIDFD): Function not impl",
        ),
    ],
    ids=lambda value: (
        ",".join(f"{n}-{errno.errorcode[e]}" for n, e in value.items())
        if isinstance(value, dict)
        else ""
    ),
)
def test_the_choice(
    request: pytest.FixtureRequest, calls: dict[str, int], choice: str, reason: str
) -> None:
    skip_without_clone(request)
    chosen, not_used = Aside().run(CHOICE, json.dumps(calls)).splitlines()
    assert chosen == choice
    assert reason in not_used


FORCED = """
import seccomp
seccomp.deny({"pidfd_open": errno.EPERM})
from aioproc import _backends
try:
    _backends.current()
except RuntimeError as error:
    print(error)
"""


def test_forced_native_fails_loudly(request: pytest.FixtureRequest) -> None:
    skip_without_clone(request)
    said = Aside().run(FORCED, AIOPROC_BACKEND="native")
    assert "AIOPROC_BACKEND=native" in said
    assert "pidfd_open: Operation not permitted" in said


SPARE = """
import errno, os, seccomp
from aioproc._backends.posix import pure_trees
before = open_fds()
files = pure_trees._Proc()
os.close(files._spare.pop())
seccomp.deny({"dup3": errno.EBUSY})
files.facts(os.getpid())
files.close()
print(open_fds().keys() - before.keys())
"""


def test_a_descriptor_that_cannot_be_kept_is_closed() -> None:
    assert Aside("pure").run(SPARE) == "set()\n"


UNASKED = """
import seccomp
async def main():
    await aioproc.run("true")
    before = open_fds().keys()
    # It is asked by the one or the other, as the C library is new.
    seccomp.deny(dict.fromkeys(["ioctl(TCGETS)", "ioctl(TCGETS2)"], errno.EPERM))
    try:
        async with aioproc.open_process("cat", pty=True, echo=False):
            print("started")
    except PermissionError:
        print(open_fds().keys() - before)

run(main())
"""


def test_a_terminal_that_does_not_answer() -> None:
    # termios.error is no OSError.
    assert Aside("pure").run(UNASKED) == "set()\n"
