"""The callback for pseudo-labels, and what makes sure that labels and images belong together."""
# ruff: noqa: ARG002 (what Lightning's hooks are given)

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer
from torch.utils.data import Dataset, Subset

from advssl.heads import ClusterFitHead
from advssl.indexed import IndexedDataset, IndexedSample, without_index
from advssl.integrations.lightning.batches import Batch
from advssl.integrations.lightning.bolts import Term
from advssl.integrations.lightning.extracting import extracted, labels_of, order_of, share_alike
from advssl.integrations.lightning.steps import Calls, TrainingStep
from advssl.integrations.lightning.wrapping import given_back
from advssl.types import (
    Embeddings,
    Images,
    Scalar,
    check_indices,
    check_kind,
    described,
    see,
)

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_LOOKED_AT = 64  # images by which a fitted head is recognised


class ClusterFit(Term):
    """Adds the classification of pseudo-labels: clusters of a feature extractor's outputs.

    Needs the examples' places in the dataset: wrap it in :class:`~advssl.IndexedDataset`. The index
    is taken off the batch again before the module sees it. At the start of ``fit`` the extractor's
    features are clustered, unless the head is fitted already (by hand, or from a checkpoint). In
    every step the head's classifiers take one step on the submodule's outputs, then ``weight``
    times its loss joins the module's. It is logged as "cluster_fit", in nats.

    Args:
        head: its ``in_features`` is the width of the submodule's output, as a critic's.
        extractor: images (B, C, H, W) to features (B, D'); runs in eval mode.
        images: the dataset that is trained on, without augmentation: a ``DataLoader`` of it, which
            is read whole and in the dataset's order whatever its sampler does, the dataset itself,
            or batches in that order. Of a batch that is no tensor the first image is taken.
        on: name of the submodule that is trained to classify, such as "backbone".
        weight: AdvCL's 0.2.
        optimizer: of the head's parameters; None is ``Adam(lr=0.001)``.

    Raises:
        ValueError: where labels and images do not belong together: a training dataset of another
            length than the head's labels, images whose clusters are not what a fitted head says of
            them, images that come in an order that nobody knows, or whose classes say that it is
            another one; several training loaders; a collate function that cannot take the index.

    Reference: Fan et al. 2021, Eqs. 9 and 10, https://arxiv.org/abs/2111.01124
    """

    logged = "cluster_fit"

    def __init__(
        self,
        head: ClusterFitHead,
        extractor: Callable[[Images], Tensor] | None = None,
        images: Iterable[Any] | None = None,
        *,
        on: str,
        weight: float = 0.2,
        optimizer: Optimizer | None = None,
    ) -> None:
        check_kind("head", head, ClusterFitHead)
        if extractor is not None:
            check_kind("extractor", extractor, Callable)
        if isinstance(images, str) or not isinstance(images, Iterable | Dataset | None):
            raise ValueError(
                f"images must be a DataLoader, a dataset or batches, got {described(images)}"
            )
        if optimizer is None:
            optimizer = torch.optim.Adam(head.parameters())
        super().__init__(head, on, weight, optimizer)
        self.head = head
        self.extractor = extractor
        self.images = images
        self._index = torch.empty(0)  # of the batch at hand
        self._bare = False
        self._labels: Tensor | None = None  # the clustered images' own classes, if they have any

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.head.pseudo_labels is not None:
            with given_back(pl_module):
                self._check_labels(self.head.pseudo_labels)
            return
        if self.extractor is None or self.images is None:
            raise ValueError(
                "the head is not fitted; give ClusterFit an extractor and the dataset's "
                "images, or call head.fit(features) before"
            )
        features, self._labels = extracted(self.extractor, self.images)
        self.head.fit(features)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = trainer.train_dataloader
        data = getattr(loader, "dataset", None)
        while isinstance(data, Subset):  # the indices are those of the whole
            data = data.dataset
        if not isinstance(data, IndexedDataset):
            raise ValueError(
                "ClusterFit needs each example's index: the one training DataLoader's dataset must "
                f"be an advssl.IndexedDataset, got {described(loader if data is None else data)}; "
                "of several loaders or datasets give one, of IndexedDataset(ConcatDataset([...]))"
            )
        assert self.head.pseudo_labels is not None
        size = len(self.head.pseudo_labels)
        if size != len(data):
            raise ValueError(
                f"the head has pseudo-labels of {size} images, the training dataset has length "
                f"{len(data)}: they are not the same images in the same order; cluster the very "
                "dataset that IndexedDataset wraps, whole, or fit a fresh head"
                + see("Pseudo-labels of other images")
            )
        ours, theirs = order_of(data), order_of(self.images)
        if ours and theirs and theirs[0] == ours[0] and theirs[1] != ours[1]:
            raise ValueError(
                "the images that were clustered and the training dataset are subsets in different "
                "orders, so labels and images do not belong together; take both subsets with the "
                "same indices, and wrap the training one in IndexedDataset"
            )
        with given_back(pl_module):
            self._look_at_a_sample(loader)
            if self._labels is not None:
                self._check_classes(data, self._labels)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(trainer, "reload_dataloaders_every_n_epochs", 0):
            self.on_train_start(trainer, pl_module)

    def join(self, step: TrainingStep) -> None:
        super().join(step)
        step.clusters = self

    def without_index(self, batch: Batch) -> Batch:
        """The batch as it would be without IndexedDataset; its index is kept for the term."""
        batch, index = without_index(batch, alone=self._bare)
        index = torch.as_tensor(index)
        check_indices(index.numel(), index=index)
        self._index = index
        return batch

    def _look_at_a_sample(self, loader: Any) -> None:
        sample = loader.dataset[0]
        self._bare = isinstance(sample, IndexedSample)
        if getattr(loader, "batch_sampler", None) is None:
            return
        error = failure(loader.collate_fn, sample)
        if error is not None and failure(loader.collate_fn, without_index(sample)[0]) is None:
            raise ValueError(
                "the training DataLoader's collate_fn fails on samples that hold their index "
                f"({error}); write collate_fn=dataset.with_index(collate_fn), dataset being the "
                "IndexedDataset" + see("A collate function and the index")
            ) from error

    def _check_classes(self, data: IndexedDataset, classes: Tensor) -> None:
        """Raise if the images that were clustered are of other classes than those trained on."""
        places = torch.linspace(0, len(data) - 1, min(_LOOKED_AT, len(data)), device="cpu").long()
        samples = (without_index(data[i], alone=self._bare)[0] for i in places.tolist())
        known = [own for own in map(labels_of, samples) if own is not None]
        if len(known) < len(places):
            return
        alike, chance = share_alike(classes[places].tolist(), torch.cat(known).tolist())
        if alike < (1 + chance) / 2:
            raise ValueError(
                "the images that were clustered have other classes than those trained on: "
                f"{alike:.0%} of them are alike, {chance:.0%} would be by chance, so they "
                "stand in another order, or are others; give ClusterFit the very dataset that "
                "IndexedDataset wraps, a loader of it, or images alone where labels are no classes"
                + see("Pseudo-labels of other images")
            )

    def _check_labels(self, labels: Tensor) -> None:
        """Raise if the first images' clusters are, more likely than not, not what the head says."""
        if self.extractor is None or self.images is None or isinstance(self.images, Iterator):
            return
        features, _ = extracted(self.extractor, self.images, enough=_LOOKED_AT)
        found, own = self.head.assign(features).to(labels), labels[: len(features)]
        shares = [label.bincount() / len(labels) for label in labels.T]
        chance = sum(float(share.square().sum()) for share in shares) / len(shares)
        agree = float((found == own).float().mean()) if len(own) == len(found) else 0
        if agree < (1 + chance) / 2:
            raise ValueError(
                f"the head is fitted already, and to other images or in another order: of the "
                f"labels that it has for the first {len(found)} images {agree:.0%} are those of "
                "their clusters; give a fresh head, or the images, extractor and order that it "
                "was fitted with, without augmentation or shuffling"
                + see("Pseudo-labels of other images")
            )

    def term(self, clean: Calls, seen: Calls) -> Scalar:
        weights = {name: p.detach() for name, p in self.head.named_parameters()}
        return functional_call(self.head, weights, self._classified(seen))

    def own_loss(self, clean: Calls, seen: Calls) -> Scalar:
        embeddings, index = self._classified(seen)
        return self.head(embeddings.detach(), index)

    def _classified(self, seen: Calls) -> tuple[Embeddings, Tensor]:
        size = len(self._index)
        if any(len(z) % size for z in seen):
            raise ValueError(
                f"{self.on!r} must return a row per example ({size}), or several times as many "
                f"where views are stacked, got {[tuple(z.shape) for z in seen]}"
            )
        return torch.cat(seen), self._index.repeat(sum(len(z) for z in seen) // size)


def failure(collate_fn: Callable[[list[Any]], Any], sample: Any) -> Exception | None:
    try:
        collate_fn([sample])
    except Exception as error:
        return error
    return None
