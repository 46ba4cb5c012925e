"""Content: what a report is made of, as data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from advssl.evaluation.checks import Check
from advssl.evaluation.plain_json import Struct, msgspec
from advssl.evaluation.records import (
    WORST,
    Measurement,
    Model,
    Probe,
    Source,
    Threat,
    check_worst_cases,
    paired,
    plain,
    worst_case,
)
from advssl.evaluation.report.words import Cell, cell, columns, counted
from advssl.types import Images, described, number, whole

CLEAN = "clean"


@dataclass(frozen=True, eq=False)
class Strip:
    """A few images before and after an attack.

    Attributes:
        clean: (N, C, H, W) in [0, 1].
        adversarial: likewise.
        labels: N names of classes.
        predicted_clean: likewise, what the classifier says of the clean images.
        predicted: likewise, of the adversarial images.
        radius: of the attack, in pixels of [0, 1].
    """

    clean: Images
    adversarial: Images
    labels: tuple[str, ...]
    predicted_clean: tuple[str, ...]
    predicted: tuple[str, ...]
    radius: float

    def __post_init__(self) -> None:
        shapes = tuple(self.clean.shape), tuple(self.adversarial.shape)
        if len(shapes[0]) != 4 or shapes[0] != shapes[1] or not shapes[0][0]:
            raise ValueError(
                "a strip needs clean and adversarial images of one shape (N, C, H, W), "
                f"got {shapes[0]} and {shapes[1]}"
            )
        names = len(self.labels), len(self.predicted_clean), len(self.predicted)
        if names != (shapes[0][0],) * 3:
            raise ValueError(
                f"{shapes[0][0]} images need as many labels, predicted_clean and predicted, "
                f"got {names[0]}, {names[1]} and {names[2]}"
            )


@dataclass(frozen=True)
class Section:
    """One protocol's classifier (and one BatchNorm branch of it): what was measured and checked.

    Attributes:
        protocol: for instance "slf".
        branch: which BatchNorm statistics were used, if there are several.
        selected: how the epoch was chosen, None for the last: "best on validation, epoch 7 of 25".
            Such a section is an addition to that of the last epoch, with fewer attacks, and so
            has no worst case.
        encoder: whose it is, if the page is of several.
        classifier: a fingerprint, by which the file with its weights is found.
        probe: what was put on the encoder, and how it was trained.
        asked: the threat model that the encoder was measured for.
        findings: what else was measured, by the measure's name, see
            :data:`~advssl.evaluation.report.findings.FACES`.
        measurements: the first is the clean accuracy, the others are attacks.
        checks: the reasons to doubt, with their verdicts.
        by_radius: (radius in pixels of [0, 1], accuracy in [0, 1]) pairs.
        by_steps: (steps, accuracy) pairs.
        strip: images to look at; it is drawn, but not kept in the record.
    """

    protocol: str
    branch: str | None
    measurements: tuple[Measurement, ...]
    checks: tuple[Check, ...] = ()
    by_radius: tuple[tuple[float, float], ...] = ()
    by_steps: tuple[tuple[int, float], ...] = ()
    strip: Strip | None = None
    selected: str | None = None
    encoder: str | None = None
    classifier: str | None = None
    probe: Probe | None = None
    asked: Threat | None = None
    findings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.measurements:
            raise ValueError(
                f"section {self.label!r} has no measurements; the first must be clean accuracy"
            )
        for name in ("by_radius", "by_steps"):
            for i, point in enumerate(getattr(self, name)):
                _check_point(f"{name}[{i}]", point)
        check_worst_cases(self.measurements)

    @property
    def clean(self) -> Measurement:
        """The accuracy without attack."""
        return self.measurements[0]

    @property
    def threat(self) -> Threat | None:
        """The threat model of the worst case: the one asked for, or else the first attack's.

        Of attacks on the images of the clean accuracy alone.
        """
        found = [m.threat for m in self.measurements[1:] if paired(m, self.clean)]
        return self.asked if self.asked in found else next(iter(found), None)

    def under_threat(self) -> list[Measurement]:
        """The attacks on the images of the clean accuracy, of the section's threat model."""
        return [
            m
            for m in self.measurements[1:]
            if m.name != WORST and paired(m, self.clean) and m.threat == self.threat
        ]

    @property
    def worst(self) -> Measurement | None:
        """Per image the worst of these attacks, as it was measured or as it follows from them."""
        if self.selected is not None:
            return None
        measured = [m for m in self.measurements[1:] if m.name == WORST]
        attacks = self.under_threat()
        return measured[0] if measured else worst_case(attacks) if attacks else None

    @property
    def label(self) -> str:
        """The protocol, and what else there is to tell it from other sections."""
        preset = self.probe.preset if self.probe else ""
        named = (
            f"{self.protocol} ({preset})" if preset not in ("", self.protocol) else self.protocol
        )
        within = " / ".join(filter(None, (named, self.branch, self.selected)))
        return within if self.encoder is None else f"{self.encoder}: {within}"


