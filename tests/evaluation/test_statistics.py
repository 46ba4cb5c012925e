"""Intervals and comparisons agree with the closed forms and cover what they say they cover."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from advssl.evaluation import statistics
from advssl.evaluation.records import Measurement
from advssl.evaluation.statistics import Comparison, compare, wilson

stats = pytest.importorskip("scipy.stats")


def measured(flags, *, seed=0, name="PGD-20", dataset="0123456789abcdef") -> Measurement:
    fields = {"settings": {}, "commit": None, "machine": {}}
    correct = tuple(bool(f) for f in flags)
    return Measurement(name=name, correct=correct, seed=seed, dataset=dataset, **fields)


FULL = measured([1, 0, 1, 1], seed=3)


def table(both: int, only_a: int, only_b: int, neither: int) -> tuple[Measurement, Measurement]:
    """Two measurements from the four cells of McNemar's table."""
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return measured(a), measured(b)


class TestWilson:
    @pytest.mark.parametrize(
        ("correct", "n", "low", "high"),
        [
            # Newcombe 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8, table I
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
            # prop.test(..., correct = FALSE) of R
            (5, 10, 0.2366, 0.7634),
            (0, 10, 0.0, 0.2775),
            (1, 1, 0.2065, 1.0),
            (0, 1, 0.0, 0.7935),
        ],
    )
    def test_equals_published_values(self, correct, n, low, high):
        assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)

    @pytest.mark.parametrize(("correct", "n"), [(3, 7), (1, 50), (499, 500), (5000, 10000)])
    def test_its_ends_are_where_the_score_test_turns(self, correct, n):
        for end in wilson(correct, n):
            score = abs(correct / n - end) / math.sqrt(end * (1 - end) / n)
            assert score == pytest.approx(1.959964, abs=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("n", [1, 2, 3, 10, 997])
    def test_stays_in_the_unit_interval_around_the_share(self, n):
        for correct in range(n + 1):
            low, high = wilson(correct, n)
            assert 0 <= low <= correct / n <= high <= 1
            assert low < high

    @pytest.mark.slow
    @pytest.mark.parametrize("n", [1, 2, 9, 500])
    def test_wrong_is_the_mirror_of_right(self, n):
        for correct in range(n + 1):
            low, high = wilson(correct, n)
            mirrored = wilson(n - correct, n)
            assert mirrored == pytest.approx((1 - high, 1 - low))

    def test_narrows_with_the_number_of_images(self):
        widths = [high - low for low, high in (wilson(n // 4, n) for n in (4, 40, 400, 4000))]
        assert widths == sorted(widths, reverse=True)
        assert widths[2] / widths[3] == pytest.approx(math.sqrt(10), rel=0.01)

    def test_covers_the_truth_about_as_often_as_it_says(self):
        n = 50
        ends = [wilson(k, n) for k in range(n + 1)]
        covered = []
        for truth in torch.linspace(0.02, 0.98, 97).tolist():
            chances = [
                math.comb(n, k) * truth**k * (1 - truth) ** (n - k)
                for k in range(n + 1)
                if ends[k][0] <= truth <= ends[k][1]
            ]
            covered.append(sum(chances))
        assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)

    @pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5), (1, -1)])
    def test_refuses_what_is_no_share(self, correct, n):
        with pytest.raises(ValueError, match=rf"n at least 1, got {correct} of {n}"):
            wilson(correct, n)


class TestStudent:
    @pytest.mark.parametrize(
        ("freedom", "printed"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)]
    )
    def test_the_tables_in_books(self, freedom, printed):
        assert statistics.student_quantile(0.975, freedom) == pytest.approx(printed, abs=6e-4)

    @given(
        probability=st.floats(0.5, 0.9999),
        freedom=st.floats(1, 9e3) | st.integers(1, 50).map(float),
    )
    @settings(max_examples=60)
    def test_agrees_with_scipy(self, probability, freedom):
        expected = stats.t.ppf(probability, freedom)
        assert statistics.student_quantile(probability, freedom) == pytest.approx(expected, 2e-6)

    def test_ends_in_the_normal_distribution(self):
        assert statistics.student_quantile(0.975, 1e9) == pytest.approx(1.959964, abs=1e-6)

    @pytest.mark.parametrize(("probability", "freedom"), [(0.4, 3), (1.0, 3), (0.9, 0.5)])
    def test_other_arguments_are_refused(self, probability, freedom):
        with pytest.raises(ValueError, match=r"need 0\.5"):
            statistics.student_quantile(probability, freedom)


