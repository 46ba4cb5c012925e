"""Where pixels come from: crops, shifts and rotations of batches, with parameters per image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resized_crop(
    images: Tensor, box: Tensor, flipped: Tensor, size: int, interpolation: str
) -> Tensor:
    """(B, 3, size, size) of the boxes, as Pillow and torchvision resize, and mirrored or not."""
    top, left, h, w = box.T
    rows = _weights(images.shape[-2], top, h, size, interpolation)
    # Read from its right end and with a negative step, a line is mirrored.
    left, w = torch.where(flipped, left + w, left), torch.where(flipped, -w, w)
    columns = _weights(images.shape[-1], left, w, size, interpolation)
    resized = rows[:, None] @ (images.flatten(1, 2) @ columns.mT).unflatten(1, images.shape[1:3])
    return resized.clamp_(0, 1)


def _weights(length: int, start: Tensor, extent: Tensor, size: int, interpolation: str) -> Tensor:
    """(B, size, length): what each pixel of a line counts in each pixel of the resized line."""
    pixel = torch.arange(length, device=start.device) + 0.5
    step = (extent / size)[:, None]
    centre = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * step
    # A kernel that is as wide as a shrunk pixel is the antialiasing.
    distance = (pixel - centre[..., None]).abs_() / step.abs().clamp_min(1)[..., None]
    middle = start + extent / 2
    inside = (pixel - middle[:, None]).abs() < extent.abs()[:, None] / 2
    weights = KERNELS[interpolation](distance).mul_(inside[:, None])
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _linear(x: Tensor) -> Tensor:
    return (1 - x).clamp_min_(0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, its two pieces added up rather than chosen from."""
    inner, outer = (1 - x).clamp_min_(0), (2 - x).clamp_min_(0)
    return inner**2 * (1 - 2 * inner) + outer**2 * (outer - 1) / 2


KERNELS = {"bilinear": _linear, "bicubic": _cubic}


def shifted(images: Tensor, top: Tensor, left: Tensor, flipped: Tensor, pad: int) -> Tensor:
    """What is below and right of ``top`` and ``left`` in the padded images, mirrored or not."""
    height, width = images.shape[-2:]
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    # One index into flat images: PyTorch is several times slower with one for each axis.
    flat = (rows * (width + 2 * pad))[:, :, None] + columns[:, None]
    index = flat.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return F.pad(images, [pad] * 4).flatten(2).gather(2, index).view_as(images)


def moved(images: Tensor, degrees: Tensor, shift: Tensor, magnification: Tensor) -> Tensor:
    """Rotated about the centre and magnified, then shifted by shares (x, y) of the size."""
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos() / magnification, angle.sin() / magnification
    # From where each pixel comes: the inverse of the motion.
    x, y = -2 * shift.T
    theta = torch.stack([cos, sin, cos * x + sin * y, -sin, cos, cos * y - sin * x], dim=1)
    grid = F.affine_grid(theta.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp_(0, 1)
