"""A page stands on its own, says what markdown says, and shows text as text."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import advssl
from advssl.evaluation.records import Model, Source
from advssl.evaluation.report import (
    read,
    write,
)
from evaluation.report.samples import (
    ALL_FIGURES,
    COMMIT,
    FINE_PGD,
    IMAGES,
    MACHINE,
    NASTY,
    OTHER_IMAGES,
    N,
    bare,
    curved,
    markdown_of,
    markdown_tables,
    measurement,
    nasty,
    page_of,
    report,
    strip,
    without_pixels,
)


class TestPage:
    @pytest.mark.slow
    def test_is_one_whole_document(self, page):
        assert page.source.startswith("<!DOCTYPE html>")
        tags = [tag for tag, _ in page.tags]
        assert all(tags.count(tag) == 1 for tag in ("html", "head", "title", "body", "h1", "main"))
        assert page.source.count("<!DOCTYPE") == 1

    def test_loads_nothing_from_anywhere(self, page):
        names = {tag for tag, _ in page.tags}
        assert not names & {"script", "link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            for target in page.attributes(name):
                assert target.startswith(("#", "data:image/png;base64,"))
        assert "@import" not in page.source
        assert re.findall(r"url\((?!#)", page.source) == []
        assert page.attributes("onload") == page.attributes("onclick") == []

    def test_the_only_addresses_in_it_are_names_of_xml(self, page):
        addresses = set(re.findall(r'[a-z:]+="https?://[^"]*"', page.source))
        assert {a.split("=")[0] for a in addresses} <= {"xmlns", "xmlns:xlink"}

    def test_has_each_figure_with_picture_words_and_caption(self, page):
        assert [a["id"] for tag, a in page.tags if tag == "figure"] == list(ALL_FIGURES)
        labels = [a["aria-label"] for tag, a in page.tags if tag == "svg"]
        assert labels == [name.replace("-", " ") for name in ALL_FIGURES]
        assert len(page.texts_in("figcaption")) == len(ALL_FIGURES)

    def test_ids_are_unique_and_all_that_is_referred_to_is_there(self, page):
        ids = page.attributes("id")
        assert len(ids) == len(set(ids))
        wanted = {t[1:] for t in page.attributes("xlink:href") if t.startswith("#")}
        wanted |= set(re.findall(r"url\(#([^)]*)\)", page.source))
        assert wanted <= set(ids)
        assert wanted

    def test_evidence_is_folded_and_all_of_it_is_printed(self, page):
        assert page.texts_in("summary") == ["Checks", "Settings", "To run it again"]
        printed = "".join(page.texts_in("style")).split("@media print")[1]
        assert "details::details-content { content-visibility: visible" in printed

    def test_what_scrolls_is_reached_by_keyboard(self, page):
        style = "".join(page.texts_in("style"))
        scrolling = set(re.findall(r"\.(\w+) \{ overflow-x: auto", style))
        assert scrolling == {"wide", "across"}
        for name in scrolling:
            found = [a for _, a in page.tags if name in (a.get("class") or "").split()]
            assert found
            assert all(a.get("tabindex") == "0" for a in found)

    def test_on_a_phone_every_cell_says_its_column(self, page):
        style = "".join(page.texts_in("style"))
        assert "table, tbody, tr, th, td { display: block; }" in style.split("max-width: 600px")[1]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", page.source, flags=re.DOTALL):
            cells = re.findall(r"<td([^>]*)>", row)
            itself = "<code>" in row or 'class="verdict' in row  # a fact, a check
            assert itself or all("data-column=" in cell for cell in cells)

    def test_follows_the_readers_colours_and_prints(self, page):
        style = "".join(page.texts_in("style"))
        for part in ("prefers-color-scheme: dark", "@media print", "tabular-nums", "color-scheme"):
            assert part in style
        body = page.source.split("</style>", 1)[1]
        assert "currentColor" in body
        assert "#1c2127" not in body  # ink that would be lost on a dark page

    def test_under_the_numbers_stands_what_was_evaluated_in_one_line(self, page):
        line = "timm:resnet18, last.ckpt on digits · 40 test images · 12 measurements"
        places = [page.source.index(s) for s in ('class="answer', line, "<table")]
        assert places == sorted(places)

    @pytest.mark.parametrize(
        ("fields", "line"),
        [
            ({}, "timm:resnet18, last.ckpt on digits · 40 test images · 2 measurements"),
            ({"model": {}, "data": {}}, "40 test images · 2 measurements"),
            ({"model": {"a": {"x": 1}, "b": {}}}, "a, b on digits · 40 test images · 2 meas…"),
            ({"model": {"name": "ours"}}, "ours on digits · 40 test images · 2 meas…"),
            ({"model": {"backbone": "a", "checkpoint": None}}, "a on digits · 40 test images · …"),
        ],
    )
    def test_the_line_says_what_is_known(self, folder, fields, line):
        source = page_of(report(bare(), **fields), folder).source
        (told,) = re.findall('<p class="summary">(.*?)</p>', source)
        assert told == line or (line.endswith("…") and told.startswith(line[:-1]))
        assert "None" not in told

    def test_the_line_counts_one_as_one(self, folder):
        only = bare(measurements=(measurement(right=1, n=1),))
        assert "· 1 test image · 1 measurement" in page_of(report(only), folder).text

    def test_settings_of_every_measurement(self, page):
        header, *rows = next(t for t in page.tables if t[0][-1] == "settings")
        assert header == ["protocol", "measurement", "accuracy", "n", "seed", "settings"]
        assert len(rows) == 12
        pgd = next(row for row in rows if row[1] == FINE_PGD)
        ball = "ball (norm linf, radius 8/255)"
        assert pgd[-1] == f"attack PGD, {ball}, steps 20, step size 0.8/255".split(", ", 1)[1]

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"radius": 8 / 255}, "radius 8/255"),
            ({"radius": 64 / 255}, "radius 64/255"),
            ({"radius": 0.5}, "radius 0.5"),
            ({"radius": 1.0}, "radius 1"),
            ({"radius": 2.0}, "radius 2"),
            ({"radius": 0.0}, "radius 0"),
            ({"eps": 0.8 / 255}, "eps 0.8/255"),
            ({"epsilon": 0.8 / 255}, "epsilon 0.8/255"),
            ({"step_size": 1 / 3}, "step size 85/255"),
            ({"step_size": 0.0123456}, "step size 0.01235"),
            ({"other": 8 / 255}, "other 0.0313725"),
            ({"start": None, "best": True, "last": False}, "start none, best yes, last no"),
            ({"parts": ["apgd-ce", "square"]}, "parts apgd-ce, square"),
            ({"parts": []}, "parts none"),
            ({"worst_case_of": [{"name": "A"}, {"name": "B"}]}, "worst case of A; B"),
            ({}, ""),
        ],
    )
    def test_settings_as_people_write_them(self, folder, settings, text):
        only = bare(measurements=(measurement(settings=settings),))
        assert page_of(report(only), folder).tables[1][1][-1] == text

    def test_facts_to_run_it_again(self, page):
        facts = page.tables[-1]
        for fact in (
            ["command", "advssl evaluate --backbone timm:resnet18 --checkpoint last.ckpt"],
            ["model: backbone", "timm:resnet18"],
            ["data: fingerprint", IMAGES],
            ["images, fingerprint", IMAGES],
            ["images, fingerprint", OTHER_IMAGES],
            ["commit", COMMIT],
            ["machine: cpu", "A processor"],
            ["machine: gpu", "none"],
            ["machine: torch", "2.15.0"],
        ):
            assert facts.count(fact) == 1

    def test_what_is_not_known_of_model_or_data_takes_no_line(self, folder):
        whole = report(bare(), model={"name": "x", "mean": None}, data={"folders": {}, "n": 0})
        told = [
            row for row in page_of(whole, folder).tables[-1] if row[0][:5] in ("model", "data:")
        ]
        assert told == [["model: name", "x"], ["data: n", "0"]]

    def test_what_none_means_is_said_where_all_of_model_and_data_is_known(self, folder):
        sizes = {"images": N, "population": N, "test": N, "classes": 10}
        sizes |= {"train": 9, "validation": 0}
        source = Source(spec="digits", fingerprint=IMAGES, **sizes)
        whole = report(bare(), model=Model(backbone="timm:resnet18"), data=source)
        facts = page_of(whole, folder).tables[-1]
        assert ["model: mean", "none before the network"] in facts
        assert ["data: image_size", "the images' own"] in facts
        assert read(folder / "record.json") == whole

    def test_machines_and_commits_that_differ_are_all_named(self, folder):
        resumed = measurement("PGD", 20, commit=None, machine={**MACHINE, "torch": "2.16.0"})
        page = page_of(report(bare(measurements=(measurement(), resumed))), folder)
        assert ["machine: torch", "2.15.0 or 2.16.0"] in page.tables[-1]
        assert ["commit", COMMIT] in page.tables[-1]
        assert ["commit", "unknown"] in page.tables[-1]

    def test_markdown_has_the_same_facts(self, page, markdown):
        tables = markdown_tables(markdown)
        assert tables[-1][1:] == page.tables[-1]
        assert tables[-2] == next(t for t in page.tables if t[0][-1] == "settings")


class TestEscaping:
    @pytest.mark.slow
    def test_no_text_becomes_a_tag(self, nasty_page):
        names = {tag for tag, _ in nasty_page.tags}
        assert not names & {"script", "wrong", "b"}

    def test_all_text_is_read_back_as_it_was(self, nasty_page):
        assert nasty_page.texts_in("title") == [NASTY]
        assert nasty_page.texts_in("h1") == [NASTY]
        assert NASTY in nasty_page.tables[0][0]
        assert ["command", NASTY] in nasty_page.tables[-1]
        assert [f"model: {NASTY}", NASTY] in nasty_page.tables[-1]
        assert [f"machine: {NASTY}", NASTY] in nasty_page.tables[-1]
        assert nasty_page.text.count(NASTY) > 20

    def test_names_of_classes_are_text_in_the_strip(self, nasty_page):
        drawn = [t for where, t in nasty_page.pieces if "svg" in where and "text" in where]
        assert {"<wrong>", "a<b & c>d", '"q"'} <= set(drawn)
        assert any(t.startswith("<script>") and t.endswith("…") for t in drawn)

    @pytest.mark.slow
    def test_dollars_are_no_formulas(self, folder):
        names = ("$a$ $b", "$", r"$\frac{1}{2}$")
        drawn = dataclasses.replace(strip(), labels=names, predicted_clean=names, predicted=names)
        whole = report(curved("$x", strip=drawn), curved("$y^2$"))
        page = page_of(whole, folder)
        texts = [t for where, t in page.pieces if "svg" in where and "text" in where]
        assert {*names, "$x", "$y^2$"} <= set(texts)

    @pytest.mark.slow
    def test_markdown_keeps_its_tables_and_has_no_html(self, folder):
        text = markdown_of(nasty(), folder)
        assert "<script>" not in text
        assert "&lt;script&gt;" in text
        for table in markdown_tables(text):
            assert len({len(row) for row in table}) == 1
        assert r"\| \*x\* \_y\_ \`z\` \\ [a\](b)" in text

    def test_lines_in_text_do_not_break_the_markdown(self, folder):
        text = markdown_of(report(bare(), command="first\n\n# second\n| third"), folder)
        assert "| command | first \\# second \\| third |" in text

    @pytest.mark.slow
    def test_survives_the_record(self, folder):
        whole = nasty()
        assert read(write(whole, folder)["record"]) == without_pixels(whole)


class TestShipped:
    def test_templates_and_style_are_data_of_the_package(self):
        """What lies beside the modules is in the wheel."""
        wheel = pytest.importorskip("hatchling.builders.wheel")
        root = Path(advssl.__file__).parent
        builder = wheel.WheelBuilder(str(root.parent))
        shipped = {root.parent / file.path for file in builder.recurse_included_files()}
        beside = {p for p in root.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
        assert beside <= shipped
        assert {p.name for p in beside} >= {"page.html.jinja", "page.md.jinja", "style.css"}
