"""Selection: labels and predictions to who attracts and who repels. Masks only, no geometry."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from advssl.types import Labels, PairMask, described


class Pairs(NamedTuple):
    """Row i is anchor i. No example is its own pair: the losses leave both diagonals out.

    Attributes:
        positives: (N, N) bool, who attracts the anchor.
        denominator: (N, N) bool, who stands in its softmax: the positives and who repels. A
            positive may be left out, as in the printed form of Eq. 9 of ASCL-2023.
    """

    positives: PairMask
    denominator: PairMask


# Equal numbers are one class, negative ones too: see :func:`told_apart`.
Selection: TypeAlias = Callable[[Labels, Tensor | None], Pairs]


def global_pairs(labels: Labels, predictions: Labels | None = None) -> Pairs:  # noqa: ARG001
    """Same label attracts, any other label repels: supervised contrastive learning.

    Reference: Bui et al. 2021, Table 1 "Global", https://arxiv.org/abs/2101.10027
    """
    same = _equal(labels, labels)
    return _pairs(same, ~same)


def hard_pairs(labels: Labels, predictions: Labels | None) -> Pairs:
    """Same label attracts; of the rest, those predicted as the anchor's *label* repel.

    Reference: Bui et al. 2021, Table 1 "Hard-LS"
    """
    same = _equal(labels, labels)
    return _pairs(same, ~same & _equal(labels, _needed(predictions, "hard")))


def soft_pairs(labels: Labels, predictions: Labels | None) -> Pairs:
    """Same label attracts; of the rest, those predicted as the anchor is *predicted* repel.

    Reference: Bui et al. 2021, Table 1 "Soft-LS"
    """
    same, predicted = _equal(labels, labels), _needed(predictions, "soft")
    return _pairs(same, ~same & _equal(predicted, predicted))


def leaked_pairs(labels: Labels, predictions: Labels | None) -> Pairs:
    """Only those predicted as the anchor is count: same label attracts, any other repels.

    Reference: Bui et al. 2021, Table 1 "Leaked-LS"
    """
    same, predicted = _equal(labels, labels), _needed(predictions, "leaked")
    alike = _equal(predicted, predicted)
    return _pairs(same & alike, ~same & alike)


SELECTIONS: dict[str, Selection] = {
    "global": global_pairs,
    "hard": hard_pairs,
    "soft": soft_pairs,
    "leaked": leaked_pairs,
}


def selection_of(selection: str | Selection) -> Selection:
    """The function that a name stands for, or that was given; else raise."""
    known = SELECTIONS.get(selection) if isinstance(selection, str) else selection
    if not callable(known):
        raise ValueError(
            f"selection must be one of {sorted(SELECTIONS)} or a function of labels and "
            f"predictions that returns Pairs, got {selection!r}"
        )
    return known


def told_apart(classes: Labels, first: int = 0) -> Labels:
    """Negative entries, which mean "none", as different numbers below -``first``; no sync."""
    classes = classes.long()  # torch compares no uint16
    own = -1 - first - torch.arange(len(classes), device=classes.device)
    return torch.where(classes < 0, own, classes)


def distinct(pairs: Pairs, size: int, device: torch.device) -> Pairs:
    """``pairs`` as copies without their diagonals: nobody attracts or repels itself.

    Raises:
        ValueError: unless they are ``Pairs`` of (``size``, ``size``) bool masks on ``device``.
    """
    if not isinstance(pairs, Pairs):
        raise ValueError(
            "a selection must return Pairs(positives, denominator), the positives standing in the "
            f"denominator too, got {described(pairs)}"
        )
    for name, mask in (("positives", pairs.positives), ("denominator", pairs.denominator)):
        fits = isinstance(mask, Tensor) and mask.dtype == torch.bool
        if not fits or mask.shape != (size, size) or mask.device != device:
            where = f" on {mask.device}" if isinstance(mask, Tensor) else ""
            raise ValueError(
                f"{size} anchors need a bool mask of {name} of shape {(size, size)} on {device}, "
                f"got {described(mask)}{where}; labels and predictions belong where embeddings are"
            )
    return Pairs(*(mask.clone().fill_diagonal_(False) for mask in pairs))


def with_twins(pairs: Pairs) -> Pairs:
    """Row i of the first half and row i of the second, an image and its adversarial twin, attract.

    Args:
        pairs: masks over 2B rows, the B images first and then their twins in the same order.
    """
    positives, denominator = pairs.positives.clone(), pairs.denominator.clone()
    half = len(positives) // 2
    for mask in (positives, denominator):
        mask.diagonal(half).fill_(True)
        mask.diagonal(-half).fill_(True)
    return Pairs(positives, denominator)


def _equal(anchors: Labels, others: Labels) -> PairMask:
    return anchors[:, None] == others


def _needed(predictions: Labels | None, name: str) -> Labels:
    if predictions is None:
        raise ValueError(
            f'selection "{name}" needs predictions, got None; pass logits.argmax(dim=1) of the '
            'images and of their adversarial twins, or use selection "global"'
        )
    return predictions


def _pairs(attracting: PairMask, repelling: PairMask) -> Pairs:
    positives = attracting.clone().fill_diagonal_(False)
    return Pairs(positives, positives | repelling)
