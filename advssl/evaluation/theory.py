"""Theory: the terms of GSA-RSL's bounds on a probe's adversarial loss, each as a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import Ball, Linf, check_ball
from advssl.critics import GlobalDivergenceCritic
from advssl.evaluation.attacks import PGD, Attack
from advssl.evaluation.batches import check_batch, differentiable
from advssl.evaluation.features import check_finite
from advssl.evaluation.logits import borrowed, check_module, device_of, logits_of, undisturbed
from advssl.evaluation.search import check_attack
from advssl.losses import unit
from advssl.modes import copied, learning, random_state_kept
from advssl.precision import product
from advssl.sharpness import SAMWrapper
from advssl.types import (
    Closure,
    Embeddings,
    Images,
    Labels,
    PairMask,
    PerExample,
    check_embeddings,
    described,
    embeddings_of,
    number,
    positive,
    seed_of,
)

_Divergence: TypeAlias = Literal["js", "kl", "pearson", "tv"]

_TOLD: tuple[_Divergence, ...] = ("js", "pearson", "tv")
_CRITIC_STEPS = 200
_CRITIC_WIDTH = 64


class Told(NamedTuple):
    """What critics make of two clouds, on points that they did not learn from.

    Attributes:
        divergence: the lower bound of D(adversarial ‖ benign); sampling can put it below zero.
        accuracy: the share of points given to their own cloud; 0.5 is guessing.
    """

    divergence: float
    accuracy: float


@dataclass(frozen=True)
class RobustBounds:
    r"""The two bounds that Theorem 4.9 mixes, and all that stands in them.

        first    √( L_adv + A + (1/τ + e^{1/τ}) D_u )                    Theorem 4.7, Eq. 14
        second   √( L_sharp + A + B ) · ( 1 + √D_v )                     Theorem 4.5, Eq. 13

    with D_u = 2 TV, D_v Pearson's χ² and A = log 1/min π - log β. What has no constant in the paper
    is left out: O(1/√K) and O(1/β) of A, O(log(N + T)) of B. Of their mixtures for 0 ≤ λ ≤ 1 the
    smaller of the two is the least.

    Attributes:
        benign: InfoNCE of benign pairs, Eq. 3.
        adversarial: L_adv, InfoNCE with the positive at its worst in the ball, Eq. 15.
        sharp: L_sharp, ``benign`` at the weights that SAM's ascent step finds at distance ρ.
        js: Jensen-Shannon divergence of attacked from benign embeddings, Eq. 17.
        pearson: Pearson's χ², D_v.
        tv: total variation, half of D_u.
        accuracy: of the critic of ``js``.
        branch_accuracy: of one between the same *clean* images through both encoders; None where
            there is one. What it has above 0.5 is the BatchNorm branch and no perturbation.
        complexity: B.
        prior: log 1/min π, of balanced classes the logarithm of their number.
        log_beta: log β.
        temperature: τ.
        measured: E √CE of the classifier's logits under attack, Eq. 7; what the theorem bounds is
            the least that any weights reach.
        trivial: √log M, which zero weights reach under every attack.
    """

    benign: float
    adversarial: float
    sharp: float
    js: float
    pearson: float
    tv: float
    accuracy: float
    branch_accuracy: float | None
    complexity: float
    prior: float
    log_beta: float
    temperature: float
    measured: float
    trivial: float

    @property
    def first(self) -> float:
        """Of Theorem 4.7: adversarial InfoNCE and total variation."""
        slope = 1 / self.temperature + math.exp(1 / self.temperature)
        return self._root(self.adversarial + 2 * slope * max(0.0, self.tv))

    @property
    def second(self) -> float:
        """Of Theorem 4.5: sharp InfoNCE, B and Pearson's χ²."""
        return self._root(self.sharp + self.complexity) * self._spread

    @property
    def second_without_complexity(self) -> float:
        """The same without B: no bound, but the part that training moves."""
        return self._root(self.sharp) * self._spread

    @property
    def vacuous(self) -> tuple[str, ...]:
        """Which bounds say no more than zero weights do."""
        return tuple(name for name in ("first", "second") if getattr(self, name) >= self.trivial)

    @property
    def _spread(self) -> float:
        return 1 + math.sqrt(max(0.0, self.pearson))

    def _root(self, height: float) -> float:
        return math.sqrt(max(0.0, height + self.prior - self.log_beta))

    def __str__(self) -> str:
        vacuous = {
            name: ", vacuous" if name in self.vacuous else "" for name in ("first", "second")
        }
        lines = [
            f"adversarial loss of the probe  {self.measured:.3g}; zero weights: {self.trivial:.3g}",
            f"first bound                    {self.first:.3g}{vacuous['first']}: "
            f"adversarial InfoNCE {self.adversarial:.3g}, total variation {self.tv:.3g}",
            f"second bound                   {self.second:.3g}{vacuous['second']}: "
            f"InfoNCE {self.benign:.3g}, {self.sharp:.3g} at the worst nearby weights, "
            f"Pearson {self.pearson:.3g}, B {self.complexity:.3g}",
            f"without B                      {self.second_without_complexity:.3g}, no bound",
            f"critic                         Jensen-Shannon {self.js:.3g} of at most "
            f"{math.log(2):.3g}; right on {100 * self.accuracy:.0f} %",
        ]
        if self.branch_accuracy is not None:
            branch = 100 * (self.branch_accuracy - 0.5)
            lines.append(
                f"of its {100 * (self.accuracy - 0.5):.0f} points above guessing, {branch:.0f} are "
                "told from the BatchNorm branch of clean images alone"
            )
        return "\n".join(lines)


