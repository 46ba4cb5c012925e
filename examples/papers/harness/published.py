"""The papers' tables as data (``tables.json``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from harness.schedules import Recipe, Steps

Published: TypeAlias = Mapping[str, tuple[float | None, ...]]  # per cent, by finetuning protocol

OWN = "own"  # instead of a protocol: the classifier that the method itself trains
MEASURES = {
    "clean": "without attack",
    "pgd/4": "under PGD-20 with steps of a quarter of the radius",
    "pgd/10": "under PGD-20 with steps of a tenth of the radius",
    "pgd-l2": "under ℓ2 PGD-20 within 0.5, with --attacks pgd-l2",
    "mpgd": "under multi-targeted PGD-20, with --attacks mpgd",
    "aa": "under AutoAttack, with --attacks aa",
}


@dataclass(frozen=True)
class Row:
    """A line of a table, and what it takes to run it.

    Attributes:
        label: unique in the table.
        published: the printed numbers by protocol ("slf", "alf", "aff", or ``OWN``), one per
            metric; None where there is none.
        method: its name in ``methods.METHODS``; None if the harness has none.
        flags: settings that differ from the method's own.
        mode: "paper" or "released", whose settings the rest are; None is the run's own.
        backbone: the paper's, where it is not its ResNet-18.
        recipe: how the paper trains in this table, where it is not the method's own way.
        unavailable: why the row cannot be run here; None if it can.
    """

    label: str
    published: Published
    method: str | None
    flags: Mapping[str, Any]
    mode: str | None
    backbone: str | None
    recipe: Recipe | None
    unavailable: str | None

    @property
    def protocols(self) -> tuple[str, ...]:
        """To finetune by."""
        return tuple(name for name in self.published if name != OWN)


@dataclass(frozen=True)
class Table:
    """A published table's numbers on one data set.

    Attributes:
        id: such as "advcl-4": the paper's fourth table.
        paper: whose.
        caption: what the rows compare.
        data: what the numbers are of.
        metrics: what each column is, a key of ``MEASURES``, by the paper's name of it.
        rows: the lines.
        probe: the paper's finetuning, a preset of ``advssl.evaluation.probes``.
        note: where ours is another experiment.
    """

    id: str
    paper: str
    caption: str
    data: str
    metrics: Mapping[str, str]
    rows: tuple[Row, ...]
    probe: str | None
    note: str | None


@cache
def _content() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("tables.json").read_text(encoding="utf-8"))


def ids() -> list[str]:
    """Of all tables."""
    return [table["id"] for table in _content()["tables"]]


def lookup(table_id: str, data: str | None = None) -> Table:
    """A table by its id: its numbers on ``data``, else on the first data set it has.

    Raises:
        ValueError: on an id that is not there, listing those that are.
    """
    found = [table for table in _content()["tables"] if table["id"] == table_id]
    if not found:
        raise ValueError(f"no table {table_id!r}; there are {', '.join(ids())}")
    table = found[0]
    there = list(table["rows"][0]["published"])
    name = next((name for name in there if name.split()[0] == data), there[0])
    also = table.get("flags", {}).get(name, {})
    rows = tuple(
        Row(
            label=row["label"],
            published={p: tuple(values) for p, values in row["published"][name].items()},
            method=row.get("method"),
            flags={**row.get("flags", {}), **also},
            mode=row.get("mode", table.get("mode")),
            backbone=row.get("backbone", table.get("backbone")),
            recipe=_recipe(row.get("recipe", table.get("recipe"))),
            unavailable=_content()["reasons"].get(row.get("unavailable")),
        )
        for row in table["rows"]
    )
    said = {key: table.get(key) for key in ("id", "paper", "caption", "metrics", "probe", "note")}
    return Table(**said, data=name, rows=rows)


def _recipe(name: str | None) -> Recipe | None:
    if name is None:
        return None
    told = dict(_content()["recipes"][name])
    steps = Steps(told.pop("rate"), tuple(told.pop("divided_at")), told["epochs"])
    return Recipe(schedule=steps, **told)


def tables_of(method: str) -> list[Table]:
    """Those with a row that runs ``method``."""
    tables = [lookup(name) for name in ids()]
    return [
        table
        for table in tables
        if any(row.method == method and not row.unavailable for row in table.rows)
    ]
