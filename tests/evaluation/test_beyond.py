"""What is measured beyond accuracy is what its functions give, planned, kept and left out."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from advssl import Linf
from advssl.evaluation import (
    attacks,
    beyond,
    corruptions,
    diagnostics,
    evaluate,
    probes,
    report,
    theory,
)
from advssl.evaluation.attacks import PGD, Clean, measure
from advssl.evaluation.beyond import MEASURES, Subject, named
from advssl.evaluation.chosen import Chosen
from advssl.evaluation.comparison import compared
from advssl.evaluation.data import open_data
from advssl.evaluation.divergences import clouds, divergences
from advssl.evaluation.embeddings import plane
from advssl.evaluation.evaluate import Evaluation, ways
from advssl.evaluation.fisher import fisher_information
from advssl.evaluation.linear import Classifier
from advssl.evaluation.protocols import protocol
from advssl.evaluation.report.findings import FACES
from advssl.evaluation.surfaces import input_surface, weight_surface
from advssl.pixels import Pixels
from evaluation.report.samples import FINDINGS

BALL = Linf(16 / 255)
PIXELS = Pixels((0.5,) * 3, (0.25,) * 3)
SLF = replace(protocol("standardised", "slf"), epochs=2)
QUICK = {
    "ball": BALL,
    "attacks": ["clean"],
    "probe": SLF,
    "pixels": PIXELS,
    "images": 30,
    "doubts": False,
    "curves": False,
}


@pytest.fixture(scope="module")
def data():
    return open_data("digits", image_size=8)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(beyond, "_SCALES", (1.0, 2.0))


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten())


def test_every_measure_can_be_shown():
    assert set(MEASURES) == set(FACES)


@pytest.mark.parametrize("word", ["", "aura", "divergence:there"])
def test_no_other_names_are_known(word):
    with pytest.raises(ValueError, match=r"measures are corruptions\[:FOLDER\], divergence.*got"):
        named(word)


@pytest.fixture(scope="module")
def evaluated(data, tmp_path_factory):
    """A report with its folder, and what was said on the way."""
    folder, said = tmp_path_factory.mktemp("evaluated"), list[str]()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(beyond, "_SCALES", (1.0, 2.0))
        asked = {**QUICK, "measures": ["divergence"], "folder": folder}
        found = evaluate(encoder(), data, say=said.append, **asked)
    return found, folder, said


@pytest.mark.slow
def test_divergence_is_what_its_parts_give(data, evaluated):
    (last, best), folder = evaluated[0].sections, evaluated[1]
    assert not best.findings
    made = last.findings["divergence"]
    judge = probes.finetune(encoder(), data, SLF, ball=BALL, pixels=PIXELS, folder=folder).last
    rows = attacks.class_balanced(torch.tensor(data.test.targets), 30, 0)
    images = torch.stack([data.test[i][0] for i in rows])
    batches = [(images, torch.tensor([data.test[i][1] for i in rows]))]
    assert made.radii == (0.0, BALL.radius, 2 * BALL.radius)
    assert (made.images, made.radius) == (30, BALL.radius)
    for i, radius in enumerate(made.radii):
        attack = PGD(Linf(radius), 20, None) if radius else Clean()
        spread = divergences(*clouds(judge, attack, batches))
        assert (made.intra[i], made.inter[i]) == (spread.intra, spread.inter)
        assert made.relative[i] == spread.relative
        assert made.accuracy[i] == pytest.approx(measure(judge, attack, batches).value)


def test_finished_parts_are_kept_and_read(data, evaluated, tmp_path, monkeypatch):
    first, folder, _ = evaluated
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    asked = {**QUICK, "measures": ["divergence"], "folder": tmp_path}
    parts = sorted((tmp_path / "beyond").iterdir())
    assert len(parts) == 3
    parts[0].unlink()
    made = []
    monkeypatch.setattr(beyond, "clouds", lambda *a, **k: made.append(1) or clouds(*a, **k))
    assert evaluate(encoder(), data, **asked).sections[0].findings == first.sections[0].findings
    assert made == [1]
    evaluate(encoder(), data, **{**asked, "attack_seed": 1})
    assert len(made) == 4


def test_the_plan_says_what_it_costs(data):
    asked = Evaluation(
        modules={"a": encoder(), "b": encoder()},
        data=data,
        ball=BALL,
        attacks=(Clean(),),
        ways=ways(SLF, data),
        pixels=Pixels(),
        images=30,
        doubts=False,
        curves=False,
        with_beside=False,
        seed=0,
        attack_seed=0,
        batch_size=100,
        budget=None,
        model=None,
        measures=[*MEASURES],
    )
    told = {job.what: job.forwards for job in asked.plan().jobs if job.what in MEASURES}
    assert list(told) == list(MEASURES)
    # Of 30 images: both answers, an ascent, the inversion of two neurons from three starts and the
    # features that choose them, two planes of 81 points, and a backward per class.
    climbs = 30 * (2 + 43) + 60 + 3 * 2 * 402
    picture = climbs + 30 * (2 + 81) + 81 * 30 * 12 + 30 * 12
    each = {
        "corruptions": 1 + 18 * 5,
        "pictures": picture / 30,
        "divergence": 3 * 2 + 2 * (2 + 41),  # features twice at three radii, and two ascents
        "theory": 21 + 2 + 7 + 40 + 2,  # PGD-10, benign, SAM's ascent, PGD-20 and its loss
    }
    for name, forwards in each.items():
        least, most = (2 * 30 * whole(forwards) for whole in (math.floor, math.ceil))
        assert told[name] == (least, most), name


def test_a_budget_without_time_for_it_says_so(data, monkeypatch):
    monkeypatch.setattr(beyond, "cost", lambda *_: beyond.Range(10**9, 10**9))
    found = evaluate(encoder(), data, measures=["divergence"], budget=600.0, **QUICK)
    assert not found.sections[0].findings
    (table,) = [t for t in found.tables if t.title == "Left out"]
    assert "divergence" in table.note


@pytest.mark.slow
def test_within_a_budget_there_are_two_images_of_each_class(data, monkeypatch):
    module = importlib.import_module("advssl.evaluation.running")
    monkeypatch.setattr(module, "FIRST", 5)
    seen = []
    look = lambda subject: seen.append(subject) or FINDINGS["divergence"]  # noqa: E731
    known = beyond.MEASURES["divergence"]
    monkeypatch.setitem(beyond.MEASURES, "divergence", replace(known, look=look))
    asked = {**QUICK, "images": 200, "budget": 600.0, "batch_size": 5}
    evaluate(encoder(), data, measures=["divergence"], **asked)
    assert sorted(seen[0].images.labels) == sorted(2 * [*range(10)])


def test_the_number_is_said_as_soon_as_it_is_known(evaluated):
    found, _, said = evaluated
    sentence = report.sentence("divergence", found.sections[0].findings["divergence"])
    assert f"slf (custom): {sentence}" in said


def test_two_encoders_stand_in_one_figure(evaluated, tmp_path):
    page = compared({"plain": [evaluated[0]], "robust": [evaluated[0]]}, "again")
    paths = report.write(page, tmp_path)
    assert json.loads(paths["record"].read_text())["sections"][0]["findings"]
    (figure,) = [f for n, f in report.figures(page).items() if n == "divergence-against-accuracy"]
    told = {t.get_text() for t in figure.legends[0].get_texts()}
    assert told == {"plain: slf (custom)", "robust: slf (custom)"}


class Box:
    """A ball of a user's own that cannot be made wider."""

    radius = BALL.radius
    sample, steepest, project = BALL.sample, BALL.steepest, BALL.project


