"""Theory: the terms of GSA-RSL's bounds beside the loss that they bound, on a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from advssl.evaluation.report.content import Table
from advssl.evaluation.report.look import INK, legend
from advssl.evaluation.theory import RobustBounds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Terms = Mapping[str, Callable[[RobustBounds], float]]
_BOUNDS: _Terms = {
    "measured loss": lambda b: b.measured,
    "first bound": lambda b: b.first,
    "second bound": lambda b: b.second,
    "second without B": lambda b: b.second_without_complexity,
}
_LOSSES: _Terms = {
    "benign": lambda b: b.benign,
    "worst-weights": lambda b: b.sharp,
    "adversarial": lambda b: b.adversarial,
}
_DISTANCES: _Terms = {
    "Jensen-Shannon": lambda b: b.js,
    "total variation": lambda b: b.tv,
    "Pearson's χ²": lambda b: b.pearson,
}
_SHOWN: _Terms = {
    "Jensen-Shannon": lambda b: _shown(b.js),
    "total variation": lambda b: _shown(b.tv),
    "Pearson's χ²": lambda b: _shown(b.pearson),
}
CAPTION = (
    "GSA-RSL's Theorem 4.9 as numbers. Left: the probe's adversarial loss beside the two bounds; "
    "right of the dotted line, √log of the number of classes, a bound says no more than a linear "
    "layer of zeros. Middle: InfoNCE. Right: how far attacked embeddings lie from benign ones, by "
    "critics; what these find below zero stands at zero."
)


def words(found: RobustBounds) -> str:
    """What is said of it in a sentence."""
    names = {"first": found.first, "second": found.second}
    said = [f"the {name} bound is {value:.3g}" for name, value in names.items()]
    vacuous = {
        (): "both say more than",
        ("first",): "the first is vacuous, as it is no less than",
        ("second",): "the second is vacuous, as it is no less than",
        ("first", "second"): "both are vacuous, as they are no less than",
    }[found.vacuous]
    text = (
        f"the probe's adversarial loss is {found.measured:.3g}, {' and '.join(said)}; {vacuous} "
        f"the {found.trivial:.3g} of zero weights. A critic tells {100 * found.accuracy:.0f} % of "
        "attacked and benign embeddings apart"
    )
    if found.branch_accuracy is None:
        return f"{text}."
    above, branch = (100 * (a - 0.5) for a in (found.accuracy, found.branch_accuracy))
    return (
        f"{text}: of these {above:.0f} points above guessing, {branch:.0f} come with the BatchNorm "
        "branch of clean images alone."
    )


def table(found: Mapping[str, RobustBounds]) -> Table:
    """A row for each term, a column for each section."""
    rows: _Terms = {
        "adversarial loss of the probe, √CE": lambda b: b.measured,
        "first bound (Theorem 4.7)": lambda b: b.first,
        "second bound (Theorem 4.5)": lambda b: b.second,
        "second without B, no bound": lambda b: b.second_without_complexity,
        "zero weights, √log M": lambda b: b.trivial,
        "InfoNCE, benign": lambda b: b.benign,
        "InfoNCE at the worst nearby weights": lambda b: b.sharp,
        "InfoNCE, adversarial": lambda b: b.adversarial,
        **{name: of for name, of in _DISTANCES.items()},
        "B": lambda b: b.complexity,
        "critic right (%)": lambda b: 100 * b.accuracy,
    }
    lines: list[tuple[Any, ...]] = [
        (name, *(f"{of(one):.4g}" for one in found.values())) for name, of in rows.items()
    ]
    branches = [one.branch_accuracy for one in found.values()]
    if any(share is not None for share in branches):
        shown = [None if share is None else f"{100 * share:.4g}" for share in branches]
        lines.append(("critic right on clean images through both branches (%)", *shown))
    return Table(
        "The theorem's terms",
        ("term", *found),
        tuple(lines),
        "GSA-RSL, Theorem 4.9. Maxima over attacks, nearby weights and critics are those found, so "
        "each term is a lower estimate. A bound is vacuous where it is no less than √log M, which "
        "a linear layer of zeros reaches on M classes under every attack. What has no constant in "
        "the paper is left out. Critics learn from one half of the images and tell the other: from "
        "few they learn nothing, and a divergence comes out below zero.",
    )


def figure(
    found: Mapping[str, RobustBounds], styles: Mapping[str, Mapping[str, Any]]
) -> Figure | None:
    """A dot for each term and section, in three panels."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9.6, 2.9), layout="constrained")
    panels = drawing.subplots(1, 3, width_ratios=(1.3, 1, 1))
    handles = _dots(panels[0], _BOUNDS, found, styles)
    _dots(panels[1], _LOSSES, found, styles)
    _dots(panels[2], _SHOWN, found, styles)
    panels[0].set_xscale("log")
    for trivial in {one.trivial for one in found.values()}:
        panels[0].axvline(trivial, color=INK, linestyle=":", linewidth=1)
    panels[0].set_xlabel("loss, √cross-entropy")
    panels[1].set_xlabel("InfoNCE (nats)")
    panels[2].set_xlabel("divergence (critics)")
    legend(drawing, handles, [*found], height=2.6, title=_seen(found))
    return drawing


def _dots(
    axes: Axes,
    terms: _Terms,
    found: Mapping[str, RobustBounds],
    styles: Mapping[str, Mapping[str, Any]],
) -> list[Any]:
    handles, wide = [], 0.5 / len(found)
    for i, (label, one) in enumerate(found.items()):
        shift = (i - (len(found) - 1) / 2) * wide
        values = [of(one) for of in terms.values()]
        at = [len(terms) - 1 - k + shift for k in range(len(terms))]
        style = {**styles[label], "linestyle": "none"}
        handles += axes.plot(values, at, clip_on=False, **style)
    axes.set_yticks(range(len(terms)), reversed([*terms]))
    axes.set_ylim(-0.6, len(terms) - 0.4)
    axes.grid(visible=False, axis="y")
    return handles


def _shown(divergence: float) -> float:
    """At least zero, whatever a critic that learned too little finds."""
    return 0.0 if divergence < 0 else divergence


def _seen(found: Mapping[str, RobustBounds]) -> str:
    """What the figure shows."""
    says = [
        name for name in ("first", "second") if any(name not in b.vacuous for b in found.values())
    ]
    bounds = (
        f"The {' and the '.join(says)} bound {'say' if len(says) > 1 else 'says'} something"
        if says
        else "Both bounds are vacuous"
    )
    if len(found) == 1:
        (one,) = found.values()
        costs = one.adversarial - one.benign, one.sharp - one.benign
        return (
            f"{bounds}; the attack adds {costs[0]:.2g} to InfoNCE, the worst nearby weights "
            f"{costs[1]:.2g}"
        )
    best = min(found, key=lambda label: found[label].measured)
    terms = {**{f"{name} InfoNCE": of for name, of in _LOSSES.items()}, **_SHOWN}
    others = [one for label, one in found.items() if label != best]
    along = [name for name, of in terms.items() if of(found[best]) < min(map(of, others))]
    least = ", ".join(along) if along else "value of no other term"
    return f"{bounds}; {best} has the lowest adversarial loss, and the lowest {least}"
