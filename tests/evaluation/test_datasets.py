"""Datasets in memory and by name: pixels and labels of all kinds, parts that do not overlap."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from advssl.evaluation.data import InMemory, batches, open_data, stratified, targets


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


@pytest.mark.parametrize("sizes", [(100, 100, 100), (20, 200, 80), (2, 2)])
def test_the_validation_part_is_stratified(sizes):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    kept, held_out = stratified(labels, seed=0)
    assert sorted(kept + held_out) == list(range(len(labels)))
    for c, n in enumerate(sizes):
        count = int((labels[held_out] == c).sum())
        assert count == min(max(1, round(n / 10)), n - 1)


def test_the_validation_part_is_never_more_than_5000():
    for labels in (torch.arange(200_000) % 10, torch.zeros(60_000, dtype=torch.int64)):
        _, held_out = stratified(labels, seed=0)
        assert len(held_out) == 5000


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


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.full((4, 3, 2, 2), 51, dtype=torch.uint8), torch.arange(4)),
        (np.full((4, 3, 2, 2), 51, np.uint8), [0, 1, 2, 3]),
        (np.full((4, 2, 2, 3), 51, np.uint8).transpose(0, 3, 1, 2), np.arange(4, dtype=np.uint8)),
        *(
            (torch.full((4, 3, 2, 2), 0.2, dtype=kind), torch.arange(4, dtype=torch.int32))
            for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        ),
        (np.full((4, 3, 2, 2), 0.2), np.arange(4)),
    ],
)
def test_pixels_and_labels_of_all_kinds_become_plain(images, labels):
    dataset = InMemory(images, labels)
    ((pixels, classes),) = batches(dataset, 4)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, torch.full((4, 3, 2, 2), 0.2), atol=1e-3, rtol=0)
    assert torch.equal(classes, torch.arange(4))
    assert targets(dataset) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            torch.rand(4, 3, 2, 2) * 255,
            [0] * 4,
            r"lie in \[0, 1\].*divide grey levels",
        ),
        (torch.randn(4, 3, 9, 9), [0] * 4, r"lie in \[0, 1\]"),
        (torch.full((4, 3, 2, 2), torch.nan), [0] * 4, "got .nan, nan"),
        (torch.zeros(4, 3, 2, 2, dtype=torch.int64), [0] * 4, "torch.int64.*to.torch.uint8"),
        (torch.zeros(4, 2, 2), [0] * 4, r"\(N, C, H, W\), got .*images\[:, None\]"),
        (torch.zeros(4, 8, 8, 3), [0] * 4, r"permute\(0, 3, 1, 2\)"),
        ([["a"]], [0], "images must be numbers|got torch"),
        (torch.zeros(4, 3, 2, 2), [0] * 3, "labels must be 4 integers"),
        (torch.zeros(4, 3, 2, 2), [0.0] * 4, "labels must be 4 integers.*float64"),
        (torch.zeros(4, 3, 2, 2), ["cat"] * 4, "labels must be"),
        (torch.zeros(4, 3, 2, 2), [0, -100, 1, -1], "-1 for none, got -100"),
    ],
)
def test_other_pixels_and_labels_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        InMemory(images, labels)


@pytest.mark.parametrize("labels", [[], (), np.zeros(0), torch.zeros(0, dtype=torch.int64)])
def test_no_image_has_no_label(labels):
    assert len(InMemory(torch.zeros(0, 3, 4, 4), labels)) == 0


def test_a_label_of_none_is_no_class_to_split_by():
    with pytest.raises(ValueError, match="classes from 0 on, got a label of -1"):
        stratified(torch.tensor([0, 0, -1, 1, 1]), seed=0)
    with pytest.raises(ValueError, match="got none"):
        stratified([], seed=0)
    with pytest.raises(ValueError, match="labels must be 4 integers"):
        stratified([0.0, 0.5, 1.0, 1.5], seed=0)


def test_labels_are_found_through_parts_of_datasets():
    whole = InMemory(torch.zeros(6, 1, 2, 2), range(6))
    parts = torch.utils.data.ConcatDataset([torch.utils.data.Subset(whole, [4, 1]), whole])
    assert targets(parts) == [4, 1, 0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"labels as \.targets, got a TensorDataset"):
        targets(torch.utils.data.TensorDataset(torch.zeros(2)))


@pytest.mark.parametrize(
    "label", [None, "cat", "1", 0.5, float("nan"), float("inf"), torch.eye(2)[0], np.ones(2)]
)
def test_labels_that_are_no_whole_numbers_are_named(label):
    dataset = torch.utils.data.TensorDataset(torch.zeros(2))
    dataset.targets = [0, label]
    with pytest.raises(ValueError, match=r"\.targets must be a whole number, got "):
        targets(dataset)


def test_whole_numbers_in_any_form_are_labels():
    dataset = torch.utils.data.TensorDataset(torch.zeros(2))
    dataset.targets = [1, 1.0, np.int8(1), np.float32(1), torch.tensor(1), torch.tensor([1])]
    assert targets(dataset) == [1] * 6
