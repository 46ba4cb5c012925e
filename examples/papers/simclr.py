"""SimCLR: two views of an image attract each other. The reference that withstands no attack.

Chen et al. 2020, https://arxiv.org/abs/2002.05709. With ``adversarial``, the three lines of the
README: one more view, the one that is hardest to match, through the same BatchNorm.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from advssl import MultiViewNTXentLoss
from harness.data import Batch
from harness.heads import projection
from harness.method import Method, Recipe, Seen, Settings, Terms, Views
from harness.schedules import WarmupCosine


@dataclass(frozen=True, kw_only=True)
class SimCLRSettings(Settings):
    temperature: float = 0.5
    adversarial: bool = False  # one more view, attacked


class SimCLR(Method):
    title, paper = "SimCLR", "Chen et al. 2020"
    settings_type = SimCLRSettings
    # The paper trains on ImageNet; this is how AdvCL trains on CIFAR-10, without its attack.
    recipe = Recipe(1000, 512, WarmupCosine(0.5, 10, 0.01, 5e-4, per_epoch=True), "sgd", 1e-4)
    settings: SimCLRSettings

    # t2 is an anchor because it shares t1's forward, and so its batch statistics.
    anchors, attack_in_train_mode = ("t1", "t2"), True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.contrast = MultiViewNTXentLoss(self.settings.temperature, gather_distributed=True)

    @property
    def names(self) -> tuple[str, ...]:
        return ("t1", "t2", "t2d") if self.settings.adversarial else ("t1", "t2")

    def make_head(self, features: int, classes: int) -> nn.Module:
        return projection(features, features, 128)

    def views(self, images: Tensor) -> Views:
        return {"t1": self.strong(images), "t2": self.second(images)}

    def height(self, seen: Seen, batch: Batch) -> Tensor:
        return self.contrast(seen["t1"], seen["t2d"])

    def benign(self, seen: Seen, batch: Batch) -> Terms:
        return {} if self.attacked else {"contrastive": self.contrast(seen["t1"], seen["t2"])}

    def adversarial(self, seen: Seen, batch: Batch) -> Terms:
        return {"contrastive": self.contrast(*seen.values())} if self.attacked else {}
