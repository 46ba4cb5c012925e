"""Monitors: what an encoder has become, epoch by epoch, as numbers, and what is wrong with it."""

from __future__ import annotations

from advssl.doctor.networks import effective_rank, spread_of
from advssl.monitors.alarms import Alarms
from advssl.monitors.measures import (
    alignment,
    feature_deviation,
    pairs_kept,
    soft_neighbours,
    uniformity,
)
from advssl.monitors.watching import Monitors

__all__ = [
    "Alarms",
    "Monitors",
    "alignment",
    "effective_rank",
    "feature_deviation",
    "pairs_kept",
    "soft_neighbours",
    "spread_of",
    "uniformity",
]
