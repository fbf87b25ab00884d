"""What a command's end is told by: CompletedProcess, its errors, partial_result()."""

from __future__ import annotations

import asyncio
import copy
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aioproc import UNKNOWN_EXIT, ResourceUsage
from aioproc._run.result import (
    CalledProcessError,
    CompletedProcess,
    NotEnded,
    ProcessError,
    TimeoutExpired,
    partial_result,
)
from marks import posix_only

#: As on POSIX; Windows has them by number only.
SIGKILL, SIGTERM = 9, 15
USAGE = ResourceUsage(0.25, 0.5, 1024, 1, 2, 3, 4, 5, 6)

COPIES: dict[str, Callable[[Any], Any]] = {
    **{
        f"pickle-{protocol}": lambda one, protocol=protocol: pickle.loads(
            pickle.dumps(one, protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.fixture(params=COPIES)
def copied(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return COPIES[request.param]


class Mine(TimeoutExpired):
    """A user's: of its own arguments."""

    def __init__(self, step: str, attempt: int, *, result: CompletedProcess[Any]) -> None:
        super().__init__(result)
        self.step = step
        self.attempt = attempt


class MineToo(CompletedProcess[str]):
    def __init__(self, index: int) -> None:
        super().__init__(["make"], 0, "out\n", "")
        self.index = index


def of(**options: Any) -> CompletedProcess[bytes]:
    return CompletedProcess(**{"args": ["git", "push"], "returncode": 1, **options})


def line(error: BaseException) -> str:
    """The only one."""
    text = str(error)
    assert "\n" not in text
    return text


def raised(result: CompletedProcess[Any]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        result.check_returncode()
    return caught.value


# -- CompletedProcess


def test_it_is_the_standard_librarys() -> None:
    result = CompletedProcess(["true"], 0, b"out", b"err")
    assert isinstance(result, subprocess.CompletedProcess)
    theirs = subprocess.CompletedProcess(["true"], 0, b"out", b"err")
    assert vars(theirs).items() <= vars(result).items()
    assert result != CompletedProcess(["true"], 0, b"out", b"err")
    assert len({result, result, copy.copy(result)}) == 2
    assert CompletedProcess[bytes](["true"], 0).returncode == 0


def test_what_it_says_by_default() -> None:
    result = CompletedProcess(["true"], 0)
    assert (result.stdout, result.stderr, result.reason, result.duration) == (
        None,
        None,
        "exit",
        0.0,
    )
    assert (result.rusage, result.pid, result.complete, result.dropped) == (
        None,
        None,
        True,
        (0, 0),
    )
    assert (result.forced, result.left, result.error, result.name) == (None,) * 4
    assert result.ok
    assert result.signal is None
    result.check_returncode()


@pytest.mark.parametrize("reason", ["timeout", "idle", "cancelled", "error"])
def test_what_was_ended_is_not_ok(reason: Any) -> None:
    result = of(returncode=0, reason=reason)
    assert not result.ok
    assert isinstance(raised(result), ProcessError)


def test_what_is_accepted() -> None:
    assert [code for code in range(-20, 256) if of(returncode=code).ok] == [0]
    assert of(accepted={0, 1}).ok
    assert of(returncode=200, accepted=range(256)).ok
    assert not of(returncode=0, accepted={1}).ok
    assert not of(returncode=None, reason="error", accepted=range(256)).ok
    of(accepted={1}).check_returncode()
    with pytest.raises(CalledProcessError):
        of(returncode=0, accepted={1}).check_returncode()


def test_the_signal() -> None:
    for code in (0, 1, 255, 0xC000_0005, None, UNKNOWN_EXIT, int(UNKNOWN_EXIT)):
        assert of(returncode=code).signal is None
    assert of(returncode=-SIGTERM).signal is signal.SIGTERM
    # Also if it was ours.
    assert of(returncode=-SIGTERM, reason="timeout").signal is signal.SIGTERM


@posix_only("real-time signals")
def test_a_signal_without_a_name() -> None:
    nameless = set(range(1, 65)) - set(signal.Signals)
    assert nameless
    for number in nameless:
        result = of(returncode=-number, duration=1.0)
        assert result.signal == number
        assert line(raised(result)) == f"git push: killed by signal {number} after 1.00 s"


@pytest.mark.parametrize(
    "out",
    [b"", b"one", b"one\n", b"one\n\n", b"one\r\ntwo\r\n", b"one\rtwo\r", b"\xe2\x82\xac\xff\n"],
)
def test_text_is_as_subprocess_decodes_it(out: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.stdout.buffer.write({out!r})"],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    expected = done.stdout.removesuffix("\n")
    assert of(stdout=out).text == expected
    assert CompletedProcess("x", 0, done.stdout).text == expected


def test_text() -> None:
    assert of().text == ""
    assert of(stdout=b"\x82", encoding="cp850").text == "é"
    assert of(stdout=b"a\xff", errors="ignore").text == "a"
    with pytest.raises(UnicodeDecodeError):
        _ = of(stdout=b"a\xff", errors="strict").text


def test_repr() -> None:
    result = of(stdout=b"out", stderr=b"", duration=0.3125)
    assert repr(result) == (
        "CompletedProcess(args=['git', 'push'], returncode=1, stdout=b'out', stderr=b'', "
        "duration=0.312)"
    )
    result = of(returncode=-9, reason="timeout", forced="kill", left=[7], complete=False)
    for part in ("returncode=-9", "reason='timeout'", "forced='kill'", "left=[7]"):
        assert part in repr(result)
    assert "complete=False" in repr(result)


def test_repr_is_short() -> None:
    much = b"x" * 3_000_000
    result = of(args=["x" * 100_000] * 3, stdout=much, stderr=much, error=OSError("y" * 10_000))
    assert len(repr(result)) < 1000
    assert "3000000 bytes" in repr(result)
    assert "3000000 characters" in repr(of(stdout=much.decode()))


def test_repr_of_what_holds_itself() -> None:
    result = of(returncode=None, reason="error")
    result.error = NotEnded(result)
    assert repr(result).count("CompletedProcess(") == 1
    assert "NotEnded" in repr(result)


def test_a_name_stands_for_the_command() -> None:
    result = of(args=["login", "--password", "secret"], name="log in")
    assert "secret" not in repr(result)
    assert "'log in'" in repr(result)
    for kind in (ProcessError, CalledProcessError, TimeoutExpired, NotEnded):
        error = kind(result)
        assert "secret" not in repr(error) + str(error)
        assert line(error).startswith("log in: ")


def test_results_are_copied(copied: Callable[[Any], Any]) -> None:
    result = of(
        args=["a"], returncode=UNKNOWN_EXIT, stdout=b"out", stderr=b"err", reason="cancelled",
        duration=1.5, rusage=USAGE, pid=12, complete=False, dropped=(1, 2), forced="kill",
        left=[3], name="it", accepted={0, 4}, encoding="ascii", errors="strict", timeout=3.0,
    )  # fmt: skip
    other = copied(result)
    assert other is not result
    assert type(other) is CompletedProcess
    assert vars(other) == vars(result)
    assert other.returncode is UNKNOWN_EXIT
    assert type(other.rusage) is ResourceUsage


def test_results_of_a_class_derived_from_it_are_copied(copied: Callable[[Any], Any]) -> None:
    other = copied(MineToo(7))
    assert type(other) is MineToo
    assert (other.index, other.text, other.ok) == (7, "out", True)


# -- the errors


def test_what_check_returncode_raises() -> None:
    assert type(raised(of())) is CalledProcessError
    assert type(raised(of(returncode=-SIGKILL, reason="signal"))) is CalledProcessError
    assert type(raised(of(returncode=-SIGKILL, reason="cancelled"))) is CalledProcessError
    assert type(raised(of(returncode=UNKNOWN_EXIT))) is CalledProcessError
    for reason in ("timeout", "idle"):
        error = raised(of(reason=reason, timeout=60, duration=61.0))
        assert type(error) is TimeoutExpired
        assert error.timeout == 60
    why = FileNotFoundError(2, "No such file or directory", "git")
    assert raised(of(returncode=None, reason="error", error=why)) is why
    # What is not known.
    assert type(raised(of(returncode=None, reason="error"))) is CalledProcessError
    error = raised(of(reason="timeout", duration=61.0))
    assert isinstance(error, TimeoutExpired)
    assert error.timeout == 61.0


def test_a_called_process_error_is_the_standard_librarys() -> None:
    result = of(stdout=b"out", stderr=b"err")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        result.check_returncode()
    error = caught.value
    theirs = subprocess.CalledProcessError(1, ["git", "push"], b"out", b"err")
    for name in ("returncode", "cmd", "output", "stdout", "stderr"):
        assert getattr(error, name) == getattr(theirs, name), name
    assert error.result is result
    assert error.args == CalledProcessError(result=result).args == (result,)
    assert isinstance(error, ProcessError)
    assert isinstance(error, subprocess.SubprocessError)


@pytest.mark.parametrize(
    "kind", [subprocess.TimeoutExpired, asyncio.TimeoutError, TimeoutError, OSError, ProcessError]
)
def test_a_timeout_is_everybodys(kind: type[BaseException]) -> None:
    result = of(reason="timeout", stdout=b"out", stderr=b"err")
    with pytest.raises(kind) as caught:
        raise TimeoutExpired(result, 1.5)
    error = caught.value
    theirs = subprocess.TimeoutExpired(["git", "push"], 1.5, b"out", b"err")
    for name in ("timeout", "cmd", "output", "stdout", "stderr"):
        assert getattr(error, name) == getattr(theirs, name), name
    assert error.result is result
    assert error.args == (result, 1.5)
    # The way of OSError to take its arguments.
    assert (error.errno, error.strerror, error.filename) == (None, None, None)


def test_what_could_not_be_ended() -> None:
    result = of(returncode=None, reason="timeout", pid=12)
    error = NotEnded(result, "D")
    assert (error.result, error.pid, error.state) == (result, 12, "D")
    assert NotEnded(result).state is None
    assert not isinstance(error, OSError)


def errors() -> list[ProcessError]:
    result = of(stdout=b"out", stderr=b"err", reason="timeout", timeout=3.0, pid=12, duration=4.0)
    return [
        ProcessError(result),
        CalledProcessError(result),
        TimeoutExpired(result),
        TimeoutExpired(result, 60),
        NotEnded(result, "D"),
        Mine("compile", 2, result=result),
    ]


@pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)
def test_errors_are_copied(error: ProcessError, copied: Callable[[Any], Any]) -> None:
    error.more = ["my own"]  # type: ignore[attr-defined]
    try:
        raise error
    except ProcessError:
        other = copied(error)
    assert other is not error
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert other.__traceback__ is None
    ours, theirs = dict(vars(error)), dict(vars(other))
    result = theirs.pop("result")
    assert vars(result) == vars(ours.pop("result"))
    assert theirs == ours
    # args hold what the attributes hold.
    assert other.args == (result, *error.args[1:])
    assert other.args[0] is result


def test_notes_are_copied(copied: Callable[[Any], Any]) -> None:
    error = CalledProcessError(of())
    error.__notes__ = ["in a container"]  # add_note() is of Python 3.11
    assert copied(error).__notes__ == ["in a container"]


def test_a_result_and_its_error_that_hold_each_other(copied: Callable[[Any], Any]) -> None:
    result = of(returncode=None, reason="error", pid=12)
    result.error = NotEnded(result, "D")
    other = copied(result)
    assert type(other.error) is NotEnded
    assert (other.error.state, other.error.pid) == ("D", 12)
    if copied is not copy.copy:
        assert other.error.result is other
        assert other.error.args == (other, "D")


# -- what they say


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"duration": 0.31}, "git push: exit code 1 after 0.31 s"),
        ({"duration": 0.0042}, "git push: exit code 1 after 0.004 s"),
        ({"returncode": 0xC0000005, "duration": 2}, "git push: exit code 0xC0000005 after 2.00 s"),
        ({"returncode": UNKNOWN_EXIT, "duration": 2}, "git push: exit code unknown after 2.00 s"),
        (
            {"args": ["ffmpeg"], "returncode": -15, "reason": "signal", "duration": 3.2},
            "ffmpeg: killed by SIGTERM after 3.20 s",
        ),
        (
            {"args": "make", "returncode": -15, "reason": "timeout", "timeout": 60},
            "make: timed out after 60 s (SIGTERM)",
        ),
        (
            {"args": "make", "returncode": 0, "reason": "timeout", "timeout": 0.25},
            "make: timed out after 0.25 s (exit code 0)",
        ),
        (
            {"args": "make", "returncode": -15, "reason": "idle", "timeout": 5.0},
            "make: timed out after 5 s without output (SIGTERM)",
        ),
        (
            {"returncode": -15, "reason": "cancelled", "duration": 3.2},
            "git push: cancelled after 3.20 s (SIGTERM)",
        ),
        (
            {"duration": 0.31, "complete": False},
            "git push: exit code 1 after 0.31 s; the output is incomplete, since a pipe was "
            "still open",
        ),
        ({"name": "up\nload\x1b", "duration": 1}, r"up\nload\x1b: exit code 1 after 1.00 s"),
    ],
)
def test_the_line(options: dict[str, Any], expected: str) -> None:
    assert line(raised(of(**options))) == expected


@posix_only("SIGKILL")
def test_the_line_of_what_had_to_be_killed() -> None:
    error = raised(of(args=["make"], returncode=-9, reason="timeout", timeout=60, forced="kill"))
    assert line(error) == "make: timed out after 60 s (SIGKILL)"


def test_the_line_says_the_time_it_was_given() -> None:
    error = TimeoutExpired(of(reason="timeout", returncode=0, timeout=3), 60)
    assert line(error) == "git push: timed out after 60 s (exit code 0)"


def test_the_line_of_what_could_not_be_ended() -> None:
    result = of(returncode=None, reason="cancelled", pid=12, duration=9.5)
    assert line(NotEnded(result, "D")) == (
        "git push: cancelled after 9.50 s; pid 12 could not be killed (state D)"
    )
    assert line(NotEnded(result)).endswith("; pid 12 could not be killed")
    result = of(returncode=None, pid=12, duration=9.5)
    assert line(NotEnded(result)).startswith("git push: still running after 9.50 s; ")


def test_the_line_of_an_error() -> None:
    result = of(returncode=None, reason="error", error=ValueError("a\nb"), duration=1)
    assert line(ProcessError(result)) == r"git push: ValueError: a\nb after 1.00 s"
    result.error = ProcessError(result)  # itself
    assert line(result.error) == "git push: ProcessError after 1.00 s"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["echo", "two words", "it's", "$HOME"], """echo 'two words' 'it'"'"'s' '$HOME'"""),
        (["echo", "a\nb\x1b[31m\u202e"], r"echo 'a\nb\x1b[31m\u202e'"),
        ([b"caf\xc3\xa9", "日本"], "'café' '日本'"),
        ("make -j 2 | tee log", "make -j 2 | tee log"),
        (b"make\r\n", r"make\r\n"),
        ([Path("a b"), "c"], "'a b' c"),
        (Path("a b"), "a b"),
    ],
)
def test_the_command(args: Any, expected: str) -> None:
    assert line(CalledProcessError(of(args=args))).partition(": ")[0] == expected


