"""A schedule's values, and who takes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from advssl import AdversarialViewGenerator, Linf, Ramp


def test_a_ramp_is_a_line_between_two_constants():
    ramp = Ramp(2, -2, epochs=8, begin=4)
    assert [ramp(e) for e in (0, 4, 6, 7.5, 8, 12, 100)] == [2, 2, 1, 0.25, 0, -2, -2]


@pytest.mark.parametrize("epochs", [7, 10, 1000])
def test_stairs_are_dynacls_strength(epochs):
    """Alg. 1: one less a share for each stage that is over, in whole numbers."""
    stages = 7 if epochs == 7 else 10
    ramp = Ramp(1, 0, epochs, stages=stages)
    for epoch in range(epochs):
        assert ramp(epoch) == pytest.approx(1 - (epoch * stages // epochs) / stages)
    assert ramp(epochs) == 0


def test_an_end_is_met_exactly():
    assert Ramp(1 / 255, 8 / 255, 3)(3) == 8 / 255


def test_a_generator_takes_its_values():
    adversary = AdversarialViewGenerator(Linf(8 / 255), steps=5)
    adversary.radius = Ramp(1 / 255, 8 / 255, epochs=7)(1)
    assert adversary.radius == pytest.approx(2 / 255)
    assert adversary.step_size == pytest.approx(2.5 * 2 / 255 / 5)


@pytest.mark.parametrize("as_given", [np.float32, np.asarray, torch.tensor])
def test_numbers_of_numpy_and_torch_are_plain(as_given):
    ramp = Ramp(as_given(0.5), as_given(2.0), epochs=as_given(4.0), stages=np.int64(2))
    assert ramp == Ramp(0.5, 2.0, epochs=4.0, stages=2)
    assert hash(ramp) == hash(Ramp(0.5, 2.0, epochs=4.0, stages=2))
    assert {type(ramp(epoch)) for epoch in (0, 1, 4)} == {float}
    assert type(Ramp(1, 3, epochs=2)(2)) is int  # a number of steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be positive"),
        ({"epochs": 1, "stages": 0}, "stages must be at least 1"),
        ({"epochs": 1, "begin": float("inf")}, "begin must be finite"),
        ({"epochs": "1"}, "epochs must be a number"),
    ],
)
def test_what_is_no_schedule(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ramp(0, 1, **arguments)


@pytest.mark.parametrize("epoch", ["1", None, float("nan")])
def test_what_is_no_epoch(epoch):
    with pytest.raises(ValueError, match=r"^epoch must be a number"):
        Ramp(0, 1, epochs=1)(epoch)
