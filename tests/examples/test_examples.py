"""The examples run, for two steps, and say what they do; what they mark is all that they add."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plain_loop_is_short_and_runs():
    assert len((EXAMPLES / "plain_loop.py").read_text(encoding="utf-8").splitlines()) <= 80
    ((clean, with_hard),) = load("plain_loop").train(epochs=1, max_steps=2)
    assert 0 < clean < with_hard


def test_plain_loop_marks_the_three_lines():
    code = (EXAMPLES / "plain_loop.py").read_text(encoding="utf-8")
    assert sum("  # +" in line for line in code.splitlines()) == 3


lightly = load("lightly_simclr")


@pytest.mark.slow
@pytest.mark.parametrize("add", [(), *((name,) for name in lightly.COMPONENTS), lightly.COMPONENTS])
def test_lightly_simclr_runs_with_each_component(add):
    history = lightly.train(add, max_steps=2, batch_size=16)
    assert len(history) == 2
    terms = {"simclr", *add} - {"sharpness"}  # which takes the place of the benign term
    assert terms <= history[0].keys()
    assert all(abs(value) < 100 for step in history for value in step.values())
