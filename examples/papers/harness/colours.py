"""What colour pixels have: gray, light, hue and blur of batches, with parameters per image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


def luma(images: Tensor) -> Tensor:
    """(B, 1, H, W) gray."""
    red, green, blue = images.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])[:, None]


def blend(images: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Brightness (kind 0), contrast (1) or saturation (2), times ``factor``."""
    factor, kind = factor.view(-1, 1, 1, 1), kind.view(-1, 1, 1, 1)
    gray = luma(images)
    mean = gray.mean(dim=(1, 2, 3), keepdim=True)
    reference = gray.mul_(kind == 2) + mean * (kind == 1)
    return torch.addcmul(reference * (1 - factor), images, factor).clamp_(0, 1)


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Hue turned by a share of the colour circle; lightest and darkest channel keep their value."""
    red, green, blue = images.unbind(1)
    light = torch.maximum(torch.maximum(red, green), blue)
    chroma = light - torch.minimum(torch.minimum(red, green), blue)
    # The lightest channel says the third of the circle, as numbers: ``where`` is slow on a CPU.
    is_red = red.clone().eq_(light)
    is_green = green.clone().eq_(light).mul_(1 - is_red)
    is_blue = 1 - is_red - is_green
    across = is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)
    hue = across / (6 * chroma).clamp_min_(1e-9) + (is_green + 2 * is_blue) / 3
    hue += turn.view(-1, 1, 1)
    # Each channel is darkest across the circle from its own colour, and lightest a third around.
    opposite = torch.tensor([3, 5, 1], device=images.device).view(3, 1, 1) / 6
    distance = hue[:, None] - opposite
    distance -= distance.round()
    share = distance.abs_().mul_(-6).add_(2).clamp_(0, 1)
    return torch.addcmul(light[:, None], chroma[:, None], share, value=-1)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """3 x 3 Gaussian, with the border mirrored."""
    side = torch.exp(-0.5 / sigma**2)
    side = (side / (1 + 2 * side)).view(-1, 1, 1, 1)
    centre = 1 - 2 * side
    padded = F.pad(images, [1] * 4, mode="reflect")
    lines = padded[:, :, 1:-1] * centre + (padded[:, :, :-2] + padded[:, :, 2:]) * side
    return lines[..., 1:-1] * centre + (lines[..., :-2] + lines[..., 2:]) * side
