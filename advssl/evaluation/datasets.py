"""Datasets: labelled images in memory, what their labels say, and the known ones by name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from advssl.extras import needed
from advssl.indexed import has_places
from advssl.types import Images, Labels, check_indices, described, whole

Sample: TypeAlias = tuple[Tensor, int]  # (C, H, W) float32 in [0, 1], class

VALIDATION_SHARE, VALIDATION_MOST = 0.1, 5_000


class Opened(NamedTuple):
    """Datasets by part, the classes' names, H = W of the images and a sentence on why."""

    parts: dict[str, Any]
    classes: Sequence[str]
    image_size: int
    size_because: str


class InMemory(Dataset[Sample]):
    """Images (N, C, H, W), uint8 or float in [0, 1], and their labels.

    Args:
        images: a tensor or an array, as they are stored; floating point is kept as float32.
        labels: N integers; -1 is none, for images that are only pretrained on.
        size: H = W of the images it gives; None leaves them as they are stored.

    Raises:
        ValueError: on images of another shape, type or range, or on other labels.
    """

    def __init__(
        self, images: Images, labels: Labels | Sequence[int], size: int | None = None
    ) -> None:
        self.images = _stored(images)
        labels = _tensor("labels", labels)
        labels = labels if labels.numel() else labels.long()  # of an empty list it is no integer
        check_indices(len(self.images), labels=labels)
        self.targets: list[int] = labels.tolist()
        if min(self.targets, default=0) < -1:
            raise ValueError(
                f"labels are classes from 0 on, or -1 for none, got {min(self.targets)}"
            )
        size = None if size is None else whole("size", size, least=1)
        self.size = None if tuple(self.images.shape[-2:]) == (size, size) else size

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        images, (label,) = self.gathered([index])
        return images[0], label

    def gathered(self, rows: Sequence[int]) -> tuple[Images, list[int]]:
        """Several samples at once: (B, C, H, W) float32 in [0, 1], and their classes."""
        images = self.images[torch.tensor(rows, device="cpu")]
        if self.size:
            functional = needed("torchvision.transforms.v2.functional")
            images = functional.resize(images, [self.size, self.size], antialias=True)
        return unit_range(images), [self.targets[i] for i in rows]


def unit_range(images: Images) -> Images:
    """Images as they are stored, uint8 or floating point in [0, 1], as float32 in [0, 1]."""
    # Resized floating point may overshoot by a rounding.
    return images.float() / 255 if images.dtype == torch.uint8 else images.clamp(0, 1)


def _tensor(name: str, values: Any) -> Tensor:
    """A tensor, array or list as a tensor, where torch's default device has no say."""
    if isinstance(values, Tensor):
        return values
    try:
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, got {described(values)}") from error


