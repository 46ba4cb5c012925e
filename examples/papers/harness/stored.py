"""Training images as they are stored: held in memory when they fit, else read when asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset, Subset

from advssl.evaluation.data import InMemory, Sample

_LARGE = 5_000  # images whose decoding takes long enough to watch


class Batch(NamedTuple):
    """Training images as they are stored.

    Attributes:
        images: (B, C, H, W), uint8 or float32 in [0, 1]; see :func:`pixels`.
        labels: (B,) int64; -1 where there is none.
        index: (B,) int64, which images of the training set these are.
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides what a tuple has of that name


def pixels(images: Tensor) -> Tensor:
    """Stored images as float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


class Held:
    """All images as one tensor, of which ``rows`` are the training set, if not all."""

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        self.images, self.labels, self.rows = images, labels, rows

    def __getitem__(self, index: Tensor) -> Batch:
        stored = index if self.rows is None else self.rows[index]
        return Batch(self.images[stored], self.labels[stored], index)


class Streamed(Dataset[Batch]):
    """Images that are read when they are asked for."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Batch:
        image, label = self.dataset[index]
        return Batch(_stored(image), torch.tensor(label), torch.tensor(index))


def _stored(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8)


def in_memory(dataset: Dataset[Sample], memory_gb: float, *, watched: bool) -> Held | None:
    """The dataset as tensors, or None if it takes more than that."""
    rows, below = None, dataset
    while isinstance(below, Subset):
        chosen = torch.as_tensor(below.indices)
        rows, below = chosen if rows is None else chosen[rows], below.dataset
    if isinstance(below, InMemory) and below.size is None:
        return Held(below.images, torch.tensor(below.targets), rows)
    size, shape = len(dataset), dataset[0][0].shape  # type: ignore[arg-type]
    if size * shape.numel() > memory_gb * 1e9:
        return None
    images = torch.empty(size, *shape, dtype=torch.uint8)
    labels = torch.empty(size, dtype=torch.int64)

    def read(i: int) -> None:
        image, labels[i] = dataset[i]
        images[i] = _stored(image)

    with ThreadPoolExecutor() as pool:
        # Reading a file and decoding it hold no lock of Python's.
        reading = pool.map(read, range(size))
        shown = watched and size > _LARGE
        for _ in track(reading, "Reading images", total=size, disable=not shown):
            pass
    return Held(images, labels)
