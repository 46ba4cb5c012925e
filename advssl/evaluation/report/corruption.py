"""Corruption: accuracy under noise, blur, weather and digital damage, on a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from advssl.evaluation.report.content import Table
from advssl.evaluation.report.look import INK, legend, titled
from advssl.evaluation.report.words import counted, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
_ORDER = [name for names in GROUPS.values() for name in names]
_WIDTH = 9.6
CAPTION = (
    "Accuracy under each type of corruption: bars are the mean over five severities, lines go from "
    "the mildest to the strongest. Dashed: clean accuracy."
)


@dataclass(frozen=True)
class Corruptions:
    """Accuracy under corruptions, see :func:`advssl.evaluation.corruptions.under_corruptions`.

    Attributes:
        source: "advssl corruptions", or the folder of files that were read.
        clean: accuracy on the same images without.
        accuracy: of severities 1 to 5, by the type's name.
        images: how many.
    """

    source: str
    clean: float
    accuracy: Mapping[str, tuple[float, float, float, float, float]]
    images: int

    def __post_init__(self) -> None:
        if not self.accuracy or not {*self.accuracy} <= {*_ORDER}:
            raise ValueError(f"corruptions are some of {_ORDER}, got {[*self.accuracy]}")

    @property
    def mean(self) -> float:
        """Over all types and severities."""
        return fmean(fmean(shares) for shares in self.accuracy.values())

    @property
    def worst(self) -> str:
        """The type that leaves least, over its severities."""
        return min(self.names, key=lambda name: fmean(self.accuracy[name]))

    @property
    def names(self) -> list[str]:
        """Of the types, in the paper's order."""
        return [name for name in _ORDER if name in self.accuracy]


def spoken(name: str) -> str:
    """A type's name as people say it."""
    return {"jpeg_compression": "JPEG"}.get(name, name.replace("_", " "))


def words(found: Corruptions) -> str:
    """What is said of it in a sentence."""
    return (
        f"accuracy under {found.source} is {percent(found.mean)} on average over "
        f"{counted(len(found.accuracy), 'type')} and their severities, {percent(found.clean)} "
        f"without; least is left under {spoken(found.worst)}, "
        f"{percent(fmean(found.accuracy[found.worst]))}."
    )


def table(found: Mapping[str, Corruptions]) -> Table:
    """A row for each type, and two columns for each section."""
    rows: list[tuple[Any, ...]] = [
        ("clean", *(x for one in found.values() for x in (100 * one.clean, None))),
        ("mean", *(x for one in found.values() for x in (100 * one.mean, _strongest(one)))),
    ]
    for name in _all(found):
        shares = [one.accuracy.get(name) for one in found.values()]
        rows.append(
            (
                spoken(name),
                *(x for s in shares for x in ((100 * fmean(s), 100 * s[-1]) if s else (None,) * 2)),
            )
        )
    header = ("type", *(h for label in found for h in (f"{label} (%)", "strongest (%)")))
    return Table(
        "Corruptions",
        header,
        tuple(rows),
        "Accuracy as the mean over severities 1 to 5, and at severity 5. Types and severities are "
        "those of CIFAR-10-C (Hendrycks and Dietterich 2019); advssl corruptions are made here by "
        "their definitions, and no number on them is one on CIFAR-10-C. On "
        f"{' or '.join(sorted({counted(one.images, 'image') for one in found.values()}))}.",
    )


def _strongest(one: Corruptions) -> float:
    return 100 * fmean(shares[-1] for shares in one.accuracy.values())


def _all(found: Mapping[str, Corruptions]) -> list[str]:
    """The types that any has."""
    return [name for name in _ORDER if any(name in one.accuracy for one in found.values())]


def figure(
    found: Mapping[str, Corruptions], styles: Mapping[str, Mapping[str, Any]]
) -> Figure | None:
    """Bars per type, those of all sections side by side."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
    axes = drawing.add_subplot()
    places = dict(_places(_all(found)))
    wide, handles = 0.8 / len(found), []
    for i, (label, one) in enumerate(found.items()):
        shift = (i - (len(found) - 1) / 2) * wide
        at = [places[name] + shift for name in one.names]
        shares = [[100 * share for share in one.accuracy[name]] for name in one.names]
        colour = styles[label]["color"]
        handles.append(axes.bar(at, [fmean(s) for s in shares], 0.9 * wide, color=colour))
        axes.vlines(at, [min(s) for s in shares], [max(s) for s in shares], INK, linewidth=1)
        axes.axhline(100 * one.clean, color=colour, linestyle="--", linewidth=1)
    axes.set_xticks(
        list(places.values()),
        [spoken(name) for name in places],
        rotation=40,
        ha="right",
        rotation_mode="anchor",
    )
    axes.grid(visible=False, axis="x")
    axes.set_xlim(min(places.values()) - 0.6, max(places.values()) + 0.6)
    axes.set_ylim(0, 103)
    axes.set_ylabel("accuracy (%)")
    titled(axes, _seen(found), _WIDTH)
    legend(drawing, handles, [*found], height=3.6)
    return drawing


def _places(names: list[str]) -> Iterator[tuple[str, float]]:
    """Where each stands, with room between the groups."""
    at = 0.0
    for group in GROUPS.values():
        there = [name for name in names if name in group]
        for name in there:
            yield name, at
            at += 1
        at += 0.6 * bool(there)


def _seen(found: Mapping[str, Corruptions]) -> str:
    """What the figure shows."""
    if len(found) == 1:
        (one,) = found.values()
        return (
            f"Corruptions leave {100 * one.mean:.0f} % of {100 * one.clean:.0f} % on average, and "
            f"least under {spoken(one.worst)}: {100 * fmean(one.accuracy[one.worst]):.0f} %"
        )
    best = max(found, key=lambda label: found[label].mean)
    others = [one for label, one in found.items() if label != best]
    shared = [name for name in found[best].names if all(name in one.accuracy for one in others)]
    wins = sum(
        all(fmean(found[best].accuracy[name]) > fmean(one.accuracy[name]) for one in others)
        for name in shared
    )
    means = [100 * found[best].mean, 100 * max(one.mean for one in others)]
    return (
        f"{best} is right most often: {means[0]:.0f} % against {means[1]:.0f} % on average, first "
        f"under {wins} of {counted(len(shared), 'type')}"
    )
