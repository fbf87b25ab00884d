"""Ending all that a child has started."""

from __future__ import annotations

from .child_tree import ChildTree
from .tree import Tree

__all__ = ["ChildTree", "Tree"]
