"""What the papers print and claim, and ours beside it."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

from advssl.evaluation.records import compare
from shown import photographs, reading


def published() -> str:
    """The papers' own numbers on CIFAR-10, from the tables that ``reproduce.py --table`` has."""
    path = reading.ROOT / "examples" / "papers" / "harness" / "tables.json"
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
    schedules = reading.read("speedrun_published")["schedules"]
    names = {"digits": ["papers_digits", "papers_systems"], "CIFAR-10": ["papers_equal_cifar"]}
    names = {data: found for data, found in names.items() if all(map(reading.recorded, found))}
    read = {data: map(reading.read, found) for data, found in names.items()}
    ours = {data: [r for record in found for r in record["runs"]] for data, found in read.items()}
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
        cost = f"{reading.power(both)} FLOP, {both / _GPU / 3600:.1f} h"
        lines.append(f"| {' | '.join([f'{high} above {low} (`{table}`)', printed, *seen, cost])} |")
    run = reading.read("speedrun_half_hour")["runs"][0]
    pace = photographs.spent(run, "flops") / photographs.spent(run, "seconds")
    most = max(schedules, key=schedules.__getitem__)
    files = [*(n for found in names.values() for n in found), "speedrun_published"]
    return "\n".join(lines) + (
        "\n\nOurs: linear probes `advcl` on frozen encoders, PGD-20 paired by image, with a 95 % "
        "interval over trainings (over images where there is one training). **Seen** and "
        "**reversed** are beyond the noise of images and of trainings, *in one training* of images "
        "alone. Theirs are their papers' networks, schedules and attacks: only the signs are "
        "compared. Hours are of a GPU that sustains 10^14 operations a second, which is assumed "
        "and not measured; a core of the speedrun's machine did "
        f"{reading.power(pace)}, so that `{most}` would take it "
        f"{schedules[most] / pace / 3600 / 24 / 365:.1f} years. Records in `benchmarks/results/`: "
        f"{', '.join(f'`{name}.json`' for name in files)}."
    )


def _seen(runs: list[dict[str, Any]], rows: list[str]) -> tuple[str, str]:
    """How far the second row is above the first under PGD-20, and what that says."""
    found = [reading.by_probe(runs, row).get("advcl") for row in rows]
    if None in found:
        return "", ""
    low, high = (reading.measured(one)[0][1] for one in found if one)
    told = compare(reading.named("low", low), reading.named("high", high))
    interval = reading.points(told.seed_interval or told.image_interval)
    word = "seen" if told.difference > 0 else "reversed"
    return (
        f"{100 * told.difference:+.1f} ({interval})",
        (f"**{word}**" if told.seed_interval else f"{word} in one training")
        if told.differs
        else "within noise",
    )


def _run_of(table: str, label: str) -> str:
    """The method that a printed row is of."""
    lookup = reading.of_papers("harness.published").lookup
    return next(row.run[0] for row in lookup(table, "cifar10").rows if row.label == label)


# The command: where the paper prints its own row of CIFAR-10; and our rows, by record.
PAPERS: dict[str, tuple[dict[str, str], dict[str, tuple[str, ...]]]] = {
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
    method = reading.method(command)
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
    method, (theirs, ours) = reading.method(command), PAPERS[command]
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
            for probe, runs in reading.by_probe(reading.read(name)["runs"], row).items():
                plan, (clean, robust) = runs[0]["plan"], reading.measured(runs)[0][:2]
                data = "digits" if plan["data"] == "digits" else "CIFAR-10"
                shown = plan["recipe"]["epochs"]
                seen = f"{runs[0]['presentations'] // shown:,} × {shown}"
                alike.append((data, plan["backbone"], seen) == ("CIFAR-10", network, length))
                cells = [f"ours, {data}", plan["backbone"], seen, f"slf ({probe})"]
                lines.append(
                    f"| {' | '.join([*cells, reading.cell(clean), reading.cell(robust), ''])} |"
                )
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
    path = reading.ROOT / "examples" / "papers" / "harness" / "tables.json"
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


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
