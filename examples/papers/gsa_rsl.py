"""GSA-RSL: robust contrastive learning with global alignment and a flat benign loss.

"Generalization bounds for robust contrastive learning", Algorithm 1. Per step, with p and q two
views of an image, z̃ the embeddings of the attacked q + δ and D a critic between benign and
adversarial embeddings:

    adversary   max over δ of  NT(p, q + δ) + λ_global · div_D(z̃ ‖ z)               Eq. 18
    critic      max over D of  div_D(z̃ ‖ z)                                          Eq. 19
    encoder     min of  NT(p, q + δ) + λ_benign · NT(p, q) at θ + e + λ_global · div  Eq. 20
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from advssl import GlobalDivergenceCritic, MultiViewNTXentLoss, SAMWrapper
from advssl.losses import unit
from advssl.modes import widen
from harness.data import Batch
from harness.heads import projection
from harness.method import IMAGENET, Differs, Method, Recipe, Seen, Settings, Terms, Views
from harness.schedules import WarmupCosine, optimizer, step_apart


@dataclass(frozen=True, kw_only=True)
class GSASettings(Settings):
    steps: int = 7
    sam: bool = True
    critic: bool = True
    order: Literal["3-step", "4-step"] = "3-step"  # 4: the critic learns between two attacks
    benign_weight: float = 2.0  # λ_benign
    global_weight: float = 0.1  # λ_global
    attack_factor: float = 2.0  # on λ_global, for the adversary
    rho: float = 1.0
    adaptive: bool = True
    critic_rate: float = 0.2


class GlobalAndSharp(Method):
    """The paper's two terms on top of a contrastive loss: ``GSARSL``'s, or ``extended.py``'s."""

    settings: GSASettings
    clouds: tuple[tuple[str, ...], tuple[str, ...]]  # views for the critic: benign, adversarial
    embedding: int  # width of what it reads
    pair: tuple[str, str]  # the clean views
    pair_weight: float  # in the loss
    clean_term: str  # the name of the pair's term, which is replaced if the loss has it already
    attack_in_train_mode = False  # the release attacks in eval mode, whatever the host does
    differences = (
        Differs("adaptive", True, False, "the release has ASAM, the text says SAM"),
        Differs("attack_factor", 2.0, 1.0, "the release drops the half of Eq. 17 in the attack"),
        Differs("rho", 1.0, 0.05, "the text does not say; 0.05 is SAM's own"),
    )
    short = {"benign_weight": 0.5, "rho": 0.05, "adaptive": False}
    ours = (
        "The critic learns from the training pass's embeddings; the release forwards again.",
        "The attack computes the adversarial half of the divergence alone: the other is fixed.",
        "Warm-up is linear; the release's first iteration of each warm-up epoch is at full rate.",
        "BatchNorm does not move in SAM's second pass; on AdvCL the release lets it.",
    )

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        s = self.settings
        self.flat = SAMWrapper(self.encoder, self.head, rho=s.rho, adaptive=s.adaptive)
        self.fooled = s.critic  # whether the adversary goes for the critic too
        if s.critic:
            self.critic = GlobalDivergenceCritic(self.embedding)
            self.critic_optimizer = optimizer("sgd", self.critic.parameters(), s.critic_rate, 1e-4)

    def optimizers(self) -> dict[str, tuple[Optimizer, float]]:
        s = self.settings
        return {"critic": (self.critic_optimizer, s.critic_rate)} if s.critic else {}

    def cloud(self, seen: Seen, names: tuple[str, ...]) -> Tensor:
        return unit(widen(torch.cat([seen[name] for name in names])))

    def height(self, seen: Seen, batch: Batch) -> Tensor:  # Eq. 18
        height = super().height(seen, batch)
        if not self.fooled:
            return height
        fake = self.cloud(seen, self.clouds[1])
        weight = self.settings.attack_factor * self.settings.global_weight
        return height + weight * self.critic.estimate(fake.detach(), fake)

    def search(self, views: Views, seen: Seen, batch: Batch) -> Views:
        if self.fooled and self.settings.order == "4-step":
            self.fooled = False
            found = views | super().search(views, seen, batch)
            self.fooled = True
            with torch.no_grad():
                now = self.see({name: found[name] for name in sum(self.clouds, ())})
            self.learn(now)
        return super().search(views, seen, batch)

    def learn(self, seen: Seen) -> None:  # Eq. 19
        loss = self.critic.loss(*(self.cloud(seen, names) for names in self.clouds))
        step_apart(self.critic_optimizer, loss)

    def terms(self, seen: Seen, views: Views, batch: Batch) -> Terms:  # Eq. 20
        s, terms = self.settings, super().terms(seen, views, batch)
        benign = self.contrast(*(seen[name] for name in self.pair))
        if s.sam:
            pair = {name: views[name] for name in self.pair}
            benign = self.flat(lambda: self.contrast(*self.see(pair).values()), loss=benign)
        terms[self.clean_term] = s.benign_weight * self.pair_weight * benign
        if s.critic:
            if s.order == "3-step":
                self.learn(seen)
            divergence = self.critic.estimate(*(self.cloud(seen, n) for n in self.clouds))
            terms["global"] = s.global_weight * divergence
        return terms


class GSARSL(GlobalAndSharp):
    """NT-Xent between p and the attacked q, and the two terms."""

    title, paper = "GSA-RSL", "Generalization bounds for robust contrastive learning"
    settings_type = GSASettings
    recipe = Recipe(500, 512, WarmupCosine(0.5, 10, floor=1e-8, per_epoch=True), "sgd", 1e-4)
    probe = "gsa"
    differences = (
        *GlobalAndSharp.differences,
        Differs("second_view", "weak", "strong", "the text draws both views from one pool"),
    )

    names, anchors = ("p", "q", "qd"), ("p",)
    branch_of = {"p": "clean", "q": "clean", "qd": "adversarial"}
    evaluated = ("adversarial", "clean")
    pair, clean_term, pair_weight = ("p", "q"), "benign", 1.0
    clouds, embedding = (("q",), ("qd",)), 128
    normalization = IMAGENET
    augmentation = {"blur_p": 0.5}
    contrast = MultiViewNTXentLoss(0.5, gather_distributed=True)

    def make_head(self, features: int, classes: int) -> nn.Module:
        return projection(features, features, self.embedding)

    def represent(self, images: Tensor, name: str) -> Tensor:
        return self.head(unit(self.encode(images)))  # features of length one, as in its probe

    def views(self, images: Tensor) -> Views:
        return {"p": self.strong(images), "q": self.second(images)}

    def adversarial(self, seen: Seen, batch: Batch) -> Terms:
        return {"adversarial": self.contrast(seen["p"], seen["qd"])}
