"""Pretraining: Lightning's loop around a method, with exact resume and a time budget."""

from __future__ import annotations

import logging
import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch._functorch.config
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from harness.data import Batch, Loader, pixels
from harness.method import Method, total
from harness.optimizers import optimizer
from harness.schedules import Recipe

LAST = "last.ckpt"
_GRAPHS = 64  # of a compiled encoder: one per BatchNorm branch, mode and kind of gradient
_SHOWN = 0.5  # seconds between two looks at the loss, each of which waits for the device


class Training(pl.LightningModule):
    """A method's step in Lightning's automatic optimisation.

    Every step draws from generators seeded by (seed, step, rank), so that a resumed run draws what
    an uninterrupted one does. A critic's optimizer steps inside the method, on gradients averaged
    over ranks; DDP is told to leave its parameters alone.
    """

    def __init__(
        self,
        method: Method,
        recipe: Recipe,
        loader: Callable[[int, int], Loader],
        steps_per_epoch: int,
        seed: int,
        identity: dict[str, Any],
    ) -> None:
        super().__init__()
        self.method, self.recipe, self.loader = method, recipe, loader
        self.steps_per_epoch, self.seed, self.identity = steps_per_epoch, seed, identity
        own = [
            p for o, _ in method.optimizers().values() for g in o.param_groups for p in g["params"]
        ]
        self.apart = {n for n, p in self.named_parameters() if any(p is q for q in own)}
        self._ddp_params_and_buffers_to_ignore = list(self.apart)
        self.own_states: dict[str, Any] = {}
        self.epoch_begun = -1
        self.spent, self.started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Of training, earlier starts included."""
        return self.spent + time.monotonic() - self.started

    def train_dataloader(self) -> Loader:
        return self.loader(self.global_rank, self.trainer.world_size)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, loader: int) -> Batch:
        moved = super().transfer_batch_to_device(batch, device, loader)
        return moved._replace(index=batch.index)  # a head checks it, which elsewhere is a sync

    def configure_optimizers(self) -> torch.optim.Optimizer:
        learns = [p for n, p in self.named_parameters() if n not in self.apart and p.requires_grad]
        rate = self.recipe.schedule(0, self.steps_per_epoch, self.recipe.epochs)
        return optimizer(self.recipe.optimizer, learns, rate, self.recipe.weight_decay)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        step = self.trainer.global_step
        torch.manual_seed((self.seed * 1_000_003 + step) * 1_009 + self.global_rank)
        epoch = step // self.steps_per_epoch
        if epoch != self.epoch_begun:  # at the first step after a resume too
            self.method.begin_epoch(epoch, self.recipe.epochs)
            self.epoch_begun = epoch
        rate = self.recipe.schedule(step, self.steps_per_epoch, self.recipe.epochs)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        peak = self.recipe.schedule.peak
        for own, own_peak in self.method.optimizers().values():
            for group in own.param_groups:
                group["lr"] = own_peak * rate / peak
        terms = self.method(batch._replace(images=pixels(batch.images)))
        loss = total(terms)
        self.log_dict({**{k: v.detach() for k, v in terms.items()}, "rate": rate})
        self.log("loss", loss.detach())
        return loss

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        before = None if scaler is None else scaler.get_scale()
        super().optimizer_step(*arguments, **named)
        if scaler is not None and scaler.get_scale() < before:
            return  # the step overflowed and was skipped: averages stand still too
        self.method.after_step()  # here, because a checkpoint is written before the batch's end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = self.method.optimizers()
        checkpoint["identity"], checkpoint["seconds"] = self.identity, self.seconds
        checkpoint["own_optimizers"] = {name: o.state_dict() for name, (o, _) in own.items()}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        self.own_states, self.spent = checkpoint["own_optimizers"], checkpoint["seconds"]

    def on_train_start(self) -> None:
        for name, state in self.own_states.items():
            self.method.optimizers()[name][0].load_state_dict(state)


class Keeper(pl.Callback):
    """Writes the checkpoint now and then, and ends the run cleanly when its time is up."""

    def __init__(self, path: Path, every: float, deadline: float | None) -> None:
        self.path, self.every, self.deadline = path, every, deadline

    def on_train_start(self, *_: Any) -> None:
        self.written = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        now = time.monotonic()
        over = self.deadline is not None and now >= self.deadline
        due = over or now >= self.written + self.every or trainer.global_step >= trainer.max_steps
        over, due = trainer.strategy.broadcast((over, due))  # the first rank's clock is everyone's
        if due:
            part = self.path.with_suffix(f".{os.getpid()}.part")  # two commands may share a run
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                part.replace(self.path)  # all of it or nothing, whenever the process is killed
            self.written = time.monotonic()
        trainer.should_stop = trainer.should_stop or over


class Bar(pl.Callback):
    """One progress bar over all steps, in a terminal."""

    def __init__(self, what: str) -> None:
        columns = (
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self.bar, self.shown, self.looked = Progress(*columns, transient=True), False, 0.0

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.task = self.bar.add_task(
            "", total=trainer.max_steps, completed=trainer.global_step, loss=""
        )
        self.shown = trainer.is_global_zero and self.bar.console.is_interactive
        if self.shown:
            self.bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, outputs: Any, *__: Any) -> None:
        now = time.monotonic()
        if self.shown and now > self.looked + _SHOWN:
            self.looked, loss = now, f"loss {float(outputs['loss']):.3f}"
            self.bar.update(self.task, completed=trainer.global_step, loss=loss)

    def on_train_end(self, *_: Any) -> None:
        if self.shown:
            self.bar.stop()

    def on_exception(self, *_: Any) -> None:
        self.on_train_end()


def pretrain(
    method: Method,
    recipe: Recipe,
    loader: Callable[[int, int], Loader],
    steps_per_epoch: int,
    *,
    folder: Path,
    identity: Mapping[str, Any],
    name: str = "pretraining",
    seed: int = 0,
    precision: str = "32-true",
    compiled: bool = False,
    devices: int = 1,
    save_every: float = 60.0,
    deadline: float | None = None,
) -> float | None:
    """Train ``method`` where its checkpoint in ``folder`` left off, or from the start.

    Args:
        method: trained in place.
        recipe: how long, how fast.
        loader: of a rank and the number of ranks.
        steps_per_epoch: over all ranks together.
        folder: of the checkpoint and the logs (CSV, and TensorBoard where it is installed).
        identity: what the run is; a checkpoint of another one is refused.
        name: for the progress bar.
        seed: of everything drawn during training.
        precision: Lightning's, such as "bf16-mixed".
        compiled: ``torch.compile`` the encoder.
        devices: processes, with DDP from two on.
        save_every: seconds between checkpoints.
        deadline: when, on ``time.monotonic``, the run ends cleanly after its next step, to be
            resumed.

    Returns:
        Seconds of training, earlier starts included; None if it is not complete.

    Raises:
        ValueError: on a checkpoint of another run, or on one that cannot be read.
        KeyboardInterrupt: on Ctrl-C.
    """
    path = folder / LAST
    steps = recipe.epochs * steps_per_epoch
    if path.exists():
        check_identity(path, identity)
    module = Training(method, recipe, loader, steps_per_epoch, seed, dict(identity))
    if compiled:
        torch._dynamo.config.cache_size_limit = _GRAPHS  # the name that every torch understands
        torch._functorch.config.donated_buffer = False  # SAM goes through a graph twice
        method.encoder.compile()
    with _quiet():
        trainer = pl.Trainer(
            max_steps=steps,
            max_epochs=recipe.epochs,
            precision=precision,  # type: ignore[arg-type]
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            use_distributed_sampler=False,  # a loader knows its rank
            callbacks=[Keeper(path, save_every, deadline), Bar(name)],
            logger=_loggers(folder),
            log_every_n_steps=min(50, steps_per_epoch),
            enable_checkpointing=False,  # the keeper writes, so that a run may stop at any second
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        try:
            trainer.fit(module, ckpt_path=str(path) if path.exists() else None, weights_only=True)
        except SystemExit as stopped:  # how Lightning ends on Ctrl-C
            raise KeyboardInterrupt from stopped
    return module.seconds if trainer.global_step >= steps else None


def check_identity(path: Path, identity: Mapping[str, Any]) -> None:
    """A ValueError if the checkpoint at ``path`` is not of the run ``identity``."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        there = checkpoint["identity"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of this harness; delete it, or name another --out"
        ) from error
    differs = {k for k in {*there, *identity} if there.get(k) != identity.get(k)}
    if differs:
        seen = ", ".join(
            f"{k}: {there.get(k)!r} there, {identity.get(k)!r} asked" for k in sorted(differs)
        )
        raise ValueError(
            f"{path} belongs to another run ({seen}); name another --out, or delete it"
        )


def _loggers(folder: Path) -> list[Any]:
    # A start of its own each: a resumed run would delete what the first one logged.
    loggers: list[Any] = [CSVLogger(folder, name="csv")]
    if find_spec("tensorboard") or find_spec("tensorboardX"):
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    return loggers


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning without its remarks on what is meant as it is."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers.*")  # it needs none
            warnings.filterwarnings("ignore", ".*treespec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
