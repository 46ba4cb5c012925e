"""The examples of other people's libraries run, for a few steps, and do what they say."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = 120  # lines, of any of these

quiet = pytest.mark.filterwarnings("ignore:.*(many workers|LeafSpec)")


def load(name: str) -> ModuleType:
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= SHORT
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def falls(losses: list[float]) -> bool:
    return len(losses) == 16 and sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("every", [False, True])
def test_lightning_callback(every):
    metrics = load("lightning_callback").train(every, max_steps=2, batch_size=16).callback_metrics
    terms = {"global_divergence", "cluster_fit"} if every else set()
    ends = {"attack_start", "attack_end"}  # of what the attack climbs
    assert metrics.keys() == {"train_loss", *terms, *ends}
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "patch"), [("test_byobnet", 0), ("test_vit", 8)])
def test_timm_backbone(name, patch):
    history = load("timm_backbone").train(name, patch, max_steps=3, batch_size=32)
    assert len(history) == 3
    assert all(clean < robust for clean, robust in history)


@pytest.mark.slow
def test_kornia_pipeline():
    history = load("kornia_pipeline").train(max_steps=16, batch_size=32)
    assert all(clean < hard for clean, hard in history)
    assert falls([hard for _, hard in history])


@pytest.mark.slow
def test_torchvision_transforms():
    losses = load("torchvision_transforms").train(max_steps=16, batch_size=32)
    assert falls(losses)


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric_loop(precision):
    losses = load("fabric_loop").train(precision, max_steps=16, batch_size=32)
    assert falls(losses)
