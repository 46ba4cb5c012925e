"""The doubts catch every planted ill, each by the checks made for it, and spare the healthy."""

from __future__ import annotations

import json
import warnings
from dataclasses import FrozenInstanceError

import pytest
import torch
from ills import (
    ALL,
    BLACK_BOX,
    BRANCHES,
    DETERMINISTIC,
    GAP,
    GRADIENTS,
    INPUTS,
    RADIUS,
    STEPS,
    TRAINING,
    AlwaysTraining,
    BatchDependent,
    BatchStatistics,
    ByPlace,
    Bytes,
    Coarse,
    Constant,
    Detached,
    Distilled,
    Dropping,
    Evasive,
    HalfDetached,
    NotANumber,
    NotANumberNearby,
    Quantised,
    Randomised,
    Remembering,
    Resized,
    Rising,
    Saturated,
    Straight,
    Transcoded,
    Wrapped,
    blobs,
    conv,
    conv_bn,
    conv_gn,
    deep_mlp,
    digits,
    failing,
    mlp,
    named,
    split,
    trained,
)
from torch import nn

from advssl import L2, Linf
from advssl.evaluation.attacks import PGD, Clean
from advssl.evaluation.diagnostics import CHECKS, Check, doubts, forwards
from advssl.integrations.timm import backbone

# Each with the doubts that it must raise, whatever others it raises too.
ILLS = {
    "saturated logits": (Saturated, {RADIUS, GRADIENTS}),
    "defensive distillation": (Distilled, {RADIUS, GRADIENTS}),
    "quantised input": (Quantised, {RADIUS, GRADIENTS, INPUTS}),
    "coarsely quantised input": (Coarse, {RADIUS, GRADIENTS, INPUTS}),
    "through uint8": (Bytes, {RADIUS, GRADIENTS, INPUTS}),
    "through a JPEG": (Transcoded, {RADIUS, GRADIENTS, INPUTS}),
    "detached": (Detached, {RADIUS, GRADIENTS, INPUTS}),
    "half of it detached": (HalfDetached, {INPUTS}),
    "a gradient that is made up": (Straight, {INPUTS}),
    "noise": (Randomised, {DETERMINISTIC, INPUTS}),
    "dropout in eval mode": (Dropping, {DETERMINISTIC, INPUTS}),
    "a train mode that stays": (AlwaysTraining, {DETERMINISTIC, INPUTS}),
    "randomised resizing": (Resized, {DETERMINISTIC, INPUTS}),
    "BatchNorm in train mode": (BatchStatistics, {DETERMINISTIC}),
    "the company in the batch": (BatchDependent, {DETERMINISTIC}),
    "labels by their place": (ByPlace, {DETERMINISTIC}),
    "constant output": (Constant, {STEPS, GRADIENTS, INPUTS}),
    "NaN": (NotANumber, {RADIUS, STEPS, BLACK_BOX, GRADIENTS, DETERMINISTIC, INPUTS, GAP}),
    "NaN off the data": (NotANumberNearby, {RADIUS, STEPS, BLACK_BOX, INPUTS, GAP}),
    "a label leak": (Remembering, {STEPS, GRADIENTS}),
    "accuracy that rises off the data": (Rising, {RADIUS, STEPS}),
    "accuracy under attack above the clean one": (Evasive, {STEPS}),
}


