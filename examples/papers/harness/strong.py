"""The strong augmentation of contrastive papers: crop, flip, colours, blur."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.colours import blend, blur, luma, turn_hue
from harness.draws import Augmentation, chosen, crop_boxes, uniform
from harness.geometry import KERNELS, resized_crop


class Strong(Augmentation):
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
        if interpolation not in KERNELS:
            raise ValueError(f"interpolation is one of {list(KERNELS)}, got {interpolation!r}")
        self.size, self.scale, self.ratio = size, scale, ratio
        self.jitter, self.jitter_p, self.gray_p = jitter, jitter_p, gray_p
        self.flip_p, self.blur_p, self.interpolation = flip_p, blur_p, interpolation

    def extra_repr(self) -> str:
        names = ("scale", "ratio", "jitter", "jitter_p", "gray_p", "flip_p", "blur_p")
        settings = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{self.size}, {settings}, interpolation={self.interpolation!r}"

    def at(self, strength: float) -> Strong:
        """The same, weaker: at 0 flips are all that is left."""
        low, high = self.scale
        light, contrast, saturation, hue = (strength * most for most in self.jitter)
        return Strong(
            self.size,
            scale=(low + (high - low) * (1 - strength), high),
            ratio=self.ratio,
            jitter=(light, contrast, saturation, hue),
            jitter_p=strength * self.jitter_p,
            gray_p=strength * self.gray_p,
            flip_p=self.flip_p,
            blur_p=strength * self.blur_p,
            interpolation=self.interpolation,
        )

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
    """DynACL's augmentation: from flips alone at strength 0 to ACL's at 1, or to ``settings``.

    Reference: Luo et al. 2023, https://arxiv.org/abs/2303.01289
    """
    return Strong(size, **{"scale": (0.1, 1.0), **settings}).at(strength)
