"""The two terms of GSA-RSL, for any contrastive step: flat benign loss, globally aligned clouds.

"Generalization bounds for robust contrastive learning", Eqs. 17 to 20. A step that adds them says
``height`` in its attack, ``learn`` after it, and ``flat`` and ``aligned`` among its terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from advssl import GlobalDivergenceCritic, SAMWrapper
from advssl.losses import unit
from harness.method import Terms
from harness.optimizers import optimizer, step_apart
from harness.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class GSASettings(Settings):
    steps: int = setting(7, "of the attack")
    sam: bool = setting(True, "the benign loss at the worst nearby weights")
    critic: bool = setting(True, "benign and adversarial embeddings are aligned as clouds")
    order: Literal["3-step", "4-step"] = setting(
        "3-step", "4-step: the critic learns between two attacks"
    )
    benign_weight: float = setting(2.0, "λ_benign: the release's, the text does not say", short=0.5)
    global_weight: float = setting(0.1, "λ_global: the release's, the text does not say")
    attack_factor: float = setting(
        2.0,
        "on λ_global, for the adversary",
        paper=1.0,
        why="the release drops the half of Eq. 17 in the attack",
    )
    rho: float = setting(
        1.0,
        "how far SAM looks",
        paper=0.05,
        why="the text does not say; 0.05 is SAM's own",
        short=0.05,
    )
    adaptive: bool = setting(
        True,
        "ASAM: in proportion to each weight",
        paper=False,
        why="the release has ASAM, the text says SAM",
        short=False,
    )
    critic_rate: float = setting(0.2, "peak rate of the critic's SGD, on the encoder's schedule")


class GSA(nn.Module):
    """The terms, with their own critic. ``moved``: the modules whose weights are made flat."""

    ours = (
        "D_loss is the mean with the half of Eq. 17, as released, not the sum of Eq. 19, which is "
        "2B times as large; Eq. 20's minus before the benign term is a misprint.",
        "The critic learns from the training pass's embeddings; the release forwards again.",
        "The attack computes the adversarial half of the divergence alone: the other is fixed.",
        "BatchNorm does not move in SAM's second pass; on AdvCL the release lets it.",
        "Both BatchNorm branches learn; in the release SAM never updates the adversarial one's "
        "weight and bias where zero_grad makes None, from PyTorch 2.0 on.",
    )

    def __init__(self, width: int, settings: GSASettings, *moved: nn.Module) -> None:
        super().__init__()
        s = self.settings = settings
        self.sam = SAMWrapper(*moved, rho=s.rho, adaptive=s.adaptive) if s.sam else None
        self.critic = GlobalDivergenceCritic(width) if s.critic else None
        self.own: dict[str, tuple[Optimizer, float]] = {}  # its optimizer, with the peak rate
        if self.critic is not None:
            critic = optimizer("sgd", self.critic.parameters(), s.critic_rate, 1e-4)
            self.own["critic"] = (critic, s.critic_rate)
        self.between = s.critic and s.order == "4-step"  # whether it learns between two attacks

    def height(self, z_adv: Tensor) -> Tensor | float:
        """What the adversary climbs beside the host's loss: Eq. 18's second term."""
        if self.critic is None:
            return 0.0
        fake = cloud(z_adv)  # the benign half is fixed: any stand-in without gradient does
        weight = self.settings.attack_factor * self.settings.global_weight
        return weight * self.critic.estimate(fake.detach(), fake)

    def learn(self, z: Tensor, z_adv: Tensor) -> None:
        """A step of the critic's own optimizer: Eq. 19."""
        if self.critic is not None:
            with torch.enable_grad():  # between two attacks there is none
                step_apart(self.own["critic"][0], self.critic.loss(cloud(z), cloud(z_adv)))

    def flat(self, again: Callable[[], Tensor], benign: Tensor) -> Tensor:
        """λ_benign · the benign loss at the worst nearby weights: Eq. 20's second term."""
        at_worst = benign if self.sam is None else self.sam(again, loss=benign)
        return self.settings.benign_weight * at_worst

    def aligned(self, z: Tensor, z_adv: Tensor) -> Terms:
        """λ_global · how far apart the critic finds the clouds: Eq. 20's third term."""
        if self.critic is None:
            return {}
        divergence = self.critic.estimate(cloud(z), cloud(z_adv))
        return {"global": self.settings.global_weight * divergence}


def cloud(z: Tensor) -> Tensor:
    return unit(z)
