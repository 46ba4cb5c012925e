"""Classifiers with a head of their own: from a checkpoint to logits over the data's classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from advssl.evaluation.checkpoints import LoadReport
from advssl.types import Images


@dataclass(frozen=True)
class Loaded:
    """A classifier that is ready to be measured, and what was found out of it.

    Attributes:
        classifier: images (B, C, H, W) in [0, 1] to logits (B, K) over the data's K classes, in
            their order; in eval mode.
        backbone: the network's name: as given, what the folder's configuration says, or the class
            of a module.
        head: name of the head's tensors in the file; None of a module that was taken as it is.
        order: how its outputs were given to the data's classes, as one line for a report.
        report: what was taken from the file; None without one.
        mean: that its input is normalised by; None where nothing is known of any, see
            ``report.unnormalised``, or where a module does so itself.
        std: likewise.
        image_size: H = W that the checkpoint's own configuration names; None if it has none.
    """

    classifier: nn.Module
    backbone: str
    head: str | None = None
    order: str = ""
    report: LoadReport | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None

    def __str__(self) -> str:
        return "\n".join(filter(None, (str(self.report or ""), self.order)))


def load_classifier(
    network: str | nn.Module | None,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    classes: Sequence[str],
    images: Images | None = None,
    labels: Sequence[str] | None = None,
    head: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    format: str = "auto",
    prefix: str | None = None,
    allow_partial: bool = False,
    bn_branch: str | None = None,
) -> Loaded:
    """A classifier from images in [0, 1] to logits over the data's classes, or why there is none.

    Args:
        network: a backbone by name ("timm:NAME", "cifar:NAME"), to which the file's head is added;
            a module, encoder or classifier; or None for a folder that says itself what it holds
            (Hugging Face's, timm's: ``config.json`` beside the weights).
        checkpoint: file or folder. Without one ``network`` is a classifier that is taken as it is.
        classes: names of the data's classes, in the order of their labels.
        images: some of the data's, (B, C, H, W) in [0, 1]: it is tried on them.
        labels: names of the classifier's outputs, in order, where the checkpoint does not have them
            or calls them otherwise than the data.
        head: name of the head in the file, such as "fc", where there are several.
        mean: of the input, per channel, instead of what the file or folder says.
        std: likewise.
        format: as for :func:`advssl.evaluation.checkpoints.load_encoder`.
        prefix: likewise.
        allow_partial: likewise.
        bn_branch: likewise.

    Raises:
        ValueError: if there is no such file or folder, it does not fill the network, it has no head
            or several, or its outputs cannot be given to the data's classes.
        ImportError: on a Hugging Face folder without transformers, or a backbone without timm.
    """
    raise NotImplementedError
