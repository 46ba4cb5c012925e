"""Attacks find the known optimum, agree with others' code, leave no trace, and resume unchanged."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advssl import L2, Linf, branch_batchnorm, on_branch
from advssl.evaluation import attacks
from advssl.evaluation.attacks import (
    PGD,
    AutoAttack,
    Clean,
    MultiTargetedPGD,
    batch_seed,
    class_balanced,
    classifier_fingerprint,
    margin,
    measure,
    progress_bars,
    transfer,
)
from advssl.evaluation.records import Measurement, fingerprint
from precision import default_dtype, low_precision

BALLS = [Linf(0.03), L2(0.25)]
QUICK = [
    Clean(),
    *(PGD(ball, 5, None, restarts=2) for ball in BALLS),
    *(MultiTargetedPGD(ball, 5, None) for ball in BALLS),
]


def blobs(count: int, classes: int, seed: int = 0, channels: int = 1):
    """Noisy copies of one random picture per class: easy, and not separable at large radii."""
    draw = torch.Generator().manual_seed(99)
    pictures = torch.rand(classes, channels, 8, 8, generator=draw) * 0.3 + 0.35
    draw.manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = 0.15 * torch.randn(count, channels, 8, 8, generator=draw)
    return (pictures[labels] + noise).clamp(0, 1), labels


def trained(classes: int, channels: int = 1, steps: int = 60) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, classes)
    )
    x, y = blobs(256, classes, seed=1, channels=channels)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return trained(4)


@pytest.fixture
def batch():
    return blobs(32, 4)


@pytest.fixture
def batches():
    x, y = blobs(30, 4)
    return list(zip(x.split(8), y.split(8), strict=True))


class Linear(nn.Module):
    """Its worst image in a ball is known in closed form."""

    def __init__(self, classes: int, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, 64, generator=draw))
        self.bias = nn.Parameter(-0.5 * self.weight.detach().sum(dim=1))

    def forward(self, images):
        return F.linear(images.flatten(1), self.weight, self.bias)

    def lead(self, images, labels, ball):
        """By how much the label leads after the best attack towards each wrong class."""
        with torch.no_grad():
            logits = self(images)
        gap = logits.gather(1, labels[:, None]) - logits
        apart = self.weight[labels][:, None] - self.weight
        dual = apart.abs().sum(2) if isinstance(ball, Linf) else apart.norm(dim=2)
        lead = (gap - ball.radius * dual).detach()
        return lead.scatter(1, labels[:, None], torch.inf).amin(dim=1)


class Told(nn.Module):
    """Counts the images it sees; may be told to break down."""

    def __init__(self, inner: nn.Module, breaks_at: int | None = None) -> None:
        super().__init__()
        self.inner, self.breaks_at = inner, breaks_at
        self.tell = Counter().update  # a count that is the module's own would be given back

    @property
    def images(self) -> int:
        return self.tell.__self__["images"]

    def forward(self, images):
        self.tell(calls=1, images=len(images))
        if self.tell.__self__["calls"] == self.breaks_at:
            raise RuntimeError("broke down")
        return self.inner(images)


class Noisy(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images + 0.2 * torch.randn_like(images))


def inside(ball, images, hard) -> bool:
    delta = (hard - images).flatten(1)
    length = delta.abs().amax(1) if isinstance(ball, Linf) else delta.norm(dim=1)
    return bool((length <= ball.radius + 1e-5).all() and hard.min() >= 0 and hard.max() <= 1)


class TestClosedForm:
    """Images in the middle of [0, 1], so that only the ball binds."""

    images = 0.5 + 0.1 * (torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(5)) - 0.5)

    def case(self, classes, ball):
        model = Linear(classes)
        labels = model(self.images).argmax(dim=1)
        lead = model.lead(self.images, labels, ball)
        clear = lead.abs() > 1e-3  # what rounding cannot turn
        assert 0.1 < (lead[clear] > 0).float().mean() < 0.9
        return model, labels, lead > 0, clear

    @pytest.mark.parametrize("ball", [Linf(0.003), L2(0.035)])
    @pytest.mark.parametrize("make", [PGD, MultiTargetedPGD])
    def test_two_classes(self, ball, make):
        model, labels, stands, clear = self.case(2, ball)
        found = make(ball, 10, ball.radius).search(model, self.images, labels, seed=0)
        assert torch.equal(found.correct[clear], stands[clear])

    @pytest.mark.parametrize("ball", [Linf(0.002), L2(0.02)])
    def test_every_target_is_tried(self, ball):
        model, labels, stands, clear = self.case(6, ball)
        attack = MultiTargetedPGD(ball, 10, ball.radius)
        found = attack.search(model, self.images, labels, seed=0)
        assert torch.equal(found.correct[clear], stands[clear])
        fewer = replace(attack, targets=1).search(model, self.images, labels, seed=0)
        assert (fewer.correct >= found.correct).all()

    def test_the_worst_image_is_the_known_one(self):
        model, labels = Linear(2), torch.zeros(64, dtype=torch.int64)
        hard = PGD(Linf(0.01), 10, 0.01)(model, self.images, labels, seed=0)
        uphill = (model.weight[1] - model.weight[0]).sign().view(1, 1, 8, 8)
        torch.testing.assert_close(hard, self.images + 0.01 * uphill)

    def test_autoattack_for_two_classes(self):
        pytest.importorskip("pyautoattack")
        ball = Linf(0.003)
        model, labels, stands, clear = self.case(2, ball)
        few = slice(0, 6)
        found = AutoAttack(ball).search(model, self.images[few], labels[few], seed=0)
        assert torch.equal(found.correct[clear[few]], stands[few][clear[few]])


class TestLaws:
    @pytest.mark.parametrize("attack", QUICK, ids=lambda a: a.name)
    def test_stays_inside_and_leaves_the_images(self, net, batch, attack):
        x, y = batch
        before = x.clone()
        hard = attack(net, x, y, seed=0)
        assert inside(getattr(attack, "ball", Linf(1e-6)), x, hard)
        assert hard.shape == x.shape
        assert hard.dtype == torch.float32
        assert not hard.requires_grad
        assert torch.equal(x, before)
        assert hard.data_ptr() != x.data_ptr()

    @pytest.mark.parametrize("attack", QUICK, ids=lambda a: a.name)
    def test_flags_are_those_of_the_images(self, net, batch, attack):
        x, y = batch
        found = attack.search(net, x, y, seed=0)
        assert torch.equal(found.correct, net(found.images).argmax(1) == y)
        assert torch.equal(found.images, attack(net, x, y, seed=0))

    @pytest.mark.parametrize("attack", QUICK[1:], ids=lambda a: a.name)
    def test_never_helps(self, net, batch, attack):
        x, y = batch
        y = y.clone()
        y[:8] = (y[:8] + 1) % 4  # misclassified as they come
        found = attack.search(net, x, y, seed=0)
        assert not found.correct[:8].any()
        with torch.no_grad():
            clean, hard = net(x), net(found.images)
        stands = found.correct
        higher = {"logit difference": margin}.get(attack.settings["loss"], attacks._cross_entropy)
        assert (higher(hard, y)[stands] >= higher(clean, y)[stands]).all()
        assert stands.sum() < (clean.argmax(1) == y).sum()

    def test_what_stands_falls_with_restarts(self, net, batch):
        one = PGD(Linf(0.04), 2, 0.02)
        first = one.search(net, *batch, seed=0)
        more = replace(one, restarts=4).search(net, *batch, seed=0)
        assert (more.correct <= first.correct).all()
        fallen = ~first.correct
        assert torch.equal(more.images[fallen], first.images[fallen])

    def test_a_restart_spends_nothing_on_what_has_fallen(self, net, batch):
        told = Told(net)
        PGD(Linf(0.6), 3, None, restarts=5)(told, *batch, seed=0)
        assert told.images == len(batch[0]) * (1 + 3 + 1)

    def test_many_classes_have_nine_targets(self):
        told, ticks = Told(Linear(30)), []
        x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
        MultiTargetedPGD(Linf(1e-6), 2, 1e-6)(
            told, x, y, seed=0, progress=lambda *tick: ticks.append(tick)
        )
        assert ticks[-1] == ("target", 9, 9)

    @pytest.mark.parametrize("attack", QUICK[1:], ids=lambda a: a.name)
    def test_the_seed_decides_and_nothing_else(self, net, batch, attack):
        first = attack(net, *batch, seed=5)
        torch.rand(17)
        assert torch.equal(attack(net, *batch, seed=5), first)
        assert not torch.equal(attack(net, *batch, seed=6), first)

    def test_a_random_classifier_is_reproducible_too(self, net, batch):
        noisy = Noisy(net)
        first = PGD(Linf(0.1), 3, None).search(noisy, *batch, seed=5)
        again = PGD(Linf(0.1), 3, None).search(noisy, *batch, seed=5)
        assert torch.equal(first.images, again.images)
        assert torch.equal(first.correct, again.correct)

    @pytest.mark.parametrize("labels_type", [torch.int32, torch.uint8, torch.int64])
    def test_any_integer_labels(self, net, batch, labels_type):
        x, y = batch
        hard = PGD()(net, x, y.to(labels_type), seed=0)
        assert torch.equal(hard, PGD()(net, x, y, seed=0))

    def test_one_image(self, net, batch):
        x, y = batch
        for attack in QUICK:
            assert attack(net, x[:1], y[:1], seed=0).shape == (1, 1, 8, 8)


class TestNoTrace:
    @pytest.fixture
    def model(self, encoder):
        encoder[-1] = nn.Linear(8, 6)
        return encoder.train()

    @pytest.fixture
    def rgb(self):
        return torch.rand(6, 3, 8, 8), torch.arange(6)

    @staticmethod
    def state(model):
        tensors = {k: v.clone() for k, v in model.state_dict().items()}
        flags = [m.training for m in model.modules()]
        asks = [p.requires_grad for p in model.parameters()]
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        return tensors, flags, asks, grads, torch.get_rng_state()

    @staticmethod
    def assert_same(one, other):
        torch.testing.assert_close(one, other, rtol=0, atol=0)

    @pytest.mark.parametrize("attack", [*QUICK, AutoAttack(Linf(0.3))], ids=lambda a: a.name)
    def test_all_is_as_it_was(self, model, rgb, attack):
        if isinstance(attack, AutoAttack):
            pytest.importorskip("pyautoattack")
        model[4].eval()
        model(rgb[0]).sum().backward()
        before = self.state(model)
        attack(model, *rgb, seed=0)
        self.assert_same(self.state(model), before)

    @pytest.mark.parametrize("call", [1, 2, 4])
    def test_after_an_exception_too(self, model, rgb, call):
        told = Told(model, breaks_at=call)
        before = self.state(told)
        with pytest.raises(RuntimeError, match="broke down"):
            PGD()(told, *rgb, seed=0)
        self.assert_same(self.state(told), before)

    def test_a_graph_from_before_can_still_be_used(self, model, rgb):
        loss = model(rgb[0]).square().mean()
        measure(model, PGD(), [rgb])
        loss.backward()
        assert model[0].weight.grad is not None

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_where_the_caller_has_no_gradient(self, net, batch, context):
        wanted = PGD()(net, *batch, seed=0)
        with context():
            x = batch[0].clone()  # an inference tensor, in inference mode
            assert torch.equal(PGD()(net, x, batch[1], seed=0), wanted)

    def test_always_float32(self, net, batch):
        wanted = PGD().search(net, *batch, seed=0)
        seen = set()
        hook = net[0].register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
        with hook, torch.autocast("cpu", dtype=torch.bfloat16):
            got = PGD().search(net, *batch, seed=0)
        assert seen == {torch.float32}
        assert torch.equal(got.images, wanted.images)

    def test_runs_in_eval_mode(self, batch):
        dropped = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), Linear(4)).train()
        flags = Clean().search(dropped, *batch, seed=0).correct
        assert torch.equal(flags, dropped.eval()(batch[0]).argmax(1) == batch[1])


class TestValues:
    @pytest.mark.parametrize(
        ("attack", "name"),
        [
            (Clean(), "clean"),
            (PGD(), "PGD-20 l_inf 8/255, step 2/255"),
            (PGD(step_size=0.8 / 255), "PGD-20 l_inf 8/255, step 0.8/255"),
            (PGD(L2(0.5), 10, None), "PGD-10 l_2 0.5, step 0.125"),
            (PGD(L2(128 / 255), 10, 0.2), "PGD-10 l_2 128/255, step 0.2"),
            (PGD(Linf(0.0123), 10, 0.01, 5), "PGD-10 l_inf 0.0123, step 0.01, 5 restarts"),
            (MultiTargetedPGD(), "multi-targeted PGD-20 l_inf 8/255, step 2/255"),
            (
                MultiTargetedPGD(targets=3),
                "multi-targeted PGD-20 l_inf 8/255, step 2/255, 3 targets",
            ),
            (AutoAttack(), "AutoAttack standard, l_inf 8/255"),
            (AutoAttack(L2(0.5), 100), "AutoAttack standard, l_2 0.5"),
        ],
    )
    def test_names(self, attack, name):
        assert attack.name == name

    @pytest.mark.parametrize("classes", [2, 3])
    def test_few_classes_are_never_called_standard(self, classes):
        attack = AutoAttack().for_classes(classes)
        assert (
            attack.name == f"APGD-CE + FAB + Square, untargeted for {classes} classes, l_inf 8/255"
        )
        assert attack.parts == ("apgd-ce", "fab", "square")
        pytest.importorskip("pyautoattack")
        assert "AutoAttack" not in attack.settings["attack"]

    @pytest.mark.parametrize("attack", [*QUICK, AutoAttack()], ids=lambda a: a.name)
    def test_settings_are_plain_and_tell_attacks_apart(self, attack):
        if isinstance(attack, AutoAttack):
            pytest.importorskip("pyautoattack")
        assert json.loads(json.dumps(attack.settings)) == attack.settings
        others = [a.settings for a in QUICK if a != attack]
        assert attack.settings not in others
        assert attack == replace(attack)
        assert len({attack, replace(attack)}) == 1

    def test_settings_say_the_step_that_was_taken(self):
        assert PGD(Linf(0.1), 5, None).settings["step_size"] == pytest.approx(0.05)
        assert PGD(Linf(0.1), 5, 0.05) != PGD(Linf(0.1), 5, None)
        assert PGD(L2(0.5), 5, None).settings["ball"] == {"norm": "L2", "radius": 0.5}

    @pytest.mark.parametrize(
        ("make", "complaint"),
        [
            (lambda: PGD(restarts=0), "restarts must be at least 1, got 0"),
            (lambda: PGD(steps=-1), "steps must be at least 0, got -1"),
            (lambda: PGD(step_size=0.0), "step_size must be positive"),
            (lambda: MultiTargetedPGD(targets=0), "targets must be at least 1, got 0"),
            (lambda: MultiTargetedPGD(step_size=-1.0), "step_size must be positive"),
            (lambda: AutoAttack(classes=1), "classes must be at least 2"),
            (lambda: AutoAttack("Linf"), "knows Linf and L2, got 'Linf'; use PGD"),
        ],
    )
    def test_nonsense_is_refused_when_it_is_written(self, make, complaint):
        with pytest.raises(ValueError, match=complaint):
            make()

    def test_steps_that_cannot_reach_the_edge_warn_once(self, net, batch):
        with pytest.warns(UserWarning, match="cannot reach the edge"):
            attack = PGD(L2(0.5), 2, 0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attack(net, *batch, seed=0)


class TestWrongInput:
    @pytest.mark.parametrize(
        ("images", "complaint"),
        [
            (torch.rand(4, 8, 8), r"\(B, C, H, W\).*got torch.float32 of shape \(4, 8, 8\)"),
            (torch.rand(0, 1, 8, 8), "B ≥ 1"),
            (torch.rand(4, 1, 8, 8).half(), "float32.*got torch.float16"),
            (torch.rand(4, 1, 8, 8).double(), "float32.*got torch.float64"),
            (torch.rand(4, 1, 8, 8) * 255, r"in \[0, 1\], got .*put a normalisation into"),
            (torch.rand(4, 1, 8, 8) - 0.5, r"in \[0, 1\]"),
            (torch.full((4, 1, 8, 8), torch.nan), r"in \[0, 1\], got \[nan"),
        ],
    )
    def test_images(self, net, images, complaint):
        labels = torch.zeros(len(images), dtype=torch.int64)
        for attack in QUICK:
            with pytest.raises(ValueError, match=complaint):
                attack(net, images, labels, seed=0)

    @pytest.mark.parametrize(
        ("labels", "complaint"),
        [
            (
                torch.zeros(3, dtype=torch.int64),
                r"labels must be 4 integers, in a tensor, got .*\(3,\)",
            ),
            (torch.zeros(4), "got torch.float32"),
            (torch.zeros(4, dtype=torch.bool), "got torch.bool"),
            (torch.full((4,), 4), "from 0 to 3, the classifier's classes, got 4 to 4"),
            (torch.full((4,), -1), "classes from 0 on, got -1; leave images without a label out"),
            ([0, 1, 2, 3], r"in a tensor, got list of \[0, 1, 2, 3\]"),
        ],
    )
    def test_labels(self, net, labels, complaint):
        with pytest.raises(ValueError, match=complaint):
            PGD()(net, torch.rand(4, 1, 8, 8), labels, seed=0)

    @pytest.mark.parametrize(
        ("answer", "complaint"),
        [
            (lambda x: x, r"logits \(4, K\), .*got torch.float32 of shape \(4, 1, 8, 8\)"),
            (lambda x: (x.flatten(1), x.flatten(1)), "got tuple of"),
            (lambda x: x.flatten(1).numpy(force=True), "got a ndarray"),
            (lambda x: x.flatten(1)[:1], r"got torch.float32 of shape \(1, 64\)"),
            (lambda x: x.flatten(1)[:, :1], "at least two"),
            (lambda x: x.flatten(1).argsort(), "in floating point.*int64"),
            (lambda x: x.flatten(1) / 0, "logits are not finite"),
        ],
    )
    def test_logits(self, answer, complaint):
        class Answers(nn.Module):
            def forward(self, images):
                return answer(images)

        with pytest.raises(ValueError, match=complaint):
            PGD()(Answers(), torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), seed=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_a_classifier_of_another_precision(self, dtype):
        model = Linear(4).to(dtype)
        with pytest.raises(ValueError, match=r"float32 and weight is not.*classifier.float\(\)"):
            Clean()(model, torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), seed=0)

    def test_no_gradient_is_an_error_of_the_attack(self):
        class Cut(nn.Module):
            def forward(self, images):
                return images.detach().flatten(1)

        with pytest.raises(ValueError, match="no gradient"):
            PGD()(Cut(), torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), seed=0)

    @pytest.mark.parametrize(
        ("module", "use"),
        [
            ("pyautoattack", lambda net, x, y: AutoAttack()(net, x, y, seed=0)),
            ("pyautoattack", lambda net, x, y: measure(net, AutoAttack(), [(x, y)])),
            ("pandas", lambda net, x, y: transfer({"a": net}, [(x, y)], Clean())),
            ("rich.progress", lambda net, x, y: progress_bars().__enter__()),  # noqa: ARG005
        ],
    )
    def test_a_missing_library_is_named(self, net, batch, monkeypatch, module, use):
        monkeypatch.setitem(sys.modules, module, None)
        name = module.partition(".")[0]
        with pytest.raises(ImportError, match=rf"needs {name}.*pip install advssl\[eval\]"):
            use(net, *batch)

    def test_the_import_is_light(self):
        heavy = ["pyautoattack", "rich", "pandas", "foolbox"]
        code = "import sys, advssl.evaluation.attacks, advssl.evaluation.diagnostics;"
        code += f"print([m for m in {heavy} if m in sys.modules])"
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert ran.stdout == "[]\n"


class TestFoolbox:
    """Same attack, other code: accuracies within what two draws of the start differ by."""

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("norm", ["Linf", "L2"])
    def test_pgd_agrees(self, net, norm):
        foolbox = pytest.importorskip("foolbox")
        x, y = blobs(200, 4, seed=4)
        radius, step = (0.04, 0.01) if norm == "Linf" else (0.25, 0.06)
        ball = Linf(radius) if norm == "Linf" else L2(radius)
        theirs = getattr(foolbox.attacks, f"{norm}PGD")(abs_stepsize=step, steps=20)
        model = foolbox.PyTorchModel(net, bounds=(0, 1))
        _, hard, broken = theirs(model, x, y, epsilons=radius)
        ours = PGD(ball, 20, step).search(net, x, y, seed=0)
        assert 0.2 < ours.correct.float().mean() < 0.8
        # Flags agree but for images at the edge of falling; accuracies far within 2 %.
        assert (ours.correct == ~broken).float().mean() >= 0.98
        assert abs(float(ours.correct.float().mean() - (~broken).float().mean())) <= 0.01
        assert inside(ball, x, hard)


@pytest.fixture(scope="module")
def standard(net):
    """One run of AutoAttack standard on sixteen images, looked at from many sides."""
    pytest.importorskip("pyautoattack")
    x, y = blobs(16, 4, seed=2)
    ticks, ball = [], Linf(0.05)
    before = torch.get_rng_state()
    found = AutoAttack(ball).search(net, x, y, seed=11, progress=lambda *t: ticks.append(t))
    kept = torch.equal(torch.get_rng_state(), before)
    return found, x, y, ball, ticks, kept


class TestAutoAttack:
    def test_flags_are_the_librarys_own(self, net, standard):
        found, x, y, ball, _, _ = standard
        library = pytest.importorskip("pyautoattack")
        run = library.AutoAttack(net, norm="Linf", eps=ball.radius, seed=11, version="standard")
        run.apgd_targeted.n_target_classes = run.fab.n_target_classes = 3
        hard, seen_as = run.run_standard_evaluation(x, y, batch_size=16)
        assert torch.equal(found.correct, seen_as == y)
        assert torch.equal(found.images, hard)
        assert 0 < found.correct.sum() < 16

    def test_stays_inside_and_is_no_weaker_than_pgd(self, net, standard):
        found, x, y, ball, _, _ = standard
        assert inside(ball, x, found.images)
        pgd = MultiTargetedPGD(ball, 50, None).search(net, x, y, seed=0)
        assert found.correct.sum() <= pgd.correct.sum()

    def test_the_callers_random_state_stays(self, standard):
        assert standard[-1]

    def test_progress_names_every_sub_attack(self, standard):
        ticks = standard[-2]
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

    def test_channels_last(self):
        pytest.importorskip("pyautoattack")
        model = trained(4, channels=3)
        x, y = blobs(8, 4, channels=3)
        turned = x.to(memory_format=torch.channels_last)
        assert not turned.is_contiguous()
        one = AutoAttack(L2(0.6)).search(model, turned, y, seed=0)
        other = AutoAttack(L2(0.6)).search(model, x, y, seed=0)
        assert torch.equal(one.correct, other.correct)
        torch.testing.assert_close(one.images, other.images)

    def test_three_classes(self):
        pytest.importorskip("pyautoattack")
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

    def test_between_four_and_ten_classes_all_wrong_ones_are_targets(self):
        """The library alone asks for a tenth class and ends in an IndexError."""
        pytest.importorskip("pyautoattack")
        model, (x, y) = trained(5), blobs(5, 5)
        run = AutoAttack(Linf(0.2)).for_classes(5)
        library = run._library_run(model, x.device, 0, lambda *_: None)
        assert library.apgd_targeted.n_target_classes == library.fab.n_target_classes == 4
        assert len(run(model, x, y, seed=0)) == 5
        many = AutoAttack().for_classes(100)._library_run(model, x.device, 0, lambda *_: None)
        assert many.apgd_targeted.n_target_classes == many.fab.n_target_classes == 9

    def test_the_budget_is_the_authors(self, net):
        library = pytest.importorskip("pyautoattack")
        theirs = library.AutoAttack(net, norm="Linf", eps=0.1, version="standard")
        ours = AutoAttack(Linf(0.1), 10)._library_run(net, torch.device("cpu"), 0, lambda *_: None)
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
        with pytest.raises(ValueError, match=r"5 pixels or more, got \(4, 16\)"):
            AutoAttack(L2(0.5))(Linear(4), small, labels, seed=0)


class Interrupted(Exception):
    pass


class Counting:
    """An attack of a user's own; counts its runs."""

    name = "mine"

    def __init__(self) -> None:
        self.runs = 0

    @property
    def settings(self):
        return {"attack": "mine", "levels": (1, 2)}

    def __call__(self, classifier, images, labels, *, seed, progress=None):  # noqa: ARG002
        self.runs += 1
        draw = torch.Generator().manual_seed(seed)
        return (images + 0.5 * torch.randn(images.shape, generator=draw)).clamp(0, 1)


