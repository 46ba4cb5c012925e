"""Sharing: one evaluation by several processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from advssl.distributed import rank
from advssl.evaluation.ranks import of_first_rank as agreed

__all__ = ["agreed", "device_here", "joined"]


def device_here() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def joined() -> Iterator[bool]:
    """Inside the block the processes that torchrun started are a group; whether this one speaks."""
    there = distributed.is_available() and distributed.is_initialized()
    started = "WORLD_SIZE" in os.environ and not there
    if started:
        # Objects go over the CPU whatever the network computes on.
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        )
    try:
        yield rank() == 0
    finally:
        if started:
            distributed.destroy_process_group()
