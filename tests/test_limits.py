"""rlimits, nice, cpu_affinity, oom_score_adj, no_new_privs: what a child may use and do."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

import pytest

from programs import HAS_PROC, WINDOWS

if WINDOWS:
    pytest.skip("not on Windows: see test_windows_limits.py", allow_module_level=True)
if not HAS_PROC:
    pytest.skip("most of it is Linux'", allow_module_level=True)

import resource

from conftest import FUSE
from first import BURN, built, parsed
from helpers import script

pytestmark = pytest.mark.asyncio

is_root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="needs root's rights")
NOBODY = 65534


def own_cpus() -> list[int]:
    """Without os.sched_getaffinity(), which PyPy has not."""
    status = Path("/proc/self/status").read_text()
    mask = int(status.partition("Cpus_allowed:")[2].split()[0].replace(",", ""), 16)
    return [cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1]


CPUS = own_cpus()
#: What our own children may have, whatever rights we have. A CI's jobs have one themselves.
OOM = min(1000, int(Path("/proc/self/oom_score_adj").read_text()) + 100)
OPTIONS = {
    "rlimits": {"nofile": 256, "core": (0, None), "as": (2**33, 2**34), "stack": (2**22, None)},
    "nice": min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7),
    "cpu_affinity": CPUS[-1:],
    "oom_score_adj": OOM,
    "no_new_privs": True,
}


def snapshot() -> dict[str, Any]:
    """What a child must not change of us."""
    numbers = {name: getattr(resource, name) for name in dir(resource) if name[:7] == "RLIMIT_"}
    status = Path("/proc/self/status").read_text()
    autogroup = Path("/proc/self/autogroup")
    return {
        "rlimits": {name: resource.getrlimit(number) for name, number in numbers.items()},
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "cpus": own_cpus(),
        "oom": Path("/proc/self/oom_score_adj").read_text(),
        "no_new_privs": [line for line in status.splitlines() if line.startswith("NoNewPrivs")],
        "autogroup": autogroup.read_text() if autogroup.exists() else None,
        "umask": [line for line in status.splitlines() if line.startswith("Umask")],
    }


async def by_run(api: Any, *command: str, **options: Any) -> bytes:
    result: bytes = (await api.run(*command, **options)).stdout
    return result


async def by_exec(api: Any, *command: str, **options: Any) -> bytes:
    process = await api.create_subprocess_exec(*command, stdout=api.PIPE, **options)
    stdout: bytes
    stdout, _ = await process.communicate()
    assert process.returncode == 0
    return stdout


async def by_shell(api: Any, *command: str, **options: Any) -> bytes:
    process = await api.create_subprocess_shell(f"exec {command[0]}", stdout=api.PIPE, **options)
    stdout: bytes
    stdout, _ = await process.communicate()
    return stdout


@pytest.fixture(params=[by_run, by_exec])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    way: Callable[..., Any] = request.param
    return way


def possible(api: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Without what the pure backend refuses."""
    if api._backends.current().name == "pure":
        options = {name: value for name, value in options.items() if name != "no_new_privs"}
    return options


def check(shown: dict[str, list[str]], options: dict[str, Any]) -> None:
    own = parsed_own()
    for key, value in options.get("rlimits", {}).items():
        number = getattr(resource, f"RLIMIT_{key.upper()}")
        soft, hard = value if isinstance(value, tuple) else (value, value)
        hard = resource.getrlimit(number)[1] if hard is None else hard
        assert shown.pop(f"rlimit{number}") == [shown_bound(soft), shown_bound(hard)], key
    if "nice" in options:
        assert shown.pop("nice") == [str(options["nice"])]
    if "cpu_affinity" in options:
        assert shown.pop("cpus") == [str(cpu) for cpu in options["cpu_affinity"]]
    if "oom_score_adj" in options:
        assert shown.pop("oom") == [str(options["oom_score_adj"])]
    if "no_new_privs" in options:
        assert shown.pop("no_new_privs") == ["1"]
    if "umask" in options:
        assert shown.pop("umask") == [str(options["umask"])]
    # All else as it is here.
    for name, value in shown.items():
        if name in own:
            assert value == own[name], name


def parsed_own() -> dict[str, list[str]]:
    own = {"nice": [str(os.getpriority(os.PRIO_PROCESS, 0))], "cpus": list(map(str, CPUS))}
    own["oom"] = [Path("/proc/self/oom_score_adj").read_text().strip()]
    own["uid"] = [str(os.getuid()), str(os.geteuid())]
    for number in range(16):
        own[f"rlimit{number}"] = list(map(shown_bound, resource.getrlimit(number)))
    return own


def shown_bound(bound: int) -> str:
    """Before Python 3.15 resource.RLIM_INFINITY is -1."""
    return str(bound % 2**64)