def test_a_command_that_is_no_text() -> None:
    assert line(CalledProcessError(of(args=[b"x\xff"]))).startswith(r"'x\xff': ")
    assert line(CalledProcessError(of(args=["x\udcff"]))).startswith(r"'x\udcff': ")


@pytest.mark.parametrize("args", ["x" * 5000, ["x" * 5000], ["y z"] * 5000, ["\n" * 190]])
def test_a_long_command(args: Any) -> None:
    command = line(CalledProcessError(of(args=args))).partition(": ")[0]
    assert len(command) == 200
    assert command.endswith("...")


def test_no_more_of_a_command_is_looked_at_than_is_shown() -> None:
    args = ["x" * 300, object()]
    assert "..." in line(CalledProcessError(of(args=args)))


def after(result: CompletedProcess[Any]) -> str:
    """What comes after the line."""
    return str(CalledProcessError(result)).partition("\n")[2]


def test_the_end_of_the_output() -> None:
    assert after(of(stdout=b"out\n", stderr=b"bad\nworse\n")) == "bad\nworse"
    assert after(of(stdout=b"out\n", stderr=b"")) == "out"
    assert after(of(stdout=b"out\n", stderr=b" \r\n")) == "out"
    assert after(of(stdout=b"out\n")) == "out"
    assert after(of(stdout="out\n", stderr="bad\n")) == "bad"
    assert after(of()) == after(of(stdout=b"", stderr=b"")) == ""


