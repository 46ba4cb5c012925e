"""Drawings: what the papers draw of encoders, each kind of number to a figure in the house style.

Every function takes what was found by the name that the figure has for an encoder, and draws it
beside the others on one scale. They need matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from advssl.evaluation.embeddings import Plane
from advssl.evaluation.fisher import Fisher
from advssl.evaluation.inversion import Inversions
from advssl.evaluation.report.look import (
    COLOURS,
    INK,
    MARKERS,
    headed,
    in_our_look,
    legend,
    styles,
)
from advssl.evaluation.surfaces import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

_WIDTH = 9.6  # inches, of a figure across the page
_NAMED = 12  # classes, at most, that are told apart in the plane's legend
_DECADE = 30  # times that a loss varies by, from where on its scale is logarithmic
_BLIND_SAFE = "cividis"  # told apart with any colour vision, and in grey
_DOTS: dict[str, Any] = {"s": 14, "linewidths": 0, "rasterized": True}
_TRIANGLES: dict[str, Any] = {"s": 17, "marker": "^", "linewidths": 0.5, "edgecolors": INK}


@in_our_look
def planes(found: Mapping[str, Plane], *, classes: Sequence[str] | None = None) -> Figure:
    """t-SNE of features, coloured by class and by how unsure the classifier is.

    Triangles are attacked images. A row for each encoder.

    Args:
        found: of :func:`advssl.evaluation.embeddings.plane`, by encoder.
        classes: names of the labels; None writes their numbers.

    Reference: ASCL, Fig. 7, which has the entropy as a third axis; AdvCL, Fig. 4; ASCL-2023, Fig. 3
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    kinds = sorted({label for one in found.values() for label in one.labels})
    names = {kind: str(kind) if classes is None else classes[kind] for kind in kinds}
    # Both ends can be seen on white and on black.
    unsure = LinearSegmentedColormap.from_list("unsure", [COLOURS[0], "#9a8fa3", COLOURS[4]])
    most = Normalize(0, math.log(max(len(classes or kinds), 2)))
    drawing, grid = _rows(found, 2, 3.7)
    for (label, one), (left, right) in zip(found.items(), grid, strict=True):
        dots = _by_class(left, one, names)
        _by_entropy(right, one, unsure, most)
        _name(left, label)
        for axes in (left, right):
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
    bar = drawing.colorbar(ScalarMappable(most, unsure), ax=grid[:, 1], shrink=0.8, aspect=30)
    bar.set_label("entropy of the prediction (nats)")
    told = [*names.values(), "attacked"] if len(names) <= _NAMED else ["attacked"]
    title = _of_planes(found)
    high = drawing.get_figheight()
    legend(drawing, dots[-len(told) :], told, height=high, title=title, scale=1.6)
    return drawing


def _by_class(axes: Axes, one: Plane, names: Mapping[int, str]) -> list[Any]:
    """The dots of each class, and those of attacked images."""
    dots = list[Any]()
    for i, kind in enumerate(names):
        there = [p for p, label in zip(one.clean, one.labels, strict=True) if label == kind]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)]
        style: dict[str, Any] = {"color": colour, "marker": marker, "alpha": 0.75, **_DOTS}
        dots.append(axes.scatter(*_columns(there), **style))
    hard = axes.scatter(*_columns(one.attacked), s=13, marker="^", color=INK, linewidths=0)
    return [*dots, hard]


def _by_entropy(axes: Axes, one: Plane, unsure: Colormap, most: Normalize) -> None:
    scale: dict[str, Any] = {"cmap": unsure, "norm": most}
    (x, y), (hard_x, hard_y) = _columns(one.clean), _columns(one.attacked)
    axes.scatter(x, y, c=one.entropy, **scale, **_DOTS)
    axes.scatter(hard_x, hard_y, c=one.attacked_entropy, **scale, **_TRIANGLES)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _of_planes(found: Mapping[str, Plane]) -> str:
    shares = {k: (100 * one.at_home, 100 * one.attacked_at_home) for k, one in found.items()}
    if len(found) == 1:
        ((clean, hard),) = shares.values()
        return (
            f"{clean:.0f} % of images lie beside one of their class, and {hard:.0f} % of attacked "
            "ones (triangles)"
        )
    told = ", ".join(f"{k} {clean:.0f} and {hard:.0f} %" for k, (clean, hard) in shares.items())
    return f"Images and attacked ones (triangles) that lie beside one of their class: {told}"


@in_our_look
def inversion_maps(found: Mapping[str, Inversions]) -> Figure:
    """From each start to what each neuron answers most. A row for each encoder.

    Args:
        found: of :func:`advssl.evaluation.inversion.inversions`, by encoder.

    Reference: AdvCL, Fig. 5; ASCL-2023, Fig. 2
    """
    starts = max(len(one.starts) for one in found.values())
    group = 1 + max(len(one.neurons) for one in found.values())
    wide = [w for _ in range(starts) for w in (*[1.0] * group, 0.25)][:-1]
    drawing, grid = _rows(found, len(wide), 1.1 * 9 / sum(wide) + 0.4, width_ratios=wide)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
    for (label, one), row in zip(found.items(), grid, strict=True):
        for s, start in enumerate(one.starts):
            tiles = row[s * (group + 1) :]
            words = ["start", *(f"neuron {i}" for i in one.neurons)]
            for axes, image, word in zip(tiles, (start, *one.maps[:, s]), words, strict=False):
                shown = image.permute(1, 2, 0) if len(image) == 3 else image.mean(dim=0)
                pixels = shown.clamp(0, 1).numpy()
                axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="none")
                axes.set_xlabel(word, fontsize=8.5)
        _name(row[0], label)
    headed(drawing, _of_maps(found))
    return drawing


