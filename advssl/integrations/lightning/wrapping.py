"""What is put into a module for as long as ``fit`` runs, and taken out again."""
# ruff: noqa: ARG002 (what torch and Lightning call)

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from torch import nn

from advssl.integrations.lightning.batches import Batch
from advssl.modes import Mute, unlogged
from advssl.snapshots import Snapshot

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

Output: TypeAlias = Any  # what a training_step returns: a loss, a dict that holds one, or None
Step: TypeAlias = Callable[[Batch], Output]


class WrappedStep:
    """A module's ``training_step`` as it stands in the module's own dictionary during ``fit``.

    A copy of the module, by ``deepcopy`` or ``pickle``, has its own plain one in this one's place.
    """

    __slots__ = ("__wrapped__", "around", "before", "module", "own")

    def __init__(self, module: LightningModule, around: Callable[[Step, Batch], Output]) -> None:
        self.module = module
        self.around = around
        self.own: Any = module.training_step
        self.before = vars(module).get("training_step")  # torch.compile leaves one there
        # Lightning reads the arguments' names here, and looks no deeper than one level.
        self.__wrapped__ = getattr(self.own, "__wrapped__", self.own)
        vars(module)["training_step"] = self

    def __call__(self, batch: Batch, *args: Any, **kwargs: Any) -> Output:
        return self.around(lambda b: self.own(b, *args, **kwargs), batch)

    def release(self) -> None:
        if self.before is None:
            vars(self.module).pop("training_step", None)
        else:
            vars(self.module)["training_step"] = self.before

    def __reduce__(self) -> tuple[Any, ...]:
        # A compiled step holds the module that it was compiled of: a copy goes back to its class's.
        if self.before is None or hasattr(self.before, "_torchdynamo_orig_callable"):
            return getattr, (self.module, "training_step")
        return _same, (self.before,)


class Ear:
    """A forward hook that keeps what a submodule returns; in a copy of the module it does not."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.calls.append(output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (_deaf,)


def _deaf(module: nn.Module, inputs: Any, output: Any) -> None:
    pass


def _same(value: Any) -> Any:
    return value


@contextmanager
def given_back(module: nn.Module) -> Iterator[None]:
    """The module and the random state, which reading images may move, are kept."""
    now = Snapshot(module)
    try:
        yield
    finally:
        now.restore()


@contextmanager
def logging_off(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Inside the block self.log, self.log_dict, self.print and self.logger do nothing."""
    loggers = trainer.loggers
    try:
        trainer.loggers = cast("Any", [Mute() for _ in loggers])
        with unlogged(module):
            yield
    finally:
        trainer.loggers = loggers
