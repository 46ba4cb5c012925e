"""Reproduce a paper's method, or a table of it: pretrain, finetune, attack, record.

    python examples/papers/reproduce.py --list
    python examples/papers/reproduce.py advcl                           # on digits, in minutes
    python examples/papers/reproduce.py advcl --data cifar10 --preset paper
    python examples/papers/reproduce.py --table advcl-4                 # ours beside the paper's
    python examples/papers/reproduce.py gsa_rsl --no-sam --dry-run      # the plan and its cost

Interrupted, or out of its ``--time-budget``, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only

from advssl.evaluation import attacks, probes, records
from harness import chain, cost, tables
from harness.chain import Plan
from harness.options import GOES_ON, given, parse
from harness.presets import PRESETS, plan_of
from harness.recording import as_json, exported, kept, table, without_place
from methods import METHODS

SCRIPT = "reproduce.py"  # what records and messages call it


def main(arguments: Sequence[str] | None = None) -> None:
    """One method, one table, or the list of what there is."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join([SCRIPT, *map(without_place, words)])
    options = parse(words, SCRIPT, __doc__ or "")
    try:
        if options.list:
            print(listing())
        elif options.table:
            print(reproduce_table(options, command))
        else:
            plan = plan_of(options.method, options, given(options, METHODS[options.method]))
            print(dry_run(plan) if options.dry_run else run(plan, options, command)["table"])
    except (ValueError, ImportError) as error:
        raise SystemExit(f"{SCRIPT}: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(f"{SCRIPT}: interrupted; {GOES_ON}") from None


def run(plan: Plan, options: argparse.Namespace, command: str) -> dict[str, Any]:
    """The chain of one plan; its record, which is also written to ``--out``."""
    data = chain.open_plan(plan)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"no folder can be made at --out {options.out}: {error.strerror}"
        ) from error
    trained = chain.pretrained(
        plan,
        METHODS,
        data,
        options.out,
        compiled=options.compile,
        devices=options.devices,
        deadline=options.deadline,
        memory_gb=options.memory_gb,
    )
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        raise SystemExit(0)  # the first process does the rest
    if trained is None:
        print(f"the time budget is spent; {GOES_ON}")
        raise SystemExit(0)
    method, told = trained
    started = time.perf_counter()
    with attacks.progress_bars() as progress:
        if plan.plus:
            chain.improve(plan, method, data, options.out, progress)
        found = chain.measured(plan, method, data, options.out, progress)
    record = {
        "kind": "advssl chain",
        "plan": as_json(asdict(plan)),
        "settings": as_json(asdict(method.settings)),
        "presentations": told["presentations"],
        "command": command,
        "commit": records.commit(),
        "machine": records.machine(),
        "seconds": {
            "pretraining": told.get("seconds", 0.0),
            "evaluation": round(time.perf_counter() - started, 1),
        },
        "pretraining": told,
        "measurements": [json.loads(m.to_json()) for m in found],
    }
    folder = options.out / f"{plan.method}-{chain.digest(asdict(plan))}"
    folder.mkdir(exist_ok=True)
    record = kept(folder / "record.json", record)
    for branch, encoder in chain.encoders(method, plan.branches).items():
        name = f"encoder-{branch}.pt" if branch else "encoder.pt"
        with records.replacing(folder / name) as part:
            torch.save(exported(method, encoder), part)
    shown = table(METHODS[plan.method].title, found)
    shown += f"\n\nrecord.json and the encoders are in {folder}"
    return {**record, "table": shown, "found": found}


def dry_run(plan: Plan) -> str:
    """The plan, its cost in forwards per image, and how long it will take here."""
    return cost.foreseen(plan, METHODS)


def reproduce_table(options: argparse.Namespace, command: str) -> str:
    """A paper's table with our numbers beside the printed ones."""
    data = options.data.partition(":")[0]
    table = tables.lookup(options.table, data)
    plans = {}  # all of them first: what cannot be run is refused before any work
    for row in table.rows:
        if row.unavailable or row.method is None:
            continue
        asked = argparse.Namespace(**{**vars(options), "mode": row.mode or options.mode})
        plan = plan_of(row.method, asked, row.flags, row.recipe)
        plan = replace(plan, protocols=row.protocols, branches="own")
        if options.preset == "paper":
            plan = replace(
                plan,
                backbone=options.backbone or row.backbone or plan.backbone,
                preset=options.probe or table.probe or plan.preset,
            )
        for protocol in plan.protocols:
            probes.protocol(plan.preset, protocol)
        plans[row.label] = plan
    if options.dry_run:
        return "\n\n".join(f"{label}\n{dry_run(plan)}" for label, plan in plans.items())
    ours = {label: run(plan, options, command)["found"] for label, plan in plans.items()}
    return tables.render(table, ours, data, options.mode)


def listing() -> str:
    """Every method with its paper and the tables it is in."""
    lines = []
    for name, method in METHODS.items():
        ids = ", ".join(t.id for t in tables.tables_of(name)) or "none"
        lines.append(f"{name:11} {method.title}: {method.paper}; tables: {ids}")
    presets = (f"--preset {name}: {preset.what}" for name, preset in PRESETS.items())
    return "\n".join([*lines, "", *presets])


if __name__ == "__main__":
    main()
