"""Ending all that a child has started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._backends.base import Child
from .._backends.system import WINDOWS
from .alone import Alone
from .child_tree import ChildTree
from .job_tree import JobTree
from .tree import Tree, kill_marked

if TYPE_CHECKING:
    from .._spec.spec import SpawnSpec

__all__ = ["Alone", "ChildTree", "JobTree", "ProcessTree", "Tree", "end_given_up", "tree_of"]

#: What both can: send, signal, alive, gone, kill, close.
ProcessTree = ChildTree | JobTree


def end_given_up(spec: SpawnSpec) -> None:
    """After a spawn that has raised: has what the child had started by then ended."""
    if spec.was_given_up:
        kill_marked(spec.mark)


def tree_of(child: Child, spec: SpawnSpec) -> ProcessTree:
    """The tree of a child that was made for it, by this, right after the spawn."""
    if WINDOWS:
        return JobTree(child, leads_group=spec.leads_group)
    return ChildTree(
        child, session=spec.start_new_session, leads_group=spec.leads_group, mark=spec.mark
    )
