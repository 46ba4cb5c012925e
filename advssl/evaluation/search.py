"""Search: what every attack is, and the worst image that it found for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, nn

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import L2, Ball, Linf, radius_of, widest
from advssl.evaluation.batches import Indices, check_batch, image_seeds
from advssl.evaluation.logits import Logits, borrowed, check_classes, device_of, logits_of
from advssl.evaluation.progress import Progress, ignored
from advssl.evaluation.records import WORST
from advssl.types import (
    Images,
    Labels,
    Objective,
    PerExample,
    Perturbation,
    described,
    seed_of,
)

Settings: TypeAlias = dict[str, Any]  # plain JSON
Loss: TypeAlias = Callable[[Logits, Labels], PerExample]


@dataclass(frozen=True)
class Found:
    """What an attack leaves of a batch.

    Attributes:
        images: (B, C, H, W), in the ball and in [0, 1].
        correct: (B,), bool; the images still classified right, as the attack itself saw it.
    """

    images: Images
    correct: PerExample


class Attack(Protocol):
    """What :func:`measure` and :func:`transfer` need. Write your own by having these four.

    One without ``ball`` is taken too; its record then states no threat model.
    """

    @property
    def name(self) -> str:
        """For people, the same for every number of images."""
        ...

    @property
    def settings(self) -> Settings:
        """All that the result depends on besides classifier, images and seed, as plain JSON."""
        ...

    @property
    def ball(self) -> Ball | None:
        """The threat model; None where nothing is perturbed."""
        ...

    def __call__(
        self,
        classifier: nn.Module,
        images: Images,
        labels: Labels,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Images:
        """Adversarial images, in the ball around ``images`` and in [0, 1].

        The seed is the same for every batch: draw by
        :func:`~advssl.evaluation.batches.image_seeds`, and what is found for an image does not
        depend on the others in its batch.
        """
        ...


def check_attack(attack: Any) -> None:
    """Raise unless it has what :class:`Attack` has."""
    has_all = callable(attack) and hasattr(attack, "name") and hasattr(attack, "settings")
    if isinstance(attack, type) or not has_all:
        raise ValueError(
            "attack must have a name and settings and be callable, such as PGD(), got "
            f"{attack.__name__ if isinstance(attack, type) else described(attack)}"
        )
    if not isinstance(attack.name, str) or not attack.name or attack.name == WORST:
        raise ValueError(
            f"an attack's name is text for people, and not {WORST!r}, as a report calls what all "
            f"attacks leave together; got {attack.name!r}"
        )


class Search:
    """What our attacks share: input checks, and the classifier borrowed and given back."""

    def __call__(
        self,
        classifier: nn.Module,
        images: Images,
        labels: Labels,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Images:
        """The worst image found for each, in the ball and in [0, 1]; see :meth:`search`."""
        found = self.search(classifier, images, labels, seed=seed, progress=progress)
        return found.images

    def search(
        self,
        classifier: nn.Module,
        images: Images,
        labels: Labels,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Found:
        """Per example the image that is misclassified if one was found, else that of highest loss.

        The unperturbed image is in the ball and counts as found: an attack never helps.

        Args:
            classifier: a module, images to logits, see :func:`logits_of`. It runs in eval mode and
                in float32, on its own device, and comes back as it was.
            images: (B, C, H, W), float32, in [0, 1].
            labels: (B,), integer.
            seed: of what is drawn for each image, in whatever batch and place. So batch size and
                order change the rounding of the classifier's products and no more, but for what a
                random classifier draws itself. The caller's random state stays.
            progress: told about restarts, targets or sub-attacks.

        Raises:
            ValueError: on images, labels, logits or a classifier that break the above.
            ImportError: if the attack needs a library that is not installed.
        """
        check_batch(images, labels)
        seed, device = seed_of(seed), device_of(classifier, images)
        # What the classifier draws differs from batch to batch, wherever the batch stands.
        with borrowed(classifier, device, image_seeds(images[:1], seed)[0]):
            # A clone, because an inference tensor cannot take part in a graph.
            x, y = images.detach().clone().to(device), labels.clone().to(device).long()
            found = self._run(classifier, x, y, seed, progress or ignored)
        return Found(found.images.to(images.device), found.correct.to(images.device))

    def _run(
        self, classifier: nn.Module, images: Images, labels: Labels, seed: int, report: Progress
    ) -> Found:
        raise NotImplementedError


@dataclass(frozen=True)
class Clean(Search):
    """No attack: accuracy on the images as they are."""

    @property
    def name(self) -> str:
        return "clean"

    @property
    def settings(self) -> Settings:
        return {"attack": "clean"}

    @property
    def ball(self) -> None:
        return None

    def _run(
        self, classifier: nn.Module, images: Images, labels: Labels, seed: int, report: Progress
    ) -> Found:
        del seed, report
        worst = Worst(classifier, images, labels, cross_entropy)
        return worst.found()


class Worst:
    """Per example the worst image so far: misclassified before not, then the higher loss."""

    def __init__(self, classifier: nn.Module, images: Images, labels: Labels, loss: Loss) -> None:
        self._classifier, self._loss = classifier, loss
        self._clean, self._labels = images, labels
        self._images = images.clone()
        self.logits = self._answers(images)
        check_classes(labels, self.logits)
        self._wrong, self._height = self._judged(self.logits, labels)

    def found(self) -> Found:
        return Found(self._images, ~self._wrong)

    def everywhere(self) -> Indices:
        return torch.arange(len(self._labels), device=self._labels.device)

    def standing(self) -> Indices:
        return (~self._wrong).nonzero().squeeze(1)

    def climb(
        self, adversary: AdversarialViewGenerator, where: Indices, loss: Loss, seed: int
    ) -> None:
        """Attack the images at ``where`` and keep those that came out worse."""
        if len(where) == 0:
            return
        labels = self._labels[where]
        objective: Objective = lambda v: loss(logits_of(self._classifier, v), labels)  # noqa: E731
        draw = Generator("cpu").manual_seed(seed)
        hard = adversary(self._clean[where], objective, freeze=(), generator=draw)
        wrong, height = self._judged(self._answers(hard), labels)
        before = self._wrong[where]
        worse = (wrong & ~before) | ((wrong == before) & (height > self._height[where]))
        taken = where[worse]
        self._images[taken] = hard[worse]
        self._wrong[taken], self._height[taken] = wrong[worse], height[worse]

    def _answers(self, images: Images) -> Logits:
        with torch.no_grad():
            return logits_of(self._classifier, images)

    def _judged(self, logits: Logits, labels: Labels) -> tuple[PerExample, PerExample]:
        return logits.argmax(dim=1) != labels, self._loss(logits, labels)


@dataclass(frozen=True, repr=False)
class ImageByImage:
    """``ball`` with starts that do not depend on the batch: each is drawn alone, on the CPU.

    By the image's pixels and the seed of the generator, whose state does not matter.
    """

    ball: Ball

    @property
    def radius(self) -> float:
        return self.ball.radius

    def sample(self, images: Images, generator: Generator | None = None) -> Perturbation:
        seed = 0 if generator is None else generator.initial_seed()
        starts = [
            self.ball.sample(image[None], Generator("cpu").manual_seed(own))
            for image, own in zip(images.cpu(), image_seeds(images, seed), strict=True)
        ]
        return torch.cat(starts).to(images.device)

    def steepest(self, gradient: Perturbation) -> Perturbation:
        return self.ball.steepest(gradient)

    def project(self, delta: Perturbation) -> Perturbation:
        return self.ball.project(delta)

    def widest(self, shape: Sequence[int] | None = None) -> float:
        return widest(self.ball, shape)

    def __repr__(self) -> str:
        return repr(self.ball)


def cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    return F.cross_entropy(logits, labels, reduction="none")


def exchanged(settings: Any, **fields: Any) -> None:
    """Exchange fields of a frozen value for what they mean, while it is made."""
    for name, value in fields.items():
        object.__setattr__(settings, name, value)


def ball_name(ball: Ball) -> str:
    norm = {Linf: "l_inf", L2: "l_2"}.get(type(ball), type(ball).__name__)
    return f"{norm} {in_levels(radius_of(ball))}"


def ball_settings(ball: Ball) -> Settings:
    held: Settings = asdict(ball) if is_dataclass(ball) and not isinstance(ball, type) else {}
    return {"norm": type(ball).__name__, **held, "radius": radius_of(ball)}


def in_levels(value: float) -> str:
    """As papers write it: 0.5, but 8/255 where a decimal would be long."""
    short, levels = f"{value:.4g}", round(value * 255, 1)
    if len(short) <= 4 or abs(value * 255 - levels) > 1e-4:
        return short
    return f"{levels:g}/255"
