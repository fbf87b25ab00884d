"""What stays of a creation that failed or was interrupted, and of a Process that nobody holds
any more: nothing, whatever had come between."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aioproc._backends import pure
from aside import Aside, children, collect, open_fds
from aside import settle as settled
from conftest import FUSE, Loop, is_alive, reap_orphans, run, settle
from marks import posix_only, proc_only
from programs import CAT, SLEEP, TRUE, sh

Factory = Callable[[], Loop]

#: More than all pipes hold.
MUCH = b"x" * 600_000
#: Ends, and leaves a grandchild with its stdin that does not read; says its pid.
LEAVES_DEAF = sh(
    "exec 3<&0; sleep 1000 <&3 >/dev/null & echo $!",
    f"import subprocess; print(subprocess.Popen({SLEEP!r}, stdout=-3).pid, flush=True)",
)


async def true(aioproc: Any) -> None:
    """A spawn finds the closed loop and lets go of what it had."""
    process = await aioproc.create_subprocess_exec(*TRUE)
    assert await process.wait() == 0


@contextmanager
def warned() -> Iterator[list[str]]:
    """The texts of the warnings, with what nobody holds collected at the end."""
    texts: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, category, *rest: texts.append(str(message))
        yield texts
        collect()


# -- a stdin that waits for its reader when the loop ends


@pytest.mark.parametrize("hastily", [True, False], ids=["hastily", "properly"])
@pytest.mark.parametrize("block", [True, False], ids=["async with", "wait"])
def test_stdin_that_nobody_reads(
    aioproc: Any, new_loop: Factory, hastily: bool, block: bool
) -> None:
    async def main() -> int:
        process = await aioproc.create_subprocess_exec(
            *LEAVES_DEAF, stdin=aioproc.PIPE, stdout=aioproc.PIPE
        )
        process.stdin.write(MUCH)
        grandchild = int(await process.stdout.read())
        assert await process.wait() == 0
        if block:
            async with process:
                pass
        assert process.stdin.is_closing()
        return grandchild

    before = open_fds().keys()
    with warned() as texts:
        if hastily:
            loop = new_loop()
            grandchild = loop.run_until_complete(main())
            loop.close()
            del loop
        else:
            grandchild = run(new_loop, main())
        run(new_loop, true(aioproc))
        # On Windows the port's thread looks whether the loop has closed.
        assert settle(lambda: collect() or bool(texts))  # type: ignore[func-returns-value]
    try:
        assert settle(lambda: not open_fds().keys() - before)
        (text,) = texts
        assert re.fullmatch(
            r"process \d+ \(.+\) was dropped after its loop closed "
            r"with \d+ bytes of its stdin unsent",
            text,
        )
    finally:
        os.kill(grandchild, signal.SIGTERM)


@posix_only("without its port a pipe does not know whether somebody reads")
def test_stdin_that_nobody_can_read(aioproc: Any, new_loop: Factory) -> None:
    """What is unsent then is lost in any case, and nothing is said."""

    async def main() -> Any:
        process = await aioproc.create_subprocess_exec(
            *LEAVES_DEAF, stdin=aioproc.PIPE, stdout=aioproc.PIPE
        )
        process.stdin.write(MUCH)
        grandchild = int(await process.stdout.read())
        await process.wait()
        return process, grandchild

    before = open_fds().keys()
    process, grandchild = run(new_loop, main())
    os.kill(grandchild, signal.SIGKILL)
    assert settle(lambda: not is_alive(grandchild))
    with warned() as texts:
        del process
    run(new_loop, true(aioproc))
    assert texts == []
    assert settle(lambda: not open_fds().keys() - before)


def test_stdin_is_closed_after_the_loop(aioproc: Any, new_loop: Factory) -> None:
    async def main() -> Any:
        process = await aioproc.create_subprocess_exec(
            *LEAVES_DEAF, stdin=aioproc.PIPE, stdout=aioproc.PIPE
        )
        process.stdin.write(MUCH)
        grandchild = int(await process.stdout.read())
        await process.wait()
        process.stdin.close()
        return process, grandchild

    for close in (lambda p: p.stdin.close(), lambda p: p._transport.close()):
        process, grandchild = run(new_loop, main())
        file = process.stdin.get_extra_info("pipe")
        assert not file.closed
        close(process)
        assert file.closed
        os.kill(grandchild, signal.SIGTERM)
        with warned() as texts:
            del process, file
        assert texts == []


# -- first the work, then the warning


REAP_ORPHANS = """
def reap_orphans():
    # As every spawn does.
    if subject in ("clone", "portable"):
        from aioproc._backends.posix import native as posix
        posix.reap_orphans()
    elif subject in ("pure", "thread"):
        from aioproc._backends import pure
        pure.orphans.reap()
