"""Views: images in, images out, no model. What pixels the encoder sees."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

import torch
from kornia.augmentation import AugmentationBase2D, IntensityAugmentationBase2D
from torch import Tensor

from advssl.precision import widen, without_autocast
from advssl.types import Images, described, flag, number

Unit: TypeAlias = Literal["image", "pixel"]

_MASKS_KEPT = 32  # a mask of 224 x 224 images takes 0.1 MB in float32 at the most


class _FrequencyView(IntensityAugmentationBase2D):
    """One side of a circle around zero frequency, channel by channel."""

    _keeps_high: bool

    def __init__(
        self,
        radius: float = 8.0,
        *,
        unit: Unit = "image",
        p: float = 1.0,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        radius, p = number("radius", radius), number("p", p)
        _check_radius(radius, unit)
        if not 0 <= p <= 1:
            raise ValueError(f"p must be a probability in [0, 1], got {p}")
        super().__init__(
            p=p,
            same_on_batch=flag("same_on_batch", same_on_batch),
            keepdim=flag("keepdim", keepdim),
        )
        # Of no effect from kornia 0.8.3 on. Before, a call would read an array as (H, W, C) in
        # 0 to 255, and keep a copy of each view on the CPU.
        self.disable_features = True
        self.radius = radius
        self.unit = unit

    def forward(
        self, input: Images, params: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> Images:
        """The view of ``input``; ``params`` replays an earlier draw, as everywhere in kornia."""
        _check_floating_point(input)
        if not _KORNIA_TAKES_BFLOAT16 and input.dtype == torch.bfloat16:
            return super().forward(input.float(), params, **kwargs).to(input.dtype)
        return super().forward(input, params, **kwargs)

    def apply_transform(self, input: Images, *_: Any, **__: Any) -> Images:
        """Kornia's hook: the view of every image in the batch, whatever was drawn."""
        if len(input) == 0:
            return input
        with without_autocast(input.device):
            pixels = widen(input).contiguous()  # torch 2.5's FFT refuses an expanded tensor
            low = self._low(pixels)
            view = pixels - low if self._keeps_high else low
        return view.to(input.dtype, memory_format=_memory_format(input))

    def extra_repr(self) -> str:
        """The constructor's arguments, so that the repr can be pasted back."""
        return (
            f"radius={self.radius}, unit={self.unit!r}, p={self.p}, "
            f"same_on_batch={self.same_on_batch}, keepdim={self.keepdim}"
        )

    def __repr__(self) -> str:
        # kornia's repr lists what it draws at random and knows nothing of extra_repr.
        return f"{type(self).__name__}({self.extra_repr()})"

    def _low(self, pixels: Tensor) -> Tensor:
        # Columns beyond the radius are high whatever their row: they are cut off, not masked.
        spectrum = torch.fft.rfft(pixels)
        mask = self._mask(spectrum, pixels)
        columns = torch.fft.fft(spectrum[..., : mask.shape[1]], dim=-2) * mask
        return torch.fft.irfft(torch.fft.ifft(columns, dim=-2), n=pixels.shape[-1])

    def _mask(self, spectrum: Tensor, pixels: Tensor) -> Tensor:
        # Neither a compiler's trace nor a fake or wrapped tensor may reach the cache.
        plain = type(spectrum) is Tensor and not torch.compiler.is_compiling()
        make = _cached_mask if plain else _new_mask
        height, width = pixels.shape[-2:]
        return make(height, width, self.radius, self.unit, pixels.device, pixels.dtype)


class HighFreqView(_FrequencyView):
    """Keep an image's edges and texture, drop its mean and its smooth shading.

        x_h = F⁻¹( [d ≥ r] · F(x) ),   d the distance from zero frequency

    The view of x in AdvCL's four-view contrastive loss. ``HighFreqView(r)(x) + LowFreqView(r)(x)``
    is x.

    The view has zero mean and, for images in [0, 1], lies roughly in [-0.5, 0.5]: half of it is
    negative and nothing is clamped. So attack it with ``bounds=None``, and place it last in a
    pipeline, right before ``Normalize``: most of kornia's intensity operations clamp to [0, 1] and
    would cut the negative half away.

    A kornia augmentation, usable alone or inside ``kornia.augmentation.AugmentationSequential``;
    masks, boxes and keypoints pass through. Differentiable; the FFT runs in float32 (float64 for
    float64 images) whatever the autocast, and the view comes back in the images' dtype. Nothing is
    random but which images are chosen when ``p < 1``; kornia draws that from torch's global
    generator.

    Args:
        radius: r ≥ 0, in units of ``unit``. 8 cycles per image is the paper's, for 32 x 32 images.
            An image has no frequency beyond half its diagonal, 22.6 at 32 x 32, nor beyond 0.707
            cycles per pixel: more leaves a black view.
        unit: "image", cycles per image, along each axis of a rectangular one; or "pixel", cycles
            per pixel, which means the same at every resolution: the paper's 8 at 32 is 0.25.
        p: probability with which an image is replaced by its view, else it stays as it is.
        same_on_batch: with ``p < 1``, choose all images of a batch or none.
        keepdim: give a (C, H, W) image back as (C, H, W), not as (1, C, H, W).

    Shape:
        (B, C, H, W) or (C, H, W), floating point, to (B, C, H, W).

    Raises:
        ValueError: for a radius that is negative, not finite or, in cycles per pixel, beyond every
            frequency; for an unknown unit; for a p outside [0, 1]; for integer images.

    Example:
        >>> view = HighFreqView(0.25, unit="pixel")(torch.rand(4, 3, 32, 32))
        >>> view.shape, bool(view.mean().abs() < 1e-6)
        (torch.Size([4, 3, 32, 32]), True)

    Reference: Fan et al. 2021, Eq. 8, https://arxiv.org/abs/2111.01124. At odd sizes the released
    code centres its circle half a coefficient off zero frequency; this one does not.
    """

    _keeps_high = True


