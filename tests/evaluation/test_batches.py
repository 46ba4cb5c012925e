"""Batches: wrong images and labels are refused, subsets have classes as equal as possible."""

from __future__ import annotations

import pytest
import torch
from toys import QUICK

from advssl.evaluation.attacks import PGD
from advssl.evaluation.batches import batch_seed, class_balanced, image_seeds


class TestWrongInput:
    @pytest.mark.parametrize(
        ("images", "complaint"),
        [
            (torch.rand(4, 8, 8), r"\(B, C, H, W\).*got torch.float32 of shape \(4, 8, 8\)"),
            (torch.rand(0, 1, 8, 8), "B ≥ 1"),
            (torch.rand(4, 1, 8, 8).half(), "float32.*got torch.float16"),
            (torch.rand(4, 1, 8, 8).double(), "float32.*got torch.float64"),
            (torch.rand(4, 1, 8, 8) * 255, r"in \[0, 1\], got .*put a normalisation into"),
            (torch.rand(4, 1, 8, 8) - 0.5, r"in \[0, 1\]"),
            (torch.full((4, 1, 8, 8), torch.nan), r"in \[0, 1\], got \[nan"),
        ],
    )
    def test_images(self, net, images, complaint):
        labels = torch.zeros(len(images), dtype=torch.int64)
        for attack in QUICK:
            with pytest.raises(ValueError, match=complaint):
                attack(net, images, labels, seed=0)

    @pytest.mark.parametrize(
        ("labels", "complaint"),
        [
            (
                torch.zeros(3, dtype=torch.int64),
                r"labels must be 4 integers, in a tensor, got .*\(3,\)",
            ),
            (torch.zeros(4), "got torch.float32"),
            (torch.zeros(4, dtype=torch.bool), "got torch.bool"),
            (torch.full((4,), 4), "from 0 to 3, the classifier's classes, got 4 to 4"),
            (torch.full((4,), -1), "classes from 0 on, got -1; leave images without a label out"),
            ([0, 1, 2, 3], r"in a tensor, got list of \[0, 1, 2, 3\]"),
        ],
    )
    def test_labels(self, net, labels, complaint):
        with pytest.raises(ValueError, match=complaint):
            PGD()(net, torch.rand(4, 1, 8, 8), labels, seed=0)


class TestClassBalanced:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 4 + [7] * 16)

    @pytest.mark.parametrize("count", [1, 3, 4, 10, 16, 40, 99, 100])
    def test_as_equal_as_possible(self, count):
        taken = class_balanced(self.labels, count, seed=0)
        assert len(set(taken.tolist())) == count
        assert torch.equal(taken, taken.sort().values)
        counts = [int((self.labels[taken] == k).sum()) for k in (0, 1, 2, 7)]
        sizes = [50, 30, 4, 16]
        for got, size in zip(counts, sizes, strict=True):
            # Whoever has less than the most by two or more has given all.
            assert got == size or got >= max(counts) - 1

    def test_seeded(self):
        one, again = (class_balanced(self.labels, 20, seed=4) for _ in range(2))
        assert torch.equal(one, again)
        assert not torch.equal(one, class_balanced(self.labels, 20, seed=5))
        torch.rand(3)
        assert torch.equal(one, class_balanced(self.labels, 20, seed=4))

    @pytest.mark.parametrize("count", [1, 5, 40])
    def test_as_drawn_the_first_are_what_a_smaller_count_gives(self, count):
        drawn = class_balanced(self.labels, 100, seed=4, ascending=False)
        fewer = class_balanced(self.labels, count, seed=4)
        assert torch.equal(drawn[:count].sort().values, fewer)
        assert not torch.equal(drawn, drawn.sort().values)

    def test_leaves_the_random_state(self):
        before = torch.get_rng_state()
        class_balanced(self.labels, 20, seed=4)
        assert torch.equal(torch.get_rng_state(), before)

    def test_every_example_has_its_chance(self):
        labels = torch.arange(12) % 3
        seen = {i for s in range(60) for i in class_balanced(labels, 3, s).tolist()}
        assert seen == set(range(12))
        odd = [int(labels[class_balanced(labels, 1, s)]) for s in range(40)]
        assert set(odd) == {0, 1, 2}  # the one left over is of any class

    @pytest.mark.parametrize("count", [0, -1, 101])
    def test_what_is_not_there(self, count):
        with pytest.raises(ValueError, match=f"from 1 to the 100 labels there are, got {count}"):
            class_balanced(self.labels, count, seed=0)


def test_a_seed_has_many_seeds():
    assert len({batch_seed(s, n) for s in range(20) for n in range(20)}) == 400


def test_an_image_has_a_seed_of_its_pixels_wherever_it_stands():
    images = torch.rand(6, 3, 4, 4)
    images[5] = images[0]
    seeds = image_seeds(images, 0)
    assert seeds[0] == seeds[5]
    assert len(set(seeds)) == 5
    turned = images.flip(0).to(memory_format=torch.channels_last)
    assert image_seeds(turned, 0) == seeds[::-1]
    assert not set(image_seeds(images, 1)) & set(seeds)
    images[2, 0, 0, 0] += 1e-6
    assert [a == b for a, b in zip(image_seeds(images, 0), seeds, strict=True)].count(False) == 1
