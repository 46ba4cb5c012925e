"""What all figures share: styles that tell many apart, and titles that fit."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from advssl.evaluation.report.look import legend, look, spread, styles, titled


def test_no_two_of_many_look_alike():
    found = styles(map(str, range(18)))
    assert len({tuple(style.values()) for style in found.values()}) == 18


def test_a_title_fits_its_figure():
    with look():
        figure = Figure(figsize=(4.0, 3.5), layout="constrained")
        axes = figure.add_subplot()
        titled(axes, "A sentence that says in many words what there is to be seen below it, $ all")
        figure.draw_without_rendering()
        assert "\n" in axes.get_title(loc="left")
        assert axes._left_title.get_window_extent().x1 <= figure.bbox.x1


def test_a_dollar_in_a_title_begins_no_formula():
    axes = Figure().add_subplot()
    titled(axes, "$a_b$ is right most often")
    assert not axes._left_title.get_parse_math()


def test_a_legend_is_as_high_as_it_needs_and_the_axes_stay():
    heights = []
    for count, name in (
        (1, "an encoder with a long name"),
        (6, "an encoder with a long name"),
        (8, ""),
    ):
        with look():
            figure = Figure(figsize=(4.0, 3.5), layout="constrained")
            axes = figure.add_subplot()
            names = [f"{name} {i}" for i in range(count)]
            lines = [axes.plot([0, 1], [0, i])[0] for i in range(count)]
            legend(figure, lines, names, height=3.4)
            figure.draw_without_rendering()
        heights.append(axes.get_window_extent().height)
    assert heights == pytest.approx([heights[0]] * 3, rel=0.1)


def test_a_title_in_the_legend_takes_nothing_from_the_axes():
    heights = []
    for title in ("", "A sentence that says in many words what there is to be seen below, $ all"):
        with look():
            figure = Figure(figsize=(4.0, 3.5), layout="constrained")
            axes = figure.add_subplot()
            legend(figure, axes.plot([0, 1]), ["one"], height=3.4, title=title)
            figure.draw_without_rendering()
        shown = figure.legends[0].get_title()
        assert shown.get_text().replace("\n", " ") == title
        assert shown.get_window_extent().x1 <= figure.bbox.x1
        assert figure.legends[0].get_window_extent().y0 >= axes.get_window_extent().y1
        heights.append(axes.get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.1)


@pytest.mark.parametrize(
    ("values", "scale"), [((0, 1, 2), "linear"), ((0.5, 8), "symlog"), ((3,), "linear")]
)
def test_ticks_stand_at_the_values(values, scale):
    axes = Figure().add_subplot()
    axes.plot(values, values)
    spread(axes, values)
    assert axes.get_xscale() == scale
    assert list(axes.get_xticks()) == pytest.approx(values)
