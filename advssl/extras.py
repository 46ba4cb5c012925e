"""Extras: libraries that only some of the package needs, and the line that installs them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# What is imported, to the extra that brings it. Without an extra there are torch, numpy and kornia.
EXTRA_OF = {
    "PIL": "eval",
    "jinja2": "eval",
    "markupsafe": "eval",
    "matplotlib": "eval",
    "msgspec": "eval",
    "pandas": "eval",
    "pyautoattack": "eval",
    "rich": "eval",
    "safetensors": "eval",
    "scipy": "eval",
    "sklearn": "eval",
    "torchvision": "eval",
    "timm": "timm",
    "transformers": "hub",
    "lightning_utilities": "lightning",
    "pytorch_lightning": "lightning",
}
EVAL = tuple(name for name, extra in EXTRA_OF.items() if extra == "eval")


def needed(module: str, by: str = "this") -> Any:
    """The module, imported.

    Raises:
        ImportError: where it is not installed, with the line that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise lacking([module.partition(".")[0]], by) from error


def check(modules: Iterable[str], by: str) -> None:
    """Raise the ImportError of :func:`needed` for all that are not installed; imports none."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise lacking(missing, by)


def lacking(modules: Iterable[str], by: str = "this") -> ImportError:
    """What to raise where these cannot be imported."""
    names = list(modules)
    extras = ",".join(dict.fromkeys(EXTRA_OF[name] for name in names))
    verb = "is" if len(names) == 1 else "are"
    return ImportError(
        f"{by} needs {', '.join(names)}, which {verb} not installed; "
        f'run: pip install "advssl[{extras}]"'
    )
