"""The papers' methods side by side, from one command: records under benchmarks/results/.

    python benchmarks/papers.py digits               # three seeds, in about two hours on two cores
    python benchmarks/papers.py systems --probes advcl   # all their other systems, likewise
    python benchmarks/papers.py cifar --data folder:data/cifar10
    python benchmarks/papers.py equal_cifar --data folder:data/cifar10 --probes advcl,own --seeds 2
    python benchmarks/papers.py precision_digits --seeds 6   # the attack in float32 and in bf16
    python benchmarks/papers.py precision_cifar --data folder:data/cifar10 --epochs 10 --seeds 2

``equal_cifar`` gives every method as many forwards, of images of 16 pixels, a quarter as dear as
those of 32: whose step costs less trains for more epochs. With ``--row`` it is made in pieces: the
record keeps its other rows.
Each run is one of ``examples/papers/reproduce.py``, ``--workers`` at a time, each in a process of
its own; finished ones are read back, so that a run which was killed, or ran out of its
``--time-budget``, goes on. Every encoder is measured under each of ``--probes``: the first one's
numbers are the table's, the others' stand beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from advssl.evaluation.records import replacing

HERE = Path(__file__).parent
REPRODUCE = HERE.parent / "examples" / "papers" / "reproduce.py"
PRECISIONS = HERE / "precision.py"  # the same with two methods more

# What a row is called, and what reproduce.py is told.
DIGITS = {
    "random encoder": "simclr --epochs 0",
    "SimCLR": "simclr",
    "SimCLR + adversarial view": "simclr --adversarial",
    "ACL-DS": "acl",
    "ACL-A2A": "acl --kind a2a",
    "ACL-A2S": "acl --kind a2s",
    "AdvCL": "advcl",
    "GSA-RSL": "gsa_rsl",
    "GSA-RSL, no SAM": "gsa_rsl --no-sam",
    "GSA-RSL, no critic": "gsa_rsl --no-critic",
    "GSA-RSL, neither": "gsa_rsl --no-sam --no-critic",
    "GSA-RSL, ResNet-18": "gsa_rsl --backbone cifar:resnet18:8",
    "AdvCL + GSA": "gsa_on_advcl",
    "AdvCL + GSA, as GSA reads AdvCL": "gsa_advcl",
    "supervised AT": "at",
    "SimCLR, weak second view": "simclr --second-view weak",
    "SimCLR + adversarial view, weak second view": "simclr --adversarial --second-view weak",
    "ACL-DS, weak second view": "acl --second-view weak",
    "AdvCL, weak second view": "advcl --second-view weak",
    "ACL-DS, 80 epochs": "acl --epochs 80",
}
ONE_SEED = ("ACL-DS, 80 epochs",)  # as long as twenty others
# What DIGITS has not, on one network whatever a release trains; a table shows both together.
SYSTEMS = {
    "natural training": "natural",
    "TRADES": "trades",
    "ADR": "adr",
    "ASCL": "ascl_local",
    "SupCon": "supcon",
    "ASCL-2023": "ascl_pretrain",
    "RoCL": "rocl",
    "RoCL, as GSA trains it": "rocl_gsa --backbone cifar:resnet18:8",
    "CLAE": "clae",
    "CLAE, as GSA trains it": "clae_gsa --backbone cifar:resnet18:8",
    "DynACL": "dynacl",
    "DynACL++": "dynacl --plus",
    "ACL-AIR": "acl_air",
    "DynACL-AIR": "dyn_air",
    "ACL-DS + GSA": "gsa_acl",
    "DynACL + GSA": "gsa_dynacl",
    "ACL-AIR + GSA": "gsa_acl_air",
    "DynACL-AIR + GSA": "gsa_dyn_air",
    "DeACL": "deacl",
    "FARE": "fare",
}
# What an epoch costs in forwards per image, a teacher's included, and the method's own probe.
COSTS = {
    "SimCLR": ("simclr", 6, "advcl"),
    "DeACL": ("deacl", 17 + 6, "dynacl"),
    "ACL-DS": ("acl", 32, "dynacl"),
    "DynACL": ("dynacl", 28, "dynacl"),
    "AdvCL": ("advcl", 35 + 6, "advcl"),
    "AdvCL + GSA": ("gsa_on_advcl", 59 + 6, "advcl"),
    "GSA-RSL": ("gsa_rsl --backbone cifar:resnet18:16", 34, "gsa"),
    "supervised AT": ("at", 23, "advcl"),
}
BUDGET = 252  # forwards per image
EQUAL = {row: f"{words} --epochs {round(BUDGET / cost)}" for row, (words, cost, _) in COSTS.items()}
CIFAR = {"SimCLR": "simclr", "AdvCL": "advcl", "GSA-RSL": "gsa_rsl"}
PRECISION = {
    "float32": "simclr --adversarial --precision 32-true",
    "attack in bf16": "attack_bf16 --adversarial --precision 32-true",
    "bf16, attack in float32": "attack_float32 --adversarial --precision bf16-mixed",
    "bf16": "simclr --adversarial --precision bf16-mixed",
}
ROWS = {
    "digits": DIGITS,
    "systems": SYSTEMS,
    "cifar": CIFAR,
    "equal_cifar": EQUAL,
    "precision_digits": PRECISION,
    "precision_cifar": {row: f"{words} --limit 4000" for row, words in PRECISION.items()},
}


def main() -> None:
    """Run, read back and gather."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("what", choices=list(ROWS))
    add("--data", default="digits")
    add("--row", action="append", metavar="NAME", help="this one alone, and others so named")
    add("--seeds", type=int, help="default: 3 on digits, 1 otherwise")
    add("--epochs", type=int, help="default: those of the preset")
    add(
        "--probes",
        type=lambda words: words.split(","),
        default=["advcl", "standardised"],
        help=_PROBES,
    )
    add("--workers", type=int, default=os.cpu_count(), help="runs at a time, of one thread each")
    add("--time-budget", type=float, metavar="SECONDS", help="the same command goes on then")
    add("--out", type=Path, default=Path("runs/papers"))
    options = parser.parse_args()
    options.deadline = time.monotonic() + (options.time_budget or math.inf)
    if options.what.endswith("cifar") == (options.data == "digits"):
        parser.error(f"{options.what} is not of {options.data}; name its images with --data")
    if "own" in options.probes and options.what != "equal_cifar":
        parser.error("--probes own is of equal_cifar; name presets")
    if unknown := {*(options.row or ())} - {*ROWS[options.what]}:
        parser.error(f"{options.what} has no row {', '.join(sorted(unknown))}")
    rows = {row: ROWS[options.what][row] for row in options.row or ROWS[options.what]}
    seeds = range(options.seeds or (3 if options.data == "digits" else 1))
    jobs = [
        (row, words, seed)
        for seed in seeds
        for row, words in rows.items()
        if seed == seeds[0] or row not in ONE_SEED
    ]
    with ThreadPoolExecutor(options.workers) as pool:
        done = list(pool.map(lambda job: runs_of(*job, options), jobs))
    runs = [run for found in done for run in found]
    wanted = sum(len(probes_of(row, options.probes)) for row, _, _ in jobs)
    if len(runs) < wanted:
        print(f"{len(runs)} of {wanted} runs; the same command goes on")
        return
    name = options.what if options.what.startswith("precision") else f"papers_{options.what}"
    path = HERE / "results" / f"{name}.json"
    if options.row and path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))["runs"]
        runs += [run for run in there if run["row"] not in rows]
    gathered = {
        "name": name,
        "rows": [row for row in ROWS[options.what] if any(run["row"] == row for run in runs)],
        "probes": options.probes,
        **({"forwards": BUDGET} if options.what == "equal_cifar" else {}),
        "runs": runs,
    }
    with replacing(path) as part:
        part.write_text(json.dumps(gathered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path.name}; `make tables` brings it into the README and docs")


def probes_of(row: str, probes: list[str]) -> list[str]:
    """The presets' names, a row's "own" one by its name, each once."""
    return [*dict.fromkeys(COSTS[row][2] if probe == "own" else probe for probe in probes)]


def runs_of(row: str, words: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The record of one training under each probe, as far as there is time."""
    found = []
    for probe in probes_of(row, options.probes):
        # Whether PGD is strong enough: one seed and one probe tell; not at a budget.
        strong = seed == 0 and probe == options.probes[0] and options.what != "equal_cifar"
        shared = ["--data", options.data, "--seed", str(seed), "--probe", probe]
        shared += ["--attacks", "pgd,mpgd" if strong else "pgd"]
        if options.epochs:
            shared += ["--epochs", str(options.epochs)]
        if options.data.startswith("folder:"):
            shared += ["--image-size", "16" if options.what == "equal_cifar" else "32"]
        script = PRECISIONS if options.what.startswith("precision") else REPRODUCE
        left = options.deadline - time.monotonic()
        if left <= 0:
            break
        if options.time_budget:
            shared += ["--time-budget", f"{left:.0f}"]
        command = [sys.executable, str(script), *words.split(), *shared, "--out", str(options.out)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400"},
        )
        if done.returncode:
            raise SystemExit(f"{row}, seed {seed}, {probe}:\n{done.stdout}\n{done.stderr}")
        if "time budget is spent" in done.stdout:
            break
        folder = done.stdout.rsplit("are in ", 1)[1].split("\n")[0]
        print(f"{row}, seed {seed}, {probe} probe: done", flush=True)
        record = json.loads((Path(folder) / "record.json").read_text(encoding="utf-8"))
        found.append({"row": row, **record})
    return found


_PROBES = (
    "whose linear probe; the first one's numbers are the table's, the others stand beside; "
    "own is a method's own (of equal_cifar)"
)

if __name__ == "__main__":
    main()
