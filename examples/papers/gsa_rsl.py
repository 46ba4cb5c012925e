"""GSA-RSL: robust contrastive learning with global alignment and a flat benign loss.

"Generalization bounds for robust contrastive learning", Algorithm 1; its terms are in ``gsa.py``.
With p and q two views of an image, z̃ the embeddings of the attacked q + δ and D a critic between
benign and adversarial embeddings:

    adversary   max over δ of  NT(p, q + δ) + λ_global · div_D(z̃ ‖ z)               Eq. 18
    critic      max over D of  div_D(z̃ ‖ z)                                          Eq. 19
    encoder     min of  NT(p, q + δ) + λ_benign · NT(p, q) at θ + e + λ_global · div  Eq. 20
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from advssl import MultiViewNTXentLoss, branch_batchnorm, evaluating
from gsa import GSA, GSASettings
from harness.heads import projection
from harness.method import IMAGENET, Method, Terms
from harness.schedules import Recipe, WarmupCosine
from harness.settings import setting


@dataclass(frozen=True, kw_only=True)
class GSARSLSettings(GSASettings):
    second_view: Literal["strong", "weak"] = setting(
        "weak",
        "how q, which is attacked, is augmented",
        paper="strong",
        why="the text draws both views from one pool",
    )


class OfTheirTables(Method):
    """How GSA-RSL's authors train the methods of their tables, whatever the step."""

    recipe = Recipe(500, 512, WarmupCosine(0.5, 10, floor=1e-8, per_epoch="start"))
    probe, pixels, strong_as = "gsa", IMAGENET, {"blur_p": 0.5}
    released_network = "resnet18_no_identity"
    ours: ClassVar[tuple[str, ...]] = (
        "Warm-up is linear over ten epochs; the release's is over nine, and the first iteration of "
        "each is at the cosine's full rate.",
        "A probe is trained and attacked on one BatchNorm branch, its last epoch and the best on "
        "validation images are told; the release trains LE's on the clean branch, AT-LE's on the "
        "adversarial one, attacks both through the latter, and keeps the epoch that is best on "
        "test images under PGD.",
        "AutoAttack is its authors' at the same radius as PGD; the release's is torchattacks'.",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, clamp_start=False)
        self.head = projection(self.width, self.width, 128, of_unit=True)  # as its probe
        branch_batchnorm(self.encoder, self.measured()[1])
        self.contrast = MultiViewNTXentLoss(0.5, gather_distributed=True)

    def measured(self) -> tuple[nn.Module, tuple[str, ...]]:
        return self.encoder, ("adversarial", "clean")


class GSARSL(OfTheirTables):
    title, paper = "GSA-RSL", "Generalization bounds for robust contrastive learning"
    settings: GSARSLSettings
    settings_type = GSARSLSettings
    ours: ClassVar[tuple[str, ...]] = (*GSA.ours, *OfTheirTables.ours)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gsa = GSA(128, self.settings, self.encoder, self.head)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        gsa = self.gsa
        p, q = self.strong(images), self.second(images)  # 1. two views
        with evaluating(self), torch.no_grad():
            z_p = self.embed(p, "clean")

            def height(view: Tensor, blind: bool = False) -> Tensor:  # Eq. 18
                z = self.embed(view, "adversarial")
                return self.contrast(z_p, z) + (0 if blind else gsa.height(z))

            if gsa.between:
                blind = self.attack(q, partial(height, blind=True))
                gsa.learn(self.embed(q, "clean"), self.embed(blind, "adversarial"))
            hard = self.attack(q, height)  # 2. q at its worst

        z_p, z_q = self.embed((p, q), "clean")
        z_hard = self.embed(hard, "adversarial")
        if not gsa.between:
            gsa.learn(z_q, z_hard)  # 3. Eq. 19

        def benign() -> Tensor:
            return self.contrast(*self.embed((p, q), "clean"))

        return {  # 4. Eq. 20
            "adversarial": self.contrast(z_p, z_hard),
            "benign": gsa.flat(benign, self.contrast(z_p, z_q)),
            **gsa.aligned(z_q, z_hard),
        }

    def optimizers(self) -> dict[str, tuple[Optimizer, float]]:
        return self.gsa.own
