"""From a backbone's name to a report; killed and repeated, it is the same record."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from advssl import cli
from advssl.evaluation import attacks, diagnostics, report

QUICK = [
    *("evaluate", "--backbone", "cifar:resnet10t", "--data", "digits", "--image-size", "8"),
    *("--preset", "ascl23", "--num-images", "20", "--attacks", "pgd,mpgd", "--eps", "16/255"),
]


@pytest.fixture
def small(monkeypatch):
    """A backbone that takes no time, and fewer points in the figures."""

    def tiny(spec: str) -> torch.nn.Module:
        assert spec == "cifar:resnet10t"
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten()
        )

    monkeypatch.setattr(cli, "backbone", tiny)
    monkeypatch.setattr(cli, "_RADII", (1.0, 4.0))
    monkeypatch.setattr(cli, "_STEPS", (1, 5))


def run(out, *more: str) -> dict:
    cli.main([*QUICK, "--out", str(out), *more])
    return json.loads((out / "record.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("small")
def test_writes_a_report(tmp_path, capsys):
    record = run(tmp_path, "--protocol", "slf,alf")
    assert [s["protocol"] for s in record["sections"]] == ["slf", "alf"]
    assert "report.html" in capsys.readouterr().out
    found = report.read(tmp_path / "record.json")
    for section in found.sections:
        names = [m.name for m in section.measurements]
        assert names[0] == attacks.Clean().name
        assert len(names) == 1 + 2 + 1  # two step sizes, multi-targeted
        assert all(m.n == 20 for m in section.measurements)
        clean, *hostile = section.measurements
        assert clean.value > 0.5
        assert all(m.value <= clean.value for m in hostile)
        assert len(section.by_radius) == 3
        assert len(section.by_steps) == 2
        assert section.checks
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{100 * found.sections[0].measurements[0].value:.1f}" in page


@pytest.mark.usefixtures("small")
def test_killed_anywhere_and_repeated_it_is_the_same_record(tmp_path, monkeypatch):
    expected = run(tmp_path / "whole")
    for kill_after in (1, 4, 7):
        count = 0
        inner = attacks.measure

        def killed(*args, inner=inner, **kwargs):
            nonlocal count
            count += 1
            if count > kill_after:
                raise KeyboardInterrupt
            return inner(*args, **kwargs)

        out = tmp_path / f"killed{kill_after}"
        with monkeypatch.context() as patch:
            patch.setattr(attacks, "measure", killed)
            with pytest.raises(KeyboardInterrupt):
                run(out)
        again = run(out)
        assert again.pop("command") != expected["command"]  # it names another folder
        assert again == {k: v for k, v in expected.items() if k != "command"}


@pytest.mark.usefixtures("small")
def test_finished_work_is_not_done_again(tmp_path, monkeypatch):
    run(tmp_path)

    def forbidden(*_, **__):
        raise AssertionError("this was finished")

    monkeypatch.setattr(cli.probes, "_Step", forbidden)
    monkeypatch.setattr(diagnostics, "doubts", forbidden)
    monkeypatch.setattr(attacks.PGD, "_run", forbidden)
    monkeypatch.setattr(attacks.MultiTargetedPGD, "_run", forbidden)
    monkeypatch.setattr(cli, "_strip", lambda *_: None)
    run(tmp_path)


@pytest.mark.usefixtures("small")
def test_a_checkpoint_is_read_and_its_input_normalised(tmp_path):
    torch.manual_seed(7)
    trained = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten()
    )
    torch.save(trained.state_dict(), tmp_path / "encoder.pt")
    plain = run(tmp_path / "plain", "--checkpoint", str(tmp_path / "encoder.pt"))
    assert plain["model"]["checkpoint"] == "encoder.pt"
    assert plain["model"]["format"] == "plain"
    scaled = run(
        tmp_path / "scaled",
        *("--checkpoint", str(tmp_path / "encoder.pt"), "--mean", "0.5,0.5,0.5"),
        *("--std", "0.25,0.25,0.25"),
    )
    assert scaled["model"]["mean"] == [0.5, 0.5, 0.5]
    assert scaled["sections"] != plain["sections"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--attacks", "pgd,fgsm"], "attacks are clean, pgd, pgd-l2, mpgd, aa, got fgsm"),
        (["--protocol", "knn"], "has protocols"),
        (["--data", "mnist"], "data is one of"),
        (["--eps", "0"], "radius must be positive"),
        (["--mean", "0.5"], "--mean and --std go together"),
        (["--checkpoint", "nowhere.pt"], "nowhere.pt"),
    ],
)
@pytest.mark.usefixtures("small")
def test_a_mistake_ends_it_before_any_work(tmp_path, more, message):
    with pytest.raises(SystemExit, match=message):
        run(tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_is_a_command_that_explains_itself():
    ran = subprocess.run(
        [sys.executable, "-m", "advssl.cli", "evaluate", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for option in ("--backbone", "--checkpoint", "--protocol", "--attacks", "--bn-branch"):
        assert option in ran.stdout
