"""Heads: embeddings and dataset indices in, the loss of a self-made classification task out."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from advssl.distributed import agree, from_first_rank, rank
from advssl.losses import unit
from advssl.precision import product, wide_linear, widen, without_autocast
from advssl.types import (
    Embeddings,
    Reduction,
    check_embeddings,
    check_indices,
    check_reduction,
    described,
    reduce,
    see,
    several,
    whole,
)

_FITTED = ("pseudo_labels", "centroids", "fingerprint")  # what ``fit`` makes and checkpoints carry
_DAMAGED = "the checkpoint is damaged or was cast"
_BATCH_ELEMENTS = 2**21  # of the largest temporary: 8 MB stays near a CPU's cache
_SAMPLE, _SAMPLE_PER_CLUSTER = 4096, 8  # rows on which k-means starts
_MAX_ITERATIONS = 300
_TOLERANCE = 1e-4  # the relative gain in mean cosine distance below which k-means ends
_SAME = 1e-6  # a cosine distance that float32 cannot tell from 0


class ClusterFitHead(nn.Module):
    r"""Classifies each example's pseudo-labels: its clusters in another network's feature space.

    Each of the numbers of clusters K has its own k-means labels and its own linear classifier::

        ℓ_i = 1/|Ks| Σ_K cross_entropy( W_K z_i + b_K, pseudo_labels[i, K] )

    ``fit`` once on features of the whole dataset, in its order; then call the head in the loop with
    the embeddings of a batch and the batch's dataset indices (:class:`IndexedDataset` gives them).

    The labels, the centroids and a fingerprint of the features travel in ``state_dict`` as tensors.
    They are no buffers: DDP does not broadcast them at every step, and
    :func:`advssl.modes.frozen` does not copy them. ``.to()`` moves them and keeps their types.

    Args:
        in_features: D, the size of the embeddings that are classified.
        num_clusters: one K per linear classifier, each at least 2.

    Attributes:
        pseudo_labels: (N, heads) int64, or None before :meth:`fit`.
        centroids: (ΣK, D of the features) float32 of length 1, all heads' one below the other.
        fingerprint: (3,) int64 on the CPU: N, D and a checksum of the features.

    References:
        Fan et al. 2021, eq. 9 and 10, https://arxiv.org/abs/2111.01124
        Yan et al. 2020 (ClusterFit), https://arxiv.org/abs/1912.03330
    """

    pseudo_labels: Tensor | None
    centroids: Tensor | None
    fingerprint: Tensor | None

    def __init__(
        self, in_features: int, num_clusters: Sequence[int] = (2, 10, 50, 100, 500)
    ) -> None:
        super().__init__()
        self.in_features = whole("in_features", in_features, 1)
        wanted = "a sequence with one K per classifier"
        advice = "; write (10,) for ten clusters alone"
        given = several("num_clusters", num_clusters, wanted, advice)
        self.num_clusters = tuple(whole("num_clusters", k, 2) for k in given)
        if not 0 < len(self.num_clusters) == len(set(self.num_clusters)):
            raise ValueError(
                "num_clusters must be one or more different numbers, each at least 2, "
                f"got {self.num_clusters}; give each K once"
            )
        self.heads = nn.ModuleList(nn.Linear(in_features, k) for k in self.num_clusters)
        self.pseudo_labels = self.centroids = self.fingerprint = None

    def forward(
        self, embeddings: Embeddings, index: Tensor, reduction: Reduction = "mean"
    ) -> Tensor:
        """Cross-entropy against the pseudo-labels of these examples, averaged over the heads.

        Args:
            embeddings: (B, D), of any view of the examples.
            index: (B,) integers, the examples' places in the dataset that was clustered. Leave it
                on the CPU, where a ``DataLoader`` puts it: checking its range elsewhere is a sync.
            reduction: "mean", "sum" or "none", as in PyTorch.

        Returns:
            Scalar, or (B,) with "none", in nats; float32 or float64 also under autocast.
        """
        check_reduction(reduction)
        if self.pseudo_labels is None:
            raise ValueError("this head has no pseudo-labels yet; call fit or load a fitted head")
        check_embeddings(embeddings=embeddings)
        check_indices(len(embeddings), index=index)
        _check_range(index, len(self.pseudo_labels))
        # .long(): PyTorch takes uint8 for a mask.
        labels = self.pseudo_labels[index.long().to(self.pseudo_labels.device)]
        with without_autocast(embeddings.device):
            per_head = [
                F.cross_entropy(logits, target, reduction="none")
                for logits, target in zip(self.logits(embeddings), labels.unbind(1), strict=True)
            ]
            return reduce(torch.stack(per_head).mean(0), reduction)

    def logits(self, embeddings: Embeddings) -> list[Tensor]:
        """(B, D) -> one (B, K) per head, in float32 or float64."""
        check_embeddings(embeddings=embeddings)
        if embeddings.shape[1] != self.in_features:
            raise ValueError(
                f"this head takes embeddings of size {self.in_features}, "
                f"got shape {tuple(embeddings.shape)}; set in_features to the embeddings' size"
            )
        with without_autocast(embeddings.device):
            return [wide_linear(embeddings, *head.parameters()) for head in self.heads]

    def fit(self, features: Tensor, *, seed: int = 0) -> None:
        """Cluster the dataset: spherical k-means for each K, on the features' device.

        Lengths of features do not count, only directions. The features may come from any network:
        their D need not be ``in_features``. Beside them the memory needed is a few numbers per
        example, some small batches and the sample (4096 rows, or 8 K if that is more) on which
        k-means starts. It ends on all rows, when an iteration gains less than 0.01 %.

        With ``torch.distributed`` every rank must call this; rank 0 clusters, the others receive.
        They need the same N and D, no values: ``torch.empty(N, D, device="meta")`` will do there.

        Args:
            features: (N, D) floating point, finite, row i that of dataset[i].
            seed: fixes the result on one kind of device; the global generators are not used.
        """
        seed = whole("seed", seed, -(2**63))
        device = next(self.heads.parameters()).device
        # Values count on rank 0 alone, and before all else: one rank must not raise by itself.
        shape = tuple(features.shape) if _is_matrix(features) else described(features)
        agree("fit", f"features {shape} for num_clusters {self.num_clusters}", device)
        _check_matrix(features)
        size, dim = features.shape
        if max(self.num_clusters) > size:
            raise ValueError(
                f"{max(self.num_clusters)} clusters need as many examples, got {size}; "
                "give features of the whole dataset or a smaller num_clusters"
            )
        # Training cannot use tensors made in inference mode; leaving that mode enables gradients.
        with torch.inference_mode(False), torch.no_grad(), without_autocast(features.device):
            finite = True
            if rank() == 0:
                features, scale = _directions(features)
                finite = bool(scale.isfinite().all())
            _check_finite(bool(from_first_rank(torch.tensor(int(finite), device=device))))
            if rank() == 0:
                centroids = self._cluster(features, scale, seed)
                labels = self._nearest(features, centroids)
                fingerprint = torch.tensor([size, dim, _checksum(features)], device=device)
            else:
                centroids = torch.empty(sum(self.num_clusters), dim, dtype=torch.float32)
                labels = torch.empty(size, len(self.num_clusters), dtype=torch.int64)
                fingerprint = torch.empty(3, dtype=torch.int64)
            self.centroids = from_first_rank(centroids.to(device))
            self.pseudo_labels = from_first_rank(labels.to(device))
            self.fingerprint = from_first_rank(fingerprint.to(device)).cpu()

    @torch.no_grad()
    def assign(self, features: Tensor) -> Tensor:
        """Label features of the kind that :meth:`fit` was given: (M, D) -> (M, heads) int64."""
        if self.centroids is None:
            raise ValueError("this head has no centroids yet; call fit or load a fitted head")
        _check_matrix(features)
        if features.shape[1] != self.centroids.shape[1]:
            raise ValueError(
                f"this head was fitted to features of size {self.centroids.shape[1]}, got shape "
                f"{tuple(features.shape)}; take them from the network that fit was given"
            )
        with without_autocast(features.device):
            features, scale = _directions(features)
            _check_finite(bool(scale.isfinite().all()))
            return self._nearest(features, self.centroids.to(features.device))

    def extra_repr(self) -> str:
        """What the head classifies, and whether it has labels."""
        fit = "not fitted"
        if self.fingerprint is not None:
            fit = "fitted to {} examples of size {}".format(*self.fingerprint[:2].tolist())
        return f"in_features={self.in_features}, num_clusters={self.num_clusters}, {fit}"

    def _cluster(self, features: Tensor, scale: Tensor, seed: int) -> Tensor:
        """Every head's centroids, (ΣK, D); each head draws as if it were alone."""
        generator = torch.Generator(features.device)
        return torch.cat(
            [_k_means(features, scale, k, generator.manual_seed(seed)) for k in self.num_clusters]
        )

    def _nearest(self, features: Tensor, centroids: Tensor) -> Tensor:
        """(M, D) -> (M, heads): the nearest of each head's centroids."""
        heads = list(self.num_clusters)
        labels = []
        for _, x in _batches(features, len(centroids)):
            scores = torch.split(product(x, centroids.mT), heads, dim=1)
            labels.append(torch.stack([s.argmax(1) for s in scores], dim=1))
        return torch.cat(labels)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClusterFitHead:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in ("pseudo_labels", "centroids"):
            value = getattr(self, name)
            if value is not None:
                # Of what ``fn`` does only the move is wanted: no label may become a float.
                setattr(self, name, value.to(fn(value[:0]).device))
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.pseudo_labels is not None:
            destination.update({prefix + name: getattr(self, name) for name in _FITTED})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Runs before the linear classifiers are loaded: what raises here leaves them as they were.
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        found = {n: state_dict[prefix + n] for n in _FITTED if prefix + n in state_dict}
        unexpected_keys[:] = [k for k in unexpected_keys if k not in {prefix + n for n in found}]
        if len(found) == len(_FITTED):
            self._check_loaded(**found)
            self._take(**found)
        elif strict and (found or self.pseudo_labels is not None):
            missing_keys.extend(prefix + n for n in _FITTED if n not in found)

    def _take(self, pseudo_labels: Tensor, centroids: Tensor, fingerprint: Tensor) -> None:
        device = next(self.heads.parameters()).device
        if device.type == "meta":  # load_state_dict(assign=True) is about to replace the weights
            device = pseudo_labels.device
        self.pseudo_labels = pseudo_labels.detach().to(device, torch.int64, copy=True)
        self.centroids = centroids.detach().to(device, torch.float32, copy=True)
        self.fingerprint = fingerprint.detach().to("cpu", torch.int64, copy=True)

    def _check_loaded(self, pseudo_labels: Tensor, centroids: Tensor, fingerprint: Tensor) -> None:
        """Raise unless a checkpoint's entries fit each other, this head, and the data it knows."""
        for name, value in (("pseudo_labels", pseudo_labels), ("centroids", centroids)):
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} must be a tensor, got {described(value)}; {_DAMAGED}")
        size, dim, _ = theirs = _integers(fingerprint)
        heads = len(self.num_clusters)
        if pseudo_labels.shape != (size, heads) or centroids.shape != (sum(self.num_clusters), dim):
            raise ValueError(
                f"for num_clusters={self.num_clusters} and {size} examples of size {dim} a "
                f"checkpoint needs pseudo_labels ({size}, {heads}) and centroids "
                f"({sum(self.num_clusters)}, {dim}), got {tuple(pseudo_labels.shape)} and "
                f"{tuple(centroids.shape)}; make the head with the checkpoint's num_clusters"
            )
        ceiling = torch.tensor(self.num_clusters, device=pseudo_labels.device)
        if not _holds_integers(pseudo_labels) or not centroids.is_floating_point():
            raise ValueError(
                f"pseudo_labels must be integers beside centroids that are floating point, got "
                f"{pseudo_labels.dtype} and {centroids.dtype}; {_DAMAGED}"
            )
        if bool(((pseudo_labels < 0) | (pseudo_labels >= ceiling)).any()):
            raise ValueError(
                f"pseudo_labels must be integers from 0 to K - 1 for K in {self.num_clusters}, got "
                f"{pseudo_labels.min()} to {pseudo_labels.max()}; {_DAMAGED}"
            )
        if not bool(centroids.isfinite().all()):
            raise ValueError(f"centroids must be finite, got inf or nan; {_DAMAGED}")
        if self.fingerprint is not None and (ours := _integers(self.fingerprint)) != theirs:
            raise ValueError(
                f"this head is fitted to {ours[0]} examples of size {ours[1]} (checksum {ours[2]}),"
                f" the checkpoint to {size} of size {dim} (checksum {theirs[2]}), so their labels "
                "are of different data; load it into a fresh head that has not been fitted"
            )


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
        places = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if isinstance(dataset, IterableDataset | str) or not places:
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
            return _indexed(self.dataset[index], torch.arange(len(self))[index])
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
        return IndexedSample(self.collate_fn(list(bare)), torch.tensor(index))


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


