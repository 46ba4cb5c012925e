"""Records of version 0.1: what they hold, and what only their command says, as fields of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEASUREMENT = 1  # versions of what 0.1 wrote
REPORT = 2
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
