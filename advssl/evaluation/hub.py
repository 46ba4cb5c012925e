"""Folders of Hugging Face's hub, transformers' and timm's: ``config.json`` beside the weights.

Nothing is downloaded, and no code of a folder runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from advssl.evaluation.checkpoints import LoadReport
from advssl.evaluation.files import read
from advssl.evaluation.labels import labels_of
from advssl.evaluation.refusals import some
from advssl.extras import needed
from advssl.types import described

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Folder:
    """What a folder says of its classifier.

    Attributes:
        name: of the architecture.
        network: whole and filled, or timm's without its head, to be filled from ``weights``.
        weights: the file; None if ``network`` is filled.
        width: number of outputs, None if the weights tell.
        labels: names of the outputs, None if it has none.
        mean: of the input, per channel of images in [0, 1]; None if it is not normalised.
        std: likewise.
        image_size: H = W that it was made for.
        report: of what was filled.
    """

    name: str
    network: nn.Module
    weights: Path | None = None
    width: int | None = None
    labels: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    report: LoadReport | None = None


def is_folder(path: Any) -> bool:
    """Whether ``path`` is a folder that says what is in it."""
    return isinstance(path, str | os.PathLike) and (Path(path) / "config.json").is_file()


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """The classifier of a folder as ``save_pretrained`` or timm's ``push_to_hf_hub`` leaves it.

    Raises:
        ValueError: if it is of another kind, has no weights, or they do not fill the network.
        ImportError: without transformers or timm.
    """
    place = Path(path)
    config = _json(place / "config.json")
    if "architecture" in config:
        return _timm(place, config)
    named = [str(name) for name in config.get("architectures") or ()]
    if not any("ImageClassification" in name for name in named):
        raise ValueError(
            f"{place} holds {some(named) if named else 'no architecture that it names'}, not an "
            "image classifier (transformers' ...ForImageClassification, or timm's architecture); "
            "give the module itself"
        )
    return _transformers(place, config, named[0])


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings, got {described(content)}")
    return content


def _weights(place: Path) -> Path:
    for name in _WEIGHTS:
        if (place / name).is_file():
            return place / name
    names = sorted(inside.name for inside in place.iterdir())
    raise ValueError(
        f"{place} has none of {', '.join(_WEIGHTS)}; it has {some(names)}: save the weights in one "
        "file there"
    )


# --- timm's ---------------------------------------------------------------------------------------


def _timm(place: Path, config: Mapping[str, Any]) -> Folder:
    timm = needed("timm", f"{place}, one of timm's models,")
    name, options = config["architecture"], config.get("model_args") or {}
    how = config.get("pretrained_cfg") or {}
    try:
        network = timm.create_model(name, num_classes=0, **options)
        labels = labels_of(config, int(config.get("num_classes", 0)))
        mean, std = (
            (_channels(how[key]) for key in ("mean", "std")) if "mean" in how else (None,) * 2
        )
        size = int(how["input_size"][-1]) if "input_size" in how else None
    except Exception as error:  # whatever another version of timm makes of it
        raise ValueError(f"{place}/config.json is not of this timm: {error}") from error
    return Folder(f"timm:{name}", network, _weights(place), None, labels, mean, std, size)


# --- transformers' --------------------------------------------------------------------------------


def _transformers(place: Path, config: Mapping[str, Any], name: str) -> Folder:
    transformers = needed("transformers", f"{place}, a {name},")
    weights = _weights(place)
    read(weights)  # refuses code, whatever transformers would do with it
    try:
        network, found = transformers.AutoModelForImageClassification.from_pretrained(
            place, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # of its own kinds
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"{place} is not opened by transformers ({reason})") from error
    wrong = [str(key) for kind in ("missing_keys", "mismatched_keys") for key in found[kind]]
    if wrong:
        raise ValueError(f"{weights} does not fill {name}: missing or unlike {some(wrong)}")
    broken = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{weights} holds NaN or inf in {some(broken)}; its training diverged, use another"
        )
    mean, std, size = _preprocessing(place)
    made_for = getattr(network.config, "image_size", None)
    left = tuple(map(str, found.get("unexpected_keys", ())))
    return Folder(
        name,
        network.eval(),
        width=network.config.num_labels,
        labels=labels_of({"id2label": config.get("id2label")}, network.config.num_labels),
        mean=mean,
        std=std,
        image_size=size or (made_for if isinstance(made_for, int) else None),
        report=LoadReport("transformers", "", "", len(network.state_dict()), ignored=left),
    )


def _preprocessing(
    place: Path,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, int | None]:
    """Mean and std of images in [0, 1], and the side they are made to have."""
    path = place / "preprocessor_config.json"
    if not path.is_file():
        return None, None, None
    how = _json(path)
    try:
        # An image in [0, 1] times this, less the offset, is what the mean is subtracted from.
        scale = 255 * float(how.get("rescale_factor", 1 / 255)) if how.get("do_rescale", 1) else 255
        offset = float(bool(how.get("rescale_offset", False)))
        mean: tuple[float, ...] = (0.0,) * 3
        std: tuple[float, ...] = (1.0,) * 3
        if how.get("do_normalize", "image_mean" in how):
            mean, std = _channels(how["image_mean"]), _channels(how["image_std"])
        mean = tuple((offset + value) / scale for value in mean)
        std = tuple(value / scale for value in std)
        size = how.get("crop_size") if how.get("do_center_crop") else how.get("size")
        if isinstance(size, Mapping):
            size = size.get("height", size.get("shortest_edge"))
        side = None if size is None else int(size)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{path} says nothing clear of how images are normalised") from error
    if not all(abs(value) <= 1 for value in mean) or not all(value > 0 for value in std):
        raise ValueError(f"{path}: mean {mean} and std {std} of images in [0, 1] are not possible")
    plain = all(value == 0 for value in mean) and all(abs(value - 1) < 1e-9 for value in std)
    return (None, None, side) if plain else (mean, std, side)


def _channels(values: Any) -> tuple[float, ...]:
    values = values if isinstance(values, Sequence) else [values] * 3
    return tuple(float(value) for value in values)