class TestOneSeed:
    @pytest.mark.parametrize(
        ("only_a", "only_b", "p"),
        [
            # By hand: twice the tail of Binomial(m, 1/2).
            (0, 5, 2 / 32),
            (0, 6, 2 / 64),
            (1, 5, 2 * (1 + 6) / 64),
            (2, 8, 2 * (1 + 10 + 45) / 1024),
            (3, 3, 1.0),
            (0, 0, 1.0),
        ],
    )
    def test_mcnemars_exact_p(self, only_a, only_b, p):
        found = compare(*table(10, only_a, only_b, 10))
        assert found.p_value == pytest.approx(p, rel=1e-12)

    @given(only_a=st.integers(0, 60), only_b=st.integers(0, 60))
    def test_mcnemar_agrees_with_scipy(self, only_a, only_b):
        p = stats.binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert compare(*table(1, only_a, only_b, 1)).p_value == pytest.approx(p, abs=1e-12)

    def test_bonett_and_prices_interval(self):
        """(n12, n21, n) = (1, 9, 28): 8/30 ± 1.96 √((12/30 − (8/30)²) / 30) by hand."""
        low, high = compare(*table(10, 1, 9, 8)).image_interval
        middle, half = 8 / 30, 1.959964 * math.sqrt((12 / 30 - (8 / 30) ** 2) / 30)
        assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-6)

    @pytest.mark.parametrize("right", [0, 10])
    def test_ten_images_all_alike(self, right):
        """At 0 % and 100 % a plain Wald or bootstrap interval would be empty: nothing to know."""
        found = compare(*table(right, 0, 0, 10 - right))
        low, high = found.image_interval
        assert low == -high
        assert 0.2 < high < 0.3
        assert found.p_value == 1.0
        assert not found.differs
        assert "level with" in str(found)

    @pytest.mark.parametrize(("gained", "differs"), [(4, False), (5, False), (6, True), (10, True)])
    def test_ten_images_from_nothing(self, gained, differs):
        """McNemar: five of five exchanges alike have p = 0.0625, six of six 0.031."""
        assert compare(*table(0, 0, gained, 10 - gained)).differs is differs

    def test_the_interval_stays_within_what_is_possible(self):
        assert compare(*table(0, 0, 1, 0)).image_interval[1] <= 1
        assert compare(*table(0, 1, 0, 0)).image_interval[0] >= -1

    @given(cells=st.tuples(*[st.integers(0, 30)] * 4).filter(any))
    def test_exchanging_a_and_b_turns_the_sign(self, cells):
        a, b = table(*cells)
        one, other = compare(a, b), compare(b, a)
        assert other.difference == -one.difference
        assert other.p_value == one.p_value
        assert other.differs == one.differs
        assert other.image_interval == pytest.approx([-e for e in reversed(one.image_interval)])
        low, high = one.image_interval
        assert low <= one.difference <= high
        assert one.difference == pytest.approx(b.value - a.value)

    @given(cells=st.tuples(*[st.integers(0, 30)] * 4).filter(any), order=st.randoms())
    @settings(max_examples=30)
    def test_the_order_of_images_does_not_matter(self, cells, order):
        a, b = table(*cells)
        rows = list(range(a.n))
        order.shuffle(rows)
        mixed = (measured([m.correct[i] for i in rows]) for m in (a, b))
        assert compare(*mixed) == compare(a, b)

    def test_pairs_see_what_unpaired_accuracies_cannot(self):
        """Two points in 1000: nothing where nearly all examples change, clear if b only gains."""
        assert not compare(*table(0, 500, 520, 0)).differs
        assert compare(*table(500, 0, 20, 480)).differs

    def test_there_is_no_seed_interval(self):
        a, b = table(5, 1, 9, 5)
        assert compare(a, b).seed_interval is None
        assert compare([a], [b]) == compare(a, b)
        several = [measured(b.correct, seed=s) for s in range(3)]
        assert compare(a, several).seed_interval is None


