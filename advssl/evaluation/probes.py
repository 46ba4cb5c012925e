"""Probes: a pretrained encoder and labelled images to a classifier to attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from advssl.balls import Ball, Linf, check_ball
from advssl.distributed import agree
from advssl.evaluation.batches import check_labels
from advssl.evaluation.data import Data, targets
from advssl.evaluation.datasets import check_dataset
from advssl.evaluation.features import check_finite, in_order
from advssl.evaluation.identity import dataset_fingerprint, fingerprint_of
from advssl.evaluation.linear import Classifier as Classifier
from advssl.evaluation.linear import accuracy as accuracy
from advssl.evaluation.logits import check_module, device_of, undisturbed
from advssl.evaluation.progress import Progress, ignored
from advssl.evaluation.protocols import PRESETS as PRESETS
from advssl.evaluation.protocols import Loss as Loss
from advssl.evaluation.protocols import Protocol as Protocol
from advssl.evaluation.protocols import Reads as Reads
from advssl.evaluation.protocols import Selects as Selects
from advssl.evaluation.protocols import default_preset as default_preset
from advssl.evaluation.protocols import preset_name as preset_name
from advssl.evaluation.protocols import protocol as protocol
from advssl.evaluation.provenance import folder_at
from advssl.evaluation.sharing import check_same
from advssl.evaluation.training import State as State
from advssl.evaluation.training import Training, read_by
from advssl.modes import copied, frozen, learning, random_state_kept
from advssl.pixels import Pixels, check_unit
from advssl.types import check_kind, embeddings_of, seed_of

_LOOKED_AT = 16  # images of a part that ranks compare


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What a protocol made of an encoder.

    Attributes:
        last: the classifier after the last epoch, in eval mode and without gradients.
        best: that after the epoch of the highest score; a frozen encoder is shared with ``last``.
        best_epoch: which that was, counted from 1; the first of several. Without validation images
            there is no score, and it is the last.
        history: the score after each epoch; NaN without validation images.
    """

    last: Classifier
    best: Classifier
    best_epoch: int
    history: tuple[float, ...]


def finetune(
    encoder: nn.Module,
    data: Data,
    how: Protocol,
    *,
    ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
    pixels: Pixels | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress = ignored,
) -> Finetuned:
    """Train a classifier on ``data.train`` and score each epoch on other images.

    The encoder that was given is left alone; the classifier has a copy, in float32. All is computed
    in float32, whatever precision and defaults are set around the call. A last batch of one image
    joins the one before it, and where there is only one image BatchNorm keeps its statistics.

    Images are read in a stream. A frozen encoder's features of images that are not augmented are
    made once, in a memory map if they are many, of which little is in memory at once: see
    :func:`advssl.evaluation.features.featurised`.
    Where ``torch.distributed`` runs, every process is given the same arguments and gets the same
    classifier: features are made in shares, and all else is done by each. Encoders are compared
    before, and of images all known labels and a few of them.

    The score is the clean accuracy on ``data.validation`` if the loss is "ce", and the accuracy
    there under PGD-10 if it is adversarial. A protocol that selects on "test" is scored under
    PGD-20 on ``data.test``:
    whoever reports its best epoch must say so.

    Args:
        encoder: normalised images to features (B, D), see :class:`Classifier`.
        data: to train on and to validate on. Without validation images the last epoch is the best.
        how: the protocol.
        ball: of every attack here, with steps of a quarter of its radius; 10 of them in training.
        pixels: mean and std of the encoder's input, with pixels in [0, 1].
        mean: per channel, without ``pixels``.
        std: likewise.
        seed: of the linear layer, the order, augmentation and attacks; the global state is kept.
        folder: where the state is kept after every epoch, in a file named by all that the result
            depends on: every image and label, the encoder with its code, all arguments, the
            packages' versions; see :mod:`advssl.evaluation.identity`. A damaged file counts as
            none. A call that was killed and is repeated goes on after the last epoch there
            and reaches the same weights, on a CPU bit for bit; a finished one trains nothing.
            A frozen encoder's features are kept there too, and every probe that reads those of the
            same images takes them from there.
        progress: called after every step of "training", and every batch of "features" before.

    Raises:
        ValueError: on an encoder, images or labels that break the above, no image to train on, or a
            training that diverged: one with a loss, weights, features or logits that are not finite
            has no accuracy. On features for which there is no room, with how many there are.
    """
    check_module("encoder", encoder)
    check_kind("data", data, Data)
    check_kind("how", how, Protocol)
    check_ball("ball", ball)
    seed = seed_of(seed)
    _check(data, how)
    if pixels is not None:
        mean, std = _normalisation(pixels, mean, std)
    images: Any = data.train
    device = device_of(encoder, torch.empty(0, device="cpu"))
    same = str((how, fingerprint_of(ball), seed, len(data.classes), len(images)))
    agree("the probe of", same, device)
    check_same("encoder", lambda: fingerprint_of(encoder))
    for name in read_by(how):
        check_same(f"data.{name}", partial(_seen_of, getattr(data, name)))
    with undisturbed(device), random_state_kept(device):
        torch.manual_seed(seed)
        classifier = untrained(encoder, data, how, mean, std)
        if how.zero_start:
            nn.init.zeros_(classifier.linear.weight)
            nn.init.zeros_(classifier.linear.bias)
        training = Training(classifier, data, how, ball, seed)
        if folder is not None:
            training.keep_in(folder_at(folder))
        last, best, best_epoch = training.finished(progress)
        return Finetuned(last, best, best_epoch, tuple(training.history))


