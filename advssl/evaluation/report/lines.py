"""Lines: accuracy against what grows, and what changes while encoders train, as figures.

Every function takes what was found by the name that the figure has for an encoder. They need
matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from advssl.evaluation.anchors import Terms
from advssl.evaluation.curves import Curves
from advssl.evaluation.report.look import PAPER, in_our_look, legend, spread, styles
from advssl.evaluation.report.words import pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Curves: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]

_OF_STEPS = "steps of the attack"


@in_our_look
def strengths(
    found: Mapping[str, Curves], looks: Mapping[str, Mapping[str, Any]] | None = None
) -> Figure:
    """Accuracy against the attack's radius, and against its steps, a curve for each encoder.

    Args:
        found: of :func:`advssl.evaluation.curves.curves`, by encoder.
        looks: the style of each; None takes those of :func:`~advssl.evaluation.report.look.styles`.

    Reference: ASCL-2023, Fig. 6; AdvCL, Fig. 3
    """
    from matplotlib.figure import Figure

    looks = looks or styles(found)
    radii, name = by_levels({label: one.by_radius for label, one in found.items()})
    steps = {label: one.by_steps for label, one in found.items()}
    every: list[tuple[_Curves, str]] = [(radii, name), (steps, _OF_STEPS)]
    both = [(of, unit) for of, unit in every if all(of.values())]
    drawing = Figure(figsize=(4.8 * len(both), 3.4), layout="constrained")
    (panels,) = drawing.subplots(1, len(both), squeeze=False)
    lines = list[Any]()
    for axes, (of, unit) in zip(panels, both, strict=True):
        lines = accuracies(axes, of, looks)
        axes.set_ylim(-3, 103)
        axes.set_yticks(range(0, 101, 20))
        axes.set_xlabel(unit)
    legend(drawing, lines, [*found], height=3.3, title=_of_curves(found))
    return drawing


@in_our_look
def training(found: Mapping[str, Mapping[int, Terms]], selection: str = "leaked") -> Figure:
    """Over epochs: R-DIV, robust accuracy, and how many rows attract and repel an anchor.

    Args:
        found: of :func:`advssl.evaluation.anchors.class_terms` by epoch, by encoder: the
            ``history`` of :class:`advssl.evaluation.lightning.ClassTerms`.
        selection: whose pairs.

    Reference: ASCL, Figs. 2b and 4
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

    drawing = Figure(figsize=(9.6, 3.0), layout="constrained")
    relative, robust, pairs = drawing.subplots(1, 3)
    lines = list[Any]()
    for of, style in zip(found.values(), styles(found).values(), strict=True):
        epochs = sorted(of)
        terms = [of[epoch] for epoch in epochs]
        lines += relative.plot(epochs, [t.spread.relative for t in terms], **style)
        robust.plot(epochs, [100 * t.robust for t in terms], **style)
        anchors = [t.anchors[selection] for t in terms]
        pairs.plot(epochs, [sum(a.positives) for a in anchors], **style)
        hollow: dict[str, Any] = {**style, "markerfacecolor": PAPER, "linestyle": "--"}
        pairs.plot(epochs, [sum(a.negatives) for a in anchors], **hollow)
    relative.set_ylabel("R-DIV under attack")
    robust.set_ylabel("accuracy under attack (%)")
    pairs.set_ylabel("positives (full), negatives (hollow)\nper anchor")
    pairs.set_yscale("symlog", linthresh=1)
    pairs.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=(1, 2, 5)))
    pairs.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axes in (relative, robust, pairs):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    legend(drawing, lines, [*found], height=2.8, title=_of_training(found, selection))
    return drawing


def _of_training(found: Mapping[str, Mapping[int, Terms]], selection: str) -> str:
    ends = {label: (of[min(of)], of[max(of)]) for label, of in found.items()}
    if len(ends) == 1:
        ((first, last),) = ends.values()
        before, after = (t.spread.relative for t in (first, last))
        pairs = [sum(t.anchors[selection].negatives) for t in (first, last)]
        return (
            f"R-DIV goes from {before:.2f} to {after:.2f}, accuracy under attack from "
            f"{100 * first.robust:.0f} to {100 * last.robust:.0f} %, negatives per anchor "
            f"({selection}) from {pairs[0]:.1f} to {pairs[1]:.1f}"
        )
    lowest = min(ends, key=lambda label: ends[label][1].spread.relative)
    best = max(ends, key=lambda label: ends[label][1].robust)
    if lowest == best:
        return f"{best} ends with the lowest R-DIV, and is right most often under attack"
    return f"{lowest} ends with the lowest R-DIV, but {best} is right most often under attack"


