"""SimCLR: two views of an image attract each other. The reference that withstands no attack.

Chen et al. 2020, https://arxiv.org/abs/2002.05709, Eq. 1. With ``adversarial``, the lines of
the README: one more view, the one that is hardest to match, through the same BatchNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from advssl import MultiViewNTXentLoss
from harness.heads import projection
from harness.method import Method, Terms
from harness.schedules import Recipe, WarmupCosine
from harness.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class SimCLRSettings(Settings):
    temperature: float = setting(0.5, "of the contrastive loss")
    adversarial: bool = setting(False, "one more view, attacked")


class SimCLR(Method):
    title, paper = "SimCLR", "Chen et al. 2020"
    settings: SimCLRSettings
    settings_type = SimCLRSettings
    # The paper trains on ImageNet; this is how AdvCL trains on CIFAR-10, without its attack.
    recipe = Recipe(1000, 512, WarmupCosine(0.5, 10, 0.01, 5e-4, per_epoch="end"))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head = projection(self.width, self.width, 128)
        self.contrast = MultiViewNTXentLoss(self.settings.temperature, gather_distributed=True)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        t1, t2 = self.strong(images), self.second(images)

        def benign() -> tuple[Tensor, Tensor]:  # one forward, and so one set of batch statistics
            return self.embed((t1, t2))

        z1, z2 = benign()
        if not self.settings.adversarial:
            return {"contrastive": self.contrast(z1, z2)}

        def height(view: Tensor) -> Tensor:  # in train mode
            return self.contrast(self.known(benign, (z1, z2))[0], self.embed(view))

        hard = self.attack(t2, height)
        return {"contrastive": self.contrast(z1, z2, self.embed(hard))}