def test_the_output_does_nothing_to_a_terminal() -> None:
    bad = b"\x1b[2J\ttab\a\r\n\0 \xff caf\xc3\xa9\xc2\xa0! \xe2\x80\xae\xc2\x9b"
    expected = "\\x1b[2J\ttab\\x07\n\\x00 \ufffd café\u00a0! \\u202e\\x9b"
    assert after(of(stderr=bad)) == expected
    assert after(of(stderr=bad, errors="strict")) == expected
    assert after(of(stderr="\x1b\udcff")) == r"\x1b\udcff"


def test_the_output_in_another_encoding() -> None:
    assert after(of(stderr=b"caf\x82", encoding="cp850")) == "café"
    assert after(of(stderr=b"\xc3\xa9", encoding="ascii")) == "\ufffd\ufffd"
    assert after(of(stderr=b"cafe", encoding="idna")) == "cafe"  # which does not replace
    # Windows' own ones, when it is read elsewhere.
    assert after(of(stderr=b"cafe", encoding="no such codec")) == "cafe"


def test_output_that_is_cut() -> None:
    assert after(of(stderr=b"x" * 2048)) == "x" * 2048
    hint, text = after(of(stderr=b"old" + b"x" * 2048)).split("\n")
    assert text == "x" * 2048
    assert hint == "[stderr: the last 2048 of 2051 bytes]"
    # In the midst of a character.
    hint, text = after(of(stdout="日".encode() * 1000)).split("\n")
    assert hint == "[stdout: the last 2048 of 3000 bytes]"
    assert set(text) == {"日"}
    hint, text = after(of(stdout="日" * 3000)).split("\n")
    assert hint == "[stdout: the last 2048 of 3000 characters]"
    assert text == "日" * 2048


