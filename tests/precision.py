"""Ways in which somebody else lowers the precision of float32 products, and all that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import attrgetter

import pytest
import torch
from torch import Tensor

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
# Of terms, which are made of products that are held to all ways: an older way and a newer one.
LOWERED_FOR_TERMS = pytest.mark.parametrize(
    "how",
    [
        pytest.param(
            how, marks=() if how in ("matmul_precision", "fp32_precision") else pytest.mark.heavy
        )
        for how in HOW
    ],
)


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


def assert_float32s(
    term: Callable[..., Tensor], *inputs: Tensor, how: str, one_graph: bool = True
) -> None:
    """The term, its gradient and that one's are float32's, lowered or not, compiled or not."""
    wanted = _derivatives(term, [z.double() for z in inputs])
    with lowered(how):
        _assert_near(_derivatives(term, inputs), wanted)
        torch.compiler.reset()
        compiled = torch.compile(term, backend="aot_eager", fullgraph=one_graph)
        leaves = [z.clone().requires_grad_() for z in inputs]
        with torch.autocast("cpu", torch.bfloat16):
            value = compiled(*leaves)
        _assert_near([value, *torch.autograd.grad(value, leaves)], wanted[: 1 + len(inputs)])


def _derivatives(term: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [z.clone().requires_grad_() for z in inputs]
    value = term(*leaves)
    first = torch.autograd.grad(value, leaves, create_graph=True)
    penalty = torch.stack([g.square().sum() for g in first]).sum()
    return [value, *first, *torch.autograd.grad(penalty, leaves)]


def _assert_near(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for f, w in zip(found, wanted, strict=True):
        assert f.dtype == torch.float32
        assert (f - w).norm() < 1e-4 * w.norm()


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


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


low_precision = partial(lowered, "matmul_precision")
