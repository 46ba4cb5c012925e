"""Several: the rows of a table or a figure to their plans, then to numbers beside the paper's or to
a drawing.

Imports torch where work begins.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import figures, published
from harness.listing import asked_of
from harness.options import given, parse, without_table
from harness.presets import plan_of
from harness.rows import Table, classes_of
from methods import METHODS

if TYPE_CHECKING:
    from harness.plans import Plan


def plans_of(
    table: Table, words: Sequence[str], options: argparse.Namespace, script: str
) -> dict[str, Plan]:
    """By label, of each row that can be run; what cannot be is refused before any work."""
    plans, paper = {}, options.preset == "paper"
    there = [row for row in table.rows if row.run and all(Path(f).exists() for f in row.brought)]
    for row in there:
        own = asked_of(table, row, without_table(words), options.data, paper=paper)
        asked = parse(own, script)
        plan = plan_of(asked.method, asked, given(asked, METHODS[asked.method]))
        plans[row.label] = replace(plan, branches="own")
    return plans


def table_of(
    words: Sequence[str],
    options: argparse.Namespace,
    command: str,
    script: str,
    run: Callable[..., dict[str, Any]],
) -> str:
    """A paper's table with our numbers beside the printed ones: each row by its command.

    ``run`` is the chain of one plan.
    """
    names = (classes_of(spec or "")[0] for spec in (options.data, options.finetune_data))
    table = published.lookup(options.table, *(name.partition(":")[0] for name in names))
    plans = plans_of(table, words, options, script)
    from advssl import Linf
    from advssl.evaluation import attacks
    from harness import blackbox, tables

    if options.dry_run:
        return _foreseen(plans)
    ours, networks = {}, {}
    for label, plan in plans.items():
        record = run(plan, options, command)
        radius = record["settings"]["radius"]
        ours[label] = tables.Ours(plan.mode, tables.values_of(record["found"], Linf(radius)))
        if table.black_box:
            method, on = record["trained"]
            networks[label] = blackbox.classifier(plan, method, on, options.out)
    if networks:
        with attacks.progress_bars() as progress:
            found = blackbox.matrix(networks, plan, on, radius, progress)
        ours = {label: one._replace(values=found[label]) for label, one in ours.items()}
    return tables.render(table, ours, options.data)


def figure_of(
    words: Sequence[str],
    options: argparse.Namespace,
    command: str,
    script: str,
    run: Callable[..., dict[str, Any]],
) -> str:
    """A paper's figure of our encoders, as :func:`table_of`, drawn side by side."""
    figure = figures.lookup(options.figure)
    plans = plans_of(figure, words, options, script)
    from advssl.evaluation import attacks
    from harness import drawing, watching

    if options.dry_run:
        return _foreseen(plans)
    plan = next(iter(plans.values()))
    # What all rows are measured within, also where the radius of the training is swept.
    flags = {k: v for k, v in plan.flags.items() if k != "radius" or not figure.sweep}
    radius = METHODS[plan.method].settings_type.of(plan.mode, **flags).radius
    rows = {}
    for label, plan in plans.items():
        seen = watching.watch(plan, radius) if figure.show == watching.WATCHED else None
        method, on = run(plan, options, command, [seen] if seen else [])["trained"]
        history = watching.history(plan, seen, options.out) if seen else None
        rows[label] = drawing.Trained(plan, method, on, history)
    with attacks.progress_bars() as progress:
        paths = drawing.draw(figure, rows, radius, options.out, command, progress)
    return "\n".join([f"{figure.paper}, {figure.caption}", *map(str, paths), figure.note or ""])


def _foreseen(plans: Mapping[str, Plan]) -> str:
    from harness import cost

    return "\n\n".join(f"{label}\n{cost.foreseen(p, METHODS)}" for label, p in plans.items())
