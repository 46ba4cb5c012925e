"""Findings: what is measured beside accuracy, and how a page shows it: words, a table, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from advssl.evaluation.plain_json import msgspec
from advssl.evaluation.report import corruption, divergence, drawings, pictures, theory
from advssl.evaluation.report.content import Report, Table
from advssl.evaluation.report.look import look, styles
from advssl.evaluation.theory import RobustBounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure of what was found.

    Attributes:
        draw: what was found by section, and each section's style, to a figure; None if that shows
            nothing.
        caption: how it is to be read.
        wide: it takes the page's whole width.
    """

    draw: Callable[[Mapping[str, Any], Mapping[str, Mapping[str, Any]]], Figure | None]
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Face:
    """How a page shows what one measure found.

    Attributes:
        kind: what it finds of a section: a frozen dataclass of plain values, as the record has it.
        words: of one, in a sentence.
        table: of all, by section; its note says what the numbers are.
        pictures: figures of all, by name.
    """

    kind: type
    words: Callable[[Any], str]
    table: Callable[[Mapping[str, Any]], Table]
    pictures: Mapping[str, Picture]


# By the measures' names, see advssl.evaluation.beyond.
FACES: dict[str, Face] = {
    "corruptions": Face(
        corruption.Corruptions,
        corruption.words,
        corruption.table,
        {"accuracy-under-corruptions": Picture(corruption.figure, corruption.CAPTION, wide=True)},
    ),
    "divergence": Face(
        divergence.Divergence,
        divergence.words,
        divergence.table,
        {
            "divergence-against-accuracy": Picture(divergence.figure, divergence.CAPTION),
            "divergences": Picture(divergence.bars, divergence.BARS),
        },
    ),
    "pictures": Face(
        pictures.Pictures,
        pictures.words,
        pictures.table,
        {
            "features-in-a-plane": Picture(
                lambda found, _: drawings.planes(
                    {label: one.plane for label, one in found.items()},
                    classes=next(iter(found.values())).classes,
                ),
                "Features by t-SNE, which keeps neighbours and neither sizes nor distances of "
                "clusters: by class, and by the entropy of the classifier's prediction. Triangles "
                "are attacked images. The papers' claim is that of a robust encoder they stay "
                "with their class.",
                wide=True,
            ),
            "feature-inversion-maps": Picture(
                lambda found, _: drawings.inversion_maps(
                    {label: one.maps.inversions for label, one in found.items()}
                ),
                "From two images and from noise to what the two neurons that differ most between "
                "images answer most. The papers' claim is that a robust encoder's maps are alike "
                "whatever the start.",
                wide=True,
            ),
            "loss-surfaces": Picture(
                lambda found, _: drawings.surfaces(
                    {k: (one.around_images, one.around_weights) for k, one in found.items()}
                ),
                "Left, the mean loss around images, up to the radius along each one's steepest "
                "direction and along a random one. Right, under attack around the weights along "
                "two random directions, in lengths of each filter. The dot is where they are.",
                wide=True,
            ),
            "fisher-information": Picture(
                lambda found, styles: drawings.information(
                    {label: one.fisher for label, one in found.items()}, styles
                ),
                "Fisher information of the pixels: how fast a prediction changes with them. Less "
                "is no proof of robustness: gradients that vanish have little too.",
            ),
        },
    ),
    "theory": Face(
        RobustBounds,
        theory.words,
        theory.table,
        {"terms-of-the-theorem": Picture(theory.figure, theory.CAPTION, wide=True)},
    ),
}


def by_measure(report: Report) -> dict[str, dict[str, Any]]:
    """What was found of the sections, by measure and by section's label."""
    found = {
        name: {s.label: s.findings[name] for s in report.sections if name in s.findings}
        for name in FACES
    }
    return {name: of for name, of in found.items() if of}


def sentence(name: str, found: Any) -> str:
    """What one measure found of a classifier, in a sentence."""
    return FACES[name].words(found)


def tables(report: Report) -> list[Table]:
    """One of each measure, what it says in words behind it."""
    made = []
    for name, found in by_measure(report).items():
        face = FACES[name]
        said = [f"{label}: {sentence(name, one)}" for label, one in found.items()]
        table = face.table(found)
        made.append(replace(table, note=" ".join([*said, table.note])))
    return made


def drawn(name: str, found: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures of what one measure found of several encoders or classifiers.

    Args:
        name: of the measure, such as "divergence".
        found: by the name that the legend has.

    Raises:
        ImportError: without matplotlib.
    """
    with look():
        made = {k: p.draw(found, styles(found)) for k, p in FACES[name].pictures.items()}
    return {k: figure for k, figure in made.items() if figure is not None}


def written(findings: Mapping[str, Any]) -> dict[str, Any]:
    """As a record has them."""
    return {name: asdict(found) for name, found in findings.items()}


def read(findings: Any) -> dict[str, Any]:
    """Of a record, or a ValueError on what is wrong; "nan" and "inf" are numbers there."""
    if not isinstance(findings, dict) or not set(findings) <= set(FACES):
        raise ValueError(f"findings must be by names of {[*FACES]}, got {str(findings)[:60]}")
    return {
        name: msgspec.convert(found, FACES[name].kind, strict=False)
        for name, found in findings.items()
    }
