"""Leaks: whether the test images, or their labels, were there when the classifier was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import comb

from advssl.evaluation.census import Repeats
from advssl.evaluation.checks import Case, Check, answer, not_run, percent, share_of

# Test images that are training images raise the accuracy by their share at most: one point.
_LEAKED = 0.01
# Healthy: training images are the easier ones. By chance alone one healthy classifier in ten
# thousand has test images so much easier.
_CHANCE = 1e-4
_IMAGES = {"train": "training", "validation": "validation", "test": "test"}


def repeated(found: Mapping[str, Repeats]) -> Check:
    """Whether images are there again, pixel by pixel.

    Args:
        found: by a census's words: "test in train", or "test" of those that stand there twice.
    """
    checks = [_repeated(*one) for one in found.items()]
    worst = max(checks, key=lambda check: check.numbers["share"])
    return replace(worst, evidence="; ".join(check.evidence for check in checks))


def _repeated(where: str, found: Repeats) -> Check:
    share, (part, _, other) = found.count / max(1, found.of), where.partition(" in ")
    again = f"are {_IMAGES[other]} images too" if other else "stand there twice"
    evidence = f"of {found.of} {_IMAGES[part]} images {found.count} ({percent(share)}) {again}"
    if found.other_class:
        evidence += f", {found.other_class} of them under another label"
    if found.examples:
        evidence += ": " + ", ".join(f"{a} is {b}" for a, b in found.examples[:3])
    return answer(
        share > _LEAKED,
        evidence,
        share=share,
        count=found.count,
        of=found.of,
        other_class=found.other_class,
        examples=[list(pair) for pair in found.examples],
    )


def easier_than_training(case: Case) -> Check:
    """Test images are not easier than training images: else the classifier knows them."""
    if not case.training:
        return not_run("no training images were given")
    known = replace(case, batches=case.training)
    test = {"clean": case.clean, "under PGD": case.under_pgd}
    train = {"clean": known.clean, "under PGD": known.under_pgd}
    chance = {
        name: _chance(int(test[name].sum()), case.n, int(train[name].sum()), known.n)
        for name in test
    }
    told = ", ".join(
        f"{name} {percent(share_of(test[name]))} against {percent(share_of(train[name]))}"
        for name in test
    )
    least = min(chance.values())
    return answer(
        least < _CHANCE,
        f"accuracy on {case.n} test images against {known.n} training images: {told}; by chance "
        f"test images are so much easier {_often(least)}",
        test={name: share_of(flags) for name, flags in test.items()},
        train={name: share_of(flags) for name, flags in train.items()},
        chance=chance,
    )


def _often(chance: float) -> str:
    if chance < 1e-9:  # beyond is rounding
        return "less than once in a billion times"
    return f"once in {1 / chance:,.0f} times" if chance < 0.1 else f"in {percent(chance)} of cases"


def _chance(right: int, n: int, among: int, m: int) -> float:
    """That ``right`` of ``n`` or more are right if all n + m are alike (Fisher's exact test)."""
    total = right + among
    ways = sum(comb(n, k) * comb(m, total - k) for k in range(right, min(n, total) + 1))
    return ways / comb(n + m, total)
