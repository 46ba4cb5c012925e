"""AdvCL: robustness from views and pseudo-labels, kept through standard finetuning.

Fan, Liu, Chen, Zhang and Gan 2021, "When does contrastive learning preserve adversarial robustness
from pretraining to finetuning?", https://arxiv.org/abs/2111.01124. With x a weakly augmented image,
two strong views t1 and t2, the high-frequency part of x (Eq. 8), and two perturbations of x:

    min E [ max over δ  NT(t1, t2, x + δ, high(x))                          Eq. 9, of Eq. 5's form
            + λ max over δ'  mean over K of cross-entropy(fc_K(x + δ'), cluster_K(x)) ]   Eq. 10

A view setup is a list of views, "d" behind the attacked ones: Table 4's rows. The pseudo-labels are
k-means clusters of features, of a SimCLR encoder trained on the same images or of a finished
network: Table 5's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from torch import Tensor, nn

from advssl import (
    ClusterFitHead,
    HighFreqView,
    LowFreqView,
    MultiViewNTXentLoss,
    branch_batchnorm,
)
from harness.heads import projection
from harness.method import Method, Terms, total
from harness.schedules import Recipe, WarmupCosine
from harness.settings import Settings, setting

Setup: TypeAlias = Literal[
    "t1d,t2",
    "t1d,t2d",
    "t1d,t2d,t1,t2",
    "xd,t1,t2",
    "xd,t1,t2,low",
    "xd,t1,t2,low,high",
    "xd,t1,t2,high",
]
Labels: TypeAlias = Literal[
    "none",
    "simclr-10",
    "simclr-100",
    "ensemble",
    "network-2",
    "network-10",
    "network-50",
    "network-100",
    "network-500",
    "network-ensemble",
]
VIEWS: tuple[Setup, ...] = get_args(Setup)
CLUSTERS: dict[Labels, tuple[int, ...]] = {
    name: (2, 10, 50, 100, 500)
    if name.endswith("ensemble")
    else tuple(int(word) for word in name.split("-")[1:])
    for name in get_args(Labels)
}


@dataclass(frozen=True, kw_only=True)
class AdvCLSettings(Settings):
    views: Setup = setting("xd,t1,t2,high", "Table 4's rows, d behind the attacked ones")
    supervision: Labels = setting("ensemble", "whose clusters, and how many: Table 5's rows")
    network: str = setting(
        "timm:resnet50", "of network-K: timm:NAME with timm's own weights, or timm:NAME=FILE"
    )
    temperature: float = setting(0.5, "of the contrastive loss")
    loss_scale: float = setting(
        0.5 / 0.07, "of it", paper=1.0, why="the release divides by a base temperature of 0.07"
    )
    cluster_weight: float = setting(0.2, "λ: the release's, the text does not say")
    cutoff: float = setting(0.25, "of the frequency views, in cycles per pixel: 8 per image at 32")


class AdvCL(Method):
    title, paper = "AdvCL", "Fan et al. 2021"
    settings: AdvCLSettings
    settings_type: ClassVar[type[Settings]] = AdvCLSettings
    recipe = Recipe(1000, 512, WarmupCosine(0.5, 10, 0.01, 5e-4, per_epoch="end"))
    head_as: ClassVar[Mapping[str, bool]] = {"batchnorm": True}
    ours: ClassVar[tuple[str, ...]] = (
        "Views that the attack does not change are forwarded once per step, not once per attack "
        "step, so BatchNorm statistics move once, not six times (exact_bn=True: as released).",
        "Eqs. 5 and 9 are a mean over anchors and positives, as released, not the printed sum.",
        "The ensemble clusters SimCLR features of the same images; the paper's is network-ensemble "
        "with an ImageNet SimCLR's weights, which are not said to be of which network.",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, clamp_start=False)
        s, width, names = self.settings, self.width, self.settings.views.split(",")
        self.attacked = [name[:-1] for name in names if name.endswith("d")]
        self.clean = [name for name in names if not name.endswith("d")]
        self.head = projection(width, width, 128, **self.head_as)
        self.high, self.low = (view(s.cutoff, unit="pixel") for view in (HighFreqView, LowFreqView))
        self.contrast = MultiViewNTXentLoss(s.temperature, gather_distributed=True)
        self.clusters: ClusterFitHead | None = None
        branches = self.measured()[1]
        if s.supervision != "none":
            self.clusters = ClusterFitHead(width, CLUSTERS[s.supervision])
            self.after = s.network if s.supervision.startswith("network") else "simclr"
            branches = (*branches, "pgd_ce")
        branch_batchnorm(self.encoder, branches)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        x, t1, t2 = self.weak(images), self.strong(images), self.second(images)
        views = {"x": x, "t1": t1, "t2": t2, "low": self.low(x), "high": self.high(x)}  # Eq. 8

        def benign() -> list[Tensor]:  # a forward each, so each has its own batch statistics
            return [self.embed(views[name], "normal") for name in self.clean]

        def terms(clean: Sequence[Tensor], hard: Sequence[Tensor]) -> Terms:
            z = [self.embed(view, "pgd") for view in hard[: len(self.attacked)]]
            contrastive = self.contrast(*clean, *z)  # Eqs. 6, 7 and 9, as Eq. 5
            return {
                "contrastive": self.settings.loss_scale * contrastive,
                **self.pseudo(hard[-1], index),  # Eq. 10
            }

        clean = benign()
        start = [views[name] for name in self.attacked]
        start += [x] if self.clusters else []
        hard = self.attack(  # in train mode: what training lowers is raised
            start, lambda *moved: total(terms(self.known(benign, clean), moved))
        )
        return terms(clean, hard)

    def pseudo(self, view: Tensor, index: Tensor) -> Terms:
        """λ · the mean over K of cross-entropy with the images' clusters; no term without any."""
        if self.clusters is None:
            return {}
        loss = self.clusters(self.encode(view, "pgd_ce"), index)
        return {"clusters": self.settings.cluster_weight * loss}

    def prepare(self, before: Method, features: Tensor) -> None:
        if self.clusters is not None:
            self.clusters.fit(features)

    def measured(self) -> tuple[nn.Module, tuple[str, ...]]:
        return self.encoder, ("pgd", "normal") if self.clean else ("pgd",)
