"""Schedules: a setting of training as a function of the epoch, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from advssl.types import number, positive, whole


@dataclass(frozen=True)
class Ramp:
    """From ``start`` to ``end`` in a straight line, and there before and after.

    A radius or a number of steps that warms up, a weight λ, the strength of an augmentation: in a
    plain loop ``adversary.radius = ramp(epoch)``; under Lightning
    :class:`~advssl.integrations.lightning.Scheduled` sets it.

    Args:
        start: value until epoch ``begin``.
        end: value from epoch ``begin`` + ``epochs`` on.
        epochs: how long it takes.
        begin: the epoch from which, counted from 0.
        stages: in so many equal stairs of constant value, the first of which is ``start``. DynACL's
            strength of augmentation is ``Ramp(1, 0, epochs, stages=20)``.

    Raises:
        ValueError: on numbers that are none.

    Example:
        >>> warmup = Ramp(1 / 255, 8 / 255, epochs=10)
        >>> [round(255 * warmup(epoch), 1) for epoch in (0, 5, 10, 20)]
        [1.0, 4.5, 8.0, 8.0]

    Reference: DynACL's strength, Luo et al. 2023, https://arxiv.org/abs/2303.01289
    """

    start: float
    end: float
    epochs: float
    begin: float = 0.0
    stages: int | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end", "begin"):
            value = number(name, getattr(self, name))
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
            self._keep(name, value)
        self._keep("epochs", positive("epochs", self.epochs))
        if self.stages is not None:
            object.__setattr__(self, "stages", whole("stages", self.stages, 1))

    def _keep(self, name: str, value: float) -> None:
        """Numbers of numpy and torch as plain ones; a whole one of Python stays whole."""
        if type(getattr(self, name)) is not int:
            object.__setattr__(self, name, value)

    def __call__(self, epoch: float) -> float:
        """The value at an epoch, counted from 0; 2.5 is half way through the third."""
        epoch = number("epoch", epoch)
        if math.isnan(epoch):
            raise ValueError(f"epoch must be a number, got {epoch}")
        done = min(max((epoch - self.begin) / self.epochs, 0.0), 1.0)
        if done == 1:  # whatever rounding says
            return self.end
        if self.stages is not None:  # 0.3 of 10 is the third stair, be it 2.9999
            done = math.floor(done * self.stages + 1e-9) / self.stages
        return self.start + (self.end - self.start) * done
