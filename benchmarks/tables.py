"""Write the tables of README and docs from benchmarks/results/, so that no number is typed.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import fields
from functools import partial
from importlib import import_module
from math import sqrt
from pathlib import Path
from statistics import fmean, median, mode, quantiles, stdev
from typing import Any

from msgspec import structs

from advssl.evaluation import report
from advssl.evaluation.protocols import preset_name
from advssl.evaluation.records import Measurement, compare
from advssl.evaluation.report import pictures
from advssl.evaluation.report.words import counted
from advssl.evaluation.statistics import wilson

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def quickstart() -> str:
    record = json.loads((RESULTS / "quickstart.json").read_text(encoding="utf-8"))
    example = runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="quickstart")
    table = example["make_table"](record).strip()
    return f"{table}\n\n{_verdict(record)}\n\n{provenance(record, 'quickstart.json')}"


def _verdict(record: dict[str, Any]) -> str:
    """Whether the GSA terms change robustness beyond the noise between seeds, in a sentence."""
    _, host, stack = record["methods"]
    pairs = zip(host["pgd"]["values"], stack["pgd"]["values"], strict=True)
    gains = [100 * (b - a) for a, b in pairs]
    mean, half = fmean(gains), _T_95[len(gains)] * stdev(gains) / sqrt(len(gains))
    verdict = "a difference" if abs(mean) > half else "no difference that this short run can show"
    return (
        f"{stack['name']} against {host['name']} alone, on the same {len(gains)} seeds: "
        f"{mean:+.1f} points of PGD accuracy, 95 % interval {mean - half:+.1f} to "
        f"{mean + half:+.1f}: {verdict}."
    )


def provenance(record: dict[str, Any], file: str) -> str:
    """Where a number came from, in a line."""
    machine = record["machine"]
    spent = sum(sum(phase) for m in record["methods"] for phase in m["seconds"].values())
    return (
        f"Record: [`benchmarks/results/{file}`](../benchmarks/results/{file}). "
        f"`{record['command']}`, seeds {record['seeds']}, commit {record['commit'][:10]}, "
        f"{spent / 60:.0f} minutes of one core, beside other work, on {machine['cpu']}, "
        f"torch {machine['torch']}."
    )


# Student's t, 97.5 %, for the mean of so many differences.
_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def evidence() -> str:
    """Clean and attacked, of three records: digits, photographs, a network of others."""
    lines = [
        "| accuracy (%) | clean | PGD-20 | ℓ∞ | images | trainings |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    record = _read("quickstart")
    seeds = len(record["seeds"])
    for method in record["methods"][:2]:
        name = (
            "SimCLR + adversarial view" if method["name"] == "adversarial view" else method["name"]
        )
        cells = [_over(method["clean"]["values"]), _over(method["pgd"]["values"])]
        cells += [f"{record['schedule']['radius']:g}", str(method["pgd"]["n"]), str(seeds)]
        lines.append(f"| digits, {name} | {' | '.join(cells)} |")
    record = _read("papers_cifar")
    for row in record["rows"]:
        runs = next(iter(_by_probe(record["runs"], row).values()))
        clean, robust = _measured(runs)[0][:2]
        radius = f"{255 * runs[0]['settings']['radius']:.0f}/255"
        cells = [_cell(clean), _cell(robust), radius, f"{clean[0].n:,}", str(len(runs))]
        lines.append(f"| CIFAR-10, {row} | {' | '.join(cells)} |")
    for name, record in speedrun_records().items():
        clean, robust, _ = speedrun_measured(record).values()
        cells = [_cell(clean), _cell(robust), "8/255", f"{clean[0].n:,}", str(len(clean))]
        lines.append(f"| CIFAR-10, `{name}.py` | {' | '.join(cells)} |")
    record, found = _robustified()
    radius = f"{255 * record['settings']['radius']:.0f}/255"
    for what, both in zip(
        ("a ResNet-18 of others", "the same after FARE"), found.values(), strict=True
    ):
        cells = [*(_cell([m]) for m in both), radius, str(both[0].n), "1"]
        lines.append(f"| CIFAR-10, {what} | {' | '.join(cells)} |")
    runs = _read("papers_cifar")["runs"]
    spent = sorted(run["seconds"]["pretraining"] / 60 for run in runs)
    return "\n".join(lines) + (
        "\n\nLinear probes on frozen encoders, of photographs a quarter as wide as the papers'; "
        "the last two rows by the own head of a full-width network. The papers' methods had "
        f"{runs[0]['presentations']:,} presentations, {spent[0]:.0f} to "
        f"{spent[-1]:.0f} minutes of a CPU core; GSA-RSL's network is its release's, another than "
        f"the others'. FARE took {record['seconds']['training'] / 60:.0f} minutes; what the "
        "[speedrun](docs/speedrun.md) took stands there. "
        "Records: `quickstart.json`, `papers_cifar.json`, `speedrun_half_hour.json` and "
        "`robustify.json` in `benchmarks/results/`."
    )


# --- the papers' methods --------------------------------------------------------------------------

_PRECISIONS = [
    ("float32", "attack in bf16"),
    ("float32", "bf16, attack in float32"),
    ("bf16, attack in float32", "bf16"),
    ("float32", "bf16"),
]
_COMPARED = {
    "papers_digits": [
        ("SimCLR", "SimCLR + adversarial view"),
        ("SimCLR + adversarial view", "ACL-DS"),
        ("SimCLR + adversarial view", "AdvCL"),
        ("SimCLR + adversarial view", "GSA-RSL"),
        ("GSA-RSL, no SAM", "GSA-RSL"),
        ("GSA-RSL, no critic", "GSA-RSL"),
        ("GSA-RSL, neither", "GSA-RSL"),
        ("GSA-RSL, ResNet-18", "GSA-RSL"),
        ("AdvCL", "AdvCL + GSA"),
        ("AdvCL + GSA, as GSA reads AdvCL", "AdvCL + GSA"),
        ("ACL-DS", "ACL-A2A"),
        ("ACL-DS", "ACL-A2S"),
        ("SimCLR + adversarial view", "SimCLR + adversarial view, weak second view"),
        ("ACL-DS", "ACL-DS, weak second view"),
        ("AdvCL", "AdvCL, weak second view"),
    ],
    "papers_cifar": [("SimCLR", "AdvCL"), ("SimCLR", "GSA-RSL"), ("AdvCL", "GSA-RSL")],
    "papers_equal_cifar": [
        ("SimCLR", "DeACL"),
        ("SimCLR", "AdvCL"),
        ("ACL-DS", "DynACL"),
        ("ACL-DS", "AdvCL"),
        ("AdvCL", "GSA-RSL"),
        ("AdvCL", "AdvCL + GSA"),
        ("AdvCL", "DeACL"),
        ("AdvCL", "supervised AT"),
    ],
    "precision_digits": _PRECISIONS,
    "precision_cifar": _PRECISIONS,
}


def papers(name: str) -> str:
    """Accuracies of every row, the paired comparisons, and where they came from."""
    return _accuracies(_read(name), _COMPARED[name])


def _read(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def _accuracies(record: dict[str, Any], pairs: list[tuple[str, str]]) -> str:
    name = record["name"]
    probes = [*map(preset_name, record.get("probes", [record["runs"][0]["plan"]["preset"]]))]
    by_row = {row: _by_probe(record["runs"], row) for row in record["rows"]}
    measured = {row: _measured(runs[probes[0]]) for row, runs in by_row.items()}
    branches = any(other for _, other in measured.values())
    timed = not name.startswith("precision")  # how fast a precision is, `speed` measures fairly
    heads = ["clean", "PGD-20", "multi-targeted", *["other branch", "PGD-20"] * branches]
    for probe in probes[1:]:
        heads += [f"clean, {probe}", f"PGD-20, {probe}"]
    heads += ["minutes"] * timed
    lines = [f"| accuracy (%) | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for row, runs in by_row.items():
        own, other = measured[row]
        cells = [_cell(found) for found in [*own, [], []][:3]]
        cells += [_cell(found) for found in [*other, [], []][:2]] * branches
        for probe in probes[1:]:
            cells += [_cell(found) for found in _measured(runs[probe])[0][:2]]
        minutes = fmean(run["seconds"]["pretraining"] for run in runs[probes[0]]) / 60
        cells += [f"{minutes:.1f}"] * timed
        lines.append(f"| {' | '.join([row, *cells])} |")
    attacked = {row: _named(row, own[1]) for row, (own, _) in measured.items()}
    verdicts = [f"- {compare(attacked[a], attacked[b])}" for a, b in pairs if {a, b} <= {*attacked}]
    under = _under(record, probes, _OTHER * branches + _MINUTES * timed)
    return "\n".join([*lines, "", under, "", "PGD-20, paired by image:", "", *verdicts])


def _named(row: str, found: list[Measurement]) -> list[Measurement]:
    return [structs.replace(m, name=row) for m in found]


# Every system of the papers, a host and what it is with GSA's terms behind one another.
_SYSTEMS = [
    *("random encoder", "natural training", "supervised AT", "TRADES", "ADR", "ASCL", "SupCon"),
    *("ASCL-2023", "SimCLR", "SimCLR + adversarial view", "RoCL", "RoCL, as GSA trains it"),
    *("CLAE", "CLAE, as GSA trains it", "ACL-A2A", "ACL-A2S", "ACL-DS", "ACL-DS + GSA"),
    *("DynACL", "DynACL + GSA", "DynACL++", "ACL-AIR", "ACL-AIR + GSA"),
    *("DynACL-AIR", "DynACL-AIR + GSA", "AdvCL", "AdvCL + GSA", "GSA-RSL, ResNet-18"),
    *("DeACL", "FARE"),
]
_HOSTS = [host for host in _SYSTEMS if f"{host} + GSA" in _SYSTEMS]


def systems() -> str:
    """All systems on one network under one probe: the rows of two records."""
    pairs = [("SimCLR + adversarial view", row) for row in ("RoCL", "DynACL", "DeACL", "FARE")]
    pairs += [("ACL-DS", "DynACL"), ("DynACL", "DynACL++"), ("ACL-DS", "ACL-AIR")]
    pairs += [
        ("supervised AT", "TRADES"),
        ("supervised AT", "ASCL"),
        ("supervised AT", "ASCL-2023"),
    ]
    return _accuracies(_systems(), pairs)


def _systems() -> dict[str, Any]:
    own, digits = _read("papers_systems"), _read("papers_digits")
    runs = [run for run in digits["runs"] + own["runs"] if run["row"] in _SYSTEMS]
    both = [digits["name"], own["name"]]
    return {
        "name": own["name"],
        "of": both,
        "rows": _SYSTEMS,
        "probes": own["probes"],
        "runs": runs,
    }


def gsa_hosts() -> str:
    """GSA-RSL's Table 2: each host alone, with GSA's terms, and the difference paired by image."""
    record = _systems()
    heads = ["clean", "PGD-20", "+ GSA: clean", "PGD-20", "PGD-20 gains, points"]
    heads += ["95 % over images", "95 % over seeds", "beyond noise"]
    lines = [f"| host | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for host in _HOSTS:
        alone, stack = (
            _measured(_by_probe(record["runs"], row)[record["probes"][0]])[0][:2]
            for row in (host, f"{host} + GSA")
        )
        found = compare(_named("alone", alone[1]), _named("stack", stack[1]))
        seeds = found.seed_interval
        cells = [_cell(side) for side in (*alone, *stack)]
        cells += [f"{100 * found.difference:+.1f}", _points(found.image_interval)]
        cells += [_points(seeds) if seeds else "", "yes" if found.differs else "no"]
        lines.append(f"| {' | '.join([host, *cells])} |")
    return "\n".join(lines)


def _points(interval: tuple[float, float]) -> str:
    return "{:+.1f} to {:+.1f}".format(*(100 * end for end in interval))


def _by_probe(runs: list[dict[str, Any]], row: str) -> dict[str, list[dict[str, Any]]]:
    """The runs of a row, those measured under one probe together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["row"] == row:
            found.setdefault(preset_name(run["plan"]["preset"]), []).append(run)
    return found


