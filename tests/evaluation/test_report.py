"""A report says what its record says, shows doubt before figures, and stands on its own."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from advssl.evaluation.diagnostics import Check
from advssl.evaluation.records import Measurement, worst_case
from advssl.evaluation.report import (
    VERSION,
    Report,
    Section,
    Strip,
    Table,
    _record,
    failed,
    figures,
    read,
    wilson,
    write,
)

pytest.importorskip("matplotlib")

N, SUBSET = 40, 12
IMAGES, OTHER_IMAGES = "0123456789abcdef", "fedcba9876543210"
COMMIT = "07835a8f0c0d4a6e9b1f2c3d4e5f60718293a4b5"
MACHINE = {"cpu": "A processor", "cores": 2, "gpu": None, "python": "3.12.3", "torch": "2.15.0"}
BALL = {"norm": "linf", "radius": 8 / 255}
AA = "AA standard, n = 12, seeded, class-balanced"
PGD, FINE_PGD = "PGD-20 ℓ∞ 8/255, step 2/255", "PGD-20 ℓ∞ 8/255, step 0.8/255"
CHECKS = (
    "accuracy falls to zero",
    "loss rises with steps",
    "white box beats black box",
    "gradients do not vanish",
    "outputs are deterministic",
    "inputs are in range",
    "both BatchNorm branches",
    "AutoAttack agrees with PGD",
)
EVIDENCE = "the gradient of 31 of 40 images is exactly zero"
CURVES = ("accuracy-against-radius", "accuracy-against-steps")
ALL_FIGURES = (*CURVES, "clean-against-robust", "strip")


SELECTED = "best on validation, epoch 7 of 25"


# --- reports to write -----------------------------------------------------------------------------


def measurement(name: str = "clean", right: int = 30, n: int = N, first: int = 0, **fields):
    """``right`` examples are right, from number ``first`` on."""
    correct = tuple(first <= i < first + right for i in range(n))
    given = {"seed": 0, "settings": {}, "dataset": IMAGES, "commit": COMMIT, "machine": MACHINE}
    return Measurement(name=name, correct=correct, **{**given, **fields})


def attacks(lost: int) -> tuple[Measurement, ...]:
    """Clean and five attacks, the first four on the same images."""
    steps = {"ball": BALL, "steps": 20}
    return (
        measurement("clean", 37, settings={"attack": "clean"}),
        measurement(PGD, 25 - lost, settings={**steps, "step_size": 2 / 255}),
        measurement(FINE_PGD, 24 - lost, first=2, settings={**steps, "step_size": 0.8 / 255}),
        measurement("PGD-20 ℓ2 0.5", 28 - lost, settings={"ball": {"norm": "l2", "radius": 0.5}}),
        measurement("multi-targeted PGD-20", 22 - lost, first=1, settings={**steps, "targets": 9}),
        measurement(AA, 6, SUBSET, dataset=OTHER_IMAGES, settings={"ball": BALL, "norms": []}),
    )


def checks(failing: str | None = None) -> tuple[Check, ...]:
    numbers = {"left": 0.25, "radii": [0.5, 1.0]}
    made = {name: Check(name, "pass", f"fine: {name}", numbers) for name in CHECKS}
    made["both BatchNorm branches"] = Check("both BatchNorm branches", "not run", "no branches", {})
    if failing is not None:
        made[failing] = Check(failing, "fail", EVIDENCE, {"zero": 31, "n": 40})
    return tuple(made.values())


def strip(count: int = 3, channels: int = 3, size: int = 8) -> Strip:
    clean = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(3))
    sign = torch.where(torch.arange(size) % 2 == 0, 1.0, -1.0)
    names = tuple(f"class {i}" for i in range(count))
    return Strip(
        clean=clean,
        adversarial=(clean + 8 / 255 * sign).clamp(0, 1),
        labels=names,
        predicted_clean=names,
        predicted=("mistaken", *names[1:]),
        radius=8 / 255,
    )


def section(protocol: str = "slf", lost: int = 0, failing: str | None = None, **fields) -> Section:
    given = {
        "branch": None,
        "measurements": attacks(lost),
        "checks": checks(failing),
    }
    return Section(protocol, **{**given, **fields})


def curved(protocol: str = "slf", lost: int = 0, failing: str | None = None, **fields) -> Section:
    """A section with both curves: they take a second to draw."""
    curves = {
        "by_radius": ((0.0, 0.925), (4 / 255, 0.75), (8 / 255, 0.5), (128 / 255, 0.0)),
        "by_steps": ((1, 0.8), (5, 0.65), (20, 0.6), (50, 0.6)),
    }
    return section(protocol, lost, failing, **{**curves, **fields})


def report(*sections: Section, **fields) -> Report:
    given = {
        "title": "Robustness of resnet18 on digits",
        "model": {"backbone": "timm:resnet18", "checkpoint": "last.ckpt", "format": "lightly"},
        "data": {"name": "digits", "classes": 10, "test": N, "fingerprint": IMAGES},
        "command": "advssl evaluate --backbone timm:resnet18 --checkpoint last.ckpt",
        "sections": sections or realistic_sections(),
    }
    return Report(**{**given, **fields})


def realistic_sections() -> tuple[Section, ...]:
    return (
        curved("slf", failing="gradients do not vanish", strip=strip()),
        curved("alf", lost=5),
    )


def bare(**fields) -> Section:
    """A section with nothing but its measurements."""
    given = {"measurements": (measurement(), measurement("PGD", 20))}
    return Section("slf", None, **{**given, **fields})


def without_pixels(whole: Report) -> Report:
    sections = tuple(dataclasses.replace(s, strip=None) for s in whole.sections)
    return dataclasses.replace(whole, sections=sections)


# --- reading what was written ---------------------------------------------------------------------

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use", "image"}


class Page(HTMLParser):
    """A page's tags in their order, its tables, and its text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[tuple[tuple[str, ...], str]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"{tag} closed out of turn"

    def handle_data(self, data):
        self.pieces.append((tuple(self.open), data))
        if {"td", "th"} & set(self.open):
            cells = self.tables[-1][-1]
            cells[-1] += f" {data}" if cells[-1] else data

    @property
    def text(self) -> str:
        return "".join(data for where, data in self.pieces if "style" not in where)

    def texts_in(self, tag: str) -> list[str]:
        return [data for where, data in self.pieces if tag in where]

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]

    def having_class(self, name: str) -> list[str]:
        return [tag for tag, a in self.tags if name in (a.get("class") or "").split()]


