"""Watching: what the papers draw of a training, looked at after its epochs and kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from advssl import Linf
from advssl.evaluation.anchors import Terms
from advssl.evaluation.chosen import attacked
from advssl.evaluation.identity import keep, kept
from advssl.evaluation.lightning import ClassTerms
from advssl.evaluation.plain_json import msgspec
from harness import chain
from harness.chain import Plan, digest

WATCHED = ("over-training",)  # what a figure shows
_IMAGES = 256  # so few that looking at them takes less than an epoch
_LOOKS = 20  # at a training, of less than forty epochs up to twice as many


def watch(plan: Plan, radius: float) -> ClassTerms:
    """What looks at a training with labels after each epoch, on test images."""
    ((images, labels),) = attacked(chain.open_plan(plan).test, _IMAGES, _IMAGES, None)
    return ClassTerms(
        images,
        labels,
        on="method.encoder",
        classifier=_own,
        ball=Linf(radius),
        every=max(1, plan.recipe.epochs // _LOOKS),
    )


def _own(module: Any) -> nn.Module:
    """The classifier that a method trains."""
    return module.method.classifier()


def history(plan: Plan, seen: ClassTerms, out: Path) -> dict[int, Terms]:
    """What was seen of a training by epoch: now, or when it was done.

    Raises:
        ValueError: if it was done without being watched.
    """
    key = digest(asdict(plan))
    path = out / "work" / f"watched-{key}.json"
    if seen.history:
        keep(path, key, as_plain(seen.history))
    found = kept(path, key)
    if found is None:
        raise ValueError(
            f"{plan.method} is trained in {out} already, and nobody watched; name another --out"
        )
    return {int(epoch): msgspec.convert(told, Terms) for epoch, told in found.items()}


def as_plain(seen: Mapping[int, Terms]) -> dict[str, Any]:
    """As JSON has it."""
    return {str(epoch): asdict(terms) for epoch, terms in seen.items()}
