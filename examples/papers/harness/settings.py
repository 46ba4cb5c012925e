"""What a method is told, and where code and paper differ."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

S = TypeVar("S", bound="Settings")


def setting(
    released: Any, what: str, *, paper: Any = None, why: str = "", short: Any = None
) -> Any:
    """A setting: its value in the released code, ``what`` it is, and ``why`` the text has another.

    ``short`` is for minutes of training, not days. None is no other value.
    """
    differs = {"paper": paper, "short": short}
    given = {key: value for key, value in differs.items() if value is not None}
    return field(default=released, metadata={"what": what, "why": why, **given})


def told(one: Field[Any], kind: Any) -> str:
    """What a setting is, what it may be and is, and where released code and paper differ."""
    told, is_one_of = one.metadata, get_origin(kind) is Literal
    words = [told["what"], " | ".join(get_args(kind)) if is_one_of else ""]
    if "paper" in told:
        words.append(f"released {one.default}, paper {told['paper']} ({told['why']})")
    else:
        words.append(f"default {one.default}")
    if "short" in told:
        words.append(f"in short runs {told['short']}")
    return "; ".join(filter(None, words))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every method can be told; a method's own settings extend it, and all become flags."""

    radius: float = setting(8 / 255, "of the attack: ℓ∞, of pixels in [0, 1]")
    steps: int = setting(5, "of the attack")
    relative_step: float = setting(0.25, "length of each, of the radius: 2/255 at 8/255")
    second_view: Literal["strong", "weak"] = setting("strong", "how it is augmented")
    exact_bn: bool = setting(
        False, "BatchNorm moves with every forward of the released code, the attack's too"
    )

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                allowed = ", ".join(map(repr, get_args(kind)))
                raise ValueError(f"{name} must be one of {allowed}; got {getattr(self, name)!r}")

    @classmethod
    def of(cls: type[S], mode: str, **told: Any) -> S:
        """Those of the "released" code or of the "paper", and some as told."""
        if mode not in ("released", "paper"):
            raise ValueError(f'mode must be "released" or "paper", got {mode!r}')
        return cls(**{**cls.where(mode), **told})

    @classmethod
    def where(cls, differs: str) -> dict[str, Any]:
        """Values of those that are others in the "paper", or in "short" runs."""
        return {f.name: f.metadata[differs] for f in fields(cls) if differs in f.metadata}
