"""SupCon: two views of all images of a class attract each other. Labels, and no robustness.

Khosla et al. 2020, https://arxiv.org/abs/2004.11362, Eq. 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from advssl import LocalSelectionSupCon
from harness.data import Batch
from harness.heads import projection
from harness.method import Differs, Method, Recipe, Seen, Settings, Terms, Views
from harness.schedules import WarmupCosine


@dataclass(frozen=True, kw_only=True)
class SupConSettings(Settings):
    temperature: float = 0.1
    loss_scale: float = 0.1 / 0.07


class SupCon(Method):
    title, paper = "SupCon", "Khosla et al. 2020"
    settings_type = SupConSettings
    settings: SupConSettings
    labelled = True
    recipe = Recipe(1000, 1024, WarmupCosine(0.5, 10), "sgd", 1e-4)
    differences = (
        Differs("loss_scale", 0.1 / 0.07, 1.0, "the release divides by a base temperature of 0.07"),
    )
    ours = ("The encoder reads images in [0, 1]; the release normalises them first.",)

    names = ("t1", "t2")

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.contrast = LocalSelectionSupCon("global", self.settings.temperature)

    def make_head(self, features: int, classes: int) -> nn.Module:
        return projection(features, features, 128)

    def views(self, images: Tensor) -> Views:
        return {"t1": self.strong(images), "t2": self.second(images)}

    def benign(self, seen: Seen, batch: Batch) -> Terms:
        both = self.contrast(seen["t1"], seen["t2"], batch.labels)  # an image's two anchors summed
        return {"contrastive": self.settings.loss_scale * both / 2}
