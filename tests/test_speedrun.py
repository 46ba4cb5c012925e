"""The speedrun: no label is read, a run goes on to the same weights, and what is written."""

from __future__ import annotations

import json
import runpy
import shlex
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from advssl.evaluation.checkpoints import load_encoder
from advssl.evaluation.data import Data, InMemory
from advssl.integrations.timm import backbone
from harness.method import Method
from harness.schedules import Recipe, WarmupCosine
from harness.settings import Settings
from shown import methods, photographs, reading
from tests.examples.papers import tiny
from tests.examples.papers.test_cost import LEAST

sys.path.insert(0, str(reading.ROOT / "benchmarks" / "speedrun"))

import course
import half_hour
import published
import two_hours

# By its file: the package of the papers' tests has the same name.
papers = SimpleNamespace(**runpy.run_path(str(reading.ROOT / "benchmarks" / "papers.py")))
NETWORK = "cifar:resnet18:2"
SHORT = Recipe(2, 4, WarmupCosine(1e-2, 1, restarts=True), "adam", 0.0)


def part(size: int) -> InMemory:
    drawn = torch.Generator().manual_seed(size)
    images = torch.randint(256, (size, 3, 8, 8), generator=drawn, dtype=torch.uint8)
    return InMemory(images, [i % 2 for i in range(size)])


NONE = Subset(part(1), [])


def data(size: int = 12) -> Data:
    return Data("drawn", ("a", "b"), part(size), NONE, part(8), natural=True, image_size=8)


class Mean(Method):
    """Moves towards features of mean one, and notes what labels it met."""

    title = "mean"

    def __init__(self, of: Data) -> None:
        super().__init__(backbone(NETWORK), of, 8, Settings())
        self.labels: set[int] = set()

    def step(self, images, labels, _):
        self.labels |= {*labels.tolist()}
        return {"mean": (self.encode(self.weak(images)).mean() - 1).square()}


def trained(at: course.Course) -> Mean:
    torch.manual_seed(0)
    method = Mean(at.data)
    at.train("mean", method, SHORT)
    return method


def test_no_label_reaches_a_stage(tmp_path):
    assert trained(course.Course(data(), tmp_path, seed=0)).labels == {-1}


@pytest.mark.slow
def test_a_run_out_of_time_ends_at_the_same_weights(tmp_path):
    whole = trained(course.Course(data(), tmp_path / "whole", seed=0)).state_dict()
    begun = course.Course(data(), tmp_path / "cut", seed=0, deadline=time.monotonic())
    with pytest.raises(course.Unfinished):
        trained(begun)
    goes_on = course.Course(data(), tmp_path / "cut", seed=0)
    assert tiny.same(trained(goes_on).state_dict(), whole)
    assert goes_on.spent["mean"]["presentations"] == 24


def test_seeds_are_other_runs(tmp_path):
    one, other = (trained(course.Course(data(), tmp_path, seed=seed)) for seed in (0, 1))
    assert not tiny.same(one.state_dict(), other.state_dict())


def test_operations_are_those_of_a_step_times_its_images(tmp_path):
    at = course.Course(data(), tmp_path, seed=0)
    method = trained(at)
    method.eval()
    forward = course.flops(lambda: method.encoder(torch.rand(1, 3, 8, 8)))
    # Forward and backward of each of 24 images; the first layer's input needs no gradient.
    assert 2.8 < at.spent["mean"]["flops"] / (24 * forward) <= 3


def test_what_was_made_once_is_read_back_with_its_time(tmp_path):
    made = []

    def make():
        made.append(torch.rand(3, 3) @ torch.rand(3, 3))
        return {"product": made[0]}

    first, again, other = (course.Course(data(), tmp_path, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.once("x", make)["product"], again.once("x", make)["product"])
    assert first.spent == again.spent
    assert first.spent["x"]["flops"] == 54
    other.once("x", make)
    assert len(made) == 2


@pytest.mark.slow
@pytest.mark.parametrize("record", [half_hour, two_hours])
def test_a_record_learns_its_teachers_clusters(record, tmp_path, monkeypatch):
    train = record.half_hour if record is half_hour else record.two_hours
    monkeypatch.setattr(half_hour, "BACKBONE", NETWORK)
    for name in {"TEACHER", "LONGER", "STUDENT"} & {*vars(record)}:
        monkeypatch.setattr(record, name, SHORT)
    monkeypatch.setattr(half_hour, "CLUSTERS", (2, 3))
    images = InMemory(torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), [0, 1] * 4)
    at = course.Course(Data("d", ("a", "b"), images, NONE, images, natural=True), tmp_path, 0)
    encoder = train(at).eval()
    assert [*at.spent] == ["teacher", "clusters", "student"]
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 16)
    again = train(course.Course(at.data, tmp_path, 0))
    assert tiny.same(again.state_dict(), encoder.state_dict())


