"""The callbacks for adversarial views, sharpness and the global divergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from advssl.attacks import AdversarialViewGenerator
from advssl.critics import GlobalDivergenceCritic
from advssl.guards import CatastrophicOverfittingGuard
from advssl.integrations.lightning.batches import Batch, views_of
from advssl.integrations.lightning.bolts import Bolt, Term, bolts_of, callbacks_of
from advssl.integrations.lightning.scheduling import Scheduled
from advssl.integrations.lightning.steps import Calls, TrainingStep
from advssl.losses import unit
from advssl.sharpness import SAMWrapper
from advssl.types import Embeddings, Images, Scalar, check_kind, described, number
from advssl.types import views_of as which_views

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class AdversarialViews(Bolt):
    """Replaces chosen views of each batch by adversarial ones, found against the module's own loss.

    The objective is the module's ``training_step``, whatever it computes, plus the weighted terms
    of the other callbacks. What a step changes is given back after each step of the attack:
    parameters (a momentum encoder that it updates, prototypes that it normalises), buffers, memory
    banks, centers, counters, plain attributes (see :class:`~advssl.snapshots.Snapshot`); what it
    logs is dropped. Every step of the attack and the training pass draw the same random numbers,
    and the module's random state advances as it would without the attack. Batches pass through
    unchanged where ``training_step`` returns None. Logged are "attack_start" and "attack_end", the
    objective at the first and the last step of an attack of several. A copy of the module that is
    taken or saved meanwhile (deepcopy, pickle, averaging callbacks) has its plain
    ``training_step``, without any callback.

    Args:
        adversary: gives ball and steps; for normalised views with ``pixels=IMAGENET``, or ``mean``
            and ``std`` (``**lightly.transforms.utils.IMAGENET_NORMALIZE``).
        views: which to attack. Views are counted as they stand in the batch, through tuples, lists
            and dicts: every floating point (B, C, H, W) tensor is one. The first alone by default,
            which suits every method (of MoCo it is the query). Several, or "all", are attacked
            jointly; a view that the loss has no gradient in stays as it is.

    Raises:
        ValueError: for a module with manual optimisation, a sharding strategy, a batch without such
            views, or half-precision views (use ``precision="bf16-mixed"``, not "bf16-true").
    """

    def __init__(
        self, adversary: AdversarialViewGenerator, views: Sequence[int] | Literal["all"] = (0,)
    ) -> None:
        check_kind("adversary", adversary, AdversarialViewGenerator)
        self.adversary = adversary
        self.views = which_views(views)
        self._draws: torch.Generator | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._draws is None:
            self._draws = torch.Generator().manual_seed(torch.initial_seed())
        super().on_fit_start(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._draws is None else {"draws": self._draws.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._draws = torch.Generator()
        self._draws.set_state(state_dict["draws"])

    def join(self, step: TrainingStep) -> None:
        step.attack = self

    def chosen(self, batch: Batch) -> list[int]:
        """Which of the batch's views are attacked."""
        size = len(views_of(batch))
        if size == 0:
            raise ValueError(
                "the batch holds no floating point tensor of shape (B, C, H, W) to attack, it is "
                f"{described(batch)}"
            )
        if self.views == "all":
            return list(range(size))
        if not all(-size <= i < size for i in self.views):
            raise ValueError(f"the batch has {size} views, got views={self.views}")
        return sorted({i % size for i in self.views})

    def search(
        self, views: tuple[Images, ...], objective: Callable[..., Scalar]
    ) -> tuple[Images, ...]:
        """The generator's own draws stay out of the module's random state."""
        assert self._draws is not None
        seed = int(torch.randint(2**62, (), generator=self._draws))
        start = torch.Generator(views[0].device).manual_seed(seed)
        return self.adversary(views, objective, freeze=(), generator=start)  # given back there


