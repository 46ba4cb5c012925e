"""Reports: measurements, checks and curves to one page that shows first what there is to doubt."""

from __future__ import annotations

import html
import io
import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import torch
from msgspec import Struct

from advssl.evaluation.diagnostics import Check
from advssl.evaluation.records import (
    Interval,
    Measurement,
    Model,
    Probe,
    Source,
    check_worst_cases,
    parsed,
    plain,
    replacing,
    wilson,
    worst_case,
)
from advssl.types import Images, described, number, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERSION = 3

_PROTOCOLS = {
    "slf": "standard linear finetuning",
    "alf": "adversarial linear finetuning",
    "fsf": "full standard finetuning",
    "aff": "adversarial full finetuning",
}
_COLUMNS_OF_STRIP = 8
_MOST_VALUES = 12  # of a list, printed in a table's cell

Cell: TypeAlias = str | float | Interval | None

# Okabe and Ito's colours, told apart with any colour vision; the markers say the same in grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_INK, _BAD, _RULE = "#1c2127", "#b42318", "#c9ced6"
_ON_THE_PAGE = {_INK: "currentColor", _BAD: "var(--bad)", _RULE: "var(--rule)"}


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
    def label(self) -> str:
        """The protocol, and what else there is to tell it from other sections."""
        within = " / ".join(filter(None, (self.protocol, self.branch, self.selected)))
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

    def __str__(self) -> str:
        lines = [self.header, *(tuple(map(_cell, row)) for row in self.rows)] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        shown = (
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
        return "\n".join([self.title, *shown, self.note])


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


def write(report: Report, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write ``record.json``, ``report.md`` and ``report.html``, each whole or not at all.

    The record is written first: it is there even if the figures cannot be drawn.

    Args:
        report: what to write.
        folder: where to; it is made if it is not there.

    Returns:
        The three paths under "record", "markdown" and "html".
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    writers: tuple[tuple[str, str, Callable[[Report], str]], ...] = (
        ("record", "record.json", _record),
        ("markdown", "report.md", _markdown),
        ("html", "report.html", _page),
    )
    paths = {}
    for kind, name, text_of in writers:
        paths[kind] = place / name
        with replacing(paths[kind]) as partial:
            partial.write_text(text_of(report), encoding="utf-8", newline="\n")
    return paths


def read(path: str | os.PathLike[str]) -> Report:
    """The report of a ``record.json``, equal to the one written but for the strips' pixels.

    Raises:
        ValueError: if the file is damaged, is no record, or comes from another version.
    """
    try:
        document = parsed(Path(path).read_text(encoding="utf-8-sig"), "record")
        version = document["version"]
        report = _report_from(document) if version == VERSION else None
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged or no record of an evaluation ({error}); move it away and run the "
            "evaluation's command again"
        ) from error
    if report is None:
        raise ValueError(
            f"{path} is a record of version {version!r}, this advssl reads version {VERSION}; "
            "read it with the advssl that wrote it, or run the evaluation's command again"
        )
    return report


def figures(report: Report) -> dict[str, Figure]:
    """The figures of the page by name, to be saved apart; those without data are left out.

    "accuracy-against-radius", "accuracy-against-steps", "clean-against-robust" (of two sections or
    more) and "strip" (of the first section that has one).

    Raises:
        ImportError: without matplotlib.
    """
    with _look():
        radii = {s.label: s.by_radius for s in report.sections if s.by_radius}
        steps = {s.label: s.by_steps for s in report.sections if s.by_steps}
        strip = next((s.strip for s in report.sections if s.strip is not None), None)
        drawn = {
            "accuracy-against-radius": _radius_figure(report, radii) if radii else None,
            "accuracy-against-steps": _steps_figure(report, steps) if steps else None,
            "clean-against-robust": _scatter_figure(report),
            "strip": _strip_figure(strip) if strip is not None else None,
        }
    return {name: figure for name, figure in drawn.items() if figure is not None}


# The record


def _record(report: Report) -> str:
    document = {
        "version": VERSION,
        "title": report.title,
        "model": report.model,
        "data": report.data,
        "command": report.command,
        "sections": [_section_to(s) for s in report.sections],
        "tables": [vars(t) for t in report.tables],
    }
    # Sorted, so that equal reports give equal bytes whatever order their mappings were filled in.
    kept = plain(document, "record", finite=False)
    return json.dumps(kept, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _section_to(section: Section) -> dict[str, Any]:
    checks = [
        {"name": c.name, "verdict": c.verdict, "evidence": c.evidence, "numbers": c.numbers}
        for c in section.checks
    ]
    return {
        "protocol": section.protocol,
        "branch": section.branch,
        "selected": section.selected,
        "encoder": section.encoder,
        "classifier": section.classifier,
        "probe": section.probe,
        "measurements": [json.loads(m.to_json()) for m in section.measurements],
        "checks": checks,
        "by_radius": section.by_radius,
        "by_steps": section.by_steps,
    }


_TEXT_OR_NONE = (str, type(None))


def _report_from(document: Any) -> Report:
    # Finite and no deeper than what is written, so that nothing that follows can stumble over it.
    fields = _fields(
        plain(document, "record"),
        "record",
        version=int,
        title=str,
        model=dict,
        data=dict,
        command=str,
        sections=list,
        tables=list,
    )
    del fields["version"]
    sections = _each(_section_from, fields.pop("sections"), "sections")
    tables = _each(_table_from, fields.pop("tables"), "tables")
    return Report(**fields, sections=sections, tables=tables)


def _section_from(document: Any, where: str) -> Section:
    fields = _fields(
        document,
        where,
        protocol=str,
        **dict.fromkeys(("branch", "selected", "encoder", "classifier"), _TEXT_OR_NONE),
        **dict.fromkeys(("measurements", "checks", "by_radius", "by_steps"), list),
        probe=(dict, type(None)),
    )
    with _named(f"{where}.probe"):
        fields["probe"] = msgspec.convert(fields["probe"], Probe | None)
    for name, of in (("measurements", _measurement_from), ("checks", _check_from)):
        fields[name] = _each(of, fields[name], f"{where}.{name}")
    for name in ("by_radius", "by_steps"):
        fields[name] = tuple(tuple(p) if isinstance(p, list) else p for p in fields[name])
    with _named(where):
        return Section(**fields)


def _measurement_from(document: Any, where: str) -> Measurement:
    with _named(where):
        return Measurement.from_plain(document)


def _check_from(document: Any, where: str) -> Check:
    fields = _fields(document, where, name=str, verdict=str, evidence=str, numbers=dict)
    if fields["verdict"] not in _MARKS:
        raise ValueError(f"{where}.verdict is one of {[*_MARKS]}, got {fields['verdict']!r:.60}")
    return Check(**fields)


def _table_from(document: Any, where: str) -> Table:
    fields = _fields(document, where, title=str, header=list, rows=list, note=str)
    header, rows = fields["header"], fields["rows"]
    if not all(isinstance(name, str) for name in header):
        raise ValueError(f"{where}.header must be text, got {described(header)}")
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(header) or not all(map(_is_cell, row)):
            raise ValueError(
                f"{where}.rows[{i}] must be {len(header)} cells (text, numbers, pairs of numbers "
                f"or null), got {described(row)}"
            )
    cells = tuple(tuple(tuple(c) if isinstance(c, list) else c for c in row) for row in rows)
    return Table(fields["title"], tuple(header), cells, fields["note"])


def _is_cell(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 2 and all(_is_cell(v) and isinstance(v, int | float) for v in value)
    return isinstance(value, str | int | float | None) and not isinstance(value, bool)


def _fields(document: Any, where: str, **kinds: Any) -> dict[str, Any]:
    """A copy of an object that has these fields, no others, and each of its kind."""
    if not isinstance(document, dict):
        raise ValueError(f"{where} must be an object, got {described(document)}")
    if set(document) != set(kinds):
        raise ValueError(
            f"{where}: fields {sorted(set(kinds) - set(document))} are missing, "
            f"{sorted(set(document) - set(kinds))} are unknown"
        )
    for name, kind in kinds.items():
        if not isinstance(document[name], kind):
            raise ValueError(f"{where}.{name} is {described(document[name])}")
    return dict(document)


def _each(of: Callable[[Any, str], Any], documents: list[Any], where: str) -> tuple[Any, ...]:
    return tuple(of(document, f"{where}[{i}]") for i, document in enumerate(documents))


@contextmanager
def _named(where: str) -> Iterator[None]:
    """What is refused inside is refused as what stands at ``where``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_point(where: str, point: Any) -> None:
    if not isinstance(point, tuple | list) or len(point) != 2:
        raise ValueError(f"{where} must be two numbers, got {described(point)}")
    at, share = (number(where, value) for value in point)
    if not (0 <= at < math.inf and 0 <= share <= 1):
        raise ValueError(f"{where} must be a size and an accuracy in [0, 1], got {point}")


# What page and markdown both say


@dataclass(frozen=True)
class _Row:
    """Of the headline table: a section's measurements by column."""

    section: Section
    cells: dict[str, Measurement]  # those that were not measured are missing

    @property
    def n(self) -> int:
        return self.section.measurements[0].n


_CLEAN, _WORST = "clean", "worst case"


def _rows(report: Report) -> list[_Row]:
    return [_Row(section, by_column(section)) for section in report.sections]


def by_column(section: Section) -> dict[str, Measurement]:
    """The measurements by name, "clean" first, "worst case" of all attacks last.

    A name that comes again is told apart by its seed, then by its number.
    """
    cells = {_CLEAN: section.measurements[0]}
    for m in section.measurements[1:]:
        names = [m.name, f"{m.name}, seed {m.seed}"]
        names += [f"{names[1]} ({i})" for i in range(2, 2 + len(cells))]
        cells[next(name for name in names if name not in cells)] = m
    attacks = [m for m in section.measurements[1:] if _paired(m, section.measurements[0])]
    if section.selected is not None:
        return cells
    worst = cells.pop(_WORST, None) or (worst_case(attacks, _WORST) if attacks else None)
    return cells if worst is None else {**cells, _WORST: worst}


def _paired(a: Measurement, b: Measurement) -> bool:
    """Whether the flags are of the same images and encoder. A subset's are not."""
    return (a.dataset, a.n, a.seed) == (b.dataset, b.n, b.seed)


def _columns(rows: Sequence[_Row]) -> list[str]:
    """Clean first, worst case last, attacks between them as they first appear."""
    names = dict.fromkeys(name for row in rows for name in row.cells)
    ends = [name for name in (_WORST,) if name in names]
    return [*(name for name in names if name not in ends), *ends]


def _notes(rows: Sequence[_Row]) -> list[str]:
    notes = [
        "Share of test images classified right, with its 95 % Wilson interval, which covers the "
        "choice of images and not that of the seed."
    ]
    if any(_WORST in row.cells for row in rows):
        worst = f"{_WORST.capitalize()}: images that stay right under every one of the attacks"
        apart = {
            name: None
            for row in rows
            for name, m in row.cells.items()
            if not _paired(m, row.section.measurements[0])
        }
        other = f"; {', '.join(apart)}: on other images, not in it" if apart else ""
        notes.append(f"{worst}{other}.")
    return notes


def _summary(report: Report) -> str:
    """What was evaluated, in one line."""
    model, data = known(report.model), known(report.data)
    named = [model[key] for key in ("backbone", "checkpoint") if model.get(key)]
    each = (k if isinstance(v, Mapping) else v for k, v in model.items())
    whose = ", ".join(map(_text, named or each))
    spec = data.get("name") or data.get("spec")
    where = f"on {_text(spec)}" if spec else ""
    sizes = sorted({s.measurements[0].n for s in report.sections})
    images = f"{' or '.join(map(str, sizes))} test image{'' if sizes == [1] else 's'}"
    measured = sum(len(s.measurements) for s in report.sections)
    parts = (
        " ".join(filter(None, (whose, where))),
        images,
        f"{measured} measurement{'' if measured == 1 else 's'}",
    )
    return " · ".join(filter(None, parts))


def _checks(report: Report) -> list[tuple[Section, Check]]:
    return [(s, c) for s in report.sections for c in _checks_of(s)]


def _checks_of(section: Section) -> Iterator[Check]:
    """Those made, and attacks that leave more than there was: one that finds nothing leaves all."""
    yield from section.checks
    clean = section.measurements[0]
    for m in section.measurements[1:]:
        if _paired(m, clean) and m.value > clean.value:
            yield Check(
                "attacks leave no more than clean accuracy",
                "fail",
                f"{m.name} leaves {_percent(m.value)} where clean accuracy is "
                f"{_percent(clean.value)}: its attack is broken, or the record is not as measured",
                {"clean": clean.value, "left": m.value},
            )


def failed(report: Report) -> list[tuple[Section, Check]]:
    """The checks that failed, with the section that each is of."""
    return [(s, c) for s, c in _checks(report) if c.verdict == "fail"]


def _verdict(report: Report) -> tuple[str, str]:
    """Fail, pass or not run, for all checks together, and the sentence that says so."""
    count = Counter(c.verdict for _, c in _checks(report))
    total = sum(count.values())
    skipped = f"; {count['not run']} not run" if count["not run"] else ""
    if not total:
        return "not run", "No checks were run: nothing here speaks for these numbers."
    if count["fail"]:
        plural = "check" if total == 1 else "checks"
        return "fail", f"{count['fail']} of {total} {plural} failed{skipped}."
    if not count["pass"]:
        return "not run", f"None of {total} checks was run: nothing here speaks for these numbers."
    plural = "check" if count["pass"] == 1 else "checks"
    return "pass", f"No reason to doubt found in {count['pass']} {plural}{skipped}."


def _facts(report: Report) -> list[tuple[str, str]]:
    """All that is needed to run it again, by name."""
    measurements = [m for s in report.sections for m in s.measurements]
    facts = [("command", report.command)]
    facts += [(f"model: {key}", _text(value)) for key, value in known(report.model).items()]
    facts += [(f"data: {key}", _text(value)) for key, value in known(report.data).items()]
    facts += [("images, fingerprint", v) for v in _distinct(m.dataset for m in measurements)]
    facts += [("commit", v) for v in _distinct(m.commit or "unknown" for m in measurements)]
    machine = dict.fromkeys(key for m in measurements for key in m.machine)
    for key in machine:
        values = _distinct(_text(m.machine[key]) for m in measurements if key in m.machine)
        facts += [(f"machine: {key}", " or ".join(values))]
    return facts


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(measurement: Measurement) -> str:
    low, high = wilson(sum(measurement.correct), measurement.n)
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _pixels(radius: float) -> str:
    """A radius as people write it: 8/255 if it is such a fraction and no short decimal."""
    levels = radius * 255
    if radius > 1 or abs(radius - round(radius, 3)) < 1e-9 or abs(levels - round(levels, 1)) > 1e-6:
        return f"{radius:.4g}"
    return f"{round(levels, 1):g}/255"


def _text(value: Any, key: str = "") -> str:
    """A value of a mapping, for people."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        lengths = ("eps", "epsilon", "radius", "step_size")
        return _pixels(value) if key in lengths else f"{value:.6g}"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{k.replace('_', ' ')} {_text(v, k)}" for k, v in value.items())
        return f"({inner})" if key else inner
    if isinstance(value, list | tuple):
        if key == "worst_case_of":
            return "; ".join(m["name"] for m in value)
        shown = ", ".join(_text(v, key) for v in value[:_MOST_VALUES])
        more = f", … ({len(value)} in all)" if len(value) > _MOST_VALUES else ""
        return f"{shown}{more}" or "none"
    return str(value)


def _cell(value: Cell) -> str:
    """A number with one decimal, or two digits where that is less."""
    if value is None or isinstance(value, str):
        return value or "–"
    if isinstance(value, tuple):
        return " to ".join(map(_cell, value))
    return f"{value:.1f}" if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"


# Markdown


def _markdown(report: Report) -> str:
    rows = _rows(report)
    doubts = [
        f"> **✗ {_md(c.name)}** ({_md(s.label)}): {_md(c.evidence)}" for s, c in failed(report)
    ]
    state, sentence = _verdict(report)
    parts = [
        f"# {_md(report.title)}",
        _md(_summary(report)),
        _md_headline(rows),
        "\n\n".join(doubts) if state == "fail" else "",
        f"**{_md(sentence)}**" if state != "pass" else _md(sentence),
        "\n\n".join(_md(note) for note in _notes(rows)),
        *(_md_more(table) for table in report.tables),
        _md_section("Checks", _CHECKS, _check_rows(report)),
        _md_section("Settings", _SETTINGS, _setting_rows(report)),
        _md_section("To run it again", ("what", "value"), _facts(report)),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _md_headline(rows: Sequence[_Row]) -> str:
    columns = _columns(rows)
    cells = []
    for row in rows:
        found = [row.cells.get(column) for column in columns]
        cells.append((row.section.label, *(_md_share(m, row.n) for m in found), str(row.n)))
    return _md_table(("protocol", *columns, "n"), cells, numbers=True)


def _md_share(measurement: Measurement | None, n: int) -> str:
    if measurement is None:
        return "–"
    other = f", n = {measurement.n}" if measurement.n != n else ""
    return f"{_percent(measurement.value)} {_interval(measurement)}{other}"


def _md_more(table: Table) -> str:
    rows = [[_cell(value) for value in row] for row in table.rows]
    shown = _md_table(table.header, rows) if rows else ""
    return "\n\n".join(filter(None, (f"## {_md(table.title)}", shown, _md(table.note))))


def _md_section(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"## {title}\n\n{_md_table(header, rows)}" if rows else ""


def _md_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False
) -> str:
    rule = ["---", *["---:" if numbers else "---"] * (len(header) - 1)]
    lines = [[_md(cell) for cell in header], rule, *([_md(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md(text: str) -> str:
    """Text that markdown shows as it is, in one line."""
    # Brackets of the intervals stay: without a parenthesis after them they are no link.
    marked = re.sub(r"([\\`*_|#])|(\](?=[(:\[]))", r"\\\1\2", " ".join(text.split()))
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_SETTINGS = ("protocol", "measurement", "accuracy", "n", "seed", "settings")
_NUMBERS = (2, 3, 4)  # of these columns
_CHECKS = ("verdict", "check", "protocol", "evidence")


def _check_rows(report: Report) -> list[tuple[str, ...]]:
    return [
        (f"{_MARKS[c.verdict]} {c.verdict}", c.name, s.label, _md_evidence(c))
        for s, c in _checks(report)
    ]


def _evidence(check: Check) -> list[str]:
    return [check.evidence, *filter(None, (_text(check.numbers),))]


def _md_evidence(check: Check) -> str:
    first, *numbers = _evidence(check)
    return f"{first} ({numbers[0]})" if numbers else first


def _setting_rows(report: Report) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for section in report.sections:
        for m in section.measurements:
            share = f"{_percent(m.value)} {_interval(m)}"
            numbers = (share, str(m.n), str(m.seed))
            rows.append((section.label, m.name, *numbers, _text(m.settings)))
    return rows


_MARKS = {"pass": "✓", "fail": "✗", "not run": "–"}


# The page


_CAPTIONS = {
    "accuracy-against-radius": "Accuracy against the radius of the attack. It must reach zero: "
    "an attack that may change everything and still fails is not working.",
    "accuracy-against-steps": "Accuracy against the attack's steps. It should have levelled off "
    "where the headline's attack stops.",
    "clean-against-robust": "Standard against robust accuracy (worst case), with 95 % intervals.",
    "strip": "Images before and after the attack; above each, what the classifier says, in red "
    "where it is wrong.",
}


def _page(report: Report) -> str:
    drawn = figures(report)
    rows = _rows(report)
    body = [
        f"<header><h1>{_e(report.title)}</h1><p>{_e(_summary(report))}</p></header>",
        _headline(rows),
        _doubts(report),
        "".join(f'<p class="note">{_e(note)}</p>' for note in _notes(rows)),
        *map(_more, report.tables),
        _figures(drawn),
        _table("Checks", _CHECKS, _check_cells(report)) if _checks(report) else "",
        _table(
            "Settings", _SETTINGS, [_cells(r, _NUMBERS) for r in _setting_rows(report)], _NUMBERS
        ),
        _table("To run it again", (), _fact_cells(report)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(report.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, body))
        + "\n</main>\n</body>\n</html>\n"
    )


def _headline(rows: Sequence[_Row]) -> str:
    columns = _columns(rows)
    heads = "".join(f'<th scope="col"{_emphasis(c)}>{_e(c)}</th>' for c in columns)
    lines = []
    for row in rows:
        cells = "".join(_share_cell(row.cells.get(c), row.n, _emphasis(c)) for c in columns)
        aside = "" if row.section.selected is None else ' class="aside"'
        lines.append(f'<tr{aside}>{_row_head(row.section)}{cells}<td class="n">{row.n}</td></tr>')
    return (
        '<div class="wide"><table class="headline"><thead><tr><th scope="col">protocol</th>'
        f'{heads}<th scope="col" class="n">n</th></tr></thead>\n'
        f"<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
    )


def _row_head(section: Section) -> str:
    if section.selected is not None:
        return f'<th scope="row">{_e(section.label)}</th>'
    words = [_PROTOCOLS.get(section.protocol)]
    words += [f"{section.branch} branch" if section.branch is not None else None]
    below = "".join(f"<small>{_e(w)}</small>" for w in words if w)
    doubtful = any(c.verdict == "fail" for c in _checks_of(section))
    doubted = '<small class="bad">✗ doubtful, see below</small>' if doubtful else ""
    name = ": ".join(filter(None, (section.encoder, section.protocol)))
    return f'<th scope="row">{_e(name)}{below}{doubted}</th>'


def _share_cell(measurement: Measurement | None, n: int, emphasis: str) -> str:
    if measurement is None:
        return f"<td{emphasis}>–</td>"
    below = f"<small>{_interval(measurement)}</small>"
    below += f"<small>n = {measurement.n}</small>" if measurement.n != n else ""
    return f"<td{emphasis}>{_percent(measurement.value)}{below}</td>"


def _emphasis(column: str) -> str:
    return ' class="worst"' if column == _WORST else ""


def _doubts(report: Report) -> str:
    state, sentence = _verdict(report)
    boxes = [
        f'<section class="doubt"><h2>✗ {_e(c.name)} <span>{_e(s.label)}</span></h2>'
        f"<p>{_e(c.evidence)}</p></section>"
        for s, c in failed(report)
    ]
    kind = state.replace(" ", "-")
    return "\n".join([*boxes, f'<p class="verdict {kind}">{_MARKS[state]} {_e(sentence)}</p>'])


def _figures(drawn: Mapping[str, Figure]) -> str:
    blocks = {
        name: f'<figure id="{name}">{_svg(figure, name)}'
        f"<figcaption>{_e(_CAPTIONS[name])}</figcaption></figure>"
        for name, figure in drawn.items()
    }
    strip = blocks.pop("strip", "")
    return (f'<div class="figures">{"".join(blocks.values())}</div>' if blocks else "") + strip


def _more(table: Table) -> str:
    numbers = {i for row in table.rows for i, v in enumerate(row) if not isinstance(v, str)}
    rows = [_cells(map(_cell, row), numbers) for row in table.rows]
    shown = _table(table.title, table.header, rows, numbers)
    return f'{shown}<p class="note">{_e(table.note)}</p>'


def _table(
    title: str, header: Sequence[str], rows: Sequence[str], numbers: Collection[int] = ()
) -> str:
    heads = "".join(
        f'<th scope="col"{_aligned(i in numbers)}>{_e(h)}</th>' for i, h in enumerate(header)
    )
    head = f"<thead><tr>{heads}</tr></thead>" if header else ""
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<section><h2>{_e(title)}</h2><div class="wide"><table>{head}\n'
        f"<tbody>\n{body}\n</tbody></table></div></section>"
    )


def _cells(row: Iterable[str], numbers: Collection[int]) -> str:
    return "".join(f"<td{_aligned(i in numbers)}>{_e(cell)}</td>" for i, cell in enumerate(row))


def _aligned(number: bool) -> str:
    return ' class="number"' if number else ""


def _check_cells(report: Report) -> list[str]:
    cells = []
    for section, check in _checks(report):
        kind = check.verdict.replace(" ", "-")
        evidence = "".join(f"<small>{_e(part)}</small>" for part in _evidence(check)[1:])
        cells.append(
            f'<td class="verdict {kind}">{_MARKS[check.verdict]} {_e(check.verdict)}</td>'
            f"<td>{_e(check.name)}</td><td>{_e(section.label)}</td>"
            f"<td>{_e(check.evidence)}{evidence}</td>"
        )
    return cells


def _fact_cells(report: Report) -> list[str]:
    return [
        f'<th scope="row">{_e(name)}</th><td><code>{_e(value)}</code></td>'
        for name, value in _facts(report)
    ]


def _e(text: str) -> str:
    return html.escape(text)


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2127; --quiet: #5c6570;
  --rule: #c9ced6; --faint: #f4f5f7; --bad: #b42318; --bad-paper: #fdf1ef; --good: #1a6b3c; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e4e7eb; --quiet: #9aa4b0;
  --rule: #3a424c; --faint: #1d2126; --bad: #ff8a7a; --bad-paper: #33191a; --good: #6fcf97; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1120px; margin: 0 auto; padding: 48px 32px 96px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -.01em; }
header p { color: var(--quiet); margin: 0 0 32px; }
h2 { font-size: 19px; margin: 56px 0 12px; }
small { display: block; font-size: 13px; line-height: 1.4; font-weight: 400; color: var(--quiet); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 8px 24px 8px 0;
  overflow-wrap: break-word; border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--quiet); font-weight: 500; font-size: 13px; vertical-align: bottom; }
tbody th { font-weight: 500; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.headline { font-size: 18px; }
.headline th, .headline td { padding: 14px 0 14px 24px; text-align: right; }
.headline td { white-space: nowrap; vertical-align: baseline; }
.headline tbody th { vertical-align: baseline; }
.headline thead th { padding-bottom: 8px; max-width: 150px; }
.headline th:first-child { text-align: left; padding-left: 0; }
.headline tbody th { font-weight: 600; }
.headline .worst { font-weight: 700; color: var(--ink); }
.headline .aside th, .headline .aside td { padding-top: 6px; padding-bottom: 8px;
  font-size: 14px; font-weight: 400; color: var(--quiet); }
.headline .aside th { white-space: normal; }
.headline .n { color: var(--quiet); font-size: 14px; }
.bad, small.bad { color: var(--bad); }
.doubt { margin: 20px 0 0; padding: 14px 20px 16px; background: var(--bad-paper);
  border: 1px solid var(--bad); border-left-width: 6px; border-radius: 4px; }
.doubt h2 { margin: 0 0 2px; font-size: 16px; color: var(--bad); }
.doubt h2 span { font-weight: 400; padding-left: 8px; }
.doubt p { margin: 0; }
p.verdict { margin: 20px 0 0; font-weight: 500; }
td.verdict { white-space: nowrap; font-weight: 600; }
.pass { color: var(--good); } .fail { color: var(--bad); } .not-run { color: var(--quiet); }
.note { margin: 8px 0 0; font-size: 13px; color: var(--quiet); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 40px;
  margin-top: 48px; }
figure { margin: 0; }
.figures + figure, .note + figure { margin-top: 48px; }
.figures figure { max-width: 480px; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figcaption { margin-top: 10px; font-size: 13px; color: var(--quiet); }
code { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { :root { --paper: #fff; --ink: #000; --quiet: #444; --rule: #bbb; --bad: #a01408;
  --bad-paper: #fdf1ef; --good: #145a32; } main { max-width: none; padding: 0; }
  body { font-size: 13px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .headline { font-size: 13px; } thead th, .headline .n { font-size: 10px; }
  .headline th, .headline td { padding-left: 10px; }
  table { font-size: 11px; } .wide { overflow: visible; } small, figcaption { font-size: 10px; }
  .figures { grid-template-columns: repeat(3, 1fr); gap: 16px; }
  figure, .doubt, tr { break-inside: avoid; } h2 { break-after: avoid; } }
"""


# Figures


@contextmanager
def _look() -> Iterator[None]:
    """The look of all figures, whatever the user's own matplotlib settings are."""
    try:
        import matplotlib
        import matplotlib.style
    except ImportError as error:
        raise ImportError("a report's figures need matplotlib: pip install advssl[eval]") from error
    look: dict[str, Any] = {
        "svg.fonttype": "none",  # text stays text: any script is shown in the reader's fonts
        "svg.hashsalt": "advssl",  # the same figure gives the same bytes
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _RULE,
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "legend.frameon": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
        "axes.edgecolor": _INK,
    }
    with matplotlib.style.context(["default", look]), warnings.catch_warnings():
        # A class in another script: the browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with _look():
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Several figures share one page, and so one space of ids.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans',[^;]*?sans-serif", "system-ui, sans-serif", text)
    for colour, variable in _ON_THE_PAGE.items():
        text = text.replace(colour, variable)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name.replace("-", " ")}" ', 1)


def _new_figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 20))
    return figure, axes


