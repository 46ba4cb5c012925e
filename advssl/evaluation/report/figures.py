"""Figures: a report's curves and images, drawn by matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from advssl.evaluation.report.content import Report, Strip, known
from advssl.evaluation.report.findings import FACES, by_measure
from advssl.evaluation.report.lines import accuracies, by_levels, of_accuracies
from advssl.evaluation.report.look import (
    BAD,
    INK,
    ON_THE_PAGE,
    headed,
    legend,
    look,
    styles,
)
from advssl.evaluation.report.words import counted, ends, pixels
from advssl.evaluation.statistics import Interval
from advssl.types import Images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from advssl.evaluation.records import Measurement

_COLUMNS_OF_STRIP = 8


def figures(report: Report) -> dict[str, Figure]:
    """The figures of the page by name, to be saved apart; those without data are left out.

    "accuracy-against-radius", "accuracy-against-steps", "clean-against-robust" (of two sections or
    more), "strip" (of the first section that has one), and those of what was found beside.

    Raises:
        ImportError: without matplotlib.
    """
    with look():
        radii = {s.label: s.by_radius for s in report.sections if s.by_radius}
        steps = {s.label: s.by_steps for s in report.sections if s.by_steps}
        strip = next((s.strip for s in report.sections if s.strip is not None), None)
        drawn = {
            "accuracy-against-radius": _radius_figure(report, radii) if radii else None,
            "accuracy-against-steps": _steps_figure(report, steps) if steps else None,
            "clean-against-robust": _scatter_figure(report),
            "strip": _strip_figure(strip) if strip is not None else None,
        }
        looks = _styles(report)
        for measure, found in by_measure(report).items():
            for name, picture in FACES[measure].pictures.items():
                drawn[name] = picture.draw(found, looks)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with look():
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Several figures share one page, and so one space of ids.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans',[^;]*?sans-serif", "system-ui, sans-serif", text)
    for colour, variable in ON_THE_PAGE.items():
        text = text.replace(colour, variable)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name.replace("-", " ")}" ', 1)


def _new_figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 20))
    return figure, axes


def _radius_figure(report: Report, curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    seen = of_accuracies(curves, lambda r: f"at radius {pixels(r)}")
    return _curve_figure(report, *by_levels(curves), seen)


def _steps_figure(report: Report, curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    seen = of_accuracies(curves, lambda n: f"after {counted(int(n), 'step')}")
    return _curve_figure(report, curves, "steps of the attack", seen)


def _curve_figure(
    report: Report, curves: Mapping[str, Sequence[tuple[float, float]]], label: str, seen: str
) -> Figure:
    figure, axes = _new_figure()
    lines = accuracies(axes, curves, _styles(report))
    axes.set_xlabel(label)
    chance = _chance(report)
    if chance is not None:
        lines += [axes.axhline(100 * chance, color=INK, linestyle=":", linewidth=1)]
    legend(figure, lines, [*curves, "chance"][: len(lines)], title=seen)
    return figure


def _chance(report: Report) -> float | None:
    classes = known(report.data).get("classes")
    count = classes if isinstance(classes, int) else len(classes or ())
    return 1 / count if count else None


def _scatter_figure(report: Report) -> Figure | None:
    found = {s.label: (s.clean, s.worst) for s in report.sections}
    both = {label: (clean, worst) for label, (clean, worst) in found.items() if worst is not None}
    if len(both) < 2:
        return None
    figure, axes = _new_figure()
    looks = _styles(report)
    points = []
    for label, (clean, worst) in both.items():
        x, y = 100 * clean.value, 100 * worst.value
        errors = [[[100 * e] for e in _errors(m)] for m in (clean, worst)]
        style = looks[label] | {"linestyle": "none"}
        points.append(axes.errorbar(x, y, xerr=errors[0], yerr=errors[1], elinewidth=1, **style))
    axes.axline((0, 0), slope=1, color=INK, linestyle=":", linewidth=1)
    axes.set_xlim(-3, 103)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("standard accuracy (%)")
    axes.set_ylabel("robust accuracy (%)")
    best = max(both, key=lambda label: both[label][1].value)
    right, stands = (100 * m.value for m in both[best])
    seen = f"Most stands of {best}: {stands:.0f} % of the {right:.0f} % that are right"
    legend(figure, points, [*both], title=seen)
    return figure


def _errors(measurement: Measurement) -> Interval:
    low, high = ends(measurement)
    return measurement.value - low, high - measurement.value


def _styles(report: Report) -> dict[str, dict[str, Any]]:
    """A section looks the same in every figure."""
    # Best epochs, which have no curves, last: they take no colour from others.
    ordered = sorted(report.sections, key=lambda section: section.selected is not None)
    labels = dict.fromkeys(section.label for section in ordered)
    return styles(labels)


def _strip_figure(strip: Strip) -> Figure:
    from matplotlib.figure import Figure

    count = min(len(strip.labels), _COLUMNS_OF_STRIP)
    clean, adversarial = (
        x[:count].detach().float().cpu() for x in (strip.clean, strip.adversarial)
    )
    height = 1.15 + 2.8 * clean.shape[2] / clean.shape[3]
    figure = Figure(figsize=(9.6, height), layout="constrained")
    grid = figure.subplots(3, _COLUMNS_OF_STRIP, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    words = ("clean", f"adversarial\nε = {pixels(strip.radius)}", "difference,\namplified")
    for axes, word in zip(grid[:, 0], words, strict=True):
        axes.text(-0.12, 0.5, word, transform=axes.transAxes, ha="right", va="center")
    _draw_images(grid[0], clean, strip.predicted_clean, strip.labels)
    _draw_images(grid[1], adversarial, strip.predicted, strip.labels)
    _draw_differences(figure, grid, (adversarial - clean).mean(dim=1))
    headed(figure, _of_strip(strip, count))
    return figure


def _of_strip(strip: Strip, count: int) -> str:
    rows = [*zip(strip.labels, strip.predicted_clean, strip.predicted, strict=True)][:count]
    right = [name for label, name, _ in rows if name == label]
    still = sum(before == label == after for label, before, after in rows)
    return (
        f"Of {counted(count, 'image')} {len(right)} are named right, and {still} after the attack"
    )


def _draw_images(
    row: Sequence[Axes], images: Images, predicted: Sequence[str], labels: Sequence[str]
) -> None:
    for axes, image, name, label in zip(row, images, predicted, labels, strict=False):
        axes.imshow(_drawable(image).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="none")
        colour = INK if name == label else BAD
        # Without y a place is looked for above ticks, which are not drawn, and that takes long.
        axes.set_title(_short(name), y=1, color=colour, fontsize=8.5, pad=3, parse_math=False)


def _draw_differences(figure: Figure, grid: Any, differences: torch.Tensor) -> None:
    most = float(differences.abs().max()) or 1.0  # two equal images are white, not an error
    for axes, difference in zip(grid[2], differences, strict=False):
        shown = axes.imshow(
            255 * difference.numpy(),
            cmap="RdBu_r",
            vmin=-255 * most,
            vmax=255 * most,
            interpolation="none",
        )
    bar = figure.colorbar(shown, ax=grid, shrink=0.32, anchor=(0.0, 0.0), aspect=12)
    bar.set_label("brighter by, in 1/255\n(mean over channels)", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _drawable(image: torch.Tensor) -> torch.Tensor:
    """(C, H, W) to what imshow takes: three channels in colour, any other number as their mean."""
    image = image.clamp(0, 1)
    return image.permute(1, 2, 0) if len(image) == 3 else image.mean(dim=0)


def _short(name: str, most: int = 13) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
