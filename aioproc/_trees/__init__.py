"""Starting a child, and ending all that it has started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _backends
from .._backends.base import Child
from .._backends.system import WINDOWS
from .alone import Alone
from .child_tree import ChildTree
from .job_tree import JobTree
from .tree import Tree, kill_marked

if TYPE_CHECKING:
    import asyncio

    from .._spec.spec import SpawnSpec

__all__ = ["Alone", "ChildTree", "JobTree", "ProcessTree", "Tree", "spawn", "tree_of"]

#: What both can: send, signal, alive, gone, kill, close.
ProcessTree = ChildTree | JobTree


def spawn(
    spec: SpawnSpec,
    loop: asyncio.AbstractEventLoop,
    lazy: bool = False,
    collect: bool = False,
    input: memoryview | None = None,
) -> Child:
    """Starts a child: the backend's spawn(). When that raises, what the child may have started
    by then is ended."""
    try:
        return _backends.current().spawn(spec, loop, lazy, collect, input)
    except BaseException:
        if spec.was_given_up:
            kill_marked(spec.mark)
        raise


def tree_of(child: Child, spec: SpawnSpec) -> ProcessTree:
    """The tree of a child that was made for it, by this, right after the spawn."""
    if WINDOWS:
        return JobTree(child, leads_group=spec.leads_group)
    return ChildTree(
        child, session=spec.start_new_session, leads_group=spec.leads_group, mark=spec.mark
    )
