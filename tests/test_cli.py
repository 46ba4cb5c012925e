"""From a backbone's name to a report; killed and repeated, it is the same record."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from toys import brief_evaluation

from advssl import Linf, branch_batchnorm, cli
from advssl.evaluation import (
    attacks,
    measuring,
    probes,
    records,
    report,
    running,
    training,
)
from advssl.evaluation.evaluate import Evaluation
from advssl.evaluation.report import faces
from advssl.options import parse

QUICK = [
    *("evaluate", "--backbone", "cifar:resnet10t", "--data", "digits", "--image-size", "8"),
    *("--preset", "ascl23", "--num-images", "20", "--attacks", "pgd,mpgd", "--eps", "16/255"),
]
BARE = ("--no-doubts", "--no-figures")  # where only the answers matter


def tiny(spec: str = "cifar:resnet10t") -> torch.nn.Module:
    """A backbone that takes no time."""
    assert spec == "cifar:resnet10t"
    layers = [torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Flatten())


FIGURES, STRIP = faces.figures, running.Run._strip
MODULE = import_module("advssl.evaluation.evaluate")  # the package has the function


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    """That backbone, no figures, and a folder without a repository, whose commit may change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        for module in ("evaluation.classifiers", "evaluation.reopened", "integrations.timm"):
            patch.setattr(f"advssl.{module}.backbone", tiny)  # imported before the last is patched
        patch.setattr(faces, "figures", lambda _: {})
        brief_evaluation(patch)
        patch.setattr(MODULE, "_RADII", (1.0, 4.0))
        patch.setattr(MODULE, "_STEPS", (1, 5))
        yield


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setattr(faces, "figures", FIGURES)
    monkeypatch.setattr(running.Run, "_strip", STRIP)


