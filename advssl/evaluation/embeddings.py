"""Embeddings: features of clean and of attacked images to a plane, and how sure a classifier is."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor, nn

from advssl.evaluation.batches import Batches, class_balanced, pairs
from advssl.evaluation.divergences import check_encoder
from advssl.evaluation.features import check_finite
from advssl.evaluation.linear import encoded
from advssl.evaluation.logits import Logits, borrowed, device_of, logits_of
from advssl.evaluation.provenance import needed
from advssl.evaluation.search import Attack, check_attack
from advssl.types import Embeddings, Images, PerExample, check_embeddings, seed_of, whole

Points: TypeAlias = tuple[tuple[float, float], ...]

_PERPLEXITY = 30.0  # scikit-learn's and the field's, as far as there are points for it


@dataclass(frozen=True)
class Plane:
    """Features of images and of attacked ones in one plane.

    Attributes:
        clean: a point for each image.
        labels: of each.
        entropy: of the classifier's prediction, in nats, from 0 to log of the number of classes.
        chosen: places of the images that were attacked.
        attacked: a point for each of those.
        attacked_entropy: likewise.
    """

    clean: Points
    labels: tuple[int, ...]
    entropy: tuple[float, ...]
    chosen: tuple[int, ...]
    attacked: Points
    attacked_entropy: tuple[float, ...]

    @cached_property
    def at_home(self) -> float:
        """Of clean images, the share whose nearest other clean point is of their own class."""
        return self._at_home(self.clean, range(len(self.clean)))

    @cached_property
    def attacked_at_home(self) -> float:
        """Of attacked ones, likewise: an image's own clean point does not count."""
        return self._at_home(self.attacked, self.chosen)

    def _at_home(self, points: Points, own: tuple[int, ...] | range) -> float:
        with torch.device("cpu"):
            rows, labels = torch.tensor([*own]), torch.tensor(self.labels)
            apart = torch.cdist(torch.tensor(points).double(), torch.tensor(self.clean).double())
            apart[torch.arange(len(rows)), rows] = torch.inf
        return float((labels[apart.argmin(dim=1)] == labels[rows]).double().mean())


def tsne(features: Embeddings, *, seed: int = 0) -> Tensor:
    """Features to points whose neighbours are the same: t-SNE by scikit-learn.

    Distances between clusters, and their sizes, mean nothing.

    Args:
        features: (N, D), floating point, finite.
        seed: the same gives the same points on the same machine.

    Returns:
        (N, 2), float64, on the CPU.

    Raises:
        ValueError: on fewer than four rows, and on other features than these.
        ImportError: without scikit-learn.

    Reference: van der Maaten and Hinton 2008, https://jmlr.org/papers/v9/vandermaaten08a.html
    """
    check_embeddings(features=features)
    check_finite(features)
    seed = seed_of(seed, range(2**32))
    if len(features) < 4:
        raise ValueError(f"t-SNE needs four rows of features at least, got {len(features)}")
    rows = features.detach().double().cpu()
    centred = rows - rows.mean(dim=0)
    size = float(centred.abs().amax())
    if size > 1e15 or 0 < size < 1e-15:  # scikit-learn squares in float32, and crashes on 0 / 0
        rows = centred / size
    manifold = needed("sklearn.manifold")
    search = manifold.TSNE(
        perplexity=min(_PERPLEXITY, (len(rows) - 1) / 3),
        init="pca" if rows.shape[1] > 1 and bool(rows.var(dim=0).any()) else "random",
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="sklearn")
        return torch.from_numpy(search.fit_transform(rows.numpy())).double()


def entropy(logits: Logits) -> PerExample:
    """(B,): of the classes' probabilities, in nats."""
    log_probs = logits.log_softmax(dim=1)
    return -(log_probs.exp() * log_probs).sum(dim=1)


def plane(
    classifier: nn.Module,
    attack: Attack,
    batches: Batches,
    *,
    encoder: nn.Module | None = None,
    attacked: int = 100,
    seed: int = 0,
) -> Plane:
    """Images, and some of them under an attack, by t-SNE of their features in one plane.

    The paper takes 1,000 images and 100 attacked ones; AdvCL's Figure 4 and ASCL-2023's Figure 3
    show the clean ones alone.

    Args:
        classifier: a module, images in [0, 1] to logits, which is attacked; left as it was.
        attack: such as ``PGD()``.
        batches: pairs of images (B, C, H, W), float32 in [0, 1], and labels (B,).
        encoder: images in [0, 1] to features (B, D). None is the encoder of a probe's
            :class:`~advssl.evaluation.probes.Classifier`.
        attacked: how many, class-balanced; all, if there are fewer.
        seed: of the attack, of the choice and of t-SNE.

    Raises:
        ValueError: on fewer than four images, on a classifier without an encoder of its own where
            none is given, and on features or logits that are not finite.
        ImportError: without scikit-learn.

    Reference: ASCL, Fig. 7, https://arxiv.org/abs/2101.10027; AdvCL, Fig. 4,
    https://arxiv.org/abs/2111.01124
    """
    check_encoder(classifier, encoder)
    check_attack(attack)
    attacked, seed = whole("attacked", attacked, 1), seed_of(seed)
    owner = classifier if encoder is None else encoder
    given = [*pairs(batches)]
    labels = torch.cat([y.cpu() for _, y in given]) if given else torch.empty(0)
    if len(labels) < 4:
        raise ValueError(f"a plane needs four images at least, got {len(labels)}")
    chosen = class_balanced(labels, min(attacked, len(labels)), seed)
    clean = [_seen(classifier, owner, x, seed) for x, _ in given]
    hard, start = list[tuple[Tensor, Tensor]](), 0
    for x, y in given:
        here = chosen[(chosen >= start) & (chosen < start + len(y))] - start
        start += len(y)
        if len(here):
            found = attack(classifier, x[here.to(x.device)], y[here.to(y.device)], seed=seed)
            hard.append(_seen(classifier, owner, found, seed))
    features, sure = (torch.cat(column) for column in zip(*clean, *hard, strict=True))
    check_finite(features)
    points: Points = tuple((x, y) for x, y in tsne(features, seed=seed % 2**32).tolist())
    n, spread = len(labels), sure.tolist()
    return Plane(
        clean=points[:n],
        labels=tuple(labels.tolist()),
        entropy=tuple(spread[:n]),
        chosen=tuple(chosen.tolist()),
        attacked=points[n:],
        attacked_entropy=tuple(spread[n:]),
    )


def _seen(
    classifier: nn.Module, owner: nn.Module, images: Images, seed: int
) -> tuple[Tensor, Tensor]:
    """Features and entropies, on the CPU."""
    with borrowed(classifier, device_of(classifier, images), seed), torch.no_grad():
        sure = entropy(logits_of(classifier, images.to(device_of(classifier, images)))).cpu()
    with borrowed(owner, device_of(owner, images), seed), torch.no_grad():
        return encoded(owner, images.to(device_of(owner, images))).cpu(), sure
