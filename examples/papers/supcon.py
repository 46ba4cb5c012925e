"""SupCon: two views of all images of a class attract each other. Labels, and no robustness.

Khosla et al. 2020, https://arxiv.org/abs/2004.11362, Eq. 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from advssl import LocalSelectionSupCon
from harness.heads import projection
from harness.method import Method, Terms
from harness.schedules import Recipe, WarmupCosine
from harness.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class SupConSettings(Settings):
    temperature: float = setting(0.1, "of the contrastive loss")
    loss_scale: float = setting(
        0.1 / 0.07, "of it", paper=1.0, why="the release divides by a base temperature of 0.07"
    )


class SupCon(Method):
    title, paper, labelled = "SupCon", "Khosla et al. 2020", True
    settings: SupConSettings
    settings_type = SupConSettings
    recipe = Recipe(1000, 1024, WarmupCosine(0.5, 10, 0.01, 5e-4, per_epoch="end"))
    ours = ("The encoder reads images in [0, 1]; the release normalises them first.",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head = projection(self.width, self.width, 128)
        self.contrast = LocalSelectionSupCon(
            "global", self.settings.temperature, gather_distributed=True
        )

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        z1, z2 = self.embed((self.strong(images), self.second(images)))
        both = self.contrast(z1, z2, labels)  # an image's two anchors, summed
        return {"contrastive": self.settings.loss_scale * both / 2}