def linear(classes: int = 2) -> Classifier:
    torch.manual_seed(0)
    made = Classifier(nn.Flatten(), 12, classes, mean=(0.5,) * 3, std=(0.25,) * 3)
    nn.init.normal_(made.linear.weight)
    return made.eval()


def subject(folder, **fields) -> Subject:
    images = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    dataset = TensorDataset(images, torch.arange(8) % 2)
    dataset.targets = (torch.arange(8) % 2).tolist()
    given = {
        "classifier": linear(),
        "encoder": nn.Flatten(),
        "branch": None,
        "encoders": {None: nn.Flatten()},
        "images": Chosen(dataset, range(8), 3),
        "classes": ("a", "b"),
        "ball": BALL,
        "seed": 0,
        "place": "",
        "folder": folder,
        "progress": lambda *_: None,
    }
    return Subject(**{**given, **fields})


class TestOnce:
    """A part is computed once for all that it depends on."""

    @staticmethod
    def asked(of: Subject, part: str = "a part") -> bool:
        """Whether it was computed."""
        computed = []
        assert of.once(part, lambda: computed.append(1) or {"value": [1, 2.5]}) == {
            "value": [1, 2.5]
        }
        return bool(computed)

    def test_the_same_is_read(self, tmp_path):
        assert self.asked(subject(tmp_path))
        assert not self.asked(subject(tmp_path))

    def test_in_batches_of_another_size_too(self, tmp_path):
        assert self.asked(subject(tmp_path))
        other = subject(tmp_path)
        assert not self.asked(subject(tmp_path, images=other.images.in_batches(5)))

    @pytest.mark.parametrize(
        "fields",
        [
            {"classifier": linear(3)},
            {"encoder": nn.Sequential(nn.Flatten(), nn.ReLU())},
            {"branch": "clean"},
            {"ball": Linf(0.5)},
            {"seed": 1},
        ],
        ids=lambda fields: next(iter(fields)),
    )
    def test_of_anything_else_it_is_another(self, fields, tmp_path):
        assert self.asked(subject(tmp_path))
        assert self.asked(subject(tmp_path, **fields))

    def test_other_images_and_other_parts_are_others(self, tmp_path):
        one = subject(tmp_path)
        assert self.asked(one)
        assert self.asked(one, "another part")
        assert self.asked(subject(tmp_path, images=one.images.first(4)))

    def test_a_part_that_was_cut_off_is_made_again(self, tmp_path):
        assert self.asked(subject(tmp_path))
        (path,) = tmp_path.iterdir()
        path.write_text(path.read_text()[:20])
        assert self.asked(subject(tmp_path))


