"""Balls: threat models as values. A ball knows how to sample, step and project, and no attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from advssl.types import Images, PerExample, Perturbation, positive, see


@runtime_checkable
class Ball(Protocol):
    """What an attack needs to know about a threat model. Write your own by having these four.

    A report also asks for what :class:`Linf` has besides, and does without where a ball of yours
    has less: its ``name``, ``resized(radius)``, ``widest(shape)`` and ``grey(shape)``.

    Shrinking a perturbation towards zero, pixel by pixel, must not take it out of the ball: that is
    how an attack keeps its view inside the range of an image.
    """

    @property
    def radius(self) -> float:
        """The ball's size in its own norm, for images in [0, 1]."""
        ...

    def sample(self, images: Images, generator: Generator | None = None) -> Perturbation:
        """A random perturbation in the ball, with the shape, type and device of ``images``."""
        ...

    def steepest(self, gradient: Perturbation) -> Perturbation:
        """The step of length one in the ball's norm along which a linear function rises most.

        It depends on the direction of ``gradient`` only, and is zero where that is zero.
        """
        ...

    def project(self, delta: Perturbation) -> Perturbation:
        """The nearest perturbation in the ball; one that is inside already stays."""
        ...


@dataclass(frozen=True)
class Linf:
    """Every pixel within ``radius`` of the image's: ‖δ‖∞ ≤ ε.

    Args:
        radius: ε > 0, for images in [0, 1]. 8 / 255 is the usual CIFAR budget.

    Reference: Madry et al. 2018, https://arxiv.org/abs/1706.06083
    """

    name: ClassVar[str] = "linf"

    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", positive("radius", self.radius))

    def widest(self, shape: Sequence[int] | None = None) -> float:  # noqa: ARG002
        """The distance of a black image from a white one, whatever its shape."""
        return 1.0

    def grey(self, shape: Sequence[int] | None = None) -> float:
        """The radius from which on every image of shape (C, H, W) can become the same grey."""
        return self.widest(shape) / 2

    def resized(self, radius: float) -> Linf:
        """The ball of this norm with another radius."""
        return replace(self, radius=radius)

    def sample(self, images: Images, generator: Generator | None = None) -> Perturbation:
        """Uniform in the ball."""
        return torch.empty_like(images).uniform_(-self.radius, self.radius, generator=generator)

    def steepest(self, gradient: Perturbation) -> Perturbation:
        """The sign of each entry."""
        return gradient.sign()

    def project(self, delta: Perturbation) -> Perturbation:
        """Each entry clamped to [-ε, ε]."""
        return delta.clamp(-self.radius, self.radius)


@dataclass(frozen=True)
class L2:
    """Every image within Euclidean distance ``radius``: ‖δ‖₂ ≤ ε over its channels and pixels.

    Args:
        radius: ε > 0, for images in [0, 1]. 0.5 is the usual CIFAR budget.

    Reference: Madry et al. 2018, https://arxiv.org/abs/1706.06083
    """

    name: ClassVar[str] = "l2"

    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", positive("radius", self.radius))

    def widest(self, shape: Sequence[int] | None = None) -> float:
        """The distance of a black image from a white one of shape (C, H, W); without it, no end."""
        return math.inf if shape is None else math.sqrt(math.prod(shape))

    def grey(self, shape: Sequence[int] | None = None) -> float:
        """The radius from which on every image of shape (C, H, W) can become the same grey."""
        return self.widest(shape) / 2

    def resized(self, radius: float) -> L2:
        """The ball of this norm with another radius."""
        return replace(self, radius=radius)

    def sample(self, images: Images, generator: Generator | None = None) -> Perturbation:
        """Uniform in the ball: a uniform direction, and U^(1/d) of the radius."""
        direction = self.steepest(torch.empty_like(images).normal_(generator=generator))
        share = torch.empty(_per_image(images), dtype=images.dtype, device=images.device)
        share.uniform_(generator=generator)
        return direction * self.radius * share.pow(1 / images.shape[1:].numel())

    def steepest(self, gradient: Perturbation) -> Perturbation:
        """Each image's gradient, at length one."""
        # Over its largest entry first: the squares of a tiny gradient would underflow to zero.
        peak = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        scaled = gradient / torch.where(peak > 0, peak, 1)
        return scaled / _length(scaled).clamp_min(1)  # the largest entry is 1, so the length is too

    def project(self, delta: Perturbation) -> Perturbation:
        """Each image's perturbation, shortened to length ε where it is longer."""
        direction, length = self.steepest(delta), _length(delta)
        return torch.where(length > self.radius, direction * self.radius, delta)


