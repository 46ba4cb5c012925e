"""Learning rates have no spikes, meet the papers' corners, and stay sane in short runs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from harness.schedules import Steps, WarmupCosine
from reproduce import METHODS, PRESETS

ADVCL = METHODS["advcl"].recipe.schedule
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
    # A cosine that counts from the first epoch has fallen a little by the end of the warm-up.
    assert recipe.schedule.peak * (0.97 if epochs else 0.999) <= rates[top] <= recipe.schedule.peak
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in pairwise(rates[top:]))
    assert rates[-1] > 0


@pytest.mark.parametrize(("epochs", "warm"), [(1000, 10), (100, 10), (40, 4), (5, 0.5)])
def test_warm_up_is_at_most_a_tenth_of_the_run(epochs, warm):
    for restarts in (False, True):
        rates = trace(WarmupCosine(1.0, 10, restarts=restarts), 20, epochs)
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


def by_hand(epoch, epochs, peak=0.5, floor=5e-4):
    """The cosine of SupCon's, AdvCL's and GSA-RSL's code."""
    return floor + (peak - floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@pytest.mark.parametrize(("name", "steps_per_epoch"), [("advcl", 97), ("supcon", 48)])
def test_supcon_s_schedule_and_advcl_s(name, steps_per_epoch):
    """Epochs count from 1; the warm-up goes in each step to where the cosine is in the tenth."""
    rates = trace(METHODS[name].recipe.schedule, steps_per_epoch, 1000)
    for epoch in range(11, 1001):
        first = (epoch - 1) * steps_per_epoch
        assert rates[first] == rates[first + steps_per_epoch - 1]
        assert rates[first] == pytest.approx(by_hand(epoch, 1000), rel=1e-12)
    warm = 10 * steps_per_epoch
    for step in range(warm):
        released = 0.01 + step / warm * (by_hand(10, 1000) - 0.01)
        assert rates[step] == pytest.approx(released, abs=0.49 / warm)  # ours is a step ahead


def test_gsa_rsl():
    rates = trace(METHODS["gsa_rsl"].recipe.schedule, 98, 500)
    for epoch in range(10, 500):  # counted from 0
        assert rates[epoch * 98] == rates[epoch * 98 + 97]
        assert rates[epoch * 98] == pytest.approx(by_hand(epoch, 500, floor=1e-8), rel=1e-9)
    end = by_hand(10, 500, floor=1e-8)
    starts_of_warm_up_epochs = [rates[epoch * 98] for epoch in range(1, 10)]
    by_tenths = [end * epoch / 10 for epoch in range(1, 10)]
    assert starts_of_warm_up_epochs == pytest.approx(by_tenths, rel=0.01)


def test_acl_moves_at_every_step_and_its_cosine_begins_after_the_warm_up():
    rates = trace(METHODS["acl"].recipe.schedule, 97, 1000)
    assert rates[970] == 5.0
    assert rates[0] == pytest.approx(5.0 / 971)
    for step in (970, 971, 40_000, 96_999):
        share = (step - 970) / (97_000 - 970)
        expected = 1e-6 + (5.0 - 1e-6) * (1 + math.cos(math.pi * share)) / 2
        assert rates[step] == pytest.approx(expected, rel=1e-12)
    assert all(a > b for a, b in pairwise(rates[970:]))


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
