"""The papers' augmentations, on batches: every image has its own draw, on its own device.

Images are (B, 3, H, W) floating point in [0, 1] before and after. Draws come from PyTorch's global
generator of the images' device. Nothing is differentiated and nothing is rounded to 8 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from advssl.evaluation.data import Data
from harness.colours import blend, blur, luma, turn_hue
from harness.draws import Augmentation, chosen, crop_boxes, uniform
from harness.geometry import moved, resized_crop, shifted
from harness.strong import Strong, dynamic

__all__ = ["Gentle", "Strong", "Weak", "augmentation", "dynamic"]
__all__ += ["blend", "blur", "chosen", "crop_boxes", "luma", "moved", "resized_crop"]
__all__ += ["shifted", "turn_hue", "uniform"]


class Weak(Augmentation):
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


class Gentle(Augmentation):
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

    def at(self, strength: float) -> Gentle:
        """The same, weaker: at 0 images stay as they are."""
        low, high = self.scale
        return Gentle(
            self.size,
            degrees=strength * self.degrees,
            shift=strength * self.shift,
            scale=(low + (1 - low) * (1 - strength), high + (1 - high) * (1 - strength)),
            light=strength * self.light,
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
