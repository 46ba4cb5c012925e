"""Losses: terms without gradient, gradients that float16 loses, and objectives that do not rise."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import pstdev

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advssl.attacks import AdversarialViewGenerator
from advssl.doctor.inputs import elsewhere
from advssl.doctor.steps import Heard, Repeated, leaf
from advssl.evaluation.checks import Check, answer, not_run
from advssl.types import Images

_UNDERFLOW = 0.05  # of the gradient's length; in float32 and bfloat16 it is rounding, 1e-6
_SCALES = (2.0**12, 2.0**6, 2.0**3)  # powers of two change nothing but what is lost
_RISES = 1e-4  # of the loss; float32 rounds it by 1e-6
_UNSEEN = 10_000  # draws that no attack sees
_HELD = 0.5  # of the gain on the way that is there at the end


def detached(case: Repeated, heard: Heard) -> Check:
    """A term of the loss that is a number."""
    if not heard.beside:
        return answer(False, "every number that is added to the loss has a gradient")
    _, again = case.heard(*(leaf(elsewhere(x)) for x in case.images), trained=True)
    lost = [a for a, b in zip(heard.beside, again.beside, strict=False) if a != b]
    return answer(
        bool(lost),
        f"{len(lost)} numbers without a gradient are added to the loss or taken from it, and "
        f"change with the images: {', '.join(f'{value:.4g}' for value in lost[:3])}"
        if lost
        else "what is added without a gradient does not change with the images",
    )


def underflow(case: Repeated, heard: Heard, scale: float) -> Check:
    """Gradients of the weights that float16 rounds to zero."""
    halves = any(
        isinstance(c.output, Tensor) and c.output.dtype == torch.float16 for c in heard.calls
    )
    if not halves:
        return answer(False, "nothing is computed in float16")
    case.begin(trained=True)
    with torch.enable_grad():
        loss = case.now(*case.images).mean()
        weights = case.learning
        plain = _flat(
            torch.autograd.grad(scale * loss, weights, retain_graph=True, allow_unused=True)
        )
        for factor in _SCALES:
            large = (
                _flat(
                    torch.autograd.grad(
                        factor * scale * loss, weights, retain_graph=True, allow_unused=True
                    )
                )
                / factor
            )
            if large.isfinite().all() and large.any():
                break
        else:
            return not_run("no larger loss has a finite gradient")
    lost = float((plain - large).norm() / large.norm())
    zeros = float((plain[large != 0] == 0).float().mean())
    return answer(
        not lost <= _UNDERFLOW,
        f"multiplied by {scale:g}, the loss has a gradient in the weights that is "
        f"{100 * lost:.2g} % off that of {factor * scale:g} times the loss, and 0 in "
        f"{100 * zeros:.2g} % of the weights where that is not",
        lost=lost,
    )


def _flat(gradients: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([g.detach().double().flatten() for g in gradients if g is not None])


@dataclass(frozen=True)
class Climb:
    """What an attack came to.

    Attributes:
        clean: the loss of the images as they are.
        highest: the loss on the way, where its steps compare.
        gains: from the clean images to the last, one for each draw that the attack did not see.
    """

    clean: float
    highest: float
    gains: tuple[float, ...]

    @property
    def gain(self) -> float:
        return sum(self.gains) / len(self.gains)

    @property
    def noise(self) -> float:
        error = pstdev(self.gains) / len(self.gains) ** 0.5
        return max(_RISES * abs(self.clean), 2 * error)

    @property
    def rises(self) -> bool:
        return self.gain > self.noise and self.gain >= _HELD * (self.highest - self.clean)


def climb(
    case: Repeated,
    adversary: AdversarialViewGenerator,
    *,
    replays: bool | None = None,
    still: Iterable[nn.Module] = (),
) -> Climb:
    """The attack on the step.

    Args:
        case: what is attacked.
        adversary: by what.
        replays: whether its steps draw the same random numbers; without it, as the step does.
        still: modules in eval mode meanwhile.
    """
    replays = not case.varies if replays is None else replays
    draws = [0] if replays else list(range(_UNSEEN, _UNSEEN + 5))
    still, on_the_way = list(still), list[float]()

    def objective(*images: Images) -> Tensor:
        case.begin(0 if replays else len(on_the_way) + 1, still=still)
        loss = case.now(*images)
        on_the_way.append(float(loss.detach().double().mean()))
        return loss

    start = torch.Generator(case.images[0].device).manual_seed(0)
    case.restore()
    hard = adversary(case.images, objective, freeze=(), generator=start)
    before = [case.value(*case.images, draw=draw, still=still) for draw in draws]
    after = [case.value(*hard, draw=draw, still=still) for draw in draws]
    clean = sum(before) / len(before)
    highest = max(*on_the_way, *after) if replays else clean  # other draws do not compare
    return Climb(clean, highest, tuple(a - b for a, b in zip(after, before, strict=True)))


def rise(case: Repeated, adversary: AdversarialViewGenerator) -> Check:
    """An attack that does not raise its objective, and why."""
    if adversary.steps == 0:
        return not_run("the attack takes no step")
    near = [x + adversary.ball.sample(x) * 0.5 for x in case.images]
    if not any(g is not None and g.any() for g in case.gradient(*near)[1]):
        return answer(
            True,
            "its gradient is exactly zero: a saturated loss, or the view goes through no_grad, "
            "detach or a rounding",
        )
    with warnings.catch_warnings():  # of state that moves another check tells
        warnings.simplefilter("ignore")
        try:
            found = climb(case, adversary)
            why = "" if found.rises else _reason(case, adversary, found)
        except ValueError as error:
            return answer(True, f"the attack fails: {error}")
    said = (
        f"{adversary.steps} steps take the loss from {found.clean:.5g} to "
        f"{found.clean + found.gain:.5g}"
    )
    if not found.rises and found.gain > found.noise:
        said += f", by way of {found.highest:.5g}"
    return answer(not found.rises, said + (f"; {why}" if why else ""), gain=found.gain)


def _reason(case: Repeated, adversary: AdversarialViewGenerator, found: Climb) -> str:
    """By an attack on the same images that differs in one thing, and rises."""
    if case.varies and climb(case, adversary, replays=True).rises:
        return "stochastic objective: with the same random numbers in all steps it rises"
    shorter = _shorter(adversary)
    if adversary.step_size > shorter.step_size and climb(case, shorter).rises:
        return f"step too long: with steps of {shorter.step_size:.3g} it rises"
    norms = [m for m in case.modules if isinstance(m, _BatchNorm) and m.training]
    if norms and climb(case, adversary, still=norms).rises:
        return "batch statistics: with BatchNorm in eval mode it rises"
    loss, gradients = case.gradient(*case.images)
    promised = _promised(adversary, gradients) / (loss.numel() or 1)
    if promised <= found.noise:
        return (
            f"saturated loss: its gradient promises a rise of {promised:.2g} at most over the "
            "whole ball"
        )
    return (
        f"its gradient promises {promised:.2g}, and moving along it does not give that: something "
        "rounds, clamps or detaches on the way"
    )


def _promised(adversary: AdversarialViewGenerator, gradients: Sequence[Tensor | None]) -> float:
    """What a linear loss would rise by within the ball."""
    slopes = [adversary.pixels.slope(g.double()) for g in gradients if g is not None]
    return sum(float((adversary.radius * adversary.ball.steepest(s) * s).sum()) for s in slopes)


def _shorter(adversary: AdversarialViewGenerator) -> AdversarialViewGenerator:
    """From the image itself to the edge in many steps."""
    return AdversarialViewGenerator(
        adversary.ball, 10, adversary.radius / 10, start="zero", pixels=adversary.pixels
    )
