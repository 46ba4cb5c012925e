"""Heads: embeddings and dataset indices in, the loss of a self-made classification task out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advssl.clustering import (
    check_finite,
    check_matrix,
    checksum,
    directions,
    k_means,
    nearest,
)
from advssl.distributed import agreeing, from_first_rank, rank
from advssl.indexed import IndexedDataset as IndexedDataset
from advssl.indexed import IndexedSample as IndexedSample
from advssl.indexed import without_index as without_index
from advssl.precision import WideLinear, without_autocast
from advssl.types import (
    Embeddings,
    Reduction,
    check_device,
    check_embeddings,
    check_indices,
    check_reduction,
    described,
    is_matrix,
    reduce,
    seed_of,
    several,
    whole,
)

_FITTED = ("pseudo_labels", "centroids", "fingerprint")  # what ``fit`` makes and checkpoints carry
_DAMAGED = "the checkpoint is damaged or was cast"


class ClusterFitHead(nn.Module):
    r"""Classifies each example's pseudo-labels: its clusters in another network's feature space.

    Each of the numbers of clusters K has its own k-means labels and its own linear classifier::

        ℓ_i = 1/|Ks| Σ_K cross_entropy( W_K z_i + b_K, pseudo_labels[i, K] )

    ``fit`` once on features of the whole dataset, in its order; then call the head in the loop with
    the embeddings of a batch and the batch's dataset indices, which an
    :class:`~advssl.IndexedDataset` gives.

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
        self.heads = nn.ModuleList(WideLinear(in_features, k) for k in self.num_clusters)
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
        index = index.long()  # PyTorch takes uint8 for a mask, and compares no uint16
        _check_range(index, len(self.pseudo_labels))
        labels = self.pseudo_labels[index.to(self.pseudo_labels.device)]
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
        check_device("embeddings", embeddings, next(self.heads.parameters()).device)
        with without_autocast(embeddings.device):
            return [head(embeddings) for head in self.heads]

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
        device = next(self.heads.parameters()).device
        # Values count on rank 0 alone, and before all else: one rank must not raise by itself.
        shape = tuple(features.shape) if is_matrix(features) else described(features)
        held = f"features {shape} for num_clusters {self.num_clusters}"
        with agreeing("fit", lambda: held, device):
            seed = seed_of(seed)
        check_matrix(features)
        size, dim = features.shape
        if max(self.num_clusters) > size:
            raise ValueError(
                f"{max(self.num_clusters)} clusters need as many examples, got {size}; "
                "give features of the whole dataset or a smaller num_clusters"
            )
        # Training cannot use tensors made in inference mode; leaving that mode enables gradients.
        with torch.inference_mode(False), torch.no_grad(), without_autocast(features.device):
            with agreeing("fit", lambda: "clusters", device):
                if rank() == 0:
                    features, scale = directions(features)
                    check_finite(bool(scale.isfinite().all()))
                    centroids = self._cluster(features, scale, seed)
                    labels = nearest(features, centroids, self.num_clusters)
                    fingerprint = torch.tensor([size, dim, checksum(features)], device=device)
                else:
                    with device:
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
        check_matrix(features)
        if not len(features):
            return features.new_empty(0, len(self.num_clusters), dtype=torch.int64)
        if features.shape[1] != self.centroids.shape[1]:
            raise ValueError(
                f"this head was fitted to features of size {self.centroids.shape[1]}, got shape "
                f"{tuple(features.shape)}; take them from the network that fit was given"
            )
        with without_autocast(features.device):
            features, scale = directions(features)
            check_finite(bool(scale.isfinite().all()))
            return nearest(features, self.centroids.to(features.device), self.num_clusters)

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
            [k_means(features, scale, k, generator.manual_seed(seed)) for k in self.num_clusters]
        )

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


def _check_range(index: Tensor, size: int) -> None:
    """Raise before a GPU would assert, which ends the process's use of it."""
    low, high = index.aminmax() if len(index) else (0, 0)
    if low < 0 or high >= size:
        raise ValueError(
            f"index must lie in [0, {size}), the dataset that was clustered, got {int(low)} to "
            f"{int(high)}; wrap that dataset in IndexedDataset, or fit again on this one"
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