def test_output_that_was_dropped() -> None:
    assert after(of(stdout=b"out", stderr=b"bad", dropped=(0, 5))) == (
        "[stderr: 5 bytes were dropped by max_output]\nbad"
    )
    assert after(of(stdout=b"out", dropped=(7, 0))) == (
        "[stdout: 7 bytes were dropped by max_output]\nout"
    )
    assert after(of(stdout=b"out", stderr=b"bad", dropped=(7, 0))) == "bad"
    hint = after(of(stderr=b"x" * 3000, dropped=(0, 5))).partition("\n")[0]
    assert hint == "[stderr: the last 2048 of 3000 bytes; 5 bytes were dropped by max_output]"


def test_a_traceback_shows_it() -> None:
    error = CalledProcessError(of(stderr=b"fatal: no\n", duration=1))
    shown = "".join(traceback.format_exception_only(type(error), error))
    assert shown.endswith("CalledProcessError: git push: exit code 1 after 1.00 s\nfatal: no\n")


# -- partial_result()


def with_result(result: CompletedProcess[Any]) -> asyncio.CancelledError:
    error = asyncio.CancelledError()
    error.result = result  # type: ignore[attr-defined]
    return error


def test_partial_result_is_the_errors_own() -> None:
    result = of()
    assert partial_result(CalledProcessError(result)) is result
    assert partial_result(with_result(result)) is result
    assert partial_result(ValueError()) is None
    other = ValueError()
    other.result = "of something else"  # type: ignore[attr-defined]
    assert partial_result(other) is None
    other.__cause__ = with_result(result)
    assert partial_result(other) is result


