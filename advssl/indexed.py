"""Indexed: datasets whose samples hold their own index, which batches and losses take on."""

from __future__ import annotations

import copy
import functools
from collections import namedtuple
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, IterableDataset

from advssl.types import described, see


def has_places(dataset: Any) -> bool:
    """Whether it has a length and a sample at each place below it."""
    places = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return places and not isinstance(dataset, IterableDataset | str)


class IndexedSample(NamedTuple):
    """A sample that is neither a tuple nor a dict, such as one image, beside its index."""

    sample: Any
    index: Any


class IndexedDataset(Dataset[Any]):
    """A map-style dataset whose samples hold their own index, and otherwise are what they were.

    A tuple becomes ``(*sample, index)``; one with named fields keeps them and its class, and
    ``index`` is its last field. A dict has the entry ``"index"`` too. Anything else, a list of
    views, an image or an object of a class of yours, becomes ``(sample, index)``. Where the dataset
    takes a slice or several integers at once, the index is a tensor of as many.

    The dataset is seen through: attributes such as ``classes`` or ``transform`` are read, set and
    deleted in ``dataset``. ``Subset`` and ``random_split`` of an IndexedDataset keep the indices of
    the whole; of several datasets wrap the ``ConcatDataset``, so that no index occurs twice.

    Raises:
        ValueError: for a dataset without a length or without places, such as an iterable one, and
            on reading a dict that has an entry "index" of its own.

    Example:
        A collate function that unpacks samples has no room for the index. :meth:`with_index` keeps
        the index from it and puts it beside the batch; lightly's needs it:

        >>> dataset = IndexedDataset([([torch.zeros(1)] * 2, 7, "a.png")] * 3)
        >>> views, label, name, index = dataset[2]
        >>> def collate(batch):
        ...     return [name for views, label, name in batch]
        >>> keeping = dataset.with_index(collate)
        >>> loader = torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=keeping)
        >>> names, index = next(iter(loader))
        >>> index
        tensor([0, 1, 2])
    """

    dataset: Any

    def __init__(self, dataset: Dataset[Any]) -> None:
        if not has_places(dataset):
            raise ValueError(
                f"the index of a sample needs a dataset with __getitem__ and __len__, "
                f"got {described(dataset)}; wrap the map-style dataset below it"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):  # a column of a table
            return self.dataset[index]
        if isinstance(index, slice | Sequence) or getattr(index, "ndim", 0) != 0:
            places = torch.arange(len(self), device=getattr(index, "device", "cpu"))
            return _indexed(self.dataset[index], places[index])
        index = range(len(self))[index]  # -1 is the last; IndexError ends a for loop
        return _indexed(self.dataset[index], index)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """What a ``DataLoader`` asks for: a batch of samples, in one go where the dataset can."""
        places = [range(len(self))[index] for index in indices]
        together = getattr(self.dataset, "__getitems__", None)
        samples = together(places) if together else (self.dataset[place] for place in places)
        return [_indexed(*pair) for pair in zip(samples, places, strict=True)]

    def with_index(self, collate_fn: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        """A collate function that gives ``(what collate_fn makes of the bare samples, index)``."""
        if not callable(collate_fn):
            raise ValueError(f"collate_fn must be a function, got {described(collate_fn)}")
        return _WithIndex(collate_fn)

    def __getattr__(self, name: str) -> Any:
        # Special methods are never forwarded: while copying or unpickling there is no dataset yet.
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._owns(name):
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)

    def __delattr__(self, name: str) -> None:
        if self._owns(name):
            super().__delattr__(name)
        else:
            delattr(self.dataset, name)

    def _owns(self, name: str) -> bool:
        return name == "dataset" or name.startswith("__") or hasattr(type(self), name)


class _WithIndex:
    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, samples: list[Any]) -> IndexedSample:
        bare, index = zip(*map(without_index, samples), strict=True)
        return IndexedSample(self.collate_fn(list(bare)), torch.tensor(index, device="cpu"))


def _indexed(sample: Any, index: Any) -> Any:
    if isinstance(sample, Mapping):
        if "index" in sample:
            raise ValueError(
                "a sample of the dataset has an entry 'index' of its own, which IndexedDataset "
                "would overwrite; give it another name in the dataset"
            )
        added = copy.copy(sample) if isinstance(sample, MutableMapping) else dict(sample)
        added["index"] = index
        return added
    if not isinstance(sample, tuple):
        return IndexedSample(sample, index)
    if hasattr(sample, "_fields"):
        return _named_with_index(type(sample))(*sample, index)
    return (*sample, index)


def without_index(sample: Any, alone: bool = False) -> tuple[Any, Any]:
    """What :class:`IndexedDataset` made of a sample, or a batch of such, taken apart again.

    Args:
        sample: as :class:`IndexedDataset` gives it, or what a collate function made of several.
        alone: of a plain tuple or list of two the first was no tuple before.

    Returns:
        The sample or batch in the form that it has without IndexedDataset, and its index.
    """
    if isinstance(sample, Mapping) and "index" in sample:
        bare: Any = copy.copy(sample) if isinstance(sample, MutableMapping) else dict(sample)
        return bare, bare.pop("index")
    if not isinstance(sample, tuple | list) or len(sample) < 2:
        raise ValueError(
            f"there is no index in {described(sample)}; it stands last in what IndexedDataset "
            "gives, or under 'index', and the collate function must keep it there: write "
            "DataLoader(dataset, collate_fn=dataset.with_index(collate_fn))"
            + see("A collate function and the index")
        )
    *rest, index = sample
    if isinstance(sample, IndexedSample) or (alone and len(rest) == 1):
        return rest[0], index
    if hasattr(sample, "_fields"):
        cls: Any = getattr(type(sample), "_bare", lambda *values: values)
        return cls(*rest), index
    return type(sample)(rest), index


@functools.cache
def _named_with_index(cls: Any) -> Any:
    """The named tuple ``cls`` with one more field; it goes between processes by ``cls`` alone."""
    name = "index"
    while name in cls._fields:  # the dataset's own, which keeps its name
        name += "_"
    longer = namedtuple(cls.__name__, (*cls._fields, name))  # type: ignore[misc]
    own = {"__slots__": (), "_bare": cls, "__reduce__": lambda s: (_named, (cls, tuple(s)))}
    return type(cls.__name__, (longer, cls), own)


def _named(cls: Any, values: Any) -> Any:
    return _named_with_index(cls)(*values)
