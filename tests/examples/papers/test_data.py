"""Batches of every image once per epoch, in an order that a resumed run goes on exactly."""

from __future__ import annotations

import torch
from harness.data import Loader

from advssl.evaluation.data import InMemory


def dataset(size: int = 23) -> InMemory:
    images = torch.arange(size, dtype=torch.uint8).view(size, 1, 1, 1).expand(-1, 3, 4, 4)
    return InMemory(images, torch.arange(size) % 3)


def indices(loader) -> list[list[int]]:
    return [batch.index.tolist() for batch in loader]


def test_an_epoch_has_every_image_once():
    loader = Loader(dataset(), 5, seed=0)
    seen = indices(loader)
    assert [len(b) for b in seen] == [5] * 4 == [5] * len(loader)
    assert len({i for b in seen for i in b}) == 20
    assert seen != indices(loader)
