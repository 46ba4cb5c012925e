"""Lines go through the numbers they were given, and the sentence above says what is seen."""

from __future__ import annotations

import dataclasses

import pytest

from advssl.evaluation.anchors import PerAnchor, Terms
from advssl.evaluation.curves import Curves
from advssl.evaluation.divergences import Divergences
from advssl.evaluation.report.lines import over_settings, strengths, training


def said(figure) -> str:
    """The sentence above it."""
    return figure.legends[0].get_title().get_text().replace("\n", " ")


def points(line) -> list[tuple[float, float]]:
    return [*zip(line.get_xdata(), line.get_ydata(), strict=True)]


CURVES = Curves(((0.0, 0.9), (8 / 255, 0.5)), ((0, 0.9), (1, 0.6), (20, 0.5)), 40)


class TestStrengths:
    def test_radii_are_in_grey_levels_and_shares_in_per_cent(self):
        radii, steps = strengths({"one": CURVES}).axes
        assert list(radii.get_lines()[0].get_xdata()) == pytest.approx([0, 8])
        assert list(radii.get_lines()[0].get_ydata()) == pytest.approx([90, 50])
        assert list(steps.get_lines()[0].get_xdata()) == [0, 1, 20]
        assert list(steps.get_lines()[0].get_ydata()) == pytest.approx([90, 60, 50])
        assert "1/255" in radii.get_xlabel()

    def test_without_radii_there_is_no_panel_of_them(self):
        (steps,) = strengths({"one": dataclasses.replace(CURVES, by_radius=())}).axes
        assert steps.get_xlabel() == "steps of the attack"

    def test_what_is_seen_is_said(self):
        assert said(strengths({"one": CURVES})) == (
            "Accuracy by steps of the attack: 60 % after 1, 50 % after 20"
        )
        both = said(strengths({"a": CURVES, "b": CURVES}))
        assert both.endswith("a: 60 % after 1, 50 % after 20; b: 60 % after 1, 50 % after 20")


def terms(intra: float, robust: float, negatives: float) -> Terms:
    pairs = {"leaked": PerAnchor((1.5, 2.0), (0.5, negatives)), "global": PerAnchor((9, 9), (9, 9))}
    return Terms(Divergences(intra, 0.5), 0.75, robust, pairs)


class TestTraining:
    FOUND = {20: terms(0.25, 0.5, 3.5), 10: terms(0.4, 0.25, 20.5)}  # noqa: RUF012

    def test_each_line_goes_through_its_numbers_by_epoch(self):
        relative, robust, pairs = training({"one": self.FOUND}).axes
        assert points(relative.get_lines()[0]) == [(10, 0.8), (20, 0.5)]
        assert points(robust.get_lines()[0]) == [(10, 25.0), (20, 50.0)]
        positives, negatives = pairs.get_lines()
        assert points(positives) == [(10, 3.5), (20, 3.5)]
        assert points(negatives) == [(10, 21.0), (20, 4.0)]

    def test_pairs_are_told_between_powers_of_ten(self):
        figure = training({"one": self.FOUND})
        figure.draw_without_rendering()
        labels = [t.get_text() for t in figure.axes[2].get_yticklabels()]
        assert {"5", "10", "20"} <= {*labels}

    def test_another_selection_has_its_own_pairs(self):
        *_, pairs = training({"one": self.FOUND}, "global").axes
        assert points(pairs.get_lines()[0]) == [(10, 18), (20, 18)]

    def test_what_is_seen_is_said(self):
        assert said(training({"one": self.FOUND})) == (
            "R-DIV goes from 0.80 to 0.50, accuracy under attack from 25 to 50 %, negatives per "
            "anchor (leaked) from 21.0 to 4.0"
        )
        worse = {10: terms(0.4, 0.2, 3), 20: terms(0.4, 0.2, 3)}
        assert said(training({"a": self.FOUND, "b": worse})) == (
            "a ends with the lowest R-DIV, and is right most often under attack"
        )
        better = {10: terms(0.4, 0.9, 3)}
        assert said(training({"a": self.FOUND, "b": better})) == (
            "a ends with the lowest R-DIV, but b is right most often under attack"
        )


class TestOverSettings:
    FOUND = {2.0: (0.75, 0.25), 0.5: (0.7, 0.5)}  # noqa: RUF012

    def test_both_accuracies_go_through_their_numbers(self):
        clean, robust = over_settings({"one": self.FOUND}, "weight").axes
        assert points(clean.get_lines()[0]) == [(0.5, pytest.approx(70)), (2, 75)]
        assert points(robust.get_lines()[0]) == [(0.5, 50), (2, 25)]
        assert {clean.get_xlabel(), robust.get_xlabel()} == {"weight"}

    def test_what_is_seen_is_said(self):
        assert said(over_settings({"one": self.FOUND}, "w")) == (
            "Robust accuracy is highest at 0.5: 50.0 %"
        )
        better = {0.25: (0.5, 0.5), 1.0: (0.5, 0.625)}
        assert said(over_settings({"a": self.FOUND, "b": better}, "w")) == (
            "Robust accuracy of b is highest at 1: 62.5 %"
        )


@pytest.mark.parametrize(
    "draw",
    [
        lambda: strengths({"$a_b$ <x>": CURVES, "_b": CURVES}),
        lambda: over_settings({"$a_b$ <x>": TestOverSettings.FOUND, "_b": {1.0: (0, 0)}}, "w"),
        lambda: training({"$a_b$ <x>": TestTraining.FOUND, "_b": TestTraining.FOUND}),
    ],
)
def test_any_name_is_written_as_it_is(draw):
    figure = draw()
    figure.draw_without_rendering()
    (names,) = (legend.get_texts() for legend in figure.legends)
    assert [t.get_text() for t in names] == ["$a_b$ <x>", "b"]
    assert not any(t.get_parse_math() for t in names)
