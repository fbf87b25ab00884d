"""The scanner of the native backend: the C layer's, without the GIL."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ... import _native

ffi = _native.ffi
lib = _native.lib


class NativeScanner:
    def __init__(self) -> None:
        """OSError: ENOTSUP where processes cannot be seen."""
        place = ffi.new("ap_trees *[1]")
        _check(lib.ap_trees_open(place))
        self._trees = place[0]

    def sought(self) -> Any:
        return ffi.new("ap_tree *")

    def round(self, trees: Sequence[Any], /) -> int:
        return _check(lib.ap_trees_round(self._trees, ffi.new("ap_tree *[]", trees), len(trees)))

    def pids(self, tree: Any, /) -> list[int]:
        return list(tree.pids[0 : min(tree.alive, lib.AP_TREE_PIDS)])

    def close(self) -> None:
        trees, self._trees = self._trees, None
        if trees is not None:
            lib.ap_trees_close(trees)


def _check(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
