"""Labels: which output of a classifier stands for which class of the data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from advssl.evaluation.refusals import some
from advssl.types import see

# What scripts call the names of the outputs that they save beside the weights.
_LISTS = ("classes", "class_names", "label_names", "labels", "idx_to_class", "id2label")
_INDICES = ("class_to_idx", "label2id")
_NUMBERED = re.compile(r"(?:label|class)?[ _-]?\d+", re.IGNORECASE)  # LABEL_3 is no name
_DO = "give the names of its outputs in their order with labels=, in the data's words"


def labels_of(file: Mapping[Any, Any], outputs: int) -> tuple[str, ...] | None:
    """The names of a classifier's outputs that a checkpoint has beside its weights, None if none.

    Args:
        file: a checkpoint's content or a configuration; settings in it are looked through too.
        outputs: how many there must be.
    """
    inside = [value for value in file.values() if isinstance(value, Mapping)]
    for held in (file, *inside):
        for names in _named(held):
            if len(names) == outputs and not all(map(_NUMBERED.fullmatch, names)):
                return names
    return None


def _named(held: Mapping[Any, Any]) -> Iterator[tuple[str, ...]]:
    for key in _LISTS:
        value = held.get(key)
        if isinstance(value, Mapping):
            value = _in_order({k: v for k, v in value.items() if isinstance(v, str)})
        if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
            yield tuple(value)
    for key in _INDICES:
        value = held.get(key)
        if isinstance(value, Mapping):
            yield _in_order({index: name for name, index in value.items()})


def _in_order(names: Mapping[Any, Any]) -> tuple[str, ...]:
    """Names by index, () unless the indices are 0 to N - 1; JSON has them as text."""
    try:
        known = {int(index): str(name) for index, name in names.items()}
    except (TypeError, ValueError):
        return ()
    whole = sorted(known) == list(range(len(names)))
    return tuple(known[i] for i in range(len(known))) if whole else ()


def outputs_of(
    outputs: int, classes: Sequence[str], labels: Sequence[str] | None, known: Sequence[str] | None
) -> tuple[tuple[int, ...], str]:
    """For each class of the data the output that stands for it, and how that was found.

    Names match whatever their case, spaces and hyphens; of one with commas, as ImageNet's, each
    part is a name. Without names there must be as many outputs as classes, taken in their order.

    Args:
        outputs: of the classifier.
        classes: names of the data's classes, in the order of their labels.
        labels: names of the outputs as the user gave them.
        known: names of the outputs as the checkpoint has them.

    Raises:
        ValueError: if a class has no output, or several, or two classes have one.
    """
    if labels is not None and len(labels) != outputs:
        raise ValueError(
            f"labels must name each of the classifier's {outputs} outputs, got {len(labels)}: "
            f"{some(labels)}"
        )
    names = [(name,) for name in labels] if labels else _all_names(outputs, classes, known)
    if names is None and outputs != len(classes):
        raise ValueError(
            f"the classifier has {outputs} outputs, which have no names, and the data "
            f"{len(classes)} classes ({some(classes)}); {_DO}, or evaluate on the data it was "
            "trained for" + see("A classifier of other classes")
        )
    if names is None:
        return tuple(range(outputs)), (
            f"the classifier's {outputs} outputs have no names: they are taken as the data's "
            f"classes in their order, {some(classes)}"
        )
    where: dict[str, set[int]] = {}
    for output, one in enumerate(names):
        for word in _words(one):
            where.setdefault(word, set()).add(output)
    hits = [sorted(where.get(_plain(name), ())) for name in classes]
    lacking = [name for name, found in zip(classes, hits, strict=True) if not found]
    if lacking:
        raise ValueError(
            f"the classifier has no output for {len(lacking)} of the data's {len(classes)} "
            f"classes: {some(lacking)}; its outputs are {some([one[0] for one in names])}; {_DO}, "
            "or leave these classes out" + see("A classifier of other classes")
        )
    for name, found in zip(classes, hits, strict=True):
        if len(found) > 1:
            raise ValueError(
                f"the class {name!r} is the name of the outputs {found}; name the data's classes "
                "otherwise, ImageNet's by their wnids (n01440764)"
            )
    chosen = tuple(found[0] for found in hits)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"two of the data's classes have one output; they are {some(classes, 12)}")
    return chosen, (
        f"the data's {len(chosen)} classes by name, of the classifier's {outputs} outputs: "
        f"{classes[0]} is output {chosen[0]}"
    )


def _all_names(
    outputs: int, classes: Sequence[str], known: Sequence[str] | None
) -> list[tuple[str, ...]] | None:
    """What each output is called: by the checkpoint, and by ImageNet if they are its."""
    names: list[tuple[str, ...]] | None = None
    if known is not None:
        names = [(name,) for name in known]
    theirs = _imagenet() if outputs == 1000 else None
    if theirs is None:
        return names
    if names is not None:
        same = sum(bool(_words(one) & _words(two)) for one, two in zip(names, theirs, strict=True))
        return [one + two for one, two in zip(names, theirs, strict=True)] if same > 900 else names
    # A thousand classes of something else are not ImageNet's.
    found = any(_words((name,)) & _words(one) for one in theirs for name in classes[:20])
    return theirs if found or len(classes) != outputs else None


def _imagenet() -> list[tuple[str, ...]] | None:
    """The descriptions and wnids of ImageNet's 1,000 classes, in their order."""
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ImportError:
        return None
    info: Any = ImageNetInfo("imagenet-1k")
    return [(info.index_to_description(i), name) for i, name in enumerate(info.label_names())]


def _words(names: Iterable[str]) -> set[str]:
    """All that names may be written as; parts of one with commas are names too."""
    return {_plain(word) for name in names for word in (name, *name.split(","))}


def _plain(name: str) -> str:
    return " ".join(re.findall(r"\w+", name.lower().replace("_", " ")))
