"""Slopes agree with gradients for what is smooth or has kinks, and for nothing else."""

from __future__ import annotations

import pytest
import torch
from ills import (
    GAP,
    GRADIENTS,
    INPUTS,
    BatchDependent,
    Clamping,
    Randomised,
    Wrapped,
    failing,
    named,
)
from torch import nn

from advssl import Linf
from advssl.evaluation import slopes
from advssl.evaluation.checks import Case
from advssl.evaluation.diagnostics import doubts


@pytest.mark.slow
def test_a_clamp_is_seen_at_the_edges_alone(learnt):
    model, batches = learnt
    found = named(doubts(Clamping(model), batches))[INPUTS]
    numbers = found.numbers
    x = torch.zeros(1, requires_grad=True)
    x.clamp(0, 1).sum().backward()
    hidden = x.grad == 0  # from torch 2.14 on
    assert ("over steps of a grey level down to 1/512 of it" in found.evidence) == bool(hidden)
    assert (numbers["at_edges"] > 0.9) == bool(hidden)
    assert numbers["disagreement"] < numbers["at_edges"] or not hidden


@pytest.mark.slow
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
    assert "over steps of a grey level the logits'" in checks[INPUTS].evidence
    assert checks[GAP].numbers["gap"] == 0
    assert failing(checks.values()) == set()


def test_finite_differences_stay_in_range():
    draw = torch.Generator().manual_seed(0)
    images = torch.tensor([0.0, 0.001, 0.5, 0.999, 1.0]).repeat(40, 1, 1, 1)
    moved = images + slopes._inward(images, draw)
    assert moved.min() >= 0
    assert moved.max() <= 1
    steps = 255 * (moved - images)
    assert set(steps[..., 2].round().unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(steps[..., :2], torch.ones(40, 1, 1, 2))
    torch.testing.assert_close(steps[..., 3:], -torch.ones(40, 1, 1, 2), rtol=1e-4, atol=0)


def test_no_image_right_leaves_no_gradient_to_look_at(learnt):
    model, batches = learnt
    wrong = [(x, (model(x).argmax(dim=1) + 1) % 10) for x, _ in batches]
    check = named(doubts(model, wrong))[GRADIENTS]
    assert (check.verdict, check.evidence) == ("not run", "no image is classified right")


@pytest.mark.parametrize(
    ("ill", "repeated", "composed"),
    [(lambda m: m, False, False), (Randomised, True, True), (BatchDependent, False, True)],
)
def test_tells_two_looks_from_other_company(learnt, ill, repeated, composed):
    model, batches = learnt
    check = slopes.deterministic(Case(ill(model), batches, Linf(0.1), {}, False, 0))
    assert (check.numbers["repeated"] > 1e-4) == repeated
    assert (check.numbers["composed"] > 1e-4) == composed
    assert check.verdict == ("fail" if composed else "pass")


def test_a_difference_is_a_share_of_the_longer():
    one, other = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[3.0, 4.5], [0.0, 0.0]])
    assert slopes._difference(one, other) == pytest.approx(0.5 / other[0].norm().item())
    assert slopes._difference(torch.zeros(1, 2), torch.ones(1, 2)) == 1


def test_shares_of_gradients_that_are_gone_are_those_of_the_images():
    """Logits that are a thousand times two pixels: of three images 500 apart, of one 1 apart."""

    class Factor(nn.Module):
        def forward(self, images):
            return 1000 * images.flatten(1)[:, :2]

    x = torch.full((5, 1, 2, 2), 0.25)
    x[:, 0, 0, 0] = torch.tensor([0.75, 0.75, 0.75, 0.251, 0.2])  # the last one is wrong
    case = Case(Factor(), [(x, torch.zeros(5, dtype=torch.int64))], Linf(0.1), {}, False, 0)
    check = slopes.gradients(case)
    shares = [check.numbers[name] for name in ("zero", "tiny", "saturated")]
    assert (shares, check.verdict) == ([0.75] * 3, "fail")
    assert check.numbers["lead"] == pytest.approx([500, 500, 500, 1, -50], rel=1e-4)