def test_partial_result_behind_others() -> None:
    result, later = of(), of()
    for link in ("__cause__", "__context__"):
        error: BaseException = with_result(result)
        for _ in range(5000):  # more than can be recursed
            outer = ValueError()
            setattr(outer, link, error)
            error = outer
        assert partial_result(error) is result
    both = ValueError()
    both.__cause__, both.__context__ = with_result(result), with_result(later)
    assert partial_result(both) is result
    hidden = ValueError()
    hidden.__context__, hidden.__suppress_context__ = with_result(result), True
    assert partial_result(hidden) is result


def test_partial_result_in_a_circle() -> None:
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one
    one.__context__, two.__context__ = two, one
    assert partial_result(one) is None
    result = of()
    three = TypeError()
    two.__context__, three.__context__ = three, one
    three.result = result  # type: ignore[attr-defined]
    assert partial_result(one) is result


class Group(Exception):
    """As Python 3.10 has them: of another maker."""

    def __init__(self, text: str, exceptions: list[BaseException]) -> None:
        super().__init__(text)
        self.exceptions = tuple(exceptions)


GROUPS: list[Any] = [Group]
if sys.version_info >= (3, 11):
    GROUPS.append(BaseExceptionGroup)  # noqa: F821


@pytest.mark.parametrize("group", GROUPS)
def test_partial_result_in_groups(group: Any) -> None:
    first, second = of(), of()
    behind = KeyError()
    behind.__context__ = with_result(first)
    error = group("", [ValueError(), group("", [behind]), with_result(second)])
    error.__context__ = with_result(of())
    assert partial_result(error) is first
    assert partial_result(group("", [ValueError()])) is None
    outer = ValueError()
    outer.__cause__ = error
    assert partial_result(outer) is first


def test_partial_result_of_a_task_that_timed_out() -> None:
    """What asyncio makes of it on its way: another error, or another CancelledError."""
    result = of()

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError as error:
            error.result = result  # type: ignore[attr-defined]
            raise

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError) as timed_out:
            await asyncio.wait_for(work(), 0.01)
        assert partial_result(timed_out.value) is result
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        assert partial_result(cancelled.value) is result

    asyncio.run(main())
