"""Features: what a frozen encoder answers, made once, in a stream; and how a probe reads them."""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from advssl.distributed import gather, rank, world_size
from advssl.evaluation.batches import check_batch
from advssl.evaluation.identity import identity_of, keep, kept, whole_file
from advssl.evaluation.memory import room, size
from advssl.evaluation.progress import Progress, ignored
from advssl.evaluation.provenance import folder_at
from advssl.evaluation.sharing import on_all_ranks
from advssl.evaluation.streams import SMALL, in_parts
from advssl.types import Images, Labels

Encode: TypeAlias = Callable[[Images], Tensor]  # to (B, D), float32

_SIZE = 256  # images in a batch
_AROUND = 2**16  # bytes that the system reads at most around those that are asked for


class Mapped(TensorDataset):
    """Features in a memory map, and their labels, of which little is in memory at once.

    Args:
        values: (N, D) float32, in a map of a file that nobody writes.
        labels: (N,) int64.
    """

    def __init__(self, values: Any, labels: Labels) -> None:
        super().__init__(torch.from_numpy(values), labels)
        self._map, self._read = values._mmap, 0

    def was_read(self, rows: int) -> None:
        """Count what was copied from the map; what counts as memory never passes 256 MB."""
        self._read += rows * (4 * self.tensors[0].shape[1] + _AROUND)
        if self._read > SMALL and hasattr(mmap, "MADV_DONTNEED"):  # else the system does
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0


def featurised(
    encode: Encode,
    dataset: Dataset[Any],
    width: int,
    device: torch.device,
    *,
    folder: Path | None = None,
    depends: tuple[Any, ...] = (),
    progress: Progress = ignored,
) -> TensorDataset:
    """The features (N, D), float32, and the labels of a dataset, in its order, made in one pass.

    Held at once are a batch of 256 images, those that are read ahead of it, and their features. The
    features are in a memory map: of a file in ``folder``, else of one without a name among the
    system's temporary files (``TMPDIR``), or in memory where they are less than 256 MB. Of a map
    no more than that is in memory at once, as long as it is read by :func:`read`. With several
    processes each makes its share of the batches, and all have all features, which are those of
    one process.

    Args:
        encode: a batch of images on ``device`` to features (B, D).
        dataset: of images and labels.
        width: D.
        device: of the encoder.
        folder: where features are kept under their identity, for every probe that reads them: as
            ``features-….npy``, with the labels and a digest in ``features-….pt``. Damaged files
            count as none. It may be shared by the processes or not.
        depends: all that features and labels depend on, besides packages and device.
        progress: called after every batch that is made.

    Raises:
        ValueError: on images, labels or an encoder that cannot be read, on features that are not
            finite, and before the work on more features than there is room for.
        RuntimeError: on all other processes, if one of them raises.
    """
    shape = len(dataset), width  # type: ignore[arg-type]
    made = partial(_made, encode, dataset, width, device, progress)
    if folder is not None and len(dataset):  # type: ignore[arg-type]
        identity = identity_of("features", device.type, shape, depends)
        path = folder / f"features-{identity[:16]}.npy"
        found = _kept(path, identity, shape, device)
        if found is None:
            on_all_ranks(partial(_check_room, folder, shape))
            if rank() == 0:
                _keep(path, identity, shape, made())
            else:
                deque(made(), maxlen=0)
            found = _kept(path, identity, shape, device)
        if found is not None:
            return found
    # Without a folder, or one that is not the same to all, each holds its own.
    if 4 * shape[0] * width <= SMALL:
        none = torch.empty(0, width, device="cpu"), torch.empty(0, dtype=torch.int64, device="cpu")
        features, labels = zip(none, *made(), strict=True)
        return TensorDataset(torch.cat(features), torch.cat(labels))
    on_all_ranks(partial(_check_room, Path(tempfile.gettempdir()), shape))
    with tempfile.TemporaryFile() as file:
        known, _ = _written(file, made())
        file.flush()
        return Mapped(np.memmap(file, np.float32, mode="c", shape=shape), known)


def _check_room(folder: Path, shape: tuple[int, int]) -> None:
    folder_at(folder)
    (count, width), there = shape, room(folder)
    if 4 * count * width > there:
        raise ValueError(
            f"features of {count:,} images, {width:,} numbers each, take {size(4 * count * width)} "
            f"and {folder} has room for {size(there)}; give a folder on a larger disk (TMPDIR is "
            f"that of what is not kept), or {there // (4 * width):,} images at most"
        )


