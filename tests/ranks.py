"""Run a function on two gloo processes, and read what each rank returned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2


def on_two_ranks(work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """``work(rank, *args)`` on both ranks; ``work`` stands at the top of its module."""
    mp.spawn(_rank, (work, str(folder), args), nprocs=WORLD)
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(WORLD)]


def _rank(rank: int, work: Callable[..., Any], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    torch.save(work(rank, *args), f"{folder}/rank{rank}.pt")
    # The process ends here: leaving the group one by one hung on torch 2.5.
    dist.barrier()
