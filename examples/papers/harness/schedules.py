"""Learning rates as values, and optimizers by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from advssl.distributed import average
from advssl.modes import uphill

_SHORT = 0.1  # of a run: warm-up takes no more
_TRUST, _NOTHING = 1e-3, 1e-15  # of LARS


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


class LARS(Optimizer):
    """A rate of its own for every tensor, in the order of ACL's release.

    You et al. 2017, https://arxiv.org/abs/1708.03888, Algorithm 1, of all parameters: the rate is
    in the momentum, v ← 0.9 v + rate · trust · (g + λ w) and w ← w - v, so a change of the rate
    reaches the gradients that come after it.

    Args:
        parameters: BatchNorm's and biases too.
        lr: the rate.
        weight_decay: λ.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, after ``closure``, whose loss it returns."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                length, slope = w.norm(), w.grad.norm()
                trust = _TRUST * length / (slope + group["weight_decay"] * length)
                trust = trust.where((length > _NOTHING) & (slope > _NOTHING), 1.0)
                velocity = self.state[w].setdefault("momentum_buffer", torch.zeros_like(w))
                velocity *= 0.9
                velocity += group["lr"] * trust * (w.grad + group["weight_decay"] * w)
                w -= velocity
        return loss


def optimizer(
    name: str, parameters: Iterable[nn.Parameter], rate: float, weight_decay: float
) -> Optimizer:
    """ "sgd" and "lars" with momentum 0.9, or "adam" with decoupled weight decay."""
    if name == "sgd":
        return SGD(parameters, rate, momentum=0.9, weight_decay=weight_decay)
    if name == "adam":
        return AdamW(parameters, rate, weight_decay=weight_decay)
    if name == "lars":
        return LARS(parameters, rate, weight_decay)
    raise ValueError(f'optimizers are "sgd", "adam" and "lars", got {name!r}')


def step_apart(optimizer: Optimizer, loss: Tensor) -> None:
    """A step of an optimizer that the loop does not know, on gradients averaged over ranks."""
    own = [p for group in optimizer.param_groups for p in group["params"]]
    slopes = [slope for slope in uphill(loss, own) if slope is not None]
    for parameter, gradient in zip(own, average(slopes), strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
