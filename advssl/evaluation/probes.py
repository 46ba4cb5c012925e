"""Protocols: a pretrained encoder and labelled images to a classifier to attack."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset, Subset, TensorDataset

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import Ball, Linf
from advssl.evaluation.attacks import (
    PGD,
    NotFinite,
    Progress,
    batch_seed,
    check_batch,
    check_labels,
    check_module,
    device_of,
    logits_of,
    undisturbed,
)
from advssl.evaluation.data import Data, Sample, batches, targets
from advssl.evaluation.identity import dataset_fingerprint, identity_of, keep, kept
from advssl.losses import unit
from advssl.modes import copied, evaluating, frozen, random_state, random_state_kept
from advssl.types import Images, Labels, Scalar, described, embeddings_of, number, see, whole

Reads: TypeAlias = Literal["raw", "unit", "standard"]
Selects: TypeAlias = Literal["validation", "test"]
Loss: TypeAlias = Literal["ce", "pgd", "trades"]
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
    loss: Loss = "ce"
    trains_encoder: bool = False
    reads: Reads = "raw"
    zero_start: bool = False
    augments: bool = True
    selects: Selects = "validation"

    def __post_init__(self) -> None:
        for name, allowed in (("loss", Loss), ("reads", Reads), ("selects", Selects)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"{name} must be one of {get_args(allowed)}, got {getattr(self, name)!r}"
                )
        plain: dict[str, Any] = {n: whole(n, getattr(self, n), 1) for n in ("epochs", "batch_size")}
        for name in ("learning_rate", "weight_decay"):
            plain[name] = number(name, getattr(self, name))
            if not 0 <= plain[name] < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {plain[name]}")
        if self.decays is not None:
            if not isinstance(self.decays, tuple | list):
                raise ValueError(f"decays must be epochs, or None, got {described(self.decays)}")
            plain["decays"] = tuple(whole("decays", epoch, 0) for epoch in self.decays)
        for name in ("trains_encoder", "zero_start", "augments"):
            plain[name] = bool(getattr(self, name))
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def rate(self, epoch: int) -> float:
        """The learning rate in an epoch, counted from 0."""
        if self.decays is None:
            return self.learning_rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.learning_rate * 0.1 ** sum(epoch >= decay for decay in self.decays)


def _family(slf: Protocol, alf_loss: Loss, aff: Protocol | None) -> dict[str, Protocol]:
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
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress = lambda *_: None,
) -> Finetuned:
    """Train a classifier on ``data.train`` and score each epoch on other images.

    The encoder that was given is left alone; the classifier has a copy, in float32. All is computed
    in float32, whatever precision and defaults are set around the call. A last batch of one image
    joins the one before it, and where there is only one image BatchNorm keeps its statistics.

    The score is the clean accuracy on ``data.validation`` if the loss is "ce", and the accuracy
    there under PGD-10 if it is adversarial. A protocol that selects on "test" is scored under
    PGD-20 on ``data.test``:
    whoever reports its best epoch must say so.

    Args:
        encoder: normalised images to features (B, D), see :class:`Classifier`.
        data: to train on and to validate on. Without validation images the last epoch is the best.
        how: the protocol.
        ball: of every attack here, with steps of a quarter of its radius; 10 of them in training.
        mean: of the encoder's input normalisation, per channel.
        std: likewise.
        seed: of the linear layer, the order, augmentation and attacks; the global state is kept.
        folder: where the state is kept after every epoch, in a file named by all that the result
            depends on: every image and label, the encoder with its code, all arguments, the
            packages' versions; see :mod:`advssl.evaluation.identity`. A damaged file counts as
            none. A call that was killed and is repeated goes on after the last epoch there
            and reaches the same weights, on a CPU bit for bit; a finished one trains nothing.
        progress: called after every step.

    Raises:
        ValueError: on an encoder, images or labels that break the above, no image to train on, or a
            training that diverged: one with a loss, weights, features or logits that are not finite
            has no accuracy.
    """
    check_module("encoder", encoder)
    seed = whole("seed", seed, -(2**63))
    _check(data, how)
    device = device_of(encoder, torch.empty(0, device="cpu"))
    with undisturbed(device), random_state_kept(device):
        torch.manual_seed(seed)
        classifier = untrained(encoder, data, how, mean, std)
        if how.zero_start:
            nn.init.zeros_(classifier.linear.weight)
            nn.init.zeros_(classifier.linear.bias)
        training = _Training(classifier, data, how, ball, seed)
        if folder is not None:
            training.keep_in(Path(folder))
        return training.finished(progress)


def _check(data: Data, how: Protocol) -> None:
    """Raise before the work on parts without images, and on labels that are no classes."""
    needed = ["train"] + (["test"] if how.selects == "test" else [])
    for name in ("train", "validation", "test"):
        part: Any = getattr(data, name)
        if name in needed and len(part) == 0:
            raise ValueError(f"data.{name} holds no image, and this protocol needs some")
        known = _known_labels(part)
        if known is not None:
            labels = torch.as_tensor(known, device="cpu")
            check_labels(labels, len(part), len(data.classes), f" of data.{name}")


def _known_labels(part: Any) -> Sequence[int] | None:
    """Labels that are known without reading an image; None if they are not."""
    below = part
    while isinstance(below, Subset):
        below = below.dataset
    known = hasattr(below, "targets") and getattr(below, "target_transform", None) is None
    return targets(part) or None if known else None


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
        self.order = torch.Generator("cpu").manual_seed(seed)
        self.random: tuple[Tensor, ...] | None = None  # as it now is
        self.history: list[float] = []
        self.best: State = {}
        self.path: Path | None = None
        self.identity = ""

    def keep_in(self, folder: Path) -> None:
        """Go on from what ``folder`` has of this training, and keep the rest there too."""
        folder.mkdir(parents=True, exist_ok=True)
        self.identity = self._identity()
        self.path = folder / f"probe-{self.identity[:16]}.pt"
        there = kept(self.path, self.identity)
        if there is None:
            return
        self._fill(self.classifier, there["trained"])
        self.optimizer.load_state_dict(there["optimizer"])
        self.order.set_state(there["order"])
        self.random, self.history, self.best = there["random"], there["history"], there["best"]

    def finished(self, progress: Progress) -> Finetuned:
        """After the last epoch."""
        classifier = self.classifier
        if len(self.history) < self.how.epochs:
            self._train(progress)
        _learning(classifier.eval(), False)
        best = copied(classifier)
        if not self.how.trains_encoder:
            best.encoder = classifier.encoder
        self._fill(best, self.best)
        scores = [-1.0 if math.isnan(score) else score for score in self.history]
        best_epoch = scores.index(max(scores)) + 1 if max(scores) >= 0 else len(scores)
        return Finetuned(classifier, best, best_epoch, tuple(self.history))

    def _train(self, progress: Progress) -> None:
        how = self.how
        train, validation = self._inputs()
        steps = len(_parts(torch.arange(len(train), device="cpu"), how.batch_size))
        step = _Step(self.classifier, how, self.ball)
        done = len(self.history) * steps
        with random_state_kept(self.device, self.random):
            for epoch in range(len(self.history), how.epochs):
                self.optimizer.param_groups[0]["lr"] = how.rate(epoch)
                with _not_diverged(epoch, how):
                    for inputs, labels in _shuffled(train, how.batch_size, self.order):
                        self._step(step, inputs.to(self.device), labels.to(self.device))
                        done += 1
                        progress("training", done, how.epochs * steps)
                    score = self._score(validation)
                self._keep(score)

    def _step(self, step: _Step, inputs: Tensor, labels: Labels) -> None:
        check_labels(labels, len(inputs), len(self.data.classes))
        if self.data.natural and self.how.augments:
            inputs = _shifted_and_mirrored(inputs)
        self.optimizer.zero_grad()
        torch.autograd.backward(_finite(step(inputs, labels)))
        self.optimizer.step()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        if not torch.stack([p.detach().isfinite().all() for p in trained]).all():
            raise NotFinite("the weights are not finite")

    def _inputs(self) -> tuple[Any, Any]:
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

    def _score(self, validation: Any) -> float:
        ball, step = self.ball, self.ball.radius / 4
        if self.how.selects == "test":
            return self._standing(self.data.test, PGD(ball, 20, step))
        if len(validation) == 0:
            return math.nan
        if self.how.loss == "ce":
            return accuracy(self.classifier, validation)
        return self._standing(validation, PGD(ball, 10, step))

    def _standing(self, dataset: Any, attack: PGD) -> float:
        right = count = 0
        for batch, (images, labels) in enumerate(_in_order(dataset)):
            seed = batch_seed(self.seed, batch)
            found = attack.search(self.classifier, images, labels, seed=seed)
            right, count = right + int(found.correct.sum()), count + len(labels)
        return right / count

    def _keep(self, score: float) -> None:
        trained = {
            name: value.cpu().clone()
            for name, value in self.classifier.state_dict().items()
            if self.how.trains_encoder or not name.startswith("encoder.")
        }
        if math.isnan(score) or score > max(self.history, default=-1.0):
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
        keep(self.path, self.identity, state)

    def _fill(self, classifier: Classifier, trained: State) -> None:
        classifier.load_state_dict({**classifier.state_dict(), **trained})

    def _identity(self) -> str:
        """Of all that the result depends on."""
        data, how = self.data, self.how
        used = [data.train, data.validation] + ([data.test] if how.selects == "test" else [])
        return identity_of(
            [vars(how), self.ball, self.seed, self.device.type],
            [len(data.classes), data.natural, *map(dataset_fingerprint, used)],
            self.classifier,
        )


@contextmanager
def _not_diverged(epoch: int, how: Protocol) -> Iterator[None]:
    try:
        yield
    except NotFinite as error:
        raise ValueError(
            f"{error}, in epoch {epoch + 1} of {how.epochs}: the training diverged and is no "
            f"result; take a lower learning rate than {how.learning_rate:g}"
            + see("Numbers that are not finite")
        ) from error


def untrained(
    encoder: nn.Module,
    data: Data,
    how: Protocol,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Classifier:
    """The classifier that a protocol trains, with a copy of the encoder, before its first step."""
    encoder = copied(encoder).float().eval()
    _learning(encoder, how.trains_encoder)
    images, _ = next(_in_order(data.train, 2))
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
    features = embeddings_of("the encoder", answer)
    _check_finite(features)
    width = features.shape[1]
    classifier = Classifier(encoder, width, len(data.classes), mean=mean, std=std, reads=how.reads)
    return classifier.to(device)


def _learning(module: nn.Module, learns: bool) -> None:
    for parameter in module.parameters():  # one by one: TorchScript has no requires_grad_
        parameter.requires_grad_(learns)


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
        if len(inputs) == 1:  # one image has no batch statistics
            for module in classifier.encoder.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        if how.loss == "ce":
            return F.cross_entropy(_logits(classifier, inputs), labels)
        clean = _logits(classifier, inputs) if how.loss == "trades" else None
        hard = self._attack(inputs, labels, clean)
        if clean is None:
            return F.cross_entropy(_logits(classifier, hard), labels)
        divergence = _divergence(clean, _logits(classifier, hard))
        return F.cross_entropy(clean, labels) + _TRADES_BETA * divergence

    def _attack(self, images: Images, labels: Labels, clean: Tensor | None) -> Images:
        classifier = self.classifier
        with evaluating(classifier):
            if clean is None:
                return self.adversary(
                    images,
                    lambda v: _finite(F.cross_entropy(logits_of(classifier, v), labels)),
                    freeze=classifier,
                )
            with torch.no_grad():
                at_rest = logits_of(classifier, images)
            return self.adversary(
                images,
                lambda v: _finite(_divergence(at_rest, logits_of(classifier, v))),
                freeze=classifier,
            )


def _finite(loss: Scalar) -> Scalar:
    if not loss.isfinite():
        raise NotFinite("the loss is not finite")
    return loss


def _divergence(clean: Tensor, hard: Tensor) -> Scalar:
    """KL(p(x) ‖ p(x + δ)), the mean over images. TRADES, https://arxiv.org/abs/1901.08573"""
    return F.kl_div(
        hard.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True
    )