def replicas(values, *, n=100, first=0) -> list[Measurement]:
    """One measurement per value, with that many of n right."""
    rows = [[i < v for i in range(n)] for v in values]
    return [measured(row, seed=first + s) for s, row in enumerate(rows)]


class TestSeveralSeeds:
    def test_paired_t_interval(self):
        """Differences 4, 6, 8 %: mean 6, s = 2, so 6 ± 4.303 · 2 / √3."""
        found = compare(replicas([50, 52, 54]), replicas([54, 58, 62]))
        half = 4.302653 * 0.02 / math.sqrt(3)
        assert found.seed_interval == pytest.approx((0.06 - half, 0.06 + half), abs=1e-6)
        assert found.difference == pytest.approx(0.06)
        assert found.seeds == (3, 3)

    def test_paired_by_seed_and_not_by_place(self):
        a, b = replicas([50, 52, 54]), replicas([54, 58, 62])
        assert compare(a, b[::-1]) == compare(a, b)

    def test_welchs_interval_for_other_seeds(self):
        a, b = replicas([50, 52, 57]), replicas([54, 58, 61, 70], first=10)
        expected = stats.ttest_ind(
            [m.value for m in b], [m.value for m in a], equal_var=False
        ).confidence_interval()
        assert compare(a, b).seed_interval == pytest.approx(tuple(expected), abs=1e-7)

    @given(
        a=st.lists(st.integers(0, 100), min_size=2, max_size=6),
        b=st.lists(st.integers(0, 100), min_size=2, max_size=6),
    )
    @settings(max_examples=40)
    @pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")  # SciPy's, on equal values
    def test_agree_with_scipy(self, a, b):
        found = compare(replicas(a), replicas(b)).seed_interval
        if len(a) == len(b):
            d = np.subtract(b, a) / 100
            if d.std() < 1e-9:
                assert found == pytest.approx((d[0], d[0]))
                return
            expected = stats.t.interval(0.95, len(d) - 1, d.mean(), stats.sem(d))
        elif np.std(a) + np.std(b) < 1e-9:
            assert found == pytest.approx(((b[0] - a[0]) / 100,) * 2)
            return
        else:
            test = stats.ttest_ind(np.divide(b, 100), np.divide(a, 100), equal_var=False)
            expected = test.confidence_interval()
        assert found == pytest.approx(tuple(expected), abs=1e-6)

    def test_seeds_that_scatter_take_a_difference_back(self):
        """Clear over images, since each training is far off; but the trainings disagree."""
        a, b = replicas([50, 50, 50], n=400), replicas([250, 150, 20], n=400)
        found = compare(a, b)
        assert found.p_value < 1e-9
        assert found.image_interval[0] > 0
        assert found.seed_interval[0] < 0
        assert not found.differs

    def test_images_that_are_few_take_a_difference_back(self):
        a, b = replicas([5, 5, 5], n=10), replicas([7, 7, 7], n=10)
        found = compare(a, b)
        assert found.seed_interval == pytest.approx((0.2, 0.2))
        assert not found.differs

    def test_both_exceeded(self):
        found = compare(replicas([50, 51, 52], n=400), replicas([90, 91, 92], n=400))
        assert found.differs
        assert "over 3 seeds +10.00 to +10.00" in str(found)

    def test_the_exchange_test_by_counting(self):
        """All 2ⁿ exchanges of five images, two seeds each."""
        a = [measured(f, seed=s) for s, f in enumerate(([1, 0, 0, 1, 0], [0, 0, 0, 1, 0]))]
        b = [measured(f, seed=s) for s, f in enumerate(([1, 1, 1, 0, 1], [1, 1, 0, 1, 1]))]
        d = np.sum([m.correct for m in b], 0) - np.sum([m.correct for m in a], 0, dtype=int)
        signs = 1 - 2 * ((np.arange(32)[:, None] >> np.arange(5)) & 1)
        expected = np.mean(np.abs(signs @ d) >= abs(d.sum()))
        assert compare(a, b).p_value == pytest.approx(expected)

    @given(data=st.data())
    @settings(max_examples=40)
    def test_the_exchange_test_for_any_numbers(self, data):
        steps = np.array(data.draw(st.lists(st.integers(-6, 6), min_size=1, max_size=9)))
        signs = 1 - 2 * ((np.arange(2 ** len(steps))[:, None] >> np.arange(len(steps))) & 1)
        expected = np.mean(np.abs(signs @ steps) >= abs(steps.sum()))
        assert statistics._exchange_test(steps) == pytest.approx(expected, abs=1e-12)

    def test_unequal_numbers_of_seeds_by_counting(self):
        """All ways to say which two of the three answers to an image are b's, images alike."""
        a = measured([1, 0, 0, 1], seed=0)
        b = [measured(f, seed=s) for s, f in enumerate(([1, 1, 1, 1], [1, 1, 0, 1]))]
        answers = np.array([m.correct for m in (a, *b)], dtype=int)
        ways = []
        for one in itertools.product(range(3), repeat=4):  # which of three is a's
            of_a = answers[one, range(4)].sum()
            ways.append((answers.sum() - of_a) / 2 - of_a)
        seen = answers[1:].sum() / 2 - answers[0].sum()
        expected = np.mean([abs(way) >= abs(seen) - 1e-9 for way in ways])
        assert compare([a], b).p_value == pytest.approx(expected)
        assert compare(b, [a]).p_value == pytest.approx(expected)

    @pytest.mark.parametrize("seeds", [(1, 5), (3, 2)])
    def test_equal_models_of_unequal_numbers_of_seeds_are_seldom_told_apart(self, seeds):
        rng, of_a = np.random.default_rng(0), seeds[0]
        draws = (rng.random((400, sum(seeds), 20)) < 0.9).astype(int)
        found = [
            statistics._regrouping_test(d[:of_a].sum(0), d[of_a:].sum(0), *seeds) for d in draws
        ]
        assert np.mean(np.array(found) < 0.05) < 0.06

    def test_unequal_numbers_of_seeds(self):
        a, b = replicas([50, 52]), replicas([60, 62, 64], first=5)
        found = compare(a, b)
        assert found.difference == pytest.approx(0.11)
        assert found.seeds == (2, 3)
        assert "over 2 and 3 seeds" in str(found)

    def test_the_same_training_again_adds_nothing(self):
        """Image uncertainty is of the images: copies of one training do not narrow it."""
        a, b = table(100, 10, 30, 100)
        thrice = [[measured(m.correct, seed=s) for s in range(3)] for m in (a, b)]
        one, three = compare(a, b), compare(*thrice)
        assert three.image_interval == pytest.approx(one.image_interval)
        assert three.p_value == pytest.approx(one.p_value)


