"""Anchors: what a contrastive term with labels sees: how classes lie, and how many pairs there are.

Of one encoder, or of each checkpoint of a training, see
:class:`advssl.evaluation.lightning.ClassTerms`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, nn

from advssl.balls import Ball, Linf, check_ball
from advssl.evaluation.attacks import PGD, Attack
from advssl.evaluation.batches import check_batch, check_labels
from advssl.evaluation.divergences import Divergences, check_encoder, divergences, features_of
from advssl.evaluation.logits import borrowed, device_of, logits_of
from advssl.evaluation.search import check_attack
from advssl.selection import SELECTIONS, distinct
from advssl.types import Images, Labels, check_indices, seed_of, several, whole

_BATCH = 128  # the paper's


@dataclass(frozen=True)
class PerAnchor:
    """How many rows attract and repel an anchor, the mean over clean and attacked anchors.

    Attributes:
        positives: clean and attacked ones.
        negatives: likewise.
    """

    positives: tuple[float, float]
    negatives: tuple[float, float]


@dataclass(frozen=True)
class Terms:
    """What is found of one encoder and classifier, see :func:`class_terms`.

    Attributes:
        spread: divergences of features under the attack.
        clean: accuracy without it.
        robust: accuracy under it.
        anchors: by the selection's name, pairs in a batch.
    """

    spread: Divergences
    clean: float
    robust: float
    anchors: Mapping[str, PerAnchor]


def per_anchor(
    labels: Labels,
    predictions: Labels,
    attacked: Labels,
    selection: str = "leaked",
    *,
    batch_size: int = _BATCH,
    seed: int = 0,
) -> PerAnchor:
    """Positives and negatives per anchor in batches of images and of their attacked twins.

    Args:
        labels: (N,), integer, from 0 on.
        predictions: (N,), of the clean images.
        attacked: (N,), of the attacked ones.
        selection: "global", "hard", "soft" or "leaked", see :mod:`advssl.selection`.
        batch_size: images in a batch, the paper's by default; it has twice as many anchors.
        seed: images are put into batches at random; what is over is left out, if there is a whole
            one.

    Raises:
        ValueError: on an unknown selection, no images, and labels of other lengths.

    Reference: ASCL, Fig. 4, https://arxiv.org/abs/2101.10027

    Example:
        >>> per_anchor(*torch.tensor([[0, 0, 1], [0, 1, 1], [0, 1, 1]]))
        PerAnchor(positives=(0.5, 0.5), negatives=(0.666..., 0.666...))
    """
    if selection not in list(SELECTIONS):
        raise ValueError(f"selections are {', '.join(SELECTIONS)}, got {selection!r}")
    check_indices(None, labels=labels, predictions=predictions, attacked=attacked)
    check_labels(labels, len(labels))
    batch_size, seed = whole("batch_size", batch_size, 2), seed_of(seed)
    if not len(labels):
        raise ValueError("there are no images whose pairs could be counted; give at least one")
    order = torch.randperm(len(labels), generator=Generator().manual_seed(seed), device="cpu")
    size = min(batch_size, len(labels))
    # Positives and negatives; clean and attacked.
    counts = torch.zeros(2, 2, dtype=torch.float64, device="cpu")
    batches = torch.split(order[: len(order) - len(order) % size], size)
    for rows in batches:
        y, clean, hard = (kind.cpu()[rows] for kind in (labels, predictions, attacked))
        chosen = SELECTIONS[selection](torch.cat([y, y]), torch.cat([clean, hard]))
        positives, denominator = distinct(chosen, 2 * size, torch.device("cpu"))
        for i, mask in enumerate((positives, denominator & ~positives)):
            counts[i] += mask.view(2 * size, 2, size).sum(dim=(0, 2))
    (p, q), (m, n) = (counts / (2 * size * len(batches))).tolist()
    return PerAnchor((p, q), (m, n))


def class_terms(
    classifier: nn.Module,
    images: Images,
    labels: Labels,
    *,
    encoder: nn.Module | None = None,
    ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
    attack: Attack | None = None,
    selections: Sequence[str] = ("global", "leaked"),
    batch_size: int = _BATCH,
    seed: int = 0,
) -> Terms:
    """Divergences, accuracies and pairs per anchor of one encoder under one attack.

    Called on every checkpoint of a training it gives what ASCL draws over epochs.

    Args:
        classifier: a module, images in [0, 1] to logits, which is attacked; left as it was.
        images: (N, C, H, W), float32 in [0, 1].
        labels: (N,), integer.
        encoder: images in [0, 1] to features (B, D). None is the encoder of a probe's
            :class:`~advssl.evaluation.probes.Classifier`.
        ball: where attacked images lie.
        attack: on the classifier; None is PGD-20 in the ball.
        selections: names, see :func:`per_anchor`.
        batch_size: of divergences and pairs.
        seed: of the attack and the batches.

    Raises:
        ValueError: on what :func:`~advssl.evaluation.divergences.divergences` and
            :func:`per_anchor` refuse.

    Reference: ASCL, Figs. 2 and 4 to 6
    """
    check_batch(images, labels)
    check_encoder(classifier, encoder)
    check_ball("ball", ball)
    attack = attack or PGD(ball, 20, None)
    check_attack(attack)
    selections = [*several("selections", selections, "names of selections")]
    seed = seed_of(seed)
    hard = attack(classifier, images, labels, seed=seed)
    z, z_adv = (features_of(classifier, encoder, x, seed) for x in (images, hard))
    device = device_of(classifier, images)
    with borrowed(classifier, device, seed), torch.no_grad():
        predicted, misled = (
            logits_of(classifier, x.clone().to(device)).argmax(1).cpu() for x in (images, hard)
        )
    y = labels.cpu().long()
    return Terms(
        spread=divergences(z, z_adv, y, batch_size=batch_size, seed=seed),
        clean=float((predicted == y).double().mean()),
        robust=float((misled == y).double().mean()),
        anchors={
            name: per_anchor(y, predicted, misled, name, batch_size=batch_size, seed=seed)
            for name in selections
        },
    )
