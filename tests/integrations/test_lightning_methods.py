"""Ten methods nobody here wrote: attacked by their own loss, and otherwise not disturbed."""

from __future__ import annotations

import math

import pytest
import torch

from advssl import AdversarialViewGenerator, Linf
from advssl.integrations.lightning import AdversarialViews

from .lightly_methods import METHODS, assert_same, fit, made, state

pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|LeafSpec|weight_norm)")

ADVERSARY = AdversarialViewGenerator(Linf(8 / 255), steps=3)
PATIENT = AdversarialViewGenerator(Linf(8 / 255), steps=10)  # three long steps can also overshoot


def still(steps: int) -> AdversarialViews:
    """An attack with everything but an effect: its ball is lost in rounding."""
    return AdversarialViews(AdversarialViewGenerator(Linf(1e-12), steps, 1e-12), "all")


@pytest.mark.parametrize("method", METHODS)
class TestMethods:
    @pytest.mark.slow
    def test_an_attack_leaves_no_trace(self, method):
        """Weights, teacher, center, queue, prototypes and logs: those of the module alone."""
        plain = made(method)
        alone = fit(plain, steps=3)
        for steps in (0, 3):
            module = made(method)
            trainer = fit(module, [still(steps)], steps=3)
            assert_same(state(module), state(plain))
            own = {"attack_start", "attack_end"}
            logged = [{k: m[k] for k in m.keys() - own} for m in trainer.logger.metrics]
            assert logged == alone.logger.metrics

    @pytest.mark.slow
    def test_adversarial_views_raise_the_modules_own_loss(self, method):
        def first_loss(*callbacks) -> float:
            trainer = fit(made(method), callbacks, steps=1)
            return trainer.logger.metrics[0]["train_loss"]

        clean = first_loss()
        assert clean < first_loss(AdversarialViews(PATIENT))
        assert clean < first_loss(AdversarialViews(PATIENT, "all"))

    @pytest.mark.slow
    def test_trains_and_is_given_back(self, method):
        module = made(method)
        trainer = fit(module, [AdversarialViews(ADVERSARY, "all")], steps=3)
        assert all(math.isfinite(m["train_loss"]) for m in trainer.logger.metrics)
        assert len(trainer.logger.metrics) == 3
        assert all(t.isfinite().all() for t in state(module).values() if torch.is_tensor(t))
        assert "training_step" not in vars(module)
        assert "log" not in vars(module)

    @pytest.mark.slow
    def test_trains_afterwards_as_before(self, method):
        before, after = made(method), made(method)
        fit(before)
        fit(made(method), [AdversarialViews(ADVERSARY)])
        fit(after)
        assert_same(state(before), state(after))


def test_there_are_ten():
    assert len(METHODS) == 10
