"""The terms of GSA-RSL on top of AdvCL, in two readings: the paper's Table 1.

What is new against the host's step says gsa. On top of ACL and its followers, the paper's Table 2,
they are in ``extended_acl.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from advcl import AdvCL, AdvCLSettings, Labels
from advssl import evaluating
from extended_acl import ACLGSA as ACLGSA
from extended_acl import SAM, STEPS
from gsa import GSA, GSASettings
from gsa_rsl import GSARSL
from harness.method import IMAGENET, Terms, total
from harness.settings import setting


@dataclass(frozen=True, kw_only=True)
class OnAdvCLSettings(GSASettings, AdvCLSettings):
    views: Literal["xd,t1,t2,high"] = setting("xd,t1,t2,high", "Table 4's best alone")
    benign_weight: float = setting(0.5, "λ_benign: the release's, the text does not say")
    global_weight: float = setting(0.3, "λ_global: the release's, the text does not say")
    rho: float = setting(0.5, "how far SAM looks", paper=0.05, why=SAM, short=0.05)
    critic_rate: float = setting(0.5, "peak rate of the critic's SGD, on the encoder's schedule")


class GSAOnAdvCL(AdvCL):
    """AdvCL as its own authors train it, and the terms."""

    title, paper = "AdvCL of its authors + GSA", "GSA-RSL, on top of Fan et al. 2021"
    settings: OnAdvCLSettings
    settings_type = OnAdvCLSettings
    ours = (
        *AdvCL.ours[1:],
        *GSA.ours,
        "The attack is in eval mode, as in GSA-RSL's release.",
        STEPS,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gsa = GSA(128, self.settings, self.encoder, self.head)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        scale, gsa = self.settings.loss_scale, self.gsa
        x, t1, t2 = self.weak(images), self.strong(images), self.second(images)
        high = self.high(x)
        with evaluating(self), torch.no_grad():
            fixed = [self.embed(view, "normal") for view in (t1, t2, high)]

            def height(*views: Tensor, blind: bool = False) -> Tensor:  # of GSA-RSL, Eq. 18
                z = self.embed(views[0], "pgd")
                contrastive = scale * self.contrast(z, *fixed)
                climbed = total({"contrastive": contrastive, **self.pseudo(views[-1], index)})
                return climbed + (0 if blind else gsa.height(z))

            start = (x, x) if self.clusters else (x,)
            if gsa.between:
                blind = self.attack(start, partial(height, blind=True))[0]
                gsa.learn(self.embed(x, "normal"), self.embed(blind, "pgd"))
            found = self.attack(start, height)
            hard, hard_ce = found[0], found[-1]

        def pair() -> tuple[Tensor, Tensor]:
            return self.embed(t1, "normal"), self.embed(t2, "normal")

        z1, z2 = pair()
        z_x = self.embed(x, "normal") if gsa.critic else z1  # a forward for the critic alone
        z_hard, z_high = self.embed(hard, "pgd"), self.embed(high, "normal")
        if not gsa.between:
            gsa.learn(z_x, z_hard)
        return {
            "contrastive": scale * self.contrast(z_hard, z1, z2, z_high),  # of AdvCL, Eq. 9
            **self.pseudo(hard_ce, index),  # of AdvCL, Eq. 10
            "benign": scale * gsa.flat(lambda: self.contrast(*pair()), self.contrast(z1, z2)),
            **gsa.aligned(z_x, z_hard),
        }

    def optimizers(self) -> dict[str, tuple[Optimizer, float]]:
        return self.gsa.own


@dataclass(frozen=True, kw_only=True)
class AdvCLGSASettings(OnAdvCLSettings):
    supervision: Labels = setting("none", "pseudo-labels: the release has none here")


class AdvCLGSA(GSAOnAdvCL):
    """The AdvCL of GSA-RSL's tables, as GSA-RSL's authors train it, and the terms."""

    title = "AdvCL + GSA"
    settings: AdvCLGSASettings
    settings_type = AdvCLGSASettings
    recipe, probe, pixels, strong_as = GSARSL.recipe, "gsa", IMAGENET, GSARSL.strong_as
    released_network = GSARSL.released_network
    head_as = {"of_unit": True}  # and no BatchNorm
    ours = (AdvCL.ours[1], *GSARSL.ours)