class TestMeasure:
    def test_the_record(self, net, batches):
        attack = PGD(Linf(0.04), 5, None)
        record = measure(net, attack, batches, seed=7)
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert isinstance(record, Measurement)
        assert record.name == attack.name
        assert record.settings == {**attack.settings, "seed": 7}
        assert record.dataset == fingerprint(x, y)
        assert (record.n, record.seed) == (30, 7)
        flags = [
            attack.search(net, *b, seed=batch_seed(7, i)).correct for i, b in enumerate(batches)
        ]
        assert record.correct == tuple(torch.cat(flags).tolist())
        assert 0 < record.value < 1
        assert Measurement.from_json(record.to_json()) == record

    def test_names_and_seeds_may_be_given(self, net, batches):
        record = measure(net, Clean(), batches, seed=7, training_seed=3, name="SA")
        assert (record.name, record.seed, record.settings["seed"]) == ("SA", 3, 7)

    def test_a_generator_of_batches_will_do(self, net, batches):
        ticks = []
        record = measure(net, Clean(), (b for b in batches), progress=lambda *t: ticks.append(t))
        assert record == measure(net, Clean(), batches)
        assert ticks == [("clean", i, None) for i in range(1, 5)]

    def test_progress_of_batches_and_inside_them(self, net, batches):
        ticks = []
        attack = PGD(restarts=2)
        measure(net, attack, batches[:2], progress=lambda *t: ticks.append(t))
        assert ticks == [
            ("batch 1: restart", 1, 2),
            ("batch 1: restart", 2, 2),
            (attack.name, 1, 2),
            ("batch 2: restart", 1, 2),
            ("batch 2: restart", 2, 2),
            (attack.name, 2, 2),
        ]

    def test_every_batch_has_a_seed_of_its_own(self, batches):
        assert len({batch_seed(s, n) for s in range(20) for n in range(20)}) == 400
        one, other = (Counting()(None, *batches[0], seed=batch_seed(0, n)) for n in (0, 1))
        assert not torch.equal(one, other)

    def test_an_attack_of_ones_own(self, net, batches, tmp_path):
        mine = Counting()
        record = measure(net, mine, batches, folder=tmp_path)
        assert mine.runs == 4
        assert record.settings["levels"] == [1, 2]
        assert measure(net, mine, batches, folder=tmp_path) == record
        assert mine.runs == 4

    def test_no_batches(self, net, tmp_path):
        with pytest.raises(ValueError, match="no batches to measure on"):
            measure(net, Clean(), [], folder=tmp_path)

    def test_a_file_is_no_folder(self, net, batches, tmp_path):
        (tmp_path / "file").write_text("text")
        with pytest.raises(OSError, match="file"):
            measure(net, Clean(), batches, folder=tmp_path / "file")


