"""Figures show the numbers they were given where they belong, and say what is seen."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.text import Text

from advssl.evaluation.embeddings import Plane
from advssl.evaluation.fisher import Fisher
from advssl.evaluation.report import look
from advssl.evaluation.report.drawings import (
    information,
    inversion_maps,
    planes,
    surfaces,
)
from evaluation.report.samples import FINDINGS

FOUND = FINDINGS["pictures"]
PLANE, SURFACE = FOUND.plane, FOUND.around_images
MAPS = FOUND.maps.inversions


def said(figure) -> str:
    """The sentence above it."""
    shown = figure.get_suptitle() or figure.legends[0].get_title().get_text()
    return shown.replace("\n", " ")


def panels(figure) -> list:
    """The axes but for colour bars."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def points(collection) -> list[tuple[float, float]]:
    return [tuple(p) for p in collection.get_offsets().tolist()]


def named(figure) -> dict[str, str]:
    """The legend: colours by name."""
    (legend,) = figure.legends
    handles = [to_hex(handle.get_facecolor()[0]) for handle in legend.legend_handles]
    return dict(zip([t.get_text() for t in legend.get_texts()], handles, strict=True))


class TestPlanes:
    def test_every_image_is_where_it_is_in_the_colour_of_its_class(self):
        figure = planes({"one": PLANE}, classes=("cat", "dog"))
        by_class, _ = panels(figure)
        first, second, attacked = by_class.collections
        assert points(first) == [*PLANE.clean[:2]]
        assert points(second) == [*PLANE.clean[2:]]
        assert points(attacked) == [*PLANE.attacked]
        colours = [to_hex(one.get_facecolor()[0]) for one in (first, second, attacked)]
        assert colours == [*look.COLOURS[:2], look.INK]
        assert named(figure) == {"cat": colours[0], "dog": colours[1], "attacked": look.INK}

    def test_dots_are_larger_where_they_are_named(self):
        figure = planes({"one": PLANE}, classes=("cat", "dog"))
        drawn, *_ = panels(figure)[0].collections
        named, *_ = figure.legends[0].legend_handles
        assert named.get_sizes()[0] > drawn.get_sizes()[0]

    def test_entropy_is_the_colour_beside_it_on_one_scale(self):
        figure = planes({"one": PLANE, "two": PLANE}, classes=("cat", "dog"))
        for axes in panels(figure)[1::2]:
            clean, attacked = axes.collections
            assert clean.get_array().tolist() == [*PLANE.entropy]
            assert attacked.get_array().tolist() == [*PLANE.attacked_entropy]
            assert points(attacked) == [*PLANE.attacked]
            for one in (clean, attacked):
                assert one.get_clim() == (0, math.log(2))

    def test_numbers_name_classes_that_have_no_names_and_none_of_many(self):
        assert [*named(planes({"one": PLANE}))] == ["0", "1", "attacked"]
        many = Plane(((0.0, 0.0),) * 20, tuple(range(20)), (0.0,) * 20, (0,), ((1, 1),), (0.0,))
        figure = planes({"one": many})
        assert [*named(figure)] == ["attacked"]
        axes = figure.axes[0]
        looks = {
            (to_hex(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes())
            for c in axes.collections[:-1]
        }
        assert len(looks) == 20

    def test_what_is_seen_is_said(self):
        assert said(planes({"one": PLANE})).startswith("100 % of images lie beside")
        assert said(planes({"a": PLANE, "b": PLANE})).endswith("a 100 and 50 %, b 100 and 50 %")


class TestInversionMaps:
    def test_each_start_stands_before_its_maps(self):
        axes = [a for a in inversion_maps({"one": MAPS}).axes if a.images]
        shown = [torch.from_numpy(a.images[0].get_array().data.copy()) for a in axes]
        expected = [
            image for s in range(2) for image in (MAPS.starts[s], MAPS.maps[0, s], MAPS.maps[1, s])
        ]
        assert len(shown) == len(expected) == 6
        for mine, own in zip(shown, expected, strict=True):
            torch.testing.assert_close(mine.float(), own.permute(1, 2, 0))
        words = [a.get_xlabel() for a in axes]
        assert words == ["start", "neuron 3", "neuron 5"] * 2

    def test_one_channel_is_grey(self):
        grey = dataclasses.replace(MAPS, starts=MAPS.starts[:, :1], maps=MAPS.maps[:, :, :1])
        (first, *_) = inversion_maps({"one": grey}).axes
        assert first.images[0].get_array().shape == (2, 2)

    def test_what_is_seen_is_said(self):
        alone, both = inversion_maps({"one": MAPS}), inversion_maps({"a": MAPS, "b": MAPS})
        value = f"{MAPS.alike:.2f}"
        assert f"correlate by {value}, the starts by {MAPS.alike_before:.2f}" in said(alone)
        assert f"{value} (a), {value} (b)" in said(both)


class TestSurfaces:
    def test_the_first_axis_goes_right_and_the_second_up(self):
        """It rises along the first, most of all in the middle of the second."""
        axes, _ = panels(surfaces({"one": (SURFACE, FOUND.around_weights)}))
        mesh = axes.collections[0]
        rows = mesh.get_array().reshape(3, 3).tolist()
        assert rows[1] == [0.25, 0.5, 2.0]
        assert [row[2] for row in rows] == [1.5, 2.0, 1.5]
        corner = mesh.get_coordinates()[0, 2].tolist()
        assert corner == [1.0, -1.0]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("steepest direction", "random direction")

    def test_the_bar_beside_has_the_colours_of_the_surface(self):
        figure = surfaces({"one": (SURFACE,)})
        (axes,) = panels(figure)
        (bar,) = (other for other in figure.axes if other is not axes)
        shown = bar.collections[-1]
        assert shown.cmap == axes.collections[0].cmap
        assert shown.get_clim() == axes.collections[0].get_clim()

    def test_a_loss_of_several_decades_has_a_logarithmic_scale(self):
        steep = dataclasses.replace(SURFACE, heights=((0.1, 1.0, 900.0),) * 3)
        figure = surfaces({"one": (steep, SURFACE)})
        names = [type(axes.collections[0].norm).__name__ for axes in panels(figure)]
        assert names == ["LogNorm", "Normalize"]
        assert said(figure).startswith("The loss rises by 899 around images")

    def test_encoders_share_the_scale_of_a_column_and_columns_do_not(self):
        low = dataclasses.replace(SURFACE, heights=((0.0, 0.0, 0.0),) * 3)
        figure = surfaces({k: (s, FOUND.around_weights) for k, s in (("a", SURFACE), ("b", low))})
        scales = [axes.collections[0].get_clim() for axes in panels(figure)]
        assert scales == [(0.0, 2.0), (1.0, 4.0)] * 2

    def test_what_is_seen_is_said(self):
        of = SURFACE, FOUND.around_weights
        assert said(surfaces({"one": of})) == (
            "The loss rises by 1.5 around images, by 3 around weights"
        )
        assert "by 1.5 (a) and 1.5 (b) around images" in said(surfaces({"a": of, "b": of}))


class TestInformation:
    def test_the_curve_has_an_image_at_each_step(self):
        (line, dot) = information({"one": FOUND.fisher}).axes[0].get_lines()
        assert list(line.get_xdata()) == [1.0, 4.0, 16.0]
        assert list(line.get_ydata()) == pytest.approx([100 / 3, 200 / 3, 100])
        assert (list(dot.get_xdata()), list(dot.get_ydata())) == ([4.0], [50])

    @pytest.mark.parametrize(
        ("most", "ticks"), [(40.0, {"5", "10", "20"}), (9000.0, {"10", "100", "1000", "10000"})]
    )
    def test_numbers_stand_within_a_decade_only_where_there_are_few_decades(self, most, ticks):
        figure = information({"one": Fisher((3.0, 8.0, most), (1.0,) * 3)})
        figure.draw_without_rendering()
        (axes,) = figure.axes
        low, high = axes.get_xlim()
        assert not any(t.get_text() for t in axes.xaxis.get_minorticklabels())
        shown = {
            t.get_text()
            for t in axes.xaxis.get_majorticklabels()
            if low <= t.get_position()[0] <= high
        }
        assert shown == ticks

    def test_none_at_all_has_its_place_on_a_logarithmic_axis(self):
        nothing = Fisher((0.0, 0.0, 2.0), (0.0, 0.0, 1.0))
        (line, dot) = information({"one": nothing}).axes[0].get_lines()
        assert list(line.get_xdata()) == [2.0, 2.0, 2.0]
        assert list(dot.get_xdata()) == [2.0]

    def test_what_is_seen_is_said_in_the_looks_that_are_given(self):
        assert "than 4" in said(information({"one": FOUND.fisher}))
        more = Fisher((10.0, 40.0, 160.0), (1.0,) * 3)
        found = {"plain": more, "robust": FOUND.fisher}
        looks = look.styles(["other", "plain", "robust"])
        figure = information(found, looks)
        assert said(figure) == (
            "Predictions of robust change least with the pixels: median 4 against 40 of plain"
        )
        assert figure.axes[0].get_lines()[0].get_color() == looks["plain"]["color"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        lambda: planes({"$a_b$ <x>": PLANE}, classes=("$x", "<b>")),
        lambda: inversion_maps({"$a_b$ <x>": MAPS}),
        lambda: surfaces({"$a_b$ <x>": (SURFACE,)}),
        lambda: information({"$a_b$ <x>": FOUND.fisher, "_b": FOUND.fisher}),
    ],
)
def test_any_name_is_written_as_it_is(draw):
    figure = draw()
    figure.draw_without_rendering()
    told = [t for t in figure.findobj(Text) if "a_b" in t.get_text()]
    assert any("$a_b$ <x>" in t.get_text() for t in told)
    assert not any(t.get_parse_math() for t in told)
