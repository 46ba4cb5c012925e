"""Records: what was measured, of what, on what and how, as fields that are checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from advssl.evaluation import earlier
from advssl.evaluation.plain_json import Struct, msgspec, structs
from advssl.evaluation.plain_json import parsed as parsed
from advssl.evaluation.plain_json import plain as plain
from advssl.evaluation.provenance import Fingerprint as Fingerprint
from advssl.evaluation.provenance import commit as commit
from advssl.evaluation.provenance import fingerprint as fingerprint
from advssl.evaluation.provenance import folder_at as folder_at
from advssl.evaluation.provenance import machine as machine
from advssl.evaluation.provenance import replacing as replacing
from advssl.evaluation.provenance import versions as versions
from advssl.evaluation.statistics import Comparison as Comparison
from advssl.evaluation.statistics import Interval as Interval
from advssl.evaluation.statistics import check_same_examples
from advssl.evaluation.statistics import compare as compare
from advssl.evaluation.statistics import student_quantile as student_quantile
from advssl.evaluation.statistics import wilson as wilson
from advssl.types import described, seed_of

KIND = "advssl measurement"
VERSION = 2
WORST = "worst case"
_HEAD = ("kind", "version", "value", "n")  # written beside the fields, checked when read


# --- what a measurement is of ---------------------------------------------------------------------


class _Fields(Struct, frozen=True, forbid_unknown_fields=True):
    """Fields whose types are checked wherever they come from, Python or JSON."""

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            _settle(self, name, kind)
        self._check()

    def _check(self) -> None:
        """Raise on values that make no sense together."""


@cache
def _kinds(of: type[Struct]) -> dict[str, Any]:
    return {field.name: field.type for field in structs.fields(of)}


def _settle(record: Struct, name: str, kind: Any) -> None:
    """Make a field plain and of its type, or raise by its name."""
    value = getattr(record, name)
    if not isinstance(value, Struct):
        value = plain(value, name)
    try:
        structs.force_setattr(record, name, msgspec.convert(value, kind))
    except msgspec.ValidationError as error:
        raise ValueError(f"{name} must be of its type, got {described(value)}: {error}") from error


class Threat(_Fields, frozen=True):
    """What an attack may do to an image.

    Args:
        norm: the ball's name: "linf", "l2".
        radius: in that norm, of pixels in [0, 1].
    """

    norm: str
    radius: float

    def _check(self) -> None:
        if not self.norm:
            raise ValueError("norm must name a ball, such as 'linf', got ''")
        if self.radius < 0:
            raise ValueError(f"radius must not be negative, got {self.radius}")


class Source(_Fields, frozen=True, kw_only=True):
    """Which images were measured on, and what they were chosen from.

    Args:
        spec: as given to ``--data``: "digits", "folder:cifar10".
        split: which part was measured on, and how it was cut: "test, seed 0".
        image_size: height and width in pixels, None where it is the images' own.
        fingerprint: of the images measured on, see :func:`fingerprint`.
        images: how many were measured on.
        population: how many these were chosen from.
        classes: how many there are.
        train: how many images a probe is trained on.
        validation: how many its epochs are chosen by.
        test: how many there are in the test part.
        order: of the images: "stored", as in the test part, or "drawn", see
            :func:`advssl.evaluation.chosen.attacked`.
        folders: names of folders that do not follow from ``spec``, by part.
    """

    spec: str
    split: str = "test"
    image_size: int | None = None
    fingerprint: str
    images: int
    population: int
    classes: int
    train: int
    validation: int
    test: int
    folders: dict[str, str] = msgspec.field(default_factory=dict)
    order: Literal["stored", "drawn"] = "stored"

    def _check(self) -> None:
        for name in ("images", "population", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("train", "validation", "test"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.images > self.population:
            raise ValueError(
                f"images must be among the population, got {self.images} of {self.population}"
            )


class Model(_Fields, frozen=True, kw_only=True):
    """Whose robustness was measured.

    Args:
        backbone: as given to ``--backbone``: "timm:resnet50".
        checkpoint: a file's name, None for random weights.
        format: that the checkpoint was read as.
        branch: whose BatchNorm statistics were used, if there are several.
        mean: of the images, per channel, as the encoder reads them; with ``std`` or not at all.
        std: their standard deviation.
        fingerprint: of the weights.
    """

    backbone: str
    checkpoint: str | None = None
    format: str | None = None
    branch: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fingerprint: str | None = None

    def _check(self) -> None:
        lengths = [None if v is None else len(v) for v in (self.mean, self.std)]
        if lengths[0] != lengths[1]:
            raise ValueError(
                f"mean and std go together, one number per channel, got {self.mean} and {self.std}"
            )


class Probe(_Fields, frozen=True, kw_only=True):
    """What was put on the encoder to classify, and how it was trained.

    Args:
        preset: whose settings: "advcl", "standardised".
        protocol: "slf", "alf", "fsf", "aff", or "own" for a classifier's own head.
        selected: how the epoch was chosen, None for the last.
        seed: of its training.
        settings: the fields of a :class:`~advssl.evaluation.probes.Protocol`.
    """

    preset: str
    protocol: str
    selected: str | None = None
    seed: int = 0
    settings: dict[str, Any] = msgspec.field(default_factory=dict)

    def _check(self) -> None:
        if not self.protocol:
            raise ValueError("protocol must have a name, such as 'slf', got ''")


# --- one measurement ------------------------------------------------------------------------------


class Measurement(Struct, frozen=True, forbid_unknown_fields=True):
    """Which examples of a dataset a classifier got right, and all it takes to measure it again.

    Args:
        name: what was measured, such as ``"PGD-20"``.
        correct: one flag per example, in the dataset's order.
        seed: of the training whose encoder is measured; :func:`compare` pairs by it.
        settings: the attack and its numbers, or whatever else the value depends on. Plain JSON;
            single numbers of numpy and torch become plain ones.
        dataset: :func:`fingerprint` of the images and labels.
        commit: of the code, see :func:`commit`.
        machine: see :func:`machine`. Plain JSON.
        threat: of the attack, None of a clean accuracy.
        source: where the images are from.
        model: whose encoder it is.
        probe: what was put on it.
        attack_seed: of the attack.
        versions: see :func:`versions`.

    Raises:
        ValueError: on a field of another type, no example, fields that contradict each other, or
            what JSON cannot give back unchanged.
    """

    name: str
    correct: tuple[bool, ...]
    seed: int
    settings: Mapping[str, Any]
    dataset: str
    commit: str | None
    machine: Mapping[str, Any]
    threat: Threat | None = None
    source: Source | None = None
    model: Model | None = None
    probe: Probe | None = None
    attack_seed: int | None = None
    versions: dict[str, str] | None = None

    def __post_init__(self) -> None:
        for field in ("name", "dataset"):
            if not isinstance(getattr(self, field), str) or not getattr(self, field):
                raise ValueError(f"{field} must be a string, got {getattr(self, field)!r}")
        structs.force_setattr(self, "seed", seed_of(self.seed))
        if self.attack_seed is not None:
            structs.force_setattr(
                self, "attack_seed", seed_of(self.attack_seed, name="attack_seed")
            )
        if not (self.commit is None or isinstance(self.commit, str)):
            raise ValueError(f"commit must be a string or None, got {self.commit!r}")
        structs.force_setattr(self, "correct", _flags(self.correct))
        for field in ("settings", "machine"):
            if not isinstance(getattr(self, field), Mapping):
                raise ValueError(f"{field} must be a mapping, got {getattr(self, field)!r}")
            structs.force_setattr(self, field, plain(getattr(self, field), field))
        for field in _OPTIONAL:
            _settle(self, field, _kinds(Measurement)[field])
        made_of(self)
        if self.source and (self.source.fingerprint, self.source.images) != (self.dataset, self.n):
            raise ValueError(
                f"source must be of the {self.n} images {self.dataset}, got "
                f"{self.source.images} images {self.source.fingerprint}"
            )

    @property
    def value(self) -> float:
        """Accuracy: the mean of ``correct``."""
        return sum(self.correct) / self.n

    @property
    def n(self) -> int:
        """How many examples."""
        return len(self.correct)

    def to_plain(self) -> dict[str, Any]:
        """As :meth:`from_plain` reads it, in plain JSON."""
        record = msgspec.to_builtins(self)
        record["correct"] = "".join("01"[c] for c in self.correct)
        return {"kind": KIND, "version": VERSION, "value": self.value, "n": self.n, **record}

    def to_json(self) -> str:
        """As text that :meth:`from_json` turns into an equal object."""
        return json.dumps(self.to_plain(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """What :meth:`to_json` wrote, of this version or of 0.1.

        Raises:
            ValueError: on anything else: damaged text, another version, keys that lack or are new.
        """
        return cls.from_plain(parsed(text, "measurement"))

    @classmethod
    def from_plain(cls, record: Any) -> Measurement:
        """As :meth:`from_json` of what :func:`json.loads` made of it; errors name $.threat.norm."""
        fields, told = opened(record)
        measurement = msgspec.convert(fields, cls)
        check_told(measurement, told)
        return measurement

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path``: whoever reads it finds the old content or the new, never a part."""
        with replacing(path) as partial:
            partial.write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Measurement:
        """What :meth:`save` wrote; a ValueError on anything else has the file's name."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error


_OPTIONAL = ("threat", "source", "model", "probe", "attack_seed", "versions")


def _flags(correct: Any) -> tuple[bool, ...]:
    try:
        flags = np.asarray(correct)
    except (TypeError, ValueError):  # rows of several lengths, or on another device
        flags = np.array(described(correct))
    if flags.dtype != bool or flags.ndim != 1 or not flags.size:
        raise ValueError(
            "correct must be one bool per example, at least one, "
            f"got {flags.dtype} of shape {flags.shape}; pass predictions == labels"
        )
    return tuple(flags.tolist())


def opened(record: Any) -> tuple[dict[str, Any], tuple[Any, Any]]:
    """The fields of a written measurement, and what it says beside them: its value and n.

    Raises:
        ValueError: on what is none, another version, or keys that lack or are new.
    """
    if not isinstance(record, dict):
        raise ValueError(f"not a measurement: {described(record)}, not an object")
    if record.get("kind") != KIND:
        raise ValueError(f'not a measurement: "kind" is {record.get("kind")!r}, not {KIND!r}')
    version = record.get("version")
    is_earlier = type(version) is int and version == earlier.MEASUREMENT
    if not is_earlier and (type(version) is not int or version != VERSION):
        raise ValueError(
            f"a measurement of version {version!r}, this advssl reads {VERSION} and "
            f"{earlier.MEASUREMENT}; read it with the advssl that wrote it"
        )
    expected = {*_HEAD, *Measurement.__struct_fields__} - {*(_OPTIONAL if is_earlier else ())}
    if set(record) != expected:
        raise ValueError(
            f"not a measurement: keys {sorted(expected - set(record))} are missing, "
            f"{sorted(set(record) - expected)} are unknown"
        )
    record = earlier.measurement(record) if is_earlier else record
    flags = record["correct"]
    if not isinstance(flags, str) or set(flags) - {"0", "1"}:
        raise ValueError('damaged measurement: "correct" must be a string of 0 and 1')
    fields = {name: record[name] for name in Measurement.__struct_fields__}
    return fields | {"correct": tuple(c == "1" for c in flags)}, (record["value"], record["n"])


def check_told(measurement: Measurement, told: tuple[Any, Any]) -> None:
    """Raise unless the flags say what is told of them."""
    if told != (measurement.value, measurement.n) or isinstance(told[1], bool):
        raise ValueError(
            f"damaged measurement: it says value {told[0]!r} over n {told[1]!r} examples, "
            f"its flags say {measurement.value!r} over {measurement.n}"
        )


# --- the worst case -------------------------------------------------------------------------------


def worst_case(measurements: Sequence[Measurement], name: str = WORST) -> Measurement:
    """Per example, correct only if correct in all: accuracy under the best of several attacks.

    ``settings`` says what it was made of; fields that differ are left out.

    Raises:
        ValueError: on no measurement, or on different datasets, numbers of examples or seeds.
    """
    check_same_examples(measurements)
    first = measurements[0]
    if len({m.seed for m in measurements}) > 1:
        raise ValueError(
            f"a worst case is of one encoder, got seeds {sorted({m.seed for m in measurements})}; "
            "take it per seed, and put the seed of an attack into settings"
        )

    def shared(field: str) -> Any:
        value = getattr(first, field)
        return value if all(getattr(m, field) == value for m in measurements) else None

    return Measurement(
        name=name,
        correct=tuple(all(flags) for flags in zip(*(m.correct for m in measurements), strict=True)),
        seed=first.seed,
        settings={
            "worst_case_of": [
                {"name": m.name, "value": m.value, "settings": m.settings} for m in measurements
            ]
        },
        dataset=first.dataset,
        commit=shared("commit"),
        machine=shared("machine") or {},
        **{field: shared(field) for field in _OPTIONAL},
    )


def made_of(measurement: Measurement) -> list[dict[str, Any]]:
    """What a worst case was made of, by name, value and settings; of any other, nothing.

    Raises:
        ValueError: if its settings say that in another way.
    """
    parts = measurement.settings.get("worst_case_of", [])
    if not isinstance(parts, list) or not all(
        isinstance(m, dict) and isinstance(m.get("name"), str) for m in parts
    ):
        raise ValueError(
            f"settings['worst_case_of'] must be measurements with a name, got {parts!r:.60}"
        )
    return parts


def check_worst_cases(measurements: Sequence[Measurement]) -> None:
    """Raise unless each worst case stands, image by image, under each attack it is made of.

    One that is called so and does not say of what is of all attacks beside it, of its threat model.
    What does not stand beside it, on the same images and of the same encoder, cannot be checked.
    """
    for worst in measurements:
        parts = made_of(worst)
        if not parts and worst.name != WORST:
            continue
        beside = [m for m in measurements if m is not worst and paired(m, worst)]
        if parts:
            told = [(part["name"], part.get("settings")) for part in parts]
            beside = [m for m in beside if (m.name, m.settings) in told]
        else:
            beside = [m for m in beside if m.threat is not None and m.threat == worst.threat]
        for attack in beside:
            wrong = [
                i
                for i, (a, w) in enumerate(zip(attack.correct, worst.correct, strict=True))
                if w > a
            ]
            if wrong:
                raise ValueError(
                    f"correct of {worst.name!r}: image {wrong[0]} stands there and falls to "
                    f"{attack.name!r}, so it is no worst case; take worst_case() of the attacks"
                )
        if len(beside) == len(parts) > 0 and worst.correct != worst_case(beside).correct:
            raise ValueError(
                f"correct of {worst.name!r}: it is not of the attacks it says it was made of; take "
                "worst_case() of them"
            )


def paired(a: Measurement, b: Measurement) -> bool:
    """Whether the flags are of the same images and encoder. A subset's are not."""
    return (a.dataset, a.n, a.seed) == (b.dataset, b.n, b.seed)
