"""What was measured beyond accuracy is in all faces of a report, and read back from the record."""

from __future__ import annotations

import dataclasses
import json

import pytest

from advssl.evaluation.report import (
    drawn,
    figures,
    findings,
    read,
    sentence,
    terminal,
    to_json,
    write,
)
from advssl.evaluation.report.findings import FACES, tables
from evaluation.report.samples import FINDINGS, bare, markdown_of, page_of, report

NAMES = list(FACES)


def having(name: str, branch: str | None):
    return dataclasses.replace(bare(findings={name: FINDINGS[name]}), branch=branch)


def found(name: str, *labels: str):
    """A report of sections that have it."""
    return report(*(having(name, b) for b in labels or (None,)))


def test_there_is_a_sample_of_each():
    assert set(FINDINGS) == set(FACES)
    assert all(isinstance(FINDINGS[name], face.kind) for name, face in FACES.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_finding_is_in_every_face(name, folder):
    whole = found(name, "clean", "adversarial")
    page, text, lines = page_of(whole, folder), markdown_of(whole, folder), terminal(whole)
    (table,) = tables(whole)
    assert sentence(name, FINDINGS[name]) in table.note
    assert table.title in page.text
    assert f"## {table.title}" in text
    assert table.title in lines
    assert table.note in page.text
    assert table.note in lines
    told = " ".join(str(cell) for row in (table.header, *table.rows) for cell in row)
    assert "slf / clean" in told
    assert "slf / adversarial" in told
    shown = {a["id"] for tag, a in page.tags if tag == "figure"}
    assert set(FACES[name].pictures) <= shown
    assert set(FACES[name].pictures) == set(drawn(name, {"one": FINDINGS[name]}))
    for picture in FACES[name].pictures.values():
        assert picture.caption in page.text


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_finding_is_read_back_equal(name, folder):
    whole = found(name)
    again = read(write(whole, folder)["record"])
    assert again == whole
    assert type(again.sections[0].findings[name]) is FACES[name].kind


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda of: of.popitem(), "missing required field"),
        (lambda of: of.update({k: "much" for k in of}), "Expected"),
    ],
    ids=["missing", "text"],
)
def test_what_is_wrong_with_a_finding_is_said_with_its_place(name, damage, message, tmp_path):
    document = json.loads(to_json(found(name)))
    damage(document["sections"][0]["findings"][name])
    path = tmp_path / "record.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=rf"\$\.sections\[0\]\.findings.*{message}"):
        read(path)


@pytest.mark.parametrize("given", [{"aura": {}}, [], "divergence"])
def test_a_finding_that_nobody_knows_is_refused(given, tmp_path):
    document = json.loads(to_json(report(bare())))
    document["sections"][0]["findings"] = given
    path = tmp_path / "record.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"findings: findings must be by names of \['corruptions'"):
        read(path)


def test_a_report_without_any_is_as_before():
    whole = report(bare())
    assert "findings" not in to_json(whole)
    assert tables(whole) == []
    assert figures(whole) == {}


@pytest.mark.parametrize("name", NAMES)
def test_encoders_are_told_apart(name):
    (figure, *_) = drawn(name, {"plain": FINDINGS[name], "robust": FINDINGS[name]}).values()
    texts = {t.get_text() for legend in figure.legends for t in legend.get_texts()}
    panels = {axes.get_title(loc="left") for axes in figure.axes}
    assert {"plain", "robust"} <= texts | panels


def test_labels_stay_those_of_the_sections():
    whole = found("divergence", "clean", "adversarial")
    encoders = [dataclasses.replace(s, encoder="a net") for s in whole.sections]
    (table,) = tables(report(*encoders))
    assert {row[0] for row in table.rows} == {"a net: slf / clean", "a net: slf / adversarial"}


def test_a_wide_figure_stands_across_the_page(folder, monkeypatch):
    face = FACES["divergence"]
    wide = {name: dataclasses.replace(p, wide=True) for name, p in face.pictures.items()}
    monkeypatch.setitem(FACES, "divergence", dataclasses.replace(face, pictures=wide))
    page = page_of(found("divergence"), folder)
    across = [a["id"] for tag, a in page.tags if tag == "figure" and a.get("class") == "across"]
    assert across == list(wide)
    assert page.having_class("figures") == []


def test_a_figure_that_shows_nothing_is_left_out(folder, monkeypatch):
    face = FACES["divergence"]
    none = {n: dataclasses.replace(p, draw=lambda *_: None) for n, p in face.pictures.items()}
    monkeypatch.setitem(FACES, "divergence", dataclasses.replace(face, pictures=none))
    assert figures(found("divergence")) == {}
    assert "figure" not in {tag for tag, _ in page_of(found("divergence"), folder).tags}


def test_a_section_keeps_its_colour_in_the_figures_of_findings():
    """One without a finding stands before it, and has taken the first colour."""
    whole = report(bare(), having("divergence", "b"))
    line = figures(whole)["divergence-against-accuracy"].axes[0].get_lines()[0]
    scatter = figures(whole)["clean-against-robust"].axes[0].containers[1]
    assert line.get_color() == scatter.lines[0].get_color()


@pytest.mark.parametrize("name", NAMES)
def test_figures_that_are_wider_than_a_column_stand_across_the_page(name):
    for key, figure in drawn(name, {"one": FINDINGS[name]}).items():
        assert FACES[name].pictures[key].wide == (figure.get_figwidth() > 5), key


def test_all_measures_are_read_back_together():
    assert findings.read(findings.written(FINDINGS)) == FINDINGS
