"""Training batches, drawn in an order that a resumed run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from advssl.evaluation.data import Sample
from harness.stored import Batch as Batch
from harness.stored import Held, Streamed, in_memory
from harness.stored import pixels as pixels

_EPOCHS = 1_000_003  # more than any run has, so that no two seeds share an order


class Loader:
    """One epoch of shuffled training batches, the last incomplete one left out.

    The order is a function of seed and epoch alone, and ``state_dict`` says how far it has come:
    after ``load_state_dict`` the next iterator goes on with the batch that was next. Lightning
    saves and loads both with its checkpoints. With several ranks, the batches of all ranks
    together are the batches of one rank with a ``world_size`` times larger batch.

    Args:
        dataset: training images, of one size.
        batch_size: of this rank.
        seed: of the order.
        memory_gb: images that take less than that as uint8 are decoded once and kept in memory;
            others are read anew each epoch.
        rank: which part of each epoch is this one's.
        world_size: how many parts there are.
        workers: processes that read images which do not fit in memory.

    Raises:
        ValueError: if there are fewer images than one batch takes.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        batch_size: int,
        *,
        seed: int,
        memory_gb: float = 4.0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> None:
        size = len(dataset)  # type: ignore[arg-type]
        if not 0 < batch_size * world_size <= size:
            raise ValueError(
                f"a batch of {batch_size} on each of {world_size} ranks needs as many images, the "
                f"training set has {size}; take a smaller --batch-size"
            )
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size, self.workers = rank, world_size, workers
        self._size = size
        self._source = in_memory(dataset, memory_gb, watched=rank == 0) or Streamed(dataset)
        self._epoch, self._batch, self._drawn = 0, 0, False

    def __len__(self) -> int:
        return self._size // (self.batch_size * self.world_size)

    def state_dict(self) -> dict[str, int]:
        """Epoch and batch that come next."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was saved."""
        self._epoch, self._batch, self._drawn = state["epoch"], state["batch"], False

    @property
    def sampler(self) -> Loader:
        """Itself: where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Begin ``epoch``, or stay where it is if it has begun.

        Lightning says so before each epoch. From a checkpoint of an epoch's end it loads no state.
        """
        if epoch != self._epoch:
            self._epoch, self._batch, self._drawn = epoch, 0, False

    def __iter__(self) -> Iterator[Batch]:
        # Lightning makes iterators that it never uses: an epoch counts once a batch of it is drawn.
        if self._drawn or self._batch >= len(self):
            self.set_epoch(self._epoch + 1)
        return self._rest()

    def _order(self) -> Sequence[Tensor]:
        """Indices of this rank's batches in this epoch."""
        generator = torch.Generator().manual_seed(self.seed * _EPOCHS + self._epoch)
        order = torch.randperm(self._size, generator=generator)[self.rank :: self.world_size]
        return order[: len(self) * self.batch_size].split(self.batch_size)

    def _rest(self) -> Iterator[Batch]:
        order = self._order()[self._batch :]  # of the epoch that is set when the first is drawn
        batches: Any = (
            (self._source[index] for index in order)
            if isinstance(self._source, Held)
            else DataLoader(
                self._source,
                batch_sampler=[index.tolist() for index in order],
                num_workers=self.workers,
                generator=torch.Generator(),  # or it draws from the global one
            )
        )
        for batch in batches:
            # Before the batch is given: a checkpoint is saved while it is being trained on.
            self._batch, self._drawn = self._batch + 1, True
            yield batch
