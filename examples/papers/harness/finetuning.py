"""Finetuning: a pretrained encoder, trained on by a method that a copy of it teaches."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from advssl.evaluation.folders import Folder
from advssl.evaluation.identity import dataset_fingerprint, fingerprint_of, keep, kept
from advssl.evaluation.images import IMAGE_ENDINGS
from harness import fastest
from harness.data import Loader
from harness.method import Method
from harness.plans import digest
from harness.recording import as_json
from harness.schedules import Recipe
from harness.training import pretrain


class Unlabelled(Folder):
    """All images below a folder, whatever folders they are in.

    Raises:
        ValueError: if there is none.
    """

    def __init__(self, place: Path, size: int) -> None:
        found = sorted(str(p) for p in place.rglob("*") if p.name.lower().endswith(IMAGE_ENDINGS))
        if not found:
            raise ValueError(f"--images: no image below {place} (of {', '.join(IMAGE_ENDINGS)})")
        self.root, self.size, self.targets = str(place), size, [-1] * len(found)
        self.samples = [(path, -1) for path in found]


def attacked_in(steps: int) -> dict[str, Any]:
    """Settings of so many steps, which reach the edge of the ball from wherever they start."""
    return {"steps": steps, "relative_step": max(0.25, 1.5 / steps)}


def finetune(
    method: Method,
    images: Any,
    folder: Path,
    *,
    recipe: Recipe,
    seed: int = 0,
    precision: str | None = None,
    deadline: float | None = None,
) -> float | None:
    """Train ``method``, whose encoder is a pretrained one, where it was left off in ``folder``.

    Args:
        method: trained in place, on the device of this process.
        images: to train on, all of one size; their labels are not read.
        folder: of checkpoints, which belong to all of this.
        recipe: how long and how fast.
        seed: of the order, the shifts and the attacks.
        precision: Lightning's; None is the fastest here.
        deadline: as for :func:`harness.training.pretrain`.

    Returns:
        Seconds of training, earlier starts included; None if the deadline passed before the end.
    """
    precision = precision or fastest.precision()
    identity = as_json(
        {
            "settings": asdict(method.settings),
            "recipe": asdict(recipe),
            "seed": seed,
            "precision": precision,
            "images": dataset_fingerprint(images),
            "start": fingerprint_of(type(method), method.state_dict(), method.pixels),
        }
    )
    place = folder / f"finetuning-{digest(identity)}"
    there = kept(place / "method.pt", digest(identity))
    if there is None:
        torch.manual_seed(seed)
        seconds = pretrain(
            fastest.laid_out(method),
            recipe,
            lambda *_: Loader(images, recipe.batch_size, seed=seed),
            len(images) // recipe.batch_size,
            folder=place,
            identity=identity,
            name=method.title,
            seed=seed,
            precision=precision,
            deadline=deadline,
        )
        if seconds is None:
            return None
        there = {"weights": method.state_dict(), "seconds": seconds}
        keep(place / "method.pt", digest(identity), there)
    method.load_state_dict(there["weights"])
    return float(there["seconds"])
