"""Pictures to store and read again, as people have them."""

from __future__ import annotations

import struct

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


def tiff(path, values: np.ndarray, bits: int, *, meaning: int = 1, kind: int = 1) -> None:
    """As scientific instruments write it: 32 x 32 samples of ``bits``, packed."""
    whole = np.ascontiguousarray(values).astype(values.dtype.newbyteorder(">"))
    packed = np.unpackbits(whole.view(np.uint8).reshape(1024, -1), axis=1)[:, -bits:]
    data = np.packbits(packed.reshape(32, -1), axis=1)
    if bits > 12:
        data = data.view(f"u{bits // 8}").byteswap()
    tags = {256: 32, 257: 32, 258: bits, 259: 1, 262: meaning, 273: 134, 277: 1, 278: 32}
    tags |= {279: data.nbytes}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    entries += struct.pack("<HHII", 339, 4, 1, kind)
    header = b"II*\0" + struct.pack("<IH", 8, len(tags) + 1)
    path.write_bytes(header + entries + bytes(4) + data.tobytes())


def cut(image: Image.Image, path) -> None:
    image.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
