"""The shapes that travel, written once, and what may be asked of them at a public door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Images: TypeAlias = Tensor  # (B, C, H, W), floating point
Perturbation: TypeAlias = Tensor  # the shape of the images it is added to
Embeddings: TypeAlias = Tensor  # (B, D), floating point
Labels: TypeAlias = Tensor  # (B,), integer
PerExample: TypeAlias = Tensor  # (B,)
PairMask: TypeAlias = Tensor  # (N, N), bool; row i is anchor i
Scalar: TypeAlias = Tensor  # ()

Objective: TypeAlias = Callable[..., Tensor]  # one or more Images -> PerExample or Scalar
Closure: TypeAlias = Callable[[], Scalar]
Reduction: TypeAlias = Literal["mean", "sum", "none"]


def reduce(per_example: Tensor, reduction: Reduction) -> Tensor:
    """PyTorch's ``reduction=``, applied to one value per example."""
    if reduction == "mean":
        return per_example.mean()
    return per_example.sum() if reduction == "sum" else per_example


def check_reduction(reduction: str) -> None:
    """Raise unless ``reduction`` is one of PyTorch's three."""
    if reduction not in get_args(Reduction):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')


def check_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number above zero."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_embeddings(**named: Tensor) -> None:
    """Raise unless every tensor is a floating (B, D), B ≥ 1, and all have the first one's shape."""
    first, *_ = named.values()
    for name, z in named.items():
        if z.ndim != 2 or not z.is_floating_point():
            raise ValueError(
                f"{name} must be floating point embeddings of shape (B, D), "
                f"got {z.dtype} of shape {tuple(z.shape)}; flatten(1) a feature map first"
            )
        if len(z) == 0:
            raise ValueError(f"{name} must hold one embedding at least, got shape {tuple(z.shape)}")
        if z.shape != first.shape:
            raise ValueError(
                f"all embeddings must have one shape, got {name} {tuple(z.shape)} "
                f"beside {tuple(first.shape)}"
            )


def check_indices(size: int, **named: Tensor) -> None:
    """Raise unless every tensor holds ``size`` integers: labels, predictions, dataset indices."""
    for name, values in named.items():
        if values.shape != (size,) or values.is_floating_point() or values.dtype == torch.bool:
            raise ValueError(
                f"{name} must be {size} integers, one per embedding, "
                f"got {values.dtype} of shape {tuple(values.shape)}"
                + ("; pass logits.argmax(dim=1)" if values.ndim == 2 else "")
            )
