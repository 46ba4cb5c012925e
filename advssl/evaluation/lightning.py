"""Lightning: callbacks that log the theorem's terms and how classes lie while an encoder trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import nn

from advssl.balls import Ball, Linf
from advssl.branches import keep_branch
from advssl.evaluation.anchors import Terms, class_terms
from advssl.evaluation.attacks import Attack
from advssl.evaluation.batches import check_batch
from advssl.evaluation.plain_json import msgspec
from advssl.evaluation.theory import MeanClassifier, robust_bounds
from advssl.integrations.lightning.bolts import Callback, check_given_once, submodule_of
from advssl.types import Images, Labels, check_kind, positive, seed_of, several, whole

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_LOGGED = (
    *("benign", "adversarial", "sharp", "js", "pearson", "tv", "accuracy", "measured"),
    *("first", "second_without_complexity"),
)


class Watcher(Callback):
    """What the callbacks here share: they look at an encoder by its name, and log what they see."""

    on: str
    branches: tuple[str, str] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_given_once(trainer, self)  # two would log their mean
        encoders_of(pl_module, self.on, self.branches)


class TheoremTerms(Watcher):
    """Logs the terms of GSA-RSL's Theorem 4.9 on the same images after every so many epochs.

    Logged are, behind "theorem/", "benign", "adversarial", "sharp", "js", "pearson", "tv",
    "accuracy", "measured", "first", "second_without_complexity" and, with branches,
    "branch_accuracy": see :class:`~advssl.evaluation.theory.RobustBounds`. The classifier whose
    adversarial loss is "measured" is that of class means, so that no probe is trained. The module,
    its gradients and the random state stay as they are.

    Args:
        images: (N, C, H, W), float32 in [0, 1], in one batch that fits a training step.
        labels: (N,), integer; at least two images of each class.
        on: name of the encoder in the module, such as "backbone". It takes images in [0, 1].
        ball: where attacked images lie.
        branches: names of the BatchNorm branches of benign and of attacked images, for an encoder
            that :func:`~advssl.branch_batchnorm` gave them.
        every: how many epochs.
        rho: ρ, of the worst nearby weights.
        seed: of pairs, attacks and critics, in every epoch the same.
    """

    def __init__(
        self,
        images: Images,
        labels: Labels,
        *,
        on: str,
        ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
        branches: tuple[str, str] | None = None,
        every: int = 1,
        rho: float = 0.05,
        seed: int = 0,
    ) -> None:
        check_batch(images, labels)
        check_kind("ball", ball, Ball)
        check_branches(branches)
        self.images, self.labels, self.on = images, labels, on
        self.ball, self.branches = ball, branches
        self.every, self.rho = whole("every", every, 1), positive("rho", rho)
        self.seed = seed_of(seed)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every:
            return
        benign, attacked = encoders_of(pl_module, self.on, self.branches)
        found = robust_bounds(
            benign,
            None,
            self.images.to(pl_module.device),
            self.labels.to(pl_module.device),
            adversarial_encoder=attacked,
            ball=self.ball,
            rho=self.rho,
            seed=self.seed,
        )
        terms = {name: getattr(found, name) for name in _LOGGED}
        if found.branch_accuracy is not None:
            terms["branch_accuracy"] = found.branch_accuracy
        pl_module.log_dict({f"theorem/{name}": value for name, value in terms.items()})


class ClassTerms(Watcher):
    """Logs how classes lie, and how many pairs an anchor has, after every so many epochs.

    Logged are, behind "classes/", "intra", "inter", "relative" (R-DIV), "clean" and "robust"
    (accuracies), and of each selection, here of "leaked", "leaked_positives" and
    "leaked_negatives" per anchor and what of these are attacked images,
    "leaked_positives_attacked" and "leaked_negatives_attacked". What was found stands in
    ``history`` too, by epoch, for :func:`advssl.evaluation.report.lines.training`; a resumed
    training continues it. The module, its gradients and the random state stay as they are.

    Args:
        images: (N, C, H, W), float32 in [0, 1].
        labels: (N,), integer, from 0 on.
        on: name of the encoder in the module, such as "backbone". It takes images in [0, 1].
        classifier: from the module to its own classifier of images in [0, 1]; None is that of class
            means (:class:`~advssl.evaluation.theory.MeanClassifier`), so that no probe is trained.
        ball: where attacked images lie.
        attack: on the classifier; None is PGD-20 in the ball.
        selections: of :mod:`advssl.selection`, by name.
        every: how many epochs.
        seed: of attack and batches, in every epoch the same.

    Reference: ASCL, Figs. 2b and 4, https://arxiv.org/abs/2101.10027
    """

    def __init__(
        self,
        images: Images,
        labels: Labels,
        *,
        on: str,
        classifier: Callable[[LightningModule], nn.Module] | None = None,
        ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
        attack: Attack | None = None,
        selections: Sequence[str] = ("global", "leaked"),
        every: int = 1,
        seed: int = 0,
    ) -> None:
        check_batch(images, labels)
        check_kind("ball", ball, Ball)
        self.images, self.labels, self.on, self.classifier = images, labels, on, classifier
        self.ball, self.attack = ball, attack
        self.selections = tuple(several("selections", selections, "names"))
        self.every, self.seed = whole("every", every, 1), seed_of(seed)
        self.history: dict[int, Terms] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every:
            return
        (encoder, _), device = encoders_of(pl_module, self.on, None), pl_module.device
        images, labels = self.images.to(device), self.labels.to(device)
        found = class_terms(
            self.classifier(pl_module)
            if self.classifier
            else MeanClassifier(encoder, images, labels),
            images,
            labels,
            encoder=encoder,
            ball=self.ball,
            attack=self.attack,
            selections=self.selections,
            seed=self.seed,
        )
        self.history[epoch] = found
        told = {"intra": found.spread.intra, "inter": found.spread.inter}
        told |= {"relative": found.spread.relative, "clean": found.clean, "robust": found.robust}
        for name, pairs in found.anchors.items():
            for side in ("positives", "negatives"):
                clean, attacked = getattr(pairs, side)
                told |= {f"{name}_{side}": clean + attacked, f"{name}_{side}_attacked": attacked}
        pl_module.log_dict({f"classes/{name}": value for name, value in told.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"history": {epoch: asdict(found) for epoch, found in self.history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Epochs until the checkpoint, as they were."""
        self.history = {
            epoch: msgspec.convert(found, Terms) for epoch, found in state_dict["history"].items()
        }


def encoders_of(
    module: nn.Module, on: str, branches: tuple[str, str] | None
) -> tuple[nn.Module, nn.Module | None]:
    """The encoder of that name, or with branches that of benign and that of attacked images."""
    encoder = submodule_of(module, on)
    if branches is None:
        return encoder, None
    first, second = (keep_branch(encoder, name) for name in branches)
    return first, second


def check_branches(branches: tuple[str, str] | None) -> None:
    """Raise unless these are two names or none."""
    if branches is not None and len(branches) != 2:
        raise ValueError(
            f"branches must be two names, of benign and of attacked images, got {branches!r}"
        )
