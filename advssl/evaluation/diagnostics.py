"""Doubts: reasons not to believe a robust accuracy, each a named check with its evidence.

An attack that fails is not a defence that works. What is looked for here is a classifier that hides
its gradient: Athalye et al. 2018, https://arxiv.org/abs/1802.00420, and Carlini et al. 2019,
https://arxiv.org/abs/1902.06705. A check that passes proves nothing; one that fails says why the
number above it is too high.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from advssl.balls import Ball, Linf, check_ball, grey_of
from advssl.evaluation.ascents import (
    QUERIES,
    STEP_COUNTS,
    black_box,
    branches_apart,
    gap,
    radii_of,
    radius,
    steps,
)
from advssl.evaluation.autoattack import MOST_TARGETS
from advssl.evaluation.batches import Batches
from advssl.evaluation.census import Repeats
from advssl.evaluation.checks import PGD_STEPS, Case, Differentiable, arranged, first, not_run
from advssl.evaluation.checks import Check as Check
from advssl.evaluation.checks import Known as Known
from advssl.evaluation.checks import Verdict as Verdict
from advssl.evaluation.identity import fingerprint_of, identity_of, keep, kept
from advssl.evaluation.leaks import easier_than_training, repeated
from advssl.evaluation.logits import NotFinite, check_module, device_of
from advssl.evaluation.progress import Progress, ignored
from advssl.evaluation.provenance import folder_at
from advssl.evaluation.slopes import DIRECTIONS, SCALES, deterministic, gradients, inputs
from advssl.types import Images, Labels, seed_of, several

Range: TypeAlias = tuple[int, int]  # at least and at most


@dataclass(frozen=True)
class Cost:
    """What the number of forwards depends on.

    Attributes:
        ball: the threat model.
        shape: (C, H, W) of an image.
        classes: of the classifier.
        branches: of BatchNorm.
    """

    ball: Ball
    shape: Sequence[int]
    classes: int
    branches: int = 0


@dataclass(frozen=True)
class Doubt:
    """A reason to doubt, before it is looked into.

    Attributes:
        asks: what is asked, a question.
        fails: when the check fails, a clause.
        follows: what follows for the number above, and what to do.
        look: finds the answer.
        forwards: per image, besides PGD-20 on the test images, which is run once for all checks. A
            backward to the input counts as a forward.
        reads_pgd: whether it needs that.
    """

    asks: str
    fails: str
    follows: str
    look: Callable[[Case], Check]
    forwards: Callable[[Cost], Range]
    reads_pgd: bool = False


def _ascent(count: int) -> int:
    return 2 * count + 1  # forwards and backwards, and what came of them


_PGD = 1 + _ascent(PGD_STEPS)  # the clean image is looked at too


def _of_radius(cost: Cost) -> Range:
    grey = grey_of(cost.ball, cost.shape)
    if grey is None:
        return 0, 0
    radii = radii_of(cost.ball, grey)
    others = sum(at != cost.ball.radius for at in radii)
    return 1 + others * _PGD, 1 + others * _PGD


def _of_gap(cost: Cost) -> Range:
    targets = min(MOST_TARGETS, cost.classes - 1)
    return 1 + _ascent(PGD_STEPS), 1 + targets * _ascent(PGD_STEPS)


def _same(count: int) -> Callable[[Cost], Range]:
    return lambda _: (count, count)


_TOO_HIGH = "the accuracy under attack above is too high"
_STRONGER = (
    f"{_TOO_HIGH}; use the number under AutoAttack, or that of multi-targeted PGD, and give it as "
    "an upper bound"
)
_INPUTS = "gradient is the slope, inputs in range"
_AGAINST_TRAINING = "test images against training images"
_LEAKED = "test images among training images"
_CHOSEN = "validation images among other images"
_TWICE = "test images that stand twice"
_OVERLAPS = {  # what a census counts, by the doubt that it raises
    _LEAKED: ("test in train",),
    _CHOSEN: ("validation in test", "validation in train"),
    _TWICE: ("test",),
}

CHECKS: dict[str, Doubt] = {
    "accuracy against radius": Doubt(
        asks="does everything fall at a radius at which all images can be made the same grey?",
        fails="something survives a radius at which all images can be made the same grey, or "
        "accuracy rises with the radius",
        follows=f"{_TOO_HIGH}: PGD does not find what is known to be there; find what hides the "
        "gradient, and attack through it",
        look=radius,
        forwards=_of_radius,
        reads_pgd=True,
    ),
    "loss against steps": Doubt(
        asks="do more steps find a higher loss, and no higher accuracy?",
        fails="more steps find a lower loss or a higher accuracy, or an image is right more often "
        "after an attack than before it",
        follows=f"{_TOO_HIGH}: the attack climbs the wrong way; find what it climbs (noise, a "
        "rounding, labels that the classifier sees) and use the strongest attack's number",
        look=steps,
        forwards=_same(1 + sum(map(_ascent, STEP_COUNTS))),
    ),
    "white box against black box": Doubt(
        asks="does a search without gradients find nothing that PGD does not?",
        fails="a random search without gradients breaks what PGD does not",
        follows=_STRONGER,
        look=black_box,
        forwards=_same(1 + QUERIES),
        reads_pgd=True,
    ),
    "gradients do not vanish": Doubt(
        asks="does the cross-entropy have a gradient where the classifier is right?",
        fails="images have no gradient above 1e-20 (logits too far apart for float32)",
        follows=f"{_TOO_HIGH}: PGD on the cross-entropy stands still; use the number under "
        "multi-targeted PGD or AutoAttack, or divide the logits by a temperature",
        look=gradients,
        forwards=_same(2),
    ),
    "deterministic outputs": Doubt(
        asks="has one image one answer, in any company?",
        fails="an image has two answers, or another answer in other company",
        follows="no number above can be repeated: switch off dropout, noise and batch statistics "
        "and evaluate again, or average gradients over the noise (EOT)",
        look=deterministic,
        forwards=lambda _: (0, 5),
    ),
    _INPUTS: Doubt(
        asks="is the gradient that attacks follow the classifier's slope, on pixels of [0, 1]?",
        fails="moving pixels does not do what the gradient says, however little they move (a "
        "quantiser, a clamp, a detached step), or images are not in [0, 1]",
        follows=f"{_TOO_HIGH}: attacks follow a gradient that is not the classifier's; let it "
        "through, or attack what stands behind it (BPDA)",
        look=inputs,
        forwards=lambda _: (2 + 2 * DIRECTIONS, len(SCALES) * (2 + 2 * DIRECTIONS)),
    ),
    "BatchNorm branches": Doubt(
        asks="do images made through another branch hurt no more than one's own?",
        fails="adversarial images made through another branch hurt more than one's own; not run "
        "for one branch",
        follows=f"{_TOO_HIGH}: a transferred attack beats its own; use the number on the worst "
        "branch's images",
        look=branches_apart,
        forwards=lambda cost: (cost.branches * (2 + _PGD), cost.branches * (2 + _PGD)),
        reads_pgd=True,
    ),
    "PGD against a stronger attack": Doubt(
        asks="does a stronger attack find little more than PGD?",
        fails="multi-targeted PGD finds far more than PGD",
        follows=_STRONGER,
        look=gap,
        forwards=_of_gap,
        reads_pgd=True,
    ),
    _AGAINST_TRAINING: Doubt(
        asks="are test images no easier than training images?",
        fails="test images are right far more often than training images, or resist far more often",
        follows="all numbers above are too high: the classifier was made with these images or "
        "their labels; evaluate on images it has not seen",
        look=easier_than_training,
        forwards=_same(1 + _PGD),
        reads_pgd=True,
    ),
}


def _of_data(asks: str, fails: str, follows: str) -> Doubt:
    look = lambda _: not_run("it is asked of the data, not of a classifier")  # noqa: E731
    return Doubt(asks, fails, follows, look, _same(0))


# With what is asked of the data, by :func:`overlaps`: all that the documentation lists.
DOUBTS: dict[str, Doubt] = {
    **CHECKS,
    _LEAKED: _of_data(
        asks="is no test image a training image?",
        fails="more than 1 % of the test images are training images, pixel by pixel",
        follows="all numbers above are too high by up to that share; take these images out of one "
        "of the parts, and train again if they were learnt from",
    ),
    _CHOSEN: _of_data(
        asks="are epochs chosen by images that are neither learnt from nor tested on?",
        fails="more than 1 % of the validation images are training or test images, pixel by pixel",
        follows="the numbers of the best epoch are too high, or it is not the best: take those of "
        "the last one, or take these images out of one of the parts",
    ),
    _TWICE: _of_data(
        asks="is each test image there once?",
        fails="more than 1 % of the test images stand there twice, pixel by pixel",
        follows="the intervals above are too narrow, as images count that say nothing new; take "
        "the second ones out",
    ),
}


@torch.inference_mode(False)
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
    which: Sequence[str] | None = None,
    training: Batches | None = None,
    folder: str | Path | None = None,
) -> list[Check]:
    """Every reason to doubt the robust accuracy of ``classifier``, looked into.

    With a ``folder`` each verdict is written there as soon as it is found, and a call that was
    killed and is repeated reads it, under the same classifier, images, settings and packages.

    Neither the order of the images nor how they are put into batches tells: they are taken in an
    order of their own, 32 at once, or as many as the largest of ``batches`` holds if those are
    fewer. What all of it costs is :func:`forwards`: about 850 an image for ten classes.

    Args:
        classifier: images to logits (B, K), float32; left as it was.
        batches: of images (B, C, H, W) in [0, 1], float32, and labels (B,).
        ball: the threat model whose robust accuracy is to be believed.
        branches: classifiers by name, if the BatchNorm branches of one encoder were finetuned
            apart. Branches inside ``classifier`` are found without it.
        autoattack: compare PGD with AutoAttack standard, not with multi-targeted PGD, where it
            knows the ball.
        max_images: how many images are looked at, from the first on.
        seed: of everything that is drawn.
        progress: called after each check.
        which: names out of :data:`CHECKS`; without it all that can be asked.
        training: images and labels that the classifier learnt from, as it is evaluated on them:
            not augmented, and with about the same share of each class as the test images. As many
            are looked at. With them it is asked whether test images are the easier ones.
        folder: where verdicts are kept.

    Returns:
        The checks in the order of :data:`CHECKS`, whatever their verdicts: eight, or nine with
        training images.

    Raises:
        ValueError: on no images, on labels and logits that make no sense, and on a name that no
            check has. Logits that are not finite are a doubt.
    """
    check_module("classifier", classifier)
    check_ball("ball", ball)
    names, seed = _chosen(which, training is not None), seed_of(seed)
    taken = first(batches, max_images)
    outside = _out_of_range(taken, names)
    if outside:
        return outside
    learnt = [] if training is None else arranged(first(training, max_images))
    case = Case(
        Differentiable(classifier), arranged(taken), ball, branches or {}, autoattack, seed, learnt
    )
    shelf = _Shelf(None if folder is None else folder_at(folder), case)
    checks = {name: shelf.read(name) for name in names}
    if None in checks.values():
        with suppress(NotFinite):  # a doubt; what else is wrong with labels or logits is an error
            _ = case.clean
    for done, name in enumerate(names, start=1):
        checks[name] = check = checks[name] or _looked_into(name, case)
        shelf.write(check)
        (progress or ignored)("doubts", done, len(names))
    return [check for check in checks.values() if check]


def leaked(found: Repeats) -> Check:
    """Whether test images are among the training images: a doubt about every number.

    Args:
        found: how many are, and of how many test images, as
            :func:`~advssl.evaluation.census.checked` counts: its ``repeats["test in train"]``.
    """
    return _named(_LEAKED, DOUBTS[_LEAKED], repeated({"test in train": found}))


def overlaps(repeats: Mapping[str, Repeats]) -> list[Check]:
    """Whether images are there again where they must not be: doubts about the data.

    Args:
        repeats: a :class:`~advssl.evaluation.census.Census`'s. Of no image nothing is asked.
    """
    found = {
        name: {where: repeats[where] for where in places if where in repeats and repeats[where].of}
        for name, places in _OVERLAPS.items()
    }
    return [_named(name, DOUBTS[name], repeated(some)) for name, some in found.items() if some]


def forwards(
    ball: Ball,
    shape: Sequence[int],
    classes: int,
    *,
    branches: int = 0,
    which: Sequence[str] | None = None,
    training: bool = False,
) -> Range:
    """How many forwards :func:`doubts` takes for each image, at least and at most.

    A backward to the input counts as one. With ``autoattack`` what that costs is to be added.

    Args:
        ball: the threat model.
        shape: (C, H, W) of an image.
        classes: of the classifier.
        branches: of BatchNorm, inside the classifier or given.
        which: names out of :data:`CHECKS`; without it all.
        training: whether training images are given.
    """
    asked = [CHECKS[name] for name in _chosen(which, training)]
    cost = Cost(ball, shape, classes, branches)
    each = [doubt.forwards(cost) for doubt in asked]
    read = any(doubt.reads_pgd and most for doubt, (_, most) in zip(asked, each, strict=True))
    shared = 1 + (_PGD if read else 0)
    return shared + sum(least for least, _ in each), shared + sum(most for _, most in each)


@dataclass(frozen=True)
class _Shelf:
    """A folder with one file per verdict, found by all that it depends on; or none."""

    folder: Path | None
    case: Case

    def read(self, name: str) -> Check | None:
        place = self._place(name)
        found = place and kept(*place)
        return Check(**found) if found else None

    def write(self, check: Check) -> None:
        place = self._place(check.name)
        if place:
            keep(*place, asdict(check))

    def _place(self, name: str) -> tuple[Path, str] | None:
        if self.folder is None:
            return None
        identity = fingerprint_of(self._identity, name)
        return self.folder / f"doubt-{identity[:32]}.json", identity

    @cached_property
    def _identity(self) -> str:
        case = self.case
        device = device_of(case.classifier, case.batches[0][0]).type
        return identity_of(*(getattr(case, f.name) for f in fields(case)), device)


def _chosen(which: Sequence[str] | None, training: bool) -> list[str]:
    """Names of checks, in the table's order."""
    if which is None:
        return [name for name in CHECKS if training or name != _AGAINST_TRAINING]
    asked = list(several("which", which, "names of checks", "; write a list of one name"))
    unknown = [name for name in asked if name not in CHECKS]
    if unknown or not asked:
        raise ValueError(f"which must name checks out of {list(CHECKS)}, got {unknown or asked}")
    return [name for name in CHECKS if name in asked]


