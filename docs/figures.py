"""Draw the figures of the pages, those of components from the components: docs/figures/*.svg.

python docs/figures.py              # all of them
python docs/figures.py flow         # one
python docs/figures.py photographs  # those whose names begin so: of photographs, from their record
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import nn

from advssl import (
    AdversarialViewGenerator,
    GlobalDivergenceCritic,
    HighFreqView,
    Linf,
    LowFreqView,
    SAMWrapper,
    selection,
)
from advssl.evaluation.curves import Curves
from advssl.evaluation.report import Report, lines, look, read
from advssl.evaluation.report.figures import svg
from advssl.evaluation.report.findings import FACES

FOLDER = Path(__file__).with_name("figures")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
BLUE, ORANGE = look.COLOURS[:2]
INK, RULE = look.INK, look.RULE
# Apart from a page, which has these itself.
STYLE = (
    "<style>svg{color:#1c2127;--bad:#b42318;--rule:#c9ced6;--paper:#fff}"
    "@media(prefers-color-scheme:dark){svg{color:#e6e6e6;--rule:#4b5563;--paper:#15181c}}</style>"
)


def adversarial_view() -> Figure:
    """Ten ascents on an objective of two pixels."""

    def height(pixels: torch.Tensor) -> torch.Tensor:
        a, b = pixels[..., 0], pixels[..., 1]
        return torch.sin(7 * a) * torch.cos(5 * b) + 0.9 * a - 0.4 * b * b

    figure, axes = _new((4.2, 3.7))
    grid = torch.linspace(0.25, 0.75, 101)
    field = height(torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1))
    axes.contour(grid, grid, field, levels=14, colors=RULE, linewidths=0.8)
    centre, radius = torch.tensor([0.5, 0.5]), 0.15
    corner = (centre - radius).tolist()
    box = {"fill": False, "edgecolor": INK, "linewidth": 1.2}
    axes.add_patch(Rectangle(corner, 2 * radius, 2 * radius, **box))
    axes.plot(*centre, "+", color=INK, markersize=9)
    steps = 5
    for seed in range(10):
        path: list[torch.Tensor] = []

        def seen(v: torch.Tensor, path: list[torch.Tensor] = path) -> torch.Tensor:
            path.append(v.detach().flatten())
            return height(v.flatten())

        adversary = AdversarialViewGenerator(Linf(radius), steps=steps)
        end = adversary(
            centre.view(1, 1, 1, 2),
            seen,
            freeze=(),
            generator=torch.Generator().manual_seed(seed),
        )
        line = torch.stack([*path, end.flatten()])
        axes.plot(line[:, 0], line[:, 1], color=BLUE, linewidth=1, alpha=0.8)
        axes.plot(*line[0], "o", color=ORANGE, markersize=4)
        axes.plot(*line[-1], "s", color=BLUE, markersize=5)
    axes.set_aspect("equal")
    axes.set_xlabel("first pixel")
    axes.set_ylabel("second pixel")
    handles = [
        axes.plot([], [], "o", color=ORANGE, label="random start")[0],
        axes.plot([], [], "s", color=BLUE, label="after five steps")[0],
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def global_divergence() -> Figure:
    """Of two Gaussian clouds: the divergence, and what critics estimate."""
    distances = torch.linspace(0, 4, 9)
    figure, axes = _new((4.2, 3.4))
    grid = torch.linspace(-12, 16, 4001, dtype=torch.float64)

    def true(distance: float) -> float:
        q, p = (torch.exp(-0.5 * (grid - m) ** 2) / math.sqrt(2 * math.pi) for m in (0, distance))
        middle = (p + q) / 2
        both = torch.special.xlogy(p, p / middle) + torch.special.xlogy(q, q / middle)
        return 0.5 * torch.trapezoid(both, grid).item()

    def estimated(shift: float, width: float) -> float:
        torch.manual_seed(0)
        critic = GlobalDivergenceCritic(1)
        optimizer = torch.optim.Adam(critic.parameters(), lr=0.05)
        benign, adversarial = torch.randn(4096, 1), shift + width * torch.randn(4096, 1)
        for _ in range(300):
            optimizer.zero_grad()
            critic.loss(benign, adversarial).backward()
            optimizer.step()
        return critic.estimate(benign, adversarial).item()

    places = distances.tolist()
    axes.plot(places, [true(d) for d in places], color=INK, linestyle=":", label="Jensen-Shannon")
    shifted = [estimated(d, 1) for d in places]
    axes.plot(places, shifted, "o-", color=BLUE, label="estimate, means apart")
    wider = [estimated(0, 1 + d) for d in places]
    axes.plot(places, wider, "s-", color=ORANGE, label="linear critic, widths apart")
    axes.axhline(math.log(2), color=RULE, linewidth=1)
    axes.set_xlabel("distance, in standard deviations")
    axes.set_ylabel("nats (at most log 2)")
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def sharpness() -> Figure:
    """A loss of one weight and SAM's term of it."""

    def loss(w: torch.Tensor) -> torch.Tensor:
        narrow = 1.0 * torch.exp(-(((w + 1) / 0.12) ** 2))
        wide = 0.7 * torch.exp(-(((w - 1) / 0.7) ** 2))
        return 1.2 - narrow - wide

    class Weight(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(value))

        def forward(self) -> torch.Tensor:
            return loss(self.w)

    figure, axes = _new((4.6, 3.2))
    grid = torch.linspace(-2, 2.6, 461)
    axes.plot(grid, loss(grid), color=INK, linestyle=":", label="L(θ)")
    for rho, colour in ((0.1, BLUE), (0.3, ORANGE)):
        values = []
        for value in grid.tolist():
            weight = Weight(value)
            values.append(SAMWrapper(weight, rho=rho)(weight).item())
        axes.plot(grid, values, color=colour, label=f"L(θ + e), ρ = {rho}")
    axes.set_xlabel("θ")
    axes.set_ylabel("loss")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def high_frequencies() -> Figure:
    """Gain of the two views for plane waves at 32 x 32 pixels."""
    size, radius = 32, 8
    rows = torch.arange(size, dtype=torch.float32) / size
    y, x = torch.meshgrid(rows, rows, indexing="ij")
    figure, axes = _new((4.6, 3.2))
    for view, colour, name in (
        (HighFreqView(radius), BLUE, "HighFreqView(8)"),
        (LowFreqView(radius), ORANGE, "LowFreqView(8)"),
    ):
        for way, (down, along), marker in (("axis", (0, 1), "o"), ("diagonal", (1, 1), "s")):
            places, gains = [], []
            for k in range(1, size // 2):
                wave = torch.cos(2 * math.pi * k * (down * y + along * x) + 0.3)
                places.append(k * math.hypot(down, along))
                gains.append((view(wave.expand(1, 3, -1, -1)).std() / wave.std()).item())
            style = "-" if way == "axis" else "--"
            label = f"{name}, {way}"
            axes.plot(places, gains, style, marker=marker, color=colour, label=label, markersize=3)
    axes.set_xlabel("cycles per image")
    axes.set_ylabel("share of the wave that is left")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def local_selection() -> Figure:
    """The masks of the four selections on twelve images."""
    labels = torch.arange(12) // 4
    predictions = labels.clone()
    predictions[[3, 6, 9]] = torch.tensor([1, 2, 0])
    told = [f"{'ABC'[y]}→{'ABC'[p]}" for y, p in zip(labels, predictions, strict=True)]
    figure = Figure(figsize=(5.4, 5.6), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, (name, select) in zip(panels, selection.SELECTIONS.items(), strict=True):
        positives, compared = select(labels, predictions)
        repel = (compared & ~positives).fill_diagonal_(False).nonzero()
        attract = positives.nonzero()
        axes.scatter(attract[:, 1], attract[:, 0], marker="s", s=36, color=BLUE)
        hollow = {"facecolors": "none", "edgecolors": ORANGE, "linewidths": 1.2}
        axes.scatter(repel[:, 1], repel[:, 0], marker="s", s=32, **hollow)
        axes.set_xticks(range(12), told, rotation=90)
        axes.set_yticks(range(12), told)
        axes.tick_params(labelsize=7, length=0)
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_xlim(-0.7, 11.7)
        axes.set_ylim(11.7, -0.7)
        axes.set_aspect("equal")
        axes.grid(False)
    return figure


# What goes in and comes out, and in brackets the modules between, with what serves them.
WAYS = (
    (
        ("images",),
        ("[views]",),
        ("[attacks]", "[balls] [pixels]\n[modes]"),
        ("your\nencoder", "[branches]"),
        ("embeddings",),
    ),
    (
        ("embeddings",),
        ("[losses] [critics]\n[heads]", "[selection] [clustering]"),
        ("[sharpness]",),
        ("your loop:\nsum, step",),
    ),
    (("your\nencoder",), ("[evaluation]",), ("record,\nreport",)),
    (("your\nstep",), ("[doctor]",), ("what spoils it,\nwhat it costs",)),
)


def flow() -> Figure:
    """The modules that a batch passes on its way to a step, or an encoder to a report."""
    figure, axes = _new((7.0, 4.4))
    for y, way in enumerate(WAYS):
        for x, (what, *served) in enumerate(way):
            if x:
                arrow = {"arrowstyle": "->", "color": INK, "linewidth": 1}
                axes.annotate("", (x - 0.42, y), (x - 0.58, y), arrowprops=arrow)
            room = what.startswith("[")
            box = {"boxstyle": "round,pad=0.45", "fill": False, "edgecolor": BLUE if room else RULE}
            axes.text(x, y, _named(what), ha="center", va="center", color=INK, bbox=box)
            for helpers in served:
                small = {"fontsize": 8, "color": INK, "ha": "center", "va": "top"}
                axes.text(x, y + 0.3, _named(helpers), **small)
    axes.set_xlim(-0.5, 4.5)
    axes.set_ylim(3.5, -0.5)
    axes.axis("off")
    return figure


def _named(text: str) -> str:
    return text.replace("] [", " · ").replace("[", "").replace("]", "")


# --- the papers' stacks ---------------------------------------------------------------------------

# Rows from the image to the loss: what the row is, and its boxes, each with the boxes above that it
# takes. "hard" is what an attack found, or what sees only that; "term" goes into the sum.
Box = tuple[str, str, str, tuple[str, ...]]  # key, text, kind, from where
Stack = list[tuple[str, list[Box]]]

GSA_RSL: Stack = [
    (
        "views",
        [("p", "p: strong view", "", ()), ("q", "q: weak view\n(strong in the text)", "", ())],
    ),
    (
        "attack",
        [
            ("", "", "", ()),
            ("d", "q + δ climbs NT(p, q + δ)\n+ the critic's divergence", "hard", ("q",)),
        ],
    ),
    (
        "encoder,\nhead",
        [
            ("clean", "clean BatchNorm\np, q", "", ("p",)),
            ("adv", "adversarial BatchNorm\nq + δ", "hard", ("d",)),
        ],
    ),
    (
        "terms",
        [
            ("1", "NT(p, q)\nat θ + e: SAM\nλ_benign", "term", ("clean",)),
            ("2", "NT(p, q + δ)\n\n1", "term", ("clean", "adv")),
            ("3", "critic between\nthe two clouds\nλ_global", "term", ("clean", "adv")),
        ],
    ),
]
ADVCL: Stack = [
    (
        "views",
        [
            ("t", "t1, t2:\nstrong views", "", ()),
            ("x", "x: weak view", "", ()),
            ("c", "clusters of\nthe image", "", ()),
        ],
    ),
    (
        "attack",
        [
            ("", "", "", ()),
            ("h", "high(x): high\nfrequencies", "", ("x",)),
            ("d", "x + δ climbs\nNT", "hard", ("x",)),
            ("e", "x + δ' climbs\ncross-entropy", "hard", ("x", "c")),
        ],
    ),
    (
        "encoder",
        [
            ("n", "normal BatchNorm\nt1, t2, high(x)", "", ("t", "h")),
            ("g", "pgd BatchNorm\nx + δ", "hard", ("d",)),
            ("ce", "pgd_ce BatchNorm\nx + δ'", "hard", ("e",)),
        ],
    ),
    (
        "terms",
        [
            ("1", "NT(t1, t2, high(x), x + δ)\n1", "term", ("n", "g")),
            ("2", "linear layers: mean over K of\ncross-entropy with clusters, λ", "term", ("ce",)),
        ],
    ),
]
ASCL: Stack = [
    ("views", [("x", "x: weak view", "", ())]),
    ("attack", [("", "", "", ()), ("d", "x_a climbs cross-entropy", "hard", ("x",))]),
    (
        "encoder",
        [("z", "z, logits of x", "", ("x",)), ("a", "z_a, logits of x_a", "hard", ("d",))],
    ),
    (
        "terms",
        [
            ("1", "CE(x_a, y)\n\n1", "term", ("a",)),
            ("2", "CE(x, y)\n\nnatural", "term", ("z",)),
            ("3", "local SupCon\nof z and z_a\nλ_SCL", "term", ("z", "a")),
            ("4", "KL(x ‖ x_a)\n\nλ_VAT", "term", ("z", "a")),
        ],
    ),
]
ASCL_2023: Stack = [
    ("views", [("x", "x: weak view", "", ()), ("t", "t1, t2: strong views", "", ())]),
    (
        "attack",
        [
            ("d", "x + δ climbs\ncross-entropy", "hard", ("x",)),
            ("e", "x + δ' climbs\nSCL", "hard", ("x",)),
            ("f", "t1+δ1, t2+δ2\nclimb NT", "hard", ("t",)),
            ("", "", "", ()),
        ],
    ),
    (
        "encoder",
        [
            ("a", "adversarial BatchNorm\nall attacked images", "hard", ("d", "e", "f")),
            ("c", "clean BatchNorm\nt1, t2", "", ("t",)),
        ],
    ),
    (
        "terms",
        [
            ("1", "cross-entropy\nof x + δ\n1", "term", ("a",)),
            ("2", "NT of t1 + δ1,\nt2 + δ2\nλ1", "term", ("a",)),
            ("3", "SCL of t1, t2 to\nx + δ' of a class\nλ2", "term", ("a", "c")),
        ],
    ),
]


def stack(rows: Stack) -> Figure:
    """Boxes in rows, arrows from what each takes, and the sum below."""
    figure, axes = _new((4.6, 0.5 + 0.95 * len(rows)))
    colours = {"": RULE, "hard": ORANGE, "term": BLUE}
    left, high = 0.13, 0.62  # where boxes begin; how much of a row they take
    middles: dict[str, tuple[float, int]] = {}
    for i, (label, boxes) in enumerate(rows):
        axes.text(0, -i, label, va="center", fontsize=8.5, style="italic")
        width = (1 - left) / len(boxes)
        for j, (key, text, kind, sources) in enumerate(boxes):
            if not text:
                continue
            middle = left + (j + 0.5) * width
            corner = (middle - width / 2 + 0.01, -i - high / 2)
            box = {"boxstyle": "round,pad=0,rounding_size=0.02", "mutation_aspect": 4}
            style = {"facecolor": "none", "edgecolor": colours[kind], "linewidth": 1.4}
            axes.add_patch(FancyBboxPatch(corner, width - 0.02, high, **box, **style))
            axes.text(middle, -i, text, ha="center", va="center", fontsize=8.5)
            for source in sources:
                x, row = middles[source]
                _arrow(axes, (x, -row - high / 2), (middle, -i + high / 2))
            middles[key] = middle, i
    end = ((1 + left) / 2, -len(rows) + 0.25)
    axes.text(*end, "their sum, one backward", ha="center", va="center", fontsize=8.5)
    for key, *_ in rows[-1][1]:
        x, row = middles[key]
        _arrow(axes, (x, -row - high / 2), (end[0] + 0.2 * (x - end[0]), end[1] + 0.12))
    axes.set_xlim(0, 1)
    axes.set_ylim(end[1] - 0.15, 0.4)
    axes.axis("off")
    return figure


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    drawn = {"arrowstyle": "-|>", "color": INK, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 1}
    axes.annotate("", end, start, arrowprops=drawn)


def speedrun() -> Figure:
    """Robust accuracy against operations: our records and the published schedules."""
    sys.path.append(str(FOLDER.parents[1] / "benchmarks"))
    from shown import photographs, reading

    figure, axes = _new((5.4, 4.0))
    published = reading.read("speedrun_published")
    level, left = 0.0, min(row["flops"] for row in published["rows"].values()) / 3
    for label, row in sorted(published["rows"].items(), key=lambda item: item[1]["pgd"]):
        at, level = (row["flops"], row["pgd"]), max(row["pgd"], level + 3)
        axes.plot(*at, "s", color=ORANGE)
        line = {"arrowstyle": "-", "color": RULE, "linewidth": 0.8}
        axes.annotate(label, at, (left, level), ha="right", va="center", arrowprops=line)
    for name, record in photographs.speedrun_records().items():
        measured = photographs.speedrun_measured(record)["PGD-20"]
        for run, m in zip(record["runs"], measured, strict=True):
            at = (photographs.spent(run, "flops"), 100 * m.value)
            axes.plot(*at, "o", color=BLUE)
        lowest = at[0], 100 * min(m.value for m in measured)
        axes.annotate(
            name.replace("_", " "), lowest, (0, -14), textcoords="offset points", ha="center"
        )
    axes.set_xscale("log")
    axes.set_xlabel("operations of pretraining (FLOP)")
    axes.set_ylabel("accuracy under PGD-20, ℓ∞ 8/255 (%)")
    axes.set_ylim(0, 60)
    axes.margins(x=0.12)
    look.titled(axes, "Robust accuracy against what pretraining costs", 5.4)
    return figure


# --- a plain and a robust encoder of photographs --------------------------------------------------

# What stands in the record of their comparison: the measure, and its figure.
PHOTOGRAPHS = {
    "corruptions": ("corruptions", "accuracy-under-corruptions"),
    "divergence": ("divergence", "divergence-against-accuracy"),
    "divergences": ("divergence", "divergences"),
    "plane": ("pictures", "features-in-a-plane"),
    "maps": ("pictures", "feature-inversion-maps"),
    "surfaces": ("pictures", "loss-surfaces"),
    "fisher": ("pictures", "fisher-information"),
    "theorem": ("theory", "terms-of-the-theorem"),
}


@cache
def compared() -> Report:
    return read(RESULTS / "photographs.json")


def photographs(measure: str, name: str) -> Figure:
    """A figure of what was measured beyond accuracy."""
    found = {str(s.encoder): s.findings[measure] for s in compared().sections if s.findings}
    figure = FACES[measure].pictures[name].draw(found, look.styles(found))
    assert figure is not None
    return figure


def strengths() -> Figure:
    """Accuracy against the attack's radius and steps."""
    found = {
        str(s.encoder): Curves(s.by_radius, ((0, s.clean.value), *s.by_steps), s.clean.n)
        for s in compared().sections
        if s.by_steps
    }
    return lines.strengths(found)


FIGURES: dict[str, Callable[[], Figure]] = {
    "adversarial_view": adversarial_view,
    "global_divergence": global_divergence,
    "sharpness": sharpness,
    "high_frequencies": high_frequencies,
    "local_selection": local_selection,
    "flow": flow,
    "stack_gsa_rsl": partial(stack, GSA_RSL),
    "stack_advcl": partial(stack, ADVCL),
    "stack_ascl": partial(stack, ASCL),
    "stack_ascl_2023": partial(stack, ASCL_2023),
    "speedrun": speedrun,
    "photographs_strengths": strengths,
    **{f"photographs_{k}": partial(photographs, *which) for k, which in PHOTOGRAPHS.items()},
}


def _new(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    asked = tuple(sys.argv[1:]) or ("",)
    for name in [name for name in FIGURES if name.startswith(asked)]:
        with look.look():
            figure = FIGURES[name]()
        text = svg(figure, name)
        text = text.replace(">", f">{STYLE}", 1)
        (FOLDER / f"{name}.svg").write_text(text, encoding="utf-8")
