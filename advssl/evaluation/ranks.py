"""Ranks: batches shared out among processes, and what each of them found, brought together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn

from advssl.distributed import rank, world_size

Found = TypeVar("Found")

_WAITING = {"DistributedDataParallel", "FullyShardedDataParallel"}


def is_mine(number: int) -> bool:
    """Whether batch ``number`` is this rank's: they take turns."""
    return number % world_size() == rank()


def on_all_ranks(work: Callable[[], Found]) -> list[Found]:
    """What ``work`` returns on each rank, in rank order, on every rank; with one process, its own.

    Raises:
        RuntimeError: where ``work`` raised on another rank; its own error is raised where it did.
    """
    if world_size() == 1:
        return [work()]
    found, error = None, None
    try:
        found = work()
    except Exception as raised:  # the others wait for this rank, and are told
        error = raised
    said = None if error is None else f"{type(error).__name__}: {error}"
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, (found, said))
    if error is not None:
        raise error
    for number, (_, other) in enumerate(everyone):
        if other is not None:
            raise RuntimeError(f"rank {number} failed and this one stops with it: {other}")
    return [one for one, _ in everyone]


def of_first_rank(value: Found) -> Found:
    """What rank 0 has, on every rank: plain data, and tensors on the CPU."""
    if world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def check_alone(classifier: nn.Module) -> None:
    """Raise if forwards of ``classifier`` wait for other ranks, which have other batches."""
    kinds = {type(module).__name__ for module in classifier.modules()} & _WAITING
    if world_size() > 1 and kinds:
        raise ValueError(
            f"a {min(kinds)} waits for all ranks in each forward, and ranks share the batches out; "
            "give the module that it wraps, its .module"
        )


def check_same(what: str, of: Callable[[], Any]) -> None:
    """Raise on all ranks unless ``of`` returns the same on each; with one process, nothing."""
    if world_size() == 1:
        return
    found = on_all_ranks(of)
    if any(one != found[0] for one in found):
        raise ValueError(
            f"all ranks must be given the same {what}, got "
            + "; ".join(f"rank {r} {str(one)[:60]}" for r, one in enumerate(found))
            + "; they share the batches out themselves, so give each of them all (no "
            "DistributedSampler)"
        )