"""

STRICT = (
    REAP_ORPHANS
    + """
async def main():
    return await aioproc.create_subprocess_exec(*SLEEP, stdin=aioproc.PIPE)
process = run(main())
pid = process.pid
texts = []
sys.unraisablehook = lambda unraisable: texts.append(str(unraisable.exc_value))
del process
deadline = time.monotonic() + 30
while not texts or pid in children():
    collect()
    run(asyncio.sleep(0.001))
    reap_orphans()
    assert time.monotonic() < deadline, (texts, children())
text, = texts
print(text.replace(str(pid), "PID"))
"""
)


def test_warnings_as_errors(aside: Aside) -> None:
    printed = aside.run(STRICT, flags=("-W", "error")).strip()
    shown = re.escape(" ".join(SLEEP)) if len(" ".join(SLEEP)) < 60 else r".{57}\.\.\."
    assert re.fullmatch(
        rf"process PID \({shown}\) was still running when it was dropped after its loop closed; "
        "killed",
        printed,
    )


def test_the_command_in_a_warning(aioproc: Any, new_loop: Factory) -> None:
    long = "a line\nbreak " + "x" * 100

    async def main() -> int:
        sleep = sh("exec sleep 1000", "import time; time.sleep(1000)")
        process = await aioproc.create_subprocess_exec(*sleep, long)
        pid: int = process.pid
        return pid

    with warned() as texts:
        run(new_loop, main())
        assert settle(lambda: collect() or bool(texts))  # type: ignore[func-returns-value]
    (text,) = texts
    found = re.match(r"process \d+ \((.*)\) was ", text)
    assert found is not None
    assert len(found[1]) == 60
    assert found[1].endswith("...")
    assert "\n" not in text


@pytest.mark.asyncio
@posix_only("a pipe that nobody watches is not held by the loop")
async def test_dropped_with_a_pipe_open(aioproc: Any) -> None:
    transport, _ = await aioproc.subprocess_exec(
        asyncio.SubprocessProtocol, *TRUE, stdin=None, stderr=None
    )
    transport.get_pipe_transport(1).pause_reading()
    assert await transport._wait() == 0
    pid = transport.get_pid()
    with warned() as texts:
        del transport, _
        await settled(lambda: collect() or bool(texts))
    assert texts == [f"process {pid} (true) was dropped with its stdout open"]


# -- a loop that cannot watch one more descriptor


class Shortage:
    """Has a loop refuse to watch descriptors as epoll_ctl(2) does where the user has too many:
    the n-th call, or all."""

    def __init__(self, patch: pytest.MonkeyPatch, nth: int | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = nth
        self.refused = 0
        for name in ("add_reader", "add_writer"):
            patch.setattr(self._loop, name, self._refusing(getattr(self._loop, name)))

    def _refusing(self, add: Any) -> Any:
        def refusing(*args: Any) -> None:
            if self._left is not None:
                self._left -= 1
            if self._left in (None, 0):
                self.refused += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            add(*args)

        return refusing


def _nothing_but(kids: set[int], fds: dict[int, str]) -> bool:
    reap_orphans()
    return children() == kids and open_fds() == fds


@pytest.mark.asyncio
@posix_only("add_reader")
async def test_a_creation_that_cannot_be_watched(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipes = {"stdin": aioproc.PIPE, "stdout": aioproc.PIPE, "stderr": aioproc.PIPE}
    await true(aioproc)
    before, kids = open_fds(), children()
    failed, n, refused = 0, 0, 1
    while refused:
        n += 1
        with monkeypatch.context() as patch:
            shortage = Shortage(patch, n)
            try:
                process = await aioproc.create_subprocess_exec(*CAT, **pipes)
            except OSError:
                failed += 1
            else:
                result = await asyncio.wait_for(process.communicate(MUCH), FUSE)
                assert result == (MUCH, b"")
                assert process.returncode == 0
        refused = shortage.refused
        assert await settled(lambda: _nothing_but(kids, before))
    assert n > failed + 1  # pipes are watched later, and the child does without
    assert not [r for r in caplog.records if "exception" in r.getMessage().lower()]


@pytest.mark.asyncio
@posix_only("add_reader")
async def test_a_creation_whose_pipes_cannot_be_watched(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a protocol are watched at once."""
    await true(aioproc)
    before, kids = open_fds(), children()
    failed, n, refused = 0, 0, 1
    while refused:
        n += 1
        with monkeypatch.context() as patch:
            shortage = Shortage(patch, n)
            try:
                transport, protocol = await aioproc.subprocess_exec(Told, *CAT)
            except OSError:
                failed += 1
            else:
                transport.get_pipe_transport(0).close()
                await asyncio.wait_for(protocol.lost, FUSE)
        refused = shortage.refused
        assert await settled(lambda: _nothing_but(kids, before))
    assert failed >= 2


