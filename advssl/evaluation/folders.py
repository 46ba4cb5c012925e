"""Folders: images in one folder per class, listed without reading one, at the size they have."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Subset

from advssl.evaluation.datasets import Opened, Sample, unit_range
from advssl.evaluation.images import IMAGE_ENDINGS, read_image, size_of
from advssl.extras import needed

# What archives, servers, systems and Python leave beside the images.
_NOT_THEIRS = {  # whatever the case
    *("__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "#snapshot"),
    *("lost+found", "$recycle.bin", "recycler", "system volume information"),
    *("network trash folder", "temporary items"),
}
# Photographs of many sizes, or of one that is larger than what encoders are made for, are reduced.
_USUAL, _LARGEST = 224, 512
_LOOKED_AT, _MOST = 256, 0.9  # headers, and the share of them that makes a size the data's own


class Folder(Dataset[Sample]):
    """Images in one folder per class, nested as deep as they are.

    Attributes:
        classes: the folders' names, sorted.
        samples: path and label of each image, in the order of torchvision's ``ImageFolder``.
        targets: the labels.
        places: the folders of the classes, with links followed.
        root: the folder of the classes' folders.
        size: H = W of the images it gives.
    """

    def __init__(self, place: Path, size: int = _USUAL) -> None:
        self.root, self.size = os.fspath(place), size
        shown = [f for f in place.iterdir() if not _hidden(f.name)]
        _check_links(shown)
        self.classes = sorted(f.name for f in shown if f.is_dir())
        if not self.classes:
            raise ValueError(f"{place} has no folder of a class; put images into PATH/CLASS/")
        self.places = {os.path.realpath(place / name) for name in self.classes}
        self.samples: list[tuple[str, int]] = []
        for label, name in enumerate(self.classes):
            paths = _images_below(place / name)
            if not paths:
                raise ValueError(
                    f"class {name!r} has no image in {place / name} (of {', '.join(IMAGE_ENDINGS)})"
                    "; add one, or move the folder away"
                )
            self.samples += [(path, label) for path in paths]
        self.targets = [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.samples[index]
        return unit_range(self.fitted(read_image(path))), label

    def fitted(self, image: Tensor) -> Tensor:
        """The middle of a photograph (3, H, W), as (3, size, size) of the same type."""
        if image.shape[1:] == (self.size, self.size):
            return image
        F = needed("torchvision.transforms.v2.functional")
        return F.center_crop(F.resize(image, [self.size], antialias=True), [self.size])


def open_folders(path: str, image_size: int | None, given: Mapping[str, str | None]) -> Opened:
    """The parts of a folder, or the folders given by part.

    Raises:
        ValueError: on a missing folder, one that cannot be read, a broken link, a class without
            images, parts of different classes, or one that is also the training part.
    """
    if not path and not (given["train"] and given["test"]):
        raise ValueError("folder:PATH needs a path, or --train and --test; got none")
    below = Path(path)
    usual = {"train": below / "train", "test": _first(below / "test", below / "val")}
    places = usual | {part: Path(place) for part, place in given.items() if place}
    for part, place in places.items():
        if not place.is_dir():
            raise ValueError(
                f"no folder of {part} images at {place}; folder:PATH needs PATH/train and "
                "PATH/test with one folder per class, or --train and --test"
            )
    found = {part: Folder(place) for part, place in places.items()}
    classes = found["train"].classes
    for part, dataset in found.items():
        if dataset.classes != classes:
            ours, theirs = set(classes), set(dataset.classes)
            raise ValueError(
                f"train and {part} must have the same classes; only in train: "
                f"{sorted(ours - theirs) or 'none'}, only in {part}: "
                f"{sorted(theirs - ours) or 'none'}"
            )
        shared = [] if part == "train" else sorted(found["train"].places & dataset.places)
        if shared:
            raise ValueError(
                f"train and {part} must be other images, both have those of {shared[0]}"
            )
    size, because = own_size([p for dataset in found.values() for p, _ in dataset.samples])
    for dataset in found.values():
        dataset.size = image_size or size
    return Opened(dict(found), classes, image_size or size, because)


def check_outside(datasets: Iterable[Any], folder: str | os.PathLike[str]) -> None:
    """Raise where what is written to ``folder`` would be read as a class or its images."""
    place = Path(folder).resolve()
    for dataset in datasets:
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        if not isinstance(dataset, Folder):
            continue
        root = Path(dataset.root).resolve()
        if place.is_relative_to(root) and not any(map(_hidden, place.relative_to(root).parts)):
            raise ValueError(
                f"{folder} lies in {root}, whose folders are read as classes of images; write to "
                "another place"
            )


def own_size(paths: Sequence[str]) -> tuple[int, str]:
    """H = W at which these images are best read, and a sentence on why.

    It is the short side of the size that nine in ten of them share, if that is at most 512; else
    224. Headers of 256 images are looked at, which a seed chooses.
    """
    chosen = np.random.default_rng(0).permutation(len(paths))[:_LOOKED_AT]
    sizes = Counter(filter(None, (size_of(paths[i]) for i in chosen)))
    looked_at = sizes.total()
    if not looked_at:
        return _USUAL, f"no header of an image could be read; {_USUAL} is usual"
    ((short, long), count) = sizes.most_common(1)[0]
    seen = f"{count} of {looked_at} images looked at have {long} x {short} pixels"
    if count < _MOST * looked_at:
        return _USUAL, f"images are of different sizes, and {_USUAL} is usual for photographs"
    if short > _LARGEST:
        return _USUAL, f"{seen}, which are reduced to the {_USUAL} usual for photographs"
    return short, seen


def _images_below(place: Path) -> list[str]:
    found: list[tuple[str, list[str]]] = []
    for below, folders, files in os.walk(place, followlinks=True, onerror=_refuse):
        folders[:] = [name for name in folders if not _hidden(name) and not _upward(below, name)]
        shown = [name for name in files if not _hidden(name)]
        images = [name for name in shown if name.lower().endswith(IMAGE_ENDINGS)]
        _check_links([Path(below, name) for name in set(shown) - set(images)])
        found.append((below, sorted(images)))
    return [os.path.join(below, name) for below, names in sorted(found) for name in names]


def _check_links(paths: Sequence[Path]) -> None:
    """Raise on one that leads nowhere, behind which images may have been."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"{path} is a link to {os.readlink(path)}, where there is nothing; mend it, or "
                "take it away"
            )


def _refuse(error: OSError) -> None:
    raise ValueError(
        f"{error.filename} cannot be read: {error.strerror}; mend that, or move the folder away"
    ) from error


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _NOT_THEIRS


def _upward(below: str, name: str) -> bool:
    """Whether it is a link to a folder that it is in itself."""
    path = os.path.join(below, name)
    within = os.path.join(os.path.realpath(below), "") if os.path.islink(path) else ""
    return within.startswith(os.path.join(os.path.realpath(path), ""))


def _first(*places: Path) -> Path:
    return next((p for p in places if p.is_dir()), places[0])
