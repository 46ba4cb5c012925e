"""An image has one answer: the comparison is relative, and does not divide by nothing."""

from __future__ import annotations

import pytest
import torch
from ills import BatchDependent, Randomised

from advssl import Linf
from advssl.evaluation import answers
from advssl.evaluation.checks import Case


@pytest.mark.parametrize(
    ("ill", "repeated", "composed"),
    [(lambda m: m, False, False), (Randomised, True, True), (BatchDependent, False, True)],
)
def test_tells_two_looks_from_other_company(learnt, ill, repeated, composed):
    model, batches = learnt
    check = answers.deterministic(Case(ill(model), batches, Linf(0.1), {}, False, 0))
    assert (check.numbers["repeated"] > 1e-4) == repeated
    assert (check.numbers["composed"] > 1e-4) == composed
    assert check.verdict == ("fail" if composed else "pass")


def test_a_difference_is_a_share_of_the_longer():
    one, other = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[3.0, 4.5], [0.0, 0.0]])
    assert answers._difference(one, other) == pytest.approx(0.5 / other[0].norm().item())
    assert answers._difference(torch.zeros(1, 2), torch.ones(1, 2)) == 1
