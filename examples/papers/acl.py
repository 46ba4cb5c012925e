"""ACL: adversarial contrastive learning, three ways to make a pair of views adversarial.

Jiang, Chen, Chen and Wang 2020, "Robust pre-training by adversarial contrastive learning",
https://arxiv.org/abs/2010.13337. The kinds, with δ found against the same loss:

    a2a   NT(t1 + δ1, t2 + δ2)                    both attacked, adversarial BatchNorm
    a2s   NT(t1 + δ1, t2)                         one attacked, the other on the clean BatchNorm
    ds    ½ NT(t1, t2) + ½ NT(t1 + δ1, t2 + δ2)   dual stream, the paper's best
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from advssl import MultiViewNTXentLoss
from harness.data import Batch
from harness.heads import projection
from harness.method import IMAGENET, Method, Recipe, Seen, Settings, Terms, Views
from harness.schedules import WarmupCosine


@dataclass(frozen=True, kw_only=True)
class ACLSettings(Settings):
    kind: Literal["ds", "a2a", "a2s"] = "ds"
    temperature: float = 0.5


class ACL(Method):
    title, paper = "ACL", "Jiang et al. 2020"
    settings_type = ACLSettings
    recipe = Recipe(1000, 512, WarmupCosine(5.0, 10, floor=1e-6), "lars", 1e-6)
    probe = "dynacl"
    settings: ACLSettings
    ours = ("The released code has only ds; a2a and a2s follow the text.",)

    branch_of = {"t1": "clean", "t2": "clean", "t1d": "adversarial", "t2d": "adversarial"}
    head_branches = True
    evaluated = ("adversarial", "clean")
    augmentation = {"scale": (0.1, 1.0), "interpolation": "bicubic"}
    normalization = IMAGENET
    # What a method built on this one may replace: the clean pair's term, and its weight.
    pair, clean_term, pair_weight = ("t1", "t2"), "clean", 0.5

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.contrast = MultiViewNTXentLoss(self.settings.temperature, gather_distributed=True)
        self.embedding = self.encoder.num_features

    @property
    def names(self) -> tuple[str, ...]:
        kinds = {"ds": ("t1", "t2", "t1d", "t2d"), "a2a": ("t1d", "t2d"), "a2s": ("t1d", "t2")}
        return kinds[self.settings.kind]

    @property
    def anchors(self) -> tuple[str, ...]:
        return ("t2",) if self.settings.kind == "a2s" else ()

    def make_head(self, features: int, classes: int) -> nn.Module:
        return projection(features, features, features, layers=3, batchnorm="all")

    def views(self, images: Tensor) -> Views:
        return {"t1": self.strong(images), "t2": self.second(images)}

    def benign(self, seen: Seen, batch: Batch) -> Terms:
        if self.settings.kind != "ds":
            return {}
        return {"clean": self.pair_weight * self.contrast(seen["t1"], seen["t2"])}

    def adversarial(self, seen: Seen, batch: Batch) -> Terms:
        weight = 0.5 if self.settings.kind == "ds" else 1.0
        return {"adversarial": weight * self.hard_pair(seen)}

    def height(self, seen: Seen, batch: Batch) -> Tensor:
        return self.hard_pair(seen)  # without the weight, which a critic beside it would feel

    def hard_pair(self, seen: Seen) -> Tensor:
        return self.contrast(*(seen[name] for name in (*self.attacked, *self.anchors)))
