"""Teachers: a finished encoder that is frozen, and what a student learns from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advssl.evaluation.checkpoints import load_encoder
from advssl.integrations.timm import backbone
from advssl.modes import copied
from harness.method import Method, width_of
from harness.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class TaughtSettings(Settings):
    teacher: str = setting(
        "simclr",
        "trained first; or a checkpoint of --backbone that advssl evaluate reads, or BACKBONE=FILE",
    )


class Taught(Method):
    """A method whose encoder learns from the features of a finished one, and starts as it.

    The teacher is the encoder as it is given, until :meth:`prepare` brings a trained one or the
    settings name a file. Both read images in the same way: as the teacher was trained to.
    """

    settings: TaughtSettings

    def __init__(self, *args: Any, **attack: Any) -> None:
        super().__init__(*args, **attack)
        self.teacher: nn.Module = copied(self.encoder)
        told = self.settings.teacher
        if told == "simclr":
            self.after = "simclr"
        else:
            self._read(told)
        self.teacher.requires_grad_(False)
        self.train()

    def _read(self, told: str) -> None:
        """The teacher's weights from a file, which may be of another network."""
        other = told.startswith(("timm:", "cifar:"))
        spec, _, file = told.partition("=") if other else ("", "", told)
        if other:
            self.teacher = backbone(spec)
            width = width_of(self.teacher)
            if width != self.width:
                raise ValueError(
                    f"teacher and student are compared feature by feature, {spec} has {width} and "
                    f"the student {self.width}; take a --backbone of as many"
                )
        self.pixels = load_encoder(self.teacher, file).normalization
        if not other:
            self.start()

    def prepare(self, before: Method, features: Tensor) -> None:
        self.teacher.load_state_dict(before.encoder.state_dict())
        self.pixels = before.pixels
        self.start()

    def start(self) -> None:
        """The student, from its teacher."""
        self.encoder.load_state_dict(self.teacher.state_dict())

    def target(self, images: Tensor) -> Tensor:
        """The teacher's features (B, D), without graph."""
        with torch.no_grad():
            found: Tensor = self.teacher(self.normalized(images))
        return found

    def train(self, mode: bool = True) -> Taught:
        super().train(mode)
        self.teacher.eval()
        return self