class TestResume:
    attack = PGD(Linf(0.04), 3, None)

    @pytest.mark.parametrize("at", [1, 2, 3, 4])
    def test_interrupted_after_any_batch(self, net, batches, tmp_path, at):
        whole = measure(net, self.attack, batches, seed=3)

        def stop(what, done, _total):
            if (what, done) == (self.attack.name, at):
                raise Interrupted

        with pytest.raises(Interrupted):
            measure(net, self.attack, batches, seed=3, folder=tmp_path, progress=stop)
        assert self.again(net, batches, tmp_path, at) == whole

    def again(self, net, batches, folder, finished):
        """A second call; it runs the batches that were not finished, and nothing else."""
        seen: list[int] = []
        with net.register_forward_hook(lambda _m, i, _o: seen.append(len(i[0]))):
            record = measure(net, self.attack, batches, seed=3, folder=folder)
        left = sum(len(x) for x, _ in batches[finished:])
        assert sum(seen) == left * (1 + 3 + 1)  # the clean images, three steps, and the last
        return record

    @pytest.mark.parametrize("call", range(1, 21, 3))
    def test_killed_at_any_forward(self, net, batches, tmp_path, call):
        whole = measure(net, self.attack, batches, seed=3)
        count = 0

        def die(*_):
            nonlocal count
            count += 1
            if count == call:
                raise Interrupted

        with pytest.raises(Interrupted), net.register_forward_hook(die):
            measure(net, self.attack, batches, seed=3, folder=tmp_path)
        assert len(list(tmp_path.glob("*.json"))) == (call - 1) // 5
        assert measure(net, self.attack, batches, seed=3, folder=tmp_path) == whole

    def test_a_finished_one_runs_nothing(self, net, batches, tmp_path):
        first = measure(net, self.attack, batches, seed=3, folder=tmp_path / "deep" / "er")
        assert self.again(net, batches, tmp_path / "deep" / "er", finished=4) == first

    def test_another_measurement_is_not_taken_for_this_one(self, net, batches, tmp_path):
        measure(net, self.attack, batches, seed=3, folder=tmp_path)
        other = trained(4, steps=20)
        nearly = [(x * 0.9999, y) for x, y in batches]  # the same in uint8
        relabelled = [(x, (y + 1) % 4) for x, y in batches]
        for model, attack, data, seed in [
            (other, self.attack, batches, 3),
            (net, replace(self.attack, steps=4), batches, 3),
            (net, self.attack, batches, 4),
            (net, self.attack, batches[::-1], 3),
            (net, self.attack, nearly, 3),
            (net, self.attack, relabelled, 3),
        ]:
            before = {p: p.read_bytes() for p in tmp_path.iterdir()}
            fresh = measure(model, attack, data, seed=seed)
            assert measure(model, attack, data, seed=seed, folder=tmp_path) == fresh
            assert all(p.read_bytes() == content for p, content in before.items())
            assert len(list(tmp_path.iterdir())) == len(before) + 4

    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: text[: len(text) // 2],
            lambda _: "",
            lambda _: "[]",
            lambda text: text.replace("true", "1", 1).replace("false", "0", 1),
            lambda text: text.replace('"correct": [', '"correct": [true, '),
            lambda text: text.replace('"seed": 3', '"seed": 4'),
        ],
    )
    def test_a_damaged_file_is_run_again(self, net, batches, tmp_path, damage):
        whole = measure(net, self.attack, batches, seed=3, folder=tmp_path)
        for path in tmp_path.iterdir():
            good = path.read_text()
            path.write_text(damage(good))
            assert path.read_text() != good
        assert measure(net, self.attack, batches, seed=3, folder=tmp_path) == whole
        assert measure(net, self.attack, batches, seed=3, folder=tmp_path) == whole

    def test_what_else_lies_in_the_folder_stays(self, net, batches, tmp_path):
        (tmp_path / "notes.json").write_text("{}")
        (tmp_path / "batch-0.99.tmp").write_text("half a ba")
        measure(net, self.attack, batches, seed=3, folder=tmp_path)
        assert (tmp_path / "notes.json").read_text() == "{}"
        assert len(list(tmp_path.glob("*.tmp"))) == 1

    def test_autoattack_resumes(self, net, batches, tmp_path):
        pytest.importorskip("pyautoattack")
        attack = AutoAttack(Linf(0.5))
        first = measure(net, attack, batches[:2], folder=tmp_path)
        ticks = []
        again = measure(
            net, attack, batches[:2], folder=tmp_path, progress=lambda *t: ticks.append(t[0])
        )
        assert again == first
        assert set(ticks) == {"AutoAttack standard, l_inf 0.5"}