def _check_range(index: Tensor, size: int) -> None:
    """Raise before a GPU would assert, which ends the process's use of it."""
    low, high = index.aminmax() if len(index) else (0, 0)
    if low < 0 or high >= size:
        raise ValueError(
            f"index must lie in [0, {size}), the dataset that was clustered, got {int(low)} to "
            f"{int(high)}; wrap that dataset in IndexedDataset, or fit again on this one"
        )


def _is_matrix(features: Any) -> bool:
    return isinstance(features, Tensor) and features.ndim == 2 and features.is_floating_point()


def _check_matrix(features: Tensor) -> None:
    if not _is_matrix(features):
        raise ValueError(
            "features must be floating point of shape (N, D), "
            f"got {described(features)}; flatten(1) a feature map first"
        )


def _check_finite(finite: bool) -> None:
    if not finite:
        raise ValueError(
            "features must have finite rows, got inf or nan; "
            "look at the network or the images they come from"
        )


def _holds_integers(value: Any) -> bool:
    return isinstance(value, Tensor) and not (
        value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
    )


def _integers(fingerprint: Tensor) -> list[int]:
    if not _holds_integers(fingerprint) or fingerprint.shape != (3,):
        raise ValueError(
            "a fingerprint must be 3 integers (N, D, checksum), got "
            f"{described(fingerprint)}; {_DAMAGED}"
        )
    return fingerprint.tolist()


