"""Test images that were there in training are counted; their ease is measured against chance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import fisher_exact
from torch import nn

from advssl import Linf
from advssl.evaluation import leaks
from advssl.evaluation.census import Repeats
from advssl.evaluation.checks import Case
from advssl.evaluation.diagnostics import DOUBTS, leaked, overlaps


@pytest.mark.parametrize(
    ("count", "of", "verdict"),
    [(0, 100, "pass"), (1, 100, "pass"), (2, 100, "fail"), (1, 20, "fail"), (0, 0, "pass")],
)
def test_more_than_one_in_a_hundred_is_a_doubt(count, of, verdict):
    check = leaked(Repeats(count, of))
    assert (check.name, check.verdict) == ("test images among training images", verdict)
    assert ("take these images out" in check.follows) == (verdict == "fail")


def test_names_some_and_counts_those_of_another_label():
    check = leaked(Repeats(3, 9, 1, (("test/a/1.png", "train/b/7.png"),)))
    assert check.evidence == (
        "of 9 test images 3 (33.3 %) are training images too, 1 of them under another label: "
        "test/a/1.png is train/b/7.png"
    )
    assert check.numbers == {
        "share": 3 / 9,
        "count": 3,
        "of": 9,
        "other_class": 1,
        "examples": [["test/a/1.png", "train/b/7.png"]],
    }


@pytest.mark.parametrize(
    ("where", "fails"),
    [
        ("test in train", ["test images among training images"]),
        ("validation in test", ["validation images among other images"]),
        ("validation in train", ["validation images among other images"]),
        ("test", ["test images that stand twice"]),
        ("train", []),
        ("validation", []),
    ],
)
def test_every_overlap_that_makes_a_number_wrong_is_a_doubt(where, fails):
    places = ("test in train", "validation in test", "validation in train")
    none = {place: Repeats(0, 50) for place in (*places, "train", "validation", "test")}
    found = overlaps({**none, where: Repeats(7, 50, 0, (("a", "b"),))})
    assert [check.name for check in found] == list(DOUBTS)[-3:]
    assert [check.name for check in found if check.verdict == "fail"] == fails
    for check in found:
        assert check.follows == (DOUBTS[check.name].follows if check.name in fails else "")
        assert ("7 (14.0 %)" in check.evidence) == (check.name in fails)


@pytest.mark.parametrize(
    ("chance", "told"),
    [
        (0.0, "less than once in a billion times"),  # of what a float holds no more
        (1e-6, "once in 1,000,000 times"),
        (0.95, "in 95.0 % of cases"),
    ],
)
def test_a_chance_is_told_in_words(chance, told):
    assert leaks._often(chance) == told


def test_of_what_was_not_read_nothing_is_asked():
    assert overlaps({"test": Repeats(0, 0)}) == []
    assert [check.name for check in overlaps({"test": Repeats(0, 9)})] == [list(DOUBTS)[-1]]


@pytest.mark.parametrize("table", [(30, 32, 20, 32), (9, 10, 90, 100), (5, 5, 0, 5), (0, 4, 0, 4)])
def test_chance_is_fishers(table):
    right, n, among, m = table
    exact = fisher_exact([[right, n - right], [among, m - among]], alternative="greater").pvalue
    assert leaks._chance(*table) == pytest.approx(exact)


@pytest.mark.parametrize(
    ("test", "train", "verdict"), [(90, 40, "fail"), (60, 60, "pass"), (40, 90, "pass")]
)
def test_test_images_must_not_be_the_easier_ones(monkeypatch, test, train, verdict):
    """Of a hundred of each; what stands under the attack is what stands without it."""
    images = [(torch.zeros(100, 1, 1, 1), torch.zeros(100, dtype=torch.int64))]
    learnt = [(images[0][0] + 1, images[0][1])]
    case = Case(nn.Flatten(), images, Linf(0.1), {}, False, 0, learnt)
    stands = lambda of, _: torch.arange(100) < (train if of.batches is learnt else test)  # noqa: E731
    monkeypatch.setattr(Case, "standing", stands)
    check = leaks.easier_than_training(case)
    assert check.verdict == verdict
    for part, right in (("test", test), ("train", train)):
        shares = {"clean": right / 100, "under PGD": right / 100}
        assert check.numbers[part] == pytest.approx(shares)
    assert leaks.easier_than_training(replace(case, training=())).verdict == "not run"