@in_our_look
def over_settings(found: Mapping[str, Mapping[float, tuple[float, float]]], name: str) -> Figure:
    """Clean and robust accuracy of encoders over a setting of their training.

    Args:
        found: clean and robust accuracy from 0 to 1, by the setting's value, by encoder.
        name: of the setting, such as "weight of the benign loss".

    Reference: GSA-RSL, Fig. 1; ASCL, Fig. 3
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9.6, 3.4), layout="constrained")
    lines, looks = list[Any](), styles(found)
    for i, (axes, kind) in enumerate(zip(drawing.subplots(1, 2), ("clean", "robust"), strict=True)):
        of = {k: [(x, shares[i]) for x, shares in curve.items()] for k, curve in found.items()}
        lines = accuracies(axes, of, looks)
        axes.set_xlabel(name)
        axes.set_ylabel(f"{kind} accuracy (%)")
    share, label, at = max((of[x][1], label, x) for label, of in found.items() for x in of)
    of_whom = f" of {label}" * (len(found) > 1)
    seen = f"Robust accuracy{of_whom} is highest at {at:.3g}: {100 * share:.1f} %"
    legend(drawing, lines, [*found], height=3.3, title=seen)
    return drawing


def accuracies(
    axes: Axes,
    curves: _Curves,
    looks: Mapping[str, Mapping[str, Any]],
) -> list[Any]:
    """Accuracies against what grows, in per cent; the lines that were drawn."""
    lines = list[Any]()
    for name, curve in curves.items():
        xs, shares = zip(*sorted(curve), strict=True)
        lines += axes.plot(xs, [100 * a for a in shares], clip_on=False, **looks[name])
    spread(axes, sorted({float(x) for curve in curves.values() for x, _ in curve}))
    axes.set_ylabel("accuracy (%)")
    return lines


def by_levels(curves: _Curves) -> tuple[dict[str, list[tuple[float, float]]], str]:
    """Radii in grey levels if that is how they were chosen, as with ℓ∞ and not ℓ2; their name."""
    radii = [r for curve in curves.values() for r, _ in curve]
    in_levels = max(radii, default=0) <= 1 and any("/" in pixels(r) for r in radii)
    scale, unit = (255, "in 1/255") if in_levels else (1, "in pixels of [0, 1]")
    scaled = {name: [(scale * r, a) for r, a in curve] for name, curve in curves.items()}
    return scaled, f"radius ε, {unit}"


def of_accuracies(curves: _Curves, place: Callable[[float], str]) -> str:
    """What curves of accuracy show: the ends of one, where several lie furthest apart.

    Args:
        curves: as :func:`accuracies` takes them.
        place: a value on the horizontal axis in words, such as "after 5 steps".
    """
    if len(curves) == 1:
        (curve,) = curves.values()
        (first, before), (last, after) = min(curve), max(curve)
        return f"{100 * before:.0f} % are right {place(first)}, {100 * after:.0f} % {place(last)}"
    of = {label: dict(curve) for label, curve in curves.items()}
    shared = set.intersection(*(set(curve) for curve in of.values()))
    apart = {x: [curve[x] for curve in of.values()] for x in shared}
    at = max(sorted(apart), key=lambda x: max(apart[x]) - min(apart[x]), default=None)
    if at is None:
        return "Accuracy under attacks of growing strength"
    least, most = (pick(of, key=lambda label: of[label][at]) for pick in (min, max))
    if of[least][at] == of[most][at]:
        return f"All curves lie on each other: {100 * of[most][at]:.0f} % {place(at)}"
    return (
        f"Furthest apart {place(at)}: {most} has {100 * of[most][at]:.0f} %, "
        f"{least} {100 * of[least][at]:.0f} %"
    )


def _of_curves(found: Mapping[str, Curves]) -> str:
    """What the longest attacks leave of what short ones leave."""
    told = []
    for label, one in found.items():
        attacked = [(n, share) for n, share in sorted(one.by_steps) if n]
        if attacked:
            (first, before), (last, after) = attacked[0], attacked[-1]
            name = f"{label}: " * (len(found) > 1)
            told.append(
                f"{name}{100 * before:.0f} % after {first}, {100 * after:.0f} % after {last}"
            )
    return f"Accuracy by steps of the attack: {'; '.join(told)}" if told else "Accuracy by radius"
