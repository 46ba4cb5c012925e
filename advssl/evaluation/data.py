"""Data: a name to train, validation and test images in [0, 1] with their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal, TypeAlias

from torch.utils.data import Dataset, Subset

from advssl.evaluation.census import Census as Census
from advssl.evaluation.census import checked as checked
from advssl.evaluation.choices import split_spec as split_spec
from advssl.evaluation.datasets import VALIDATION_MOST as VALIDATION_MOST
from advssl.evaluation.datasets import VALIDATION_SHARE as VALIDATION_SHARE
from advssl.evaluation.datasets import InMemory as InMemory
from advssl.evaluation.datasets import Opened, open_cifar, open_digits, open_stl10, shape_of
from advssl.evaluation.datasets import Sample as Sample
from advssl.evaluation.datasets import stratified as stratified
from advssl.evaluation.datasets import targets as targets
from advssl.evaluation.folders import open_folders
from advssl.evaluation.images import IMAGE_ENDINGS as IMAGE_ENDINGS
from advssl.evaluation.images import read_image as read_image
from advssl.evaluation.streams import Stream as Stream
from advssl.evaluation.streams import batches as batches
from advssl.types import seed_of, several, whole

Part: TypeAlias = Literal["train", "validation", "test"]
_FLOAT = 4  # bytes
# One split whatever a training's seed is: what an encoder was pretrained on never becomes a test
# image.
SPLIT = 0


@dataclass(frozen=True)
class Data:
    """What a protocol trains on, selects on and is measured on.

    Attributes:
        name: as given.
        classes: names, in the order of the labels; one that comes again, as ImageNet's "crane", is
            followed by its label.
        train: without ``validation``.
        validation: a stratified, seeded tenth of the training images, at most 5,000. It is empty
            where no class has a second image.
        test: never trained on and never selected on.
        natural: photographs, which may be mirrored and shifted; digits may not.
        unlabelled: more images to pretrain on, labelled -1, where the dataset has them (STL-10).
        image_size: H = W of the images; None if whoever made the data did not say.
        size_because: one sentence on why that size.
        folders: the folders that were named apart from ``name``, by part.
    """

    name: str
    classes: tuple[str, ...]
    train: Dataset[Sample]
    validation: Dataset[Sample]
    test: Dataset[Sample]
    natural: bool
    unlabelled: Dataset[Sample] | None = None
    image_size: int | None = None
    size_because: str = ""
    folders: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [str(name) for name in several("classes", self.classes, "a list of names")]
        shared = {name for name, count in Counter(names).items() if count > 1}
        told = (f"{name} ({i})" if name in shared else name for i, name in enumerate(names))
        object.__setattr__(self, "classes", tuple(told))

    @property
    def spec(self) -> str:
        """What :func:`open_data` opens it by."""
        return self.name

    def memory(self, part: Part) -> int:
        """The bytes that all images of a part take as float32, as :func:`batches` holds them."""
        dataset = getattr(self, part)
        return len(dataset) and len(dataset) * prod(shape_of(dataset)) * _FLOAT


def open_data(
    spec: str,
    *,
    image_size: int | None = None,
    seed: int = SPLIT,
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
) -> Data:
    """The data of a name. Of a folder no image is read, but the headers of a few.

    Args:
        spec: "digits" (scikit-learn's, in the package), "cifar10", "cifar100" or "stl10", with
            ":ROOT" if they are not under ``data`` (as torchvision unpacks them; nothing is
            downloaded), or "folder:PATH" with one folder per class under PATH/train and PATH/test,
            see :func:`read_image`. What is hidden (".ipynb_checkpoints", "._photo.jpg") or left by
            an archive ("__MACOSX") is neither class nor image.
        image_size: H = W; by default 32 for digits and CIFAR, 96 for STL-10. For a folder it is
            then the short side of the size that nine in ten images share, if that is at most 512,
            and else 224.
        seed: of the validation split, and of the train and test split of digits.
        train: the folder of training images, if it is not PATH/train.
        validation: a folder of validation images; without it, a tenth of the training images.
        test: the folder of test images, if it is not PATH/test (or PATH/val).

    Raises:
        ValueError: on another name or size, missing files, a class without images, a test folder
            whose classes differ, or one that is also the training folder.
    """
    name, place = split_spec(spec)
    seed = seed_of(seed, range(2**32))
    if image_size is not None:
        image_size = whole("--image-size", image_size, least=1)
    folders = {"train": train, "validation": validation, "test": test}
    if name != "folder" and any(folders.values()):
        raise ValueError(
            f"--train, --val and --test name folders beside folder:PATH, got them with {spec!r}"
        )
    opened = _opened(name, place, image_size, seed, folders)
    parts = opened.parts
    if "validation" not in parts:
        everything = parts["train"]
        kept, held_out = stratified(targets(everything), seed)
        parts |= {"train": Subset(everything, kept), "validation": Subset(everything, held_out)}
    return Data(
        name=spec,
        classes=tuple(opened.classes),
        natural=name != "digits",
        image_size=opened.image_size,
        size_because=opened.size_because if image_size is None else "that size was asked for",
        folders={part: place for part, place in folders.items() if place},
        **parts,
    )


def _opened(
    name: str, place: str, image_size: int | None, seed: int, folders: Mapping[str, str | None]
) -> Opened:
    match name:
        case "digits":
            return open_digits(image_size, seed)
        case "cifar10" | "cifar100":
            return open_cifar(int(name.removeprefix("cifar")), place, image_size)
        case "stl10":
            return open_stl10(place, image_size)
    return open_folders(place, image_size, folders)