class LowFreqView(_FrequencyView):
    """Keep an image's mean and its smooth shading, drop its edges and texture.

        x_l = F⁻¹( [d < r] · F(x) ),   d the distance from zero frequency

    What :class:`HighFreqView` removes, so ``HighFreqView(r)(x) + LowFreqView(r)(x)`` is x.

    The view has the image's mean and close to its range, which it can leave by a little beside a
    sharp edge: nothing is clamped. Place it last in a pipeline, right before ``Normalize``. All
    else (arguments, units, precision, randomness, errors) is as in :class:`HighFreqView`.

    Args:
        radius: r ≥ 0, in units of ``unit``; a coefficient at r itself belongs to the high view.
        unit: "image", cycles per image, or "pixel", cycles per pixel.
        p: probability with which an image is replaced by its view, else it stays as it is.
        same_on_batch: with ``p < 1``, choose all images of a batch or none.
        keepdim: give a (C, H, W) image back as (C, H, W), not as (1, C, H, W).

    Example:
        >>> images = torch.rand(4, 3, 32, 32)
        >>> torch.allclose(HighFreqView()(images) + LowFreqView()(images), images, atol=1e-5)
        True

    Reference: Fan et al. 2021, Eq. 8, https://arxiv.org/abs/2111.01124
    """

    _keeps_high = False


def _new_mask(
    height: int,
    width: int,
    radius: float,
    unit: Unit,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """1 where ``rfft2`` of images holds a low coefficient, only as wide as those reach."""
    exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    # Unshifted: rows count up to Nyquist and back down, columns stop there.
    rows = torch.arange(height, device=device)
    rows = torch.minimum(rows, height - rows).to(exact)
    reach = math.ceil(radius * (width if unit == "pixel" else 1))
    reach = min(max(reach, 1), width // 2 + 1)  # 1, because torch 2.5 cannot transform 0 columns
    columns = torch.arange(reach, device=device).to(exact)
    if unit == "pixel":
        rows, columns = rows / height, columns / width
    # A coefficient at the radius itself is high, whichever way its distance was rounded.
    return (torch.hypot(rows[:, None], columns) < radius * (1 - 1e-9)).to(dtype)


@lru_cache(maxsize=_MASKS_KEPT)
def _cached_mask(*key: Any) -> Tensor:
    """:func:`_new_mask`, remembered here and not in the views, so they copy and pickle lightly."""
    # A tensor made in inference mode could not be saved for a later call's backward.
    with torch.inference_mode(False):
        return _new_mask(*key)


def _memory_format(images: Images) -> torch.memory_format:
    """channels_last where the images are in that format and in no other."""
    if images.is_contiguous():
        return torch.contiguous_format
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _check_radius(radius: float, unit: str) -> None:
    if unit not in get_args(Unit):
        raise ValueError(f'unit must be "image" or "pixel", cycles per which, got {unit!r}')
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius must be finite and not negative, got {radius}")
    if unit == "pixel" and radius > 0.71:
        raise ValueError(
            f"no frequency lies beyond 0.71 cycles per pixel, got radius={radius}; "
            'pass unit="image" for a radius in cycles per image'
        )


def _check_floating_point(images: Images) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise ValueError(
            f"images must be a floating point tensor, got {described(images)}; "
            "convert them first, uint8 with images / 255"
        )
    if not 2 <= images.ndim <= 4:
        raise ValueError(f"images must be (B, C, H, W) or (C, H, W), got {described(images)}")


def _kornia_takes(dtype: torch.dtype) -> bool:
    try:
        AugmentationBase2D().validate_tensor(torch.empty(1, 1, 1, 1, dtype=dtype, device="cpu"))
    except TypeError:
        return False
    return True


_KORNIA_TAKES_BFLOAT16 = _kornia_takes(torch.bfloat16)  # kornia 0.7.4 does not
