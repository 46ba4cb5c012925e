"""Data: a name to train, validation and test images in [0, 1] with their labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from advssl.types import Images, Labels, check_indices, described, see, whole

if TYPE_CHECKING:
    from PIL.Image import Image

Sample: TypeAlias = tuple[Tensor, int]  # (C, H, W) float32 in [0, 1], class

VALIDATION_SHARE, VALIDATION_MOST = 0.1, 5_000
# Pillow reads some of them only with a plugin: they are then refused by name, not passed over.
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff"),
    *(".webp", ".gif", ".jp2", ".avif", ".heic", ".heif"),
)
_NOT_THEIRS = ("__MACOSX", "@eaDir")  # what archives and servers leave beside the images
_LONGEST = 100  # times the short side


@dataclass(frozen=True)
class Data:
    """What a protocol trains on, selects on and is measured on.

    Attributes:
        name: as given.
        classes: names, in the order of the labels.
        train: without ``validation``.
        validation: a stratified, seeded tenth of the training images, at most 5,000. It is empty
            where no class has a second image.
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
        image = self.images[index]
        if self.size:
            from torchvision.transforms.v2.functional import resize

            image = resize(image, [self.size, self.size], antialias=True)
        # Resized floating point may overshoot by a rounding.
        image = image.float() / 255 if image.dtype == torch.uint8 else image.clamp(0, 1)
        return image, self.targets[index]


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
            downloaded), or "folder:PATH" with one folder per class under PATH/train and PATH/test,
            see :func:`read_image`. What is hidden (".ipynb_checkpoints", "._photo.jpg") or left by
            an archive ("__MACOSX") is neither class nor image.
        image_size: H = W; by default 32 for digits and CIFAR, 96 for STL-10, 224 for a folder.
        seed: of the validation split, and of the train and test split of digits.
        train: the folder of training images, if it is not PATH/train.
        validation: a folder of validation images; without it, a tenth of the training images.
        test: the folder of test images, if it is not PATH/test (or PATH/val).

    Raises:
        ValueError: on another name or size, missing files, a class without images, a test folder
            whose classes differ, or one that is also the training folder.
    """
    name, place = split_spec(spec)
    if image_size is not None:
        image_size = whole("--image-size", image_size, least=1)
    folders = {"train": train, "validation": validation, "test": test}
    if name != "folder" and any(folders.values()):
        raise ValueError(
            f"--train, --val and --test name folders beside folder:PATH, got them with {spec!r}"
        )
    parts, classes = _OPENERS[name](place, image_size, seed, folders)
    if "validation" not in parts:
        everything = parts["train"]
        kept, held_out = stratified(targets(everything), seed)
        parts |= {"train": Subset(everything, kept), "validation": Subset(everything, held_out)}
    return Data(name=spec, classes=tuple(classes), natural=name != "digits", **parts)


def split_spec(spec: str) -> tuple[str, str]:
    """The name of the data and its place, or a ValueError that lists the names there are."""
    name, _, place = spec.partition(":")
    if name not in _OPENERS or (place and name == "digits"):
        raise ValueError(
            'data is one of "digits", "cifar10[:ROOT]", "cifar100[:ROOT]", "stl10[:ROOT]" or '
            f'"folder:PATH", got {spec!r}'
        )
    return name, place


def targets(dataset: Any) -> list[int]:
    """All labels, without reading an image.

    Raises:
        ValueError: of a dataset that has no ``targets``.
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
    return [int(label) for label in dataset.targets]