class TestCoverage:
    """95 % intervals cover about 95 %, fixed seed: 2000 draws have a standard error of 0.5 %."""

    @pytest.mark.parametrize("n", [10, 50, 1000])
    @pytest.mark.parametrize(
        "cells",  # both, only a, only b, neither
        [
            (0.4, 0.1, 0.1, 0.4),
            (0.3, 0.05, 0.25, 0.4),
            (0.0, 0.0, 0.02, 0.98),
            (0.9, 0.0, 0.1, 0.0),
        ],
    )
    def test_of_images(self, n, cells):
        rng = np.random.default_rng(0)
        truth, covered = cells[2] - cells[1], 0
        for counts in rng.multinomial(n, cells, size=2000):
            d = np.repeat([0.0, -1.0, 1.0], [n - counts[1] - counts[2], counts[1], counts[2]])
            low, high = statistics._adjusted_wald(d)
            covered += low <= truth <= high
        assert 0.93 <= covered / 2000 <= 1.0
        if n == 1000 and cells[0] in (0.4, 0.3):
            assert covered / 2000 <= 0.97  # not by being too wide

    @pytest.mark.slow
    @pytest.mark.parametrize(("n", "most"), [(10, 0.05), (200, 0.05)])
    def test_equal_models_differ_at_most_so_often(self, n, most):
        """The exact test errs on the safe side at every n."""
        rng = np.random.default_rng(1)
        draws = rng.multinomial(n, (0.35, 0.15, 0.15, 0.35), size=1500)
        wrong = sum(compare(*table(*counts)).differs for counts in draws)
        assert wrong / 1500 <= most + 0.01

    @pytest.mark.parametrize("size", [3, 5])
    def test_of_seeds(self, size):
        rng = np.random.default_rng(2)
        n, covered = 10_000, 0
        for draw in rng.normal(0.5, 0.01, size=(400, size)):
            shared = rng.normal(0, 0.05, size=size)  # what the seed does to both
            of_a = dict(enumerate(0.4 + shared))
            of_b = dict(enumerate(draw + shared))
            a, b = ([_Valued(s, v, n) for s, v in of.items()] for of in (of_a, of_b))
            low, high = statistics._seed_interval(a, b)
            covered += low <= 0.1 <= high
        assert 0.92 <= covered / 400 <= 0.98