class TestNamesOfSubsets:
    @pytest.fixture
    def records(self, net):
        pytest.importorskip("pyautoattack")
        x, y = blobs(10, 4)
        return lambda **k: measure(net, AutoAttack(Linf(0.9)), [(x, y)], **k).name

    def test_autoattack(self, records):
        assert records(population=10) == "AutoAttack standard, l_inf 0.9"
        assert records(population=99) == "AA standard, n = 10, seeded, class-balanced, l_inf 0.9"
        assert records() == "AA standard, n = 10, l_inf 0.9"
        assert records(name="AA", population=99) == "AA"

    def test_what_is_not_balanced_is_not_called_so(self, net):
        pytest.importorskip("pyautoattack")
        x, y = blobs(12, 4)
        x, y = x[y < 2], y[y < 2]
        record = measure(net, AutoAttack(Linf(0.9)), [(x, y)], population=12)
        assert record.name == "AA standard, n = 6, of 12, l_inf 0.9"

    def test_other_attacks_keep_theirs(self, net, batches):
        assert measure(net, PGD(), batches, population=999).name == PGD().name


class TestClassifierFingerprint:
    def test_what_changes_it(self, net):
        same, fingerprints = trained(4), []
        assert classifier_fingerprint(same) == classifier_fingerprint(net)
        fingerprints.append(classifier_fingerprint(same))
        same[1] = nn.Tanh()
        fingerprints.append(classifier_fingerprint(same))
        same.register_buffer("mean", torch.zeros(3), persistent=False)
        fingerprints.append(classifier_fingerprint(same))
        same.mean += 1
        fingerprints.append(classifier_fingerprint(same))
        with torch.no_grad():
            same[0].bias[0] += 1e-6
        fingerprints.append(classifier_fingerprint(same))
        fingerprints.append(classifier_fingerprint(nn.Sequential(same)))
        assert len(set(fingerprints)) == len(fingerprints)

    def test_the_active_branch_changes_it(self):
        model = branch_batchnorm(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
        one = classifier_fingerprint(model)
        with on_branch(model, "adversarial"):
            assert classifier_fingerprint(model) != one
        assert classifier_fingerprint(model) == one

    def test_neither_mode_nor_address_does(self, net):
        one = classifier_fingerprint(net)
        assert classifier_fingerprint(net.train()) == one
        net.eval()

        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.f = object()

            def extra_repr(self):
                return f"{self.f}"

            def get_extra_state(self):
                return {"epoch": 3}

        assert classifier_fingerprint(Odd()) == classifier_fingerprint(Odd())

    def test_half_precision_and_scalars_can_be_hashed(self):
        model = nn.BatchNorm2d(3).bfloat16()
        assert len(classifier_fingerprint(model)) == 64


class TestClassBalanced:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 4 + [7] * 16)

    @pytest.mark.parametrize("count", [1, 3, 4, 10, 16, 40, 99, 100])
    def test_as_equal_as_possible(self, count):
        taken = class_balanced(self.labels, count, seed=0)
        assert len(set(taken.tolist())) == count
        assert torch.equal(taken, taken.sort().values)
        counts = [int((self.labels[taken] == k).sum()) for k in (0, 1, 2, 7)]
        sizes = [50, 30, 4, 16]
        for got, size in zip(counts, sizes, strict=True):
            # Whoever has less than the most by two or more has given all.
            assert got == size or got >= max(counts) - 1

    def test_seeded(self):
        one, again = (class_balanced(self.labels, 20, seed=4) for _ in range(2))
        assert torch.equal(one, again)
        assert not torch.equal(one, class_balanced(self.labels, 20, seed=5))
        torch.rand(3)
        assert torch.equal(one, class_balanced(self.labels, 20, seed=4))

    def test_leaves_the_random_state(self):
        before = torch.get_rng_state()
        class_balanced(self.labels, 20, seed=4)
        assert torch.equal(torch.get_rng_state(), before)

    def test_every_example_has_its_chance(self):
        labels = torch.arange(12) % 3
        seen = {i for s in range(60) for i in class_balanced(labels, 3, s).tolist()}
        assert seen == set(range(12))
        odd = [int(labels[class_balanced(labels, 1, s)]) for s in range(40)]
        assert set(odd) == {0, 1, 2}  # the one left over is of any class

    @pytest.mark.parametrize("count", [0, -1, 101])
    def test_what_is_not_there(self, count):
        with pytest.raises(ValueError, match=f"from 1 to the 100 labels there are, got {count}"):
            class_balanced(self.labels, count, seed=0)


