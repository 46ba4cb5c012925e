"""A method's step as Lightning runs it, and what of it a checkpoint holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from harness.data import Batch, Loader, pixels
from harness.method import Method, total
from harness.optimizers import optimizer
from harness.schedules import Recipe


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
    ) -> None:
        super().__init__()
        self.method, self.recipe, self.loader = method, recipe, loader
        self.steps_per_epoch, self.seed = steps_per_epoch, seed
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
        checkpoint["seconds"] = self.seconds
        checkpoint["own_optimizers"] = {name: o.state_dict() for name, (o, _) in own.items()}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        self.own_states, self.spent = checkpoint["own_optimizers"], checkpoint["seconds"]

    def on_train_start(self) -> None:
        for name, state in self.own_states.items():
            self.method.optimizers()[name][0].load_state_dict(state)