@dataclasses.dataclass
class _Valued:
    """As much of a measurement as the seed interval reads, of any accuracy."""

    seed: int
    value: float
    n: int


class TestWords:
    def test_one_plain_sentence(self):
        a, b = table(400, 10, 40, 550)
        named = replace(a, name="SLF"), replace(b, name="ALF")
        found = compare(*named)
        assert re.fullmatch(
            r"ALF is 3\.00 points above SLF \(95 % intervals: over 1000 images \+1\.6\d to "
            r"\+4\.3\d, exact p = 2\.4e-05; no seed interval, as there is one seed\): "
            r"they differ\.",
            str(found),
        )
        assert str(compare(*reversed(named))).startswith("SLF is 3.00 points below ALF (95 %")

    def test_less_than_a_point_has_a_side_too(self):
        a, b = table(100, 0, 1, 99)
        assert str(compare(a, b)).startswith("b is 0.50 points above a (")
        assert str(compare(b, a)).startswith("b is 0.50 points below a (")

    def test_noise_is_called_noise(self):
        assert str(compare(*table(40, 3, 5, 40))).endswith(": no difference beyond noise.")

    def test_equal_names_are_a_and_b(self):
        assert str(compare(*table(4, 0, 1, 4))).startswith("b is 11.11 points above a (")

    def test_rounding_is_not_printed_as_a_p_value(self):
        assert "exact p < 1e-9" in str(compare(*table(0, 0, 500, 0)))

    def test_is_a_value(self):
        found = compare(*table(4, 0, 1, 4))
        assert found == compare(*table(4, 0, 1, 4))
        assert isinstance(found, Comparison)
        with pytest.raises(dataclasses.FrozenInstanceError):
            found.n = 3


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dataset": "other"}, "got dataset 0123456789abcdef, other; measure all on the same"),
            ({"correct": (True, False)}, "got n 2, 4; measure all on the same"),
        ],
    )
    def test_other_examples(self, change, message):
        with pytest.raises(ValueError, match=message):
            compare(FULL, replace(FULL, **change))

    def test_a_seed_twice(self):
        with pytest.raises(ValueError, match=r"b holds a seed twice, \[3, 3\]"):
            compare(FULL, [FULL, FULL])

    def test_other_names_within_one_side(self):
        other = replace(FULL, name="AA", seed=4)
        with pytest.raises(ValueError, match=r"a must be one measurement .* \['AA', 'PGD-20'\]"):
            compare([FULL, other], FULL)

    def test_nothing(self):
        with pytest.raises(ValueError, match="a holds no measurement"):
            compare([], FULL)
        with pytest.raises(ValueError, match="b holds no measurement"):
            compare(FULL, [])
