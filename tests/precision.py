"""Ways in which somebody else lowers the precision of float32 products, and all that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import attrgetter

import pytest
import torch

_BACKENDS = torch.backends


def _set(module: object, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(module, name, value)


HOW: dict[str, Callable[[], None]] = {
    "matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": _set(_BACKENDS.cuda.matmul, "allow_tf32", True),
}
if hasattr(_BACKENDS, "fp32_precision"):  # torch 2.9
    HOW |= {
        "mkldnn.matmul": _set(_BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
        "cuda.matmul": _set(_BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
        "fp32_precision": _set(_BACKENDS, "fp32_precision", "bf16"),
    }

    def _both() -> None:
        torch.set_float32_matmul_precision("medium")
        _BACKENDS.cuda.matmul.fp32_precision = "ieee"

    HOW["old and new names"] = _both

LOWERED = pytest.mark.parametrize("how", HOW)


@contextmanager
def lowered(how: str) -> Iterator[None]:
    """The precision set as ``how`` says, and as torch starts with afterwards."""
    try:
        HOW[how]()
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        if hasattr(_BACKENDS, "fp32_precision"):
            _BACKENDS.fp32_precision = "none"
            for backend in (_BACKENDS.mkldnn, _BACKENDS.cuda):
                backend.matmul.fp32_precision = "none"


def settings() -> dict[str, object]:
    """What every name says now; None where torch refuses to say."""
    names: dict[str, Callable[[], object]] = {
        "matmul_precision": torch.get_float32_matmul_precision,
        "allow_tf32": lambda: _BACKENDS.cudnn.allow_tf32,
    }
    if hasattr(_BACKENDS, "fp32_precision"):
        for path in ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv"):
            names[path] = partial(attrgetter(f"{path}.fp32_precision"), _BACKENDS)
    found = {}
    for name, read in names.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = None
    return found
