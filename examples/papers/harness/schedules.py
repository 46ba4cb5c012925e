"""Learning rates as values, and how long a method is pretrained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

_SHORT = 0.1  # of a run: warm-up takes no more


class Schedule(Protocol):
    """A learning rate for every step, counted from 0."""

    @property
    def peak(self) -> float: ...

    def __call__(self, step: int, steps_per_epoch: int, epochs: int) -> float: ...


@dataclass(frozen=True)
class WarmupCosine:
    """Linear in each step up to a cosine, then along it down to ``floor``.

    Attributes:
        peak: what the cosine falls from.
        warmup_epochs: at most a tenth of the run, so that a short run is not all warm-up.
        start: the rate before the first step, which is one step above it.
        floor: the rate that the cosine ends at.
        per_epoch: the cosine changes between epochs only, to what it is at an epoch's "start"
            (GSA-RSL's release) or "end" (SupCon's and AdvCL's).
        restarts: whether the cosine begins after the warm-up (ACL's release), not with the first
            epoch. Where it does not, the warm-up ends where the cosine has come to by then.
    """

    peak: float
    warmup_epochs: float = 10
    start: float = 0.0
    floor: float = 0.0
    per_epoch: Literal["start", "end"] | None = None
    restarts: bool = False

    def __call__(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        total = epochs * steps_per_epoch
        warm = min(self.warmup_epochs, _SHORT * epochs) * steps_per_epoch
        begun = warm if self.restarts else 0

        def cosine(at: float) -> float:
            done = (at - begun) / (total - begun)
            return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * done)) / 2

        if step < warm:
            # The first step is already above the start: at a rate of 0 it would be wasted.
            share = (step + 1) / (math.floor(warm) + 1)
            return self.start + (cosine(warm) - self.start) * share
        if self.per_epoch:
            epoch = step // steps_per_epoch + (self.per_epoch == "end")
            return cosine(max(epoch * steps_per_epoch, math.ceil(warm)))
        return cosine(step)


@dataclass(frozen=True)
class Steps:
    """``peak``, divided by ten at each of these epochs of a run of ``of`` epochs.

    A run of another length is divided at the same shares of it.
    """

    peak: float
    at: tuple[int, ...]
    of: int

    def __call__(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        epoch = step // steps_per_epoch * self.of / epochs
        return self.peak * 0.1 ** sum(epoch >= drop for drop in self.at)


@dataclass(frozen=True)
class Recipe:
    """How long and with which optimizer ("sgd", "adam", "lars") a method is pretrained."""

    epochs: int
    batch_size: int  # images per step, over all processes
    schedule: Schedule
    optimizer: str = "sgd"
    weight_decay: float = 1e-4  # of all parameters
