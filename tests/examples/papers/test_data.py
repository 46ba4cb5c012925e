"""Batches of every image once per epoch, in an order that a resumed run goes on exactly."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import ConcatDataset, Subset

from advssl.evaluation.data import InMemory, open_data, targets
from harness.data import Batch, Loader, pixels
from harness.stored import in_memory

SIZE = 23


def dataset(size: int = SIZE) -> InMemory:
    """Image i is i all over, its label i mod 3."""
    images = torch.arange(size, dtype=torch.uint8).view(size, 1, 1, 1).expand(-1, 3, 4, 4)
    return InMemory(images, torch.arange(size) % 3)


def streamed(**settings) -> Loader:
    """Resized on reading, and too large for the memory it may take."""
    stored = dataset()
    return Loader(
        InMemory(stored.images, torch.tensor(stored.targets), size=6), memory_gb=0, **settings
    )


def indices(batches) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


@pytest.fixture(params=["held", "streamed"])
def make(request):
    def loader(batch_size=5, *, seed=0, **settings):
        if request.param == "streamed":
            return streamed(batch_size=batch_size, seed=seed, **settings)
        return Loader(dataset(), batch_size, seed=seed, **settings)

    return loader


# --- what a batch is ------------------------------------------------------------------------------


def test_batches_are_what_is_stored(make):
    for batch in make():
        assert isinstance(batch, Batch)
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[:2] == (5, 3)
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.index)
        assert torch.equal(batch.labels, batch.index % 3)


def test_an_index_is_a_position_in_the_training_set():
    rows = [4, 9, 2, 7]
    part = Subset(Subset(dataset(), [*range(10)][::-1]), [9 - row for row in rows])
    for batch in Loader(part, 2, seed=0):
        assert batch.images[:, 0, 0, 0].tolist() == [rows[i] for i in batch.index]


def test_digits_stay_float():
    digits = open_data("digits", image_size=16).train
    batch = next(iter(Loader(digits, 8, seed=0)))
    assert batch.images.dtype == torch.float32
    assert pixels(batch.images) is batch.images
    for image, label, i in zip(*batch, strict=True):
        assert torch.equal(image, digits[int(i)][0])
        assert label == digits[int(i)][1]


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_files_are_read_in_full_depth(tmp_path, memory_gb, monkeypatch):
    draw = np.random.default_rng(0)
    for i in range(8):
        for part in ("train", "test"):
            place = tmp_path / part / f"class{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(
                place / f"{i}.png"
            )
    monkeypatch.setattr("harness.stored._LARGE", 1)  # as for a large folder
    train = open_data(f"folder:{tmp_path}", image_size=8).train
    (batch,) = Loader(train, 6, seed=0, memory_gb=memory_gb)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (6, 3, 8, 8)
    for image, label, i in zip(*batch, strict=True):
        torch.testing.assert_close(pixels(image), train[int(i)][0])
        assert label == targets(train)[i]


def test_images_are_held_where_they_fit_to_the_byte():
    small = InMemory(dataset().images, dataset().targets, size=6)  # resized when it is read
    fits = SIZE * 3 * 6 * 6 / 1e9
    held = in_memory(small, fits, watched=False)
    assert torch.equal(held.images, torch.stack([255 * x for x, _ in small]).round().byte())
    assert in_memory(small, fits - 1e-9, watched=False) is None


def test_unlabelled_images_can_stand_beside_labelled_ones():
    more = InMemory(dataset(9).images + 100, torch.full((9,), -1))
    batches = list(Loader(ConcatDataset([dataset(11), more]), 20, seed=0))
    assert sorted(batches[0].images[:, 0, 0, 0].tolist()) == [*range(11), *range(100, 109)]
    assert torch.equal(batches[0].labels == -1, batches[0].index >= 11)


# --- the order ------------------------------------------------------------------------------------


def test_an_epoch_has_every_image_at_most_once(make):
    loader = make()
    seen = [i for batch in indices(loader) for i in batch]
    assert len(loader) == 4
    assert len(set(seen)) == len(seen) == 20


def test_seed_and_epoch_alone_decide_the_order(make):
    first, again, other = (make(seed=seed) for seed in (1, 1, 2))
    epochs = [indices(first) for _ in range(3)]
    torch.manual_seed(7)
    assert [indices(again) for _ in range(3)] == epochs
    assert epochs[0] != epochs[1] != epochs[2]
    assert indices(other) != epochs[0]


def test_drawing_batches_draws_nothing_from_the_global_generator(make):
    before = torch.get_rng_state()
    list(make())
    assert torch.equal(torch.get_rng_state(), before)


def test_ranks_share_the_batches_of_one(make):
    one = indices(make(batch_size=6))
    ranks = [indices(make(batch_size=2, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(rank) for rank in ranks] == [len(one)] * 3
    for whole, *parts in zip(one, *ranks, strict=True):
        assert sorted(whole) == sorted(i for part in parts for i in part)


def test_workers_change_nothing():
    assert indices(streamed(batch_size=5, seed=0, workers=1)) == indices(
        streamed(batch_size=5, seed=0)
    )


def test_more_than_there_is_is_refused():
    with pytest.raises(
        ValueError, match=r"12 on each of 2 ranks .* has 23; take a smaller --batch"
    ):
        Loader(dataset(), 12, seed=0, world_size=2)


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", range(10))
def test_a_loaded_state_goes_on_with_the_next_batch(make, done):
    whole = make()
    expected = [batch for _ in range(4) for batch in indices(whole)]
    stopped, resumed = make(), make()
    for _ in range(done // 4):
        list(stopped)
    for _, _batch in zip(range(done % 4), stopped):  # noqa: B905 (it is left early)
        pass
    resumed.load_state_dict(stopped.state_dict())
    iter(resumed)  # an iterator that nobody uses is no epoch
    rest = [batch for _ in range(4) for batch in indices(resumed)]
    assert rest[: len(expected) - done] == expected[done:]


class Died(Exception):
    pass


class Watching(pl.LightningModule):
    """Notes which images it is trained on, and dies at one of its steps."""

    def __init__(self, loader: Loader, dies_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.loader, self.dies_at, self.seen = loader, dies_at, []

    def train_dataloader(self):
        return self.loader

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, _):
        if len(self.seen) == self.dies_at:
            raise Died
        assert isinstance(batch, Batch)
        self.seen.append(batch.index.tolist())
        return self.layer(pixels(batch.images)[:, 0, 0, :1]).mean()


def fit(model, place, resume=None, **when):
    pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        callbacks=[ModelCheckpoint(place, filename="{step}", save_top_k=-1, **when)],
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, ckpt_path=resume)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:Checkpoint directory",
    "ignore::lightning_fabric.utilities.warnings.PossibleUserWarning",
)
@pytest.mark.parametrize(
    ("when", "saved"),
    [
        *(({"every_n_train_steps": 1}, step) for step in range(1, 12)),
        ({"every_n_epochs": 1}, 4),
        ({"every_n_epochs": 1}, 8),
    ],
)
def test_lightning_resumes_at_the_very_batch(make, tmp_path, when, saved):
    whole = Watching(make())
    fit(whole, tmp_path / "whole", **when)
    assert len(whole.seen) == 12
    killed = Watching(make(), dies_at=min(saved + 1, 11))
    with pytest.raises(Died):
        fit(killed, tmp_path / "killed", **when)
    resumed = Watching(make())
    fit(resumed, tmp_path / "killed", tmp_path / "killed" / f"step={saved}.ckpt", **when)
    assert resumed.seen == whole.seen[saved:]
