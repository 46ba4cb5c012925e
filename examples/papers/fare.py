"""FARE: a pretrained encoder that keeps its embeddings under attack, without labels.

Schlarmann, Singh, Croce and Hein 2024, "Robust CLIP: unsupervised adversarial fine-tuning of
vision embeddings for robust large vision-language models", https://arxiv.org/abs/2402.12336. With
the pretrained encoder φ₀, frozen, and φ that starts as it:

    min over φ of  E max over δ  ‖φ(x + δ) - φ₀(x)‖²

What reads φ₀'s embeddings, a linear head or a text encoder, goes on with φ's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from advssl import evaluating
from harness.method import Terms
from harness.schedules import Recipe, WarmupCosine
from harness.settings import setting
from harness.teachers import Taught, TaughtSettings


@dataclass(frozen=True, kw_only=True)
class FARESettings(TaughtSettings):
    radius: float = setting(4 / 255, "of the attack: ℓ∞, of pixels in [0, 1]; 2/255 for FARE²")
    steps: int = setting(10, "of the attack")


class FARE(Taught):
    title, paper = "FARE", "Schlarmann et al. 2024"
    settings: FARESettings
    settings_type = FARESettings
    # Two epochs of ImageNet.
    recipe = Recipe(2, 128, WarmupCosine(1e-5, 0.14, restarts=True), "adam", 1e-4)
    ours = (
        "The attack is PGD; the release's adds a momentum of 0.9 to the signs of its gradients.",
        "Images are shifted and mirrored: a small training set is seen many times.",
        "BatchNorm, which CLIP's transformers do not have, keeps the original's statistics.",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, clamp_start=False)

    def train(self, mode: bool = True) -> FARE:
        super().train(mode)
        self.encoder.eval()  # batch statistics would move clean embeddings away from the original's
        return self

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        x = self.weak(images)
        target = self.target(x)

        def distance(view: Tensor) -> Tensor:
            return (self.encode(view) - target).square().sum(dim=1)

        with evaluating(self):
            hard = self.attack(x, distance)
        return {"distance": distance(hard).mean()}
