"""Every figure is drawn or says why not, its rows are commands that run, and records go with it."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from evaluation.report.samples import bare

from advssl.evaluation import report
from advssl.evaluation.anchors import PerAnchor, Terms
from advssl.evaluation.divergences import Divergences
from advssl.evaluation.report.findings import FACES
from harness import figures, several, watching
from harness.drawing import Trained, by_value, draw
from harness.listing import listing
from harness.options import parse, without_table
from reproduce import SCRIPT, main, run

from . import tiny

ALL = figures.everything()
DRAWN = [figure for figure in ALL if not figure.missing]
each_figure = pytest.mark.parametrize("figure", DRAWN, ids=lambda figure: figure.id)
OF_A_PAGE = {"clean-against-robust", "accuracy-against-radius", "accuracy-against-steps"}
SHOWN = {name for face in FACES.values() for name in face.pictures} | OF_A_PAGE


def plans(figure, *more: str):
    words = [f"figure:{figure.id}", *more]
    return several.plans_of(figure, words, parse(words), SCRIPT)


def test_every_figure_of_the_papers_is_there():
    assert [figure.id for figure in ALL] == [
        *(f"advcl-{n}" for n in range(1, 7)),
        *(f"ascl-{n}" for n in ("1", "2a", "2b", "2c", *"3456789")),
        *(f"ascl23-{n}" for n in range(1, 8)),
        *("gsa-1a", "gsa-1b", "gsa-2"),
    ]


@each_figure
def test_its_rows_are_plans_and_it_shows_what_there_is(figure):
    assert figure.rows
    assert {*figure.show} <= SHOWN or figure.show in (("over-settings",), ("over-training",))
    assert (figure.sweep is not None) == (figure.show == ("over-settings",))
    made = plans(figure)
    assert [*made] == [row.label for row in figure.rows]
    for row, plan in zip(figure.rows, made.values(), strict=True):
        assert plan.method == row.run[0]
        assert plan.protocols == (*row.published,)
        assert plan.branches == "own"
    paper = plans(figure, "--preset", "paper", "--data", "cifar10")
    assert {"cifar:resnet18" in plan.backbone for plan in paper.values()} == {
        not any(word.startswith("cifar:") for row in figure.rows for word in row.scale)
    }


@each_figure
def test_what_is_watched_has_a_classifier_of_its_own(figure):
    """Whose predictions select the pairs."""
    if figure.show == watching.WATCHED:
        for plan in plans(figure, *tiny.SMALL).values():
            method, _ = tiny.opened(plan)
            assert method.classifier() is not None


def test_a_sweep_is_a_row_for_each_value():
    made = plans(figures.lookup("gsa-1a"))
    weights = [plan.flags["benign_weight"] for plan in made.values()]
    assert weights == 2 * [0, 0.5, 1, 2, 4]
    assert [*made][:2] == ["without SAM, 0", "without SAM, 0.5"]
    assert [plan.flags.get("sam") for plan in made.values()] == [False] * 5 + [None] * 5


def test_the_list_has_each_by_its_command_or_says_why_not():
    lines = [line for line in listing(SCRIPT).splitlines() if line.startswith("figure:")]
    assert len(lines) == len(ALL)
    for line, figure in zip(lines, ALL, strict=True):
        command = f"{SCRIPT} figure:{figure.id} --preset paper --data cifar10"
        assert (command in line) == (figure.missing is None)
        assert figure.missing is None or f"not drawn, {figure.missing}" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("figure:ascl-8", "is not drawn: it is a diagram"),
        ("figure:gsa-9", "no figure 'gsa-9'; there are advcl-1"),
    ],
)
def test_what_is_not_drawn_says_why(words, message):
    with pytest.raises(SystemExit, match=message):
        main([words])


def test_words_of_a_figure_are_not_those_of_its_rows():
    words = ["figure:gsa-1a", "--seed", "1", "--figure", "advcl-4"]
    assert without_table(words) == ["--seed", "1"]
    assert parse(["figure:gsa-1a"]).figure == "gsa-1a"


def terms(relative: float) -> Terms:
    pairs = {"leaked": PerAnchor((1.0, 2.0), (3.0, 4.0))}
    return Terms(Divergences(relative, 1.0), 0.5, 0.25, pairs)


def test_what_was_watched_is_kept_and_read(tmp_path):
    plan = plans(figures.lookup("ascl-4"))["ASCL"]
    seen = {10: terms(0.5), 20: terms(0.25)}
    assert watching.history(plan, SimpleNamespace(history=seen), tmp_path) == seen
    assert watching.history(plan, SimpleNamespace(history={}), tmp_path) == seen
    other = dataclasses.replace(plan, seed=1)
    with pytest.raises(ValueError, match="nobody watched; name another --out"):
        watching.history(other, SimpleNamespace(history={}), tmp_path)


def test_a_training_is_drawn_with_its_record(tmp_path):
    rows = {"one": Trained(None, None, None, {10: terms(0.5), 20: terms(0.25)})}
    figure = figures.lookup("ascl-2b")
    (path,) = draw(figure, rows, 0.1, tmp_path, "a command", tiny.silent)
    assert "<svg" in path.read_text(encoding="utf-8")
    record = json.loads((path.parent / "record.json").read_text(encoding="utf-8"))
    assert record["command"] == "a command"
    assert record["history"]["one"]["20"]["spread"] == {"intra": 0.25, "inter": 1.0}


def test_a_sweep_is_read_from_the_sections():
    found = {"a, 0": "slf", "a, 8/255": "slf", "b, 0": "slf"}
    sections = [dataclasses.replace(bare(), encoder=k, protocol=p) for k, p in found.items()]
    page = report.Report("title", {}, {}, "", tuple(sections))
    assert by_value(page) == {"a": {0: (0.75, 0.5), 8 / 255: (0.75, 0.5)}, "b": {0: (0.75, 0.5)}}
    more = report.Report(
        "title", {}, {}, "", (*sections, dataclasses.replace(sections[0], protocol="alf"))
    )
    assert [*by_value(more)] == ["a, slf", "b, slf", "a, alf"]


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["gsa-1b", "ascl-2b", "advcl-3", "ascl-7"])
def test_a_figure_is_drawn_from_its_command(name, tmp_path):
    words = [f"figure:{name}", *tiny.SMALL, "--out", str(tmp_path)]
    figure = figures.lookup(name)
    short = dataclasses.replace(figure, rows=figure.rows[:2])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(figures, "lookup", lambda _: short)
        told = several.figure_of(words, parse(words), "a command", SCRIPT, run)
    folder = tmp_path / "figures" / name
    assert {path.stem for path in folder.glob("*.svg")} == {*figure.show}
    assert all(str(path) in told for path in folder.glob("*.svg"))
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert record["command"] == "a command"
