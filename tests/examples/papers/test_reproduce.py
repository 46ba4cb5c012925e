"""The commands: what they say, what they leave, and what they refuse, each in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import DAMAGES
from PIL import Image
from ranks import Ended, as_script
from toys import brief_evaluation

from advcl import VIEWS
from advssl.cli import main as advssl
from advssl.evaluation.checkpoints import load_encoder
from advssl.evaluation.classifiers import load_classifier
from advssl.evaluation.records import Measurement
from advssl.integrations.timm import backbone
from harness import chain, cost, fastest, pretraining, tables, watching
from harness.data import Batch
from harness.recording import exported, kept, place_of
from harness.settings import Settings
from reproduce import METHODS, PRESETS, dry_run, given, main, parse, plan_of

from . import tiny
from .tiny import never

REPRODUCE = Path(chain.__file__).parents[1] / "reproduce.py"


def refused(capsys, *words: str) -> tuple[int, str]:
    """Exit code and the line that was said."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = capsys.readouterr().err
    code = stop.value.code
    if isinstance(code, str):  # which Python prints, and exits with 1
        said, code = said + code + "\n", 1
    assert said.count("\n") == 1, said
    return code, said


def record_in(out: Path, name: str) -> tuple[Path, dict]:
    (folder,) = out.glob(f"{name}-*")
    return folder, json.loads((folder / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def _brief():
    with pytest.MonkeyPatch.context() as patch:
        brief_evaluation(patch)
        yield


# --- every method ---------------------------------------------------------------------------------


# One of each family; tests/examples/papers/test_methods.py has a step of every method.
FAMILIES = ("simclr", "at", "rocl", "acl", "dyn_air", "advcl", "gsa_rsl", "ascl_local", "deacl")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAMILIES else pytest.mark.heavy) for n in METHODS]
)
def test_every_method_trains_two_steps(name, tmp_path):
    plan = tiny.plan(name, "--limit", "40")
    before = chain.build(plan, METHODS[name], chain.open_plan(plan)).state_dict()
    after = tiny.weights(tiny.train(plan, tmp_path))
    assert all(value.isfinite().all() for value in after.values())
    # What no view touches would be measured as it was drawn.
    assert not [n for n, value in before.items() if torch.equal(value, after[n])]


CHAINS = {
    "simclr": ["slf"],
    "acl": ["slf adversarial", "slf clean"],
    "advcl": ["slf pgd", "slf normal"],
    "gsa_rsl": ["slf adversarial", "slf clean"],
}


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    """Where the whole chain of a method was run, once."""
    found = {}

    def run(name: str) -> Path:
        if name not in found:
            found[name] = tmp_path_factory.mktemp(name)
            main(tiny.words(name, "--out", str(found[name])))
        return found[name]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",  # acl has the branches of gsa_rsl
    [pytest.param(n, marks=pytest.mark.heavy if n == "acl" else ()) for n in CHAINS],
)
def test_a_chain_leaves_a_record_and_its_encoders(name, chains):
    folder, record = record_in(chains(name), name)
    found = [Measurement.from_json(json.dumps(m)) for m in record["measurements"]]
    for m in found:
        assert (m.n, len(m.correct), m.seed) == (20, 20, 0)
    places = list(dict.fromkeys(place_of(m).label.partition(", epoch")[0] for m in found))
    last = CHAINS[name]
    assert places == [p for place in last for p in (place, f"{place}, best on validation")]
    assert sum(m.name == "clean" for m in found) == len(places)
    plan = tiny.plan(name)
    assert record["plan"] == json.loads(json.dumps(asdict(plan)))
    assert record["presentations"] == 60
    assert record["settings"]["radius"] == 0.1
    assert record["seconds"]["pretraining"] > 0
    assert {"cpu", "torch"} <= record["machine"].keys()
    assert record["command"].startswith(f"reproduce.py {name} --width 2 ")
    assert str(chains(name).parent) not in json.dumps(record)
    branches = [place.removeprefix("slf").strip() for place in last]
    assert {p.name for p in folder.iterdir()} == {
        "record.json",
        *(f"encoder-{branch}.pt" if branch else "encoder.pt" for branch in branches),
    }


