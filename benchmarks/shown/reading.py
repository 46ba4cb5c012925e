"""What every table reads and writes: records, measurements of a row, cells."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from msgspec import structs

from advssl.evaluation.protocols import preset_name
from advssl.evaluation.records import Measurement
from advssl.evaluation.statistics import wilson

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def recorded(name: str) -> bool:
    return (RESULTS / f"{name}.json").exists()


def by_probe(runs: list[dict[str, Any]], row: str) -> dict[str, list[dict[str, Any]]]:
    """The runs of a row, those measured under one probe together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["row"] == row:
            found.setdefault(preset_name(run["plan"]["preset"]), []).append(run)
    return found


def measured(runs: list[dict[str, Any]]) -> list[list[list[Measurement]]]:
    """Of the own and of the other branch: clean, PGD-20 and multi-targeted, each over seeds."""
    found: dict[str, dict[str, list[Measurement]]] = {}
    for run in runs:
        for entry in run["measurements"]:
            m = Measurement.from_json(json.dumps(entry))
            protocol, branch, selected, attack = _place(m)
            if protocol == "slf" and not selected and not _small(m):
                found.setdefault(branch, {}).setdefault(attack, []).append(m)
    return [*(list(place.values()) for place in found.values()), []][:2]


def _place(m: Measurement) -> tuple[str, str, str, str]:
    """Protocol, branch, how its epoch was selected, and attack; in one name before 0.2."""
    if m.probe and m.model:
        return m.probe.protocol, m.model.branch or "", m.probe.selected or "", m.name
    place, _, attack = m.name.partition(": ")
    place, _, selected = place.partition(", ")
    protocol, _, branch = place.partition(" ")
    return protocol, branch, selected, attack


def _small(m: Measurement) -> bool:
    """PGD with steps of a tenth of the radius: in the record, not in the table."""
    return (
        m.settings["attack"] == "PGD" and m.settings["step_size"] < m.settings["ball"]["radius"] / 5
    )


def named(row: str, found: list[Measurement]) -> list[Measurement]:
    return [structs.replace(m, name=row) for m in found]


def cell(found: list[Measurement]) -> str:
    return over([m.value for m in found])


def over(shares: list[float]) -> str:
    values = [100 * share for share in shares]
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}" if values else ""


def with_interval(m: Measurement) -> str:
    low, high = wilson(sum(m.correct), m.n)
    return f"{100 * m.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def points(interval: tuple[float, float]) -> str:
    return "{:+.1f} to {:+.1f}".format(*(100 * end for end in interval))


def power(value: float) -> str:
    digits, power = f"{value:.1e}".split("e")
    return f"{digits} × 10^{int(power)}"


def method(command: str) -> Any:
    return of_papers("methods").METHODS[command]


def of_papers(module: str) -> Any:
    folder = str(ROOT / "examples" / "papers")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module(module)