def info_nce(
    anchors: Embeddings,
    positives: Embeddings,
    others: Embeddings,
    negatives: PairMask,
    *,
    temperature: float = 0.5,
    beta: float | None = None,
) -> PerExample:
    r"""GSA-RSL's InfoNCE, Eqs. 2 to 4.

        -log [ exp(z·z⁺/τ) / ( exp(z·z⁺/τ) + β/K Σ_k exp(z·z_k⁻/τ) ) ]

    Args:
        anchors: z (B, D), of any length: cosines, which the theorems take for granted.
        positives: z⁺ (B, D).
        others: (N, D), from which negatives are taken.
        negatives: (B, N), bool: which are whose, at least one of each; K is how many.
        temperature: τ.
        beta: β; None is K, which is the usual loss.

    Returns:
        (B,) in nats.
    """
    check_embeddings(anchors=anchors, positives=positives)
    check_embeddings(others=others)
    if others.shape[1] != anchors.shape[1]:
        raise ValueError(
            f"others must have the anchors' {anchors.shape[1]} columns, got {described(others)}"
        )
    masks = isinstance(negatives, Tensor) and negatives.dtype == torch.bool
    fits = masks and negatives.shape == (len(anchors), len(others))
    if not fits or not negatives.any(dim=1).all():
        raise ValueError(
            f"negatives must be a ({len(anchors)}, {len(others)}) bool mask with one at least in "
            f"each row, got {described(negatives)}"
        )
    temperature = positive("temperature", temperature)
    beta = None if beta is None else positive("beta", beta)
    z, z_pos, z_all = unit(anchors), unit(positives), unit(others)
    pull = (z * z_pos).sum(dim=1) / temperature
    push = product(z, z_all.mT) / temperature
    apart = push.masked_fill(~negatives, -torch.inf).logsumexp(dim=1)
    weight = 1.0 if beta is None else beta / negatives.sum(dim=1)
    return torch.logaddexp(pull, apart + torch.as_tensor(weight, device=z.device).log()) - pull


def at_worst_weights(model: nn.Module, closure: Closure, rho: float) -> float:
    """The closure's loss at θ + ρ g / ‖g‖: SAM's estimate of its maximum at that distance.

    Under ``torch.distributed`` g is a mean over ranks, and every rank must make the call.
    """
    return float(SAMWrapper(model, rho=rho)(closure).detach())


def told_apart(
    benign: Embeddings,
    adversarial: Embeddings,
    divergence: _Divergence = "js",
    *,
    seed: int = 0,
) -> Told:
    """D(adversarial ‖ benign) by critics that each learn from one half and tell the other.

    The critics are :class:`~advssl.GlobalDivergenceCritic` with one hidden layer, on coordinates
    that have mean 0 and deviation 1 in their half, which changes no divergence.

    Args:
        benign: (N, D), floating point.
        adversarial: (N, D); row i is of the same image, so that halves share none.
        divergence: see the critic.
        seed: of the halves and of the critics; the caller's random state stays.

    Raises:
        ValueError: on fewer than four images, and features that are not finite.
    """
    check_embeddings(benign=benign, adversarial=adversarial)
    if len(benign) < 4:
        raise ValueError(f"two halves to learn from need four images, got {len(benign)}")
    device = benign.device
    with undisturbed(device), random_state_kept(device):
        torch.manual_seed(seed_of(seed))
        z = torch.stack([benign, adversarial]).detach().double()  # float32 has no 1 / 1e-39
        check_finite(z)
        half = torch.randperm(len(benign), device="cpu").to(device).chunk(2)
        found = [
            _crossed(z[:, here], z[:, there], divergence) for here, there in (half, half[::-1])
        ]
    return Told(*(sum(column) / 2 for column in zip(*found, strict=True)))


