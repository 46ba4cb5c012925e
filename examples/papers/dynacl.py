"""DynACL: ACL whose views are strong at first and weak at last, with a slow second encoder.

Luo, Wang and Wang 2023, "Rethinking the effect of data augmentation in adversarial contrastive
learning", https://arxiv.org/abs/2303.01289. With s the strength of the augmentation, which falls
from 1 in stages, g the moving average of the encoder f, and δ found against the second term:

    min ½ (1 - λ (1 - s)) NT(f(t1), g(t2)) + ½ (1 + λ (1 - s)) NT(f(t1 + δ1), g(t2 + δ2))

g is what is measured. DynACL++, what its authors do with any encoder afterwards, is ``plus.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from acl import ACL, ACLSettings
from advssl import Ramp, evaluating, on_branch
from advssl.copying import copied
from harness.draws import Augmentation
from harness.method import Terms
from harness.schedules import Recipe, WarmupCosine
from harness.settings import Settings, setting


def strength(epoch: int, epochs: int, stages: int) -> float:
    """s in an epoch, counted from 1: one less a share for each stage that is over."""
    return Ramp(1, 0, epochs, stages=stages)(epoch - 1)


@dataclass(frozen=True, kw_only=True)
class DynamicSettings(Settings):
    stages: int = setting(20, "of constant strength: 50 of 1,000 epochs each")
    shift: float = setting(2 / 3, "λ, how far weight moves from the clean to the adversarial term")


@dataclass(frozen=True, kw_only=True)
class DynACLSettings(DynamicSettings, ACLSettings):
    kind: Literal["ds"] = setting("ds", "which views are attacked")
    batchnorms: Literal["two"] = setting("two", "of clean and of attacked images")
    momentum: float = setting(0.99, "of the moving average")
    ahead: int = setting(
        1,
        "epochs by which the weights are ahead of the augmentation",
        paper=0,
        why="the release counts floor(e / 50) for the ones and floor((e - 1) / 50) for the other",
    )


class DynACL(ACL):
    title, paper = "DynACL", "Luo et al. 2023"
    settings: DynACLSettings
    settings_type: ClassVar[type[Settings]] = DynACLSettings
    recipe = Recipe(
        1000, 512, WarmupCosine(5.0, 10, floor=1e-6, per_epoch="start", restarts=True), "lars", 1e-6
    )
    strong_as = {"scale": (0.1, 1.0)}
    ours: ClassVar[tuple[str, ...]] = (
        "A run of any length has 20 stages; the release's are of 50 epochs.",
        "The slow encoder follows after the optimizer's step; in the release just before it, so "
        "it is one step behind.",
        "The rate warms up in each step; in the release in each epoch.",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.full = cast(Augmentation, self.strong)
        self.slow = nn.Sequential(copied(self.encoder), copied(self.head)).requires_grad_(False)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        s, e = self.settings, epoch + 1
        self.strong = self.full.at(strength(e, epochs, s.stages))
        moved = s.shift * (1 - strength(e + s.ahead, epochs, s.stages))
        self.weights = (1 - moved) / 2, (1 + moved) / 2

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        t1, t2 = self.strong(images), self.second(images)
        with evaluating(self):
            hard = self.attack((t1, t2), lambda *v: self.contrast(*self.pair(v, "adversarial")))

        of_clean, of_adversarial = self.weights
        adversarial = self.contrast(*self.pair(hard, "adversarial"))
        clean = self.contrast(*self.pair((t1, t2), "clean"))
        return {"clean": of_clean * clean, "adversarial": of_adversarial * adversarial}

    def pair(self, views: Sequence[Tensor], branch: str, seen: Any = None) -> Any:
        """The first view by the encoder, the second one by the slow one, which learns nothing."""
        first = self.embed(views[0], branch)
        if seen is not None:
            return first, seen[1]
        with on_branch(self.slow, branch):
            return first, self.slow(self.normalized(views[1]))

    @torch.no_grad()
    def after_step(self) -> None:
        """g ← m g + (1 - m) f, of parameters; BatchNorm's statistics are each one's own."""
        learned = nn.Sequential(self.encoder, self.head).parameters()
        for slow, fast in zip(self.slow.parameters(), learned, strict=True):
            slow.lerp_(fast, 1 - self.settings.momentum)

    def measured(self) -> tuple[nn.Module, tuple[str, ...]]:
        return self.slow[0], self.branches
