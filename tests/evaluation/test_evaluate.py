"""One function from an encoder or a classifier to a report that carries what its numbers are of."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset

import advssl.evaluation
from advssl import L2, Linf
from advssl.evaluation import attacks, diagnostics, evaluate, probes, report
from advssl.evaluation.data import InMemory, open_data
from advssl.evaluation.evaluate import Evaluation, ways
from advssl.evaluation.protocols import protocol
from advssl.evaluation.records import Model, Threat
from advssl.pixels import Pixels

BALL = Linf(16 / 255)
SLF = replace(protocol("standardised", "slf"), epochs=3)


@pytest.fixture(scope="module")
def data():
    return open_data("digits", image_size=8)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Probes of two epochs, figures of a point each, and a doubt."""
    module = importlib.import_module("advssl.evaluation.evaluate")
    monkeypatch.setattr(module, "_RADII", (1.0,))
    monkeypatch.setattr(module, "_STEPS", (2,))
    for preset in ("standardised", "advcl"):
        brief = replace(protocol(preset, "slf"), epochs=2)
        monkeypatch.setitem(probes.PRESETS[preset], "slf", brief)
    check = diagnostics.Check("doubtful", "pass", "no reason", {})
    monkeypatch.setattr(diagnostics, "doubts", lambda *_, **__: [check])


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten())


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))


def shown(found: report.Report) -> list[tuple[str, list[str]]]:
    return [(s.label, [m.name for m in s.measurements]) for s in found.sections]