def _measured(runs: list[dict[str, Any]]) -> list[list[list[Measurement]]]:
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


def _cell(found: list[Measurement]) -> str:
    return _over([m.value for m in found])


def _over(shares: list[float]) -> str:
    values = [100 * share for share in shares]
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}" if values else ""


_OTHER = "The other branch is the method's second BatchNorm. "
_MINUTES = "Minutes are of pretraining on one core, beside other work that may have held it up. "


def _under(record: dict[str, Any], probes: list[str], columns: str) -> str:
    run = record["runs"][-1]
    presentations = mode(r["presentations"] for r in record["runs"])
    plan, machine = run["plan"], run["machine"]
    seeds = sorted({r["plan"]["seed"] for r in record["runs"]})
    precisions = {r["plan"]["precision"] for r in record["runs"]}
    precision = precisions.pop() if len(precisions) == 1 else "training in the precision named"
    commits = sorted({r["commit"][:10] for r in record["runs"]})
    n = run["measurements"][0]["n"]
    networks: dict[str, list[str]] = {}  # whose rows, in the order of the table
    for row in record["rows"]:
        for found in {r["plan"]["backbone"]: 0 for r in record["runs"] if r["row"] == row}:
            networks.setdefault(found, []).append(row)
    usual = max(networks, key=lambda found: len(networks[found]))
    others = [f"{name} for {'; '.join(rows)}" for name, rows in networks.items() if name != usual]
    backbone = f"{usual} ({', '.join(others)})" if others else usual
    files = [f"`benchmarks/results/{name}.json`" for name in record.get("of", [record["name"]])]
    spread = f"mean ± standard deviation over seeds {seeds}" if len(seeds) > 1 else "one seed"
    return (
        f"{backbone} at {plan['image_size']} pixels, {presentations:,} image "
        f"presentations each, {precision}, linear probe on the frozen encoder (`{probes[0]}`, last "
        f"epoch), {spread}; {n:,} test images, ℓ∞ radius {run['settings']['radius']:.3g}, PGD "
        f"with steps of a quarter of it, multi-targeted PGD-20 on the first seed alone. {columns}"
        f"Record: {' and '.join(files)}, commit {', '.join(commits)}, "
        f"{machine['cpu']}, torch {machine['torch']}."
    )


