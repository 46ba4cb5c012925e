"""The headline is the worst case under its conditions; doubt comes before figures."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path

import pytest
from msgspec import structs
from msgspec.structs import replace

from advssl.evaluation.checks import Check
from advssl.evaluation.records import Probe, Threat, worst_case
from advssl.evaluation.report import (
    Section,
    Table,
    read,
    terminal,
    write,
)
from advssl.evaluation.report.view import View
from evaluation.report.samples import (
    AA,
    CHECKS,
    EVIDENCE,
    OTHER_IMAGES,
    SELECTED,
    N,
    Page,
    attacks,
    bare,
    markdown_of,
    markdown_tables,
    measurement,
    page_of,
    realistic_sections,
    report,
    section,
    shown,
)

LINF, L_2 = Threat("linf", 8 / 255), Threat("l2", 0.5)
PROBE = Probe(preset="advcl", protocol="slf", seed=0, settings={"epochs": 25})
STANDARD = measurement("AA standard", 20, settings={"attack": "AutoAttack standard"}, threat=LINF)
SOUND = (Check("a", "pass", "seen", {}),)


def sure(*lefts: int, n: int = 1000, **fields) -> Section:
    """A section of many images: clean, and what each attack leaves."""
    clean, *left = (measurement(right=right, n=n) for right in lefts)
    named = [replace(m, name=f"attack {i}", threat=LINF) for i, m in enumerate(left)]
    return bare(measurements=(clean, *named), **{"probe": PROBE, **fields})


def texts(page: Page, name: str) -> list[str]:
    """Of elements of that class, without markup."""
    parts = re.split(rf'<\w+ class="[^"]*\b{name}\b[^"]*">', page.source)[1:]
    return [" ".join(re.sub("<[^>]*>", " ", part.split("</div>")[0]).split()) for part in parts]


class TestAnswer:
    def test_is_the_worst_case_under_its_conditions(self, folder):
        (told,) = texts(page_of(report(sure(800, 300, 250)), folder), "answer")
        assert told == (
            "25.0 % of 1000 images stand in the worst case of 2 attacks, 95 % interval "
            "[22.4, 27.8]: ℓ∞ 8/255, linear probe (advcl), last epoch, seed 0; clean 80.0 %. "
            "Not run: PGD, multi-targeted PGD, AutoAttack."
        )

    @pytest.mark.parametrize(
        ("name", "kind", "missing"),
        [
            ("PGD-20", "PGD", "multi-targeted PGD, AutoAttack"),
            ("multi-targeted PGD-20", "multi-targeted PGD", "PGD, AutoAttack"),
            ("AA", "AutoAttack standard", "PGD, multi-targeted PGD"),
            (AA, None, "PGD, multi-targeted PGD"),
        ],
    )
    def test_says_which_of_the_standard_attacks_are_lacking(self, name, kind, missing):
        attack = measurement(name, 20, settings={"attack": kind}, threat=LINF)
        (headline,) = View(report(bare(measurements=(measurement(), attack)))).headlines
        assert headline.sentence.endswith(f" Not run: {missing}.")

    def test_of_the_whole_standard_set_nothing_is_lacking(self):
        names = ("PGD-20", "multi-targeted PGD-20", AA)
        ran = [measurement(name, 20, threat=LINF) for name in names]
        (headline,) = View(report(bare(measurements=(measurement(), *ran)))).headlines
        assert headline.sentence.endswith("clean 75.0 %.")

    def test_stands_before_all_else_on_the_page(self, folder):
        page = page_of(report(sure(800, 300, 250)), folder)
        texts_of_body = [data.strip() for where, data in page.pieces if "main" in where]
        title, first, *_ = filter(None, texts_of_body)
        assert (title, first) == ("Robustness of resnet18 on digits", "25.0 %")
        lines = markdown_of(report(sure(800, 300, 250)), folder).split("\n\n")
        assert lines[1].startswith("**25.0 %** of 1000 images stand")

    def test_is_said_first_in_every_face(self, folder):
        whole = report(sure(800, 300, 250))
        for text in (markdown_of(whole, folder), terminal(whole)):
            first = text.index("25.0 %")
            assert first < text.index("80.0 %")
            assert "ℓ∞ 8/255, linear probe (advcl), last epoch" in text
            assert "worst case of 2 attacks" in text

    def test_an_attack_of_another_threat_model_is_not_in_it(self, folder):
        other = measurement("PGD ℓ2", 10, n=1000, threat=L_2)
        one = sure(800, 300)
        one = dataclasses.replace(one, measurements=(*one.measurements, other))
        page = page_of(report(one), folder)
        told = texts(page, "answer")[0]
        assert told.startswith("30.0 % of 1000 images stand in the worst case of 1 attack,")
        assert "PGD ℓ2: of another threat model, not in it" in page.text

    @pytest.mark.parametrize(
        ("lefts", "checks", "state", "mark"),
        [
            ((400, 0), SOUND, "none", "✗"),
            ((400, 100), SOUND, "none", "✗"),  # ten classes
            ((400, 101), SOUND, "not-run", "–"),
            ((400,), SOUND, "not-run", "–"),
            ((400, 300), (), "not-run", "–"),
        ],
    )
    def test_no_tick_without_robustness_nor_the_standard_attack(
        self, folder, lefts, checks, state, mark
    ):
        page = page_of(report(sure(*lefts, checks=checks)), folder)
        assert f'<p class="verdict {state}">{mark} ' in page.source
        assert ("Not robust" in page.text) == (state == "none")

    @pytest.mark.parametrize(
        ("stand", "n", "told"),
        [
            (0, 10, "Not robust, as far as 10 images tell: no more images stand than"),
            (100, 1000, "Not robust, as far as 1000 images tell: no more images stand than"),
            (0, 100, "Not robust: no more images stand than"),
            (70, 1000, "Not robust: no more images stand than"),
        ],
    )
    def test_few_images_say_so_of_what_does_not_stand(self, stand, n, told):
        """An interval that reaches above guessing leaves open what more images would show."""
        view = View(report(sure(n // 2, stand, n=n, checks=SOUND)))
        assert view.headlines[0].said.startswith(told)
        assert view.verdict[1].startswith(told)

    def test_a_tick_after_the_standard_attack(self, folder):
        page = page_of(report(bare(checks=SOUND, measurements=(measurement(), STANDARD))), folder)
        assert '<p class="verdict pass">✓ ' in page.source

    def test_what_was_not_run_is_said(self, folder):
        one = page_of(report(sure(400, 300, checks=SOUND)), folder)
        assert "AutoAttack was not run: the worst case is an upper bound." in one.text
        other = page_of(report(sure(400, checks=SOUND)), folder)
        assert "No attack was run: nothing here is about robustness." in other.text
        assert "of 1000 images are classified right without an attack; no attack was run" in (
            other.text
        )

    @pytest.mark.parametrize(("n", "few"), [(100, True), (300, True), (500, False)])
    def test_few_images_are_marked_by_the_width_of_the_interval(self, folder, n, few):
        page = page_of(report(sure(n, n // 2, n=n)), folder)
        assert ("points: few images" in page.text) is few
        assert ("measure on more" in page.text) is few
        assert ("few images" in terminal(report(sure(n, n // 2, n=n)))) is few

    def test_two_presets_of_one_protocol_are_two_sections(self):
        other = structs.replace(PROBE, preset="standardised")
        labels = [s.label for s in report(sure(4, 3), sure(4, 3, probe=other)).sections]
        assert labels == ["slf (advcl)", "slf (standardised)"]

    def test_a_classifiers_own_head_has_no_epoch(self, folder):
        own = Probe(preset="own", protocol="own")
        (told,) = texts(
            page_of(report(dataclasses.replace(sure(8, 3), protocol="own", probe=own)), folder),
            "answer",
        )
        assert ": ℓ∞ 8/255, own head, seed 0; clean " in told

    def test_what_follows_from_a_failed_check_stands_with_it(self, folder):
        check = Check("a", "fail", "seen", {}, follows="The number is an upper bound.")
        whole = report(sure(8, 3, checks=(check,)))
        page = page_of(whole, folder)
        box = page.source[page.source.index('class="doubt"') :]
        assert "The number is an upper bound." in box[: box.index("</section>")]
        assert "The number is an upper bound." in terminal(whole)

    def test_terminal_says_all_accuracies(self):
        text = terminal(report())
        for name in (m.name for m in attacks(0)):
            assert name in text
        assert "✗ slf: gradients do not vanish" in text


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
        assert text.count("Not run: PGD, multi-targeted PGD, AutoAttack.") == 1
        text = text.replace("Not run: PGD, multi-targeted PGD, AutoAttack.", "")
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


class TestDoubts:
    def test_a_failing_check_stands_under_the_number_and_before_all_others(self, page):
        source = page.source
        places = [source.index(s) for s in ("answer fail", 'class="doubt"', EVIDENCE, "<table")]
        assert places == sorted(places)

    def test_and_before_the_first_section_of_the_markdown(self, markdown):
        text = markdown
        places = [text.index(s) for s in ("**52.5 %**", f"{EVIDENCE}", "| protocol |")]
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
        whole = report(bare(checks=made, measurements=(measurement(), STANDARD)))
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

    @pytest.mark.slow
    def test_stand_after_the_doubts_and_before_the_figures(self, folder):
        whole = report(*realistic_sections(), tables=(self.MORE,))
        text = page_of(whole, folder).source
        places = [text.index(x) for x in ("doubtful, see above", "b against a", "<figure")]
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
