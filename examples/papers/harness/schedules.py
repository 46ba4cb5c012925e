"""Learning rates as values, and optimizers by name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from advssl.distributed import average
from advssl.modes import uphill

_SHORT = 0.1  # of a run: warm-up takes no more


class Schedule(Protocol):
    """A learning rate for every step, counted from 0."""

    @property
    def peak(self) -> float: ...

    def __call__(self, step: int, steps_per_epoch: int, epochs: int) -> float: ...


@dataclass(frozen=True)
class WarmupCosine:
    """Linear in each step up to ``peak``, then half a cosine down to ``floor``.

    Attributes:
        peak: the highest rate.
        warmup_epochs: at most a tenth of the run, so that a short run is not all warm-up.
        start: the rate before the first step, which is one step above it.
        floor: the rate that the cosine ends at.
        per_epoch: the cosine changes between epochs only, as AdvCL's and GSA-RSL's.
    """

    peak: float
    warmup_epochs: float = 10
    start: float = 0.0
    floor: float = 0.0
    per_epoch: bool = False

    def __call__(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        warm = min(self.warmup_epochs, _SHORT * epochs) * steps_per_epoch
        if step < warm:
            # The first step is already above the start: at a rate of 0 it would be wasted.
            return self.start + (self.peak - self.start) * (step + 1) / (math.floor(warm) + 1)
        if self.per_epoch:
            step = max(step // steps_per_epoch * steps_per_epoch, math.ceil(warm))
        done = (step - warm) / (epochs * steps_per_epoch - warm)
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * done)) / 2


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


def optimizer(
    name: str, parameters: Iterable[nn.Parameter], rate: float, weight_decay: float
) -> Optimizer:
    """ "sgd" and "lars" with momentum 0.9, or "adam" with decoupled weight decay."""
    if name == "sgd":
        return SGD(parameters, rate, momentum=0.9, weight_decay=weight_decay)
    if name == "adam":
        return AdamW(parameters, rate, weight_decay=weight_decay)
    if name == "lars":
        from lightly.utils.lars import LARS

        return LARS(
            parameters, rate, momentum=0.9, weight_decay=weight_decay, trust_coefficient=1e-3
        )
    raise ValueError(f'optimizers are "sgd", "adam" and "lars", got {name!r}')


def step_apart(optimizer: Optimizer, loss: Tensor) -> None:
    """A step of an optimizer that the loop does not know, on gradients averaged over ranks."""
    own = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(own, average(uphill(loss, own)), strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
