"""Doubts: reasons not to believe a robust accuracy, each a named check with its evidence.

An attack that fails is not a defence that works. What is looked for here is a classifier that hides
its gradient: Athalye et al. 2018, https://arxiv.org/abs/1802.00420, and Carlini et al. 2019,
https://arxiv.org/abs/1902.06705. A check that passes proves nothing; one that fails says why the
number above it is too high.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import L2, Ball, Linf, widest
from advssl.branches import BranchBatchNorm, on_branch
from advssl.evaluation.attacks import (
    PGD,
    AutoAttack,
    Batches,
    Clean,
    Logits,
    MultiTargetedPGD,
    Progress,
    batch_seed,
    borrowed,
    check_batch,
    class_count,
    device_of,
    logits_of,
    margin,
)
from advssl.types import Images, Labels, PerExample, Perturbation

Verdict: TypeAlias = Literal["pass", "fail", "not run"]
Known: TypeAlias = Clean | PGD | MultiTargetedPGD | AutoAttack

_PGD_STEPS = 20
_STEP_COUNTS = (1, 5, 20, 50)
_RADII = (0.5, 1.0, 2.0, 4.0)  # of the ball's
_QUERIES = 5 * _PGD_STEPS  # of the random search: at least what PGD's forwards and backwards cost
_DIRECTIONS = 8  # of finite differences
_GREY_LEVEL = 1 / 255  # their length: below it images do not differ, above it a net is less linear
_SATURATED = 16.6  # logits this far apart are probability 1 in float32: softmax - onehot is zero
_COMPOSED = 32  # images that are sent in other company

# Thresholds. Above each stands what healthy classifiers show (digits and CIFAR-10 networks, plain
# and adversarially trained) and what the masks show that they are there for.
# Healthy: 0 %. A grey image is in every ball of this radius, so no classifier is right there on
# more than one class; a mask leaves 30 % to 100 %. Above zero only for few images and steps.
_LEFT_AT_GREY = 0.10
# Healthy: accuracy falls with radius and steps up to the noise of a random start, 0 to 2 points.
_RISE = 0.05
# Healthy: cross-entropy rises with steps, or has converged; it never loses a tenth of its gain.
_LOSS_SHARE = 0.9
# Healthy: 0 to 1 % of what PGD leaves falls to a hundred queries; a mask loses 10 % and more.
_BROKEN_WITHOUT_GRADIENT = 0.05
# Healthy: none. Logits 46 apart have gradients of 1e-20; training ends at 10 to 20 apart.
_TINY_GRADIENT, _VANISHING = 1e-20, 0.10
# Healthy: 1e-6, float32 kernels that differ between batch sizes. AutoAttack's own check: 1e-4.
_DIFFERENT_LOGITS = 1e-4
# Healthy: 0.02, the kinks of ReLU within one grey level. A quantiser: 1. Noise: 0.7 and more.
_DISAGREEMENT = 0.5
# Healthy: at most 7 points between PGD-20 and AutoAttack for published networks, up to 19 for small
# ones at a radius at which most images just fall: there the cross-entropy climbs between two
# classes. That is a quarter of what can be broken; a mask hides nearly all of it, or more points.
_GAP, _LARGE_GAP, _MISSED = 0.05, 0.25, 0.4


@dataclass(frozen=True)
class Check:
    """One reason to doubt, looked into.

    Attributes:
        name: what was looked into.
        verdict: "pass", "fail" (believe no robust accuracy before this is explained) or "not run".
        evidence: one plain sentence with the numbers.
        numbers: the same for figures, as plain JSON.
    """

    name: str
    verdict: Verdict
    evidence: str
    numbers: Mapping[str, Any]


def doubts(
    classifier: nn.Module,
    batches: Batches,
    *,
    ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
    branches: Mapping[str, nn.Module] | None = None,
    autoattack: bool = False,
    max_images: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Check]:
    """Every reason to doubt the robust accuracy of ``classifier``, looked into.

    Per image this costs 178 forwards and backwards to the input, 20 more for each wrong class (9 at
    most) as long as the image stands, and 150 forwards: the work of at most 870 forwards, so
    110 000 for 128 images. Each BatchNorm branch adds 20 and 5. With ``autoattack`` what that
    costs takes the place of the wrong classes.

    Args:
        classifier: images to logits (B, K), float32; left as it was.
        batches: of images (B, C, H, W) in [0, 1], float32, and labels (B,).
        ball: the threat model whose robust accuracy is to be believed.
        branches: classifiers by name, if the BatchNorm branches of one encoder were finetuned
            apart. Branches inside ``classifier`` are found without it.
        autoattack: compare PGD with AutoAttack standard, not with multi-targeted PGD.
        max_images: how many images are looked at, from the first on.
        seed: of everything that is drawn.
        progress: called after each check.

    Returns:
        The eight checks, in a fixed order, whatever their verdicts.

    Raises:
        ValueError: on no images, or on labels and logits that make no sense.
    """
    taken = _first(batches, max_images)
    if not _in_range(taken):
        return _out_of_range(taken)
    case = _Case(_Differentiable(classifier), taken, ball, branches or {}, autoattack, seed)
    _ = case.clean  # what is wrong with labels or logits is an error, not a doubt
    checks = []
    for name, look in _NAMES_AND_CHECKS.items():
        checks.append(_looked_into(name, look, case))
        if progress is not None:
            progress(f"doubts: {name}", len(checks), len(_NAMES_AND_CHECKS))
    return checks


@dataclass(frozen=True)
class _Case:
    """A classifier under doubt, and what several checks need of it."""

    classifier: nn.Module
    batches: Sequence[tuple[Images, Labels]]
    ball: Ball
    branches: Mapping[str, nn.Module]
    autoattack: bool
    seed: int

    @cached_property
    def pgd(self) -> PGD:
        return PGD(self.ball, _PGD_STEPS, step_size=None)

    @cached_property
    def clean(self) -> PerExample:
        return self.standing(Clean())

    @cached_property
    def under_pgd(self) -> PerExample:
        return self.standing(self.pgd)

    def standing(self, attack: Known, judge: nn.Module | None = None) -> PerExample:
        """(N,), bool: what ``judge`` still gets right of the images made for the classifier."""
        flags = []
        for number, (x, y) in enumerate(self.batches):
            seed = batch_seed(self.seed, number)
            found = attack.search(self.classifier, x, y, seed=seed)
            if judge is not None:
                found = Clean().search(judge, found.images, y, seed=seed)
            flags.append(found.correct.cpu())
        return torch.cat(flags)

    def each(self, look: Callable[[Images, Labels, Generator], Tensor]) -> Tensor:
        """What ``look`` finds in each batch, one row per image, on the CPU."""
        found = []
        for number, (x, y) in enumerate(self.batches):
            device, seed = device_of(self.classifier, x), batch_seed(self.seed, number)
            with borrowed(self.classifier, device, seed):
                draw = Generator(device).manual_seed(seed)
                rows = look(x.detach().clone().to(device), y.to(device).long(), draw)
            found.append(rows.detach().cpu())
        return torch.cat(found)


def _radius(case: _Case) -> Check:
    """At a radius at which all images can be made alike, nothing may be left."""
    grey = grey_radius(case.ball, case.batches[0][0])
    if grey is None:
        return _not_run(f"no largest useful radius is known for {type(case.ball).__name__}")
    radii = [f * case.ball.radius for f in _RADII if f * case.ball.radius < grey] + [grey]
    accuracy = []
    for radius in radii:
        at = _resized(case.ball, radius)
        asked = at == case.ball
        flags = case.under_pgd if asked else case.standing(PGD(at, _PGD_STEPS, step_size=None))
        accuracy.append(_share(flags))
    rise = max(0.0, *(a - min(accuracy[: i + 1]) for i, a in enumerate(accuracy)))
    failed = accuracy[-1] > _LEFT_AT_GREY or rise > _RISE
    evidence = (
        f"PGD-{_PGD_STEPS} leaves {_percent(accuracy[-1])} at radius {grey:.3g}, where every image "
        f"can become the same grey; with the radius accuracy rises by {_points(rise)} at most"
    )
    return _answer(failed, evidence, radii=radii, accuracy=accuracy, clean=_share(case.clean))


def _steps(case: _Case) -> Check:
    """More steps find a higher loss, not a higher accuracy."""
    start = case.each(lambda x, y, _: _outcome(case.classifier, x, y)).mean(dim=0)
    ends = []
    for steps in _STEP_COUNTS:
        climb = AdversarialViewGenerator(case.ball, steps)

        def attacked(x: Images, y: Labels, draw: Generator) -> Tensor:
            def loss(v: Images) -> PerExample:
                return F.cross_entropy(logits_of(case.classifier, v), y, reduction="none")

            return _outcome(case.classifier, climb(x, loss, generator=draw), y)

        ends.append(case.each(attacked).mean(dim=0))
    clean = float(start[0])
    losses, accuracy = [float(e[0]) for e in ends], [float(e[1]) for e in ends]
    gain, first_gain = losses[-1] - clean, losses[0] - clean
    rise = accuracy[-1] - min(accuracy)
    failed = gain <= 0 or gain < _LOSS_SHARE * first_gain or rise > _RISE
    pairs = zip(_STEP_COUNTS, losses, accuracy, strict=True)
    told = ", ".join(f"{k}: {loss:.3g} and {_percent(a)}" for k, loss, a in pairs)
    evidence = f"from a clean loss of {clean:.3g}, loss and accuracy by number of steps are {told}"
    return _answer(
        failed, evidence, steps=list(_STEP_COUNTS), loss=losses, accuracy=accuracy, clean_loss=clean
    )


def _black_box(case: _Case) -> Check:
    """What sees no gradient must not find what PGD does not."""
    searched = case.each(
        lambda x, y, draw: _random_search(case.classifier, x, y, case.ball, draw)
    ).bool()
    missed = _share(case.under_pgd & ~searched)
    evidence = (
        f"PGD-{_PGD_STEPS} leaves {_percent(_share(case.under_pgd))}, a random search of "
        f"{_QUERIES} queries {_percent(_share(searched))}; it breaks {_percent(missed)} that PGD "
        "does not"
    )
    return _answer(
        missed > _BROKEN_WITHOUT_GRADIENT,
        evidence,
        white_box=_share(case.under_pgd),
        black_box=_share(searched),
        missed_by_pgd=missed,
        queries=_QUERIES,
    )


def _gradients(case: _Case) -> Check:
    """Where the cross-entropy has no gradient, an attack on it goes nowhere."""

    def look(x: Images, y: Labels, _: Generator) -> Tensor:
        logits, gradient = _loss_gradient(case.classifier, x, y)
        # A norm would underflow: the square of 1e-25 is no float32.
        return torch.stack([gradient.flatten(1).abs().amax(dim=1), -margin(logits, y)], dim=1)

    peak, lead = case.each(look).unbind(dim=1)
    right = lead > 0
    if not right.any():
        return _not_run("no image is classified right")
    zero, tiny = _share(peak[right] == 0), _share(peak[right] < _TINY_GRADIENT)
    saturated = _share(lead[right] > _SATURATED)
    evidence = (
        f"of the images classified right, {_percent(zero)} have no gradient of the cross-entropy, "
        f"{_percent(tiny)} none above {_TINY_GRADIENT:g} in any pixel; {_percent(saturated)} have "
        f"logits more than {_SATURATED} apart, where float32 rounds the probability to 1"
    )
    return _answer(
        tiny > _VANISHING,
        evidence,
        zero=zero,
        tiny=tiny,
        saturated=saturated,
        largest_gradient=peak.tolist(),
        lead=lead.tolist(),
    )


def _deterministic(case: _Case) -> Check:
    """One image has one answer: at a second look, and in whatever company it comes."""
    x = case.batches[0][0][:_COMPOSED]
    device = device_of(case.classifier, x)
    with borrowed(case.classifier, device, case.seed), torch.no_grad():
        x = x.clone().to(device)
        first, again = logits_of(case.classifier, x), logits_of(case.classifier, x)
        turned = logits_of(case.classifier, x.flip(0)).flip(0)
        half = torch.cat(
            [logits_of(case.classifier, part) for part in torch.split(x, len(x) // 2 + 1)]
        )
        alone = logits_of(case.classifier, x[:1])
    repeated = _difference(first, again)
    composed = max(
        _difference(first, turned), _difference(first, half), _difference(first[:1], alone)
    )
    evidence = (
        f"logits differ by {repeated:.1e} of their length between two looks at the same batch, by "
        f"{composed:.1e} when the images come in another order, in halves or alone"
    )
    failed = not max(repeated, composed) <= _DIFFERENT_LOGITS  # true of NaN too
    return _answer(failed, evidence, repeated=repeated, composed=composed)


def _inputs(case: _Case) -> Check:
    """The gradient is the slope: no quantiser, clamp or detached step stands before the network."""

    def look(x: Images, y: Labels, draw: Generator) -> Tensor:
        leaf = x.clamp(0, 1).requires_grad_()
        height = margin(logits_of(case.classifier, leaf), y)
        gradient = torch.autograd.grad(height.sum(), leaf)[0]
        rows = [gradient.flatten(1).abs().amax(dim=1)]
        pixels = leaf.detach()
        for everywhere in (True, False):
            for _ in range(_DIRECTIONS):
                direction = _inward(pixels, draw) * (everywhere | _at_edge(pixels))
                with torch.no_grad():
                    moved = margin(logits_of(case.classifier, pixels + direction), y)
                rows += [moved - height.detach(), (gradient * direction).flatten(1).sum(dim=1)]
        return torch.stack(rows, dim=1)

    found = case.each(look)
    flat = _share(found[:, 0] == 0)
    anywhere, at_edges = _disagreement(found[:, 1:])
    low, high = _extremes(case.batches)
    evidence = (
        f"images lie in [{low:.3g}, {high:.3g}]; over one grey level the logits' rise and what "
        f"their gradient says disagree by {anywhere:.2f}, for pixels at 0 or 1 alone by "
        f"{at_edges:.2f} (0 same, 1 unrelated); {_percent(flat)} of the images have no gradient"
    )
    disagreement = max(anywhere, at_edges)
    failed = disagreement > _DISAGREEMENT or flat > _VANISHING
    return _answer(
        failed,
        evidence,
        low=low,
        high=high,
        disagreement=anywhere,
        at_edges=at_edges,
        without_gradient=flat,
    )


def _branches(case: _Case) -> Check:
    """Images made through another BatchNorm branch must not hurt more than one's own."""
    branches = dict(case.branches) or {
        name: _OnBranch(case.classifier, name) for name in _branch_names(case.classifier)
    }
    if not branches:
        return _not_run("the classifier has no BatchNorm branches, and none were given")
    clean, robust, crossed = [], [], []
    for classifier in branches.values():
        other = replace(case, classifier=_Differentiable(classifier))
        clean.append(_share(other.clean))
        robust.append(_share(other.under_pgd))
        crossed.append(_share(other.standing(case.pgd, judge=case.classifier)))
    own = _share(case.under_pgd)
    told = ", ".join(
        f"{name} {_percent(c)} clean and {_percent(r)} under PGD-{_PGD_STEPS}"
        for name, c, r in zip(branches, clean, robust, strict=True)
    )
    evidence = (
        f"{told}; the classifier keeps {_percent(own)} on its own adversarial images and "
        f"{_percent(min(crossed))} on the worst branch's"
    )
    return _answer(
        min(crossed) < own - _RISE,
        evidence,
        branches=list(branches),
        clean=clean,
        robust=robust,
        crossed=crossed,
        own=own,
    )


