"""Samples hold their index, and are what they were."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)

from advssl.indexed import IndexedDataset, without_index


class Photo(NamedTuple):
    image: torch.Tensor
    label: int

    def named(self):
        return ("even", "odd")[self.label]


class Numbered(NamedTuple):
    index: int  # its own
    image: torch.Tensor


@dataclass
class Record:
    image: torch.Tensor


FORMS = {  # of a sample of which the image is a number: what it is without index and with it
    "tensor": (lambda x: x, lambda x, i: (x, i)),
    "number": (float, lambda x, i: (float(x), i)),
    "pair": (lambda x: (x, 7), lambda x, i: (x, 7, i)),
    "alone in a tuple": (lambda x: (x,), lambda x, i: (x, i)),
    "named": (lambda x: Photo(x, 1), lambda x, i: (x, 1, i)),
    "index of its own": (lambda x: Numbered(9, x), lambda x, i: (9, x, i)),
    "views": (lambda x: [x, x], lambda x, i: ([x, x], i)),
    "nested": (lambda x: ([x, {"y": x}], 7), lambda x, i: ([x, {"y": x}], 7, i)),
    "dict": (lambda x: {"image": x}, lambda x, i: {"image": x, "index": i}),
    "ordered": (lambda x: OrderedDict(image=x), lambda x, i: {"image": x, "index": i}),
    "record": (Record, lambda x, i: (Record(x), i)),
}


class Numbers(Dataset):
    """Ten images that are their own place, in a form of one's own."""

    classes = ("even", "odd")

    def __init__(self, form=None):
        self.form = form
        self.transform = None

    def __len__(self):
        return 10

    def __getitem__(self, index):
        image = torch.tensor(float(index))
        image = self.transform(image) if self.transform else image
        return self.form(image) if self.form else image


class Together(Numbers):
    """Reads a batch at once, as tables and databases do, and nothing else."""

    def __getitem__(self, index):
        raise AssertionError

    def __getitems__(self, indices):
        return [torch.tensor(float(index)) for index in indices]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(10))


def doubled(x):
    return 2 * x


@pytest.mark.parametrize("name", FORMS)
class TestFormsOfSamples:
    def test_hold_their_index_and_are_what_they_were(self, name):
        form, expected = FORMS[name]
        dataset = IndexedDataset(Numbers(form))
        for place in (3, np.int64(3), torch.tensor(3), -7):
            sample = dataset[place]
            assert sample == expected(torch.tensor(3.0), 3)
            twin = pickle.loads(pickle.dumps(copy.deepcopy(sample)))
            assert twin == sample
            assert type(twin) is type(sample)
            bare, index = without_index(sample)
            assert (bare, type(bare), index) == (Numbers(form)[3], type(Numbers(form)[3]), 3)

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_without_index_are_those_of_the_dataset(self, name, workers):
        if name == "record":
            pytest.skip("no batch of these without a collate function of one's own")
        plain = Numbers(FORMS[name][0])
        dataset = IndexedDataset(plain)
        loaders = [
            DataLoader(
                d, 4, num_workers=workers, multiprocessing_context="fork" if workers else None
            )
            for d in (plain, dataset)
        ]
        places = []
        for batch, indexed in zip(*loaders, strict=True):
            bare, index = without_index(indexed)
            places.append(index)
            assert str(bare) == str(batch)
            assert type(bare) is type(batch)
        assert torch.equal(torch.cat(places), torch.arange(10))

    def test_a_collate_function_never_sees_the_index(self, name):
        plain, seen = Numbers(FORMS[name][0]), []

        def collate(samples):
            seen.extend(samples)
            return "a batch"

        dataset = IndexedDataset(plain)
        loader = DataLoader(dataset, 5, collate_fn=dataset.with_index(collate))
        batches, places = zip(*loader, strict=True)
        assert seen == [plain[i] for i in range(10)]
        assert batches == ("a batch",) * 2
        assert torch.equal(torch.cat(places), torch.arange(10))
        assert without_index(next(iter(loader)))[0] == "a batch"


