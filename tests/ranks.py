"""Run a function on two gloo processes, or a script in one, without paying for imports again."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2

# A process of its own whose imports are paid once in a run of the suite.
_FORKED = os.name == "posix"
PROCESSES = multiprocessing.get_context("forkserver" if _FORKED else "spawn")
if _FORKED:
    PROCESSES.set_forkserver_preload(
        [
            *("pytest", "pytorch_lightning", "timm", "matplotlib.figure", "sklearn.datasets"),
            *("kornia.augmentation", "advssl.evaluation.evaluate", "advssl.cli"),
        ]
    )


def on_two_ranks(work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """``work(rank, *args)`` on both ranks; ``work`` stands at the top of its module."""
    return on_ranks(WORLD, work, folder, *args)


def on_ranks(world: int, work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Likewise on so many."""
    method = PROCESSES.get_start_method()
    mp.start_processes(_rank, (work, str(folder), args, world), nprocs=world, start_method=method)
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(world)]


def _rank(
    rank: int, work: Callable[..., Any], folder: str, args: tuple[Any, ...], world: int
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    torch.save(work(rank, *args), f"{folder}/rank{rank}.pt")
    # The process ends here: leaving the group one by one hung on torch 2.5.
    dist.barrier()


def as_second_of_twins(patch: pytest.MonkeyPatch) -> list[tuple[str, torch.Size]]:
    """From here on there are two ranks that do the same, of which this is one; what it sends."""
    sent: list[tuple[str, torch.Size]] = []

    def all_gather(parts: list[torch.Tensor], mine: torch.Tensor) -> None:
        sent.append(("all_gather", mine.shape))
        for part in parts:
            part.copy_(mine)

    def all_reduce(mine: torch.Tensor) -> None:
        sent.append(("all_reduce", mine.shape))
        mine.mul_(2)

    patch.setattr(dist, "is_initialized", lambda: True)
    patch.setattr(dist, "get_world_size", lambda: 2)
    patch.setattr(dist, "get_rank", lambda: 1)
    patch.setattr(dist, "all_gather", all_gather)
    patch.setattr(dist, "all_reduce", all_reduce)
    return sent


class Ended(NamedTuple):
    """A process that is over: its exit code, and what it printed."""

    code: int
    out: str
    err: str


def as_script(path: Path, words: list[str], place: Path) -> Ended:
    """``python path *words`` in a folder, where nothing is left of what was printed."""
    printed = place / "printed.out", place / "printed.err"
    process = PROCESSES.Process(target=_script, args=(path, words, place, printed))
    process.start()
    process.join()
    texts = [p.read_text(encoding="utf-8") for p in printed]
    for p in printed:
        p.unlink()
    return Ended(process.exitcode, *texts)


def _script(path: Path, words: list[str], place: Path, printed: tuple[Path, Path]) -> None:
    torch.set_num_threads(1)
    for descriptor, file in zip((1, 2), printed, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(place)
    sys.argv = [str(path), *words]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
