"""Statistics: the interval of a share, and whether two measurements differ beyond noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from advssl.extras import needed
from advssl.types import described, whole

if TYPE_CHECKING:  # records give these names too
    from advssl.evaluation.records import Measurement

Interval: TypeAlias = tuple[float, float]  # low and high end, 95 %
_Counts: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"  # (n,), of an example

CONFIDENCE = 0.95


def wilson(correct: int, n: int) -> Interval:
    """The 95 % confidence interval of a share of ``correct`` among ``n`` independent examples.

    Unlike the normal approximation it stays in [0, 1] and has a width at 0 % and at 100 %.

    Reference: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    correct, n = (whole(name, value, -(2**63)) for name, value in (("correct", correct), ("n", n)))
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"correct must be in 0..n and n at least 1, got {correct} of {n}")
    stats = needed("scipy.stats")  # half a second, so not before
    low, high = stats.binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """How far ``b`` is above ``a`` in accuracy, and the two reasons why it may not be.

    Attributes:
        difference: accuracy of b minus accuracy of a, means over seeds.
        image_interval: where the difference of these trained models would lie on other images of
            the same kind, 95 %.
        p_value: exact, of the images: how often models that are equally good differ this much.
        seed_interval: where the difference would lie after other trainings, on these images, 95 %;
            None with one seed, when nothing is known about that.
        n: examples.
        seeds: trainings of a and of b.
        names: of a and b.
    """

    difference: float
    image_interval: Interval
    p_value: float
    seed_interval: Interval | None
    n: int
    seeds: tuple[int, int]
    names: tuple[str, str]

    @property
    def differs(self) -> bool:
        """Whether the difference exceeds image noise and, with several seeds, seed noise too."""
        by_image = self.p_value < 1 - CONFIDENCE and _excludes_zero(self.image_interval)
        return by_image and (self.seed_interval is None or _excludes_zero(self.seed_interval))

    def __str__(self) -> str:
        a, b = self.names if self.names[0] != self.names[1] else ("a", "b")
        points = 100 * self.difference
        side = "above" if points > 0 else "below"
        how = f"{abs(points):.2f} points {side}" if points else "level with"
        seeds = "no seed interval, as there is one seed"
        if self.seed_interval:
            count = "{} and {}".format(*self.seeds) if len(set(self.seeds)) > 1 else self.seeds[0]
            seeds = f"over {count} seeds {_points(self.seed_interval)}"
        p = f"= {self.p_value:.2g}" if self.p_value > 1e-9 else "< 1e-9"  # beyond is rounding
        verdict = "they differ" if self.differs else "no difference beyond noise"
        return (
            f"{b} is {how} {a} (95 % intervals: over {self.n} images "
            f"{_points(self.image_interval)}, exact p {p}; {seeds}): {verdict}."
        )


def _points(interval: Interval) -> str:
    return "{:+.2f} to {:+.2f}".format(*(100 * end for end in interval))


def _excludes_zero(interval: Interval) -> bool:
    low, high = interval
    return low > 0 or high < 0


def compare(
    a: Measurement | Sequence[Measurement], b: Measurement | Sequence[Measurement]
) -> Comparison:
    r"""Whether ``b`` differs from ``a`` by more than chance, paired example by example.

    *Images.* dᵢ is the difference on example i, a mean over seeds. The interval is Bonett and
    Price's adjusted Wald interval: that of the dᵢ and of two examples more, at +1 and −1,

        (Σd / (n + 2)) ± 1.96 √( ((Σd² + 2) / (n + 2) − (Σd / (n + 2))²) / (n + 2) ).

    A plain Wald or bootstrap interval is empty where a and b agree on all examples, at 0 % or
    100 % above all, and too short at small n; this one is neither, and it is a formula, so it needs
    no random numbers. The p-value is exact: the share of the 2ⁿ ways to exchange a and b
    example by example that differ as much. With one seed that is the exact McNemar test. Where one
    has more seeds than the other, what is exchanged is which of the answers to an example are b's.

    *Seeds.* Student's t over the differences by seed if both have the same seeds, else Welch's.

    Args:
        a: one measurement, or one per training seed.
        b: the same of what a is compared with. The seeds may be others, the examples not.

    Raises:
        ValueError: on no measurement, different datasets or numbers of examples, a seed that stands
            twice, or names that differ within a or b.

    References: Bonett and Price 2012, https://doi.org/10.1111/j.2044-8317.2011.02017.x; Fagerland
    et al. 2014, https://doi.org/10.1002/sim.6148, who recommend it and the exact test's kin.
    """
    a = list(a) if isinstance(a, Sequence) else [a]
    b = list(b) if isinstance(b, Sequence) else [b]
    for side, name in ((a, "a"), (b, "b")):
        _check_replicates(side, name)
    check_same_examples([*a, *b])
    # Whole numbers, so that the exact test meets no rounding: per example, hits over all seeds.
    hits_a: _Counts = np.sum([m.correct for m in a], axis=0, dtype=np.int64)
    hits_b: _Counts = np.sum([m.correct for m in b], axis=0, dtype=np.int64)
    steps = hits_b * len(a) - hits_a * len(b)
    per_example = steps / (len(a) * len(b))
    return Comparison(
        difference=float(steps.sum()) / (len(a) * len(b) * len(steps)),
        image_interval=_adjusted_wald(per_example),
        p_value=(
            _exchange_test(steps)
            if len(a) == len(b)
            else _regrouping_test(hits_a, hits_b, len(a), len(b))
        ),
        seed_interval=_seed_interval(a, b),
        n=len(steps),
        seeds=(len(a), len(b)),
        names=(a[0].name, b[0].name),
    )