BENCHMARKS = REPRODUCE.parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["precision.py", "attack_bf16", "--no-such-flag"], "precision.py: "),
        (["papers.py", "precision_cifar"], "precision_cifar is not of digits; name its images"),
        (["papers.py", "digits", "--data", "cifar10"], "digits is not of cifar10; name its images"),
    ],
)
def test_the_benchmarks_scripts_refuse_under_their_own_names(words, refusal, tmp_path):
    script, *rest = words
    done = as_script(BENCHMARKS / script, rest, tmp_path)
    assert done.code == 2
    assert refusal in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_command_that_is_repeated_reads_all_of_it_back(chains, monkeypatch, capsys):
    out = chains("advcl")
    capsys.readouterr()
    folder, _ = record_in(out, "advcl")
    written = (folder / "record.json").read_bytes()
    monkeypatch.setattr(pretraining, "pretrain", never)
    monkeypatch.setattr("advssl.evaluation.measuring._attacked", never)
    monkeypatch.setattr("advssl.evaluation.training.Training._train", never)
    main(tiny.words("advcl", "--out", str(out)))
    assert (folder / "record.json").read_bytes() == written
    said = capsys.readouterr().out
    assert "| slf pgd, best on validation, epoch " in said
    assert said.endswith(f"record.json and the encoders are in {folder}\n")


@pytest.mark.slow
def test_a_record_of_other_results_is_replaced(chains):
    folder, record = record_in(chains("simclr"), "simclr")
    path = folder / "record.json"
    path.write_text(json.dumps({**record, "presentations": 1, "commit": "old"}), encoding="utf-8")
    main(tiny.words("simclr", "--out", str(chains("simclr"))))
    again = json.loads(path.read_text(encoding="utf-8"))
    assert again["presentations"] == 60
    assert again["commit"] != "old"
    assert again["seconds"]["pretraining"] == record["seconds"]["pretraining"]


@pytest.mark.parametrize("damage", sorted({*DAMAGES} - {"swapped"}))  # it has no neighbour
def test_a_damaged_record_is_written_again(damage, tmp_path):
    path, record = tmp_path / "record.json", {"kind": "a", "commit": "first", "measurements": []}
    assert kept(path, record) == record
    assert kept(path, {**record, "commit": "later"}) == record
    DAMAGES[damage](path)
    later = {**record, "commit": "later"}
    assert kept(path, later) == later
    assert kept(path, record) == later


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr", "gsa_rsl"])
def test_exported_encoders_are_read_with_their_normalisation(name, chains):
    method = tiny.train(tiny.plan(name), chains(name)).method
    folder, _ = record_in(chains(name), name)
    for branch, encoder in chain.encoders(method).items():
        there = backbone(tiny.plan(name).backbone)
        report = load_encoder(there, folder / (f"encoder-{branch}.pt" if branch else "encoder.pt"))
        assert tiny.same(there.state_dict(), encoder.state_dict())
        if method.pixels is None:
            assert report.normalization is None
        else:
            expected = sum(method.pixels, ())
            assert [*sum(report.normalization, ())] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["at", "trades", "ascl_local"])
def test_an_exported_classifier_answers_what_the_method_does(name, tmp_path):
    plan = tiny.plan(name, "--limit", "40")
    data = chain.open_plan(plan)
    method = chain.build(plan, METHODS[name], data)
    torch.nn.init.normal_(method.head.weight)
    (encoder,) = chain.encoders(method).values()
    torch.save(exported(method, encoder), tmp_path / "encoder.pt")
    images = torch.rand(4, 3, 8, 8)
    found = load_classifier(
        plan.backbone, tmp_path / "encoder.pt", classes=data.classes, images=images
    )
    assert found.head == "linear"
    with torch.no_grad():
        expected = method.classifier().eval()(images)
        torch.testing.assert_close(found.classifier(images), expected)


