"""Chosen images are class-balanced, so are their beginnings; they are read as they are needed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, Subset

from advssl.evaluation import chosen
from advssl.evaluation.chosen import Chosen, balanced, nested
from advssl.evaluation.data import InMemory

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def dataset(labels: list[int]) -> InMemory:
    """Images whose pixels are their number."""
    images = torch.arange(len(labels)).float()[:, None, None, None].expand(-1, 1, 2, 2) / 255
    return InMemory(images.contiguous(), torch.tensor(labels))


def spread(labels: list[int], rows: list[int]) -> int:
    """How much the classes that are not used up differ in number."""
    taken, there = Counter(labels[i] for i in rows), Counter(labels)
    open_ = [taken[k] for k in there if taken[k] < there[k]]
    return max(taken.values()) - min(open_, default=max(taken.values()))


@given(LABELS)
def test_every_beginning_is_class_balanced(labels):
    order = nested(labels)
    assert sorted(order) == list(range(len(labels)))
    for count in range(1, len(labels) + 1):
        assert sorted(order[:count]) == balanced(labels, count)
        assert spread(labels, order[:count]) <= 1


@given(LABELS)
def test_all_of_them_keep_their_order(labels):
    assert balanced(labels, len(labels)) == list(range(len(labels)))


@given(LABELS, st.integers(0, 70))
def test_the_attacked_images_are_found_again_by_their_number_and_order(labels, count):
    images = dataset(labels)
    stored = chosen.attacked(images, count, 4, None)
    assert stored.rows == balanced(labels, min(count or 70, len(labels)))
    drawn = chosen.attacked(images, count, 4, None, drawn=True)
    assert sorted(drawn.rows) == stored.rows
    for n in range(1, drawn.n + 1):  # what a budget left
        assert drawn.first(n).rows == chosen.attacked(images, n, 4, None, drawn=True).rows


def test_batches_are_of_the_rows_in_their_order():
    labels = [0, 1] * 5
    images = Chosen(Subset(dataset(labels), range(1, 10)), [8, 0, 3, 5, 1], 2)
    assert (images.n, len(images)) == (5, 3)
    for _ in range(2):  # read, then kept
        seen = list(images)
        assert [len(y) for _, y in seen] == [2, 2, 1]
        pixels = torch.cat([x[:, 0, 0, 0] for x, _ in seen]) * 255
        assert pixels.round().tolist() == [9, 1, 4, 6, 2]
        assert torch.cat([y for _, y in seen]).tolist() == [labels[i] for i in (9, 1, 4, 6, 2)]
    assert images.labels == [labels[i] for i in (9, 1, 4, 6, 2)]


class Counted(Dataset):
    """Counts the images that are read."""

    def __init__(self, labels: list[int]) -> None:
        self.data, self.targets, self.reads = dataset(labels), labels, 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        self.reads += 1
        return self.data[index]


@pytest.mark.parametrize(("room", "again"), [(2**30, 0), (16 * 9, 10)])
def test_images_are_read_once_if_there_is_room(monkeypatch, room, again):
    monkeypatch.setattr(chosen, "_IN_MEMORY", room)
    data = Counted([0, 1] * 5)
    images = Chosen(data, range(10), 4)
    list(images)
    assert data.reads == 10
    list(images)
    assert data.reads == 10 + again
    list(images.first(8))  # whole batches, which are kept
    assert data.reads == 10 + again + (8 if again else 0)


def test_the_first_of_them_are_their_beginning_whether_or_not_they_were_read():
    images = Chosen(dataset([0, 1] * 5), range(10), 4)
    for _ in range(2):
        for count in (1, 4, 7, 8, 10):
            taken = torch.cat([y for _, y in images.first(count)])
            assert taken.tolist() == ([0, 1] * 5)[:count]
        list(images)
    assert [len(y) for _, y in images.in_batches(6)] == [6, 4]
    assert images.balanced(6).rows == balanced([0, 1] * 5, 6)


def test_many_images_are_not_held(monkeypatch):
    monkeypatch.setattr(chosen, "_IN_MEMORY", 40)  # two images of 16 bytes
    images = Chosen(dataset([0, 1] * 5), range(10), 2)
    first, second = list(images), list(images)
    assert not images._kept
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))


def test_a_batch_has_a_size():
    with pytest.raises(ValueError, match="batch_size"):
        Chosen(dataset([0, 1]), range(2), 0)
