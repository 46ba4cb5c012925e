"""What every method keeps in training, whatever its step does."""

from __future__ import annotations

import time

import pytest

from harness.training import LAST
from reproduce import METHODS

from . import tiny

TWO_STEPS = ("--limit", "40")


# Of each kind of state one: none beside the weights, branches, a slow encoder and what epochs
# change, a critic that learns for itself, a teacher. Those of advcl are trained twice over.
LIGHT = ("simclr", "acl", "dyn_air", "gsa_rsl", "deacl")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in LIGHT else pytest.mark.heavy) for n in METHODS]
)
def test_saved_and_loaded_after_each_step_it_ends_with_the_same_weights(name, tmp_path):
    """Those of a method that is trained beforehand, for pseudo-labels, included."""
    plan = tiny.plan(name, *TWO_STEPS)
    whole = tiny.weights(tiny.train(plan, tmp_path / "whole"))
    starts, resumed = 0, None
    while resumed is None:
        starts += 1
        # Its time is up at once, but each start makes a step and saves it.
        resumed = tiny.train(plan, tmp_path, deadline=time.monotonic())
    assert starts == (3 if resumed.method.after else 2)  # one ends the training beforehand too
    assert tiny.same(tiny.weights(resumed), whole)
    assert list((tmp_path / "work").glob(f"*/{LAST}"))  # what it went on from
