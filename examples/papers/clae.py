"""CLAE: contrastive learning with adversarial examples, for accuracy more than for robustness.

Ho and Vasconcelos 2020, "Contrastive learning with adversarial examples",
https://arxiv.org/abs/2010.12050. With t1 and t2 two views and δ one step of the gradient's sign
from t1 itself:

    adversary   max over δ of  NT(t1, t1 + δ)
    encoder     min of  NT(t1, t2) + α · NT(t1, t1 + δ)

At δ = 0 an image cannot move away from itself, so the step is towards the other images alone.
``CLAEGSA`` is another reading, that of GSA-RSL's tables: there the attack is projected gradient
ascent from a random start, on the second view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advssl import MultiViewNTXentLoss, branch_batchnorm, evaluating
from advssl.branches import BranchBatchNorm
from gsa_rsl import OfTheirTables
from harness.heads import projection
from harness.method import Method, Terms
from harness.schedules import Recipe, Steps
from harness.settings import Settings, setting

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class CLAESettings(Settings):
    steps: int = setting(1, "of the attack")
    relative_step: float = setting(1.0, "length of each, of the attack's reach")
    reach: float = setting(
        0.015 / (8 / 255), "of the attack, of the radius: 0.03 of pixels in [-1, 1] at 8/255"
    )
    temperature: float = setting(0.5, "of the contrastive loss")
    alpha: float = setting(1.0, "α, weight of the attacked view")
    momentum: float = setting(0.01, "of the adversarial BatchNorm's statistics")


class CLAE(Method):
    title, paper = "CLAE", "Ho and Vasconcelos 2020"
    settings: CLAESettings
    settings_type = CLAESettings
    recipe = Recipe(100, 256, Steps(3e-4, (), 100), "adam", weight_decay=0.0)
    pixels = (HALF, HALF)
    strong_as = {"scale": (0.08, 1.0), "jitter": (0.8, 0.8, 0.8, 0.2)}
    ours = (
        "An attacked pixel stays in [0, 1]; the release clamps nothing.",
        "The adversarial BatchNorm's statistics move with the training pass alone; in the release "
        "also with the attack's two forwards (exact_bn=True).",
        "The probe is AdvCL's; the release measures no robustness.",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, reach=args[-1].reach, start="zero")
        self.head = projection(self.width, self.width, 64)
        branch_batchnorm(self.encoder, self.measured()[1])
        for norm in self.encoder.modules():
            if isinstance(norm, BranchBatchNorm):
                slow: Any = norm["adversarial"]
                slow.momentum = self.settings.momentum
        self.contrast = MultiViewNTXentLoss(self.settings.temperature, gather_distributed=True)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        t1, t2 = self.strong(images), self.second(images)

        def height(view: Tensor) -> Tensor:  # in train mode, the image itself on the same branch
            return self.contrast(self.embed(t1, "adversarial"), self.embed(view, "adversarial"))

        hard = self.attack(t1, height)
        z1, z2 = self.embed(t1, "clean"), self.embed(t2, "clean")  # a forward each
        z_hard = self.embed(hard, "adversarial")
        return {
            "clean": self.contrast(z1, z2),
            "adversarial": self.settings.alpha * self.contrast(z1, z_hard),
        }

    def measured(self) -> tuple[nn.Module, tuple[str, ...]]:
        return self.encoder, ("clean", "adversarial")


@dataclass(frozen=True, kw_only=True)
class CLAEGSASettings(Settings):
    steps: int = setting(7, "of the attack")


class CLAEGSA(OfTheirTables):
    """The attacked view is drawn to the clean one that it was made of, not to the other."""

    title, paper = "CLAE of GSA-RSL's tables", "Ho and Vasconcelos 2020, by GSA-RSL's authors"
    settings: CLAEGSASettings
    settings_type = CLAEGSASettings

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        p, q = self.strong(images), self.second(images)
        with evaluating(self), torch.no_grad():
            z_q = self.embed(q, "clean")
            hard = self.attack(q, lambda v: self.contrast(z_q, self.embed(v, "adversarial")))

        z_p, z_q = self.embed((p, q), "clean")
        z_hard = self.embed(hard, "adversarial")
        return {"clean": self.contrast(z_p, z_q), "adversarial": self.contrast(z_q, z_hard)}