class TestIlls:
    @pytest.mark.slow
    @pytest.mark.parametrize(("ill", "caught_by"), ILLS.values(), ids=list(ILLS))
    def test_each_raises_its_doubts(self, learnt, ill, caught_by):
        model, batches = learnt
        x, y = batches[0]
        made = ill(model, x, y) if issubclass(ill, Remembering | ByPlace) else ill(model)
        which = sorted(caught_by)
        assert failing(doubts(made, [(x, y)], which=which)) == caught_by

    @pytest.mark.parametrize(
        ("scale", "ball", "advice"),
        [
            (255, Linf(8 / 255), "divide them by 255, and the radius with them"),
            (255, Linf(1.0), "divide them by 255, and the radius with them"),
            (1, Linf(8.0), "of 255 grey levels write 8 / 255"),
        ],
    )
    def test_a_threat_model_in_other_units(self, learnt, scale, ball, advice):
        model, batches = learnt
        checks = doubts(model, [(x * scale, y) for x, y in batches], ball=ball)
        assert any(advice in check.evidence for check in checks if check.verdict == "fail")

    @pytest.mark.slow
    def test_a_smooth_leak_is_no_mask(self, learnt):
        """Nothing but the training images tells it: it is as robust as it seems, on these."""
        model, _ = learnt
        images, labels = digits()
        x, y = images[1200:1248], labels[1200:1248]

        class Mild(Remembering):
            gain, width = 8.0, 1.0

        known = {"training": split((images, labels), 48), "ball": Linf(0.1)}
        checks = named(doubts(Mild(model, x, y), [(x, y)], **known))
        assert failing(checks.values()) == {TRAINING}
        which = [TRAINING]
        assert failing(doubts(model, [(x, y)], which=which, **known)) == set()
        assert checks[TRAINING].numbers["test"]["under PGD"] > 0.9

    @pytest.mark.slow
    @pytest.mark.parametrize("mask", [Saturated, Quantised, Randomised])
    @pytest.mark.parametrize(
        ("ball", "make"),
        [
            (Linf(24 / 255), mlp),
            (L2(0.5), conv_bn),
            pytest.param(Linf(24 / 255), conv_bn, marks=pytest.mark.heavy),
            pytest.param(L2(0.5), mlp, marks=pytest.mark.heavy),
        ],
    )
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


@pytest.fixture(scope="module")
def networks():
    """A narrow ResNet-18 with random and with trained weights, and a shallow ViT."""
    timm = pytest.importorskip("timm")

    class Classifier(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder, self.head = encoder, nn.Linear(encoder.num_features, 10)

        def forward(self, images):
            return self.head(self.encoder(images.expand(-1, 3, -1, -1)))

    def resnet(classes=10):
        del classes
        return Classifier(backbone("cifar:resnet18:8"))

    torch.manual_seed(1)
    shape = {"img_size": 8, "patch_size": 2, "depth": 2, "num_classes": 0}
    vit = Classifier(timm.create_model("vit_tiny_patch16_224", **shape))
    x, y = digits()
    learnt = trained(resnet, (x[:600], y[:600]), seed=0, epochs=2)
    return {"resnet": resnet().eval(), "trained resnet": learnt, "vit": vit.eval()}


class TestHealthy:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("make", "data", "seed", "radius"),
        # All where time does not matter; else of each network, data and kind of training one.
        [
            pytest.param(*h, marks=() if h[2] in (0, 4, 6, 7) else pytest.mark.heavy)
            for h in HEALTHY
        ],
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

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "ball"),
        [
            *(("resnet", L2(0.5)), ("trained resnet", Linf(8 / 255)), ("vit", Linf(8 / 255))),
            pytest.param("resnet", Linf(8 / 255), marks=pytest.mark.heavy),
            pytest.param("trained resnet", L2(0.5), marks=pytest.mark.heavy),
            pytest.param("vit", L2(0.5), marks=pytest.mark.heavy),
        ],
    )
    def test_networks_of_the_field_are_not_doubted(self, networks, name, ball):
        """Random weights too, whose kinks lie on the black of the digits."""
        x, y = digits()
        batches = split((x[1200:], y[1200:]), 6)
        quick = [GRADIENTS, DETERMINISTIC, INPUTS, STEPS]
        assert failing(doubts(networks[name], batches, ball=ball, which=quick)) == set()

    @pytest.mark.heavy
    @pytest.mark.parametrize("name", ["resnet", "trained resnet", "vit"])
    def test_networks_of_the_field_pass_every_check(self, networks, name):
        x, y = digits()
        known = {"training": split((x, y), 24)}
        assert failing(doubts(networks[name], split((x[1200:], y[1200:]), 24), **known)) == set()

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["nothing is right", "one class", "linear", "GroupNorm"])
    def test_odd_ones_are_not_doubted(self, learnt, kind):
        (model, ((x, y),)) = learnt
        images, labels = digits()
        if kind == "nothing is right":
            y = (model(x).argmax(dim=1) + 1) % 10
        elif kind == "linear":
            torch.manual_seed(0)
            model, y = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), y % 2
        else:
            model = trained(conv_gn, (images[:600], labels[:600]), seed=0)
            if kind == "one class":
                threes = labels[1200:] == 3
                x, y = images[1200:][threes][:16], labels[1200:][threes][:16]
        assert failing(doubts(model, [(x[:16], y[:16])])) == set()

    def test_where_pgd_is_weak_without_a_mask_the_gap_alone_says_so(self):
        data = blobs()
        model = trained(mlp, (data[0][:200], data[1][:200]), seed=7)
        checks = doubts(model, split(data), ball=Linf(24 / 255))
        assert failing(checks) == {GAP}
        numbers = named(checks)[GAP].numbers
        assert numbers["stronger"] < numbers["pgd"] - 0.05

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

    def test_says_what_follows_where_it_failed_and_nowhere_else(self, learnt):
        model, batches = learnt
        for check in doubts(Quantised(model), batches, max_images=8):
            said = CHECKS[check.name].follows if check.verdict == "fail" else ""
            assert check.follows == said

    def test_one_is_made_of_four(self):
        assert Check("a", "pass", "seen", {}).follows == ""

    def test_a_ball_of_ones_own_with_the_four_methods(self, learnt):
        model, batches = learnt

        class Smaller:
            radius = 0.03

            def sample(self, images, generator=None):
                return Linf(self.radius).sample(images, generator)

            def steepest(self, gradient):
                return gradient.sign()

            def project(self, delta):
                return delta.clamp(-self.radius, self.radius)

        checks = doubts(model, batches, ball=Smaller(), max_images=8, autoattack=True)
        told = {check.name: check.verdict for check in checks}
        assert told == dict.fromkeys(ALL, "pass") | {RADIUS: "not run", BRANCHES: "not run"}