@pytest.fixture(scope="module")
def zoo():
    return {"first": trained(4), "second": trained(4, steps=20), "linear": Linear(4)}


class TestTransfer:
    attack = PGD(Linf(0.04), 5, None)

    def test_the_diagonal_is_white_box(self, zoo, batches):
        pytest.importorskip("pandas")
        table = transfer(zoo, batches, self.attack, seed=2)
        assert list(table.index) == list(table.columns) == list(zoo)
        assert (table.index.name, table.columns.name) == ("source", "target")
        for name, model in zoo.items():
            record = measure(model, self.attack, batches, seed=2)
            assert table.loc[name, name] == pytest.approx(record.value)

    def test_rows_are_sources(self, zoo, batches):
        pytest.importorskip("pandas")
        table = transfer(zoo, batches, self.attack, seed=2)
        x, y = batches[0]
        only = transfer(zoo, [(x, y)], self.attack, seed=2)
        hard = self.attack(zoo["first"], x, y, seed=batch_seed(2, 0))
        right = (zoo["second"](hard).argmax(1) == y).float().mean()
        assert only.loc["first", "second"] == pytest.approx(float(right))
        assert table.loc["first", "first"] < table.loc["second", "first"]  # white box is stronger

    def test_images_are_made_once_per_source(self, zoo, batches):
        pytest.importorskip("pandas")
        mine, ticks = Counting(), []
        transfer(zoo, batches, mine, progress=lambda *t: ticks.append(t))
        assert mine.runs == len(zoo) * len(batches)
        assert ticks[0] == ("batch 1: from first", 1, 3)
        assert ticks[-1] == ("batch 4: from linear", 3, 3)

    def test_nothing_to_do(self, zoo, batches):
        pytest.importorskip("pandas")
        with pytest.raises(ValueError, match="got 3 classifiers and 0 images"):
            transfer(zoo, [], self.attack)
        with pytest.raises(ValueError, match="got 0 classifiers"):
            transfer({}, batches, self.attack)


