"""What a run leaves: its record, its encoders, and a table of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from advssl.evaluation import identity
from advssl.evaluation.evaluate import OWN
from advssl.evaluation.places import without_place as without_place
from advssl.evaluation.records import Measurement
from harness import chain
from harness.method import Method


def kept(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record at ``path`` if it says the same of the same, else ``record``, written there.

    A command that is repeated reads its results back: when, where and how fast they were found
    stays what it was.
    """
    measurements = [
        [m[key] for key in ("name", "correct", "seed", "settings", "dataset")]
        for m in record["measurements"]
    ]
    same = ("kind", "plan", "settings", "presentations", "pretraining")
    found = identity.fingerprint_of(as_json([*(record.get(key) for key in same), measurements]))
    known = identity.kept(path, found)
    if known is None:
        identity.keep(path, found, record)
    return known or record


def exported(method: Method, encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What ``advssl evaluate`` reads: weights, how the input is normalised, a classifier's head.

    The head is ``linear.weight`` and ``linear.bias``, of methods that train a classifier.
    """
    own = method.classifier()  # encoder, head
    head = {} if own is None else own.get_submodule("1").state_dict()
    pixels = chain.reads(method)
    normalization = {
        f"normalize.{part}": torch.tensor(values)
        for part, values in (("mean", pixels.mean), ("std", pixels.std))
        if values is not None
    }
    weights = {**encoder.state_dict(), **{f"linear.{k}": v for k, v in head.items()}}
    return {**{k: v.cpu() for k, v in weights.items()}, **normalization}


def table(title: str, found: Sequence[Measurement]) -> str:
    """A line for each classifier, a column for each attack."""
    rows: dict[str, dict[str, str]] = {}
    for m in found:
        of = place_of(m)
        rows.setdefault(of.label, {})[of.attack] = f"{100 * m.value:.1f}"
    heads = list(next(iter(rows.values())))
    lines = [
        [f"{title}: accuracy (%) on {found[0].n} test images", *heads],
        ["---", *["--:"] * len(heads)],
    ]
    lines += [[place, *(row.get(attack, "") for attack in heads)] for place, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Place(NamedTuple):
    """Whose number it is.

    Attributes:
        protocol: by which the classifier was made; "own" of the method's own head.
        branch: of BatchNorm, if there are several.
        selected: how the epoch was chosen; None for the last.
        attack: under what.
    """

    protocol: str
    branch: str | None
    selected: str | None
    attack: str

    @property
    def label(self) -> str:
        """All but the attack."""
        head = "own head" if self.protocol == OWN else self.protocol
        within = " ".join(filter(None, (head, self.branch)))
        return within if self.selected is None else f"{within}, {self.selected}"


def place_of(m: Measurement) -> Place:
    """From the fields; from the name, "slf pgd, best on validation: clean", before 0.2."""
    if m.probe is not None and m.model is not None:
        return Place(m.probe.protocol, m.model.branch, m.probe.selected, m.name)
    place, _, attack = m.name.partition(": ")
    place, _, selected = place.partition(", ")
    if place == "own head":
        return Place(OWN, None, None, attack)
    protocol, _, branch = place.partition(" ")
    return Place(protocol, branch or None, selected or None, attack)


def as_json(content: Any) -> Any:
    """Plain JSON, where no text says where on this machine a file is."""
    if isinstance(content, Mapping):
        return {str(key): as_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [as_json(value) for value in content]
    return without_place(content) if isinstance(content, str) else content
