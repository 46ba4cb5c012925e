"""Protocols: a pretrained encoder and labelled images to a classifier to attack."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import Ball, Linf
from advssl.evaluation.attacks import PGD, Progress, batch_seed, classifier_fingerprint
from advssl.evaluation.data import Data, Sample, targets
from advssl.evaluation.records import fingerprint, replacing
from advssl.losses import unit
from advssl.modes import evaluating, random_state, random_state_kept
from advssl.types import Images, Labels, Scalar

Reads: TypeAlias = Literal["raw", "unit", "standard"]
Selects: TypeAlias = Literal["validation", "test"]
State: TypeAlias = dict[str, Tensor]

_TRADES_BETA = 6.0


@dataclass(frozen=True)
class Protocol:
    """How a classifier is made of an encoder.

    Attributes:
        name: "slf" (standard linear finetuning: the encoder is frozen), "alf" (adversarial linear
            finetuning), "fsf" (full standard finetuning) or "aff" (adversarial full finetuning).
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
        augments: photographs are shifted and mirrored anew in each epoch. Without it a frozen
            encoder's features are made once, which is as many times faster as there are epochs.
        selects: the images that say which epoch was best, see :func:`finetune`. "test" is what some
            released code does; the best epoch's accuracy is then too high.
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
    augments: bool = True
    selects: Selects = "validation"

    def rate(self, epoch: int) -> float:
        """The learning rate in an epoch, counted from 0."""
        if self.decays is None:
            return self.learning_rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.learning_rate * 0.1 ** sum(epoch >= decay for decay in self.decays)


def _family(slf: Protocol, alf_loss: str, aff: Protocol | None) -> dict[str, Protocol]:
    family = {"slf": slf, "alf": replace(slf, name="alf", loss=alf_loss, augments=True)}
    return (
        family if aff is None else family | {"fsf": replace(aff, name="fsf", loss="ce"), "aff": aff}
    )


_ADVCL = Protocol("slf", 25, 512, 0.01, 2e-4, (15, 20))
_FULL = Protocol("aff", 25, 128, 0.1, 2e-4, (15, 20), "trades", trains_encoder=True)
_LONG = Protocol("slf", 50, 128, 0.05, 1e-4, None, reads="standard", augments=False)
_ASCL = Protocol("slf", 10, 512, 0.1, 2e-4, (), zero_start=True)

