"""Checks: a classifier under doubt, what several checks need of it, and how one answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Generator, Tensor, nn

from advssl.balls import Ball
from advssl.evaluation.attacks import PGD, AutoAttack, MultiTargetedPGD
from advssl.evaluation.batches import (
    Batches,
    batch_seed,
    check_batch,
    differentiable,
    several_of,
)
from advssl.evaluation.logits import Logits, borrowed, device_of, logits_of
from advssl.evaluation.search import Clean
from advssl.types import Images, Labels, PerExample, whole

Verdict: TypeAlias = Literal["pass", "fail", "not run"]
Known: TypeAlias = Clean | PGD | MultiTargetedPGD | AutoAttack

PGD_STEPS = 20
_AT_ONCE = 32  # images; fewer where the batches given are smaller, as memory may be short


@dataclass(frozen=True)
class Check:
    """One reason to doubt, looked into.

    Attributes:
        name: what was looked into.
        verdict: "pass", "fail" (believe no robust accuracy before this is explained) or "not run".
        evidence: one plain sentence with the numbers.
        numbers: the same for figures, as plain JSON.
        follows: what follows for the number above if it failed, else empty.
    """

    name: str
    verdict: Verdict
    evidence: str
    numbers: Mapping[str, Any]
    follows: str = ""


@dataclass(frozen=True)
class Case:
    """A classifier under doubt, and what several checks need of it."""

    classifier: nn.Module
    batches: Sequence[tuple[Images, Labels]]
    ball: Ball
    branches: Mapping[str, nn.Module]
    autoattack: bool
    seed: int
    training: Sequence[tuple[Images, Labels]] = ()

    @property
    def n(self) -> int:
        return sum(len(x) for x, _ in self.batches)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return tuple(self.batches[0][0].shape[1:])

    @cached_property
    def pgd(self) -> PGD:
        return self.pgd_in(self.ball)

    @cached_property
    def clean(self) -> PerExample:
        return self.standing(Clean())

    @cached_property
    def under_pgd(self) -> PerExample:
        return self.standing(self.pgd)

    def pgd_in(self, ball: Ball) -> PGD:
        return PGD(ball, PGD_STEPS, step_size=None)

    def standing(self, attack: Known, judge: nn.Module | None = None) -> PerExample:
        """(N,), bool: what is right under the attack, and for the judge of its images too."""
        flags = []
        for number, (x, y) in enumerate(self.batches):
            seed = batch_seed(self.seed, number)
            found = attack.search(self.classifier, x, y, seed=seed)
            rows = [found.correct]
            if judge is not None:
                rows.append(Clean().search(judge, found.images, y, seed=seed).correct)
            flags.append(torch.stack(rows, dim=1).cpu())
        return torch.cat(flags).squeeze(1)

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


class Differentiable(nn.Module):
    """A classifier whose logits have a gradient, be it zero: what cuts it is found, not raised."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Images) -> Logits:
        logits = logits_of(self.classifier, images)
        if images.requires_grad and not logits.requires_grad:
            logits = logits + 0 * images.flatten(1).sum(dim=1, keepdim=True)
        return logits


def first(batches: Batches, count: int) -> list[tuple[Images, Labels]]:
    """The first ``count`` images, no more of them read than that.

    Raises:
        ValueError: if there are none.
    """
    taken: list[tuple[Images, Labels]] = []
    count = whole("max_images", count, 1)
    for x, y in several_of(batches):
        taken.append((differentiable(x[:count]), differentiable(y[:count])))
        count -= len(x)
        if count <= 0:
            break
    if not taken:
        raise ValueError("there are no batches to look at; give at least one")
    return taken


def arranged(batches: Sequence[tuple[Images, Labels]]) -> list[tuple[Images, Labels]]:
    """The same images in an order and in batches of their own, so that neither tells.

    Raises:
        ValueError: on what are not images in [0, 1] with labels.
    """
    for x, y in batches:
        check_batch(x, y)
    at_once = min(_AT_ONCE, max(len(x) for x, _ in batches))
    rows = [(x[i], y[i]) for x, y in batches for i in range(len(x))]
    rows.sort(key=lambda row: (tuple(row[0].shape), _content(*row)))
    whole: list[tuple[Images, Labels]] = []
    for shape in dict.fromkeys(tuple(x.shape) for x, _ in rows):
        alike = [(x, y) for x, y in rows if x.shape == shape]
        images, labels = (torch.stack(column) for column in zip(*alike, strict=True))
        whole += zip(torch.split(images, at_once), torch.split(labels, at_once), strict=True)
    return whole


def _content(image: Tensor, label: Tensor) -> bytes:
    told = image.detach().cpu().contiguous().numpy().tobytes() + str(int(label)).encode()
    return hashlib.blake2b(told, digest_size=16).digest()


def answer(failed: bool, evidence: str, **numbers: Any) -> Check:
    """A check that was made; its table knows its name."""
    return Check("", "fail" if failed else "pass", evidence, numbers)


def not_run(why: str) -> Check:
    return Check("", "not run", why, {})


def beyond(share: float, threshold: float, n: int) -> bool:
    """Whether a share of ``n`` images is above the threshold, and more than a single one."""
    return share > max(threshold, 1.5 / n)


def share_of(flags: PerExample) -> float:
    return float(flags.float().mean())


def percent(share: float) -> str:
    """With a decimal, or as many as tell it from none and from all."""
    places = (p for p in range(1, 9) if not 0 < share < 1 or 0 < round(100 * share, p) < 100)
    return f"{100 * share:.{next(places, 8)}f} %"


def points(share: float) -> str:
    return f"{100 * share:.1f} points"
