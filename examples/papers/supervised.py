"""Training with labels, natural and adversarial: what label-free robustness is measured against.

AT: Madry et al. 2018, https://arxiv.org/abs/1706.06083, Eq. 2.1. TRADES: Zhang et al. 2019,
https://arxiv.org/abs/1901.08573, Eq. 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advssl import evaluating
from advssl.evaluation.data import Data
from harness.method import Method, Terms
from harness.schedules import Recipe, Steps
from harness.settings import Settings, setting


class Classifying(Method):
    """A linear classifier on the encoder."""

    labelled = True

    def __init__(
        self, encoder: nn.Module, data: Data, size: int, settings: Settings, **attack: Any
    ) -> None:
        super().__init__(encoder, data, size, settings, **attack)
        self.head = nn.Linear(self.width, len(data.classes))
        self.logged: tuple[Tensor, ...] = ()

    def move_batchnorm(self, *views: Tensor) -> None:
        """With ``exact_bn``: a forward of Bui et al.'s code that leaves its statistics alone."""
        if self.settings.exact_bn:
            with torch.no_grad():
                for view in views:
                    self.embed(view)

    def after_step(self) -> None:
        self.move_batchnorm(*self.logged)  # their accuracies, with the weights after the step
        self.logged = ()

    def classifier(self) -> nn.Module:
        return nn.Sequential(self.encoder, self.head)


# How Bui et al.'s release trains, with an attack and without.
_BUI = Recipe(120, 128, Steps(0.1, (100, 105, 110), 120), weight_decay=5e-4)
STEP = "A step of the attack is 2/255 at 8/255; the release's is 0.007 at 0.031."


class Natural(Classifying):
    """No attack at all."""

    title, paper = "natural training", "cross-entropy on clean images"
    recipe = _BUI

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        return {"natural": F.cross_entropy(self.embed(self.weak(images)), labels)}


@dataclass(frozen=True, kw_only=True)
class ATSettings(Settings):
    steps: int = setting(10, "of the attack")
    natural: float = setting(0.0, "weight of the clean images' cross-entropy")


class AT(Classifying):
    title, paper = "AT", "Madry et al. 2018"
    settings: ATSettings
    settings_type = ATSettings
    recipe = _BUI
    ours = (
        "BatchNorm statistics are those of the training pass; in the release of Bui et al. also of "
        "the attack's, of clean images of weight 0 and of two logging passes (exact_bn=True).",
        STEP,
    )

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        x, natural = self.weak(images), self.settings.natural
        hard = self.attack(x, lambda view: F.cross_entropy(self.embed(view), labels))  # train mode
        self.move_batchnorm(hard)  # to see how high it is
        terms = {}
        if natural:
            terms["natural"] = natural * F.cross_entropy(self.embed(x), labels)
        else:
            self.move_batchnorm(x)
        self.logged = (x, hard)
        return {**terms, "adversarial": F.cross_entropy(self.embed(hard), labels)}


@dataclass(frozen=True, kw_only=True)
class TRADESSettings(Settings):
    steps: int = setting(10, "of the attack")
    relative_step: float = setting(0.007 / 0.031, "length of each, of the radius: 0.007 at 0.031")
    beta: float = setting(6.0, "weight of the divergence")


class TRADES(Classifying):
    title, paper = "TRADES", "Zhang et al. 2019"
    settings: TRADESSettings
    settings_type = TRADESSettings
    recipe = Recipe(76, 128, Steps(0.1, (74,), 76), weight_decay=2e-4)
    ours = ("x is forwarded once per training pass, not twice.",)

    def __init__(self, *args: Any, start: str = "gaussian") -> None:
        if start == "zero":
            raise ValueError(
                "on one BatchNorm TRADES cannot start at the image itself: there the divergence is "
                'least and its gradient rounding noise; take start="gaussian"'
            )
        super().__init__(*args, start=start, clamp_start=False)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        x = self.weak(images)

        def divergence(clean: Tensor, hard: Tensor) -> Tensor:
            p, q = clean.log_softmax(1), hard.log_softmax(1)
            return F.kl_div(q, p, reduction="batchmean", log_target=True)

        with evaluating(self), torch.no_grad():
            known = self.embed(x)
            hard = self.attack(x, lambda view: divergence(known, self.embed(view)))
        clean, attacked = self.embed(x), self.embed(hard)  # a forward each
        return {
            "natural": F.cross_entropy(clean, labels),
            "divergence": self.settings.beta * divergence(clean, attacked),
        }
