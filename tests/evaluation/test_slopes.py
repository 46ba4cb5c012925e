"""Slopes agree with gradients for what is smooth or has kinks, and for nothing else."""

from __future__ import annotations

import torch
from ills import (
    GAP,
    GRADIENTS,
    INPUTS,
    Clamping,
    Wrapped,
    failing,
    named,
)
from torch import nn

from advssl.evaluation import slopes
from advssl.evaluation.diagnostics import doubts


def test_a_clamp_is_seen_at_the_edges_alone(learnt):
    model, batches = learnt
    numbers = named(doubts(Clamping(model), batches))[INPUTS].numbers
    x = torch.zeros(1, requires_grad=True)
    x.clamp(0, 1).sum().backward()
    hidden = x.grad == 0  # from torch 2.14 on
    assert (numbers["at_edges"] > 0.9) == bool(hidden)
    assert numbers["disagreement"] < numbers["at_edges"] or not hidden


def test_a_smaller_factor_is_caught_before_it_hides_all(learnt):
    model, batches = learnt

    class Sharper(Wrapped):
        def forward(self, images):
            return 30 * self.inner(images)

    numbers = named(doubts(Sharper(model), batches))[GRADIENTS].numbers
    assert numbers["tiny"] > 0.1
    assert numbers["zero"] <= numbers["tiny"] <= numbers["saturated"]


def test_a_linear_one_is_what_it_says():
    """Slopes are exact, and no attack is stronger than another between two classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    x = torch.rand(32, 1, 8, 8) * 0.5 + 0.25
    checks = named(doubts(model, [(x, model(x).argmax(dim=1))]))
    assert checks[INPUTS].numbers["disagreement"] < 1e-3
    assert checks[GAP].numbers["gap"] == 0
    assert failing(checks.values()) == set()


def test_finite_differences_stay_in_range():
    draw = torch.Generator().manual_seed(0)
    images = torch.tensor([0.0, 0.001, 0.5, 0.999, 1.0]).repeat(40, 1, 1, 1)
    moved = images + slopes._inward(images, draw)
    assert moved.min() >= 0
    assert moved.max() <= 1
    middle = (moved - images)[..., 2]
    assert set((middle * 255).round().unique().tolist()) == {-1.0, 1.0}


def test_no_image_right_leaves_no_gradient_to_look_at(learnt):
    model, batches = learnt
    wrong = [(x, (model(x).argmax(dim=1) + 1) % 10) for x, _ in batches]
    check = named(doubts(model, wrong))[GRADIENTS]
    assert (check.verdict, check.evidence) == ("not run", "no image is classified right")
