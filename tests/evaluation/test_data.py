"""Images in [0, 1], parts that do not overlap, folders that agree, or a helpful error."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from advssl.evaluation.data import InMemory, batches, open_data, stratified, targets


def write_images(place, classes, count=4, size=(20, 30)):
    draw = np.random.default_rng(0)
    for name in classes:
        inside = place / name / "deeper"  # nested: ImageFolder looks below
        inside.mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(inside / f"{i}.png")


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "test"):
        write_images(tmp_path / part, ("cat", "dog"))
    return tmp_path


def rows(subset) -> set[int]:
    return set(subset.indices)


def test_digits_are_real_whole_and_apart():
    data = open_data("digits", image_size=16)
    assert (len(data.train), len(data.validation), len(data.test)) == (1167, 130, 500)
    assert not rows(data.train) & rows(data.validation)
    image, label = data.test[0]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.float32
    assert 0 <= image.min() <= image.max() <= 1
    assert data.classes[label] == str(label)
    assert not data.natural
    pixels = {image.numpy().tobytes() for image, _ in data.test}
    assert not any(image.numpy().tobytes() in pixels for image, _ in data.train)


def test_a_seed_decides_the_split():
    first, again, other = (open_data("digits", seed=s) for s in (3, 3, 4))
    assert rows(first.validation) == rows(again.validation)
    assert targets(first.test) == targets(again.test)
    assert rows(first.validation) != rows(other.validation)


@pytest.mark.parametrize("sizes", [(100, 100, 100), (20, 200, 80), (2, 2)])
def test_the_validation_part_is_stratified(sizes):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    kept, held_out = stratified(labels, seed=0)
    assert sorted(kept + held_out) == list(range(len(labels)))
    for c, n in enumerate(sizes):
        count = int((labels[held_out] == c).sum())
        assert count == min(max(1, round(n / 10)), n - 1)


def test_the_validation_part_is_never_more_than_5000():
    _, held_out = stratified(torch.arange(200_000) % 10, seed=0)
    assert len(held_out) == 5000


def test_a_folder_is_resized_and_cropped(folder):
    data = open_data(f"folder:{folder}", image_size=24)
    image, label = data.test[5]
    assert image.shape == (3, 24, 24)
    assert type(image) is torch.Tensor
    assert 0 <= image.min() <= image.max() <= 1
    assert (data.classes, label) == (("cat", "dog"), 1)
    assert data.natural
    assert targets(data.train) == [
        c for i, c in enumerate([0] * 4 + [1] * 4) if i in rows(data.train)
    ]
    assert open_data(f"folder:{folder}").test[0][0].shape == (3, 224, 224)


def test_folders_can_be_named_apart(folder, tmp_path):
    write_images(tmp_path / "mine", ("cat", "dog"), count=2)
    data = open_data(f"folder:{folder}", validation=str(tmp_path / "mine"), image_size=8)
    assert len(data.validation) == 4
    assert len(data.train) == 8


def test_val_stands_for_test(folder):
    (folder / "test").rename(folder / "val")
    assert len(open_data(f"folder:{folder}", image_size=8).test) == 8


def test_classes_that_differ_are_refused_with_the_difference(folder):
    (folder / "test" / "dog").rename(folder / "test" / "fox")
    with pytest.raises(ValueError, match=r"only in train: \['dog'\], only in test: \['fox'\]"):
        open_data(f"folder:{folder}")


@pytest.mark.parametrize(
    ("classes", "key", "names"),
    [(10, "labels", "label_names"), (100, "fine_labels", "fine_label_names")],
)
def test_cifar_is_read_as_torchvision_stores_it(tmp_path, monkeypatch, classes, key, names):
    from torchvision import datasets

    kind = getattr(datasets, f"CIFAR{classes}")
    monkeypatch.setattr(kind, "_check_integrity", lambda _: True)
    place = tmp_path / kind.base_folder
    place.mkdir()
    files = [name for name, _ in kind.train_list + kind.test_list]
    for i, file in enumerate(files):
        labels = [c % classes for c in range(2 * classes)]
        content = {"data": np.full((2 * classes, 3072), i, np.uint8), key: labels}
        (place / file).write_bytes(pickle.dumps(content))
    meta = {names: [f"class {c}" for c in range(classes)]}
    (place / kind.meta["filename"]).write_bytes(pickle.dumps(meta))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = open_data(f"cifar{classes}:{tmp_path}")
    count = 2 * classes * (len(files) - 1)
    assert len(data.train) + len(data.validation) == count
    assert len(data.test) == 2 * classes
    assert data.unlabelled is None
    image, label = data.test[3]
    assert image.shape == (3, 32, 32)
    assert torch.equal(image, torch.full((3, 32, 32), (len(files) - 1) / 255))
    assert data.classes[label] == "class 3"


@pytest.fixture
def stl10(tmp_path):
    """Image i of a part has its row number in red, its column number in green and i in blue."""
    place = tmp_path / "stl10_binary"
    place.mkdir()
    for part, count in (("train", 40), ("test", 20), ("unlabeled", 30)):
        pixels = np.zeros((count, 3, 96, 96), np.uint8)
        pixels[:, 0] = np.arange(96)[:, None]
        pixels[:, 1] = np.arange(96)
        pixels[:, 2] = np.arange(count)[:, None, None]
        pixels.swapaxes(2, 3).tofile(place / f"{part}_X.bin")  # column by column
        if part != "unlabeled":
            (np.arange(count) % 10 + 1).astype(np.uint8).tofile(place / f"{part}_y.bin")
    (place / "class_names.txt").write_text("\n".join(f"class {c}" for c in range(10)))
    return tmp_path


def test_stl10_has_unlabelled_images_too(stl10):
    data = open_data(f"stl10:{stl10}")
    assert [len(p) for p in (data.train, data.validation, data.test)] == [30, 10, 20]
    image, label = data.test[13]
    assert image.shape == (3, 96, 96)
    assert torch.equal((image[:, 5, 7] * 255).round(), torch.tensor([5.0, 7.0, 13.0]))
    assert data.classes[label] == "class 3"
    assert len(data.unlabelled) == 30
    assert set(targets(data.unlabelled)) == {-1}
    assert data.natural


def test_stl10_is_resized(stl10):
    data = open_data(f"stl10:{stl10}", image_size=32)
    for part in (data.train, data.test, data.unlabelled):
        image, _ = part[0]
        assert image.shape == (3, 32, 32)
        # A third of the size: pixel i has been the mean about 3 i + 1.
        torch.testing.assert_close(image[0, :, 9] * 255, torch.arange(32.0) * 3 + 1, atol=1, rtol=0)


def test_half_an_stl10_is_refused(stl10):
    labels = stl10 / "stl10_binary" / "train_y.bin"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"no STL-10 under .*; unpack stl10_binary.tar.gz"):
        open_data(f"stl10:{stl10}")


def test_batches_keep_the_order():
    dataset = InMemory(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), torch.arange(5))
    parts = batches(dataset, 2)
    assert [len(y) for _, y in parts] == [2, 2, 1]
    torch.testing.assert_close(torch.cat([x for x, _ in parts]).flatten(), torch.arange(5) / 255)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("mnist", {}, "one of \"digits\", .* got 'mnist'"),
        ("digits", {"train": "x"}, "--train, --val and --test name folders beside folder:PATH"),
        ("cifar10:nowhere", {}, "no CIFAR-10 under nowhere; unpack cifar-10-python.tar.gz"),
        ("cifar100:nowhere", {}, "no CIFAR-100 under nowhere; unpack .* place as cifar100:ROOT"),
        ("stl10:nowhere", {}, "no STL-10 under nowhere; unpack stl10_binary.tar.gz"),
        ("cifar10", {"image_size": 64}, "CIFAR-10 is 32 x 32, got --image-size 64"),
        ("folder:nowhere", {}, "no folder of train images at nowhere"),
    ],
)
def test_errors_say_what_to_do(spec, settings, message):
    with pytest.raises(ValueError, match=message):
        open_data(spec, **settings)
