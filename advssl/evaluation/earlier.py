"""Records of version 0.1: what they hold, and what only their command says, as fields of today."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

MEASUREMENT = 1  # versions of what 0.1 wrote
REPORT = 2
_PRESETS = {"plain": "standardised"}  # that have another name now
_NORMS = {"Linf": "linf", "linf": "linf", "L2": "l2", "l2": "l2"}


def measurement(record: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement of version 0.1 with the fields of today, as far as it holds them."""
    settings = record.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    seed = settings.get("seed")
    return {
        **record,
        "version": MEASUREMENT + 1,
        "threat": _threat(settings),
        "source": None,
        "model": None,
        "probe": None,
        "attack_seed": seed if type(seed) is int else None,
        "versions": None,
    }


def _threat(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of an attack, that of its ball; of a worst case, that which all it is made of share."""
    ball, parts = settings.get("ball"), settings.get("worst_case_of")
    if isinstance(ball, dict) and isinstance(ball.get("norm"), str):
        radius = ball.get("radius")
        if isinstance(radius, int | float) and not isinstance(radius, bool):
            return {"norm": _NORMS.get(ball["norm"], ball["norm"]), "radius": radius}
    if isinstance(parts, list) and parts:
        found = [
            _threat(part["settings"])
            for part in parts
            if isinstance(part, dict) and isinstance(part.get("settings"), dict)
        ]
        if len(found) == len(parts) and all(threat == found[0] for threat in found):
            return found[0]
    return None


def report(document: Mapping[str, Any]) -> dict[str, Any]:
    """A report of version 0.1 with the fields of today: from what it holds, else its command."""
    sections, said = document.get("sections"), _said(document.get("command"))
    sections = sections if isinstance(sections, list) else []
    clean = next(
        (
            section["measurements"][0]
            for section in sections
            if isinstance(section, dict) and isinstance(section.get("measurements"), list)
            if section["measurements"] and isinstance(section["measurements"][0], dict)
        ),
        {},
    )
    return {
        **document,
        "version": REPORT + 1,
        "model": _model(document.get("model")),
        "data": _source(document.get("data"), clean, said),
        "sections": [_section(section, clean.get("seed"), said) for section in sections],
    }


def _said(command: Any) -> dict[str, str]:
    """What an ``advssl evaluate`` was told, by option; of any other command, nothing."""
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:  # an open quotation
        return {}
    if words[:2] != ["advssl", "evaluate"]:
        return {}
    said = dict(pairwise(words)) | dict(
        word.split("=", 1) for word in words if word.startswith("--") and "=" in word
    )
    return {name[2:]: value for name, value in said.items() if name.startswith("--")}


def _model(model: Any) -> Any:
    names = {"backbone", "checkpoint", "mean", "std"}
    if not isinstance(model, dict) or not names <= set(model) <= names | {"format"}:
        return model
    checkpoint = model["checkpoint"]
    return {
        "backbone": model["backbone"],
        "checkpoint": None if checkpoint == "none: random weights" else checkpoint,
        "format": model.get("format"),
        "branch": None,
        "mean": model["mean"],
        "std": model["std"],
        "fingerprint": None,
    }


def _source(data: Any, clean: Mapping[str, Any], said: Mapping[str, str]) -> Any:
    names = {"name", "classes", "train", "validation", "test", "measured on"}
    if not isinstance(data, dict) or set(data) != names or "dataset" not in clean:
        return data
    size = said.get("image-size", "")
    return {
        "spec": said.get("data", data["name"]),
        "split": "test",
        "image_size": int(size) if size.isascii() and size.isdigit() else None,
        "fingerprint": clean["dataset"],
        "images": data["measured on"],
        "population": data["test"],
        **{name: data[name] for name in ("classes", "train", "validation", "test")},
        "folders": {name: said[name] for name in ("train", "val", "test") if name in said},
        "order": "stored",
    }


def _section(section: Any, seed: Any, said: Mapping[str, str]) -> Any:
    if not isinstance(section, dict):
        return section
    preset = said.get("preset", "plain")
    probe = {
        "preset": _PRESETS.get(preset, preset),
        "protocol": section.get("protocol"),
        "selected": section.get("selected"),
        "seed": seed,
        "settings": {},  # what the preset held then is not in the record
    }
    checks = section.get("checks")
    if isinstance(checks, list):
        checks = [{"follows": "", **c} if isinstance(c, dict) else c for c in checks]
    return {**section, "checks": checks, "probe": probe if said else None, "asked": None}
