"""The command itself, in processes of its own: killed by the system, and at 224 pixels."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from ranks import PROCESSES
from toys import brief_evaluation

from advssl import cli
from advssl.evaluation import report

pytest.importorskip("timm")
pytest.importorskip("matplotlib")

COMMAND = [
    *(
        "evaluate",
        "--backbone",
        "timm:test_byobnet",
        "--data",
        "folder:images",
        "--preset",
        "ascl23",
    ),
    *("--protocol", "alf", "--attacks", "pgd,mpgd", "--num-images", "8", "--eps", "8/255"),
]
AT_224 = ["--image-size=224", "--preset=plain", "--protocol=slf", "--attacks=pgd", "--num-images=2"]
KILLS = 2


def write_images(place: Path, size: int, **counts: int) -> None:
    """Bright and dark photographs, some of them in folders within the folder of their class."""
    draw = torch.Generator().manual_seed(0)
    for part, count in counts.items():
        for name, light in (("bright", 150), ("dark", 50)):
            for i in range(count):
                below = place / part / name / ("further/down" if i % 2 else "")
                below.mkdir(parents=True, exist_ok=True)
                noise = torch.randint(0, 60, (size + 9, size, 3), generator=draw)
                pixels = (light + noise).to(torch.uint8).numpy()
                Image.fromarray(pixels).save(below / f"{i}.png")


def command(folder: Path) -> None:
    brief_evaluation(pytest.MonkeyPatch())
    os.chdir(folder)  # the same command in another place, where no repository has a commit
    cli.main([*COMMAND, "--image-size", "8", "--out", "report"])


def finished(folder: Path) -> set[Path]:
    return {p for p in (folder / "report" / "work").rglob("*.*") if ".part" not in p.name}


@pytest.mark.heavy  # without a signal tests/test_cli.py, and of one file tests/evaluation/
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is of POSIX")
def test_killed_at_any_moment_and_repeated_it_is_the_same_report(tmp_path):
    folders = tmp_path / "whole", tmp_path / "killed"
    for folder in folders:
        write_images(folder / "images", 8, train=12, test=4)
    whole, killed = folders

    uninterrupted = PROCESSES.Process(target=command, args=(whole,))
    uninterrupted.start()
    uninterrupted.join()
    assert uninterrupted.exitcode == 0

    draw = random.Random(7)
    moments = sorted(draw.sample(range(len(finished(whole))), KILLS))
    for moment in moments:
        process = PROCESSES.Process(target=command, args=(killed,))
        process.start()
        while len(finished(killed)) < moment and process.is_alive():
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert 0 < len(finished(killed)) < len(finished(whole))
    assert not (killed / "report" / "record.json").exists()

    last = PROCESSES.Process(target=command, args=(killed,))
    last.start()
    last.join()
    assert last.exitcode == 0
    for name in ("record.json", "report.md", "report.html"):
        assert (killed / "report" / name).read_bytes() == (whole / "report" / name).read_bytes()
    assert json.loads((whole / "report" / "record.json").read_text(encoding="utf-8"))["sections"]


def coarse(_: str) -> torch.nn.Module:
    """A backbone that takes no time at 224 pixels."""
    layers = torch.nn.Conv2d(3, 8, 16, stride=16), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


@pytest.mark.slow
def test_photographs_of_224_pixels_in_folders_within_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    brief_evaluation(monkeypatch)
    for module in ("evaluation.classifiers", "integrations.timm"):
        monkeypatch.setattr(f"advssl.{module}.backbone", coarse)
    write_images(tmp_path / "images", 230, train=4, val=2)  # "val" is what ImageNet calls it
    cli.main([*COMMAND, *AT_224])
    found = report.read(tmp_path / "report" / "record.json")
    source = found.data
    assert (source.spec, source.classes, source.image_size) == ("folder:images", 2, 224)
    assert (source.train, source.validation, source.test, source.images) == (6, 2, 4, 2)
    clean, *hostile = found.sections[0].measurements
    assert clean.value == 1.0
    assert len(hostile) == 2
    assert {c.name for c in found.sections[0].checks if c.verdict == "not run"} == {
        "BatchNorm branches"
    }


def test_a_test_folder_of_other_classes_is_refused_with_the_difference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", 8, train=2, test=1)
    (tmp_path / "images" / "test" / "dark").rename(tmp_path / "images" / "test" / "dim")
    with pytest.raises(SystemExit, match=r"only in train: \['dark'\], only in test: \['dim'\]"):
        cli.main(COMMAND)
    assert not (tmp_path / "report").exists()
