"""How fast, and how near an estimate of it comes."""

from __future__ import annotations

from statistics import median, quantiles
from typing import Any

from shown import reading


def speed() -> str:
    """Every row of the record, those of one machine together."""
    if not reading.recorded("speed"):
        return "Nothing is recorded yet: `make bench` measures."
    by_place: dict[str, list[dict[str, Any]]] = {}
    for row in reading.read("speed")["rows"]:
        by_place.setdefault(place(row["machine"]), []).append(row)
    return "\n\n".join(
        f"**{where}**\n\n{speed_table(rows)}\n\n{_measured_with(rows)}"
        for where, rows in by_place.items()
    )


def speed_table(rows: list[dict[str, Any]]) -> str:
    """One line per claim; the ratios are medians over turns of ours over the other's."""
    lines = [
        "| what | against | goal | measured | quartiles (turns) | ours | other | met? |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        for claim in row["claims"]:
            lines.append(f"| {' | '.join(_line(claim, row['machine']['can']))} |")
    return "\n".join(lines)


def place(machine: dict[str, Any]) -> str:
    """Rows are comparable where this is the same."""
    if machine["device"] == "cuda":
        return str(machine["gpu"])
    return f"{machine['cpu']}, {machine['threads']} threads"


def _line(claim: dict[str, Any], can: list[str]) -> list[str]:
    values, unit = claim["values"], claim["unit"]
    goal = ""
    if claim["goal"] is not None:
        goal = f"{'≥' if claim['at_least'] else '≤'} {claim['goal']:g}{_of(unit)}"
    raw = [
        "" if claim[side] is None else f"{_figure(claim[side])} {claim['of']}"
        for side in ("ours", "other")
    ]
    note = f" ({claim['note']})" if claim["note"] else ""
    against = f"{claim['against']}{note}".strip()
    if not values:
        return [claim["what"], against, goal, "", "", *raw, ""]
    low, middle, high = _quartiles(values)
    spread = f"{_figure(low)} to {_figure(high)} ({len(values)})" if len(values) > 1 else "once"
    return [
        claim["what"],
        against,
        goal,
        f"{_figure(middle)}{_of(unit)}",
        spread,
        *raw,
        _met(claim, (low, middle, high), can),
    ]


def _met(claim: dict[str, Any], quartiles: tuple[float, float, float], can: list[str]) -> str:
    if claim["goal"] is None:
        return ""
    low, middle, high = quartiles
    if claim["at_least"]:
        low, middle, high = -high, -middle, -low
    goal = -claim["goal"] if claim["at_least"] else claim["goal"]
    if claim["needs"] and claim["needs"] not in can:
        return f"{'yes, even' if middle <= goal else 'n/a here:'} without {claim['needs']}"
    if middle <= goal:
        return "yes" if high <= goal else "yes, within the spread"
    return "no, within the spread" if low <= goal else "**no**"


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _of(unit: str) -> str:
    return "" if unit in ("×", "exponent") else f" {unit}"


def _figure(value: float) -> str:
    if value == 0 or 0.1 <= abs(value) < 100:
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def _measured_with(rows: list[dict[str, Any]]) -> str:
    machines = [row["machine"] for row in rows]
    said = {
        "commit": sorted({str(row["commit"])[:10] for row in rows}),
        "torch": sorted({m["torch"] for m in machines}),
        "batch of attacks and steps": sorted({row["sizes"]["batch"] for row in rows}),
        "width of their ResNet-18": sorted({row["sizes"]["width"] for row in rows}),
        "the machine has": sorted({thing for m in machines for thing in m["can"]}),
        "beside": sorted({f"{n} {v}" for m in machines for n, v in m["beside"].items()}),
    }
    listed = "; ".join(
        f"{name} {', '.join(map(str, found))}" for name, found in said.items() if found
    )
    minutes = sum(row["seconds"] for row in rows) / 60
    return f"{listed}. {minutes:.0f} minutes in all."


def estimates() -> str:
    """By how much a step is longer with its components: as `advssl cost` has it, and as it is."""
    record = reading.read("estimates")
    lines = [
        "| step and components | F per image | estimated | measured | off | turns |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name, row in record["stacks"].items():
        turns = row["turns"]
        both = [f"× {median(t[key] for t in turns):.2f}" for key in ("estimated", "measured")]
        off = row["off_by_turn"]
        cells = [f"{turns[0]['F']:.1f}", *both, f"{100 * row['off']:+.1f} %"]
        cells += [f"{len(off)}: {100 * min(off):+.0f} to {100 * max(off):+.0f} %"]
        lines.append(f"| {' | '.join([name, *cells])} |")
    rows = record["stacks"].values()
    commits = sorted({row["commit"][:10] for row in rows})
    load = max(t["load"] for row in rows for t in row["turns"])
    machine = next(iter(rows))["machine"]
    return "\n".join(
        [
            *lines,
            "",
            'Medians over turns, of which "off" is the estimate over what was measured, less one; '
            f"seconds of the processor, one thread, beside other work (load up to {load:.0f} on "
            f"{machine['cores']} cores). `benchmarks/results/estimates.json`, commit "
            f"{', '.join(commits)}, {machine['cpu']}, torch {machine['torch']}.",
        ]
    )
