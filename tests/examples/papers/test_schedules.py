"""Learning rates have no spikes, meet the papers' corners, and stay sane in short runs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from harness.schedules import Steps, WarmupCosine, optimizer
from reproduce import METHODS, PRESETS

ADVCL = WarmupCosine(0.5, 10, 0.01, 5e-4, per_epoch=True)
RECIPES = {name: method.recipe for name, method in METHODS.items()} | {
    name: preset.recipe for name, preset in PRESETS.items() if preset.recipe
}


def trace(schedule, steps_per_epoch, epochs):
    total = steps_per_epoch * epochs
    return [schedule(step, steps_per_epoch, epochs) for step in range(total)]


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("steps_per_epoch", "epochs"), [(97, 0), (1, 1), (5, 1), (7, 3), (3, 25)])
def test_up_to_the_peak_and_down_again(name, steps_per_epoch, epochs):
    """Also per iteration: GSA-RSL's release jumps to the peak at each epoch of its warm-up."""
    recipe = RECIPES[name]
    rates = trace(recipe.schedule, steps_per_epoch, epochs or recipe.epochs)
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(recipe.schedule.peak, rel=1e-2 if epochs else 1e-12)
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in pairwise(rates[top:]))
    assert rates[-1] > 0


@pytest.mark.parametrize(("epochs", "warm"), [(1000, 10), (100, 10), (40, 4), (5, 0.5)])
def test_warm_up_is_at_most_a_tenth_of_the_run(epochs, warm):
    rates = trace(WarmupCosine(1.0, 10), 20, epochs)
    assert rates.index(max(rates)) == warm * 20


@pytest.mark.parametrize("steps_per_epoch", [1, 97])
def test_a_longer_epoch_samples_the_same_curve(steps_per_epoch):
    """At the middle of the cosine, whatever an epoch's length."""
    schedule = WarmupCosine(1.0, 0, floor=0.2)
    assert schedule(50 * steps_per_epoch, steps_per_epoch, 100) == pytest.approx(0.6)


def test_per_epoch_holds_still_inside_an_epoch():
    rates = trace(ADVCL, 97, 1000)
    for epoch in (10, 500, 999):
        assert len(set(rates[epoch * 97 : (epoch + 1) * 97])) == 1
    assert len(set(rates[: 10 * 97])) == 10 * 97  # the warm-up moves at every step


# --- the papers' corners --------------------------------------------------------------------------


def test_advcl():
    rates = trace(ADVCL, 97, 1000)
    assert rates[0] == pytest.approx(0.01, abs=0.49 / 970)
    assert rates[970] == 0.5
    assert rates[97 * 505] == pytest.approx((0.5 + 5e-4) / 2)  # half way from 10 to 1000
    assert rates[-1] == pytest.approx(5e-4, abs=2e-6)


def test_gsa_rsl():
    rates = trace(METHODS["gsa_rsl"].recipe.schedule, 98, 500)
    by_hand = 1e-8 + (0.5 - 1e-8) * (1 + math.cos(math.pi * 240 / 490)) / 2
    assert rates[250 * 98 + 3] == pytest.approx(by_hand)
    starts_of_warm_up_epochs = [rates[epoch * 98] for epoch in range(1, 10)]
    assert starts_of_warm_up_epochs == pytest.approx([0.05 * e for e in range(1, 10)], rel=0.01)


def test_acl_moves_at_every_step():
    rates = trace(METHODS["acl"].recipe.schedule, 97, 1000)
    assert rates[970] == 5.0
    assert rates[0] == pytest.approx(5.0 / 971)
    assert all(a > b for a, b in pairwise(rates[970:]))
    assert rates[-1] == pytest.approx(1e-6, abs=1e-6)


def test_ascl_falls_at_100_and_150_of_200_epochs():
    schedule = METHODS["ascl_local"].recipe.schedule
    rates = [schedule(epoch * 390, 390, 200) for epoch in (0, 99, 100, 149, 150, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert schedule(100 * 390 - 1, 390, 200) == 0.1


def test_steps_keep_their_share_of_another_length():
    schedule = Steps(0.1, (100, 150), 200)
    assert [schedule(e, 1, 4) for e in range(4)] == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_no_step_is_a_constant():
    assert set(trace(Steps(3e-4, (), 1), 3, 5)) == {3e-4}  # CLAE


# --- optimizers -----------------------------------------------------------------------------------


def test_lars_scales_every_tensor_by_its_own_length():
    """ACL's: trust 1e-3, BatchNorm and biases included. You et al. 2017, Eq. 6."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    torch.nn.init.ones_(model[1].bias)
    start = [p.detach().clone() for p in model.parameters()]
    model(torch.rand(8, 4)).square().sum().backward()
    optimizer("lars", model.parameters(), 5.0, 1e-6).step()
    for before, after in zip(start, model.parameters(), strict=True):
        direction = after.grad + 1e-6 * before
        trust = 1e-3 * before.norm() / (after.grad.norm() + 1e-6 * before.norm())
        torch.testing.assert_close(after.detach(), before - 5.0 * trust * direction)


def test_names():
    weight = [torch.nn.Parameter(torch.ones(1))]
    sgd = optimizer("sgd", weight, 0.1, 1e-4)
    assert sgd.defaults["momentum"] == 0.9
    assert sgd.defaults["weight_decay"] == 1e-4
    assert isinstance(optimizer("adam", weight, 0.1, 0.0), torch.optim.AdamW)
    with pytest.raises(
        ValueError, match='optimizers are "sgd", "adam" and "lars", got \'rmsprop\''
    ):
        optimizer("rmsprop", weight, 0.1, 0.0)