class TestProgressBars:
    def test_follow_a_measurement(self, net, batches, capsys):
        pytest.importorskip("rich")
        with progress_bars() as show:
            record = measure(net, PGD(restarts=2), batches, progress=show)
            show("unknown length", 3, None)
        assert record == measure(net, PGD(restarts=2), batches)
        capsys.readouterr()

    def test_end_with_the_block_when_it_fails(self):
        pytest.importorskip("rich")
        with pytest.raises(Interrupted), progress_bars() as show:
            show("batch", 1, 2)
            raise Interrupted
        with progress_bars() as show:  # rich allows one at a time
            show("batch", 2, 2)


# --- what is answered, given and set around a measurement -----------------------------------------


class Mine:
    """An attack of a user's own."""

    name, settings = "mine", {"attack": "mine"}

    def __call__(self, classifier, images, labels, *, seed, progress=None):  # noqa: ARG002
        return (images + 0.05).clamp(0, 1)


class BreaksAway(nn.Module):
    """Answers only to the images that it knows; anywhere else with ``value``."""

    def __init__(self, inner, known, value) -> None:
        super().__init__()
        self.inner, self.known, self.value = inner, known, value

    def forward(self, images):
        known = torch.stack([(self.known == x).flatten(1).all(dim=1).any() for x in images])
        return torch.where(known[:, None], self.inner(images), self.value)