# -- each of them holds, for the child alone


@pytest.mark.parametrize("name", [*OPTIONS, "all"])
async def test_it_holds_from_the_first_instruction(aioproc: Any, ask: Any, name: str) -> None:
    options = OPTIONS if name == "all" else {name: OPTIONS[name]}
    options = possible(aioproc, options)
    before = snapshot()
    shown = parsed(await ask(aioproc, built(), **options))
    assert snapshot() == before
    check(shown, options)


@pytest.mark.parametrize("none", sorted({-1, resource.RLIM_INFINITY}))
async def test_no_limit(aioproc: Any, ask: Any, none: int) -> None:
    """-1 means it on every Python, whatever resource has for it."""
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("we are limited ourselves")
    shown = parsed(await ask(aioproc, built(), rlimits={"fsize": (2**40, none)}))
    assert shown[f"rlimit{resource.RLIMIT_FSIZE}"] == [str(2**40), shown_bound(-1)]


async def test_in_a_shell(aioproc: Any) -> None:
    options = possible(aioproc, {**OPTIONS, "umask": 0o27})
    check(parsed(await by_shell(aioproc, built(), **options)), options)


@needs_root
async def test_with_another_user(aioproc: Any, ask: Any) -> None:
    """Limits are set with our rights, and not with that user's."""
    options = possible(aioproc, {**OPTIONS, "nice": -3})  # CAP_SYS_NICE
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.partition("CapEff:")[2].split()[0], 16)
    if capabilities & 1 << 24 and hard < int(Path("/proc/sys/fs/nr_open").read_text()):
        # CAP_SYS_RESOURCE, which containers have not.
        options.update(rlimits={"nofile": (20, hard + 1)}, oom_score_adj=-200)
    before = snapshot()
    shown = parsed(
        await ask(aioproc, built(), user=NOBODY, group=NOBODY, extra_groups=[], **options)
    )
    assert snapshot() == before
    assert shown.pop("uid") == [str(NOBODY), str(NOBODY)]
    check(shown, options)


async def test_many_at_once_and_others_among_them(aioproc: Any) -> None:
    """oom_score_adj is written to all processes on the same memory (proc(5) does not say so),
    and the others are on ours."""
    before = snapshot()
    options = possible(aioproc, OPTIONS)
    plain = [by_run(aioproc, built()) for _ in range(8)]
    limited = [by_run(aioproc, built(), **options) for _ in range(8)]
    pairs = [one for pair in zip(plain, limited, strict=True) for one in pair]
    for i, output in enumerate(await asyncio.gather(*pairs)):
        check(parsed(output), options if i % 2 else {})
    assert snapshot() == before


async def test_the_autogroup_is_that_of_a_session(aioproc: Any) -> None:
    """So it is set in a new one only; ours is not the child's to change."""
    if not Path("/proc/self/autogroup").exists():
        pytest.skip("this kernel has none")
    before = snapshot()
    for new in (True, False):
        output = await by_exec(aioproc, built(), start_new_session=new, nice=9)
        shown = parsed(output)
        assert shown["nice"] == ["9"]
        if not new:
            assert " ".join(shown["autogroup"]) == str(before["autogroup"]).strip()
        elif is_root:  # else the kernel takes one in 100 ms
            assert shown["autogroup"][1:] == ["nice", "9"]
    assert snapshot() == before


@pytest.mark.primary
@needs_root
async def test_nice_by_the_share_of_the_cpu(aioproc: Any) -> None:
    """Of two that burn the same CPU, each in a session of its own."""
    enabled = Path("/proc/sys/kernel/sched_autogroup_enabled")
    if not enabled.exists() or enabled.read_text().strip() != "1":
        pytest.skip("the kernel does not group by session")
    options = {"stdin": aioproc.PIPE, "cpu_affinity": CPUS[:1], "start_new_session": True}
    program = built(BURN)
    polite = await aioproc.create_subprocess_exec(program, nice=19, **options)
    plain = await aioproc.create_subprocess_exec(program, "0.2", **options)
    polite.stdin.close()
    plain.stdin.close()
    assert await asyncio.wait_for(plain.wait(), FUSE) == 0
    polite.kill()
    await polite.wait()
    assert polite.rusage.ru_utime < 0.3 * plain.rusage.ru_utime


async def test_with_a_preexec_fn(aioproc: Any, ask: Any) -> None:
    options = possible(aioproc, OPTIONS)
    shown = parsed(await ask(aioproc, built(), preexec_fn=lambda: os.umask(0o31), **options))
    check(shown, {**options, "umask": 0o31})