def _stored(images: Any) -> Images:
    images = _tensor("images", images)
    seen = f"{images.dtype} of shape {tuple(images.shape)}"
    if images.ndim != 4:
        raise ValueError(
            f"images must be (N, C, H, W), got {seen}; grey ones (N, H, W) are images[:, None]"
        )
    _, channels, height, width = images.shape
    if width in (1, 3, 4) and channels > 4 and height != width:
        raise ValueError(
            f"images must be (N, C, H, W), got {seen}; if that is (N, H, W, C), pass "
            "images.permute(0, 3, 1, 2)"
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(
            f"images must be uint8, or floating point in [0, 1], got {seen}; pass "
            "images.to(torch.uint8) if they are grey levels from 0 to 255"
        )
    if images.numel():
        low, high = (float(end) for end in images.aminmax())
        if not (low >= 0 and high <= 1):  # a NaN is neither
            raise ValueError(
                f"images of {images.dtype} must lie in [0, 1], got [{low:.3g}, {high:.3g}]; "
                "divide grey levels by 255, and leave normalisation to the classifier"
            )
    return images.float()


def targets(dataset: Any) -> list[int]:
    """All labels, without reading an image.

    Raises:
        ValueError: of a dataset that has no ``targets``, or others than whole numbers.
    """
    if isinstance(dataset, Subset):
        below = targets(dataset.dataset)
        return [below[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [label for part in dataset.datasets for label in targets(part)]
    if not hasattr(dataset, "targets"):
        raise ValueError(
            f"a dataset needs its labels as .targets, got a {type(dataset).__name__} without; put "
            "images and labels into InMemory"
        )
    return [_class("each of a dataset's .targets", label) for label in dataset.targets]


def _class(name: str, label: Any) -> int:
    with suppress(TypeError, ValueError, OverflowError, RuntimeError):
        if (plain := int(label)) == label:
            return plain
    raise ValueError(
        f"{name} must be a whole number, got {described(label)}; number the classes from 0 on"
    )


def check_dataset(name: str, value: Any) -> None:
    """Raise unless it has a length, and a sample at each place."""
    if not has_places(value):
        raise ValueError(
            f"{name} must be a dataset with __getitem__ and __len__, got {described(value)}; one "
            "without images is Subset(train, [])"
        )


def sample_of(dataset: Any, row: int) -> Sample:
    """A sample of a dataset of any kind.

    Raises:
        ValueError: unless it is an image (C, H, W), floating point, and its class.
    """
    sample = dataset[row]
    try:
        return checked_sample(sample)
    except ValueError as error:
        raise ValueError(f"sample {row} of the {type(dataset).__name__}: {error}") from None


def checked_sample(sample: Any) -> Sample:
    """``sample``, with its class as a plain int; else raise."""
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise ValueError(
            f"it must be a pair of image and label, got {described(sample)}; let __getitem__ "
            "return (image, label)"
        )
    image, label = sample
    if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
        raise ValueError(
            f"it must be (C, H, W), floating point, got {described(image)}; torchvision's "
            "ToTensor() makes that of photographs and arrays"
        )
    return image, _class("its label", label)


def shape_of(dataset: Any) -> tuple[int, ...]:
    """(C, H, W) of the first image."""
    image, _ = sample_of(dataset, 0)
    return tuple(image.shape)


def stratified(labels: Labels | Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on: a tenth of each class, at most 5,000 in all.

    One at least of each class, but never a whole class: nothing of one with a single image. Each
    class's part is rounded, so that of many classes it may be a few more.

    Raises:
        ValueError: on no labels, or on one that is no class.
    """
    labels = _tensor("labels", labels)
    if not len(labels):
        raise ValueError("a split needs labels, got none")
    check_indices(len(labels), labels=labels)
    labels = labels.cpu().long()
    if int(labels.min()) < 0:
        raise ValueError(f"a split needs classes from 0 on, got a label of {int(labels.min())}")
    share = min(VALIDATION_SHARE, VALIDATION_MOST / len(labels))
    generator = torch.Generator("cpu").manual_seed(seed)
    held_out: list[int] = []
    for c in sorted(set(labels.tolist())):
        members = (labels == c).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator, device="cpu")
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out += members[order[:count]].tolist()
    gone = set(held_out)
    return [i for i in range(len(labels)) if i not in gone], sorted(held_out)


def open_digits(image_size: int | None, seed: int) -> Opened:
    """scikit-learn's digits, in three equal channels, 500 of them to test on."""
    datasets, selection = (needed(f"sklearn.{part}") for part in ("datasets", "model_selection"))
    raw = datasets.load_digits()
    images = torch.from_numpy(raw.images).float()[:, None] / 16
    size = image_size or 32
    images = torch.nn.functional.interpolate(images, size=size, mode="bilinear")
    images = images.expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(raw.target)
    split = selection.train_test_split(
        np.arange(len(labels)), test_size=500, stratify=raw.target, random_state=seed
    )
    train, test = (InMemory(images[i], labels[i]) for i in split)
    because = "digits are 8 x 8, enlarged to 32 for encoders of CIFAR's size"
    names = [str(c) for c in raw.target_names]
    return Opened({"train": train, "test": test}, names, size, because)


def open_cifar(classes: int, root: str, image_size: int | None) -> Opened:
    """CIFAR-10 or CIFAR-100, as torchvision unpacks it.

    Raises:
        ValueError: if it is not there, or for another size than its own.
    """
    kind = getattr(needed("torchvision.datasets"), f"CIFAR{classes}")
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
        InMemory(torch.from_numpy(h.data).permute(0, 3, 1, 2), h.targets) for h in halves
    )
    because = f"the images of CIFAR-{classes} are 32 x 32"
    return Opened({"train": train, "test": test}, halves[0].classes, 32, because)


def open_stl10(root: str, image_size: int | None) -> Opened:
    """STL-10 with its unlabelled images, as torchvision unpacks it.

    Raises:
        ValueError: if it is not there, or cut off.
    """
    STL10 = needed("torchvision.datasets").STL10
    below = Path(root or "data") / STL10.base_folder

    def part(name: str, labelled: bool = True) -> InMemory:
        # torchvision's own class reads and hashes all three gigabytes each time.
        pixels = np.memmap(below / f"{name}_X.bin", np.uint8, mode="c").reshape(-1, 3, 96, 96)
        images = torch.from_numpy(pixels).transpose(2, 3)  # stored column by column
        labels = [-1] * len(images)
        if labelled:
            labels = [c - 1 for c in (below / f"{name}_y.bin").read_bytes()]
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images with {len(labels)} labels")
        return InMemory(images, labels, size=image_size)

    try:
        parts = {name: part(name) for name in ("train", "test")}
        parts["unlabelled"] = part("unlabeled", labelled=False)
        classes = (below / STL10.class_names_file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # not there, or cut off
        raise _missing("STL-10", below.parent, STL10.filename, "stl10") from error
    return Opened(parts, classes, image_size or 96, "the images of STL-10 are 96 x 96")


def _missing(name: str, place: Path, archive: str, spec: str) -> ValueError:
    return ValueError(
        f"no {name} under {place}; unpack {archive} there, or name another place as {spec}:ROOT, "
        "or give images as folder:PATH"
    )