def stratified(labels: Labels | Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on: a tenth of each class, at most 5,000 in all.

    One at least of each class, but never a whole class: nothing of one with a single image.

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


def batches(dataset: Any, size: int) -> list[tuple[Images, Labels]]:
    """The whole of a dataset, in order, in batches; no random number is drawn."""
    samples = [
        [dataset[i] for i in range(start, min(start + size, len(dataset)))]
        for start in range(0, len(dataset), whole("size", size, least=1))
    ]
    return [
        (torch.stack([x for x, _ in batch]), torch.tensor([int(y) for _, y in batch], device="cpu"))
        for batch in samples
    ]


def _digits(_: str, image_size: int | None, seed: int, __: Folders) -> Opened:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    images = torch.from_numpy(raw.images).float()[:, None] / 16
    images = torch.nn.functional.interpolate(images, size=image_size or 32, mode="bilinear")
    images = images.expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(raw.target)
    split = train_test_split(
        np.arange(len(labels)), test_size=500, stratify=raw.target, random_state=seed
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
        InMemory(torch.from_numpy(h.data).permute(0, 3, 1, 2), h.targets) for h in halves
    )
    return {"train": train, "test": test}, halves[0].classes


def _stl10(root: str, image_size: int | None, _: int, __: Folders) -> Opened:
    from torchvision.datasets import STL10

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
    return parts, classes


def _missing(name: str, place: Path, archive: str, spec: str) -> ValueError:
    return ValueError(
        f"no {name} under {place}; unpack {archive} there, or name another place as {spec}:ROOT, "
        "or give images as folder:PATH"
    )


def _folder(path: str, image_size: int | None, _: int, folders: Folders) -> Opened:
    if not path and not (folders["train"] and folders["test"]):
        raise ValueError("folder:PATH needs a path, or --train and --test; got none")
    below = Path(path)
    usual = {"train": below / "train", "test": _first(below / "test", below / "val")}
    places = usual | {part: Path(place) for part, place in folders.items() if place}
    for part, place in places.items():
        if not place.is_dir():
            raise ValueError(
                f"no folder of {part} images at {place}; folder:PATH needs PATH/train and "
                "PATH/test with one folder per class, or --train and --test"
            )
    found = {part: _Folder(place, image_size or 224) for part, place in places.items()}
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
    return found, classes


class _Folder(Dataset[Sample]):
    """Images in one folder per class, nested as deep as they are.

    Attributes:
        classes: the folders' names, sorted.
        samples: path and label of each image, in the order of torchvision's ``ImageFolder``.
        targets: the labels.
        places: the folders of the classes, with links followed.
    """

    def __init__(self, place: Path, size: int) -> None:
        self.size = size
        self.classes = sorted(f.name for f in place.iterdir() if f.is_dir() and not _hidden(f.name))
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
        from torchvision.transforms.v2 import functional as F

        path, label = self.samples[index]
        image = F.resize(read_image(path), [self.size], antialias=True)
        image = F.to_dtype(F.center_crop(image, [self.size]), torch.float32, scale=True)
        return image.clamp(0, 1), label  # deep pixels may overshoot by a rounding


def _images_below(place: Path) -> list[str]:
    found: list[tuple[str, list[str]]] = []
    for below, folders, files in os.walk(place, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(name)]
        shown = [name for name in files if not _hidden(name)]
        found.append((below, sorted(n for n in shown if n.lower().endswith(IMAGE_ENDINGS))))
    return [os.path.join(below, name) for below, names in sorted(found) for name in names]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _NOT_THEIRS


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """The photograph in a file: (3, H, W), uint8, or float32 in [0, 1] where the file holds more.

    Eight bits are read as they are, 16-bit grey levels over 65535, floating point as [0, 1]; grey
    becomes three equal channels. A photograph is turned upright as its EXIF says. Of several frames
    or pages the first is read. Transparency is dropped, as torchvision does.

    Raises:
        ValueError: with the file's name, if it cannot be read, if its numbers have another range or
            no known one, if nothing but its transparency has a picture, or if it is more than a
            hundred times as long as wide.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            return _pixels(image, opened)
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{os.fspath(path)} is no image, or of a kind that Pillow does not read; remove it, or "
            "store it as PNG" + see("An image that is refused")
        ) from error
    except Exception as error:  # Pillow raises whatever a damaged file leads to
        reason = " ".join(str(error).split()) or type(error).__name__
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
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa"):
        *_, alpha = with_alpha = _bytes(image.convert("RGBA"))
        colours = with_alpha[:3]
        flat = bool((colours == colours[:, :1, :1]).all())
        if flat and bool((alpha != alpha[0, 0]).any()):
            raise ValueError("its picture is in its transparency alone; store it on a background")
        return colours
    return _bytes(image.convert("RGB"))


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
    top = 1.0 if image.mode == "F" else 65535.0
    if not (low >= 0 and high <= top):  # a NaN is neither
        raise ValueError(f"its numbers must lie in [0, {top:g}], got [{low:g}, {high:g}]")
    return (values / top).float()


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
