"""What a run leaves: its record, its encoders, and a table of what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from advssl.evaluation import records
from harness import chain
from harness.method import Method


def kept(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record at ``path`` if it says the same of the same, else ``record``, written there.

    A command that is repeated reads its results back: when, where and how fast they were found
    stays what it was.
    """
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if _result(known) == _result(record):
            return known
    with records.replacing(path) as part:
        part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return record


def _result(record: Mapping[str, Any]) -> Any:
    measurements = [
        [m[key] for key in ("name", "correct", "seed", "settings", "dataset")]
        for m in record["measurements"]
    ]
    same = ("kind", "plan", "settings", "presentations", "pretraining")
    return [*(record.get(key) for key in same), measurements]


def exported(method: Method, encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What ``advssl evaluate`` reads: weights, how the input is normalised, a classifier's head.

    The head is ``linear.weight`` and ``linear.bias``, of methods that train a classifier.
    """
    own = method.classifier()  # encoder, head
    head = {} if own is None else own.get_submodule("1").state_dict()
    normalization = {
        f"normalize.{part}": torch.tensor(values)
        for part, values in chain.normalization(method).items()
    }
    weights = {**encoder.state_dict(), **{f"linear.{k}": v for k, v in head.items()}}
    return {**{k: v.cpu() for k, v in weights.items()}, **normalization}


def table(title: str, found: Sequence[records.Measurement]) -> str:
    """A line for each classifier, a column for each attack."""
    rows: dict[str, dict[str, str]] = {}
    for m in found:
        place, _, attack = m.name.partition(": ")
        rows.setdefault(place, {})[attack] = f"{100 * m.value:.1f}"
    heads = list(next(iter(rows.values())))
    lines = [
        [f"{title}: accuracy (%) on {found[0].n} test images", *heads],
        ["---", *["--:"] * len(heads)],
    ]
    lines += [[place, *(row.get(attack, "") for attack in heads)] for place, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def without_place(word: str) -> str:
    """A word of the command without where on this machine something lies."""
    return re.sub(r"(^|[=:])/(?:.*/)?([^/]+)/?$", r"\1\2", word)


def as_json(content: Any) -> Any:
    return json.loads(json.dumps(content))
