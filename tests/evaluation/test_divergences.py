"""Divergences are the paper's sums, and those of two Gaussians in closed form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.special import iv
from torch import Tensor, nn
from toys import Told, blobs

from advssl import Linf
from advssl.evaluation.attacks import PGD, Clean
from advssl.evaluation.divergences import Divergences, clouds, divergences
from advssl.evaluation.probes import Classifier


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_printed(clean: Tensor, attacked: Tensor, labels: Tensor) -> tuple[float, float]:
    """One batch, term by term."""
    intra, inter = [], []
    for i in range(len(labels)):
        sets: dict[bool, list[float]] = {True: [], False: []}
        for j in range(len(labels)):
            if j != i:
                for z in (clean[j], attacked[j]):
                    cosine = F.cosine_similarity(clean[i].double(), z.double(), dim=0)
                    sets[bool(labels[i] == labels[j])].append(1 - float(cosine))
        intra.append(sum(sets[True]) / len(sets[True]))
        inter.append(sum(sets[False]) / len(sets[False]))
    return sum(intra) / len(intra), sum(inter) / len(inter)


def directions(mean: float, deviation: float, count: int, angle: Tensor, seed: int) -> Tensor:
    """N(mean · (cos, sin), deviation² I) in the plane."""
    middle = mean * torch.stack([angle.cos(), angle.sin()], dim=1)
    return middle + deviation * torch.randn(count, 2, generator=draw(seed), dtype=torch.float64)


class TestDivergences:
    def test_are_the_papers_sums(self):
        clean, attacked = torch.randn(2, 23, 5, generator=draw(0))
        labels = torch.arange(23) % 3
        found = divergences(clean, attacked, labels, batch_size=23)
        intra, inter = as_printed(clean, attacked, labels)
        assert found.intra == pytest.approx(intra, rel=1e-9)
        assert found.inter == pytest.approx(inter, rel=1e-9)
        assert found.relative == pytest.approx(intra / inter, rel=1e-9)

    def test_of_two_gaussians_in_closed_form(self):
        """Directions of N(μ, σ²I) have a mean of length R, so that d = 1 - R² cos(angle)."""
        count, apart, turned = 20_000, 2.0, 0.5
        labels = torch.arange(count) % 2
        angle = apart * labels.double()
        towards_other = turned * (1 - 2 * labels.double())
        clean = directions(1.5, 0.7, count, angle, seed=1)
        attacked = directions(1.5, 0.7, count, angle + towards_other, seed=2)
        x = (1.5 / 0.7) ** 2 / 4
        length = math.sqrt(math.pi * x / 2) * math.exp(-x) * (iv(0, x) + iv(1, x))
        intra = 1 - length**2 * (1 + math.cos(turned)) / 2
        inter = 1 - length**2 * (math.cos(apart) + math.cos(apart - turned)) / 2
        for batch_size in (128, count):  # a batch is a sample of all pairs
            found = divergences(clean, attacked, labels, batch_size=batch_size)
            assert found.intra == pytest.approx(intra, abs=0.005)
            assert found.inter == pytest.approx(inter, abs=0.005)
            assert found.relative == pytest.approx(intra / inter, abs=0.005)

    def test_lengths_and_the_order_of_images_do_not_count(self):
        clean, attacked = torch.randn(2, 600, 5, generator=draw(0))
        labels = torch.arange(600) * 3 // 600  # sorted, as folders are
        found = divergences(clean, attacked, labels)
        scale = 0.1 + torch.rand(600, 1, generator=draw(1))
        scaled = divergences(scale * clean, 7 * attacked, labels)
        assert (scaled.intra, scaled.inter) == pytest.approx((found.intra, found.inter), rel=1e-5)
        order = torch.randperm(600, generator=draw(2))
        moved = divergences(clean[order], attacked[order], labels[order])
        assert (moved.intra, moved.inter) == pytest.approx((found.intra, found.inter), abs=0.02)

    def test_an_anchor_without_company_is_left_out(self):
        z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        found = divergences(z, z, torch.tensor([0, 0, 1]))
        assert found == Divergences(intra=1.0, inter=1.5)

    def test_the_relative_one_of_images_that_lie_alike_is_none(self):
        z = torch.ones(4, 3)
        found = divergences(z, z, torch.tensor([0, 0, 1, 1]))
        assert (found.intra, found.inter) == (0.0, 0.0)
        assert math.isnan(found.relative)

    @pytest.mark.parametrize(
        ("labels", "batch_size", "message"),
        [
            ([0, 0, 0, 0], 128, "no batch of 128 holds two images of one class and one of another"),
            ([0, 1, 2, 3], 128, "of 4 in 4 classes"),
            ([0, 0, 1, 1], 1, "batch_size must be at least 2"),
            ([0, 0, 1], 128, "labels must be 4 integers"),
            ([-1, -1, 1, 1], 128, "labels must be classes from 0 on, got -1"),
        ],
    )
    def test_refuses_what_has_no_divergence(self, labels, batch_size, message):
        with pytest.raises(ValueError, match=message):
            divergences(torch.eye(4), torch.eye(4), torch.tensor(labels), batch_size=batch_size)

    def test_refuses_what_is_not_finite(self):
        broken = torch.eye(4).where(torch.eye(4) > 0, torch.nan)
        for clean, attacked in ((torch.eye(4), broken), (broken, torch.eye(4))):
            with pytest.raises(ValueError, match="not finite"):
                divergences(clean, attacked, torch.tensor([0, 0, 1, 1]))


class TestClouds:
    def test_are_the_encoders_features_of_images_and_of_attacked_ones(self):
        torch.manual_seed(0)
        mean, std = (0.4,), (0.3,)
        classifier = Classifier(nn.Flatten(), 64, 4, mean=mean, std=std).train()
        x, y = blobs(10, 4)
        attack = PGD(Linf(0.1), 3, None)
        batches = [(x[:6], y[:6]), (x[6:], y[6:])]
        found = clouds(classifier, attack, batches, seed=3)
        hard = attack(classifier, x, y, seed=3)
        torch.testing.assert_close(found.clean, (x.flatten(1) - 0.4) / 0.3)
        torch.testing.assert_close(found.attacked, (hard.flatten(1) - 0.4) / 0.3)
        assert torch.equal(found.labels, y)
        assert classifier.training
        other = clouds(classifier, attack, batches, encoder=nn.Flatten(), seed=3)
        torch.testing.assert_close(other.attacked, hard.flatten(1))

    def test_without_an_attack_both_are_one(self):
        classifier, (x, y) = Classifier(nn.Flatten(), 64, 4), blobs(8, 4)
        found = clouds(classifier, Clean(), [(x, y)])
        assert torch.equal(found.clean, found.attacked)

    def test_refuses_what_it_cannot_read(self):
        classifier, (x, y) = Classifier(nn.Flatten(), 64, 4), blobs(8, 4)
        with pytest.raises(ValueError, match="there are no images"):
            clouds(classifier, Clean(), [])
        with pytest.raises(ValueError, match="a Told does not say which features"):
            clouds(Told(classifier), Clean(), [(x, y)])
        with pytest.raises(ValueError, match="encoder must be a torch"):
            clouds(classifier, Clean(), [(x, y)], encoder=torch.flatten)