class Told(asyncio.SubprocessProtocol):
    def __init__(self) -> None:
        self.names: list[str] = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.names.append("connection_made")

    def process_exited(self) -> None:
        self.names.append("process_exited")

    def connection_lost(self, exc: Exception | None) -> None:
        self.names.append("connection_lost")
        self.lost.set_result(None)


@pytest.mark.asyncio
@posix_only("add_reader")
async def test_a_protocol_is_told_of_a_creation_that_failed(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await true(aioproc)
    protocol = Told()
    with monkeypatch.context() as patch:
        # The pure backend watches the exit before anything else.
        Shortage(patch, 3 if aioproc._backends.current().strategy == "Popen, pidfd" else 2)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            await aioproc.subprocess_exec(lambda: protocol, *CAT)
    await asyncio.wait_for(protocol.lost, FUSE)
    assert protocol.names == ["connection_made", "process_exited", "connection_lost"]


@pytest.mark.asyncio
@posix_only("add_reader")
async def test_reading_on_that_cannot_be_watched(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = await aioproc.create_subprocess_exec(
        "head", "-c", "1000000", "/dev/zero", stdout=aioproc.PIPE
    )
    assert await settled(lambda: process.stdout._paused)
    with monkeypatch.context() as patch:
        shortage = Shortage(patch)
        data = await asyncio.wait_for(process.stdout.readexactly(700_000), FUSE)
        assert shortage.refused
    data += await process.stdout.read()
    assert data == bytes(1_000_000)
    assert await process.wait() == 0
    told = [r.getMessage() for r in caplog.records if "cannot be watched" in r.getMessage()]
    assert len(told) == 1


@pytest.mark.asyncio
@posix_only("add_writer")
async def test_writing_that_cannot_be_watched(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await aioproc.create_subprocess_exec(*CAT, stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    with monkeypatch.context() as patch:
        shortage = Shortage(patch)
        process.stdin.write(MUCH)
        output = await asyncio.wait_for(process.stdout.readexactly(len(MUCH)), FUSE)
        assert shortage.refused
    rest, _ = await process.communicate()
    assert output + rest == MUCH


NO_THREAD = """
async def main():
    before = open_fds()
    size = threading.stack_size(1 << 46)  # more than there are addresses
    try:
        await aioproc.create_subprocess_exec(*SLEEP, stdin=aioproc.PIPE)
    except RuntimeError as error:
        assert "thread" in str(error), error
    else:
        raise AssertionError("it has got a thread")
    threading.stack_size(size)
    for _ in range(2):
        assert await (await aioproc.create_subprocess_exec("true")).wait() == 0
    assert await settle(lambda: (pure.orphans.reap(), not children())[1])
    assert open_fds() == before
run(main())
"""


@proc_only
def test_there_is_no_thread_to_be_had() -> None:
    Aside("thread").run(NO_THREAD)


# -- Ctrl-C in the midst of a spawn


INTERRUPTED = (
    REAP_ORPHANS
    + """
def nothing_but(fds):
    reap_orphans()
    return not children() and open_fds() == fds

class Interrupt:
    # Raises KeyboardInterrupt at the n-th moment of a creation at which CPython runs signal
    # handlers: at the beginning of a Python function, and when a C function has returned.

    def __init__(self, n):
        self.left, self.hit = n, ""

    def __call__(self, frame, event, argument):
        if event not in ("call", "c_return"):
            return
        if sys.version_info < (3, 11) and event == "call" and frame.f_lasti >= 0:
            return  # of a coroutine that goes on; the profiler comes before its "try" there
        where = frame
        while frame is not None and frame.f_globals["__name__"] != "aioproc._api":
            if frame.f_globals["__name__"] == "subprocess":
                return  # what Popen loses, it loses under asyncio, too
            frame = frame.f_back
        if frame is None:
            return
        self.left -= 1
        if self.left == 0:
            sys.setprofile(None)
            self.hit = f"{event} {argument} in {where.f_code}, {where.f_lineno}"
            raise KeyboardInterrupt

async def main():
    options = {"stdin": aioproc.PIPE, "stdout": aioproc.PIPE, "stderr": aioproc.DEVNULL}
    if sys.argv[1] == "preexec_fn":
        options["preexec_fn"] = int
    create = lambda: aioproc.create_subprocess_exec("cat", **options)
    assert await (await create()).communicate(b"x") == (b"x", None)
    await settle(lambda: not children())
    before = open_fds()
    n = 0
    while True:
        n += 1
        interrupt = Interrupt(n)
        process = None
        sys.setprofile(interrupt)
        try:
            process = await create()
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        if process is not None:
            assert await process.communicate(b"x") == (b"x", None), interrupt.hit
        if not await settle(lambda: nothing_but(before), 3):
            raise AssertionError((interrupt.hit, children(), open_fds()))
        if not interrupt.hit:
            break
    assert n > 50
    # And the loop has forgotten all of it: the next that get the same numbers are heard of.
    for _ in range(3):
        assert await (await create()).communicate(b"x") == (b"x", None)

logging.disable()
gc.disable()  # a finalizer swallows what is raised in it
run(main())
"""
)


@proc_only
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="about CPython's signals")
@pytest.mark.parametrize("how", ["exec", pytest.param("preexec_fn", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("subject", ["clone", "portable", "pure"])
def test_ctrl_c_in_a_spawn(request: pytest.FixtureRequest, subject: str, how: str) -> None:
    from conftest import subjects

    if subject not in subjects(request.config):
        pytest.skip(f"{subject} is not tested in this run")
    if subject == "pure" and pure.mechanism() == "thread":
        pytest.skip("Thread.start() does not survive it (RuntimeError: release unlocked lock)")
    Aside(subject).run(INTERRUPTED, how)


# -- descriptors that somebody else has closed


STOLEN = """
class Handler(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []
    def emit(self, record):
        self.texts.append(record.getMessage())
handler = Handler()
logging.getLogger("aioproc").addHandler(handler)

stolen = []
def steal(event, args):
    # Between the pipes and the child. (Our own child's are opened together with it.)
    if event == "subprocess.Popen" and stolen == ["now"]:
        stolen[:] = sorted(open_fds().keys() - known)
        os.close(stolen[0])
        raise PermissionError("refused")
sys.addaudithook(steal)

async def main():
    global known
    options = dict.fromkeys(("stdin", "stdout", "stderr"), aioproc.PIPE)
    process = await aioproc.create_subprocess_exec("cat", **options)
    assert await process.communicate(b"x") == (b"x", b"")
    await settle(lambda: not children())
    known = open_fds().keys()
    stolen.append("now")
    try:
        await aioproc.create_subprocess_exec("cat", preexec_fn=os.getpid, **options)
    except PermissionError:
        pass
    else:
        raise AssertionError("made")
    assert len(stolen) >= 6
    assert await settle(lambda: open_fds().keys() == known and not children())
    assert ["cannot be closed" in text for text in handler.texts] == [True], handler.texts

    # And one of ours, in the midst of its life.
    process = await aioproc.create_subprocess_exec("cat", **options)
    os.close(process.stdin.get_extra_info("pipe").fileno())
    assert await process.communicate() == (b"", b"")
    assert process.returncode == 0
    assert await settle(lambda: open_fds().keys() == known)
    assert len(handler.texts) == 2, handler.texts
run(asyncio.wait_for(main(), 30))
"""


@proc_only
def test_a_number_that_somebody_else_has_closed(aside: Aside) -> None:
    aside.run(STOLEN)


# -- a child that may not be signalled


FOREIGN = """
from aioproc._asyncio import process as _process
_process.Process._steps = [(signal.SIGTERM, 0.05)]

class Handler(logging.Handler):
    texts = []
    def emit(self, record):
        self.texts.append(record.getMessage())
logging.getLogger("asyncio").addHandler(Handler())

def become_nobody():
    # From here on our children, who are root, may not be signalled by us: as with sudo.
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)

async def main():
    reader, writer = os.pipe()
    options = {"stdin": aioproc.PIPE, "stdout": aioproc.PIPE}
    obedient = await aioproc.create_subprocess_exec("cat", **options)
    obstinate = await aioproc.create_subprocess_exec(
        "cat", f"/dev/fd/{reader}", pass_fds=[reader], **options)
    other = await aioproc.create_subprocess_exec(
        "cat", f"/dev/fd/{reader}", pass_fds=[reader], stdin=aioproc.PIPE)
    become_nobody()
    for process in (obedient, obstinate):
        try:
            process.kill()
        except PermissionError:
            pass
        else:
            raise AssertionError("it may be signalled")
        try:
            async with process:
                raise KeyError("the body's own")
        except KeyError as error:
            assert error.args == ("the body's own",)
        for fd in (0, 1):
            assert process._transport.get_pipe_transport(fd).is_closing()
    assert obedient.returncode == 0  # by the end of its stdin
    assert obstinate.returncode is None
    text, = Handler.texts
    assert str(obstinate.pid) in text and "may not be" in text, text

    # A creation that is cancelled, or fails, when there is a child already.
    other._transport._child.abandon()
    os.close(reader)
    os.close(writer)
    assert await obstinate.wait() == 0
run(asyncio.wait_for(main(), 30))
"""


@posix_only("users")
@pytest.mark.root
def test_a_child_that_may_not_be_signalled(aside: Aside) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may change ids")
    aside.run(FOREIGN)