# Each paper's own settings; "plain" is ours, for data of any size. "released" is the published code
# of AdvCL, which the others do not follow where it selects on the test images.
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
    "released": {"slf": replace(_ADVCL, selects="test")},
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


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What a protocol made of an encoder.

    Attributes:
        last: the classifier after the last epoch, in eval mode and without gradients.
        best: that after the epoch of the highest score; a frozen encoder is shared with ``last``.
        best_epoch: which that was, counted from 1; the first of several.
        history: the score after each epoch.
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
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress = lambda *_: None,
) -> Finetuned:
    """Train a classifier on ``data.train`` and score each epoch on other images.

    The encoder that was given is left alone; the classifier has a copy. The score is the clean
    accuracy on ``data.validation`` if the loss is "ce", and the accuracy there under PGD-10 if it
    is adversarial. A protocol that selects on "test" is scored under PGD-20 on ``data.test``:
    whoever reports its best epoch must say so.

    Args:
        encoder: normalised images to features (B, D).
        data: to train on and to validate on.
        how: the protocol.
        ball: of every attack here, with steps of a quarter of its radius; 10 of them in training.
        mean: of the encoder's input normalisation, per channel.
        std: likewise.
        seed: of the linear layer, the order, augmentation and attacks; the global state is kept.
        folder: where the state is kept after every epoch, in a file named by all that the result
            depends on. A call that was killed and is repeated goes on after the last epoch there
            and reaches the same weights, on a CPU bit for bit; a finished one trains nothing.
        progress: called after every step.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = untrained(encoder, data, how, mean, std)
        if how.zero_start:
            nn.init.zeros_(classifier.linear.weight)
            nn.init.zeros_(classifier.linear.bias)
        training = _Training(classifier, data, how, ball, seed)
        if folder is not None:
            training.keep_in(Path(folder))
        return training.finished(progress)


class _Training:
    """A training that may end after any epoch and go on later."""

    def __init__(
        self, classifier: Classifier, data: Data, how: Protocol, ball: Ball, seed: int
    ) -> None:
        self.classifier, self.data, self.how = classifier, data, how
        self.ball, self.seed, self.device = ball, seed, classifier.mean.device
        learns = [p for p in classifier.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            learns, how.learning_rate, momentum=0.9, weight_decay=how.weight_decay
        )
        # Of its own, so that features made beforehand do not change the order of the images.
        self.order = torch.Generator().manual_seed(seed)
        self.random: tuple[Tensor, ...] | None = None  # as it now is
        self.history: list[float] = []
        self.best: State = {}
        self.path: Path | None = None

    def keep_in(self, folder: Path) -> None:
        """Go on from what ``folder`` has of this training, and keep the rest there too."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"probe-{self._key()}.pt"
        if not self.path.exists():
            return
        kept = torch.load(self.path, map_location="cpu", weights_only=True)
        self._fill(self.classifier, kept["trained"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.order.set_state(kept["order"])
        self.random, self.history, self.best = kept["random"], kept["history"], kept["best"]

    def finished(self, progress: Progress) -> Finetuned:
        """After the last epoch."""
        classifier = self.classifier
        if len(self.history) < self.how.epochs:
            self._train(progress)
        classifier.eval().requires_grad_(False)
        # A frozen encoder is not copied: deepcopy takes what its memo has.
        shared = {} if self.how.trains_encoder else {id(classifier.encoder): classifier.encoder}
        best = copy.deepcopy(classifier, shared)
        self._fill(best, self.best)
        best_epoch = self.history.index(max(self.history)) + 1
        return Finetuned(classifier, best, best_epoch, tuple(self.history))

    def _train(self, progress: Progress) -> None:
        how = self.how
        train, validation = self._inputs()
        loader = DataLoader(train, how.batch_size, shuffle=True, generator=self.order)
        step = _Step(self.classifier, how, self.ball)
        done = len(self.history) * len(loader)
        with random_state_kept(self.device, self.random):
            for epoch in range(len(self.history), how.epochs):
                self.optimizer.param_groups[0]["lr"] = how.rate(epoch)
                for inputs, labels in loader:
                    inputs = inputs.to(self.device)
                    if self.data.natural and how.augments:
                        inputs = _shifted_and_mirrored(inputs)
                    self.optimizer.zero_grad()
                    torch.autograd.backward(step(inputs, labels.to(self.device)))
                    self.optimizer.step()
                    done += 1
                    progress("training", done, how.epochs * len(loader))
                self._keep(self._score(validation))

    def _inputs(self) -> tuple[Dataset[Any], Dataset[Any]]:
        """To train on and to validate on: features made once, where they stay the same."""
        classifier, data, how = self.classifier, self.data, self.how
        if how.trains_encoder:
            return data.train, data.validation
        if how.reads == "standard" and not self.history:
            classifier.standardise(_featurised(classifier, data.train).tensors[0].to(self.device))
        if how.loss != "ce":
            return data.train, data.validation
        fixed = not (data.natural and how.augments)
        train = _featurised(classifier, data.train) if fixed else data.train
        return train, _featurised(classifier, data.validation)

    def _score(self, validation: Dataset[Any]) -> float:
        ball, step = self.ball, self.ball.radius / 4
        if self.how.selects == "test":
            return self._standing(self.data.test, PGD(ball, 20, step))
        if self.how.loss == "ce":
            return accuracy(self.classifier, validation)
        return self._standing(validation, PGD(ball, 10, step))

    def _standing(self, dataset: Dataset[Any], attack: PGD) -> float:
        right = count = 0
        for number, (images, labels) in enumerate(DataLoader(dataset, 256)):
            seed = batch_seed(self.seed, number)
            found = attack.search(self.classifier, images, labels, seed=seed)
            right, count = right + int(found.correct.sum()), count + len(labels)
        return right / count

    def _keep(self, score: float) -> None:
        trained = {
            name: value.cpu().clone()
            for name, value in self.classifier.state_dict().items()
            if self.how.trains_encoder or not name.startswith("encoder.")
        }
        if score > max(self.history, default=-1.0):
            self.best = trained
        self.history.append(score)
        if self.path is None:
            return
        state = {
            "trained": trained,
            "best": self.best,
            "history": self.history,
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "random": random_state(self.device),
        }
        with replacing(self.path) as partial:
            torch.save(state, partial)

    def _fill(self, classifier: Classifier, trained: State) -> None:
        classifier.load_state_dict({**classifier.state_dict(), **trained})

    def _key(self) -> str:
        """Of all that the result depends on; a few images stand for all of them."""
        parts = [self.data.train, self.data.validation, self.data.test]
        train, labels = parts[0], [targets(part) for part in parts]
        some = range(0, len(labels[0]), -(-len(labels[0]) // 8))
        images = torch.stack([train[i][0] for i in some])
        depends_on = [
            asdict(self.how),
            classifier_fingerprint(self.classifier),
            [repr(self.ball), self.seed, self.data.natural],
            [fingerprint(images, torch.tensor([labels[0][i] for i in some])), labels],
        ]
        return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]


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
