"""Attacks: images and an objective to images at which it is high."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Generator, Tensor, nn
from torch._compile import _disable_dynamo

from advssl.balls import Ball, Linf, check_ball, check_radius, radius_of, resized, widest
from advssl.modes import frozen
from advssl.pixels import Pixels
from advssl.precision import uphill, widen
from advssl.randomness import random_state_kept, seeded_state
from advssl.reaching import moved_since, reached, state_marks, submodules
from advssl.types import (
    Images,
    Objective,
    Perturbation,
    described,
    flag,
    height_of,
    modules_of,
    number,
    positive,
    see,
    warn,
    whole,
)

Views = TypeVar("Views")  # a tensor, or a tuple, list or dict of such

_STARTS = ("uniform", "gaussian", "zero", "noise")
_GAUSSIAN_START = 0.001  # standard deviation, TRADES
_NOISE = 2.0  # of the radius, N-FGSM
_OUTSIDE = 1e-4  # what rounding may put outside the bounds
_PATIENCE, _GAINS = 100, 1e-4  # calls, and the least that they gain, of the objective
_UNIT = (0.0, 1.0)  # told from the same pair given by its identity


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
        start: "uniform" in the ball, "gaussian" (0.001, TRADES), "zero", or "noise": uniform in
            twice the ball, which then stays around the noisy image and not around the clean one, so
            that a view ends up to three radii away. With one step that is N-FGSM, made against
            catastrophic overfitting; :mod:`advssl.guards` catches it where it comes all the same.
        clamp_start: whether the start is in ``bounds`` before the first gradient, as RoCL's is;
            ACL's and AdvCL's is not. All that comes after it is.
        zerograd: q, the share of an image's entries that do not move in a step, those of the
            smallest gradients: ZeroGrad, made against the same; 0.35 for CIFAR-10.
        bounds: what a pixel may be; with ``mean`` and ``std`` a :class:`~advssl.pixels.Pixels`.
        mean: per channel, if the images are normalised as (pixel - mean) / std. Ball, step and
            bounds stay in units of pixels.
        std: per channel.
        pixels: the three as one value, in their place: ``pixels=IMAGENET``.

    ``heights`` is what the last call climbed. A hundred calls of two steps or more that gained
    nothing together are warned of, once.

    ``radius``, ``steps`` and ``step_size`` may be set at any time, for schedules, and hold from the
    next call on; a ``step_size`` of None follows the other two. They are settings and no state: a
    resumed run sets them again.

    Reference: Madry et al. 2018, https://arxiv.org/abs/1706.06083; for views of a contrastive loss
    Kim et al. 2020, Eq. 3, https://arxiv.org/abs/2006.07589; N-FGSM: de Jorge et al. 2022, Alg. 1,
    https://arxiv.org/abs/2202.01181; ZeroGrad: Golgooni et al. 2021, https://arxiv.org/abs/2103.15476

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
        start: Literal["uniform", "gaussian", "zero", "noise"] = "uniform",
        clamp_start: bool = True,
        zerograd: float = 0.0,
        bounds: tuple[float, float] | None = _UNIT,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pixels: Pixels | None = None,
    ) -> None:
        super().__init__()
        check_ball("ball", ball)
        radius_of(ball)
        if not isinstance(start, str) or start not in _STARTS:
            raise ValueError(
                f'start must be "uniform", "gaussian", "zero" or "noise", got {start!r}'
            )
        self.ball = ball
        self.steps = steps
        self.start = start
        self.clamp_start = flag("clamp_start", clamp_start)
        self.zerograd = zerograd
        if pixels is None:
            pixels = Pixels(mean, std, bounds)  # type: ignore[arg-type]
        elif mean is not None or std is not None or bounds is not _UNIT:
            raise ValueError(
                f"pixels={pixels} says mean, std and bounds; give it alone, or the three without it"
            )
        if not isinstance(pixels, Pixels):
            raise ValueError(f"pixels must be Pixels(mean, std, bounds), got {described(pixels)}")
        self.pixels = pixels
        self._check_width(ball)
        self._say_narrow(ball)
        self.step_size = step_size
        self._say_unreachable()

    @property
    def radius(self) -> float:
        """Of ``ball``; setting it puts the ball of that size in its place."""
        return radius_of(self.ball)

    @radius.setter
    def radius(self, radius: float) -> None:
        ball = resized(self.ball, radius)
        self._check_width(ball)
        self.ball = ball

    @property
    def steps(self) -> int:
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._steps = whole("steps", steps, 0)

    @property
    def zerograd(self) -> float:
        return self._zerograd

    @zerograd.setter
    def zerograd(self, zerograd: float) -> None:
        plain = number("zerograd", zerograd)
        if not 0 <= plain < 1:
            raise ValueError(f"zerograd is a share, in [0, 1), got {plain}")
        self._zerograd = plain

    @property
    def step_size(self) -> float:
        """η; where None was given 2.5 · radius / steps, of what these are now."""
        if self._step_size is None:
            return 2.5 * self.radius / max(self.steps, 1)
        return self._step_size

    @step_size.setter
    def step_size(self, step_size: float | None) -> None:
        if step_size is not None:
            step_size = positive("step_size", step_size)
            self._say_wide_step(step_size)
        self._step_size = step_size

    @property
    def heights(self) -> tuple[float, ...]:
        """The objective at each step of the last call, in the mean over its images; to be logged.

        From the attack's start to the last of its gradients, so that the difference is what all
        steps but one have gained; it costs no forward. Empty before the first call.
        """
        return _CLIMBED[self].heights if self in _CLIMBED else ()

    @property
    def mean(self) -> tuple[float, ...] | None:
        """Of ``pixels``, as are ``std`` and ``bounds``."""
        return self.pixels.mean

    @property
    def std(self) -> tuple[float, ...] | None:
        return self.pixels.std

    @property
    def bounds(self) -> tuple[float, float] | None:
        return self.pixels.bounds

    @bounds.setter
    def bounds(self, bounds: tuple[float, float] | None) -> None:
        self.pixels = replace(self.pixels, bounds=bounds)

    def forward(
        self,
        images: Views,
        objective: Objective,
        *,
        freeze: nn.Module | Iterable[nn.Module] | None = None,
        generator: Generator | None = None,
        start: Any = None,
    ) -> Views:
        """The view, or one per image tensor where several are attacked jointly.

        Args:
            images: (B, C, H, W), float32 or float64, in ``bounds`` (after undoing ``mean`` and
                ``std``); or a tuple, list or dict of such, nested or not, of any sizes. Other
                tensors in it (labels, masks) are handed on to the objective as they are.
            objective: what to increase, of as many arguments as there are tensors, in the order in
                which they stand in ``images`` (a dict's are not named). It returns (B,), or one
                element of any shape, or a mapping that holds either as "loss"; the view is the same
                for a sum and for a mean.
            freeze: the modules (encoder, head, critic, a loss with a memory bank) whose parameters
                need no gradient meanwhile, and which are given back as they were when the attack
                ends: buffers, momentum encoders, plain attributes. What one step enqueues is there
                in the next, so let an objective read a queue and not fill it (the Lightning
                callback gives back after each step). Nothing else is touched; train or eval mode is
                your choice, papers differ on it: ``with evaluating(model): adversary(...)``. State
                of others that the attack moves (BatchNorm, a queue, a tensor outside of modules) is
                warned of once for each class; ``freeze=()`` says that it is meant to move.
            generator: makes the view reproducible alone, the objective's own draws included.
            start: the perturbation to begin from in place of a random one, as free adversarial
                training and YOPO carry it over: a tensor of the images' shape and unit, in any
                floating point type, or one per view in their order. It is projected into the ball,
                and into ``bounds`` where ``clamp_start`` says so. To keep for the next time is
                ``hard - images``, by dataset index if need be.

        Returns:
            What came in, perturbed. In a joint attack a tensor that the objective does not depend
            on (a mask, a grid, a view that is not compared) comes back as it was. One that lies
            outside ``bounds`` is handed to the objective as it is; another may be seen once with
            the random start, as whether it is needed shows in the first step.

        Raises:
            ValueError: on images, a start or an objective that break the above, an objective that
                is not finite (naming the step) or that depends on no view, a radius beyond the
                whole range of the images, or a frozen module whose trainable parameters it changes.
        """
        if not callable(objective):
            raise ValueError(
                f"objective must be a function of the view, got {described(objective)}; write "
                "lambda v: ... and compute the loss inside"
            )
        if not isinstance(generator, Generator | None):
            raise ValueError(f"generator must be a torch.Generator, got {described(generator)}")
        given = tensors_of(images)
        views = [i for i, x in enumerate(given) if isinstance(images, Tensor) or is_view(x)]
        if not views:
            raise ValueError(
                "there is nothing to attack: images must be (B, C, H, W), one or several, got "
                f"{described(images)}"
            )
        starts = None if start is None else _starts(start, [given[i] for i in views])
        if starts is None:  # what is carried over may get there in several calls
            self._say_unreachable()
        modules = [] if freeze is None else modules_of("freeze", freeze)
        meant = freeze is not None and not modules

        def of_all(*hard: Images) -> Any:
            return objective(*_exchanged(given, views, hard))

        watched = [] if meant else _watched(objective, submodules(*modules))
        with torch.inference_mode(False), torch.enable_grad(), frozen(*modules):
            found = self._search([given[i] for i in views], of_all, watched, generator, starts)
        others = [x if i in views else x.clone() for i, x in enumerate(given)]
        back = iter(_exchanged(others, views, found))
        return mapped(images, lambda _: next(back))

    def extra_repr(self) -> str:
        text = f"{self.ball}, steps={self.steps}, step_size={self.step_size:.4g}, "
        text += f"start={self.start!r}, bounds={self.bounds}"
        text += f", zerograd={self.zerograd}" if self.zerograd else ""
        return text if self.mean is None else f"{text}, mean={self.mean}, std={self.std}"

    def _search(
        self,
        images: Sequence[Images],
        objective: Objective,
        watched: list[Any],
        generator: Generator | None,
        starts: Sequence[Perturbation] | None,
    ) -> list[Images]:
        # An inference tensor cannot take part in a graph; its copy, made out here, can.
        images = [x.clone() if x.is_inference() else x.detach() for x in images]
        for x in images:
            self._check(x)
            if len(images) == 1 or self.steps == 0:
                self._check_as_image(x)
        clean = [self._to_pixels(x) for x in images]
        valid = [self._in_bounds(x) for x in clean]
        # What lies outside is no image, and moves only if the objective asks for it; then it ends.
        if starts is None:
            carried, first = [], [self._first(x, generator) for x in clean]
        else:
            carried = [self._carried(*three) for three in zip(starts, images, clean, strict=True)]
            first = [self._projected(delta) for delta in carried]
        pixels = [
            torch.where(ok, self._begun(x, delta), x)
            for x, delta, ok in zip(clean, first, valid, strict=True)
        ]
        noisy = starts is None and self.start == "noise"
        centres = list(pixels) if noisy else clean
        touched = [self.steps == 0] * len(images)
        finite, heights = [], []
        device = images[0].device
        replay = None if generator is None else seeded_state(device, generator)
        marks = state_marks(watched)
        with random_state_kept(device, replay):
            for step in range(self.steps):
                # One without gradient is what it was, not what undoing mean and std rounds it to.
                views = [
                    (x if now is before else self._from_pixels(now)).detach().requires_grad_()
                    for x, now, before in zip(images, pixels, clean, strict=True)
                ]
                values = self._values(objective(*views), views)
                # A sum, so that the gradient of an image does not shrink with the batch.
                height = values.sum()
                gradients = uphill(height, views)
                heights.append(values.detach().mean())
                known = [g for g in gradients if g is not None]
                if not known:
                    raise ValueError(_NO_GRADIENT)
                all_finite = torch.stack([g.isfinite().all() for g in known]).all()
                finite.append(torch.stack([height.detach().isfinite(), all_finite]))
                for i, gradient in enumerate(gradients):
                    if gradient is not None:
                        self._check_as_image(images[i])
                        touched[i] = True
                        pixels[i] = self._climb(pixels[i], centres[i], gradient)
                    elif not touched[i]:
                        pixels[i] = clean[i]
                if step == 0:
                    self._say_moved(marks)
        needed = [i for i, moved in enumerate(touched) if moved]
        self._check_afterwards(
            [clean[i] for i in needed], [valid[i] for i in needed], finite, heights, carried
        )
        return [
            self._from_pixels(x).detach() if moved else original.clone()
            for x, original, moved in zip(pixels, images, touched, strict=True)
        ]

    def _begun(self, clean: Images, delta: Perturbation) -> Images:
        start = clean + delta
        return self.pixels.clamp(start) if self.clamp_start or self.steps == 0 else start

    # Radius and step size may change at every call: what was compiled would be so each time anew.
    @_disable_dynamo
    def _first(self, clean: Images, generator: Generator | None) -> Perturbation:
        if self.start == "zero":
            return torch.zeros_like(clean)
        if self.start == "uniform":
            return self.ball.sample(clean, generator)
        if self.start == "noise":
            return _NOISE * self.ball.sample(clean, generator)
        noise = torch.empty_like(clean).normal_(std=_GAUSSIAN_START, generator=generator)
        return self.ball.project(noise)

    @_disable_dynamo
    def _carried(self, start: Perturbation, images: Images, clean: Images) -> Perturbation:
        return self._to_pixels(images + start.detach().to(images)) - clean

    @_disable_dynamo
    def _projected(self, delta: Perturbation) -> Perturbation:
        return self.ball.project(delta)

    @_disable_dynamo
    def _climb(self, pixels: Images, centre: Images, gradient: Perturbation) -> Images:
        slope = self.pixels.slope(gradient)
        if self.zerograd:
            slope = _without_smallest(slope, self.zerograd)
        step = self.step_size * self.ball.steepest(slope)
        # Clamping to a box that holds the clean image shortens the perturbation: it stays inside.
        return self.pixels.clamp(centre + self.ball.project(pixels - centre + step))

    # What has other channels is beside the images and handed on as it is.
    def _to_pixels(self, images: Images) -> Images:
        return self.pixels.to(images) if self.pixels.fits(images) else images

    def _from_pixels(self, pixels: Images) -> Images:
        return self.pixels.of(pixels) if self.pixels.fits(pixels) else pixels

    def _values(self, answer: Any, views: Sequence[Images]) -> Tensor:
        value = height_of("the objective", answer, len(views[0]))
        if not value.requires_grad:
            raise ValueError(_NO_GRADIENT)
        return widen(value)

    def _first_said(self, text: str) -> bool:
        """Whether neither the constructor nor an earlier call has said so."""
        said = _SAID.setdefault(self, set())
        new = text not in said
        said.add(text)
        return new

    @_disable_dynamo
    def _say_moved(self, marks: Any) -> None:
        moved = moved_since(marks).items()
        new = [f"{kind} ({name})" for kind, name in moved if self._first_said(kind)]
        if new:
            warn(
                f"the attack moves state of what is not frozen: {', '.join(new)}, once in every "
                "step; give its modules in freeze= to have it back as it was (a tensor as a buffer "
                "of one), or freeze=() if it is meant to move"
                + see("State that moves in an attack")
            )

    @_disable_dynamo
    def _say_unreachable(self) -> None:
        steps, size, radius = self.steps, self.step_size, self.radius
        if not 0 < steps * size < radius:
            return
        text = f"{steps} steps of {size:.3g} cannot reach the edge of a ball of radius {radius:.3g}"
        if self._first_said(text):
            warn(f"{text}; take more or larger steps, or step_size=None")

    @property
    def _in_levels(self) -> bool:
        return self.bounds is not None and self.bounds[1] - self.bounds[0] > 100

    def _say_dark(self, clean: Sequence[Images]) -> None:
        if not self._in_levels or not 0 < max(float(x.max()) for x in clean) <= 1:
            return
        text = f"no pixel of these images is above 1, and bounds are {self.bounds}"
        if self._first_said(text):
            warn(f"{text}: give images in grey levels, or bounds and radius for images in [0, 1]")

    def _say_far(self, largest: float) -> None:
        """No image is so far from another, whatever the ball was that a start comes from."""
        if self.bounds is None or largest <= 1.01 * (self.bounds[1] - self.bounds[0]):
            return
        if self._first_said("far start"):
            warn(
                f"start moves a pixel by {largest:.4g}, across the whole range of images in bounds "
                f"{self.bounds}, and was projected; it is in the unit of the images, as hard - "
                "images is"
            )

    def _say_narrow(self, ball: Ball) -> None:
        if self._in_levels and radius_of(ball) <= 0.5:
            warn(
                f"{ball} is no more than half a grey level of images in bounds {self.bounds}; it "
                "is in their unit: write 8 for 8 / 255" + see("A radius in grey levels")
            )

    def _say_wide_step(self, step_size: float) -> None:
        """A number in 255 grey levels, where the bounds are others."""
        if self.bounds is not None and step_size > widest(self.ball, bounds=self.bounds):
            warn(
                f"a step_size of {step_size:.4g} crosses the whole range of images in bounds "
                f"{self.bounds}; it is in their unit: of 255 grey levels write "
                f"{step_size:.4g} / 255"
            )

    def _check_width(self, ball: Ball) -> None:
        if self.bounds is not None:
            check_radius(ball, bounds=self.bounds)

    def _check(self, images: Images) -> None:
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images must be (B, C, H, W) with B ≥ 1, got {tuple(images.shape)}")
        if images.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"images must be float32 or float64, got {images.dtype}; in half precision a step "
                "is lost to rounding. Keep the images in float32 and use autocast for the encoder"
            )

    def _check_as_image(self, images: Images) -> None:
        """What only a view that the objective depends on must hold to."""
        self.pixels.check_channels(images)
        if self.bounds is not None:
            check_radius(self.ball, images.shape[1:], self.bounds)

    @_disable_dynamo  # its numbers would be guarded
    def _check_afterwards(
        self,
        clean: Sequence[Images],
        valid: Sequence[Tensor],
        finite: Sequence[Tensor],
        heights: Sequence[Tensor],
        carried: Sequence[Perturbation],
    ) -> None:
        """What needs values on the host waits until here: one device sync for a whole attack."""
        all_valid = torch.stack(list(valid)).all()
        begun = [delta.abs().amax().to(all_valid.device) for delta in carried]
        steps = (f for pair in finite for f in pair)
        told = torch.stack([x.float() for x in (*begun, all_valid, *steps, *heights)]).tolist()
        answers, climbed = told[: len(told) - len(heights)], told[len(told) - len(heights) :]
        largest, answers = answers[: len(begun)], answers[len(begun) :]
        if not answers[0]:
            seen = [f"[{x.min():.4g}, {x.max():.4g}]" for x in clean]
            raise ValueError(
                f"images must lie in bounds {self.bounds}, got {', '.join(seen)}; give mean= and "
                "std= of normalised images, or bounds=None for views that are not images in a box"
                + see("Images outside the bounds")
            )
        if not all(map(isfinite, largest)):
            raise ValueError("start holds numbers that are not finite; look where it was kept")
        for step, (value, gradient) in enumerate(
            zip(answers[1::2], answers[2::2], strict=True), start=1
        ):
            if not (value and gradient):
                raise ValueError(
                    f"{'the gradient of the' if value else 'the'} objective is not finite at step "
                    f"{step} of {self.steps}; look for a square root, logarithm or division at zero"
                    + see("Numbers that are not finite")
                )
        self._say_dark(clean)
        self._say_far(max(largest, default=0.0))
        self._note(climbed)

    def _note(self, heights: list[float]) -> None:
        """What the attack climbed, and, once, that it has long climbed nothing."""
        climb = _CLIMBED.setdefault(self, _Climbed())
        climb.heights = tuple(heights)
        if len(heights) < 2 or climb.calls == _PATIENCE:
            return
        climb.calls += 1
        climb.gained += heights[-1] - heights[0]
        climb.size += abs(heights[0])
        if climb.calls < _PATIENCE:
            return
        if climb.gained <= _GAINS * climb.size:
            warn(
                f"in {climb.calls} calls the attack has not raised its objective: from its start "
                f"to its last step by {climb.gained / climb.calls:.2g} on average, of "
                f"{climb.size / climb.calls:.3g}; advssl.doctor.examine says why"
                + see("An attack that does not rise")
            )
        else:
            _CLIMBED[self] = _Climbed(climb.heights)  # look at the next ones

    def _in_bounds(self, pixels: Images) -> Tensor:
        if self.bounds is None:
            return pixels.isfinite().all()
        low, high = pixels.aminmax()
        return (low >= self.bounds[0] - _OUTSIDE) & (high <= self.bounds[1] + _OUTSIDE)


_NO_GRADIENT = (
    "the objective has no gradient in any view; compute it from the views that it is given, "
    "without no_grad, inference_mode, detach or a detour through numpy"
    + see("An objective without gradient")
)


@dataclass
class _Climbed:
    """What the last call climbed, and what those since the last look gained together."""

    heights: tuple[float, ...] = ()
    calls: int = 0
    gained: float = 0.0
    size: float = 0.0


# Beside the generators and not in them, where a module that is given back would forget it.
_CLIMBED: WeakKeyDictionary[AdversarialViewGenerator, _Climbed] = WeakKeyDictionary()
_SAID: WeakKeyDictionary[AdversarialViewGenerator, set[str]] = WeakKeyDictionary()


def _starts(start: Any, views: Sequence[Images]) -> list[Perturbation]:
    """What was given to begin from, one for each view."""
    found = tensors_of(start)
    shapes = [s.shape if s.is_floating_point() else None for s in found]
    if shapes != [v.shape for v in views]:
        raise ValueError(
            "start must be one perturbation for each view, floating point and of its shape: "
            f"{described(list(views))}, got {described(start)}; of what was kept give the rows of "
            "these images, start[: len(images)] or start[index]"
        )
    return found


def _without_smallest(gradient: Perturbation, share: float) -> Perturbation:
    """Zero where the magnitude is among the smallest ``share`` of its image's; ties stay."""
    size = gradient.abs()
    ordered = size.flatten(1).sort(dim=1).values  # kthvalue is refused where all is deterministic
    least = ordered[:, int(share * ordered.shape[1]), None, None, None]
    return torch.where(size >= least, gradient, 0)


def _watched(objective: Objective, kept: Iterable[nn.Module]) -> list[Any]:
    """What the objective may move that is not given back."""
    known = {id(one) for m in kept for one in (m, *m._parameters.values(), *m._buffers.values())}
    modules, others = reached(objective)
    return [one for one in (*modules, *others) if id(one) not in known]


def is_view(value: Tensor) -> bool:
    return value.ndim == 4 and value.is_floating_point()


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """``value`` with every tensor in it changed, through tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        entries = {key: mapped(one, change) for key, one in value.items()}
        return entries if type(value) is dict else type(value)(entries)  # type: ignore[call-arg]
    if isinstance(value, tuple | list):
        parts = [mapped(one, change) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in ``value``, in the order in which :func:`mapped` changes them."""
    found: list[Tensor] = []

    def take(one: Tensor) -> None:  # found.append ends a graph of torch 2.5's compiler
        found.append(one)

    mapped(value, take)
    return found


def _exchanged(given: Sequence[Tensor], at: Sequence[int], new: Sequence[Tensor]) -> list[Tensor]:
    """``given`` with others in some places."""
    exchanged = list(given)
    for place, value in zip(at, new, strict=True):
        exchanged[place] = value
    return exchanged
