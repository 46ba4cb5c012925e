"""Data: a name to train, validation and test images in [0, 1] with their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from advssl.types import Images, Labels

Sample: TypeAlias = tuple[Tensor, int]  # (C, H, W) float32 in [0, 1], class

VALIDATION_SHARE, VALIDATION_MOST = 0.1, 5_000


@dataclass(frozen=True)
class Data:
    """What a protocol trains on, selects on and is measured on.

    Attributes:
        name: as given.
        classes: names, in the order of the labels.
        train: without ``validation``.
        validation: a stratified, seeded tenth of the training images, at most 5,000.
        test: never trained on and never selected on.
        natural: photographs, which may be mirrored and shifted; digits may not.
        unlabelled: more images to pretrain on, labelled -1, where the dataset has them (STL-10).
    """

    name: str
    classes: tuple[str, ...]
    train: Dataset[Sample]
    validation: Dataset[Sample]
    test: Dataset[Sample]
    natural: bool
    unlabelled: Dataset[Sample] | None = None


class InMemory(Dataset[Sample]):
    """Images (N, C, H, W), uint8 or float in [0, 1], and their labels.

    Args:
        images: as they are stored.
        labels: N of them.
        size: H = W of the images it gives; None leaves them as they are stored.
    """

    def __init__(self, images: Tensor, labels: Labels, size: int | None = None) -> None:
        self.images = images
        self.targets = labels.tolist()
        self.size = None if size == images.shape[-1] else size

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        if self.size:
            from torchvision.transforms.v2.functional import resize

            image = resize(image, [self.size, self.size], antialias=True)
        return image / 255 if image.dtype == torch.uint8 else image, self.targets[index]


def open_data(
    spec: str,
    *,
    image_size: int | None = None,
    seed: int = 0,
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
) -> Data:
    """The data of a name.

    Args:
        spec: "digits" (scikit-learn's, in the package), "cifar10", "cifar100" or "stl10", with
            ":ROOT" if they are not under ``data`` (as torchvision unpacks them; nothing is
            downloaded), or "folder:PATH" with one folder per class under PATH/train and PATH/test.
        image_size: H = W; by default 32 for digits and CIFAR, 96 for STL-10, 224 for a folder.
        seed: of the validation split, and of the train and test split of digits.
        train: the folder of training images, if it is not PATH/train.
        validation: a folder of validation images; without it, a tenth of the training images.
        test: the folder of test images, if it is not PATH/test (or PATH/val).

    Raises:
        ValueError: on another name, missing files, or a test folder whose classes differ.
    """
    name, _, place = spec.partition(":")
    if name not in _OPENERS:
        raise ValueError(
            'data is one of "digits", "cifar10[:ROOT]", "cifar100[:ROOT]", "stl10[:ROOT]" or '
            f'"folder:PATH", got {spec!r}'
        )
    folders = {"train": train, "validation": validation, "test": test}
    if name != "folder" and any(folders.values()):
        raise ValueError(
            f"--train, --val and --test name folders beside folder:PATH, got them with {spec!r}"
        )
    parts, classes = _OPENERS[name](place, image_size, seed, folders)
    if "validation" not in parts:
        whole = parts["train"]
        kept, held_out = stratified(torch.tensor(targets(whole)), seed)
        parts |= {"train": Subset(whole, kept), "validation": Subset(whole, held_out)}
    return Data(name=spec, classes=tuple(classes), natural=name != "digits", **parts)


def targets(dataset: Any) -> list[int]:
    """All labels, without reading an image."""
    if isinstance(dataset, Subset):
        below = targets(dataset.dataset)
        return [below[i] for i in dataset.indices]
    return list(dataset.targets)


def stratified(labels: Labels, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on: a tenth of each class, at most 5,000 in all."""
    share = min(VALIDATION_SHARE, VALIDATION_MOST / len(labels))
    generator = torch.Generator().manual_seed(seed)
    held_out: list[int] = []
    for c in sorted(set(labels.tolist())):
        members = (labels == c).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        # One at least, but never a whole class.
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out += members[order[:count]].tolist()
    gone = set(held_out)
    return [i for i in range(len(labels)) if i not in gone], sorted(held_out)


def batches(dataset: Dataset[Sample], size: int) -> list[tuple[Images, Labels]]:
    """The whole of a dataset, in order, in batches."""
    return [(x, y) for x, y in DataLoader(dataset, batch_size=size)]


def _digits(_: str, image_size: int | None, seed: int, __: Folders) -> Opened:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    images = torch.nn.functional.interpolate(images, size=image_size or 32, mode="bilinear")
    images = images.expand(-1, 3, -1, -1).contiguous()
    labels = torch.tensor(raw.target)
    split = train_test_split(
        torch.arange(len(labels)).numpy(), test_size=500, stratify=raw.target, random_state=seed
    )
    train, test = (InMemory(images[i], labels[i]) for i in split)
    return {"train": train, "test": test}, [str(c) for c in raw.target_names]


def _cifar(classes: int, root: str, image_size: int | None, _: int, __: Folders) -> Opened:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {10: CIFAR10, 100: CIFAR100}[classes]
    place = Path(root or "data")
    if image_size not in (None, 32):
        raise ValueError(
            f"CIFAR-{classes} is 32 x 32, got --image-size {image_size}; use folder:PATH"
        )
    try:
        halves = [kind(str(place), train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        raise _missing(f"CIFAR-{classes}", place, kind.filename, f"cifar{classes}") from error
    train, test = (
        InMemory(torch.from_numpy(h.data).permute(0, 3, 1, 2), torch.tensor(h.targets))
        for h in halves
    )
    return {"train": train, "test": test}, halves[0].classes


def _stl10(root: str, image_size: int | None, _: int, __: Folders) -> Opened:
    from torchvision.datasets import STL10

    below = Path(root or "data") / STL10.base_folder

    def part(name: str, labelled: bool = True) -> InMemory:
        # torchvision's own class reads and hashes all three gigabytes each time.
        pixels = np.memmap(below / f"{name}_X.bin", np.uint8, mode="c").reshape(-1, 3, 96, 96)
        images = torch.from_numpy(pixels).transpose(2, 3)  # stored column by column
        labels = torch.full((len(images),), -1)
        if labelled:
            labels = torch.from_numpy(np.fromfile(below / f"{name}_y.bin", np.uint8)).long() - 1
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images with {len(labels)} labels")
        return InMemory(images, labels, size=image_size)

    try:
        parts = {name: part(name) for name in ("train", "test")}
        parts["unlabelled"] = part("unlabeled", labelled=False)
        classes = (below / STL10.class_names_file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # not there, or cut off
        raise _missing("STL-10", below.parent, STL10.filename, "stl10") from error
    return parts, classes


def _missing(name: str, place: Path, archive: str, spec: str) -> ValueError:
    return ValueError(
        f"no {name} under {place}; unpack {archive} there, or name another place as {spec}:ROOT, "
        "or give images as folder:PATH"
    )


def _folder(path: str, image_size: int | None, _: int, folders: Folders) -> Opened:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    size = image_size or 224
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RGB(),
            v2.Resize(size, antialias=True),
            v2.CenterCrop(size),
            v2.ToDtype(torch.float32, scale=True),
            v2.ToPureTensor(),
        ]
    )
    below = Path(path)
    usual = {"train": below / "train", "test": _first(below / "test", below / "val")}
    places = {part: Path(place) for part, place in folders.items() if place}
    found: dict[str, Any] = {}
    for part, place in {**usual, **places}.items():
        if not place.is_dir():
            raise ValueError(
                f"no folder of {part} images at {place}; folder:PATH needs PATH/train and "
                "PATH/test with one folder per class, or --train and --test"
            )
        found[part] = ImageFolder(str(place), transform)
    classes = found["train"].classes
    for part, dataset in found.items():
        if dataset.classes != classes:
            ours, theirs = set(classes), set(dataset.classes)
            raise ValueError(
                f"train and {part} must have the same classes; only in train: "
                f"{sorted(ours - theirs) or 'none'}, only in {part}: "
                f"{sorted(theirs - ours) or 'none'}"
            )
    return found, classes


def _first(*places: Path) -> Path:
    return next((p for p in places if p.is_dir()), places[0])


Folders: TypeAlias = dict[str, str | None]  # given on the command line, by part
Opened: TypeAlias = tuple[dict[str, Any], Sequence[str]]  # datasets by part, class names

_OPENERS: dict[str, Callable[[str, int | None, int, Folders], Opened]] = {
    "digits": _digits,
    "cifar10": partial(_cifar, 10),
    "cifar100": partial(_cifar, 100),
    "stl10": _stl10,
    "folder": _folder,
}
