"""Images: a file to the photograph in it, on the scale and the way up that it was stored."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from advssl.extras import needed
from advssl.types import described, see

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow reads some of them only with a plugin: they are then refused by name, not passed over.
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff"),
    *(".webp", ".gif", ".jp2", ".avif", ".heic", ".heif", ".pbm", ".pnm", ".tga", ".dib", ".apng"),
)
_LONGEST = 100  # times the short side
_BITS, _MEANING, _KIND = 258, 262, 339  # of a TIFF: per sample, of the numbers, and of what kind


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """The photograph in a file: (3, H, W), uint8, or float32 in [0, 1] where the file holds more.

    Eight bits are read as they are, 16-bit grey levels over 65535, the 12 bits of a TIFF over 4095,
    floating point as [0, 1]; grey becomes three equal channels. A photograph is turned upright as
    its EXIF says. Of several frames or pages the first is read. Transparency is dropped, as
    torchvision does.

    Raises:
        ValueError: with the file's name, if it cannot be read, if its numbers have another range or
            no known one, if nothing but its transparency has a picture, or if it is more than a
            hundred times as long as wide.
    """
    if not isinstance(path, str | bytes | os.PathLike) and not hasattr(path, "read"):
        raise ValueError(f"path must be that of an image file, got {described(path)}")
    needed("PIL")
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            opened.load()  # a PNG may say it after its pixels
            if opened.getexif().get(ExifTags.Base.Orientation, 1) == 1:  # without a copy
                return _pixels(opened, opened)
            return _pixels(ImageOps.exif_transpose(opened), opened)
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{os.fspath(path)} is no image, or of a kind that Pillow does not read; remove it, or "
            "store it as PNG" + see("An image that is refused")
        ) from error
    except Exception as error:  # Pillow raises whatever a damaged file leads to
        told = str(getattr(error, "strerror", None) or error)  # of the system without the path
        reason = " ".join(told.split()) or type(error).__name__
        raise ValueError(
            f"{os.fspath(path)} cannot be read as an image: {reason}"
            + see("An image that is refused")
        ) from error


def _pixels(image: Image, file: Image) -> Tensor:
    short, long = sorted(image.size)
    if long > _LONGEST * short:
        raise ValueError(f"it is {image.width} x {image.height} pixels; cut it")
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep(image, file).expand(3, -1, -1)
    if 2 in _tag(file, _KIND):
        raise ValueError("it holds numbers with a sign; store them without")
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa"):
        *_, alpha = with_alpha = _bytes(image.convert("RGBA"))
        colours = with_alpha[:3]
        flat = bool((colours == colours[:, :1, :1]).all())
        if flat and bool((alpha != alpha[0, 0]).any()):
            raise ValueError("its picture is in its transparency alone; store it on a background")
        return colours
    return _bytes(image if image.mode == "RGB" else image.convert("RGB"))


def _tag(file: Any, tag: int) -> tuple[int, ...]:
    """Of a TIFF, () of anything else."""
    found = file.tag_v2.get(tag, ()) if file.format == "TIFF" else ()
    return found if isinstance(found, tuple) else (found,)


def _bytes(image: Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _deep(image: Image, file: Image) -> Tensor:
    """Grey levels of more than eight bits, (1, H, W) in [0, 1]."""
    values = torch.from_numpy(np.asarray(image).astype(np.float64))[None]
    low, high = (float(end) for end in values.aminmax())
    # Pillow has 16-bit PNG and PGM as 32-bit integers too; of others nobody knows the largest.
    short = image.mode.startswith("I;16") or file.format in ("PNG", "PPM")
    if image.mode != "F" and not short:
        raise ValueError(f"it holds 32-bit integers from {low:g} to {high:g}; store 16 or 8 bits")
    bits = 12 if _tag(file, _BITS) == (12,) else 16
    top = 1.0 if image.mode == "F" else 2.0**bits - 1
    if not (low >= 0 and high <= top):  # a NaN is neither
        raise ValueError(f"its numbers must lie in [0, {top:g}], got [{low:g}, {high:g}]")
    if _tag(file, _MEANING) == (0,):  # zero is white, which Pillow knows of eight bits alone
        values = top - values
    return (values / top).float()


def size_of(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Short and long side of the image in a file, by its header alone; None if that has none."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            short, long = sorted(opened.size)
    except Exception:  # of a damaged file; whoever reads it all says what is wrong with it
        return None
    return short, long
