"""Data of some classes are these classes' images and no others, under labels from 0 on."""

from __future__ import annotations

import pytest
import torch

from advssl.evaluation.data import open_data, targets
from harness.classes import opened


@pytest.mark.parametrize(("first", "last"), [(0, 4), (5, 9), (3, 4)])
def test_images_of_the_classes_alone_under_labels_from_0(first, last):
    whole, some = open_data("digits", image_size=8), opened(f"digits@{first}-{last}", 8)
    assert some.classes == whole.classes[first : last + 1]
    for part in ("train", "validation", "test"):
        one, other = getattr(whole, part), getattr(some, part)
        rows = [row for row, label in enumerate(targets(one)) if first <= label <= last]
        assert len(other) == len(rows) == len(targets(other))
        for row, (image, label), known in zip(rows, other, targets(other), strict=True):
            assert torch.equal(image, one[row][0])
            assert label == known == one[row][1] - first


def test_without_classes_it_is_all_of_the_data():
    assert targets(opened("digits", 8).test) == targets(open_data("digits", image_size=8).test)
