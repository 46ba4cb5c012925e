"""DeACL: a plain self-supervised teacher first, then a student that withstands attacks.

Zhang, Zhang, Zhang, Niu, Feng, Yoo and Kweon 2022, "Decoupled adversarial contrastive learning for
self-supervised adversarial robustness", https://arxiv.org/abs/2207.10899. With a finished, frozen
encoder f, the student g that starts as f, and one weakly augmented image x:

    x' = the view of x at which cos(g(x'), f(x)) is lowest
    min over g of  - cos(g(x), f(x)) - γ cos(g(x'), g(x))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import cosine_similarity

from advssl import evaluating
from harness.method import Terms
from harness.schedules import Recipe, WarmupCosine
from harness.settings import setting
from harness.teachers import Taught, TaughtSettings


@dataclass(frozen=True, kw_only=True)
class DeACLSettings(TaughtSettings):
    robust_weight: float = setting(2.0, "γ, of the student's own agreement")
    scratch: bool = setting(False, "the student starts at random, not as its teacher")


class DeACL(Taught):
    title, paper = "DeACL", "Zhang et al. 2022"
    settings: DeACLSettings
    settings_type = DeACLSettings
    recipe = Recipe(100, 256, WarmupCosine(0.5, 10, 0.003, restarts=True), "sgd", 5e-4)
    probe = "dynacl"
    ours = (
        "The teacher is this chain's SimCLR, which reads images in [0, 1]; the release's is "
        "solo-learn's, whose CIFAR stem pads by 2 and whose input is normalised.",
        "No classifier is trained beside the student: in the release it gives it no gradient.",
        "Finetuning is DynACL's; the release's has a rate of 0.1 for a head on clean images, and "
        "TRADES at 0.01 for one on attacked images and for the whole network.",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, clamp_start=False)

    def start(self) -> None:
        if not self.settings.scratch:
            super().start()

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        x = self.weak(images)
        target = self.target(x)
        with evaluating(self):
            hard = self.attack(x, lambda v: -cosine_similarity(self.encode(v), target))
        z, z_hard = self.encode((x, hard))  # one forward, and so one set of batch statistics
        return {
            "distilled": -cosine_similarity(z, target).mean(),
            "robust": -self.settings.robust_weight * cosine_similarity(z_hard, z).mean(),
        }
