"""Attacks find the known optimum, agree with others' code, and are told apart by their settings."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import QUICK, Alone, Linear, Noisy, Told, blobs, inside

from advssl import L2, Linf
from advssl.evaluation import search
from advssl.evaluation.attacks import (
    ATTACKS,
    PGD,
    AutoAttack,
    Clean,
    MultiTargetedPGD,
    attacks_of,
    margin,
)


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

    @pytest.mark.usefixtures("few_queries")
    def test_autoattack_for_two_classes(self):
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
        assert inside(attack.ball or Linf(1e-6), x, hard)
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
        higher = {"logit difference": margin}.get(attack.settings["loss"], search.cross_entropy)
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

    def test_settings_say_all_that_the_number_depends_on(self):
        ascent = {
            "ball": {"norm": "Linf", "radius": 0.1},
            "steps": 5,
            "step_size": 0.02,
            "start": "uniform",
        }
        attack, other = PGD(Linf(0.1), 5, 0.02, 3), MultiTargetedPGD(Linf(0.1), 5, 0.02, 2)
        assert attack.settings == {
            **ascent,
            "attack": "PGD",
            "loss": "cross-entropy",
            "restarts": 3,
        }
        assert other.settings == {
            **ascent,
            "attack": "multi-targeted PGD",
            "loss": "logit difference",
            "targets": 2,
        }

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


class Cut(nn.Module):
    """Logits without a gradient."""

    def forward(self, images):
        return images.detach().flatten(1)


class Rooted(nn.Module):
    """Logits whose gradient is NaN everywhere, and whose values are fine."""

    def forward(self, images):
        z = images.flatten(1)
        return z + (z - z.detach()).abs().sqrt()


class TestWrongInput:
    @pytest.mark.parametrize("attack", [PGD(), MultiTargetedPGD(), AutoAttack()])
    @pytest.mark.parametrize(
        ("classifier", "said"), [(Cut(), "no gradient"), (Rooted(), "gradient .* is not finite")]
    )
    def test_no_gradient_is_an_error_of_the_attack(self, attack, classifier, said):
        if isinstance(attack, AutoAttack):
            pytest.importorskip("pyautoattack")
        images = torch.rand(4, 1, 8, 8)
        labels = images.flatten(1).argmax(dim=1)  # else there is nothing left to attack
        with pytest.raises(ValueError, match=said):
            attack(classifier, images, labels, seed=0)


class TestBatches:
    """The same images give each image the same answer, however they are batched and ordered."""

    @pytest.mark.slow
    @pytest.mark.parametrize("classes", [4, 3])
    @pytest.mark.parametrize("ball", [Linf(0.02), L2(0.2)])
    @pytest.mark.parametrize("word", ["clean", "pgd", "pgd-l2", "mpgd", "aa"])  # of each kind
    def test_do_not_matter(self, short_autoattack, word, ball, classes):  # noqa: ARG002
        model, (x, _) = Alone(classes), blobs(10, 4)
        y = model(x).argmax(1)
        order = torch.randperm(10)
        for attack in attacks_of([word], ball):
            whole = attack.search(model, x, y, seed=3)
            parts = [attack.search(model, x[i], y[i], seed=3) for i in order.split(4)]
            assert torch.equal(torch.cat([p.images for p in parts]), whole.images[order])
            assert torch.equal(torch.cat([p.correct for p in parts]), whole.correct[order])
        assert word in ("clean", "pgd-l2") or 0 < whole.correct.sum() < 10

    @pytest.mark.parametrize("make", [PGD, MultiTargetedPGD])
    @pytest.mark.parametrize("ball", [Linf(0.1), L2(0.5)])
    def test_starts_are_of_each_image_and_restart(self, make, ball):
        model, x = Alone(), torch.full((3, 1, 8, 8), 0.5)
        x[1] += 0.01
        y = model(x).argmax(1)
        seen = []
        hook = model.register_forward_hook(lambda _m, given, _o: seen.append(given[0].detach()))
        with hook:
            more = {"restarts": 2} if make is PGD else {}
            make(replace(ball, radius=1e-4), 1, 1e-4, **more)(model, x, y, seed=0)
        starts = [at - x for at in (seen[1], seen[3])]
        for start in starts:
            assert torch.equal(start[0], start[2])  # one image, twice
            assert not torch.allclose(start[0], start[1], atol=1e-5)
        assert not torch.allclose(*starts, atol=1e-5)


class TestTable:
    @pytest.mark.parametrize("ball", [Linf(8 / 255), Linf(0.03), L2(0.25)])
    def test_every_word_stands_for_attacks_and_says_which(self, ball):
        for word, named in ATTACKS.items():
            assert named.help
            assert "\n" not in named.help
            for attack in named(ball):
                of = {"pgd-l2": L2(0.5), "pgd-double": replace(ball, radius=2 * ball.radius)}
                assert attack.ball in (None, of.get(word, ball))

    def test_clean_is_first_and_each_attack_once(self):
        ball = L2(0.5)
        clean, *pgd = attacks_of(["pgd", "clean", "pgd", "pgd-l2"], ball)
        assert clean == Clean()
        assert pgd == [PGD(ball, 20, 0.125), PGD(ball, 20, 0.05)]  # the second is pgd-l2 too
        assert attacks_of([], ball) == (Clean(),)
        assert attacks_of(ATTACKS, ball)[-1] == AutoAttack(ball)

    @pytest.mark.parametrize("names", [["pgd", "apgd"], "pgd", ["PGD"]])
    def test_other_words_are_refused(self, names):
        with pytest.raises(ValueError, match=r"no attack is called .*pgd, pgd-l2|got .pgd.; split"):
            attacks_of(names, Linf(0.1))
