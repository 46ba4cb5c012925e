"""Figures of encoders as a reader has them: in the page, light and dark, in print, and small."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from functools import cache

import matplotlib as mpl
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from advssl.evaluation.anchors import PerAnchor, Terms
from advssl.evaluation.curves import Curves
from advssl.evaluation.divergences import Divergences
from advssl.evaluation.embeddings import Plane
from advssl.evaluation.report import look
from advssl.evaluation.report.drawings import information, inversion_maps, planes, surfaces
from advssl.evaluation.report.figures import svg
from advssl.evaluation.report.lines import over_settings, strengths, training
from evaluation.report.samples import FINDINGS

FOUND = FINDINGS["pictures"]
CURVES = Curves(((0.0, 0.9), (8 / 255, 0.5)), ((0, 0.9), (1, 0.6), (20, 0.5)), 40)
TERMS = Terms(Divergences(0.25, 0.5), 0.75, 0.5, {"leaked": PerAnchor((1.0, 2.0), (3.0, 4.0))})
NAMES = ("plain", "robust: slf (advcl) / adversarial")
_SMALLEST = 8.0  # points: at half size 4, which is the least that is read


def named(one, names=NAMES) -> dict:
    return dict.fromkeys(names, one)


DRAWINGS = {
    "planes": lambda names=NAMES: planes(named(FOUND.plane, names), classes=FOUND.classes),
    "inversion_maps": lambda names=NAMES: inversion_maps(named(FOUND.maps.inversions, names)),
    "surfaces": lambda names=NAMES: surfaces(
        named((FOUND.around_images, FOUND.around_weights), names)
    ),
    "information": lambda names=NAMES: information(named(FOUND.fisher, names)),
    "strengths": lambda names=NAMES: strengths(named(CURVES, names)),
    "training": lambda names=NAMES: training(named({1: TERMS, 2: TERMS}, names)),
    "over_settings": lambda names=NAMES: over_settings(named({0.5: (0.7, 0.3)}, names), "weight"),
}
each_drawing = pytest.mark.parametrize("name", DRAWINGS)


@cache
def drawn(name: str) -> Figure:
    """Laid out once."""
    figure = DRAWINGS[name]()
    figure.draw_without_rendering()
    return figure


@cache
def on_the_page(name: str) -> str:
    return svg(drawn(name), name)


def texts(figure: Figure) -> list[Text]:
    """Those that are seen."""
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]


def heading(figure: Figure) -> Text:
    """The sentence above it."""
    return figure._suptitle or figure.legends[0].get_title()


@each_drawing
class TestEveryDrawing:
    @pytest.mark.slow
    def test_a_sentence_stands_above_it_within_the_figure(self, name):
        figure = drawn(name)
        where = heading(figure).get_window_extent()
        assert heading(figure).get_text().strip()
        assert where.x0 >= 0
        assert where.x1 <= figure.bbox.x1
        assert where.y1 <= figure.bbox.y1 + 1
        for axes in figure.axes:
            assert axes.get_window_extent().y1 <= where.y0 + 1

    def test_nothing_is_cut_off(self, name):
        """A text of an axes that is no part of the layout would reach over the edge."""
        figure = drawn(name)
        for axes in figure.axes:
            box = axes.get_tightbbox()
            if box is not None:
                assert box.x0 >= figure.bbox.x0 - 1
                assert box.x1 <= figure.bbox.x1 + 1
                assert box.y0 >= figure.bbox.y0 - 1

    def test_it_is_read_at_half_size(self, name):
        small = [t.get_text() for t in texts(drawn(name)) if t.get_fontsize() < _SMALLEST]
        assert small == []

    def test_every_encoder_is_named(self, name):
        told = {t.get_text() for t in texts(drawn(name))}
        assert {*NAMES} <= told

    @pytest.mark.slow
    def test_its_ink_is_the_readers(self, name):
        """Black on black would be nothing: what is drawn as ink follows the page."""
        text = on_the_page(name)
        for colour in look.ON_THE_PAGE:
            assert colour not in text
        assert "currentColor" in text
        assert name == "surfaces" or "#000000" not in text  # whose dot has its own ground

    def test_its_names_are_its_own(self, name):
        """Several figures stand on one page, and share its ids; equal images have one name."""
        every = re.findall(r'\bid="([^"]+)"', on_the_page(name))
        assert all(one.startswith(f"{name}-") for one in every)
        ids = [one for one in every if not one.startswith(f"{name}-image")]
        assert ids
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", ["planes", "training"])
def test_a_record_gives_the_same_figure_to_the_byte(name):
    first, again = (svg(DRAWINGS[name](NAMES[:1]), name) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("name", ["surfaces", "strengths"])
def test_the_readers_own_settings_do_not_count(name):
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "text.color": "green"}):
        figure = DRAWINGS[name](NAMES[:1])
        assert mpl.rcParams["font.size"] == 30
    assert max(t.get_fontsize() for t in figure.findobj(Text)) < 30
    assert heading(figure).get_color() == look.INK
    assert to_hex(figure.axes[0].get_facecolor()) == "#ffffff"


def test_each_encoder_has_a_row():
    for name in ("planes", "surfaces"):
        heights = [DRAWINGS[name](names).get_figheight() for names in (NAMES[:1], NAMES)]
        assert heights[1] > 1.6 * heights[0], name


def test_a_thousand_images_are_few_bytes_and_attacked_ones_stay_sharp():
    """Points are pixels, so that a page does not weigh megabytes; triangles are paths."""
    points = tuple((float(i % 40), float(i // 40)) for i in range(1000))
    labels = tuple(i % 10 for i in range(1000))
    many = Plane(points, labels, (1.0,) * 1000, (0, 1, 2), points[:3], (0.5,) * 3)
    text = svg(planes({"one": many}, classes=[f"class {i}" for i in range(10)]), "many")
    assert len(text) < 200_000
    pixels = re.findall(r'data:image/png;base64,([^"]+)"', text)
    assert pixels
    shown = [imread(io.BytesIO(base64.b64decode(one))) for one in pixels]
    dots = [image[..., 3] for image in shown if image.shape[-1] == 4]
    assert any(alpha.any() and not alpha.all() for alpha in dots)  # on the page behind them


def test_points_of_a_surface_that_is_flat_are_drawn():
    flat = dataclasses.replace(FOUND.around_images, heights=((0.5,) * 3,) * 3)
    figure = surfaces({"one": (flat,)})
    figure.draw_without_rendering()
    assert figure.get_suptitle().startswith("The loss rises by 0 around images")


def test_what_is_drawn_is_left_as_it_was():
    before = dataclasses.asdict(FOUND)
    maps = FOUND.maps.inversions.maps.clone()
    for name in ("planes", "inversion_maps", "surfaces", "information"):
        DRAWINGS[name](NAMES[:1])
    assert dataclasses.asdict(FOUND) == before
    assert (FOUND.maps.inversions.maps == maps).all()
