"""A classifier made by others is evaluated with its own head, from the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from advssl import cli
from advssl.evaluation.report import faces

package = pytest.importorskip("pyautoattack")
pytest.importorskip("timm")

FILE = Path(package.__file__).parent / "examples" / "model_test.pt"
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.slow
@pytest.mark.skipif(not FILE.exists(), reason="this pyautoattack comes without its example")
def test_the_ten_classes_of_a_file_by_others(tmp_path, monkeypatch):
    """Its ten outputs are CIFAR-10's classes; what it makes of two images is its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(faces, "figures", lambda _: {})
    draw = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for name in NAMES:
            (tmp_path / "images" / part / name).mkdir(parents=True)
            pixels = torch.randint(0, 256, (32, 32, 3), generator=draw, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "images" / part / name / "0.png")
    cli.main(
        [
            *("evaluate", "--backbone", "cifar:resnet18", "--checkpoint", str(FILE)),
            *("--protocol", "own", "--data", "folder:images", "--attacks", "pgd", "--no-doubts"),
            *("--no-figures", "--num-images", "2", "--out", "report"),
        ]
    )
    record = json.loads((tmp_path / "report" / "record.json").read_text(encoding="utf-8"))
    (section,) = record["sections"]
    assert section["protocol"] == "own"
    clean, *hostile = section["measurements"]
    assert len(hostile) == 2
    assert all(m["probe"]["protocol"] == "own" and m["n"] == 2 for m in section["measurements"])
    assert clean["model"]["checkpoint"] == "model_test.pt"
    assert str(FILE) not in json.dumps(record)
