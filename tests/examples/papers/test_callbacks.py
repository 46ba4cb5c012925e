"""What watches a training: its one checkpoint, and its bar in a terminal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harness import callbacks
from harness.callbacks import Bar, Shelf


def test_a_checkpoint_is_given_once_and_to_its_own_run(tmp_path):
    path = tmp_path / "last.ckpt"
    Shelf(path, "this run").save_checkpoint({"step": 3}, path)
    shelf = Shelf(path, "this run")
    assert [shelf.load_checkpoint(), shelf.load_checkpoint()] == [{"step": 3}, {}]
    assert Shelf(path, "another run").load_checkpoint() == {}


@pytest.fixture(autouse=True)
def _console(monkeypatch):
    monkeypatch.setattr("rich._console", None)  # what it thinks of the terminal is kept there


@pytest.fixture
def trainer():
    return SimpleNamespace(max_steps=10, global_step=3, is_global_zero=True)


def step(bar, trainer, loss):
    trainer.global_step += 1
    bar.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)})


def test_a_bar_says_how_far_it_is_now_and_then(trainer, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich take anything for a terminal
    monkeypatch.setenv("TERM", "xterm")
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    bar = Bar("SimCLR")
    bar.on_train_start(trainer)
    (task,) = bar.bar.tasks
    assert (task.total, task.completed) == (10, 3)  # it goes on where it was
    step(bar, trainer, 0.5)
    assert (task.completed, task.fields["loss"]) == (4, "loss 0.500")
    step(bar, trainer, 0.25)  # too soon to be looked at
    assert task.completed == 4
    now[0] += 60
    step(bar, trainer, 0.125)
    assert (task.completed, task.fields["loss"]) == (6, "loss 0.125")
    assert bar.bar.live.is_started
    bar.on_train_end(trainer)
    assert not bar.bar.live.is_started


def test_where_there_is_no_terminal_no_bar_is_begun(trainer, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    bar = Bar("SimCLR")
    bar.on_train_start(trainer)
    step(bar, trainer, 0.5)
    assert not bar.bar.live.is_started
