"""Ending all that a child has started."""

from __future__ import annotations

from .._backends.base import Child
from .._backends.system import WINDOWS
from .alone import Alone
from .child_tree import ChildTree
from .job_tree import JobTree
from .tree import Tree

__all__ = ["Alone", "ChildTree", "JobTree", "ProcessTree", "Tree", "tree_of"]

#: What both can: send, signal, alive, gone, kill, close.
ProcessTree = ChildTree | JobTree


def tree_of(child: Child, *, session: bool, leads_group: bool, mark: str) -> ProcessTree:
    """The tree of a child that was made for it, right after the spawn.

    session: it has one of its own. leads_group: a process group, on Windows one on our
    console. mark: as from new_mark(), on POSIX.
    """
    if WINDOWS:
        return JobTree(child, leads_group=leads_group)
    return ChildTree(child, session=session, leads_group=leads_group, mark=mark)