class TestTheWhole:
    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_seeded(self, learnt):
        model, batches = learnt
        torch.rand(5)
        for classifier in (model, Randomised(model)):
            one, again = (doubts(classifier, batches, seed=3, max_images=8) for _ in range(2))
            assert one == again

    @pytest.mark.slow
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

    @pytest.mark.slow
    @pytest.mark.parametrize("name", [*ALL, TRAINING, None])
    def test_costs_what_is_said(self, learnt, name):
        (model, batches), spent = learnt, []

        class Counting(Wrapped):
            def forward(self, images):
                back = images.requires_grad and torch.is_grad_enabled()
                # Slopes are taken of a copy: a list that is the module's own would be copied.
                tell(len(images) * (2 if back else 1))
                return self.inner(images)

        def tell(count):
            spent.append(count)

        which = None if name is None else [name]
        known = {"training": batches} if name == TRAINING else {}
        doubts(Counting(model), batches, which=which, **known)
        least, most = forwards(Linf(8 / 255), (1, 8, 8), 10, which=which, training=name == TRAINING)
        rehearsal = 2 * (2 + 8) if name in (INPUTS, None) else 0  # of slopes in float64
        classes = 1 if name in (GAP, None) else 0  # AutoAttack is told how many there are
        assert least <= sum(spent) / 32 <= most + (rehearsal + classes) / 32
        assert name is not None or most < 900

    def test_branches_cost_what_is_said(self, learnt):
        (model, batches), spent = learnt, []

        class Counting(Wrapped):
            def forward(self, images):
                spent.append(len(images) * (1 + (images.requires_grad and torch.is_grad_enabled())))
                return self.inner(images)

        counting = Counting(model)
        both = {"one": counting, "other": counting}
        doubts(counting, batches, which=[BRANCHES], branches=both, max_images=8)
        told = forwards(Linf(8 / 255), (1, 8, 8), 10, which=[BRANCHES], branches=2)
        assert told == (sum(spent) / 8, sum(spent) / 8)

    def test_those_that_are_asked_for_in_the_tables_order(self, learnt):
        model, batches = learnt
        checks = doubts(model, batches, which=(DETERMINISTIC, GRADIENTS), max_images=4)
        assert [check.name for check in checks] == [GRADIENTS, DETERMINISTIC]
        whole = named(doubts(model, batches, max_images=4))
        assert [whole[check.name] for check in checks] == checks

    @pytest.mark.parametrize("which", [["no such check"], [], GRADIENTS])
    def test_a_check_that_there_is_not(self, learnt, which):
        with pytest.raises(ValueError, match="which must"):
            doubts(*learnt, which=which)

    def test_training_images_add_a_check(self, learnt):
        model, batches = learnt
        which = [GRADIENTS, TRAINING]
        assert list(named(doubts(model, batches, which=which, training=batches))) == which
        (check,) = doubts(model, batches, which=[TRAINING])
        assert (check.verdict, check.evidence) == ("not run", "no training images were given")

    @pytest.mark.heavy
    @pytest.mark.parametrize("mask", [nn.Identity, Quantised, Randomised])
    def test_neither_order_nor_batches_tell(self, learnt, mask):
        model = learnt[0] if mask is nn.Identity else mask(learnt[0])
        x, y = digits()[0][1200:1248], digits()[1][1200:1248]
        order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
        which = [RADIUS, GRADIENTS, DETERMINISTIC, INPUTS, GAP]
        one = doubts(model, [(x, y)], which=which)
        for size in (33, 40):
            other = split((x[order], y[order]), 48, size)
            assert doubts(model, other, which=which) == one
        verdicts = [check.verdict for check in one]
        assert [c.verdict for c in doubts(model, split((x, y), 48, 6), which=which)] == verdicts

    def test_verdicts_are_kept_one_by_one(self, learnt, tmp_path):
        model, batches = learnt
        which, looked = [GRADIENTS, DETERMINISTIC, INPUTS], []

        class Killed(Exception):
            pass

        def dies(what, done, total):
            looked.append((what, done, total))
            if done == 2:
                raise Killed

        kwargs = {"which": which, "folder": tmp_path, "max_images": 4}
        with pytest.raises(Killed):
            doubts(model, batches, progress=dies, **kwargs)
        assert len(list(tmp_path.iterdir())) == 2
        with pytest.MonkeyPatch.context() as patch:
            for name in which[:2]:
                patch.setitem(CHECKS, name, None)
            resumed = doubts(model, batches, **kwargs)
        assert resumed == doubts(model, batches, which=which, max_images=4)
        assert len(list(tmp_path.iterdir())) == 3
        again = doubts(model, batches, seed=1, **kwargs)
        assert len(list(tmp_path.iterdir())) == 6
        assert [c.verdict for c in again] == [c.verdict for c in resumed]
        for file in tmp_path.iterdir():
            file.write_bytes(file.read_bytes()[:-20])
        assert doubts(model, batches, **kwargs) == resumed

    def test_progress(self, learnt):
        ticks = []
        doubts(*learnt, max_images=4, progress=lambda *tick: ticks.append(tick))
        assert ticks == [("doubts", i, 8) for i in range(1, 9)]

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

    @pytest.mark.slow
    def test_thresholds_leave_the_healthy_room(self, learnt):
        """The healthy values in the comments beside the thresholds, on this classifier."""
        checks = named(doubts(*learnt))
        assert checks[RADIUS].numbers["accuracy"][-1] == 0
        assert checks[INPUTS].numbers["disagreement"] < 0.05
        assert checks[INPUTS].numbers["at_edges"] < 0.05
        assert checks[GRADIENTS].numbers["tiny"] == 0
        assert max(checks[DETERMINISTIC].numbers.values()) < 1e-5
        assert checks[BLACK_BOX].numbers["missed_by_pgd"] <= 0.01
        found = PGD(Linf(8 / 255), 20, None).search(learnt[0], *learnt[1][0], seed=0)
        assert abs(checks[GAP].numbers["pgd"] - float(found.correct.float().mean())) < 0.05
