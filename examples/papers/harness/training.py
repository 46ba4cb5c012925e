"""Pretraining: Lightning's loop around a method, with exact resume and a time budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch._functorch.config

from harness import fastest
from harness.callbacks import Bar, Keeper, Shelf
from harness.data import Loader
from harness.logs import loggers, quiet
from harness.method import Method
from harness.module import Training
from harness.schedules import Recipe

LAST = "last.ckpt"
_GRAPHS = 64  # of a compiled encoder: one per BatchNorm branch, mode and kind of gradient


def pretrain(
    method: Method,
    recipe: Recipe,
    loader: Callable[[int, int], Loader],
    steps_per_epoch: int,
    *,
    folder: Path,
    identity: str,
    name: str = "pretraining",
    seed: int = 0,
    precision: str = "32-true",
    compiled: bool = False,
    devices: int = 1,
    save_every: float = 60.0,
    deadline: float | None = None,
    watch: Sequence[pl.Callback] = (),
) -> float | None:
    """Train ``method`` where its checkpoint in ``folder`` left off, or from the start.

    Args:
        method: trained in place.
        recipe: how long, how fast.
        loader: of a rank and the number of ranks.
        steps_per_epoch: over all ranks together.
        folder: of the checkpoint and the logs (CSV, and TensorBoard where it is installed).
        identity: of the run; the checkpoint of another one, and a damaged one, count as none.
        name: for the progress bar.
        seed: of everything drawn during training.
        precision: Lightning's, such as "bf16-mixed".
        compiled: ``torch.compile`` the encoder.
        devices: processes, with DDP from two on.
        save_every: seconds between checkpoints.
        deadline: when, on ``time.monotonic``, the run ends cleanly after its next step, to be
            resumed.
        watch: callbacks that look on and leave the training as it is.

    Returns:
        Seconds of training, earlier starts included; None if it is not complete.

    Raises:
        KeyboardInterrupt: on Ctrl-C and SIGTERM, once the step is done and its checkpoint written.
    """
    fastest.keep_memory()
    path = folder / LAST
    steps = recipe.epochs * steps_per_epoch
    shelf = Shelf(path, identity)
    begun = shelf.there is not None
    module = Training(method, recipe, loader, steps_per_epoch, seed)
    if compiled:
        torch._dynamo.config.cache_size_limit = _GRAPHS  # the name that every torch understands
        torch._functorch.config.donated_buffer = False  # SAM goes through a graph twice
        method.encoder.compile()
    keeper = Keeper(path, save_every, deadline)
    with quiet():
        trainer = pl.Trainer(
            max_steps=steps,
            max_epochs=recipe.epochs,
            precision=precision,  # type: ignore[arg-type]
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            use_distributed_sampler=False,  # a loader knows its rank
            callbacks=[*watch, keeper, Bar(name)],
            plugins=[shelf],
            logger=loggers(folder),
            log_every_n_steps=min(50, steps_per_epoch),
            enable_checkpointing=False,  # the keeper writes, so that a run may stop at any second
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        try:
            trainer.fit(module, ckpt_path=str(path) if begun else None)
        except SystemExit as stopped:  # how Lightning ends on Ctrl-C
            raise KeyboardInterrupt from stopped
    if keeper.stopped:
        raise KeyboardInterrupt
    return module.seconds if trainer.global_step >= steps else None