def _looked_into(name: str, case: Case) -> Check:
    doubt = CHECKS[name]
    try:
        return _named(name, doubt, doubt.look(case))
    except ValueError as error:
        # An attack that breaks down (a loss that is not finite) left the classifier untested.
        check = Check(name, "fail", f"the check broke down: {error}", {})
        return replace(check, follows="no number above is to be believed: the attack could not run")


def _named(name: str, doubt: Doubt, check: Check) -> Check:
    follows = doubt.follows if check.verdict == "fail" else ""
    return replace(check, name=name, follows=follows)


def _out_of_range(
    batches: Sequence[tuple[Images, Labels]], names: Sequence[str]
) -> list[Check] | None:
    """Nothing can be said about pixels that are none."""
    pairs = [x.aminmax() for x, _ in batches]
    low, high = min(float(p.min) for p in pairs), max(float(p.max) for p in pairs)
    if (low >= 0 and high <= 1) or math.isnan(low):  # which is refused later
        return None
    seen = f"images lie in [{low:.3g}, {high:.3g}], not in [0, 1]"
    advice = f"{seen}; put the normalisation into the classifier"
    if low >= 0 and high > 2:
        advice = f"{seen}; divide them by 255, and the radius with them"
    failed = Check(_INPUTS, "fail", advice, {"low": low, "high": high})
    return [
        _named(name, CHECKS[name], failed) if name == _INPUTS else Check(name, "not run", seen, {})
        for name in names
    ]
