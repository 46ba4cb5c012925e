"""Reproduce a paper's method, or a table or a figure of it: pretrain, finetune, attack, record.

    python examples/papers/reproduce.py --list
    python examples/papers/reproduce.py advcl                           # on digits, in minutes
    python examples/papers/reproduce.py advcl --data cifar10 --preset paper
    python examples/papers/reproduce.py --table advcl-4                 # ours beside the paper's
    python examples/papers/reproduce.py figure:gsa-1a                   # a figure, of ours
    python examples/papers/reproduce.py acl --data cifar10 --finetune-data cifar100  # transfer
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
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from advssl.evaluation.places import without_place
from advssl.stopping import stopping
from harness.listing import asked_of as asked_of
from harness.listing import listing
from harness.options import GOES_ON, given, parse
from harness.options import without_table as without_table
from harness.presets import PRESETS as PRESETS
from harness.presets import plan_of
from harness.several import figure_of, table_of
from methods import METHODS

if TYPE_CHECKING:
    from pytorch_lightning import Callback

    from harness.plans import Plan

SCRIPT = "reproduce.py"  # what records and messages call it


def main(arguments: Sequence[str] | None = None) -> None:
    """One method, one table, one figure, or the list of what there is."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join([SCRIPT, *map(without_place, words)])
    try:
        options = parse(words, SCRIPT, __doc__ or "")
        with stopping():
            if options.list:
                print(listing(SCRIPT))
            elif options.table:
                print(table_of(words, options, command, SCRIPT, run))
            elif options.figure:
                print(figure_of(words, options, command, SCRIPT, run))
            else:
                plan = plan_of(options.method, options, given(options, METHODS[options.method]))
                print(dry_run(plan) if options.dry_run else run(plan, options, command)["table"])
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"{SCRIPT}: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(f"{SCRIPT}: interrupted; {GOES_ON}") from None


def run(
    plan: Plan, options: argparse.Namespace, command: str, watch: Sequence[Callback] = ()
) -> dict[str, Any]:
    """The chain of one plan; its record, which is also written to ``--out``."""
    import torch
    import torch.distributed as dist
    from pytorch_lightning.utilities import rank_zero_only

    from advssl.evaluation import attacks, records
    from harness import chain
    from harness.recording import as_json, exported, kept, table

    data = chain.open_plan(plan)
    finetuned_on = chain.finetuned_on(plan, data)
    records.folder_at(options.out, "--out")
    trained = chain.pretrained(
        plan,
        METHODS,
        data,
        options.out,
        compiled=options.compile,
        devices=options.devices,
        deadline=options.deadline,
        memory_gb=options.memory_gb,
        watch=watch,
    )
    if dist.is_initialized():  # or the first process would wait for the others
        dist.destroy_process_group()
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
        found = chain.measured(plan, method, finetuned_on, options.out, progress)
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
    return {**record, "table": shown, "found": found, "trained": (method, finetuned_on)}


def dry_run(plan: Plan) -> str:
    """The plan, its cost in forwards per image, and how long it will take here."""
    from harness import cost

    return cost.foreseen(plan, METHODS)


if __name__ == "__main__":
    main()
