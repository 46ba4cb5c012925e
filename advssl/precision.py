"""Precision: what computes in float32 whatever is set elsewhere, forward and backward."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from advssl.types import Scalar


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off on ``device``: cast inputs with :func:`widen` and compute as they come."""
    # The meta device has no autocast, and raises. To enter what is off already costs 10 µs.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside the block float32 is computed in float32: no autocast, no TF32, no bfloat16 products.

    Whatever lowers matrix products, convolutions and recurrent layers, by torch's old names or by
    its new ones, is there again on any exit. Such settings are the process's: other threads compute
    in float32 too until the last block is left. Compiled code takes :func:`product` instead.
    """
    with without_autocast(device), _PRODUCTS, _CONVOLUTIONS:
        yield


class _Setting(NamedTuple):
    """One of torch's names for a precision, and what it says where float32 is float32."""

    get: Callable[[], Any]
    put: Callable[[Any], None]
    full: Any
    inherits: bool = False  # "none" means that what stands above it decides

    def read(self) -> Any:
        """None where an old name has no word for what the new ones were set to: torch refuses."""
        try:
            return self.get()
        except RuntimeError:
            return None

    def become(self, value: Any) -> None:
        # "none" first: what was inherited is not to be set.
        for step in ("none", value) if self.inherits else (value,):
            if value is not None and self.read() != value:
                self.put(step)


class _Raised:
    """Settings at full precision from the first entry to the last exit, in whatever thread."""

    def __init__(self, *settings: _Setting) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._entered = 0
        self._before: list[Any] = []

    def __enter__(self) -> None:
        with self._lock:
            self._entered += 1
            if self._entered == 1:
                # All are read before one is changed: an old name sets new ones too.
                before = [setting.read() for setting in self._settings]
                lowered = [
                    setting
                    for setting, value in zip(self._settings, before, strict=True)
                    if value not in (setting.full, "none", None)
                ]
                self._before = before if lowered else []
                for setting in lowered:
                    setting.become(setting.full)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._entered -= 1
            if self._entered == 0:
                for setting, value in zip(self._settings, self._before, strict=False):
                    setting.become(value)


def _new_names(*operations: str) -> list[_Setting]:
    if not hasattr(torch._C, "_set_fp32_precision_setter"):  # before torch 2.9
        return []
    get: Callable[..., Any] = torch._C._get_fp32_precision_getter
    put: Callable[..., Any] = torch._C._set_fp32_precision_setter
    return [
        _Setting(partial(get, backend, op), partial(put, backend, op), "ieee", inherits=True)
        for backend in ("cuda", "mkldnn")
        for op in operations
    ]


_PRODUCTS = _Raised(
    _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    *_new_names("matmul"),
)
_CONVOLUTIONS = _Raised(
    _Setting(torch._C._get_cudnn_allow_tf32, torch._C._set_cudnn_allow_tf32, False),
    *_new_names("conv", "rnn"),
)


