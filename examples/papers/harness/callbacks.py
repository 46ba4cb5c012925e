"""Beside a training: its checkpoint, and its progress bar."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SHOWN = 0.5  # seconds between two looks at the loss, each of which waits for the device


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
