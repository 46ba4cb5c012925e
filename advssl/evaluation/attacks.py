"""Attacks: classifier, images and labels to the worst images in a ball, and which still stand.

The door to what stands beside it: the search that attacks share, AutoAttack, and measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import L2, Ball, Linf, check_ball, resized
from advssl.evaluation.autoattack import MOST_TARGETS
from advssl.evaluation.autoattack import AutoAttack as AutoAttack
from advssl.evaluation.batches import Batches as Batches
from advssl.evaluation.batches import Indices as Indices
from advssl.evaluation.batches import batch_seed as batch_seed
from advssl.evaluation.batches import check_batch as check_batch
from advssl.evaluation.batches import check_labels as check_labels
from advssl.evaluation.batches import class_balanced as class_balanced
from advssl.evaluation.batches import pairs as pairs
from advssl.evaluation.identity import classifier_fingerprint as classifier_fingerprint
from advssl.evaluation.logits import Logits as Logits
from advssl.evaluation.logits import NotFinite as NotFinite
from advssl.evaluation.logits import borrowed as borrowed
from advssl.evaluation.logits import check_module as check_module
from advssl.evaluation.logits import class_count as class_count
from advssl.evaluation.logits import device_of as device_of
from advssl.evaluation.logits import logit_at
from advssl.evaluation.logits import logits_of as logits_of
from advssl.evaluation.logits import margin as margin
from advssl.evaluation.logits import undisturbed as undisturbed
from advssl.evaluation.measuring import measure as measure
from advssl.evaluation.measuring import transfer as transfer
from advssl.evaluation.progress import Progress as Progress
from advssl.evaluation.progress import progress_bars as progress_bars
from advssl.evaluation.search import Attack as Attack
from advssl.evaluation.search import Clean as Clean
from advssl.evaluation.search import Found as Found
from advssl.evaluation.search import (
    ImageByImage,
    Search,
    Worst,
    ball_name,
    ball_settings,
    cross_entropy,
    exchanged,
    in_levels,
)
from advssl.evaluation.search import Settings as Settings
from advssl.types import Images, Labels, PerExample, positive, several, whole


@dataclass(frozen=True)
class _Ascent(Search):
    """What projected gradient ascent on any loss has: a ball, and steps from a uniform start."""

    ball: Ball = Linf(8 / 255)  # noqa: RUF009 (a frozen value)
    steps: int = 20
    step_size: float | None = 2 / 255

    def __post_init__(self) -> None:
        exchanged(self, steps=whole("steps", self.steps, 0))
        if self.step_size is not None:
            exchanged(self, step_size=positive("step_size", self.step_size))
        _ = self._adversary  # refuses the other settings if they make no sense

    @property
    def _step(self) -> float:
        return self._adversary.step_size

    @cached_property
    def _adversary(self) -> AdversarialViewGenerator:
        adversary = AdversarialViewGenerator(self.ball, self.steps, self.step_size)
        adversary.ball = ImageByImage(self.ball)
        return adversary

    @property
    def _ascent(self) -> Settings:
        return {
            "ball": ball_settings(self.ball),
            "steps": self.steps,
            "step_size": self._step,
            "start": "uniform",
        }


@dataclass(frozen=True)
class PGD(_Ascent):
    """Projected gradient ascent on the cross-entropy, from a uniform start in the ball.

    Costs ``steps`` forwards and backwards to the input per restart, and one forward more.

    Args:
        ball: the threat model.
        steps: gradient evaluations.
        step_size: in the ball's norm and units; None is 2.5 · radius / steps.
        restarts: from different starts; from the second on, only what still stands is attacked.

    Reference: Madry et al. 2018, https://arxiv.org/abs/1706.06083
    """

    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        exchanged(self, restarts=whole("restarts", self.restarts, 1))

    @property
    def name(self) -> str:
        text = f"PGD-{self.steps} {ball_name(self.ball)}, step {in_levels(self._step)}"
        return text if self.restarts == 1 else f"{text}, {self.restarts} restarts"

    @property
    def settings(self) -> Settings:
        return {
            "attack": "PGD",
            "loss": "cross-entropy",
            **self._ascent,
            "restarts": self.restarts,
        }

    def _run(
        self, classifier: nn.Module, images: Images, labels: Labels, seed: int, report: Progress
    ) -> Found:
        worst = Worst(classifier, images, labels, cross_entropy)
        for restart in range(self.restarts):
            where = worst.everywhere() if restart == 0 else worst.standing()
            worst.climb(self._adversary, where, cross_entropy, batch_seed(seed, restart))
            report("restart", restart + 1, self.restarts)
        return worst.found()


@dataclass(frozen=True)
class MultiTargetedPGD(_Ascent):
    """One PGD per wrong class: ascent on its logit minus that of the label.

    The difference does not saturate and its direction does not depend on the logits' scale, so it
    also moves where the cross-entropy has no gradient left. Costs ``steps`` forwards and backwards
    per target for what still stands.

    Args:
        ball: the threat model.
        steps: gradient evaluations per target.
        step_size: in the ball's norm and units; None is 2.5 · radius / steps.
        targets: how many wrong classes, those with the highest logits on the unperturbed image
            first. None is all of them, 9 at most.

    Reference: Gowal et al. 2019, https://arxiv.org/abs/1910.09338
    """

    targets: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets is not None:
            exchanged(self, targets=whole("targets", self.targets, 1))

    @property
    def name(self) -> str:
        text = f"multi-targeted PGD-{self.steps} {ball_name(self.ball)}, step "
        text += in_levels(self._step)
        return text if self.targets is None else f"{text}, {self.targets} targets"

    @property
    def settings(self) -> Settings:
        return {
            "attack": "multi-targeted PGD",
            "loss": "logit difference",
            **self._ascent,
            "targets": f"all, at most {MOST_TARGETS}" if self.targets is None else self.targets,
        }

    def _run(
        self, classifier: nn.Module, images: Images, labels: Labels, seed: int, report: Progress
    ) -> Found:
        worst = Worst(classifier, images, labels, margin)
        ranked = _wrong_classes(worst.logits, labels)
        count = min(self.targets or MOST_TARGETS, ranked.shape[1])
        for rank in range(count):
            where = worst.everywhere() if rank == 0 else worst.standing()
            target = ranked[where, rank]

            def lead(logits: Logits, labels: Labels) -> PerExample:
                return logit_at(logits, target) - logit_at(logits, labels)

            worst.climb(self._adversary, where, lead, batch_seed(seed, rank))
            report("target", rank + 1, count)
        return worst.found()


def _wrong_classes(logits: Logits, labels: Labels) -> Tensor:
    """(B, K - 1): the classes other than the label, those of highest logit first."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True)[:, :-1]


