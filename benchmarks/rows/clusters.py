"""k-means of ``ClusterFitHead`` beside libraries' own, at equal inertia."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advssl import ClusterFitHead
from rows.measuring import Bench, Call, Claim, Row, installed

EQUAL = 1.01  # of two inertias that count as one
_KORNIA_HOLDS = 2e9  # bytes: it holds every point minus every centre, and is not asked for more
_KORNIA_ITERATIONS = 10  # it would go on for minutes

Fit = Callable[[int], Tensor]  # from a seed to labels


def k_means(bench: Bench, k: int) -> Row:
    """One number of clusters, another seed in every turn.

    The goal is against the fastest of those whose mean inertia is not above ours.
    """
    size, width = bench.sizes.points
    k = min(k, size // 4)
    features = unit_features(bench)
    held = size * k * width * 4
    makers = {name: m for name, m in PEERS.items() if name != "kornia" or held <= _KORNIA_HOLDS}
    made: dict[str, Fit | None] = {"advssl": ours(features, k)}
    made |= {name: installed(lambda m=make: m(features, k)) for name, make in makers.items()}
    labels: dict[str, list[Tensor]] = {name: [] for name, fit in made.items() if fit}
    turns = bench.turns(
        {name: fit and seeded(fit, labels[name]) for name, fit in made.items()}, once=["kornia"]
    )
    reached = {
        name: fmean(inertia(features, found, k) for found in all_found)
        for name, all_found in labels.items()
    }
    what = f"ClusterFitHead.fit, {size:,} × {width}, K = {k}"
    claims = [turns.claim(what, "advssl", name, None) for name in makers]
    for claim in claims:
        if claim.values:
            claim.note = f"its inertia {reached[claim.against] / reached['advssl'] - 1:+.1%}"
    equal = [c for c in claims if c.values and reached[c.against] <= EQUAL * reached["advssl"]]
    if equal:
        min(equal, key=lambda claim: claim.other or 0.0).goal = 1.0
    others = [value for name, value in reached.items() if name != "advssl"]
    if others:
        share = reached["advssl"] / min(others)
        claims.append(Claim(f"{what}, inertia", "the lowest of the others", [share], EQUAL))
    if len(makers) < len(PEERS):
        claims.append(Claim(what, "kornia", [], note=f"would hold {held / 1e9:.0f} GB"))
    return Row(claims, turns.times, checks={"inertia": reached})


def seeded(fit: Fit, labels: list[Tensor]) -> Call:
    """A fit with seed 0, then 1 and so on, whose labels are kept."""
    seeds = count()
    return lambda: labels.append(fit(next(seeds)))


def unit_features(bench: Bench) -> Tensor:
    """Of unit length, and as an encoder's: rectified, a few directions strong, groups unequal."""
    size, width = bench.sizes.points
    torch.manual_seed(1)
    centres = 1.5 * torch.randn(50, 32)
    group = (50 * torch.rand(size).square()).long()
    latent = centres[group] + torch.randn(size, 32)
    strength = torch.arange(1, 33).float().rsqrt()[:, None]
    features = latent @ (strength * torch.randn(32, width)) + torch.randn(size, width)
    return F.normalize(F.relu(features), dim=1).to(bench.device)


def inertia(features: Tensor, labels: Tensor, k: int) -> float:
    """Σ ‖x − the mean of x's cluster‖², for unit-length x: N − Σ ‖sum of a cluster‖² / its size."""
    sums = features.new_zeros(k, features.shape[1], dtype=torch.float64)
    sums.index_add_(0, labels, features.double())
    counts = labels.bincount(minlength=k).clamp_min(1)
    return len(features) - (sums.square().sum(dim=1) / counts).sum().item()


def ours(features: Tensor, k: int) -> Fit:
    def fit(seed: int) -> Tensor:
        head = ClusterFitHead(1, (k,)).to(features.device)
        head.fit(features, seed=seed)
        return head.pseudo_labels[:, 0]

    return fit


def scikit_learn(features: Tensor, k: int) -> Fit:
    from sklearn.cluster import KMeans

    points = features.cpu().numpy()

    def fit(seed: int) -> Tensor:
        fitted = KMeans(k, n_init=1, random_state=seed).fit(points)
        return torch.from_numpy(fitted.labels_).long().to(features.device)

    return fit


def faiss(features: Tensor, k: int) -> Fit:
    from faiss import Kmeans

    points = features.cpu().numpy()

    def fit(seed: int) -> Tensor:
        # By default it would fit a sample of 256 points per cluster.
        fitted = Kmeans(points.shape[1], k, max_points_per_centroid=len(points), seed=seed + 1)
        fitted.train(points)
        labels: np.ndarray = fitted.index.search(points, 1)[1][:, 0]
        return torch.from_numpy(labels).to(features.device)

    return fit


def kornia(features: Tensor, k: int) -> Fit:
    from kornia.contrib import KMeans

    def fit(seed: int) -> Tensor:
        fitted = KMeans(k, None, max_iterations=_KORNIA_ITERATIONS, seed=seed)
        fitted.fit(features)
        return fitted.cluster_assignments

    return fit


PEERS: dict[str, Callable[[Tensor, int], Fit]] = {
    "scikit-learn": scikit_learn,
    "faiss": faiss,
    "kornia": kornia,
}
