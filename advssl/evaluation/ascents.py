"""Ascents: what PGD must do with more radius, steps, another branch, and against its rivals."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import Ball, grey_of, resized
from advssl.branches import BranchBatchNorm, on_branch
from advssl.evaluation.attacks import AutoAttack, MultiTargetedPGD
from advssl.evaluation.checks import (
    Case,
    Check,
    Differentiable,
    Known,
    answer,
    beyond,
    not_run,
    percent,
    points,
    share_of,
)
from advssl.evaluation.logits import Logits, class_count, logits_of, margin
from advssl.types import Images, Labels, PerExample, Perturbation

STEP_COUNTS = (1, 5, 20, 50)
RADII = (0.5, 1.0, 2.0, 4.0)  # of the ball's

# Thresholds. Above each stands what healthy classifiers show (digits and CIFAR-10 networks, plain
# and adversarially trained) and what the masks show that they are there for.
# Healthy: 0 %. A grey image is in every ball of this radius, so what it is called otherwise can be
# broken; a mask leaves 30 % to 100 %. Above zero only for few images and steps.
_LEFT_AT_GREY = 0.10
# Healthy: accuracy falls with radius and steps up to the noise of a random start, 0 to 2 points.
_RISE = 0.05
# Healthy: cross-entropy rises with steps, or has converged; it never loses a tenth of its gain.
_LOSS_SHARE = 0.9
# Healthy: at most 7 points between PGD-20 and AutoAttack for published networks, up to 19 for small
# ones at a radius at which most images just fall: there the cross-entropy climbs between two
# classes. That is a quarter of what can be broken; a mask hides nearly all of it, or more points.
_GAP, _LARGE_GAP, _MISSED = 0.05, 0.25, 0.4


def radius(case: Case) -> Check:
    """At a radius at which all images can be made alike, nothing may be left."""
    grey = grey_of(case.ball, case.shape)
    if grey is None:
        return not_run(f"no largest useful radius is known for {type(case.ball).__name__}")
    radii = radii_of(case.ball, grey)
    try:
        balls = [resized(case.ball, at) for at in radii]
    except ValueError as error:
        return not_run(str(error))
    stands = []
    for ball in balls:
        stands.append(case.under_pgd if ball == case.ball else case.standing(case.pgd_in(ball)))
    accuracy = [share_of(flags) for flags in stands]
    with_grey = case.each(lambda x, y, _: _called_otherwise(case.classifier, x, y)).bool()
    hidden = share_of(stands[-1] & with_grey)
    rise = max(0.0, *(a - min(accuracy[: i + 1]) for i, a in enumerate(accuracy)))
    failed = beyond(hidden, _LEFT_AT_GREY, case.n) or beyond(rise, _RISE, case.n)
    evidence = (
        f"PGD-{case.pgd.steps} leaves {percent(accuracy[-1])} at radius {grey:.3g}, where every "
        f"image can become the same grey, which the classifier gets wrong for {percent(hidden)} "
        f"of them; with the radius accuracy rises by {points(rise)} at most"
    )
    return answer(
        failed, evidence, radii=radii, accuracy=accuracy, clean=share_of(case.clean), hidden=hidden
    )


def radii_of(ball: Ball, grey: float) -> list[float]:
    """At which accuracy is looked at, up to the one at which all images can be the same grey."""
    return [*(f * ball.radius for f in RADII if f * ball.radius < grey), grey]


def steps(case: Case) -> Check:
    """More steps find a higher loss, not a higher accuracy, and none more than without a step."""
    start = case.each(lambda x, y, _: _outcome(case.classifier, x, y)).mean(dim=0)
    ends = []
    for count in STEP_COUNTS:
        climb = AdversarialViewGenerator(case.ball, count)

        def attacked(x: Images, y: Labels, draw: Generator) -> Tensor:
            def loss(v: Images) -> PerExample:
                return F.cross_entropy(logits_of(case.classifier, v), y, reduction="none")

            return _outcome(case.classifier, climb(x, loss, generator=draw), y)

        ends.append(case.each(attacked).mean(dim=0))
    clean, untouched = (float(s) for s in start)
    losses, accuracy = [float(e[0]) for e in ends], [float(e[1]) for e in ends]
    gain, first_gain = losses[-1] - clean, losses[0] - clean
    rise, above = accuracy[-1] - min(accuracy), max(accuracy) - untouched
    failed = gain <= 0 or gain < _LOSS_SHARE * first_gain
    failed = failed or beyond(rise, _RISE, case.n) or beyond(above, _RISE, case.n)
    pairs = zip(STEP_COUNTS, losses, accuracy, strict=True)
    told = ", ".join(f"{k}: {loss:.3g} and {percent(a)}" for k, loss, a in pairs)
    evidence = (
        f"from a clean loss of {clean:.3g} and accuracy of {percent(untouched)}, loss and accuracy "
        f"by number of steps are {told}"
    )
    return answer(
        failed,
        evidence,
        steps=list(STEP_COUNTS),
        loss=losses,
        accuracy=accuracy,
        clean_loss=clean,
        clean=untouched,
    )


def branches_apart(case: Case) -> Check:
    """Images made through another BatchNorm branch must not hurt more than one's own."""
    known = dict(case.branches) or {
        name: _OnBranch(case.classifier, name) for name in _branch_names(case.classifier)
    }
    if not known:
        return not_run("the classifier has no BatchNorm branches, and none were given")
    clean, robust, crossed = [], [], []
    for classifier in known.values():
        other = replace(case, classifier=Differentiable(classifier))
        own, judged = other.standing(case.pgd, judge=case.classifier).unbind(dim=1)
        clean.append(share_of(other.clean))
        robust.append(share_of(own))
        crossed.append(share_of(judged))
    kept = share_of(case.under_pgd)
    told = ", ".join(
        f"{name} {percent(c)} clean and {percent(r)} under PGD-{case.pgd.steps}"
        for name, c, r in zip(known, clean, robust, strict=True)
    )
    evidence = (
        f"{told}; the classifier keeps {percent(kept)} on its own adversarial images and "
        f"{percent(min(crossed))} on the worst branch's"
    )
    return answer(
        beyond(kept - min(crossed), _RISE, case.n),
        evidence,
        branches=list(known),
        clean=clean,
        robust=robust,
        crossed=crossed,
        own=kept,
    )


