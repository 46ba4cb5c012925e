"""Loading: a backbone's name and a checkpoint to what is evaluated, and what to say of it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from advssl.evaluation.checkpoints import bn_branches, load_encoder
from advssl.evaluation.classifiers import load_classifier
from advssl.evaluation.data import Data
from advssl.evaluation.records import Model
from advssl.evaluation.sharing import device_here
from advssl.pixels import Pixels

_TRIED = 4  # images that a classifier is tried on


class Networks(NamedTuple):
    """What is evaluated.

    Attributes:
        modules: by BatchNorm branch, on the device of this process.
        pixels: of their input.
        model: for the record.
        unnormalised: what is to be said where images go in as they are, and the code that writes
            such a checkpoint normalises them.
    """

    modules: dict[str | None, nn.Module]
    pixels: Pixels
    model: Model
    unnormalised: str | None = None


def encoders(
    name: str | None,
    network: nn.Module | None,
    checkpoint: str | None,
    branches: Sequence[str] | None,
    pixels: Pixels,
    *,
    say: Callable[[Any], None] = print,
    **how: Any,
) -> Networks:
    """A backbone with random weights, or with those of a file, of each of its branches.

    Args:
        name: of the backbone.
        network: the backbone, with random weights.
        checkpoint: a file.
        branches: of its BatchNorm; None is all it has.
        pixels: of the input; a file that brings its own is read where nothing is said here.
        say: told what was read.
        how: of :func:`advssl.evaluation.checkpoints.load_encoder`.
    """
    if name is None or network is None:
        raise ValueError("an encoder is a backbone by name, got none")
    if checkpoint is None:
        return Networks({None: network.to(device_here())}, pixels, Model(backbone=name))
    found: dict[str | None, nn.Module] = {}
    for branch in branches or bn_branches(network, checkpoint, **how) or (None,):
        encoder = copy.deepcopy(network)
        loaded = load_encoder(encoder, checkpoint, bn_branch=branch, **how)
        say(loaded)
        found[loaded.bn_branch] = encoder.to(device_here())
    if loaded.normalization and pixels.mean is None:
        mean, std = loaded.normalization
        pixels = Pixels(tuple(mean), tuple(std))
    model = Model(backbone=name, checkpoint=Path(checkpoint).name, format=loaded.format)
    return Networks(found, pixels, model, loaded.unnormalised if pixels.mean is None else None)


def classifiers(
    name: str | None,
    network: nn.Module | None,
    checkpoint: str | None,
    branches: Sequence[str] | None,
    pixels: Pixels,
    data: Data,
    *,
    say: Callable[[Any], None] = print,
    **how: Any,
) -> Networks:
    """Classifiers with their own heads, of images in [0, 1] to the classes of ``data``.

    Args:
        name: of the backbone; None, as ``network``, of a folder that says itself what it holds.
        network: the backbone, with random weights.
        checkpoint: a file or a folder.
        branches: as for :func:`encoders`.
        pixels: likewise; it goes into the classifiers.
        data: whose classes they know.
        say: told what was read.
        how: of :func:`advssl.evaluation.classifiers.load_classifier`.
    """
    if not branches and network and checkpoint and not os.path.isdir(checkpoint):
        with suppress(ValueError):  # what is wrong with the file is said below
            branches = bn_branches(network, checkpoint, **how)
    test: Any = data.test
    images = torch.stack([test[i][0] for i in range(min(_TRIED, len(test)))])
    found: dict[str | None, nn.Module] = {}
    for branch in branches or (None,):
        loaded = load_classifier(
            name,
            checkpoint,
            classes=data.classes,
            images=images,
            mean=pixels.mean,
            std=pixels.std,
            bn_branch=branch,
            **how,
        )
        say(loaded)
        found[branch] = loaded.classifier.to(device_here())
    model = Model(
        backbone=loaded.backbone,
        checkpoint=Path(checkpoint).name if checkpoint else None,
        format=loaded.report.format if loaded.report else None,
        mean=loaded.mean,
        std=loaded.std,
    )
    unnormalised = loaded.report.unnormalised if loaded.report else None
    return Networks(found, Pixels(), model, unnormalised)
