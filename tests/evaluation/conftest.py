"""What the tests of several modules start from."""

from __future__ import annotations

import pathlib

import ills
import numpy as np
import pytest
from pictures import write_images
from torch import nn
from toys import blobs, queries_of_square, trained

from advssl.evaluation.attacks import AutoAttack


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    """Of a checkpoint."""
    return tmp_path / "checkpoint.pt"


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """It gets most of the images in ``batch`` and ``batches`` right."""
    return trained(4)


@pytest.fixture
def batch():
    return blobs(32, 4)


@pytest.fixture
def batches():
    x, y = blobs(30, 4)
    return list(zip(x.split(8), y.split(8), strict=True))


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "test"):
        write_images(tmp_path / part, ("cat", "dog"))
    return tmp_path


@pytest.fixture
def stl10(tmp_path):
    """Image i of a part has its row number in red, its column number in green and i in blue."""
    place = tmp_path / "stl10_binary"
    place.mkdir()
    for part, count in (("train", 40), ("test", 20), ("unlabeled", 30)):
        pixels = np.zeros((count, 3, 96, 96), np.uint8)
        pixels[:, 0] = np.arange(96)[:, None]
        pixels[:, 1] = np.arange(96)
        pixels[:, 2] = np.arange(count)[:, None, None]
        pixels.swapaxes(2, 3).tofile(place / f"{part}_X.bin")  # column by column
        if part != "unlabeled":
            (np.arange(count) % 10 + 1).astype(np.uint8).tofile(place / f"{part}_y.bin")
    (place / "class_names.txt").write_text("\n".join(f"class {c}" for c in range(10)))
    return tmp_path


@pytest.fixture
def short_autoattack(monkeypatch):
    """AutoAttack with fewer steps and queries, for what does not depend on how many; the cut."""
    pytest.importorskip("pyautoattack")

    def cut(run):
        for part in (run.apgd, run.apgd_targeted, run.fab):
            part.n_iter = 5
        run.square.n_queries = 40
        return run

    full = AutoAttack._library_run
    monkeypatch.setattr(AutoAttack, "_library_run", lambda *given: cut(full(*given)))
    return cut


@pytest.fixture
def few_queries():
    with queries_of_square(50, steps=20):
        yield


@pytest.fixture(scope="module")
def learnt():
    """A healthy classifier of digits and images it has not seen."""
    x, y = ills.digits()
    model = ills.trained(ills.conv, (x[:600], y[:600]), seed=0)
    return model, ills.split((x[1200:], y[1200:]))
