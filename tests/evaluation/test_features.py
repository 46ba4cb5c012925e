"""Features made once are those made each time, in order and to the bit."""

from __future__ import annotations

import os
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bars import SHORT, bars, encoder_of_bars, equal_states, images_of
from ranks import on_two_ranks
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from advssl.evaluation import features
from advssl.evaluation.data import InMemory
from advssl.evaluation.features import Mapped, featurised, in_order, parts, read, shuffled
from advssl.evaluation.identity import fingerprint_of
from advssl.evaluation.linear import Classifier
from advssl.evaluation.memory import in_use
from advssl.evaluation.probes import finetune, protocol

CPU = torch.device("cpu")
WIDTH = 12


@pytest.fixture
def encode():
    encoder = encoder_of_bars().eval()
    return lambda images: encoder(images).detach()


def test_one_that_is_left_over_joins_the_batch_before():
    sizes = [[len(p) for p in parts(torch.arange(n), 4)] for n in (1, 4, 5, 6, 9)]
    assert sizes == [[1], [4], [5], [4, 2], [4, 5]]


def test_torchs_default_device_has_no_say():
    held = TensorDataset(torch.arange(10.0).view(5, 2), torch.arange(5))
    with torch.device("meta"):
        ((ordered, _),) = in_order(held)
        ((mixed, _),) = shuffled(held, 5, torch.Generator("cpu").manual_seed(0))
    assert torch.equal(ordered, held.tensors[0])
    assert sorted(mixed.tolist()) == ordered.tolist()


@pytest.mark.parametrize("count", [0, 1, 256, 257, 600])
@pytest.mark.parametrize("small", [0, 2**28])
@pytest.mark.parametrize("keeping", [False, True])
def test_they_are_what_the_encoder_answers_to_each_batch(
    encode, tmp_path, monkeypatch, count, small, keeping
):
    monkeypatch.setattr(features, "SMALL", small)
    images = images_of(count, 3)
    batches = [encode(x) for x in torch.stack([*images_of(600, 3).images])[:count].split(256)]
    expected = torch.cat(batches) if count else torch.empty(0, WIDTH)
    for _ in range(2):
        folder = tmp_path if keeping else None
        made = featurised(encode, images, WIDTH, CPU, folder=folder, depends=("bars",))
        assert torch.equal(made.tensors[0], expected)
        assert made.tensors[1].tolist() == images.targets
        assert made.tensors[1].dtype == torch.int64
    names = {path.suffix for path in tmp_path.iterdir()}
    assert names == ({".npy", ".pt"} if keeping and count else set())


def test_what_is_kept_is_read_without_an_image_or_the_encoder(encode, tmp_path):
    made = featurised(encode, images_of(300, 0), WIDTH, CPU, folder=tmp_path, depends=(1,))
    again = featurised(None, range(300), WIDTH, CPU, folder=tmp_path, depends=(1,))
    assert all(map(torch.equal, made.tensors, again.tensors))
    with pytest.raises(ValueError, match="sample 0 of the range"):  # of other images
        featurised(None, range(300), WIDTH, CPU, folder=tmp_path, depends=(2,))


def test_each_batch_that_is_made_is_told(encode, tmp_path):
    ticks = []
    for _ in range(2):
        featurised(
            *(encode, images_of(600, 0), WIDTH, CPU),
            folder=tmp_path,
            progress=lambda *told: ticks.append(told),
        )
    assert ticks == [("features", done, 3) for done in (1, 2, 3)]


def test_a_pass_that_was_killed_leaves_nothing_and_is_made_again(encode, tmp_path):
    def killed(images):
        if len(images) < 256:
            raise KeyboardInterrupt
        return encode(images)

    images = images_of(600, 0)
    with pytest.raises(KeyboardInterrupt):
        featurised(killed, images, WIDTH, CPU, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    made = featurised(encode, images, WIDTH, CPU, folder=tmp_path)
    assert torch.equal(made.tensors[0], featurised(encode, images, WIDTH, CPU).tensors[0])


class Watched(Dataset):
    """Images that are counted as long as they live."""

    alive = most = 0

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i >= self.count:
            raise IndexError(i)
        image = torch.full((3, 6, 6), i / self.count)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self.left)
        return image, i % 3

    def left(self):
        self.alive -= 1