def test_of_a_ball_that_cannot_be_resized_there_is_its_own_radius(tmp_path):
    found = beyond.divergence(subject(tmp_path, ball=Box()))
    assert found.radii == (0.0, BALL.radius)


def test_features_that_all_lie_alike_have_no_ratio(tmp_path):
    blind = linear()
    blind.std.fill_(torch.inf)  # all images are one
    blind.mean.fill_(-1.0)
    blind.encoder = nn.Sequential(nn.Flatten(), Ones())
    found = beyond.divergence(subject(tmp_path, classifier=blind))
    assert set(found.inter) == {0.0}
    assert set(found.relative) == {None}


class Ones(nn.Module):
    def forward(self, features):
        return 0 * features + 1


def test_a_subject_has_the_features_that_the_probe_reads(data, monkeypatch):
    seen = []
    look = lambda subject: seen.append(subject) or beyond.divergence(subject)  # noqa: E731
    known = beyond.MEASURES["divergence"]
    monkeypatch.setitem(beyond.MEASURES, "divergence", replace(known, look=look))
    branches = {"a": encoder(), "b": nn.Sequential(encoder(), nn.Tanh())}
    evaluate(branches, data, measures=["divergence"], **QUICK)
    assert [one.branch for one in seen] == ["a", "b"]
    for one in seen:
        assert [*one.encoders] == ["a", "b"]
        assert one.classes == data.classes
        ((images, _),) = one.images
        raw = one.classifier.raw(images)
        assert torch.equal(one.encoder(images), raw)
        assert torch.equal(one.encoders[one.branch](images), raw)


@pytest.fixture
def two_types(monkeypatch):
    for module in (beyond, corruptions):
        few = {name: corruptions.CORRUPTIONS[name] for name in ("fog", "contrast")}
        monkeypatch.setattr(module, "CORRUPTIONS", few)


