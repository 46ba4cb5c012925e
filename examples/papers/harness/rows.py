"""Rows of a published table: printed numbers, and the command that runs each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from advssl.evaluation.choices import OWN as OWN

Published: TypeAlias = Mapping[str, tuple[float | None, ...]]  # per cent, by finetuning protocol

MEASURES = {  # the attack's name, and of which step
    "clean": "without attack",
    "pgd/4": "under PGD-20 with steps of a quarter of the radius",
    "pgd/10": "under PGD-20 with steps of a tenth of the radius",
    "pgd-l2": "under ℓ2 PGD-20 within 0.5",
    "pgd-double": "under PGD-20 at twice the radius",
    "pgd-250/4": "under PGD-250 with steps of a quarter of the radius",
    "pgd-250/10": "under PGD-250 with steps of a tenth of the radius",
    "mpgd": "under multi-targeted PGD-20",
    "mpgd-250": "under multi-targeted PGD-250",
    "aa": "under AutoAttack",
}
TO = "to "  # and a row's label: that row's network on images that PGD-20 made for this row's


def said_of(key: str) -> str:
    """A column, in words."""
    if key.startswith(TO):
        return f"{key.removeprefix(TO)}'s network, on what PGD-20 made for the row's"
    return MEASURES[key]


@dataclass(frozen=True)
class Row:
    """A line of a table, and the words of the command that runs it.

    Attributes:
        label: unique in the table.
        published: the printed numbers by protocol ("slf", "alf", "aff", "fsf"; ``OWN`` is the
            classifier that the method itself trains), one per metric; None where there is none.
        run: the method and its settings; empty of a row that the paper quotes.
        scale: what ``--preset paper`` takes besides: backbone, recipe, whose finetuning.
        quoted: whom the paper quotes, and trains no network of its own.
    """

    label: str
    published: Published
    run: tuple[str, ...]
    scale: tuple[str, ...] = ()
    quoted: str | None = None

    @property
    def protocols(self) -> str:
        """To finetune by, as the command is told."""
        return ",".join(self.published)

    @property
    def brought(self) -> tuple[str, ...]:
        """Files of weights that it reads and that whoever runs it has to bring."""
        return tuple(word.partition("=")[2] for word in self.run if word.startswith("timm:"))


@dataclass(frozen=True)
class Table:
    """A published table's numbers on one data set.

    Attributes:
        id: such as "advcl-4": the paper's fourth table.
        paper: whose.
        caption: what the rows compare.
        data: what the numbers are of; "cifar10 to stl10" of a transfer.
        metrics: what each column is, a key of ``MEASURES`` or ``TO`` a row, by the paper's name.
        rows: the lines.
        note: where ours is another experiment.
    """

    id: str
    paper: str
    caption: str
    data: str
    metrics: Mapping[str, str]
    rows: tuple[Row, ...]
    note: str | None = None

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks that its columns need."""
        names = (key.partition("/")[0] for key in self.metrics.values() if not key.startswith(TO))
        return tuple(dict.fromkeys(name for name in names if name != "clean"))

    @property
    def black_box(self) -> bool:
        """Whether it has a network's images classified by another."""
        return any(key.startswith(TO) for key in self.metrics.values())

    def words(self, row: Row, *, paper: bool) -> list[str]:
        """The command of a row, without data; at the ``paper``'s scale, under its attacks."""
        words = [*row.run, "--protocol", row.protocols]
        if paper:
            words += ["--preset", "paper", *row.scale]
            words += ["--attacks", ",".join(self.attacks)] if self.attacks else []
        return words


def classes_of(spec: str) -> tuple[str, int | None, int | None]:
    """The name of the data, and its first and last class if not all are meant."""
    found = re.fullmatch(r"(.*)@(\d+)-(\d+)", spec)
    return (found[1], int(found[2]), int(found[3])) if found else (spec, None, None)