class TestIndexedDataset:
    def test_named_fields_keep_their_names_class_and_methods(self):
        photo = IndexedDataset(Numbers(FORMS["named"][0]))[3]
        assert isinstance(photo, Photo)
        assert (photo.image, photo.label, photo.index, photo.named()) == (3, 1, 3, "odd")
        assert photo._replace(label=0) == (3, 0, 3)
        assert list(photo._asdict()) == ["image", "label", "index"]
        assert repr(photo) == "Photo(image=tensor(3.), label=1, index=3)"
        numbered = IndexedDataset(Numbers(FORMS["index of its own"][0]))[3]
        assert (numbered.index, numbered.index_) == (9, 3)

    def test_is_a_sequence(self):
        dataset = IndexedDataset(Numbers())
        assert len(dataset) == 10
        assert [index for _, index in dataset] == list(range(10))
        assert dataset[-1] == (9.0, 9)
        with pytest.raises(IndexError):
            dataset[10]

    @pytest.mark.parametrize(
        "places", [slice(1, 3), [1, 2], torch.tensor([1, 2]), np.array([1, 2])]
    )
    def test_several_at_once_have_several_indices(self, places):
        dataset = IndexedDataset(TensorDataset(torch.arange(10.0), torch.arange(10)))
        x, y, index = dataset[places]
        assert x.tolist() == y.tolist() == index.tolist() == [1, 2]

    def test_the_indices_of_several_are_where_these_were_asked_for(self):
        dataset = IndexedDataset(TensorDataset(torch.zeros(3, device="meta")))
        _, index = dataset[torch.tensor([1, 2], device="meta")]
        assert index.is_meta

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("kind", [Numbers, Together])
    def test_in_a_loader(self, kind, workers):
        loader = DataLoader(IndexedDataset(kind()), 4, num_workers=workers)
        values, index = zip(*loader, strict=True)
        assert torch.equal(torch.cat(index), torch.arange(10))
        assert torch.equal(torch.cat(values), torch.arange(10.0))

    def test_indices_of_a_part_are_those_of_the_whole_and_of_a_sum_those_of_the_sum(self):
        part, _ = random_split(IndexedDataset(Numbers()), [4, 6])
        assert all(value == index for value, index in part)
        assert IndexedDataset(Subset(Numbers(), [5, 7]))[1] == (7.0, 1)
        assert IndexedDataset(ConcatDataset([Numbers(), Numbers()]))[12] == (2.0, 12)

    def test_is_seen_through(self):
        inner = Numbers()
        dataset = IndexedDataset(inner)
        for twin in (dataset, copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
            assert twin.classes == ("even", "odd")
            with pytest.raises(AttributeError, match="targets"):
                _ = twin.targets
            twin.targets = [1]
            assert twin.dataset.targets == twin.targets == [1]
            twin.transform = doubled
            assert twin[3] == (6.0, 3)
            del twin.targets
            assert not hasattr(twin, "targets")
        assert inner.transform is doubled
        dataset.dataset = Numbers()
        assert dataset[3] == (3.0, 3)

    def test_lightlys_collate_function_works_on_it(self):
        data = pytest.importorskip("lightly.data.multi_view_collate")
        samples = [([torch.full((1,), float(i))] * 2, i % 2, f"{i}.png") for i in range(4)]
        dataset = IndexedDataset(samples)
        collate = dataset.with_index(data.MultiViewCollate())
        ((x0, _), labels, names), index = next(iter(DataLoader(dataset, 4, collate_fn=collate)))
        assert x0.flatten().tolist() == index.tolist() == [0, 1, 2, 3]
        assert labels.tolist() == [0, 1, 0, 1]
        assert names == ["0.png", "1.png", "2.png", "3.png"]

    @pytest.mark.parametrize("dataset", [Stream(), iter([1]), {1, 2}, 5])
    def test_refuses_what_has_no_index(self, dataset):
        with pytest.raises(ValueError, match="__getitem__ and __len__, got"):
            IndexedDataset(dataset)

    def test_refuses_what_would_be_overwritten_and_a_batch_that_lost_it(self):
        with pytest.raises(ValueError, match="an entry 'index' of its own"):
            IndexedDataset([{"index": 1}])[0]
        for batch in (torch.zeros(2), {"image": 1}, [torch.zeros(2)]):
            with pytest.raises(ValueError, match=r"there is no index in .*with_index\(collate_fn"):
                without_index(batch)
