"""The papers' figures as data (``figures.json``): of which encoders, and what of them is drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness import published
from harness.rows import Row, Table


@dataclass(frozen=True)
class Figure(Table):
    """A published figure: a table without numbers, whose rows' encoders are drawn.

    Attributes:
        show: names of a report's figures, or "over-settings" or "over-training".
        sweep: a setting's flag and its name, where each row is run with several values of it.
        missing: why it is not drawn.
    """

    show: tuple[str, ...] = ()
    sweep: tuple[str, str] | None = None
    missing: str | None = None


@cache
def everything() -> tuple[Figure, ...]:
    """Every figure of the four papers, those that are not drawn too."""
    path = Path(__file__).with_name("figures.json")
    return tuple(map(_figure, json.loads(path.read_text(encoding="utf-8"))))


def lookup(figure_id: str) -> Figure:
    """A figure by its id.

    Raises:
        ValueError: on an id that is not there, listing those that are, and on one that is not
            drawn, saying why.
    """
    by_id = {figure.id: figure for figure in everything()}
    if figure_id not in by_id:
        raise ValueError(f"no figure {figure_id!r}; there are {', '.join(by_id)}")
    found = by_id[figure_id]
    if found.missing:
        raise ValueError(f"{found.paper}, {found.caption}, is not drawn: {found.missing}")
    return found


def _figure(told: Mapping[str, Any]) -> Figure:
    flag, name, values = told.get("sweep", ("", "", [""]))
    rows = [
        row for one in told.get("rows", ()) for v in values for row in _rows(told, one, flag, v)
    ]
    return Figure(
        id=told["id"],
        paper=told["paper"],
        caption=told["caption"],
        data="cifar10",
        metrics={},
        rows=tuple(rows),
        note=told.get("note"),
        show=tuple(told.get("show", ())),
        sweep=(flag, name) if flag else None,
        missing=told.get("missing"),
    )


def _rows(told: Mapping[str, Any], one: Mapping[str, Any], flag: str, value: str) -> Iterator[Row]:
    """A row, or those of a table that the figure draws."""
    if "table" in one:
        yield from (row for row in published.lookup(one["table"]).rows if row.run)
        return
    scale = f"{one.get('scale', '')} {told.get('scale', '')}".split()
    run = f"{one['run']} {told.get('run', '')} {flag} {value}".split()
    label = f"{one['label']}, {value}" if flag else one["label"]
    protocols = dict.fromkeys(one.get("protocol", "slf").split(","), ())
    yield Row(label, protocols, tuple(run), tuple(scale))
