"""Searches: what sees no gradient must not find what PGD does not."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from advssl.balls import Ball
from advssl.evaluation.checks import Case, Check, answer, beyond, percent, share_of
from advssl.evaluation.logits import logits_of, margin
from advssl.types import Images, Labels, PerExample, Perturbation

QUERIES = 100  # at least what PGD-20's forwards and backwards cost

# Healthy: 0 to 1 % of what PGD leaves falls to a hundred queries; a mask loses 10 % and more.
_BROKEN_WITHOUT_GRADIENT = 0.05


def black_box(case: Case) -> Check:
    """What a random search breaks and PGD does not."""
    searched = case.each(
        lambda x, y, draw: _random_search(case.classifier, x, y, case.ball, draw)
    ).bool()
    missed = share_of(case.under_pgd & ~searched)
    evidence = (
        f"PGD-{case.pgd.steps} leaves {percent(share_of(case.under_pgd))}, a random search of "
        f"{QUERIES} queries {percent(share_of(searched))}; it breaks {percent(missed)} that PGD "
        "does not"
    )
    return answer(
        beyond(missed, _BROKEN_WITHOUT_GRADIENT, case.n),
        evidence,
        white_box=share_of(case.under_pgd),
        black_box=share_of(searched),
        missed_by_pgd=missed,
        queries=QUERIES,
    )


@torch.no_grad()
def _random_search(
    classifier: nn.Module, images: Images, labels: Labels, ball: Ball, draw: Generator
) -> PerExample:
    """(B,), 1 where the image stands after random squares are kept that raise the margin.

    Reference: Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049
    """
    best = images
    height = margin(logits_of(classifier, best), labels)
    for query in range(QUERIES):
        side = 0.9 * 0.5 ** (2 * query / QUERIES)  # of the image's: large squares first
        push = 2 * ball.radius * ball.steepest(_random_square(images, side, draw))
        tried = (images + ball.project(best - images + push)).clamp(0, 1)
        reached = margin(logits_of(classifier, tried), labels)
        better = reached > height
        best = torch.where(better[:, None, None, None], tried, best)
        height = torch.where(better, reached, height)
    return (height <= 0).float()


def _random_square(images: Images, side: float, draw: Generator) -> Perturbation:
    """±1 per channel on one square per image, zero elsewhere."""
    size, channels, rows, columns = images.shape

    def within(length: int) -> Tensor:
        width = max(1, round(side * length))
        first = torch.rand(size, 1, generator=draw, device=images.device) * (length - width + 1)
        place = torch.arange(length, device=images.device) - first.floor()
        return (place >= 0) & (place < width)

    square = within(rows)[:, None, :, None] & within(columns)[:, None, None, :]
    sign = torch.rand(size, channels, 1, 1, generator=draw, device=images.device) - 0.5
    return square * sign.sign()
