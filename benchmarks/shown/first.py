"""The tables that a newcomer meets: what was measured first, and what to expect."""

from __future__ import annotations

import runpy
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from shown import methods, photographs, reading


def quickstart() -> str:
    record = reading.read("quickstart")
    example = runpy.run_path(
        str(reading.ROOT / "examples" / "quickstart.py"), run_name="quickstart"
    )
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
    record = reading.read("quickstart")
    seeds = len(record["seeds"])
    for method in record["methods"][:2]:
        name = (
            "SimCLR + adversarial view" if method["name"] == "adversarial view" else method["name"]
        )
        cells = [reading.over(method["clean"]["values"]), reading.over(method["pgd"]["values"])]
        cells += [f"{record['schedule']['radius']:g}", str(method["pgd"]["n"]), str(seeds)]
        lines.append(f"| digits, {name} | {' | '.join(cells)} |")
    record = reading.read("papers_cifar")
    for row in record["rows"]:
        runs = next(iter(reading.by_probe(record["runs"], row).values()))
        clean, robust = reading.measured(runs)[0][:2]
        radius = f"{255 * runs[0]['settings']['radius']:.0f}/255"
        cells = [
            reading.cell(clean),
            reading.cell(robust),
            radius,
            f"{clean[0].n:,}",
            str(len(runs)),
        ]
        lines.append(f"| CIFAR-10, {row} | {' | '.join(cells)} |")
    for name, record in photographs.speedrun_records().items():
        clean, robust, _ = photographs.speedrun_measured(record).values()
        cells = [
            reading.cell(clean),
            reading.cell(robust),
            "8/255",
            f"{clean[0].n:,}",
            str(len(clean)),
        ]
        lines.append(f"| CIFAR-10, `{name}.py` | {' | '.join(cells)} |")
    record, found = photographs.robustified()
    radius = f"{255 * record['settings']['radius']:.0f}/255"
    for what, both in zip(
        ("a ResNet-18 of others", "the same after FARE"), found.values(), strict=True
    ):
        cells = [*(reading.cell([m]) for m in both), radius, str(both[0].n), "1"]
        lines.append(f"| CIFAR-10, {what} | {' | '.join(cells)} |")
    runs = reading.read("papers_cifar")["runs"]
    spent = sorted(run["seconds"]["pretraining"] / 60 for run in runs)
    return "\n".join(lines) + (
        "\n\nLinear probes on frozen encoders, of photographs a quarter as wide as the papers'; "
        "the last two rows by the own head of a full-width network. The papers' methods had "
        f"{runs[0]['presentations']:,} presentations, {spent[0]:.0f} to "
        f"{spent[-1]:.0f} minutes of a CPU core; GSA-RSL's network is its release's. "
        f"FARE took {record['seconds']['training'] / 60:.0f} minutes; what the "
        "[speedrun](docs/speedrun.md) took stands there. "
        "Records: `quickstart.json`, `papers_cifar.json`, `speedrun_*.json`, "
        "`robustify.json` in `benchmarks/results/`."
    )


_EXPECTED = {
    "papers_systems": ("SimCLR", "SimCLR + adversarial view", "DynACL-AIR", "AdvCL", "FARE"),
    "papers_cifar": ("SimCLR", "AdvCL", "GSA-RSL"),
}


def expectations() -> str:
    """What short runs left: presentations and radius to clean and robust accuracy."""
    heads = ["images × epochs", "radius", "clean", "PGD-20", "pretraining takes, of SimCLR's"]
    lines = [f"| run | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for name, rows in _EXPECTED.items():
        record = methods.all_systems() if name == "papers_systems" else reading.read(name)
        of = [r for r in record["runs"] if r["row"] == "SimCLR"]
        plain = fmean(r["seconds"]["pretraining"] for r in of)
        for row in rows:
            probe, *_ = reading.by_probe(record["runs"], row).values()
            clean, robust = reading.measured(probe)[0][:2]
            plan, epochs = probe[0]["plan"], probe[0]["plan"]["recipe"]["epochs"]
            factor = fmean(r["seconds"]["pretraining"] for r in probe) / plain
            what = f"{row}, {plan['backbone']}, {plan['image_size']} pixels"
            images = f"{probe[0]['presentations'] // epochs:,} × {epochs}"
            radius = f"{probe[0]['settings']['radius']:.3g}"
            cells = [
                what,
                images,
                radius,
                reading.cell(clean),
                reading.cell(robust),
                f"{factor:.1f} ×",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    _, found = photographs.robustified()
    record = reading.read("robustify")
    epochs, images = record["recipe"]["epochs"], record["training_images"]
    clean, robust = ([m] for m in found["after"])
    what = "a pretrained ResNet-18 by FARE, 32 pixels"
    radius = f"{record['settings']['radius']:.3g}"
    cells = [what, f"{images:,} × {epochs}", radius, reading.cell(clean), reading.cell(robust), ""]
    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + (
        "\n\nDigits at 8 pixels over three seeds, CIFAR-10 at 32 of one, by a linear probe "
        "(`advcl`), the last row by the network's own head; times beside other work. "
        "Records: `benchmarks/results/papers_digits.json`, `papers_systems.json`, "
        "`papers_cifar.json`, `robustify.json`."
    )
