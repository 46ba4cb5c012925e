"""Records: what was measured, on what and how; and whether two records differ beyond noise."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from statistics import NormalDist, fmean, variance
from typing import Any, TypeAlias

import numpy as np
import torch

from advssl.types import Images, Labels, check_indices, described

Interval: TypeAlias = tuple[float, float]  # low and high end, 95 %

KIND = "advssl measurement"
VERSION = 1
CONFIDENCE = 0.95
_KEYS = ("kind", "version", "value", "n")  # written beside the fields, checked when read
_CHUNK = 256  # images turned into bytes at once
_DEEPEST = 64  # lists and mappings within each other, in settings


# --- one measurement ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
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

    Raises:
        ValueError: on a field of another type, no example, or what JSON cannot give back unchanged.
    """

    name: str
    correct: tuple[bool, ...]
    seed: int
    settings: Mapping[str, Any]
    dataset: str
    commit: str | None
    machine: Mapping[str, Any]

    def __post_init__(self) -> None:
        for field in ("name", "dataset"):
            if not isinstance(getattr(self, field), str) or not getattr(self, field):
                raise ValueError(f"{field} must be a string, got {getattr(self, field)!r}")
        object.__setattr__(self, "seed", _unboxed(self.seed))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed must be an int, got {self.seed!r}")
        if not (self.commit is None or isinstance(self.commit, str)):
            raise ValueError(f"commit must be a string or None, got {self.commit!r}")
        try:
            flags = np.asarray(self.correct)
        except (TypeError, ValueError):  # rows of several lengths, or on another device
            flags = np.array(described(self.correct))
        if flags.dtype != bool or flags.ndim != 1 or not flags.size:
            raise ValueError(
                "correct must be one bool per example, at least one, "
                f"got {flags.dtype} of shape {flags.shape}; pass predictions == labels"
            )
        object.__setattr__(self, "correct", tuple(flags.tolist()))
        for field in ("settings", "machine"):
            if not isinstance(getattr(self, field), Mapping):
                raise ValueError(f"{field} must be a mapping, got {getattr(self, field)!r}")
            object.__setattr__(self, field, plain(getattr(self, field), field))
        made_of = self.settings.get("worst_case_of", [])
        if not isinstance(made_of, list) or not all(
            isinstance(m, dict) and isinstance(m.get("name"), str) for m in made_of
        ):
            raise ValueError(
                f"settings['worst_case_of'] must be measurements with a name, got {made_of!r:.60}"
            )

    @property
    def value(self) -> float:
        """Accuracy: the mean of ``correct``."""
        return sum(self.correct) / self.n

    @property
    def n(self) -> int:
        """How many examples."""
        return len(self.correct)

    def to_json(self) -> str:
        """As text that :meth:`from_json` turns into an equal object."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record["correct"] = "".join("01"[c] for c in self.correct)
        head = {"kind": KIND, "version": VERSION, "value": self.value, "n": self.n}
        return json.dumps({**head, **record}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: on anything else: damaged text, another version, keys that lack or are new.
        """
        return cls.from_plain(parsed(text, "measurement"))

    @classmethod
    def from_plain(cls, record: Any) -> Measurement:
        """What :func:`json.loads` makes of what :meth:`to_json` wrote.

        Raises:
            ValueError: as :meth:`from_json`.
        """
        if not isinstance(record, dict):
            raise ValueError(f"not a measurement: {described(record)}, not an object")
        record = dict(record)
        expected = {*_KEYS, *(f.name for f in fields(cls))}
        if record.get("kind") != KIND:
            raise ValueError(f'not a measurement: "kind" is {record.get("kind")!r}, not {KIND!r}')
        if type(record.get("version")) is not int or record["version"] != VERSION:
            raise ValueError(
                f"a measurement of version {record.get('version')!r}, this advssl reads {VERSION}; "
                "read it with the advssl that wrote it"
            )
        if set(record) != expected:
            raise ValueError(
                f"not a measurement: keys {sorted(expected - set(record))} are missing, "
                f"{sorted(set(record) - expected)} are unknown"
            )
        flags = record["correct"]
        if not isinstance(flags, str) or set(flags) - {"0", "1"}:
            raise ValueError('damaged measurement: "correct" must be a string of 0 and 1')
        head = {key: record.pop(key) for key in _KEYS}
        measurement = cls(**{**record, "correct": tuple(c == "1" for c in flags)})
        if (head["n"], head["value"]) != (measurement.n, measurement.value):
            raise ValueError(
                f"damaged measurement: it says value {head['value']!r} over {head['n']!r} "
                f"examples, its flags say {measurement.value!r} over {measurement.n}"
            )
        return measurement

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path``: whoever reads it finds the old content or the new, never a part."""
        with replacing(path) as partial:
            partial.write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Measurement:
        """What :meth:`save` wrote.

        Raises:
            ValueError: on anything else, with the file's name.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write that becomes ``path`` when the block ends: all of it or, on error, nothing.

    So whenever the process is killed, ``path`` is whole: as it was before, or as it is then.
    """
    path = Path(path)
    # Beside it, because a file is replaced in one step only within one file system.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def plain(value: Any, where: str, *, finite: bool = True, depth: int = 0) -> Any:
    """A copy that JSON gives back equal: tuples are lists, and the caller's own stay the caller's.

    Single numbers of numpy and torch become plain ones. Without ``finite`` NaN and infinity become
    text: a loss may be one, and is no reason to lose a report.

    Raises:
        ValueError: with the place, on what JSON cannot hold or would change.
    """
    value = _unboxed(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and (math.isfinite(value) or not finite):
        return value if math.isfinite(value) else str(value)
    if depth >= _DEEPEST:
        raise ValueError(f"{where[:60]}... is nested more than {_DEEPEST} deep; flatten it")

    def inside(value: Any, where: str) -> Any:
        return plain(value, where, finite=finite, depth=depth + 1)

    if isinstance(value, list | tuple):
        return [inside(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {k: inside(v, f"{where}[{k!r}]") for k, v in value.items()}
    raise ValueError(
        f"{where} must be plain JSON (string keys, {'finite ' * finite}numbers, text), got "
        f"{type(value).__name__} {str(value)[:60]}; pass .tolist() of arrays and tensors and str() "
        "of other objects"
    )


def _unboxed(value: Any) -> Any:
    """The one value of a numpy number or of a 0-d array or tensor; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def parsed(text: str, what: str) -> dict[str, Any]:
    """The object in JSON text.

    Raises:
        ValueError: that calls it ``what``, on anything else.
    """

    def no_double(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        record = json.loads(text, object_pairs_hook=no_double)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"damaged {what}, not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"not a {what}: JSON of a {type(record).__name__}, not an object")
    return record


def worst_case(measurements: Sequence[Measurement], name: str = "worst case") -> Measurement:
    """Per example, correct only if correct in all: accuracy under the best of several attacks.

    ``settings`` says what it was made of; a commit or machine that differ are left out.

    Raises:
        ValueError: on no measurement, or on different datasets, numbers of examples or seeds.
    """
    _check_same_examples(measurements)
    first = measurements[0]
    if len({m.seed for m in measurements}) > 1:
        raise ValueError(
            f"a worst case is of one encoder, got seeds {sorted({m.seed for m in measurements})}; "
            "take it per seed, and put the seed of an attack into settings"
        )
    made_of = [{"name": m.name, "value": m.value, "settings": m.settings} for m in measurements]
    return Measurement(
        name=name,
        correct=tuple(all(flags) for flags in zip(*(m.correct for m in measurements), strict=True)),
        seed=first.seed,
        settings={"worst_case_of": made_of},
        dataset=first.dataset,
        commit=first.commit if all(m.commit == first.commit for m in measurements) else None,
        machine=first.machine if all(m.machine == first.machine for m in measurements) else {},
    )


def _check_same_examples(measurements: Sequence[Measurement]) -> None:
    if not measurements:
        raise ValueError("no measurement given; pass at least one")
    for what in ("dataset", "n"):
        seen = sorted({getattr(m, what) for m in measurements})
        if len(seen) > 1:
            raise ValueError(
                "measurements are paired example by example and must share them, "
                f"got {what} {', '.join(map(str, seen))}; measure all on the same images"
            )


# --- what it was measured on, and where -----------------------------------------------------------


class Fingerprint:
    """:func:`fingerprint` of a dataset that comes in batches: ``update`` with each, then ``str``.

    How the examples are split into batches does not matter, their order does.
    """

    def __init__(self) -> None:
        self._pixels, self._labels = hashlib.sha256(), hashlib.sha256()
        self._shape: tuple[int, ...] | None = None
        self._n = 0

    def update(self, images: Images, labels: Labels) -> None:
        """The next examples: images in [0, 1], or uint8, and one integer label each.

        Raises:
            ValueError: on other images or labels, or on images of another shape than before.
        """
        if images.ndim != 4 or not (images.is_floating_point() or images.dtype == torch.uint8):
            raise ValueError(
                "images must be (B, C, H, W) in [0, 1] or uint8, "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
        check_indices(len(images), labels=labels)
        shape = tuple(images.shape[1:])
        if self._shape not in (None, shape):
            raise ValueError(f"images of shape {shape} after images of shape {self._shape}")
        # All are looked at before the first counts, so a refused batch leaves no part behind.
        for content in [_pixels(chunk) for chunk in torch.split(images.detach(), _CHUNK)]:
            self._pixels.update(content)
        self._labels.update(labels.cpu().numpy().astype("<i8").tobytes())
        self._shape, self._n = shape, self._n + len(images)

    def __str__(self) -> str:
        if not self._n:
            raise ValueError("no image to fingerprint; call update first")
        head = f"{self._n} {self._shape}".encode()
        content = head + self._pixels.digest() + self._labels.digest()
        return hashlib.sha256(content).hexdigest()[:16]


def _pixels(images: Images) -> bytes:
    images = images.cpu().contiguous()
    if images.is_floating_point():
        if not bool(((images >= 0) & (images <= 1)).all()):  # a NaN is neither
            low, high = images.aminmax()
            raise ValueError(
                f"images must lie in [0, 1], got [{float(low):.3g}, {float(high):.3g}]; "
                "fingerprint them before they are normalised"
            )
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        images = (images * 255).round().to(torch.uint8)
    return images.numpy().tobytes()


def fingerprint(images: Images, labels: Labels) -> str:
    """16 hex digits that change with any pixel (as uint8), label, shape or order, and else not.

    Device, memory format and floating point type do not matter. :class:`Fingerprint` takes batches.

    Raises:
        ValueError: if images are not (B, C, H, W) in [0, 1] or uint8, or labels not B integers.
    """
    content = Fingerprint()
    content.update(images, labels)
    return str(content)


def commit() -> str | None:
    """The git commit of the working directory's repository, with "-dirty" if tracked files differ.

    None outside a repository, in one without a commit, or without git. Untracked files, such as
    what a run writes, make nothing dirty.
    """
    return _said("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode().strip() or None


def machine() -> dict[str, Any]:
    """What a number may depend on: processor, GPU and versions; no name of host, user or path."""
    versions = {p: _version(p) for p in ("timm", "lightly", "pyautoattack")}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with the build, such as +cpu
        **{package: version for package, version in versions.items() if version},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The processor's name: Linux tells it in a file, other systems through Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# --- do two differ --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """How far ``b`` is above ``a`` in accuracy, and the two reasons why it may not be.

    Attributes:
        difference: accuracy of b minus accuracy of a, means over seeds.
        image_interval: where the difference of these trained models would lie on other images of
            the same kind, 95 %.
        p_value: exact, of the images: how often models that are equally good differ this much.
        seed_interval: where the difference would lie after other trainings, on these images, 95 %;
            None with one seed, when nothing is known about that.
        n: examples.
        seeds: trainings of a and of b.
        names: of a and b.
    """

    difference: float
    image_interval: Interval
    p_value: float
    seed_interval: Interval | None
    n: int
    seeds: tuple[int, int]
    names: tuple[str, str]

    @property
    def differs(self) -> bool:
        """Whether the difference exceeds image noise and, with several seeds, seed noise too."""
        by_image = self.p_value < 1 - CONFIDENCE and _excludes_zero(self.image_interval)
        return by_image and (self.seed_interval is None or _excludes_zero(self.seed_interval))

    def __str__(self) -> str:
        a, b = self.names if self.names[0] != self.names[1] else ("a", "b")
        points = 100 * self.difference
        side = "above" if points > 0 else "below"
        how = f"{abs(points):.2f} points {side}" if points else "level with"
        seeds = "no seed interval, as there is one seed"
        if self.seed_interval:
            count = "{} and {}".format(*self.seeds) if len(set(self.seeds)) > 1 else self.seeds[0]
            seeds = f"over {count} seeds {_points(self.seed_interval)}"
        p = f"= {self.p_value:.2g}" if self.p_value > 1e-9 else "< 1e-9"  # beyond is rounding
        verdict = "they differ" if self.differs else "no difference beyond noise"
        return (
            f"{b} is {how} {a} (95 % intervals: over {self.n} images "
            f"{_points(self.image_interval)}, exact p {p}; {seeds}): {verdict}."
        )


def _points(interval: Interval) -> str:
    return "{:+.2f} to {:+.2f}".format(*(100 * end for end in interval))


def _excludes_zero(interval: Interval) -> bool:
    low, high = interval
    return low > 0 or high < 0


def compare(
    a: Measurement | Sequence[Measurement], b: Measurement | Sequence[Measurement]
) -> Comparison:
    r"""Whether ``b`` differs from ``a`` by more than chance, paired example by example.

    *Images.* dᵢ is the difference on example i, a mean over seeds. The interval is Bonett and
    Price's adjusted Wald interval: that of the dᵢ and of two examples more, at +1 and −1,

        (Σd / (n + 2)) ± 1.96 √( ((Σd² + 2) / (n + 2) − (Σd / (n + 2))²) / (n + 2) ).

    A plain Wald or bootstrap interval is empty where a and b agree on all examples, at 0 % or
    100 % above all, and too short at small n; this one is neither, and it is a formula, so it needs
    no random numbers. The p-value is exact: the share of the 2ⁿ ways to exchange a and b
    example by example that differ as much. With one seed that is the exact McNemar test.

    *Seeds.* Student's t over the differences by seed if both have the same seeds, else Welch's.

    Args:
        a: one measurement, or one per training seed.
        b: the same of what a is compared with. The seeds may be others, the examples not.

    Raises:
        ValueError: on no measurement, different datasets or numbers of examples, a seed that stands
            twice, or names that differ within a or b.

    References: Bonett and Price 2012, https://doi.org/10.1111/j.2044-8317.2011.02017.x; Fagerland
    et al. 2014, https://doi.org/10.1002/sim.6148, who recommend it and the exact test's kin.
    """
    a = [a] if isinstance(a, Measurement) else list(a)
    b = [b] if isinstance(b, Measurement) else list(b)
    for side, name in ((a, "a"), (b, "b")):
        _check_replicates(side, name)
    _check_same_examples([*a, *b])
    # Whole numbers, so that the exact test meets no rounding: per example, hits over all seeds.
    hits_a = np.sum([m.correct for m in a], axis=0, dtype=np.int64)
    hits_b = np.sum([m.correct for m in b], axis=0, dtype=np.int64)
    steps = hits_b * len(a) - hits_a * len(b)
    per_example = steps / (len(a) * len(b))
    return Comparison(
        difference=float(steps.sum()) / (len(a) * len(b) * len(steps)),
        image_interval=_adjusted_wald(per_example),
        p_value=_exchange_test(steps),
        seed_interval=_seed_interval(a, b),
        n=len(steps),
        seeds=(len(a), len(b)),
        names=(a[0].name, b[0].name),
    )


def _check_replicates(measurements: Sequence[Measurement], side: str) -> None:
    if not measurements:
        raise ValueError(f"{side} holds no measurement; pass at least one")
    seeds = [m.seed for m in measurements]
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"{side} holds a seed twice, {sorted(seeds)}; pass one measurement per training"
        )
    names = sorted({m.name for m in measurements})
    if len(names) > 1:
        raise ValueError(
            f"{side} must be one measurement over seeds, got {names}; compare one after the other"
        )


def _adjusted_wald(differences: np.ndarray[Any, np.dtype[np.float64]]) -> Interval:
    n = len(differences) + 2
    middle = float(differences.sum()) / n
    spread = (float(np.square(differences).sum()) + 2) / n - middle**2
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(spread / n)
    return max(middle - half, -1.0), min(middle + half, 1.0)


def _exchange_test(steps: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """P(|Σ ±stepᵢ| ≥ |Σ stepᵢ|) over all signs, equally likely.

    The sum's distribution is the inverse Fourier transform of the product of cos(stepᵢ · ω).
    """
    sizes = np.abs(steps)[steps != 0]
    if not sizes.size:
        return 1.0
    values, counts = np.unique(sizes, return_counts=True)
    unit = math.gcd(*values.tolist())
    values //= unit
    farthest = int(values @ counts)
    omega = 2 * np.pi * np.arange(2 * farthest + 1) / (2 * farthest + 1)
    characteristic = np.ones_like(omega)
    for value, count in zip(values, counts, strict=True):
        characteristic *= np.cos(value * omega) ** count
    probability = np.fft.ifft(characteristic).real
    seen = abs(int(steps.sum())) // unit
    # Index k is the sum k, or k - size: both tails are the indices from `seen` up to `-seen`.
    tails = probability[seen : len(probability) - seen + 1]
    return min(max(float(tails.sum()), 0.0), 1.0)


def _seed_interval(a: Sequence[Measurement], b: Sequence[Measurement]) -> Interval | None:
    if min(len(a), len(b)) < 2:
        return None
    of_a, of_b = ({m.seed: m.value for m in side} for side in (a, b))
    if set(of_a) == set(of_b):
        differences = [of_b[seed] - of_a[seed] for seed in of_a]
        middle, error = fmean(differences), variance(differences) / len(a)
        freedom = len(a) - 1.0
    else:
        middle = fmean(of_b.values()) - fmean(of_a.values())
        parts = [(variance(of.values()) / len(of), len(of) - 1) for of in (of_a, of_b)]
        error = sum(part for part, _ in parts)
        welch = sum(part**2 / df for part, df in parts)
        freedom = error**2 / welch if welch else 1.0
    half = student_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(error)
    return middle - half, middle + half


def student_quantile(probability: float, freedom: float) -> float:
    """The t below which Student's distribution has ``probability``, for ``freedom`` ≥ 1.

    With t = √ν tan θ the density of θ is cos(θ)^(ν−1) up to a constant, smooth and on a finite
    range: Gauss's rule integrates it, bisection inverts. To six digits or more, and without SciPy.

    Raises:
        ValueError: if ``probability`` is not in [0.5, 1) or ``freedom`` not in [1, ∞).
    """
    if not (0.5 <= probability < 1 and 1 <= freedom < math.inf):
        raise ValueError(f"need 0.5 ≤ p < 1 and 1 ≤ ν < ∞, got p = {probability}, ν = {freedom}")
    if freedom > 1e4:  # the normal distribution to four digits; the rule would miss the peak
        return NormalDist().inv_cdf(probability)
    nodes, weights = np.polynomial.legendre.leggauss(100)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    scale /= math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        theta = (low + high) / 2
        density = np.cos(theta * (nodes + 1) / 2) ** (freedom - 1)
        if 0.5 + scale * theta / 2 * float(weights @ density) < probability:
            low = theta
        else:
            high = theta
    return math.sqrt(freedom) * math.tan((low + high) / 2)
