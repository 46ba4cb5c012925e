"""Pictures to store and read again, as people have them."""

from __future__ import annotations

import numpy as np
from PIL import Image

RAMP = np.linspace(0, 1, 1024).reshape(32, 32)
BYTES = (255 * RAMP).round().astype(np.uint8)
SHORTS = (65535 * RAMP).round().astype(np.uint16)
HALF_CLEAR = Image.fromarray(np.full((32, 32), 128, np.uint8))


def write_images(place, classes, count=4, size=(20, 30), seed=0):
    draw = np.random.default_rng(seed)
    for name in classes:
        inside = place / name / "deeper"  # nested: ImageFolder looks below
        inside.mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(inside / f"{i}.png")


def grey(mode: str) -> Image.Image:
    return Image.fromarray(BYTES).convert("RGB").convert(mode)


def with_alpha(mode: str) -> Image.Image:
    image = grey(mode)
    image.putalpha(HALF_CLEAR)
    return image


def lab() -> Image.Image:
    from PIL import ImageCms

    profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    return ImageCms.profileToProfile(grey("RGB"), *profiles, outputMode="LAB")


def as_float(low: float = 0.0, high: float = 1.0) -> Image.Image:
    return Image.fromarray((low + (high - low) * RAMP).astype(np.float32))


def saved(image: Image.Image, path, **settings) -> None:
    image.save(path, **settings)


def cut(image: Image.Image, path) -> None:
    image.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
