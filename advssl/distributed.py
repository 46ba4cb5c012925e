"""Across ranks: gather with gradient, average, broadcast. With one process, the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of processes, 1 without ``torch.distributed``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 without ``torch.distributed``."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(values: Tensor) -> Tensor:
    """Every rank's ``values`` (B, ...), stacked in rank order to (world size · B, ...).

    Differentiable: the gradient of this rank's rows is summed over all ranks, because every rank's
    loss sees them. With a loss that is a mean over local rows, and gradients that are averaged over
    ranks as DDP does, that is the gradient of the mean over the whole batch.

    Every rank must hold the same number of rows: use ``drop_last=True``.
    """
    return values if world_size() == 1 else _Gather.apply(values)


def average(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean over ranks of each tensor, in one all-reduce; the tensors given are left alone."""
    if world_size() == 1:
        return list(tensors)
    flat = torch.cat([t.detach().flatten() for t in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    parts = torch.split(flat, [t.numel() for t in tensors])
    return [part.view_as(t).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]


def from_first_rank(values: Tensor) -> Tensor:
    """Rank 0's ``values``, on every rank; the others' give shape and type only."""
    if world_size() > 1:
        values = values.contiguous()
        dist.broadcast(values, src=0)
    return values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.rows = len(values)
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(world_size())]
        dist.all_gather(parts, values)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.narrow(0, rank() * ctx.rows, ctx.rows)
