"""Costs: how many forwards attacks, doubts and trainings take.

One forward F is one image through the network; a backward to the input counts as one more, one to
the weights as two.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from advssl.evaluation.attacks import PGD, AutoAttack, Clean, MultiTargetedPGD
from advssl.evaluation.autoattack import MOST_TARGETS
from advssl.evaluation.protocols import Protocol

_ITERATIONS, _QUERIES = 100, 5_000  # of AutoAttack standard's ascents and of its Square


class Range(NamedTuple):
    """Forwards: at least, where every image falls at once, and at most, where all stand."""

    least: int
    most: int

    def times(self, count: int) -> Range:
        return Range(self.least * count, self.most * count)

    def spared(self) -> Range:
        """With images that are wrong without an attack, which take one."""
        return Range(min(1, self.least), self.most)

    def plus(self, other: Range) -> Range:
        return Range(self.least + other.least, self.most + other.most)


NOTHING = Range(0, 0)


def forwards(attack: Any, classes: int) -> Range | None:
    """What an attack costs :func:`measure` per image that is right without it, and 1 per other.

    None of one that is not ours.
    """
    targets = min(MOST_TARGETS, classes - 1)
    if isinstance(attack, Clean):
        return Range(1, 1)
    if isinstance(attack, PGD):
        climb = 2 * attack.steps + 1
        return Range(2 + climb, 2 + climb * attack.restarts)
    if isinstance(attack, MultiTargetedPGD):
        climb = 2 * attack.steps + 1
        return Range(2 + climb, 2 + climb * min(attack.targets or MOST_TARGETS, targets))
    if isinstance(attack, AutoAttack):
        ascent = 2 * _ITERATIONS + 3
        # FAB: a forward and a backward to two logits in each step, and two forwards around it.
        standing = targets * (ascent + 4 * _ITERATIONS) + _QUERIES
        return Range(2 + ascent, 2 + ascent + standing)
    return None


def of_probe(how: Protocol, train: int, validation: int, natural: bool) -> int:
    """Of a protocol's whole training."""
    attacked = {"ce": 0, "pgd": 20, "trades": 21}[how.loss]
    step = 1 + attacked + (2 if how.trains_encoder else 0) + (how.loss == "trades")
    features = train if how.reads == "standard" else 0
    if made_once(how, natural):
        return train + validation
    if how.loss == "ce" and not how.trains_encoder:
        return features + how.epochs * train * step + validation
    return features + how.epochs * (train * step + validation * (1 if how.loss == "ce" else 22))


def made_once(how: Protocol, natural: bool) -> bool:
    """Whether a frozen encoder's features are the same in every epoch."""
    return not how.trains_encoder and how.loss == "ce" and not (natural and how.augments)


def sum_of(ranges: Iterable[Range]) -> Range:
    """Of all together."""
    total = NOTHING
    for one in ranges:
        total = total.plus(one)
    return total
