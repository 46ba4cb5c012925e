"""The doubts catch every planted mask, each by the checks made for it, and spare the healthy."""

from __future__ import annotations

import json
import warnings
from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advssl import L2, AdversarialViewGenerator, Linf, branch_batchnorm, evaluating, on_branch
from advssl.evaluation import diagnostics
from advssl.evaluation.attacks import PGD, Clean, batch_seed, margin
from advssl.evaluation.diagnostics import Check, doubts

RADIUS = "accuracy against radius"
STEPS = "loss against steps"
BLACK_BOX = "white box against black box"
GRADIENTS = "gradients do not vanish"
DETERMINISTIC = "deterministic outputs"
INPUTS = "gradient is the slope, inputs in range"
BRANCHES = "BatchNorm branches"
GAP = "PGD against a stronger attack"
ALL = [RADIUS, STEPS, BLACK_BOX, GRADIENTS, DETERMINISTIC, INPUTS, BRANCHES, GAP]


# --- classifiers ----------------------------------------------------------------------------------


def digits():
    """Real images, 8 × 8, half of their pixels exactly black."""
    sklearn = pytest.importorskip("sklearn.datasets")
    data = sklearn.load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return images, torch.tensor(data.target)


def blobs(count: int = 600, classes: int = 4, size: int = 8):
    """Made-up images, no pixel at the edge of [0, 1] but a few."""
    draw = torch.Generator().manual_seed(7)
    pictures = torch.rand(classes, 1, size, size, generator=draw) * 0.5 + 0.25
    labels = torch.arange(count) % classes
    noise = 0.1 * torch.randn(count, 1, size, size, generator=draw)
    return (pictures[labels] + noise).clamp(0, 1), labels


def mlp(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, classes))


def deep_mlp(classes: int) -> nn.Module:
    layers = [nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


def conv(classes: int) -> nn.Module:
    head = [nn.Flatten(), nn.Linear(8 * 4 * 4, classes)]
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), *head
    )


