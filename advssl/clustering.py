"""Clustering: spherical k-means of a dataset's features, in batches of rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advssl.losses import unit
from advssl.precision import product, widen
from advssl.types import described, is_matrix

_BATCH_ELEMENTS = 2**21  # of the largest temporary: 8 MB stays near a CPU's cache
_MAX_ITERATIONS = 300
_TOLERANCE = 1e-4  # the relative gain in mean cosine distance below which k-means ends
_SAME = 1e-6  # a cosine distance that float32 cannot tell from 0
_SAMPLE, _SAMPLE_PER_CLUSTER = 4096, 8  # rows on which k-means starts


def check_matrix(features: Any) -> None:
    """Raise unless :func:`is_matrix`."""
    if not is_matrix(features):
        raise ValueError(
            "features must be floating point of shape (N, D), "
            f"got {described(features)}; flatten(1) a feature map first"
        )


def check_finite(finite: bool) -> None:
    """Raise unless ``finite``, which one rank finds out for all."""
    if not finite:
        raise ValueError(
            "features must have finite rows, got inf or nan; "
            "look at the network or the images they come from"
        )


def directions(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features of these directions and what makes each row a unit vector: 0 for a zero row.

    The features are those given, unless a row is so long or short that float32 does not hold its
    square; then they are a copy at length one. A row that is not finite has the scale nan.
    """
    peaks = torch.cat([x.abs().amax(1) for _, x in _batches(features, 1, wide=True)])
    if bool(((peaks > 1e15) | ((peaks < 1e-15) & (peaks > 0))).any()):
        features = torch.cat([unit(x).float() for _, x in _batches(features, 1, wide=True)])
    lengths = torch.cat([x.norm(dim=1) for _, x in _batches(features, 1)])
    return features, torch.where(lengths.isfinite(), 1 / lengths, torch.nan).masked_fill(
        lengths == 0, 0
    )


def nearest(features: Tensor, centroids: Tensor, counts: Sequence[int]) -> Tensor:
    """The nearest of the first K centroids, of the next K', ...: (M, D) -> (M, counts) int64."""
    labels = []
    for _, x in _batches(features, len(centroids)):
        scores = torch.split(product(x, centroids.mT), list(counts), dim=1)
        labels.append(torch.stack([s.argmax(1) for s in scores], dim=1))
    return torch.cat(labels)


def k_means(features: Tensor, scale: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Spherical k-means on a sample, then from there on all rows: (N, D) -> (k, D) of length 1.

    Args:
        features: (N, D), and beside them
        scale: (N,), as :func:`directions` gives them.
        k: how many clusters, at most N.
        generator: on the features' device; it alone decides.
    """
    order = torch.randperm(len(features), generator=generator, device=features.device)
    drawn = order[: max(_SAMPLE, _SAMPLE_PER_CLUSTER * k)]
    sample = features[drawn].float() * scale[drawn, None]
    centroids = _plus_plus(sample, k, generator)
    # Most iterations are spent finding the clusters, for which few rows will do.
    centroids = _iterate(sample, scale[drawn].sign(), centroids)
    return _iterate(features, scale, centroids)


def checksum(features: Tensor) -> int:
    """The first 8 bytes of the sha256 of the features as float32."""
    digest = hashlib.sha256()
    for _, x in _batches(features, 1):
        digest.update(x.cpu().numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


def _iterate(features: Tensor, scale: Tensor, centroids: Tensor) -> Tensor:
    """Lloyd's iterations until they converge: (k, D) -> (k, D) of length 1."""
    before = float("inf")
    for _ in range(_MAX_ITERATIONS):
        sums, distances = _lloyd(features, scale, centroids)
        lengths = sums.norm(dim=1, keepdim=True)
        empty = (lengths == 0).squeeze(1).nonzero().squeeze(1)
        worst = distances.topk(len(empty))
        # Points on top of a centroid are no place for another: k may exceed the distinct points.
        adrift = worst.indices[worst.values > _SAME]
        now = distances.mean().item()
        if not len(adrift) and before - now <= _TOLERANCE * now:
            break
        before = now
        centroids = torch.where(lengths > 0, sums / lengths, centroids)
        centroids[empty[: len(adrift)]] = features[adrift].float() * scale[adrift, None]
    return centroids


def _lloyd(features: Tensor, scale: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Each centroid's sum of nearest unit vectors (k, D), each row's cosine distance to it (N,).

    Among unit vectors ‖x - c‖² = 2 - 2 x·c, so the nearest centroid has the largest product, also
    with a row that was not made unit-length first. A zero row counts nowhere: distance 0.
    """
    sums = torch.zeros_like(centroids)
    closest = torch.empty_like(scale)
    for part, x in _batches(features, len(centroids)):
        closest[part], labels = product(x, centroids.mT).max(1)
        # embedding_bag, not index_add_, whose order of addition is random on a GPU.
        labels, order = labels.sort(stable=True)
        starts = torch.searchsorted(labels, torch.arange(len(centroids), device=x.device))
        weights = scale[part][order]
        sums += F.embedding_bag(order, x, starts, mode="sum", per_sample_weights=weights)
    return sums, scale.sign() - closest * scale


def _plus_plus(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: (N, D) of length 1 (or 0: never drawn) -> k of the rows.

    Of a few candidates, drawn in proportion to their distance from what is chosen already (among
    unit vectors the squared distance of k-means++), keep the one that lowers the sum most.

    Reference: Arthur & Vassilvitskii 2007, k-means++: the advantages of careful seeding.
    """
    candidates = min(2 + int(math.log(k)), len(x))
    distances = x.norm(dim=1)
    chosen = []
    for _ in range(k):
        # The largest of weight / exponential noise: draws by weight, and without a cumulative sum.
        noise = torch.empty_like(distances).exponential_(generator=generator)
        drawn = x[(distances / noise).topk(candidates).indices]
        then = torch.minimum(distances, (1 - product(drawn, x.mT)).clamp_min_(0))
        best = then.sum(1).argmin()
        distances = then[best]
        chosen.append(drawn[best])
    return torch.stack(chosen)


def _batches(features: Tensor, width: int, *, wide: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """Rows, so many that neither they nor ``width`` numbers per row grow large.

    In float32; if ``wide``, in float64 where the features are.
    """
    rows = max(1, _BATCH_ELEMENTS // max(width, features.shape[1]))
    for start in range(0, len(features), rows):
        part = slice(start, start + rows)
        yield part, widen(features[part]) if wide else features[part].float()
