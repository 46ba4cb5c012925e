"""A census: every image that will be used, read once before any work."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from advssl.evaluation.datasets import (
    InMemory,
    check_dataset,
    checked_sample,
    sample_of,
    targets,
    unit_range,
)
from advssl.evaluation.folders import Folder, check_outside
from advssl.evaluation.identity import fingerprint_of, identity_of, keep, kept
from advssl.evaluation.images import read_image
from advssl.evaluation.records import Fingerprint, folder_at
from advssl.evaluation.streams import base_of, ordered, threads_for
from advssl.types import see

if TYPE_CHECKING:
    from advssl.evaluation.data import Data

PARTS = ("train", "validation", "test")
_PAIRS = (("test", "train"), ("validation", "train"), ("validation", "test"))
_SHOWN = 5  # examples of a problem
_DIGEST = 16  # bytes that stand for an image: two that differ share them in no set of this world
_CHUNK, _AHEAD = 16, 64  # images that are read at once, and how many such threads read ahead
_MANY = 4_096  # images for which starting processes pays


@dataclass(frozen=True)
class Repeats:
    """Images that are there again, by their exact pixels as a classifier gets them.

    Attributes:
        count: how many images of the part there are again.
        of: how many images of the part were read.
        other_class: how many of ``count`` are there again under another label.
        examples: names of some, each with that of the image it is again: the path from its part's
            folder, or its place in the part.
    """

    count: int
    of: int
    other_class: int = 0
    examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Census:
    """What data hold.

    Attributes:
        counts: by part, how many images each class has.
        fingerprint: of the test images that were read, see :class:`records.Fingerprint`; empty
            without.
        shape: (C, H, W) of every image.
        repeats: "test in train", "validation in train" and "validation in test", and "train",
            "validation" and "test" for images that stand twice in one part; of the parts read.
        enlarged: images whose short side has fewer pixels than it is given.
    """

    counts: Mapping[str, tuple[int, ...]]
    fingerprint: str
    shape: tuple[int, ...]
    repeats: Mapping[str, Repeats]
    enlarged: int = 0


def checked(
    data: Data,
    *,
    parts: Sequence[str] = PARTS,
    measured: Sequence[int] | None = None,
    folder: str | Path | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Census:
    """Read every image that will be used, once, and say what is wrong with any before any work.

    Args:
        data: images in [0, 1] with labels. Files are read by a process per core, or by a thread
            where processes cannot be forked; what is held of an image is 16 bytes.
        parts: those that are used; a classifier with its own head is measured on "test" alone.
        measured: rows of ``data.test`` that are used; all by default.
        folder: where the census is kept, under the paths, sizes and times of all files, so that a
            second one reads no image. Images in memory are known by their content; a dataset of
            another kind is read again each time.
        progress: called after every few images.

    Raises:
        ValueError: that lists all that makes a number wrong: a part without images, labels that
            are no classes, one class only, a class that is in the training or in the test images
            alone, or else images that cannot be read, are of another shape than the others, or are
            not in [0, 1]. What may be meant, such as images that stand twice, is counted.
    """
    there = {part: getattr(data, part) for part in PARTS if part in parts}
    for part, dataset in there.items():
        check_dataset(f"data.{part}", dataset)
    rows: dict[str, Sequence[int]] = {part: range(len(there[part])) for part in there}
    if measured is not None and "test" in rows:
        rows["test"] = [int(i) for i in measured]
    path, identity = None, ""
    if folder is not None:
        check_outside(there.values(), folder)
        known = [_known(there[part], rows[part]) for part in there]
        identity = identity_of("census", list(data.classes), list(there), known)
        path = None if None in known else Path(folder) / f"census-{identity[:16]}.pt"
    found = path and kept(path, identity)
    if found:
        return _from_plain(found["census"])
    census = _Reading(data.classes, there, rows, progress).census()
    if path:
        folder_at(path.parent)
        keep(path, identity, {"census": asdict(census)})
    return census


def _from_plain(census: dict[str, Any]) -> Census:
    repeats = {
        name: Repeats(**{**r, "examples": tuple(map(tuple, r["examples"]))})
        for name, r in census["repeats"].items()
    }
    return Census(**{**census, "repeats": repeats})


def name_of(part: str, dataset: Any, row: int) -> tuple[str, str]:
    """Of an image: the path of its file, and its name from the part's folder on.

    Both are its place in the part where it has no file.
    """
    dataset, place = base_of(dataset, row)
    files = getattr(dataset, "samples", None)
    file = files[place] if isinstance(files, list) and place < len(files) else None
    file = file[0] if isinstance(file, tuple | list) and file else file
    if not isinstance(file, str | Path):
        return f"{part}[{row}]", f"{part}[{row}]"
    path = os.fspath(file)
    inside = os.path.relpath(path, getattr(dataset, "root", None) or os.path.dirname(path))
    return path, f"{part}/{Path(inside).as_posix()}"


class _Seen(NamedTuple):
    """What is kept of an image: its hash, its pixels as uint8, or what is wrong with it."""

    label: int = -1
    digest: bytes = bytes(_DIGEST)
    shape: tuple[int, ...] = ()
    enlarged: bool = False
    pixels: Any = None  # as NumPy's, which go from one process to another as they are
    wrong: str = ""


class _Looks(Dataset[_Seen]):
    """What is kept of the images in these rows."""

    def __init__(self, dataset: Any, rows: Sequence[int], pixels: bool) -> None:
        self.dataset, self.rows, self.pixels = dataset, rows, pixels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> _Seen:
        return _look(self.dataset, self.rows[i], self.pixels)

    def chunks(self) -> Iterator[list[_Seen]]:
        """All of them, in order."""
        readers = threads_for(self.dataset)
        # Of a small file most is Python's own work, for which threads wait for one another.
        if readers and len(self) > _MANY and sys.platform == "linux" and not _is_daemon():
            yield from DataLoader(
                self,
                _CHUNK,
                num_workers=readers,
                collate_fn=list,
                generator=torch.Generator("cpu"),  # the global one stays as it is
                multiprocessing_context="fork",
            )
        else:
            parts = BatchSampler(range(len(self)), _CHUNK, drop_last=False)
            yield from ordered(lambda part: [self[i] for i in part], parts, readers, _AHEAD)


class _Reading:
    """One pass through all parts."""

    def __init__(
        self,
        classes: Sequence[str],
        there: Mapping[str, Any],
        rows: Mapping[str, Sequence[int]],
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.classes, self.there, self.rows, self.progress = classes, there, rows, progress
        self.total = sum(map(len, rows.values()))
        self.done = self.enlarged = 0
        self.shape: tuple[int, ...] = ()
        self.wrong: list[str] = []
        self.fingerprint = Fingerprint()

    def census(self) -> Census:
        labels = {part: _labels(dataset) for part, dataset in self.there.items()}
        _raise(self._of_labels(labels))
        counts = {p: np.bincount(found, minlength=len(self.classes)) for p, found in labels.items()}
        _raise(self._of_classes(counts))
        digests = {part: self._read(part) for part in self.there}
        _raise(self._of_images())
        chosen = {part: labels[part][np.array(self.rows[part], np.int64)] for part in labels}
        repeats = {
            part if part == other else f"{part} in {other}": self._repeats(
                (part, digests[part], chosen[part]), (other, digests[other], chosen[other])
            )
            for part, other in (*_PAIRS, *((part, part) for part in PARTS))
            if part in digests and other in digests
        }
        return Census(
            counts={part: tuple(count.tolist()) for part, count in counts.items()},
            fingerprint=str(self.fingerprint) if self.rows.get("test") else "",
            shape=self.shape,
            repeats=repeats,
            enlarged=self.enlarged,
        )

    def _of_labels(self, labels: Mapping[str, Any]) -> Iterator[str]:
        for part, found in labels.items():
            other = np.unique(found[(found < 0) | (found >= len(self.classes))]).tolist()
            if other:
                yield (
                    f"{part} has labels of {_some(other)} and the classes are 0 to "
                    f"{len(self.classes) - 1}; leave those images out, or name their classes"
                )

    def _of_classes(self, counts: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with how many images each class has."""
        for part in ("train", "test"):
            present = counts[part].nonzero()[0] if part in counts else (0, 1)
            if len(present) == 0:
                yield f"{part} holds no image; add some"
            elif len(present) == 1:
                only = self.classes[present[0]]
                yield (
                    f"{part} has images of one class only, {only!r}, and whoever always answers "
                    "that one is right; add another class"
                )
        for part, other in (("train", "test"), ("test", "train"), ("validation", "train")):
            if part in counts and other in counts:
                alone = ((counts[part] > 0) & (counts[other] == 0)).nonzero()[0]
                if len(alone):
                    names = _some([repr(self.classes[c]) for c in alone])
                    yield (
                        f"{part} has images of {names} and {other} has none; add some, or take "
                        "the class away"
                    )

    def _read(self, part: str) -> Any:
        """Hashes of a part's images, in order."""
        rows = self.rows[part]
        digests: Any = np.zeros((len(rows), _DIGEST), np.uint8)
        start = 0
        for chunk in _Looks(self.there[part], rows, part == "test").chunks():
            for i, seen in enumerate(chunk, start):
                self._count(part, rows[i], seen)
                digests[i] = np.frombuffer(seen.digest, np.uint8)
            start += len(chunk)
            self.done += len(chunk)
            self.progress("reading images", self.done, self.total)
        return digests.view(f"S{_DIGEST}")[:, 0]

    def _count(self, part: str, row: int, seen: _Seen) -> None:
        wrong = seen.wrong
        if not wrong:
            self.shape = self.shape or seen.shape
            if seen.shape != self.shape:
                wrong = f"it is of shape {seen.shape}, and those before it are of {self.shape}"
        if wrong:
            path, _ = name_of(part, self.there[part], row)
            self.wrong.append(wrong if path in wrong else f"{path}: {wrong}")
        elif seen.pixels is not None:
            pixels, label = torch.from_numpy(seen.pixels), torch.tensor([seen.label], device="cpu")
            self.fingerprint.update(pixels[None], label)
        self.enlarged += seen.enlarged

    def _of_images(self) -> Iterator[str]:
        if self.wrong:
            yield (
                f"{len(self.wrong)} of {self.total} images cannot be used; mend them, or take them "
                f"away: {_some(self.wrong, '; ')}"
            )

    def _repeats(self, one: tuple[str, Any, Any], other: tuple[str, Any, Any]) -> Repeats:
        """The images of ``one`` that ``other`` has too; within one part, those it has before."""
        (part, digests, labels), (among, known, classes) = one, other
        if not len(known):
            return Repeats(0, len(digests))
        order = np.argsort(known, kind="stable")
        first = np.searchsorted(known, digests, sorter=order).clip(max=len(known) - 1)
        first = order[first]  # of equal ones the first in its part
        again = known[first] == digests
        if part == among:
            again &= first != np.arange(len(digests))
        found = again.nonzero()[0]

        def name(part: str, i: int) -> str:
            return name_of(part, self.there[part], self.rows[part][i])[1]

        examples = [(name(part, i), name(among, first[i])) for i in found[:_SHOWN].tolist()]
        differs = int((labels[found] != classes[first[found]]).sum())
        return Repeats(len(found), len(digests), differs, tuple(examples))


