"""AdvCL: robustness from views and pseudo-labels, kept through standard finetuning.

Fan, Liu, Chen, Zhang and Gan 2021, "When does contrastive learning preserve adversarial robustness
from pretraining to finetuning?", https://arxiv.org/abs/2111.01124. With x a weakly augmented image,
two strong views t1 and t2, the high-frequency part of x, and two perturbations of x:

    min E [ max over δ  SupCon(x + δ, t1, t2, high(x))                                    Eq. 8
            + λ max over δ'  mean over K of cross-entropy(fc_K(x + δ'), cluster_K(x)) ]   Eq. 10

A view setup is a list of views, "d" behind the attacked ones: Table 4's rows. The pseudo-labels are
k-means clusters of a SimCLR encoder trained on the same images: Table 5 has that row; its other
rows cluster an ImageNet network's features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from advssl import ClusterFitHead, HighFreqView, LowFreqView, MultiViewNTXentLoss
from harness.data import Batch
from harness.heads import projection
from harness.method import Differs, Method, Recipe, Seen, Settings, Terms, Views
from harness.schedules import WarmupCosine

VIEWS = (
    "t1d,t2",
    "t1d,t2d",
    "t1d,t2d,t1,t2",
    "xd,t1,t2",
    "xd,t1,t2,low",
    "xd,t1,t2,low,high",
    "xd,t1,t2,high",
)
CLUSTERS = {"none": (), "simclr-10": (10,), "simclr-100": (100,), "ensemble": (2, 10, 50, 100, 500)}


@dataclass(frozen=True, kw_only=True)
class AdvCLSettings(Settings):
    views: Literal[VIEWS] = "xd,t1,t2,high"
    supervision: Literal[tuple(CLUSTERS)] = "ensemble"
    temperature: float = 0.5
    loss_scale: float = 0.5 / 0.07
    cluster_weight: float = 0.2  # λ
    cutoff: float = 0.25  # of the frequency views, in cycles per pixel: 8 per image at 32


class AdvCL(Method):
    title, paper = "AdvCL", "Fan et al. 2021"
    settings_type = AdvCLSettings
    recipe = Recipe(1000, 512, WarmupCosine(0.5, 10, 0.01, 5e-4, per_epoch=True), "sgd", 1e-4)
    settings: AdvCLSettings
    differences = (
        Differs("loss_scale", 0.5 / 0.07, 1.0, "the release divides by a base temperature of 0.07"),
    )
    ours = (
        "Views that the attack does not change are forwarded once per step, not once per attack "
        "step, so BatchNorm statistics move once, not six times (exact_bn=True: as released).",
        "Eq. 8 is a mean over anchors and positives, as released, not the printed sum.",
        "λ is not stated in the text; 0.2 is the release's.",
        "The ensemble clusters the same SimCLR features; the paper's is of an ImageNet network.",
    )

    branch_of = {
        **dict.fromkeys(("t1", "t2", "x", "low", "high"), "normal"),
        **dict.fromkeys(("t1d", "t2d", "xd"), "pgd"),
        "ced": "pgd_ce",
    }
    evaluated = ("pgd", "normal")
    attack_in_train_mode, together = True, False
    headless = ("ced",)  # the pseudo-labels' classifiers stand on the features
    pair, clean_term = ("t1", "t2"), "benign"
    embedding = 128

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        s = self.settings
        self.pair_weight = s.loss_scale
        self.contrast = MultiViewNTXentLoss(s.temperature, gather_distributed=True)
        self.high = HighFreqView(s.cutoff, unit="pixel")
        self.low = LowFreqView(s.cutoff, unit="pixel")
        if s.supervision != "none":
            self.clusters = ClusterFitHead(self.encoder.num_features, CLUSTERS[s.supervision])
            self.clusters_of = "simclr"

    @property
    def contrasted(self) -> tuple[str, ...]:
        return tuple(self.settings.views.split(","))

    @property
    def names(self) -> tuple[str, ...]:
        return self.contrasted + (("ced",) if self.settings.supervision != "none" else ())

    @property
    def anchors(self) -> tuple[str, ...]:
        return tuple(name for name in self.contrasted if not name.endswith("d"))

    def make_head(self, features: int, classes: int) -> nn.Module:
        return projection(features, features, 128, batchnorm=True)

    def prepare(self, features: Tensor, before: Method | None = None) -> None:
        self.clusters.fit(features)

    def views(self, images: Tensor) -> Views:
        x = self.weak(images)
        made = {"t1": self.strong(images), "t2": self.second(images), "x": x, "ce": x}
        return {**made, "high": self.high(x), "low": self.low(x)}

    def adversarial(self, seen: Seen, batch: Batch) -> Terms:
        s = self.settings
        contrastive = self.contrast(*(seen[name] for name in self.contrasted))  # Eq. 8
        terms = {"contrastive": s.loss_scale * contrastive}
        if s.supervision != "none":  # Eq. 10
            terms["clusters"] = s.cluster_weight * self.clusters(seen["ced"], batch.index)
        return terms
