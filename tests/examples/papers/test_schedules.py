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
    assert recipe.optimizer in ("sgd", "adam", "lars")


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


@pytest.mark.parametrize(
    ("name", "steps_per_epoch"), [("advcl", 97), ("simclr", 97), ("supcon", 48)]
)
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


# Epochs, images per step, optimizer, weight decay, peak: of papers' texts and releases. SimCLR is
# trained as AdvCL does it, AT as Bui et al. do, what GSA-RSL's tables compare with as its release.
SUPCON, BUI, ACL = (512, "sgd", 1e-4, 0.5), (120, 128, "sgd", 5e-4, 0.1), (1000, 512, "lars", 1e-6)
PUBLISHED = {
    "simclr": (1000, *SUPCON),
    "supcon": (1000, 1024, "sgd", 1e-4, 0.5),
    "natural": BUI,
    "at": BUI,
    "adr": BUI,
    "trades": (76, 128, "sgd", 2e-4, 0.1),
    "rocl": (*ACL, 1.5),
    "clae": (100, 256, "adam", 0.0, 3e-4),
    **dict.fromkeys(("acl", "dynacl", "acl_air", "dyn_air"), (*ACL, 5.0)),
    **dict.fromkeys(("gsa_acl", "gsa_dynacl", "gsa_acl_air", "gsa_dyn_air"), (*ACL, 5.0)),
    **dict.fromkeys(("advcl", "gsa_on_advcl"), (1000, *SUPCON)),
    **dict.fromkeys(("gsa_rsl", "gsa_advcl", "clae_gsa"), (500, *SUPCON)),
    "rocl_gsa": (500, 512, "sgd", 1e-4, 0.1),
    "ascl_local": (200, 128, "sgd", 5e-4, 0.1),
    "ascl_pretrain": (100, 512, "sgd", 2e-4, 0.1),
    "deacl": (100, 256, "sgd", 5e-4, 0.5),
    "fare": (2, 128, "adam", 1e-4, 1e-5),
}
# Epochs after which the rate falls to a tenth.
FALLS = {
    **dict.fromkeys(("natural", "at", "adr"), (100, 105, 110)),
    "trades": (74,),  # its release counts from 1
    "clae": (),
    "ascl_local": (100, 150),
    "ascl_pretrain": (60, 80),
}


@pytest.mark.parametrize("name", METHODS)
def test_recipes_are_those_of_papers_and_releases(name):
    recipe = METHODS[name].recipe
    of = recipe.epochs, recipe.batch_size, recipe.optimizer, recipe.weight_decay
    assert (*of, recipe.schedule.peak) == PUBLISHED[name]
    rates = trace(recipe.schedule, 1, recipe.epochs)
    falls = [e for e, (a, b) in enumerate(pairwise(rates), 1) if b == pytest.approx(a / 10)]
    assert tuple(falls) == FALLS.get(name, ())


def test_deacl_s_cosine_begins_after_a_warm_up_that_begins_at_three_thousandths():
    rates = trace(METHODS["deacl"].recipe.schedule, 100, 100)
    assert rates[1000] == 0.5
    assert rates[0] == pytest.approx(0.003, abs=5e-4)
    assert rates[5500] == pytest.approx(0.25)  # half of the way from there to the end


def test_steps_keep_their_share_of_another_length():
    schedule = Steps(0.1, (100, 150), 200)
    assert [schedule(e, 1, 4) for e in range(4)] == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_no_step_is_a_constant():
    assert set(trace(Steps(3e-4, (), 1), 3, 5)) == {3e-4}  # CLAE
