"""A mistake on the command line ends in one line that names it: no work, no file, no traceback."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advssl import cli
from advssl.evaluation import probes, report
from advssl.evaluation.records import Measurement
from advssl.evaluation.report import faces

NUMBER, RADIUS, CHANNELS = "a whole number from", "--eps", "one number or three"
LINE = 500  # characters: a line, and room for names of folders


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two classes with three images of 32 pixels each, in a folder of its own."""
    place = tmp_path_factory.mktemp("mistakes")
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            (place / "images" / part / kind).mkdir(parents=True)
            for i in range(3):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / "images" / part / kind / f"{i}.png")
    (place / "file").write_text("an earlier report")
    (place / "broken").symlink_to(place / "nowhere")
    (place / "used").mkdir()
    (place / "used" / "work").write_text("a file in the way")
    return place


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    """No probe may start."""

    def work(*_, **__):
        raise AssertionError("the work began")

    monkeypatch.setattr(probes, "finetune", work)
    monkeypatch.chdir(place)


def said(capsys, *words: str) -> str:
    """What a command ends with; nothing else is printed, and no file is left."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    assert sorted(Path().rglob("*")) == before
    assert capsys.readouterr() == ("", "")
    text = str(end.value.code)
    assert text.startswith("advssl: ")
    assert "\n" not in text
    assert len(text) < LINE
    return text


EVALUATE = {
    "--backbone": "timm:resnet10t",
    "--data": "folder:images",
    "--image-size": "32",
    "--attacks": "clean",
    "--num-images": "2",
}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *(("--eps", v, RADIUS) for v in ("8/0", "0/0", "abc", "nan", "-1", "0", "1e999", "inf")),
        *(("--eps", v, RADIUS) for v in ("8/255/2", "8,0/255", "", "/", "1e-999", "8/inf")),
        *(("--eps", v, r"--eps: .*255 grey levels write .* / 255") for v in ("8", "255", "8.0/1")),
        *(("--image-size", v, f"image-size: {NUMBER} 1") for v in ("0", "-1", "x", "", "32.0")),
        *(("--image-size", v, f"image-size: {NUMBER} 1") for v in ("1000000000", "32x32", "٣٢")),
        *(("--num-images", v, f"num-images: {NUMBER} 0") for v in ("-1", "x", "", "1.5", "1e3")),
        *(("--num-images", v, "num-images.*are 6 test images; 0 is") for v in ("7", "1000000000")),
        ("--num-images", "9" * 5000, f"num-images: {NUMBER} 0"),
        *(("--seed", v, f"seed: {NUMBER} 0") for v in ("-1", "abc", "", "0.5", str(2**70))),
        *(("--mean", v, CHANNELS) for v in ("0.5,0.5", "123.7", "x", "nan", "0.5,0.5,inf")),
        *(("--mean", v, "mean") for v in ("", ",", "0.5,0.5,0.5,0.5", "-1", "1/0")),
        ("--mean", "0.5", "--mean and --std go together"),
        *(("--std", v, "std") for v in ("0", "0.5,0,0.5", "58.4", "", "nan", "-1", "0.5,0.5")),
        *(("--attacks", v, "attacks") for v in ("", ",", "fgsm", "pgd,fgsm", "PGD", "clean;aa")),
        *(("--protocol", v, "protocol") for v in ("", ",", "knn", "slf,knn")),
        *(("--preset", v, "preset") for v in ("", "mine", "Plain")),
        *(("--norm", v, "norm") for v in ("", "l1", "linf,l2", "Linf")),
        *(("--format", v, "format") for v in ("", "torch", "Lightly")),
        *(("--data", v, "data is one of") for v in ("", "mnist", "cifar", "digits:here", "images")),
        ("--data", "folder:", "folder:PATH needs a path"),
        ("--data", "folder:nowhere", "train images at nowhere/train"),
        ("--data", "folder:file", "train images at file/train"),
        ("--data", "cifar10:nowhere", "image-size 32|no CIFAR-10 under nowhere"),
        ("--data", "stl10:nowhere", "no STL-10 under nowhere"),
        *((part, "", f"argument {part}: a name must not be") for part in ("--train", "--test")),
        *((part, "nowhere", "images at nowhere") for part in ("--train", "--val", "--test")),
        *((part, "file", "images at file") for part in ("--train", "--val", "--test")),
        ("--test", "images/train", "train and test must be other images"),
        *(("--backbone", v, "backbone") for v in ("", "timm:", "resnet18", "torch:resnet18", ":")),
        *(("--backbone", v, "no model") for v in ("timm:resnet99", "cifar:resnet", "timm:a b")),
        *(("--backbone", v, "width") for v in ("cifar:resnet18:x", "cifar:resnet18:0")),
        *(("--checkpoint", v, "checkpoint") for v in ("", " ")),
        *(("--checkpoint", v, v) for v in ("nowhere.pt", "file", "images", "broken")),
        *(("--bn-branch", v, "bn-branch") for v in ("", ",", "pgd")),
        *(
            ("--out", v, f"--out: {v} is there and no")
            for v in ("file", "broken", "images/../file")
        ),
        *(("--out", v, "--out: file is there and no") for v in ("file/report", "file/a/b")),
        ("--out", "used", "--out: used/work is there and no"),
        ("--out", "", "argument --out"),
        ("--radius", "8/255", "--radius"),
    ],
)
def test_of_an_evaluation(option, value, message, capsys):
    words = [word for pair in {**EVALUATE, option: value}.items() for word in pair]
    text = said(capsys, "evaluate", *words)
    assert re.search(message, text), text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: evaluate | compare"),
        (["attack"], "invalid choice: 'attack'"),
        (["evaluate"], "required: --backbone"),
        (["evaluate", "--backbone"], "--backbone: expected one argument"),
        (["evaluate", "--backbone", "timm:resnet10t", "more"], "unrecognized arguments: more"),
        (["evaluate", "--backbone", "timm:resnet10t", "--eps"], "--eps: expected one argument"),
        (["compare"], "required: REPORT"),
        (["compare", ""], "argument REPORT: one name at least"),
        (["compare", ",", "used"], "argument REPORT: one name at least"),
        (["compare", "nowhere", "used"], "no report in nowhere"),
        (["compare", "used", "used"], "no report in used"),
        (["compare", "file", "used"], "no report in file"),
        (["compare", "used", "--out", "file"], "--out: file is there and no folder"),
        (["compare", "used", "--out", ""], "argument --out"),
        (["compare", "used", "--eps", "8/255"], "unrecognized arguments: --eps 8/255"),
    ],
)
def test_of_a_command(words, message, capsys):
    assert message in said(capsys, *words)


def test_of_a_preset_without_that_protocol(capsys):
    words = ["--backbone", "timm:resnet10t", "--preset", "gsa", "--protocol", "aff"]
    assert "preset 'gsa' has protocols" in said(capsys, "evaluate", *words)


def test_of_a_radius_that_reaches_every_image(capsys):
    """As long as the diagonal of the images' cube, √(3 · 32 · 32)."""
    words = [word for pair in EVALUATE.items() for word in pair]
    text = said(capsys, "evaluate", *words, "--norm", "l2", "--eps", "128")
    assert "--eps: " in text
    assert "55.43" in text


