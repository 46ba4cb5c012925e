"""Plain JSON: values that come back equal, and text that is read strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from advssl.extras import lacking

try:  # every module that needs msgspec has it from here, for one refusal
    import msgspec as msgspec
    from msgspec import Struct as Struct
    from msgspec import structs as structs
except ImportError as error:
    raise lacking(["msgspec"], "a record") from error
_DEEPEST = 64  # lists and mappings within each other


def plain(value: Any, where: str, *, finite: bool = True, depth: int = 0) -> Any:
    """A copy that JSON gives back equal: tuples are lists, and the caller's own stay the caller's.

    Single numbers of numpy and torch become plain ones. Without ``finite`` NaN and infinity become
    text: a loss may be one, and is no reason to lose a report.

    Raises:
        ValueError: with the place, on what JSON cannot hold or would change.
    """
    value = msgspec.to_builtins(value) if isinstance(value, Struct) else unboxed(value)
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


def unboxed(value: Any) -> Any:
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
