"""Features of a dataset's images, in the dataset's order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler, Subset

from advssl.indexed import IndexedDataset
from advssl.integrations.lightning.batches import image_of
from advssl.modes import evaluating
from advssl.types import Images, embeddings_of

_CLUSTERED = 64  # images at a time, where the caller does not say
_LABELS = ("label", "labels", "target", "targets")


def extracted(
    extractor: Callable[[Images], Tensor], images: Any, enough: float = float("inf")
) -> tuple[Tensor, Tensor | None]:
    """Features (N, D') and, where the batches hold them, the images' own classes (N,).

    Of all images, or of the first batches that together have ``enough``.
    """
    modules = [extractor] if isinstance(extractor, nn.Module) else []
    like = next((p for m in modules for p in m.parameters()), None)
    found: list[Tensor] = []
    labels: list[Tensor | None] = []
    with evaluating(*modules), torch.no_grad():
        for batch in _in_order(images):
            if sum(len(z) for z in found) >= enough:
                break
            x = image_of(batch)
            if like is not None:
                both = x.is_floating_point() and like.is_floating_point()
                x = x.to(like.device, like.dtype if both else x.dtype)
            found.append(embeddings_of("extractor", extractor(x), len(x)))
            labels.append(labels_of(batch, len(x)))
    if not found:
        raise ValueError(
            "images has no batch to cluster; give a DataLoader or the dataset, not a generator "
            "that was read before"
        )
    known = [own for own in labels if own is not None]
    return torch.cat(found), torch.cat(known) if len(known) == len(found) else None


def labels_of(batch: Any, size: int = 1) -> Tensor | None:
    """(size,): the classes in a batch, or in one sample, where they stand as datasets have them."""
    if isinstance(batch, Mapping):
        batch = [None, *(batch[name] for name in _LABELS if name in batch)]
    label = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    several = label if isinstance(label, Sequence) else [label]
    if several and all(isinstance(one, int) for one in several):
        label = torch.tensor(several, device="cpu")
    if not isinstance(label, Tensor) or label.is_floating_point() or label.numel() != size:
        return None
    return label.flatten().long().cpu()


def share_alike(ours: list[int], theirs: list[int]) -> tuple[float, float]:
    """How many of the samples have one's class by the other's, as they stand and as by chance.

    One naming of classes may be the other's, or coarser: what counts is the best map of one to the
    other. A negative class says that a sample has none; all are alike where none has one in both.
    """
    both = [pair for pair in zip(ours, theirs, strict=True) if min(pair) >= 0]
    if not both:
        return 1.0, 1.0

    def best(pairs: Iterable[tuple[int, int]]) -> float:
        most: tuple[dict[int, int], ...] = ({}, {})
        for pair, count in Counter(pairs).items():
            for label, counts in zip(pair, most, strict=True):
                counts[label] = max(counts.get(label, 0), count)
        return max(sum(counts.values()) for counts in most) / len(both)

    shuffled = random.Random(0).sample([other for _, other in both], len(both))
    return best(both), best((one, other) for (one, _), other in zip(both, shuffled, strict=True))


def _in_order(images: Any) -> Iterable[Any]:
    """Batches in the dataset's order, all of it."""
    if isinstance(getattr(images, "iterable", None), DataLoader):  # inside a progress bar
        images = images.iterable
    if isinstance(images, Tensor) and images.ndim == 4:
        return [images]
    if isinstance(images, Dataset) and not isinstance(images, IterableDataset):
        return DataLoader(images, batch_size=_CLUSTERED)
    if isinstance(images, DataLoader):
        if isinstance(images.dataset, IterableDataset):
            return images
        size = images.batch_size
        if images.batch_sampler is not None:
            size = getattr(images.batch_sampler, "batch_size", _CLUSTERED)
        return DataLoader(
            images.dataset,
            batch_size=size,
            num_workers=images.num_workers,
            collate_fn=images.collate_fn,
            timeout=images.timeout,
            worker_init_fn=images.worker_init_fn,
            multiprocessing_context=images.multiprocessing_context,
        )
    # The iterator of a DataLoader has its sampler below the batches'.
    sampler = getattr(getattr(images, "_index_sampler", images), "sampler", None)
    if sampler is not None and not isinstance(sampler, SequentialSampler):
        raise ValueError(
            f"images come in the order of a {type(sampler).__name__}, pseudo-labels belong to "
            "images in the dataset's order; give the dataset, or a loader that does not shuffle"
        )
    return cast("Iterable[Any]", images)


def order_of(images: Any) -> tuple[int, list[int]] | None:
    """The length of the whole below a dataset's subsets, and the places of its samples there."""
    data = images.dataset if isinstance(images, DataLoader) else images
    if not isinstance(data, Dataset | Tensor) or not hasattr(data, "__len__"):
        return None
    places = list(range(len(data)))
    while isinstance(data, Subset | IndexedDataset):
        if isinstance(data, Subset):
            places = [int(data.indices[place]) for place in places]
        data = data.dataset
    return len(data), places
