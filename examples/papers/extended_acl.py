"""The terms of GSA-RSL on top of ACL, DynACL, ACL-AIR and Dyn-AIR: the rows of the paper's Table 2.

The host's clean term is made flat, its other terms stay. What is new against the host's step says
gsa; of the host are ``weights``, ``pair`` and ``beside``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from acl import ACL, ACLSettings
from advssl import evaluating
from air import ACLAIR, AIRSettings, DynAIR, DynAIRSettings
from dynacl import DynACL, DynACLSettings
from gsa import GSA, GSASettings
from harness.method import Terms
from harness.settings import setting

SAM = "the text does not say; 0.05 is SAM's own"
STEPS = "The attack has 7 steps, as GSA-RSL's, where the host's has 5."


@dataclass(frozen=True, kw_only=True)
class ACLGSASettings(GSASettings, ACLSettings):
    kind: Literal["ds"] = setting("ds", "which views are attacked: Table 2's")
    benign_weight: float = setting(1.0, "λ_benign: ours, neither text nor release says", short=0.5)
    rho: float = setting(0.5, "how far SAM looks: ours", paper=0.05, why=SAM, short=0.05)


class GSAOnACL(ACL):
    """Mixed into a host, before it."""

    settings: ACLGSASettings

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gsa = GSA(self.width, self.settings, self.encoder, self.head)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        gsa, views = self.gsa, (self.strong(images), self.second(images))

        def height(*moved: Tensor, blind: bool = False) -> Tensor:  # of GSA-RSL, Eq. 18
            z = self.pair(moved, "adversarial")
            return self.contrast(*z) + (0 if blind else gsa.height(torch.cat(z)))

        with evaluating(self), torch.no_grad():
            if gsa.between:
                blind = self.attack(views, partial(height, blind=True))
                z, z_blind = self.pair(views, "clean"), self.pair(blind, "adversarial")
                gsa.learn(torch.cat(z), torch.cat(z_blind))
            hard = self.attack(views, height)

        z, z_hard = self.pair(views, "clean"), self.pair(hard, "adversarial")
        both, both_hard = torch.cat(z), torch.cat(z_hard)
        if not gsa.between:
            gsa.learn(both, both_hard)

        def benign() -> Tensor:
            return self.contrast(*self.pair(views, "clean", z))

        of_clean, of_adversarial = self.weights
        return {
            "clean": of_clean * gsa.flat(benign, self.contrast(*z)),
            "adversarial": of_adversarial * self.contrast(*z_hard),
            **self.beside(images, z, z_hard),
            **gsa.aligned(both, both_hard),
        }

    def optimizers(self) -> dict[str, tuple[Optimizer, float]]:
        return self.gsa.own


class ACLGSA(GSAOnACL):
    title, paper = "ACL + GSA", "GSA-RSL, on top of Jiang et al. 2020"
    settings: ACLGSASettings
    settings_type = ACLGSASettings
    ours = (*ACL.ours, *GSA.ours, STEPS)


@dataclass(frozen=True, kw_only=True)
class DynACLGSASettings(ACLGSASettings, DynACLSettings):
    pass


class DynACLGSA(GSAOnACL, DynACL):
    """SAM moves the encoder that learns; what the slow one said stays."""

    title, paper = "DynACL + GSA", "GSA-RSL, on top of Luo et al. 2023"
    settings: DynACLGSASettings
    settings_type = DynACLGSASettings
    ours = (*DynACL.ours, *GSA.ours, STEPS)


@dataclass(frozen=True, kw_only=True)
class ACLAIRGSASettings(ACLGSASettings, AIRSettings):
    pass


class ACLAIRGSA(GSAOnACL, ACLAIR):
    title, paper = "ACL-AIR + GSA", "GSA-RSL, on top of Xu et al. 2023"
    settings: ACLAIRGSASettings
    settings_type = ACLAIRGSASettings
    ours = (*ACLAIR.ours, *GSA.ours, STEPS)


@dataclass(frozen=True, kw_only=True)
class DynAIRGSASettings(ACLGSASettings, DynAIRSettings):
    pass


class DynAIRGSA(GSAOnACL, DynAIR):
    title, paper = "DynACL-AIR + GSA", "GSA-RSL, on top of Xu et al. 2023"
    settings: DynAIRGSASettings
    settings_type = DynAIRGSASettings
    ours = (*DynAIR.ours, *GSA.ours, STEPS)