def gap(case: Case) -> Check:
    """A stronger attack finds a little more than PGD, not much more: else believe the stronger.

    Where several classes are equally near, cross-entropy climbs between them and PGD misses much
    without any mask. Its number is not to be believed then either.
    """
    attack: Known = MultiTargetedPGD(case.ball, case.pgd.steps, step_size=None)
    if case.autoattack and AutoAttack.knows(case.ball):
        attack = AutoAttack(case.ball, class_count(case.classifier, case.batches[0][0]))
    stronger = case.standing(attack)
    missing = share_of(case.under_pgd & ~stronger)
    broken = share_of(case.clean & ~stronger)
    missed = missing / broken if broken else 0.0
    evidence = (
        f"PGD-{case.pgd.steps} leaves {percent(share_of(case.under_pgd))}, {attack.name} "
        f"{percent(share_of(stronger))}; PGD misses {percent(missed)} of what that breaks"
    )
    large, enough = (beyond(missing, t, case.n) for t in (_LARGE_GAP, _GAP))
    return answer(
        large or (enough and missed > _MISSED),
        evidence,
        attack=attack.name,
        pgd=share_of(case.under_pgd),
        stronger=share_of(stronger),
        gap=missing,
        missed=missed,
    )


class _OnBranch(nn.Module):
    """A classifier seen through one of its BatchNorm branches."""

    def __init__(self, classifier: nn.Module, name: str) -> None:
        super().__init__()
        self.classifier, self.name = classifier, name

    def forward(self, images: Images) -> Logits:
        with on_branch(self.classifier, self.name):
            logits: Logits = self.classifier(images)
        return logits


def _branch_names(classifier: nn.Module) -> list[str]:
    for module in classifier.modules():
        if isinstance(module, BranchBatchNorm):
            return list(module)
    return []


def _outcome(classifier: nn.Module, images: Images, labels: Labels) -> Tensor:
    """(B, 2): the cross-entropy, and 1 where the prediction is right."""
    with torch.no_grad():
        logits = logits_of(classifier, images)
    loss = F.cross_entropy(logits, labels, reduction="none")
    return torch.stack([loss, (logits.argmax(dim=1) == labels).float()], dim=1)


def _called_otherwise(classifier: nn.Module, images: Images, labels: Labels) -> Tensor:
    """(B,), 1 where a grey image is not of the label's class."""
    with torch.no_grad():
        logits = logits_of(classifier, torch.full_like(images, 0.5))
    return (logits.argmax(dim=1) != labels).float()


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
