"""Overfitting that was planted is caught, and what is healthy is the run without a guard."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from borrowed import Trace
from flops import flops
from torch import nn

from advssl import L2, AdversarialViewGenerator, CatastrophicOverfittingGuard, Linf
from advssl.guards import attacked_values
from advssl.modes import random_state

RADIUS = 0.1
CAUGHT = "catastrophic overfitting: the attack of training raises the objective by"


@pytest.fixture
def images() -> torch.Tensor:
    """Far from the edges of the box."""
    return torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double() * 0.5 + 0.25


class Bent(nn.Module):
    """A straight way up, or, as in catastrophic overfitting, one that one step overshoots.

    A pixel adds its distance t from the image, in radii; overfitted, it adds 4 t (1 - t), which is
    0 at a full step and 1 at half of one.
    """

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images.clone())
        self.register_buffer("overfitted", torch.tensor(0.0))
        self.batchnorm = nn.BatchNorm2d(3).double()

    def forward(self, views):
        self.batchnorm(views)
        t = (views - self.images) / RADIUS
        bent = 4 * t * (1 - t)
        return 3 + (self.overfitted * bent + (1 - self.overfitted) * t).mean((1, 2, 3))


def fgsm(**settings) -> AdversarialViewGenerator:
    return AdversarialViewGenerator(Linf(RADIUS), **{"steps": 1, "start": "zero", **settings})


class TestAttackedValues:
    def test_are_the_closed_forms(self, images):
        """One step goes to the far edge; a fine PGD to the top at half of the radius."""
        model = Bent(images)
        fine = fgsm(steps=40, step_size=RADIUS / 20)
        for overfitted, expected in [(0.0, [3, 4, 4]), (1.0, [3, 3, 4])]:
            model.overfitted.fill_(overfitted)
            values = attacked_values([fgsm(), fine], images, model, freeze=model)
            assert values == pytest.approx(expected, abs=0.01)

    @pytest.mark.parametrize("shaped", [lambda h: h, lambda h: h.mean(), lambda h: {"loss": h}])
    def test_are_means_whatever_the_objective_returns(self, images, shaped):
        model = Bent(images)
        found = attacked_values([fgsm()], images, lambda v: shaped(model(v)), freeze=model)
        assert found == pytest.approx([3, 4])

    def test_of_views_in_any_form(self, images):
        model = Bent(images)
        labels = torch.arange(8)

        def objective(first, second, seen):
            assert seen is labels or torch.equal(seen, labels)
            return model(first) + 2 * model(second)

        views = {"x": [images, images], "y": labels}
        assert attacked_values([fgsm()], views, objective, freeze=model) == pytest.approx([9, 12])
        with pytest.raises(ValueError, match=r"must be \(B, C, H, W\)"):
            attacked_values([fgsm()], labels, objective)

    @pytest.mark.parametrize("wrong", [3, [3], fgsm])
    def test_what_are_no_adversaries(self, wrong, images):
        with pytest.raises(ValueError, match=r"^(each of )?adversaries must be"):
            attacked_values(wrong, images, torch.sum)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_where_the_objective_takes_a_gradient_itself(self, images, context):
        def steepness(v):
            (slope,) = torch.autograd.grad(v.pow(3).sum(), v, create_graph=True)
            return slope.sum((1, 2, 3))

        with context():
            clean, attacked = attacked_values([fgsm()], images * 1, steepness)
        exact = 3 * torch.stack([images, images + RADIUS]).square().sum((2, 3, 4)).mean(1)
        assert [clean, attacked] == pytest.approx(exact.tolist())


class TestGuard:
    def test_leaves_no_trace(self, encoder, images):
        images = images.float().repeat_interleave(2, 2).repeat_interleave(2, 3)
        encoder(images).sum().backward()
        adversary = AdversarialViewGenerator(steps=1, start="noise")
        guard = CatastrophicOverfittingGuard(adversary)
        z, clean = encoder(images.flip(3)).detach(), images.clone()
        trace, drawn = Trace(encoder), random_state(images.device)[0]
        gains = guard(images, lambda v: (encoder(v) - z).square().sum(1), freeze=encoder)
        assert gains.pgd > 0
        trace.assert_none()
        assert torch.equal(random_state(images.device)[0], drawn)
        assert torch.equal(images, clean)

    def test_costs_what_it_says_where_it_is_due_and_nothing_elsewhere(self, images):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4)).double()
        objective = lambda v: model(v).sum(1)  # noqa: E731
        forward = flops(lambda: model(images))
        for steps in (1, 3):
            guard = CatastrophicOverfittingGuard(AdversarialViewGenerator(steps=steps), every=3)
            look = lambda guard=guard: guard(images, objective, freeze=model)  # noqa: E731
            spent = [flops(look) / forward for _ in range(7)]
            due = 2 * steps + 13
            assert spent == [due, 0, 0, due, 0, 0, due]

    @pytest.mark.parametrize("step_size", [None, 2 * RADIUS])
    def test_catches_what_was_planted_and_takes_more_and_smaller_steps(self, images, step_size):
        model, adversary = Bent(images), fgsm(step_size=step_size)
        total = adversary.step_size
        guard = CatastrophicOverfittingGuard(adversary, every=2)
        for _ in range(6):
            guard(images, model, freeze=model)
        assert adversary.steps == 1
        model.overfitted.fill_(1)
        with pytest.warns(UserWarning, match=rf"{CAUGHT} -?[0-9.e-]+ and PGD-5 by 0\.\d+, from 3"):
            gains = guard(images, model, freeze=model)
        assert gains.training < 0.01 < 0.3 < gains.pgd
        assert adversary.steps == 2
        assert adversary.step_size == pytest.approx(total / 2)

    def test_an_attack_that_was_weak_from_the_start_is_not_accused(self, images):
        model = Bent(images)
        with pytest.warns(UserWarning, match="cannot reach the edge"):
            weak = fgsm(step_size=RADIUS / 20)
        guard = CatastrophicOverfittingGuard(weak)
        assert (guard.every, guard.least) == (100, 0.25)
        gains = guard(images, model, freeze=model)
        assert gains.training < guard.least * gains.pgd
        assert weak.steps == 1

    def test_ends_at_the_steps_of_the_pgd_that_it_compares_with(self, images):
        """An attack that cannot be mended."""

        class Breaks(AdversarialViewGenerator):
            broken = False

            def forward(self, images, *rest, **named):
                return images if self.broken else super().forward(images, *rest, **named)

        adversary = Breaks(Linf(RADIUS), 1)
        guard = CatastrophicOverfittingGuard(adversary, every=1)
        model, steps = Bent(images), []
        guard(images, model, freeze=model)
        adversary.broken = True
        for _ in range(3):
            with pytest.warns(UserWarning, match=CAUGHT):
                guard(images, model, freeze=model)
            steps.append(adversary.steps)
        assert steps == [2, 4, 5]
        assert guard(images, model, freeze=model) is None  # nothing to compare with

    @pytest.mark.parametrize("start", ["zero", "uniform", "noise"])
    @pytest.mark.parametrize("ball", [Linf(RADIUS), L2(0.3)], ids=str)
    def test_leaves_a_healthy_training_alone(self, images, start, ball):
        """Bit for bit the run without it, and without a word."""

        def run(guarded: bool):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten())
            model = model.append(nn.Dropout(0.1)).double()
            adversary = AdversarialViewGenerator(ball, 1, start=start)
            guard = CatastrophicOverfittingGuard(adversary, every=2)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for _ in range(6):
                z = model(images)
                objective = lambda v, z=z: (model(v) - z.detach()).square().sum(1)  # noqa: E731
                hard = adversary(images, objective, freeze=model)
                if guarded:
                    guard(images, objective, freeze=model)
                optimizer.zero_grad()
                (model(hard) - z).square().mean().backward()
                optimizer.step()
            return model.state_dict(), repr(adversary)

        (with_it, settings), (without, same) = run(True), run(False)
        assert settings == same
        assert all(torch.equal(with_it[name], without[name]) for name in without)

    @pytest.mark.parametrize(
        "height",
        [
            lambda t: 0 * t,  # nothing to gain
            lambda t: 1e-6 * t * (1 - t),  # within rounding
            lambda t: t * (1.05 - t),  # never robust: one step never had a share to lose
        ],
    )
    def test_takes_no_low_gain_for_a_lost_one(self, images, height):
        adversary = fgsm(steps=1)
        guard = CatastrophicOverfittingGuard(adversary, every=1)
        for _ in range(3):
            guard(images, lambda v: 3 + height((v - images) / RADIUS).mean((1, 2, 3)), freeze=())
        assert adversary.steps == 1

    @pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_what_is_not_finite_is_not_judged_and_changes_nothing(self, odd, which):
        guard = CatastrophicOverfittingGuard(fgsm())
        guard.judge([1.0, 1.9, 2.0])
        before = guard.state_dict()
        gains = guard.judge([odd if i == which else v for i, v in enumerate([1.0, 1.9, 2.0])])
        assert not all(map(math.isfinite, gains))
        assert guard.state_dict() == before | {"calls": 2}

    def test_follows_the_adversarys_ball_and_pixels(self, images):
        adversary = fgsm(mean=(0.5,) * 3, std=(0.25,) * 3)
        guard = CatastrophicOverfittingGuard(adversary, every=1)
        adversary.ball = L2(0.1)
        x = adversary.pixels.of(images)
        gains = guard(x, lambda v: v.sum((1, 2, 3)), freeze=())
        best = 0.1 * 48**0.5 / 0.25  # of a sum, within ‖δ‖₂ ≤ 0.1
        assert gains.training == pytest.approx(best)
        assert gains.pgd == pytest.approx(best, rel=0.05)

    @pytest.mark.parametrize("step_size", [None, 2 * RADIUS])
    def test_goes_on_from_its_state(self, images, step_size):
        model = Bent(images)

        def made():
            return CatastrophicOverfittingGuard(fgsm(step_size=step_size), every=2)

        guard, again = made(), made()
        guard(images, model, freeze=model)
        guard(images, model, freeze=model)
        model.overfitted.fill_(1)
        with pytest.warns(UserWarning, match=CAUGHT):
            guard(images, model, freeze=model)
        again.load_state_dict(copy.deepcopy(guard.state_dict()))
        assert repr(again.adversary) == repr(guard.adversary)
        assert again.state_dict() == guard.state_dict()
        assert again(images, model, freeze=model) is None
        guard.adversary.radius = again.adversary.radius = RADIUS / 2  # as a schedule does
        assert repr(again.adversary) == repr(guard.adversary)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"adversary": 3}, "adversary must be an AdversarialViewGenerator, got 3"),
            ({"every": 0}, "every must be at least 1"),
            ({"least": 0}, r"least is a share of PGD's gain, in \(0, 1\), got 0"),
            ({"least": 1.5}, "least is a share"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            CatastrophicOverfittingGuard(**{"adversary": fgsm(), **settings})
