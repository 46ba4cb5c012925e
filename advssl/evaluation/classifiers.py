"""Classifiers with a head of their own: from a checkpoint to logits over the data's classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from advssl.evaluation.checkpoints import LoadReport, check_arguments, fill
from advssl.evaluation.files import read, tensors_at
from advssl.evaluation.hub import is_folder, open_folder
from advssl.evaluation.labels import labels_of, outputs_of
from advssl.evaluation.logits import logits_of
from advssl.evaluation.normalization import Normalization
from advssl.evaluation.own_heads import width_of, with_head
from advssl.evaluation.refusals import some
from advssl.integrations.timm import backbone
from advssl.modes import evaluating
from advssl.pixels import Pixels
from advssl.types import Images, check_kind, described, several

# format, prefix, allow_partial and bn_branch of load_encoder
How: TypeAlias = tuple[str, str | None, bool, str | None]


@dataclass(frozen=True)
class Loaded:
    """A classifier that is ready to be measured, and what was found out of it.

    Attributes:
        classifier: images (B, C, H, W) in [0, 1] to logits (B, K) over the data's K classes, in
            their order; in eval mode, unless it is a module that was taken as it is.
        backbone: the network's name: as given, what the folder's configuration says, or the class
            of a module.
        head: name of the head's tensors in the file, "" where the network was filled as a whole.
        order: how its outputs were given to the data's classes, as one line for a report.
        report: what was taken from the file; None without one.
        mean: that its input is normalised by; None where nothing is known of any, see
            ``report.unnormalised``, or where a module does so itself.
        std: likewise.
        image_size: H = W that the checkpoint's own configuration names; None if it has none.
    """

    classifier: nn.Module
    backbone: str
    head: str = ""
    order: str = ""
    report: LoadReport | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None

    def __str__(self) -> str:
        head = f"the classifier's own head: {self.head}" if self.head else ""
        return "\n".join(filter(None, (str(self.report or ""), head, self.order)))


class OwnHead(nn.Module):
    """Images (B, C, H, W) in [0, 1] to logits over the data's classes.

    Args:
        model: normalised images to logits (B, outputs), see
            :func:`advssl.evaluation.logits.logits_of`.
        normalization: mean and std per channel; None leaves pixels as they are.
        width: how many outputs ``model`` has; None takes what it answers.
        outputs: the output of each class of the data; None is all, in their order.
    """

    mean: Tensor
    std: Tensor
    outputs: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        normalization: Normalization | None = None,
        width: int | None = None,
        outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.width = model, width
        mean, std = normalization or ((0.0,), (1.0,))
        made: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults
        self.register_buffer("mean", torch.tensor(mean, **made).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, **made).view(-1, 1, 1), persistent=False)
        chosen = None if outputs is None else torch.tensor(outputs, device="cpu")
        self.register_buffer("outputs", chosen, persistent=False)

    def forward(self, images: Images) -> Tensor:
        logits = logits_of(self.model, (images - self.mean) / self.std)
        if self.width not in (None, logits.shape[1]):
            raise ValueError(
                f"the classifier must answer {self.width} logits, got {logits.shape[1]}"
            )
        return logits if self.outputs is None else logits[:, self.outputs]


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

    The outputs of a checkpoint that names them (``classes``, ``class_to_idx`` or ``id2label``
    beside the weights or in ``config.json``; ImageNet's 1,000 by name or wnid) are found by name,
    in any order and of more classes than the data has: the others' logits are left out. Without
    names there must be as many outputs as classes, and they are taken in the data's order.

    Args:
        network: a backbone by name ("timm:NAME", "cifar:NAME"), to which the file's head is added;
            a module, encoder or classifier, which is filled in place; or None for a folder that
            says itself what it holds (transformers', timm's: ``config.json`` beside the weights).
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
            or several, its outputs cannot be given to the data's classes, or what it answers to
            ``images`` is no logits.
        ImportError: on a folder of transformers without that library, or a backbone without timm.
    """
    classes = [*several("classes", classes, "names of the data's classes")]
    check_kind("head", head, str | None)
    if images is not None and not (isinstance(images, Tensor) and images.ndim == 4):
        raise ValueError(f"images must be (B, C, H, W), in a tensor, got {described(images)}")
    if len(classes) < 2:
        raise ValueError(f"a classifier needs two classes at least, got {some(classes) or 'none'}")
    pixels = Pixels(mean, std)  # type: ignore[arg-type]  # it makes tuples of them
    given = None if pixels.mean is None or pixels.std is None else (pixels.mean, pixels.std)
    how = (format, prefix, allow_partial, bn_branch)
    if labels is not None:
        labels = [str(one) for one in several("labels", labels, "names of the outputs")]
    expected = len(classes if labels is None else labels)
    if checkpoint is None:
        found = _as_it_is(network)
    elif is_folder(checkpoint):
        found = _of_folder(network, checkpoint, head, how, expected)
    else:
        found = _of_file(network, checkpoint, head, how, expected)
    normalization = given or found.normalization
    if images is not None:
        images = images.to(next(found.model.parameters(), images).device)
    width = found.width
    if width is None:
        width = expected if images is None else _width(OwnHead(found.model, normalization), images)
    known = labels_of(found.beside, width)
    outputs, order = outputs_of(width, classes, labels, known)
    classifier = found.model
    chosen = None if outputs == tuple(range(width)) else outputs
    if checkpoint is not None or normalization or chosen:
        classifier = OwnHead(found.model, normalization, width, chosen)
    if checkpoint is not None:
        classifier.eval()
    if images is not None:
        _width(classifier, images)
    report, (of_mean, of_std) = found.report, normalization or (None, None)
    if report is not None:
        unnormalised = None if normalization else report.unnormalised or _of_imagenet(width)
        report = replace(report, unnormalised=unnormalised)
    return Loaded(
        classifier, found.name, found.head, order, report, of_mean, of_std, found.image_size
    )


