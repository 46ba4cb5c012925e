"""More radius and more steps leave less; another branch or a stronger attack tell on PGD."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from ills import (
    BRANCHES,
    GAP,
    RADIUS,
    STEPS,
    Saturated,
    Wrapped,
    blobs,
    conv,
    conv_bn,
    failing,
    mlp,
    named,
    split,
    trained,
)

from advssl import L2, Linf, branch_batchnorm, on_branch
from advssl.evaluation import ascents
from advssl.evaluation.batches import batch_seed
from advssl.evaluation.checks import Case
from advssl.evaluation.diagnostics import doubts
from advssl.evaluation.logits import margin
from advssl.evaluation.search import Clean


class TestAscents:
    @pytest.fixture(scope="class")
    @classmethod
    def checks(cls, learnt):
        return named(doubts(*learnt))

    @pytest.mark.slow
    def test_radii_end_where_all_images_can_be_made_grey(self, checks, learnt):
        numbers = checks[RADIUS].numbers
        assert numbers["radii"][-1] == 0.5
        assert numbers["radii"] == sorted(numbers["radii"])
        assert len(numbers["radii"]) == len(numbers["accuracy"]) == 5
        assert numbers["accuracy"][-1] <= 0.02 < numbers["accuracy"][0] <= numbers["clean"]
        of_ball = numbers["radii"].index(8 / 255)
        assert numbers["accuracy"][of_ball] == checks[GAP].numbers["pgd"]
        model, batches = learnt
        large = named(doubts(model, batches, ball=Linf(0.6)))[RADIUS].numbers
        assert large["radii"] == [0.3, 0.5]  # no ball that is larger than the one with grey
        two = named(doubts(model, batches, ball=L2(1.0), max_images=8))[RADIUS].numbers
        assert two["radii"][-1] == pytest.approx(0.5 * 8)

    def test_losses_rise_with_steps(self, checks):
        numbers = checks[STEPS].numbers
        assert numbers["steps"] == [1, 5, 20, 50]
        assert numbers["clean_loss"] < numbers["loss"][0] < numbers["loss"][-1]
        assert numbers["accuracy"] == sorted(numbers["accuracy"], reverse=True)

    @pytest.mark.parametrize(
        ("losses", "accuracy", "verdict"),
        [
            ((1.0, 2.0, 3.0, 3.0), (0.8, 0.7, 0.6, 0.6), "pass"),
            ((0.5, 0.5, 0.5, 0.5), (0.9, 0.9, 0.9, 0.9), "fail"),  # nothing was gained
            ((3.0, 2.0, 1.5, 1.0), (0.6, 0.6, 0.6, 0.6), "fail"),  # more steps lose it again
            ((1.0, 2.0, 3.0, 3.0), (0.5, 0.6, 0.7, 0.7), "fail"),  # more steps, more accuracy
            ((1.0, 1.2, 1.3, 1.3), (0.6, 0.62, 0.6, 0.61), "pass"),  # noise of the start
        ],
    )
    def test_verdict_on_steps(self, learnt, monkeypatch, losses, accuracy, verdict):
        outcomes = iter([(0.5, 0.9), *zip(losses, accuracy, strict=True)])
        monkeypatch.setattr(
            ascents, "_outcome", lambda *_: torch.tensor([next(outcomes)]).expand(32, 2)
        )
        model, batches = learnt
        case = Case(model, batches[:1], Linf(8 / 255), {}, False, 0)
        assert ascents.steps(case).verdict == verdict

    def test_a_ball_of_ones_own_has_no_grey_radius(self, learnt):
        @dataclass(frozen=True)
        class Half:
            radius: float

            def sample(self, images, generator=None):
                return Linf(self.radius / 2).sample(images, generator)

            def steepest(self, gradient):
                return gradient.sign()

            def project(self, delta):
                return Linf(self.radius / 2).project(delta)

        model, batches = learnt
        checks = named(doubts(model, batches, ball=Half(0.05)))
        assert checks[RADIUS].verdict == "not run"
        assert "Half" in checks[RADIUS].evidence
        assert failing(checks.values()) == set()

    def test_a_ball_that_cannot_be_widened_is_not_looked_at_wider(self, learnt):
        class Grey:
            radius, sample, steepest, project = 0.05, Linf.sample, Linf.steepest, Linf.project

            def grey(self, shape):  # noqa: ARG002
                return 0.5

        checks = named(doubts(*learnt, ball=Grey()))
        assert checks[RADIUS].verdict == "not run"
        assert "method resized(radius)" in checks[RADIUS].evidence
        assert failing(checks.values()) == set()

    def test_autoattack_takes_the_place_of_multi_targeted_pgd(self):
        pytest.importorskip("pyautoattack")
        data = blobs()
        model = trained(mlp, data, seed=1, epochs=2)
        batches = split(data, 8)
        plain = named(doubts(model, batches, ball=Linf(0.15)))[GAP]
        check = named(doubts(model, batches, ball=Linf(0.15), autoattack=True))[GAP]
        assert check.numbers["attack"] == "AutoAttack standard, l_inf 0.15"
        assert plain.numbers["attack"].startswith("multi-targeted PGD-20")
        assert check.numbers["stronger"] <= plain.numbers["stronger"] <= check.numbers["pgd"]

    @pytest.mark.parametrize(
        ("pgd", "stronger", "verdict"),
        [
            (50, 45, "pass"),  # five points, a tenth of what can be broken
            (60, 41, "pass"),  # nineteen, a third
            (95, 85, "fail"),  # ten, but PGD broke a third of what there is to break
            (40, 5, "fail"),  # thirty-five
            (99, 96, "pass"),  # three: too few to tell
        ],
    )
    def test_verdict_on_the_gap(self, learnt, monkeypatch, pgd, stronger, verdict):
        def flags(count):
            return torch.arange(100) < count

        case = Case(*learnt, Linf(8 / 255), {}, False, 0)
        case.__dict__.update(clean=flags(100), under_pgd=flags(pgd))
        monkeypatch.setattr(Case, "standing", lambda *_: flags(stronger))
        assert ascents.gap(case).verdict == verdict


class TestBranches:
    @pytest.fixture(scope="class")
    @classmethod
    def branched(cls):
        """Two branches, finetuned on clean and on adversarial images."""
        data = blobs()
        model = trained(conv_bn, data, seed=5, epochs=3)
        return branch_batchnorm(model), split(data, 32)

    @pytest.mark.slow
    def test_each_is_measured(self, branched):
        model, batches = branched
        check = named(doubts(model, batches))[BRANCHES]
        assert check.verdict == "pass"
        assert check.numbers["branches"] == ["clean", "adversarial"]
        assert check.numbers["clean"] == [1.0, 1.0]
        assert "clean 100.0 % clean and" in check.evidence

    def test_accuracy_is_that_of_the_branch(self, branched):
        model, batches = branched
        norm = model[1]["adversarial"]
        kept = norm.running_mean.clone()
        norm.running_mean += 2
        try:
            check = named(doubts(model, batches))[BRANCHES]
            with on_branch(model, "adversarial"):
                right = [
                    Clean().search(model, x, y, seed=batch_seed(0, i)).correct
                    for i, (x, y) in enumerate(batches)
                ]
            expected = float(torch.cat(right).float().mean())
            assert check.numbers["clean"][1] == pytest.approx(expected)
            assert check.numbers["clean"][0] == 1.0 > expected
        finally:
            norm.running_mean.copy_(kept)
        assert model[1].active == "clean"

    def test_classifiers_given_by_name(self, learnt):
        model, batches = learnt
        other = trained(conv, blobs(40, 10), seed=8, epochs=1)
        check = named(doubts(model, batches, branches={"one": model, "other": other}))[BRANCHES]
        assert check.numbers["branches"] == ["one", "other"]
        assert check.numbers["robust"][0] == check.numbers["own"] == check.numbers["crossed"][0]

    def test_a_mask_on_one_branch_shows_through_the_other(self, learnt):
        model, batches = learnt
        checks = doubts(Saturated(model), batches, ball=Linf(0.15), branches={"plain": model})
        assert named(checks)[BRANCHES].verdict == "fail"

    def test_without_branches_it_says_so(self, learnt):
        check = named(doubts(*learnt, max_images=4))[BRANCHES]
        assert check.verdict == "not run"
        assert "no BatchNorm branches" in check.evidence


# --- the whole ------------------------------------------------------------------------------------


def test_black_box_has_the_larger_budget_and_stays_inside(learnt):
    model, batches = learnt
    (x, y), seen = batches[0], []

    class Looking(Wrapped):
        def forward(self, images):
            seen.append(images)
            return self.inner(images)

    for ball in (Linf(0.1), L2(0.7)):
        seen.clear()
        draw = torch.Generator().manual_seed(0)
        stands = ascents._random_search(Looking(model), x, y, ball, draw).bool()
        assert len(seen) == 1 + 100
        assert min(float(s.min()) for s in seen) >= 0
        assert max(float(s.max()) for s in seen) <= 1
        for images in seen:
            delta = (images - x).flatten(1)
            length = delta.abs().amax(1) if isinstance(ball, Linf) else delta.norm(dim=1)
            assert length.max() <= ball.radius + 1e-5
        # Its own verdict: what stands was never seen misclassified.
        with torch.no_grad():
            highest = torch.stack([margin(model(s), y) for s in seen]).amax(dim=0)
        assert torch.equal(stands, highest <= 0)
        assert stands.float().mean() < (model(x).argmax(1) == y).float().mean()


def test_a_square_is_square():
    draw = torch.Generator().manual_seed(0)
    images = torch.zeros(64, 3, 16, 16)
    for side, width in ((0.9, 14), (0.25, 4), (0.01, 1)):
        square = ascents._random_square(images, side, draw)
        assert set(square.unique().tolist()) == {-1.0, 0.0, 1.0}
        covered = square.abs()
        assert (covered.sum(dim=(2, 3)) == width**2).all()
        assert (covered.amax(dim=3).sum(dim=2) == width).all()
        assert (covered == covered[:, :1]).all()  # one place for all channels
        corners = covered[:, 0].flatten(1).argmax(dim=1)
        assert len(corners.unique()) > 3 or width == 14
