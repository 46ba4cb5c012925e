"""Encoders of photographs: the speedrun, a pretrained network made robust, their figures."""

from __future__ import annotations

import json
from typing import Any

from advssl.evaluation import report
from advssl.evaluation.records import Measurement, compare
from advssl.evaluation.report import pictures
from advssl.evaluation.report.words import counted
from shown import reading


def robustify() -> str:
    """Before and after, each with its interval over images, and the paired differences."""
    record, rows = robustified()
    lines = ["| accuracy (%) | clean | PGD-20 |", "|---|--:|--:|"]
    for row, found in rows.items():
        lines.append(f"| {row} | {' | '.join(map(reading.with_interval, found))} |")
    verdicts = []
    for what, pair in zip(("clean", "PGD-20"), zip(*rows.values(), strict=True), strict=True):
        before, after = (reading.named(name, [m]) for name, m in zip(rows, pair, strict=True))
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


def robustified() -> tuple[dict[str, Any], dict[str, list[Measurement]]]:
    """The record, and its rows: clean and PGD-20."""
    record = reading.read("robustify")
    return record, {
        row: [Measurement.from_json(json.dumps(entry)) for entry in entries[:2]]
        for row, entries in record["rows"].items()
    }


_MEASURED = {"clean": "clean", "PGD-20": "pgd", "AutoAttack": "aa"}


def speedrun() -> str:
    """Every record and every published schedule: accuracies, and what was spent for them."""
    heads = [*_MEASURED, "minutes", "presentations", "FLOP"]
    lines = [f"| accuracy (%) | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    records = speedrun_records()
    for name, record in records.items():
        runs = record["runs"]
        cells = [reading.cell(found) for found in speedrun_measured(record).values()]
        cells += [", ".join(f"{spent(run, 'seconds') / 60:.0f}" for run in runs)]
        cells += [f"{spent(runs[0], 'presentations'):,.0f}", reading.power(spent(runs[0], "flops"))]
        several = f"{len(runs)} runs" if len(runs) > 1 else "one run"
        lines.append(f"| {' | '.join([f'`{name}`, {several}', *cells])} |")
    for label, row in sorted(reading.read("speedrun_published")["rows"].items()):
        cells = [f"{row[key]:.2f}" if key in row else "" for key in _MEASURED.values()]
        of = row["from"]  # a table and its row, or another place
        printed = of if of.startswith("its ") else f"`{of.split()[0]}`"
        lines.append(
            f"| {label}, {printed} | {' | '.join(cells)} | | | {reading.power(row['flops'])} |"
        )
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
            f"{'. '.join(by)}. `benchmarks/results/speedrun_{name}.json`."
        )
    return "\n".join([*lines, "", *said])


def weights() -> str:
    """The card of each encoder in examples/weights: of its record the run of seed 0."""
    cards = []
    for name, record in speedrun_records().items():
        runs = [run for run in record["runs"] if run["seed"] == 0]
        if not runs:
            continue
        (run,) = runs
        values = {what: one for what, (one,) in speedrun_measured({"runs": runs}).items()}
        lines = ["| | clean | PGD-20 | AutoAttack |", "|---|--:|--:|--:|"]
        cells = [reading.with_interval(m) for m in values.values()]
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
    record = reading.read("speedrun_tried")
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
    return {n: reading.read(f"speedrun_{n}") for n in names if reading.recorded(f"speedrun_{n}")}


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


def photographs() -> str:
    """What the figures of a plain and a robust encoder show, as numbers."""
    page = report.read(reading.RESULTS / "photographs.json")
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
        "accuracy, clean (%)": reading.with_interval(section.clean),
        "accuracy under PGD-20 (%)": reading.with_interval(section.measurements[1]),
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
