"""Adversarial training with labels: AT and TRADES, what label-free robustness is measured against.

AT: Madry et al. 2018, https://arxiv.org/abs/1706.06083, Eq. 2.1. TRADES: Zhang et al. 2019,
https://arxiv.org/abs/1901.08573, Eq. 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from harness.data import Batch
from harness.method import Method, Recipe, Seen, Settings, Terms, Views
from harness.schedules import Steps


class Classifying(Method):
    """A linear classifier on the encoder, and one weakly augmented view."""

    labelled = True

    def make_head(self, features: int, classes: int) -> nn.Module:
        return nn.Linear(features, classes)

    def classifier(self) -> nn.Module:
        return nn.Sequential(self.encoder, self.head)

    def views(self, images: Tensor) -> Views:
        return {"x": self.weak(images)}


@dataclass(frozen=True, kw_only=True)
class ATSettings(Settings):
    steps: int = 10
    natural: float = 0.0  # weight of the clean images' cross-entropy


class AT(Classifying):
    title, paper = "AT", "Madry et al. 2018"
    settings_type = ATSettings
    settings: ATSettings
    # How Bui et al.'s release trains it.
    recipe = Recipe(120, 128, Steps(0.1, (100, 105, 110), 120), "sgd", 5e-4)
    ours = ("BatchNorm statistics do not move during the attack (exact_bn=True: they do).",)

    attack_in_train_mode, together = True, False

    @property
    def names(self) -> tuple[str, ...]:
        return ("x", "xd") if self.settings.natural else ("xd",)

    def benign(self, seen: Seen, batch: Batch) -> Terms:
        if not self.settings.natural:
            return {}
        return {"natural": self.settings.natural * F.cross_entropy(seen["x"], batch.labels)}

    def adversarial(self, seen: Seen, batch: Batch) -> Terms:
        return {"adversarial": F.cross_entropy(seen["xd"], batch.labels)}


@dataclass(frozen=True, kw_only=True)
class TRADESSettings(Settings):
    steps: int = 10
    beta: float = 6.0


class TRADES(Classifying):
    title, paper = "TRADES", "Zhang et al. 2019"
    settings_type = TRADESSettings
    settings: TRADESSettings
    recipe = Recipe(76, 128, Steps(0.1, (75,), 76), "sgd", 2e-4)
    ours = ("x is forwarded once per training pass, not twice.",)

    names, anchors, together = ("x", "xd"), ("x",), False
    start = "gaussian"

    def benign(self, seen: Seen, batch: Batch) -> Terms:
        return {"natural": F.cross_entropy(seen["x"], batch.labels)}

    def adversarial(self, seen: Seen, batch: Batch) -> Terms:
        clean, hard = (seen[name].log_softmax(1) for name in ("x", "xd"))
        divergence = F.kl_div(hard, clean, reduction="batchmean", log_target=True)
        return {"divergence": self.settings.beta * divergence}