EVERY = [PGD(Linf(0.1), 2, 0.1), MultiTargetedPGD(Linf(0.1), 2, 0.1), AutoAttack(Linf(0.1)), Mine()]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("attack", EVERY, ids=lambda a: a.name)
def test_logits_that_are_not_finite_anywhere_are_refused(net, batch, attack, value):
    if isinstance(attack, AutoAttack):
        pytest.importorskip("pyautoattack")
    x, y = batch[0][:6], net(batch[0][:6]).argmax(1)
    with pytest.raises(ValueError, match="logits are not finite"):
        measure(BreaksAway(net, x, value), attack, [(x, y)])


class Answers(nn.Module):
    def __init__(self, inner, answer) -> None:
        super().__init__()
        self.inner, self.answer = inner, answer

    def forward(self, images):
        return self.answer(self.inner(images))


@pytest.mark.parametrize(
    "answer",
    [
        lambda z: (z,),
        lambda z: {"logits": z, "loss": None, "hidden": z},
        lambda z: SimpleNamespace(logits=z, hidden=z),
        lambda z: z[:, :, None, None],
        lambda z: z.double(),
    ],
)
@pytest.mark.parametrize("attack", EVERY[:2], ids=lambda a: a.name)
def test_an_answer_with_one_meaning_is_read(net, batch, attack, answer):
    found = attack.search(Answers(net, answer), *batch, seed=0)
    assert torch.equal(found.correct, attack.search(net, *batch, seed=0).correct)


