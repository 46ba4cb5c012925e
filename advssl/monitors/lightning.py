"""Lightning: a callback that logs what monitors see of an encoder while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from advssl.evaluation.lightning import Watcher, check_branches, encoders_of
from advssl.monitors.alarms import Alarms
from advssl.monitors.watching import Monitors
from advssl.types import check_kind, warn, whole

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class EncoderMonitor(Watcher):
    """Logs what monitors see after every so many epochs, and warns when an alarm begins.

    The numbers stand behind "monitor/", in whatever loggers the trainer has. The training is bit
    for bit that without the callback. See :class:`~advssl.monitors.Monitors` for what is seen and
    what it costs, :class:`~advssl.monitors.Alarms` for the alarms.

    Args:
        monitors: what is looked at.
        on: name of the encoder in the module, such as "backbone".
        branches: names of the BatchNorm branches of benign and of attacked images, for an encoder
            that :func:`~advssl.branch_batchnorm` gave them.
        every: how many epochs.
    """

    def __init__(
        self,
        monitors: Monitors,
        *,
        on: str,
        branches: tuple[str, str] | None = None,
        every: int = 1,
    ) -> None:
        check_kind("monitors", monitors, Monitors)
        check_kind("on", on, str)
        check_branches(branches)
        self.monitors, self.on, self.branches = monitors, on, branches
        self.every = whole("every", every, 1)
        self.alarms = Alarms(len(monitors.images), int(monitors.bank_labels.max()) + 1)
        self._ringing: set[str] = set()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every:
            return
        benign, attacked = encoders_of(pl_module, self.on, self.branches)
        seen = self.monitors(benign) if attacked is None else self.monitors(attacked, benign)
        pl_module.log_dict({f"monitor/{name}": value for name, value in seen.items()})
        told = self.alarms(seen)
        for name in told.keys() - self._ringing:
            warn(told[name])
        self._ringing = set(told)

    def state_dict(self) -> dict[str, Any]:
        return self.alarms.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.alarms.load_state_dict(state_dict)