@dataclass(frozen=True)
class Table:
    """More to say, between the doubts and the figures.

    Attributes:
        title: of the table.
        header: of its columns.
        rows: text, numbers, intervals as pairs of numbers, and None for what is not known.
        note: what the numbers are; without rows, why there are none.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(
                    f"rows[{i}] must have {len(self.header)} cells, as header has, got {len(row)}"
                )

    def __str__(self) -> str:
        lines = [self.header, *(tuple(map(cell, row)) for row in self.rows)] if self.rows else []
        return "\n".join([self.title, *columns(lines), self.note])


@dataclass(frozen=True)
class Report:
    """All that one evaluation found.

    Attributes:
        title: of the page.
        model: whose robustness was measured; or plain values by name.
        data: which images; or plain values by name. With "classes" (their number or their names),
            the chance level is drawn. A NaN or an infinity becomes text.
        command: that makes this report again.
        sections: one per protocol and branch.
        tables: what a page of several encoders says beside that.
    """

    title: str
    model: Model | Mapping[str, Any]
    data: Source | Mapping[str, Any]
    command: str
    sections: tuple[Section, ...]
    tables: tuple[Table, ...] = ()

    def __post_init__(self) -> None:
        if not self.sections:
            raise ValueError("a report needs at least one section; evaluate at least one protocol")
        labels = [section.label for section in self.sections]
        if len(set(labels)) < len(labels):
            raise ValueError(f"sections must differ in protocol or branch, got {labels}")
        for name, kind in (("model", Model), ("data", Source)):
            value = getattr(self, name)
            if not isinstance(value, kind):
                value = plain(value, name, finite=False)
                if not isinstance(value, dict):
                    raise ValueError(f"{name} must be a mapping, got {described(value)}")
                # With all fields of one it is one: so a record's is read as what was written.
                if set(value) == {*kind.__struct_fields__}:
                    value = msgspec.convert(value, kind)
            object.__setattr__(self, name, value)
        classes = known(self.data).get("classes")
        if not (classes is None or isinstance(classes, list)):
            whole("data['classes']", classes, least=0)


def known(of: Struct | Mapping[str, Any]) -> Mapping[str, Any]:
    """A model's or data's plain values by name."""
    return msgspec.to_builtins(of) if isinstance(of, Struct) else of


def by_column(section: Section) -> dict[str, Measurement]:
    """The measurements by name, "clean" first, "worst case" of the attacks last.

    A name that comes again is told apart by its seed, then by its number.
    """
    cells = {CLEAN: section.clean}
    for m in section.measurements[1:]:
        names = [m.name, f"{m.name}, seed {m.seed}"]
        names += [f"{names[1]} ({i})" for i in range(2, 2 + len(cells))]
        cells[next(name for name in names if name not in cells)] = m
    worst = section.worst
    if worst is not None:
        cells.pop(WORST, None)
    return cells if worst is None else {**cells, WORST: worst}


def checks_of(section: Section) -> Iterator[Check]:
    """Those made, and attacks that leave more than there was: one that finds nothing leaves all."""
    yield from section.checks
    clean = section.clean
    for m in section.measurements[1:]:
        if paired(m, clean) and m.value > clean.value:
            yield Check(
                "attacks leave no more than clean accuracy",
                "fail",
                f"{m.name} leaves {sum(m.correct)} of {counted(m.n, 'image')} right and no attack "
                f"{sum(clean.correct)}: its attack is broken, or the record is not as measured",
                {"clean": clean.value, "left": m.value},
                follows="Believe no robust accuracy of this attack.",
            )


def failed(report: Report) -> list[tuple[Section, Check]]:
    """The checks that failed, with the section that each is of."""
    return [(s, c) for s in report.sections for c in checks_of(s) if c.verdict == "fail"]


def _check_point(where: str, point: Any) -> None:
    if not isinstance(point, tuple | list) or len(point) != 2:
        raise ValueError(f"{where} must be two numbers, got {described(point)}")
    at, share = (number(where, value) for value in point)
    if not (0 <= at < math.inf and 0 <= share <= 1):
        raise ValueError(f"{where} must be a size and an accuracy in [0, 1], got {point}")
