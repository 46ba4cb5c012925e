"""Optimizers by name, and a step of one that the loop does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from advssl.distributed import average
from advssl.precision import uphill

_TRUST, _NOTHING = 1e-3, 1e-15  # of LARS


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
    """A step of an optimizer that the loop does not know, on gradients averaged over ranks.

    One that overflowed is skipped, as a gradient scaler skips the loop's: neither weights nor
    momentum move.
    """
    own = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = average([slope for slope in uphill(loss, own) if slope is not None])
    if not torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
        return
    for parameter, gradient in zip(own, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
