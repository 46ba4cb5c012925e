"""What the callbacks share: one of them wraps the training step for all; a term has a network."""
# ruff: noqa: ARG002 (what Lightning's hooks are given)

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from advssl.distributed import agreeing, average, from_first_rank
from advssl.extras import lacking
from advssl.integrations.lightning.steps import Calls, TrainingStep
from advssl.integrations.lightning.wrapping import Ear, WrappedStep
from advssl.types import Scalar, check_kind, embeddings_of, number, see

if TYPE_CHECKING:
    from pytorch_lightning import Callback as Callback
    from pytorch_lightning import LightningModule, Trainer
else:

    def _installed() -> tuple[type, ...]:
        """``pytorch_lightning`` and ``lightning.pytorch`` have classes of their own: be both's."""
        found = []
        for name in ("lightning.pytorch", "pytorch_lightning"):
            try:
                found.append(import_module(name).Callback)
            except ModuleNotFoundError as error:
                if error.name != name.partition(".")[0]:
                    raise
        if not found:
            raise lacking(["pytorch_lightning"], "a callback")
        return tuple(found)

    Callback = type("Callback", _installed(), {})

_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")


class Bolt(Callback):
    """What all callbacks here share: the first in the trainer's list wraps for all of them."""

    _release: Callable[[], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.check(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check_module(pl_module)
        bolts = bolts_of(trainer)
        if bolts[0] is self and self._release is None:
            step = WrappedStep(pl_module, TrainingStep(trainer, pl_module, bolts))
            self._release = step.release

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._give_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._give_back()

    def join(self, step: TrainingStep) -> None:
        """Take the place in the step that is this callback's."""
        raise NotImplementedError

    def _give_back(self) -> None:
        if self._release is not None:
            self._release()
            self._release = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_release": None}  # a copy has wrapped nothing

    def check_module(self, module: LightningModule) -> None:
        """What its own setup() and configure_model(), which come after callbacks', may decide."""
        name = type(module).__name__
        if not module.automatic_optimization:
            raise ValueError(
                f"{name} optimises manually: its training_step steps optimizers, so it cannot be "
                f"run again to attack it. {type(self).__name__} has to be written into it by hand: "
                "between the computation of a loss and manual_backward, call "
                "adversary(view, lambda v: loss_of(v), freeze=[modules]) and train on the view; "
                "add critic.estimate(...) or sam(closure) to the loss" + see("Manual optimisation")
            )

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        strategy = type(trainer.strategy).__name__
        if any(kind in strategy for kind in _SHARDED):
            raise ValueError(
                f"{strategy} shards parameters, which cannot be given back between the steps of an "
                "attack; use DDP"
            )
        check_given_once(trainer, self)


class Term(Bolt):
    """A network of our own on a submodule's outputs, with its own optimizer and checkpoint entry.

    It is no part of the module, whose parameters, optimizer and state dict stay as they are. Its
    optimizer steps once per training step, also while Lightning accumulates gradients; under DDP
    gradients are averaged over ranks, and all start from rank 0's weights.
    """

    logged: str
    compares = False  # with the clean pass

    def __init__(self, network: nn.Module, on: str, weight: float, optimizer: Optimizer) -> None:
        check_kind("on", on, str)
        check_kind("optimizer", optimizer, Optimizer)
        steps = {p for group in optimizer.param_groups for p in group["params"]}
        if not steps <= set(network.parameters()):
            raise ValueError(
                f"optimizer must be of the parameters of this {type(network).__name__} alone; give "
                "one made of its parameters(), the module's own trains the module"
            )
        closure = signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"optimizer takes one step per batch, {type(optimizer).__name__} needs a closure "
                "to take several; give another, such as SGD or Adam"
            )
        self.network = network
        self.on = on
        self.weight = weight
        self.optimizer = optimizer

    @property
    def weight(self) -> float:
        """λ, which a schedule may set."""
        return self._weight

    @weight.setter
    def weight(self, weight: float) -> None:
        plain = number("weight", weight)
        if not 0 <= plain < float("inf"):
            raise ValueError(f"weight must be finite and not negative, got {plain}")
        self._weight = plain

    def check_module(self, module: LightningModule) -> None:
        super().check_module(module)
        submodule_of(module, self.on)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.network.to(pl_module.device)
        with torch.no_grad():
            for p in self.network.parameters():
                p.copy_(from_first_rank(p.detach()))
        self.optimizer.load_state_dict(self.optimizer.state_dict())  # moves it to the device too
        super().on_fit_start(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.network.load_state_dict(state_dict["network"])
        self.optimizer.load_state_dict(state_dict["optimizer"])

    def join(self, step: TrainingStep) -> None:
        step.terms.append(self)

    @contextmanager
    def listening(self, module: nn.Module) -> Iterator[list[Any]]:
        """What the submodule returns inside the block, call by call."""
        ear = Ear()
        hook = submodule_of(module, self.on).register_forward_hook(ear)
        try:
            yield ear.calls
        finally:
            hook.remove()

    def embeddings(self, calls: list[Any]) -> Calls:
        """What was heard, as (B, D) in full precision."""
        if not calls:
            raise ValueError(
                f"{self.on!r} is not called in training_step, so it has no embeddings to add a "
                "term for; name a submodule that is, module(x) and not module.forward(x)"
            )
        return [embeddings_of(f"the submodule on={self.on!r}", z) for z in calls]

    def term(self, clean: Calls, seen: Calls) -> Scalar:
        """What the module's loss is added; it gives the network no gradient."""
        raise NotImplementedError

    def own_loss(self, clean: Calls, seen: Calls) -> Scalar:
        """What the network's optimizer minimises; it gives the embeddings no gradient."""
        raise NotImplementedError

    def improve(self, clean: Calls, seen: Calls) -> None:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        if not parameters:  # a network that is trained already, and frozen
            return
        gradients: Sequence[Tensor] = ()
        with agreeing(type(self).__name__, lambda: gradients, parameters[0].device):
            gradients = torch.autograd.grad(self.own_loss(clean, seen), parameters)
        gradients = average(gradients, agreed=True)
        # A step that overflowed in float16 is skipped by the gradient scaler; so it is here, and on
        # all ranks, whose average it is.
        if not _all_finite(gradients):
            return
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not _all_finite(parameters):
            raise ValueError(
                f"the step of {type(self).__name__}'s own optimizer made weights that are not "
                f"finite; give optimizer= a smaller learning rate, it is {self.optimizer}"
            )


def callbacks_of(trainer: Any) -> list[Callback]:
    return list(trainer.callbacks)


def bolts_of(trainer: Any) -> list[Bolt]:
    return [c for c in callbacks_of(trainer) if isinstance(c, Bolt)]


def check_given_once(trainer: Any, callback: Callback) -> None:
    same = sum(type(one) is type(callback) for one in callbacks_of(trainer))
    if same > 1:
        raise ValueError(f"the trainer has {type(callback).__name__} {same} times; give it once")


def submodule_of(module: nn.Module, on: str) -> nn.Module:
    """The submodule of that name, be it one of several names."""
    try:
        return module.get_submodule(on)
    except AttributeError as error:
        raise ValueError(
            f"{type(module).__name__} has no submodule {on!r}; on= is a name such as "
            f"{[name for name, _ in module.named_children()]}"
        ) from error


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    return bool(torch.stack([t.detach().isfinite().all() for t in tensors]).all())
