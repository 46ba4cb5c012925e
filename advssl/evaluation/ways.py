"""Ways to a classifier: a protocol of a preset, or the head that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from advssl.evaluation.data import Data
from advssl.evaluation.protocols import PRESETS, Protocol, default_preset, protocol
from advssl.evaluation.records import Probe, plain
from advssl.types import described

Probes: TypeAlias = str | Protocol | Sequence["str | Protocol"]

OWN = "own"  # a classifier's own head, where else a probe is named


@dataclass(frozen=True)
class Way:
    """To a classifier: a protocol of a preset, or its own head."""

    preset: str
    how: Protocol | None

    @property
    def name(self) -> str:
        """As sections are called."""
        return OWN if self.how is None else self.how.name

    @property
    def label(self) -> str:
        """With whose settings."""
        return self.name if self.how is None else f"{self.name} ({self.preset})"

    def record(self, selected: str | None, seed: int) -> Probe:
        settings = {} if self.how is None else plain(asdict(self.how), "probe")
        return Probe(
            preset=self.preset, protocol=self.name, selected=selected, seed=seed, settings=settings
        )


def ways(probe: Probes | None, data: Data) -> tuple[Way, ...]:
    """What a ``probe`` asks for."""
    if probe is None:
        probe = default_preset(data)
    if isinstance(probe, str) or not isinstance(probe, Sequence):
        probe = [probe]
    found = tuple(dict.fromkeys(_way(one) for one in probe))
    if not found:
        raise ValueError(
            'probe must name one at least; without, probe="own" is a classifier\'s own head'
        )
    return found


def _way(probe: Any) -> Way:
    if probe == OWN:
        return Way(OWN, None)
    if isinstance(probe, str):
        return Way(probe, protocol(probe, "slf"))
    if not isinstance(probe, Protocol):
        raise ValueError(
            f"probe must be a preset's name, a Protocol, or {OWN!r}, got {described(probe)}"
        )
    known = (name for name, family in PRESETS.items() if probe in family.values())
    return Way(next(known, "custom"), probe)
