"""The environment that a child inherits is the process's own, C's `environ`: os.environ is
a copy, which os.putenv and C libraries pass by."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from helpers import output, script
from marks import posix_only

try:
    import ctypes
except ImportError:  # some Pythons are built without
    ctypes = None  # type: ignore[assignment]

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.one_loop,
    posix_only("another environment; see test_windows.py"),
]

ENV = "/usr/bin/env"


needs_ctypes = pytest.mark.skipif(ctypes is None, reason="no ctypes here")


@pytest.fixture
def clean() -> Iterator[None]:
    """None of the variables T1 to T3 afterwards."""
    yield
    for name in ("T1", "T2", "T3"):
        os.environ.pop(name, None)
        os.unsetenv(name)


async def variables(api: Any) -> dict[bytes, bytes]:
    """Those of a child, as far as they are ours."""
    lines = (await output(api, ENV)).splitlines()
    return dict(line.split(b"=", 1) for line in lines if line[:1] == b"T" and line[2:3] == b"=")


async def test_what_python_changes(api: Any, clean: None) -> None:
    os.putenv("T1", "put")
    assert await variables(api) == {b"T1": b"put"}
    os.environ["T2"] = "set"
    assert await variables(api) == {b"T1": b"put", b"T2": b"set"}
    os.unsetenv("T2")
    os.putenv("T1", "anew")
    assert await variables(api) == {b"T1": b"anew"}
    os.environ["T3"] = "\udcff"
    del os.environ["T3"]
    os.unsetenv("T1")
    assert await variables(api) == {}


@needs_ctypes
async def test_what_c_changes(api: Any, clean: None) -> None:
    libc = ctypes.CDLL(None)
    libc.setenv(b"T1", b"\xff", 1)
    assert await variables(api) == {b"T1": b"\xff"}
    libc.setenv(b"T1", b"of the same length", 1)
    assert await variables(api) == {b"T1": b"of the same length"}
    libc.setenv(b"T1", b"OF THE SAME LENGTH", 1)
    assert await variables(api) == {b"T1": b"OF THE SAME LENGTH"}
    # The string itself becomes part of the environment, "so altering the string changes
    # the environment" (putenv(3)).
    string = ctypes.create_string_buffer(b"T2=one")
    libc.putenv(string)
    assert (await variables(api))[b"T2"] == b"one"
    string.value = b"T2=two"
    assert (await variables(api))[b"T2"] == b"two"
    libc.unsetenv(b"T2")
    libc.unsetenv(b"T1")
    assert await variables(api) == {}


async def test_path_is_that_of_python(api: Any) -> None:
    # os.get_exec_path() looks there, for Popen.
    path = os.environ["PATH"]
    os.putenv("PATH", "/nowhere")
    try:
        assert b"PATH=/nowhere\n" in await output(api, "env")
    finally:
        os.putenv("PATH", path)


@needs_ctypes
async def test_any_strings(aioproc: Any) -> None:
    text = await script(
        """
        import ctypes
        environ = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "environ")

        async def show(*entries):
            array = (ctypes.c_char_p * (len(entries) + 1))(*entries)
            before, environ.value = environ.value, ctypes.addressof(array)
            try:
                process = await aioproc.create_subprocess_exec(
                    "cat", "/proc/self/environ", stdout=PIPE)
            finally:
                environ.value = before
            stdout, _ = await process.communicate()
            assert stdout == b"".join(entry + b"\\0" for entry in entries), stdout

        async def main():
            await show(b"A=1", b"A=2", b"no equals sign", b"=", b"=C:=C:\\\\", b"B=")
            await show()
            # No array at all, which clearenv() leaves behind.
            before, environ.value = environ.value, None
            try:
                process = await aioproc.create_subprocess_exec(
                    "cat", "/proc/self/environ", stdout=PIPE)
            finally:
                environ.value = before
            assert await process.communicate() == (b"", None)

        run(new_event_loop, main())
        """
    )
    assert text == ""


@needs_ctypes
async def test_it_is_read_as_it_is(aioproc: Any) -> None:
    """A long row of changes: what is kept of the last look never hides one."""
    if aioproc._backends.current().name == "pure":
        pytest.skip("Popen leaves it to exec")
    await script(
        """
        import ctypes, random
        from aioproc._backends.posix import environment as posix_environment

        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        address = ctypes.c_void_p.in_dll(libc, "environ")

        def truth():
            array = ctypes.cast(address, ctypes.POINTER(ctypes.c_char_p))
            entries = []
            while array[len(entries)] is not None:
                entries.append(array[len(entries)])
            return entries

        def check():
            block = posix_environment.inherited()
            entries = truth()
            assert block.text == b"".join(entry + b"\\0" for entry in entries)
            assert block.count == len(entries)
            return block

        dice = random.Random(1)
        kept = posix_environment._KEPT
        for round in range(4000):
            name = f"T{dice.randrange(60)}"
            value = dice.choice("xyz") * dice.randrange(40)
            what = dice.randrange(6)
            if what == 0:
                os.environ[name] = value
            elif what == 1:
                os.environ.pop(name, None)
            elif what == 2:
                os.putenv(name, value)
            elif what == 3:
                os.unsetenv(name)
            elif what == 4:
                libc.setenv(name.encode(), value.encode(), 1)
            elif place := libc.getenv(name.encode()):
                ctypes.memset(place, ord("w"), len(ctypes.string_at(place)))
            posix_environment._KEPT = kept and round < 2000  # then as on other systems
            block = check()
            assert (posix_environment.inherited() is block) == posix_environment._KEPT
        """
    )


async def test_without_the_gil_python_s_own_counts(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if aioproc._backends.current().name == "pure":
        pytest.skip("Popen leaves it to exec")
    from aioproc._backends.posix import environment as posix_environment

    monkeypatch.setattr(posix_environment, "_GUARDED", False)
    monkeypatch.setenv("T1", "set")
    os.putenv("T2", "put")
    try:
        entries = posix_environment.inherited().text.split(b"\0")
        assert b"T1=set" in entries
        assert b"T2=put" not in entries
    finally:
        os.unsetenv("T2")


@pytest.mark.parametrize("program", ["env", ENV])
async def test_names_that_cannot_be(aioproc: Any, program: str) -> None:
    # Popen takes one or the other, depending on how it makes the child.
    for name in ("", b"", "=A", "A=B"):
        with pytest.raises(ValueError, match="illegal environment variable name"):
            await aioproc.create_subprocess_exec(program, env={name: "x"})


async def test_path_twice(api: Any) -> None:
    env = {"PATH": "/bin", b"PATH": b"/usr/bin"}
    with pytest.raises(ValueError, match="env cannot contain 'PATH' and b'PATH' keys"):
        await api.create_subprocess_exec("env", env=env)
    # Nobody looks into it for a path.
    stdout = await output(api, ENV, env=env)
    assert sorted(stdout.splitlines()) == [b"PATH=/bin", b"PATH=/usr/bin"]


async def test_the_audit_event_says_none(aioproc: Any) -> None:
    await script(
        """
        seen = []
        sys.addaudithook(lambda event, args: event == "subprocess.Popen" and seen.append(args[3]))

        async def main():
            await (await aioproc.create_subprocess_exec("true")).wait()

        run(new_event_loop, main())
        assert seen and not any(seen), seen
        """
    )
