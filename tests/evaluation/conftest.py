"""What the tests of several modules start from."""

from __future__ import annotations

import pathlib

import pytest
from torch import nn
from toys import blobs, trained


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