# By the name that commands, tables and records have for it, each made of its radius.
BALLS: dict[str, Callable[[float], Ball]] = {"linf": Linf, "l2": L2}


def name_of(ball: Ball) -> str:
    """Its ``name``, "linf" or "l2"; one without is called as its class is, in lower case."""
    return str(getattr(ball, "name", type(ball).__name__.lower()))


def radius_of(ball: Ball) -> float:
    """Its radius as a plain number, whatever a ball of one's own has for it; else raise."""
    return positive("the radius of the ball", ball.radius)


def resized(ball: Ball, radius: float) -> Ball:
    """The ball of the same norm with another radius.

    Raises:
        ValueError: on a ball that has no ``resized(radius)`` and is no dataclass with a field
            ``radius`` either.
    """
    radius = positive("radius", radius)
    known: Any = getattr(ball, "resized", None)
    if known is not None:
        return known(radius)
    if is_dataclass(ball) and "radius" in ball.__dataclass_fields__:
        return replace(ball, radius=radius)
    raise ValueError(
        f"{ball} cannot be made {radius:.4g} wide; give its class a method resized(radius) that "
        "returns such a ball, or make it a dataclass with a field radius"
    )


def grey_of(ball: Ball, shape: Sequence[int]) -> float | None:
    """The radius from which on every image in [0, 1] of shape (C, H, W) can become the same grey.

    None of a ball that does not know, as it has no method ``grey(shape)``.
    """
    known: Any = getattr(ball, "grey", None)
    return None if known is None else float(known(shape))


def widest(
    ball: Ball, shape: Sequence[int] | None = None, bounds: tuple[float, float] = (0, 1)
) -> float:
    """The radius from which on every image in ``bounds`` becomes any other.

    Args:
        ball: one with a method ``widest(shape)``, for images in [0, 1]. A user's without it is not
            known, and has no end.
        shape: (C, H, W).
        bounds: what a pixel may be.
    """
    known = getattr(ball, "widest", None)
    return math.inf if known is None else (bounds[1] - bounds[0]) * float(known(shape))


def check_ball(name: str, value: Any) -> None:
    """Raise unless ``value`` has what :class:`Ball` has, as :class:`Linf` itself has not."""
    if not isinstance(value, Ball) or isinstance(value, type):
        raise ValueError(
            f"{name} must know radius, sample, steepest and project, as Linf(8 / 255) does, got "
            f"{value!r}"
        )


def check_radius(
    ball: Ball, shape: Sequence[int] | None = None, bounds: tuple[float, float] = (0, 1)
) -> None:
    """Raise where the ball is wider than the whole range of images, as 8 is for 8 / 255."""
    whole, radius = widest(ball, shape, bounds), radius_of(ball)
    if radius > whole * (1 + 1e-6):
        raise ValueError(
            f"{ball} is wider than the whole range of images in {list(bounds)}, {whole:.4g} in its "
            f"norm; of 255 grey levels write {radius:.4g} / 255, or keep images and bounds in "
            "[0, 255]" + see("A radius in grey levels")
        )


def _per_image(images: Tensor) -> tuple[int, int, int, int]:
    return (len(images), 1, 1, 1)


def _length(delta: Perturbation) -> PerExample:
    return torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
