"""Sharpness: a closure to its loss at the worst nearby weights, as a term to sum with others."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks, get_gradient_edge
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from advssl.distributed import agreeing, average
from advssl.modes import check_differentiable, state_kept, weights_recomputed
from advssl.precision import nodes_below, uphill
from advssl.randomness import random_state, random_state_kept
from advssl.reaching import drawing, moved_since, reached, state_marks, submodules
from advssl.snapshots import Snapshot
from advssl.types import Closure, Scalar, described, flag, height_of, modules_of, number, see, warn


class SAMWrapper(nn.Module):
    r"""Sharpness-aware minimisation of one term: the closure's loss at the worst nearby weights.

        L(θ + e),   e = ρ g / ‖g‖ (SAM)   or   e = ρ θ² g / ‖θ g‖ (adaptive: ASAM),   g = ∇L(θ)

    The value is an ordinary differentiable term. Sum it with other terms and call ``backward``
    once: its gradient in θ is the sharpness-aware one, ∇L at θ + e, and the other terms keep
    theirs. No optimizer is wrapped, so schedules, gradient scalers, accumulation and DDP stay as
    they are. The whole loss in one closure is classic SAM.

    Convention:
        While the closure runs a second time the modules' parameters are replaced by θ + e; the
        parameters themselves, and ``.grad``, are never touched. BatchNorm buffers, a momentum
        encoder, a queue and its pointer move in the pass at θ and not in the second, in the modules
        given and in others that the closure calls, as far as they are found from its variables; the
        second begins from what the first began from, so that at ρ = 0 it is the first. Both draw
        the same random numbers. Weights that ``parametrize.cached()`` remembers are computed anew.
        Parameters that the closure does not reach stay where they are. Under ``torch.distributed``
        g is averaged over ranks, so every rank must make the call; the term is then that of one
        process on the whole batch. A closure must read parameters from the modules (call them), not
        from a variable bound before. Second derivatives through e are dropped, as in the paper.

    Args:
        *modules: whose parameters move. Referenced, not registered: they do not join this module's
            parameters or state dict.
        rho: ρ ≥ 0, a distance in weight space over all parameters together. SAM takes 0.05; ASAM
            0.5 to 2, because it is relative to each weight.
        adaptive: ASAM, invariant to rescaling weights. GSA-RSL's released code uses it with
            ρ = 1.0, its text says SAM.

    Raises:
        ValueError: on a negative rho, no module, TorchScript, and parameters that are DTensors
            (FSDP2) or in half precision: a step of ρ would vanish in their rounding.

    Reference: Foret et al. 2021, Eqs. 2 and 3, https://arxiv.org/abs/2010.01412; Kwon et al. 2021,
    https://arxiv.org/abs/2102.11600; on the benign term alone: GSA-RSL, Theorem 4.5 and Algorithm 1

    Example:
        >>> model = nn.Linear(2, 1)
        >>> sam = SAMWrapper(model, rho=0.05)
        >>> x = torch.randn(8, 2)
        >>> loss = sam(lambda: model(x).square().mean()) + model.weight.abs().sum()
        >>> loss.backward()
    """

    def __init__(self, *modules: nn.Module, rho: float = 0.05, adaptive: bool = False) -> None:
        super().__init__()
        if not modules_of("SAMWrapper", modules):
            raise ValueError("SAMWrapper needs the modules whose weights move, got none")
        for m in submodules(*modules):
            if isinstance(m, torch.jit.ScriptModule):
                raise ValueError("the weights of TorchScript cannot move; give the plain module")
        self.rho = rho
        self.adaptive = flag("adaptive", adaptive)
        # A tuple of modules is not registered, so nothing of theirs is moved or saved through here.
        self.modules_moved = modules
        self._said = False

    @property
    def rho(self) -> float:
        """ρ, which a schedule may set between steps."""
        return self._rho

    @rho.setter
    def rho(self, rho: float) -> None:
        plain = number("rho", rho)
        if not 0 <= plain < float("inf"):
            raise ValueError(f"rho must be non-negative and finite, got {rho}")
        self._rho = plain

    def forward(
        self,
        closure: Closure,
        loss: Scalar | None = None,
        *,
        rng_state: tuple[Tensor, ...] | None = None,
    ) -> Scalar:
        """The closure's loss at θ + e, with a graph down to θ.

        Args:
            closure: forwards and returns a scalar, without backward; it runs at θ and at θ + e. One
                element of another shape is taken too, and a mapping that holds it as "loss".
            loss: its value at θ with its graph, if your loop has it already: then the closure runs
                at θ + e only, and begins from what queues and statistics are then. Give it where it
                joins the same ``backward`` and the closure changes parameters in place, as SwAV its
                prototypes. The graph stays alive for your own ``backward``; if a compiled module
                made it, set ``torch._functorch.config.donated_buffer = False`` before.
            rng_state: what :meth:`rng_state` returned before ``loss`` was computed, so that dropout
                repeats; without ``loss`` there is no need of it.

        Raises:
            ValueError: if ``closure`` cannot be called, the loss is not a scalar, or it depends on
                no parameter of the modules.
            RuntimeError: if the closure uses activation checkpointing, which would recompute at θ.
        """
        if not callable(closure):
            raise ValueError(
                "SAMWrapper takes a closure that computes the loss each time it is called, got "
                f"{described(closure)}; write sam(lambda: criterion(model(x)))"
            )
        if rng_state is not None and not isinstance(rng_state, tuple):
            raise ValueError(f"rng_state is what rng_state() returned, got {described(rng_state)}")
        if loss is None and rng_state is not None:
            raise ValueError("rng_state belongs to a loss that was computed before; give loss too")
        before, at_theta = None, loss
        where = next((p.device for m in self.modules_moved for p in m.parameters()), None)
        with torch.enable_grad():
            with agreeing("SAMWrapper", lambda: list(parameters.values()), where):
                parameters = self._parameters_moved()
                device = next(iter(parameters.values())).device
                state = random_state(device) if loss is None else rng_state
                if loss is None:
                    modules, others = reached(closure)
                    held = *self.modules_moved, *modules, *drawing(others)
                    before = _Untrained(*held, generators=False)
                    with weights_recomputed():
                        at_theta = closure()
                gradients = self._slopes(at_theta, parameters, retain_graph=loss is not None)
            moved = self._moved(parameters, gradients)
            modules, others = reached(closure)
            marks = state_marks(others)
            with (
                random_state_kept(device, state),
                weights_recomputed(),
                state_kept(*self.modules_moved, *modules),
                disable_saved_tensors_hooks(_CHECKPOINTED),
            ):
                if before is not None:
                    before.restore()
                run = _Run(self.modules_moved)
                lent = _wherever_they_stand(run, parameters, moved)
                again = functional_call(run, lent, (closure,), tie_weights=False)
                again = height_of("the closure", again)
            _check_at_moved(again, parameters, moved)
            self._say_twice(moved_since(marks))
            return again

    def rng_state(self) -> tuple[Tensor, ...]:
        """The random state that a ``loss`` computed after this call starts from."""
        return random_state(next(iter(self._parameters_moved().values())).device)

    def extra_repr(self) -> str:
        moved = ", ".join(type(m).__name__ for m in self.modules_moved)
        return f"{moved}, rho={self.rho}, adaptive={self.adaptive}"

    def _say_twice(self, moved: dict[str, str]) -> None:
        if moved and not self._said:
            self._said = True
            what = ", ".join(f"{kind} ({name})" for kind, name in moved.items())
            warn(
                f"the closure given to SAMWrapper changes what is outside of modules: {what}, in "
                "both of its passes; keep it in a module, as a buffer, to have it change in the "
                "first alone"
            )

    def _parameters_moved(self) -> dict[str, Tensor]:
        """By the name that :class:`_Run` knows them under; a tied parameter once."""
        run = _Run(self.modules_moved)
        parameters: dict[str, Tensor] = {
            name: p for name, p in run.named_parameters() if p.requires_grad
        }
        if not parameters:
            raise ValueError("no parameter of the modules requires gradient; nothing can move")
        check_differentiable(parameters)
        for name, p in parameters.items():
            if torch.finfo(p.dtype).bits < 32:
                raise ValueError(
                    f"{name} is in {p.dtype}, too coarse for a step of rho; keep parameters in "
                    "float32 and compute under torch.autocast" + see("Half precision")
                )
            if hasattr(p, "device_mesh"):
                raise ValueError(
                    f"{name} is a DTensor (FSDP2): its shards cannot be moved from here; "
                    "use DDP, or apply SAM in the optimizer"
                )
        return parameters

    def _slopes(
        self, answer: Any, parameters: dict[str, Tensor], *, retain_graph: bool
    ) -> tuple[Tensor | None, ...]:
        at_theta = height_of("the closure", answer)
        if not at_theta.requires_grad:
            raise ValueError(
                "the closure must return a scalar that depends on the modules' parameters, got "
                "one with requires_grad=False; compute it without detach(), item() and "
                "inference_mode"
            )
        # Re-entrant checkpointing uses no hooks, and hides the parameters inside it from autograd.
        if any(node.name() == "CheckpointFunctionBackward" for node in nodes_below(at_theta)):
            raise RuntimeError(_CHECKPOINTED)
        return uphill(at_theta, list(parameters.values()), retain_graph=retain_graph)

    def _moved(
        self, parameters: dict[str, Tensor], gradients: tuple[Tensor | None, ...]
    ) -> dict[str, Tensor]:
        """θ + e for every parameter that the loss depends on."""
        nothing = all(g is None for g in gradients)
        with torch.no_grad():
            # Zeros for what this rank does not reach: another rank may, and all must send as much.
            *slopes, share = average(
                [
                    *(
                        torch.zeros_like(p) if g is None else g.to_dense()
                        for p, g in zip(parameters.values(), gradients, strict=True)
                    ),
                    next(iter(parameters.values())).new_tensor(0.0 if nothing else 1.0),
                ],
                agreed=True,
            )
            if nothing and not share:
                raise ValueError(
                    "the loss depends on no parameter of the modules given to SAMWrapper"
                )
            slopes = _peak_one(slopes)
            if self.adaptive:
                sizes = [p.abs() for p in parameters.values()]
                scaled = _peak_one([w * g for w, g in zip(sizes, slopes, strict=True)])
                steps = [w * s for w, s in zip(sizes, scaled, strict=True)]
            else:
                scaled = steps = slopes
            length = torch.linalg.vector_norm(
                torch.stack([torch.linalg.vector_norm(s) for s in scaled])
            )
            scale = self.rho / torch.where(length > 0, length, 1)
            shifts = [step * scale for step in steps]
        moved = {n: p + e.to(p.dtype) for (n, p), e in zip(parameters.items(), shifts, strict=True)}
        for t in moved.values():  # a closure may copy a module, and Python copies no such tensor
            t.__deepcopy__ = partial(_as_parameter, t.detach())  # type: ignore[method-assign]
        return moved


def _wherever_they_stand(
    run: nn.Module, parameters: dict[str, Tensor], moved: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What takes each parameter's place, once in each place.

    torch's own search for what is tied names a module that is shared by all its names, and
    exchanges its parameters as often: the last one would be left in it.
    """
    new = {p: moved[name] for name, p in parameters.items()}
    return {
        f"{path}.{name}": new[p]
        for path, module in run.named_modules()
        for name, p in module._parameters.items()
        if p in new
    }