@pytest.mark.heavy
def test_a_record_is_written_and_is_a_row_of_the_table(tmp_path, monkeypatch, capsys):
    def record(at: course.Course) -> nn.Module:
        return trained(at).encoder

    monkeypatch.setattr(course, "open_data", lambda _: data(40))
    path = tmp_path / "speedrun_half_hour.json"
    words = ["--data", "d", "--seeds", "2", "--images", "4", "--aa-images", "2"]
    words += ["--out", str(tmp_path / "runs"), "--record", str(path)]
    words += ["--weights", str(tmp_path / "weights.safetensors")]
    course.run(record, "half_hour", 30, NETWORK, words)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert [run["seed"] for run in written["runs"]] == [0, 1]
    read = backbone(NETWORK)
    load_encoder(read, str(tmp_path / "weights.safetensors"))
    kept = torch.load(tmp_path / "runs" / "half_hour-0" / "encoder.pt", weights_only=True)
    assert tiny.same(read.state_dict(), kept)
    (tmp_path / "speedrun_published.json").write_text('{"rows": {}}')
    monkeypatch.setattr(reading, "RESULTS", tmp_path)
    assert "`half_hour`, 2 runs" in photographs.speedrun()
    assert "seed 0, by" in photographs.weights()
    path.write_text(json.dumps({**written, "runs": written["runs"][1:]}), encoding="utf-8")
    assert not photographs.weights()  # of another seed none are published
    capsys.readouterr()
    course.run(record, "half_hour", 30, NETWORK, words)  # all of it is read back
    again = json.loads(path.read_text(encoding="utf-8"))
    for one, other in zip(written["runs"], again["runs"], strict=True):
        assert one["spent"]["mean"] == other["spent"]["mean"]
        assert one["measurements"] == other["measurements"]


@pytest.mark.slow
def test_one_run_is_put_among_the_others_of_its_record(tmp_path, monkeypatch):
    def measured(at, *_):
        return {"seed": at.seed, "spent": at.spent, "measurements": [], "doubts": []}

    monkeypatch.setattr(course, "open_data", lambda _: data())
    monkeypatch.setattr(course, "_run", measured)
    path = tmp_path / "record.json"

    def runs(*words):
        given = ["--data", "d", "--out", str(tmp_path / "runs"), "--record", str(path), *words]
        course.run(lambda at: trained(at).encoder, "half_hour", 30, NETWORK, given)
        written = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return {run["seed"]: shlex.split(run["command"])[-2:] for run in written}

    assert runs("--seed", "2") == {2: ["--seed", "2"]}
    assert runs("--seed", "0") == {0: ["--seed", "0"], 2: ["--seed", "2"]}
    assert runs("--seed", "2", "--limit", "9")[2] == ["--limit", "9"]
    assert runs("--seeds", "1") == {0: ["--seeds", "1"]}  # anew, all of it


def test_published_numbers_are_the_tables():
    assert published.numbers("advcl-1", "AdvCL") == {"aa": 42.57, "pgd": 50.45, "clean": 80.85}
    assert published.numbers("gsa-1", "GSA-RSL") == {"clean": 85.08, "pgd": 41.69, "aa": 38.6}


@pytest.mark.parametrize(
    ("methods", "forwards"),
    [
        (("simclr",), 6),
        pytest.param(("simclr", "deacl"), 6 + 1.7, marks=pytest.mark.heavy),
    ],
)
def test_a_schedule_costs_its_steps(methods, forwards):
    shown = 50_000 // 512 * 512 * 1000  # DeACL's 100 epochs are a tenth
    one = 1.11e9  # of a ResNet-18 at 32 pixels
    assert sum(map(published.schedule, methods)) == pytest.approx(forwards * one * shown, rel=0.03)


