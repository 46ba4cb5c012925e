"""Reports to write, and how what was written is read."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import torch

from advssl.evaluation.checks import Check
from advssl.evaluation.embeddings import Plane
from advssl.evaluation.fisher import Fisher
from advssl.evaluation.inversion import Inversions
from advssl.evaluation.records import Measurement
from advssl.evaluation.report import Report, Section, Strip, write
from advssl.evaluation.report.corruption import Corruptions
from advssl.evaluation.report.divergence import Divergence
from advssl.evaluation.report.pictures import Maps, Pictures
from advssl.evaluation.surfaces import Surface
from advssl.evaluation.theory import RobustBounds

N, SUBSET = 40, 12
IMAGES, OTHER_IMAGES = "0123456789abcdef", "fedcba9876543210"
COMMIT = "07835a8f0c0d4a6e9b1f2c3d4e5f60718293a4b5"
MACHINE = {"cpu": "A processor", "cores": 2, "gpu": None, "python": "3.12.3", "torch": "2.15.0"}
BALL = {"norm": "linf", "radius": 8 / 255}
AA = "AA standard, n = 12, seeded, class-balanced"
PGD, FINE_PGD = "PGD-20 ℓ∞ 8/255, step 2/255", "PGD-20 ℓ∞ 8/255, step 0.8/255"
CHECKS = (
    "accuracy falls to zero",
    "loss rises with steps",
    "white box beats black box",
    "gradients do not vanish",
    "outputs are deterministic",
    "inputs are in range",
    "both BatchNorm branches",
    "AutoAttack agrees with PGD",
)
EVIDENCE = "the gradient of 31 of 40 images is exactly zero"
CURVES = ("accuracy-against-radius", "accuracy-against-steps")
ALL_FIGURES = (*CURVES, "clean-against-robust", "strip")


SELECTED = "best on validation, epoch 7 of 25"


def measurement(name: str = "clean", right: int = 30, n: int = N, first: int = 0, **fields):
    """``right`` examples are right, from number ``first`` on."""
    correct = tuple(first <= i < first + right for i in range(n))
    given = {"seed": 0, "settings": {}, "dataset": IMAGES, "commit": COMMIT, "machine": MACHINE}
    return Measurement(name=name, correct=correct, **{**given, **fields})


def attacks(lost: int) -> tuple[Measurement, ...]:
    """Clean and five attacks, the first four on the same images."""
    steps = {"ball": BALL, "steps": 20}
    return (
        measurement("clean", 37, settings={"attack": "clean"}),
        measurement(PGD, 25 - lost, settings={**steps, "step_size": 2 / 255}),
        measurement(FINE_PGD, 24 - lost, first=2, settings={**steps, "step_size": 0.8 / 255}),
        measurement("PGD-20 ℓ2 0.5", 28 - lost, settings={"ball": {"norm": "l2", "radius": 0.5}}),
        measurement("multi-targeted PGD-20", 22 - lost, first=1, settings={**steps, "targets": 9}),
        measurement(AA, 6, SUBSET, dataset=OTHER_IMAGES, settings={"ball": BALL, "norms": []}),
    )


def checks(failing: str | None = None) -> tuple[Check, ...]:
    numbers = {"left": 0.25, "radii": [0.5, 1.0]}
    made = {name: Check(name, "pass", f"fine: {name}", numbers) for name in CHECKS}
    made["both BatchNorm branches"] = Check("both BatchNorm branches", "not run", "no branches", {})
    if failing is not None:
        made[failing] = Check(failing, "fail", EVIDENCE, {"zero": 31, "n": 40})
    return tuple(made.values())


def strip(count: int = 3, channels: int = 3, size: int = 8) -> Strip:
    clean = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(3))
    sign = torch.where(torch.arange(size) % 2 == 0, 1.0, -1.0)
    names = tuple(f"class {i}" for i in range(count))
    return Strip(
        clean=clean,
        adversarial=(clean + 8 / 255 * sign).clamp(0, 1),
        labels=names,
        predicted_clean=names,
        predicted=("mistaken", *names[1:]),
        radius=8 / 255,
    )


def section(protocol: str = "slf", lost: int = 0, failing: str | None = None, **fields) -> Section:
    given = {
        "branch": None,
        "measurements": attacks(lost),
        "checks": checks(failing),
    }
    return Section(protocol, **{**given, **fields})


def curved(protocol: str = "slf", lost: int = 0, failing: str | None = None, **fields) -> Section:
    """A section with both curves: they take a second to draw."""
    curves = {
        "by_radius": ((0.0, 0.925), (4 / 255, 0.75), (8 / 255, 0.5), (128 / 255, 0.0)),
        "by_steps": ((1, 0.8), (5, 0.65), (20, 0.6), (50, 0.6)),
    }
    return section(protocol, lost, failing, **{**curves, **fields})


FINDINGS = {
    "corruptions": Corruptions(
        source="advssl corruptions",
        clean=0.95,
        accuracy={
            "fog": (0.5, 0.4, 0.3, 0.2, 0.1),
            "gaussian_noise": (0.9, 0.8, 0.7, 0.6, 0.5),
            "jpeg_compression": (0.7, 0.6, 0.5, 0.4, 0.3),
        },
        images=N,
    ),
    "divergence": Divergence(
        radii=(0.0, 4 / 255, 8 / 255),
        intra=(0.125, 0.25, 0.5),
        inter=(0.75, 0.625, 0.5),
        relative=(1 / 6, 0.4, 1.0),
        accuracy=(0.925, 0.5, 0.1),
        images=N,
        radius=8 / 255,
    ),
    "pictures": Pictures(
        classes=("cat", "dog"),
        plane=Plane(
            clean=((0.0, 0.0), (0.5, 0.0), (4.0, 0.0), (4.5, 0.0)),
            labels=(0, 0, 1, 1),
            entropy=(0.1, 0.2, 0.3, 0.6),
            chosen=(0, 2),
            attacked=((4.25, 0.5), (4.0, 0.25)),
            attacked_entropy=(0.05, 0.5),
        ),
        maps=Maps.of(
            Inversions(
                starts=torch.tensor([0.0, 0.2, 0.4, 0.6]).view(2, 1, 1, 2).expand(2, 3, 2, 2),
                maps=torch.linspace(0, 1, 48).view(2, 2, 3, 2, 2),
                neurons=(3, 5),
                before=((0.5, 0.25), (0.0, 1.0)),
                after=((2.0, 2.5), (3.0, 1.5)),
            )
        ),
        around_images=Surface(
            axes=("steepest", "random"),
            along=(-1.0, 0.0, 1.0),
            heights=((0.25, 0.25, 0.25), (0.5, 0.5, 0.5), (1.5, 2.0, 1.5)),
            unit=8 / 255,
            images=N,
        ),
        around_weights=Surface(
            axes=("random", "random"),
            along=(-0.5, 0.0, 0.5),
            heights=((3.0, 2.0, 3.0), (2.0, 1.0, 2.0), (3.0, 2.0, 4.0)),
            unit=2.0,
            images=N,
        ),
        fisher=Fisher(traces=(1.0, 4.0, 16.0), largest=(0.5, 2.0, 8.0)),
    ),
    "theory": RobustBounds(
        benign=4.0,
        adversarial=6.0,
        sharp=4.5,
        js=0.25,
        pearson=4.0,
        tv=0.5,
        accuracy=0.8,
        branch_accuracy=None,
        complexity=1000.0,
        prior=2.0,
        log_beta=4.0,
        temperature=0.5,
        measured=1.25,
        trivial=1.5,
    ),
}


def report(*sections: Section, **fields) -> Report:
    given = {
        "title": "Robustness of resnet18 on digits",
        "model": {"backbone": "timm:resnet18", "checkpoint": "last.ckpt", "format": "lightly"},
        "data": {"name": "digits", "classes": 10, "test": N, "fingerprint": IMAGES},
        "command": "advssl evaluate --backbone timm:resnet18 --checkpoint last.ckpt",
        "sections": sections or realistic_sections(),
    }
    return Report(**{**given, **fields})


def realistic_sections() -> tuple[Section, ...]:
    return (
        curved("slf", failing="gradients do not vanish", strip=strip()),
        curved("alf", lost=5),
    )


def bare(**fields) -> Section:
    """A section with nothing but its measurements."""
    given = {"measurements": (measurement(), measurement("PGD", 20))}
    return Section("slf", None, **{**given, **fields})


def without_pixels(whole: Report) -> Report:
    sections = tuple(dataclasses.replace(s, strip=None) for s in whole.sections)
    return dataclasses.replace(whole, sections=sections)


VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use", "image"}


class Page(HTMLParser):
    """A page's tags in their order, its tables, and its text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[tuple[tuple[str, ...], str]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"{tag} closed out of turn"

    def handle_data(self, data):
        self.pieces.append((tuple(self.open), data))
        if {"td", "th"} & set(self.open):
            cells = self.tables[-1][-1]
            cells[-1] += f" {data}" if cells[-1] else data

    @property
    def text(self) -> str:
        return "".join(data for where, data in self.pieces if "style" not in where)

    def texts_in(self, tag: str) -> list[str]:
        return [data for where, data in self.pieces if tag in where]

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]

    def having_class(self, name: str) -> list[str]:
        return [tag for tag, a in self.tags if name in (a.get("class") or "").split()]