class _Untrained(Snapshot):
    """What a pass meets beside the parameters that are moved: queues, statistics, generators."""

    def _hold_tensor(self, tensor: Tensor) -> None:
        if not (tensor.requires_grad or is_lazy(tensor)):
            super()._hold_tensor(tensor)


def _as_parameter(value: Tensor, memo: Any) -> nn.Parameter:  # noqa: ARG001
    return nn.Parameter(value.clone())


def _peak_one(values: list[Tensor]) -> list[Tensor]:
    """Over their largest entry: squares stay in float32's range, and only directions count."""
    peak = torch.stack([v.abs().amax() for v in values if v.numel()]).amax()
    return [(v / torch.where(peak > 0, peak, 1)).to(v.dtype) for v in values]


_CHECKPOINTED = (
    "the closure given to SAMWrapper uses activation checkpointing (or other saved tensor hooks): "
    "backward would recompute at the unmoved weights; switch it off inside the closure"
)


def _check_at_moved(loss: Scalar, parameters: dict[str, Tensor], moved: dict[str, Tensor]) -> None:
    """Raise where the second pass took a parameter as it stands, and not the one moved."""
    own = {get_gradient_edge(p).node: name for name, p in parameters.items()}
    for node in nodes_below(loss, but={t.grad_fn for t in moved.values()}):
        if node in own:
            raise ValueError(
                f"the closure's pass at the moved weights took {own[node].partition('.')[2]} as it "
                "was: through a weight that a module remembers (a cache), or from a variable bound "
                "before; compute what depends on parameters inside the closure, by calling modules"
            )


class _Run(nn.Module):
    """A closure as a module's forward, so that functional_call can exchange parameters in it."""

    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.moved = nn.ModuleList(modules)

    def forward(self, closure: Closure) -> Scalar:
        return closure()
