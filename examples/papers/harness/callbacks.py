"""Beside a training: its checkpoint, and its progress bar."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins import CheckpointIO
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from advssl.evaluation.identity import keep, kept
from advssl.stopping import stopping

_SHOWN = 0.5  # seconds between two looks at the loss, each of which waits for the device


class Shelf(CheckpointIO):
    """Lightning's checkpoints, kept as all else: whole or none, and a damaged one counts as none.

    Args:
        path: of the only one.
        identity: of the run, see :func:`advssl.evaluation.identity.keep`.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.identity, self.there = identity, kept(path, identity)

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,
    ) -> None:
        keep(Path(path), self.identity, checkpoint)

    def load_checkpoint(self, *_: Any, **__: Any) -> dict[str, Any]:
        """What was there at the start, once: it is as large as the training."""
        there, self.there = self.there, None
        return there or {}

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class Keeper(pl.Callback):
    """Writes the checkpoint now and then, and ends the run cleanly when its time is up.

    Its time is up at its deadline, and after the step in which Ctrl-C or SIGTERM comes; a second
    one ends it at once, and what is there is the last checkpoint.
    """

    def __init__(self, path: Path, every: float, deadline: float | None) -> None:
        self.path, self.every, self.deadline = path, every, deadline
        self.stopped, self.heard = False, ExitStack()

    def on_train_start(self, *_: Any) -> None:
        self.written = time.monotonic()
        # Now: before it, Lightning had handlers of its own set.
        self.heard.enter_context(stopping(partial(setattr, self, "stopped", True)))

    def on_train_end(self, *_: Any) -> None:
        self.heard.close()

    def on_exception(self, *_: Any) -> None:
        self.heard.close()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        now = time.monotonic()
        over = self.stopped or (self.deadline is not None and now >= self.deadline)
        due = over or now >= self.written + self.every or trainer.global_step >= trainer.max_steps
        over, due = trainer.strategy.broadcast((over, due))  # the first rank's clock is everyone's
        if due:
            trainer.save_checkpoint(self.path)
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
