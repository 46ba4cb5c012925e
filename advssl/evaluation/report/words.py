"""Words: numbers, radii and settings as people write them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from advssl.evaluation.checks import percent as percent
from advssl.evaluation.records import Measurement, Threat
from advssl.evaluation.statistics import Interval, wilson

Cell: TypeAlias = str | int | float | Interval | None

_MOST_VALUES = 12  # of a list, printed in a table's cell
_LENGTHS = ("eps", "epsilon", "radius", "step_size")
_NORMS = {"linf": "ℓ∞", "l2": "ℓ2"}


def ends(measurement: Measurement) -> Interval:
    """Of the accuracy's 95 % interval over the choice of images."""
    return wilson(sum(measurement.correct), measurement.n)


def interval(measurement: Measurement) -> str:
    low, high = ends(measurement)
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def threat(of: Threat) -> str:
    return f"{_NORMS.get(of.norm, of.norm)} {pixels(of.radius)}"


def pixels(radius: float) -> str:
    """A radius as people write it: 8/255 if it is such a fraction and no short decimal."""
    levels = radius * 255
    if radius > 1 or abs(radius - round(radius, 3)) < 1e-9 or abs(levels - round(levels, 1)) > 1e-6:
        return f"{radius:.4g}"
    return f"{round(levels, 1):g}/255"


def text(value: Any, key: str = "") -> str:
    """A value of a mapping."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return pixels(value) if key in _LENGTHS else f"{value:.6g}"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{k.replace('_', ' ')} {text(v, k)}" for k, v in value.items())
        return f"({inner})" if key else inner
    if isinstance(value, list | tuple):
        if key == "worst_case_of":
            return "; ".join(m["name"] for m in value)
        shown = ", ".join(text(v, key) for v in value[:_MOST_VALUES])
        more = f", … ({len(value)} in all)" if len(value) > _MOST_VALUES else ""
        return f"{shown}{more}" or "none"
    return str(value)


def cell(value: Cell) -> str:
    """A number with one decimal, or two digits where that is less."""
    if value is None or isinstance(value, str):
        return value or "–"
    if isinstance(value, tuple):
        return " to ".join(map(cell, value))
    return f"{value:.1f}" if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"


def counted(count: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(one.ljust(width) for one, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def wrapped(text: str, first: str = "", rest: str = "  ") -> str:
    """In lines as wide as the terminal, 100 characters at most."""
    width = min(shutil.get_terminal_size().columns, 100)
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
