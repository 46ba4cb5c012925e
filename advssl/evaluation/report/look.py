"""Look: how all figures look, whatever they show: colours, ticks and legends."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from advssl.extras import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_A = ParamSpec("_A")

# Okabe and Ito's colours, told apart with any colour vision; the markers say the same in grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, BAD, RULE, PAPER = "#1c2127", "#b42318", "#c9ced6", "#fefefe"
_TITLE: dict[str, Any] = {"fontsize": 9.5, "fontweight": "bold"}
ON_THE_PAGE = {
    INK: "currentColor",
    BAD: "var(--bad)",
    RULE: "var(--rule)",
    PAPER: "var(--paper, transparent)",
}


@contextmanager
def look() -> Iterator[None]:
    """The look of all figures, whatever the user's own matplotlib settings are."""
    needed("matplotlib", "a report's figure")
    style = needed("matplotlib.style", "a report's figure")
    settings: dict[str, Any] = {
        "svg.fonttype": "none",  # text stays text: any script is shown in the reader's fonts
        "svg.hashsalt": "advssl",  # the same figure gives the same bytes
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": RULE,
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "legend.frameon": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
        "axes.edgecolor": INK,
    }
    with style.context(["default", settings]), warnings.catch_warnings():
        # A class in another script: the browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def in_our_look(draw: Callable[_A, Figure]) -> Callable[_A, Figure]:
    """A function that draws as all figures are drawn."""

    @wraps(draw)
    def drawn(*args: _A.args, **kwargs: _A.kwargs) -> Figure:
        with look():
            figure = draw(*args, **kwargs)
            # Ticks are made when they are first asked for, and then by the settings of that time.
            for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
                axis.get_major_ticks()
                axis.get_minor_ticks()
            return figure

    return drawn


def spread(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at the values themselves, on a logarithmic axis if they span more than a decade."""
    positive = [v for v in values if v > 0]
    if positive and positive[-1] > 10 * positive[0]:
        axes.set_xscale("symlog", base=2, linthresh=positive[0])
    axes.set_xlim(right=values[-1] if len(values) > 1 else None)
    place = axes.transScale + axes.transLimits
    kept: list[float] = []
    for value in values:
        if not kept or place.transform((value, 0))[0] - place.transform((kept[-1], 0))[0] > 0.075:
            kept.append(value)
    axes.set_xticks(kept, [f"{round(v, 6):g}" for v in kept])
    axes.minorticks_off()


def styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour, a marker and a line for each."""
    return {
        label: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3],
        }
        for i, label in enumerate(labels)
    }


def titled(axes: Axes, text: str, width: float = 4.0) -> None:
    """What is seen, as a sentence above the axes, in lines that fit so many inches."""
    axes.set_title(_lines(text, width), loc="left", parse_math=False, **_TITLE)


def headed(figure: Figure, text: str) -> None:
    """What is seen, as a sentence above a figure of several axes, with a constrained layout."""
    lines = _lines(text, figure.get_figwidth())
    figure.suptitle(lines, x=0.005, ha="left", **_TITLE).set_parse_math(False)


def _lines(text: str, width: float) -> str:
    return "\n".join(textwrap.wrap(text, round(11 * width)))


def legend(
    figure: Figure,
    handles: Sequence[Any],
    labels: Sequence[str],
    *,
    height: float = 3.1,
    title: str = "",
    scale: float = 1.0,
) -> None:
    """Above the axes, which are as high as without it.

    Args:
        figure: with a constrained layout.
        handles: what was drawn.
        labels: of each.
        height: of the figure without its legend, in inches.
        title: what is seen, of a figure with several axes; of one, see :func:`titled`.
        scale: of markers, beside those that are drawn.
    """
    longest = max(map(len, labels))
    # A letter is some 0.075 inches wide, and what stands before and between the names half an inch.
    fitting = (figure.get_figwidth() + 0.25) // (0.075 * longest + 0.52)
    columns = min(len(labels), max(int(fitting), 1))
    # What the legend takes is given to the figure, not taken from the curves.
    text = _lines(title, figure.get_figwidth())
    lines = math.ceil(len(labels) / columns) + (text.count("\n") + 1.3 if text else 0)
    figure.set_figheight(height + 0.19 * lines)
    legend = figure.legend(
        handles,
        [label.lstrip("_") or "-" for label in labels],  # matplotlib hides what begins with "_"
        loc="outside upper left",
        ncols=columns,
        handlelength=1.8,
        markerscale=scale,
        columnspacing=1.4,
        borderaxespad=0.2,
        title=text,
        title_fontproperties={k.removeprefix("font"): v for k, v in _TITLE.items()},
        alignment="left",
    )
    for part in (*legend.get_texts(), legend.get_title()):
        part.set_parse_math(False)
