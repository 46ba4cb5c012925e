"""RoCL: the view that the model takes for another image is one more positive.

Kim, Tack and Hwang 2020, "Adversarial self-supervised contrastive learning",
https://arxiv.org/abs/2006.07589. With t1 and t2 two views and δ an instance-wise attack:

    adversary   max over δ of  NT(t1 + δ, t2)
    encoder     min of  NT(t1, t2, t1 + δ), the sum over positives, + 1/256 · NT(t1 + δ, t2)

``RoCLGSA`` is the RoCL of GSA-RSL's tables: its authors' step without their three terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from advssl import MultiViewNTXentLoss, evaluating
from gsa_rsl import GSARSL, GSARSLSettings
from harness.heads import projection
from harness.method import Method, Terms
from harness.schedules import Recipe, WarmupCosine
from harness.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class RoCLSettings(Settings):
    steps: int = setting(7, "of the attack")
    relative_step: float = setting(0.007 / 0.0314, "length of each, of the radius: 0.007 at 0.0314")
    temperature: float = setting(0.5, "of the contrastive loss")
    regularizer: float = setting(1 / 256, "weight of the attacked view's own loss")


class RoCL(Method):
    title, paper = "RoCL", "Kim et al. 2020"
    settings: RoCLSettings
    settings_type = RoCLSettings
    recipe = Recipe(
        1000, 512, WarmupCosine(1.5, 10, 0.1, per_epoch="start", restarts=True), "lars", 1e-6
    )
    strong_as = {"scale": (0.08, 1.0)}
    ours = (
        "A similarity is differentiated in both of its embeddings; the release holds the second "
        "one fixed, which halves the gradient and all but keeps its direction.",
        "The regularizer is of the training pass's embeddings; the release forwards its two views "
        "once more, with batch statistics of their own.",
        "Negatives are those of all processes in the attack and the regularizer too; in the "
        "release they are one process's there, 256 images of 512.",
        "The probe is AdvCL's, which its tables measure RoCL by; the release's has 150 epochs.",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.head = projection(self.width, 4 * self.width, 128)
        tau = self.settings.temperature
        self.contrast = MultiViewNTXentLoss(tau, gather_distributed=True)
        self.robust = MultiViewNTXentLoss(tau, positives="sum", gather_distributed=True)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        t1, t2 = self.strong(images), self.second(images)
        with evaluating(self), torch.no_grad():
            z2 = self.embed(t2)
            hard = self.attack(t1, lambda v: self.contrast(self.embed(v), z2))

        z1, z2, z_hard = self.embed((t1, t2, hard))  # one batch, and its statistics
        return {
            "contrastive": self.robust(z1, z2, z_hard),
            "regularizer": self.settings.regularizer * self.contrast(z_hard, z2),
        }


@dataclass(frozen=True, kw_only=True)
class RoCLGSASettings(GSARSLSettings):
    sam: bool = setting(False, "the benign loss at the worst nearby weights")
    critic: bool = setting(False, "benign and adversarial embeddings are aligned as clouds")
    benign_weight: float = setting(0.0, "λ_benign: RoCL has no such term there")
    second_view: Literal["strong", "weak"] = setting("strong", "how q, attacked, is augmented")


class RoCLGSA(GSARSL):
    """The attacked view is the second one, on a BatchNorm of its own, and has one positive."""

    title, paper = "RoCL of GSA-RSL's tables", "Kim et al. 2020, as GSA-RSL's authors train it"
    settings: RoCLGSASettings
    settings_type = RoCLGSASettings
    recipe = Recipe(500, 512, WarmupCosine(0.1, 10, floor=1e-8, per_epoch="start"))
    ours = GSARSL.recipe_ours