def test_of_an_empty_class(capsys, place):
    for part in ("train", "test"):
        (place / "images" / part / "fox").mkdir()
    try:
        words = [word for pair in EVALUATE.items() for word in pair]
        assert "class 'fox' has no image in images/train/fox" in said(capsys, "evaluate", *words)
    finally:
        for part in ("train", "test"):
            (place / "images" / part / "fox").rmdir()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_of_a_folder_that_may_not_be_written_to(capsys, place):
    (place / "closed").mkdir(mode=0o500)
    words = [word for pair in {**EVALUATE, "--out": "closed/report"}.items() for word in pair]
    assert "--out: closed may not be written to" in said(capsys, "evaluate", *words)


# --- records by others ----------------------------------------------------------------------------

ASKED = "advssl evaluate --backbone timm:resnet10t --data folder:images --image-size 32"


def written(place: Path, command: str = ASKED, left: int = 1, classifier: str | None = None) -> str:
    """A report of four images, of which ``left`` stand under an attack."""
    fields = {"seed": 0, "settings": {}, "dataset": "0" * 16, "commit": None, "machine": {}}
    measured = tuple(
        Measurement(name=name, correct=tuple(i < right for i in range(4)), **fields)
        for name, right in (("clean", 2), ("PGD-20", left))
    )
    section = report.Section("slf", None, measured, classifier=classifier)
    place.mkdir()
    text = report.to_json(report.Report("by others", {}, {"classes": 2}, command, (section,)))
    (place / "record.json").write_text(text, encoding="utf-8")
    return str(place)


@pytest.mark.parametrize(
    "command",
    [
        *(f"{ASKED} {word}" for word in ("--help", "-h", "--radius 8", "--eps 8/0", "'open")),
        *("", "rm -rf x", "advssl --help", "advssl evaluate"),
    ],
)
def test_of_a_command_inside_a_record_is_never_read(command, tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "figures", lambda _: {})
    places = written(tmp_path / "a", command), written(tmp_path / "b")
    cli.main(["compare", *places, "--out", str(tmp_path / "out")])
    assert report.read(tmp_path / "out" / "record.json").tables[0].rows


def test_of_a_comparison_into_a_report_that_is_compared(tmp_path, capsys):
    a, b = written(tmp_path / "a"), written(tmp_path / "b")
    assert "is a report that is compared" in said(capsys, "compare", a, b, "--out", b)


@pytest.mark.parametrize(
    ("classifier", "content", "message"),
    [
        ("../../evil", {}, "16 hex digits, got '../../evil'"),
        ("0" * 16, None, "is not there"),
        ("0" * 16, b"", "does not fit its record"),
        ("0" * 16, b"<html>", "does not fit its record"),
        ("0" * 16, [1], "does not fit its record"),
        ("0" * 16, {}, "does not fit its record"),
        ("0" * 16, {"linear.weight": 3}, "does not fit its record"),
        ("0" * 16, {"linear.weight": torch.zeros(2, 512)}, "does not fit its record"),
        ("0" * 16, {"linear.weight": torch.zeros(1).expand(10**6, 10**6)}, "larger than the file"),
    ],
)
def test_of_weights_by_others_are_not_run(classifier, content, message, tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "figures", lambda _: {})
    places = [written(tmp_path / name, classifier=classifier) for name in "ab"]
    path = tmp_path / "a" / "work" / f"classifier-{'0' * 16}.pt"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    cli.main(["compare", *places, "--out", str(tmp_path / "out")])
    note = report.read(tmp_path / "out" / "record.json").tables[-1].note
    assert note.startswith("Not run: ")
    assert message in note


def test_of_an_attack_that_helps_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(faces, "figures", lambda _: {})
    places = written(tmp_path / "a", left=4), written(tmp_path / "b")
    cli.main(["compare", *places, "--out", str(tmp_path / "out")])
    doubt = "PGD-20 leaves 4 of 4 images right and no attack 2"
    assert f"doubt: a: slf: {doubt}" in capsys.readouterr().out
    for name in ("report.md", "report.html"):
        assert doubt in (tmp_path / "out" / name).read_text(encoding="utf-8")