def page_of(whole: Report, folder: Path) -> Page:
    return Page(write(whole, folder)["html"].read_text(encoding="utf-8"))


def markdown_of(whole: Report, folder: Path) -> str:
    return write(whole, folder)["markdown"].read_text(encoding="utf-8")


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Rows of cells, unescaped, without the rule under the header."""
    blocks = [b.splitlines() for b in text.split("\n\n") if b.startswith("|")]
    return [[cells_of(line) for i, line in enumerate(b) if i != 1] for b in blocks]


def cells_of(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line)[1:-1]
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells]


def shown(correct: str, n: int) -> str:
    """What a cell must say of a record's flags, computed from the file and not from our code."""
    right = correct.count("1")
    share, z = right / n, 1.959963984540054
    middle = (share + z * z / 2 / n) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / 4 / n / n) / (1 + z * z / n)
    low, high = max(middle - half, 0), min(middle + half, 1)
    return f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


NASTY = "<script>alert('a & b')</script> \"q\" | *x* _y_ `z` \\ [a](b) $x^2$ 鹿"


def nasty() -> Report:
    names = (f"{NASTY} 0", "a<b & c>d", '"q"')
    drawn = dataclasses.replace(
        strip(), labels=names, predicted_clean=names, predicted=("<wrong>", *names[1:])
    )
    hostile = measurement(
        NASTY, 20, settings={NASTY: NASTY}, commit=NASTY, machine={NASTY: NASTY}, dataset=NASTY
    )
    first = curved(
        NASTY,
        branch=NASTY,
        measurements=(measurement(), hostile),
        checks=(Check(NASTY, "fail", NASTY, {NASTY: NASTY}),),
        strip=drawn,
    )
    words = {NASTY: NASTY, "backbone": NASTY, "name": NASTY}
    return report(first, section(), title=NASTY, model=words, data=words, command=NASTY)
