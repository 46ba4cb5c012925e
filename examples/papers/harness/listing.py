"""What there is to run: every method, every row of every table, every figure, every preset.

Imports no torch, as no module does that names alone are asked of.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from harness import figures, published
from harness.presets import PRESETS
from harness.rows import Row, Table, said_of
from methods import METHODS

_DIGITS = ["--data", "digits@0-4", "--finetune-data", "digits@5-9"]  # where a table transfers


def listing(script: str) -> str:
    """All of it, a line each."""
    lines = []
    for name in METHODS:
        ids = ", ".join(published.tables_of(name)) or "none"
        lines.append(f"{name:13} {': '.join(METHODS.told(name))}; tables: {ids}")
    for table in published.everything():
        of = [said_of(key) for key in table.metrics.values()]
        told = ", ".join(f"{name} {said}" for name, said in zip(table.metrics, of, strict=True))
        lines += ["", f"{table.id} on {table.data}, {table.paper}: {table.caption}. {told}"]
        lines.append(f"  all its rows: {script} {shlex.join(whole(table))}")
        for row in table.rows:
            run = f"{script} {shlex.join(command(table, row))}" if row.run else ""
            lines.append(f"  {row.label}: {run or f'quoted from {row.quoted}'}")
    lines.append("")
    for figure in figures.everything():
        words = shlex.join([f"figure:{figure.id}", "--preset", "paper", *_data(figure)])
        run = f"not drawn, {figure.missing}" if figure.missing else f"{script} {words}"
        note = f" {figure.note}" if figure.note else ""
        lines.append(f"figure:{figure.id}, {figure.paper}, {figure.caption}: {run}.{note}")
    presets = (f"--preset {name}: {preset.what}" for name, preset in PRESETS.items())
    return "\n".join([*lines, "", *presets])


def command(table: Table, row: Row) -> list[str]:
    """The words that run a row as its paper did."""
    return [*table.words(row, paper=True), *_data(table)]


def whole(table: Table) -> list[str]:
    """The words that run all rows of a table as its paper did."""
    return ["--table", table.id, "--preset", "paper", *_data(table)]


def _data(table: Table) -> list[str]:
    first, _, second = table.data.partition(" to ")
    return ["--data", first, *(["--finetune-data", second] if second else [])]


def asked_of(table: Table, row: Row, words: Sequence[str], data: str, *, paper: bool) -> list[str]:
    """The words for a row of a table that is run with ``words``, on ``data``.

    What a transfer is finetuned on, if the words do not say, is the paper's, beside ``data``.
    """
    own, (_, to, second) = table.words(row, paper=paper), table.data.partition(" to ")
    if to:
        place = ":".join([second, *data.split(":")[1:]])
        own += _DIGITS if data == "digits" else ["--finetune-data", place]
    return [*own, *words]
