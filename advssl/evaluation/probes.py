"""Protocols: a pretrained encoder and labelled images to a classifier to attack."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import Ball, Linf
from advssl.evaluation.data import Data, Sample
from advssl.losses import unit
from advssl.modes import evaluating
from advssl.types import Images, Labels, Scalar

Tick = Callable[[], None]
Reads: TypeAlias = Literal["raw", "unit", "standard"]

_TRADES_BETA = 6.0


@dataclass(frozen=True)
class Protocol:
    """How a classifier is made of an encoder.

    Attributes:
        name: "slf" (standard linear finetuning: the encoder is frozen), "alf" (adversarial linear
            finetuning) or "aff" (adversarial full finetuning).
        epochs: passes over the training images.
        batch_size: images in a step.
        learning_rate: of SGD with momentum 0.9.
        weight_decay: of all that is trained.
        decays: epochs after which the rate is divided by ten; None is a cosine to zero.
        loss: "ce" on the images, "pgd" (cross-entropy on PGD-10 images) or "trades" (β = 6).
        trains_encoder: the whole network learns, and its BatchNorm in train mode.
        reads: the linear layer reads features that are "raw", "unit" (of length one) or "standard"
            (mean 0 and deviation 1 over the training images, so that one learning rate fits all).
        zero_start: the linear layer starts at zero.
    """

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    decays: tuple[int, ...] | None
    loss: str = "ce"
    trains_encoder: bool = False
    reads: Reads = "raw"
    zero_start: bool = False


def _family(slf: Protocol, alf_loss: str, aff: Protocol | None) -> dict[str, Protocol]:
    family = {"slf": slf, "alf": replace(slf, name="alf", loss=alf_loss)}
    return family if aff is None else {**family, "aff": aff}


_ADVCL = Protocol("slf", 25, 512, 0.01, 2e-4, (15, 20))
_FULL = Protocol("aff", 25, 128, 0.1, 2e-4, (15, 20), "trades", trains_encoder=True)
_LONG = Protocol("slf", 50, 128, 0.05, 1e-4, None, reads="standard")
_ASCL = Protocol("slf", 10, 512, 0.1, 2e-4, (), zero_start=True)

# RECIPES: each paper's own settings; "plain" is ours, for data of any size.
PRESETS: dict[str, dict[str, Protocol]] = {
    "plain": _family(_LONG, "pgd", replace(_FULL, learning_rate=0.05, decays=None)),
    "advcl": _family(_ADVCL, "pgd", _FULL),
    "gsa": _family(Protocol("slf", 100, 512, 0.1, 1e-4, None, reads="unit"), "pgd", None),
    "dynacl": _family(
        replace(_ADVCL, decays=(10, 20), zero_start=True), "pgd", replace(_FULL, zero_start=True)
    ),
    "ascl23": _family(
        _ASCL, "trades", replace(_ASCL, name="aff", loss="trades", trains_encoder=True)
    ),
}


def protocol(preset: str, name: str) -> Protocol:
    """A named protocol of a named preset, or a ValueError that lists those there are."""
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
    if name not in PRESETS[preset]:
        raise ValueError(f"preset {preset!r} has protocols {sorted(PRESETS[preset])}, got {name!r}")
    return PRESETS[preset][name]


class Classifier(nn.Module):
    """Images (B, C, H, W) in [0, 1] to logits: normalisation, encoder, a linear layer.

    Args:
        encoder: normalised images to features (B, D).
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
        self.encoder = encoder
        self.linear = nn.Linear(features, classes)
        self.reads = reads
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        for name, values, neutral in (("mean", mean, 0.0), ("std", std, 1.0)):
            value = torch.tensor([neutral] if values is None else list(values)).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def features(self, images: Images) -> Tensor:
        features = self.encoder((images - self.mean) / self.std)
        if self.reads == "unit":
            return unit(features)
        return (features - self.shift) * self.scale if self.reads == "standard" else features

    def standardise(self, features: Tensor) -> None:
        """Make these raw features (N, D) have mean 0 and deviation 1 before the linear layer."""
        deviation = features.std(dim=0)
        self.shift.copy_(features.mean(dim=0))
        self.scale.copy_(torch.where(deviation > 0, 1 / deviation, 0))

    def forward(self, images: Images) -> Tensor:
        return self.linear(self.features(images))


