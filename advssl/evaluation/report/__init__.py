"""Reports: measurements, checks and curves as data, and the pages that show doubt first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from advssl.evaluation.provenance import folder_at, replacing
from advssl.evaluation.report.content import CLEAN as CLEAN
from advssl.evaluation.report.content import Report as Report
from advssl.evaluation.report.content import Section as Section
from advssl.evaluation.report.content import Strip as Strip
from advssl.evaluation.report.content import Table as Table
from advssl.evaluation.report.content import by_column as by_column
from advssl.evaluation.report.content import failed as failed
from advssl.evaluation.report.content import known as known
from advssl.evaluation.report.faces import html as html
from advssl.evaluation.report.faces import markdown as markdown
from advssl.evaluation.report.faces import terminal as terminal
from advssl.evaluation.report.figures import figures as figures
from advssl.evaluation.report.findings import drawn as drawn
from advssl.evaluation.report.findings import sentence as sentence
from advssl.evaluation.report.record import VERSION as VERSION
from advssl.evaluation.report.record import read as read
from advssl.evaluation.report.record import to_json as to_json
from advssl.evaluation.report.words import Cell as Cell
from advssl.evaluation.statistics import wilson as wilson

_FACES: tuple[tuple[str, str, Callable[[Report], str]], ...] = (
    ("record", "record.json", to_json),
    ("markdown", "report.md", markdown),
    ("html", "report.html", html),
)


def write(report: Report, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write ``record.json``, ``report.md`` and ``report.html``, each whole or not at all.

    The record is written first: it is there even if the figures cannot be drawn.

    Args:
        report: what to write.
        folder: where to; it is made if it is not there.

    Returns:
        The three paths under "record", "markdown" and "html".
    """
    place = folder_at(folder)
    paths = {}
    for kind, name, face in _FACES:
        paths[kind] = place / name
        with replacing(paths[kind]) as partial:
            partial.write_text(face(report), encoding="utf-8", newline="\n")
    return paths
