"""Hosts' examples run against the installed library, for a few steps, and their attack raises."""

from __future__ import annotations

import importlib.util
import sys
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
    sys.modules[name] = module  # where dataclasses and pickles look for it
    spec.loader.exec_module(module)
    return module


def rises(heights) -> bool:
    return all(one[0] < one[-1] for one in heights)


def test_timm_train():
    pytest.importorskip("timm.task")
    heights = load("timm_train").train(max_steps=3, batch_size=32)
    assert len(heights) == 3
    assert rises(heights)


def test_metric_learning():
    pytest.importorskip("pytorch_metric_learning")
    ends, criterion = load("metric_learning").train(max_steps=4, batch_size=32)
    assert rises(ends)
    # Four batches, none of the twelve steps of the attacks.
    assert criterion.queue_idx == 4 * 32
    assert int(criterion.embedding_memory.any(dim=1).sum()) == 4 * 32
    assert not criterion.embedding_memory.requires_grad


@quiet
def test_kornia_lightning():
    logged = load("kornia_lightning").train(max_steps=3, batch_size=32)
    assert logged.keys() == {"train_loss", "attack_start", "attack_end"}
    assert logged["attack_start"] < logged["attack_end"]
    assert logged["attack_start"] < logged["train_loss"]  # trained on is what was found


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_loop(precision):
    state = pytest.importorskip("accelerate.state")
    state.AcceleratorState._reset_state(reset_partial_state=True)  # one precision per process
    losses = load("accelerate_loop").train(precision, max_steps=16, batch_size=32)
    assert len(losses) == 16
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
def test_hf_trainer():
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    heights = load("hf_trainer").train(max_steps=3, batch_size=32)
    assert len(heights) == 3
    assert rises(heights)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
def test_lightly_train_pretrain(monkeypatch):
    monkeypatch.setenv("LIGHTLY_TRAIN_EVENTS_DISABLED", "1")
    pytest.importorskip("lightly_train")
    ends = load("lightly_train_pretrain").train(epochs=1, batch_size=8)
    assert len(ends) == 4
    assert rises(ends)


HOSTS = [
    *("kornia_lightning", "fabric_loop", "accelerate_loop", "hf_trainer", "timm_train"),
    *("metric_learning", "lightly_train_pretrain", "lightning_callback", "timm_backbone"),
]


@pytest.mark.parametrize("name", HOSTS)
def test_the_page_says_how_many_lines_an_example_adds(name):
    page = (EXAMPLES.parent / "docs" / "hosts.md").read_text(encoding="utf-8")
    code = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    added = sum("# +" in line and "`# +`" not in line for line in code.splitlines())
    link = "lightly_train.md" if name.startswith("lightly") else f"../examples/{name}.py"
    row = next(line for line in page.splitlines() if line.startswith("| [") and link in line)
    assert f"| {added} |" in row
