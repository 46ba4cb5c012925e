"""Numbers and radii are written as people write them, and columns line up."""

from __future__ import annotations

import pytest

from advssl.evaluation.records import Threat
from advssl.evaluation.report import words


@pytest.mark.parametrize(
    ("of", "text"),
    [
        (Threat("linf", 8 / 255), "ℓ∞ 8/255"),
        (Threat("l2", 0.5), "ℓ2 0.5"),
        (Threat("l2", 300 / 255), "ℓ2 1.176"),  # no grey level is meant beyond the whole range
        (Threat("patch", 3), "patch 3"),
    ],
)
def test_a_threat_is_its_norm_and_radius(of, text):
    assert words.threat(of) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        ("", "–"),
        ("x", "x"),
        (0.0, "0.0"),
        (12.04, "12.0"),
        (0.14, "0.1"),
        (0.094, "0.094"),
        (0.00012, "0.00012"),
        ((0.0, 1.0), "0.0 to 1.0"),
    ],
)
def test_a_cell(value, text):
    assert words.cell(value) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_one_is_one(count, text):
    assert words.counted(count, "image") == text


def test_columns_are_as_wide_as_their_widest_cell():
    assert words.columns([("a", "bb", "c"), ("aaa", "b", "")]) == ["a    bb  c", "aaa  b"]
    assert words.columns([]) == []


def test_wrapped_lines_are_indented_and_as_narrow_as_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    lines = words.wrapped("a sentence with half-precision " * 3, "  → ", "    ").splitlines()
    assert lines[0].startswith("  → a")
    assert all(line.startswith("    ") for line in lines[1:])
    assert max(map(len, lines)) <= 30
    assert not any(line.endswith("-") for line in lines)
    monkeypatch.setenv("COLUMNS", "300")
    assert max(map(len, words.wrapped("a word " * 40).splitlines())) <= 100
