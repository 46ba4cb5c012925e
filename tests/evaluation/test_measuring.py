"""Measurements are records of every image, and resume unchanged whenever they are killed."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import EVERY, QUICK, Alone, Linear, Mine, blobs, trained

from advssl import Linf, branch_batchnorm, on_branch
from advssl.evaluation import measuring
from advssl.evaluation.attacks import (
    PGD,
    AutoAttack,
    Clean,
    MultiTargetedPGD,
    class_balanced,
    classifier_fingerprint,
    measure,
    transfer,
)
from advssl.evaluation.records import Measurement, Threat, fingerprint


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
        assert record.threat == Threat("linf", 0.04)
        assert record.attack_seed == 7
        assert record.versions["torch"] == torch.__version__
        flags = [attack.search(net, *b, seed=7).correct for b in batches]
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

    def test_no_threat_where_nothing_is_perturbed_or_none_is_known(self, net, batches):
        assert measure(net, Clean(), batches).threat is None
        assert measure(net, Counting(), batches).threat is None

    @pytest.mark.parametrize("attack", [*QUICK, Mine()], ids=lambda a: a.name)
    def test_neither_batch_size_nor_order_matters(self, attack):
        model, (x, _) = Alone(), blobs(30, 4)
        y = model(x).argmax(1)
        order = torch.randperm(30)
        whole = measure(model, attack, [(x, y)], seed=3)
        parts = measure(
            model, attack, zip(x[order].split(7), y[order].split(7), strict=True), seed=3
        )
        assert parts.correct == tuple(whole.correct[i] for i in order)
        assert isinstance(attack, Clean | Mine) or 0 < parts.value < 1

    def test_a_random_classifier_draws_anew_in_each_batch(self, net, batches):
        drawn = []

        class Random(nn.Module):
            def forward(self, images):
                drawn.append(float(torch.rand(())))
                return net(images)

        one = measure(Random(), Clean(), batches, seed=1)
        assert len(set(drawn)) == len(batches)
        assert one == measure(Random(), Clean(), batches, seed=1)
        assert drawn[:4] == drawn[4:]

    def test_memory_is_that_of_a_batch(self, net):
        held, most = [], []

        def stream():
            for seed in range(20):
                x, y = blobs(8, 4, seed=seed)
                held.append(weakref.ref(x))
                most.append(sum(one() is not None for one in held))
                yield x, y
                del x, y

        measure(net, Clean(), stream())
        assert max(most) <= 3

    def test_an_attack_of_ones_own(self, net, batches, tmp_path):
        mine = Counting()
        record = measure(net, mine, batches, folder=tmp_path)
        assert mine.runs == 4
        assert record.settings["levels"] == [1, 2]
        assert measure(net, mine, batches, folder=tmp_path) == record
        assert mine.runs == 4

    def test_a_ball_of_ones_own_is_part_of_what_is_kept(self, net, batches, tmp_path):
        """One that has no fields says nothing in an attack's settings but its radius."""

        class Side:
            radius, sample, steepest = 0.5, Linf.sample, Linf.steepest

            def __init__(self, width):
                self.width = width

            def project(self, delta):
                moved = torch.zeros_like(delta)
                moved[..., : self.width] = delta[..., : self.width]
                return moved.clamp(-self.radius, self.radius)

        def of(width, folder):
            return measure(net, PGD(Side(width), 3, 0.25), batches, folder=folder)

        kept = [of(width, tmp_path / "one") for width in (0, 8)]
        assert kept == [of(width, tmp_path / f"{width}") for width in (0, 8)]
        assert kept[0].value > kept[1].value

    def test_no_batches(self, net, tmp_path):
        with pytest.raises(ValueError, match="no batches to measure on"):
            measure(net, Clean(), [], folder=tmp_path)

    def test_a_file_is_no_folder(self, net, batches, tmp_path):
        (tmp_path / "file").write_text("text")
        with pytest.raises(ValueError, match=r"^no folder can be made at folder .*file: "):
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
        left = [len(x) for x, _ in batches[finished:]]
        right = [int((net(x).argmax(1) == y).sum()) for x, y in batches[finished:]]
        with net.register_forward_hook(lambda _m, i, _o: seen.append(len(i[0]))):
            record = measure(net, self.attack, batches, seed=3, folder=folder)
        # What is wrong is spared: the others once more, three steps, and the last.
        assert sum(seen) == sum(left) + sum(right) * (1 + 3 + 1)
        return record

    @pytest.mark.parametrize("call", range(1, 25, 4))
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
        assert len(list(tmp_path.glob("*.json"))) == (call - 1) // 6
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
            (net, self.attack, nearly, 3),
            (net, self.attack, relabelled, 3),
        ]:
            before = {p: p.read_bytes() for p in tmp_path.iterdir()}
            fresh = measure(model, attack, data, seed=seed)
            assert measure(model, attack, data, seed=seed, folder=tmp_path) == fresh
            assert all(p.read_bytes() == content for p, content in before.items())
            assert len(list(tmp_path.iterdir())) == len(before) + 4

    def test_batches_in_another_order_are_found_again(self, net, batches, tmp_path):
        measure(net, self.attack, batches, seed=3, folder=tmp_path)
        turned = measure(net, self.attack, batches[::-1], seed=3)
        with net.register_forward_hook(lambda *_: pytest.fail("it is known")):
            assert measure(net, self.attack, batches[::-1], seed=3, folder=tmp_path) == turned

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: text[: len(text) // 2],
            lambda _: "",
            lambda _: "[]",
            lambda text: text.replace("true", "1", 1).replace("false", "0", 1),
            lambda text: text.replace('"correct": [', '"correct": [true, '),
            lambda text: text.replace("true", "false", 1) if "true" in text else "",
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


class TestDeadline:
    attack = PGD(Linf(0.04), 3, None)

    @pytest.fixture
    def begun_by(self, monkeypatch):
        """A clock that says how many batches were begun, and how to read it."""
        begun = []
        inner = measuring._attacked
        monkeypatch.setattr(measuring, "_attacked", lambda *given: begun.append(1) or inner(*given))
        monkeypatch.setattr(measuring.time, "monotonic", lambda: len(begun))
        return begun

    @pytest.mark.parametrize("late", [0, 1, 2, 3, 4, 9])
    def test_the_record_is_of_the_batches_before(self, begun_by, net, batches, late):
        record = measure(net, self.attack, batches, seed=3, deadline=late)
        count = min(max(late, 1), 4)
        assert len(begun_by) == count
        assert record == measure(net, self.attack, batches[:count], seed=3)

    def test_a_later_call_goes_on(self, begun_by, net, batches, tmp_path):
        for late, count in [(2, 2), (2, 2), (3, 3), (99, 4), (0, 4)]:
            record = measure(net, self.attack, batches, seed=3, folder=tmp_path, deadline=late)
            assert record.n == sum(len(x) for x, _ in batches[:count])
            assert len(begun_by) == count  # none twice
        assert record == measure(net, self.attack, batches, seed=3)

    def test_a_stream_is_not_read_on(self, begun_by, net, batches):
        left = iter(batches)
        measure(net, Clean(), left, deadline=2)
        assert len(begun_by) == 2
        assert len(list(left)) == 1  # the third was looked at, the fourth was not


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
        hard = self.attack(zoo["first"], x, y, seed=2)
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


@dataclass
class Own:
    """An attack of a user's own, by what it does to images."""

    change: Callable[[Tensor], Any]
    name: str = "own"
    ball: Linf | None = None

    settings: ClassVar = {}

    def __call__(self, classifier, images, labels, *, seed, progress=None):  # noqa: ARG002
        return self.change(images)


def test_an_attack_that_writes_into_its_images_changes_them_for_no_other(net, batches):
    before = [x.clone() for x, _ in batches]
    writes = Own(lambda x: x.add_(0.3).clamp_(0, 1))
    measure(net, writes, batches)
    transfer({"a": net, "b": net}, batches, writes)
    assert all(torch.equal(x, was) for (x, _), was in zip(batches, before, strict=True))


@pytest.mark.parametrize("how", [measure, lambda net, own, b: transfer({"a": net}, b, own)])
def test_an_attack_gives_an_image_for_each_in_its_ball_or_is_refused(net, batches, how):
    how(net, Own(lambda x: (x + 0.03).clamp(0, 1), ball=Linf(0.03)), batches)
    for own, complaint in (
        (Own(lambda x: x[:3]), r"own must return an image for each, \(8, 1, 8, 8\), got"),
        (Own(lambda _: None), "own must return an image for each.* got None"),
        (Own(lambda x: (x + 0.05).clamp(0, 1), ball=Linf(0.03)), "leaves its ball.* by 0.02 in"),
        (Own(lambda x: x, "worst case"), "an attack's name .* not 'worst case'"),
        (Own(lambda x: x, None), "an attack's name is text .* got None"),
    ):
        with pytest.raises(ValueError, match=complaint):
            how(net, own, batches)


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
