"""Bars have the numbers of the record, those of two encoders beside each other."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from matplotlib.colors import to_hex

from advssl.evaluation.report import drawn
from advssl.evaluation.report.corruption import Corruptions, table, words
from evaluation.report.samples import FINDINGS

FOUND = FINDINGS["corruptions"]
FALLING = (0.9, 0.8, 0.7, 0.6, 0.5)


def shown(**found: Corruptions):
    (figure,) = drawn("corruptions", found).values()
    return figure, figure.axes[0].get_title(loc="left").replace("\n", " ")


def test_mean_and_worst_are_over_types_of_their_severities():
    assert FOUND.mean == pytest.approx((0.7 + 0.5 + 0.3) / 3)
    assert FOUND.worst == "fog"
    milder = dataclasses.replace(FOUND, accuracy={**FOUND.accuracy, "fog": FALLING})
    assert milder.worst == "jpeg_compression"
    assert FOUND.names == ["gaussian_noise", "fog", "jpeg_compression"]


def test_bars_are_means_and_lines_go_from_the_mildest_to_the_strongest():
    figure, title = shown(one=FOUND)
    axes = figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([70, 30, 50])
    (lines,) = axes.collections
    spans = [(line[0][1], line[1][1]) for line in lines.get_segments()]
    assert spans == [pytest.approx(s) for s in ((50, 90), (10, 50), (30, 70))]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["gaussian noise", "fog", "JPEG"]
    assert title == "Corruptions leave 50 % of 95 % on average, and least under fog: 30 %"


def test_two_encoders_stand_side_by_side():
    other = dataclasses.replace(FOUND, accuracy={**FOUND.accuracy, "fog": FALLING}, clean=0.9)
    figure, title = shown(plain=FOUND, robust=other)
    bars = figure.axes[0].patches
    assert len(bars) == 6
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    colours = [to_hex(bars[i].get_facecolor()) for i in (0, 3)]
    assert len({*colours}) == 2
    dashed = figure.axes[0].get_lines()
    assert [(to_hex(line.get_color()), *line.get_ydata()) for line in dashed] == [
        (colours[0], 95, 95),  # the clean accuracy
        (colours[1], 90, 90),
    ]
    assert title == (
        "robust is right most often: 63 % against 50 % on average, first under 1 of 3 types"
    )


def test_types_that_one_lacks_are_left_open():
    fewer = dataclasses.replace(FOUND, accuracy={"fog": FALLING})
    made = table({"plain": FOUND, "fewer": fewer})
    rows = {row[0]: row[1:] for row in made.rows}
    assert rows["clean"] == (95.0, None, 95.0, None)
    assert rows["gaussian noise"] == (pytest.approx(70), 50.0, None, None)
    assert rows["fog"] == (pytest.approx(30), 10.0, pytest.approx(70), 50.0)
    assert len(shown(plain=FOUND, fewer=fewer)[0].axes[0].patches) == 4


def test_words_name_the_worst_type_and_what_the_images_are():
    said = words(FOUND)
    assert "under advssl corruptions is 50.0 % on average over 3 types" in said
    assert "least is left under fog, 30.0 %" in said


@pytest.mark.parametrize("accuracy", [{}, {"mist": FALLING}])
def test_other_types_are_refused(accuracy):
    with pytest.raises(ValueError, match="corruptions are some of"):
        dataclasses.replace(FOUND, accuracy=accuracy)
