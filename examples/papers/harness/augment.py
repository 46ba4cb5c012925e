"""The papers' augmentations, on batches: every image has its own draw, on its own device.

Images are (B, 3, H, W) floating point in [0, 1] before and after. Draws come from PyTorch's global
generator of the images' device. Nothing is differentiated and nothing is rounded to 8 bits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advssl.evaluation.data import Data

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


class _Augmentation(nn.Module):
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

    def _augmented(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class Strong(_Augmentation):
    """Random resized crop, flip, colour jitter, grayscale, and blur if asked for.

    Args:
        size: H = W of what comes out.
        scale: share of the image's area that the crop has, from and to.
        ratio: width over height of the crop, from and to.
        jitter: largest change of brightness, contrast, saturation (factors in 1 ± that) and hue
            (turn of the colour circle by ± that), in a random order.
        jitter_p: probability of the jitter.
        gray_p: probability of taking the colours away.
        flip_p: probability of mirroring.
        blur_p: probability of a 3 x 3 Gaussian blur with σ uniform in 0.1 to 2 pixels.
        interpolation: "bilinear" or "bicubic", of the crop.
    """

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
        jitter_p: float = 0.8,
        gray_p: float = 0.2,
        flip_p: float = 0.5,
        blur_p: float = 0.0,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__()
        if interpolation not in _KERNELS:
            raise ValueError(f"interpolation is one of {list(_KERNELS)}, got {interpolation!r}")
        self.size, self.scale, self.ratio = size, scale, ratio
        self.jitter, self.jitter_p, self.gray_p = jitter, jitter_p, gray_p
        self.flip_p, self.blur_p, self.interpolation = flip_p, blur_p, interpolation

    def extra_repr(self) -> str:
        names = ("scale", "ratio", "jitter", "jitter_p", "gray_p", "flip_p", "blur_p")
        settings = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{self.size}, {settings}, interpolation={self.interpolation!r}"

    def _augmented(self, images: Tensor) -> Tensor:
        box = crop_boxes(images, self.scale, self.ratio)
        flipped = chosen(images, self.flip_p)
        images = resized_crop(images, box, flipped, self.size, self.interpolation)
        return self._coloured(images)

    def _coloured(self, images: Tensor) -> Tensor:
        """With other colours; overwrites ``images``."""
        jittered = chosen(images, self.jitter_p)
        hue_turn = uniform(images, -self.jitter[3], self.jitter[3])
        hue_slot = torch.randint(4, (len(images),), device=images.device)
        # Brightness, contrast and saturation each mix the image with a reference, in any order.
        kinds = torch.rand(len(images), 3, device=images.device).argsort(dim=1)
        factors = torch.stack(
            [uniform(images, max(0.0, 1 - most), 1 + most) for most in self.jitter[:3]], dim=1
        ).gather(1, kinds)
        for slot in range(4):
            # Images that turn their hue at the same time go together.
            rows = (jittered & (hue_slot == slot)).nonzero().flatten()
            some = images[rows]
            for i in range(3):
                if i == slot:
                    some = turn_hue(some, hue_turn[rows])
                some = blend(some, kinds[rows, i], factors[rows, i])
            if slot == 3:
                some = turn_hue(some, hue_turn[rows])
            images[rows] = some
        rows = chosen(images, self.gray_p).nonzero().flatten()
        images[rows] = luma(images[rows]).expand(-1, 3, -1, -1)
        rows = chosen(images, self.blur_p).nonzero().flatten()
        images[rows] = blur(images[rows], uniform(images, 0.1, 2.0)[rows])
        return images


def dynamic(size: int, strength: float, **settings: Any) -> Strong:
    """DynACL's augmentation: from flips alone at strength 0 to ACL's at 1.

    Reference: Luo et al. 2023, https://arxiv.org/abs/2303.01289
    """
    s = strength
    scaled = {"scale": (1 - 0.9 * s, 1.0), "jitter": (0.4 * s, 0.4 * s, 0.4 * s, 0.1 * s)}
    return Strong(size, **{**scaled, "jitter_p": 0.8 * s, "gray_p": 0.2 * s, **settings})


class Weak(_Augmentation):
    """Shift by up to ``pad`` pixels, with black moving in, and flip.

    Args:
        size: H = W of images before and after.
        pad: pixels; by default an eighth of ``size``, 4 at 32.
        flip_p: probability of mirroring.
    """

    def __init__(self, size: int, pad: int | None = None, flip_p: float = 0.5) -> None:
        super().__init__()
        self.size, self.flip_p = size, flip_p
        self.pad = size // 8 if pad is None else pad

    def extra_repr(self) -> str:
        return f"{self.size}, pad={self.pad}, flip_p={self.flip_p}"

    def _augmented(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"Weak({self.size}) shifts images of that size, got {tuple(images.shape)}"
            )
        shift = torch.randint(2 * self.pad + 1, (2, len(images)), device=images.device)
        return shifted(images, shift[0], shift[1], chosen(images, self.flip_p), self.pad)


class Gentle(_Augmentation):
    """Small rotations, shifts and changes of size and light, for digits and other symbols.

    Args:
        size: H = W of images before and after.
        degrees: largest rotation.
        shift: largest shift, as a share of ``size``.
        scale: smallest and largest magnification.
        light: largest change of brightness and of contrast: factors in 1 ± that.
    """

    def __init__(
        self,
        size: int,
        *,
        degrees: float = 12.0,
        shift: float = 0.1,
        scale: tuple[float, float] = (0.85, 1.15),
        light: float = 0.4,
    ) -> None:
        super().__init__()
        self.size, self.degrees, self.shift, self.scale = size, degrees, shift, scale
        self.light = light

    def extra_repr(self) -> str:
        return (
            f"{self.size}, degrees={self.degrees}, shift={self.shift}, scale={self.scale}, "
            f"light={self.light}"
        )

    def _augmented(self, images: Tensor) -> Tensor:
        angle = uniform(images, -self.degrees, self.degrees)
        magnification = uniform(images, *self.scale)
        shift = torch.stack([uniform(images, -self.shift, self.shift) for _ in range(2)], dim=1)
        images = moved(images, angle, shift, magnification)
        kinds = torch.rand(len(images), 2, device=images.device).argsort(dim=1)
        for i in range(2):
            factor = uniform(images, 1 - self.light, 1 + self.light)
            images = blend(images, kinds[:, i], factor)
        return images


def augmentation(name: str, data: Data, size: int, **settings: Any) -> nn.Module:
    """A method's "strong" or "weak" augmentation for this data.

    Args:
        name: "strong" or "weak".
        data: photographs get :class:`Strong` or :class:`Weak`; other images, whose colours and
            sides may carry their class, :class:`Gentle` or shifts alone, without ``settings``.
        size: H = W.
        **settings: the method's own, for photographs.

    Raises:
        ValueError: on another name.
    """
    if name not in ("strong", "weak"):
        raise ValueError(f'an augmentation is "strong" or "weak", got {name!r}')
    natural = Strong(size, **settings) if name == "strong" else Weak(size, **settings)
    if data.natural:
        return natural
    return Gentle(size) if name == "strong" else Weak(size, flip_p=0.0)


# --- draws ----------------------------------------------------------------------------------------


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


# --- operations, with parameters per image --------------------------------------------------------


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
    weights = _KERNELS[interpolation](distance).mul_(inside[:, None])
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _linear(x: Tensor) -> Tensor:
    return (1 - x).clamp_min_(0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, its two pieces added up rather than chosen from."""
    inner, outer = (1 - x).clamp_min_(0), (2 - x).clamp_min_(0)
    return inner**2 * (1 - 2 * inner) + outer**2 * (outer - 1) / 2


_KERNELS = {"bilinear": _linear, "bicubic": _cubic}


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
