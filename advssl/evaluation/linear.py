"""Linear classifiers: images to logits by an encoder and a linear layer on its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from advssl.evaluation.features import in_order
from advssl.evaluation.logits import logits_of, undisturbed
from advssl.evaluation.protocols import Reads
from advssl.losses import unit
from advssl.modes import evaluating
from advssl.types import Images, embeddings_of, number


class Classifier(nn.Module):
    """Images (B, C, H, W) in [0, 1] to logits: normalisation, encoder, a linear layer.

    Args:
        encoder: normalised images to features (B, D), alone or as the only tensor of its answer,
            see :func:`advssl.types.embeddings_of`.
        features: D.
        classes: the number of logits.
        mean: what is subtracted from each channel; None leaves pixels as they are.
        std: what each channel is then divided by.
        reads: what the linear layer makes of features first, see :class:`Protocol`.
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
        made: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults
        self.encoder = encoder
        self.linear = nn.Linear(features, classes, **made)
        self.reads = reads
        self.register_buffer("shift", torch.zeros(features, **made))
        self.register_buffer("scale", torch.ones(features, **made))
        for name, values, neutral in (("mean", mean, 0.0), ("std", std, 1.0)):
            plain = [neutral] if values is None else [number(name, value) for value in values]
            value = torch.tensor(plain, **made).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def features(self, images: Images) -> Tensor:
        features = embeddings_of(
            "the encoder", self.encoder((images - self.mean) / self.std)
        ).float()
        if features.shape != (len(images), self.linear.in_features):
            raise ValueError(
                f"the encoder must answer features {(len(images), self.linear.in_features)} to "
                f"{len(images)} images in train and in eval mode, got {tuple(features.shape)}"
            )
        if self.reads == "unit":
            return unit(features)
        return (features - self.shift) * self.scale if self.reads == "standard" else features

    def standardise(self, features: Tensor) -> None:
        """Make these raw features (N, D) have mean 0 and deviation 1 before the linear layer.

        One that does not vary, beyond how its mean is rounded, becomes 0, as all do with N = 1.
        """
        wide = features.double()
        mean, deviation = wide.mean(dim=0), wide.std(dim=0, correction=min(1, len(wide) - 1))
        varies = deviation > torch.finfo(torch.float32).eps * mean.abs()
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(varies, 1 / deviation, 0))

    def forward(self, images: Images) -> Tensor:
        return self.linear(self.features(images))


def logits_from(classifier: Classifier, inputs: Tensor) -> Tensor:
    """Of images, or of features made before."""
    return logits_of(classifier if inputs.ndim == 4 else classifier.linear, inputs)


def accuracy(classifier: Classifier, dataset: Dataset[Any], batch_size: int = 256) -> float:
    """The share of a dataset of images, or of features, that is classified right, in eval mode.

    Raises:
        ValueError: on a dataset without images, and logits that are not finite.
    """
    device = next(classifier.parameters()).device
    right = count = 0
    with undisturbed(device), torch.no_grad(), evaluating(classifier):
        for images, labels in in_order(dataset, batch_size):
            logits = logits_from(classifier, images.to(device))
            right += int((logits.argmax(1) == labels.to(device)).sum())
            count += len(labels)
    if not count:
        raise ValueError("there are no images to be right on; give at least one")
    return right / count
