"""What every augmentation does around its own work, and what it draws, one for each image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Augmentation(nn.Module):
    """Checks and conversions around ``_augmented``, which gets contiguous float32 images."""

    def forward(self, images: Tensor) -> Tensor:
        """Augmented (B, 3, size, size) float32, in the images' memory format."""
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                "images must be (B, 3, H, W) floating point in [0, 1], got "
                f"{images.dtype} of shape {tuple(images.shape)}; divide stored ones by 255"
            )
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        # Autocast would resample in bfloat16, which cannot tell neighbouring shades apart.
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            augmented = self._augmented(images.float().contiguous())
        if channels_last and not images.is_contiguous():
            augmented = augmented.contiguous(memory_format=torch.channels_last)
        return augmented

    def at(self, strength: float) -> Augmentation:
        """The same, weaker: from hardly anything at 0 to itself at 1."""
        raise NotImplementedError(f"{type(self).__name__} has one strength")

    def _augmented(self, images: Tensor) -> Tensor:
        raise NotImplementedError


def uniform(images: Tensor, low: float, high: float) -> Tensor:
    """(B,) numbers."""
    return torch.rand(len(images), device=images.device) * (high - low) + low


def chosen(images: Tensor, probability: float) -> Tensor:
    """(B,) whether something happens to an image."""
    return torch.rand(len(images), device=images.device) < probability


def crop_boxes(
    images: Tensor, scale: tuple[float, float], ratio: tuple[float, float], attempts: int = 10
) -> Tensor:
    """(B, 4) top, left, height and width in whole pixels, distributed as torchvision's."""
    height, width = images.shape[-2:]
    shape = (len(images), attempts)
    area = torch.empty(shape, device=images.device).uniform_(*scale) * (height * width)
    low, high = (math.log(r) for r in ratio)
    aspect = torch.empty(shape, device=images.device).uniform_(low, high).exp()
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.byte().argmax(dim=1, keepdim=True)
    # Where no attempt fits, all of the image that has an allowed aspect, centred.
    widest, highest = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    fallback = ~fits.any(dim=1)
    w = w.gather(1, first).flatten().masked_fill(fallback, widest)
    h = h.gather(1, first).flatten().masked_fill(fallback, highest)
    spare = torch.stack([height - h, width - w])
    drawn = (torch.rand(2, len(images), device=images.device) * (spare + 1)).floor()
    top, left = torch.where(fallback, (spare / 2).floor(), drawn)
    return torch.stack([top, left, h, w], dim=1)
