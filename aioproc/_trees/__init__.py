"""Ending all that a child has started."""

from __future__ import annotations

from .tree import Tree

__all__ = ["Tree"]
