"""Chosen: which of the test images are attacked, read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Subset

from advssl.evaluation.attacks import class_balanced
from advssl.evaluation.data import batches, targets
from advssl.types import Images, Labels, whole

BATCH = 100  # images attacked at once
_IN_MEMORY = 2**30  # bytes; more are read again each time
# One choice of images whatever the seed is: reports of several seeds are paired by image.
_SEED = 0


class Chosen:
    """Images of a dataset in batches on a device; what :func:`measure` goes through.

    Args:
        dataset: of images and labels, with ``targets``.
        rows: which of them, in this order.
        size: of a batch.
        device: where they go.
    """

    def __init__(
        self, dataset: Any, rows: Sequence[int], size: int, device: torch.device | None = None
    ) -> None:
        self.dataset, self.rows = dataset, list(rows)
        self.size, self.device = whole("batch_size", size, 1), device
        self._kept: list[tuple[Images, Labels]] = []

    @property
    def n(self) -> int:
        """How many images."""
        return len(self.rows)

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def __iter__(self) -> Iterator[tuple[Images, Labels]]:
        if len(self._kept) == len(self):
            yield from self._kept
            return
        kept, held = list[tuple[Images, Labels]](), 0
        for start in range(0, self.n, self.size):
            part = Subset(self.dataset, self.rows[start : start + self.size])
            ((images, labels),) = batches(part, self.size)
            held += images.nbytes
            if self.device is not None:
                images, labels = images.to(self.device), labels.to(self.device)
            if held <= _IN_MEMORY:
                kept.append((images, labels))
            yield images, labels
        if held <= _IN_MEMORY:
            self._kept = kept

    def first(self, count: int) -> Chosen:
        """The first of them."""
        part = self._of(self.rows[:count], self.size)
        if len(self._kept) == len(self) and count % self.size == 0:
            part._kept = self._kept[: len(part)]
        return part

    def in_batches(self, size: int) -> Chosen:
        """The same in batches of another size."""
        return self if size == self.size else self._of(self.rows, size)

    def balanced(self, count: int) -> Chosen:
        """A class-balanced part of them, in their order."""
        labels = self.labels
        rows = [self.rows[i] for i in balanced(labels, min(count, self.n))]
        return self._of(rows, self.size)

    def _of(self, rows: Sequence[int], size: int) -> Chosen:
        return Chosen(self.dataset, rows, size, self.device)

    @property
    def labels(self) -> list[int]:
        known = targets(self.dataset)
        return [known[i] for i in self.rows]


def attacked(
    dataset: Any, count: int, size: int, device: torch.device | None, *, drawn: bool = False
) -> Chosen:
    """The images that an evaluation attacks, class-balanced: what a comparison finds again.

    Args:
        dataset: the test images.
        count: how many at most; 0 is all.
        size: of a batch.
        device: where they go.
        drawn: in the order of their choice, of which every beginning is class-balanced too, and not
            in that of the dataset.
    """
    labels = targets(dataset)
    count = min(count or len(labels), len(labels))
    rows = nested(labels)[:count] if drawn else balanced(labels, count)
    return Chosen(dataset, rows, size, device)


def balanced(labels: Sequence[int], count: int) -> list[int]:
    """As many indices, class-balanced, the same whatever is evaluated, ascending."""
    if count == len(labels):
        return list(range(count))
    return class_balanced(labels, count, _SEED).tolist()


def nested(labels: Sequence[int]) -> list[int]:
    """All indices in an order of which every beginning is class-balanced."""
    return class_balanced(labels, len(labels), _SEED, ascending=False).tolist()