def _logits(classifier: Classifier, inputs: Tensor) -> Tensor:
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
        for images, labels in _in_order(dataset, batch_size):
            logits = _logits(classifier, images.to(device))
            right += int((logits.argmax(1) == labels.to(device)).sum())
            count += len(labels)
    if not count:
        raise ValueError("there are no images to be right on; give at least one")
    return right / count


def _featurised(classifier: Classifier, dataset: Dataset[Sample]) -> TensorDataset:
    device, width = next(classifier.parameters()).device, classifier.linear.in_features
    features = [torch.empty(0, width, device="cpu")]
    labels = [torch.empty(0, dtype=torch.int64, device="cpu")]
    with torch.no_grad(), frozen(classifier), evaluating(classifier):
        for images, classes in _in_order(dataset):
            features.append(classifier.features(images.to(device)).cpu())
            labels.append(classes)
            _check_finite(features[-1])
    return TensorDataset(torch.cat(features), torch.cat(labels))


def _check_finite(features: Tensor) -> None:
    if not features.isfinite().all():
        raise ValueError(
            "the encoder's features are not finite, and no probe reads NaN or infinity; look "
            "whether its pretraining diverged"
        )


def _in_order(dataset: Any, batch_size: int = 256) -> Iterator[tuple[Tensor, Labels]]:
    rows = torch.arange(len(dataset), device="cpu")
    return _read(dataset, torch.split(rows, batch_size))