def test_methods_of_equal_cost_spend_as_many_forwards():
    """What an epoch costs is counted in the laws of all methods."""
    for row, (words, cost, probe) in papers.COSTS.items():
        name, method = words.split()[0], published.METHODS[words.split()[0]]
        taught = name in ("advcl", "gsa_on_advcl", "deacl")  # by SimCLR, as long
        assert cost == LEAST[name] + taught * LEAST["simclr"], row
        assert probe == method.probe, row
        epochs = int(papers.EQUAL[row].split()[-1])
        assert epochs * cost == pytest.approx(papers.BUDGET, abs=cost / 2), row


def test_a_methods_own_probe_is_measured_once():
    assert papers.probes_of("GSA-RSL", ["advcl", "own"]) == ["advcl", "gsa"]
    assert papers.probes_of("AdvCL", ["advcl", "own"]) == ["advcl"]


def test_a_table_of_equal_cost_shows_the_methods_own_probe_and_what_was_presented(monkeypatch):
    """SimCLR's is another than the table's, AdvCL's the same."""
    record = reading.read("papers_digits")
    runs = [
        {**run, "measurements": run["measurements"][:2]}  # clean, PGD-20
        for run in record["runs"]
        if run["row"] == "SimCLR" or (run["row"], run["plan"]["preset"]) == ("AdvCL", "advcl")
    ]
    runs[0] = {**runs[0], "machine": {**runs[0]["machine"], "cpu": "Another"}}
    equal = {"rows": ["SimCLR", "AdvCL"], "probes": ["advcl", "own"], "forwards": 7, "runs": runs}
    monkeypatch.setattr(reading, "read", lambda _: {**record, **equal})
    shown = methods.papers("papers_digits")
    head, _, simclr, advcl, *_ = [line.split(" | ") for line in shown.splitlines()]
    assert head[1:7] == [
        "clean",
        "PGD-20",
        "clean, own",
        "PGD-20, own",
        "presentations",
        "minutes |",
    ]
    assert simclr[5] == advcl[5] == "26,400"
    assert advcl[1:3] == advcl[3:5]
    assert simclr[1:3] != simclr[3:5]
    assert "some 7 forwards of each image" in shown
    assert "own probe is `standardised` for SimCLR; `advcl` for the others." in shown
    version, cpu = (runs[-1]["machine"][of] for of in ("torch", "cpu"))
    assert f"Another, torch {version}; {cpu}, torch {version}." in shown


def test_a_campaign_is_made_in_pieces(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    made = []

    def runs_of(row, _words, seed, options):
        made.append((row, seed))
        return [{"row": row, "n": len(made), "probe": p} for p in options.probes]

    within = papers.main.__globals__
    monkeypatch.setitem(within, "HERE", tmp_path)
    monkeypatch.setitem(within, "runs_of", runs_of)

    def campaign(*rows):
        asked = "papers.py equal_cifar --data folder:x --probes advcl --workers 1 --seeds 1"
        words = [*shlex.split(asked), *(word for row in rows for word in ("--row", row))]
        monkeypatch.setattr(sys, "argv", words)
        papers.main()
        found = json.loads((tmp_path / "results" / "papers_equal_cifar.json").read_text())
        return found["rows"], {run["row"]: run["n"] for run in found["runs"]}

    assert campaign("AdvCL", "SimCLR") == (["SimCLR", "AdvCL"], {"AdvCL": 1, "SimCLR": 2})
    assert campaign("SimCLR") == (["SimCLR", "AdvCL"], {"AdvCL": 1, "SimCLR": 3})
    assert campaign()[0] == [*papers.COSTS]  # anew, all of it
    with pytest.raises(SystemExit):
        campaign("SimCLR", "SimCRL")
    assert "equal_cifar has no row SimCRL" in capsys.readouterr().err


def test_a_signal_to_end_is_answered_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "open_data", lambda _: data())
    words = ["--data", "d", "--out", str(tmp_path), "--record", str(tmp_path / "record.json")]
    with pytest.raises(SystemExit, match=r"half_hour\.py: interrupted; the same command goes on$"):
        course.run(lambda _: signal.raise_signal(signal.SIGTERM), "half_hour", 30, NETWORK, words)
    assert not (tmp_path / "record.json").exists()
