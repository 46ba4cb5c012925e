"""Of a linear encoder the way up is a straight line that ends where pixels do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from toys import Linear

from advssl.evaluation.inversion import inversions
from advssl.evaluation.probes import Classifier


def starts(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class TestInversions:
    def test_of_a_linear_encoder_from_black_is_white_where_it_answers_more(self):
        """The way from corner to corner is not cut short."""
        encoder = Linear(1)
        with torch.no_grad():
            encoder.weight.copy_(encoder.weight.abs() + 0.5)
        found = inversions(encoder, torch.zeros(1, 1, 8, 8), [0], steps=200)
        assert torch.equal(found.maps[0], torch.ones(1, 1, 8, 8))

    @pytest.mark.parametrize(("steps", "step_size"), [(7, 0.3), (200, None)])
    def test_of_a_linear_encoder_in_closed_form(self, steps, step_size):
        encoder, x = Linear(4), starts()
        found = inversions(encoder, x, [2, 0], steps=steps, step_size=step_size)
        length = steps * (step_size or math.sqrt(64) / 50)
        for j, i in enumerate((2, 0)):
            w = encoder.weight[i].detach().view(1, 1, 8, 8)
            expected = (x + length * w / w.norm()).clamp(0, 1)
            torch.testing.assert_close(found.maps[j], expected, atol=1e-4, rtol=0)
            for images, heights in ((x, found.before[j]), (found.maps[j], found.after[j])):
                torch.testing.assert_close(torch.tensor(heights), encoder(images)[:, i].detach())
        assert torch.equal(found.starts, x)
        assert found.neurons == (2, 0)

    def test_maps_of_a_linear_encoder_become_one(self):
        encoder, x = Linear(4), starts()
        far = inversions(encoder, x, [0, 1], steps=200)
        near = inversions(encoder, x, [0, 1], steps=1)
        assert near.alike == pytest.approx(near.alike_before, abs=0.05)
        assert far.alike > 0.95
        assert far.alike_before == pytest.approx(near.alike_before)

    def test_alike_is_the_mean_correlation_of_pairs(self):
        x = starts(4)
        found = inversions(Linear(4), x, [1], steps=1, step_size=1e-6)
        first, second = torch.triu_indices(4, 4, 1)
        pairs = torch.corrcoef(x.flatten(1).double())[first, second]
        assert found.alike_before == pytest.approx(float(pairs.mean()))
        assert math.isnan(inversions(Linear(4), x[:1], [1], steps=1, step_size=1e-6).alike)

    def test_of_a_probe_the_encoder_is_meant_with_its_normalisation(self):
        inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        probe, x = Classifier(inner, 3, 2, mean=(0.4,), std=(0.25,)), starts()
        found = inversions(probe, x, [1], steps=2)
        expected = inner((x - 0.4) / 0.25)[:, 1].detach()
        torch.testing.assert_close(torch.tensor(found.before[0]), expected)

    def test_by_default_there_are_200_steps_and_the_seed_is_0(self):
        class Noisy(Linear):
            def forward(self, images):
                return super().forward(images + torch.randn_like(images))

        encoder, x = Noisy(2), starts()
        found = inversions(encoder, x, [1], step_size=0.001)
        again = inversions(encoder, x, [1], step_size=0.001, steps=200, seed=0)
        assert torch.equal(found.maps, again.maps)
        assert found.before == again.before
        assert found.before != inversions(encoder, x, [1], step_size=0.001, seed=1).before

    def test_a_neuron_that_is_dead_changes_nothing(self):
        dead = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.ReLU())
        with torch.no_grad():
            dead[1].weight.neg_().clamp_(max=-0.01)
            dead[1].bias.fill_(-1)
        found = inversions(dead, starts(), [0])
        assert torch.equal(found.maps[0], starts())

    @pytest.mark.parametrize(
        ("given", "neurons", "message"),
        [
            (starts(), [4], "neurons must be from 0 to 3, got 4"),
            (starts(), [], "neurons must name one at least"),
            (starts(), [-1], "each of neurons must be at least 0"),
            (starts()[0], [0], r"starts must be float32 images \(S, C, H, W\)"),
            (starts().double(), [0], "float32"),
            (starts() + 1, [0], r"images must lie in bounds \(0.0, 1.0\)"),
        ],
    )
    def test_refuses_what_it_cannot_invert(self, given, neurons, message):
        with pytest.raises(ValueError, match=message):
            inversions(Linear(4), given, neurons, steps=2)
