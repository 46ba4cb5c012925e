"""RoCL: the view that the model takes for another image is one more positive.

Kim, Tack and Hwang 2020, "Adversarial self-supervised contrastive learning",
https://arxiv.org/abs/2006.07589. With t1 and t2 two views and δ an instance-wise attack:

    adversary   max over δ of  NT(t1 + δ, t2)
    encoder     min of  NT(t1, t2, t1 + δ), the sum over positives, + 1/256 · NT(t1 + δ, t2)

``RoCLGSA`` is the RoCL of GSA-RSL's tables: this loss of t1, t2 and t2 + δ, trained as theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advssl import MultiViewNTXentLoss, evaluating
from gsa_rsl import OfTheirTables
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
        "The rate warms up in each step; in the release in each epoch.",
        "A view is cropped first; the release's colours and mirrors first.",
        "LARS has the rate in its momentum, as ACL's; the release's has it outside.",
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
class RoCLGSASettings(Settings):
    steps: int = setting(7, "of the attack")
    regularizer: float = setting(1 / 256, "weight of the attacked view's own loss")


class RoCLGSA(OfTheirTables):
    """The attacked view is the second one, on a BatchNorm of its own."""

    title, paper = "RoCL of GSA-RSL's tables", "Kim et al. 2020, as GSA-RSL's authors train it"
    settings: RoCLGSASettings
    settings_type = RoCLGSASettings
    recipe = Recipe(500, 512, WarmupCosine(0.1, 10, floor=1e-8, per_epoch="start"))

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.robust = MultiViewNTXentLoss(0.5, positives="sum", gather_distributed=True)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        p, q = self.strong(images), self.second(images)
        with evaluating(self), torch.no_grad():
            z_p = self.embed(p, "clean")
            hard = self.attack(q, lambda v: self.contrast(z_p, self.embed(v, "adversarial")))

        z_p, z_q = self.embed((p, q), "clean")
        z_hard = self.embed(hard, "adversarial")
        return {
            "contrastive": self.robust(z_p, z_q, z_hard),
            "regularizer": self.settings.regularizer * self.contrast(z_p, z_hard),
        }