def conv_bn(classes: int) -> nn.Module:
    first = [nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    second = [nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(
        *first, *second, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes)
    )


def trained(make, data, seed: int, radius: float = 0.0, epochs: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    x, y = data
    model = make(int(y.max()) + 1).train()
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    adversary = AdversarialViewGenerator(Linf(radius or 1.0), steps=3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(50):
            seen, labels = x[rows], y[rows]
            if radius:
                with evaluating(model):
                    seen = adversary(
                        seen, lambda v: F.cross_entropy(model(v), labels), freeze=model
                    )
            optimizer.zero_grad()
            F.cross_entropy(model(seen), labels).backward()
            optimizer.step()
    return model.eval()


def split(data, count: int = 32, size: int = 32):
    """One batch unless asked for more: for nets this small every call costs the same."""
    x, y = data[0][:count], data[1][:count]
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="module")
def learnt():
    """A healthy classifier of digits and images it has not seen."""
    x, y = digits()
    return trained(conv, (x[:600], y[:600]), seed=0), split((x[1200:], y[1200:]))


def named(checks) -> dict[str, Check]:
    return {check.name: check for check in checks}


def failing(checks) -> set[str]:
    return {check.name for check in checks if check.verdict == "fail"}


# --- masks ----------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Saturated(Wrapped):
    """Probabilities are 0 and 1 in float32, the cross-entropy has no gradient."""

    def forward(self, images):
        return 1000 * self.inner(images)


class Quantised(Wrapped):
    """Rounding has gradient zero."""

    levels = 255

    def forward(self, images):
        return self.inner((images * self.levels).round() / self.levels)


class Coarse(Quantised):
    levels = 8


class Randomised(Wrapped):
    """Noise in eval mode too."""

    def forward(self, images):
        return self.inner(images + 0.1 * torch.randn_like(images))


class Detached(Wrapped):
    """As a detour through numpy or a JPEG encoder."""

    def forward(self, images):
        return self.inner(images.detach())


class BatchDependent(Wrapped):
    """What an image is depends on what came with it."""

    def forward(self, images):
        return self.inner((images - 0.2 * images.mean(dim=0)).clamp(0, 1))


class Clamping(Wrapped):
    def forward(self, images):
        return self.inner(images.clamp(0, 1))


class Straight(Quantised):
    """A quantiser that pretends to be the identity backwards: attackable, yet not what it says."""

    levels = 4

    def forward(self, images):
        rounded = (images * self.levels).round() / self.levels
        return self.inner(images + (rounded - images).detach())


class TestMasks:
    @pytest.mark.parametrize(
        ("mask", "caught_by"),
        [
            (Saturated, {RADIUS, GRADIENTS}),
            (Quantised, {RADIUS, GRADIENTS, INPUTS}),
            (Coarse, {RADIUS, GRADIENTS, INPUTS}),
            (Randomised, {DETERMINISTIC, INPUTS}),
            (Detached, {RADIUS, GRADIENTS, INPUTS}),
            (BatchDependent, {DETERMINISTIC}),
            (Straight, {INPUTS}),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_each_is_caught_by_the_checks_made_for_it(self, learnt, mask, caught_by):
        model, batches = learnt
        assert caught_by <= failing(doubts(mask(model), batches))

    @pytest.mark.parametrize("mask", [Saturated, Quantised, Randomised])
    @pytest.mark.parametrize("ball", [Linf(24 / 255), L2(0.5)])
    @pytest.mark.parametrize("make", [mlp, conv_bn])
    def test_on_other_networks_data_and_balls(self, mask, ball, make):
        data = blobs()
        model = trained(make, data, seed=4, epochs=3)
        assert failing(doubts(mask(model), split(data, 24), ball=ball))

    def test_where_a_mask_hides_much_the_stronger_attack_shows_it(self, learnt):
        model, batches = learnt
        checks = named(doubts(Saturated(model), batches, ball=Linf(0.15)))
        assert checks[GAP].verdict == "fail"
        assert checks[GAP].numbers["missed"] > 0.4
        assert checks[BLACK_BOX].verdict == "fail"
        assert checks[BLACK_BOX].numbers["missed_by_pgd"] > 0.05

    def test_a_clamp_is_seen_at_the_edges_alone(self, learnt):
        model, batches = learnt
        numbers = named(doubts(Clamping(model), batches))[INPUTS].numbers
        x = torch.zeros(1, requires_grad=True)
        x.clamp(0, 1).sum().backward()
        hidden = x.grad == 0  # from torch 2.14 on
        assert (numbers["at_edges"] > 0.9) == bool(hidden)
        assert numbers["disagreement"] < numbers["at_edges"] or not hidden

    def test_a_smaller_factor_is_caught_before_it_hides_all(self, learnt):
        model, batches = learnt

        class Sharper(Wrapped):
            def forward(self, images):
                return 30 * self.inner(images)

        numbers = named(doubts(Sharper(model), batches))[GRADIENTS].numbers
        assert numbers["tiny"] > 0.1
        assert numbers["zero"] <= numbers["tiny"] <= numbers["saturated"]


HEALTHY = [
    # architecture, data, seed, radius of adversarial training
    (mlp, digits, 0, 0.0),
    (mlp, digits, 1, 8 / 255),
    (deep_mlp, digits, 2, 0.0),
    (conv, digits, 3, 0.0),
    (conv, digits, 4, 0.1),
    (conv_bn, digits, 5, 0.0),
    (conv_bn, digits, 6, 8 / 255),
    (mlp, blobs, 7, 0.0),
    (conv, blobs, 8, 8 / 255),
    (conv_bn, blobs, 9, 0.0),
]


class TestHealthy:
    @pytest.mark.parametrize(
        ("make", "data", "seed", "radius"),
        HEALTHY,
        ids=[f"{m.__name__}-{d.__name__}-{s}-{r:.2f}" for m, d, s, r in HEALTHY],
    )
    def test_none_is_doubted(self, make, data, seed, radius):
        x, y = data()
        half = len(x) // 3
        model = trained(make, (x[:half], y[:half]), seed, radius)
        batches = split((x[half:], y[half:]))
        assert Clean().search(model, *batches[0], seed=0).correct.float().mean() > 0.7
        # Blobs lie so symmetrically that PGD is no measure at larger radii; see the next test.
        larger = Linf(24 / 255) if seed % 2 else L2(0.5)
        for ball in (Linf(8 / 255), larger)[: 2 if data is digits else 1]:
            checks = doubts(model, batches, ball=ball, seed=seed)
            assert [c for c in checks if c.verdict == "fail"] == []
            assert [c.name for c in checks if c.verdict == "not run"] == [BRANCHES]

    def test_where_pgd_is_weak_without_a_mask_the_gap_alone_says_so(self):
        data = blobs()
        model = trained(mlp, (data[0][:200], data[1][:200]), seed=7)
        checks = doubts(model, split(data), ball=Linf(24 / 255))
        assert failing(checks) == {GAP}
        numbers = named(checks)[GAP].numbers
        assert numbers["stronger"] < numbers["pgd"] - 0.05

    def test_a_linear_one_is_what_it_says(self):
        """Slopes are exact, and no attack is stronger than another between two classes."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        x = torch.rand(32, 1, 8, 8) * 0.5 + 0.25
        checks = named(doubts(model, [(x, model(x).argmax(dim=1))]))
        assert checks[INPUTS].numbers["disagreement"] < 1e-3
        assert checks[GAP].numbers["gap"] == 0
        assert failing(checks.values()) == set()

    def test_few_images_are_enough_to_pass(self, learnt):
        model, batches = learnt
        assert failing(doubts(model, batches, max_images=4)) == set()


# --- one check at a time --------------------------------------------------------------------------


class TestChecks:
    @pytest.fixture(scope="class")
    @classmethod
    def checks(cls, learnt):
        return named(doubts(*learnt))

    def test_every_check_answers_in_a_fixed_order(self, checks):
        assert list(checks) == ALL

    def test_evidence_is_one_sentence_with_numbers(self, checks):
        for name in set(ALL) - {BRANCHES}:
            evidence = checks[name].evidence
            assert any(c.isdigit() for c in evidence), name
            assert "\n" not in evidence
            assert not evidence.endswith(".")

    def test_numbers_are_plain(self, checks):
        for check in checks.values():
            assert json.loads(json.dumps(check.numbers)) == check.numbers

    def test_a_check_is_a_value(self, checks):
        with pytest.raises(FrozenInstanceError):
            checks[GAP].verdict = "fail"

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
            diagnostics, "_outcome", lambda *_: torch.tensor([next(outcomes)]).expand(32, 2)
        )
        model, batches = learnt
        case = diagnostics._Case(model, batches[:1], Linf(8 / 255), {}, False, 0)
        assert diagnostics._steps(case).verdict == verdict

    def test_black_box_has_the_larger_budget_and_stays_inside(self, learnt):
        model, batches = learnt
        (x, y), seen = batches[0], []

        class Looking(Wrapped):
            def forward(self, images):
                seen.append(images)
                return self.inner(images)

        for ball in (Linf(0.1), L2(0.7)):
            seen.clear()
            draw = torch.Generator().manual_seed(0)
            stands = diagnostics._random_search(Looking(model), x, y, ball, draw).bool()
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

    def test_a_square_is_square(self):
        draw = torch.Generator().manual_seed(0)
        images = torch.zeros(64, 3, 16, 16)
        for side, width in ((0.9, 14), (0.25, 4), (0.01, 1)):
            square = diagnostics._random_square(images, side, draw)
            assert set(square.unique().tolist()) == {-1.0, 0.0, 1.0}
            covered = square.abs()
            assert (covered.sum(dim=(2, 3)) == width**2).all()
            assert (covered.amax(dim=3).sum(dim=2) == width).all()
            assert (covered == covered[:, :1]).all()  # one place for all channels
            corners = covered[:, 0].flatten(1).argmax(dim=1)
            assert len(corners.unique()) > 3 or width == 14

    def test_finite_differences_stay_in_range(self):
        draw = torch.Generator().manual_seed(0)
        images = torch.tensor([0.0, 0.001, 0.5, 0.999, 1.0]).repeat(40, 1, 1, 1)
        moved = images + diagnostics._inward(images, draw)
        assert moved.min() >= 0
        assert moved.max() <= 1
        middle = (moved - images)[..., 2]
        assert set((middle * 255).round().unique().tolist()) == {-1.0, 1.0}

    def test_no_image_right_leaves_no_gradient_to_look_at(self, learnt):
        model, batches = learnt
        wrong = [(x, (model(x).argmax(dim=1) + 1) % 10) for x, _ in batches]
        check = named(doubts(model, wrong))[GRADIENTS]
        assert (check.verdict, check.evidence) == ("not run", "no image is classified right")

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

        case = diagnostics._Case(*learnt, Linf(8 / 255), {}, False, 0)
        case.__dict__.update(clean=flags(100), under_pgd=flags(pgd))
        monkeypatch.setattr(diagnostics._Case, "standing", lambda *_: flags(stronger))
        assert diagnostics._gap(case).verdict == verdict


class TestBranches:
    @pytest.fixture(scope="class")
    @classmethod
    def branched(cls):
        """Two branches, finetuned on clean and on adversarial images."""
        data = blobs()
        model = trained(conv_bn, data, seed=5, epochs=3)
        return branch_batchnorm(model), split(data, 32)

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


class TestTheWhole:
    def test_leaves_no_trace(self):
        data = blobs()
        model = trained(conv_bn, data, seed=5, epochs=1).train()
        model[1].eval()
        model[0].weight.requires_grad_(False)
        model(data[0][:8]).sum().backward()

        def state():
            return (
                {k: v.clone() for k, v in model.state_dict().items()},
                [m.training for m in model.modules()],
                [p.requires_grad for p in model.parameters()],
                [None if p.grad is None else p.grad.clone() for p in model.parameters()],
                torch.get_rng_state(),
                data[0].clone(),
            )

        before = state()
        doubts(model, split(data, 16))
        torch.testing.assert_close(state(), before, rtol=0, atol=0)

    def test_seeded(self, learnt):
        model, batches = learnt
        torch.rand(5)
        for classifier in (model, Randomised(model)):
            one, again = (doubts(classifier, batches, seed=3, max_images=8) for _ in range(2))
            assert one == again

    def test_looks_at_no_more_images_than_asked(self, learnt):
        model, batches = learnt[0], split(learnt[1][0], size=20)
        seen = set()

        class Looking(Wrapped):
            def forward(self, images):
                seen.update(x.tobytes() for x in images.detach().numpy())
                return self.inner(images)

        numbers = named(doubts(model, iter(batches), max_images=28))[GRADIENTS].numbers
        assert len(numbers["lead"]) == 28
        endless = (batches[0] for _ in iter(int, 1))
        assert len(doubts(model, endless, max_images=8)) == 8
        doubts(Looking(model), batches, max_images=2)
        assert batches[0][0][2].numpy().tobytes() not in seen
        assert batches[0][0][1].numpy().tobytes() in seen

    def test_costs_what_the_docstring_says(self, learnt):
        model, batches = learnt[0], split(learnt[1][0], size=20)
        spent = {True: 0, False: 0}

        class Counting(Wrapped):
            def forward(self, images):
                spent[images.requires_grad and torch.is_grad_enabled()] += len(images)
                return self.inner(images)

        doubts(Counting(model), batches)
        assert 178 <= spent[True] / 32 <= 178 + 9 * 20
        assert spent[False] / 32 <= 150

    def test_progress(self, learnt):
        ticks = []
        doubts(*learnt, max_images=4, progress=lambda *tick: ticks.append(tick))
        assert ticks == [(f"doubts: {name}", i, 8) for i, name in enumerate(ALL, start=1)]

    @pytest.mark.parametrize("shift", [-1.0, 1.0])
    def test_images_out_of_range_fail_and_nothing_else_is_claimed(self, learnt, shift):
        model, batches = learnt
        checks = named(doubts(model, [(x + shift, y) for x, y in batches]))
        assert list(checks) == ALL
        assert checks[INPUTS].verdict == "fail"
        assert "not in [0, 1]; put the normalisation into the classifier" in checks[INPUTS].evidence
        assert {c.verdict for c in checks.values()} == {"fail", "not run"}
        assert failing(checks.values()) == {INPUTS}

    def test_an_attack_that_breaks_down_is_a_reason_to_doubt(self, learnt):
        model, batches = learnt

        class Unstable(Wrapped):
            def forward(self, images):
                # At the square root's zero the slope is infinite, and infinity times zero is NaN.
                return self.inner(images) + 0 * (images - images).sqrt().flatten(1).sum(1)[:, None]

        checks = named(doubts(Unstable(model), batches, max_images=8))
        broken = {c.name for c in checks.values() if "broke down" in c.evidence}
        assert {RADIUS, STEPS, BLACK_BOX, GAP} <= broken <= failing(checks.values())
        assert "not finite" in checks[RADIUS].evidence

    @pytest.mark.parametrize(
        ("batches", "options", "complaint"),
        [
            ([], {}, "no batches to look at"),
            ([(torch.rand(2, 1, 8, 8), torch.zeros(2))], {}, "labels must be 2 integers"),
            ([(torch.rand(2, 8, 8), torch.zeros(2).long())], {}, r"\(B, C, H, W\)"),
            ([(torch.rand(2, 1, 8, 8).double(), torch.zeros(2).long())], {}, "float32"),
            ([(torch.rand(2, 1, 8, 8), torch.zeros(2).long())], {"max_images": 0}, "at least 1"),
        ],
    )
    def test_wrong_input(self, learnt, batches, options, complaint):
        with pytest.raises(ValueError, match=complaint):
            doubts(learnt[0], batches, **options)

    def test_a_wrong_label_is_an_error_and_not_a_doubt(self, learnt):
        with pytest.raises(ValueError, match="labels must be from 0 to 9"):
            doubts(learnt[0], [(torch.rand(2, 1, 8, 8), torch.tensor([3, 10]))])

    def test_no_warnings(self, learnt):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            doubts(*learnt, ball=L2(0.01), max_images=4)

    def test_thresholds_leave_the_healthy_room(self, learnt):
        """The healthy values in the comments beside the thresholds, on this classifier."""
        checks = named(doubts(*learnt))
        assert checks[RADIUS].numbers["accuracy"][-1] == 0
        assert checks[INPUTS].numbers["disagreement"] < 0.05
        assert checks[INPUTS].numbers["at_edges"] < 0.05
        assert checks[GRADIENTS].numbers["tiny"] == 0
        assert max(checks[DETERMINISTIC].numbers.values()) < 1e-5
        assert checks[BLACK_BOX].numbers["missed_by_pgd"] <= 0.01
        assert checks[GAP].numbers["pgd"] == pytest.approx(
            torch.cat(
                [
                    PGD(Linf(8 / 255), 20, None)
                    .search(learnt[0], x, y, seed=batch_seed(0, i))
                    .correct
                    for i, (x, y) in enumerate(learnt[1])
                ]
            )
            .float()
            .mean()
            .item()
        )
