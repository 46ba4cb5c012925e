"""The callback for settings that change while training goes on."""
# ruff: noqa: ARG002 (what Lightning's hooks are given)

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from advssl.integrations.lightning.bolts import Callback
from advssl.schedules import Ramp
from advssl.types import described

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class Scheduled(Callback):
    """Sets attributes of an object before each training batch: a radius, steps, a weight λ.

    ``Scheduled(adversary, radius=Ramp(1 / 255, 8 / 255, epochs=10))`` lets an attack's radius grow;
    ``Scheduled(divergence, weight=Ramp(0, 0.1, epochs=20))`` the weight of a
    :class:`GlobalDivergence`. What is a whole number stays one. The epoch comes from the trainer,
    so a resumed run goes on where it was.

    Args:
        target: whose attributes.
        **schedules: by attribute, what gives its value at an epoch, counted from 0 and in parts:
            an :class:`~advssl.Ramp`, or a function of your own.

    Raises:
        ValueError: on an attribute that the target does not have, or a schedule that cannot be
            called.
    """

    def __init__(self, target: Any, **schedules: Callable[[float], float]) -> None:
        for name, schedule in schedules.items():
            if not hasattr(target, name):
                raise ValueError(f"a {type(target).__name__} has no {name} to be scheduled")
            if not callable(schedule):
                raise ValueError(
                    f"{name} must be a schedule, a function of the epoch, got {described(schedule)}"
                )
        self.target = target
        self.schedules = schedules
        self._whole = {name for name in schedules if type(getattr(target, name)) is int}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A value that is refused is so before the first batch, also one that is far away.
        for name, schedule in self.schedules.items():
            if isinstance(schedule, Ramp):
                self._put(name, schedule.end)
        self._set(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Of an iterable dataset the number is not known, and infinite: it changes with the epoch.
        self._set(trainer.current_epoch + batch_idx / trainer.num_training_batches)

    def _set(self, epoch: float) -> None:
        for name, schedule in self.schedules.items():
            self._put(name, schedule(epoch))

    def _put(self, name: str, value: float) -> None:
        setattr(self.target, name, round(value) if name in self._whole else value)
