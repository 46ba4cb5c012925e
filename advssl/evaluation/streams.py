"""Streams: a dataset in batches, in order, read ahead by threads and never held as a whole."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from advssl.evaluation.datasets import InMemory, check_dataset, sample_of, targets, unit_range
from advssl.evaluation.folders import Folder
from advssl.evaluation.images import read_image
from advssl.evaluation.progress import Progress, ignored
from advssl.types import Images, Labels, whole

Batch: TypeAlias = tuple[Images, Labels]
T = TypeVar("T")
R = TypeVar("R")

_MOST_THREADS = 16
SMALL = 2**28  # bytes of images or features that are held in memory


class Stream:
    """Batches of a dataset in order: read anew each time it is iterated, and never held.

    Image files are read by as many threads as there are cores, which share memory with no other
    process. The order is the dataset's, whichever thread is first, and an error is that of the
    first image that has one, as if one after the other were read. Images in memory and datasets of
    other kinds, which may draw random numbers, are read by the thread that iterates.

    Args:
        dataset: of :func:`targets`' kinds, or any other of samples (image, label).
        size: images in a batch; the last may be smaller.
        rows: those of the dataset to give, in their order; all by default.

    Raises:
        ValueError: on no dataset, and, as it is iterated, on a sample that is no image (C, H, W) in
            floating point with a whole number, or whose image is not as large as the others.
    """

    def __init__(self, dataset: Any, size: int, rows: Sequence[int] | None = None) -> None:
        check_dataset("dataset", dataset)
        self.dataset, self.size = dataset, whole("size", size, least=1)
        self.rows: Sequence[int] = range(len(dataset)) if rows is None else rows

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        starts = range(0, len(self.rows), self.size)
        return in_parts(self.dataset, (self.rows[i : i + self.size] for i in starts))


def batches(dataset: Any, size: int) -> list[Batch]:
    """The whole of a dataset, in order, in batches; no random number is drawn.

    All are held at once; :class:`Stream` gives the same without that.
    """
    return list(Stream(dataset, size))


def held(dataset: Any, progress: Progress = ignored) -> Any:
    """The same samples, their files read once if all images take less than 256 MB; else as it is.

    For what is read in every epoch: a file of CIFAR-10's size takes longer to read than a small
    encoder takes for it. Files of more than 8 bits are left where they are.
    """
    if not _of_kind(dataset, Folder) or not len(dataset):
        return dataset
    first, _ = _stored(dataset, 0)
    if first.dtype != torch.uint8 or len(dataset) * first.numel() > SMALL:
        return dataset
    images = torch.empty(len(dataset), *first.shape, dtype=torch.uint8, device="cpu")
    read = partial(_stored, dataset)
    for row, (image, _) in enumerate(ordered(read, range(len(dataset)), threads_for(dataset))):
        if image.dtype != torch.uint8:
            return dataset
        images[row] = image
        progress("reading images", row + 1, len(dataset))
    return InMemory(images, targets(dataset))


def in_parts(dataset: Any, parts: Iterable[Sequence[int]]) -> Iterator[Batch]:
    """A batch for each part: its rows of the dataset, in that order. See :class:`Stream`."""
    for images, labels in _gathered(dataset, (list(part) for part in parts if len(part))):
        yield images, torch.tensor(labels, dtype=torch.int64, device="cpu")


def _gathered(dataset: Any, parts: Iterable[list[int]]) -> Iterator[tuple[Images, list[int]]]:
    if _of_kind(dataset, InMemory):
        for part in parts:
            places = [base_of(dataset, row) for row in part]
            yield places[0][0].gathered([place for _, place in places])
        return
    ahead: deque[list[int]] = deque()  # the parts that are being read

    def rows() -> Iterator[int]:
        for part in parts:
            ahead.append(part)
            yield from part

    files = _of_kind(dataset, Folder)
    read = partial(_stored if files else sample_of, dataset)
    samples: Iterator[tuple[Tensor, int]] = ordered(read, rows(), threads_for(dataset))
    for first in samples:
        part = ahead.popleft()
        images, labels = zip(first, *islice(samples, len(part) - 1), strict=True)
        _check_alike(part, images)
        yield _stacked(images) if files else torch.stack(images), list(labels)


def _check_alike(rows: Sequence[int], images: Sequence[Tensor]) -> None:
    shape = images[0].shape
    for row, image in zip(rows, images, strict=True):
        if image.shape != shape:
            raise ValueError(
                f"all images must have one shape, got {tuple(image.shape)} in sample {row} beside "
                f"{tuple(shape)} in sample {rows[0]}; resize or crop them to one"
            )


def _stored(dataset: Any, row: int) -> tuple[Tensor, int]:
    """The image in a file, before it is made floating point."""
    folder, place = base_of(dataset, row)
    path, label = folder.samples[place]
    return folder.fitted(read_image(path)), label


def _stacked(images: Sequence[Tensor]) -> Images:
    # All at once, by the thread that iterates: OpenMP's threads would get into each other's way.
    if all(image.dtype == torch.uint8 for image in images):
        return unit_range(torch.stack(list(images)))
    return torch.stack([unit_range(image) for image in images])


def ordered(
    read: Callable[[T], R], items: Iterable[T], threads: int, ahead: int = 256
) -> Iterator[R]:
    """``read`` of each item, in order; done ``ahead`` of need in threads, if there are any."""
    if not threads:
        yield from map(read, items)
        return
    left = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[R]] = deque(pool.submit(read, one) for one in islice(left, ahead))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(read, one) for one in islice(left, 1))
        finally:  # an error, or nobody wants the rest
            pool.shutdown(wait=True, cancel_futures=True)


def threads_for(dataset: Any) -> int:
    """How many threads read a dataset: none but for files of images, and on one core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, _MOST_THREADS) if _of_kind(dataset, Folder) and cores != 1 else 0


def base_of(dataset: Any, row: int) -> tuple[Any, int]:
    """What a sample is stored in, and where there."""
    while isinstance(dataset, Subset | ConcatDataset):
        if isinstance(dataset, Subset):
            indices: Any = dataset.indices
            dataset, row = dataset.dataset, int(indices[row])
        else:
            ends = dataset.cumulative_sizes
            part = bisect_right(ends, row)
            dataset, row = dataset.datasets[part], row - (ends[part - 1] if part else 0)
    return dataset, row


def _of_kind(dataset: Any, kind: type) -> bool:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, ConcatDataset) and kind is Folder:
        return all(_of_kind(part, kind) for part in dataset.datasets)
    return type(dataset) is kind
