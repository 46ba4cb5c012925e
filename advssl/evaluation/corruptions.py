"""Corruptions: clean images to those of noise, blur, weather and digital damage, five severities.

Types and severities are those of CIFAR-10-C, Hendrycks and Dietterich 2019,
https://arxiv.org/abs/1903.12261. What is made here are "advssl corruptions": other random draws of
the same definitions, by other libraries, and no number on them is one on CIFAR-10-C. That is read
where its files are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advssl.evaluation import damages
from advssl.evaluation.batches import Batches, pairs
from advssl.evaluation.damages import Damage, Pixels
from advssl.evaluation.identity import fingerprint_of
from advssl.evaluation.logits import borrowed, check_module, device_of, logits_of
from advssl.evaluation.report.corruption import Corruptions
from advssl.types import Images, Labels, described, seed_of, several, whole

SEVERITIES = (1, 2, 3, 4, 5)
FROST = (1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)
_PHOTOGRAPHS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Corruption:
    """One type of corruption.

    Attributes:
        levels: the settings of severities 1 to 5, on images of 32 x 32 pixels.
        damage: what it does.
    """

    levels: tuple[Any, ...]
    damage: Damage


# Of 32 x 32 pixels: make_cifar_c.py of https://github.com/hendrycks/robustness. Lengths there are
# pixels here too, but for the elastic transform's, which are shares of the image.
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption((0.04, 0.06, 0.08, 0.09, 0.10), damages.gaussian_noise),
    "shot_noise": Corruption((500, 250, 100, 75, 50), damages.shot_noise),
    "impulse_noise": Corruption((0.01, 0.02, 0.03, 0.05, 0.07), damages.impulse_noise),
    "defocus_blur": Corruption(
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), damages.defocus_blur
    ),
    "glass_blur": Corruption(
        ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)), damages.glass_blur
    ),
    "motion_blur": Corruption(((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), damages.motion_blur),
    "zoom_blur": Corruption((1.06, 1.11, 1.16, 1.21, 1.26), damages.zoom_blur),
    "snow": Corruption(
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        damages.snow,
    ),
    "fog": Corruption(((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), damages.fog),
    "brightness": Corruption((0.05, 0.1, 0.15, 0.2, 0.3), damages.brightness),
    "contrast": Corruption((0.75, 0.5, 0.4, 0.3, 0.15), damages.contrast),
    "elastic_transform": Corruption(
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        damages.elastic_transform,
    ),
    "pixelate": Corruption((0.95, 0.9, 0.85, 0.75, 0.65), damages.pixelate),
    "jpeg_compression": Corruption((80, 65, 58, 50, 40), damages.jpeg_compression),
    "speckle_noise": Corruption((0.06, 0.1, 0.12, 0.16, 0.2), damages.speckle_noise),
    "gaussian_blur": Corruption((0.4, 0.6, 0.7, 0.8, 1), damages.gaussian_blur),
    "spatter": Corruption(
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        damages.spatter,
    ),
    "saturate": Corruption(((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), damages.saturate),
}


def corrupted(
    images: Images,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    frost: Sequence[Pixels] = (),
) -> Images:
    """Images under one type of corruption; each depends on type, severity, seed and index alone.

    As in CIFAR-10-C an image is of bytes before and after.

    Args:
        images: (B, 3, S, S) in [0, 1].
        name: of :data:`CORRUPTIONS`, or "frost".
        severity: 1 to 5.
        seed: of what is drawn.
        indices: of the images in their dataset; 0, 1, ... by default.
        frost: photographs of it, see :func:`photographs`.

    Raises:
        ValueError: on images of another shape, another name or severity, and frost without
            photographs.
    """
    fits = isinstance(images, Tensor) and images.is_floating_point() and images.ndim == 4
    if not fits or len(images) == 0 or images.shape[1:] != (3, images.shape[2], images.shape[2]):
        raise ValueError(
            "corruptions are of images (B, 3, S, S) in [0, 1], floating point and B ≥ 1, got "
            f"{described(images)}"
        )
    low, high = (float(v) for v in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must lie in [0, 1], got [{low:.4g}, {high:.4g}]")
    seed = seed_of(seed)
    if whole("severity", severity, 1) > len(SEVERITIES):
        raise ValueError(f"severity must be from 1 to 5, got {severity}")
    known = (
        {**CORRUPTIONS, "frost": Corruption(FROST, damages.frost(frost))} if frost else CORRUPTIONS
    )
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"corruptions are {', '.join(known)}, got {name!r}")
    of, given = known[name], range(len(images)) if indices is None else indices
    rows = [whole("each of indices", i, 0) for i in several("indices", given, "whole numbers")]
    if len(rows) != len(images):
        raise ValueError(f"{len(images)} images need as many indices, got {len(rows)}")
    pixels = (images.detach().cpu().double() * 255).round().byte().permute(0, 2, 3, 1).numpy()
    made = [
        of.damage(image, of.levels[severity - 1], _drawing(name, severity, seed, row))
        for image, row in zip(pixels, rows, strict=True)
    ]
    # Cut off and not rounded, as the files are.
    return _images(np.stack([np.clip(one, 0, 255).astype(np.uint8) for one in made]), images.device)


def _drawing(*of: str | int) -> damages.Draw:
    digest = hashlib.sha256("/".join(map(str, of)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _images(pixels: Any, device: torch.device) -> Images:
    """(B, S, S, 3) in bytes to (B, 3, S, S) in [0, 1]."""
    return (torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255).to(device)


def photographs(folder: str | Path) -> list[Pixels]:
    """Those of a folder, at a fifth of their size: what frost is made of.

    Raises:
        ValueError: on a folder without a .png or .jpg.
    """
    from PIL import Image

    found = []
    for place in sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in _PHOTOGRAPHS):
        with Image.open(place) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        small = F.interpolate(pixels.double(), scale_factor=0.2, mode="bilinear")
        found.append(small[0].round().byte().permute(1, 2, 0).numpy())
    if not found:
        raise ValueError(
            f"{folder} must hold CIFAR-10-C's files (labels.npy and others), or photographs of "
            "frost (.png or .jpg), and holds neither"
        )
    return found


# --- where corrupted images come from -------------------------------------------------------------


class Source(Protocol):
    """Of corrupted images.

    Attributes:
        title: what they are called.
        names: of the types.
    """

    title: str
    names: Sequence[str]

    def __call__(self, images: Images, rows: Sequence[int], name: str, severity: int) -> Images: ...
    def identity(self, rows: Sequence[int], name: str) -> str: ...


class Made:
    """Made here, of the clean images.

    Args:
        size: of an image, which frost must cover.
        seed: of what is drawn.
        frost: photographs.
    """

    title = "advssl corruptions"

    def __init__(self, size: int, seed: int = 0, frost: Sequence[Pixels] = ()) -> None:
        small = [one.shape[:2] for one in frost if min(one.shape[:2]) < size]
        if small:
            raise ValueError(
                f"photographs of frost must cover an image of {size} pixels at a fifth of their "
                f"size, and one has {small[0]} then; give larger ones"
            )
        self.seed, self.frost = seed, list(frost)
        self.names: Sequence[str] = [*CORRUPTIONS, *(["frost"] if frost else [])]

    def __call__(self, images: Images, rows: Sequence[int], name: str, severity: int) -> Images:
        return corrupted(images, name, severity, seed=self.seed, indices=rows, frost=self.frost)

    def identity(self, rows: Sequence[int], name: str) -> str:
        return fingerprint_of(self.title, name, list(rows), self.seed, self.frost)


class Files:
    """CIFAR-10-C's own files, which are read where they are.

    Args:
        folder: of labels.npy and one file for each type.
        labels: of the test images, which must be theirs.
        size: of an image.

    Raises:
        ValueError: on files of other shapes, and on other labels.
    """

    def __init__(self, folder: Path, labels: Sequence[int], size: int) -> None:
        self.title = folder.name
        told = np.load(folder / "labels.npy", mmap_mode="r")
        self.count = len(labels)
        expected = np.tile(np.asarray(labels), len(SEVERITIES))
        if told.shape != expected.shape or not np.array_equal(told, expected):
            raise ValueError(
                f"{folder / 'labels.npy'} must be the {self.count} test images' labels five times, "
                f"severity by severity, got {told.shape} others; give the data that it is of"
            )
        every = [*CORRUPTIONS, "frost"]
        self.files = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in every
            if (folder / f"{name}.npy").exists()
        }
        shape = (len(expected), size, size, 3)
        for name, file in self.files.items():
            if file.shape != shape or file.dtype != np.uint8:
                raise ValueError(
                    f"{folder / name}.npy must be bytes of shape {shape}, got {file.dtype} "
                    f"{file.shape}"
                )
        if not self.files:
            raise ValueError(f"{folder} has labels.npy and none of {', '.join(every)}.npy")
        self.names: Sequence[str] = [*self.files]

    def __call__(self, images: Images, rows: Sequence[int], name: str, severity: int) -> Images:
        start = (severity - 1) * self.count
        return _images(self.files[name][[start + row for row in rows]], images.device)

    def identity(self, rows: Sequence[int], name: str) -> str:
        every = [s * self.count + row for s in range(len(SEVERITIES)) for row in rows]
        return fingerprint_of(self.title, name, np.array(self.files[name][every]))


def source_of(folder: str | Path | None, labels: Sequence[int], size: int, seed: int = 0) -> Source:
    """Corrupted images: made here, with frost if a folder has photographs of it, or CIFAR-10-C's.

    Args:
        folder: of photographs or of CIFAR-10-C's files; None or "" for what is made without.
        labels: of all test images.
        size: of an image.
        seed: of what is drawn.

    Raises:
        ValueError: on a folder that holds neither, on photographs that are too small, and on files
            of other images.
    """
    if not folder:
        return Made(size, seed)
    if not Path(folder).is_dir():
        raise ValueError(
            f"{folder} is no folder; give that of CIFAR-10-C's files or of photographs"
        )
    if (Path(folder) / "labels.npy").exists():
        return Files(Path(folder), labels, size)
    return Made(size, seed, photographs(folder))


# --- accuracy -------------------------------------------------------------------------------------


def under_corruptions(
    classifier: nn.Module,
    batches: Batches,
    source: Source,
    *,
    indices: Sequence[int] | None = None,
    names: Iterable[str] | None = None,
    seed: int = 0,
    once: Callable[[str, Callable[[], dict[str, Any]]], Mapping[str, Any]] = lambda _, work: work(),
) -> Corruptions:
    """A classifier's accuracy under each type of corruption and severity.

    Args:
        classifier: images (B, 3, S, S) in [0, 1] to logits; left as it was.
        batches: clean images and labels.
        source: of corrupted images, see :func:`source_of`.
        indices: of the images in their dataset; 0, 1, ... by default.
        names: of types; all of the source's by default.
        seed: of a classifier that draws.
        once: called with a part's name and what finds it; keeps it if it can.

    Raises:
        ValueError: on no images, and what makes no sense.
    """
    check_module("classifier", classifier)
    clean = [*pairs(batches)]
    count = sum(len(labels) for _, labels in clean)
    rows = list(range(count) if indices is None else indices)
    if not clean or len(rows) != count:
        raise ValueError(f"{count} images need as many indices, one at least, got {len(rows)}")

    def share(of: Callable[[Images, Sequence[int]], Images]) -> float:
        right, start = 0, 0
        for images, labels in clean:
            part = rows[start : start + len(images)]
            right += _right(classifier, of(images, part), labels, seed)
            start += len(images)
        return right / count

    def severities(name: str) -> dict[str, Any]:
        return {"accuracy": [share(partial(source, name=name, severity=s)) for s in SEVERITIES]}

    found = {
        name: tuple(once(source.identity(rows, name), partial(severities, name))["accuracy"])
        for name in (source.names if names is None else names)
    }
    return Corruptions(source.title, share(lambda images, _: images), found, count)


def _right(classifier: nn.Module, images: Images, labels: Labels, seed: int) -> int:
    device = device_of(classifier, images)
    with borrowed(classifier, device, seed), torch.no_grad():
        predicted = logits_of(classifier, images.to(device)).argmax(1)
    return int((predicted == labels.to(device)).sum())