def finetune(
    encoder: nn.Module,
    data: Data,
    how: Protocol,
    *,
    ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    tick: Tick = lambda: None,
) -> tuple[Classifier, list[float]]:
    """Train a classifier on ``data.train`` and follow its accuracy on ``data.validation``.

    The encoder that was given is left alone; the classifier has a copy. The last epoch's classifier
    is the one that comes back: nothing is ever selected on the test images.

    Args:
        encoder: normalised images to features (B, D).
        data: to train on and to validate on.
        how: the protocol.
        ball: of the attack in "pgd" and "trades": 10 steps of a quarter of its radius.
        mean: of the encoder's input normalisation, per channel.
        std: likewise.
        seed: of the linear layer, the order, augmentation and attacks; the global state is kept.
        tick: called once per step.

    Returns:
        The classifier in eval mode without gradients, and the validation accuracy after each epoch.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _finetune(encoder, data, how, ball, mean, std, tick)


def _finetune(
    encoder: nn.Module, data: Data, how: Protocol, ball: Ball, mean: Any, std: Any, tick: Tick
) -> tuple[Classifier, list[float]]:
    # Of its own, so that features made beforehand do not change the order of the images.
    order = torch.Generator().manual_seed(torch.initial_seed())
    classifier = untrained(encoder, data, how, mean, std)
    device = classifier.mean.device
    if how.zero_start:
        nn.init.zeros_(classifier.linear.weight)
        nn.init.zeros_(classifier.linear.bias)
    if how.reads == "standard" and not how.trains_encoder:
        classifier.standardise(_featurised(classifier, data.train).tensors[0].to(device))
    step = _Step(classifier, how, ball)
    train: Dataset[Any] = data.train
    validation: Dataset[Any] = data.validation
    if not how.trains_encoder:  # its features are always the same
        validation = _featurised(classifier, data.validation)
        if how.loss == "ce" and not data.natural:
            train = _featurised(classifier, data.train)
    loader = DataLoader(train, batch_size=how.batch_size, shuffle=True, generator=order)
    learns = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        learns, how.learning_rate, momentum=0.9, weight_decay=how.weight_decay
    )
    schedule = _schedule(optimizer, how)
    history = []
    for _ in range(how.epochs):
        for inputs, labels in loader:
            inputs = inputs.to(device)
            if data.natural:
                inputs = _shifted_and_mirrored(inputs)
            optimizer.zero_grad()
            torch.autograd.backward(step(inputs, labels.to(device)))
            optimizer.step()
            tick()
        schedule.step()
        history.append(accuracy(classifier, validation))
    return classifier.eval().requires_grad_(False), history


def untrained(
    encoder: nn.Module,
    data: Data,
    how: Protocol,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Classifier:
    """The classifier that a protocol trains, with a copy of the encoder, before its first step."""
    encoder = copy.deepcopy(encoder).requires_grad_(how.trains_encoder).eval()
    device = next(encoder.parameters()).device
    probe = next(iter(DataLoader(data.train, batch_size=2)))[0].to(device)
    with torch.no_grad():
        width = encoder(probe).shape[1]
    classifier = Classifier(encoder, width, len(data.classes), mean=mean, std=std, reads=how.reads)
    return classifier.to(device)


class _Step:
    """A batch to its loss."""

    def __init__(self, classifier: Classifier, how: Protocol, ball: Ball) -> None:
        self.classifier, self.how = classifier, how
        self.adversary = AdversarialViewGenerator(
            ball, 10, ball.radius / 4, start="gaussian" if how.loss == "trades" else "uniform"
        )

    def __call__(self, inputs: Tensor, labels: Labels) -> Scalar:
        classifier, how = self.classifier, self.how
        classifier.encoder.train(how.trains_encoder)
        if how.loss == "ce":
            return F.cross_entropy(_logits(classifier, inputs), labels)
        clean = classifier(inputs) if how.loss == "trades" else None
        hard = self._attack(inputs, labels, clean)
        if clean is None:
            return F.cross_entropy(classifier(hard), labels)
        return F.cross_entropy(clean, labels) + _TRADES_BETA * _divergence(clean, classifier(hard))

    def _attack(self, images: Images, labels: Labels, clean: Tensor | None) -> Images:
        classifier = self.classifier
        with evaluating(classifier):
            if clean is None:
                return self.adversary(
                    images, lambda v: F.cross_entropy(classifier(v), labels), freeze=classifier
                )
            with torch.no_grad():
                at_rest = classifier(images)
            return self.adversary(
                images, lambda v: _divergence(at_rest, classifier(v)), freeze=classifier
            )


def _divergence(clean: Tensor, hard: Tensor) -> Scalar:
    """KL(p(x) ‖ p(x + δ)), the mean over images. TRADES, https://arxiv.org/abs/1901.08573"""
    return F.kl_div(
        hard.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True
    )


def _logits(classifier: Classifier, inputs: Tensor) -> Tensor:
    """Of images, or of features made before."""
    return classifier(inputs) if inputs.ndim == 4 else classifier.linear(inputs)


def accuracy(classifier: Classifier, dataset: Dataset[Any], batch_size: int = 256) -> float:
    """The share of a dataset of images, or of features, that is classified right, in eval mode."""
    device = next(classifier.parameters()).device
    right = count = 0
    with torch.no_grad(), evaluating(classifier):
        for images, labels in DataLoader(dataset, batch_size=batch_size):
            logits = _logits(classifier, images.to(device))
            right += int((logits.argmax(1) == labels.to(device)).sum())
            count += len(labels)
    return right / count


def _featurised(classifier: Classifier, dataset: Dataset[Sample]) -> TensorDataset:
    device = next(classifier.parameters()).device
    with torch.no_grad(), evaluating(classifier):
        parts = [(classifier.features(x.to(device)).cpu(), y) for x, y in DataLoader(dataset, 256)]
    return TensorDataset(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _schedule(optimizer: torch.optim.Optimizer, how: Protocol) -> Any:
    if how.decays is None:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.epochs)
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, list(how.decays), gamma=0.1)


def _shifted_and_mirrored(images: Images) -> Images:
    """Each image moved by up to an eighth of its size and mirrored half of the time."""
    import kornia.augmentation as K

    size = tuple(images.shape[-2:])
    with torch.no_grad():
        return K.AugmentationSequential(
            K.RandomCrop(size, padding=size[0] // 8), K.RandomHorizontalFlip()
        )(images)
