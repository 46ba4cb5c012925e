"""Record: a report to JSON and back, every field checked and every refusal by its path."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from advssl.evaluation import earlier
from advssl.evaluation.checks import Check
from advssl.evaluation.plain_json import Struct, msgspec
from advssl.evaluation.records import check_told, opened, parsed, plain
from advssl.evaluation.report import findings
from advssl.evaluation.report.content import Report, Section, Table
from advssl.types import described

VERSION = 3


class _Written(Struct, frozen=True, forbid_unknown_fields=True):
    """A record as msgspec reads it, by types and with the path of what is wrong."""

    title: str
    model: dict[str, Any]
    data: dict[str, Any]
    command: str
    sections: tuple[Section, ...]
    tables: tuple[Table, ...]


def to_json(report: Report) -> str:
    """The report as text: all but the strips' pixels, and every image's answer."""
    document = {"version": VERSION, **vars(report)}
    document["sections"] = [_section(section) for section in report.sections]
    document["tables"] = [vars(table) for table in report.tables]
    # Sorted, so that equal reports give equal bytes whatever order their mappings were filled in.
    kept = plain(document, "record", finite=False)
    return json.dumps(kept, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _section(section: Section) -> dict[str, Any]:
    document = {name: value for name, value in vars(section).items() if name in _SECTION}
    document["measurements"] = [m.to_plain() for m in section.measurements]
    document["checks"] = [vars(check) for check in section.checks]
    if section.findings:  # most records have none, and look as before there were any
        document["findings"] = findings.written(section.findings)
    return document


_SECTION = {field.name for field in fields(Section)} - {"strip", "findings"}
_CHECK = {field.name for field in fields(Check)}
_TABLE = {field.name for field in fields(Table)}


def read(path: str | os.PathLike[str]) -> Report:
    """The report of a ``record.json``, equal to the one written but for the strips' pixels.

    One that version 0.1 wrote is read too.

    Raises:
        ValueError: if the file is damaged, is no record, or comes from another version.
    """
    try:
        document = parsed(Path(path).read_text(encoding="utf-8-sig"), "record")
        version = document["version"]
        if type(version) is int and version == earlier.REPORT:
            document = earlier.report(document)
        report = _report(document) if document["version"] == VERSION else None
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged or no record of an evaluation ({error}); move it away and run the "
            "evaluation's command again"
        ) from error
    if report is None:
        raise ValueError(
            f"{path} is a record of version {version!r}, this advssl reads version {VERSION} and "
            f"{earlier.REPORT}; read it with the advssl that wrote it, or run the evaluation's "
            "command again"
        )
    return report


def _report(document: dict[str, Any]) -> Report:
    # Finite and no deeper than what is written, so that nothing that follows can stumble over it.
    document = plain(document, "record")
    _exactly(document, "$", {"version", *_Written.__struct_fields__})
    told: list[list[tuple[Any, Any]]] = []
    sections = []
    for where, section in _each(document["sections"], "$.sections"):
        beside = section.pop("findings", {}) if isinstance(section, dict) else {}
        _exactly(section, where, _SECTION)
        with _named(f"{where}.findings"):
            beside = findings.read(beside)
        found = []
        for place, measurement in _each(section["measurements"], f"{where}.measurements"):
            with _named(place):
                found.append(opened(measurement))
        for place, check in _each(section["checks"], f"{where}.checks"):
            _exactly(check, place, _CHECK)
        told.append([values for _, values in found])
        sections.append(
            {**section, "measurements": [values for values, _ in found], "findings": beside}
        )
    for place, table in _each(document["tables"], "$.tables"):
        _exactly(table, place, _TABLE)
    del document["version"]
    written = msgspec.convert({**document, "sections": sections}, _Written)
    for i, section in enumerate(written.sections):
        for j, (measurement, values) in enumerate(zip(section.measurements, told[i], strict=True)):
            with _named(f"$.sections[{i}].measurements[{j}]"):
                check_told(measurement, values)
    return Report(**msgspec.structs.asdict(written))


def _each(documents: Any, where: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(documents, list):
        raise ValueError(f"{where} must be a list, got {described(documents)}")
    for i, document in enumerate(documents):
        yield f"{where}[{i}]", document


def _exactly(document: Any, where: str, names: set[str]) -> None:
    """Raise unless it is an object with these fields and no others."""
    if not isinstance(document, dict):
        raise ValueError(f"{where} must be an object, got {described(document)}")
    if set(document) != names:
        raise ValueError(
            f"{where}: fields {sorted(names - set(document))} are missing, "
            f"{sorted(set(document) - names)} are unknown"
        )


@contextmanager
def _named(where: str) -> Iterator[None]:
    """What is refused inside is refused as what stands at ``where``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
