"""Divergence: how far classes spread and lie apart under attacks of growing radius, on a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from advssl.evaluation.report.content import Table
from advssl.evaluation.report.look import PAPER, legend, titled
from advssl.evaluation.report.words import pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "The relative intra-class divergence R-DIV of features against accuracy, both under the same "
    "attack, whose radius grows along each curve; hollow is without attack. The paper's claim is "
    "that a curve that stays low stays accurate."
)
BARS = (
    "How far features of one class (d⁺) and of others (d⁻) lie from a clean image's, without "
    "attack and under that of the threat model."
)


@dataclass(frozen=True)
class Divergence:
    """Divergences of features under attacks of several radii, see
    :class:`~advssl.evaluation.divergences.Divergences`.

    Attributes:
        radii: in pixels of [0, 1], ascending, the first 0.
        intra: of each radius, d⁺ₐ.
        inter: d⁻ₐ.
        relative: R-DIV; None where all features lie alike.
        accuracy: of the classifier on the same images.
        images: how many.
        radius: that of the threat model.
    """

    radii: tuple[float, ...]
    intra: tuple[float, ...]
    inter: tuple[float, ...]
    relative: tuple[float | None, ...]
    accuracy: tuple[float, ...]
    images: int
    radius: float

    def __post_init__(self) -> None:
        sizes = {len(getattr(self, k)) for k in ("radii", "intra", "inter", "relative", "accuracy")}
        if len(sizes) > 1 or self.radius not in self.radii:
            raise ValueError(
                "divergences must be one of each kind per radius, that of the threat model among "
                f"them, got {sorted(sizes)} of radii {self.radii}"
            )

    @property
    def at_threat(self) -> int:
        """The threat model's place among the radii."""
        return self.radii.index(self.radius)


def words(found: Divergence) -> str:
    """What is said of it in a sentence."""
    ends = found.relative[0], found.relative[found.at_threat]
    before, after = ("not defined" if r is None else f"{r:.2f}" for r in ends)
    return (
        f"R-DIV is {before} without attack and {after} at radius {pixels(found.radius)}, where "
        f"accuracy is {100 * found.accuracy[found.at_threat]:.1f} %."
    )


def table(found: Mapping[str, Divergence]) -> Table:
    """A row for each section and radius."""
    return Table(
        "Divergence of features",
        ("protocol", "radius", "intra d⁺", "inter d⁻", "R-DIV", "accuracy (%)", "images"),
        tuple(
            (label, pixels(r), *map(_short, (intra, inter, ratio)), 100 * share, str(one.images))
            for label, one in found.items()
            for r, intra, inter, ratio, share in zip(
                one.radii, one.intra, one.inter, one.relative, one.accuracy, strict=True
            )
        ),
        "Mean cosine distances of clean features to clean and attacked ones of the same class "
        "(d⁺) and of others (d⁻) in batches of 128, and their ratio R-DIV (ASCL, section 2). "
        "Attacks are PGD-20 on the classifier.",
    )


def _short(distance: float | None) -> str | None:
    return None if distance is None else f"{distance:.3f}"


def figure(
    found: Mapping[str, Divergence], styles: Mapping[str, Mapping[str, Any]]
) -> Figure | None:
    """Accuracy against R-DIV, a curve over radii for each section."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(4.0, 3.5), layout="constrained")
    axes = drawing.add_subplot()
    lines = []
    for label, one in found.items():
        points = [
            (r, 100 * a) for r, a in zip(one.relative, one.accuracy, strict=True) if r is not None
        ]
        if not points:
            continue
        style = dict(styles[label])
        lines += axes.plot(*zip(*points, strict=True), clip_on=False, label=label, **style)
        axes.plot(*points[0], **style, markerfacecolor=PAPER, clip_on=False)
    if not lines:
        return None
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("R-DIV, intra- over inter-class divergence")
    axes.set_ylabel("accuracy (%)")
    titled(axes, _seen(found))
    legend(drawing, lines, [str(line.get_label()) for line in lines], height=3.4)
    return drawing


def bars(found: Mapping[str, Divergence], styles: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Both divergences at the threat model's radius and without attack, R-DIV above them."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(4.0, 3.5), layout="constrained")
    axes = drawing.add_subplot()
    wide, handles = 0.8 / len(found), []
    for i, (label, one) in enumerate(found.items()):
        at = [k + (i - (len(found) - 1) / 2) * wide for k in range(4)]
        threat = one.at_threat
        values = [one.intra[0], one.intra[threat], one.inter[0], one.inter[threat]]
        handles.append(axes.bar(at, values, 0.9 * wide, color=styles[label]["color"]))
    names = ("d⁺, same\nclass", "d⁺ under\nattack", "d⁻, other\nclasses", "d⁻ under\nattack")
    axes.set_xticks(range(4), names)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("mean cosine distance")
    ratios = {label: one.relative[one.at_threat] for label, one in found.items()}
    told = ", ".join(
        ("none" if ratio is None else f"{ratio:.2f}") + f" ({k})" * (len(found) > 1)
        for k, ratio in ratios.items()
    )
    titled(axes, f"R-DIV under attack, the spread of a class over the distance of others: {told}")
    legend(drawing, handles, [*found], height=3.4)
    return drawing


def _seen(found: Mapping[str, Divergence]) -> str:
    """What the figure shows."""
    under = {
        label: (r, one.accuracy[one.at_threat])
        for label, one in found.items()
        if (r := one.relative[one.at_threat]) is not None
    }
    if len(found) == 1 or len(under) < 2:
        (one, *_) = found.values()
        before, after = one.relative[0], one.relative[one.at_threat]
        if before is None or after is None:
            return "R-DIV is not defined where all features lie alike"
        shares = [100 * one.accuracy[i] for i in (0, one.at_threat)]
        return (
            f"Under attack R-DIV {_moved(before, after)} from {before:.2f} to {after:.2f}, "
            f"accuracy {_moved(*shares)} from {shares[0]:.0f} % to {shares[1]:.0f} %"
        )
    lowest = min(under, key=lambda label: under[label][0])
    best = max(under, key=lambda label: under[label][1])
    if under[lowest][1] == under[best][1]:
        return f"{lowest} has the lowest R-DIV under attack, and is right most often"
    return f"{lowest} has the lowest R-DIV under attack, but {best} is right most often"


def _moved(before: float, after: float) -> str:
    return "rises" if after > before else "falls" if after < before else "stays"
