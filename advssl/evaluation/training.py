"""Trainings: a protocol's epochs on a classifier, which may end after any and go on later."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import Ball
from advssl.distributed import rank, world_size
from advssl.evaluation.attacks import PGD
from advssl.evaluation.batches import batch_seed, check_labels
from advssl.evaluation.data import Data
from advssl.evaluation.features import featurised, in_order, parts, shuffled
from advssl.evaluation.identity import dataset_fingerprint, identity_of, keep, kept
from advssl.evaluation.linear import Classifier, accuracy, logits_from
from advssl.evaluation.logits import NotFinite, logits_of
from advssl.evaluation.progress import Progress
from advssl.evaluation.protocols import Protocol
from advssl.evaluation.sharing import of_first_rank as of_first_rank
from advssl.evaluation.streams import held
from advssl.modes import (
    copied,
    evaluating,
    frozen,
    learning,
    random_state,
    random_state_kept,
    seeded_state,
)
from advssl.types import Images, Labels, Scalar, see

State: TypeAlias = dict[str, Tensor]

_TRADES_BETA = 6.0


class Training:
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
        self.folder: Path | None = None
        self.identity = ""

    def keep_in(self, folder: Path) -> None:
        """Go on from what ``folder`` has of this training, and keep the rest there too."""
        self.folder, self.identity = folder, self._identity()
        there = of_first_rank(kept(self._path(folder), self.identity))
        if there is None or not 0 < len(there["history"]) <= self.how.epochs:
            return
        self._fill(self.classifier, there["trained"])
        self.optimizer.load_state_dict(there["optimizer"])
        self.order.set_state(there["order"])
        self.random, self.history, self.best = there["random"], there["history"], there["best"]

    def finished(self, progress: Progress) -> tuple[Classifier, Classifier, int]:
        """The classifiers after the last and the best epoch, and which that was."""
        classifier = self.classifier
        if len(self.history) < self.how.epochs:
            self._train(progress)
        if world_size() > 1:  # what differs by a rounding is one classifier again
            of_all = of_first_rank((self._trained(), self.best, self.history))
            trained, self.best, self.history = of_all
            self._fill(classifier, trained)
        learning(classifier.eval(), False)
        best = copied(classifier)
        if not self.how.trains_encoder:
            best.encoder = classifier.encoder
        self._fill(best, self.best)
        scores = [-1.0 if math.isnan(score) else score for score in self.history]
        best_epoch = scores.index(max(scores)) + 1 if max(scores) >= 0 else len(scores)
        return classifier, best, best_epoch

    def _train(self, progress: Progress) -> None:
        how = self.how
        train, validation = self._inputs(progress)
        steps = len(parts(torch.arange(len(train), device="cpu"), how.batch_size))
        step = _Step(self.classifier, how, self.ball)
        done = len(self.history) * steps
        with random_state_kept(self.device, self.random):
            for epoch in range(len(self.history), how.epochs):
                self.optimizer.param_groups[0]["lr"] = how.rate(epoch)
                with _not_diverged(epoch, how):
                    for inputs, labels in shuffled(train, how.batch_size, self.order):
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

    def _inputs(self, progress: Progress) -> tuple[Any, Any]:
        """To train on and to validate on: features made once, where they stay the same."""
        classifier, data, how = self.classifier, self.data, self.how
        if how.trains_encoder:
            return held(data.train, progress), held(data.validation, progress)
        standard = how.reads == "standard" and not self.history
        fixed = how.loss == "ce" and not (data.natural and how.augments)
        train: Any = self._featurised("train", progress) if standard or fixed else None
        if standard:
            classifier.standardise(train)
        if how.loss != "ce":
            return held(data.train, progress), held(data.validation, progress)
        if not fixed:
            train = held(data.train, progress)
        return train, self._featurised("validation", progress)

    def _featurised(self, part: str, progress: Progress) -> Any:
        classifier = self.classifier
        depends: tuple[Any, ...] = ()
        if self.folder is not None:
            pixels = classifier.mean, classifier.std
            depends = classifier.encoder, *pixels, self._fingerprints[part]
        start = seeded_state(self.device, torch.Generator("cpu").manual_seed(0))
        with (
            torch.no_grad(),
            frozen(classifier),
            evaluating(classifier),
            random_state_kept(self.device, start),  # what is drawn on the way is the same again
        ):
            return featurised(
                classifier.raw,
                getattr(self.data, part),
                classifier.linear.in_features,
                self.device,
                folder=self.folder,
                depends=depends,
                progress=progress,
            )

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
        for batch, (images, labels) in enumerate(in_order(dataset)):
            seed = batch_seed(self.seed, batch)
            found = attack.search(self.classifier, images, labels, seed=seed)
            right, count = right + int(found.correct.sum()), count + len(labels)
        return right / count

    def _keep(self, score: float) -> None:
        trained = self._trained()
        if math.isnan(score) or score > max(self.history, default=-1.0):
            self.best = trained
        self.history.append(score)
        if self.folder is None or rank() > 0:
            return
        state = {
            "trained": trained,
            "best": self.best,
            "history": self.history,
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "random": random_state(self.device),
        }
        keep(self._path(self.folder), self.identity, state)

    def _path(self, folder: Path) -> Path:
        return folder / f"probe-{self.identity[:16]}.pt"

    def _trained(self) -> State:
        return {
            name: value.cpu().clone()
            for name, value in self.classifier.state_dict().items()
            if self.how.trains_encoder or not name.startswith("encoder.")
        }

    def _fill(self, classifier: Classifier, trained: State) -> None:
        state = classifier.state_dict()  # with the versions of its layers, which a dict has not
        state.update(trained)
        classifier.load_state_dict(state)

    def _identity(self) -> str:
        """Of all that the result depends on."""
        data = self.data
        return identity_of(
            [vars(self.how), self.ball, self.seed, self.device.type],
            [len(data.classes), data.natural, *self._fingerprints.values()],
            self.classifier,
        )

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        """Of the parts that are read: every file of them is, so once."""
        used = read_by(self.how)
        return {part: dataset_fingerprint(getattr(self.data, part)) for part in used}


def read_by(how: Protocol) -> tuple[str, ...]:
    """The parts of the data that a protocol reads."""
    return ("train", "validation", *(["test"] if how.selects == "test" else []))


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
            return F.cross_entropy(logits_from(classifier, inputs), labels)
        clean = logits_from(classifier, inputs) if how.loss == "trades" else None
        hard = self._attack(inputs, labels, clean)
        if clean is None:
            return F.cross_entropy(logits_from(classifier, hard), labels)
        divergence = _divergence(clean, logits_from(classifier, hard))
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


def _shifted_and_mirrored(images: Images) -> Images:
    """Each image moved by up to an eighth of its size and mirrored half of the time."""
    import kornia.augmentation as K

    size = tuple(images.shape[-2:])
    with torch.no_grad():
        return K.AugmentationSequential(
            K.RandomCrop(size, padding=size[0] // 8), K.RandomHorizontalFlip()
        )(images)