def test_few_images_live_at_once(encode):
    images = Watched(4000)
    featurised(encode, images, WIDTH, CPU)
    assert 256 <= images.most <= 2 * 256
    assert images.alive <= 256
    images.most = 0
    for _ in shuffled(images, 100, torch.Generator().manual_seed(0)):
        pass
    assert images.most <= 2 * 100


@pytest.mark.skipif(not in_use(), reason="the system does not say what a process takes")
@pytest.mark.parametrize("order", [None, 0])
def test_little_of_a_map_is_in_memory_at_once(tmp_path, monkeypatch, order):
    count = width = 2**12  # 64 MB
    (tmp_path / "features").touch()
    os.truncate(tmp_path / "features", 4 * count * width)
    values = np.memmap(tmp_path / "features", np.float32, mode="c", shape=(count, width))
    made = Mapped(values, torch.zeros(count, dtype=torch.int64))
    monkeypatch.setattr(features, "SMALL", 2**22)
    every = in_order(made, 64) if order is None else shuffled(made, 64, torch.Generator())
    before, most, sizes = in_use(), 0, 0
    for part, _ in every:
        most, sizes = max(most, in_use() - before), sizes + len(part)
    assert sizes == count
    assert most < 2**24


@pytest.mark.parametrize("keeping", [False, True])
def test_features_that_have_no_room_are_refused_before_the_work(tmp_path, monkeypatch, keeping):
    monkeypatch.setattr(features, "SMALL", 0)
    monkeypatch.setattr(features, "room", lambda _: 2**20)
    folder = tmp_path / "work" if keeping else None
    with pytest.raises(ValueError, match=r"take 4 MB and .* has room for 1 MB.* 256 images at"):
        featurised(None, range(1024), 1024, CPU, folder=folder)


