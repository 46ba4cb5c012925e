"""What runs within a time; how it runs is in test_evaluate.py."""

from __future__ import annotations

import math

import pytest

from advssl.evaluation import running


def test_a_clock_without_an_end_never_runs_out():
    clock = running.Clock(None)
    assert not clock.runs
    assert clock.left() == math.inf
    assert clock.until(0.1).left() == math.inf


def test_a_share_is_of_what_is_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    clock = running.Clock(60.0)
    assert clock.left() == 60
    now[0] += 20
    part = clock.until(0.25)
    assert (clock.left(), part.left()) == (40, 10)
    now[0] += 100
    assert clock.left() == -60
    assert clock.until(0.5).left() == pytest.approx(0)