async def test_descriptors_are_closed_all_the_same(aioproc: Any) -> None:
    """Also those whose number is above the child's limit."""
    import fcntl

    source = os.open("/dev/null", os.O_RDONLY)
    high = fcntl.fcntl(source, fcntl.F_DUPFD, 700)
    os.set_inheritable(high, True)
    try:
        command = ("/bin/sh", "-c", "cd /proc/self/fd && echo *")
        output = await by_run(aioproc, *command, rlimits={"nofile": 20})
        assert set(output.split()) <= {b"0", b"1", b"2", b"3"}
        output = await by_run(aioproc, *command, rlimits={"nofile": 20}, pass_fds=[high])
        assert str(high).encode() in output.split()
    finally:
        os.close(high)
        os.close(source)


# -- what is refused by the kernel


async def fails(aioproc: Any, way: Any, *command: str, **options: Any) -> OSError:
    before = snapshot()
    with pytest.raises(OSError) as caught:
        await way(aioproc, *(command or (built(),)), **options)
    assert snapshot() == before
    return caught.value


async def test_a_cpu_that_is_not_there(aioproc: Any, ask: Any) -> None:
    for cpus in ({4000}, {CPUS[0], 4000}):
        error = await fails(aioproc, ask, cpu_affinity=cpus)
        assert error.errno == errno.EINVAL
        assert "cpu_affinity: not all of these CPUs are there" in str(error)


async def test_a_limit_that_nobody_can_have(aioproc: Any, ask: Any) -> None:
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    error = await fails(aioproc, ask, rlimits={"core": 0, "nofile": most + 1})
    assert isinstance(error, PermissionError)
    assert "rlimits['nofile']: " in str(error)


async def test_too_many_processes_of_a_user(aioproc: Any, ask: Any) -> None:
    """execve() fails for that, after a change of ids."""
    if not is_root:
        pytest.skip("needs root's rights")
    process = await aioproc.create_subprocess_exec("sleep", "1000", user=54321)
    try:
        error = await fails(aioproc, ask, user=54321, rlimits={"nproc": 0})
        assert isinstance(error, BlockingIOError)
        assert "rlimits['nproc'] may be too low" in str(error)
        assert error.filename == built()
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("key", ["as", "data", "stack"])
async def test_too_little_memory_for_an_exec(aioproc: Any, key: str) -> None:
    """Either it says so, or the kernel ends the program in the midst of it."""
    with pytest.raises((OSError, aioproc.CalledProcessError)) as caught:
        await aioproc.run("/bin/true", rlimits={key: 1})
    if not isinstance(caught.value, aioproc.CalledProcessError):
        assert f"rlimits['{key}'] may be too low" in str(caught.value)


async def test_arguments_that_the_stack_has_no_room_for(aioproc: Any, ask: Any) -> None:
    arguments = ["x" * 100_000] * 8
    error = await fails(aioproc, ask, built(), *arguments, rlimits={"stack": 400_000})
    assert error.errno == errno.E2BIG
    assert "rlimits['stack'] may be too low" in str(error)