def test_batches_are_read_in_the_order_that_was_asked_for():
    images = images_of(50, 0)
    asked = [torch.tensor([4, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([49])]
    found = list(read(images, asked))
    assert [y.tolist() for _, y in found] == [[1, 2], [1]]
    assert torch.equal(found[0][0], images.images[[4, 2]])
    rows = torch.cat([y for _, y in in_order(images, 7)])
    assert rows.tolist() == images.targets


class TestOnePassServesEveryProbe:
    @pytest.fixture
    def passes(self, monkeypatch):
        """How many images the encoder was given."""
        seen = []
        raw = Classifier.raw

        def counted(self, images):
            seen.append(len(images))
            return raw(self, images)

        monkeypatch.setattr(Classifier, "raw", counted)
        return seen

    @pytest.mark.parametrize("reads", ["raw", "unit", "standard"])
    def test_of_one_encoder_and_the_same_images(self, tmp_path, passes, reads):
        encoder, data = encoder_of_bars(), bars()
        finetune(encoder, data, SHORT, folder=tmp_path)
        assert sum(passes) == 96 + 30
        other = replace(protocol("advcl", "slf"), reads=reads, epochs=2, augments=False)
        found = finetune(encoder, data, other, folder=tmp_path, seed=5)
        assert sum(passes) == 96 + 30
        assert equal_states(found.last, finetune(encoder, data, other, seed=5).last)

    def test_another_encoder_or_another_normalisation_has_its_own(self, tmp_path, passes):
        encoder, data = encoder_of_bars(), bars()
        finetune(encoder, data, SHORT, folder=tmp_path)
        finetune(encoder, data, SHORT, folder=tmp_path, mean=(0.1,) * 3, std=(0.5,) * 3)
        with torch.no_grad():
            encoder[0].weight += 1
        finetune(encoder, data, SHORT, folder=tmp_path)
        assert sum(passes) == 3 * (96 + 30)

    def test_those_of_an_encoder_that_draws_are_the_same_again(self, tmp_path):
        class Drawing(nn.Module):
            def forward(self, images):
                return images.flatten(1) + torch.rand(len(images), 108)

        expected = finetune(Drawing(), bars(), SHORT)
        for _ in range(2):
            found = finetune(Drawing(), bars(), SHORT, folder=tmp_path)
            assert equal_states(found.last, expected.last)
            for path in tmp_path.glob("probe-*.pt"):
                path.unlink()


BIG = replace(bars(), train=images_of(300, 3), validation=images_of(300, 4))
WAYS = {
    "linear, standard": SHORT,
    "linear, adversarial": replace(SHORT, loss="pgd", epochs=1, batch_size=200),
    "full": replace(SHORT, reads="raw", loss="trades", trains_encoder=True, epochs=1),
}


class Breaking(nn.Flatten):
    """An encoder that breaks down on the last batch of the training images, in one process."""

    def forward(self, images):
        if len(images) == 44:
            raise KeyError("of the second batch")
        return super().forward(images)


def everything(folder: Path) -> dict:
    torch.manual_seed(0)
    encoder, found = encoder_of_bars(), {}
    for name, how in WAYS.items():
        for kept_in in (None, folder):
            made = finetune(encoder, BIG, how, folder=kept_in)
            found[f"{name}, {'kept' if kept_in else 'held'}"] = {
                "last": dict(made.last.state_dict()),
                "best": dict(made.best.state_dict()),
                "history": list(made.history),
            }
    return found


def on_a_rank(r: int, folder: str) -> dict:
    found = {"shared": everything(Path(folder) / "shared")}
    found["apart"] = everything(Path(folder) / str(r))
    found["refused"] = []
    for encoder, seed in ((Breaking(), 0), (encoder_of_bars(), r)):
        try:
            finetune(encoder, BIG, SHORT, seed=seed)
        except (KeyError, RuntimeError, ValueError) as error:
            found["refused"].append(f"{type(error).__name__}: {error}")
    found["said"] = unlike(r)
    return found


def unlike(r: int) -> dict[str, str]:
    """What is said where the ranks are given other things, by what differs."""
    said, encoder, other = {}, encoder_of_bars(), images_of(300, 3 + 7 * r)
    again = replace(BIG, train=InMemory(BIG.train.images, [r] * 300))
    given = {
        "encoder": ((encoder, nn.Flatten())[r], BIG, SHORT),
        "data.train": (encoder, replace(BIG, train=other), SHORT),
        "data.train labels": (encoder, again, SHORT),
        "data.validation": (encoder, replace(BIG, validation=other), SHORT),
        "data.test": (encoder, replace(BIG, test=other), replace(SHORT, selects="test")),
    }
    for what, call in given.items():
        with pytest.raises(ValueError, match="all ranks must be given the same") as found:
            finetune(*call)
        said[what] = str(found.value)
    return said


@pytest.mark.slow
def test_two_processes_make_the_features_and_the_classifier_of_one(tmp_path):
    ranks = on_two_ranks(on_a_rank, tmp_path, str(tmp_path))
    alone = fingerprint_of(everything(tmp_path / "alone"))
    for found in ranks:
        assert fingerprint_of(found["shared"]) == alone
        assert fingerprint_of(found["apart"]) == alone
        broken, others = found["refused"]
        assert "of the second batch" in broken or "another process" in broken
        assert "all ranks must hold the same" in others
        for what, said in found["said"].items():
            assert f"the same {what.split()[0]}, got rank 0 " in said
    assert sum("of the second batch" in found["refused"][0] for found in ranks) == 1
    # One of them wrote, and what it wrote is what one process writes.
    names = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("shared", "alone")]
    assert names[0] == names[1]
    assert not (tmp_path / "1").exists() or not list((tmp_path / "1").iterdir())