def _radius_figure(report: Report, curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    radii = [r for curve in curves.values() for r, _ in curve]
    # Grey levels if that is how the radii were chosen, as with ℓ∞ and not with ℓ2.
    in_levels = max(radii) <= 1 and any("/" in _pixels(r) for r in radii)
    scale, unit = (255, "in 1/255") if in_levels else (1, "in pixels of [0, 1]")
    scaled = {name: [(scale * r, a) for r, a in curve] for name, curve in curves.items()}
    return _curve_figure(report, scaled, f"radius ε, {unit}")


def _steps_figure(report: Report, curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    return _curve_figure(report, curves, "steps of the attack")


def _curve_figure(
    report: Report, curves: Mapping[str, Sequence[tuple[float, float]]], label: str
) -> Figure:
    figure, axes = _new_figure()
    styles = _styles(report)
    lines = []
    for name, curve in curves.items():
        xs, shares = zip(*sorted(curve), strict=True)
        lines += axes.plot(xs, [100 * a for a in shares], clip_on=False, **styles[name])
    _spread(axes, sorted({float(x) for curve in curves.values() for x, _ in curve}))
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy (%)")
    chance = _chance(report)
    if chance is not None:
        lines += [axes.axhline(100 * chance, color=_INK, linestyle=":", linewidth=1)]
    _legend(figure, lines, [*curves, "chance"][: len(lines)])
    return figure


def _spread(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at the values themselves, on a logarithmic axis if they span more than a decade."""
    positive = [v for v in values if v > 0]
    if positive and positive[-1] > 10 * positive[0]:
        axes.set_xscale("symlog", base=2, linthresh=positive[0])
    axes.set_xlim(right=values[-1] if len(values) > 1 else None)
    place = axes.transScale + axes.transLimits
    kept: list[float] = []
    for value in values:
        if not kept or place.transform((value, 0))[0] - place.transform((kept[-1], 0))[0] > 0.075:
            kept.append(value)
    axes.set_xticks(kept, [f"{round(v, 6):g}" for v in kept])
    axes.minorticks_off()


def _chance(report: Report) -> float | None:
    classes = known(report.data).get("classes")
    count = classes if isinstance(classes, int) else len(classes or ())
    return 1 / count if count else None


def _scatter_figure(report: Report) -> Figure | None:
    rows = [row for row in _rows(report) if _WORST in row.cells]
    if len(rows) < 2:
        return None
    figure, axes = _new_figure()
    styles = _styles(report)
    points = []
    for row in rows:
        clean, worst = row.cells[_CLEAN], row.cells[_WORST]
        x, y = 100 * clean.value, 100 * worst.value
        errors = [[[100 * e] for e in _errors(m)] for m in (clean, worst)]
        style = styles[row.section.label] | {"linestyle": "none"}
        points.append(axes.errorbar(x, y, xerr=errors[0], yerr=errors[1], elinewidth=1, **style))
    axes.axline((0, 0), slope=1, color=_INK, linestyle=":", linewidth=1)
    axes.set_xlim(-3, 103)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("standard accuracy (%)")
    axes.set_ylabel("robust accuracy (%)")
    _legend(figure, points, [row.section.label for row in rows])
    return figure


def _errors(measurement: Measurement) -> Interval:
    low, high = wilson(sum(measurement.correct), measurement.n)
    return measurement.value - low, high - measurement.value


def _styles(report: Report) -> dict[str, dict[str, Any]]:
    """A section looks the same in every figure."""
    # Best epochs, which have no curves, last: they take no colour from others.
    ordered = sorted(report.sections, key=lambda section: section.selected is not None)
    labels = dict.fromkeys(section.label for section in ordered)
    return {
        label: {
            "color": _COLOURS[i % len(_COLOURS)],
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": ("-", "--", ":")[i // len(_COLOURS) % 3],
        }
        for i, label in enumerate(labels)
    }


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    longest = max(map(len, labels))
    columns = min(len(labels), 4 if longest < 8 else 2 if longest < 22 else 1)
    # What the legend takes is given to the figure, not taken from the curves.
    figure.set_figheight(3.1 + 0.19 * math.ceil(len(labels) / columns))
    legend = figure.legend(
        handles,
        [label.lstrip("_") or "-" for label in labels],  # matplotlib hides what begins with "_"
        loc="outside upper left",
        ncols=columns,
        handlelength=1.8,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _strip_figure(strip: Strip) -> Figure:
    from matplotlib.figure import Figure

    count = min(len(strip.labels), _COLUMNS_OF_STRIP)
    clean, adversarial = (
        x[:count].detach().float().cpu() for x in (strip.clean, strip.adversarial)
    )
    height = 0.9 + 2.8 * clean.shape[2] / clean.shape[3]
    figure = Figure(figsize=(9.6, height), layout="constrained")
    grid = figure.subplots(3, _COLUMNS_OF_STRIP, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    words = ("clean", f"adversarial\nε = {_pixels(strip.radius)}", "difference,\namplified")
    for axes, word in zip(grid[:, 0], words, strict=True):
        axes.text(-0.12, 0.5, word, transform=axes.transAxes, ha="right", va="center")
    _draw_images(grid[0], clean, strip.predicted_clean, strip.labels)
    _draw_images(grid[1], adversarial, strip.predicted, strip.labels)
    _draw_differences(figure, grid, (adversarial - clean).mean(dim=1))
    return figure


def _draw_images(
    row: Sequence[Axes], images: Images, predicted: Sequence[str], labels: Sequence[str]
) -> None:
    for axes, image, name, label in zip(row, images, predicted, labels, strict=False):
        axes.imshow(_drawable(image).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="none")
        colour = _INK if name == label else _BAD
        axes.set_title(_short(name), color=colour, fontsize=8.5, pad=3, parse_math=False)


def _draw_differences(figure: Figure, grid: Any, differences: torch.Tensor) -> None:
    most = float(differences.abs().max()) or 1.0  # two equal images are white, not an error
    for axes, difference in zip(grid[2], differences, strict=False):
        shown = axes.imshow(
            255 * difference.numpy(),
            cmap="RdBu_r",
            vmin=-255 * most,
            vmax=255 * most,
            interpolation="none",
        )
    bar = figure.colorbar(shown, ax=grid, shrink=0.32, anchor=(0.0, 0.0), aspect=12)
    bar.set_label("brighter by, in 1/255\n(mean over channels)", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _drawable(image: torch.Tensor) -> torch.Tensor:
    """(C, H, W) to what imshow takes: three channels in colour, any other number as their mean."""
    image = image.clamp(0, 1)
    return image.permute(1, 2, 0) if len(image) == 3 else image.mean(dim=0)


def _short(name: str, most: int = 13) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
