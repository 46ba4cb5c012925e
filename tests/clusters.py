"""Features in groups, and heads that are fitted to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from advssl.heads import ClusterFitHead

FITTED = ("pseudo_labels", "centroids", "fingerprint")


def blobs(size: int, dim: int, groups: int, *, spread: float = 0.5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    middles = torch.randn(groups, dim, generator=generator)
    noise = spread * torch.randn(size, dim, generator=generator)
    return middles[torch.randint(groups, (size,), generator=generator)] + noise


def inertia(features, labels):
    """Sum of squared distances of unit features to their own cluster's mean, in float64."""
    unit = F.normalize(features.double())
    clusters = [unit[labels == k] for k in labels.unique()]
    return sum((members - members.mean(0)).square().sum().item() for members in clusters)


def fitted(features=None, *, in_features=8, num_clusters=(2, 5), seed=0) -> ClusterFitHead:
    torch.manual_seed(1)
    head = ClusterFitHead(in_features, num_clusters)
    head.fit(blobs(60, 6, 5) if features is None else features, seed=seed)
    return head


def same_fit(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in FITTED)
