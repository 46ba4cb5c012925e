"""Choices: the names that options are chosen from, where naming them must not import torch."""

from __future__ import annotations

import os

ATTACKS = ("clean", "pgd", "pgd-l2", "mpgd", "pgd-double", "pgd-250", "mpgd-250", "aa")
DATA = ("digits", "cifar10", "cifar100", "stl10", "folder")
MEASURES = ("corruptions", "divergence", "pictures", "theory")
NORMS = ("linf", "l2")
OWN = "own"  # in place of a protocol: a classifier's own head
PLACED = ("corruptions",)  # measures that a place may follow
PRESETS = ("standardised", "advcl", "gsa", "dynacl", "ascl23", "released")
OLDER_PRESETS = {"plain": "standardised"}  # of records before 0.2
PROTOCOLS = ("slf", "alf", "fsf", "aff")
# Of the backbones "cifar:NAME", those that are not timm's.
OWN_BACKBONES = ("wrn28_10", "wrn34_10", "resnet20", "cnn", "resnet18_no_identity")


def split_spec(spec: str) -> tuple[str, str]:
    """The name of the data and its place, or a ValueError that lists the names there are."""
    name, _, place = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if name not in DATA or (place and name == "digits"):
        raise ValueError(
            'data is one of "digits", "cifar10[:ROOT]", "cifar100[:ROOT]", "stl10[:ROOT]" or '
            f'"folder:PATH", got {spec!r}'
        )
    return name, os.path.expanduser(place)  # no shell does behind a colon


def named(word: str) -> tuple[str, str]:
    """A measure's name, and the place behind it, ``corruptions:FOLDER``.

    Raises:
        ValueError: on a name that no measure has, and a place where none belongs.
    """
    name, _, place = word.partition(":") if isinstance(word, str) else ("", "", "")
    if name not in MEASURES or (place and name not in PLACED):
        known = [f"{name}[:FOLDER]" if name in PLACED else name for name in MEASURES]
        raise ValueError(f"measures are {', '.join(known)}, got {word!r}")
    return name, place


def preset_name(preset: str) -> str:
    """A preset's name of today, where records of before 0.2 have an older one."""
    return OLDER_PRESETS.get(preset, preset)


def names_timm(backbone: str) -> bool:
    """Whether a backbone, "timm:NAME" or "cifar:NAME[:WIDTH]", is one of timm's."""
    return backbone.partition(":")[2].partition(":")[0] not in OWN_BACKBONES