@pytest.mark.parametrize("around", [default_dtype, low_precision, lambda: torch.device("meta")])
@pytest.mark.parametrize("attack", EVERY, ids=lambda a: a.name)
def test_what_torch_is_set_to_changes_nothing(net, batch, attack, around):
    if isinstance(attack, AutoAttack):
        pytest.importorskip("pyautoattack")
    x, y = batch[0][:6], batch[1][:6]
    expected = attack(net, x, y, seed=0), measure(net, attack, [(x, y)])
    chosen = class_balanced(y, 4, 0)
    with around():
        found = attack(net, x, y, seed=0), measure(net, attack, [(x, y)])
        assert class_balanced(y, 4, 0).tolist() == chosen.tolist()
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


def test_numbers_from_numpy_and_torch_are_plain(net, batches, tmp_path):
    odd = PGD(Linf(np.float64(0.1)), np.int64(2), torch.tensor(0.125), np.int32(2))
    plain = PGD(Linf(0.1), 2, 0.125, 2)
    assert (odd, odd.settings, odd.name) == (plain, plain.settings, plain.name)
    json.dumps([MultiTargetedPGD(steps=np.uint8(2), step_size=None, targets=np.int8(2)).settings])
    assert AutoAttack(classes=np.int64(4)) == AutoAttack(classes=4)
    given = {"seed": 1, "population": 99, "training_seed": 3}
    numbers = {"seed": np.int64(1), "population": torch.tensor(99), "training_seed": np.int16(3)}
    assert measure(net, odd, batches, folder=tmp_path, **numbers) == measure(
        net, plain, batches, **given
    )


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda _n, b: measure(lambda x: x, PGD(), b), "classifier must be a torch.nn.Module"),
        (lambda _n, b: measure(None, PGD(), b), "classifier must be .* got None"),
        (lambda _n, b: transfer({"a": print}, b, PGD()), r"classifiers\['a'\] must be"),
        (lambda n, b: transfer([n], b, PGD()), "classifiers must be modules by name"),
        (lambda n, b: measure(n, PGD, b), "attack must have .* got PGD"),
        (lambda n, b: measure(n, "pgd", b), "attack must have .* got 'pgd'"),
        (lambda n, b: measure(n, PGD(), b[0]), "each batch must be a pair"),
        (lambda n, b: measure(n, PGD(), [{"x": b[0][0], "y": b[0][1]}]), "a pair .*got dict"),
        (lambda n, b: measure(n, PGD(), [(*b[0], b[0][1])]), "a pair .*got tuple"),
        (lambda n, _b: measure(n, PGD(), 3), "batches must be an iterable"),
        (lambda n, b: measure(n, PGD(), [(b[0][0].numpy(), b[0][1])]), "images .*got a ndarray"),
        (lambda n, b: measure(n, PGD(), b, seed="1"), "seed must be a whole number"),
        (lambda n, b: measure(n, PGD(), b, population=1.5), "population must be a whole"),
    ],
)
def test_the_wrong_kind_of_thing_is_named(net, batches, call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(net, batches)


@pytest.mark.parametrize("attack", EVERY, ids=lambda a: a.name)
@pytest.mark.parametrize("bad", [-1, 4])
def test_a_label_that_is_no_class_is_refused_under_every_attack(net, batches, attack, bad):
    if isinstance(attack, AutoAttack):
        pytest.importorskip("pyautoattack")
    x, y = batches[0]
    y = y.clone()
    y[2] = bad
    with pytest.raises(ValueError, match=f"labels must be .*{bad}"):
        measure(net, attack, [(x, y)])


def test_a_list_is_looked_at_before_the_work(net, batches):
    seen, (x, y) = [], batches[-1]
    unlabelled = [*batches, (x, torch.full_like(y, -1))]
    with (
        net.register_forward_hook(lambda *_: seen.append(1)),
        pytest.raises(ValueError, match="got -1; leave images without a label out"),
    ):
        measure(net, PGD(), unlabelled)
    assert not seen
    with pytest.raises(ValueError, match="got -1"):
        class_balanced(torch.tensor([0, -1, 1]), 2, 0)


class Shifted(nn.Module):
    """A classifier with a mean in a plain attribute that its repr does not show."""

    def __init__(self, inner, mean) -> None:
        super().__init__()
        self.inner, self.mean = inner, mean

    def forward(self, images):
        return self.inner(images - self.mean)


def test_kept_batches_are_of_this_classifier_and_these_packages(
    net, batches, tmp_path, monkeypatch
):
    attack = PGD(Linf(0.04), 2, None)
    for count, mean in enumerate((0.0, 0.3), start=1):
        kept = measure(Shifted(net, mean), attack, batches, folder=tmp_path)
        assert kept == measure(Shifted(net, mean), attack, batches)
        assert len(list(tmp_path.iterdir())) == 4 * count
    monkeypatch.setattr("advssl.evaluation.identity._source", lambda: "other code")
    measure(Shifted(net, 0.3), attack, batches, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 12