def _batches(features: Tensor, width: int, *, wide: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """Rows, so many that neither they nor ``width`` numbers per row grow large.

    In float32; if ``wide``, in float64 where the features are.
    """
    rows = max(1, _BATCH_ELEMENTS // max(width, features.shape[1]))
    for start in range(0, len(features), rows):
        part = slice(start, start + rows)
        yield part, widen(features[part]) if wide else features[part].float()


def _directions(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features of these directions and what makes each row a unit vector: 0 for a zero row.

    The features are those given, unless a row is so long or short that float32 does not hold its
    square; then they are a copy at length one. A row that is not finite has the scale nan.
    """
    peaks = torch.cat([x.abs().amax(1) for _, x in _batches(features, 1, wide=True)])
    if bool(((peaks > 1e15) | ((peaks < 1e-15) & (peaks > 0))).any()):
        features = torch.cat([unit(x).float() for _, x in _batches(features, 1, wide=True)])
    lengths = torch.cat([x.norm(dim=1) for _, x in _batches(features, 1)])
    return features, torch.where(lengths.isfinite(), 1 / lengths, torch.nan).masked_fill(
        lengths == 0, 0
    )


def _checksum(features: Tensor) -> int:
    """The first 8 bytes of the sha256 of the features as float32."""
    digest = hashlib.sha256()
    for _, x in _batches(features, 1):
        digest.update(x.cpu().numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


def _k_means(features: Tensor, scale: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Spherical k-means on a sample, then from there on all rows: (N, D) -> (k, D) of length 1."""
    order = torch.randperm(len(features), generator=generator, device=features.device)
    drawn = order[: max(_SAMPLE, _SAMPLE_PER_CLUSTER * k)]
    sample = features[drawn].float() * scale[drawn, None]
    centroids = _plus_plus(sample, k, generator)
    # Most iterations are spent finding the clusters, for which few rows will do.
    centroids = _iterate(sample, scale[drawn].sign(), centroids)
    return _iterate(features, scale, centroids)


def _iterate(features: Tensor, scale: Tensor, centroids: Tensor) -> Tensor:
    """Lloyd's iterations until they converge: (k, D) -> (k, D) of length 1."""
    before = float("inf")
    for _ in range(_MAX_ITERATIONS):
        sums, distances = _lloyd(features, scale, centroids)
        lengths = sums.norm(dim=1, keepdim=True)
        empty = (lengths == 0).squeeze(1).nonzero().squeeze(1)
        worst = distances.topk(len(empty))
        # Points on top of a centroid are no place for another: k may exceed the distinct points.
        adrift = worst.indices[worst.values > _SAME]
        now = distances.mean().item()
        if not len(adrift) and before - now <= _TOLERANCE * now:
            break
        before = now
        centroids = torch.where(lengths > 0, sums / lengths, centroids)
        centroids[empty[: len(adrift)]] = features[adrift].float() * scale[adrift, None]
    return centroids


def _lloyd(features: Tensor, scale: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Each centroid's sum of nearest unit vectors (k, D), each row's cosine distance to it (N,).

    Among unit vectors ‖x - c‖² = 2 - 2 x·c, so the nearest centroid has the largest product, also
    with a row that was not made unit-length first. A zero row counts nowhere: distance 0.
    """
    sums = torch.zeros_like(centroids)
    closest = torch.empty_like(scale)
    for part, x in _batches(features, len(centroids)):
        closest[part], labels = product(x, centroids.mT).max(1)
        # embedding_bag, not index_add_, whose order of addition is random on a GPU.
        labels, order = labels.sort(stable=True)
        starts = torch.searchsorted(labels, torch.arange(len(centroids), device=x.device))
        weights = scale[part][order]
        sums += F.embedding_bag(order, x, starts, mode="sum", per_sample_weights=weights)
    return sums, scale.sign() - closest * scale


def _plus_plus(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: (N, D) of length 1 (or 0: never drawn) -> k of the rows.

    Of a few candidates, drawn in proportion to their distance from what is chosen already (among
    unit vectors the squared distance of k-means++), keep the one that lowers the sum most.

    Reference: Arthur & Vassilvitskii 2007, k-means++: the advantages of careful seeding.
    """
    candidates = min(2 + int(math.log(k)), len(x))
    distances = x.norm(dim=1)
    chosen = []
    for _ in range(k):
        # The largest of weight / exponential noise: draws by weight, and without a cumulative sum.
        noise = torch.empty_like(distances).exponential_(generator=generator)
        drawn = x[(distances / noise).topk(candidates).indices]
        then = torch.minimum(distances, (1 - product(drawn, x.mT)).clamp_min_(0))
        best = then.sum(1).argmin()
        distances = then[best]
        chosen.append(drawn[best])
    return torch.stack(chosen)