def _gap(case: _Case) -> Check:
    """A stronger attack finds a little more than PGD, not much more: else believe the stronger.

    Where several classes are equally near, cross-entropy climbs between them and PGD misses much
    without any mask. Its number is not to be believed then either.
    """
    if case.autoattack:
        attack: Known = AutoAttack(case.ball, class_count(case.classifier, case.batches[0][0]))
    else:
        attack = MultiTargetedPGD(case.ball, _PGD_STEPS, step_size=None)
    stronger = case.standing(attack)
    gap, broken = _share(case.under_pgd & ~stronger), _share(case.clean & ~stronger)
    missed = gap / broken if broken else 0.0
    evidence = (
        f"PGD-{_PGD_STEPS} leaves {_percent(_share(case.under_pgd))}, {attack.name} "
        f"{_percent(_share(stronger))}; PGD misses {_percent(missed)} of what that breaks"
    )
    return _answer(
        gap > _LARGE_GAP or (gap > _GAP and missed > _MISSED),
        evidence,
        attack=attack.name,
        pgd=_share(case.under_pgd),
        stronger=_share(stronger),
        gap=gap,
        missed=missed,
    )


_INPUTS = "gradient is the slope, inputs in range"
_NAMES_AND_CHECKS: dict[str, Callable[[_Case], Check]] = {
    "accuracy against radius": _radius,
    "loss against steps": _steps,
    "white box against black box": _black_box,
    "gradients do not vanish": _gradients,
    "deterministic outputs": _deterministic,
    _INPUTS: _inputs,
    "BatchNorm branches": _branches,
    "PGD against a stronger attack": _gap,
}


