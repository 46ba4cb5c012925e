"""ADR: adversarial training that also draws an attacked image to its own and its class's.

Bui et al. 2020, "Improving adversarial robustness by enforcing local and global compactness",
https://arxiv.org/abs/2007.05123. With h the classifier, z its penultimate layer, x_a the attacked
image; of a pair (i, j), w is 1 within a class and 1 - 1/0.99 between two:

    CE(h(x_a), y) + natural · CE(h(x), y) + H(h(x_a))                  H: confidence
    + mean over i    of |z_a - z|   +  CE(h(x_a), h(x))                local compactness, smoothness
    + mean over i, j of w |z_a - z|  (+ w CE(h(x_a), h(x)))            global

No gradient is taken of z and h(x) as targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.method import Terms
from harness.settings import Settings, setting
from supervised import AT, STEP, Classifying

_SCALE = 0.99  # of the weight of pairs, in all releases


@dataclass(frozen=True, kw_only=True)
class ADRSettings(Settings):
    steps: int = setting(10, "of the attack")
    natural: float = setting(
        0.0,
        "weight of the clean images' cross-entropy",
        paper=1.0,
        why="ADR's own two releases weigh both alike; the script of Bui et al. 2021 leaves it out",
    )
    confidence: float = setting(1.0, "weight of the attacked images' entropy")
    local_compact: float = setting(1.0, "weight of their features' distance to their own")
    local_smooth: float = setting(1.0, "weight of their predictions' to their own")
    global_compact: float = setting(1.0, "weight of their features' to all clean images'")
    global_smooth: float = setting(0.0, "weight of their predictions' to all clean images'")


class ADR(Classifying):
    title, paper = "ADR", "Bui et al. 2020"
    settings: ADRSettings
    settings_type = ADRSettings
    recipe = AT.recipe
    ours = (
        "Of three releases it is the one that Bui et al. 2021 compare with, without its mean and "
        "std layer. ADR's own are in PyTorch (it does not run; attack in eval mode, "
        "global_smooth 1, 100 epochs of rate 0.01) and in TensorFlow (halved cross-entropies).",
        "BatchNorm statistics are those of the training pass; in the release also of the attack's "
        "and of two logging passes (exact_bn=True).",
        "Where a batch is of one class all weights of pairs are 1; in the releases 0/0.",
        STEP,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, clamp_start=False)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        s, x = self.settings, self.weak(images)
        hard = self.attack(x, lambda view: F.cross_entropy(self.embed(view), labels))  # train mode
        self.logged = (x, hard)
        z, z_adv = self.encode(x), self.encode(hard)  # the penultimate layer
        logits, logits_adv = self.head(z), self.head(z_adv)

        log_p_adv, p = logits_adv.log_softmax(1), logits.detach().softmax(1)
        apart = (z_adv[:, None] - z.detach()).abs().mean(dim=2)  # attacked by clean images
        unlike = -log_p_adv @ p.mT
        weight = torch.where(labels[:, None] == labels, apart.new_tensor(1.0), 1 - 1 / _SCALE)
        terms = {
            "adversarial": F.cross_entropy(logits_adv, labels),
            "confidence": -s.confidence * (log_p_adv.exp() * log_p_adv).sum(1).mean(),
            "local_compact": s.local_compact * apart.diagonal().mean(),
            "local_smooth": s.local_smooth * unlike.diagonal().mean(),
            "global_compact": s.global_compact * (weight * apart).mean(),
        }
        if s.natural:
            terms["natural"] = s.natural * F.cross_entropy(logits, labels)
        if s.global_smooth:
            terms["global_smooth"] = s.global_smooth * (weight * unlike).mean()
        return terms
