"""Sharing: an evaluation's work among processes, and what each of them found brought together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from advssl.distributed import rank, world_size

Found = TypeVar("Found")

_WAITING = {"DistributedDataParallel", "FullyShardedDataParallel"}


def device_here() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def joined() -> Iterator[bool]:
    """Inside the block the processes that torchrun started are a group; whether this one speaks."""
    there = dist.is_available() and dist.is_initialized()
    started = "WORLD_SIZE" in os.environ and not there
    if started:
        # Objects go over the CPU whatever the network computes on.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield rank() == 0
    finally:
        if started:
            dist.destroy_process_group()


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
            "DistributedSampler), and one rank's model: DDP leaves BatchNorm statistics apart"
        )
