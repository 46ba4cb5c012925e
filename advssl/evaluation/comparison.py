"""Comparisons: several encoders' reports to one that says which of their differences are real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TypeAlias

from advssl.evaluation.records import Interval, Measurement, compare
from advssl.evaluation.report import Cell, Report, Table, by_column

Replicates: TypeAlias = Mapping[str, Sequence[Report]]  # of each encoder, one per training seed

_HEADER = ("difference", "95 % over images", "p", "95 % over seeds", "differs")
_NOTE = (
    "Paired image by image, in points. The first interval and the exact p-value are about the "
    "choice of images; the second interval is about the seed of the training, of which one seed "
    "says nothing. Each row is tested alone: of twenty without a difference one seems to differ."
)


def compared(encoders: Replicates, command: str, tables: Sequence[Table] = ()) -> Report:
    """One report of all ``encoders``, with the differences of each from the first.

    Compared is what both were measured under after their last epoch: clean accuracy, attacks of the
    same name, and the worst case if it is of the same attacks.

    Args:
        encoders: the reports by the encoder's name, the baseline first.
        command: that makes the comparison again.
        tables: to be shown after the differences.

    Raises:
        ValueError: on fewer than two encoders, on reports of different images, or on a seed that
            stands twice for one encoder.
    """
    if len(encoders) < 2 or not all(encoders.values()):
        raise ValueError(f"a comparison needs reports of two encoders or more, got {[*encoders]}")
    _check_same_images(encoders)
    first, *others = encoders
    return Report(
        title=f"{', '.join(others)} against {first}",
        model={name: reports[0].model for name, reports in encoders.items()},
        data=encoders[first][0].data,
        command=command,
        sections=tuple(
            replace(section, encoder=name if len(reports) == 1 else f"{name}, seed {seed}")
            for name, reports in encoders.items()
            for seed, report in _by_seed(name, reports).items()
            for section in report.sections
        ),
        tables=(*(_differences(first, other, encoders) for other in others), *tables),
    )


def _check_same_images(encoders: Replicates) -> None:
    seen = {
        name: sorted({s.measurements[0].dataset for report in reports for s in report.sections})
        for name, reports in encoders.items()
    }
    if len({image for found in seen.values() for image in found}) > 1:
        told = "; ".join(f"{name}: {', '.join(found)}" for name, found in seen.items())
        raise ValueError(
            f"encoders are compared on the same images, got those of fingerprint {told}; evaluate "
            "all with the same --data, --image-size, --test and --num-images"
        )


def _by_seed(name: str, reports: Sequence[Report]) -> dict[int, Report]:
    found = {report.sections[0].measurements[0].seed: report for report in reports}
    if len(found) < len(reports):
        raise ValueError(
            f"{name} has {len(reports)} reports of {len(found)} seeds; give one report for each "
            "training, evaluated with its own --seed"
        )
    return found


def _differences(first: str, other: str, encoders: Replicates) -> Table:
    before, after = (_measured(encoders[name]) for name in (first, other))
    rows = [
        _row(place, before[place], after[place])
        for place in before
        if place in after and _of_the_same_attacks(before[place] + after[place])
    ]
    header = ("protocol", "measurement", f"{first} (%)", f"{other} (%)", *_HEADER)
    return Table(f"{other} against {first}", header, tuple(rows), _NOTE)


def _row(
    place: tuple[str, str], before: Sequence[Measurement], after: Sequence[Measurement]
) -> tuple[Cell, ...]:
    found = compare(before, after)
    return (
        *place,
        *(100 * fmean(m.value for m in side) for side in (before, after)),
        100 * found.difference,
        _points(found.image_interval),
        found.p_value if found.p_value > 1e-9 else "< 1e-9",  # beyond is rounding
        found.seed_interval and _points(found.seed_interval),
        "yes" if found.differs else "not shown",
    )


def _points(interval: Interval) -> Interval:
    return 100 * interval[0], 100 * interval[1]


def _measured(reports: Sequence[Report]) -> dict[tuple[str, str], list[Measurement]]:
    """One measurement per report, by section and name, of what all reports have."""
    found: dict[tuple[str, str], list[Measurement]] = {}
    for report in reports:
        for section in report.sections:
            if section.selected is None:
                for name, measurement in by_column(section).items():
                    found.setdefault((section.label, name), []).append(measurement)
    return {place: ms for place, ms in found.items() if len(ms) == len(reports)}


def _of_the_same_attacks(measurements: Sequence[Measurement]) -> bool:
    """What one name always is, but for a worst case."""
    made_of = (m.settings.get("worst_case_of", ()) for m in measurements)
    return len({tuple(attack["name"] for attack in attacks) for attacks in made_of}) == 1
