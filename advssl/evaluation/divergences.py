"""Divergences: features of clean and of attacked images to how far classes spread and lie apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from advssl.evaluation.batches import Batches, check_labels, pairs
from advssl.evaluation.features import check_finite
from advssl.evaluation.linear import Classifier
from advssl.evaluation.logits import borrowed, check_module, device_of
from advssl.evaluation.search import Attack, check_attack
from advssl.losses import unit
from advssl.types import (
    Embeddings,
    Labels,
    check_embeddings,
    embeddings_of,
    seed_of,
    whole,
)


@dataclass(frozen=True)
class Divergences:
    """How far apart features lie, as cosine distances from 0 to 2.

    Attributes:
        intra: d⁺ₐ, from a clean image to others of its class, clean and attacked.
        inter: d⁻ₐ, to those of other classes.
    """

    intra: float
    inter: float

    @property
    def relative(self) -> float:
        """R-DIV, d⁺ₐ / d⁻ₐ: the lower, the more robust (the paper's O1); NaN if all lie alike."""
        return self.intra / self.inter if self.inter else math.nan


class Clouds(NamedTuple):
    """Features of the same images in the same order.

    Attributes:
        clean: (N, D), float32, on the CPU, as are the others.
        attacked: (N, D).
        labels: (N,).
    """

    clean: Embeddings
    attacked: Embeddings
    labels: Labels


def divergences(
    clean: Embeddings,
    attacked: Embeddings,
    labels: Labels,
    *,
    batch_size: int = 128,
    seed: int = 0,
) -> Divergences:
    r"""Absolute and relative intra- and inter-class divergence of features under an attack.

    In a batch of clean images xⱼ and attacked ones xⱼᵀ, with the cosine distance d of features z::

        d⁺ₐ = 1/N Σ_i 1/|X_i⁺| Σ_{X_i⁺} d(z_i, z_j)     X_i⁺ = { xⱼ, xⱼᵀ | j ≠ i, y_j = y_i }
        d⁻ₐ = 1/N Σ_i 1/|X_i⁻| Σ_{X_i⁻} d(z_i, z_j)     X_i⁻ = { xⱼ, xⱼᵀ | j ≠ i, y_j ≠ y_i }

    and R-DIV = d⁺ₐ / d⁻ₐ. An image's own attacked copy is in neither set. Anchors are averaged over
    all batches; one without another image of its class, or of another, in its batch is left out.
    A batch is an unbiased sample of all pairs, so that its size does not matter on average;
    ``batch_size=len(labels)`` takes all pairs, in the same time.

    Args:
        clean: (N, D), of any length, floating point.
        attacked: (N, D), of the same images; ``clean`` again gives the divergences without attack.
        labels: (N,), integer, from 0 on; leave images without a label out.
        batch_size: the paper's is 128.
        seed: images are put into batches at random, whatever their order.

    Raises:
        ValueError: on features or labels of other shapes, features that are not finite, and if no
            batch has an image with others of its class and of another.

    Reference: ASCL, Section 2 and its supplement, https://arxiv.org/abs/2101.10027

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> divergences(z, z, torch.tensor([0, 0, 1, 1]))
        Divergences(intra=0.0, inter=1.0)
    """
    check_embeddings(clean=clean, attacked=attacked)
    check_labels(labels, len(clean))
    batch_size, seed = whole("batch_size", batch_size, 2), seed_of(seed)
    for features in (clean, attacked):
        check_finite(features)
    z, z_adv = unit(clean.detach().double()), unit(attacked.detach().double())
    draw = Generator("cpu").manual_seed(seed)
    order = torch.randperm(len(z), generator=draw, device="cpu").to(z.device)
    labels = labels.to(z.device).long()  # torch sorts no uint16
    anchors = torch.cat(
        [_of_anchors(z[part], z_adv[part], labels[part]) for part in torch.split(order, batch_size)]
    )
    if not len(anchors):
        raise ValueError(
            f"no batch of {batch_size} holds two images of one class and one of another, of "
            f"{len(labels)} in {len(torch.unique(labels))} classes; give more of them"
        )
    intra, inter = anchors.mean(dim=0).tolist()
    return Divergences(max(0.0, intra), max(0.0, inter))  # below zero by rounding alone


def _of_anchors(z: Embeddings, z_adv: Embeddings, labels: Labels) -> Tensor:
    """(A, 2): of each clean row the mean distances to its class and to others, where both are."""
    _, kind, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    both = z + z_adv  # an image and its copy are in the same sets
    of_class = both.new_zeros(len(counts), z.shape[1]).index_add_(0, kind, both)
    same, other = of_class[kind] - both, both.sum(dim=0) - of_class[kind]
    sizes = 2 * torch.stack([counts[kind] - 1, len(z) - counts[kind]], dim=1)
    cosines = torch.stack([(z * same).sum(dim=1), (z * other).sum(dim=1)], dim=1)
    return (1 - cosines / sizes)[(sizes > 0).all(dim=1)]


def clouds(
    classifier: nn.Module,
    attack: Attack,
    batches: Batches,
    *,
    encoder: nn.Module | None = None,
    seed: int = 0,
) -> Clouds:
    """Features of images, and of what an attack on a classifier makes of them.

    Args:
        classifier: a module, images in [0, 1] to logits, which is attacked; left as it was.
        attack: such as ``PGD()``.
        batches: pairs of images (B, C, H, W), float32 in [0, 1], and labels (B,).
        encoder: images in [0, 1] to features (B, D). None is the encoder of a probe's
            :class:`~advssl.evaluation.probes.Classifier`, with the classifier's mean and std.
        seed: of the attack.

    Raises:
        ValueError: on no images, on a classifier that has no encoder of its own where none is
            given, on features that are not finite, and on what the attack refuses.
    """
    check_encoder(classifier, encoder)
    check_attack(attack)
    seed = seed_of(seed)
    found = list[tuple[Tensor, Tensor, Tensor]]()
    for images, labels in pairs(batches):
        hard = attack(classifier, images, labels, seed=seed)
        z, z_adv = (features_of(classifier, encoder, x, seed) for x in (images, hard))
        found.append((z, z_adv, labels.cpu()))
    if not found:
        raise ValueError("there are no images whose features could be made; give at least one")
    return Clouds(*(torch.cat(column) for column in zip(*found, strict=True)))


def check_encoder(classifier: nn.Module, encoder: nn.Module | None) -> None:
    """Raise unless both are modules and it is known whose features are meant."""
    check_module("classifier", classifier)
    if encoder is not None:
        check_module("encoder", encoder)
    elif not isinstance(classifier, Classifier):
        raise ValueError(
            f"a {type(classifier).__name__} does not say which features to look at; give encoder="
        )


def features_of(
    classifier: nn.Module, encoder: nn.Module | None, images: Tensor, seed: int
) -> Embeddings:
    """(B, D), float32, on the CPU: of the encoder, or of the classifier's own if that is None."""
    owner = classifier if encoder is None else encoder
    device = device_of(owner, images)
    with borrowed(owner, device, seed), torch.no_grad():
        x = images.clone().to(device)
        answer = classifier.raw(x) if encoder is None else encoder(x)  # type: ignore[operator]
        features = embeddings_of("the encoder", answer, len(x)).float().cpu()
    check_finite(features)
    return features