def _shuffled(
    dataset: Any, batch_size: int, order: torch.Generator
) -> Iterator[tuple[Tensor, Labels]]:
    rows = torch.randperm(len(dataset), generator=order, device="cpu")
    return _read(dataset, _parts(rows, batch_size))


def _parts(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Batches of a training: one example left over joins the last."""
    parts = list(torch.split(rows, batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1 < batch_size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _read(dataset: Any, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Labels]]:
    """Batches of features and labels, or of images and labels, those checked; on the CPU."""
    for rows in filter(len, parts):
        if isinstance(dataset, TensorDataset) and dataset.tensors[0].ndim == 2:
            yield dataset.tensors[0][rows], dataset.tensors[1][rows]
            continue
        ((images, labels),) = batches(Subset(dataset, rows.tolist()), len(rows))
        images = images.float() if images.is_floating_point() else images
        check_batch(images, labels)
        yield images, labels


def _shifted_and_mirrored(images: Images) -> Images:
    """Each image moved by up to an eighth of its size and mirrored half of the time."""
    import kornia.augmentation as K

    size = tuple(images.shape[-2:])
    with torch.no_grad():
        return K.AugmentationSequential(
            K.RandomCrop(size, padding=size[0] // 8), K.RandomHorizontalFlip()
        )(images)
