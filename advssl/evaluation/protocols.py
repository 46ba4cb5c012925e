"""Protocols: ways to a classifier, as values: how it is made of an encoder, by whose settings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from advssl.evaluation.choices import OLDER_PRESETS
from advssl.evaluation.choices import OWN as OWN
from advssl.evaluation.choices import preset_name as preset_name
from advssl.evaluation.records import Probe, plain
from advssl.types import described, number, whole

if TYPE_CHECKING:
    from advssl.evaluation.data import Data

Reads: TypeAlias = Literal["raw", "unit", "standard"]
Selects: TypeAlias = Literal["validation", "test"]
Loss: TypeAlias = Literal["ce", "pgd", "trades"]


@dataclass(frozen=True)
class Protocol:
    """How a classifier is made of an encoder.

    Attributes:
        name: "slf" (standard linear finetuning: the encoder is frozen), "alf" (adversarial linear
            finetuning), "fsf" (full standard finetuning) or "aff" (adversarial full finetuning).
        epochs: passes over the training images.
        batch_size: images in a step.
        learning_rate: of SGD with momentum 0.9.
        weight_decay: of all that is trained.
        decays: epochs after which the rate is divided by ten; None is a cosine to zero.
        loss: "ce" on the images, "pgd" (cross-entropy on PGD-10 images) or "trades" (β = 6).
        trains_encoder: the whole network learns, and its BatchNorm in train mode.
        reads: the linear layer reads features that are "raw", "unit" (of length one) or "standard"
            (mean 0 and deviation 1 over the training images, so that one learning rate fits all).
        zero_start: the linear layer starts at zero.
        augments: photographs are shifted and mirrored anew in each epoch. Without it a frozen
            encoder's features are made once, which is as many times faster as there are epochs.
        selects: the images that say which epoch was best, see :func:`finetune`. "test" is what some
            released code does; the best epoch's accuracy is then too high.
    """

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    decays: tuple[int, ...] | None
    loss: Loss = "ce"
    trains_encoder: bool = False
    reads: Reads = "raw"
    zero_start: bool = False
    augments: bool = True
    selects: Selects = "validation"

    def __post_init__(self) -> None:
        for name, allowed in (("loss", Loss), ("reads", Reads), ("selects", Selects)):
            check_choice(name, getattr(self, name), allowed)
        plain: dict[str, Any] = {n: whole(n, getattr(self, n), 1) for n in ("epochs", "batch_size")}
        for name in ("learning_rate", "weight_decay"):
            plain[name] = number(name, getattr(self, name))
            if not 0 <= plain[name] < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {plain[name]}")
        if self.decays is not None:
            if not isinstance(self.decays, tuple | list):
                raise ValueError(f"decays must be epochs, or None, got {described(self.decays)}")
            plain["decays"] = tuple(whole("decays", epoch, 0) for epoch in self.decays)
        for name in ("trains_encoder", "zero_start", "augments"):
            plain[name] = bool(getattr(self, name))
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def rate(self, epoch: int) -> float:
        """The learning rate in an epoch, counted from 0."""
        if self.decays is None:
            return self.learning_rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.learning_rate * 0.1 ** sum(epoch >= decay for decay in self.decays)


def check_choice(name: str, value: Any, allowed: Any) -> None:
    """Raise unless ``value`` is one of a ``Literal``'s."""
    if value not in get_args(allowed):
        raise ValueError(f"{name} must be one of {get_args(allowed)}, got {value!r}")


class _Presets(dict[str, dict[str, Protocol]]):
    """Read under older names too, which are not listed."""

    def __missing__(self, preset: str) -> dict[str, Protocol]:
        if preset not in OLDER_PRESETS:
            raise KeyError(preset)
        return self[OLDER_PRESETS[preset]]


def _family(slf: Protocol, alf_loss: Loss, aff: Protocol | None) -> dict[str, Protocol]:
    family = {"slf": slf, "alf": replace(slf, name="alf", loss=alf_loss, augments=True)}
    return (
        family if aff is None else family | {"fsf": replace(aff, name="fsf", loss="ce"), "aff": aff}
    )


_ADVCL = Protocol("slf", 25, 512, 0.01, 2e-4, (15, 20))
_FULL = Protocol("aff", 25, 128, 0.1, 2e-4, (15, 20), "trades", trains_encoder=True)
_LONG = Protocol("slf", 50, 128, 0.05, 1e-4, None, reads="standard", augments=False)
_ASCL = Protocol("slf", 10, 512, 0.1, 2e-4, (), zero_start=True)

# Each paper's own settings; "standardised" is ours, for data of any size. "advcl" and "dynacl" are
# the field's standard linear finetuning: they differ in its start and in its decays (DynACL takes a
# rate of 0.05 on CIFAR-100 and 0.1 on STL-10). "released" is the published code of AdvCL, which the
# others do not follow where it selects on the test images.
PRESETS: dict[str, dict[str, Protocol]] = _Presets(
    standardised=_family(_LONG, "pgd", replace(_FULL, learning_rate=0.05, decays=None)),
    advcl=_family(_ADVCL, "pgd", _FULL),
    gsa=_family(Protocol("slf", 100, 512, 0.1, 1e-4, None, reads="unit"), "pgd", None),
    dynacl=_family(
        replace(_ADVCL, decays=(10, 20), zero_start=True), "pgd", replace(_FULL, zero_start=True)
    ),
    ascl23=_family(_ASCL, "trades", replace(_ASCL, name="aff", loss="trades", trains_encoder=True)),
    released={"slf": replace(_ADVCL, selects="test")},
)


def protocol(preset: str, name: str) -> Protocol:
    """A named protocol of a named preset, or a ValueError that lists those there are."""
    if not isinstance(preset, str) or preset_name(preset) not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
    family = PRESETS[preset]
    if not isinstance(name, str) or name not in family:
        raise ValueError(
            f"preset {preset_name(preset)!r} has protocols {sorted(family)}, got {name!r}"
        )
    return family[name]


def default_preset(data: Data) -> str:
    """The field's standard finetuning for photographs, "standardised" for digits and the like.

    The first gives a published checkpoint its published number; the second trains on data of any
    size and on features of any scale.
    """
    return "advcl" if data.natural else "standardised"


Probes: TypeAlias = str | Protocol | Sequence["str | Protocol"]


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
    found, met = list[Way](), Counter[str]()
    for way in dict.fromkeys(_way(one) for one in probe):
        met[way.label] += 1  # a second one of this name is told apart by its number
        again = met[way.label] > 1
        found.append(replace(way, preset=f"{way.preset} {met[way.label]}") if again else way)
    if not found:
        raise ValueError(
            'probe must name one at least; without, probe="own" is a classifier\'s own head'
        )
    return tuple(found)


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
