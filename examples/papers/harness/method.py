"""A method: one training step, written as its paper's algorithm, and what the loop asks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from advssl import AdversarialViewGenerator, Linf, on_branch
from advssl.evaluation.data import Data
from harness.augment import augmentation
from harness.data import Batch
from harness.schedules import Recipe
from harness.settings import Settings

Terms: TypeAlias = dict[str, Tensor]  # scalars to sum, weights included
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def width_of(encoder: Any) -> int:
    """D of what it answers, (B, D): some of timm's, as MobileNetV3, have a layer after others."""
    return cast(int, getattr(encoder, "head_hidden_size", encoder.num_features))


class Method(nn.Module):
    """An encoder with a head, and ``step``: a batch of images to the terms of its loss.

    The loop sums the terms, logs them and steps once. A method is one file: its settings, what
    stands on the encoder, and a step that draws views, attacks and forwards them, and names terms.

    Args:
        encoder: images (B, 3, H, W) to features (B, ``num_features``).
        data: what it is trained on; decides the kind of augmentation and the number of classes.
        size: H = W of the views.
        settings: an instance of ``settings_type``.
        reach: how far the attack goes, of the radius that the settings name and that is measured.
        attack: what the attack is told beside the settings: ``start``, ``clamp_start``.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    settings_type: ClassVar[type[Settings]] = Settings
    recipe: ClassVar[Recipe]  # the paper's schedule
    probe: ClassVar[str] = "advcl"  # the paper's finetuning: a preset of advssl.evaluation.probes
    ours: ClassVar[tuple[str, ...]] = ()  # what we do differently from both code and text
    released_network: ClassVar[str] = "resnet18"  # the released code's; the text's is a ResNet-18
    labelled: ClassVar[bool] = False  # whether training reads labels
    strong_as: ClassVar[Mapping[str, Any]] = {}  # the strong augmentation, where not the usual one
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean, std of its input
    one_batchnorm: bool = False  # for clean and attacked images: branches are named in vain
    # What ``prepare`` needs: a method that is trained before, or a ``harness.networks.Network``.
    after: str | None = None

    def __init__(
        self,
        encoder: nn.Module,
        data: Data,
        size: int,
        settings: Settings,
        *,
        reach: float = 1.0,
        **attack: Any,
    ) -> None:
        super().__init__()
        s = self.settings = settings
        self.encoder, self.head = encoder, cast(nn.Module, nn.Identity())
        self.better: nn.Module | None = None  # after ``plus.py``, and then it is what is measured
        self.width = width_of(encoder)
        self.strong = augmentation("strong", data, size, **self.strong_as)
        self.weak = augmentation("weak", data, size)
        ball = Linf(reach * s.radius)
        step_size = s.relative_step * ball.radius
        self.adversary = AdversarialViewGenerator(ball, s.steps, step_size, **attack)
        self.with_steps: Callable[[int], AdversarialViewGenerator] = partial(
            AdversarialViewGenerator, ball, step_size=step_size, **attack
        )

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        """The terms of one step. Images (B, 3, H, W) in [0, 1]; labels and dataset index (B,)."""
        raise NotImplementedError

    def prepare(self, before: Method, features: Tensor) -> None:
        """Before training: the trained ``after``, and its features (N, D) of the same images."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Before each epoch, counted from 0: for schedules of augmentation and weights."""

    def after_step(self) -> None:
        """After each optimizer step that was not skipped: for momentum encoders."""

    def optimizers(self) -> dict[str, tuple[Optimizer, float]]:
        """Those that step inside ``step``, with their peak rates; they share the schedule."""
        return {}

    def classifier(self) -> nn.Module | None:
        """Images in [0, 1] to logits, of a method that trains a classifier itself."""
        return None

    def measured(self) -> tuple[nn.Module, tuple[str, ...]]:
        """What is probed, attacked and exported, and on which branches, its own choice first."""
        return self.encoder, ()

    def forward(self, batch: Batch) -> Terms:
        """One step, by the name that DDP and Lightning call."""
        return self.step(batch.images, batch.labels, batch.index)

    # --- the words a step is written in -----------------------------------------------------------

    def second(self, images: Tensor) -> Tensor:
        """The second view of an image, strong or weak as the settings say."""
        view: Tensor = (self.strong if self.settings.second_view == "strong" else self.weak)(images)
        return view

    def attack(
        self,
        views: Tensor | Sequence[Tensor],
        height: Callable[..., Tensor],
        steps: int | None = None,
    ) -> Any:
        """The views near ``views`` at which ``height`` is high. The mode is the caller's choice.

        ``steps`` are the settings', unless a method has attacks of different lengths.
        """
        adversary = self.adversary if steps is None else self.with_steps(steps)
        moving = self.settings.exact_bn and self.training
        views = views if isinstance(views, Tensor) else tuple(views)
        return adversary(views, height, freeze=() if moving else self)

    def encode(self, views: Any, branch: str | None = None, then: nn.Module | None = None) -> Any:
        """Features of a view, on a BatchNorm branch; of several, in one forward, a tuple."""
        several = None if isinstance(views, Tensor) else len(views)
        images = self.normalized(torch.cat(tuple(views)) if several else views)
        with on_branch(self, branch) if branch and not self.one_batchnorm else nullcontext():
            out = self.encoder(images) if then is None else then(self.encoder(images))
        return out.chunk(several) if several else out

    def embed(self, views: Any, branch: str | None = None) -> Any:
        """What the losses compare: the head's output, like :meth:`encode`."""
        return self.encode(views, branch, self.head)

    def normalized(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the encoder reads them."""
        if self.pixels is None:
            return images
        mean, std = (images.new_tensor(part).view(-1, 1, 1) for part in self.pixels)
        return (images - mean) / std

    def known(self, again: Callable[[], Sequence[Tensor]], seen: Sequence[Tensor]) -> list[Tensor]:
        """What an attack in train mode compares with: ``seen`` without graph, or made ``again``."""
        if not self.settings.exact_bn:
            return [z.detach() for z in seen]
        with torch.no_grad():
            return [*again()]


def total(terms: Terms) -> Tensor:
    """The loss."""
    return torch.stack([*terms.values()]).sum()