def _small(m: Measurement) -> bool:
    """PGD with steps of a tenth of the radius: in the record, not in the table."""
    return (
        m.settings["attack"] == "PGD" and m.settings["step_size"] < m.settings["ball"]["radius"] / 5
    )


# --- what to expect, and what others print --------------------------------------------------------

_EXPECTED = {
    "papers_systems": ("SimCLR", "SimCLR + adversarial view", "DynACL-AIR", "AdvCL", "FARE"),
    "papers_cifar": ("SimCLR", "AdvCL", "GSA-RSL"),
}


def expectations() -> str:
    """What short runs left: presentations and radius to clean and robust accuracy."""
    heads = ["images × epochs", "radius", "clean", "PGD-20", "pretraining takes, of SimCLR's"]
    lines = [f"| run | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for name, rows in _EXPECTED.items():
        record = _systems() if name == "papers_systems" else _read(name)
        of = [r for r in record["runs"] if r["row"] == "SimCLR"]
        plain = fmean(r["seconds"]["pretraining"] for r in of)
        for row in rows:
            probe, *_ = _by_probe(record["runs"], row).values()
            clean, robust = _measured(probe)[0][:2]
            plan, epochs = probe[0]["plan"], probe[0]["plan"]["recipe"]["epochs"]
            factor = fmean(r["seconds"]["pretraining"] for r in probe) / plain
            what = f"{row}, {plan['backbone']}, {plan['image_size']} pixels"
            images = f"{probe[0]['presentations'] // epochs:,} × {epochs}"
            radius = f"{probe[0]['settings']['radius']:.3g}"
            cells = [what, images, radius, _cell(clean), _cell(robust), f"{factor:.1f} ×"]
            lines.append(f"| {' | '.join(cells)} |")
    _, found = _robustified()
    record = _read("robustify")
    epochs, images = record["recipe"]["epochs"], record["training_images"]
    clean, robust = ([m] for m in found["after"])
    what = "a pretrained ResNet-18 by FARE, 32 pixels"
    radius = f"{record['settings']['radius']:.3g}"
    cells = [what, f"{images:,} × {epochs}", radius, _cell(clean), _cell(robust), ""]
    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + (
        "\n\nDigits at 8 pixels over three seeds, CIFAR-10 at 32 of one, by a linear probe "
        "(`advcl`), the last row by the network's own head; times beside other work. "
        "Records: `benchmarks/results/papers_digits.json`, `papers_systems.json`, "
        "`papers_cifar.json`, `robustify.json`."
    )


def published() -> str:
    """The papers' own numbers on CIFAR-10, from the tables that ``reproduce.py --table`` has."""
    path = ROOT / "examples" / "papers" / "harness" / "tables.json"
    parts = []
    for table in json.loads(path.read_text(encoding="utf-8"))["tables"]:
        rows = [row for row in table["rows"] if "cifar10" in row["published"]]
        if not rows or any(key.startswith("to ") for key in table["metrics"].values()):
            continue
        lines = [f"| {table['paper']} | by | {' | '.join(table['metrics'])} |"]
        lines.append(f"|---|---|{'--:|' * len(table['metrics'])}")
        for row in rows:
            for protocol, values in row["published"]["cifar10"].items():
                cells = ["" if v is None else f"{v:.2f}" for v in values]
                lines.append(f"| {row['label']} | {protocol} | {' | '.join(cells)} |")
        parts.append("\n".join([f"**`{table['id']}`**: {table['caption']}", "", *lines]))
    return "\n\n".join(parts)


# --- what the papers claim ----------------------------------------------------------------------

# Where it is printed, the lower and the higher row there, and what they are called here.
_CLAIMS = [
    ("gsa-1", "RoCL", "GSA-RSL", "RoCL, as GSA trains it", "GSA-RSL, ResNet-18"),
    ("gsa-1", "CLAE", "GSA-RSL", "CLAE, as GSA trains it", "GSA-RSL, ResNet-18"),
    ("gsa-1", "AdvCL", "AdvCL + GSA-RSL", "AdvCL", "AdvCL + GSA"),
    ("gsa-2", "ACL-DS", "ACL-DS + GSA-RSL", "ACL-DS", "ACL-DS + GSA"),
    ("gsa-2", "ACL-Dyn", "ACL-Dyn + GSA-RSL", "DynACL", "DynACL + GSA"),
    ("gsa-2", "ACL-AIR", "ACL-AIR + GSA-RSL", "ACL-AIR", "ACL-AIR + GSA"),
    ("gsa-2", "Dyn-AIR", "Dyn-AIR + GSA-RSL", "DynACL-AIR", "DynACL-AIR + GSA"),
    ("gsa-4", "SimCLR", "Only SAM", "GSA-RSL, neither", "GSA-RSL, no critic"),
    ("gsa-4", "SimCLR", "Only Discr.", "GSA-RSL, neither", "GSA-RSL, no SAM"),
    ("gsa-4", "SimCLR", "Both (GSA-RSL)", "GSA-RSL, neither", "GSA-RSL"),
    ("gsa-2", "ACL-DS", "ACL-Dyn", "ACL-DS", "DynACL"),
    ("advcl-1", "RoCL", "AdvCL", "RoCL", "AdvCL"),
    ("advcl-1", "ACL", "AdvCL", "ACL-DS", "AdvCL"),
    ("advcl-1", "Supervised", "AdvCL", "supervised AT", "AdvCL"),
    ("ascl-2", "ADV", "Leaked-ASCL", "supervised AT", "ASCL"),
    ("ascl-2", "TRADES", "Leaked-ASCL", "TRADES", "ASCL"),
    ("ascl-2", "ADR", "Leaked-ASCL", "ADR", "ASCL"),
    ("ascl23-4", "RoCL", "ASCL", "RoCL", "ASCL-2023"),
    ("ascl23-4", "ACL", "ASCL", "ACL-DS", "ASCL-2023"),
    ("ascl23-4", "AdvCL", "ASCL", "AdvCL", "ASCL-2023"),
]
_GPU = 1e14  # operations a second that a large GPU may sustain here; none was measured


def claims() -> str:
    """Which method is said to be more robust than which, and whether that is seen here."""
    schedules = _read("speedrun_published")["schedules"]
    names = {"digits": ["papers_digits", "papers_systems"], "CIFAR-10": ["papers_equal_cifar"]}
    names = {k: v for k, v in names.items() if all((RESULTS / f"{n}.json").exists() for n in v)}
    ours = {data: [r for n in found for r in _read(n)["runs"]] for data, found in names.items()}
    heads = [f"{what}{data}" for data in ours for what in ("points on ", "on ")]
    lines = [
        f"| claim | theirs (%) | {' | '.join(heads)} | one seed of both, as published |",
        f"|---|--:|{'--:|---|' * len(ours)}--:|",
    ]
    for table, low, high, *rows in _CLAIMS:
        theirs = (_printed({table: row}) for row in (low, high))
        printed = " → ".join(f"{(found.get('slf') or found['own'])['pgd']:.2f}" for found in theirs)
        seen = [cell for runs in ours.values() for cell in _seen(runs, rows)]
        both = sum(schedules[_run_of(table, row)] for row in (low, high))
        cost = f"{_power(both)} FLOP, {both / _GPU / 3600:.1f} h"
        lines.append(f"| {' | '.join([f'{high} above {low} (`{table}`)', printed, *seen, cost])} |")
    run = _read("speedrun_half_hour")["runs"][0]
    pace = spent(run, "flops") / spent(run, "seconds")
    most = max(schedules, key=schedules.__getitem__)
    files = [*(n for found in names.values() for n in found), "speedrun_published"]
    return "\n".join(lines) + (
        "\n\nOurs: linear probes `advcl` on frozen encoders, PGD-20 paired by image, with a 95 % "
        "interval over trainings (over images where there is one training). **Seen** and "
        "**reversed** are beyond the noise of images and of trainings. Theirs are their papers' "
        "networks, schedules and attacks: only the signs are compared. Hours are of a GPU that "
        "sustains 10^14 operations a second, which is assumed and not measured; a core of the "
        f"speedrun's machine did {_power(pace)}, so that `{most}` would take it "
        f"{schedules[most] / pace / 3600 / 24 / 365:.1f} years. Records in `benchmarks/results/`: "
        f"{', '.join(f'`{name}.json`' for name in files)}."
    )


def _seen(runs: list[dict[str, Any]], rows: list[str]) -> tuple[str, str]:
    """How far the second row is above the first under PGD-20, and what that says."""
    found = [_by_probe(runs, row).get("advcl") for row in rows]
    if None in found:
        return "", ""
    low, high = (_measured(one)[0][1] for one in found if one)
    told = compare(_named("low", low), _named("high", high))
    interval = _points(told.seed_interval or told.image_interval)
    word = "seen" if told.difference > 0 else "reversed"
    return (
        f"{100 * told.difference:+.1f} ({interval})",
        f"**{word}**" if told.differs else "within noise",
    )


def _run_of(table: str, label: str) -> str:
    """The method that a printed row is of."""
    lookup = _papers("harness.published").lookup
    return next(row.run[0] for row in lookup(table, "cifar10").rows if row.label == label)


# --- a page for each paper ------------------------------------------------------------------------

# The command: where the paper prints its own row of CIFAR-10; and our rows, by record.
_PAPERS: dict[str, tuple[dict[str, str], dict[str, tuple[str, ...]]]] = {
    "gsa_rsl": (
        {"gsa-1": "GSA-RSL"},
        {"papers_cifar": ("GSA-RSL",), "papers_digits": ("GSA-RSL", "GSA-RSL, ResNet-18")},
    ),
    "advcl": (
        {"advcl-1": "AdvCL", "advcl-3": "AdvCL"},
        {"papers_cifar": ("AdvCL",), "papers_digits": ("AdvCL",)},
    ),
    "ascl_local": ({"ascl-3": "Leaked-ASCL, ResNet-18"}, {"papers_systems": ("ASCL",)}),
    "ascl_pretrain": ({"ascl23-5": "Full model"}, {"papers_systems": ("ASCL-2023",)}),
}
_ON_CIFAR = 50_000  # images to train on


def settings(command: str) -> str:
    """What a method is told, as its settings declare it, and what is ours alone."""
    method = _method(command)
    lines = [
        "| setting | what | `--mode released` | `--mode paper` | why two |",
        "|---|---|--:|--:|---|",
    ]
    for f in fields(method.settings_type):
        values = (_told(v) for v in (f.default, f.metadata.get("paper", f.default)))
        cells = (f"`{f.name}`", f.metadata["what"], *values, f.metadata["why"])
        lines.append(f"| {' | '.join(cells)} |")
    recipe, rate = method.recipe, method.recipe.schedule
    drops = getattr(rate, "at", None)
    falls = f"divided by ten at {' and '.join(map(str, drops))}" if drops else "along a cosine"
    schedule = (
        f"{recipe.epochs:,} epochs in batches of {recipe.batch_size} by {recipe.optimizer.upper()} "
        f"from a rate of {rate.peak:g} {falls}, weight decay {recipe.weight_decay:g}; finetuning "
        f"`{method.probe}`. Network: `cifar:{method.released_network}`."
    )
    own = ["What is neither as released nor as in the text:", "", *(f"- {o}" for o in method.ours)]
    return "\n".join([*lines, "", schedule, "", *own])


def beside(command: str) -> str:
    """The paper's own rows on CIFAR-10 and ours, each with what it was measured under."""
    method, (theirs, ours) = _method(command), _PAPERS[command]
    heads = ["network", "images × epochs", "classifier", "clean", "PGD", "AA"]
    lines = [f"| | {' | '.join(heads)} |", f"|---|---|--:|---|{'--:|' * 3}"]
    network = f"cifar:{method.released_network}"
    # The text of ASCL-2023 does not say how long, and there is no release.
    epochs = "not said" if command == "ascl_pretrain" else f"{method.recipe.epochs:,}"
    length = f"{_ON_CIFAR:,} × {epochs}"
    for protocol, values in _printed(theirs).items():
        probe = "own head" if protocol == "own" else f"{protocol} ({method.probe})"
        cells = [f"{v:.2f}" if (v := values.get(kind)) else "" for kind in ("clean", "pgd", "aa")]
        lines.append(f"| {' | '.join(['theirs, CIFAR-10', network, length, probe, *cells])} |")
    alike = []
    for name, rows in ours.items():
        for row in rows:
            for probe, runs in _by_probe(_read(name)["runs"], row).items():
                plan, (clean, robust) = runs[0]["plan"], _measured(runs)[0][:2]
                data = "digits" if plan["data"] == "digits" else "CIFAR-10"
                shown = plan["recipe"]["epochs"]
                seen = f"{runs[0]['presentations'] // shown:,} × {shown}"
                alike.append((data, plan["backbone"], seen) == ("CIFAR-10", network, length))
                cells = [f"ours, {data}", plan["backbone"], seen, f"slf ({probe})"]
                lines.append(f"| {' | '.join([*cells, _cell(clean), _cell(robust), ''])} |")
    verdict = (
        "Rows of ours on the same data, network and schedule are there to be compared with theirs."
        if any(alike)
        else "No row of ours has the data, the network and the schedule of theirs, so nothing is "
        "compared here, and nothing says whether ours reaches theirs. The run that would: "
        f"`python examples/papers/reproduce.py {command} --data cifar10 --preset paper`."
    )
    where = " and ".join(f"`reproduce.py --table {name}`" for name in theirs)
    files = ", ".join(f"`benchmarks/results/{name}.json`" for name in ours)
    return "\n".join(lines) + (
        f"\n\n{verdict} Theirs are as printed ({where}), under PGD as each paper runs it; their "
        "network and schedule are the released code's where there is one. Ours are under PGD-20 on "
        f"the method's own BatchNorm branch, with ± over seeds where there are several ({files})."
    )


def _printed(theirs: dict[str, str]) -> dict[str, dict[str, float | None]]:
    """By protocol: clean, PGD and AutoAttack as printed, each where it is first found."""
    path = ROOT / "examples" / "papers" / "harness" / "tables.json"
    found: dict[str, dict[str, float | None]] = {}
    for table in json.loads(path.read_text(encoding="utf-8"))["tables"]:
        for row in table["rows"]:
            if theirs.get(table["id"]) != row["label"]:
                continue
            for protocol, values in row["published"]["cifar10"].items():
                told = found.setdefault(protocol, {})
                for kind, value in zip(table["metrics"].values(), values, strict=True):
                    told.setdefault(re.sub(r"^pgd(-250)?(/\d+)?$", "pgd", kind), value)
    return found


def _method(command: str) -> Any:
    return _papers("methods").METHODS[command]


def _papers(module: str) -> Any:
    folder = str(ROOT / "examples" / "papers")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module(module)


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- a pretrained network, made robust ------------------------------------------------------------


def robustify() -> str:
    """Before and after, each with its interval over images, and the paired differences."""
    record, rows = _robustified()
    lines = ["| accuracy (%) | clean | PGD-20 |", "|---|--:|--:|"]
    for row, found in rows.items():
        lines.append(f"| {row} | {' | '.join(map(_with_interval, found))} |")
    verdicts = []
    for what, pair in zip(("clean", "PGD-20"), zip(*rows.values(), strict=True), strict=True):
        before, after = (_named(name, [m]) for name, m in zip(rows, pair, strict=True))
        verdicts.append(f"- {what}: {compare(before, after)}")
    settings, recipe, machine = record["settings"], record["recipe"], record["machine"]
    shown = record["training_images"] // recipe["batch_size"] * recipe["batch_size"]
    m = rows["before"][0]
    under = (
        f"{m.model.backbone} with the weights of `{m.model.checkpoint}`; "  # type: ignore[union-attr]
        f"{shown * recipe['epochs']:,} presentations of {record['training_images']:,} training "
        f"images by FARE at ℓ∞ {255 * settings['radius']:.0f}/255 with {settings['steps']} attack "
        f"steps, AdamW at {recipe['schedule']['peak']:g}, "
        f"{record['seconds']['training'] / 60:.0f} minutes of one thread, beside other work. "
        "Both rows by the network's own head, which is as it was; "
        f"one seed, {m.n:,} test images, "
        "Wilson's 95 % intervals, PGD at the same radius. "
        f"Record: `benchmarks/results/robustify.json`, `{record['command']}`, "
        f"commit {record['commit'][:10]}, {machine['cpu']}, torch {machine['torch']}."
    )
    return "\n".join([*lines, "", under, "", "Paired by image:", "", *verdicts])


def _robustified() -> tuple[dict[str, Any], dict[str, list[Measurement]]]:
    """The record, and its rows: clean and PGD-20."""
    record = _read("robustify")
    return record, {
        row: [Measurement.from_json(json.dumps(entry)) for entry in entries[:2]]
        for row, entries in record["rows"].items()
    }


def _with_interval(m: Measurement) -> str:
    low, high = wilson(sum(m.correct), m.n)
    return f"{100 * m.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


# --- least compute to a robust encoder ------------------------------------------------------------

_MEASURED = {"clean": "clean", "PGD-20": "pgd", "AutoAttack": "aa"}


def speedrun() -> str:
    """Every record and every published schedule: accuracies, and what was spent for them."""
    heads = [*_MEASURED, "minutes", "presentations", "FLOP"]
    lines = [f"| accuracy (%) | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    records = speedrun_records()
    for name, record in records.items():
        runs = record["runs"]
        cells = [_cell(found) for found in speedrun_measured(record).values()]
        cells += [", ".join(f"{spent(run, 'seconds') / 60:.0f}" for run in runs)]
        cells += [f"{spent(runs[0], 'presentations'):,.0f}", _power(spent(runs[0], "flops"))]
        several = f"{len(runs)} runs" if len(runs) > 1 else "one run"
        lines.append(f"| {' | '.join([f'`{name}`, {several}', *cells])} |")
    for label, row in sorted(_read("speedrun_published")["rows"].items()):
        cells = [f"{row[key]:.2f}" if key in row else "" for key in _MEASURED.values()]
        of = row["from"]  # a table and its row, or another place
        printed = of if of.startswith("its ") else f"`{of.split()[0]}`"
        lines.append(f"| {label}, {printed} | {' | '.join(cells)} | | | {_power(row['flops'])} |")
    said = []
    for name, record in records.items():
        n = {what: found[0].n for what, found in speedrun_measured(record).items()}
        of = ", ".join(f"{what} on {count:,}" for what, count in n.items())
        seeds: dict[str, list[str]] = {}
        for run in record["runs"]:
            machine = run["machine"]
            how = f"{run['precision']}, `{run['command']}`, commit {run['commit'][:10]}, "
            how += f"{machine['cpu']}, {counted(machine['threads'], 'thread')}, "
            seeds.setdefault(f"{how}torch {machine['torch']}", []).append(str(run["seed"]))
        by = (f"Seed{'s' * (len(s) > 1)} {' and '.join(s)}: {how}" for how, s in seeds.items())
        said.append(
            f"`{name}`: {record['backbone']}, linear probe `advcl`, ℓ∞ 8/255, {of} test images. "
            f"{'; '.join(by)}. `benchmarks/results/speedrun_{name}.json`."
        )
    return "\n".join([*lines, "", *said])


def weights() -> str:
    """The card of each encoder in examples/weights: the first run of its record."""
    cards = []
    for name, record in speedrun_records().items():
        run, measured = record["runs"][0], speedrun_measured(record)
        values = {what: found[0] for what, found in measured.items()}
        lines = ["| | clean | PGD-20 | AutoAttack |", "|---|--:|--:|--:|"]
        cells = [_with_interval(m) for m in values.values()]
        lines.append(f"| `{name}.safetensors`, accuracy (%) | {' | '.join(cells)} |")
        lines.append(f"| test images | {' | '.join(f'{m.n:,}' for m in values.values())} |")
        looked, looked_at = run["doubts"], run.get("doubts_commit", run["commit"])
        doubts = [f"{c['name']}: {c['verdict']}. {c['evidence']}" for c in looked]
        cards.append(
            "\n".join(
                [
                    *lines,
                    "",
                    f"{record['backbone']}, seed {run['seed']}, by `{run['command']}` at commit "
                    f"{run['commit'][:10]}; linear probe `advcl`, ℓ∞ 8/255, Wilson's 95 % "
                    f"intervals. What was looked into, at commit {looked_at[:10]}:",
                    "",
                    *(f"- {doubt}" for doubt in doubts),
                ]
            )
        )
    return "\n\n".join(cards)


def speedrun_tried() -> str:
    """What was tried on the way to the records, in its order."""
    record = _read("speedrun_tried")
    lines = ["| tried | minutes | clean (%) | PGD-20 (%) | kept? |", "|---|--:|--:|--:|---|"]
    for row in record["rows"]:
        minutes = " + ".join(f"{m:.0f}" for m in row["minutes"])
        values = [minutes, *(f"{100 * row[key]:.1f}" for key in ("clean", "pgd"))]
        lines.append(f"| {' | '.join([row['what'], *values, row['verdict']])} |")
    n = sorted({row["pgd_images"] for row in record["rows"]})
    of = f"PGD-20 on {', '.join(map(str, n))} test images, of which an interval is some 4 points"
    return "\n".join([*lines, "", f"{record['note']}. {of} to either side."])


def speedrun_records() -> dict[str, dict[str, Any]]:
    """The records of the speedrun, the shortest class first."""
    names = ("half_hour", "two_hours")
    return {n: _read(f"speedrun_{n}") for n in names if (RESULTS / f"speedrun_{n}.json").exists()}


def speedrun_measured(record: dict[str, Any]) -> dict[str, list[Measurement]]:
    """Clean, PGD-20 and AutoAttack of every run; clean on the images that PGD-20 has."""
    found: dict[str, list[Measurement]] = {}
    for run in record["runs"]:
        ours = [Measurement.from_json(json.dumps(entry)) for entry in run["measurements"]]
        clean, pgd, _, strongest = ours  # and clean again, on the images of the strongest
        for what, m in zip(_MEASURED, (clean, pgd, strongest), strict=True):
            found.setdefault(what, []).append(m)
    return found


def spent(run: dict[str, Any], what: str) -> float:
    """The sum over a run's stages."""
    return sum(stage.get(what, 0) for stage in run["spent"].values())


def _power(value: float) -> str:
    digits, power = f"{value:.1e}".split("e")
    return f"{digits} × 10^{int(power)}"


# --- speed ----------------------------------------------------------------------------------------


def speed() -> str:
    """Every row of the record, those of one machine together."""
    path = RESULTS / "speed.json"
    if not path.exists():
        return "Nothing is recorded yet: `make bench` measures."
    by_place: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
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
    record = _read("estimates")
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


# --- what is held, and what is sent -------------------------------------------------------------

_HELD = {
    "training": ("kills of a training (AdvCL + GSA on digits)", "kills", "survived"),
    "evaluation": ("kills of `advssl evaluate`", "kills", "survived"),
    "calls": ("wrong calls of the library", "tried", "passed"),
    "commands": ("mistakes on the command line", "tried", "passed"),
    "processes": ("comparisons of several processes with one", "tried", "passed"),
}


def reliability() -> str:
    """Of each kind how many were tried and how many held."""
    rows = json.loads((RESULTS / "reliability.json").read_text(encoding="utf-8"))["rows"]
    lines = ["| what | tried | held | by |", "|---|--:|--:|---|"]
    for name, (what, tried, held) in _HELD.items():
        if name in rows:
            row = rows[name]
            where = f"`{row['command']}`, commit {row['commit'][:10]}, {row['machine']['cpu']}"
            lines.append(f"| {what} | {row[tried]:,} | {row[held]:,} | {where} |")
    return "\n".join(lines)


_MUTATED = {
    "core": "core, `attacks` to `views`",
    "evaluation": "`advssl.evaluation`",
    "integrations": "`advssl.integrations`",
    "cli": "`advssl.cli`, `advssl.options`",
    "papers": "`examples/papers`",
    "the rest": "`advssl.doctor`, `advssl.monitors`",
}


def mutants() -> str:
    """Of each part how many mutants were made and killed; what survived, and why."""
    record = json.loads((RESULTS / "mutants.json").read_text(encoding="utf-8"))
    lines = ["| of | modules | made | killed | harmless | killed of the others |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for kind, title in _MUTATED.items():
        rows = [row for row in record["rows"].values() if row["kind"] == kind]
        made = sum(row["killed"] + len(row["survivors"]) for row in rows)
        if made:
            killed = sum(row["killed"] for row in rows)
            harmless = sum(bool(s["harmless"]) for row in rows for s in row["survivors"])
            share = f"{killed / max(made - harmless, 1):.0%}"
            lines.append(f"| {title} | {len(rows)} | {made} | {killed} | {harmless} | {share} |")
    where = f"Commit {record['commit'][:10]}, {record['machine']['cpu']}."
    return "\n".join([*lines, "", where])


def communication() -> str:
    """What a rank gives to collectives in a step: what is as large as the network, and the rest."""
    record = json.loads((RESULTS / "communication.json").read_text(encoding="utf-8"))
    lines = [
        "| method | gradients | SAM, critic, buffers | of each image of the rank | collectives |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in record["rows"].values():
        (few, some), (more, most) = sorted((int(k), v) for k, v in row["by_images"].items())
        sent = {kind: (some["bytes"][kind], most["bytes"][kind]) for kind in some["bytes"]}
        each = {kind: (b - a) / (more - few) for kind, (a, b) in sent.items()}
        fixed = {kind: sent[kind][0] - few * each[kind] for kind in sent}
        gradients = fixed.pop("all-reduce of gradients")
        lines.append(
            f"| {row['title']} | {gradients / 1e6:.1f} MB | {sum(fixed.values()) / 1e6:.1f} MB | "
            f"{sum(each.values()) / 1e3:.1f} KB | {sum(most['calls'].values())} |"
        )
    commits = ", ".join(dict.fromkeys(row["commit"][:10] for row in record["rows"].values()))
    return "\n".join([*lines, "", f"Commit {commits}, {record['network']}."])


def photographs() -> str:
    """What the figures of a plain and a robust encoder show, as numbers."""
    page = report.read(RESULTS / "photographs.json")
    columns = {s.encoder: _numbers(s) for s in page.sections if s.findings}
    lines = [f"| | {' | '.join(map(str, columns))} |", f"|---|{'--:|' * len(columns)}"]
    for label in next(iter(columns.values())):
        lines.append(f"| {label} | {' | '.join(of[label] for of in columns.values())} |")
    clean = page.sections[0].measurements[0].to_plain()
    return "\n".join(
        [
            *lines,
            "",
            "Record: [`photographs.json`](../benchmarks/results/photographs.json), a comparison: "
            f"{clean['n']} test images, of which pictures and theorem take fewer; linear probe "
            f"`{clean['probe']['preset']}` on {clean['source']['train']:,} training images, seed "
            f"{clean['seed']}; commit {clean['commit'][:10]}, {clean['machine']['cpu']}, torch "
            f"{clean['machine']['torch']}.",
        ]
    )


def _numbers(section: report.Section) -> dict[str, str]:
    found = section.findings
    spread, bounds = found["divergence"], found["theory"]
    return {
        "accuracy, clean (%)": _with_interval(section.clean),
        "accuracy under PGD-20 (%)": _with_interval(section.measurements[1]),
        "accuracy under corruptions, mean (%)": f"{100 * found['corruptions'].mean:.1f}",
        "R-DIV, clean": f"{spread.relative[0]:.2f}",
        "R-DIV, attacked": f"{spread.relative[spread.at_threat]:.2f}",
        **{name: f"{of(found['pictures']):.3g}" for name, of in pictures.NUMBERS.items()},
        "adversarial loss of the probe, √CE": f"{bounds.measured:.2f}",
        "InfoNCE, benign": f"{bounds.benign:.2f}",
        "InfoNCE, adversarial": f"{bounds.adversarial:.2f}",
        "critic right (%)": f"{100 * bounds.accuracy:.0f}",
        "bounds that are vacuous": " and ".join(bounds.vacuous) or "none",
    }


TABLES = {
    "estimates": estimates,
    "reliability": reliability,
    "mutants": mutants,
    "communication": communication,
    "evidence": evidence,
    "quickstart": quickstart,
    "speed": speed,
    "robustify": robustify,
    "systems": systems,
    "expectations": expectations,
    "published": published,
    "gsa_hosts": gsa_hosts,
    "claims": claims,
    "speedrun": speedrun,
    "speedrun_tried": speedrun_tried,
    "weights": weights,
    "photographs": photographs,
    **{name: partial(papers, name) for name in _COMPARED},
    **{f"settings_{name}": partial(settings, name) for name in _PAPERS},
    **{f"beside_{name}": partial(beside, name) for name in _PAPERS},
}


def filled(text: str) -> str:
    """``text`` with every ``<!-- table: name -->`` ... ``<!-- end -->`` filled anew."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    pages = [ROOT / "README.md", ROOT / "benchmarks" / "README.md"]
    for folder in ("docs", "examples"):
        pages += (ROOT / folder).rglob("*.md")
    for page in pages:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
