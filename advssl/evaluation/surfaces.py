"""Surfaces: the loss of a classifier around its images, and around its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from advssl.balls import Ball, Linf, check_ball
from advssl.evaluation.batches import Batches, pairs
from advssl.evaluation.logits import borrowed, check_module, device_of, logits_of, undisturbed
from advssl.evaluation.search import Attack, Clean, Loss, check_attack, cross_entropy
from advssl.modes import copied, evaluating, learning, random_state_kept, seeded_state
from advssl.types import Images, Labels, check_kind, flag, positive, seed_of, whole

Direction = list[Tensor]  # one tensor per parameter


@dataclass(frozen=True)
class Surface:
    """Mean losses on a plane around where a classifier, or its images, are.

    Attributes:
        axes: what is along the first and the second axis: "steepest", "random" or "SAM".
        along: positions on both, ascending; the middle one is 0.
        heights: ``heights[i][j]`` is at ``along[i]`` of the first and ``along[j]`` of the second.
        unit: the length of 1 on an axis: the ball's radius, or an ℓ2 length in weight space.
        images: how many the mean is over.
    """

    axes: tuple[str, str]
    along: tuple[float, ...]
    heights: tuple[tuple[float, ...], ...]
    unit: float
    images: int

    @property
    def centre(self) -> float:
        """The loss where they are."""
        middle = len(self.along) // 2
        return self.heights[middle][middle]

    @property
    def rise(self) -> float:
        """By how much the highest point is above the centre: the lower, the flatter."""
        return max(map(max, self.heights)) - self.centre


@torch.inference_mode(False)
def input_surface(
    classifier: nn.Module,
    batches: Batches,
    *,
    ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
    loss: Loss = cross_entropy,
    span: float = 1.0,
    points: int = 21,
    seed: int = 0,
) -> Surface:
    r"""The mean loss around images: along each one's steepest direction, and along a random one.

        L( x + ε (a d₁ + b d₂) ),   d₁ = steepest(∇_x L(x)),   d₂ = steepest(random)

    of length one in the ball's norm: signs in ℓ∞. Pixels stay in [0, 1]. d₂ is the same of all
    images.

    Args:
        classifier: a module, images in [0, 1] to logits; left as it was.
        batches: pairs of images (B, C, H, W), float32 in [0, 1], and labels (B,).
        ball: whose norm the directions are in, and whose radius ε is the unit of a and b.
        loss: logits and labels to (B,).
        span: how far a and b go either way.
        points: how many of each, odd.
        seed: of the random direction.

    Raises:
        ValueError: on no images, images of different sizes, points that have no middle, and a
            loss that has no gradient.

    Reference: ASCL-2023, Fig. 4
    """
    check_module("classifier", classifier)
    check_ball("ball", ball)
    check_kind("loss", loss, Callable)
    along, seed = _along(span, points), seed_of(seed)
    total, count = _zeros(len(along)), 0
    second: Tensor | None = None
    for images, labels in pairs(batches):
        device = device_of(classifier, images)
        x, y = images.clone().to(device), labels.to(device).long()
        if second is None:
            draw = torch.randn(x[:1].shape, generator=_draw(seed), dtype=x.dtype, device="cpu")
            second = ball.steepest(draw.to(device))
        elif second.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"images must be of one size, got {tuple(second.shape[1:])} and "
                f"{tuple(x.shape[1:])}; a surface is one plane for all"
            )
        with borrowed(classifier, device, seed):
            leaf = x.clone().requires_grad_()
            height = loss(logits_of(classifier, leaf), y).sum()
            _check_slope(height)
            first = ball.steepest(torch.autograd.grad(height, leaf)[0])
            with torch.no_grad():
                for i, a in enumerate(along):
                    for j, b in enumerate(along):
                        moved = (x + ball.radius * (a * first + b * second)).clamp(0, 1)
                        total[i, j] += float(loss(logits_of(classifier, moved), y).sum())
        count += len(y)
    return _surface(("steepest", "random"), along, total, ball.radius, count)


@torch.inference_mode(False)
def weight_surface(
    classifier: nn.Module,
    batches: Batches,
    *,
    attack: Attack = Clean(),  # noqa: B008 (a frozen value)
    loss: Loss = cross_entropy,
    toward_sam: bool = False,
    span: float = 1.0,
    points: int = 21,
    seed: int = 0,
) -> Surface:
    r"""The mean loss around a classifier's weights, along two directions in weight space.

        L( θ + a d₁ + b d₂ ),   d ← d ‖θ_f‖ / ‖d_f‖  for each filter f

    Directions are random and filter-normalised: what is added to a filter, or to a row of a linear
    layer, is as long as it is, so that nets whose weights have other scales compare. Vectors
    (biases, BatchNorm) stay. With an attack it is made anew at every point: the adversarial loss.

    Args:
        classifier: a module, images in [0, 1] to logits; a copy of it is moved.
        batches: pairs of images (B, C, H, W), float32 in [0, 1], and labels (B,).
        attack: such as ``PGD()``; None is made by default.
        loss: logits and labels to (B,).
        toward_sam: the first direction is the gradient, where SAM's ascent step goes, as long as
            a random one: SAM's ρ is at a = ρ / ``unit``. It is not filter-normalised, or it would
            be another direction, and has all parameters.
        span: how far a and b go either way.
        points: how many of each, odd; each costs the attack and a forward of all images.
        seed: of directions and attack.

    Raises:
        ValueError: on no images, points that have no middle, a classifier without filters, a loss
            without gradient, and logits that are not finite: a smaller span may help.

    Reference: Li et al. 2018, https://arxiv.org/abs/1712.09913; with an attack Wu et al. 2020,
    https://arxiv.org/abs/2004.05884; AdvCL, Fig. 6; ASCL-2023, Fig. 5
    """
    check_module("classifier", classifier)
    check_attack(attack)
    check_kind("loss", loss, Callable)
    along, seed = _along(span, points), seed_of(seed)
    given = [*pairs(batches)]
    if not given:
        raise ValueError(_NONE)
    twin = copied(classifier)
    learning(twin, True)
    weights = [*twin.parameters()]
    origin = [w.detach().clone() for w in weights]
    draw = _draw(seed)
    first, second = filter_normalised(origin, draw), filter_normalised(origin, draw)
    unit = _length(second)
    if not unit:
        raise ValueError("the classifier has no weights but vectors; there is no filter to move")
    if flag("toward_sam", toward_sam):
        first = _uphill(twin, given, attack, loss, seed)
        length = _length(first)
        if not length:
            raise ValueError("the loss has no gradient in the weights; there is no SAM direction")
        first = [g * (unit / length) for g in first]
    total = _zeros(len(along))
    for i, a in enumerate(along):
        for j, b in enumerate(along):
            with torch.no_grad():
                for w, at, d, e in zip(weights, origin, first, second, strict=True):
                    w.copy_(at + a * d + b * e)
            for images, labels in given:
                hard, y, device = _attacked(twin, images, labels, attack, seed)
                with borrowed(twin, device, seed), torch.no_grad():
                    total[i, j] += float(loss(logits_of(twin, hard), y).sum())
    count = sum(len(y) for _, y in given)
    return _surface(("SAM" if toward_sam else "random", "random"), along, total, unit, count)


def filter_normalised(weights: Sequence[Tensor], generator: Generator) -> Direction:
    """A random direction: each filter's part is as long as the filter; zero of vectors.

    A filter is what belongs to one output: a row of the first dimension.
    """
    found: Direction = []
    for w in weights:
        if w.ndim < 2:
            found.append(torch.zeros_like(w))
            continue
        d = torch.randn(w.shape, generator=generator, dtype=w.dtype, device="cpu").to(w)
        lengths = [t.flatten(1).norm(dim=1).view(-1, *[1] * (w.ndim - 1)) for t in (w, d)]
        found.append(d * (lengths[0] / lengths[1]))
    return found


_NONE = "there are no images whose loss could be found; give at least one"


def _along(span: float, points: int) -> tuple[float, ...]:
    span, points = positive("span", span), whole("points", points, 3)
    if points % 2 == 0:
        raise ValueError(f"points must be odd, so that one is in the middle, got {points}")
    half = points // 2
    return tuple(span * (i - half) / half for i in range(points))


def _zeros(side: int) -> Tensor:
    return torch.zeros(side, side, dtype=torch.float64, device="cpu")


def _draw(seed: int) -> Generator:
    return Generator("cpu").manual_seed(seed)


def _attacked(
    classifier: nn.Module, images: Images, labels: Labels, attack: Attack, seed: int
) -> tuple[Images, Labels, torch.device]:
    device = device_of(classifier, images)
    hard = attack(classifier, images, labels, seed=seed)
    return hard.clone().to(device), labels.to(device).long(), device


def _uphill(
    classifier: nn.Module,
    given: Sequence[tuple[Images, Labels]],
    attack: Attack,
    loss: Loss,
    seed: int,
) -> Direction:
    """The gradient of the summed loss, in eval mode."""
    weights = [*classifier.parameters()]
    slopes = [torch.zeros_like(w) for w in weights]
    for images, labels in given:
        hard, y, device = _attacked(classifier, images, labels, attack, seed)
        state = seeded_state(device, _draw(seed))
        with undisturbed(device), evaluating(classifier), random_state_kept(device, state):
            height = loss(logits_of(classifier, hard), y).sum()
            _check_slope(height)
            found = torch.autograd.grad(height, weights, allow_unused=True)
        for slope, g in zip(slopes, found, strict=True):
            if g is not None:
                slope += g
    return slopes


def _check_slope(height: Tensor) -> None:
    if not height.requires_grad:
        raise ValueError("the loss has no gradient; compute logits and loss without detach()")


def _length(direction: Direction) -> float:
    return math.sqrt(sum(float(d.double().square().sum()) for d in direction))


def _surface(
    axes: tuple[str, str], along: tuple[float, ...], total: Tensor, unit: float, count: int
) -> Surface:
    if not count:
        raise ValueError(_NONE)
    rows = tuple(tuple(row) for row in (total / count).tolist())
    return Surface(axes, along, rows, unit, count)