def run(out, *more: str) -> dict:
    cli.main([*QUICK, "--out", str(out), *more])
    return json.loads((out / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where that command has run."""
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_writes_a_report(tmp_path, capsys):
    record = run(tmp_path, "--protocol", "slf,alf,slf")  # what is said twice is done once
    assert [s["protocol"] for s in record["sections"]] == ["slf", "slf", "alf", "alf"]
    printed = capsys.readouterr().out
    plan, answers = printed[: printed.index("in all ")], printed[printed.index("in all ") :]
    assert "digits, 10 classes" in plan
    assert "probe slf (ascl23)" in plan
    for said in ("slf (ascl23): clean ", "few images", "report.html"):
        assert said in answers, said
    found = report.read(tmp_path / "record.json")
    for section in found.sections[::2]:
        names = [m.name for m in section.measurements]
        assert names[0] == attacks.Clean().name
        assert len(names) == 1 + 2 + 1  # two step sizes, multi-targeted
        assert all(m.n == 20 for m in section.measurements)
        clean, *hostile = section.measurements
        assert clean.value > 0.5
        assert all(m.value <= clean.value for m in hostile)
        assert [r for r, _ in section.by_radius] == [0, 16 / 255, 64 / 255, 0.5]
        assert section.by_radius[-1][1] == 0.0  # where every image can become the same grey
        assert len(section.by_steps) == 2
        assert section.checks
        assert (tmp_path / "work" / f"classifier-{section.classifier}.pt").exists()
    for section in found.sections[1::2]:
        epochs = probes.protocol("ascl23", section.protocol).epochs
        assert re.fullmatch(rf"best on validation, epoch \d+ of {epochs}", section.selected)
        assert [m.name for m in section.measurements] == [
            "clean",
            attacks.PGD(Linf(16 / 255), 20, 4 / 255).name,
        ]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{100 * found.sections[0].measurements[0].value:.1f}" in page


def test_a_report_says_that_images_were_not_normalised(tmp_path, capsys):
    state = {f"backbone.{name}": value for name, value in tiny().state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "simclr.ckpt")
    record = run(
        tmp_path, *BARE, "--attacks", "clean", "--checkpoint", str(tmp_path / "simclr.ckpt")
    )
    (told,) = [t["note"] for t in record["tables"] if t["title"] == "The input was not normalised"]
    assert "--mean 0.485,0.456,0.406" in told
    assert told in capsys.readouterr().out
    assert told in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_killed_anywhere_and_repeated_it_is_the_same_record(whole, tmp_path, monkeypatch):
    inner = measuring.measure
    for kill_after in (1, 5):
        count = 0

        def killed(*args, **kwargs):
            nonlocal count
            count += 1
            if count > kill_after:
                raise KeyboardInterrupt
            return inner(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(measuring, "measure", killed)
            with pytest.raises(SystemExit, match="interrupted; the same command goes on where it"):
                run(tmp_path)
    again = run(tmp_path)
    expected = json.loads((whole / "record.json").read_text(encoding="utf-8"))
    assert again.pop("command") != expected.pop("command")  # it names another folder
    assert again == expected


def test_what_has_nothing_to_go_on_from_says_only_that_it_was_interrupted(monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "look_at_step", interrupted)
    with pytest.raises(SystemExit, match=r"^advssl: interrupted$"):
        cli.main(["doctor", "json:dumps"])


def test_finished_work_is_not_done_again(whole, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("this was finished")

    monkeypatch.setattr(training, "_Step", forbidden)
    monkeypatch.setattr(attacks.PGD, "_run", forbidden)
    monkeypatch.setattr(attacks.MultiTargetedPGD, "_run", forbidden)
    monkeypatch.setattr(running.Run, "_strip", lambda *_: None)
    run(whole)


@pytest.mark.slow
def test_a_checkpoint_is_read_and_its_input_normalised(tmp_path):
    torch.manual_seed(7)
    torch.save(tiny().state_dict(), tmp_path / "encoder.pt")
    plain = run(tmp_path / "plain", "--checkpoint", str(tmp_path / "encoder.pt"), *BARE)
    assert plain["model"]["checkpoint"] == "encoder.pt"
    assert plain["model"]["format"] == "plain"
    scaled = run(
        tmp_path / "scaled",
        *("--checkpoint", str(tmp_path / "encoder.pt"), "--mean", "0.5,0.5,0.5"),
        *("--std", "0.25,0.25,0.25", *BARE),
    )
    assert scaled["model"]["mean"] == [0.5, 0.5, 0.5]
    assert scaled["sections"] != plain["sections"]


def branched(path: Path) -> Path:
    """A checkpoint with two BatchNorm branches, the second of which answers otherwise."""
    encoder = branch_batchnorm(tiny(), ("normal", "pgd"))
    with torch.no_grad():
        encoder[1]["pgd"].weight.fill_(3.0)
        encoder[1]["pgd"].bias.fill_(-0.5)
    torch.save(encoder.state_dict(), path)
    return path


@pytest.mark.slow
def test_all_branches_of_a_checkpoint_are_evaluated_and_doubted(tmp_path):
    file = str(branched(tmp_path / "dual.pt"))
    both = run(tmp_path / "both", "--checkpoint", file)
    told = [(s["branch"], s["selected"] is None) for s in both["sections"]]
    beside = [("normal", False), ("pgd", False)]
    assert told == [("normal", True), ("normal", False), ("pgd", True), ("pgd", False), *beside]
    normal, pgd = (s for s in both["sections"] if s["selected"] is None)
    assert normal["measurements"] != pgd["measurements"]
    for section in (normal, pgd):
        (check,) = (c for c in section["checks"] if c["name"] == "BatchNorm branches")
        assert check["verdict"] != "not run"
        assert check["numbers"]["branches"] == ["normal", "pgd"]
    named = run(tmp_path / "named", "--checkpoint", file, "--bn-branch", "pgd,normal", *BARE)
    assert [s["branch"] for s in named["sections"]] == [
        "pgd",
        "pgd",
        "normal",
        "normal",
        "pgd",
        "normal",
    ]
    assert values(named["sections"][0]) == values(pgd)
    alone = run(tmp_path / "alone", "--checkpoint", file, "--bn-branch", "pgd", *BARE)
    assert [s["branch"] for s in alone["sections"]] == ["pgd"] * 3
    assert values(alone["sections"][0]) == values(pgd)
    with pytest.raises(SystemExit, match="no BatchNorm branch 'pdg'"):
        run(tmp_path / "wrong", "--checkpoint", file, "--bn-branch", "pdg")


def values(section: dict) -> dict:
    return {m["name"]: m["correct"] for m in section["measurements"]}


@pytest.mark.slow
def test_the_released_preset_says_what_it_selected_on(tmp_path, monkeypatch):
    short = replace(probes.protocol("released", "slf"), epochs=2)
    monkeypatch.setitem(probes.PRESETS["released"], "slf", short)
    run(tmp_path, "--preset", "released", *BARE)
    for name in ("record.json", "report.md", "report.html"):
        assert "selected on test, epoch" in (tmp_path / name).read_text(encoding="utf-8"), name
    assert "released" not in QUICK
    assert parse(["evaluate", "--backbone", "x"]).preset is None
    honest = [
        p for name, family in probes.PRESETS.items() if name != "released" for p in family.values()
    ]
    assert all(p.selects == "validation" for p in honest)


# --- comparisons ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Reports of one encoder twice, and of another one."""
    place = tmp_path_factory.mktemp("earlier")
    torch.manual_seed(3)
    torch.save(tiny().state_dict(), place / "other.pt")
    for name, more in {
        "first": (),
        "second": ("--seed", "1"),
        "other": ("--checkpoint", str(place / "other.pt")),
        "further": ("--checkpoint", str(place / "other.pt"), "--seed", "1"),
    }.items():
        run(place / name, *more, *BARE)
    return place


def compared(place, out, *names: str) -> report.Report:
    words = [",".join(str(place / n) for n in name.split(",")) for name in names]
    cli.main(["compare", *words, "--out", str(out)])
    return report.read(out / "record.json")


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_reports_are_compared_image_by_image(earlier, tmp_path, capsys):
    found = compared(earlier, tmp_path, "first", "other")
    a, b = (report.read(earlier / n / "record.json").sections[0] for n in ("first", "other"))
    differences, transfer = found.tables
    assert differences.title == "other against first"
    assert [row[1] for row in differences.rows] == [*report.by_column(a)]
    for row in differences.rows:
        one, two = (report.by_column(s)[row[1]] for s in (a, b))
        expected = records.compare(one, two)
        assert row[2:5] == (100 * one.value, 100 * two.value, 100 * expected.difference)
        assert row[5] == tuple(100 * end for end in expected.image_interval)
        assert row[6:8] == (expected.p_value, None)
        assert row[8] == ("yes" if expected.differs else "not shown")
    assert transfer.title in capsys.readouterr().out
    assert [s.label for s in found.sections if s.selected is None] == [
        "first: slf (ascl23)",
        "other: slf (ascl23)",
    ]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="clean-against-robust"' in page


@pytest.mark.slow
def test_the_diagonal_of_the_transfer_is_what_was_measured(earlier, tmp_path):
    found = compared(earlier, tmp_path, "first", "other")
    transfer = found.tables[1]
    assert transfer.header == (
        "made for",
        "first: slf (ascl23) (%)",
        "other: slf (ascl23) (%)",
    )
    attack = attacks.PGD(Linf(16 / 255), 20, 4 / 255).name
    for i, (name, *shares) in enumerate(transfer.rows):
        (section,) = (s for s in found.sections if s.label == name)
        (white_box,) = (m.value for m in section.measurements if m.name == attack)
        assert shares[i] == pytest.approx(100 * white_box)
        assert shares[1 - i] >= shares[i]


@pytest.mark.slow
def test_seeds_of_one_encoder_are_replicates(earlier, tmp_path):
    found = compared(earlier, tmp_path, "first,second", "other,further")
    row = found.tables[0].rows[0]
    sides = [
        [report.read(earlier / n / "record.json").sections[0].measurements[0] for n in names]
        for names in (("first", "second"), ("other", "further"))
    ]
    expected = records.compare(*sides)
    assert expected.seed_interval is not None
    assert row[7] == tuple(100 * end for end in expected.seed_interval)
    assert [s.encoder for s in found.sections[::3]] == [
        *("first, second, seed 0", "first, second, seed 1"),
        *("other, further, seed 0", "other, further, seed 1"),
    ]


@pytest.mark.slow
def test_a_record_alone_is_compared_without_transfer(earlier, tmp_path):
    for name in ("first", "other"):
        (tmp_path / name).mkdir()
        text = (earlier / name / "record.json").read_text(encoding="utf-8")
        (tmp_path / name / "record.json").write_text(text, encoding="utf-8")
    found = compared(tmp_path, tmp_path / "out", "first/record.json", "other")
    differences, transfer = found.tables
    assert differences.rows
    assert transfer.rows == ()
    assert "first/work/classifier-" in transfer.note
    assert "is not there; run again: advssl evaluate --backbone" in transfer.note


@pytest.mark.slow
def test_weights_that_were_not_measured_are_not_transferred(earlier, tmp_path):
    section = report.read(earlier / "first" / "record.json").sections[0]
    (tmp_path / "first" / "work").mkdir(parents=True)
    text = (earlier / "first" / "record.json").read_text(encoding="utf-8")
    (tmp_path / "first" / "record.json").write_text(text, encoding="utf-8")
    name = Path("work", f"classifier-{section.classifier}.pt")
    state = torch.load(earlier / "first" / name, weights_only=True)
    state["linear.bias"] += 1
    torch.save(state, tmp_path / "first" / name)
    words = [str(tmp_path / "first"), str(earlier / "other"), "--out", str(tmp_path / "out")]
    cli.main(["compare", *words])
    found = report.read(tmp_path / "out" / "record.json")
    assert "is not what was measured" in found.tables[1].note


@pytest.mark.slow
def test_folders_of_one_name_are_told_apart_by_their_paths(earlier, tmp_path):
    (tmp_path / "other").mkdir()
    text = (earlier / "first" / "record.json").read_text(encoding="utf-8")
    (tmp_path / "other" / "record.json").write_text(text, encoding="utf-8")
    words = [str(tmp_path / "other"), str(earlier / "other"), "--out", str(tmp_path / "out")]
    cli.main(["compare", *words])
    found = report.read(tmp_path / "out" / "record.json")
    assert {s.encoder for s in found.sections} == {str(tmp_path / "other"), str(earlier / "other")}


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(earlier, tmp_path):
    def refused(message: str, *names: str) -> None:
        with pytest.raises(SystemExit, match=message):
            compared(earlier, tmp_path / "out", *names)
        assert not (tmp_path / "out").exists()

    refused("needs reports of two encoders or more", "first")
    refused("no report in .*nowhere", "first", "nowhere")
    refused("2 reports of 1 seeds", "first,other", "second")
    run(earlier / "fewer", "--num-images", "10", *BARE)
    refused("on the same images.*differ in source.fingerprint", "first", "fewer")
    run(earlier / "farther", "--eps", "8/255", *BARE)
    refused("under one threat model.*differ in threat", "first", "farther")
    compared(earlier, earlier / "comparison", "first", "other")
    refused("is a comparison; give reports of evaluations", "first", "comparison")


def test_is_a_command_that_explains_itself():
    ran = subprocess.run(
        [sys.executable, "-m", "advssl.cli", "evaluate", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for option in ("--backbone", "--checkpoint", "--protocol", "--attacks", "--bn-branch"):
        assert option in ran.stdout


@pytest.mark.parametrize(
    ("words", "gives_way"),
    [
        ([], True),
        (["--protocol", "alf,aff"], False),
        (["--preset", "standardised"], False),
    ],
)
def test_a_budget_changes_no_probe_that_is_named(words, gives_way, monkeypatch):
    asked = []
    monkeypatch.setattr(Evaluation, "affordable", lambda self, _: asked.append(self) or self)
    given = ["evaluate", "--backbone", "cifar:resnet10t", "--image-size", "8", "--attacks", "pgd"]
    cli.prepared(parse([*given, "--budget", "1s", "--dry-run", *words]))
    assert bool(asked) == gives_way
