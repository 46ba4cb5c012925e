"""Measures: embeddings in, one number out; and neighbours as logits that can be attacked."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advssl.evaluation.batches import check_labels
from advssl.losses import unit
from advssl.precision import product
from advssl.selection import Selection, distinct, global_pairs, selection_of, told_apart
from advssl.types import (
    Embeddings,
    Labels,
    check_device,
    check_embeddings,
    check_indices,
    described,
    positive,
)


def soft_neighbours(
    embeddings: Embeddings, bank: Embeddings, labels: Labels, *, temperature: float = 0.1
) -> Tensor:
    r"""Log-probabilities of a nearest neighbour classifier with a gradient.

        log p(c | z) = log Σ_{i: y_i = c} exp(z·z_i / τ) - log Σ_i exp(z·z_i / τ)

    Every example of the bank votes, the nearer the more; where τ → 0 the nearest alone does. No
    vote is cut off, so that an attack climbs what the accuracy is of.

    Args:
        embeddings: z (B, D), of any length: cosines are compared.
        bank: z_i (N, D), whose labels are known.
        labels: y_i (N,), integers from 0 on; leave images without a label out.
        temperature: τ, in cosine units.

    Returns:
        (B, K) for the classes 0 to the highest of ``labels``; -inf for one that the bank lacks.

    Reference: Goldberger et al. 2004, neighbourhood components analysis
    """
    temperature = positive("temperature", temperature)
    check_embeddings(embeddings=embeddings)
    check_embeddings(bank=bank)
    check_device("embeddings", embeddings, bank.device)
    check_labels(labels, len(bank))
    if embeddings.shape[1] != bank.shape[1]:
        raise ValueError(
            "embeddings and bank must be (B, D) and (N, D), got "
            f"{described(embeddings)} and {described(bank)}"
        )
    labels = labels.long()  # torch compares no uint16
    votes = product(unit(embeddings), unit(bank).mT) / temperature
    classes = range(int(labels.max()) + 1)
    of_class = [votes[:, labels == c].logsumexp(dim=1) for c in classes]
    return torch.stack(of_class, dim=1) - votes.logsumexp(dim=1, keepdim=True)


def alignment(one: Embeddings, other: Embeddings) -> float:
    """The mean squared distance of positive pairs on the unit sphere, in [0, 4].

    Row i of one (B, D) and of the other are two views of an image.

    Reference: Wang and Isola 2020, https://arxiv.org/abs/2005.10242
    """
    check_embeddings(one=one, other=other)
    return float((unit(one) - unit(other)).square().sum(dim=1).mean())


def uniformity(embeddings: Embeddings) -> float:
    """log E exp(-2 ‖z - z'‖²) over pairs of different images of (B, D) on the unit sphere.

    In [-8, 0]: 0 where all are one point; the lower, the more evenly they are spread.

    Raises:
        ValueError: on fewer than two images.

    Reference: Wang and Isola 2020, https://arxiv.org/abs/2005.10242
    """
    check_embeddings(embeddings=embeddings)
    if len(embeddings) < 2:
        raise ValueError("uniformity is of pairs of images, got one image")
    apart = torch.nn.functional.pdist(unit(embeddings)).square()
    return float((-2 * apart).logsumexp(dim=0)) - math.log(len(apart))


def feature_deviation(benign: Embeddings, attacked: Embeddings) -> float:
    """How far an attack moves embeddings (B, D) on the unit sphere, a mean over images, in [0, 2].

    Row i of both is of the same image.
    """
    check_embeddings(benign=benign, attacked=attacked)
    return float((unit(benign) - unit(attacked)).norm(dim=1).mean())


def pairs_kept(labels: Labels, predictions: Labels, selection: str | Selection = "leaked") -> float:
    """The share of a batch's pairs that local selection keeps, of those of the global one.

    Args:
        labels: (N,), integer; a negative one says that the image has none, and equals no other.
        predictions: (N,), integer: what a classifier makes of the same images.
        selection: see :class:`~advssl.LocalSelectionSupCon`.

    Reference: Bui et al. 2021, https://arxiv.org/abs/2101.10027
    """
    select = selection_of(selection)
    check_indices(None, labels=labels, predictions=predictions)
    labels, predictions = told_apart(labels), told_apart(predictions, first=len(labels))
    kept, every = (
        distinct(pairs, len(labels), labels.device).denominator.sum()
        for pairs in (select(labels, predictions), global_pairs(labels))
    )
    return float(kept / every)
