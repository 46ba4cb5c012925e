"""Guards: what an attack is worth to the training that it is part of, and who acts on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advssl.attacks import AdversarialViewGenerator, Views, is_view, mapped, tensors_of
from advssl.balls import Linf
from advssl.distributed import agreeing, average
from advssl.modes import frozen
from advssl.randomness import random_state_kept
from advssl.types import (
    Objective,
    Scalar,
    check_kind,
    described,
    height_of,
    modules_of,
    number,
    see,
    several,
    warn,
    whole,
)

PGD_STEPS = 5  # of the PGD that training is compared with
_NOISE = 1e-3  # of the objective: a gain below it may be bfloat16's rounding


class Gains(NamedTuple):
    """By how much attacks raise the objective, a mean over images (and ranks)."""

    training: float
    pgd: float


def attacked_values(
    adversaries: Sequence[AdversarialViewGenerator],
    images: Views,
    objective: Objective,
    *,
    freeze: nn.Module | Iterable[nn.Module] | None = None,
) -> list[float]:
    """The objective's mean on the images as they are, then on the views of each adversary.

    All are computed from one state of what is frozen and of the random generators, and both are
    left as they are. Of n adversaries with K₁ to Kₙ steps it costs 2 (K₁ + ... + Kₙ) + n + 1
    forwards of the images. Under ``torch.distributed`` every rank calls it, for the mean over them.

    Args:
        adversaries: to compare.
        images: as these take them; a few will do.
        objective: what they raise.
        freeze: all modules that the objective goes through, as for the adversaries.
    """
    given = tensors_of(images)
    values: list[Tensor] = []
    with agreeing("attacked_values", lambda: values, given[0].device if given else None):
        values.append(torch.stack(_values(adversaries, images, objective, given, freeze)))
    (means,) = average(values, agreed=True)
    return means.tolist()


def _values(
    adversaries: Sequence[AdversarialViewGenerator],
    images: Views,
    objective: Objective,
    given: Sequence[Tensor],
    freeze: nn.Module | Iterable[nn.Module] | None,
) -> list[Scalar]:
    """This rank's."""
    adversaries = list(several("adversaries", adversaries, "several AdversarialViewGenerators"))
    for one in adversaries:
        check_kind("each of adversaries", one, AdversarialViewGenerator)
    modules = [] if freeze is None else modules_of("freeze", freeze)
    first = next((x for x in given if is_view(x)), None)
    if first is None:
        raise ValueError(f"images must be (B, C, H, W), one or several, got {described(images)}")

    def value(views: Any) -> Scalar:
        leaves: list[Tensor] = []
        # As in an attack: an objective may take a gradient of its own.
        with torch.inference_mode(False), torch.enable_grad(), frozen(*modules):
            mapped(views, lambda x: leaves.append(_leaf(x)))
            with random_state_kept(first.device):
                answer = objective(*leaves)
            return height_of("the objective", answer, len(first)).detach().double().mean()

    with random_state_kept(first.device):
        views = [images, *(a(images, objective, freeze=freeze) for a in adversaries)]
    return [value(one) for one in views]