def _crossed(z: Tensor, unseen: Tensor, divergence: _Divergence) -> tuple[float, float]:
    spread, middle = torch.std_mean(z, dim=(0, 1))
    scale = torch.where(spread > 0, 1 / spread, 0)
    z, unseen = (((cloud - middle) * scale).float() for cloud in (z, unseen))
    critic = GlobalDivergenceCritic(z.shape[2], (_CRITIC_WIDTH,), divergence).to(z.device)
    optimizer = torch.optim.AdamW(critic.parameters(), 5e-3, weight_decay=0.1)
    for _ in range(_CRITIC_STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(critic.loss(*z))
        optimizer.step()
    with torch.no_grad():
        benign, adversarial = (critic(cloud) for cloud in unseen)
        right = torch.cat([benign > 0, adversarial < 0]).float().mean()
        return float(critic.estimate(*unseen)), float(right)


class MeanClassifier(nn.Module):
    """A linear layer of class means on an encoder: what proofs of contrastive learning classify by.

    Args:
        encoder: images in [0, 1] to features (B, D); its embedding is at length 1.
        images: (N, C, H, W), of whose embeddings the means are.
        labels: (N,), integer, from 0 on.
        temperature: τ, by which logits are divided.

    Reference: Arora et al. 2019, https://arxiv.org/abs/1902.09229
    """

    means: Tensor

    def __init__(
        self, encoder: nn.Module, images: Images, labels: Labels, *, temperature: float = 0.5
    ) -> None:
        super().__init__()
        check_module("encoder", encoder)
        check_batch(images, labels)
        self.encoder, self.temperature = encoder, positive("temperature", temperature)
        device = device_of(encoder, images)
        with borrowed(encoder, device, 0), torch.no_grad():
            z = _embedding(encoder)(images.to(device))
        member = F.one_hot(labels.long()).to(z)
        counts = member.sum(dim=0).clamp_min(1)
        self.register_buffer("means", (member.T @ z) / counts[:, None])

    def forward(self, images: Images) -> Tensor:
        return _embedding(self.encoder)(images) @ self.means.T / self.temperature


@torch.inference_mode(False)
def robust_bounds(
    encoder: nn.Module,
    classifier: nn.Module | None,
    images: Images,
    labels: Labels,
    *,
    adversarial_encoder: nn.Module | None = None,
    ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
    attack: Attack | None = None,
    temperature: float = 0.5,
    rho: float = 0.05,
    delta: float = 0.05,
    seed: int = 0,
) -> RobustBounds:
    """GSA-RSL's Theorem 4.9 on an encoder and images, beside the loss that it bounds.

    A positive pair is two images of one class, as in the theorem; the negatives of a pair are all
    other images, K = β = N - 2. The adversary is PGD-10 on InfoNCE, and maxima over attacks, nearby
    weights and critics are those found: each term is a lower estimate of the theorem's. Under
    ``torch.distributed`` every rank must make the call.

    Note:
        As printed A(K, β) lacks log 1/min π: an encoder that maps each of M balanced classes to a
        point has InfoNCE - log β = -log M there, and the bounds are roots of negative numbers. With
        that term what the theorem needs holds, L_sup ≤ L_un + A (for balanced classes it is
        Theorem 4.2 of Wang et al. 2022, https://arxiv.org/abs/2203.13457).

    Args:
        encoder: images in [0, 1] to features (B, D), left as it was; its embedding is at length 1.
        classifier: images in [0, 1] to logits, such as a probe on that encoder; None is its
            :class:`MeanClassifier` of these images.
        images: (N, C, H, W), float32, in one batch that fits a training step: S in the theorem.
        labels: (N,), integer; at least two images of each class.
        adversarial_encoder: that for attacked images, where these have a BatchNorm branch of their
            own, see :func:`~advssl.keep_branch`.
        ball: where attacked images lie.
        attack: on the classifier; None is PGD-20 in the ball.
        temperature: τ.
        rho: ρ, a distance over all weights of the encoder together.
        delta: δ, with which probability the second bound fails.
        seed: of pairs, attacks and critics.

    Raises:
        ValueError: on a class of one image, on images, labels, an encoder or a classifier that make
            no sense, and on a δ that is no probability.

    Reference: "Generalization bounds for robust contrastive learning" (GSA-RSL), Section 4
    """
    check_batch(images, labels)
    check_module("encoder", encoder)
    for name, module in (("classifier", classifier), ("adversarial_encoder", adversarial_encoder)):
        if module is not None:
            check_module(name, module)
    check_ball("ball", ball)
    if attack is not None:
        check_attack(attack)
    temperature, rho = positive("temperature", temperature), positive("rho", rho)
    delta, seed = number("delta", delta), seed_of(seed)
    if not 0 < delta < 1:
        raise ValueError(f"delta must be a probability between 0 and 1, got {delta}")
    device, labels = device_of(encoder, images), differentiable(labels)
    draw = Generator("cpu").manual_seed(seed)
    partner = _partners(labels.cpu(), draw).to(device)
    counts = torch.unique(labels, return_counts=True)[1]
    own = copied(encoder).float().eval()
    learning(own, True)
    other = own if adversarial_encoder is None else copied(adversarial_encoder).float().eval()
    size = len(images)
    negatives = ~torch.eye(size, dtype=torch.bool, device=device)
    negatives[torch.arange(size, device=device), partner] = False

    with undisturbed(device), random_state_kept(device):
        x = images.detach().clone().to(device)
        embed, embed_hard = _embedding(own), _embedding(other)

        def loss() -> Tensor:
            z = embed(x)
            return info_nce(z, z[partner], z, negatives, temperature=temperature).mean()

        with torch.no_grad():
            benign, z = float(loss()), embed(x)
            z_twice = embed_hard(x)

        def height(view: Images) -> PerExample:  # Eq. 15: each image is the positive of one anchor
            return info_nce(
                z[anchor], embed_hard(view), z, negatives[anchor], temperature=temperature
            )

        anchor = torch.empty_like(partner)
        anchor[partner] = torch.arange(size, device=device)
        adversary = AdversarialViewGenerator(ball, 10)
        hard = adversary(x, height, generator=draw, freeze=other)
        with torch.no_grad():
            z_hard = embed_hard(hard)
            adversarial = float(height(hard).mean())
        sharp = at_worst_weights(own, loss, rho)
    told = {name: told_apart(z, z_hard, name, seed=seed) for name in _TOLD}
    alike = told_apart(z, z_twice, seed=seed) if other is not own else None
    return RobustBounds(
        benign=benign,
        adversarial=adversarial,
        sharp=sharp,
        **{name: of.divergence for name, of in told.items()},
        accuracy=told["js"].accuracy,
        branch_accuracy=alike and alike.accuracy,
        complexity=_complexity(own, size, rho, delta, temperature),
        prior=-math.log(int(counts.min()) / size),
        log_beta=math.log(size - 2),
        temperature=temperature,
        measured=_measured(
            MeanClassifier(encoder, images, labels, temperature=temperature)
            if classifier is None
            else classifier,
            attack or PGD(ball, 20, None),
            images,
            labels,
            seed,
        ),
        trivial=math.sqrt(math.log(len(counts))),
    )


def _partners(labels: Labels, draw: Generator) -> Tensor:
    """(N,): of each image another of its class, all different."""
    partner = torch.empty(len(labels), dtype=torch.int64, device="cpu")
    for kind in torch.unique(labels):
        rows = (labels == kind).nonzero().squeeze(1)
        if len(rows) < 2 or len(labels) < 3:
            raise ValueError(
                f"a positive pair is two images of a class beside others, and class {int(kind)} "
                f"has {len(rows)} of {len(labels)}; leave it out or give more"
            )
        rows = rows[torch.randperm(len(rows), generator=draw, device="cpu")]
        partner[rows] = rows.roll(1)
    return partner


def _embedding(encoder: nn.Module) -> Callable[[Images], Embeddings]:
    def embed(images: Images) -> Embeddings:
        features = embeddings_of("the encoder", encoder(images), len(images))
        check_finite(features)
        return unit(features)

    return embed


def _complexity(
    encoder: nn.Module, size: int, rho: float, delta: float, temperature: float
) -> float:
    """B of Theorem 4.5, without its O(log(N + T))."""
    weights = [p.detach().double() for p in encoder.parameters()]
    count, squares = sum(p.numel() for p in weights), sum(float(p.square().sum()) for p in weights)
    sigma = rho / (math.sqrt(count) + math.sqrt(math.log(size)))
    length = 2 / temperature + math.log(1 + size - 2)  # L, with β = N - 2
    prior = count / 2 * math.log1p(squares / (count * sigma**2))
    return (prior - math.log(delta) + length**2 / 8 + 2 * length) / math.sqrt(size)


def _measured(
    classifier: nn.Module, attack: Attack, images: Images, labels: Labels, seed: int
) -> float:
    """E √CE under attack, Eq. 7. The temperature is in the classifier's weights."""
    hard = attack(classifier, images, labels, seed=seed)
    device = device_of(classifier, hard)
    with borrowed(classifier, device, seed), torch.no_grad():
        logits = logits_of(classifier, hard.clone().to(device))
        loss = F.cross_entropy(logits, labels.to(device).long(), reduction="none")
    return float(loss.sqrt().mean())