@pytest.mark.slow
def test_advssl_evaluates_an_exported_encoder(chains, tmp_path, capsys):
    folder, _ = record_in(chains("gsa_rsl"), "gsa_rsl")
    own = tiny.plan("gsa_rsl").backbone
    words = ["evaluate", "--backbone", own, "--image-size", "8", "--eps", "0.1"]
    words += ["--checkpoint", str(folder / "encoder-adversarial.pt"), "--attacks", "clean"]
    advssl([*words, "--num-images", "20", "--out", str(tmp_path)])
    assert "normalises its input" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()


# --- the record -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_record_has_no_place_of_this_machine(tmp_path):
    photos = tmp_path / "my photos"
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for c in range(2):
            (photos / part / f"class{c}").mkdir(parents=True)
            for i in range(12):
                image = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(photos / part / f"class{c}" / f"{i}.png")
    out = tmp_path / "runs"
    small = ["--data", f"folder:{photos}", "--limit", "0", f"--out={out}", "--epochs", "0"]
    main(tiny.words("simclr", *small))
    _, record = record_in(out, "simclr")
    assert record["plan"]["data"] == "folder:my photos"
    assert "'folder:my photos'" in record["command"]
    assert "--out=runs" in record["command"]
    assert str(tmp_path) not in json.dumps(record)
    assert record["presentations"] == 0


# --- the list, the plan and the tables ------------------------------------------------------------


def test_the_list_has_every_method_with_its_tables_and_every_preset(capsys):
    main(["--list"])
    said = capsys.readouterr().out
    for table in tables.everything():
        block = said[said.index(f"\n{table.id} on {table.data}, ") :].split("\n\n")[0]
        for row in table.rows:
            assert f"\n  {row.label}: reproduce.py {' '.join(row.run[:1])}" in block or row.quoted
    for name, method in METHODS.items():
        (line,) = re.findall(rf"^{name} .*$", said, re.MULTILINE)
        assert f"{method.title}: {method.paper}; tables: " in line
    assert "advcl-4" in re.search(r"^advcl .*$", said, re.MULTILINE)[0]
    for preset in PRESETS:
        assert f"--preset {preset}: " in said


@pytest.mark.slow
def test_a_dry_run_says_what_it_would_do_and_does_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretraining, "pretrain", never)
    monkeypatch.setattr(cost, "seconds_per_step", lambda *_: 3.0)
    small = ("--epochs", "4", "--batch-size", "15")
    main(tiny.words("advcl", *small, "--dry-run", "--out", str(tmp_path / "out")))
    assert not list(tmp_path.iterdir())
    said = capsys.readouterr().out
    plan = tiny.plan("advcl", *small)
    forwards = cost.forwards_per_image(*chain.first_step(plan, METHODS, chain.open_plan(plan)))
    assert f"cost: {forwards:.1f} F per image and step" in said
    assert "time: 16 steps of 3.00 s, 0.8 minutes of pretraining" in said
    assert "supervision simclr-10" in said
    assert "before it: simclr" in said


def test_the_cost_of_a_plan_is_that_of_the_mathematics(monkeypatch):
    monkeypatch.setattr(cost, "seconds_per_step", lambda *_: 1.0)
    plan = tiny.plan("gsa_rsl", "--width", "16", "--image-size", "16", "--batch-size", "4")
    assert float(re.search(r"cost: ([\d.]+) F", dry_run(plan))[1]) == pytest.approx(34, rel=0.02)


@pytest.mark.parametrize(
    ("each", "asked", "whole"),
    [(0.8, [16], 160.0), (0.02, [16, 64, 200], 4.2), (0.04, [16, 64], 8.625)],
)
def test_a_long_step_is_estimated_from_a_few_images(each, asked, whole, monkeypatch):
    timed = []

    def seconds(_, batch, __):
        timed.append(len(batch.images))
        return 0.2 * (each < 0.5) + each * len(batch.images)  # what a step costs of any size

    monkeypatch.setattr(cost, "seconds_per_step", seconds)
    batch = Batch(torch.zeros(200, 1), torch.zeros(200), torch.zeros(200))
    found = cost.seconds_of_a_step(None, batch, "32-true")
    assert (timed, found) == (asked, pytest.approx(whole))


