"""The figure of divergences has their numbers, and its title says what they do."""

from __future__ import annotations

import dataclasses

import pytest

from advssl.evaluation.report import drawn
from advssl.evaluation.report.divergence import Divergence, table, words
from evaluation.report.samples import FINDINGS

FOUND = FINDINGS["divergence"]
WORSE = dataclasses.replace(FOUND, relative=(0.5, 0.75, 1.5), accuracy=(0.9, 0.3, 0.0))


def shown(**found: Divergence):
    figure = drawn("divergence", found)["divergence-against-accuracy"]
    return figure, figure.axes[0].get_title(loc="left").replace("\n", " ")


def test_the_curve_is_accuracy_against_r_div():
    figure, title = shown(one=FOUND)
    curve, clean = figure.axes[0].get_lines()
    assert (*clean.get_xdata(), *clean.get_ydata()) == pytest.approx((1 / 6, 92.5))
    assert not curve.get_clip_on()  # a point on the frame is whole
    assert not clean.get_clip_on()
    assert curve.get_xdata() == pytest.approx(FOUND.relative)
    assert curve.get_ydata() == pytest.approx([92.5, 50, 10])
    assert title == ("Under attack R-DIV rises from 0.17 to 1.00, accuracy falls from 92 % to 10 %")


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [((0.9, 0.3, 0.0), "and is right most often"), ((0.9, 0.9, 0.9), "but b is right most often")],
)
def test_the_title_says_whether_the_lowest_is_the_most_accurate(accuracy, said):
    _, title = shown(a=FOUND, b=dataclasses.replace(WORSE, accuracy=accuracy))
    assert title == f"a has the lowest R-DIV under attack, {said}"


def test_features_that_all_lie_alike_have_no_ratio():
    alike = dataclasses.replace(FOUND, inter=(0.0,) * 3, relative=(None,) * 3)
    (bars,) = drawn("divergence", {"one": alike}).values()
    assert bars.axes[0].get_title(loc="left").replace("\n", " ").endswith("others: none")
    assert "R-DIV is not defined without attack" in words(alike)
    assert [row[4] for row in table({"one": alike}).rows] == [None] * 3
    _, title = shown(one=FOUND, other=alike)
    assert title.startswith("Under attack R-DIV rises from 0.17")


def test_bars_are_both_divergences_before_and_under_the_attack():
    (axes,) = drawn("divergence", {"a": FOUND, "b": WORSE})["divergences"].axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [0.125, 0.5, 0.75, 0.5] * 2
    names = [t.get_text().replace("\n", " ") for t in axes.get_xticklabels()]
    assert names == ["d⁺, same class", "d⁺ under attack", "d⁻, other classes", "d⁻ under attack"]
    said = axes.get_title(loc="left").replace("\n", " ")
    assert said.endswith("the spread of a class over the distance of others: 1.00 (a), 1.50 (b)")


def test_both_figures_are_of_one_size_as_they_stand_side_by_side():
    curve, bars = drawn("divergence", {"a": FOUND, "b": WORSE}).values()
    assert tuple(curve.get_size_inches()) == tuple(bars.get_size_inches())


def test_the_table_has_the_ratio_to_three_digits():
    *_, row = table({"one": FOUND}).rows
    assert row[:5] == ("one", "8/255", "0.500", "0.500", "1.000")


def test_columns_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="one of each kind per radius"):
        dataclasses.replace(FOUND, intra=(0.5,))
    with pytest.raises(ValueError, match="that of the threat model among them"):
        dataclasses.replace(FOUND, radius=0.5)
