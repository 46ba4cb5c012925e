"""The papers' tables, and ours printed beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from advssl.balls import Ball
from advssl.evaluation import attacks
from advssl.evaluation.records import Measurement
from harness.published import everything as everything
from harness.published import ids as ids
from harness.published import lookup as lookup
from harness.published import recipes as recipes
from harness.published import tables_of as tables_of
from harness.recording import place_of
from harness.rows import MEASURES
from harness.rows import OWN as OWN
from harness.rows import Row as Row
from harness.rows import Table as Table
from harness.rows import said_of as said_of

# What stands for a measure that costs more, where that was not asked for.
_INSTEAD = {"pgd-250/4": "pgd/4", "pgd-250/10": "pgd/10", "mpgd-250": "mpgd"}


class Ours(NamedTuple):
    """What a row's command found.

    Attributes:
        mode: whose settings it ran with, "released" or "paper".
        values: accuracies by protocol and key of ``MEASURES``, of the last epoch's classifier.
    """

    mode: str
    values: Mapping[tuple[str, str], float]


def values_of(found: Sequence[Measurement], ball: Ball) -> dict[tuple[str, str], float]:
    """What :func:`harness.chain.measured` found within ``ball``, as :class:`Ours` has it."""
    places = [(place_of(m), m) for m in found]
    return {
        (place.protocol, measure_of(m, ball)): m.value for place, m in places if not place.selected
    }


def measure_of(m: Measurement, ball: Ball) -> str:
    """The key of ``MEASURES`` of a measurement within ``ball``."""
    for name in (name for name in attacks.ATTACKS if name != "aa"):
        for attack in attacks.ATTACKS[name](ball):
            if attack.settings.items() <= m.settings.items():
                several = f"{name}/{ball.radius / m.settings.get('step_size', 1):.0f}"
                return several if several in MEASURES else name
    return "aa"  # whose settings have the number of classes


def render(table: Table, ours: Mapping[str, Ours], data: str) -> str:
    """Markdown: each printed number with ours to its right, and whose settings a row has.

    Args:
        table: the printed numbers.
        ours: by row label.
        data: what ours are of.
    """
    digits = max(_digits(v) for row in table.rows for vs in row.published.values() for v in vs)
    heads = [cell for name in table.metrics for cell in (name, "ours")]
    lines = [
        f"**{table.id}** {table.paper}: {table.caption}. "
        f"Per cent; theirs on {table.data}, ours on {data}.",
        "",
        _line(["", "finetuning", "settings", *heads]),
        "|---|---|---|" + "--:|" * 2 * len(table.metrics),
    ]
    instead = set()
    for row in (row for row in table.rows if row.run):
        found = ours.get(row.label, Ours("–", {}))
        for protocol, values in row.published.items():
            cells = [row.label, "own head" if protocol == OWN else protocol, found.mode]
            for measure, theirs in zip(table.metrics.values(), values, strict=True):
                own = found.values.get((protocol, measure))
                if own is None and measure in _INSTEAD:
                    own = found.values.get((protocol, _INSTEAD[measure]))
                    instead |= set() if own is None else {measure}
                cells.append("–" if theirs is None else f"{theirs:.{digits}f}")
                cells.append("–" if own is None else f"{100 * own:.1f}")
            lines.append(_line(cells))
    lines.append("")
    for name, key in table.metrics.items():
        said = f"- {name}: {said_of(key)}"
        if key in instead:
            said += f"; ours {said_of(_INSTEAD[key])}, unless --attacks {key.partition('/')[0]}"
        lines.append(f"{said}.")
    for file in dict.fromkeys(name for row in table.rows for name in row.brought):
        lacking = [row.label for row in table.rows if file in row.brought and row.label not in ours]
        if lacking:
            lines.append(f"- Of {', '.join(lacking)}: there is no {file} here, to be brought.")
    for row in (row for row in table.rows if row.quoted):
        told = (f"{by} {', '.join(map(_number, values))}" for by, values in row.published.items())
        lines.append(f"- {row.label}, which the paper quotes from {row.quoted}: {'; '.join(told)}.")
    return "\n".join([*lines, *([f"- {table.note}"] if table.note else [])])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _digits(value: float | None) -> int:
    return 0 if value is None else len(str(value).partition(".")[2])
