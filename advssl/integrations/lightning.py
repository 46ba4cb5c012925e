"""Lightning: the components as callbacks, for a LightningModule that may not be edited.

Lightning lets no callback change a batch or a loss. So for as long as ``fit`` runs, the module's
``training_step`` is wrapped: by one wrapper for all callbacks of this file, whatever their order in
the trainer's list. What it does with a batch is, with every callback there:

1. the clean pass, whose embeddings GlobalDivergence compares with;
2. the attack: AdversarialViews raises the module's own loss plus the weighted terms;
3. the training pass on the adversarial batch, the only one that leaves a trace and logs;
4. SharpnessAware: that pass once more at the worst nearby weights;
5. the weighted terms of GlobalDivergence and ClusterFit, added to the loss.

All passes start from one state of the module and draw the same random numbers.
"""
# ruff: noqa: ARG002 (what Lightning's hooks are given)

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler, Subset

from advssl.attacks import AdversarialViewGenerator
from advssl.critics import GlobalDivergenceCritic
from advssl.distributed import average, from_first_rank
from advssl.heads import ClusterFitHead
from advssl.indexed import IndexedDataset, IndexedSample, without_index
from advssl.integrations.snapshots import Snapshot
from advssl.losses import unit
from advssl.modes import evaluating
from advssl.sharpness import SAMWrapper
from advssl.types import (
    Embeddings,
    Images,
    Scalar,
    check_indices,
    described,
    embeddings_of,
    height_of,
    number,
    see,
    whole,
)

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
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
            raise ImportError("these callbacks need Lightning: pip install pytorch-lightning")
        return tuple(found)

    Callback = type("Callback", _installed(), {})

Batch: TypeAlias = Any
Output: TypeAlias = Any  # what a training_step returns: a loss, a dict that holds one, or None
Step: TypeAlias = Callable[[Batch], Output]
Calls: TypeAlias = list[Embeddings]  # what a submodule returned, call by call

_CLUSTERED = 64  # images at a time, where the caller does not say
_LOOKED_AT = 64  # images by which a fitted head is recognised
_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")