def check_same_examples(measurements: Sequence[Measurement]) -> None:
    """Raise unless there is a measurement, and all are of the same examples."""
    if not measurements:
        raise ValueError("no measurement given; pass at least one")
    for what in ("dataset", "n"):
        seen = sorted({getattr(m, what) for m in measurements})
        if len(seen) > 1:
            raise ValueError(
                "measurements are paired example by example and must share them, "
                f"got {what} {', '.join(map(str, seen))}; measure all on the same images"
            )


def _check_replicates(measurements: Sequence[Measurement], side: str) -> None:
    if not measurements:
        raise ValueError(f"{side} holds no measurement; pass at least one")
    if not all(hasattr(m, "correct") for m in measurements):
        raise ValueError(f"{side} must be measurements, got {described(list(measurements))}")
    seeds = [m.seed for m in measurements]
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"{side} holds a seed twice, {sorted(seeds)}; pass one measurement per training"
        )
    names = sorted({m.name for m in measurements})
    if len(names) > 1:
        raise ValueError(
            f"{side} must be one measurement over seeds, got {names}; compare one after the other"
        )


def _adjusted_wald(differences: np.ndarray[Any, np.dtype[np.float64]]) -> Interval:
    n = len(differences) + 2
    middle = float(differences.sum()) / n
    spread = (float(np.square(differences).sum()) + 2) / n - middle**2
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(spread / n)
    return max(middle - half, -1.0), min(middle + half, 1.0)


def _exchange_test(steps: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """P(|Σ ±stepᵢ| ≥ |Σ stepᵢ|) over all signs, equally likely.

    The sum's distribution is the inverse Fourier transform of the product of cos(stepᵢ · ω).
    """
    sizes = np.abs(steps)[steps != 0]
    if not sizes.size:
        return 1.0
    values, counts = np.unique(sizes, return_counts=True)
    unit = math.gcd(*values.tolist())
    values //= unit
    farthest = int(values @ counts)
    omega = 2 * np.pi * np.arange(2 * farthest + 1) / (2 * farthest + 1)
    characteristic = np.ones_like(omega)
    for value, count in zip(values, counts, strict=True):
        characteristic *= np.cos(value * omega) ** count
    probability = np.fft.ifft(characteristic).real
    seen = abs(int(steps.sum())) // unit
    # Index k is the sum k, or k - size: both tails are the indices from `seen` up to `-seen`.
    tails = probability[seen : len(probability) - seen + 1]
    return min(max(float(tails.sum()), 0.0), 1.0)


def _regrouping_test(hits_a: _Counts, hits_b: _Counts, of_a: int, of_b: int) -> float:
    """The same over all ways to say which ``of_b`` of the answers to an example are b's.

    Of right ones b has then a hypergeometric number; the sum's distribution is the transform of the
    product of their characteristic functions.
    """
    every, right = of_a + of_b, hits_a + hits_b
    totals, counts = np.unique(right, return_counts=True)
    farthest = int(np.minimum(totals, of_b) @ counts)
    omega = 2 * np.pi * np.arange(farthest + 1) / (farthest + 1)
    characteristic = np.ones_like(omega, dtype=np.complex128)
    for total, count in zip(totals.tolist(), counts.tolist(), strict=True):
        ways = [
            math.comb(total, k) * math.comb(every - total, of_b - k)
            for k in range(min(total, of_b) + 1)
        ]
        each = sum(n * np.exp(1j * k * omega) for k, n in enumerate(ways))
        characteristic *= (each / math.comb(every, of_b)) ** count
    probability = np.fft.fft(characteristic).real / (farthest + 1)
    away = np.abs(every * np.arange(farthest + 1) - of_b * int(right.sum()))
    tails = probability[away >= away[int(hits_b.sum())]]
    return min(max(float(tails.sum()), 0.0), 1.0)


def _seed_interval(a: Sequence[Measurement], b: Sequence[Measurement]) -> Interval | None:
    if min(len(a), len(b)) < 2:
        return None
    of_a, of_b = ({m.seed: m.value for m in side} for side in (a, b))
    if set(of_a) == set(of_b):
        differences = [of_b[seed] - of_a[seed] for seed in of_a]
        middle, error = fmean(differences), variance(differences) / len(a)
        freedom = len(a) - 1.0
    else:
        middle = fmean(of_b.values()) - fmean(of_a.values())
        parts = [(variance(of.values()) / len(of), len(of) - 1) for of in (of_a, of_b)]
        error = sum(part for part, _ in parts)
        welch = sum(part**2 / df for part, df in parts)
        freedom = error**2 / welch if welch else 1.0
    half = student_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(error)
    return middle - half, middle + half


def student_quantile(probability: float, freedom: float) -> float:
    """The t below which Student's distribution has ``probability``, for ``freedom`` ≥ 1.

    Raises:
        ValueError: if ``probability`` is not in [0.5, 1) or ``freedom`` not in [1, ∞).
    """
    if not (0.5 <= probability < 1 and 1 <= freedom < math.inf):
        raise ValueError(f"need 0.5 ≤ p < 1 and 1 ≤ ν < ∞, got p = {probability}, ν = {freedom}")
    return float(needed("scipy.stats").t.ppf(probability, freedom))
