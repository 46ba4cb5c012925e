"""Refusals: why a checkpoint does not fill an encoder, and what to do."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from advssl.evaluation.files import places_of, tensors_at
from advssl.evaluation.formats import canonical, is_head
from advssl.evaluation.matching import Attempt, Target
from advssl.types import see


def refusal(
    path: Any,
    file: Mapping[str, Any],
    target: Target,
    attempts: Sequence[Attempt],
    prefix: str | None,
) -> str:
    """Why nothing fits: what the closest attempt lacks, what was tried, and what to do."""
    size = len(target.tensors)
    closest = max(attempts, key=lambda a: a.merit, default=None)
    if closest is None or not (closest.source or closest.unlike):
        found = [name for place in places_of(file) for name in tensors_at(file, place)]
        shown = f"tensors {some(list(dict.fromkeys(found)))}" if found else f"keys {some(file)}"
        where = "" if prefix is None else f" behind the prefix {prefix!r}"
        lines = [f"{path} has none of the encoder's {size} tensors{where}; it has {shown}"]
    else:
        lines = [f"{path} does not fill the encoder, taken as {route(closest)}"]
        for what, which in (
            ("missing in the file", closest.missing),
            ("unlike", closest.unlike.values()),
            ("unexpected in the file", closest.unexpected),
        ):
            if which:
                lines.append(f"{len(which)} {what}: {some(which)}")
        if target.branches and closest.labels:
            lines.append(
                f"BatchNorm branches are {quoted(closest.labels)} in the file, "
                f"{quoted(target.branches)} in the encoder"
            )
    tried = dict.fromkeys(f"{route(a)}: {len(a.source)} of {size}" for a in attempts)
    lines.append(f"tried {some(list(tried), 12) if tried else 'no format: none has its place'}")
    lines += _advice(file, target, closest)
    return "\n".join(lines) + see("A checkpoint that does not fill the encoder")


def _advice(file: Mapping[str, Any], target: Target, closest: Attempt | None) -> Iterator[str]:
    names = dict.fromkeys(n for place in places_of(file) for n in tensors_at(file, place))
    if _lacks_identity(names) != _lacks_identity(target.tensors):
        one, other = "file", "encoder"
        if _lacks_identity(target.tensors):
            one, other = other, one
        yield (
            f"the {one}'s network adds no identity where a block keeps its shape, as GSA-RSL's "
            f"release, the {other}'s does: with the same weights they compute different functions; "
            'the first is backbone "cifar:resnet18_no_identity", the second "cifar:resnet18"'
        )
        return
    if closest is not None and any(
        re.search(r"\.parametrizations\.|\.\w+_([gvu]|orig|mask)$", key)
        for key in closest.unexpected
    ):
        yield (
            "the file's weights are computed from others (parametrizations, pruning): save them "
            "after remove_parametrizations or prune.remove, or give the encoder the same"
        )
    if closest is not None and closest.source:
        lacking = [name.split(" ")[0] for name in (*closest.missing, *closest.unlike.values())]
        if lacking and all(is_head(name) for name in lacking):
            yield "build the encoder without its classifier, such as timm's num_classes=0"
        if not lacking:
            yield "allow_partial=True ignores what is unexpected, if the encoder is the right one"
        return
    ending = "." + canonical(next(iter(target.tensors)), ())
    ends = [name.removesuffix(ending[1:]) for name in names if name.endswith(ending)]
    # The innermost blocks of an encoder have a conv1 as well: only the outermost counts.
    outer = [e for e in ends if not any(e != o and e.startswith(o) for o in ends)]
    if outer:
        yield f"the encoder's names stand behind {quoted(outer)}; try that as prefix="


def _lacks_identity(names: Collection[str]) -> bool:
    """Whether shortcuts are called as GSA-RSL's release calls them, whose blocks have no others."""
    shortcut = re.compile(r"layer(\d)\.0\.conv(\d)\.weight$")
    found = {match.groups() for name in names if (match := shortcut.search(name))}
    # A usual Bottleneck has a conv3, in the first stage too, and no block has a conv4.
    return ("2", "4") in found or (("2", "3") in found and ("1", "3") not in found)


def route(of: Any) -> str:
    """Where an attempt, or a report, took its tensors from."""
    place = f" in {of.place!r}" if of.place else ""
    return f'"{of.format}"{place}' + (f" behind {of.prefix!r}" if of.prefix else "")


def quoted(names: Sequence[str]) -> str:
    """Names as a reader may type them."""
    return ", ".join(f'"{name}"' for name in names)


def some(names: Collection[str], most: int = 6) -> str:
    """The first of the names, and how many more there are."""
    shown = ", ".join(list(names)[:most])
    return shown + (f", ... and {len(names) - most} more" if len(names) > most else "")
