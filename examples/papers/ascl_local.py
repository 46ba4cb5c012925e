"""Supervised adversarial contrastive learning with local selection of positives and negatives.

Bui et al. 2021, "Understanding and achieving efficient robustness with adversarial supervised
contrastive learning", https://arxiv.org/abs/2101.10027. With h the classifier, z its penultimate
layer and x_a the attacked image:

    CE(h(x_a), y) + natural · CE(h(x), y) + scl · L_SCL(z, z_a) + vat · KL(h(x) ‖ h(x_a))
                                            Eqs. 1 to 3           Eq. 5

Who attracts and who repels in L_SCL is the selection of Table 1: global, hard, soft or leaked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from advssl import LocalSelectionSupCon
from harness.data import Batch
from harness.heads import projection
from harness.method import Differs, Method, Recipe, Seen, Settings, Terms, Views
from harness.schedules import Steps


@dataclass(frozen=True, kw_only=True)
class ASCLSettings(Settings):
    steps: int = 10
    selection: Literal["global", "hard", "soft", "leaked"] = "leaked"
    projection: Literal["none", "linear", "mlp"] = "none"  # p1 to 128; p2 over 200 to 128
    temperature: float = 0.07
    natural: float = 0.0
    scl: float = 1.0
    vat: float = 0.0
    keep_twin: bool = False  # an image's own twin attracts it whatever is predicted
    anchor_mean: bool = True  # L_SCL is a mean over the 2N anchors, half of Eq. 3
    class_mean: bool = True  # the divergence is a mean over classes too, 1/C of Eq. 5


class ASCL(Method):
    title, paper = "ASCL", "Bui et al. 2021"
    settings_type = ASCLSettings
    settings: ASCLSettings
    labelled = True
    # Of ResNet-18 and WideResNet. Tables with ResNet-20 bring Adam, its weight decay not stated: 0.
    recipe = Recipe(200, 128, Steps(0.1, (100, 150), 200), "sgd", 5e-4)
    differences = (
        Differs("keep_twin", False, True, "the release drops a twin that is predicted otherwise"),
        Differs("anchor_mean", True, False, "Eq. 3 sums an image's two anchors"),
        Differs("class_mean", True, False, "the release takes KLDivLoss's mean over all entries"),
    )
    ours = (
        "Similarity is the cosine: the text does not name it, the release offers five.",
        "One weakly augmented view per image; the release's script draws two. Its τ of 0.2, linear "
        "projection, divergence of weight 2, mean and std layer and 120 epochs are not taken over.",
        "BatchNorm statistics do not move during the attack (exact_bn=True: they do).",
    )

    names, attack_in_train_mode, together = ("x", "xd"), True, False
    headless = ("x", "xd")  # z is the penultimate layer

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        s = self.settings
        self.contrast = LocalSelectionSupCon(s.selection, s.temperature, keep_twin=s.keep_twin)
        width = self.encoder.num_features
        self.project = {
            "none": nn.Identity(),
            "linear": nn.Linear(width, 128),
            "mlp": projection(width, 200, 128, bias=False),
        }[s.projection]

    def make_head(self, features: int, classes: int) -> nn.Module:
        return nn.Linear(features, classes)

    def classifier(self) -> nn.Module:
        return nn.Sequential(self.encoder, self.head)

    def views(self, images: Tensor) -> Views:
        return {"x": self.weak(images)}

    def height(self, seen: Seen, batch: Batch) -> Tensor:
        return F.cross_entropy(self.head(seen["xd"]), batch.labels)

    def terms(self, seen: Seen, views: Views, batch: Batch) -> Terms:
        s, z, z_adv = self.settings, seen["x"], seen["xd"]
        logits, logits_adv = self.head(z), self.head(z_adv)
        terms = {"adversarial": F.cross_entropy(logits_adv, batch.labels)}
        if s.natural:
            terms["natural"] = s.natural * F.cross_entropy(logits, batch.labels)
        if s.scl:
            predicted = logits.argmax(1), logits_adv.argmax(1)
            local = self.contrast(self.project(z), self.project(z_adv), batch.labels, *predicted)
            terms["local"] = s.scl * local / (2 if s.anchor_mean else 1)
        if s.vat:
            p, q = logits.log_softmax(1), logits_adv.log_softmax(1)
            divergence = F.kl_div(q, p, reduction="batchmean", log_target=True)
            terms["vat"] = s.vat * divergence / (logits.shape[1] if s.class_mean else 1)
        return terms
