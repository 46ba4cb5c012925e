"""A method: which views it looks at, what its adversary raises and what its training lowers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from advssl import AdversarialViewGenerator, Linf, branch_batchnorm, evaluating, on_branch
from advssl.evaluation.data import Data
from harness.augment import augmentation
from harness.data import Batch
from harness.schedules import Schedule

Views: TypeAlias = dict[str, Tensor]  # (B, 3, H, W) in [0, 1], by name
Seen: TypeAlias = dict[str, Tensor]  # what the network makes of each view, by the same name
Terms: TypeAlias = dict[str, Tensor]  # scalars to sum, weights included

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every method can be told; a method's own settings extend it, and all become flags."""

    radius: float = 8 / 255  # of the attack: ℓ∞, of pixels in [0, 1]
    steps: int = 5  # of the attack
    relative_step: float = 0.25  # length of each, of the radius: 2/255 at 8/255
    second_view: Literal["strong", "weak"] = "strong"  # weak in GSA-RSL's release: a control
    exact_bn: bool = False  # the attack forwards all again and moves BatchNorm, as releases do

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                allowed = ", ".join(map(repr, get_args(kind)))
                raise ValueError(f"{name} must be one of {allowed}; got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Recipe:
    """How long and with which optimizer a method is pretrained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, over all processes.
        schedule: of the learning rate.
        optimizer: "sgd" (momentum 0.9), "adam" or "lars".
        weight_decay: of all parameters.
    """

    epochs: int
    batch_size: int
    schedule: Schedule
    optimizer: str = "sgd"
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class Differs:
    """A setting on which a paper's text and its authors' code disagree."""

    setting: str
    released: Any
    paper: Any
    note: str


class Method(nn.Module):
    """One training step, from images to the terms of a loss, at the least number of forwards.

    A step looks at the views in ``names``, where "t1d" is what an attack makes of "t1". It attacks
    all of those jointly, forwards every view once on its BatchNorm branch and sums ``terms``. While
    the attack runs, views named in ``anchors`` are what the attacked ones are compared with; in
    train mode their batch statistics are those of the training pass, so they are forwarded once,
    with graph, and used detached by the attack. After an attack in eval mode all views of a branch
    are forwarded together, attacked or not.

    A further method is one more file: it sets the class attributes (a property where settings
    decide) and writes ``views``, ``benign`` and ``adversarial`` (and ``height``, where the
    adversary raises something else). ``begin_epoch`` is there for schedules and ``after_step`` for
    momentum encoders.

    Args:
        encoder: images (B, 3, H, W) to features (B, ``num_features``); its BatchNorm is branched.
        data: what it is trained on; decides the kind of augmentation and the number of classes.
        size: H = W of the views.
        settings: an instance of ``settings_type``.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    settings_type: ClassVar[type[Settings]] = Settings
    differences: ClassVar[tuple[Differs, ...]] = ()  # released code against paper
    ours: ClassVar[tuple[str, ...]] = ()  # what we do differently from both
    labelled: ClassVar[bool] = False  # whether training reads labels
    recipe: ClassVar[Recipe]  # the paper's schedule
    short: ClassVar[Mapping[str, Any]] = {}  # settings for minutes of training, not days
    probe: ClassVar[str] = "advcl"  # the paper's finetuning: a preset of advssl.evaluation.probes

    names: tuple[str, ...]  # of the views of a step, "d" behind those that are attacked
    anchors: tuple[str, ...] = ()
    branch_of: Mapping[str, str] = {}  # BatchNorm branch by view; empty: one BatchNorm for all
    head_branches: bool = False  # whether the BatchNorm of the head has branches as well
    headless: tuple[str, ...] = ()  # views of which losses read features, not the head's output
    evaluated: tuple[str, ...] = ()  # branches to measure, the method's own choice first
    augmentation: Mapping[str, Any] = {}  # of the strong views, where it is not the usual one
    attack_in_train_mode = False
    together = True  # views of one branch share a forward, and so their batch statistics
    start = "uniform"  # of the attack
    normalization: dict[str, tuple[float, ...]] | None = None  # of the encoder's input
    clusters_of: str | None = None  # the method that is trained before, for ``prepare``

    def __init__(self, encoder: nn.Module, data: Data, size: int, settings: Settings) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, settings
        self.head = self.make_head(encoder.num_features, len(data.classes))
        if self.branch_of:
            # None without a view: it would never be trained, and still be measured.
            branches = tuple(dict.fromkeys(self.branch_of[name] for name in self.names))
            branch_batchnorm(encoder, branches)
            if self.head_branches:
                branch_batchnorm(self.head, branches)
            self.evaluated = tuple(name for name in self.evaluated if name in branches)
        self.strong = augmentation("strong", data, size, **self.augmentation)
        self.weak = augmentation("weak", data, size)
        self.adversary = AdversarialViewGenerator(
            Linf(settings.radius),
            settings.steps,
            settings.relative_step * settings.radius,
            start=self.start,
        )

    # --- what a method writes ---------------------------------------------------------------------

    def make_head(self, features: int, classes: int) -> nn.Module:
        """What stands on the encoder while it is pretrained."""
        raise NotImplementedError

    def views(self, images: Tensor) -> Views:
        """The views of a batch of images, before any attack."""
        raise NotImplementedError

    def adversarial(self, seen: Seen, batch: Batch) -> Terms:
        """The terms with attacked views: what the adversary raises and training lowers."""
        return {}

    def benign(self, seen: Seen, batch: Batch) -> Terms:
        """The terms without attacked views."""
        return {}

    def terms(self, seen: Seen, views: Views, batch: Batch) -> Terms:
        """What training lowers, given what the network makes of every view."""
        return {**self.benign(seen, batch), **self.adversarial(seen, batch)}

    def height(self, seen: Seen, batch: Batch) -> Tensor:
        """What the adversary raises, given the anchors and the attacked views."""
        return torch.stack(list(self.adversarial(seen, batch).values())).sum()

    def represent(self, images: Tensor, name: str) -> Tensor:
        """What the losses compare, of the view ``name``."""
        features = self.encode(images)
        return features if name in self.headless else self.head(features)

    @property
    def measured(self) -> nn.Module:
        """The encoder that is probed, attacked and exported: a momentum encoder, of some."""
        return self.encoder

    def prepare(self, features: Tensor, before: Method) -> None:
        """Before training: features (N, D) of the training images from ``clusters_of``, trained."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Before each epoch, counted from 0: for schedules of augmentation and weights."""

    def after_step(self) -> None:
        """After each optimizer step: for momentum encoders."""

    def classifier(self) -> nn.Module | None:
        """Images in [0, 1] to logits, of a method that trains a classifier itself."""
        return None

    def optimizers(self) -> dict[str, tuple[Optimizer, float]]:
        """Optimizers that step inside ``terms``, with their peak rates; they share the schedule."""
        return {}

    # --- what all share ---------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Terms:
        """The terms of one step, to be summed and back-propagated once."""
        with torch.no_grad():
            made = self.views(batch.images)
        views = {name: made[name.removesuffix("d")] for name in self.names}
        if self.attacked and self.attack_in_train_mode:
            seen = self.see({name: views[name] for name in views if name not in self.attacked})
            found = self.search(views, seen, batch)
            return self.terms(seen | self.see(found), views | found, batch)
        if self.attacked:
            with evaluating(self):
                with torch.no_grad():
                    anchors = self.see({name: views[name] for name in self.anchors})
                views |= self.search(views, anchors, batch)
        return self.terms(self.see(views), views, batch)

    @property
    def attacked(self) -> tuple[str, ...]:
        """Of ``names``, those that are attacked."""
        return tuple(name for name in self.names if name.endswith("d"))

    @property
    def second(self) -> nn.Module:
        """The augmentation of the second view, whose strength is a setting of every method."""
        return self.strong if self.settings.second_view == "strong" else self.weak

    def search(self, views: Views, seen: Seen, batch: Batch) -> Views:
        """The attacked views at their worst."""
        moving = self.settings.exact_bn and self.attack_in_train_mode
        anchors = {name: seen[name].detach() for name in self.anchors}

        def objective(*images: Tensor) -> Tensor:
            known = anchors
            if moving:
                with torch.no_grad():
                    known = self.see({name: views[name] for name in self.anchors})
            return self.height(
                {**known, **self.see(dict(zip(self.attacked, images, strict=True)))}, batch
            )

        found = self.adversary(
            tuple(views[name] for name in self.attacked), objective, freeze=() if moving else self
        )
        return dict(zip(self.attacked, found, strict=True))

    def see(self, views: Views) -> Seen:
        """Forward every view on its branch."""
        groups: dict[str, list[str]] = {}
        for name in views:
            key = self.branch_of.get(name, "") if self.together else name
            groups.setdefault(key, []).append(name)
        seen: Seen = {}
        for names in groups.values():
            with self.branch(names[0]):
                out = self.represent(torch.cat([views[n] for n in names]), names[0])
            seen |= dict(zip(names, out.chunk(len(names)), strict=True))
        return seen

    def branch(self, name: str) -> AbstractContextManager[None]:
        """The BatchNorm branch of a view."""
        if not self.branch_of:
            return nullcontext()
        return on_branch(self, self.branch_of[name])

    def encode(self, images: Tensor, encoder: nn.Module | None = None) -> Tensor:
        """Images in [0, 1] to features (B, D), of ``encoder`` if not the method's own."""
        if self.normalization is not None:
            mean, std = (
                images.new_tensor(self.normalization[k]).view(-1, 1, 1) for k in ("mean", "std")
            )
            images = (images - mean) / std
        return (self.encoder if encoder is None else encoder)(images)

    @classmethod
    def settings_of(cls, mode: str, **changed: Any) -> Settings:
        """The settings of the released code or of the paper's text, with some changed."""
        if mode not in ("released", "paper"):
            raise ValueError(f'mode must be "released" or "paper", got {mode!r}')
        known = {d.setting: getattr(d, mode) for d in cls.differences}
        return cls.settings_type(**{**known, **changed})