class OverfittingGuard(Bolt):
    """Watches AdversarialViews' attack, and makes it stronger where training overfits to it.

    Every ``guard.every``-th batch is attacked by PGD-5 too, against the same objective; what both
    attacks gain is logged as "attack_gain" and "pgd_gain". See
    :class:`~advssl.CatastrophicOverfittingGuard`. The steps that it comes to are in the checkpoint.

    Args:
        guard: of the adversary that AdversarialViews has.
    """

    def __init__(self, guard: CatastrophicOverfittingGuard) -> None:
        check_kind("guard", guard, CatastrophicOverfittingGuard)
        self.guard = guard

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        super().check(trainer, module)
        attacks = [b.adversary for b in bolts_of(trainer) if isinstance(b, AdversarialViews)]
        if not any(adversary is self.guard.adversary for adversary in attacks):
            raise ValueError(
                "OverfittingGuard watches the attack of AdversarialViews; give the trainer that "
                "too, with the adversary that the guard is made of"
            )
        for other in callbacks_of(trainer):
            if not isinstance(other, Scheduled) or other.target is not self.guard.adversary:
                continue
            if both := {"steps", "step_size"} & other.schedules.keys():
                raise ValueError(
                    f"a schedule sets the adversary's {', '.join(sorted(both))} before each batch, "
                    "and would undo what OverfittingGuard makes of it; give one of the two, or a "
                    "schedule of the radius"
                )

    def state_dict(self) -> dict[str, Any]:
        return self.guard.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.guard.load_state_dict(state_dict)

    def join(self, step: TrainingStep) -> None:
        step.guard = self

    def judge(self, module: LightningModule, values: list[float] | None) -> None:
        gains = self.guard.judge(values)
        if gains is not None:
            module.log("attack_gain", gains.training)
            module.log("pgd_gain", gains.pgd)


class SharpnessAware(Bolt):
    """Trains on the module's own loss at the worst nearby weights: SAM without its optimizer.

    The module's loss is taken at θ, then at θ + ρ g/‖g‖ from the same state and random numbers, and
    the latter is what Lightning back-propagates, accumulates and scales. Logged is what the module
    logs at θ. The attack of AdversarialViews and the terms of the other callbacks stay at θ.

    Args:
        rho: ρ, a distance in weight space; see :class:`~advssl.SAMWrapper`.
        adaptive: ASAM.

    Raises:
        ValueError: for parameters in half precision (use ``precision="bf16-mixed"``, not
            "bf16-true").
    """

    def __init__(self, rho: float = 0.05, adaptive: bool = False) -> None:
        self.rho = number("rho", rho)
        # Refuses here what it would refuse in the first step.
        SAMWrapper(nn.Identity(), rho=self.rho, adaptive=adaptive)
        self.adaptive = adaptive

    def join(self, step: TrainingStep) -> None:
        step.sharp = self


class GlobalDivergence(Term):
    """Aligns the clouds of benign and adversarial embeddings, by GSA-RSL's discriminator.

    Per batch the module runs once more, on the clean views, for the benign embeddings. The critic
    sees those calls of the submodule that the attacked views reach, made unit-length; it steps, and
    ``weight`` times its estimate joins the loss. The attack climbs the same sum (Eqs. 18 to 20).
    The estimate is logged as "global_divergence", in nats for "js" and "kl".

    Args:
        critic: of the width of the submodule's output: (B, D), or (B, D, 1, 1), alone or the only
            tensor of a tuple, dict or named output.
        on: name of the submodule, such as "projection_head". Not a momentum encoder's: that has no
            gradient.
        weight: the paper's 0.1.
        optimizer: of the critic's parameters; None is ``SGD(lr=0.2, momentum=0.9)``.

    Reference: GSA-RSL, Eqs. 17 to 20
    """

    logged = "global_divergence"
    compares = True

    def __init__(
        self,
        critic: GlobalDivergenceCritic,
        on: str,
        *,
        weight: float = 0.1,
        optimizer: Optimizer | None = None,
    ) -> None:
        check_kind("critic", critic, GlobalDivergenceCritic)
        if optimizer is None:
            optimizer = torch.optim.SGD(critic.parameters(), lr=0.2, momentum=0.9)
        super().__init__(critic, on, weight, optimizer)
        self.critic = critic

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        super().check(trainer, module)
        if not any(isinstance(b, AdversarialViews) for b in bolts_of(trainer)):
            raise ValueError(
                "GlobalDivergence compares benign with adversarial embeddings; give the trainer "
                "AdversarialViews too"
            )

    def term(self, clean: Calls, seen: Calls) -> Scalar:
        return self.critic.estimate(_cloud(clean), _cloud(seen))

    def own_loss(self, clean: Calls, seen: Calls) -> Scalar:
        return self.critic.loss(_cloud(clean), _cloud(seen))


def _cloud(calls: Calls) -> Embeddings:
    return unit(torch.cat(calls))
