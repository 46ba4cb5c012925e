"""Sharing: one evaluation by several processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed


def device_here() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def joined() -> Iterator[bool]:
    """Inside the block the processes that torchrun started are a group; whether this one speaks."""
    started = "WORLD_SIZE" in os.environ and not _grouped()
    if started:
        # Objects go over the CPU whatever the network computes on.
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        )
    try:
        yield not _grouped() or distributed.get_rank() == 0
    finally:
        if started:
            distributed.destroy_process_group()


def agreed(answer: float) -> float:
    """The first process's, on all: otherwise some would go on alone."""
    if not _grouped():
        return answer
    told = [answer]
    distributed.broadcast_object_list(told, src=0)
    return told[0]


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()