def _width(classifier: nn.Module, images: Images) -> int:
    """How many logits it answers to images of the data, or why it answers none."""
    try:
        with torch.no_grad(), evaluating(classifier):
            return logits_of(classifier, images).shape[1]
    except (RuntimeError, AssertionError) as error:  # torch's and timm's, of shapes that do not fit
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the classifier does not read the data's images {tuple(images.shape)}: {reason}; give "
            "the image size that it was trained on, or another network"
        ) from error


def _of_imagenet(width: int) -> str | None:
    """What to do about a classifier of ImageNet's number of classes whose input is as it is."""
    if width != 1000:
        return None
    return (
        "neither file nor network normalises its input, and most classifiers of ImageNet are "
        "trained on images normalised by --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
    )


# --- where a classifier comes from ----------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A network with its head, before its outputs are given to the data's classes."""

    model: nn.Module  # normalised images to logits
    name: str
    width: int | None  # how many logits; None if only a batch tells
    beside: Mapping[Any, Any] = field(default_factory=dict)  # may name the outputs
    head: str = ""
    report: LoadReport | None = None
    normalization: Normalization | None = None
    image_size: int | None = None


def _as_it_is(network: Any) -> _Found:
    if not isinstance(network, nn.Module):
        raise ValueError(
            "a classifier is a module, or a network with the checkpoint that fills it and its "
            f"head; got {described(network)} without a checkpoint"
        )
    names = getattr(getattr(network, "config", None), "id2label", None)  # as transformers has them
    return _Found(network, type(network).__name__, None, {"id2label": names})


def _of_folder(
    network: str | nn.Module | None, path: Any, head: str | None, how: How, expected: int
) -> _Found:
    if network is not None:
        raise ValueError(
            f"{path} says itself which network it holds; leave the backbone out, or give the file "
            "of its weights"
        )
    folder = open_folder(path)
    found = _Found(folder.network, folder.name, folder.width, report=folder.report)
    if folder.weights is not None:
        found = _of_file(folder.network, folder.weights, head, how, expected)
    normalization = found.normalization
    if normalization is None and folder.mean is not None and folder.std is not None:
        normalization = folder.mean, folder.std
    return replace(
        found,
        name=folder.name,
        beside={"labels": folder.labels},
        normalization=normalization,
        image_size=folder.image_size,
    )


def _of_file(
    network: str | nn.Module | None, path: Any, head: str | None, how: How, expected: int
) -> _Found:
    file = read(path)
    if network is None:
        raise ValueError(
            f"{path} holds tensors, not how they are connected; give the network they are of "
            '("timm:NAME", "cifar:NAME" or the module), or a folder with config.json'
        )
    model = backbone(network) if isinstance(network, str) else network
    name = network if isinstance(network, str) else type(model).__name__
    check_arguments(model, *how)
    report = fill(model, path, file, *how)
    found = _Found(model, name, None, file, report=report, normalization=report.normalization)
    if head is None and (width := width_of(model)) is not None:  # the module came with its head
        return replace(found, width=width)
    made = with_head(model, path, tensors_at(file, report.place), report, head, expected)
    left = tuple(key for key in report.ignored if key not in made.taken)
    taken = replace(report, loaded=report.loaded + len(made.taken), ignored=left)
    return replace(found, model=made.model, width=made.width, head=made.head, report=taken)
