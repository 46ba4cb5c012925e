"""Two Gaussians far apart stay apart in the plane; entropies are those of known predictions."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import Linear, blobs

from advssl import Linf
from advssl.evaluation.attacks import PGD, Clean
from advssl.evaluation.embeddings import Plane, entropy, plane, tsne


def gaussians(apart: float, count: int = 24):
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    rows = torch.randn(count, 8, generator=draw)
    rows[:, 0] += apart * labels
    return rows, labels


class TestTsne:
    def test_keeps_two_gaussians_apart_that_are_and_mixes_one(self):
        """Of one Gaussian every other neighbour is of the other half."""
        for apart, low, high in ((30.0, 1.0, 1.0), (0.0, 0.2, 0.8)):
            rows, labels = gaussians(apart)
            points = tsne(rows)
            assert points.shape == (24, 2)
            away = torch.cdist(points, points).fill_diagonal_(torch.inf)
            share = (labels[away.argmin(1)] == labels).double().mean()
            assert low <= share <= high

    def test_is_the_same_for_the_same_seed(self):
        rows, _ = gaussians(1.0, 8)
        assert torch.equal(tsne(rows, seed=3), tsne(rows, seed=3))

    @pytest.mark.parametrize("rows", [torch.ones(6, 3), torch.rand(5, 1), torch.rand(4, 2)])
    def test_takes_few_rows_and_rows_that_do_not_vary(self, rows):
        assert tsne(rows).isfinite().all()

    @pytest.mark.parametrize("power", [-200, -90, 60, 100])
    def test_the_size_of_features_does_not_count(self, power):
        """In squares of float32 it was zero or infinite, of which scikit-learn crashed."""
        rows = gaussians(1.0, 8)[0].double()
        edge = 2.0 ** (60 if power > 0 else -60)  # beyond which rows are made smaller or larger
        torch.testing.assert_close(tsne(rows * 2.0**power), tsne(rows * edge))

    @pytest.mark.parametrize(
        ("rows", "message"),
        [(torch.rand(3, 2), "four rows"), (torch.full((5, 2), torch.nan), "not finite")],
    )
    def test_refuses_what_has_no_plane(self, rows, message):
        with pytest.raises(ValueError, match=message):
            tsne(rows)


def test_entropy_is_that_of_the_probabilities():
    torch.testing.assert_close(entropy(torch.zeros(2, 5)), torch.full((2,), math.log(5)))
    p = torch.tensor([[0.5, 0.25, 0.25]])
    torch.testing.assert_close(entropy(p.log()), torch.tensor([1.5 * math.log(2)]))
    assert entropy(torch.tensor([[200.0, 0.0]])).item() == 0


class TestPlane:
    def test_of_a_linear_classifier_its_points_and_entropies(self):
        x, y = blobs(24, 3)
        model, attack = Linear(3), PGD(Linf(0.2), 3, None)
        found = plane(model, attack, [(x[:7], y[:7]), (x[7:], y[7:])], encoder=nn.Flatten(),
                      attacked=6, seed=1)  # fmt: skip
        hard = attack(model, x, y, seed=1)
        chosen = torch.tensor(found.chosen)
        assert torch.bincount(y[chosen]).tolist() == [2, 2, 2]
        assert found.labels == tuple(y.tolist())
        for images, spread in ((x, found.entropy), (hard[chosen], found.attacked_entropy)):
            p = F.softmax(model(images), dim=1).double()
            expected = -(p * p.log()).nansum(dim=1)
            torch.testing.assert_close(
                torch.tensor(spread).double(), expected, atol=1e-5, rtol=1e-4
            )
        rows = torch.cat([x, hard[chosen]]).flatten(1)
        assert torch.tensor([*found.clean, *found.attacked]).tolist() == tsne(rows, seed=1).tolist()
        json.dumps(asdict(found), allow_nan=False)

    def test_at_home_is_of_the_nearest_other_image(self):
        """Attacked ones lie on their own image, which does not count."""
        found = Plane(
            clean=((0, 0), (1, 0), (10, 0), (11, 0), (2, 0)),
            labels=(0, 0, 1, 1, 1),
            entropy=(0.0,) * 5,
            chosen=(0, 4),
            attacked=((0, 0), (10.5, 0)),
            attacked_entropy=(0.0, 0.0),
        )
        assert found.at_home == 4 / 5
        assert found.attacked_at_home == 1.0

    def test_one_image_can_be_attacked(self):
        x, y = blobs(8, 2)
        found = plane(Linear(2), Clean(), [(x, y)], encoder=nn.Flatten(), attacked=1)
        assert len(found.attacked) == len(found.chosen) == 1

    def test_without_an_attack_attacked_points_are_as_clean_ones(self):
        x, y = blobs(12, 2)
        found = plane(Linear(2), Clean(), [(x, y)], encoder=nn.Flatten())
        assert sorted(found.chosen) == [*range(12)]
        assert found.attacked_entropy == pytest.approx([found.entropy[i] for i in found.chosen])

    def test_refuses_what_it_cannot_see(self):
        x, y = blobs(8, 2)
        with pytest.raises(ValueError, match="four images"):
            plane(Linear(2), Clean(), [(x[:3], y[:3])], encoder=nn.Flatten())
        with pytest.raises(ValueError, match="four images"):
            plane(Linear(2), Clean(), [], encoder=nn.Flatten())
        with pytest.raises(ValueError, match="a Linear does not say which features"):
            plane(Linear(2), Clean(), [(x, y)])