async def test_where_pickle_cannot_be_imported(
    aioproc: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a chroot(), or by a user who cannot read Python's library."""
    monkeypatch.setitem(sys.modules, "pickle", None)
    options = {"preexec_fn": lambda: None, "rlimits": {"nofile": 2**62}}
    error = await fails(aioproc, ask, **options)
    assert isinstance(error, PermissionError)
    assert "rlimits['nofile']: " in str(error)

    def fail() -> None:
        raise ValueError("that")

    with pytest.raises(SubprocessError, match=r"preexec_fn\. ValueError: that") as caught:
        await ask(aioproc, built(), preexec_fn=fail)
    assert caught.value.__cause__ is None


async def test_other_failures_are_told_as_ever(aioproc: Any, ask: Any) -> None:
    error = await fails(aioproc, ask, "/nowhere/at/all", rlimits={"nofile": 100}, nice=19)
    assert isinstance(error, FileNotFoundError)
    assert error.filename == "/nowhere/at/all"
    error = await fails(aioproc, ask, cwd="/nowhere/at/all", nice=19)
    assert error.filename == "/nowhere/at/all"


@needs_root
async def test_as_an_ordinary_user(aioproc: Any) -> None:
    """What may be had by anybody, and what may not."""
    pytest.importorskip("ctypes")
    await script(
        """
        import ctypes
        from first import parsed
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        # As after an exec: /proc/self is ours (PR_SET_DUMPABLE).
        assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        before = open("/proc/self/oom_score_adj").read()

        async def refused(option, kind, **options):
            for function in (aioproc.run, aioproc.create_subprocess_exec):
                try:
                    await function(sys.argv[1], **options)
                except kind as error:
                    assert str(error).startswith(f"[Errno {error.errno}] {option}: "), error
                else:
                    raise AssertionError(options)

        async def main():
            options = dict(rlimits={"nofile": (20, hard)}, nice=5, oom_score_adj=int(sys.argv[2]))
            done = await aioproc.run(sys.argv[1], **options)
            shown = parsed(done.stdout)
            assert shown["nice"] == ["5"] and shown["oom"] == [sys.argv[2]], shown
            assert shown["rlimit7"] == ["20", str(hard)], shown
            assert open("/proc/self/oom_score_adj").read() == before
            await refused("nice", PermissionError, nice=-1)
            await refused("rlimits['nofile']", PermissionError, rlimits={"nofile": hard + 1})
            await refused("oom_score_adj", PermissionError, oom_score_adj=-1000)

        run(new_event_loop, main())
        """,
        built(),
        str(OOM),
    )


# -- what is refused before


BAD = [
    ({"rlimits": 256}, TypeError, "mapping"),
    ({"rlimits": {"nofiles": 256}}, ValueError, "'nofiles'"),
    ({"rlimits": {3: 256}}, ValueError, "there is no limit 3"),
    ({"rlimits": {"job_memory": 256}}, ValueError, "'job_memory'"),
    ({"rlimits": {"nofile": "256"}}, TypeError, "soft, hard"),
    ({"rlimits": {"nofile": None}}, TypeError, "soft, hard"),
    ({"rlimits": {"nofile": (1, 2, 3)}}, TypeError, "soft, hard"),
    ({"rlimits": {"nofile": True}}, TypeError, "soft, hard"),
    ({"rlimits": {"nofile": -2}}, ValueError, "0 or more"),
    ({"rlimits": {"nofile": 2**64}}, ValueError, "0 or more"),
    ({"rlimits": {"nofile": (20, 10)}}, ValueError, "exceeds"),
    ({"rlimits": {"nofile": (-1, 10)}}, ValueError, "exceeds"),
    ({"nice": 20}, ValueError, "from -20 to 19"),
    ({"nice": "idle"}, TypeError, "integer"),
    ({"nice": True}, TypeError, "integer"),
    ({"cpu_affinity": 1}, TypeError, "such as"),
    ({"cpu_affinity": "01"}, TypeError, "such as"),
    ({"cpu_affinity": []}, ValueError, "at least one"),
    ({"cpu_affinity": [-1]}, ValueError, "from 0"),
    ({"cpu_affinity": [8192]}, ValueError, "from 0"),
    ({"cpu_affinity": ["0"]}, TypeError, "integer"),
    ({"oom_score_adj": 1001}, ValueError, "from -1000 to 1000"),
    ({"oom_score_adj": "500"}, TypeError, "integer"),
]


@pytest.mark.primary
@pytest.mark.parametrize(("options", "kind", "text"), BAD, ids=str)
async def test_bad_input(aioproc: Any, ask: Any, options: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text):
        await ask(aioproc, "/nowhere/at/all", **options)


@pytest.mark.parametrize("option", ["no_new_privs", "die_with_parent"])
async def test_what_the_standard_library_cannot_do(aioproc: Any, ask: Any, option: str) -> None:
    if aioproc._backends.current().name != "pure":
        pytest.skip("the pure backend's")
    with pytest.raises(ValueError, match=f"{option} needs the native backend"):
        await ask(aioproc, "/nowhere/at/all", **{option: True})


@pytest.mark.primary
@pytest.mark.parametrize(
    ("option", "value", "gone"),
    [
        ("cpu_affinity", {0}, "HAS_CPUS"),
        ("oom_score_adj", 1, "LINUX"),
        ("no_new_privs", True, "LINUX"),
        ("die_with_parent", True, "LINUX"),
    ],
)
async def test_what_other_systems_cannot_do(
    aioproc: Any, ask: Any, option: str, value: Any, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"aioproc._spec.limits.{gone}", False)
    with pytest.raises(ValueError, match=f"{option} is not supported on the current platform"):
        await ask(aioproc, "/nowhere/at/all", **{option: value})
    assert await ask(aioproc, "/bin/echo", rlimits={"core": 0}) == b"\n"


@pytest.mark.primary
async def test_the_numbers_of_the_steps_are_the_c_layers(aioproc: Any) -> None:
    try:
        from aioproc._native import lib
    except ImportError:
        pytest.skip("the native backend's")
    from aioproc._backends import base

    names = {"SETUP", "CHDIR", "EXEC", "NICE", "CPUS", "OOM", "NO_NEW_PRIVS", "DIE", "RLIMIT"}
    for name in names:
        assert getattr(base, f"STEP_{name}") == getattr(lib, f"AP_STEP_{name}"), name
    from aioproc._spec import limits

    assert limits.MOST_CPUS == lib.AP_CPUS_MOST
    assert len(limits._RESOURCES) <= lib.AP_RLIMITS_MOST
