"""Several: the rows of a table or a figure to their plans, and those of a figure to its drawing.

Imports torch where work begins.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import figures
from harness.listing import asked_of
from harness.options import given, parse, without_table
from harness.presets import plan_of
from harness.rows import Table
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


def figure_of(
    words: Sequence[str],
    options: argparse.Namespace,
    command: str,
    script: str,
    run: Callable[..., dict[str, Any]],
) -> str:
    """A paper's figure of our encoders: each row's by its command, then drawn side by side.

    ``run`` is the chain of one plan.
    """
    figure = figures.lookup(options.figure)
    from advssl.evaluation import attacks
    from harness import cost, drawing, watching

    plans = plans_of(figure, words, options, script)
    if options.dry_run:
        return "\n\n".join(f"{k}\n{cost.foreseen(p, METHODS)}" for k, p in plans.items())
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