def _normalisation(pixels: Any, mean: Any, std: Any) -> tuple[Any, Any]:
    check_unit(pixels)
    if mean is not None or std is not None:
        raise ValueError(f"pixels={pixels} says mean and std; give it alone, or the two without it")
    return pixels.mean, pixels.std


def _check(data: Data, how: Protocol) -> None:
    """Raise before the work on parts without images, and on labels that are no classes."""
    needed = {*read_by(how)} - {"validation"}
    for name in ("train", "validation", "test"):
        part: Any = getattr(data, name)
        check_dataset(f"data.{name}", part)
        if name in needed and len(part) == 0:
            raise ValueError(f"data.{name} holds no image, and this protocol needs some")
        known = _known_labels(part)
        if known is not None:
            labels = torch.as_tensor(known, device="cpu")
            check_labels(labels, len(part), len(data.classes), f" of data.{name}")


def _seen_of(part: Any) -> str:
    """All labels that are known and a few images, as a hash: what tells other images soon."""
    known, step = _known_labels(part), max(1, -(-len(part) // _LOOKED_AT))
    labels = None if known is None else torch.as_tensor(known, device="cpu")
    few: Any = Subset(part, range(0, len(part), step))
    return fingerprint_of(len(part), labels, dataset_fingerprint(few))


def _known_labels(part: Any) -> Sequence[int] | None:
    """Labels that are known without reading an image; None if they are not."""
    below = part
    while isinstance(below, Subset):
        below = below.dataset
    known = hasattr(below, "targets") and getattr(below, "target_transform", None) is None
    return targets(part) or None if known else None


def untrained(
    encoder: nn.Module,
    data: Data,
    how: Protocol,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """The classifier that a protocol trains, with a copy of the encoder, before its first step."""
    encoder = copied(encoder).float().eval()
    learning(encoder, how.trains_encoder)
    images, _ = next(in_order(data.train, 2))
    device = device_of(encoder, images)
    # The width does not depend on what is subtracted, but a ViT depends on the images' size.
    try:
        with torch.no_grad(), frozen(encoder):
            answer = encoder(images.to(device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"the encoder broke down on images of {tuple(images.shape[1:])}: {error}; give images "
            "of the channels and the size that it takes"
        ) from error
    features = embeddings_of("the encoder", answer, len(images))
    check_finite(features)
    width = features.shape[1]
    classifier = Classifier(encoder, width, len(data.classes), mean=mean, std=std, reads=how.reads)
    return classifier.to(device)
