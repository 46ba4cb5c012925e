"""AutoAttack is the authors' own, with their budget, for any number of classes."""

from __future__ import annotations

import random
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from torch import nn
from toys import Alone, Linear, blobs, inside, queries_of_square, trained

from advssl import L2, Linf
from advssl.evaluation.attacks import (
    AutoAttack,
    MultiTargetedPGD,
    measure,
)
from advssl.evaluation.autoattack import _DrawsForOne


@pytest.fixture(
    scope="module", params=[(200, 20), pytest.param((5000, 100), marks=pytest.mark.heavy)]
)
def standard(request, net):
    """One run of AutoAttack standard on sixteen images, looked at from many sides.

    Its four attacks have all of their steps and queries where time does not matter.
    """
    x, y = blobs(16, 4, seed=2)
    ticks, ball = [], Linf(0.05)
    before = torch.get_rng_state()
    with queries_of_square(*request.param):
        found = AutoAttack(ball).search(net, x, y, seed=11, progress=lambda *t: ticks.append(t))
    kept = torch.equal(torch.get_rng_state(), before)
    return found, x, y, ball, ticks, kept, request.param


class TestAutoAttack:
    @pytest.mark.slow
    def test_flags_are_the_librarys_own(self, net, standard):
        found, x, y, ball, *_, budget = standard
        library = pytest.importorskip("pyautoattack")
        run = library.AutoAttack(net, norm="Linf", eps=ball.radius, seed=11, version="standard")
        run.apgd_targeted.n_target_classes = run.fab.n_target_classes = 3
        run.square.n_queries, steps = budget
        for part in (run.apgd, run.apgd_targeted, run.fab):
            part.n_iter = steps
        _, seen_as = run.run_standard_evaluation(x, y, batch_size=16)
        assert torch.equal(found.correct, seen_as == y)
        assert 0 < found.correct.sum() < 16

    @pytest.mark.slow
    @pytest.mark.parametrize("classes", [4, 3])
    @pytest.mark.parametrize("ball", [Linf(0.02), L2(0.2)])
    def test_images_are_the_librarys_own_one_by_one(self, short_autoattack, ball, classes):
        library = pytest.importorskip("pyautoattack")
        model, (x, _) = Alone(classes), blobs(6, 4)
        y = model(x).argmax(1)
        ours = AutoAttack(ball, classes)
        found = ours.search(model, x, y, seed=11)
        run = library.AutoAttack(
            lambda v: model(v).clone(),
            norm=type(ball).__name__,
            eps=ball.radius,
            seed=11,
            version="custom",
            attacks=list(ours.parts),
        )
        run.apgd.n_restarts = 1 if classes == 4 else 5  # standard's, and that of few classes
        run.apgd_targeted.n_target_classes = run.fab.n_target_classes = classes - 1
        hard, seen_as = short_autoattack(run).run_standard_evaluation(x, y, batch_size=1)
        assert torch.equal(found.images, hard)
        assert torch.equal(found.correct, seen_as == y)
        assert 0 < found.correct.sum() < 6

    @pytest.mark.usefixtures("short_autoattack")
    def test_what_a_random_classifier_draws_stays_its_own(self, net, batch):
        drawn = []

        class Random(nn.Module):
            def forward(self, images):
                noise = torch.randn(images.shape)
                drawn.append(noise)
                return net(images + 0.01 * noise)

        AutoAttack(Linf(0.02), 4)(Random(), batch[0][:4], batch[1][:4], seed=0)
        together = next(noise for noise in drawn if len(noise) == 4)
        assert not torch.equal(together[0], together[1])

    def test_stays_inside_and_is_no_weaker_than_pgd(self, net, standard):
        found, x, y, ball, *_ = standard
        assert inside(ball, x, found.images)
        pgd = MultiTargetedPGD(ball, 50, None).search(net, x, y, seed=0)
        assert found.correct.sum() <= pgd.correct.sum()

    def test_the_callers_random_state_stays(self, standard):
        *_, kept, _ = standard
        assert kept

    def test_progress_names_every_sub_attack(self, standard):
        *_, ticks, _, _ = standard
        assert [t[0] for t in ticks[::2]] == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert ticks[0] == ("apgd-ce", 0, 4)
        assert ticks[-1] == ("square", 4, 4)

    def test_other_generators_and_the_tracer_stay(self, net, batch):
        pytest.importorskip("pyautoattack")
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 (the global state is what is tested)
        states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

        def tracer(*_):
            return None

        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            AutoAttack(Linf(0.5))(net, *batch, seed=0)
            assert sys.gettrace() is tracer
        finally:
            sys.settrace(before)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002

    @pytest.mark.usefixtures("few_queries")
    def test_channels_last(self):
        model = trained(4, channels=3)
        x, y = blobs(8, 4, channels=3)
        turned = x.to(memory_format=torch.channels_last)
        assert not turned.is_contiguous()
        one = AutoAttack(L2(0.6)).search(model, turned, y, seed=0)
        other = AutoAttack(L2(0.6)).search(model, x, y, seed=0)
        assert torch.equal(one.correct, other.correct)
        torch.testing.assert_close(one.images, other.images)

    @pytest.mark.slow
    @pytest.mark.usefixtures("few_queries")
    def test_three_classes(self):
        model, (x, y), ticks = trained(3), blobs(4, 3), []
        attack = AutoAttack(Linf(0.05))
        record = measure(model, attack, [(x, y)], progress=lambda *t: ticks.append(t[0]))
        assert [*dict.fromkeys(ticks)][:3] == [
            f"batch 1: {p}" for p in ("apgd-ce", "fab", "square")
        ]
        assert record.name.startswith("APGD-CE + FAB + Square, untargeted for 3 classes")
        assert record.settings["classes"] == 3
        assert "AutoAttack" not in record.name
        pgd = MultiTargetedPGD(attack.ball, 50, None).search(model, x, y, seed=0)
        assert sum(record.correct) <= int(pgd.correct.sum())

    def test_settings_say_parts_ball_and_the_library(self):
        library = pytest.importorskip("pyautoattack")
        assert AutoAttack(Linf(0.1), 10).settings == {
            "attack": "AutoAttack standard",
            "parts": ["apgd-ce", "apgd-t", "fab-t", "square"],
            "ball": {"norm": "Linf", "radius": 0.1},
            "classes": 10,
            "library": f"{library.__name__} {version('pyautoattack')}",
        }

    def test_what_is_drawn_for_an_image_is_its_own_to_write_on(self):
        with _DrawsForOne():
            drawn = torch.randn([3, 1, 2, 2])
        assert torch.equal(drawn[0], drawn[1])
        drawn[0] += 1
        assert not torch.equal(drawn[0], drawn[1])

    def test_between_four_and_ten_classes_all_wrong_ones_are_targets(self):
        """The library alone asks for a tenth class and ends in an IndexError."""
        pytest.importorskip("pyautoattack")
        model, (x, y) = trained(5), blobs(5, 5)
        run = AutoAttack(Linf(0.2)).for_classes(5)
        library = run._library_run(model, x.device, 0, lambda *_: None, _DrawsForOne())
        assert library.apgd_targeted.n_target_classes == library.fab.n_target_classes == 4
        assert len(run(model, x, y, seed=0)) == 5
        many = (
            AutoAttack()
            .for_classes(100)
            ._library_run(model, x.device, 0, lambda *_: None, _DrawsForOne())
        )
        assert many.apgd_targeted.n_target_classes == many.fab.n_target_classes == 9

    def test_the_budget_is_the_authors(self, net):
        library = pytest.importorskip("pyautoattack")
        theirs = library.AutoAttack(net, norm="Linf", eps=0.1, version="standard")
        ours = AutoAttack(Linf(0.1), 10)._library_run(
            net, torch.device("cpu"), 0, lambda *_: None, _DrawsForOne()
        )
        assert ours.attacks_to_run == theirs.attacks_to_run == list(AutoAttack().parts)
        for part, budget in {
            "apgd": ("n_iter", "n_restarts", "eot_iter", "thr_decr"),
            "apgd_targeted": ("n_iter", "n_restarts", "n_target_classes"),
            "fab": ("n_iter", "n_restarts", "n_target_classes", "alpha_max", "eta", "beta"),
            "square": ("n_queries", "n_restarts", "p_init", "rescale_schedule"),
        }.items():
            for setting in budget:
                mine, other = (getattr(getattr(r, part), setting) for r in (ours, theirs))
                assert mine == other, (part, setting)

    def test_wrong_use(self, net, batch):
        pytest.importorskip("pyautoattack")
        with pytest.raises(ValueError, match="has 4 classes, this attack is for 10"):
            AutoAttack(classes=10)(net, *batch, seed=0)
        small, labels = torch.rand(2, 1, 4, 16), torch.zeros(2, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"5 pixels or more .* got \(4, 16\)"):
            AutoAttack(L2(0.5))(Linear(4), small, labels, seed=0)


@pytest.mark.parametrize("height", range(5, 70))
def test_l_2_is_refused_where_the_librarys_first_squares_stick_out(height):
    """As its Square lays them: rows from the middle of what five leave, until none is left."""
    side = height // 5
    begun = (height - 5 * side) // 2
    for width in (height, height + 4, 32):
        laid, fits = torch.zeros(height, width), True
        for row in range(height // side):
            for column in range(width // side):
                top, left = begun + row * side, begun + column * side
                try:
                    laid[top : top + side, left : left + side] += torch.ones(side, side)
                except RuntimeError:
                    fits = False
        attack = AutoAttack(L2(0.5))
        if fits:
            attack.check_shape((3, height, width))
        else:
            with pytest.raises(ValueError, match=r"squares of .* use multi-targeted PGD"):
                attack.check_shape((3, height, width))
        AutoAttack(Linf(0.1)).check_shape((3, height, width))
