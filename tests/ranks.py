"""Run a function on two gloo processes, and read what each rank returned."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2

# A process of its own whose imports are paid once in a run of the suite.
_FORKED = os.name == "posix"
PROCESSES = multiprocessing.get_context("forkserver" if _FORKED else "spawn")
if _FORKED:
    PROCESSES.set_forkserver_preload(
        ["pytest", "pytorch_lightning", "advssl.cli", "timm", "matplotlib.figure"]
    )


def on_two_ranks(work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """``work(rank, *args)`` on both ranks; ``work`` stands at the top of its module."""
    method = PROCESSES.get_start_method()
    mp.start_processes(_rank, (work, str(folder), args), nprocs=WORLD, start_method=method)
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(WORLD)]


def _rank(rank: int, work: Callable[..., Any], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    torch.save(work(rank, *args), f"{folder}/rank{rank}.pt")
    # The process ends here: leaving the group one by one hung on torch 2.5.
    dist.barrier()