@pytest.mark.usefixtures("two_types")
def test_corruptions_are_what_their_parts_give_and_are_kept(data, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(encoder(), nn.Linear(36, 10))
    asked = {**QUICK, "probe": "own", "pixels": Pixels(), "measures": ["corruptions"]}
    steps = []
    (section,) = evaluate(
        model, data, folder=tmp_path, progress=lambda *s: steps.append(s), **asked
    ).sections
    rows = attacks.class_balanced(torch.tensor(data.test.targets), 30, 0).tolist()
    images = torch.stack([data.test[i][0] for i in rows])
    labels = torch.tensor([data.test[i][1] for i in rows])
    found = section.findings["corruptions"]
    assert found.clean == section.clean.value
    for name in ("fog", "contrast"):
        for severity, share in enumerate(found.accuracy[name], start=1):
            x = corruptions.corrupted(images, name, severity, indices=rows)
            assert share == measure(model, Clean(), [(x, labels)]).value
    assert [s for s in steps if s[0].endswith("corruptions")][-1][1:] == (2, 2)
    monkeypatch.setattr(corruptions, "corrupted", lambda *_, **__: pytest.fail("made again"))
    again = evaluate(model, data, folder=tmp_path, **asked)
    assert again.sections[0].findings == section.findings


@pytest.mark.parametrize(
    ("branch", "adversarial"),
    [("clean", "adversarial"), ("adversarial", None), ("pgd_ce", "pgd")],
)
def test_the_theorem_is_what_its_parts_give(branch, adversarial, tmp_path, monkeypatch):
    monkeypatch.setattr(theory, "_CRITIC_STEPS", 3)
    torch.manual_seed(0)
    names = {branch, adversarial or "clean", "other"}
    encoders = {name: nn.Sequential(nn.Flatten(), nn.Linear(12, 4)) for name in sorted(names)}
    one = subject(tmp_path, branch=branch, encoder=encoders[branch], encoders=encoders)
    found = beyond.theorem(one)
    x, y = (torch.cat(column) for column in zip(*one.images, strict=True))
    expected = theory.robust_bounds(
        encoders[branch],
        one.classifier,
        x,
        y,
        adversarial_encoder=encoders.get(adversarial),
        ball=BALL,
    )
    assert found == expected
    assert (found.branch_accuracy is None) == (adversarial is None)
    monkeypatch.setattr(beyond, "robust_bounds", lambda *_, **__: pytest.fail("made again"))
    assert beyond.theorem(one) == found


@pytest.mark.slow
def test_pictures_are_what_their_parts_give(tmp_path, monkeypatch):
    for name, value in (("_POINTS", 3), ("_STEPS", 1), ("_RISE", 2), ("_HARD", 4)):
        monkeypatch.setattr(beyond, name, value)
    one = subject(tmp_path)
    judge, batches = one.classifier, [*one.images]
    found = beyond.picture(one)
    assert found.classes == one.classes
    assert found.plane == plane(judge, PGD(BALL, 20, None), batches, attacked=4)
    assert found.around_images == input_surface(judge, batches, ball=BALL, points=3)
    weights = weight_surface(judge, batches, attack=PGD(BALL, 1, None), span=0.5, points=3)
    assert found.around_weights == weights
    assert found.fisher == fisher_information(judge, batches)
    features = judge.raw(torch.cat([x for x, _ in batches]))
    most = sorted(features.std(dim=0).topk(2).indices.tolist())
    assert [*found.maps.neurons] == most
    made = found.maps.inversions
    first, second = (one.images.dataset[i][0] for i in one.images.balanced(2).rows)
    for start, image in zip(made.starts, (first, second), strict=False):
        torch.testing.assert_close(start, image, atol=0.5 / 255 + 1e-6, rtol=0)
    assert len(made.starts) == 3  # and noise
    assert {one.images.dataset[i][1].item() for i in one.images.balanced(2).rows} == {0, 1}
    monkeypatch.setattr(beyond, "plane", lambda *_, **__: pytest.fail("made again"))
    assert beyond.picture(one) == found


def test_the_theorem_takes_two_images_of_each_class_at_least(data):
    many = subject("", images=Chosen(data.test, range(400), 50))
    assert beyond._in_one_batch(many.images, 10) == 128
    assert beyond._in_one_batch(many.images, 100) == 200
    assert beyond._in_one_batch(many.images.first(20), 10) == 20


def test_a_place_goes_to_the_measure_and_is_looked_at_before_the_work(data, tmp_path):
    with pytest.raises(ValueError, match="holds neither"):
        evaluate(encoder(), data, measures=[f"corruptions:{tmp_path}"], **QUICK)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"measures": "divergence"}, "write a list of one name"),
        ({"measures": ["aura"]}, r"measures are corruptions"),
        ({"measures": ["divergence"], "images": 10}, "two images of one class"),
        ({"measures": ["theory"], "images": 15}, "1 is of class '[0-9]'; give more images"),
        ({"measures": ["pictures"], "images": 3}, "four images at least, and 3"),
        ({"measures": ["theory"], "probe": "own", "pixels": Pixels()}, "its own head"),
        ({"measures": ["divergence"], "probe": "own", "pixels": Pixels()}, "its own head"),
    ],
    ids=["text", "unknown", "too few", "no pair", "no plane", "theory of a head", "own head"],
)
def test_mistakes_are_refused_before_any_work(asked, message, data, monkeypatch):
    monkeypatch.setattr(probes, "finetune", lambda *_, **__: pytest.fail("it began"))
    monkeypatch.setattr(diagnostics, "doubts", lambda *_, **__: pytest.fail("it began"))
    model = nn.Sequential(encoder(), nn.Linear(36, 10)) if "probe" in asked else encoder()
    with pytest.raises(ValueError, match=message):
        evaluate(model, data, **{**QUICK, **asked})
