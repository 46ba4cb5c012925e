"""Figures show the report's numbers, whatever matplotlib's settings are."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from advssl.evaluation.report import (
    Strip,
    faces,
    figures,
    wilson,
)
from evaluation.report.samples import (
    ALL_FIGURES,
    CURVES,
    SELECTED,
    N,
    attacks,
    bare,
    curved,
    measurement,
    page_of,
    report,
    section,
    strip,
)


def lines_of(figure, count: int):
    return figure.axes[0].get_lines()[:count]


@pytest.fixture(scope="module")
def drawn():
    return figures(report())


class TestFigures:
    @pytest.mark.slow
    def test_are_those_of_the_page(self, drawn):
        assert tuple(drawn) == ALL_FIGURES

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ALL_FIGURES)
    def test_can_be_saved_apart(self, drawn, name, tmp_path):
        figure = drawn[name]
        for kind in ("png", "svg", "pdf"):
            figure.savefig(tmp_path / f"figure.{kind}")
            assert (tmp_path / f"figure.{kind}").stat().st_size > 1000

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("fields", "missing"),
        [
            ({"by_radius": ()}, {"accuracy-against-radius"}),
            ({"by_steps": ()}, {"accuracy-against-steps"}),
            ({"measurements": attacks(0)[:1]}, {"clean-against-robust"}),
            ({"strip": None}, {"strip"}),
            ({"by_radius": (), "by_steps": (), "strip": None}, {*CURVES, "strip"}),
        ],
    )
    def test_without_data_there_is_none(self, folder, fields, missing, monkeypatch):
        monkeypatch.setattr(faces, "svg", lambda *_: "<svg></svg>")  # which are drawn, not how
        made = []
        monkeypatch.setattr(faces, "figures", lambda of: made.append(figures(of)) or made[0])
        sections = [curved(p, **{"strip": strip(), **fields}) for p in ("slf", "alf")]
        page = page_of(report(*sections), folder)
        assert set(made[0]) == set(ALL_FIGURES) - missing
        assert {a["id"] for tag, a in page.tags if tag == "figure"} == set(ALL_FIGURES) - missing

    @pytest.mark.slow
    def test_one_section_is_no_scatter(self, folder):
        whole = report(curved(strip=strip()))
        assert tuple(figures(whole)) == (*CURVES, "strip")
        page_of(whole, folder)

    def test_a_bare_section_is_a_page_without_figures(self, folder):
        page = page_of(report(bare()), folder)
        assert figures(report(bare())) == {}
        assert not {"figure", "svg"} & {tag for tag, _ in page.tags}

    @pytest.mark.parametrize(("name", "field"), [(CURVES[0], "by_radius"), (CURVES[1], "by_steps")])
    def test_curves_are_the_reports(self, name, field):
        whole = report(curved("slf"), curved("alf", **{field: ((2, 0.5), (1, 0.75))}))
        for line, s in zip(lines_of(figures(whole)[name], 2), whole.sections, strict=True):
            expected = sorted(getattr(s, field))
            scale = 255 if field == "by_radius" and max(x for x, _ in expected) < 1 else 1
            assert line.get_ydata() == pytest.approx([100 * a for _, a in expected])
            if field == "by_steps":
                assert line.get_xdata() == pytest.approx([scale * x for x, _ in expected])

    def test_radii_of_grey_levels_are_written_in_grey_levels(self):
        axes = figures(report(curved()))["accuracy-against-radius"].axes[0]
        assert axes.get_xlabel() == "radius ε, in 1/255"
        assert axes.get_lines()[0].get_xdata() == pytest.approx([0, 4, 8, 128])
        assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "4", "8", "128"]

    @pytest.mark.parametrize("radii", [(0, 0.25, 0.5, 1.0, 2.0), (0, 0.125, 0.5)])
    def test_radii_of_other_norms_are_written_as_they_are(self, radii):
        curve = tuple((r, 0.5) for r in radii)
        axes = figures(report(curved(by_radius=curve)))["accuracy-against-radius"].axes[0]
        assert axes.get_xlabel() == "radius ε, in pixels of [0, 1]"
        assert axes.get_lines()[0].get_xdata() == pytest.approx(radii)

    @pytest.mark.parametrize(
        ("steps", "scale"), [((1, 2, 5, 10), "linear"), ((1, 10, 100), "symlog"), ((7,), "linear")]
    )
    def test_more_than_a_decade_is_logarithmic(self, steps, scale):
        curve = tuple((k, 0.5) for k in steps)
        axes = figures(report(curved(by_steps=curve)))["accuracy-against-steps"].axes[0]
        assert axes.get_xscale() == scale
        assert [float(t.get_text()) for t in axes.get_xticklabels()] == list(steps)

    def test_ticks_do_not_run_into_each_other(self):
        curve = tuple((k, 0.5) for k in range(1, 101))
        figure = figures(report(curved(by_steps=curve)))["accuracy-against-steps"]
        figure.draw_without_rendering()
        boxes = [t.get_window_extent() for t in figure.axes[0].get_xticklabels()]
        assert len(boxes) > 4
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))

    @pytest.mark.slow
    @pytest.mark.parametrize("count", [1, 2, 3, 6, 14])
    def test_the_legend_stays_clear_of_the_axes(self, count):
        sections = [curved("slf", branch=f"adversarial {i}") for i in range(count)]
        for figure in figures(report(*sections)).values():
            figure.draw_without_rendering()
            below, above = figure.axes[0].get_window_extent(), figure.legends[0].get_window_extent()
            assert above.y0 >= below.y1
            assert above.x1 <= figure.bbox.x1
            assert below.height > 150  # not squeezed by what stands above it

    @pytest.mark.parametrize(
        ("classes", "chance"), [(10, 10.0), (4, 25.0), (["a", "b"], 50.0), (("a", "b"), 50.0)]
    )
    def test_chance_is_a_dotted_line(self, classes, chance):
        drawn = figures(report(curved(), data={"classes": classes}))
        for name in CURVES:
            line = drawn[name].axes[0].get_lines()[-1]
            assert line.get_linestyle() == ":"
            assert set(line.get_ydata()) == {chance}
            assert drawn[name].legends[0].get_texts()[-1].get_text() == "chance"

    @pytest.mark.slow
    @pytest.mark.parametrize("data", [{}, {"classes": None}, {"classes": 0}, {"classes": []}])
    def test_without_classes_there_is_no_chance_level(self, data):
        figure = figures(report(curved(), data=data))["accuracy-against-steps"]
        assert len(figure.axes[0].get_lines()) == 1
        assert [t.get_text() for t in figure.legends[0].get_texts()] == ["slf"]

    def test_a_section_looks_the_same_in_every_figure(self):
        whole = report(curved("slf", by_radius=()), curved("alf"), curved("aff"))
        drawn = figures(whole)
        steps = {
            text.get_text(): line.get_color()
            for line, text in zip(
                lines_of(drawn["accuracy-against-steps"], 3),
                drawn["accuracy-against-steps"].legends[0].get_texts(),
                strict=False,
            )
        }
        radii = [line.get_color() for line in lines_of(drawn["accuracy-against-radius"], 2)]
        assert radii == [steps["alf"], steps["aff"]]
        assert len(set(steps.values())) == 3

    def test_a_best_epoch_takes_no_colour_from_others(self):
        plain = figures(report(curved("slf"), curved("alf")))[CURVES[0]]
        sections = curved("slf"), section("slf", selected=SELECTED), curved("alf")
        with_best = figures(report(*sections))[CURVES[0]]
        colours = [[line.get_color() for line in f.axes[0].lines] for f in (plain, with_best)]
        assert colours[0] == colours[1]

    def test_many_sections_are_all_told_apart(self):
        whole = report(*(curved("slf", branch=str(i)) for i in range(14)))
        lines = lines_of(figures(whole)["accuracy-against-steps"], 14)
        looks = {(x.get_color(), x.get_marker(), x.get_linestyle()) for x in lines}
        assert len(looks) == 14

    def test_the_scatter_is_clean_against_worst_case_with_intervals(self):
        whole = report(curved("slf"), curved("alf", lost=5))
        axes = figures(whole)["clean-against-robust"].axes[0]
        points = [c.lines[0] for c in axes.containers]
        assert [float(p.get_xdata()[0]) for p in points] == [92.5, 92.5]
        assert [float(p.get_ydata()[0]) for p in points] == [52.5, 40.0]
        across, up = axes.containers[0].lines[2]
        (low, _), (high, _) = across.get_segments()[0]
        assert (low / 100, high / 100) == pytest.approx(wilson(37, N))
        (_, low), (_, high) = up.get_segments()[0]
        assert (low / 100, high / 100) == pytest.approx(wilson(21, N))

    def test_sections_without_attacks_are_left_out_of_the_scatter(self):
        sections = section("slf"), section("alf"), bare(measurements=(measurement(),))
        whole = report(*sections[:2], dataclasses.replace(sections[2], protocol="knn"))
        assert len(figures(whole)["clean-against-robust"].axes[0].containers) == 2

    def test_a_label_may_begin_with_an_underscore(self):
        legend = figures(report(curved("_slf"), curved("_")))["accuracy-against-steps"].legends[0]
        assert [t.get_text() for t in legend.get_texts()] == ["slf", "-", "chance"]

    @pytest.mark.slow
    def test_leave_matplotlibs_settings_alone_and_do_not_follow_them(self, page, folder):
        import matplotlib

        with matplotlib.rc_context({"axes.grid": False, "font.size": 30, "text.color": "red"}):
            before = dict(matplotlib.rcParams)
            odd = page_of(report(), folder).source
            assert dict(matplotlib.rcParams) == before
        assert odd == page.source

    def test_no_source_names_pyplot(self):
        sources = list(Path(inspect.getfile(faces)).parent.glob("*.py"))
        assert any("matplotlib" in s.read_text(encoding="utf-8") for s in sources)
        assert not [s for s in sources if "pyplot" in s.read_text(encoding="utf-8")]

    @pytest.mark.heavy
    def test_never_touch_pyplot(self, written, folder):
        code = (
            "import sys; from advssl.evaluation.report import read, write;"
            "assert 'matplotlib' not in sys.modules, 'not lazy';"
            "write(read(sys.argv[1]), sys.argv[2]);"
            "assert 'matplotlib' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
        )
        record = written / "record.json"
        subprocess.run([sys.executable, "-c", code, str(record), str(folder)], check=True)
        assert (folder / "report.html").exists()


def said(figure) -> str:
    """The sentence above it."""
    shown = figure.get_suptitle() or figure.legends[0].get_title().get_text()
    return shown.replace("\n", " ")


class TestSentences:
    """What is seen stands above, whatever the number of curves."""

    def test_of_one_encoder_its_ends(self):
        one = figures(report(curved("slf", strip=strip())))
        assert said(one[CURVES[0]]) == "92 % are right at radius 0, 0 % at radius 128/255"
        assert said(one[CURVES[1]]) == "80 % are right after 1 step, 60 % after 50 steps"

    def test_of_several_where_they_lie_furthest_apart(self):
        weak = curved("alf", by_radius=((0.0, 0.9), (8 / 255, 0.1), (16 / 255, 0.0)), by_steps=())
        both = figures(report(curved("slf"), weak))
        assert said(both[CURVES[0]]) == "Furthest apart at radius 8/255: slf has 50 %, alf 10 %"

    def test_of_curves_that_meet_nowhere_or_everywhere(self):
        alone = report(curved("slf"), curved("alf", by_radius=((0.3, 0.5),), by_steps=((3, 0.5),)))
        assert said(figures(alone)[CURVES[1]]) == "Accuracy under attacks of growing strength"
        alike = figures(report(curved("slf"), curved("alf")))[CURVES[1]]
        assert said(alike).startswith("All curves lie on each other: 60 %") or "80 %" in said(alike)

    def test_of_the_scatter_who_stands_most(self):
        both = figures(report(section("slf"), section("alf", lost=5)))["clean-against-robust"]
        assert said(both) == "Most stands of slf: 52 % of the 92 % that are right"

    def test_of_a_strip_how_many_stay_right(self):
        drawn = figures(report(section(strip=strip())))["strip"]
        assert said(drawn) == "Of 3 images 3 are named right, and 2 after the attack"


class TestStrip:
    def drawn(self, shown: Strip):
        return figures(report(section(strip=shown)))["strip"]

    def titles(self, figure, row: int) -> list:
        return [a.title for a in figure.axes[8 * row : 8 * row + 8] if a.get_title()]

    def test_shows_clean_adversarial_and_difference(self, drawn):
        shown, axes = strip(), drawn["strip"].axes
        for i in range(3):
            clean, hard, change = (axes[8 * row + i].get_images()[0] for row in range(3))
            for image, of in ((clean, shown.clean), (hard, shown.adversarial)):
                drawn = torch.tensor(image.get_array().tolist())
                torch.testing.assert_close(drawn, of[i].permute(1, 2, 0))
            expected = 255 * (shown.adversarial - shown.clean)[i].mean(0)
            torch.testing.assert_close(torch.tensor(change.get_array().tolist()), expected)

    def test_the_difference_is_white_at_zero_and_full_at_its_most(self, drawn):
        image = drawn["strip"].axes[16].get_images()[0]
        low, high = image.get_clim()
        assert low == -high
        assert high == pytest.approx(8, abs=1e-3)
        assert image.cmap(0.5)[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.01)

    def test_the_classifiers_word_stands_above_in_red_where_wrong(self, drawn):
        from matplotlib.colors import to_hex

        figure = drawn["strip"]
        before, after = self.titles(figure, 0), self.titles(figure, 1)
        assert [t.get_text() for t in before] == ["class 0", "class 1", "class 2"]
        assert [t.get_text() for t in after] == ["mistaken", "class 1", "class 2"]
        right, wrong = to_hex(before[0].get_color()), to_hex(after[0].get_color())
        assert [to_hex(t.get_color()) for t in [*before, *after[1:]]] == [right] * 5
        assert int(wrong[1:3], 16) > 2 * int(wrong[3:5], 16)
        assert wrong != right

    def test_red_follows_the_page(self, page):
        mistaken = re.search(r"<text[^>]*>mistaken<", page.source)
        assert mistaken is not None
        assert "fill: var(--bad)" in mistaken[0]

    def test_says_its_radius(self, drawn):
        texts = [t.get_text() for a in drawn["strip"].axes for t in a.texts]
        assert texts == ["clean", "adversarial\nε = 8/255", "difference,\namplified"]

    def test_an_l2_radius_is_no_fraction(self):
        shown = dataclasses.replace(strip(), radius=0.5)
        texts = [t.get_text() for a in self.drawn(shown).axes for t in a.texts]
        assert texts[1] == "adversarial\nε = 0.5"

    @pytest.mark.parametrize("count", [1, 8, 20])
    def test_shows_eight_at_most(self, count):
        figure = self.drawn(strip(count))
        assert len(self.titles(figure, 0)) == min(count, 8)

    @pytest.mark.parametrize("channels", [1, 2, 4])
    def test_other_channels_are_shown_as_their_mean(self, channels):
        shown = strip(channels=channels)
        image = self.drawn(shown).axes[0].get_images()[0]
        assert image.get_clim() == (0, 1)
        torch.testing.assert_close(torch.tensor(image.get_array().tolist()), shown.clean[0].mean(0))

    @pytest.mark.slow
    def test_images_need_not_be_square(self, folder):
        clean = torch.rand(2, 3, 16, 8)
        shown = Strip(clean, clean.flip(3), ("a", "b"), ("a", "b"), ("b", "a"), 0.5)
        page_of(report(section(strip=shown)), folder)

    def test_an_attack_that_changed_nothing_is_white_and_no_error(self, folder):
        same = dataclasses.replace(strip(), adversarial=strip().clean)
        change = self.drawn(same).axes[16].get_images()[0]
        assert torch.tensor(change.get_array().tolist()).abs().max() == 0
        page_of(report(section(strip=same)), folder)

    def test_takes_tensors_as_an_attack_leaves_them(self, folder):
        given = strip()
        odd = dataclasses.replace(
            given,
            clean=given.clean.double().to(memory_format=torch.channels_last),
            adversarial=given.adversarial.double().requires_grad_(),
        )
        page_of(report(section(strip=odd)), folder)

    def test_long_names_are_cut_and_do_not_overlap(self):
        names = tuple(f"a very long name of class {i}" for i in range(8))
        shown = dataclasses.replace(
            strip(8), labels=names, predicted_clean=names, predicted=names[::-1]
        )
        figure = self.drawn(shown)
        figure.draw_without_rendering()
        titles = self.titles(figure, 0)
        assert all(t.get_text().endswith("…") for t in titles)
        boxes = [t.get_window_extent() for t in titles]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))

    def test_a_name_in_another_script_is_in_the_page_without_a_warning(self, folder):
        names = ("鹿", "飛行機", "🦌")
        shown = dataclasses.replace(strip(), labels=names, predicted_clean=names, predicted=names)
        page = page_of(report(section(strip=shown)), folder)
        assert {"鹿", "飛行機", "🦌"} <= set(page.texts_in("text"))

    def test_is_the_first_sections_that_has_one(self):
        other = dataclasses.replace(strip(), predicted_clean=("other",) * 3)
        whole = report(section("slf"), section("alf", strip=other), section("aff", strip=strip()))
        assert self.titles(figures(whole)["strip"], 0)[0].get_text() == "other"

    @pytest.mark.parametrize(
        ("clean", "adversarial"),
        [
            ((3, 3, 8, 8), (3, 3, 8, 9)),
            ((3, 3, 8, 8), (2, 3, 8, 8)),
            ((3, 8, 8), (3, 8, 8)),
            ((0, 3, 8, 8), (0, 3, 8, 8)),
        ],
    )
    def test_refuses_images_that_do_not_pair(self, clean, adversarial):
        with pytest.raises(ValueError, match=re.escape(f"got {clean} and {adversarial}")):
            Strip(torch.rand(clean), torch.rand(adversarial), (), (), (), 0.1)

    @pytest.mark.parametrize("field", ["labels", "predicted_clean", "predicted"])
    def test_refuses_names_that_do_not_pair(self, field):
        with pytest.raises(ValueError, match="3 images need as many labels, predicted_clean"):
            dataclasses.replace(strip(), **{field: ("one",)})
