"""The papers' methods beside one another, on one network under one probe."""

from __future__ import annotations

from statistics import fmean, mode
from typing import Any

from advssl.evaluation.protocols import preset_name
from advssl.evaluation.records import compare
from shown import reading

_PRECISIONS = [
    ("float32", "attack in bf16"),
    ("float32", "bf16, attack in float32"),
    ("bf16, attack in float32", "bf16"),
    ("float32", "bf16"),
]
COMPARED = {
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
    return _accuracies(reading.read(name), COMPARED[name])


def _accuracies(record: dict[str, Any], pairs: list[tuple[str, str]]) -> str:
    name = record["name"]
    probes = [*map(preset_name, record.get("probes", [record["runs"][0]["plan"]["preset"]]))]
    by_row = {row: reading.by_probe(record["runs"], row) for row in record["rows"]}
    measured = {row: reading.measured(runs[probes[0]]) for row, runs in by_row.items()}
    branches = any(other for _, other in measured.values())
    timed = not name.startswith("precision")  # how fast a precision is, `speed` measures fairly
    many = any(len(own) > 2 for own, _ in measured.values())
    heads = ["clean", "PGD-20", *["multi-targeted"] * many]
    heads += ["other branch", "PGD-20"] * branches
    for probe in probes[1:]:
        heads += [f"clean, {probe}", f"PGD-20, {probe}"]
    heads += ["presentations"] * ("forwards" in record) + ["minutes"] * timed
    lines = [f"| accuracy (%) | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for row, runs in by_row.items():
        own, other = measured[row]
        cells = [reading.cell(found) for found in [*own, [], []][: 2 + many]]
        cells += [reading.cell(found) for found in [*other, [], []][:2]] * branches
        for probe in probes[1:]:
            beside = runs[_own(runs, probes[0]) if probe == "own" else probe]
            cells += [reading.cell(found) for found in reading.measured(beside)[0][:2]]
        if "forwards" in record:
            cells.append(f"{runs[probes[0]][0]['presentations']:,}")
        minutes = fmean(run["seconds"]["pretraining"] for run in runs[probes[0]]) / 60
        cells += [f"{minutes:.1f}"] * timed
        lines.append(f"| {' | '.join([row, *cells])} |")
    attacked = {row: reading.named(row, own[1]) for row, (own, _) in measured.items()}
    verdicts = [f"- {compare(attacked[a], attacked[b])}" for a, b in pairs if {a, b} <= {*attacked}]
    columns = _MANY * many + _OTHER * branches + _MINUTES * timed
    if "own" in probes:
        columns += _whose(record, probes[0])
    under = _under(record, probes, columns)
    return "\n".join([*lines, "", under, "", "PGD-20, paired by image:", "", *verdicts])


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
    return _accuracies(all_systems(), pairs)


def all_systems() -> dict[str, Any]:
    own, digits = reading.read("papers_systems"), reading.read("papers_digits")
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
    record = all_systems()
    heads = ["clean", "PGD-20", "+ GSA: clean", "PGD-20", "PGD-20 gains, points"]
    heads += ["95 % over images", "95 % over seeds", "beyond noise"]
    lines = [f"| host | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for host in _HOSTS:
        alone, stack = (
            reading.measured(reading.by_probe(record["runs"], row)[record["probes"][0]])[0][:2]
            for row in (host, f"{host} + GSA")
        )
        found = compare(reading.named("alone", alone[1]), reading.named("stack", stack[1]))
        seeds = found.seed_interval
        cells = [reading.cell(side) for side in (*alone, *stack)]
        cells += [f"{100 * found.difference:+.1f}", reading.points(found.image_interval)]
        cells += [reading.points(seeds) if seeds else "", "yes" if found.differs else "no"]
        lines.append(f"| {' | '.join([host, *cells])} |")
    return "\n".join(lines)


def _own(runs: dict[str, Any], first: str) -> str:
    """The probe of a row that is not the table's; or that, where a method's own is the same."""
    return next((probe for probe in runs if probe != first), first)


_MANY = "Multi-targeted PGD-20 is on the first seed alone. "
_OTHER = "The other branch is the method's second BatchNorm. "
_MINUTES = "Minutes are of pretraining on one core, beside other work that may have held it up. "


def _whose(record: dict[str, Any], first: str) -> str:
    """Which probe is each method's own, where it is not the first."""
    rows: dict[str, list[str]] = {}
    for row in record["rows"]:
        rows.setdefault(_own(reading.by_probe(record["runs"], row), first), []).append(row)
    others = [f"`{probe}` for {', '.join(of)}" for probe, of in rows.items() if probe != first]
    return f"A method's own probe is {'; '.join([*others, f'`{first}` for the others'])}. "


def _under(record: dict[str, Any], probes: list[str], columns: str) -> str:
    run = record["runs"][-1]
    plan = run["plan"]
    spent = f"{mode(r['presentations'] for r in record['runs']):,} image presentations each"
    if "forwards" in record:
        spent = f"some {record['forwards']} forwards of each image"
    seeds = sorted({r["plan"]["seed"] for r in record["runs"]})
    precisions = {r["plan"]["precision"] for r in record["runs"]}
    precision = precisions.pop() if len(precisions) == 1 else "training in the precision named"
    commits = sorted({r["commit"][:10] for r in record["runs"]})
    machines = {(r["machine"]["cpu"], r["machine"]["torch"]) for r in record["runs"]}
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
        f"{backbone} at {plan['image_size']} pixels, {spent}, {precision}, linear probe on "
        f"the frozen encoder (`{probes[0]}`, last epoch), {spread}; {n:,} test images, ℓ∞ radius "
        f"{run['settings']['radius']:.3g}, PGD with steps of a quarter of it. {columns}"
        f"Record: {' and '.join(files)}, commit {', '.join(commits)}, "
        f"{'; '.join(f'{cpu}, torch {torch}' for cpu, torch in sorted(machines))}."
    )
