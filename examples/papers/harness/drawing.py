"""Drawing: the trained methods of a figure's rows to the figure, with the record it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from advssl import Linf
from advssl.evaluation import report
from advssl.evaluation.anchors import Terms
from advssl.evaluation.chosen import BATCH, attacked
from advssl.evaluation.curves import curves
from advssl.evaluation.data import Data
from advssl.evaluation.progress import Progress
from advssl.evaluation.protocols import protocol
from advssl.evaluation.report.findings import FACES
from advssl.evaluation.report.lines import over_settings, training
from advssl.evaluation.report.look import look
from advssl.evaluation.sharing import device_here
from harness import blackbox, chain
from harness.chain import Plan
from harness.figures import Figure
from harness.method import Method
from harness.watching import WATCHED, as_plain


class Trained(NamedTuple):
    """A row's method.

    Attributes:
        plan: of it.
        method: trained.
        on: what it is measured on.
        history: what was seen of it by epoch, if that is what is drawn.
    """

    plan: Plan
    method: Method
    on: Data
    history: Mapping[int, Terms] | None = None


def draw(
    figure: Figure,
    rows: Mapping[str, Trained],
    radius: float,
    out: Path,
    command: str,
    progress: Progress,
) -> list[Path]:
    """Its drawings as SVG in ``out/figures``, beside a record of their numbers and a page.

    ``radius`` is that of what is measured, ℓ∞; ``out`` the folder of everything that runs leave.
    """
    folder = out / "figures" / figure.id
    folder.mkdir(parents=True, exist_ok=True)
    if figure.show == WATCHED:
        history = {label: row.history for label, row in rows.items() if row.history}
        told = {label: as_plain(of) for label, of in history.items()}
        text = json.dumps({"command": command, "history": told}, indent=1)
        (folder / "record.json").write_text(text, encoding="utf-8")
        return [_saved(training(history), "over-training", folder)]
    page = _page(figure, rows, radius, out, command, progress)
    report.write(page, folder)
    if figure.sweep is not None:
        return [_saved(over_settings(by_value(page), figure.sweep[1]), "over-settings", folder)]
    drawn = report.figures(page)
    return [_saved(drawn[name], name, folder) for name in figure.show]


def _page(
    figure: Figure,
    rows: Mapping[str, Trained],
    radius: float,
    out: Path,
    command: str,
    progress: Progress,
) -> report.Report:
    """A report of all rows, each measured by what the figure shows."""
    measures = [n for n, face in FACES.items() if {*figure.show} & {*face.pictures}]
    found = dict[str, report.Report]()
    for label, (plan, method, on, _) in rows.items():
        method.to(device_here())
        (encoder,) = chain.encoders(method, "own").values()
        found[label] = chain.reported(
            plan,
            encoder,
            on,
            out,
            progress,
            ball=Linf(radius),
            attacks=["pgd"],
            probe=[protocol(plan.preset, name) for name in plan.protocols],
            pixels=chain.reads(method),
            measures=measures,
        )
    sections = [
        replace(section, encoder=label, **_strengths(figure, rows[label], radius, out, progress))
        for label, one in found.items()
        for section in one.sections
        if section.selected is None
    ]
    (first, *_) = found.values()
    models = {label: one.model for label, one in found.items()}
    title = f"{figure.paper}: {figure.caption}"
    return report.Report(title, models, first.data, command, tuple(sections))


def _strengths(
    figure: Figure, row: Trained, radius: float, out: Path, progress: Progress
) -> dict[str, Any]:
    """Both curves in the paper's ranges, if they are what is shown."""
    if "accuracy-against-steps" not in figure.show:
        return {}
    _, network = blackbox.classifier(row.plan, row.method, row.on, out)
    images = attacked(row.on.test, row.plan.num_images, BATCH, device_here())
    found = curves(network, images, ball=Linf(radius), progress=progress)
    return {"by_radius": found.by_radius, "by_steps": found.by_steps}


def by_value(page: report.Report) -> dict[str, dict[float, tuple[float, float]]]:
    """Clean accuracy and the worst case by a curve's name and the setting's value."""
    several = len({section.protocol for section in page.sections}) > 1
    found = dict[str, dict[float, tuple[float, float]]]()
    for section in page.sections:
        label, _, value = (section.encoder or "").rpartition(", ")
        name = f"{label}, {section.protocol}" if several else label
        worst = section.worst or section.clean
        shares = section.clean.value, worst.value
        found.setdefault(name, {})[float(Fraction(value))] = shares
    return found


def _saved(drawing: Any, name: str, folder: Path) -> Path:
    path = folder / f"{name}.svg"
    with look():
        drawing.savefig(path, metadata={"Date": None})
    return path