def page_of(whole: Report, folder: Path) -> Page:
    return Page(write(whole, folder)["html"].read_text(encoding="utf-8"))


def markdown_of(whole: Report, folder: Path) -> str:
    return write(whole, folder)["markdown"].read_text(encoding="utf-8")


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Rows of cells, unescaped, without the rule under the header."""
    blocks = [b.splitlines() for b in text.split("\n\n") if b.startswith("|")]
    return [[cells_of(line) for i, line in enumerate(b) if i != 1] for b in blocks]


def cells_of(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line)[1:-1]
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells]


def shown(correct: str, n: int) -> str:
    """What a cell must say of a record's flags, computed from the file and not from our code."""
    right = correct.count("1")
    share, z = right / n, 1.959963984540054
    middle = (share + z * z / 2 / n) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / 4 / n / n) / (1 + z * z / n)
    low, high = max(middle - half, 0), min(middle + half, 1)
    return f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "report"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The folder of the realistic report, written once and only read."""
    folder = tmp_path_factory.mktemp("written")
    write(report(), folder)
    return folder


@pytest.fixture(scope="module")
def page(written) -> Page:
    return Page((written / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def markdown(written) -> str:
    return (written / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def record(written) -> dict:
    return json.loads((written / "record.json").read_text(encoding="utf-8"))


# --- the headline table ---------------------------------------------------------------------------


class TestHeadline:
    def test_every_number_of_the_page_is_the_records(self, page, record):
        header, *rows = page.tables[0]
        assert len(rows) == len(record["sections"]) == 2
        for row, told in zip(rows, record["sections"], strict=True):
            cells = dict(zip(header, row, strict=True))
            by_name = {m["name"]: m for m in told["measurements"]}
            assert len(by_name) == 6
            for name, m in by_name.items():
                assert cells[name].startswith(shown(m["correct"], m["n"]))
            assert cells["n"] == str(by_name["clean"]["n"])

    def test_every_number_of_the_markdown_is_the_records(self, markdown, record):
        header, *rows = markdown_tables(markdown)[0]
        for row, told in zip(rows, record["sections"], strict=True):
            cells = dict(zip(header, row, strict=True))
            assert cells["protocol"] == told["protocol"]
            for m in told["measurements"]:
                assert cells[m["name"]].startswith(shown(m["correct"], m["n"]))

    def test_page_and_markdown_say_the_same(self, page, markdown):
        of_page, of_markdown = page.tables[0], markdown_tables(markdown)[0]
        assert of_page[0] == of_markdown[0]
        for ours, theirs in zip(of_page[1:], of_markdown[1:], strict=True):
            assert ours[1:] == [cell.replace(", n =", " n =") for cell in theirs[1:]]

    def test_clean_comes_first_the_worst_case_and_n_last(self, page):
        names = [m.name for m in attacks(0)]
        assert page.tables[0][0] == ["protocol", *names, "worst case", "n"]

    def test_a_row_says_protocol_its_meaning_and_branch(self, folder):
        sections = [section(branch=b) for b in ("clean", "adversarial")]
        rows = page_of(report(*sections), folder).tables[0][1:]
        assert [row[0] for row in rows] == [
            "slf standard linear finetuning clean branch",
            "slf standard linear finetuning adversarial branch",
        ]

    def test_a_protocol_that_we_do_not_know_is_shown_by_its_name(self, folder):
        assert page_of(report(section("knn")), folder).tables[0][1][0] == "knn"

    def test_a_subset_keeps_its_name_and_says_its_n(self, page, markdown):
        column = page.tables[0][0].index(AA)
        assert page.tables[0][1][column].endswith("n = 12")
        assert "n =" not in page.tables[0][1][column - 1]
        assert markdown_tables(markdown)[0][1][column].endswith(", n = 12")

    def test_a_reduced_attack_is_never_called_autoattack(self, folder):
        reduced = measurement("APGD-CE + FAB + Square, untargeted for 3 classes", 9)
        text = page_of(report(bare(measurements=(measurement(), reduced))), folder).source
        assert "APGD-CE + FAB + Square, untargeted for 3 classes" in text
        assert "AutoAttack" not in text
        assert "AA standard" not in text

    def test_what_one_protocol_lacks_is_a_dash(self, folder):
        both = section("slf", measurements=attacks(0)[:2]), section("alf")
        header, first, second = page_of(report(*both), folder).tables[0]
        assert first[header.index(AA)] == "–"
        assert second[header.index(AA)] != "–"
        table = markdown_tables((folder / "report.md").read_text(encoding="utf-8"))[0]
        assert table[1][header.index(AA)] == "–"

    def test_a_name_that_comes_again_is_told_apart(self, folder):
        same = [measurement("PGD", right, seed=seed) for right, seed in ((9, 0), (8, 1), (7, 1))]
        header, row = page_of(report(bare(measurements=(measurement(), *same))), folder).tables[0]
        cells = dict(zip(header, row, strict=True))
        assert cells["PGD"].startswith("22.5 %")
        assert cells["PGD, seed 1"].startswith("20.0 %")
        assert cells["PGD, seed 1 (2)"].startswith("17.5 %")

    def test_an_attack_called_clean_does_not_hide_the_clean_accuracy(self, folder):
        twice = measurement(right=30), measurement(right=3)
        header, row = page_of(report(bare(measurements=twice)), folder).tables[0]
        cells = dict(zip(header, row, strict=True))
        assert cells["clean"].startswith("75.0 %")
        assert cells["clean, seed 0"].startswith("7.5 %")

    @pytest.mark.parametrize(
        ("right", "n", "cell"),
        [
            (0, 1, "0.0 % [0.0, 79.3]"),
            (1, 1, "100.0 % [20.7, 100.0]"),
            (0, 40, "0.0 % [0.0, 8.8]"),
            (40, 40, "100.0 % [91.2, 100.0]"),
            (1, 3, "33.3 % [6.1, 79.2]"),
        ],
    )
    def test_percent_have_one_decimal_at_any_n(self, folder, right, n, cell):
        only = bare(measurements=(measurement(right=right, n=n),))
        assert page_of(report(only), folder).tables[0][1][1:] == [cell, str(n)]

    def test_a_best_epoch_and_another_encoder_are_named(self, folder):
        sections = section("slf"), section("slf", lost=3, selected=SELECTED, encoder="robust")
        last, best = page_of(report(*sections), folder).tables[0][1:]
        assert last[0] == "slf standard linear finetuning"
        assert best[0] == f"robust: slf / {SELECTED}"
        text = (folder / "report.md").read_text(encoding="utf-8")
        assert f"| robust: slf / {SELECTED} |" in text

    def test_labels_tell_all_sections_apart(self):
        fields = {"branch": "pgd", "selected": SELECTED, "encoder": "robust"}
        assert section().label == "slf"
        assert section(branch="pgd").label == "slf / pgd"
        assert section(**fields).label == f"robust: slf / pgd / {SELECTED}"
        report(section(), section(branch="pgd"), section(selected=SELECTED), section(**fields))


class TestTables:
    MORE = Table(
        title="b against a",
        header=("protocol", "difference", "interval", "p", "seeds"),
        rows=(("slf", 12.04, (-0.5, 24.04), 0.00012, None), ("a|b <i>", 0.0, (0.0, 1.0), 1.0, "x")),
        note="In points.",
    )
    SHOWN = (
        ["slf", "12.0", "-0.5 to 24.0", "0.00012", "–"],
        ["a|b <i>", "0.0", "0.0 to 1.0", "1.0", "x"],
    )

    def test_are_the_same_on_page_and_in_markdown(self, folder):
        whole = report(section(), tables=(self.MORE,))
        header, *rows = page_of(whole, folder).tables[1]
        assert header == list(self.MORE.header)
        assert rows == list(self.SHOWN)
        found = markdown_tables(markdown_of(whole, folder))[1]
        assert [[html.unescape(cell) for cell in row] for row in found] == [header, *rows]

    def test_stand_after_the_doubts_and_before_the_figures(self, folder):
        whole = report(*realistic_sections(), tables=(self.MORE,))
        text = page_of(whole, folder).source
        places = [text.index(x) for x in ("doubtful, see below", "b against a", "<figure")]
        assert places == sorted(places)

    def test_without_rows_the_note_says_why(self, folder):
        empty = Table("Transfer", (), (), "Not run: no <weights>.")
        page = page_of(report(section(), tables=(empty,)), folder)
        assert "Transfer" in page.texts_in("h2")
        assert "Not run: no <weights>." in page.text
        assert "## Transfer\n\nNot run" in markdown_of(report(section(), tables=(empty,)), folder)
        assert str(empty) == "Transfer\nNot run: no <weights>."

    def test_are_read_back_equal(self, folder):
        whole = report(section(), tables=(self.MORE,))
        assert read(write(whole, folder)["record"]) == whole

    def test_are_printed_in_columns(self):
        title, *lines, note = str(self.MORE).splitlines()
        assert (title, note) == (self.MORE.title, self.MORE.note)
        starts = [
            line.index(cell) for line, cell in zip(lines, ("diff", "12.0", "0.0"), strict=True)
        ]
        assert len(set(starts)) == 1
        assert not any(line.endswith(" ") for line in lines)

    def test_numbers_stand_to_the_right(self, folder):
        page = page_of(report(section(), tables=(self.MORE,)), folder)
        cell = 'class="number">12.0<'
        assert cell in page.source


class TestWorstCase:
    def test_a_best_epoch_has_none_as_it_has_fewer_attacks(self, folder):
        text = markdown_of(report(section(), section(selected=SELECTED)), folder)
        last, best = markdown_tables(text)[0][1:]
        assert last[-2] != "–"
        assert best[-2] == "–"

    def cell(self, section: Section, folder: Path) -> str:
        header, row = page_of(report(section), folder).tables[0]
        return row[header.index("worst case")]

    def test_is_taken_per_example(self, folder):
        disjoint = measurement("A", 20), measurement("B", 20, first=20)
        assert self.cell(bare(measurements=(measurement(), *disjoint)), folder).startswith("0.0 %")

    def test_equals_that_of_the_records(self, folder):
        same = [m for m in attacks(0)[1:] if m.n == N]
        told = f"{100 * worst_case(same).value:.1f} %"
        assert self.cell(section(), folder).startswith(told)
        assert told == "52.5 %"  # 2 to 22 stand under all four

    def test_one_that_was_measured_is_taken_as_it_is(self, folder):
        given = worst_case(attacks(0)[1:3])
        cell = self.cell(section(measurements=(*attacks(0), given)), folder)
        assert cell.startswith(f"{100 * given.value:.1f} %")

    def test_one_that_was_measured_is_no_second_column(self, folder):
        given = worst_case(attacks(0)[1:3])
        header = page_of(report(section(measurements=(*attacks(0), given))), folder).tables[0][0]
        assert header.count("worst case") == 1
        assert header[-2:] == ["worst case", "n"]

    def test_what_was_run_on_other_images_is_named(self, page):
        notes = [data for where, data in page.pieces if where[-1:] == ("p",) and "Worst" in data]
        assert len(notes) == 1
        assert f"{AA}: on other images, not in it." in notes[0]

    def test_nothing_is_named_if_all_ran_on_the_same(self, folder):
        text = page_of(report(bare()), folder).text
        assert "Worst case: images that stay right under every one of the attacks." in text
        assert "other images" not in text

    def test_as_many_other_images_are_other_images(self, folder):
        other = measurement("PGD on others", 1, dataset=OTHER_IMAGES)
        cell = self.cell(bare(measurements=(measurement(), measurement("A", 20), other)), folder)
        assert cell.startswith("50.0 %")

    def test_is_missing_without_attacks(self, folder):
        page = page_of(report(bare(measurements=(measurement(),))), folder)
        assert page.tables[0][0] == ["protocol", "clean", "n"]
        assert "Worst case" not in page.text


# --- doubt comes first ----------------------------------------------------------------------------


class TestDoubts:
    def test_a_failing_check_stands_before_the_first_figure(self, page):
        source = page.source
        places = [source.index(s) for s in ("</table>", 'class="doubt"', EVIDENCE, "<figure")]
        assert places == sorted(places)

    def test_and_before_the_first_section_of_the_markdown(self, markdown):
        text = markdown
        places = [text.index(s) for s in ("| protocol |", f"{EVIDENCE}", "## Checks")]
        assert places == sorted(places)
        assert f"> **✗ gradients do not vanish** (slf): {EVIDENCE}" in text

    def test_the_box_names_check_and_protocol(self, page):
        start = page.source.index('class="doubt"')
        box = page.source[start : page.source.index("</section>", start)]
        assert "gradients do not vanish" in box
        assert "<span>slf</span>" in box

    def test_the_row_it_concerns_is_marked_and_no_other(self, page):
        _, doubted, other = page.tables[0]
        assert "doubtful" in doubted[0]
        assert "doubtful" not in other[0]

    def test_every_failed_check_has_its_box(self, folder):
        failing = [section("slf", failing=CHECKS[0]), section("alf", failing=CHECKS[3])]
        page = page_of(report(*failing), folder)
        assert len(page.having_class("doubt")) == 2
        assert "2 of 16 checks failed; 2 not run." in page.text

    def test_passing_checks_are_one_quiet_line(self, folder):
        page = page_of(report(section("slf"), section("alf")), folder)
        assert page.having_class("doubt") == []
        assert "✓ No reason to doubt found in 14 checks; 2 not run." in page.text
        assert page.source.index("No reason to doubt") < page.source.index("<figure")
        assert '<p class="verdict pass">' in page.source

    @pytest.mark.parametrize(
        ("verdicts", "kind", "sentence"),
        [
            ((), "not-run", "No checks were run: nothing here speaks for these numbers."),
            (("not run",) * 2, "not-run", "None of 2 checks was run: nothing here speaks"),
            (("pass",), "pass", "No reason to doubt found in 1 check."),
            (("pass", "not run"), "pass", "No reason to doubt found in 1 check; 1 not run."),
            (("pass",) * 8, "pass", "No reason to doubt found in 8 checks."),
            (("fail",), "fail", "1 of 1 check failed."),
            (("fail", "pass", "pass"), "fail", "1 of 3 checks failed."),
            (("fail", "pass", "not run"), "fail", "1 of 3 checks failed; 1 not run."),
        ],
    )
    def test_all_verdicts_in_one_sentence(self, folder, verdicts, kind, sentence):
        made = tuple(Check(f"check {i}", v, "seen", {}) for i, v in enumerate(verdicts))
        whole = report(bare(checks=made))
        page = page_of(whole, folder)
        assert sentence in page.text
        assert f'<p class="verdict {kind}">' in page.source
        assert sentence in (folder / "report.md").read_text(encoding="utf-8")

    def test_what_was_not_run_is_never_called_passed(self, folder):
        only = bare(checks=(Check("a", "not run", "no images", {}),))
        assert "No reason to doubt" not in page_of(report(only), folder).text

    def test_all_checks_stand_below_the_figures_with_verdict_and_evidence(self, page):
        header, *rows = next(t for t in page.tables if t[0][0] == "verdict")
        assert header == ["verdict", "check", "protocol", "evidence"]
        assert len(rows) == 2 * len(CHECKS)
        assert page.source.index(">Checks<") > page.source.rindex("<figure")
        for (verdict, name, protocol, evidence), (label, check) in zip(
            rows,
            [(s.label, c) for s in realistic_sections() for c in s.checks],
            strict=True,
        ):
            assert (name, protocol) == (check.name, label)
            assert verdict.endswith(check.verdict)
            assert evidence.startswith(check.evidence)

    def test_a_verdict_is_told_by_more_than_its_colour(self, page):
        marks = {row[0] for t in page.tables if t[0][0] == "verdict" for row in t[1:]}
        assert marks == {"✓ pass", "✗ fail", "– not run"}

    def test_the_numbers_of_a_check_stand_beside_its_evidence(self, page, markdown):
        assert "left 0.25, radii 0.5, 1" in page.text
        assert f"{EVIDENCE} (zero 31, n 40)" in markdown

    def test_long_lists_of_numbers_are_cut_and_counted(self, folder):
        check = Check("a", "pass", "seen", {"norms": [float(i) for i in range(100)]})
        text = page_of(report(bare(checks=(check,))), folder).text
        assert "norms 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (100 in all)" in text


# --- the page -------------------------------------------------------------------------------------


class TestPage:
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

    def test_follows_the_readers_colours_and_prints(self, page):
        style = "".join(page.texts_in("style"))
        for part in ("prefers-color-scheme: dark", "@media print", "tabular-nums", "color-scheme"):
            assert part in style
        body = page.source.split("</style>", 1)[1]
        assert "currentColor" in body
        assert "#1c2127" not in body  # ink that would be lost on a dark page

    def test_first_comes_what_was_evaluated_in_one_line(self, page):
        header = "".join(page.texts_in("header"))
        assert "Robustness of resnet18 on digits" in header
        line = "timm:resnet18, last.ckpt on digits · 40 test images · 12 measurements"
        assert line in header

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
        _, told = page_of(report(bare(), **fields), folder).texts_in("header")
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


NASTY = "<script>alert('a & b')</script> \"q\" | *x* _y_ `z` \\ [a](b) $x^2$ 鹿"


def nasty() -> Report:
    names = (f"{NASTY} 0", "a<b & c>d", '"q"')
    drawn = dataclasses.replace(
        strip(), labels=names, predicted_clean=names, predicted=("<wrong>", *names[1:])
    )
    hostile = measurement(
        NASTY, 20, settings={NASTY: NASTY}, commit=NASTY, machine={NASTY: NASTY}, dataset=NASTY
    )
    first = curved(
        NASTY,
        branch=NASTY,
        measurements=(measurement(), hostile),
        checks=(Check(NASTY, "fail", NASTY, {NASTY: NASTY}),),
        strip=drawn,
    )
    words = {NASTY: NASTY, "backbone": NASTY, "name": NASTY}
    return report(first, section(), title=NASTY, model=words, data=words, command=NASTY)


@pytest.fixture(scope="module")
def nasty_page(tmp_path_factory) -> Page:
    return page_of(nasty(), tmp_path_factory.mktemp("nasty"))


class TestEscaping:
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

    def test_dollars_are_no_formulas(self, folder):
        names = ("$a$ $b", "$", r"$\frac{1}{2}$")
        drawn = dataclasses.replace(strip(), labels=names, predicted_clean=names, predicted=names)
        whole = report(curved("$x", strip=drawn), curved("$y^2$"))
        page = page_of(whole, folder)
        texts = [t for where, t in page.pieces if "svg" in where and "text" in where]
        assert {*names, "$x", "$y^2$"} <= set(texts)

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

    def test_survives_the_record(self, folder):
        whole = nasty()
        assert read(write(whole, folder)["record"]) == without_pixels(whole)


# --- figures --------------------------------------------------------------------------------------


def lines_of(figure, count: int):
    return figure.axes[0].get_lines()[:count]


class TestFigures:
    def test_are_those_of_the_page(self):
        assert tuple(figures(report())) == ALL_FIGURES

    @pytest.mark.parametrize("name", ALL_FIGURES)
    def test_can_be_saved_apart(self, name, tmp_path):
        figure = figures(report())[name]
        for kind in ("png", "svg", "pdf"):
            figure.savefig(tmp_path / f"figure.{kind}")
            assert (tmp_path / f"figure.{kind}").stat().st_size > 1000

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
    def test_without_data_there_is_none(self, folder, fields, missing):
        made = [curved(p, **{"strip": strip(), **fields}) for p in ("slf", "alf")]
        assert set(figures(report(*made))) == set(ALL_FIGURES) - missing
        drawn = {a["id"] for tag, a in page_of(report(*made), folder).tags if tag == "figure"}
        assert drawn == set(ALL_FIGURES) - missing

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

    def test_leave_matplotlibs_settings_alone_and_do_not_follow_them(self, page, folder):
        import matplotlib

        with matplotlib.rc_context({"axes.grid": False, "font.size": 30, "text.color": "red"}):
            before = dict(matplotlib.rcParams)
            odd = page_of(report(), folder).source
            assert dict(matplotlib.rcParams) == before
        assert odd == page.source

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


class TestStrip:
    def drawn(self, shown: Strip):
        return figures(report(section(strip=shown)))["strip"]

    def titles(self, figure, row: int) -> list:
        return [a.title for a in figure.axes[8 * row : 8 * row + 8] if a.get_title()]

    def test_shows_clean_adversarial_and_difference(self):
        shown = strip()
        axes = self.drawn(shown).axes
        for i in range(3):
            clean, hard, change = (axes[8 * row + i].get_images()[0] for row in range(3))
            for image, of in ((clean, shown.clean), (hard, shown.adversarial)):
                drawn = torch.tensor(image.get_array().tolist())
                torch.testing.assert_close(drawn, of[i].permute(1, 2, 0))
            expected = 255 * (shown.adversarial - shown.clean)[i].mean(0)
            torch.testing.assert_close(torch.tensor(change.get_array().tolist()), expected)

    def test_the_difference_is_white_at_zero_and_full_at_its_most(self):
        image = self.drawn(strip()).axes[16].get_images()[0]
        low, high = image.get_clim()
        assert low == -high
        assert high == pytest.approx(8, abs=1e-3)
        assert image.cmap(0.5)[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.01)

    def test_the_classifiers_word_stands_above_in_red_where_wrong(self):
        from matplotlib.colors import to_hex

        figure = self.drawn(strip())
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

    def test_says_its_radius(self):
        texts = [t.get_text() for a in self.drawn(strip()).axes for t in a.texts]
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


# --- the record -----------------------------------------------------------------------------------


class TestRecord:
    def test_is_read_back_equal_but_for_the_pixels(self, written):
        whole = report()
        again = read(written / "record.json")
        assert again == without_pixels(whole)
        assert again != whole
        assert [s.strip for s in again.sections] == [None, None]

    @pytest.mark.parametrize(
        "whole",
        [
            report(bare()),
            report(bare(), model={}, data={}, command="", title=""),
            report(bare(measurements=(measurement(right=1, n=1),))),
            report(bare(), model={"size": (1, 2), "nested": {"a": [None, True, 1.5, "é"]}}),
            report(*(section("slf", branch=b) for b in (None, "clean", "adversarial"))),
        ],
        ids=["bare", "empty", "one image", "nested", "branches"],
    )
    def test_any_report_is_read_back_equal(self, whole, folder):
        again = read(write(whole, folder)["record"])
        assert again == whole

    def test_numbers_are_read_back_to_the_last_bit(self, folder):
        odd = ((0.1 + 0.2, 1 / 3), (2 / 3, 1e-300))
        whole = report(bare(by_radius=odd))
        again = read(write(whole, folder)["record"])
        assert again.sections[0].by_radius == odd

    def test_steps_stay_whole_numbers(self, folder):
        again = read(write(report(section()), folder)["record"])
        assert all(type(k) is int for k, _ in again.sections[0].by_steps)

    def test_has_a_version_and_every_examples_flag(self, record):
        assert record["version"] == VERSION
        told = record["sections"][0]["measurements"]
        assert [m["correct"] for m in told] == [
            "".join("01"[c] for c in m.correct) for m in attacks(0)
        ]

    def test_has_no_pixels(self, folder):
        large = strip(count=8, size=64)
        paths = write(report(section(strip=large)), folder)
        assert "strip" not in paths["record"].read_text(encoding="utf-8")
        assert paths["record"].stat().st_size < 20_000

    def test_the_same_report_gives_the_same_bytes(self, written, folder):
        for path in write(report(), folder).values():
            assert path.read_bytes() == (written / path.name).read_bytes()

    def test_the_order_in_which_mappings_were_filled_does_not_matter(self, tmp_path):
        one = report(bare(), model={"a": 1, "b": 2})
        other = report(bare(), model={"b": 2, "a": 1})
        assert one == other
        written = [write(r, tmp_path / str(i))["record"] for i, r in enumerate((one, other))]
        assert written[0].read_bytes() == written[1].read_bytes()

    def test_a_record_that_was_read_is_written_the_same(self, written, folder):
        first = written / "record.json"
        second = write(read(first), folder)["record"]
        assert first.read_bytes() == second.read_bytes()

    def test_a_page_that_was_read_says_the_same(self, page, written, folder):
        again = page_of(read(written / "record.json"), folder)
        assert again.tables[0] == page.tables[0]
        for ours, theirs in zip(again.tables[1:-1], page.tables[1:-1], strict=True):
            assert [row[:3] for row in ours] == [row[:3] for row in theirs]
        assert sorted(again.tables[-1]) == sorted(page.tables[-1])
        assert [a["id"] for t, a in again.tags if t == "figure"] == list(ALL_FIGURES[:-1])

    def test_is_strict_json_even_of_a_loss_that_is_none(self, folder):
        numbers = {"loss": math.nan, "rise": math.inf, "fall": [-math.inf]}
        whole = report(bare(checks=(Check("a", "fail", "seen", numbers),)))
        text = write(whole, folder)["record"].read_text(encoding="utf-8")

        def refuse(constant):
            raise AssertionError(constant)

        record = json.loads(text, parse_constant=refuse)
        told = {"loss": "nan", "rise": "inf", "fall": ["-inf"]}
        assert record["sections"][0]["checks"][0]["numbers"] == told
        assert read(folder / "record.json").sections[0].checks[0].numbers == told

    def test_keeps_its_own_copy_of_what_it_is_given(self):
        model = {"mean": [0.5]}
        whole = report(model=model)
        model["mean"].append(0.1)
        assert whole.model == {"mean": [0.5]}


def fields_of(value, path=()):
    """Every place in a record, with what stands there."""
    if path:
        yield path, value
    if isinstance(value, dict | list):
        for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
            yield from fields_of(inside, (*path, key))


def replaced(value, path, other):
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], other)
    return copy


STRANGE = [None, True, -1, 1.5, math.inf, math.nan, "", "x", [], {}, [None], [[]], {"x": None}]


class TestDoubtfulNumbers:
    def test_an_attack_that_leaves_more_than_clean_accuracy_is_a_failed_check(self, folder):
        worse = bare(measurements=(measurement("clean", 20), measurement(PGD, 31)))
        fine = bare(measurements=(measurement("clean", 31), measurement(PGD, 31)), encoder="b")
        text = write(report(worse, fine), folder)["markdown"].read_text(encoding="utf-8")
        assert text.count(f"{PGD} leaves 77.5 % where clean accuracy is 50.0 %") == 2
        assert "**1 of 1 check failed.**" in text

    def test_another_number_of_images_is_no_such_attack(self):
        other = measurement(AA, SUBSET, SUBSET, dataset=OTHER_IMAGES)
        one = bare(measurements=(measurement("clean", 20), other))
        assert failed(report(one)) == []


class TestDamage:
    @pytest.fixture
    def record(self, written, tmp_path) -> Path:
        return Path(shutil.copy(written / "record.json", tmp_path))

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
    def test_a_part_of_a_record_is_refused_with_what_to_do(self, record, share):
        content = record.read_bytes()
        record.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"record\.json is damaged .* run the evaluation's"):
            read(record)

    @pytest.mark.parametrize(
        "content",
        [
            *(b"\xff\xfe\x00", b"null", b"[]", b"3", b'"text"', b"{}", b"[" * 99999),
            f'{{"version": {VERSION}}}'.encode(),
        ],
        ids=["bytes", "null", "list", "number", "text", "empty", "deep", "version only"],
    )
    def test_what_is_no_record_is_refused(self, record, content):
        record.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or no record of an evaluation"):
            read(record)

    @pytest.mark.parametrize("key", ["title", "model", "data", "command", "sections", "tables"])
    def test_a_missing_or_wrong_field_is_named(self, record, key):
        document = json.loads(record.read_text(encoding="utf-8"))
        for damaged in (
            {k: v for k, v in document.items() if k != key},
            {**document, key: {} if key in ("sections", "tables") else []},
        ):
            record.write_text(json.dumps(damaged), encoding="utf-8")
            with pytest.raises(ValueError, match=rf"{key}|at least one section"):
                read(record)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("protocol", None),
            ("branch", 3),
            ("measurements", []),
            ("measurements", [{}]),
            ("checks", [{"name": "a"}]),
            ("checks", None),
            ("by_radius", [1]),
            ("by_steps", [[1, 2, 3]]),
        ],
    )
    def test_a_damaged_section_is_refused(self, record, key, value):
        document = json.loads(record.read_text(encoding="utf-8"))
        document["sections"][1][key] = value
        record.write_text(json.dumps(document), encoding="utf-8")
        with pytest.raises(ValueError, match="move it away and run the evaluation's command"):
            read(record)

    def test_a_flag_that_was_changed_is_found(self, record):
        document = json.loads(record.read_text(encoding="utf-8"))
        told = document["sections"][0]["measurements"][1]
        told["correct"] = "0" + told["correct"][1:]
        record.write_text(json.dumps(document), encoding="utf-8")
        with pytest.raises(ValueError, match="its flags say"):
            read(record)

    def test_every_field_is_read_as_it_is_or_refused_by_its_name(self, tmp_path):
        """Each field of a record, at every depth, with each of what does not belong there."""
        curves = {"by_radius": ((0.0, 0.9), (0.1, 0.5)), "by_steps": ((1, 0.8),)}
        one = section(checks=checks()[:1], **curves)
        rows = (("a", 0.5, None, (0.1, 0.2)),)
        whole = report(one, tables=(Table("t", ("a", "b", "c", "d"), rows, "note"),))
        good = json.loads(write(whole, tmp_path)["record"].read_text(encoding="utf-8"))
        record = tmp_path / "record.json"
        for (path, value), damaged in itertools.product(list(fields_of(good)), STRANGE):
            if path in [("version",), ("command",)] or value == damaged:
                continue
            document = replaced(good, path, damaged)
            record.write_text(json.dumps(document).replace("Infinity", "1e400"), encoding="utf-8")
            refusal = ""
            try:
                assert json.loads(_record(read(record))) == document
            except ValueError as error:
                refusal = str(error)
            names = [step.rstrip("s") for step in path if isinstance(step, str)]
            assert not refusal or any(name in refusal for name in names), (path, damaged, refusal)
            assert not refusal or str(record) in refusal

    @pytest.mark.parametrize("path", [(), ("sections", 0), ("sections", 0, "checks", 0)], ids=str)
    @pytest.mark.parametrize("gone", [False, True])
    def test_fields_that_lack_or_are_new_are_named(self, path, gone, record):
        document = json.loads(record.read_text(encoding="utf-8"))
        inside = document
        for step in path:
            inside = inside[step]
        name = sorted(set(inside) - {"version"})[0] if gone else "novelty"
        if gone:
            del inside[name]
        else:
            inside[name] = 1
        record.write_text(json.dumps(document), encoding="utf-8")
        with pytest.raises(ValueError, match=name):
            read(record)

    def test_a_byte_order_mark_is_no_damage(self, record):
        before = read(record)
        record.write_text(record.read_text(encoding="utf-8"), encoding="utf-8-sig")
        assert read(record) == before

    @pytest.mark.parametrize("version", [0, VERSION + 1, "2", None])
    def test_another_version_is_named(self, record, version):
        document = json.loads(record.read_text(encoding="utf-8"))
        record.write_text(json.dumps({**document, "version": version}), encoding="utf-8")
        message = f"version {version!r}, this advssl reads version {VERSION}"
        with pytest.raises(ValueError, match=message):
            read(record)

    def test_a_missing_file_is_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "record.json")


class TestWriting:
    def test_gives_the_paths_and_leaves_nothing_else(self, folder):
        paths = write(report(bare()), folder / "deep" / "er")
        assert {kind: path.name for kind, path in paths.items()} == {
            "record": "record.json",
            "markdown": "report.md",
            "html": "report.html",
        }
        assert sorted(os.listdir(folder / "deep" / "er")) == sorted(p.name for p in paths.values())

    def test_takes_a_folder_as_text(self, tmp_path):
        assert write(report(bare()), str(tmp_path))["record"] == tmp_path / "record.json"

    def test_replaces_what_was_there(self, folder):
        write(report(bare(), title="first"), folder)
        paths = write(report(bare(), title="second"), folder)
        assert all("second" in p.read_text(encoding="utf-8") for p in paths.values())

    def test_whoever_reads_meanwhile_finds_the_old_or_the_new(self, folder, monkeypatch):
        record = write(report(bare(), title="first"), folder)["record"]
        seen = []
        replace = os.replace

        def watched(source, target):
            seen.append((read(record).title, Path(source).parent == record.parent))
            return replace(source, target)

        monkeypatch.setattr(os, "replace", watched)
        write(report(bare(), title="second"), folder)
        assert seen == [("first", True), ("second", True), ("second", True)]

    def test_a_failure_leaves_the_old_file_and_no_rest(self, folder, monkeypatch):
        record = write(report(bare(), title="first"), folder)["record"]

        def full(_):
            raise OSError("no space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            write(report(bare(), title="second"), folder)
        assert read(record).title == "first"
        assert sorted(os.listdir(folder)) == ["record.json", "report.html", "report.md"]

    def test_without_matplotlib_the_numbers_are_safe_and_the_error_says_what_to_do(
        self, folder, monkeypatch
    ):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r"pip install advssl\[eval\]"):
            write(report(), folder)
        assert read(folder / "record.json") == without_pixels(report())
        assert (folder / "report.md").exists()

    def test_the_files_are_utf_8_with_unix_lines(self, written):
        for name in ("record.json", "report.md", "report.html"):
            content = (written / name).read_bytes()
            assert b"\r" not in content
            assert content.endswith(b"\n")
            assert "ℓ∞" in content.decode("utf-8")


# --- what a report may be made of -----------------------------------------------------------------


class TestRefusals:
    def test_a_section_needs_its_clean_accuracy(self):
        with pytest.raises(ValueError, match="'slf / clean' has no measurements; the first must"):
            Section("slf", "clean", ())

    def test_a_report_needs_a_section(self):
        with pytest.raises(ValueError, match="at least one section; evaluate at least one"):
            report(sections=())

    def test_sections_must_be_told_apart(self):
        with pytest.raises(ValueError, match=r"differ in protocol or branch, got \['slf', 'slf'\]"):
            report(section(), section())

    @pytest.mark.parametrize(
        ("value", "found"),
        [
            ({"size": torch.ones(3)}, r"model\['size'\] must be plain JSON .* got Tensor"),
            ({"path": Path("a")}, r"model\['path'\] .* got \w*Path a"),
            ({"a": [{"b": {1, 2}}]}, r"model\['a'\]\[0\]\['b'\] .* got set"),
            ({"dtype": torch.float32}, "got dtype torch.float32"),
            ({3: "three"}, "model must be plain JSON .* got dict"),
        ],
    )
    def test_what_json_cannot_hold_is_refused_at_once_and_by_place(self, value, found):
        with pytest.raises(ValueError, match=found):
            report(model=value)

    @pytest.mark.parametrize("name", ["by_radius", "by_steps"])
    @pytest.mark.parametrize("point", [(1, 1.1), (1, -0.1), (-1, 0.5), (math.nan, 0.5), (1,), 3])
    def test_a_curve_is_of_sizes_and_shares(self, name, point):
        with pytest.raises(ValueError, match=rf"{name}\[1\] must be"):
            bare(**{name: ((1, 0.5), point)})

    @pytest.mark.parametrize("classes", [-2, "ten", 2.5, {}])
    def test_classes_are_their_number_or_their_names(self, classes):
        with pytest.raises(ValueError, match=r"data\['classes'\] must be"):
            report(bare(), data={"classes": classes})

    def test_the_label_is_the_protocol_and_the_branch(self):
        assert section().label == "slf"
        assert section(branch="clean").label == "slf / clean"

    def test_reports_are_values(self):
        assert report(section()) == report(section())
        assert report(section()) != report(section(lost=1))
        with pytest.raises(dataclasses.FrozenInstanceError):
            report().title = "other"
