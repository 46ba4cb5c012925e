"""Linear classifiers: images to logits by an encoder and a linear layer on its features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from advssl.evaluation.datasets import check_dataset
from advssl.evaluation.features import in_order
from advssl.evaluation.logits import check_module, device_of, logits_of, undisturbed
from advssl.evaluation.protocols import Reads, check_choice
from advssl.losses import unit
from advssl.modes import evaluating
from advssl.pixels import Pixels
from advssl.types import Images, embeddings_of, whole

_WIDE = 2**23  # numbers that are standardised at once: 64 MB of float64, and as much to work with


class Classifier(nn.Module):
    """Images (B, C, H, W) in [0, 1] to logits: normalisation, encoder, a linear layer.

    Args:
        encoder: normalised images to features (B, D), alone or as the only tensor of its answer,
            see :func:`advssl.types.embeddings_of`.
        features: D.
        classes: the number of logits.
        mean: what is subtracted from each channel, of images in [0, 1]; None, with ``std``, leaves
            pixels as they are. One number is every channel's.
        std: what each channel is then divided by.
        reads: how the linear layer reads features, see :class:`Protocol`.

    Raises:
        ValueError: on another encoder or ``reads``, and on a mean and std that
            :class:`~advssl.Pixels` refuses.
    """

    mean: Tensor
    std: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        classes: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        reads: Reads = "raw",
    ) -> None:
        super().__init__()
        check_module("encoder", encoder)
        check_choice("reads", reads, Reads)
        features, classes = whole("features", features, 1), whole("classes", classes, 1)
        pixels = Pixels(mean, std)  # type: ignore[arg-type]
        made: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults
        self.encoder = encoder
        self.linear = nn.Linear(features, classes, **made)
        self.reads = reads
        self.register_buffer("shift", torch.zeros(features, **made))
        self.register_buffer("scale", torch.ones(features, **made))
        for name, values in (("mean", pixels.mean or (0.0,)), ("std", pixels.std or (1.0,))):
            value = torch.tensor(values, **made).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def features(self, images: Images) -> Tensor:
        """(B, D), as the linear layer reads them."""
        return self.read(self.raw(images))

    def raw(self, images: Images) -> Tensor:
        """(B, D), float32, as the encoder answers."""
        if len(self.mean) not in (1, images.shape[1]):
            raise ValueError(
                f"mean and std have {len(self.mean)} channels, the images {images.shape[1]}"
            )
        answer = self.encoder((images - self.mean) / self.std)
        features = embeddings_of("the encoder", answer, len(images)).float()
        if features.shape != (len(images), self.linear.in_features):
            raise ValueError(
                f"the encoder must answer features {(len(images), self.linear.in_features)} to "
                f"{len(images)} images in train and in eval mode, got {tuple(features.shape)}"
            )
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.encoder.parameters())
        if trains and not features.requires_grad:
            raise ValueError(
                "the encoder is to be trained and its features have no gradient; let it answer "
                "without no_grad, inference_mode, detach or a detour through numpy"
            )
        return features

    def read(self, features: Tensor) -> Tensor:
        """Of raw features (B, D), what the linear layer reads."""
        if self.reads == "unit":
            return unit(features)
        return (features - self.shift) * self.scale if self.reads == "standard" else features

    def standardise(self, features: Tensor | Dataset[Any]) -> None:
        """Make these raw features (N, D) have mean 0 and deviation 1 before the linear layer.

        One that does not vary, beyond how its mean is rounded, becomes 0, as all do with N = 1.
        They are read in parts, each of them in float64 on the classifier's device.

        Args:
            features: as a tensor, or as a dataset of them.
        """
        rows = max(1, _WIDE // self.linear.in_features)
        read: Iterable[Tensor] = (
            torch.split(features, rows)
            if isinstance(features, Tensor)
            else (part for part, _ in in_order(features, rows))
        )
        count, mean, squares = 0, torch.zeros(()), torch.zeros(())
        for part in read:
            wide = part.to(self.shift.device).double()
            spread, middle = torch.var_mean(wide, dim=0, correction=0)
            new = count + len(wide)
            # Chan et al. 1983: sums of squares around two means, around their common one.
            squares = (
                squares.to(wide)
                + spread * len(wide)
                + ((middle - mean.to(wide)).square() * count * len(wide) / new)
            )
            mean = mean.to(wide) + (middle - mean.to(wide)) * len(wide) / new
            count = new
        deviation = (squares / max(1, count - 1)).sqrt()
        varies = deviation > torch.finfo(torch.float32).eps * mean.abs()
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(varies, 1 / deviation, 0))

    def forward(self, images: Images) -> Tensor:
        return self.linear(self.features(images))


def encoded(model: nn.Module, images: Images) -> Tensor:
    """(B, D), float32: raw features of a probe's classifier, or what an encoder answers."""
    if isinstance(model, Classifier):
        return model.raw(images)
    return embeddings_of("the encoder", model(images), len(images)).float()


def logits_from(classifier: Classifier, inputs: Tensor) -> Tensor:
    """Of images, or of raw features made before."""
    if inputs.ndim == 4:
        return logits_of(classifier, inputs)
    return logits_of(classifier.linear, classifier.read(inputs))


def accuracy(classifier: Classifier, dataset: Dataset[Any], batch_size: int = 256) -> float:
    """The share of a dataset of images, or of raw features, that is classified right, in eval mode.

    Raises:
        ValueError: on a dataset without images, and logits that are not finite.
    """
    device = device_of(classifier, torch.empty(0, device="cpu"))
    check_dataset("dataset", dataset)
    batch_size = whole("batch_size", batch_size, 1)
    right = count = 0
    with undisturbed(device), torch.no_grad(), evaluating(classifier):
        for images, labels in in_order(dataset, batch_size):
            logits = logits_from(classifier, images.to(device))
            right += int((logits.argmax(1) == labels.to(device)).sum())
            count += len(labels)
    if not count:
        raise ValueError("there are no images to be right on; give at least one")
    return right / count
