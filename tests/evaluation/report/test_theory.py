"""The panels have the terms of the theorem, and words say where a bound says nothing."""

from __future__ import annotations

import dataclasses
import math

import pytest

from advssl.evaluation.report import drawn, read, to_json
from advssl.evaluation.report.theory import table, words
from advssl.evaluation.theory import RobustBounds
from evaluation.report.samples import FINDINGS, bare, report

FOUND = FINDINGS["theory"]
ROBUST = dataclasses.replace(FOUND, measured=1.0, adversarial=5.0, tv=0.1, js=0.3, pearson=2.0)


def shown(**found: RobustBounds):
    (figure,) = drawn("theory", found).values()
    return figure, figure.legends[0].get_title().get_text().replace("\n", " ")


def test_each_term_is_a_dot_beside_its_name():
    figure, title = shown(one=FOUND)
    bounds, losses, distances = figure.axes
    for axes, values in (
        (
            bounds,
            [FOUND.measured, FOUND.first, FOUND.second, FOUND.second_without_complexity],
        ),
        (losses, [FOUND.benign, FOUND.sharp, FOUND.adversarial]),
        (distances, [FOUND.js, FOUND.tv, FOUND.pearson]),
    ):
        dots = axes.get_lines()[0]
        assert list(dots.get_xdata()) == pytest.approx(values)
        names = {t.get_position()[1]: t.get_text() for t in axes.get_yticklabels()}
        assert len({names[y] for y in dots.get_ydata()}) == len(values)
    names = {t.get_position()[1]: t.get_text() for t in losses.get_yticklabels()}
    (dots,) = losses.get_lines()
    named = {names[y]: x for x, y in zip(dots.get_xdata(), dots.get_ydata(), strict=True)}
    assert named == {
        "benign": FOUND.benign,
        "worst-weights": FOUND.sharp,
        "adversarial": FOUND.adversarial,
    }
    assert bounds.get_lines()[1].get_xdata()[0] == FOUND.trivial
    assert title == (
        "Both bounds are vacuous; the attack adds 2 to InfoNCE, the worst nearby weights 0.5"
    )


def test_two_encoders_are_told_apart_and_what_moves_with_robustness_is_said():
    figure, title = shown(plain=FOUND, robust=ROBUST)
    plain, robust = figure.axes[1].get_lines()[:2]
    assert plain.get_color() != robust.get_color()
    assert not set(plain.get_ydata()) & set(robust.get_ydata())
    assert title == (
        "Both bounds are vacuous; robust has the lowest adversarial loss, and the lowest "
        "adversarial InfoNCE, total variation, Pearson's χ²"
    )


def test_what_critics_find_below_zero_stands_at_zero_and_is_no_difference():
    lost = {"js": -4.0, "pearson": -12_000.0, "tv": 0.0}
    figure, title = shown(
        plain=dataclasses.replace(FOUND, **(lost | {"js": -0.5})),
        robust=dataclasses.replace(ROBUST, **lost),
    )
    assert [list(dots.get_xdata()) for dots in figure.axes[2].get_lines()] == [[0.0] * 3] * 2
    assert title.endswith("the lowest adversarial InfoNCE")
    row = {row[0]: row[1:] for row in table({"one": dataclasses.replace(FOUND, **lost)}).rows}
    assert row["Pearson's χ²"] == ("-1.2e+04",)


def test_without_a_term_that_follows_it_is_said_too():
    worse = dataclasses.replace(
        ROBUST, benign=9.0, sharp=9.0, adversarial=9.0, js=0.6, tv=0.6, pearson=9.0
    )
    assert shown(plain=FOUND, robust=worse)[1].endswith("the lowest value of no other term")


@pytest.mark.parametrize(
    ("trivial", "said", "title"),
    [
        (1.0, "both are vacuous, as they are no less than the 1 of", "Both bounds are vacuous"),
        (1e9, "both say more than the 1e+09 of", "The first and the second bound say something"),
        (50.0, "the second is vacuous, as it is no less than", "The first bound says something"),
    ],
)
def test_a_vacuous_bound_is_named(trivial, said, title):
    found = dataclasses.replace(FOUND, trivial=trivial)
    assert said in words(found)
    assert shown(one=found)[1].startswith(f"{title};")


def test_the_branchs_part_of_the_critic_is_said():
    assert "come with the BatchNorm branch" not in words(FOUND)
    assert len(table({"one": FOUND}).rows) == 13
    both = dataclasses.replace(FOUND, branch_accuracy=0.75)
    assert "of these 30 points above guessing, 25 come with the BatchNorm branch" in words(both)
    *_, row = table({"plain": FOUND, "both": both}).rows
    assert row == ("critic right on clean images through both branches (%)", None, "75")


def test_the_table_has_each_term_of_each_section():
    made = table({"plain": FOUND, "robust": ROBUST})
    assert made.header == ("term", "plain", "robust")
    rows = {row[0]: row[1:] for row in made.rows}
    assert rows["InfoNCE, adversarial"] == ("6", "5")
    assert rows["Jensen-Shannon"] == ("0.25", "0.3")
    assert rows["total variation"] == ("0.5", "0.1")
    assert rows["Pearson's χ²"] == ("4", "2")
    assert rows["zero weights, √log M"] == ("1.5", "1.5")
    assert rows["critic right (%)"] == ("80", "80")
    assert rows["first bound (Theorem 4.7)"] == (f"{FOUND.first:.4g}", f"{ROBUST.first:.4g}")
    assert rows["second bound (Theorem 4.5)"][0] == f"{FOUND.second:.4g}"
    assert rows["second without B, no bound"][0] == f"{FOUND.second_without_complexity:.4g}"


def test_a_divergence_without_end_is_read_back(tmp_path):
    """As text: JSON has no such number."""
    endless = dataclasses.replace(FOUND, pearson=math.inf)
    whole = report(bare(findings={"theory": endless}))
    path = tmp_path / "record.json"
    path.write_text(to_json(whole), encoding="utf-8")
    again = read(path).sections[0].findings["theory"]
    assert again == endless
    assert again.second == math.inf


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_no_dot_and_no_error(value, tmp_path):
    odd = dataclasses.replace(FOUND, pearson=value, js=value)
    figure, _ = shown(plain=FOUND, odd=odd)
    figure.savefig(tmp_path / "figure.png")
    assert words(odd)
