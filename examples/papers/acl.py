"""ACL: adversarial contrastive learning, three ways to make a pair of views adversarial.

Jiang, Chen, Chen and Wang 2020, "Robust pre-training by adversarial contrastive learning",
https://arxiv.org/abs/2010.13337. The kinds, with δ found against the same loss:

    a2a   NT(t1 + δ1, t2 + δ2)                    both attacked, adversarial BatchNorm
    a2s   NT(t1 + δ1, t2)                         one attacked, the other on the clean BatchNorm
    ds    ½ NT(t1, t2) + ½ NT(t1 + δ1, t2 + δ2)   dual stream, the paper's best
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from advssl import MultiViewNTXentLoss, branch_batchnorm, evaluating
from harness.heads import projection
from harness.method import IMAGENET, Method, Terms
from harness.schedules import Recipe, WarmupCosine
from harness.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class ACLSettings(Settings):
    kind: Literal["ds", "a2a", "a2s"] = setting("ds", "which views are attacked")
    batchnorms: Literal["two", "one"] = setting(
        "two", "of clean and of attacked images, or one for both: Table 8 of Li et al. 2023"
    )
    temperature: float = setting(0.5, "of the contrastive loss")


class ACL(Method):
    title, paper = "ACL", "Jiang et al. 2020"
    settings: ACLSettings
    settings_type: ClassVar[type[Settings]] = ACLSettings
    recipe = Recipe(1000, 512, WarmupCosine(5.0, 10, floor=1e-6, restarts=True), "lars", 1e-6)
    probe, pixels = "dynacl", IMAGENET
    strong_as = {"scale": (0.1, 1.0), "interpolation": "bicubic"}
    ours: ClassVar[tuple[str, ...]] = (
        "The released code has only ds; a2a and a2s follow the text.",
        "Full finetuning is DynACL's, of 25 epochs; the release's for CIFAR-10 has 100.",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, clamp_start=False)
        self.head = projection(self.width, self.width, self.width, layers=3, batchnorm="all")
        self.one_batchnorm = self.settings.batchnorms == "one"
        for module in () if self.one_batchnorm else (self.encoder, self.head):
            branch_batchnorm(module, self.branches)
        self.contrast = MultiViewNTXentLoss(self.settings.temperature, gather_distributed=True)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        t1, t2 = self.strong(images), self.second(images)
        if self.settings.kind == "a2s":
            with evaluating(self), torch.no_grad():
                z2 = self.embed(t2, "clean")
                hard = self.attack(t1, lambda v: self.contrast(self.embed(v, "adversarial"), z2))
            z1 = self.embed(hard, "adversarial")
            return {"adversarial": self.contrast(z1, self.embed(t2, "clean"))}

        with evaluating(self):
            hard = self.attack((t1, t2), lambda *v: self.contrast(*self.embed(v, "adversarial")))
        adversarial = self.contrast(*self.embed(hard, "adversarial"))
        if self.settings.kind == "a2a":
            return {"adversarial": adversarial}

        clean = self.contrast(*self.embed((t1, t2), "clean"))
        return {"clean": 0.5 * clean, "adversarial": 0.5 * adversarial}

    @property
    def branches(self) -> tuple[str, ...]:
        if self.one_batchnorm:
            return ()
        return ("adversarial",) if self.settings.kind == "a2a" else ("adversarial", "clean")

    def measured(self) -> tuple[nn.Module, tuple[str, ...]]:
        return self.encoder, self.branches

    # --- what ACL's followers, and terms on top of any of them, are told apart by -----------------

    weights: tuple[float, float] = (0.5, 0.5)  # of the clean and of the adversarial term

    def pair(self, views: Any, branch: str, seen: Any = None) -> Any:
        """Two views embedded, again if they were ``seen``: those that are to learn, at least."""
        return self.embed(views, branch)

    def beside(self, images: Tensor, z: Any, z_hard: Any) -> Terms:
        """Further terms, of embedded pairs of clean and of attacked views."""
        return {}
