"""The papers' tables as data (``tables.json``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from harness.rows import Row, Table
from harness.schedules import Recipe, Steps


@cache
def _content() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("tables.json").read_text(encoding="utf-8"))


def ids() -> list[str]:
    """Of all tables."""
    return [table["id"] for table in _content()["tables"]]


def everything() -> list[Table]:
    """Every table on every data set."""
    return [
        lookup(table["id"], *data.split(" to "))
        for table in _content()["tables"]
        for data in table["rows"][0]["published"]
    ]


def lookup(table_id: str, data: str | None = None, finetuned_on: str | None = None) -> Table:
    """A table by its id: its numbers on ``data``, else on the first data set it has.

    Raises:
        ValueError: on an id that is not there, listing those that are.
    """
    found = [table for table in _content()["tables"] if table["id"] == table_id]
    if not found:
        raise ValueError(f"no table {table_id!r}; there are {', '.join(ids())}")
    table, there = found[0], list(found[0]["rows"][0]["published"])
    fits = [name for name in there if name.split(" to ")[0] == data] or there
    name = next((name for name in fits if name.split(" to ")[-1] == finetuned_on), fits[0])
    also = table.get("on", {}).get(name, {})

    def words(row: Mapping[str, Any], kind: str) -> tuple[str, ...]:
        said = (row.get(kind, ""), table.get(kind, ""), also.get(kind, ""))
        return tuple(" ".join(said).split())

    rows = tuple(
        Row(
            label=row["label"],
            published={p: tuple(values) for p, values in row["published"][name].items()},
            run=() if "quoted" in row else words(row, "run"),
            scale=words(row, "scale"),
            quoted=row.get("quoted"),
        )
        for row in table["rows"]
    )
    metrics = {**table["metrics"], **also.get("metrics", {})}
    said = {key: table.get(key) for key in ("id", "paper", "caption", "note")}
    return Table(**said, data=name, metrics=metrics, rows=rows)


def recipes() -> dict[str, Recipe]:
    """How a paper trains in its tables, where that is not the method's own way."""
    found = {}
    for name, told in _content()["recipes"].items():
        rest = {key: told[key] for key in ("batch_size", "optimizer", "weight_decay")}
        steps = Steps(told["rate"], tuple(told["divided_at"]), told["epochs"])
        found[name] = Recipe(told["epochs"], schedule=steps, **rest)
    return found


def tables_of(method: str) -> list[str]:
    """Ids of those with a row that runs ``method``."""
    return [name for name in ids() if any(row.run[:1] == (method,) for row in lookup(name).rows)]