class _Bolt(Callback):
    """What all callbacks here share: the first in the trainer's list wraps for all of them."""

    _release: Callable[[], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.check(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bolts = _bolts(trainer)
        if bolts[0] is self and self._release is None:
            step = _WrappedStep(pl_module, _TrainingStep(trainer, pl_module, bolts))
            self._release = step.release

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._give_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._release is not None:
            self._release()
            self._release = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_release": None}  # a copy has wrapped nothing

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        name = type(module).__name__
        if not module.automatic_optimization:
            raise ValueError(
                f"{name} optimises manually: its training_step steps optimizers, so it cannot be "
                f"run again to attack it. {type(self).__name__} has to be written into it by hand: "
                "between the computation of a loss and manual_backward, call "
                "adversary(view, lambda v: loss_of(v), freeze=[modules]) and train on the view; "
                "add critic.estimate(...) or sam(closure) to the loss" + see("Manual optimisation")
            )
        strategy = type(trainer.strategy).__name__
        if any(kind in strategy for kind in _SHARDED):
            raise ValueError(
                f"{strategy} shards parameters, which cannot be given back between the steps of an "
                "attack; use DDP"
            )
        same = sum(type(b) is type(self) for b in _bolts(trainer))
        if same > 1:
            raise ValueError(f"the trainer has {type(self).__name__} {same} times; give it once")


class AdversarialViews(_Bolt):
    """Replaces chosen views of each batch by adversarial ones, found against the module's own loss.

    The objective is the module's ``training_step``, whatever it computes, plus the weighted terms
    of the other callbacks. What a step changes is given back after each step of the attack:
    parameters (a momentum encoder that it updates, prototypes that it normalises), buffers, memory
    banks, centers, counters, plain attributes (see :class:`~.snapshots.Snapshot`); what it logs is
    dropped. Every step of the attack and the training pass draw the same random numbers, and the
    module's random state advances as it would without the attack. Batches pass through unchanged
    where ``training_step`` returns None. A copy of the module that is taken or saved meanwhile
    (deepcopy, pickle, averaging callbacks) has its plain ``training_step``, without any callback.

    Args:
        adversary: gives ball, steps, bounds; for normalised views with ``mean`` and ``std``
            (``**lightly.transforms.utils.IMAGENET_NORMALIZE``).
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
        _check_kind("adversary", adversary, AdversarialViewGenerator)
        chosen = [] if isinstance(views, str) or not isinstance(views, Iterable) else list(views)
        if not chosen and views != "all":
            raise ValueError(f'views must be "all" or numbers such as (0,), got {described(views)}')
        self.adversary = adversary
        self.views: tuple[int, ...] | Literal["all"] = (
            tuple(whole("each of views", i, -sys.maxsize) for i in chosen) or "all"
        )
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

    def chosen(self, batch: Batch) -> list[int]:
        """Which of the batch's views are attacked."""
        size = len(_views(batch))
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


class SharpnessAware(_Bolt):
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


class _Term(_Bolt):
    """A network of our own on a submodule's outputs, with its own optimizer and checkpoint entry.

    It is no part of the module, whose parameters, optimizer and state dict stay as they are. Its
    optimizer steps once per training step, also while Lightning accumulates gradients; under DDP
    gradients are averaged over ranks, and all start from rank 0's weights.
    """

    logged: str
    compares = False  # with the clean pass

    def __init__(self, network: nn.Module, on: str, weight: float, optimizer: Optimizer) -> None:
        _check_kind("on", on, str)
        _check_kind("optimizer", optimizer, Optimizer)
        weight = number("weight", weight)
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be finite and not negative, got {weight}")
        steps = {p for group in optimizer.param_groups for p in group["params"]}
        if not steps <= set(network.parameters()):
            raise ValueError(
                f"optimizer must be of the parameters of this {type(network).__name__} alone; give "
                "one made of its parameters(), the module's own trains the module"
            )
        self.network = network
        self.on = on
        self.weight = weight
        self.optimizer = optimizer

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        super().check(trainer, module)
        names = dict(module.named_modules())
        if not self.on or self.on not in names:
            raise ValueError(
                f"{type(module).__name__} has no submodule {self.on!r}; on= is a name such as "
                f"{[n for n, _ in module.named_children()]}"
            )

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

    @contextmanager
    def listening(self, module: nn.Module) -> Iterator[list[Any]]:
        """What the submodule returns inside the block, call by call."""
        ear = _Ear()
        hook = module.get_submodule(self.on).register_forward_hook(ear)
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
        gradients = average(torch.autograd.grad(self.own_loss(clean, seen), parameters))
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


class GlobalDivergence(_Term):
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
        _check_kind("critic", critic, GlobalDivergenceCritic)
        if optimizer is None:
            optimizer = torch.optim.SGD(critic.parameters(), lr=0.2, momentum=0.9)
        super().__init__(critic, on, weight, optimizer)
        self.critic = critic

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        super().check(trainer, module)
        if not any(isinstance(b, AdversarialViews) for b in _bolts(trainer)):
            raise ValueError(
                "GlobalDivergence compares benign with adversarial embeddings; give the trainer "
                "AdversarialViews too"
            )

    def term(self, clean: Calls, seen: Calls) -> Scalar:
        return self.critic.estimate(_cloud(clean), _cloud(seen))

    def own_loss(self, clean: Calls, seen: Calls) -> Scalar:
        return self.critic.loss(_cloud(clean), _cloud(seen))


class ClusterFit(_Term):
    """Adds the classification of pseudo-labels: clusters of a feature extractor's outputs.

    Needs the examples' places in the dataset: wrap it in :class:`~advssl.IndexedDataset`. The index
    is taken off the batch again before the module sees it. At the start of ``fit`` the extractor's
    features are clustered, unless the head is fitted already (by hand, or from a checkpoint). In
    every step the head's classifiers take one step on the submodule's outputs, then ``weight``
    times its loss joins the module's. It is logged as "cluster_fit", in nats.

    Args:
        head: its ``in_features`` is the width of the submodule's output, as a critic's.
        extractor: images (B, C, H, W) to features (B, D'); runs in eval mode.
        images: the dataset that is trained on, without augmentation: a ``DataLoader`` of it, which
            is read whole and in the dataset's order whatever its sampler does, the dataset itself,
            or batches in that order. Of a batch that is no tensor the first image is taken.
        on: name of the submodule that is trained to classify, such as "backbone".
        weight: AdvCL's 0.2.
        optimizer: of the head's parameters; None is ``Adam(lr=0.001)``.

    Raises:
        ValueError: where labels and images do not belong together: a training dataset of another
            length than the head's labels, images whose clusters are not what a fitted head says of
            them, images that come in an order that nobody knows; several training loaders; a
            collate function that cannot take the index.

    Reference: Fan et al. 2021, Eqs. 9 and 10, https://arxiv.org/abs/2111.01124
    """

    logged = "cluster_fit"

    def __init__(
        self,
        head: ClusterFitHead,
        extractor: Callable[[Images], Tensor] | None = None,
        images: Iterable[Any] | None = None,
        *,
        on: str,
        weight: float = 0.2,
        optimizer: Optimizer | None = None,
    ) -> None:
        _check_kind("head", head, ClusterFitHead)
        if extractor is not None:
            _check_kind("extractor", extractor, Callable)
        if isinstance(images, str) or not isinstance(images, Iterable | Dataset | None):
            raise ValueError(
                f"images must be a DataLoader, a dataset or batches, got {described(images)}"
            )
        if optimizer is None:
            optimizer = torch.optim.Adam(head.parameters())
        super().__init__(head, on, weight, optimizer)
        self.head = head
        self.extractor = extractor
        self.images = images
        self._index = torch.empty(0)  # of the batch at hand
        self._bare = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.head.pseudo_labels is not None:
            with _given_back(pl_module):
                self._check_labels(self.head.pseudo_labels)
            return
        if self.extractor is None or self.images is None:
            raise ValueError(
                "the head is not fitted; give ClusterFit an extractor and the dataset's "
                "images, or call head.fit(features) before"
            )
        self.head.fit(_features(self.extractor, self.images))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = trainer.train_dataloader
        data = getattr(loader, "dataset", None)
        while isinstance(data, Subset):  # the indices are those of the whole
            data = data.dataset
        if not isinstance(data, IndexedDataset):
            raise ValueError(
                "ClusterFit needs each example's index: the one training DataLoader's dataset must "
                f"be an advssl.IndexedDataset, got {described(loader if data is None else data)}; "
                "of several loaders or datasets give one, of IndexedDataset(ConcatDataset([...]))"
            )
        assert self.head.pseudo_labels is not None
        size = len(self.head.pseudo_labels)
        if size != len(data):
            raise ValueError(
                f"the head has pseudo-labels of {size} images, the training dataset has length "
                f"{len(data)}: they are not the same images in the same order; cluster the very "
                "dataset that IndexedDataset wraps, whole, or fit a fresh head"
                + see("Pseudo-labels of other images")
            )
        ours, theirs = _order(data), _order(self.images)
        if ours and theirs and theirs[0] == ours[0] and theirs[1] != ours[1]:
            raise ValueError(
                "the images that were clustered and the training dataset are subsets in different "
                "orders, so labels and images do not belong together; take both subsets with the "
                "same indices, and wrap the training one in IndexedDataset"
            )
        with _given_back(pl_module):
            self._look_at_a_sample(loader)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(trainer, "reload_dataloaders_every_n_epochs", 0):
            self.on_train_start(trainer, pl_module)

    def without_index(self, batch: Batch) -> Batch:
        """The batch as it would be without IndexedDataset; its index is kept for the term."""
        batch, index = without_index(batch, alone=self._bare)
        index = torch.as_tensor(index)
        check_indices(index.numel(), index=index)
        self._index = index
        return batch

    def _look_at_a_sample(self, loader: Any) -> None:
        sample = loader.dataset[0]
        self._bare = isinstance(sample, IndexedSample)
        if getattr(loader, "batch_sampler", None) is None:
            return
        error = _failure(loader.collate_fn, sample)
        if error is not None and _failure(loader.collate_fn, without_index(sample)[0]) is None:
            raise ValueError(
                "the training DataLoader's collate_fn fails on samples that hold their index "
                f"({error}); write collate_fn=dataset.with_index(collate_fn), dataset being the "
                "IndexedDataset" + see("A collate function and the index")
            ) from error

    def _check_labels(self, labels: Tensor) -> None:
        """Raise if the first images' clusters are, more likely than not, not what the head says."""
        if self.extractor is None or self.images is None or isinstance(self.images, Iterator):
            return
        features = _features(self.extractor, self.images, enough=_LOOKED_AT)
        found, own = self.head.assign(features).to(labels), labels[: len(features)]
        shares = [label.bincount() / len(labels) for label in labels.T]
        chance = sum(float(share.square().sum()) for share in shares) / len(shares)
        agree = float((found == own).float().mean()) if len(own) == len(found) else 0
        if agree < (1 + chance) / 2:
            raise ValueError(
                f"the head is fitted already, and to other images or in another order: of the "
                f"labels that it has for the first {len(found)} images {agree:.0%} are those of "
                "their clusters; give a fresh head, or the images, extractor and order that it "
                "was fitted with, without augmentation or shuffling"
                + see("Pseudo-labels of other images")
            )

    def term(self, clean: Calls, seen: Calls) -> Scalar:
        weights = {name: p.detach() for name, p in self.head.named_parameters()}
        return functional_call(self.head, weights, self._classified(seen))

    def own_loss(self, clean: Calls, seen: Calls) -> Scalar:
        embeddings, index = self._classified(seen)
        return self.head(embeddings.detach(), index)

    def _classified(self, seen: Calls) -> tuple[Embeddings, Tensor]:
        size = len(self._index)
        if any(len(z) % size for z in seen):
            raise ValueError(
                f"{self.on!r} must return a row per example ({size}), or several times as many "
                f"where views are stacked, got {[tuple(z.shape) for z in seen]}"
            )
        return torch.cat(seen), self._index.repeat(sum(len(z) for z in seen) // size)


class _Skipped(Exception):
    """The module's training_step returned None: it skips this batch."""


class _TrainingStep:
    """A module's training step with the callbacks' work around it."""

    def __init__(self, trainer: Trainer, module: LightningModule, bolts: list[_Bolt]) -> None:
        self.trainer = trainer
        self.module = module
        self.attack = next((b for b in bolts if isinstance(b, AdversarialViews)), None)
        self.sharp = next((b for b in bolts if isinstance(b, SharpnessAware)), None)
        self.clusters = next((b for b in bolts if isinstance(b, ClusterFit)), None)
        self.terms = [b for b in bolts if isinstance(b, _Term)]

    def __call__(self, step: Step, batch: Batch) -> Output:
        if self.clusters is not None:
            batch = self.clusters.without_index(batch)
        now = Snapshot(self.module)
        clouds = {term: _Clouds(term) for term in self.terms}
        if self.attack is not None:
            if any(term.compares for term in self.terms):
                try:
                    _, heard = self._unheard(step, batch)
                finally:
                    now.restore()
                for term, calls in heard.items():
                    clouds[term].clean = calls
            batch = self._attacked(self.attack, step, batch, now, clouds)
        with self._listening() as heard:
            output = step(_copied(batch))
        loss = _loss_of(output)
        if loss is None or not (self.sharp or self.terms):
            return output
        if self.sharp is not None:
            loss = self._sharpened(self.sharp, step, batch, now, loss)
        for term in self.terms:
            pair = clouds[term].beside(heard[term])
            term.improve(*pair)
            value = term.term(*pair)
            self.module.log(term.logged, value.detach())
            loss = loss + term.weight * value
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _attacked(
        self,
        attack: AdversarialViews,
        step: Step,
        batch: Batch,
        now: Snapshot,
        clouds: dict[_Term, _Clouds],
    ) -> Batch:
        """The batch with its chosen views adversarial."""
        chosen = attack.chosen(batch)
        views = _views(batch)

        def with_views(hard: tuple[Images, ...]) -> Batch:
            return _copied(batch, dict(zip(chosen, hard, strict=True)))

        def objective(*hard: Images) -> Scalar:
            now.restore()
            for p in self.module.parameters():  # no gradient in weights, nor memory for it
                p.requires_grad_(False)
            loss, heard = self._unheard(step, with_views(hard))
            if loss is None:
                raise _Skipped
            for term in self.terms:
                clouds[term].note_reached(heard[term])
                clean, seen = clouds[term].beside(heard[term])
                loss = loss + term.weight * term.term([z.detach() for z in clean], seen)
            return loss

        try:
            hard = attack.search(tuple(views[i] for i in chosen), objective)
        except _Skipped:
            return batch
        finally:
            now.restore()
        return with_views(hard)

    def _sharpened(
        self, sharp: SharpnessAware, step: Step, batch: Batch, now: Snapshot, loss: Scalar
    ) -> Scalar:
        after = Snapshot(self.module)

        def closure() -> Scalar:
            now.restore()
            again, _ = self._unheard(step, batch)
            assert again is not None  # the same pass returned a loss before
            return again

        sam = SAMWrapper(self.module, rho=sharp.rho, adaptive=sharp.adaptive)
        try:
            return sam(closure, loss)
        finally:
            after.restore()

    def _unheard(self, step: Step, batch: Batch) -> tuple[Scalar | None, dict[_Term, list[Any]]]:
        """The loss, and what the terms heard on the way, of a pass that logs nothing."""
        with _logging_off(self.trainer, self.module), self._listening() as heard:
            return _loss_of(step(_copied(batch))), heard

    @contextmanager
    def _listening(self) -> Iterator[dict[_Term, list[Any]]]:
        with ExitStack() as stack:
            yield {t: stack.enter_context(t.listening(self.module)) for t in self.terms}


class _Clouds:
    """In one step: a term's embeddings of the clean batch, and which calls the attack reaches."""

    def __init__(self, term: _Term) -> None:
        self.term = term
        self.clean: list[Any] = []
        self.reached: list[bool] | None = None  # not known before a step of the attack

    def note_reached(self, heard: list[Any]) -> None:
        """In the attack only what depends on the attacked views has a gradient."""
        self.reached = [z.requires_grad for z in self.term.embeddings(heard)]
        if self.term.compares and not any(self.reached):
            raise ValueError(
                f"no output of {self.term.on!r} has a gradient in the attacked views; name a "
                "submodule that these go through, not a momentum encoder's"
            )

    def beside(self, heard: list[Any]) -> tuple[Calls, Calls]:
        """Clean and present embeddings; where the term compares, those that the attack reaches."""
        seen = self.term.embeddings(heard)
        if not self.term.compares:
            return [], seen
        clean = self.term.embeddings(self.clean)
        reached = self.reached or [True] * len(seen)
        calls = list(zip(clean, seen, reached, strict=True))
        return [c for c, _, r in calls if r], [s for _, s, r in calls if r]


class _WrappedStep:
    """A module's ``training_step`` as it stands in the module's own dictionary during ``fit``.

    A copy of the module, by ``deepcopy`` or ``pickle``, has its own plain one in this one's place.
    """

    __slots__ = ("__wrapped__", "around", "before", "module", "own")

    def __init__(self, module: LightningModule, around: _TrainingStep) -> None:
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


class _Ear:
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
def _given_back(module: nn.Module) -> Iterator[None]:
    """The module and the random state, which reading images may move, are kept."""
    now = Snapshot(module)
    try:
        yield
    finally:
        now.restore()


@contextmanager
def _logging_off(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Inside the block self.log, self.log_dict, self.print and self.logger do nothing."""
    names = ("log", "log_dict", "print")
    speakers = [m for m in module.modules() if hasattr(type(m), "log_dict")]
    before = [{n: vars(m)[n] for n in names if n in vars(m)} for m in speakers]
    loggers = trainer.loggers
    try:
        trainer.loggers = cast("Any", [_Mute() for _ in loggers])
        for m in speakers:
            vars(m).update(dict.fromkeys(names, _Mute()))
        yield
    finally:
        trainer.loggers = loggers
        for m, own in zip(speakers, before, strict=True):
            for n in names:
                vars(m).pop(n, None)
            vars(m).update(own)


class _Mute:
    """Stands for a logger, its experiment and their methods."""

    def __getattr__(self, name: str) -> _Mute:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _Mute:
        return self

    def __getitem__(self, key: Any) -> _Mute:
        return self


def _check_kind(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        wanted = getattr(kind, "__name__", str(kind))
        raise ValueError(f"{name} must be of type {wanted}, got {described(value)}")


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    return bool(torch.stack([t.detach().isfinite().all() for t in tensors]).all())


def _bolts(trainer: Any) -> list[_Bolt]:
    return [c for c in trainer.callbacks if isinstance(c, _Bolt)]


def _loss_of(output: Output) -> Scalar | None:
    nothing = output.get("loss") is None if isinstance(output, Mapping) else output is None
    return None if nothing else height_of("training_step", output)


def _is_view(value: Tensor) -> bool:
    return value.ndim == 4 and value.is_floating_point()


def _views(batch: Batch) -> list[Images]:
    """Every image tensor of the batch, in the order in which they stand in it."""
    found: list[Images] = []

    def look(value: Tensor) -> Tensor:
        if _is_view(value):
            found.append(value)
        return value

    apply_to_collection(batch, Tensor, look)
    return found


def _copied(batch: Batch, views: Mapping[int, Images] = MappingProxyType({})) -> Batch:
    """The batch, with some of its views exchanged, by number; a step may change it in place."""
    numbers = count()

    def copied(value: Tensor) -> Tensor:
        return (views.get(next(numbers), value) if _is_view(value) else value).clone()

    return apply_to_collection(batch, Tensor, copied)


def _cloud(calls: Calls) -> Embeddings:
    return unit(torch.cat(calls))


def _features(
    extractor: Callable[[Images], Tensor], images: Any, enough: float = float("inf")
) -> Tensor:
    """(N, D'): of all images, or of the first batches that together have ``enough``."""
    modules = [extractor] if isinstance(extractor, nn.Module) else []
    like = next((p for m in modules for p in m.parameters()), None)
    found: list[Tensor] = []
    with evaluating(*modules), torch.no_grad():
        for batch in _in_order(images):
            if sum(len(z) for z in found) >= enough:
                break
            x = _image_of(batch)
            if like is not None:
                both = x.is_floating_point() and like.is_floating_point()
                x = x.to(like.device, like.dtype if both else x.dtype)
            found.append(embeddings_of("extractor", extractor(x)))
    if not found:
        raise ValueError(
            "images has no batch to cluster; give a DataLoader or the dataset, not a generator "
            "that was read before"
        )
    return torch.cat(found)


def _in_order(images: Any) -> Iterable[Any]:
    """Batches in the dataset's order, all of it."""
    if isinstance(images, Tensor) and images.ndim == 4:
        return [images]
    if isinstance(images, Dataset) and not isinstance(images, IterableDataset):
        return DataLoader(images, batch_size=_CLUSTERED)
    if isinstance(images, DataLoader):
        if isinstance(images.dataset, IterableDataset):
            return images
        size = images.batch_size
        if images.batch_sampler is not None:
            size = getattr(images.batch_sampler, "batch_size", _CLUSTERED)
        return DataLoader(
            images.dataset,
            batch_size=size,
            num_workers=images.num_workers,
            collate_fn=images.collate_fn,
            timeout=images.timeout,
            worker_init_fn=images.worker_init_fn,
            multiprocessing_context=images.multiprocessing_context,
        )
    # The iterator of a DataLoader has its sampler below the batches'.
    sampler = getattr(getattr(images, "_index_sampler", images), "sampler", None)
    if sampler is not None and not isinstance(sampler, SequentialSampler):
        raise ValueError(
            f"images come in the order of a {type(sampler).__name__}, pseudo-labels belong to "
            "images in the dataset's order; give the dataset, or a loader that does not shuffle"
        )
    return cast("Iterable[Any]", images)


def _order(images: Any) -> tuple[int, list[int]] | None:
    """The length of the whole below a dataset's subsets, and the places of its samples there."""
    data = images.dataset if isinstance(images, DataLoader) else images
    if not isinstance(data, Dataset | Tensor) or not hasattr(data, "__len__"):
        return None
    places = list(range(len(data)))
    while isinstance(data, Subset | IndexedDataset):
        if isinstance(data, Subset):
            places = [int(data.indices[place]) for place in places]
        data = data.dataset
    return len(data), places


def _failure(collate_fn: Callable[[list[Any]], Any], sample: Any) -> Exception | None:
    try:
        collate_fn([sample])
    except Exception as error:
        return error
    return None


def _image_of(batch: Batch) -> Tensor:
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    image = batch if isinstance(batch, Tensor) else next(iter(_views(batch)), first)
    if not isinstance(image, Tensor) or image.ndim in (0, 1, 3):
        raise ValueError(
            f"images must come in batches (B, C, H, W), got {described(batch)}; give a DataLoader, "
            "or the dataset"
        )
    return image
