"""Comparisons: several encoders' reports to one that says which of their differences are real."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, TypeAlias

from advssl.evaluation.records import Measurement, Source, made_of
from advssl.evaluation.report.content import Report, Section, Table, by_column
from advssl.evaluation.report.words import Cell, threat
from advssl.evaluation.statistics import Interval, compare

Replicates: TypeAlias = Mapping[str, Sequence[Report]]  # of each encoder, one per training seed

Place: TypeAlias = tuple[str, str | None, str | None]  # protocol, branch and preset

# Not of the attack: its seed, the version of its library, and the ball, which is the threat model.
_ASIDE = ("seed", "library", "ball")
_HEADER = ("difference", "95 % over images", "p", "95 % over seeds", "differs")
_NOTE = (
    "Paired image by image, in points. The first interval and the exact p-value are about the "
    "choice of images; the second interval is about the seed of the training, of which one seed "
    "says nothing. Each row is tested alone: of twenty without a difference one seems to differ."
)


def compared(encoders: Replicates, command: str, tables: Sequence[Table] = ()) -> Report:
    """One report of all ``encoders``, with the differences of each from the first.

    Compared is what both were measured under after their last epoch, by the same probe: clean
    accuracy, attacks of the same threat model and settings, and the worst case if it is of the same
    attacks.

    Args:
        encoders: the reports by the encoder's name, the baseline first.
        command: that makes the comparison again.
        tables: to be shown after the differences.

    Raises:
        ValueError: on fewer than two encoders, on reports that are not :func:`comparable`, or on a
            seed that stands twice for one encoder.
    """
    if len(encoders) < 2 or not all(encoders.values()):
        raise ValueError(f"a comparison needs reports of two encoders or more, got {[*encoders]}")
    comparable(encoders)
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


def comparable(reports: Replicates | Sequence[Report]) -> None:
    """Raise unless the reports are of the same images, threat model and probe.

    A report of clean accuracy alone is of any threat model.

    Raises:
        ValueError: that names the fields that differ, and whose value is which.
    """
    if not isinstance(reports, Mapping):
        reports = {f"report {i}": [report] for i, report in enumerate(reports, start=1)}
    named = [(name, report) for name, several in reports.items() for report in several]
    differing = _differing([(name, _conditions(report)) for name, report in named])
    differing = differing or _different_probes(named)
    if differing:
        raise ValueError(
            "reports are compared on the same images, under one threat model and by the same "
            f"probe, and these differ in {', in '.join(differing)}; evaluate all in the same way"
        )


def _differing(told: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """The fields in which those differ that say them, each with all values."""
    found = []
    for field in dict.fromkeys(field for _, fields in told for field in fields):
        values = dict.fromkeys((name, fields[field]) for name, fields in told if field in fields)
        if len({value for _, value in values}) > 1:
            found.append(f"{field} ({'; '.join(f'{name}: {value}' for name, value in values)})")
    return found


def _conditions(report: Report) -> dict[str, str]:
    """What must be the same; image size and number say why the images are not."""
    fields = {"source.fingerprint": _listed(s.clean.dataset for s in report.sections)}
    if isinstance(report.data, Source):
        fields["source.image_size"] = str(report.data.image_size)
        fields["source.images"] = str(report.data.images)
    threats = [section.threat for section in _last(report) if section.threat]
    return fields | ({"threat": _listed(map(threat, threats))} if threats else {})


def _different_probes(named: Sequence[tuple[str, Report]]) -> list[str]:
    """The probes' fields that differ so that no section of one has its like in all others."""
    by_place = [(name, {_place(s): s.probe for s in _last(report)}) for name, report in named]
    first = by_place[0][1]
    shared = [place for place in first if all(place in places for _, places in by_place)]
    if not shared:
        fields = ("probe.protocol", "probe.branch", "probe.preset")
        listed = [
            (name, {field: _listed(place[i] for place in places) for i, field in enumerate(fields)})
            for name, places in by_place
        ]
        return _differing(listed)
    found = []
    for place in shared:
        probes = [(name, places[place]) for name, places in by_place]
        settings = [(name, probe.settings) for name, probe in probes if probe and probe.settings]
        keys = dict.fromkeys(key for _, held in settings for key in held)
        found += _differing(
            [
                (name, {f"probe.settings.{key}": repr(held.get(key)) for key in keys})
                for name, held in settings
            ]
        )
    return found


def _listed(values: Iterable[object]) -> str:
    """Each once."""
    return ", ".join(dict.fromkeys(map(str, values)))


def _last(report: Report) -> list[Section]:
    return [section for section in report.sections if section.selected is None]


def _place(section: Section) -> Place:
    """Sections with the same are measured in the same way."""
    return section.protocol, section.branch, section.probe.preset if section.probe else None


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
    labels = {_place(s): s.label for report in encoders[first] for s in _last(report)}
    rows = [
        _row((labels[key[0]], before[key][0].name), before[key], after[key])
        for key in before
        if key in after
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


def _measured(reports: Sequence[Report]) -> dict[tuple[Place, str], list[Measurement]]:
    """One measurement per report, by section and attack, of what all reports have."""
    found: dict[tuple[Place, str], list[Measurement]] = {}
    for report in reports:
        for section in _last(report):
            once: dict[str, Measurement] = {}
            for name, measurement in by_column(section).items():
                key = _how(name, measurement)
                once[key if key not in once else f"{key} {name}"] = measurement
            for key, measurement in once.items():
                found.setdefault((_place(section), key), []).append(measurement)
    return {key: ms for key, ms in found.items() if len(ms) == len(reports)}


def _how(name: str, measurement: Measurement) -> str:
    """Threat model and settings of an attack; of a worst case, those of all it is made of."""
    # Sorted, as the worst of several attacks does not depend on which of them was run first.
    parts = sorted(_attack(part["name"], part.get("settings", {})) for part in made_of(measurement))
    attack = parts or _attack(name, measurement.settings)
    return repr((measurement.threat, attack))


def _attack(name: str, settings: Mapping[str, Any]) -> str:
    """An attack by its settings, or by its name where these do not say which it is."""
    held = {key: value for key, value in settings.items() if key not in _ASIDE}
    return json.dumps(held if "attack" in held else [name, held], sort_keys=True)
