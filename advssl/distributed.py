"""Across ranks: gather with gradient, average, broadcast. With one process, the identity."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from advssl.precision import widen
from advssl.types import described, see

_SHOWN = 400  # bytes of what a rank holds, in messages


def world_size() -> int:
    """The number of processes, 1 without ``torch.distributed``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 without ``torch.distributed``."""
    return dist.get_rank() if world_size() > 1 else 0


def agree(what: str, seen: Any, device: torch.device | None = None) -> None:
    """Raise on every rank unless all ranks hold tensors of the same number, shapes and types.

    Collectives abort, hang or mix up values where they differ, and a rank that raises alone leaves
    the others waiting for it: so this comes before both. It is one small collective, which waits
    for a GPU; compiled code does without.

    Args:
        what: for the message, what is compared.
        seen: this rank's tensor or tensors, or a text instead.
        device: of the collective; without it the first tensor's, else the CPU.

    Raises:
        ValueError: on every rank, with what each of them holds.
    """
    if world_size() == 1 or torch.compiler.is_compiling():
        return
    held = list(seen) if isinstance(seen, tuple | list) else [seen]
    if device is None:
        device = next((one.device for one in held if isinstance(one, Tensor)), torch.device("cpu"))
    texts = [one if isinstance(one, str) else described(one) for one in held]
    text = f"{what}: " + (", ".join(texts) or "none")
    row = hashlib.sha256(text.encode()).digest() + text.encode()[:_SHOWN].ljust(_SHOWN)
    mine = torch.tensor(list(row), dtype=torch.uint8, device=device)
    rows = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(rows, mine)
    by_rank = [bytes(one.tolist()) for one in rows]
    if len(set(by_rank)) > 1:
        shown = [row[-_SHOWN:].decode(errors="replace").rstrip() for row in by_rank]
        raise ValueError(
            "all ranks must hold the same number, shapes and types of tensors, got "
            + "; ".join(f"rank {r} {text}" for r, text in enumerate(shown))
            + "; batches need one size (drop_last=True), what is no batch is whole on every rank"
            + see("Ranks that do not hold the same")
        )


@contextmanager
def agreeing(
    what: str, seen: Callable[[], Any], device: torch.device | None = None
) -> Iterator[None]:
    """:func:`agree` at the end of the block; what one rank raises inside it ends it on all.

    Args:
        what: for the message, what is compared.
        seen: asked at the end: this rank's tensor or tensors, or a text instead.
        device: of the collective, where ``seen`` has no tensor.
    """
    problem = None
    try:
        yield
    except Exception as error:  # of whatever kind: memory that one rank lacks, a file
        problem = error
    try:
        agree(what, f"{type(problem).__name__}: {problem}" if problem else seen(), device)
    except ValueError as error:
        raise error from problem  # whose place only this rank can show
    if problem is not None:
        raise problem


def gather(values: Tensor, *, agreed: bool = False) -> Tensor:
    """Every rank's ``values`` (B, ...), stacked in rank order to (world size · B, ...).

    Differentiable any number of times: the gradient of this rank's rows is summed over all ranks,
    because every rank's loss sees them. With a loss that is a mean over local rows, and gradients
    that are averaged over ranks as DDP does, that is the gradient of the mean over the whole batch.

    Every rank must hold the same number of rows: use ``drop_last=True``.

    Args:
        values: of one shape and type on all ranks.
        agreed: whether :func:`agree` found so already.

    Raises:
        ValueError: on every rank, where they differ.
    """
    if world_size() == 1:
        return values
    if not agreed:
        agree("gather", values)
    if values.ndim == 0:
        raise ValueError(
            "what is gathered has rows, (B, ...), got shape (); give it as values[None]"
        )
    return _Gather.apply(values)


def average(tensors: Sequence[Tensor], *, agreed: bool = False) -> list[Tensor]:
    """The mean over ranks of each tensor, in one all-reduce; the tensors given are left alone.

    Summed in float32 at least, so that many ranks' half precision does not overflow.

    Args:
        tensors: of one number, shapes and types on all ranks.
        agreed: whether :func:`agree` found so already.

    Raises:
        ValueError: on every rank, where they hold tensors of other numbers, shapes or types.
    """
    if world_size() == 1:
        return list(tensors)
    if not agreed:
        agree("average", tensors)
    if not tensors:
        return []
    plain = [t.detach() for t in tensors]
    reals = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in plain]
    flat = torch.cat([widen(r).flatten() for r in reals])
    dist.all_reduce(flat)
    flat /= world_size()
    parts = torch.split(flat, [r.numel() for r in reals])
    means = [part.view_as(r).to(r.dtype) for part, r in zip(parts, reals, strict=True)]
    return [
        torch.view_as_complex(mean.clone()) if t.is_complex() else mean  # an odd place is none
        for mean, t in zip(means, plain, strict=True)
    ]


def from_first_rank(values: Tensor) -> Tensor:
    """Rank 0's ``values``, on every rank; the others' give shape and type only.

    Raises:
        ValueError: on every rank, where these differ.
    """
    if world_size() > 1:
        agree("broadcast", values)
        values = values.contiguous()
        dist.broadcast(values, src=0)
    return values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(world_size())]
        dist.all_gather(parts, values)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return _ReduceScatter.apply(gradient)


class _ReduceScatter(torch.autograd.Function):
    """This rank's rows of the sum over ranks: the transpose of gathering, as that is of this."""

    @staticmethod
    def forward(ctx: Any, gathered: Tensor) -> Tensor:  # noqa: ARG004
        summed = gathered.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed.chunk(world_size())[rank()]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return _Gather.apply(gradient)