def test_a_table_is_planned_row_by_row(monkeypatch, capsys):
    monkeypatch.setattr(cost, "foreseen", lambda plan, _: f"{plan.method} {plan.flags['views']}")
    main(["--table", "advcl-4", "--dry-run"])
    said = capsys.readouterr().out
    for row in tables.lookup("advcl-4").rows:
        assert f"{row.label}\n{row.run[0]} {row.run[2]}" in said


@pytest.mark.slow
def test_a_table_shows_ours_beside_the_papers_and_what_cannot_be_had(tmp_path, capsys, monkeypatch):
    table = tables.lookup("advcl-5")
    kept = [r for r in table.rows if r.label == "CIFAR-10 SimCLR, 10"]
    kept.append(tables.Row("Another", {"slf": (12.3, 45.6)}, (), quoted="somebody"))
    monkeypatch.setattr("harness.published.lookup", lambda *_: replace(table, rows=tuple(kept)))
    main(["--table", "advcl-5", *tiny.SMALL, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    _, record = record_in(tmp_path, "advcl")
    of = [Measurement.from_plain(m) for m in record["measurements"]]
    found = {place_of(m)[1:]: 100 * m.value for m in of}
    ours = [
        f"{found['pgd', None, attack]:.1f}" for attack in ("PGD-20 l_inf 0.1, step 0.025", "clean")
    ]
    assert re.search(
        r"^\| CIFAR-10 SimCLR, 10 \| slf \| released \| "
        rf"50.10 \| {ours[0]} \| 80.34 \| {ours[1]} \|$",
        said,
        re.M,
    )
    assert "- Another, which the paper quotes from somebody: slf 12.3, 45.6." in said


# --- the page -------------------------------------------------------------------------------------


def page() -> str:
    return (REPRODUCE.parents[2] / "docs" / "papers.md").read_text(encoding="utf-8")


def shown(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def test_the_page_has_every_method_preset_and_shared_setting():
    for name in METHODS:
        assert f"`{name}`" in page()
    for preset in PRESETS:
        assert f"| `{preset}` |" in page()
    for field in fields(Settings):
        assert f"`--{field.name.replace('_', '-')}`" in page()


def test_the_page_has_every_difference():
    """But for GSA's terms on a host, which has those of both."""
    own = {name: of for name, of in METHODS.items() if name == "gsa_rsl" or "gsa" not in name}
    declared = set()
    for name, of in own.items():
        for f in fields(of.settings_type):
            if "paper" not in f.metadata:
                continue
            declared.add((name, f.name))
            paper, why = shown(f.metadata["paper"]), f.metadata["why"]
            row = [f"`{name}`", f"`{f.name}`", shown(f.default), paper, why]
            assert f"| {' | '.join(row)} |" in page()
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \| [^|]+ \| [^|]+ \| [^|]+ \|$", page(), re.MULTILINE
    )
    assert len(rows) == len(set(rows))
    assert set(rows) == declared


def test_the_page_has_all_that_is_ours():
    """One row for each, under the first method that has it."""
    rows = dict.fromkeys(line for of in METHODS.values() for line in of.ours)
    told = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \|$", page(), re.MULTILINE)
    whose = {line: re.findall(r"`(\w+)`", names) for names, line in told}
    for line in rows:
        assert whose[line] == [name for name, of in METHODS.items() if line in of.ours]


@pytest.mark.slow
def test_the_page_names_all_of_a_record(chains):
    _, record = record_in(chains("simclr"), "simclr")
    for key in {*record} - {"kind"}:
        assert f"`{key}`" in page()
    for key in {*record["measurements"][0]} - {"kind", "version"}:
        assert f"`{key}`" in page()


# --- what is asked for ----------------------------------------------------------------------------


def test_what_is_not_said_is_the_presets():
    plan = plan_of("advcl", parse(["advcl"]), {})
    quick = PRESETS["quick"]
    assert (plan.backbone, plan.recipe, plan.image_size) == (
        quick.backbone,
        quick.recipe,
        quick.image_size,
    )
    assert plan.flags == {**quick.flags, **METHODS["advcl"].settings_type.where("short")}
    assert (plan.preset, plan.precision, plan.image_size) == ("standardised", "32-true", 8)
    look = plan_of("advcl", parse(["advcl", "--data", "cifar10"]), {})
    assert (look.limit, look.num_images, look.precision) == (10_000, 1_000, fastest.precision())
    paper = plan_of("advcl", parse(["advcl", "--data", "cifar10", "--preset", "paper"]), {})
    assert paper.recipe == METHODS["advcl"].recipe
    assert (paper.limit, paper.preset, paper.flags) == (None, "advcl", {})


@pytest.mark.parametrize(("epochs", "every"), [(0, 1), (19, 1), (20, 1), (100, 5), (1000, 50)])
def test_a_training_is_looked_at_some_twenty_times(epochs, every):
    plan = plan_of("at", parse(["at", "--epochs", str(epochs)]), {})
    assert watching.watch(plan, 0.1).every == every


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", METHODS)
def test_the_network_is_the_releases_or_the_texts(name, preset):
    """Of GSA-RSL's authors the released one adds no identity; all texts say ResNet-18."""
    told = {mode: [name, "--preset", preset, "--mode", mode] for mode in ("released", "paper")}
    found = {mode: plan_of(name, parse(words), {}).backbone for mode, words in told.items()}
    assert found["paper"] == PRESETS[preset].backbone
    theirs = ("gsa_rsl", "gsa_advcl", "rocl_gsa", "clae_gsa")
    own = "resnet18_no_identity" if name in theirs else "resnet18"
    assert found["released"] == PRESETS[preset].backbone.replace("resnet18", own)
    asked = plan_of(name, parse([*told["released"], "--backbone", "cifar:resnet34"]), {})
    assert asked.backbone == "cifar:resnet34"


def test_what_is_said_counts():
    words = "--epochs 3 --batch-size 7 --width 5 --image-size 9 --limit 70 --num-images 11 --seed 4"
    words += " --radius 8/255 --precision bf16-mixed --protocol slf,aff --attacks aa --mode paper"
    plan = tiny.plan("acl", *words.split(), "--exact-bn", "--kind", "a2s")
    assert (plan.recipe.epochs, plan.recipe.batch_size) == (3, 7)
    assert (plan.backbone, plan.image_size, plan.limit) == ("cifar:resnet18:5", 9, 70)
    assert (plan.num_images, plan.seed, plan.precision) == (11, 4, "bf16-mixed")
    assert plan.flags == {"radius": 8 / 255, "exact_bn": True, "kind": "a2s"}
    assert (plan.protocols, plan.attacked, plan.mode) == (("slf", "aff"), ("aa",), "paper")
    everything = tiny.plan("simclr", "--limit", "0", "--num-images", "0")
    assert (everything.limit, everything.num_images) == (None, 0)


def test_options_may_stand_before_the_method():
    options = parse(["--radius", "0.2", "--no-sam", "gsa_rsl"])
    assert given(options, METHODS["gsa_rsl"]) == {"radius": 0.2, "sam": False}


@pytest.mark.parametrize("name", METHODS)
def test_help_shows_a_methods_settings(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    said = "".join(capsys.readouterr().out.split())  # wherever its lines end
    for field in fields(METHODS[name].settings_type):
        assert f"--{field.name.replace('_', '-')}" in said
        told = field.metadata
        assert "".join(told["what"].split()) in said
        shown = f"default{field.default}"
        if "paper" in told:
            why = "".join(told["why"].split())
            shown = f"released{field.default},paper{told['paper']}({why})"
        assert shown in said


WRONG = {
    "": r"name one of METHOD, --table ID, figure:ID and --list",
    "simclr --list": r"name one of METHOD, --table ID, figure:ID and --list",
    "advpl": r"invalid choice: 'advpl' \(choose from .*advcl",
    "simclr --no-sam": r"unknown: --no-sam; reproduce.py simclr --help lists what there is",
    "--table advcl-4 --no-sam": r"unknown: --no-sam; reproduce.py --help lists",
    "simclr --time 5": r"unknown: --time 5",
    "simclr --radius wide": r"--radius: must be a number or a fraction, got 'wide'",
    "simclr --epochs -1": r"--epochs: must be a whole number from 0 on, got '-1'",
    "simclr --batch-size 1": r"--batch-size: must be a whole number from 2 on, got '1'",
    "simclr --devices 0": r"--devices: must be a whole number from 1 on, got '0'",
    "simclr --precision 16": r"invalid choice: '16'",
    "--table advcl-4 --devices 2": r"a table runs on one device",
    "simclr --radius -0.1": r"radius must be positive",
    "simclr --relative-step 0": r"step_size must be positive",
    "acl --kind a2b": r"--kind: invalid choice: 'a2b'",
    "simclr --attacks pgd,fgsm": r"attacks are pgd, .*, aa, got fgsm",
    "simclr --protocol slf,lp": r"preset 'standardised' has protocols .*, got 'lp'",
    "gsa_rsl --probe gsa --protocol aff": r"preset 'gsa' has protocols .*, got 'aff'",
    "simclr --backbone resnet18": r'a backbone is "timm:NAME", .*, got \'resnet18\'',
    "simclr --backbone resnet18 --width 8": r"--width is of a cifar:resnet18, got --backbone res",
    "simclr --data mnist": r'data is one of "digits", .*, got \'mnist\'',
    "simclr --data folder:nowhere": r"no folder of train images at nowhere",
    "simclr --data cifar10:nowhere": r"no CIFAR-10 under nowhere; unpack",
    "simclr --batch-size 2000": r"batch of 2000 needs as many training images, there are 11\d\d;",
    "simclr --batch-size 99 --devices 2": r"batch of 99 cannot be shared equally by 2 devices",
    "advcl --limit 400": r"500 clusters need as many training images, there are 400; take more",
    "--table advcl-9": r"no table 'advcl-9'; there are .*advcl-4",
    "simclr --recipe bui": r"--recipe: invalid choice: 'bui'",
    "simclr --protocol own": r"own is the head of a method that trains .*; for simclr take a proto",
    "at --protocol own --data digits@0-4 --finetune-data digits@5-9": r"for at take a protocol",
    "simclr --data digits@5-10": r"digits has classes 0 to 9, got 'digits@5-10'; two or more",
    "simclr --finetune-data digits@3-3": r"digits has classes 0 to 9, got 'digits@3-3'",
    "simclr --finetune-data mnist": r'data is one of "digits", .*, got \'mnist\'',
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_is_refused_before_any_work(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretraining, "pretrain", never)
    code, said = refused(capsys, *words.split())
    assert code in (1, 2)
    assert said.startswith("reproduce.py: ")
    assert re.search(WRONG[words], said), said
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretraining, "pretrain", never)
    (tmp_path / "file").write_text("")
    code, said = refused(capsys, *tiny.words("simclr", "--out", str(tmp_path / "file" / "runs")))
    assert (code, "Not a directory" in said) == (1, True)


# --- as a user ------------------------------------------------------------------------------------


def test_a_run_stops_when_its_time_is_up(tmp_path, capfd):
    with pytest.raises(SystemExit) as stop:
        main(tiny.words("simclr", "--out", str(tmp_path), "--time-budget", "0"))
    assert stop.value.code == 0
    said = capfd.readouterr()
    assert said == ("the time budget is spent; the same command goes on where it was\n", "")


def test_a_run_that_is_interrupted_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(METHODS["simclr"], "after_step", interrupted)
    code, said = refused(capsys, *tiny.words("simclr", "--out", str(tmp_path)))
    signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones
    assert (code, said) == (1, "reproduce.py: interrupted; the same command goes on where it was\n")


def check_terminal(done: Ended, place: Path) -> None:
    """A table and where the files are, and nothing else."""
    assert (done.code, done.err) == (0, "")
    title, _, *rows = done.out.strip().splitlines()
    assert title.startswith("| SimCLR: accuracy (%) on 20 test images | clean | PGD-20 l_inf 0.1")
    places = [row.split(" | ")[0].partition(", epoch")[0] for row in rows[:2]]
    assert places == ["| slf", "| slf, best on validation"]
    (folder,) = (place / "runs" / "papers").glob("simclr-*")
    there = f"record.json and the encoders are in {folder.relative_to(place)}"
    assert rows[2:] == ["", there]


@pytest.mark.slow
def test_a_run_says_little(tmp_path):
    check_terminal(as_script(REPRODUCE, tiny.words("simclr"), tmp_path), tmp_path)


@pytest.mark.heavy
@pytest.mark.parametrize("devices", [1, 2])
def test_two_processes_say_no_more_than_one(devices, tmp_path):
    words = tiny.words("simclr", "--devices", str(devices))
    done = subprocess.run(
        [sys.executable, REPRODUCE, *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    check_terminal(Ended(done.returncode, done.stdout, done.stderr), tmp_path)


# --- everything, small ----------------------------------------------------------------------------

VARIANTS = [
    ("simclr", "--adversarial"),
    ("simclr", "--adversarial --exact-bn --second-view weak"),
    ("at", "--natural 1"),
    ("acl", "--batchnorms one"),
    ("ascl_pretrain", "--batchnorms one --protocol slf,alf,fsf,aff"),
    ("ascl_pretrain", "--self-supervised 0 --supervised 0"),
    ("ascl_pretrain", "--generation label-based"),
    ("ascl_pretrain", "--generation label-free"),
    ("adr", "--natural 1 --global-smooth 1"),
    ("acl", "--kind a2a"),
    ("acl", "--kind a2s"),
    ("advcl", "--exact-bn"),
    ("advcl", "--supervision none"),
    ("advcl", "--supervision ensemble --limit 500 --batch-size 250"),
    *(("advcl", f"--views {views}") for views in VIEWS),
    ("gsa_rsl", "--no-sam"),
    ("gsa_rsl", "--no-critic"),
    ("gsa_rsl", "--no-sam --no-critic"),
    ("gsa_rsl", "--order 4-step --adaptive"),
    ("gsa_acl", "--order 4-step"),
    ("gsa_on_advcl", "--supervision none --order 4-step"),
    *(("ascl_local", f"--selection {kind}") for kind in ("global", "hard", "soft")),
    ("ascl_local", "--projection linear --natural 1"),
    ("ascl_local", "--projection mlp --vat 2"),
    ("simclr", "--protocol slf,alf,fsf,aff --attacks pgd,pgd-l2,mpgd,aa"),
    *((name, f"--mode {mode}") for name in METHODS for mode in ("released", "paper")),
    *((name, f"--preset {preset}") for name in METHODS for preset in ("look", "paper")),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "more"), VARIANTS)
def test_every_chain_runs(name, more, tmp_path):
    main(tiny.words(name, *more.split(), "--out", str(tmp_path)))
    _, record = record_in(tmp_path, name)
    assert all(m["n"] == 20 for m in record["measurements"])


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("table", "more"),
    [("gsa-4", ""), ("ascl-4", ""), ("advcl-4", "--limit 500 --batch-size 250")],
)
def test_a_whole_table_runs(table, more, tmp_path, capsys):
    main(["--table", table, *tiny.SMALL, *more.split(), "--out", str(tmp_path)])
    said = capsys.readouterr().out
    for row in tables.lookup(table, "digits").rows:
        (first, *_) = [line for line in said.splitlines() if line.startswith(f"| {row.label} |")]
        ours = first.strip("| ").split(" | ")[3::2]
        assert set(ours) != {"–"}, first  # AutoAttack is not asked for