def _look(dataset: Any, row: int, pixels: bool) -> _Seen:
    """All that is kept of an image; its pixels if they are asked for."""
    base, place = base_of(dataset, row)
    enlarged = False
    try:
        if type(base) is Folder:
            path, label = base.samples[place]
            read = read_image(path)
            enlarged, image = min(read.shape[1:]) < base.size, base.fitted(read)
        else:
            image, label = checked_sample(base[place])
            _check_range(image)
    except Exception as error:  # of a damaged file, or whatever a user's dataset raises
        told = " ".join(str(error).removesuffix(see("An image that is refused")).split())
        return _Seen(wrong=told or type(error).__name__)
    if image.is_floating_point():  # and in [0, 1], but for what resizing overshoots
        image = (unit_range(image) * 255).round().to(torch.uint8)
    stored = image.contiguous().numpy()
    content = f"{stored.shape}".encode() + stored.tobytes()
    digest = hashlib.blake2b(content, digest_size=_DIGEST).digest()
    return _Seen(label, digest, stored.shape, enlarged, stored if pixels else None)


def _is_daemon() -> bool:
    """Whether this process may have none of its own."""
    return multiprocessing.current_process().daemon


def _check_range(image: Tensor) -> None:
    low, high = (float(end) for end in image.aminmax())
    if not (low >= 0 and high <= 1):  # a NaN is neither
        raise ValueError(f"its numbers must lie in [0, 1], got [{low:.3g}, {high:.3g}]")