def _of_maps(found: Mapping[str, Inversions]) -> str:
    alike = {label: one.alike for label, one in found.items()}
    before = next(iter(found.values())).alike_before
    told = ", ".join(f"{value:.2f}" + f" ({k})" * (len(alike) > 1) for k, value in alike.items())
    return (
        "What a neuron answers most, from different starts: its maps correlate by "
        f"{told}, the starts by {before:.2f}"
    )


@in_our_look
def surfaces(found: Mapping[str, Sequence[Surface]]) -> Figure:
    """The loss on planes around images or weights. A row for each encoder, a column for each plane.

    Args:
        found: of :func:`advssl.evaluation.surfaces.input_surface` and ``weight_surface``, as many
            and in the same order for each encoder; each column has one scale.

    Reference: ASCL-2023, Figs. 4 and 5; AdvCL, Fig. 6
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    (count,) = {len(several) for several in found.values()}
    drawing, grid = _rows(found, count, 3.3, dpi=80)  # as smooth as they are, few pixels do
    for column in range(count):
        shown = {label: several[column] for label, several in found.items()}
        heights = [h for s in shown.values() for row in s.heights for h in row]
        low, high = min(heights), max(heights)
        wide = high > _DECADE * low > 0
        scale = LogNorm(low, high) if wide else Normalize(low, high)
        for (label, s), axes in zip(shown.items(), grid[:, column], strict=True):
            rows = [*zip(*s.heights, strict=True)]  # of one place on the second axis each
            axes.pcolormesh(
                s.along,
                s.along,
                rows,
                cmap=_BLIND_SAFE,
                norm=scale,
                shading="gouraud",
                rasterized=True,
            )
            if s.rise or min(map(min, rows)) < s.centre:
                axes.contour(s.along, s.along, rows, 8, colors="white", linewidths=0.5, alpha=0.6)
            axes.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=5)
            axes.set(aspect="equal", xlabel=_AXES[s.axes[0]], ylabel=_AXES[s.axes[1]])
            axes.grid(visible=False)
            axes.set_xticks([s.along[0], 0, s.along[-1]])
            axes.set_yticks([s.along[0], 0, s.along[-1]])
            if not column:
                _name(axes, label)
        bar = drawing.colorbar(ScalarMappable(scale, _BLIND_SAFE), ax=grid[:, column], aspect=25)
        bar.set_label(f"loss around {_around(next(iter(shown.values())))}")
    headed(drawing, _of_surfaces(found))
    return drawing


_AXES = {
    "steepest": "steepest direction",
    "random": "random direction",
    "SAM": "SAM's direction",
}


def _around(surface: Surface) -> str:
    return "images" if "steepest" in surface.axes else "weights"


def _of_surfaces(found: Mapping[str, Sequence[Surface]]) -> str:
    told = []
    for column in zip(*found.values(), strict=True):
        rises = {label: s.rise for label, s in zip(found, column, strict=True)}
        shown = " and ".join(
            f"{_short(rise)}" + f" ({label})" * (len(rises) > 1) for label, rise in rises.items()
        )
        told.append(f"{shown} around {_around(column[0])}")
    return f"The loss rises by {', by '.join(told)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


@in_our_look
def information(
    found: Mapping[str, Fisher], looks: Mapping[str, Mapping[str, Any]] | None = None
) -> Figure:
    """Of how many images the Fisher information is how small, as a curve for each encoder.

    Args:
        found: of :func:`advssl.evaluation.fisher.fisher_information`, by encoder.
        looks: the style of each; None takes those of :func:`~advssl.evaluation.report.look.styles`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    drawing = Figure(figsize=(4.0, 3.5), layout="constrained")
    axes = drawing.add_subplot()
    looks, lines = looks or styles(found), list[Any]()
    least = min((t for one in found.values() for t in one.traces if t > 0), default=1.0)
    for label, one in found.items():
        traces = sorted(max(t, least) for t in one.traces)
        shares = [100 * (i + 1) / len(traces) for i in range(len(traces))]
        style = {**looks[label], "marker": ""}
        lines += axes.step(traces, shares, where="post", **style)
        axes.plot(one.median if one.median > 0 else least, 50, **looks[label])
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high < _DECADE * low else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, 103)
    axes.set_xlabel("Fisher information of the pixels, trace (nats)")
    axes.set_ylabel("images with less (%)")
    legend(drawing, lines, [*found], height=3.4, title=_of_information(found))
    return drawing


def _of_information(found: Mapping[str, Fisher]) -> str:
    medians = {label: one.median for label, one in found.items()}
    if len(found) == 1:
        (value,) = medians.values()
        return f"Half of the images have more Fisher information than {value:.3g}"
    least, *_, most = sorted(medians, key=lambda label: medians[label])
    return (
        f"Predictions of {least} change least with the pixels: median "
        f"{_short(medians[least])} against {_short(medians[most])} of {most}"
    )


def _rows(
    found: Mapping[str, Any], columns: int, high: float, dpi: int = 120, **more: Any
) -> tuple[Figure, Any]:
    """A figure across the page with a row of axes for each encoder; dpi of what is pixels."""
    from matplotlib.figure import Figure

    size = _WIDTH, 0.35 + high * len(found)
    drawing = Figure(figsize=size, dpi=dpi, layout="constrained")
    return drawing, drawing.subplots(len(found), columns, squeeze=False, gridspec_kw=more)


def _name(axes: Axes, label: str) -> None:
    axes.set_title(label, loc="left", fontsize=9, parse_math=False)
