"""Features: what a frozen encoder answers, made once; images and features read in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from advssl.evaluation.batches import check_batch
from advssl.evaluation.data import Sample, batches
from advssl.modes import evaluating, frozen
from advssl.types import Labels


def featurised(classifier: Any, dataset: Dataset[Sample]) -> TensorDataset:
    device, width = next(classifier.parameters()).device, classifier.linear.in_features
    features = [torch.empty(0, width, device="cpu")]
    labels = [torch.empty(0, dtype=torch.int64, device="cpu")]
    with torch.no_grad(), frozen(classifier), evaluating(classifier):
        for images, classes in in_order(dataset):
            features.append(classifier.features(images.to(device)).cpu())
            labels.append(classes)
            check_finite(features[-1])
    return TensorDataset(torch.cat(features), torch.cat(labels))


def check_finite(features: Tensor) -> None:
    if not features.isfinite().all():
        raise ValueError(
            "the encoder's features are not finite, and no probe reads NaN or infinity; look "
            "whether its pretraining diverged"
        )


def in_order(dataset: Any, batch_size: int = 256) -> Iterator[tuple[Tensor, Labels]]:
    rows = torch.arange(len(dataset), device="cpu")
    return _read(dataset, torch.split(rows, batch_size))


def shuffled(
    dataset: Any, batch_size: int, order: torch.Generator
) -> Iterator[tuple[Tensor, Labels]]:
    rows = torch.randperm(len(dataset), generator=order, device="cpu")
    return _read(dataset, parts(rows, batch_size))


def parts(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Batches of a training: one example left over joins the last."""
    parts = list(torch.split(rows, batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1 < batch_size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _read(dataset: Any, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Labels]]:
    """Batches of features and labels, or of images and labels, those checked; on the CPU."""
    for rows in filter(len, parts):
        if isinstance(dataset, TensorDataset) and dataset.tensors[0].ndim == 2:
            yield dataset.tensors[0][rows], dataset.tensors[1][rows]
            continue
        ((images, labels),) = batches(Subset(dataset, rows.tolist()), len(rows))
        images = images.float() if images.is_floating_point() else images
        check_batch(images, labels)
        yield images, labels
