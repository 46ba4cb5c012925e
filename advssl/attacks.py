"""Attacks: images and an objective to images at which it is high."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Literal, overload

import torch
from torch import Generator, Tensor, nn

from advssl.balls import Ball, Linf
from advssl.modes import frozen, random_state_kept, seeded_state, uphill, widen
from advssl.types import Images, Objective, Perturbation, positive

_GAUSSIAN_START = 0.001  # standard deviation, TRADES
_OUTSIDE = 1e-4  # what rounding may put outside the bounds


class AdversarialViewGenerator(nn.Module):
    r"""The view of an image, within a ball around it, at which your objective is highest.

    Projected gradient ascent from a start in the ball, with every iterate in ``bounds``::

        δ ← project( δ + η · steepest( ∇_δ objective(x + δ) ) )

    It knows no model, label or loss: the objective closes over what it needs. Each step costs one
    forward and one backward to the input only; forward what does not change once, before the call,
    and use it detached inside.

    Convention:
        The view is detached, of the images' type, device and memory format. Precision is the
        caller's autocast (an untrained ResNet-18 in train mode agrees with float32 on 87 % of
        gradient signs under bf16, on 95 % under fp16). The view does not depend on the scale of
        the objective.
        The objective runs on a copy of the random state: the caller's advances by what the start
        draws and by nothing else. Works under ``no_grad`` and ``inference_mode``. Under DDP close
        over the inner module, not the wrapper, and give every rank the same number of steps.

    Args:
        ball: ``Linf(radius)``, ``L2(radius)`` or your own :class:`~advssl.balls.Ball`, in units
            of images in [0, 1].
        steps: gradient evaluations.
        step_size: η, in the ball's own norm and units. None is 2.5 · radius / steps.
        start: "uniform" in the ball, "gaussian" (0.001, TRADES) or "zero".
        bounds: what a pixel may be. None for views that are not images in a box, such as the high
            frequency view, which is negative in places.
        mean: per channel, if the images are normalised as (pixel - mean) / std. Ball, step and
            bounds stay in units of [0, 1]. Goes with ``std``.
        std: per channel.

    Reference: Madry et al. 2018, https://arxiv.org/abs/1706.06083; for views of a contrastive loss
    Kim et al. 2020, Eq. 3, https://arxiv.org/abs/2006.07589

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        >>> images = torch.rand(2, 3, 2, 2)
        >>> adversary = AdversarialViewGenerator(Linf(8 / 255), steps=5, step_size=2 / 255)
        >>> z = model(images).detach()
        >>> hard = adversary(images, lambda v: (model(v) - z).square().sum(dim=1), freeze=model)
        >>> bool((hard - images).abs().max() <= 8 / 255 + 1e-6)
        True
    """

    def __init__(
        self,
        ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
        steps: int = 5,
        step_size: float | None = None,
        *,
        start: Literal["uniform", "gaussian", "zero"] = "uniform",
        bounds: tuple[float, float] | None = (0.0, 1.0),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(ball, Ball):
            raise ValueError(f"ball must know radius, sample, steepest and project, got {ball!r}")
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        if step_size is None:
            step_size = 2.5 * ball.radius / max(steps, 1)
        step_size = positive("step_size", step_size)
        if 0 < steps * step_size < ball.radius:
            warnings.warn(
                f"{steps} steps of {step_size:.3g} cannot reach the edge of a ball of radius "
                f"{ball.radius:.3g}; take more or larger steps, or step_size=None",
                stacklevel=2,
            )
        if start not in ("uniform", "gaussian", "zero"):
            raise ValueError(f'start must be "uniform", "gaussian" or "zero", got {start!r}')
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be (low, high) with low < high, or None, got {bounds}")
        if (mean is None) != (std is None):
            raise ValueError(f"mean and std go together, got mean={mean} and std={std}")
        if mean is not None and std is not None and (len(mean) != len(std) or min(std) <= 0):
            raise ValueError(
                f"mean and std need one number per channel, std above zero, got {mean} and {std}"
            )
        self.ball = ball
        self.steps = steps
        self.step_size = step_size
        self.start = start
        self.bounds = bounds
        self.mean = None if mean is None else tuple(map(float, mean))
        self.std = None if std is None else tuple(map(float, std))

    @overload
    def forward(
        self,
        images: Images,
        objective: Objective,
        *,
        freeze: nn.Module | Iterable[nn.Module] = (),
        generator: Generator | None = None,
    ) -> Images: ...

    @overload
    def forward(
        self,
        images: tuple[Images, ...],
        objective: Objective,
        *,
        freeze: nn.Module | Iterable[nn.Module] = (),
        generator: Generator | None = None,
    ) -> tuple[Images, ...]: ...

    def forward(
        self,
        images: Images | tuple[Images, ...],
        objective: Objective,
        *,
        freeze: nn.Module | Iterable[nn.Module] = (),
        generator: Generator | None = None,
    ) -> Images | tuple[Images, ...]:
        """The view, or one per image tensor where a tuple is attacked jointly.

        Args:
            images: (B, C, H, W), float32 or float64, in ``bounds`` (after undoing ``mean`` and
                ``std``); or a tuple of such, of any sizes.
            objective: what to increase, of as many views as there are image tensors; it returns
                (B,) or a scalar, and the view is the same for a sum and for a mean.
            freeze: the modules (encoder, head, critic, a loss with a memory bank) whose parameters
                need no gradient meanwhile and whose buffers and momentum encoders must not move.
                Nothing else is touched; train or eval mode is your choice, papers differ on it:
                ``with evaluating(model): adversary(...)``.
            generator: makes the view reproducible alone, the objective's own draws included.

        Returns:
            What came in, perturbed. In a joint attack a view that the objective does not depend on
            comes back as it was.

        Raises:
            ValueError: on images or an objective that break the above, an objective that is not
                finite (naming the step) or that depends on no view, or a frozen module whose
                trainable parameters it changes.
        """
        given = (images,) if isinstance(images, Tensor) else tuple(images)
        if not given:
            raise ValueError("there is nothing to attack: got an empty tuple of images")
        modules = [freeze] if isinstance(freeze, nn.Module) else list(freeze)
        with torch.inference_mode(False), torch.enable_grad(), frozen(*modules):
            views = self._search(given, objective, generator)
        return views[0] if isinstance(images, Tensor) else views

    def extra_repr(self) -> str:
        text = f"{self.ball}, steps={self.steps}, step_size={self.step_size:.4g}, "
        text += f"start={self.start!r}, bounds={self.bounds}"
        return text if self.mean is None else f"{text}, mean={self.mean}, std={self.std}"

    def _search(
        self, images: tuple[Images, ...], objective: Objective, generator: Generator | None
    ) -> tuple[Images, ...]:
        # An inference tensor cannot take part in a graph; its copy, made out here, can.
        images = tuple(x.clone() if x.is_inference() else x.detach() for x in images)
        for x in images:
            self._check(x)
        clean = [self._to_pixels(x) for x in images]
        pixels = [self._inside(x + self._first(x, generator)) for x in clean]
        touched = [self.steps == 0] * len(images)
        finite = []
        device = images[0].device
        replay = None if generator is None else seeded_state(device, generator)
        with random_state_kept(device, replay):
            for _ in range(self.steps):
                views = [self._from_pixels(x).detach().requires_grad_() for x in pixels]
                height = self._height(objective(*views), views)
                gradients = uphill(height, views)
                known = [g for g in gradients if g is not None]
                if not known:
                    raise ValueError(_NO_GRADIENT)
                whole = torch.stack([g.isfinite().all() for g in known]).all()
                finite.append(torch.stack([height.detach().isfinite(), whole]))
                for i, gradient in enumerate(gradients):
                    if gradient is not None:
                        touched[i] = True
                        pixels[i] = self._climb(pixels[i], clean[i], gradient)
        self._check_afterwards(clean, finite)
        return tuple(
            self._from_pixels(x).detach() if moved else original.clone()
            for x, original, moved in zip(pixels, images, touched, strict=True)
        )

    def _first(self, clean: Images, generator: Generator | None) -> Perturbation:
        if self.start == "zero":
            return torch.zeros_like(clean)
        if self.start == "uniform":
            return self.ball.sample(clean, generator)
        noise = torch.empty_like(clean).normal_(std=_GAUSSIAN_START, generator=generator)
        return self.ball.project(noise)

    def _climb(self, pixels: Images, clean: Images, gradient: Perturbation) -> Images:
        if self.std is not None:  # from the normalised images' units to pixels'
            gradient = gradient / _per_channel(self.std, gradient)
        step = self.step_size * self.ball.steepest(gradient)
        # Clamping to a box that holds the clean image shortens the perturbation: it stays inside.
        return self._inside(clean + self.ball.project(pixels - clean + step))

    def _inside(self, pixels: Images) -> Images:
        return pixels if self.bounds is None else pixels.clamp(*self.bounds)

    def _to_pixels(self, images: Images) -> Images:
        if self.mean is None or self.std is None:
            return images
        return images * _per_channel(self.std, images) + _per_channel(self.mean, images)

    def _from_pixels(self, pixels: Images) -> Images:
        if self.mean is None or self.std is None:
            return pixels
        return (pixels - _per_channel(self.mean, pixels)) / _per_channel(self.std, pixels)

    def _height(self, value: Tensor, views: Sequence[Images]) -> Tensor:
        if not isinstance(value, Tensor) or value.shape not in ((), (len(views[0]),)):
            seen = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the objective must return a scalar or one value per image ({len(views[0])},), "
                f"got {seen}"
            )
        if not value.requires_grad:
            raise ValueError(_NO_GRADIENT)
        # A sum, so that the gradient of an image does not shrink with the batch.
        return widen(value).sum()

    def _check(self, images: Images) -> None:
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images must be (B, C, H, W) with B ≥ 1, got {tuple(images.shape)}")
        if images.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"images must be float32 or float64, got {images.dtype}; in half precision a step "
                "is lost to rounding. Keep the images in float32 and use autocast for the encoder"
            )
        if self.mean is not None and len(self.mean) != images.shape[1]:
            raise ValueError(
                f"mean and std have {len(self.mean)} channels, the images {images.shape[1]}"
            )

    def _check_afterwards(self, clean: Sequence[Images], finite: Sequence[Tensor]) -> None:
        """What needs values on the host waits until here: one device sync for a whole attack."""
        valid = torch.stack([self._in_bounds(x) for x in clean]).all()
        answers = torch.stack([valid, *(f for pair in finite for f in pair)]).tolist()
        if not answers[0]:
            seen = [f"[{x.min():.4g}, {x.max():.4g}]" for x in clean]
            raise ValueError(
                f"images must lie in bounds {self.bounds}, got {', '.join(seen)}; give mean= and "
                "std= of normalised images, or bounds=None for views that are not images in a box"
            )
        for step, (value, gradient) in enumerate(
            zip(answers[1::2], answers[2::2], strict=True), start=1
        ):
            if not (value and gradient):
                raise ValueError(
                    f"{'the gradient of the' if value else 'the'} objective is not finite at step "
                    f"{step} of {self.steps}; look for a square root, logarithm or division at zero"
                )

    def _in_bounds(self, pixels: Images) -> Tensor:
        if self.bounds is None:
            return pixels.isfinite().all()
        low, high = pixels.aminmax()
        return (low >= self.bounds[0] - _OUTSIDE) & (high <= self.bounds[1] + _OUTSIDE)


_NO_GRADIENT = (
    "the objective has no gradient in any view; compute it from the views that it is given, "
    "without no_grad, detach or a detour through numpy"
)


def _per_channel(values: Sequence[float], images: Images) -> Tensor:
    return images.new_tensor(values).view(-1, 1, 1)
