"""What the peers have to do."""

from __future__ import annotations

from . import alive, bulk, loop_time, many, spawn, start_up, surroundings, talk, trees
from .base import Curve, Metrics, Setting, Work

__all__ = ["CURVES", "WORKS", "Curve", "Metrics", "Setting", "Work"]

WORKS = {
    work.name: work
    for module in (spawn, surroundings, loop_time, bulk, talk, alive, start_up, trees, many)
    for work in module.WORKS
}
CURVES = {curve.work.name: curve for curve in surroundings.CURVES}
