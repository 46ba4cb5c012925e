"""Data of some classes alone, to pretrain on these and to finetune on others: "digits@0-4"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.utils.data import Subset

from advssl.evaluation.data import Data, InMemory, open_data
from harness.rows import classes_of as classes_of


def opened(spec: str, image_size: int | None = None) -> Data:
    """The data of a name, of the classes alone that stand behind an "@": the first to the last.

    Raises:
        ValueError: on classes that there are not, of data that is not in memory, and on what
            :func:`advssl.evaluation.data.open_data` refuses.
    """
    name, first, last = classes_of(spec)
    data = open_data(name, image_size=image_size)  # one split for all seeds
    if first is None or last is None:
        return data
    if not first < last < len(data.classes):
        raise ValueError(
            f"{name} has classes 0 to {len(data.classes) - 1}, got {spec!r}; two or more of them "
            f"are {name}@0-1"
        )
    parts = {
        part: _of(getattr(data, part), first, last) for part in ("train", "validation", "test")
    }
    return replace(data, name=spec, classes=data.classes[first : last + 1], **parts)


def _of(part: Any, first: int, last: int) -> Any:
    """Those of the classes, which are counted from 0 again."""
    rows: list[int] = list(range(len(part)))
    while isinstance(part, Subset):
        rows, part = [int(part.indices[row]) for row in rows], part.dataset
    if not isinstance(part, InMemory):
        raise ValueError("classes are chosen with @ of digits, CIFAR and STL-10, not of a folder")
    labels = [label - first if first <= label <= last else -1 for label in part.targets]
    kept = InMemory(part.images, labels, part.size)
    return Subset(kept, [row for row in rows if labels[row] >= 0])
