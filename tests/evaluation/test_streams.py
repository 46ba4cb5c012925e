"""Streams: what one image after the other gives, in order, again and again."""

from __future__ import annotations

import torch

from advssl.evaluation.datasets import InMemory
from advssl.evaluation.streams import batches


def test_batches_keep_the_order():
    dataset = InMemory(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), torch.arange(5))
    parts = batches(dataset, 2)
    assert [len(y) for _, y in parts] == [2, 2, 1]
    torch.testing.assert_close(torch.cat([x for x, _ in parts]).flatten(), torch.arange(5) / 255)