class _Differentiable(nn.Module):
    """A classifier whose logits have a gradient, be it zero: what cuts it is found, not raised."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Images) -> Logits:
        logits = logits_of(self.classifier, images)
        if images.requires_grad and not logits.requires_grad:
            logits = logits + 0 * images.flatten(1).sum(dim=1, keepdim=True)
        return logits


class _OnBranch(nn.Module):
    """A classifier seen through one of its BatchNorm branches."""

    def __init__(self, classifier: nn.Module, name: str) -> None:
        super().__init__()
        self.classifier, self.name = classifier, name

    def forward(self, images: Images) -> Logits:
        with on_branch(self.classifier, self.name):
            logits: Logits = self.classifier(images)
        return logits


def _looked_into(name: str, look: Callable[[_Case], Check], case: _Case) -> Check:
    try:
        return replace(look(case), name=name)
    except ValueError as error:
        # An attack that breaks down (a loss that is not finite) left the classifier untested.
        return Check(name, "fail", f"the check broke down: {error}", {})


def _answer(failed: bool, evidence: str, **numbers: Any) -> Check:
    return Check("", "fail" if failed else "pass", evidence, numbers)


def _not_run(why: str) -> Check:
    return Check("", "not run", why, {})


def _out_of_range(batches: Sequence[tuple[Images, Labels]]) -> list[Check]:
    """Nothing can be said about pixels that are none."""
    low, high = _extremes(batches)
    seen = f"images lie in [{low:.3g}, {high:.3g}], not in [0, 1]"
    advice = f"{seen}; put the normalisation into the classifier"
    return [
        Check(name, "fail", advice, {"low": low, "high": high})
        if name == _INPUTS
        else Check(name, "not run", seen, {})
        for name in _NAMES_AND_CHECKS
    ]


def _first(batches: Batches, count: int) -> list[tuple[Images, Labels]]:
    taken: list[tuple[Images, Labels]] = []
    if count < 1:
        raise ValueError(f"max_images must be at least 1, got {count}")
    for x, y in batches:
        taken.append((x[:count], y[:count]))
        count -= len(x)
        if count <= 0:
            break
    if not taken:
        raise ValueError("there are no batches to look at; give at least one")
    return taken


def _in_range(batches: Sequence[tuple[Images, Labels]]) -> bool:
    low, high = _extremes(batches)
    if low < 0 or high > 1:
        return False
    for x, y in batches:
        check_batch(x, y)
    return True


def _extremes(batches: Iterable[tuple[Images, Labels]]) -> tuple[float, float]:
    pairs = [x.aminmax() for x, _ in batches]
    return min(float(p.min) for p in pairs), max(float(p.max) for p in pairs)


def grey_radius(ball: Ball, images: Images) -> float | None:
    """The radius of such a ball around any image that holds the grey one, None if not known."""
    return widest(ball, images.shape[1:]) / 2 if isinstance(ball, Linf | L2) else None


def _resized(ball: Ball, radius: float) -> Ball:
    return type(ball)(radius) if isinstance(ball, Linf | L2) else ball


def _outcome(classifier: nn.Module, images: Images, labels: Labels) -> Tensor:
    """(B, 2): the cross-entropy, and 1 where the prediction is right."""
    with torch.no_grad():
        logits = logits_of(classifier, images)
    loss = F.cross_entropy(logits, labels, reduction="none")
    return torch.stack([loss, (logits.argmax(dim=1) == labels).float()], dim=1)


def _loss_gradient(
    classifier: nn.Module, images: Images, labels: Labels
) -> tuple[Logits, Perturbation]:
    leaf = images.requires_grad_()
    logits = logits_of(classifier, leaf)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)
    return logits.detach(), gradient


@torch.no_grad()
def _random_search(
    classifier: nn.Module, images: Images, labels: Labels, ball: Ball, draw: Generator
) -> PerExample:
    """(B,), 1 where the image stands after random squares are kept that raise the margin.

    Reference: Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049
    """
    best = images
    height = margin(logits_of(classifier, best), labels)
    for query in range(_QUERIES):
        side = 0.9 * 0.5 ** (2 * query / _QUERIES)  # of the image's: large squares first
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


def _inward(images: Images, draw: Generator) -> Perturbation:
    """One grey level up or down at random, but into [0, 1] at its edges."""
    sign = (torch.rand(images.shape, generator=draw, device=images.device) - 0.5).sign()
    sign = torch.where(images < _GREY_LEVEL, 1.0, sign)
    return _GREY_LEVEL * torch.where(images > 1 - _GREY_LEVEL, -1.0, sign)


def _at_edge(images: Images) -> Tensor:
    """Where a clamp to [0, 1] in the classifier has no gradient, from torch 2.14 on."""
    return (images == 0) | (images == 1)


def _disagreement(slopes: Tensor) -> tuple[float, float]:
    """How far rises and gradients are apart, as a share of both: everywhere, and at the edges.

    Args:
        slopes: (N, 4 · directions): pairs of a rise and its gradient, edges in the second half.
    """
    pairs = slopes.reshape(len(slopes), 2, _DIRECTIONS, 2)
    rises, told = pairs.unbind(dim=3)
    apart = (rises - told).norm(dim=2)
    whole = rises.norm(dim=2) + told.norm(dim=2)
    # Pixels that hardly matter would show rounding alone.
    floor = 0.01 * whole[:, :1] + torch.finfo(whole.dtype).tiny
    anywhere, at_edges = (apart / whole.maximum(floor)).median(dim=0).values.tolist()
    return anywhere, at_edges


def _difference(one: Logits, other: Logits) -> float:
    """The largest distance between two answers, as a share of the answer's length."""
    length = one.norm(dim=1).clamp_min(torch.finfo(one.dtype).tiny)
    return float(((one - other).norm(dim=1) / length).max())


def _branch_names(classifier: nn.Module) -> list[str]:
    for module in classifier.modules():
        if isinstance(module, BranchBatchNorm):
            return list(module)
    return []


def _share(flags: PerExample) -> float:
    return float(flags.float().mean())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"
