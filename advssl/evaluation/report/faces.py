"""Faces: one report as a page, as markdown, and as lines for a terminal."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advssl.evaluation.report.content import Report
from advssl.evaluation.report.figures import figures, svg
from advssl.evaluation.report.findings import FACES, tables
from advssl.evaluation.report.view import CHECKS, MARKS, SETTINGS, View
from advssl.evaluation.report.words import columns, text
from advssl.extras import needed

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent
_CAPTIONS = {
    "accuracy-against-radius": "Accuracy against the radius of the attack. It must reach zero: "
    "an attack that may change everything and still fails is not working.",
    "accuracy-against-steps": "Accuracy against the attack's steps. It should have levelled off "
    "where the headline's attack stops.",
    "clean-against-robust": "Standard against robust accuracy (worst case), with 95 % intervals.",
    "strip": "Images before and after the attack; above each, what the classifier says, in red "
    "where it is wrong.",
}


def html(report: Report) -> str:
    """A page that stands on its own: opens offline, prints, follows the reader's colours.

    Raises:
        ImportError: without jinja2 or matplotlib.
    """
    markup = needed("markupsafe").Markup
    drawn = {name: markup(svg(figure, name)) for name, figure in figures(report).items()}
    style = markup((_HERE / "style.css").read_text(encoding="utf-8"))
    pictures = {name: p for face in FACES.values() for name, p in face.pictures.items()}
    captions = _CAPTIONS | {name: picture.caption for name, picture in pictures.items()}
    wide = [n for n in drawn if n == "strip" or (n in pictures and pictures[n].wide)]
    more = {"drawn": drawn, "captions": captions, "wide": wide, "style": style}
    return _filled("page.html.jinja", report, **more)


def markdown(report: Report) -> str:
    """To be pasted into a pull request or a lab book."""
    return _filled("page.md.jinja", report)


def terminal(report: Report) -> str:
    """What counts, in a few lines: headlines, failed checks, verdict, and all accuracies."""
    view = View(report)
    lines = [report.title]
    for headline in view.headlines:
        share = headline.share
        few = f"{share.few}: few images." if share.few else ""
        said = " ".join(filter(None, (few, headline.said)))
        lines += [f"{share.value} {headline.sentence}", *filter(None, [said and f"  {said}"])]
    lines += [f"✗ {s.label}: {c.name}: {c.evidence} {c.follows}".rstrip() for s, c in view.doubts]
    state, sentence = view.verdict
    # Down and not across: names of attacks are long, and sections are few.
    down = zip(view.columns, *map(view.cells, view.rows), strict=True)
    shown = columns([("", *(row.section.label for row in view.rows)), *down])
    beside = (*tables(report), *report.tables)
    more = [line for table in beside for line in ("", str(table))]
    return "\n".join([*lines, f"{mark(state)} {sentence}", "", *shown, *more])


def mark(state: str) -> str:
    """Of a verdict, told by more than its colour."""
    return MARKS.get(state, "✗")


def escaped(value: Any) -> str:
    """Text that markdown shows as it is, in one line."""
    # Brackets of the intervals stay: without a parenthesis after them they are no link.
    marked = re.sub(r"([\\`*_|#])|(\](?=[(:\[]))", r"\\\1\2", " ".join(str(value).split()))
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _filled(name: str, report: Report, **more: Any) -> str:
    template = _templates().get_template(name)
    filled: str = template.render(view=View(report), report=report, **more)
    return filled.strip() + "\n"


@cache
def _templates() -> Environment:
    jinja = needed("jinja2")
    environment: Environment = jinja.Environment(
        loader=jinja.FileSystemLoader(_HERE),
        autoescape=jinja.select_autoescape(enabled_extensions=("html.jinja",)),
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(md=escaped, words=text, mark=mark)
    environment.globals.update(CHECKS=CHECKS, SETTINGS=SETTINGS)
    return environment
