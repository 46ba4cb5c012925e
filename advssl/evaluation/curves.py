"""Curves: a classifier's accuracy as its attack's radius grows, and as its steps do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import nn

from advssl.balls import Ball, Linf, check_ball, radius_of, resized
from advssl.evaluation.attacks import PGD, Attack, Clean, measure
from advssl.evaluation.batches import Batches, pairs
from advssl.evaluation.progress import Progress, ignored
from advssl.types import positive, several, whole

RADII = tuple(level / 255 for level in (0, 2, 4, 8, 16, 24, 32))  # the paper's range
STEPS = (0, 1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Curves:
    """Accuracies from 0 to 1 under PGD of several strengths.

    Attributes:
        by_radius: (radius in pixels of [0, 1], accuracy) pairs, of 20 steps; empty of a ball that
            cannot be resized.
        by_steps: (steps, accuracy) pairs, at the ball's radius.
        images: how many.
    """

    by_radius: tuple[tuple[float, float], ...]
    by_steps: tuple[tuple[int, float], ...]
    images: int


def strengths(
    ball: Ball, radii: Sequence[float], steps: Sequence[int]
) -> list[tuple[str, float, Attack]]:
    """Of both curves: "radius" or "steps", where on it, and what is measured there."""
    found, clean, radius = list[tuple[str, float, Attack]](), Clean(), radius_of(ball)
    balls = list[Ball]()
    with suppress(ValueError):  # one that cannot be resized
        balls = [resized(ball, r) if r else ball for r in radii]
    for r, one in zip(radii, balls, strict=False):
        found.append(("radius", r, PGD(one, 20, None) if r else clean))
    for n in steps:
        # Enough to cross the ball in few steps, a quarter of the radius in many.
        step = max(radius / 4, radius / max(n, 1))
        found.append(("steps", n, PGD(ball, n, step) if n else clean))
    return found


def curves(
    classifier: nn.Module,
    batches: Batches,
    *,
    ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
    radii: Sequence[float] = RADII,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
    progress: Progress = ignored,
) -> Curves:
    """Accuracy against the attack's radius and against its steps.

    It must fall to chance as the radius grows and level off as the steps do; where it does not, the
    attack fails and not the images stand.

    Args:
        classifier: a module, images in [0, 1] to logits; left as it was.
        batches: pairs of images (B, C, H, W), float32 in [0, 1], and labels (B,).
        ball: the threat model, whose radius is that of all steps.
        radii: in pixels of [0, 1], from 0 on; 0 is without attack.
        steps: of PGD, from 0 on, likewise.
        seed: of the attacks.
        progress: called after each point.

    Raises:
        ValueError: on no images, and on radii and steps that are none.

    Reference: ASCL-2023, Fig. 6; AdvCL, Fig. 3, https://arxiv.org/abs/2111.01124
    """
    check_ball("ball", ball)
    radii = [r and positive("a radius", r) for r in several("radii", radii, "numbers")]
    steps = [whole("steps", n, 0) for n in several("steps", steps, "numbers")]
    given = [*pairs(batches)]
    if not given:
        raise ValueError("there are no images whose accuracy could be found; give at least one")
    found: dict[str, list[tuple[float, float]]] = {"radius": [], "steps": []}
    points = strengths(ball, radii, steps)
    known: list[tuple[Attack, float]] = []  # a user's ball may be equal to another and not hashable
    for i, (kind, where, attack) in enumerate(points, start=1):
        share = next((share for one, share in known if one == attack), None)
        if share is None:
            share = measure(classifier, attack, given, seed=seed).value
            known.append((attack, share))
        found[kind].append((where, share))
        progress("curves", i, len(points))
    by_steps = tuple((int(n), share) for n, share in found["steps"])
    return Curves(tuple(found["radius"]), by_steps, sum(len(y) for _, y in given))