@pytest.mark.slow
def test_imports_are_light_and_the_package_has_the_function_whoever_imported_the_module():
    code = (
        "import sys, advssl.evaluation.attacks, advssl.evaluation.diagnostics; "
        "assert not {'pyautoattack', 'rich', 'pandas', 'foolbox'} & {*sys.modules}; "
        "import advssl.evaluation.evaluate; from advssl.evaluation import evaluate as f; "
        "from advssl.evaluation.evaluate import Evaluation; import advssl.evaluation as e; "
        "assert f is e.evaluate and f.__name__ == 'evaluate' and not hasattr(f, '__path__')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert callable(advssl.evaluation.evaluate)


@pytest.mark.slow
def test_a_number_carries_what_it_is_of(data):
    found = evaluate(
        encoder(),
        data,
        ball=BALL,
        attacks=["pgd", "pgd-l2"],
        probe=SLF,
        pixels=Pixels((0.5,) * 3, (0.25,) * 3),
        images=20,
        seed=3,
        attack_seed=5,
        model=Model(backbone="a net", checkpoint="a file"),
        command="again",
    )
    last, best, _ = found.sections
    assert [m.name for m in last.measurements] == [
        "clean",
        *(a.name for n in ("pgd", "pgd-l2") for a in attacks.ATTACKS[n].of(BALL)),
    ]
    assert [m.threat for m in last.measurements] == [
        None,
        *[Threat("linf", BALL.radius)] * 2,
        Threat("l2", 0.5),
    ]
    for section in (last, best):
        for m in section.measurements:
            assert (m.n, m.seed, m.attack_seed) == (20, 3, 5)
            assert m.source.fingerprint == m.dataset
            assert (m.source.spec, m.source.image_size, m.source.population) == ("digits", 8, 500)
            assert (m.source.train, m.source.validation, m.source.classes) == (1167, 130, 10)
            assert (m.model.backbone, m.model.checkpoint) == ("a net", "a file")
            assert (m.model.mean, m.model.std) == ((0.5,) * 3, (0.25,) * 3)
            assert (m.probe.preset, m.probe.protocol, m.probe.seed) == ("custom", "slf", 3)
            assert m.probe.settings["epochs"] == 3
            assert m.probe.selected == section.selected
            assert m.versions["torch"] == torch.__version__
    assert last.selected is None
    assert best.selected.startswith("best on validation, epoch ")
    assert found.command == "again"
    assert found.data == last.clean.source
    text = report.to_json(found)
    assert '"preset":"custom"' in text.replace(" ", "")


@pytest.mark.slow
def test_it_is_what_its_parts_give(data):
    found = evaluate(encoder(), data, ball=BALL, attacks=["pgd"], probe=SLF, images=30)
    made = probes.finetune(encoder(), data, SLF, ball=BALL)
    rows = attacks.class_balanced(torch.tensor(data.test.targets), 30, 0)
    images = torch.stack([data.test[i][0] for i in rows])
    labels = torch.tensor([data.test[i][1] for i in rows])
    for section, judge in zip(found.sections, (made.last, made.best), strict=False):
        for m, attack in zip(
            section.measurements, (attacks.Clean(), *attacks.ATTACKS["pgd"].of(BALL)), strict=False
        ):
            expected = attacks.measure(judge, attack, [(images, labels)])
            assert (m.correct, m.dataset) == (expected.correct, expected.dataset)
    last = found.sections[0]
    assert [r for r, _ in last.by_radius] == [0.0, BALL.radius, 0.5]
    radius = attacks.PGD(BALL, 20, None)
    expected = attacks.measure(made.last, radius, [(images, labels)]).value
    assert last.by_radius[1][1] == expected
    assert last.by_steps[0][0] == 2
    assert [c.name for c in last.checks][:1] == ["doubtful"]
    assert last.strip is not None


def test_clean_alone_does_only_clean(data, monkeypatch):
    def never(*_, **__):
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr(attacks.PGD, "_run", never)
    monkeypatch.setattr(diagnostics, "doubts", never)
    found = evaluate(
        encoder(), data, attacks=["clean"], probe=SLF, images=20, doubts=False, curves=False
    )
    assert {m.name for s in found.sections for m in s.measurements} == {"clean"}
    assert not found.sections[0].by_radius


def test_doubts_look_at_every_class_of_a_folder_sorted_by_class(data, monkeypatch):
    """As many of each as the training images that they are compared with."""
    labels = torch.arange(10).repeat_interleave(20)
    test = InMemory(torch.rand(200, *data.test[0][0].shape), labels.tolist())
    looked = []

    def doubts(_, batches, *, training, **__):
        for part in (batches, training):
            found = torch.cat([y for _, y in part])[:128]  # the default of ``max_images``
            looked.append(torch.bincount(found.cpu(), minlength=10))
        return []

    monkeypatch.setattr(diagnostics, "doubts", doubts)
    asked = {"ball": BALL, "attacks": ["clean"], "probe": SLF, "images": 200, "curves": False}
    evaluate(encoder(), replace(data, test=test), **asked)
    for counts in looked:
        assert counts.min() >= 12
        assert counts.max() <= 13


@pytest.mark.slow
def test_the_other_probe_stands_beside_where_its_features_are_made_once(data):
    quick = {"ball": BALL, "attacks": ["pgd"], "images": 20, "doubts": False, "curves": False}
    by_default = evaluate(encoder(), data, **quick)
    assert [s.probe.preset for s in by_default.sections] == ["standardised"] * 2 + ["advcl"]
    beside = by_default.sections[-1]
    assert [m.name for m in beside.measurements] == [
        "clean",
        attacks.PGD(BALL, 20, BALL.radius / 4).name,
    ]
    other = evaluate(encoder(), data, probe="advcl", **quick)
    assert [s.probe.preset for s in other.sections] == ["advcl"] * 2 + ["standardised"]
    mirrored = evaluate(encoder(), replace(data, natural=True), probe="standardised", **quick)
    assert {s.probe.preset for s in mirrored.sections} == {"standardised"}
    alone = evaluate(encoder(), data, beside=False, **quick)
    assert {s.probe.preset for s in alone.sections} == {"standardised"}
    both = evaluate(encoder(), data, probe=["standardised", SLF], **quick)
    assert [s.probe.preset for s in both.sections] == ["standardised"] * 2 + ["custom"] * 2


def test_each_branch_has_its_sections(data):
    found = evaluate(
        {"clean": encoder(), "pgd": encoder()},
        data,
        attacks=["clean"],
        probe=SLF,
        images=20,
        curves=False,
    )
    assert [s.branch for s in found.sections] == ["clean", "clean", "pgd", "pgd"]
    assert [s.clean.model.branch for s in found.sections] == ["clean", "clean", "pgd", "pgd"]


def test_a_classifiers_own_head(data):
    found = evaluate(classifier(), data, ball=BALL, attacks=["pgd"], probe="own", images=20)
    (section,) = found.sections
    assert (section.label, section.probe.protocol) == ("own", "own")
    images = torch.stack([data.test[i][0] for i in range(500)])
    rows = attacks.class_balanced(torch.tensor(data.test.targets), 20, 0)
    said = classifier()(images[rows]).argmax(1).tolist()
    assert list(section.clean.correct) == [
        a == data.test.targets[i] for a, i in zip(said, rows, strict=True)
    ]
    pixels = Pixels((0.5,) * 3, (0.25,) * 3)
    scaled = evaluate(
        classifier(), data, attacks=[], probe="own", pixels=pixels, images=20, curves=False
    )
    said = classifier()(pixels.of(images[rows])).argmax(1).tolist()
    assert list(scaled.sections[0].clean.correct) == [
        a == data.test.targets[i] for a, i in zip(said, rows, strict=True)
    ]


def test_attacks_of_ones_own_and_twice_named(data):
    mine = attacks.PGD(L2(1.0), 3, 0.5)
    found = evaluate(
        classifier(),
        data,
        ball=BALL,
        attacks=[mine, "clean", "pgd", attacks.Clean(), "pgd", mine],
        probe="own",
        images=10,
        curves=False,
    )
    (section,) = found.sections
    pgd = [a.name for a in attacks.ATTACKS["pgd"].of(BALL)]
    assert [m.name for m in section.measurements] == ["clean", mine.name, *pgd]
    assert section.threat == Threat("linf", BALL.radius)  # not the first attack's
    assert [m.name for m in section.under_threat()] == pgd


@pytest.mark.usefixtures("few_queries")
def test_the_worst_case_is_of_all_attacks_of_the_threat_model_whatever_their_order(data):
    found = evaluate(
        classifier(),
        data,
        ball=BALL,
        attacks=["pgd-l2", "mpgd", "aa", "pgd"],
        probe="own",
        images=10,
        doubts=False,
        curves=False,
    )
    (section,) = found.sections
    clean, l2, *hostile = section.measurements
    assert l2.threat == Threat("l2", 0.5)
    assert len(hostile) == 4
    assert section.threat == Threat("linf", BALL.radius)
    every = zip(*(m.correct for m in hostile), strict=True)
    assert section.worst.correct == tuple(map(all, every))
    assert {m.n for m in hostile} == {clean.n}


class Mine:
    """A ball with what an attack needs and no more: the sides of a cube, as Linf's."""

    radius = 0.1
    sample, steepest, project = Linf.sample, Linf.steepest, Linf.project


@dataclass(frozen=True)
class Held:
    """With a radius as it came."""

    radius: Any

    def sample(self, images, generator=None):
        return Linf(self.radius).sample(images, generator)

    def steepest(self, gradient):
        return gradient.sign()

    def project(self, delta):
        return Linf(self.radius).project(delta)


@pytest.mark.parametrize("kind", [np.float32, torch.tensor, Fraction])
def test_the_radius_of_a_ball_of_ones_own_may_be_any_number(data, kind, tmp_path):
    found = evaluate(classifier(), data, ball=Held(kind(0.125)), probe="own", images=10)
    report.write(found, tmp_path)
    under = [m for m in found.sections[0].measurements if m.name.startswith("PGD-20 Held 0.125")]
    assert {type(m.threat.radius) for m in under} == {float}


def test_a_ball_that_is_not_hashable_is_refused(data):
    with pytest.raises(ValueError, match=r"ball must be hashable.*unhashable type: 'list'"):
        evaluate(classifier(), data, ball=Held([0.1]), probe="own", images=10)


class Odd(attacks.Search):
    """Equal to others of its kind, and so without a hash."""

    name, settings, ball = "odd", {"attack": "odd"}, BALL

    def __eq__(self, other):
        return isinstance(other, Odd)

    def _run(self, *_):
        raise AssertionError


def test_an_attack_that_is_not_hashable_is_refused(data):
    with pytest.raises(ValueError, match=r"an attack must be hashable.*unhashable type: 'Odd'"):
        evaluate(classifier(), data, ball=BALL, attacks=[Odd()], probe="own", images=10)


def test_a_ball_of_ones_own(data):
    found = evaluate(classifier(), data, ball=Mine(), probe="own", images=10)
    (section,) = found.sections
    assert section.threat == Threat("mine", 0.1)
    same = evaluate(classifier(), data, ball=Linf(0.1), attacks=["pgd"], probe="own", images=10)
    for ours, theirs in zip(
        section.measurements[1:3], same.sections[0].measurements[1:], strict=True
    ):
        assert ours.correct == theirs.correct
    assert not any("AutoAttack" in m.name for m in section.measurements)
    assert len(section.by_steps) == 1  # and no radius but this is known
    assert section.by_radius == ((0.0, section.clean.value),)
    assert report.terminal(found)
    with pytest.raises(ValueError, match="AutoAttack knows Linf and L2"):
        evaluate(classifier(), data, ball=Mine(), attacks=["aa"], probe="own")


def test_what_is_read_is_what_is_used(data):
    plain = Evaluation(
        modules={None: encoder()},
        data=data,
        ball=BALL,
        attacks=(attacks.Clean(),),
        ways=ways("advcl", data),
        pixels=Pixels(),
        images=20,
        doubts=True,
        curves=False,
        with_beside=False,
        seed=0,
        attack_seed=0,
        batch_size=10,
        budget=None,
        model=None,
    )
    everything = {"train", "validation", "test"}
    for probe, parts in (
        ("advcl", everything),
        ("released", {"train", "test"}),  # its epoch is chosen on the test images, on all of them
        (["released", "advcl"], everything),
    ):
        census = replace(plain, ways=ways(probe, data)).checked()
        assert {*census.counts} == parts
        assert census.repeats["test"].of == (20 if probe == "advcl" else 500)


@pytest.mark.slow
def test_the_first_answer_comes_first_and_is_a_part_of_the_rest(data, monkeypatch):
    module = importlib.import_module("advssl.evaluation.evaluate")
    monkeypatch.setattr(module, "FIRST", 20)
    monkeypatch.setattr(importlib.import_module("advssl.evaluation.evaluate"), "_FEW", 100)
    said = []
    evaluate(
        encoder(),
        data,
        ball=BALL,
        attacks=["pgd"],
        probe=SLF,
        images=40,
        curves=False,
        say=said.append,
    )
    assert said[0].startswith("first answer, of a linear probe on 100 training images: clean ")
    assert "[" in said[0]
    assert said[0].endswith(" of 20 images")
    assert said[1].startswith("slf (custom): clean ")
    assert said[1].endswith(" of 20 images; all of them follow")
    assert [line.split("%")[0].rsplit(" ", 2)[0] for line in said[2:4]] == [
        "slf (custom): clean",
        f"slf (custom): {attacks.PGD(BALL, 20, BALL.radius / 4).name}",
    ]


@pytest.mark.slow
def test_a_second_call_in_a_folder_does_nothing_again(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no repository, whose commit may change
    asked = {"ball": BALL, "attacks": ["pgd"], "probe": SLF, "images": 20, "folder": tmp_path}
    first = evaluate(encoder(), data, **asked)

    def never(*_, **__):
        raise AssertionError("this was finished")

    monkeypatch.setattr("advssl.evaluation.running.Run._strip", lambda *_: None)
    monkeypatch.setattr(attacks.PGD, "_run", never)
    monkeypatch.setattr("advssl.evaluation.training._Step", never)
    again = evaluate(encoder(), data, **asked)
    assert report.to_json(again) == report.to_json(first)
    kept = again.sections[0].classifier
    assert (tmp_path / f"classifier-{kept}.pt").exists()


# --- a budget -------------------------------------------------------------------------------------


@pytest.fixture
def time_goes(monkeypatch):
    """A clock that moves by a second for each attacked image, which is one in ten."""
    now = [0.0]
    monkeypatch.setattr("advssl.evaluation.running.time.monotonic", lambda: now[0])
    attacked = attacks.PGD._run

    def slow(self, classifier, images, *args):
        now[0] += len(images)
        return attacked(self, classifier, images, *args)

    monkeypatch.setattr(attacks.PGD, "_run", slow)
    return now


@pytest.mark.slow
def test_a_budget_gives_as_many_images_as_fit_and_says_what_it_left_out(data, time_goes):
    said = []
    found = evaluate(
        classifier(),
        data,
        ball=BALL,
        attacks=["pgd"],
        probe="own",
        budget=100,
        batch_size=10,
        doubts=False,
        curves=False,
        say=said.append,
    )
    section, more = found.sections
    clean, *hostile = section.measurements
    assert more.clean.n == 500  # clean accuracy is of all
    assert clean.n == min(m.n for m in hostile)
    assert {m.n for m in section.measurements} == {clean.n}
    assert 20 <= clean.n < 500
    assert time_goes[0] <= 110
    (left,) = found.tables
    assert f"on more than {clean.n} of 500 images" in left.note
    assert any("no time for" in line for line in said)
    counts = torch.tensor(data.test.targets).bincount()
    assert len(counts) == 10


def test_a_budget_for_everything_leaves_nothing_out(data):
    small = replace(data, test=Subset(data.test, range(30)))
    quick = {"ball": BALL, "attacks": ["pgd"], "probe": "own", "batch_size": 10, "curves": False}
    found = evaluate(classifier(), small, budget=1e6, **quick)
    (section,) = found.sections
    assert {m.n for m in section.measurements} == {30}
    assert not found.tables
    whole = evaluate(classifier(), small, images=0, **quick)
    assert [m.value for m in whole.sections[0].measurements] == pytest.approx(
        [m.value for m in section.measurements], abs=0.1
    )


def test_a_few_images_answer_first_where_somebody_listens(data):
    said, asked = [], {"ball": BALL, "attacks": ["clean"], "probe": "own", "images": 200}
    heard = evaluate(classifier(), data, curves=False, say=said.append, **asked)
    assert heard.sections[0].clean.n == 200
    assert said[0].startswith("own: clean ")
    assert said[0].endswith(" of 128 images; all of them follow")
    seen, net = [], classifier()
    with net.register_forward_hook(lambda _, given, __: seen.append(len(given[0]))):
        evaluate(net, data, curves=False, **asked)
    assert 128 not in seen


def test_what_is_beside_the_headline_is_measured_clean_and_under_pgd_20(data, monkeypatch):
    monkeypatch.setattr(Evaluation, "run", lambda asked, *_, **__: asked)
    asked = [evaluate(encoder(), data, ball=BALL, attacks=names) for names in (["mpgd"], [])]
    clean, pgd = attacks.Clean(), attacks.PGD(BALL, 20, BALL.radius / 4)
    assert [one.short for one in asked] == [(clean, pgd), (clean,)]


@pytest.mark.parametrize("budget", [None, 1e6])
def test_a_number_of_images_that_is_said_counts(data, monkeypatch, budget):
    """200 is what is taken without a budget, and a number like any other."""
    monkeypatch.setattr(Evaluation, "run", lambda asked, *_, **__: asked)

    def n(images):
        asked = evaluate(classifier(), data, probe="own", images=images, budget=budget)
        return asked.measured.n

    whole = len(data.test)
    assert whole > 200
    assert [n(None), n(200), n(0), n(7)] == [200 if budget is None else whole, 200, whole, 7]


@pytest.mark.parametrize("enough", [True, False])
def test_the_default_probe_gives_way_where_it_would_eat_the_budget(data, monkeypatch, enough):
    monkeypatch.setattr(Evaluation, "run", lambda asked, *_, **__: asked)
    photographs, said = replace(data, natural=True), []
    asked = evaluate(encoder(), photographs, budget=1e9 if enough else 1e-9, say=said.append)
    assert [way.preset for way in asked.ways] == ["advcl" if enough else "standardised"]
    assert len(said) == (not enough)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"attacks": ["fgsm"]}, "fgsm"),
        ({"attacks": "pgd"}, "list of names"),
        ({"attacks": 3}, "attacks must be a list of names"),
        ({"probe": "knn"}, "preset must be one of"),
        ({"probe": 3}, "probe must be a preset"),
        ({"probe": []}, "name one at least"),
        ({"probe": ["own", "advcl"]}, "not both"),
        ({"images": -1}, "images"),
        ({"seed": 0.5}, "seed"),
        ({"pixels": Pixels(bounds=(0, 255))}, r"images in \[0, 1\], got Pixels.*255"),
        ({"pixels": Pixels((123.0,), (58.0,), (0, 255)), "probe": "own"}, r"images in \[0, 1\]"),
        ({"batch_size": 0}, "batch_size"),
        ({"ball": Linf(8.0)}, "255 grey levels"),
        ({"probe": "own", "encoder_or_classifier": encoder()}, "logits of the data's 10 classes"),
        ({"encoder_or_classifier": lambda x: x}, "torch.nn.Module"),
        ({"encoder_or_classifier": {}}, "torch.nn.Module"),
        ({"encoder_or_classifier": {1: encoder()}}, "branch has a name, such as 'adv', got 1"),
        ({"encoder_or_classifier": {None: encoder(), "": encoder()}}, "branch has a name.*got ''"),
    ],
)
def test_mistakes_are_refused_before_any_work(asked, message, data, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the work began")

    monkeypatch.setattr(probes, "finetune", never)
    with pytest.raises(ValueError, match=message):
        evaluate(**{"encoder_or_classifier": encoder(), "data": data, **asked})


def test_broken_data_are_refused_before_any_work(monkeypatch):
    one = InMemory(torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))
    data = replace(open_data("digits", image_size=8), train=one, test=one, validation=one)
    monkeypatch.setattr(probes, "finetune", None)
    with pytest.raises(ValueError, match="class"):
        evaluate(encoder(), data)
