"""Pixels: what the numbers of an image mean, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from torch import Tensor

from advssl.types import Images, Perturbation, described, numbers


@dataclass(frozen=True)
class Pixels:
    """Images are (pixel - mean) / std, and a pixel lies in ``bounds``.

    Args:
        mean: per channel, in the unit of ``bounds``. None, with ``std``, for images that are their
            pixels.
        std: per channel, above zero.
        bounds: what a pixel may be: (0, 1), or (0, 255) for grey levels. None for views that are
            not images in a box, such as the high frequency view, which is negative in places.

    Raises:
        ValueError: on one of ``mean`` and ``std`` alone, on numbers that do not fit each other, and
            on a mean or std in 255 grey levels where the bounds are others.

    Example:
        >>> images = CIFAR10.of(torch.rand(2, 3, 32, 32))
        >>> pixels = CIFAR10.to(images)
        >>> bool(((pixels >= -1e-6) & (pixels <= 1 + 1e-6)).all())
        True
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bounds: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean and std go together, got mean={self.mean} and std={self.std}")
        if self.bounds is not None:
            object.__setattr__(self, "bounds", _bounds(self.bounds))
        if self.mean is not None and self.std is not None:
            mean, std = numbers("mean", self.mean), numbers("std", self.std)
            object.__setattr__(self, "mean", mean)
            object.__setattr__(self, "std", std)
            _check_scale(mean, std, self.bounds)

    def to(self, images: Images) -> Images:
        """The pixels (B, C, H, W) of images (B, C, H, W)."""
        if self.mean is None or self.std is None:
            return images
        self.check_channels(images)
        return images * _per_channel(self.std, images) + _per_channel(self.mean, images)

    def of(self, pixels: Images) -> Images:
        """The images (B, C, H, W), as an encoder reads them, of pixels (B, C, H, W)."""
        if self.mean is None or self.std is None:
            return pixels
        self.check_channels(pixels)
        return (pixels - _per_channel(self.mean, pixels)) / _per_channel(self.std, pixels)

    def slope(self, gradient: Perturbation) -> Perturbation:
        """The gradient to pixels of what has this gradient to images."""
        return gradient if self.std is None else gradient / _per_channel(self.std, gradient)

    def clamp(self, pixels: Images) -> Images:
        """Pixels in ``bounds``."""
        return pixels if self.bounds is None else pixels.clamp(*self.bounds)

    def fits(self, images: Images) -> bool:
        """Whether images (B, C, H, W) have as many channels as ``mean`` and ``std``."""
        return self.mean is None or len(self.mean) == images.shape[1]

    def check_channels(self, images: Images) -> None:
        """Raise unless :meth:`fits`."""
        if self.mean is not None and not self.fits(images):
            raise ValueError(
                f"mean and std have {len(self.mean)} channels, the images {images.shape[1]}"
            )


def check_unit(pixels: Any) -> None:
    """Raise unless pixels are in [0, 1], as all images that are measured."""
    if not isinstance(pixels, Pixels) or pixels.bounds not in ((0.0, 1.0), None):
        seen = pixels if isinstance(pixels, Pixels) else described(pixels)
        raise ValueError(f"pixels must be Pixels(mean, std) of images in [0, 1], got {seen}")


def _bounds(value: tuple[float, float]) -> tuple[float, float]:
    bounds = numbers("bounds", value)
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be (low, high) with low < high, or None, got {value}")
    return bounds[0], bounds[1]


def _check_scale(
    mean: tuple[float, ...], std: tuple[float, ...], bounds: tuple[float, float] | None
) -> None:
    if not (std and len(mean) == len(std) and all(map(isfinite, mean + std)) and min(std) > 0):
        raise ValueError(
            "mean and std need one number per channel, std above zero, all finite, got "
            f"{mean} and {std}"
        )
    if bounds is None:
        return
    low, high = bounds
    advice = "of 255 grey levels write mean and std over 255, or keep images and bounds in [0, 255]"
    if not all(low <= m <= high for m in mean):
        raise ValueError(f"mean must lie in bounds {bounds}, got {mean}; {advice}")
    if max(std) > 2 * (high - low):
        raise ValueError(
            f"std {std} is wider than the range of images in bounds {bounds}; {advice}"
        )


def _per_channel(values: Sequence[float], images: Images) -> Tensor:
    return images.new_tensor(values).view(-1, 1, 1)


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = Pixels((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