@dataclass(frozen=True)
class Named:
    """Attacks that one word stands for, at the settings of papers: called with a ball.

    Attributes:
        help: what they are, in a line.
        of: the ball to the attacks.
    """

    help: str
    of: Callable[[Ball], tuple[Attack, ...]]

    def __call__(self, ball: Ball) -> tuple[Attack, ...]:
        return self.of(ball)


_OTHER = L2(0.5)  # the usual CIFAR budget

ATTACKS: Mapping[str, Named] = {
    "clean": Named("no attack", lambda _: (Clean(),)),
    # 2/255 and 0.8/255 at a radius of 8/255: the field reports either.
    "pgd": Named(
        "PGD-20 with steps of a quarter and of a tenth of the radius",
        lambda ball: (PGD(ball, 20, ball.radius / 4), PGD(ball, 20, ball.radius / 10)),
    ),
    "pgd-l2": Named(
        f"PGD-20 in l_2 at radius {_OTHER.radius}, whatever the threat model",
        lambda _: (PGD(_OTHER, 20, _OTHER.radius / 10),),
    ),
    "mpgd": Named(
        "multi-targeted PGD-20, one run per wrong class",
        lambda ball: (MultiTargetedPGD(ball, 20, ball.radius / 4),),
    ),
    # Not asked for unless by name: what some papers report.
    "pgd-double": Named(
        "PGD-20 at twice the radius, with steps of a quarter of that",
        lambda ball: (PGD(resized(ball, 2 * ball.radius), 20, ball.radius / 2),),
    ),
    "pgd-250": Named(
        "pgd with 250 steps",
        lambda ball: (PGD(ball, 250, ball.radius / 4), PGD(ball, 250, ball.radius / 10)),
    ),
    "mpgd-250": Named(
        "mpgd with 250 steps", lambda ball: (MultiTargetedPGD(ball, 250, ball.radius / 4),)
    ),
    "aa": Named("AutoAttack standard, the authors' own code", lambda ball: (AutoAttack(ball),)),
}


def attacks_of(names: Sequence[str], ball: Ball) -> tuple[Attack, ...]:
    """What words of :data:`ATTACKS` stand for, each attack once; :class:`Clean` comes first.

    Raises:
        ValueError: on a word that is not among them.
    """
    words = list(several("names", names, "words", "; split a text at its commas"))
    check_ball("ball", ball)
    unknown = [word for word in words if not isinstance(word, str) or word not in ATTACKS]
    if unknown:
        raise ValueError(f"no attack is called {unknown[0]!r}; choose among {', '.join(ATTACKS)}")
    chosen: list[Attack] = [Clean()]
    for attack in (a for word in words for a in ATTACKS[word](ball)):
        if attack not in chosen:
            chosen.append(attack)
    return tuple(chosen)