def _made(
    encode: Encode, dataset: Any, width: int, device: torch.device, progress: Progress
) -> Iterator[tuple[Tensor, Labels]]:
    """Features and labels of every batch, in order; each made by one process, given to all."""
    rows = torch.split(torch.arange(len(dataset), device="cpu"), _SIZE)
    own = read(dataset, rows[rank() :: world_size()])
    for first in range(0, len(dataset) and len(rows), world_size()):
        sizes = [len(part) for part in rows[first : first + world_size()]]
        features = torch.zeros(_SIZE, width, device=device)
        labels = torch.zeros(_SIZE, dtype=torch.int64, device=device)
        error: Exception | None = None
        try:
            if rank() < len(sizes):
                images, classes = next(own)
                features[: len(images)] = encode(images.to(device))
                labels[: len(images)] = classes
        except Exception as raised:
            error = raised
        if not _everywhere(error is None, device):
            raise error or RuntimeError("another process could not make its features")
        features, labels = gather(features), gather(labels)
        for place, count in enumerate(sizes):
            batch = slice(place * _SIZE, place * _SIZE + count)
            check_finite(features[batch])
            yield features[batch].cpu(), labels[batch].cpu()
            progress("features", first + place + 1, len(rows))


def _everywhere(here: bool, device: torch.device) -> bool:
    """Whether it is so in every process."""
    return bool(gather(torch.tensor([here], dtype=torch.uint8, device=device)).all())


def _written(file: IO[bytes], batches: Iterable[tuple[Tensor, Labels]]) -> tuple[Labels, str]:
    """Write the features one after the other; the labels, and a digest of the features."""
    digest, labels = hashlib.sha256(), [torch.empty(0, dtype=torch.int64, device="cpu")]
    for features, classes in batches:
        written = features.contiguous().numpy().data
        digest.update(written)
        file.write(written)
        labels.append(classes)
    return torch.cat(labels), digest.hexdigest()


def _keep(
    path: Path, identity: str, shape: tuple[int, int], batches: Iterable[tuple[Tensor, Labels]]
) -> None:
    header = {"descr": npy.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
    with whole_file(path) as partial, partial.open("wb") as file:
        npy.write_array_header_1_0(file, {**header, "shape": shape})
        labels, digest = _written(file, batches)
    keep(path.with_suffix(".pt"), identity, {"labels": labels, "digest": digest})


def _kept(
    path: Path, identity: str, shape: tuple[int, int], device: torch.device
) -> TensorDataset | None:
    """What every process finds there; None if one does not."""
    found = _read_whole(path, identity, shape)
    return found if _everywhere(found is not None, device) else None


def _read_whole(path: Path, identity: str, shape: tuple[int, int]) -> TensorDataset | None:
    told = kept(path.with_suffix(".pt"), identity)
    try:
        values = np.load(path, mmap_mode="c")
        if told is None or (values.shape, values.dtype) != (shape, np.float32):
            return None
        found, digest = Mapped(values, told["labels"]), hashlib.sha256()
        for features, _ in in_order(found):
            digest.update(features.numpy().data)
    except Exception:  # not there, or not whole
        return None
    return found if digest.hexdigest() == told["digest"] else None


def check_finite(features: Tensor) -> None:
    if not features.isfinite().all():
        raise ValueError(
            "the encoder's features are not finite, and no probe reads NaN or infinity; look "
            "whether its pretraining diverged"
        )


def in_order(dataset: Any, batch_size: int = _SIZE) -> Iterator[tuple[Tensor, Labels]]:
    rows = torch.arange(len(dataset), device="cpu")
    return read(dataset, torch.split(rows, batch_size))


def shuffled(
    dataset: Any, batch_size: int, order: torch.Generator
) -> Iterator[tuple[Tensor, Labels]]:
    rows = torch.randperm(len(dataset), generator=order, device="cpu")
    return read(dataset, parts(rows, batch_size))


def parts(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Batches of a training: one example left over joins the last."""
    found = list(torch.split(rows, batch_size))
    if len(found) > 1 and len(found[-1]) == 1 < batch_size:
        found[-2:] = [torch.cat(found[-2:])]
    return found


def read(dataset: Any, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Labels]]:
    """Batches of features and labels, or of images and labels, those checked; on the CPU."""
    if isinstance(dataset, TensorDataset) and dataset.tensors[0].ndim == 2:
        for part in filter(len, rows):
            yield dataset.tensors[0][part], dataset.tensors[1][part]
            if isinstance(dataset, Mapped):
                dataset.was_read(len(part))
        return
    for images, labels in in_parts(dataset, (part.tolist() for part in rows)):
        images = images.float()
        check_batch(images, labels)
        yield images, labels
