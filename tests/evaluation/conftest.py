"""What tests of checkpoints share."""

from __future__ import annotations

import pathlib

import pytest


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / "checkpoint.pt"