def _labels(dataset: Any) -> Any:
    """All labels, without reading an image where that is possible."""
    try:
        labels = targets(dataset)
    except ValueError:
        labels = [sample_of(dataset, i)[1] for i in range(len(dataset))]
    return np.array(labels, np.int64)


def _known(dataset: Any, rows: Sequence[int]) -> str | None:
    """What images and labels are, without decoding one; None of a dataset of unknown kind."""
    bases: dict[int, Any] = {}
    content = hashlib.sha256()
    for row in rows:
        base, place = base_of(dataset, row)
        if type(base) not in (Folder, InMemory):
            return None
        bases[id(base)] = base
        what = f"{place}\0{base.targets[place]}\0"
        if type(base) is Folder:
            what += f"{base.samples[place][0]}\0{_stamp(base.samples[place][0])}\0"
        content.update(what.encode(errors="surrogateescape"))
    for base in bases.values():
        content.update(fingerprint_of(base.size, getattr(base, "images", None)).encode())
    return content.hexdigest()


def _stamp(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:  # which reading it will tell
        return "none"
    return f"{found.st_size} {found.st_mtime_ns}"


def _some(values: Sequence[Any], between: str = ", ") -> str:
    more = len(values) - _SHOWN
    shown = between.join(map(str, values[:_SHOWN]))
    return shown + (f"{between}and {more} more" if more > 0 else "")


def _raise(problems: Iterable[str]) -> None:
    told = list(problems)
    if told:
        raise ValueError("; ".join(told) + see("Data that are refused"))
