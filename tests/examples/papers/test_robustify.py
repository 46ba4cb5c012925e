"""An encoder that somebody brings: measured, trained to stay where it is, measured again."""

from __future__ import annotations

import re

import pytest
import torch

from advssl.evaluation.checkpoints import load_encoder
from advssl.evaluation.evaluate import Evaluation
from advssl.evaluation.report import read
from advssl.integrations.timm import backbone
from robustify import main

SPEC = "cifar:resnet18:2"
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SMALL = [
    *("--backbone", SPEC, "--image-size", "8", "--eps", "0.1", "--attacks", "clean"),
    *("--num-images", "20", "--preset", "standardised"),
    *("--steps", "2", "--epochs", "1", "--images-per-step", "400", "--rate", "1e-3"),
]


@pytest.fixture
def words(tmp_path):
    torch.manual_seed(7)
    own = {"normalize.mean": torch.tensor(MEAN), "normalize.std": torch.tensor(STD)}
    torch.save({**backbone(SPEC).state_dict(), **own}, tmp_path / "mine.pt")
    return [*SMALL, "--checkpoint", str(tmp_path / "mine.pt"), "--out", str(tmp_path / "robust")]


@pytest.mark.heavy
@pytest.mark.parametrize("method", ["fare", "deacl"])
def test_the_command_leaves_a_checkpoint_and_what_changed(method, words, tmp_path, capsys):
    words += ["--method", method]
    main([*words, "--time-budget", "0"])
    assert capsys.readouterr().out.endswith("time budget is spent; the same command goes on\n")
    assert not (tmp_path / "robust" / "encoder.pt").exists()
    main(words)
    said = capsys.readouterr().out
    assert "after against before" in said
    robust, mine = backbone(SPEC), backbone(SPEC)
    report = load_encoder(robust, tmp_path / "robust" / "encoder.pt")
    assert sum(report.normalization, ()) == pytest.approx(MEAN + STD)
    load_encoder(mine, tmp_path / "mine.pt")
    names = {n for n, v in mine.state_dict().items() if not torch.equal(v, robust.state_dict()[n])}
    statistics = {n for n, _ in mine.named_buffers()}
    assert {n for n, _ in mine.named_parameters()} <= names
    assert names.isdisjoint(statistics) == (method == "fare")
    before, after = (
        read(tmp_path / "robust" / part / "record.json") for part in ("before", "after")
    )
    assert before.model.checkpoint == "mine.pt"
    assert after.model.checkpoint == "encoder.pt"
    assert before.sections[0].measurements[0].dataset == after.sections[0].measurements[0].dataset
    assert str(tmp_path) not in (tmp_path / "robust" / "record.json").read_text(encoding="utf-8")


def test_a_dry_run_says_what_training_takes_and_does_nothing(words, tmp_path, capsys):
    main([*words, "--dry-run"])
    said = capsys.readouterr().out
    assert "\ntraining: 1167 images, 8 F per image, 1 epochs, about " in said
    assert said.endswith("\nnothing was done\n")
    assert not [p for p in (tmp_path / "robust").rglob("*") if p.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--images", "nowhere"], r"--images: no image below nowhere"),
        (["--images-per-step", "2000"], r"a step takes 2000 images, there are 1167 to train on"),
        (["--protocol", "slf", "--eps", "0"], r"--eps: a radius is a positive number"),
        (["--norm", "l2"], r"training attacks in ℓ∞, got --norm l2; leave it out"),
        (["--no-such"], r"unrecognized arguments: --no-such; see advssl"),
        (["--steps", "0"], r"--steps: must be a whole number from 1 on, got '0'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    more, said, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Evaluation, "run", None)
    with pytest.raises(SystemExit) as stop:
        main([*words, *more])
    found = capsys.readouterr().err or str(stop.value)
    assert found.startswith("robustify.py: ")
    assert re.search(said, found), found