class CatastrophicOverfittingGuard:
    """Catches a training whose cheap attack has stopped to work, and makes the attack stronger.

    Training on one step may end, within a few hundred batches, in an encoder that this step cannot
    move and PGD can as it likes: catastrophic overfitting. So every so often the gain of the
    training attack is compared with that of PGD-5 in the same ball. Where its share of the latter
    falls below ``least`` of the highest share that it has had, counted up to 1, the adversary takes
    twice as many steps of half the size from then on, up to five, and a warning says so. An encoder
    that was never robust, as at the start of an adversarial finetuning, has a low share, and no
    fall. What PGD gains below a thousandth of the objective is not judged, nor what is infinite.

    A call leaves model, random state and images as they are, so that a run in which nothing is
    caught is bit for bit the run without the guard. One that is due costs 2K + 13 forwards of
    the images, with K the adversary's steps; an adversary of five or more is left alone.

    Args:
        adversary: the one that training uses; its ``steps`` and ``step_size`` are set.
        every: number of calls of which the first is due.
        least: share, in (0, 1).

    References: Wong et al. 2020, https://arxiv.org/abs/2001.03994; stronger steps once it is seen:
    Li et al. 2020, https://arxiv.org/abs/2006.03089

    Example:
        >>> adversary = AdversarialViewGenerator(Linf(8 / 255), steps=1, start="noise")
        >>> guard = CatastrophicOverfittingGuard(adversary, every=100)
        >>> model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.rand(2, 3, 2, 2)
        >>> z = model(images).detach()
        >>> objective = lambda v: (model(v) - z).square().sum(dim=1)
        >>> hard = adversary(images, objective, freeze=model)
        >>> gains = guard(images, objective, freeze=model)
        >>> gains.pgd > 0
        True
        >>> guard(images, objective, freeze=model) is None  # not due
        True
    """

    def __init__(
        self, adversary: AdversarialViewGenerator, *, every: int = 100, least: float = 0.25
    ) -> None:
        check_kind("adversary", adversary, AdversarialViewGenerator)
        self.adversary = adversary
        self.every = every
        self.least = least
        self._pgd = AdversarialViewGenerator(Linf(8 / 255), PGD_STEPS)
        self._calls = 0
        self._highest = 0.0

    @property
    def every(self) -> int:
        return self._every

    @every.setter
    def every(self, every: int) -> None:
        self._every = whole("every", every, 1)

    @property
    def least(self) -> float:
        return self._least

    @least.setter
    def least(self, least: float) -> None:
        plain = number("least", least)
        if not 0 < plain < 1:
            raise ValueError(f"least is a share of PGD's gain, in (0, 1), got {plain}")
        self._least = plain

    def __call__(
        self,
        images: Views,
        objective: Objective,
        *,
        freeze: nn.Module | Iterable[nn.Module] | None = None,
    ) -> Gains | None:
        """Look, if it is time, and act if need be. Once per training step, with what it attacks.

        Args:
            images: as the adversary takes them; a few will do, with an objective that fits them.
            objective: what it raises.
            freeze: all modules that the objective goes through.

        Returns:
            What was seen, to be logged; None where it was not time.
        """
        return self.judge(self.look(images, objective, freeze=freeze))

    def look(
        self,
        images: Views,
        objective: Objective,
        *,
        freeze: nn.Module | Iterable[nn.Module] | None = None,
    ) -> list[float] | None:
        """The first half of a call: the objective on images, views of the adversary, and PGD's."""
        if self._calls % self.every or self.adversary.steps >= PGD_STEPS:
            return None
        self._pgd.ball, self._pgd.pixels = self.adversary.ball, self.adversary.pixels
        return attacked_values([self.adversary, self._pgd], images, objective, freeze=freeze)

    def judge(self, values: list[float] | None) -> Gains | None:
        """The second half: count the call, and act on what was seen."""
        self._calls += 1
        if values is None:
            return None
        clean, training, pgd = values
        gains = Gains(training - clean, pgd - clean)
        if all(map(isfinite, gains)) and gains.pgd > _NOISE * abs(clean):
            share = min(gains.training / gains.pgd, 1.0)
            self._highest = max(self._highest, share)
            if share < self.least * self._highest:
                self._strengthen(min(max(2 * self.adversary.steps, 1), PGD_STEPS))
                warn(
                    f"catastrophic overfitting: the attack of training raises the objective by "
                    f"{gains.training:.3g} and PGD-{PGD_STEPS} by {gains.pgd:.3g}, "
                    f"from {clean:.3g}; from here on it takes {self.adversary.steps} steps of "
                    f"{self.adversary.step_size:.3g}" + see("Catastrophic overfitting")
                )
        return gains

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: calls, highest share, and the number of steps that it came to."""
        return {
            "calls": self._calls,
            "highest": self._highest,
            "steps": self.adversary.steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; an adversary made anew takes as many steps as it then did."""
        if not isinstance(state_dict, Mapping) or not {*self.state_dict()} <= {*state_dict}:
            raise ValueError(
                f"state_dict must hold {', '.join(self.state_dict())}, as state_dict() gives them, "
                f"got {described(state_dict)}"
            )
        calls, steps = (whole(name, state_dict[name], 0) for name in ("calls", "steps"))
        self._calls, self._highest = calls, number("highest", state_dict["highest"])
        if steps > self.adversary.steps:
            self._strengthen(steps)

    def _strengthen(self, steps: int) -> None:
        adversary = self.adversary
        before, size = adversary.steps, adversary.step_size
        adversary.steps = steps
        if adversary.step_size == size:  # one that follows from the steps is smaller already
            adversary.step_size = size * max(before, 1) / steps


def _leaf(value: Tensor) -> Tensor:
    if not is_view(value):
        return value
    return (value.clone() if value.is_inference() else value.detach()).requires_grad_()
