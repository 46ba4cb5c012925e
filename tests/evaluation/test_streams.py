"""Streams: what one image after the other gives, in order, again and again."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from advssl.evaluation import streams
from advssl.evaluation.data import open_data, targets
from advssl.evaluation.datasets import InMemory
from advssl.evaluation.streams import Stream, batches, in_parts, ordered


class Foreign(Dataset):
    """It draws random numbers, has no labels but those it gives, and is not in [0, 1]."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return 4 * torch.rand(3, 4, 4) - 2, index


def test_batches_keep_the_order():
    dataset = InMemory(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), torch.arange(5))
    parts = batches(dataset, 2)
    assert [len(y) for _, y in parts] == [2, 2, 1]
    torch.testing.assert_close(torch.cat([x for x, _ in parts]).flatten(), torch.arange(5) / 255)


@pytest.fixture(
    params=["folder", "half", "both", "deep", "memory", "resized", "part", "foreign", "all"]
)
def dataset(request, folder):
    whole = open_data(f"folder:{folder}", image_size=8)
    memory = InMemory(torch.randint(0, 256, (9, 3, 6, 6), dtype=torch.uint8), torch.arange(9))
    if request.param == "deep":  # beside images of eight bits
        Image.new("F", (9, 9), 0.3).save(folder / "test" / "cat" / "0.tif")
        return open_data(f"folder:{folder}", image_size=8).test
    return {
        "folder": whole.test,
        "half": Subset(Subset(whole.test, [7, 0, 3, 3, 5]), [4, 1, 2, 0]),
        "both": ConcatDataset([whole.train, whole.test]),
        "memory": memory,
        "resized": InMemory(memory.images, memory.targets, size=4),
        "part": Subset(memory, torch.tensor([8, 2, 2, 0])),
        "foreign": Foreign(),
        "all": ConcatDataset([InMemory(whole.test[0][0][None], [0]), whole.train, whole.test]),
    }[request.param]


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_stream_gives_what_one_after_the_other_gives(dataset, size, threads, monkeypatch):
    files = streams.threads_for(dataset)
    monkeypatch.setattr(streams, "threads_for", lambda _: threads if files else 0)
    stream = Stream(dataset, size)
    for seed in (1, 2):  # it can be iterated again
        torch.manual_seed(seed)
        wanted = [dataset[i] for i in range(len(dataset))]
        torch.manual_seed(seed)
        found = list(stream)
        assert [len(y) for _, y in found][:-1] == [size] * (len(stream) - 1)
        assert torch.cat([y for _, y in found]).tolist() == [int(y) for _, y in wanted]
        assert torch.equal(torch.cat([x for x, _ in found]), torch.stack([x for x, _ in wanted]))


@pytest.mark.parametrize("most", [0, streams.SMALL])
def test_what_is_held_gives_the_same_from_files_read_once(dataset, most, monkeypatch, request):
    monkeypatch.setattr(streams, "SMALL", most)
    kept = streams.held(dataset)
    of_files = request.node.callspec.params["dataset"] in ("folder", "half", "both")
    assert (kept is dataset) == (not most or not of_files)
    if kept is dataset:
        return
    monkeypatch.setattr(streams, "read_image", pytest.fail)
    found = [kept[i] for i in range(len(kept))]
    monkeypatch.undo()
    assert targets(kept) == targets(dataset) == [label for _, label in found]
    assert all(torch.equal(x, dataset[i][0]) for i, (x, _) in enumerate(found))


def test_parts_are_in_any_order_and_may_be_empty(folder):
    test = open_data(f"folder:{folder}", image_size=8).test
    parts = [[5, 1], [], [7], [0, 0, 2]]
    found = list(in_parts(test, parts))
    assert [y.tolist() for _, y in found] == [[targets(test)[i] for i in p] for p in parts if p]
    for (images, _), part in zip(found, filter(None, parts), strict=True):
        assert torch.equal(images, torch.stack([test[i][0] for i in part]))


def test_the_order_is_not_that_of_who_is_first():
    def slow(i: int) -> int:
        time.sleep(random.random() / 500)
        return i

    assert list(ordered(slow, range(200), 4, ahead=9)) == list(range(200))


