"""The theorem's terms in cases that are known: a linear encoder, a bowl, two Gaussians, points."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import Linear, blobs

from advssl import Linf
from advssl.evaluation import theory
from advssl.evaluation.attacks import PGD
from advssl.evaluation.theory import (
    MeanClassifier,
    at_worst_weights,
    info_nce,
    robust_bounds,
    told_apart,
)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Points(nn.Module):
    """Each class of images, by their brightness, to an axis of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, images):
        kind = (images.flatten(1).mean(dim=1) * 4).long().clamp(0, 3)
        return self.weight[kind] + 0 * images.flatten(1)[:, :4]


def bright(count: int):
    labels = torch.arange(count) % 4
    return ((labels + 0.5) / 4)[:, None, None, None].expand(-1, 1, 8, 8).clone(), labels


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """Critics that need not be good."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(theory, "_CRITIC_STEPS", 20)
        yield


@pytest.fixture(scope="module")
def bounds():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 6)).train()
    x, y = blobs(24, 4)
    return encoder, x, y, robust_bounds(encoder, Linear(4), x, y, ball=Linf(0.1))


class TestInfoNCE:
    @pytest.mark.parametrize("beta", [None, 2.5])
    def test_is_equation_4(self, beta):
        z, z_pos = torch.randn(2, 5, 3, generator=draw(0), dtype=torch.float64)
        others = torch.randn(7, 3, generator=draw(1), dtype=torch.float64)
        negatives = torch.rand(5, 7, generator=draw(2)) < 0.6
        found = info_nce(z, z_pos, others, negatives, temperature=0.4, beta=beta)
        for i in range(5):
            near = math.exp(F.cosine_similarity(z[i], z_pos[i], dim=0) / 0.4)
            apart = [math.exp(F.cosine_similarity(z[i], o, dim=0) / 0.4) for o in others]
            apart = [value for value, kept in zip(apart, negatives[i], strict=True) if kept]
            weight = (len(apart) if beta is None else beta) / len(apart)
            assert float(found[i]) == pytest.approx(-math.log(near / (near + weight * sum(apart))))

    def test_refuses_anchors_without_negatives(self):
        z = torch.eye(3)
        with pytest.raises(ValueError, match="one at least in each row"):
            info_nce(z, z, z, torch.zeros(3, 3, dtype=torch.bool))


def test_the_worst_weights_of_a_bowl():
    """Of k/2 ‖θ‖² the gradient points outwards: k/2 (‖θ‖ + ρ)²."""
    bowl = nn.Linear(3, 1, bias=False)
    found = at_worst_weights(bowl, lambda: 1.5 * bowl.weight.square().sum(), 0.7)
    assert found == pytest.approx(1.5 * (float(bowl.weight.detach().norm()) + 0.7) ** 2, rel=1e-5)


class TestToldApart:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("divergence", "truth"),
        [
            ("tv", math.erf(0.8 / math.sqrt(8))),
            ("pearson", math.exp(0.8**2) - 1),
            ("js", 0.0742),  # by the trapezoid rule
        ],
    )
    def test_two_gaussians(self, divergence, truth, monkeypatch):
        """N(0, I) and N(0.8 e, I), in other units."""
        monkeypatch.setattr(theory, "_CRITIC_STEPS", 60)
        benign, adversarial = torch.randn(2, 3000, 2, generator=draw(0))
        adversarial[:, 0] += 0.8
        scale = torch.tensor([100.0, 0.01])
        found = told_apart(3 + scale * benign, 3 + scale * adversarial, divergence)
        assert 0.8 * truth < found.divergence < 1.15 * truth
        best = (1 + math.erf(0.4 / math.sqrt(2))) / 2
        assert found.accuracy == pytest.approx(best, abs=0.02)

    def test_of_two_alike_nothing_is_told(self):
        benign, adversarial = torch.randn(2, 2000, 2, generator=draw(0))
        found = told_apart(benign, adversarial)
        assert abs(found.divergence) < 0.01
        assert found.accuracy == pytest.approx(0.5, abs=0.03)

    @pytest.mark.parametrize("power", [-400, -140, 70, 400])
    def test_the_same_at_every_length(self, power, monkeypatch):
        monkeypatch.setattr(theory, "_CRITIC_STEPS", 3)
        z = torch.randn(2, 8, 2, generator=draw(0)).double()
        assert told_apart(*(z * 2.0**power)) == told_apart(*z)

    def test_the_callers_randomness_stays(self):
        z = torch.randn(2, 8, 2, generator=draw(0))
        torch.manual_seed(1)
        told = told_apart(*z)
        after = torch.rand(())
        torch.manual_seed(1)
        assert torch.equal(after, torch.rand(()))
        assert told_apart(*z) == told
        assert told_apart(*z, seed=1) != told


class TestRobustBounds:
    def test_of_points_in_closed_form(self):
        """Without an attack: pairs agree, so that InfoNCE - log β is nearly minus log M."""
        x, y = bright(40)
        found = robust_bounds(Points(), Linear(4), x, y, ball=Linf(1e-3), temperature=0.5)
        benign = math.log(math.e**2 + 8 * math.e**2 + 30) - 2
        assert found.benign == pytest.approx(benign, rel=1e-5)
        assert found.adversarial == pytest.approx(benign, rel=1e-5)
        assert found.prior == pytest.approx(math.log(4))
        assert found.benign - found.log_beta < 0  # as printed, the root of a negative number
        assert found.first == pytest.approx(
            math.sqrt(benign - math.log(38) + math.log(4) + 2 * (2 + math.e**2) * max(0, found.tv))
        )
        assert found.trivial == pytest.approx(math.sqrt(math.log(4)))

    def test_a_linear_encoder(self, bounds):
        encoder, x, y, found = bounds
        linear = encoder[1]
        assert encoder.training
        assert linear.weight.grad is None
        partner = theory._partners(y, draw(0))
        kept = ~torch.eye(24, dtype=torch.bool)
        kept[torch.arange(24), partner] = False

        def loss(weight, bias):
            z = F.linear(x.flatten(1), weight, bias)
            return info_nce(z, z[partner], z, kept).mean()

        theta = [linear.weight, linear.bias]
        benign = loss(*theta)
        assert found.benign == pytest.approx(float(benign.detach()), rel=1e-5)
        g = torch.autograd.grad(benign, theta)
        length = torch.stack([part.norm() for part in g]).norm()
        moved = [p + 0.05 * part / length for p, part in zip(theta, g, strict=True)]
        assert found.sharp == pytest.approx(float(loss(*moved).detach()), rel=1e-5)
        assert found.sharp > found.benign
        hardly = robust_bounds(encoder, Linear(4), x, y, ball=Linf(1e-6))
        assert hardly.adversarial == pytest.approx(found.benign, rel=1e-4)
        assert found.adversarial > found.benign
        hard = PGD(Linf(0.1), 20, None)(Linear(4), x, y, seed=0)
        with torch.no_grad():
            root = F.cross_entropy(Linear(4)(hard), y, reduction="none").sqrt().mean()
        assert found.measured == pytest.approx(float(root), rel=1e-5)

    def test_the_complexity_is_equation_13s(self, bounds):
        encoder, _, _, found = bounds
        count = 64 * 6 + 6
        squares = sum(float(p.detach().square().sum()) for p in encoder.parameters())
        sigma = 0.05 / (count**0.5 + math.log(24) ** 0.5)
        length = 2 / 0.5 + math.log(1 + 22)
        inside = count / 2 * math.log(1 + squares / count / sigma**2) + math.log(20)
        expected = (inside + length**2 / 8 + 2 * length) / 24**0.5
        assert found.complexity == pytest.approx(expected)
        assert found.branch_accuracy is None
        assert found.vacuous == ("first", "second")
        assert "second bound" in str(found)
        assert "vacuous" in str(found)

    def test_the_bounds_put_terms_together_as_printed(self, bounds):
        *_, found = bounds
        found = replace(
            found,
            adversarial=3.0,
            sharp=2.0,
            tv=0.25,
            pearson=4.0,
            complexity=5.0,
            prior=1.0,
            log_beta=2.0,
            temperature=1.0,
        )
        assert found.first == pytest.approx(math.sqrt(3 + 2 * 0.25 * (1 + math.e) + 1 - 2))
        assert found.second == pytest.approx(math.sqrt(2 + 5 + 1 - 2) * 3)
        assert found.second_without_complexity == pytest.approx(3)
        below = replace(found, tv=-0.1, pearson=-0.1)  # by sampling
        assert below.first == pytest.approx(math.sqrt(2))
        assert replace(found, trivial=1e9).vacuous == ()

    def test_a_branch_that_is_told_from_clean_images_is_said(self):
        """The two encoders differ on every image, whether it was attacked or not."""
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        other = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        x, y = blobs(40, 4)
        found = robust_bounds(encoder, Linear(4), x, y, adversarial_encoder=other, ball=Linf(0.01))
        assert found.branch_accuracy > 0.9
        assert "told from the BatchNorm branch" in str(found)
        same = robust_bounds(encoder, Linear(4), x, y, adversarial_encoder=encoder, ball=Linf(0.01))
        assert same.branch_accuracy < 0.7

    def test_without_a_classifier_it_is_that_of_class_means(self, bounds):
        encoder, x, y, _ = bounds
        found = robust_bounds(encoder, None, x, y, ball=Linf(0.1), temperature=0.25)
        judge = MeanClassifier(encoder, x, y, temperature=0.25)
        assert (
            found.measured
            == robust_bounds(encoder, judge, x, y, ball=Linf(0.1), temperature=0.25).measured
        )
        with torch.no_grad():
            z = F.normalize(encoder(x))
            means = torch.stack([z[y == k].mean(dim=0) for k in range(4)])
            torch.testing.assert_close(judge(x), z @ means.T / 0.25)
        assert encoder.training

    def test_refuses_what_has_no_pairs(self):
        x, y = blobs(6, 4)
        encoder = nn.Flatten()
        with pytest.raises(ValueError, match="class 2 has 1 of 6"):
            robust_bounds(encoder, Linear(4), x, y)
        x, y = blobs(8, 4)
        with pytest.raises(ValueError, match="delta must be a probability"):
            robust_bounds(encoder, Linear(4), x, y, delta=0)
        with pytest.raises(ValueError, match="nothing can move"):
            robust_bounds(encoder, Linear(4), x, y)
