"""The papers' tables, and ours printed beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advssl.evaluation.records import Measurement
from harness.published import MEASURES, OWN, Table
from harness.published import Published as Published
from harness.published import Row as Row
from harness.published import ids as ids
from harness.published import lookup as lookup
from harness.published import tables_of as tables_of
from harness.recording import place_of


def render(
    table: Table, ours: Mapping[str, Sequence[Measurement]], data: str, mode: str = "released"
) -> str:
    """Markdown: each printed number with ours to its right, and whose settings a row has.

    Args:
        table: the printed numbers.
        ours: by row label, what :func:`harness.chain.measured` found; of each classifier, the one
            after the last epoch is shown.
        data: what ours are of.
        mode: of rows that do not say.
    """
    digits = max(_digits(v) for row in table.rows for vs in row.published.values() for v in vs)
    head = [
        "",
        "finetuning",
        "settings",
        *(cell for name in table.metrics for cell in (name, "ours")),
    ]
    lines = [
        f"**{table.id}** {table.paper}: {table.caption}. "
        f"Per cent; theirs on {table.data}, ours on {data}.",
        "",
        _line(head),
        "|---|---|---|" + "--:|" * 2 * len(table.metrics),
    ]
    for row in table.rows:
        found = {_key(m): m.value for m in ours.get(row.label, ())}
        for protocol, values in row.published.items():
            cells = [row.label, "own head" if protocol == OWN else protocol]
            cells.append("–" if row.unavailable else row.mode or mode)
            for measure, theirs in zip(table.metrics.values(), values, strict=True):
                own = found.get((protocol, measure))
                cells.append("–" if theirs is None else f"{theirs:.{digits}f}")
                cells.append("–" if own is None else f"{100 * own:.1f}")
            lines.append(_line(cells))
    lines += ["", *(f"- {name}: {MEASURES[key]}." for name, key in table.metrics.items())]
    reasons = dict.fromkeys(row.unavailable for row in table.rows if row.unavailable)
    for reason in reasons:
        labels = ", ".join(row.label for row in table.rows if row.unavailable == reason)
        lines.append(f"- {labels}: not reproducible here: {reason}.")
    return "\n".join([*lines, *([f"- {table.note}"] if table.note else [])])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _digits(value: float | None) -> int:
    return 0 if value is None else len(str(value).partition(".")[2])


def _key(m: Measurement) -> tuple[str, str]:
    """The protocol and the measure of what :func:`harness.chain.measured` found."""
    place = place_of(m)
    return "" if place.selected else place.protocol, _measure(m.settings)


def _measure(settings: Mapping[str, Any]) -> str:
    attack = settings["attack"]
    if attack == "PGD":
        if settings["ball"]["norm"] == "L2":
            return "pgd-l2"
        steps = settings["ball"]["radius"] / settings["step_size"]
        return f"pgd/{steps:.0f}"
    return {"clean": "clean", "multi-targeted PGD": "mpgd"}.get(attack, "aa")