def widen(values: Tensor) -> Tensor:
    """float64 stays, every other type becomes float32."""
    return values if values.dtype == torch.float64 else values.float()


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the type of both, as are its derivatives, whatever precision is set elsewhere.

    A lower precision reaches a product through autocast and through torch's settings, and its
    backward when *that* runs or, under ``torch.compile``, is traced. Here all are one operation
    that switches both off; to a compiler it is opaque.

    Args:
        a: (..., N, K), float32 or float64.
        b: (..., K, M), of the same type and leading dimensions.
    """
    if torch.compiler.is_compiling():
        return _opaque(a, b)
    graph = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    return _Product.apply(a, b) if graph else _Product.forward(a, b)


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with without_autocast(a.device), _PRODUCTS:
            return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (a, b), (of_a, of_b) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            product(gradient, b.mT) if of_a else None,
            product(a.mT, gradient) if of_b else None,
        )

    @staticmethod
    def jvp(ctx: Any, of_a: Tensor, of_b: Tensor) -> Tensor:
        a, b = ctx.saved_tensors
        return product(of_a, b) + product(a, of_b)


# A Function is traced through, operation by operation; this is not.
_opaque = torch.library.custom_op(
    "advssl::product",
    lambda a, b: _Product.apply(a, b),
    mutates_args=(),
    schema="(Tensor a, Tensor b) -> Tensor",
)
_opaque.register_fake(lambda a, b: a.new_empty(*a.shape[:-1], b.shape[-1]))
_opaque.register_autograd(
    _Product.backward,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),  # noqa: ARG005
)


class WideLinear(nn.Linear):
    """``nn.Linear`` in the wider type of input and weight, float32 at least.

    Called as any module is, so that what torch puts on its weight (spectral norm, weight norm,
    pruning, a low-rank update) is on it here too.
    """

    def forward(self, input: Tensor, own_gradient: bool = True) -> Tensor:
        """(..., D) -> (..., K); without ``own_gradient`` weight and bias get no gradient."""
        weight, bias = (
            p if p is None or own_gradient else p.detach() for p in (self.weight, self.bias)
        )
        dtype = torch.promote_types(widen(input).dtype, widen(weight).dtype)
        found = product(input.to(dtype), weight.to(dtype).mT)
        return found if bias is None else found + bias.to(dtype)


def uphill(
    height: Scalar, inputs: Sequence[Tensor], *, retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradient of ``height``, also where part of its graph is float16.

    There a mean over a large batch has gradients below the smallest float16. They pass that part
    times a power of two, chosen to bring the largest value that enters it to 64, and are brought
    back in float32: what ranks average has one scale. It costs a second backward through what lies
    above that part, the loss, and no device sync. Where the graph adds up what comes from several
    ranks, as a gathering loss and SyncBatchNorm do, they take the smallest of their scales.

    Returns:
        One tensor per input, None where ``height`` does not depend on it.

    Raises:
        ValueError: if whoever computed ``height`` has back-propagated it already, or did so in a
            way that lets no gradient pass here.
    """
    # Backward belongs outside autocast: inside it a loss's own float32 products are cast again.
    with without_autocast(height.device), _said_what_it_is():
        scale = _float16_scale(height)
        gradients = torch.autograd.grad(
            height,
            inputs,
            grad_outputs=None if scale is None else scale.to(height.dtype),
            retain_graph=retain_graph,
            allow_unused=True,
        )
    if scale is None:
        return gradients
    return tuple(None if g is None else widen(g) / scale for g in gradients)


# What an error of others says, and what it means of an objective or a closure.
_REFUSED = {
    "backward through the graph a second time": "the loss has been back-propagated already, and "
    "its graph is freed; an objective, or a closure, returns its loss without calling backward, "
    "which belongs after the call",
    "use_reentrant": "the objective uses re-entrant activation checkpointing, which hides what is "
    "inside from a gradient to the images; pass use_reentrant=False to torch.utils.checkpoint",
    "fabric.backward": "a module that Fabric has set up lets a gradient pass in fabric.backward "
    "alone; call the one inside it, fabric_module.module, under fabric.autocast()",
}


@contextmanager
def _said_what_it_is() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        why = next((why for said, why in _REFUSED.items() if said in str(error)), None)
        if why is None:
            raise
        raise ValueError(why) from error


def _float16_scale(height: Scalar) -> Scalar | None:
    """The power of two that brings what enters the float16 part of the graph to at most 64."""
    edges = _float16_edges(height)
    if not edges:
        return None
    entering = torch.autograd.grad(height, edges, retain_graph=True, allow_unused=True)
    peaks = [g.detach().abs().amax().float() for g in entering if g is not None]
    scale = (6 - torch.stack(peaks).amax().log2().round()).exp2()  # which rounds nothing
    scale = torch.where(scale > 0, scale, torch.inf)
    several = dist.is_available() and dist.is_initialized()
    # Where the graph holds a collective, whose backward is one too.
    if several and any(_COLLECTIVE.fullmatch(node.name()) for node in nodes_below(height)):
        dist.all_reduce(scale, dist.ReduceOp.MIN)
    return torch.where(scale.isfinite(), scale, 1.0)


# A digit ends the names of torch's own operations, of which one is called gather.
_COLLECTIVE = re.compile(r"(?i).*(gather|reduce|scatter|all_?to_?all|broadcast|sync).*(?<!\d)")


def nodes_below(height: Tensor, but: Iterable[Node | None] = ()) -> list[Node]:
    """The nodes of the graph of ``height``, less those in ``but`` and what they alone lead to."""
    found, seen, pending = list[Node](), {*but}, [height.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.append(node)
        pending += [below for below, _ in node.next_functions]
    return found


def _float16_edges(height: Tensor) -> list[GradientEdge]:
    """Where a gradient that comes down from ``height`` last stands before it becomes float16."""
    assert height.grad_fn is not None
    edges, pending = [], [(height.grad_fn, 0)]
    seen = set(pending)
    while pending:
        node, index = pending.pop()
        below = [(n, i) for n, i in node.next_functions if n is not None]
        half = {(n, i) for n, i in below if n._input_metadata[i].dtype == torch.float16}
        if half:
            edges.append(GradientEdge(node, index))
        new = [edge for edge in below if edge not in half and edge not in seen]
        seen.update(new)
        pending += new
    return edges
