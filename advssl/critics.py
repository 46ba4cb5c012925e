"""Critics: two clouds of embeddings to how far apart they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from advssl.precision import WideLinear, without_autocast
from advssl.types import (
    Embeddings,
    PerExample,
    Scalar,
    check_device,
    described,
    is_matrix,
    several,
    whole,
)

# The logits (B,) of the benign and then (B',) of the adversarial embeddings, to a lower bound of
# their divergence.
Bound: TypeAlias = Callable[[PerExample, PerExample], Scalar]


class GlobalDivergenceCritic(nn.Module):
    r"""A small network that estimates D(adversarial ‖ benign) between two clouds of embeddings.

    It is GSA-RSL's discriminator. ``estimate`` is a variational lower bound of the divergence,
    tight at the best critic. The adversary adds it to what it increases and the encoder to what it
    decreases (Eqs. 18 and 20); ``loss`` trains the critic to tighten it (Eq. 19). With p the
    density of the adversarial embeddings and q that of the benign ones::

        "js"       Jensen-Shannon, at most log 2 (Eq. 17)   ½ (E_q log σ(t) + E_p log σ(-t)) + log 2
        "kl"       ∫ p log(p/q)                             E_p log r - E_q r + 1
        "pearson"  ∫ (p/q - 1)² q, D_v of Theorem 4.1       2 E_p r - E_q r² - 1
        "tv"       ½ ∫ |p - q|, half of D_u, Theorem 4.7    E_q σ(t) - E_p σ(t)

    t is the critic's logit, positive for what looks benign, and r = 1 + elu(-t) its ratio p/q,
    which grows no faster than linearly. Computed in float32 (float64 stays), also under autocast.

    Any other divergence is a function ``bound(benign, adversarial) -> scalar`` of the logits (B,)
    of q's embeddings and then (B',) of p's: differentiable, at most D(p ‖ q) for every critic, and
    equal to it for the best. An f-divergence with conjugate f* is E_p g(t) - E_q f*(g(t)), with a g
    that maps every logit into the domain of f*. Under DDP each rank bounds its own clouds; a
    difference of means, as all of these are, then averages to that of the whole batch. The function
    is no part of ``state_dict``: what loads it is built with the same one.

    Warning:
        Where benign and adversarial images go through BatchNorm branches of their own, a critic can
        tell the branches apart instead of the images, and the encoder then matches branches. Before
        trusting the term, push the *same* clean images through both branches and look at
        ``estimate`` on the two clouds: it should be near zero.

    Note:
        Keep the critic out of the module that DDP wraps, or add ``loss`` to the same backward:
        ``estimate`` gives the critic's parameters no gradient. Call ``estimate`` after the critic's
        optimizer has stepped, not before: a step changes parameters that its graph needs.

    Args:
        in_features: D, the width of the embeddings. GSA-RSL normalises them to length one first.
        hidden_features: widths of hidden layers, ReLU between. () is one linear layer, the paper's.
        divergence: "js" (the paper's), "kl", "pearson", "tv", or a function as above.

    Reference: GSA-RSL, Eqs. 17 to 20; Nowozin et al. 2016, https://arxiv.org/abs/1606.00709

    Example:
        >>> critic = GlobalDivergenceCritic(128)
        >>> z, z_adv = torch.randn(2, 64, 128)
        >>> critic.loss(z, z_adv).backward()          # for the critic's own optimizer
        >>> term = 0.1 * critic.estimate(z, z_adv)    # for the encoder's loss
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int] = (),
        divergence: Literal["js", "kl", "pearson", "tv"] | Bound = "js",
    ) -> None:
        super().__init__()
        if not callable(divergence) and divergence not in list(DIVERGENCES):
            raise ValueError(
                f"divergence must be one of {sorted(DIVERGENCES)} or a function of the logits of "
                f"benign and of adversarial embeddings, got {divergence!r}"
            )
        self.in_features = whole("in_features", in_features, 1)
        given = several("hidden_features", hidden_features, "a sequence of widths")
        hidden = [whole("hidden_features", width, 1) for width in given]
        widths = [self.in_features, *hidden, 1]
        self.divergence = divergence
        self.layers = nn.ModuleList(WideLinear(i, o) for i, o in pairwise(widths))

    def forward(self, z: Embeddings) -> PerExample:
        """The (B,) logits of ``z`` (B, D): positive for what looks benign."""
        self._check("z", z)
        return self._logits(z, own_gradient=True)

    def estimate(self, benign: Embeddings, adversarial: Embeddings) -> Scalar:
        """The lower bound of D(adversarial ‖ benign), in nats for "js" and "kl".

        Differentiable in both embeddings, (B, D) and (B', D); the critic's own parameters get no
        gradient.
        """
        return self._bound(benign, adversarial, own_gradient=False)

    def loss(self, benign: Embeddings, adversarial: Embeddings) -> Scalar:
        """What the critic's own optimizer minimises: minus the bound, the embeddings detached."""
        return -self._bound(benign, adversarial, own_gradient=True)

    def extra_repr(self) -> str:
        return f"divergence={self.divergence!r}"

    def _bound(self, benign: Tensor, adversarial: Tensor, *, own_gradient: bool) -> Scalar:
        """Differentiable in the critic's own parameters, or else in the embeddings."""
        for name, z in (("benign", benign), ("adversarial", adversarial)):
            self._check(name, z)
        clouds = [z.detach() if own_gradient else z for z in (benign, adversarial)]
        named = self.divergence
        bound_of = named if callable(named) else DIVERGENCES[named]
        with without_autocast(benign.device):
            bound = bound_of(*(self._logits(z, own_gradient=own_gradient) for z in clouds))
        if not isinstance(bound, Tensor) or bound.ndim or not bound.is_floating_point():
            raise ValueError(
                "a divergence must return one floating point number for both clouds, got "
                f"{described(bound)}; take the mean over each of them"
            )
        return bound

    def _check(self, name: str, z: Embeddings) -> None:
        fits = is_matrix(z) and len(z) > 0
        if not fits or z.shape[1] != self.in_features:
            raise ValueError(
                f"the critic reads floating point embeddings of shape (B, {self.in_features}), "
                f"got {name} {described(z)}; set in_features to their width"
            )
        check_device(name, z, next(self.parameters()).device)

    def _logits(self, z: Embeddings, *, own_gradient: bool) -> PerExample:
        with without_autocast(z.device):
            for depth, layer in enumerate(self.layers):
                z = layer(z if depth == 0 else z.relu(), own_gradient)
            return z.squeeze(1)


def _jensen_shannon(benign: PerExample, adversarial: PerExample) -> Scalar:
    return (F.logsigmoid(benign).mean() + F.logsigmoid(-adversarial).mean()) / 2 + log(2)


def _kullback_leibler(benign: PerExample, adversarial: PerExample) -> Scalar:
    # log(1 + elu(-t)) written so that it neither overflows nor takes the log of an underflow.
    log_ratio = (-adversarial).relu().log1p() - adversarial.relu()
    return log_ratio.mean() - _ratio(benign).mean() + 1


def _pearson(benign: PerExample, adversarial: PerExample) -> Scalar:
    return 2 * _ratio(adversarial).mean() - _ratio(benign).square().mean() - 1


def _total_variation(benign: PerExample, adversarial: PerExample) -> Scalar:
    return benign.sigmoid().mean() - adversarial.sigmoid().mean()


def _ratio(logits: PerExample) -> PerExample:
    return 1 + F.elu(-logits)


DIVERGENCES: dict[str, Bound] = {
    "js": _jensen_shannon,
    "kl": _kullback_leibler,
    "pearson": _pearson,
    "tv": _total_variation,
}
