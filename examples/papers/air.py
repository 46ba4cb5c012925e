"""ACL-AIR and Dyn-AIR: what a view is near to must not depend on how it was drawn.

Xu, Zhang, Liu, Sugiyama and Kankanhalli 2023, "Enhancing adversarial contrastive learning via
adversarial invariant regularization", https://arxiv.org/abs/2305.00374. With x the image as it is
and p(z | z') how near z is to each z' of the batch, of views 1 and 2:

    min NT(t1, t2) + NT(t1 + δ1, t2 + δ2) + ½ SIR + ½ AIR
    SIR  KL( p(t2 | x) ‖ p(t1 | x) )
    AIR  KL( p(t2 + δ2 | t2) p(t2 + δ2 | x) ‖ p(t1 + δ1 | t1) p(t1 + δ1 | x) )

Dyn-AIR adds DynACL's schedule, without its slow encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from acl import ACL, ACLSettings
from advssl import evaluating
from advssl.losses import unit
from advssl.precision import without_autocast
from dynacl import DynamicSettings, strength
from harness.draws import Augmentation
from harness.method import Terms
from harness.settings import Settings, setting

Near: TypeAlias = Sequence[tuple[Tensor, Tensor]]  # embeddings (N, D), each with what it is near to


def divergence(one: Near, other: Near, temperature: float, form: str) -> Tensor:
    """How far the ``other`` view's neighbourhoods are from the ``one``'s; of several, of them all.

    In the form "kl" a neighbourhood is a distribution over the batch for each image: the mean over
    images of KL(other ‖ one), and of independent ones the sum. As "released" it is one distribution
    over the batch, of the similarities of matching pairs, and one of the logarithms is forgotten:
    what remains of SIR is near minus log N, whatever the embeddings.
    """
    logs = torch.stack([torch.stack([_near(*z, form) for z in side]) for side in (one, other)])
    p, q = (logs / temperature).log_softmax(-1)
    if form == "kl":
        return F.kl_div(p, q, reduction="sum", log_target=True) / p.shape[1]
    p, q = p.sum(0), q.sum(0)  # of a product
    return (q.exp() * (q - p.exp())).sum()


def _near(z: Tensor, of: Tensor, form: str) -> Tensor:
    """Cosines: (N, N) of all pairs, or (N,) of the matching ones."""
    with without_autocast(z.device):
        z, of = unit(z), unit(of)
        return z @ of.T if form == "kl" else (z * of).sum(1)


@dataclass(frozen=True, kw_only=True)
class AIRSettings(ACLSettings):
    kind: Literal["ds"] = setting("ds", "which views are attacked")
    form: Literal["released", "kl"] = setting(
        "released",
        "of the regularizers",
        paper="kl",
        why="what the release computes is no divergence and can fall below zero",
    )
    standard: float = setting(0.5, "weight of SIR")
    robust: float = setting(0.5, "weight of AIR")


class ACLAIR(ACL):
    title, paper = "ACL-AIR", "Xu et al. 2023"
    settings: AIRSettings
    settings_type: ClassVar[type[Settings]] = AIRSettings
    ours: ClassVar[tuple[str, ...]] = (
        "The form kl of the regularizers is our reading of the text: distributions over the batch "
        "for each image, the mean over images, and of a product the sum of the divergences.",
        "The probes are DynACL's; the release has rates and epochs of its own for each data set.",
    )
    weights = (1.0, 1.0)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        t1, t2 = self.strong(images), self.second(images)
        with evaluating(self):  # the regularizers are not attacked
            hard = self.attack((t1, t2), lambda *v: self.contrast(*self.embed(v, "adversarial")))

        of_clean, of_adversarial = self.weights
        z_hard, z = self.embed(hard, "adversarial"), self.embed((t1, t2), "clean")
        return {
            "clean": of_clean * self.contrast(*z),
            "adversarial": of_adversarial * self.contrast(*z_hard),
            **self.beside(images, z, z_hard),
        }

    def beside(self, images: Tensor, z: Any, z_hard: Any) -> Terms:
        """SIR and AIR."""
        s, x = self.settings, self.embed(images, "clean")
        (z1, z2), (hard1, hard2) = z, z_hard
        apart = partial(divergence, temperature=s.temperature, form=s.form)
        return {
            "SIR": s.standard * apart([(z1, x)], [(z2, x)]),
            "AIR": s.robust * apart([(hard1, z1), (hard1, x)], [(hard2, z2), (hard2, x)]),
        }


@dataclass(frozen=True, kw_only=True)
class DynAIRSettings(DynamicSettings, AIRSettings):
    pass


class DynAIR(ACLAIR):
    title = "DynACL-AIR"
    settings: DynAIRSettings
    settings_type = DynAIRSettings
    ours: ClassVar[tuple[str, ...]] = (
        *ACLAIR.ours,
        "A run of any length has 20 stages; the release's are of 50 epochs.",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.full = cast(Augmentation, self.strong)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        s = strength(epoch + 1, epochs, self.settings.stages)
        self.strong, moved = self.full.at(s), self.settings.shift * (1 - s)
        self.weights = 1 - moved, 1 + moved
