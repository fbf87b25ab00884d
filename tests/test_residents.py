"""What a loop's port or watch leaves open."""

from __future__ import annotations

import asyncio
import importlib
import time
from typing import Any

import pytest

from aioproc import _backends
from aioproc._backends import residents
from conftest import FUSE, open_fds
from programs import TRUE

pytestmark = pytest.mark.asyncio


async def test_a_spawn_that_failed_keeps_nothing_open(
    aioproc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = _backends.current()
    room = importlib.import_module(type(backend).__module__)

    def no_more_descriptors(*args: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(residents, "LINGER", 0.0)
    before = open_fds()
    with monkeypatch.context() as patch:
        patch.setattr(room.Stdio, "open", no_more_descriptors)
        with pytest.raises(OSError, match="Too many open files"):
            await aioproc.create_subprocess_exec(*TRUE)
    end = time.monotonic() + FUSE
    while open_fds().keys() - before.keys():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)
