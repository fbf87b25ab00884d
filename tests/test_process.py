"""What asyncio's documentation promises of a Process."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from conftest import python

pytestmark = pytest.mark.asyncio


async def test_returncode_is_none_until_the_exit(api: Any) -> None:
    process = await api.create_subprocess_exec("cat", stdin=api.PIPE)
    assert process.returncode is None
    process.stdin.close()
    assert await process.wait() == 0
    assert process.returncode == 0


@pytest.mark.parametrize("code", [0, 1, 77, 255])
async def test_exit_codes(api: Any, code: int) -> None:
    process = await api.create_subprocess_shell(f"exit {code}")
    assert await process.wait() == code


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGUSR1"])
async def test_death_by_signal(api: Any, name: str) -> None:
    number = getattr(signal, name)
    process = await api.create_subprocess_exec("cat", stdin=api.PIPE)
    process.send_signal(number)
    assert await process.wait() == -number
    process.stdin.close()


async def test_communicate(api: Any) -> None:
    process = await api.create_subprocess_exec(
        *python("import sys; d = sys.stdin.read(); print(d.upper()); sys.stderr.write('9\\n')"),
        stdin=api.PIPE,
        stdout=api.PIPE,
        stderr=api.PIPE,
    )
    assert await process.communicate(b"some text") == (b"SOME TEXT\n", b"9\n")
    assert process.returncode == 0