def test_no_more_is_read_ahead_than_was_said():
    seen: list[int] = []
    found = ordered(lambda i: seen.append(i) or i, range(1000), 3, ahead=10)
    assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
    found.close()  # nobody wants the rest
    assert len(seen) <= 15


@pytest.mark.parametrize("threads", [0, 3])
def test_an_error_is_the_first_images_and_names_its_file(folder, threads, monkeypatch):
    monkeypatch.setattr(streams, "threads_for", lambda _: threads)
    for name in ("2.png", "3.png"):
        (folder / "test" / "cat" / "deeper" / name).write_bytes(b"")
    found = iter(Stream(open_data(f"folder:{folder}", image_size=8).test, 2))
    assert len(next(found)[1]) == 2
    with pytest.raises(ValueError, match=r"cat/deeper/2.png is no image"):
        next(found)


def test_only_files_are_read_by_threads(folder, monkeypatch):
    monkeypatch.setattr(streams.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    test = open_data(f"folder:{folder}", image_size=8).test
    assert streams.threads_for(Subset(test, [0])) == 3
    assert streams.threads_for(ConcatDataset([test, test])) == 3
    assert streams.threads_for(Foreign()) == 0
    assert streams.threads_for(ConcatDataset([test, Foreign()])) == 0
    monkeypatch.setattr(streams.os, "sched_getaffinity", lambda _: {1}, raising=False)
    assert streams.threads_for(test) == 0


def test_a_size_is_a_whole_number():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        Stream(Foreign(), 0)


IMAGE = torch.rand(3, 4, 4)
WRONG = {
    "a photograph": ((Image.new("RGB", (4, 4)), 0), "floating point, got a Image; .*ToTensor"),
    "an array": ((np.zeros((4, 4, 3)), 0), "floating point, got a ndarray; .*ToTensor"),
    "grey levels": ((IMAGE.byte(), 0), r"floating point, got torch.uint8 of shape \(3, 4, 4\)"),
    "one channel": ((IMAGE[0], 0), r"it must be \(C, H, W\), .* of shape \(4, 4\)"),
    "an image alone": (IMAGE, "it must be a pair of image and label, got torch.float32"),
    "a mapping": ({"image": IMAGE, "label": 0}, "got dict of {image: .*label: 0}; let __getitem__"),
    "three": ((IMAGE, 0, 1), "a pair of image and label, got tuple of"),
    "a name": ((IMAGE, "cat"), "its label must be a whole number, got 'cat'; number the classes"),
    "one-hot": ((IMAGE, torch.eye(3)[1]), r"whole number, got torch.float32 of shape \(3,\)"),
    "a share": ((IMAGE, 0.5), "whole number, got 0.5"),
    "no label": ((IMAGE, None), "whole number, got None"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_sample_that_is_no_image_and_class_is_named_by_its_place(what):
    sample, said = WRONG[what]
    with pytest.raises(ValueError, match=rf"^sample 2 of the list: .*{said}"):
        batches([(IMAGE, 0), (IMAGE, np.int64(1)), sample], 3)


@pytest.mark.parametrize("label", [1, 1.0, True, np.int8(1), torch.tensor(1), torch.tensor([1])])
def test_a_class_in_any_form_is_a_whole_number(label):
    ((_, labels),) = batches([(IMAGE, label)], 3)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [1]


def test_an_image_of_another_size_is_named_by_its_place():
    dataset = [(IMAGE, 0)] * 3 + [(IMAGE[:, 1:], 0)]
    with pytest.raises(ValueError, match=r"\(3, 3, 4\) in sample 3 beside \(3, 4, 4\) in sample 2"):
        list(in_parts(dataset, [[1], [2, 0, 3]]))


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([(IMAGE, 0)])

    def __len__(self):
        return 1


@pytest.mark.parametrize("dataset", [None, "digits", iter([1]), Endless()])
def test_what_is_no_dataset_is_refused(dataset):
    with pytest.raises(ValueError, match="dataset must be a dataset with __getitem__ and __len__"):
        Stream(dataset, 1)
