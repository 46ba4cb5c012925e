"""The callbacks: what they add is what it would be by hand, and all else is given back."""
# ruff: noqa: ARG001, ARG002 (the signatures are Lightning's)

from __future__ import annotations

import copy
import io
import pickle
import re
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from flops import flops
from ranks import on_two_ranks
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torchmetrics import MeanMetric
from tqdm import tqdm

from advssl import (
    AdversarialViewGenerator,
    CatastrophicOverfittingGuard,
    ClusterFitHead,
    GlobalDivergenceCritic,
    IndexedDataset,
    Linf,
    Ramp,
    SAMWrapper,
)
from advssl.integrations.lightning import (
    AdversarialViews,
    ClusterFit,
    GlobalDivergence,
    OverfittingGuard,
    Scheduled,
    SharpnessAware,
)

from .lightly_methods import (
    BYOL,
    MAE,
    OUT,
    WIDTH,
    Method,
    MoCo,
    SimCLR,
    SwAV,
    VICRegL,
    Views,
    assert_same,
    fit,
    made,
    state,
)
from .lightning_ddp_callbacks import on_rank, trained
from .test_lightning_methods import still

pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|LeafSpec|weight_norm)")

BALL = Linf(8 / 255)


def adversarial(views=(0,), steps: int = 2) -> AdversarialViews:
    return AdversarialViews(AdversarialViewGenerator(BALL, steps=steps), views)


def divergence(on: str = "projection_head", **arguments) -> GlobalDivergence:
    torch.manual_seed(3)
    return GlobalDivergence(GlobalDivergenceCritic(OUT), on, **arguments)


def built(self) -> None:
    self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, OUT))
    self.also = self.net


def manual(self) -> None:
    self.automatic_optimization = False


class Indexed(SimCLR):
    def train_dataloader(self):
        return DataLoader(IndexedDataset(Views()), batch_size=8)


def clusters(**arguments) -> ClusterFit:
    torch.manual_seed(3)
    pictures = [torch.stack([views[0] for views, _ in Views()])]
    head = ClusterFitHead(WIDTH, num_clusters=(2, 4))
    return ClusterFit(head, nn.Flatten(), pictures, on="backbone", **arguments)


TOLD: list = []  # by a Witness; outside of it, so nothing gives it back


class Witness(SimCLR):
    """Tells of every pass: the views, what it drew, and that it spoke to the logger."""

    def training_step(self, batch, batch_idx):
        self.logger.experiment.append("heard")
        self.print("said")
        TOLD.append((*batch[0], torch.rand(1).item(), batch_idx))
        return super().training_step(batch, batch_idx)


class Metered(SimCLR):
    """Logs a metric, whose state is no buffer, and keeps a list."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()
        self.history: list[float] = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.mean.update(loss.detach().float())
        self.history.append(loss.item())
        self.log("mean", self.mean)
        self.log("seen", float(len(self.history)))
        return loss


IMAGES = torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(4))


class Plain(pl.LightningModule):
    """A batch of images, a layer, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, OUT))

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(IMAGES, batch_size=8)


class Numbered(Dataset):
    """As some datasets give their samples: a dict, in which the image is not the first."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return {"place": index, "weight": float(index), "image": IMAGES[index]}


class Backwards(Sampler):
    def __iter__(self):
        return iter(range(len(IMAGES))[::-1])

    def __len__(self):
        return len(IMAGES)


class Elsewhere:
    """A loader of another library around one of torch's."""

    def __init__(self, loader):
        self.loader, self.sampler = loader, loader.sampler

    def __iter__(self):
        return iter(self.loader)


LABELLED = TensorDataset(IMAGES, torch.arange(16) % 2)
IN_THE_DATASETS_ORDER = {
    "shuffled": lambda: DataLoader(IMAGES, 4, shuffle=True),
    "with workers": lambda: DataLoader(LABELLED, 4, shuffle=True, num_workers=2),
    "drawn by weight": lambda: DataLoader(
        IMAGES, 4, sampler=WeightedRandomSampler(torch.ones(16), 16)
    ),
    "a part": lambda: DataLoader(IMAGES, 4, sampler=SubsetRandomSampler(range(8))),
    "of one rank": lambda: DataLoader(IMAGES, 4, sampler=DistributedSampler(IMAGES, 2, 1)),
    "one's own sampler": lambda: DataLoader(IMAGES, 4, sampler=Backwards()),
    "one's own batches": lambda: DataLoader(
        LABELLED, batch_sampler=BatchSampler(Backwards(), 3, drop_last=True)
    ),
    "batches read at once": lambda: DataLoader(IMAGES.split(4), batch_size=None, shuffle=True),
    "the last batch dropped": lambda: DataLoader(IMAGES, 5, drop_last=True),
    "indexed": lambda: DataLoader(IndexedDataset(LABELLED), 4, shuffle=True),
    "dicts": lambda: DataLoader(Numbered(), 4, shuffle=True),
    "views": lambda: DataLoader([([x, x], 0) for x in IMAGES], 4, shuffle=True),
    "the dataset": lambda: LABELLED,
    "the indexed dataset": lambda: IndexedDataset(LABELLED),
    "one tensor": lambda: IMAGES,
    "batches": lambda: IMAGES.split(4),
    "a generator": lambda: iter(IMAGES.split(4)),
    "in order elsewhere": lambda: Elsewhere(DataLoader(IMAGES, 4)),
}
IN_NO_ORDER = {
    "shuffled elsewhere": (
        lambda: Elsewhere(DataLoader(IMAGES, 4, shuffle=True)),
        "order of a Ran",
    ),
    "the iterator of a loader": (
        lambda: iter(DataLoader(IMAGES, 4, shuffle=True)),
        "order of a Ran",
    ),
    "another subset": (lambda: Subset(IMAGES, range(15, -1, -1)), "subsets in different orders"),
    "another length": (lambda: DataLoader(IMAGES[:9], 4), "of 9 images.*has length 16"),
    "a generator that ended": (lambda: iter(()), "no batch to cluster.*read before"),
    "no batches": (lambda: list(IMAGES), r"batches \(B, C, H, W\), got .*give a DataLoader"),
    "no images": (lambda: [{"label": torch.zeros(4)}], r"got dict of \{label: .*give a DataLoader"),
}


CLASSES = torch.tensor([0, 2, 1, 0, 1, 1, 2, 0, 0, 2, 2, 1, 0, 1, 2, 0])
CLASSED_PART, OTHER_PART = (
    TensorDataset(IMAGES[part], CLASSES[part]) for part in (slice(0, 9), slice(9, 16))
)


def classed(classes=CLASSES, order=slice(None)) -> TensorDataset:
    return TensorDataset(IMAGES[order], classes[order])


SHUFFLED = torch.randperm(16, generator=torch.Generator().manual_seed(2))
# Whether these are the images trained on, in their order.
CLASSED = {
    "the same": (True, classed),
    "under other names": (True, lambda: classed(2 - CLASSES)),
    "in coarser classes": (True, lambda: classed(CLASSES % 2)),
    "of no class": (True, lambda: classed(-torch.ones(16, dtype=torch.int64))),
    "with most classes hidden": (
        True,
        lambda: classed(CLASSES.where(torch.arange(16) % 4 == 0, -1)),
    ),
    "a shuffled loader in a progress bar": (
        True,
        lambda: tqdm(DataLoader(classed(), 4, shuffle=True), disable=True),
    ),
    "parts in another order": (False, lambda: ConcatDataset([OTHER_PART, CLASSED_PART])),
    "another order": (False, lambda: classed(order=SHUFFLED)),
    "other images": (False, lambda: classed(CLASSES[SHUFFLED])),
    "a generator": (False, lambda: (batch for batch in DataLoader(classed(), 4, shuffle=True))),
    "dicts": (
        False,
        lambda: [{"image": IMAGES[i : i + 1], "label": CLASSES[i : i + 1]} for i in SHUFFLED],
    ),
}


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class OnIndexed(Plain):
    """Trained on a dataset whose samples hold their index."""

    def __init__(self, data=None, **settings) -> None:
        super().__init__()
        data = IndexedDataset(IMAGES) if data is None else data
        self.loader = lambda: DataLoader(data, batch_size=8, **settings)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0] if isinstance(batch, list) else batch).square().mean()

    def train_dataloader(self):
        return self.loader()


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved,
    "AveragedModel": lambda module: torch.optim.swa_utils.AveragedModel(module).module,
    "copy of a copy": lambda module: copy.deepcopy(copy.deepcopy(module)),
}


@pytest.fixture(autouse=True)
def _told():
    TOLD.clear()


class TestAdversarialViews:
    def test_only_the_chosen_view_moves_and_stays_in_the_ball(self):
        fit(made(Witness), steps=1)
        fit(made(Witness), [adversarial((1,))], steps=1)
        (clean0, clean1, *_), *_, (x0, x1, *_) = TOLD
        assert torch.equal(x0, clean0)
        assert 0.9 * BALL.radius < (x1 - clean1).abs().max() <= BALL.radius + 1e-6

    def test_every_pass_draws_the_same_and_the_next_step_other_numbers(self):
        fit(made(Witness), steps=2)
        fit(made(Witness), [adversarial(steps=3)], steps=2)
        alone, attacked = TOLD[:2], TOLD[2:]
        assert [draw for *_, draw, _ in attacked] == [
            draw for *_, draw, _ in alone for _ in range(3 + 1)
        ]
        assert [index for *_, index in attacked] == [0] * 4 + [1] * 4

    def test_only_the_training_pass_is_heard(self, capsys):
        trainer = fit(made(Witness), [adversarial(steps=3), SharpnessAware()], steps=2)
        assert len(TOLD) == 2 * (3 + 2)
        assert trainer.logger.experiment == ["heard"] * 2
        assert capsys.readouterr().out.count("said") == 2
        assert len(trainer.logger.metrics) == 2

    def test_starts_differ_from_step_to_step(self):
        class Constant(Witness):
            def train_dataloader(self):
                batch = next(iter(super().train_dataloader()))
                return DataLoader([batch, batch], batch_size=None)

        fit(made(Constant), [adversarial(steps=0)], steps=2)
        (first, *_), (second, *_) = TOLD
        assert not torch.equal(first, second)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "settings", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}]
    )
    @pytest.mark.parametrize("method", [BYOL, SwAV, Metered])
    def test_leaves_no_trace_whatever_the_trainer_does(self, method, settings):
        plain, module = made(method), made(method)
        alone = fit(plain, steps=3, **settings)
        trainer = fit(module, [still(2)], steps=3, **settings)
        assert_same(state(module), state(plain))
        own = {"attack_start", "attack_end"}
        for logged, without in zip(trainer.logger.metrics, alone.logger.metrics, strict=True):
            assert {k: v for k, v in logged.items() if k not in own} == without

    def test_what_the_attack_climbs_is_logged(self):
        trainer = fit(made(SimCLR), [adversarial(steps=3)], steps=2)
        for logged in trainer.logger.metrics:
            assert logged["attack_start"] < logged["attack_end"]
        trainer = fit(made(SimCLR), [adversarial(steps=1)], steps=1)
        assert not {"attack_start", "attack_end"} & trainer.logger.metrics[0].keys()

    def test_a_step_may_change_its_batch_in_place(self):
        class Normalises(SimCLR):
            def training_step(self, batch, batch_idx):
                views = batch.pop(0)
                for x in views:
                    x.sub_(0.5).div_(0.25)
                TOLD.append([x.detach().clone() for x in views])
                return super().training_step([views], batch_idx)

        fit(made(Normalises), [adversarial(steps=2), SharpnessAware(), divergence()], steps=1)
        (_, clean), *others = TOLD
        assert len(others) == 2 + 2
        assert all(torch.equal(x1, clean) for _, x1 in others)

    def test_a_batch_that_the_module_skips_passes_as_it_is(self):
        class Skips(Witness):
            def training_step(self, batch, batch_idx):
                loss = super().training_step(batch, batch_idx)
                return None if batch_idx == 0 else loss

        with pytest.warns(UserWarning, match="returned `None`"):
            fit(made(Skips), [adversarial(steps=1), SharpnessAware(), divergence()], steps=1)
        clean, start, after, *_ = TOLD
        assert torch.equal(after[0], clean[0])
        assert not torch.equal(start[0], clean[0])

    def test_finds_views_wherever_they_stand_in_the_batch(self):
        class Nested(SimCLR):
            def train_dataloader(self):
                x = torch.rand(8, 3, 16, 16)
                sample = {"index": torch.arange(8), "views": (x, [x.flip(3)])}
                return DataLoader([sample], batch_size=None)

            def training_step(self, batch, batch_idx):
                assert set(batch) == {"index", "views"}
                x0, (x1,) = batch["views"]
                TOLD.append((x0, x1))
                return super().training_step(((x0, x1), None), batch_idx)

        fit(made(Nested), [adversarial((-1,))], steps=1)
        x0, x1 = TOLD[-1]
        assert not torch.equal(x1, x0.flip(3))
        assert torch.allclose(x1, x0.flip(3), atol=BALL.radius + 1e-6)

    @pytest.mark.parametrize("normalised", [False, True])
    def test_what_is_no_image_among_the_views_stays_as_it_is(self, normalised):
        class Shows(VICRegL):
            def training_step(self, batch, batch_idx):
                TOLD.append([x.clone() for x in batch[0]])
                return super().training_step(batch, batch_idx)

        scale = {"mean": (0.5,) * 3, "std": (0.5,) * 3} if normalised else {}
        adversary = AdversarialViewGenerator(BALL, steps=2, **scale)
        fit(made(Shows), [AdversarialViews(adversary, "all")], steps=1)
        x0, x1, *grids = next(iter(made(Shows).train_dataloader()))[0]
        y0, y1, *same = TOLD[-1]
        assert all(map(torch.equal, grids, same))
        assert not torch.equal(x0, y0)
        assert not torch.equal(x1, y1)

    def test_masks_and_geometries_beside_the_views_stay_as_they_are(self):
        """A batch such as lightly-train's; the masks weigh pixels, and have a gradient to give."""

        class Masked(SimCLR):
            def training_step(self, batch, batch_idx):
                TOLD.append(
                    {name: list(batch[name]) for name in ("masks", "geometries", "filename")}
                )
                seen = [x * m[:, None] for x, m in zip(batch["views"], batch["masks"], strict=True)]
                return super().training_step((seen, None), batch_idx)

            def train_dataloader(self):
                draw = torch.Generator().manual_seed(0)
                views, masks = torch.rand(2, 8, 3, 16, 16, generator=draw), torch.ones(2, 8, 16, 16)
                geometries = torch.rand(2, 8, 8, generator=draw)
                given = {"views": views, "masks": masks, "geometries": geometries}
                batch = {"filename": [""] * 8} | {k: list(v) for k, v in given.items()}
                return DataLoader([batch], batch_size=None)

        (batch,) = made(Masked).train_dataloader()
        trainer = fit(made(Masked), [adversarial("all")], steps=1)
        logged = trainer.logger.metrics[-1]
        assert logged["attack_start"] < logged["attack_end"]
        assert TOLD[-1]["filename"] == batch["filename"]
        for name in ("masks", "geometries"):
            assert all(map(torch.equal, TOLD[-1][name], batch[name])), name

    def test_takes_a_module_that_augments_by_itself(self):
        """kornia keeps parameters that share their memory with themselves."""
        augmentation = import_module("kornia.augmentation")

        class Augments(SimCLR):
            def __init__(self):
                super().__init__()
                self.augment = augmentation.AugmentationSequential(
                    augmentation.RandomAffine(10), augmentation.ColorJitter(0.1, 0.1, 0.1, 0.1)
                )

            def forward(self, x):
                return super().forward(self.augment(x))

        plain, module = made(Augments), made(Augments)
        fit(plain, steps=2)
        fit(module, [still(2)], steps=2)
        assert_same(state(module), state(plain))
        fit(module, [adversarial(), SharpnessAware(), divergence()], steps=2)

    @pytest.mark.parametrize("inside", [False, True], ids=["", "adversary_in_the_module"])
    def test_radius_and_steps_are_those_of_the_moment(self, inside):
        """A schedule sets them between batches, on the adversary that the callback has."""
        adversary = AdversarialViewGenerator(Linf(0.01), 1, start="zero")

        class Growing(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                adversary.radius = 0.01 * (1 + batch_idx)
                adversary.steps = 1 + batch_idx

        module = made(Witness)
        if inside:
            module.adversary = adversary
        fit(made(Witness), steps=2)
        fit(module, [Growing(), AdversarialViews(adversary)], steps=2)
        (clean, *_), (second, *_), *told = TOLD
        assert len(told) == (1 + 1) + (2 + 1)
        for hard, x, radius in ((told[1][0], clean, 0.01), (told[-1][0], second, 0.02)):
            assert (hard - x).abs().max() == pytest.approx(radius, rel=1e-4)
        assert repr(adversary).startswith("AdversarialViewGenerator(Linf(radius=0.02), steps=2")

    def test_refuses_a_view_that_is_not_there(self):
        with pytest.raises(ValueError, match=r"the batch has 2 views, got views=\(2,\)"):
            fit(made(SimCLR), [adversarial((2,))])

    def test_refuses_a_batch_without_views(self):
        class Flat(SimCLR):
            def train_dataloader(self):
                return DataLoader(TensorDataset(torch.zeros(8, 4)), batch_size=8)

        with pytest.raises(ValueError, match=r"no floating point tensor .*shape \(8, 4\)"):
            fit(made(Flat), [adversarial()])

    def test_refuses_half_precision_views(self):
        with pytest.raises(ValueError, match="float32 or float64, got torch"):
            fit(made(SimCLR), [adversarial()], precision="bf16-true")


class TestAllCallbacks:
    def test_refuse_manual_optimisation_by_name_with_the_recipe(self):
        class Manual(SimCLR):
            automatic_optimization = False

        for callback in (adversarial(), SharpnessAware(), clusters()):
            with pytest.raises(ValueError, match=r"Manual optimises manually.*adversary\(view"):
                fit(made(Manual), [callback])

    @pytest.mark.parametrize("hook", ["setup", "configure_model"])
    @pytest.mark.parametrize("on", ["net", "net.1", "also", "also.1"])
    def test_find_what_the_module_builds_late_under_each_of_its_names(self, hook, on):
        def late(self, stage=None) -> None:
            built(self)

        kind = type("Late", (Plain,), {hook: late})
        module = kind()
        del module.net
        term = GlobalDivergence(GlobalDivergenceCritic(OUT), on, weight=0.5)
        trainer = fit(module, [adversarial(), term], steps=1)
        assert trainer.callback_metrics["global_divergence"].isfinite()

    @pytest.mark.parametrize("hook", ["setup", "configure_model"])
    def test_refuse_manual_optimisation_wherever_the_module_chooses_it(self, hook):
        def late(self, stage=None) -> None:
            manual(self)

        for callback in (adversarial(), SharpnessAware()):
            with pytest.raises(ValueError, match="Late optimises manually"):
                fit(type("Late", (Plain,), {hook: late})(), [callback])

    def test_refuse_strategies_that_shard(self):
        callback = adversarial()
        strategy = type("FSDPStrategy", (), {})()
        trainer = SimpleNamespace(strategy=strategy, callbacks=[callback])
        with pytest.raises(ValueError, match=r"FSDPStrategy shards parameters.*use DDP"):
            callback.setup(trainer, made(SimCLR), "fit")

    def test_refuse_to_be_given_twice(self):
        with pytest.raises(ValueError, match="SharpnessAware 2 times; give it once"):
            fit(made(SimCLR), [SharpnessAware(), SharpnessAware(0.1)])

    def test_work_together_in_any_order(self):
        after = []
        for order in ((0, 1, 2, 3), (3, 2, 1, 0)):
            callbacks = [adversarial(), SharpnessAware(), divergence(), clusters()]
            module = made(Indexed)
            trainer = fit(module, [callbacks[i] for i in order], steps=3)
            logged = trainer.logger.metrics[0].keys()
            assert {"train_loss", "global_divergence", "cluster_fit"} < logged
            after.append(state(module))
        assert_same(*after)
        assert after[0].keys() == state(made(Indexed)).keys()

    @pytest.mark.parametrize("fails_in", [1, 2, 4, 5, 6])
    def test_give_back_after_an_exception(self, fails_in):
        """In the clean pass, in the attack, in the training pass, at θ + e, and a step later."""

        class Breaks(Witness):
            def training_step(self, batch, batch_idx):
                loss = super().training_step(batch, batch_idx)
                if len(TOLD) == fails_in:
                    raise RuntimeError("broken")
                return loss

        module = made(Breaks)
        before = state(module)
        callbacks = [adversarial(), SharpnessAware(), divergence()]
        with pytest.raises(RuntimeError, match="broken"):
            fit(module, callbacks)
        assert "training_step" not in vars(module)
        assert "log" not in vars(module)
        assert not module.projection_head._forward_hooks
        after = state(module)
        learns = {k: v for k, v in before.items() if not torch.is_tensor(v)}
        assert {k: after[k] for k in learns} == learns
        if fails_in <= 2:
            assert_same(after, before)

    def test_leave_a_validation_that_calls_the_training_step_alone(self):
        heights = list[tuple[float, float]]()

        class Validated(SimCLR):
            def validation_step(self, batch, batch_idx):
                own = SimCLR.training_step(self, batch, batch_idx)
                heights.append((self.training_step(batch, batch_idx).item(), own.item()))

            def val_dataloader(self):
                return DataLoader(Views(), batch_size=8)

        fit(Validated(), [adversarial(), divergence(), SharpnessAware(0.05)], max_epochs=1, steps=9)
        assert len(heights) > 2  # after training too
        assert all(found == own for found, own in heights)

    def test_give_back_what_stood_in_the_modules_own_dictionary(self):
        module = made(SimCLR)
        own = module.training_step
        module.training_step = own  # as torch.compile leaves a compiled one
        fit(module, [adversarial()])
        assert module.training_step is own

    @pytest.mark.parametrize("way", COPIES)
    def test_a_copy_taken_on_the_way_is_plain_and_has_its_own_weights(self, way):
        class Keeps(pl.Callback):
            def on_train_batch_end(self, trainer, pl_module, *_):
                self.copy = COPIES[way](pl_module)
                for callback in trainer.callbacks:
                    copy.deepcopy(callback).teardown(trainer, pl_module, "fit")
                assert "training_step" in vars(pl_module)

        keeps, module = Keeps(), Plain()
        trainer = fit(module, [adversarial(), SharpnessAware(), divergence("net"), keeps], steps=1)
        assert trainer.global_step == 1
        assert "training_step" not in vars(module)
        zeroed = keeps.copy.apply(_zeroed)
        assert zeroed.training_step(IMAGES, 0) == 0
        assert module.training_step(IMAGES, 0) > 0
        assert not zeroed.net[1]._forward_hooks
        fit(zeroed, [adversarial()], steps=1)

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @pytest.mark.parametrize("kind", ["compiled", "of one's own", "bound"])
    def test_a_copy_has_the_step_that_the_module_had_for_itself(self, kind):
        def own(batch, batch_idx):
            return module.net(batch).mean()

        module = Plain()
        steps = {
            "compiled": torch.compile(module.training_step, backend="eager"),
            "of one's own": own,
            "bound": module.training_step,
        }
        module.training_step = steps[kind]

        class Keeps(pl.Callback):
            def on_train_batch_end(self, trainer, pl_module, *_):
                self.copy = copy.deepcopy(pl_module)

        keeps = Keeps()
        fit(module, [adversarial(), keeps], steps=1)
        assert module.training_step is steps[kind]
        if kind == "of one's own":  # closes over the module, with callbacks or without
            assert keeps.copy.training_step is own
        else:
            assert keeps.copy.apply(_zeroed).training_step(IMAGES, 0) == 0

    def test_a_teacher_copied_in_the_step_hears_nothing(self):
        class Teaches(Plain):
            def training_step(self, batch, batch_idx):
                if not hasattr(self, "teacher"):
                    self.teacher = copy.deepcopy(self.net).requires_grad_(False)
                return (self.net(batch) - self.teacher(batch) + 1).square().mean()

        module, critic = Teaches(), divergence("net")
        fit(module, [adversarial(), critic], steps=2)
        assert module.teacher(IMAGES).shape == (16, OUT)
        assert not any(getattr(h, "calls", ()) for h in module.teacher._forward_hooks.values())
        assert not module.net._forward_hooks

    @pytest.mark.parametrize("averaging", ["StochasticWeightAveraging", "EMAWeightAveraging"])
    def test_train_beside_callbacks_that_average_weights(self, averaging):
        kind = getattr(pl.callbacks, averaging, None)
        if kind is None:
            pytest.skip("this Lightning has none")
        arguments = {"swa_lrs": 0.01, "swa_epoch_start": 1} if "Stoch" in averaging else {}
        module = Plain()
        callbacks = [adversarial(), SharpnessAware(), divergence("net"), kind(**arguments)]
        fit(module, callbacks, steps=-1, max_epochs=3)
        assert all(p.isfinite().all() for p in module.parameters())

    def test_respect_a_decorated_step_that_takes_the_batch_alone(self):
        import functools

        def decorated(step):
            @functools.wraps(step)
            def inner(*args, **kwargs):
                return step(*args, **kwargs)

            return inner

        class Alone(SimCLR):
            @decorated
            def training_step(self, batch):
                return super().training_step(batch, None)

        fit(made(Alone), [adversarial()])

    @pytest.mark.skipif(not find_spec("lightning"), reason="needs the package lightning")
    def test_serve_lightning_pytorch_too(self):
        other = import_module("lightning.pytorch")

        class Module(other.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, OUT))

            def training_step(self, batch):
                loss = self.net(batch[0]).square().mean()
                self.log("train_loss", loss)
                return loss

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        trainer = other.Trainer(
            accelerator="cpu",
            max_steps=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[adversarial(), SharpnessAware()],
        )
        trainer.fit(Module(), DataLoader(TensorDataset(torch.rand(8, 3, 2, 2)), batch_size=4))
        assert trainer.callback_metrics["train_loss"] > 0

    def test_are_callbacks_of_every_lightning_installed(self):
        assert isinstance(adversarial(), pl.Callback)
        if find_spec("lightning"):
            assert isinstance(adversarial(), import_module("lightning.pytorch").Callback)


class Overshot(pl.LightningModule):
    """From its third batch on, a whole step of the attack gains nothing and half of one does."""

    def __init__(self, holds=None) -> None:
        super().__init__()
        self.weight, self.holds = nn.Parameter(torch.ones(())), holds
        self.batches = 0

    def training_step(self, batch, batch_idx):
        image, clean = batch
        t = (image - clean.view_as(image)) / BALL.radius
        lost = self.batches >= 2
        self.batches += 1
        return self.weight * (4 * t * (1 - t) if lost else t).mean() + 3

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train_dataloader(self):
        images = 0.25 + IMAGES / 2
        return DataLoader(TensorDataset(images, images.flatten(1)), batch_size=4)


class TestOverfittingGuard:
    @staticmethod
    def callbacks(every: int = 1, ball: Linf = BALL):
        adversary = AdversarialViewGenerator(ball, 1, start="zero")
        guard = CatastrophicOverfittingGuard(adversary, every=every, least=0.1)
        return [AdversarialViews(adversary), OverfittingGuard(guard)]

    @pytest.mark.slow
    @pytest.mark.parametrize("method", [BYOL, SwAV, Metered])
    def test_a_healthy_run_is_the_run_without_it(self, method):
        # Of eight images an untrained BYOL's gains are noise, but in a small ball.
        ball = Linf(0.5 / 255) if method is BYOL else BALL
        plain, module = made(method), made(method)
        (views, guard), (alone, _) = self.callbacks(ball=ball), self.callbacks(ball=ball)
        expected = fit(plain, [alone, divergence()] if method is Metered else [alone], steps=3)
        callbacks = [views, guard, *([divergence()] if method is Metered else [])]
        trainer = fit(module, callbacks, steps=3)
        assert_same(state(module), state(plain))
        gained = {"attack_gain", "pgd_gain"}
        for logged, without in zip(trainer.logger.metrics, expected.logger.metrics, strict=True):
            assert gained <= logged.keys()
            assert {k: v for k, v in logged.items() if k not in gained} == without
        assert views.adversary.steps == 1

    @pytest.mark.parametrize("inside", [False, True], ids=["", "adversary_in_the_module"])
    def test_catches_what_was_planted(self, inside, tmp_path):
        views, guard = self.callbacks()
        module = Overshot(views.adversary if inside else None)
        with pytest.warns(UserWarning, match="catastrophic overfitting: .* takes 2 steps"):
            trainer = fit(module, [views, guard], steps=3)
        assert views.adversary.steps == 2
        attack, pgd = (
            [logged[name] for logged in trainer.logger.metrics]
            for name in ("attack_gain", "pgd_gain")
        )
        assert attack == pytest.approx([1, 1, 0], abs=0.01)
        assert pgd[2] > 0.3
        trainer.save_checkpoint(tmp_path / "caught.ckpt")
        views, guard = self.callbacks()
        fit(Overshot(), [views, guard], steps=3, ckpt_path=tmp_path / "caught.ckpt")
        assert views.adversary.steps == 2
        assert guard.guard.state_dict()["calls"] == 3

    def test_looks_every_so_often(self):
        views, guard = self.callbacks(every=2)
        trainer = fit(made(SimCLR), [views, guard], steps=1, log_every_n_steps=1)
        assert "pgd_gain" in trainer.logger.metrics[0]
        trainer = fit(made(SimCLR), [views, guard], steps=1, log_every_n_steps=1)
        assert "pgd_gain" not in trainer.logger.metrics[0]

    @pytest.mark.parametrize("setting", ["steps", "step_size"])
    def test_a_schedule_that_would_undo_what_it_does_is_refused(self, setting):
        attack = adversarial(steps=1)
        watch = OverfittingGuard(CatastrophicOverfittingGuard(attack.adversary))
        ramp = Ramp(1, 2, epochs=1)
        with pytest.raises(ValueError, match=f"sets the adversary's {setting} before each batch"):
            fit(made(SimCLR), [attack, watch, Scheduled(attack.adversary, **{setting: ramp})])
        of_radius = Scheduled(attack.adversary, radius=Ramp(0.01, 0.02, 1))
        of_another = Scheduled(adversarial().adversary, **{setting: Ramp(1, 1, 1)})
        fit(made(SimCLR), [attack, watch, of_radius, of_another])

    def test_needs_the_attack_that_it_watches(self):
        (views, _), (_, guard) = self.callbacks(), self.callbacks()
        for callbacks in ([guard], [views, guard]):
            with pytest.raises(ValueError, match="watches the attack of AdversarialViews"):
                fit(made(SimCLR), callbacks)


class TestSharpnessAware:
    @pytest.mark.parametrize("attacked", [False, True])
    def test_a_module_may_copy_itself_in_its_step(self, attacked):
        class Copying(Plain):
            def training_step(self, batch, batch_idx):
                with torch.no_grad():
                    z = copy.deepcopy(self).net(batch)
                return (self.net(batch) - z.mean(0)).square().mean()

        fit(made(Copying), [SharpnessAware(), *([adversarial()] if attacked else [])], steps=2)

    def test_one_step_is_that_of_the_wrapper(self):
        class Smooth(SimCLR):  # nothing drawn, no statistics
            def __init__(self) -> None:
                super().__init__()
                self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(768, WIDTH), nn.Tanh())
                self.projection_head = nn.Linear(WIDTH, OUT)

        by_hand, module = made(Smooth), made(Smooth)
        (x0, x1), _ = next(iter(by_hand.train_dataloader()))
        sam = SAMWrapper(by_hand, rho=0.5)
        loss = sam(lambda: by_hand.criterion(by_hand(x0), by_hand(x1)))
        loss.backward()
        by_hand.configure_optimizers().step()
        plain = made(Smooth)
        fit(plain, steps=1)
        fit(module, [SharpnessAware(0.5)], steps=1)
        for name, weight in module.named_parameters():
            torch.testing.assert_close(weight, by_hand.get_parameter(name), msg=name)
        assert not torch.allclose(module.backbone[1].weight, plain.backbone[1].weight)

    @pytest.mark.slow
    @pytest.mark.parametrize("method", [MoCo, BYOL, SwAV, MAE])
    def test_at_radius_zero_it_is_the_module_alone(self, method):
        """The second pass meets the queue, the teacher and the mask that the first one met."""
        plain, module = made(method), made(method)
        alone = fit(plain, steps=3)
        trainer = fit(module, [SharpnessAware(0.0)], steps=3)
        for name, value in state(module).items():
            torch.testing.assert_close(value, state(plain)[name], msg=name)
        for ours, theirs in zip(trainer.logger.metrics, alone.logger.metrics, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)

    @pytest.mark.parametrize("method", [MoCo, BYOL, SwAV])
    def test_what_a_step_keeps_comes_from_the_pass_at_theta(self, method):
        plain, module = made(method), made(method)
        fit(plain, steps=1)
        fit(module, [SharpnessAware(5.0)], steps=1)
        learnt = {n for n, p in module.named_parameters() if p.requires_grad}
        ours, theirs = (
            {k: v for k, v in state(m).items() if k not in learnt} for m in (module, plain)
        )
        assert_same(ours, theirs)


class TestGlobalDivergence:
    def test_compares_the_calls_that_the_attack_reaches(self, monkeypatch):
        seen = []
        own = GlobalDivergenceCritic.loss

        def loss(critic, clean, hard):
            seen.append((clean.detach(), hard.detach()))
            return own(critic, clean, hard)

        monkeypatch.setattr(GlobalDivergenceCritic, "loss", loss)
        fit(made(SimCLR), [adversarial((0,)), divergence()], steps=1)
        fit(made(SimCLR), [adversarial("all"), divergence()], steps=1)
        (clean, hard), (both, _) = seen
        assert clean.shape == hard.shape == (8, OUT)
        assert both.shape == (16, OUT)
        assert torch.allclose(clean.norm(dim=1), torch.ones(8))
        assert not torch.allclose(clean, hard, atol=1e-3)
        torch.testing.assert_close(both[:8], clean)

    def test_clouds_of_an_attack_without_effect_are_one(self):
        trainer = fit(made(SimCLR), [still(1), divergence()], steps=3)
        assert all(m["global_divergence"] <= 1e-6 for m in trainer.logger.metrics)

    def test_a_critic_that_is_frozen_stays_and_its_estimate_joins(self):
        term, alone = divergence(), made(SimCLR)
        before = copy.deepcopy(term.critic.requires_grad_(False).state_dict())
        fit(alone, [adversarial()])
        fit(module := made(SimCLR), [adversarial(), term])
        assert_same(before, term.critic.state_dict())
        name = "projection_head.layers.0.weight"
        assert not torch.equal(alone.state_dict()[name], module.state_dict()[name])

    def test_an_optimizer_that_takes_several_steps_at_once_is_refused(self):
        critic = GlobalDivergenceCritic(OUT)
        with pytest.raises(ValueError, match=r"one step per batch, LBFGS needs a closure"):
            GlobalDivergence(critic, "net", optimizer=torch.optim.LBFGS(critic.parameters()))

    def test_its_weight_is_what_joins_the_loss(self):
        class Returns(SimCLR):
            def backward(self, loss):
                TOLD.append(loss.item())
                super().backward(loss)

        for weight in (0.0, 2.0):
            trainer = fit(made(Returns), [adversarial(steps=0), divergence(weight=weight)], steps=1)
        metrics = trainer.logger.metrics[0]
        assert TOLD[0] == pytest.approx(metrics["train_loss"], rel=1e-5)
        assert TOLD[1] == pytest.approx(
            metrics["train_loss"] + 2 * metrics["global_divergence"], rel=1e-5
        )

    def test_the_attack_climbs_its_estimate_too(self):
        found = []
        for weight in (0.0, 100.0):
            trainer = fit(made(SimCLR), [adversarial(steps=3), divergence(weight=weight)], steps=1)
            found.append(trainer.logger.metrics[0])
        assert found[1]["global_divergence"] > found[0]["global_divergence"] + 1e-3
        assert found[1]["train_loss"] < found[0]["train_loss"]

    @pytest.mark.slow
    @pytest.mark.parametrize("others", [[], [SharpnessAware(rho=0.05)]])
    def test_reads_prototypes_that_each_step_normalises(self, others):
        """With no weight it trains as without it: the clean graph is valid after later passes."""
        without, module = made(SwAV), made(SwAV)
        fit(without, [adversarial(), *others], steps=3)
        critic = GlobalDivergence(GlobalDivergenceCritic(6), "prototypes", weight=0.0)
        fit(module, [adversarial(), critic, *others], steps=3)
        assert_same(state(module), state(without))

    def test_parameters_that_follow_the_attacked_batch_are_refused(self):
        class Follows(SimCLR):
            def training_step(self, batch, batch_idx):
                with torch.no_grad():
                    self.projection_head.layers[0].weight.add_(batch[0][0].mean())
                return super().training_step(batch, batch_idx)

        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            fit(made(Follows), [adversarial(), divergence()], steps=1)

    def test_critic_and_encoder_learn_and_the_modules_checkpoint_knows_nothing(self, tmp_path):
        callback = divergence(weight=5.0)
        before = {n: p.clone() for n, p in callback.critic.state_dict().items()}
        plain, module = made(SimCLR), made(SimCLR)
        fit(plain, [adversarial(), divergence(weight=0.0)], steps=2)
        trainer = fit(module, [adversarial(), callback], steps=2)
        assert any(not torch.equal(p, before[n]) for n, p in callback.critic.state_dict().items())
        assert not torch.equal(module.backbone[0].weight, plain.backbone[0].weight)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert saved["state_dict"].keys() == made(SimCLR).state_dict().keys()
        (key,) = [k for k in saved["callbacks"] if k.startswith("GlobalDivergence")]
        assert_same(saved["callbacks"][key]["network"], callback.critic.state_dict())

    def test_refuses_to_be_without_adversarial_views(self):
        with pytest.raises(ValueError, match="give the trainer AdversarialViews too"):
            fit(made(SimCLR), [divergence()])

    @pytest.mark.parametrize(
        ("on", "complaint"),
        [
            ("projector", r"no submodule 'projector'.*'projection_head'"),
            ("projection_head_momentum", "no gradient in the attacked views|has a gradient"),
            ("criterion", r"'criterion' must answer .*embeddings \(B, D\)"),
            (
                "backbone.0",
                r"'backbone.0' must answer .*embeddings \(B, D\), .* pool a feature map",
            ),
            ("backbone_momentum.8", "has a gradient in the attacked views"),
        ],
    )
    def test_refuses_a_submodule_that_will_not_do(self, on, complaint):
        with pytest.raises(ValueError, match=complaint):
            fit(made(BYOL), [adversarial(), GlobalDivergence(GlobalDivergenceCritic(OUT), on)])


class TestClusterFit:
    def test_fits_once_to_the_extractors_features(self):
        callback = clusters()
        pixels = torch.stack([views[0] for views, _ in Views()]).flatten(1)
        by_hand = ClusterFitHead(WIDTH, num_clusters=(2, 4))
        by_hand.fit(pixels)
        fit(made(Indexed), [callback])
        assert torch.equal(callback.head.pseudo_labels, by_hand.pseudo_labels)
        callback.extractor = None  # not asked again
        fit(made(Indexed), [callback])

    @pytest.mark.parametrize("source", IN_THE_DATASETS_ORDER)
    def test_labels_are_in_the_datasets_order_whatever_the_sampler(self, source):
        wanted, head = ClusterFitHead(OUT, (8,)), ClusterFitHead(OUT, (8,))
        wanted.fit(IMAGES.flatten(1))
        images = IN_THE_DATASETS_ORDER[source]()
        term = ClusterFit(head, nn.Flatten(), images, on="net")
        fit(OnIndexed(), [term], steps=1)
        assert torch.equal(head.pseudo_labels, wanted.pseudo_labels)
        fit(OnIndexed(), [ClusterFit(head, nn.Flatten(), images, on="net")], steps=1)

    def test_looking_whether_a_fitted_heads_labels_are_theirs_draws_nothing(self):
        class Noisy(Dataset):
            def __len__(self):
                return len(IMAGES)

            def __getitem__(self, i):
                return IMAGES[i] + 1e-4 * torch.rand(())

        class Drawn(pl.Callback):
            def on_fit_start(self, *_):
                states.append(torch.get_rng_state())

        states, head = [], ClusterFitHead(OUT, (8,))
        head.fit(IMAGES.flatten(1))
        looked = ClusterFit(head, nn.Flatten(), Noisy(), on="net")
        fit(OnIndexed(), [Drawn(), looked, Drawn()], steps=1)
        assert torch.equal(*states)

    @pytest.mark.parametrize("source", IN_NO_ORDER)
    def test_refuses_images_of_which_nobody_knows_the_order(self, source):
        images, complaint = IN_NO_ORDER[source]
        term = ClusterFit(ClusterFitHead(OUT, (8,)), nn.Flatten(), images(), on="net")
        with pytest.raises(ValueError, match=complaint):
            fit(OnIndexed(), [term], steps=1)

    @pytest.mark.parametrize("given", CLASSED)
    def test_refuses_images_whose_classes_stand_in_another_order(self, given):
        same, images = CLASSED[given]
        data = IndexedDataset(ConcatDataset([CLASSED_PART, OTHER_PART]))
        term = ClusterFit(ClusterFitHead(OUT, (8,)), nn.Flatten(), images(), on="net")
        if same:
            fit(OnIndexed(data), [term], steps=1)
        else:
            with pytest.raises(ValueError, match="have other classes than those trained on"):
                fit(OnIndexed(data), [term], steps=1)

    @pytest.mark.parametrize("clusters", [(2,), (8,), (2, 8)])
    @pytest.mark.parametrize("other", ["images", "order"])
    def test_refuses_a_head_that_was_fitted_to_others(self, clusters, other):
        # So many that two clusterings of two clusters each agree no more than by chance.
        images = torch.rand(128, 3, 4, 4, generator=torch.Generator().manual_seed(4))
        module, head = OnIndexed(IndexedDataset(images)), ClusterFitHead(OUT, clusters)
        head.fit((images.flip(0) if other == "order" else 1 - images.roll(5, 3)).flatten(1))
        with pytest.raises(ValueError, match="fitted already, and to other images"):
            fit(module, [ClusterFit(head, nn.Flatten(), images, on="net")], steps=1)
        loader = DataLoader(images + 0.01 * torch.rand_like(images), 4)
        head.fit(images.flatten(1))
        fit(module, [ClusterFit(head, nn.Flatten(), loader, on="net")], steps=1)

    @pytest.mark.parametrize(
        ("data", "complaint"),
        [
            (IndexedDataset(IMAGES[:9]), "of 16 images, the training dataset has length 9"),
            (IndexedDataset(Subset(IMAGES, range(9))), "of 16 images.* has length 9"),
            (ConcatDataset([IndexedDataset(IMAGES)] * 2), r"got a Conc.*IndexedDataset\(ConcatD"),
            (LABELLED, "got a TensorDataset"),
        ],
    )
    def test_refuses_a_training_dataset_that_is_not_what_was_clustered(self, data, complaint):
        head = ClusterFitHead(OUT, (8,))
        head.fit(IMAGES.flatten(1))
        with pytest.raises(ValueError, match=complaint):
            fit(OnIndexed(data), [ClusterFit(head, on="net")], steps=1)

    def test_refuses_several_training_loaders_and_one_that_changes(self):
        class Two(OnIndexed):
            def train_dataloader(self):
                return [super().train_dataloader()] * 2

        class Changes(OnIndexed):
            def train_dataloader(self):
                size = 16 - self.current_epoch
                return DataLoader(IndexedDataset(IMAGES[:size]), batch_size=8)

        head = ClusterFitHead(OUT, (8,))
        head.fit(IMAGES.flatten(1))
        with pytest.raises(
            ValueError, match=r"one training DataLoader.*got list of \[a DataLoader"
        ):
            fit(Two(), [ClusterFit(head, on="net")], steps=1)
        with pytest.raises(ValueError, match="of 16 images, the training dataset has length 15"):
            fit(
                *(Changes(), [ClusterFit(head, on="net")]),
                steps=-1,
                max_epochs=2,
                reload_dataloaders_every_n_epochs=1,
            )

    @pytest.mark.parametrize("part", [Subset(IndexedDataset(IMAGES), [1, 5, 7, 2])])
    def test_a_part_of_an_indexed_dataset_has_the_labels_of_the_whole(self, part, monkeypatch):
        head, asked = ClusterFitHead(OUT, (8,)), []
        head.fit(IMAGES.flatten(1))
        own = ClusterFitHead.forward
        monkeypatch.setattr(
            ClusterFitHead, "forward", lambda h, z, i: asked.append(i.tolist()) or own(h, z, i)
        )
        fit(OnIndexed(part), [ClusterFit(head, on="net")], steps=1)
        assert asked[0] == [1, 5, 7, 2]

    @pytest.mark.parametrize("collate", [default_collate, tuple, list])
    @pytest.mark.parametrize("form", ["image", "pair", "named", "dict"])
    def test_the_module_gets_the_form_of_batch_that_it_has_without_an_index(self, form, collate):
        class Pair(NamedTuple):
            image: torch.Tensor
            label: int

        forms = {
            "image": lambda x: x,
            "pair": lambda x: (x, 1),
            "named": lambda x: Pair(x, 1),
            "dict": lambda x: {"image": x, "label": 1},
        }
        samples = [forms[form](x) for x in IMAGES]

        class Shows(OnIndexed):
            def training_step(self, batch, batch_idx):
                TOLD.append(batch)
                return self.net(IMAGES).mean()

        indexed = IndexedDataset(samples)
        head = ClusterFitHead(OUT, (8,))
        head.fit(IMAGES.flatten(1))
        keeping = indexed.with_index(collate)
        for given in (keeping,) if collate is not default_collate else (collate, keeping):
            TOLD.clear()
            module = Shows(indexed, collate_fn=given)
            fit(module, [ClusterFit(head, on="net")], steps=1)
            expected = collate(samples[:8])
            assert type(TOLD[0]) is type(expected)
            assert str(TOLD[0]) == str(expected)

    def test_a_collate_function_of_ones_own_may_keep_the_index_beside_bare_images(self):
        def collate(samples):
            images, index = zip(*samples, strict=True)
            return torch.stack(images), list(index)

        class Shows(OnIndexed):
            def training_step(self, batch, batch_idx):
                TOLD.append(batch)
                return super().training_step(batch, batch_idx)

        head = ClusterFitHead(OUT, (8,))
        head.fit(IMAGES.flatten(1))
        fit(Shows(collate_fn=collate), [ClusterFit(head, on="net")], steps=1)
        assert torch.equal(TOLD[0], IMAGES[:8])

    def test_names_the_collate_function_that_has_no_room_for_the_index(self):
        def collate(samples):
            for image, _, name in samples:
                TOLD.append((image, name))
            return torch.stack([image for image, _, _ in samples])

        data = IndexedDataset([(x, 1, "name") for x in IMAGES])
        head = ClusterFitHead(OUT, (8,))
        head.fit(IMAGES.flatten(1))
        with pytest.raises(ValueError, match=r"collate_fn=dataset.with_index\(collate_fn\)"):
            fit(OnIndexed(data, collate_fn=collate), [ClusterFit(head, on="net")], steps=1)

    def test_the_module_never_sees_the_index(self):
        class Strict(Indexed):
            def training_step(self, batch, batch_idx):
                views, labels = batch
                TOLD.append(labels)
                return super().training_step((views, labels), batch_idx)

        class Bare(SimCLR):
            def train_dataloader(self):
                return DataLoader(IndexedDataset([v for v, _ in Views()]), batch_size=8)

            def training_step(self, batch, batch_idx):
                x0, x1 = batch
                return super().training_step(((x0, x1), None), batch_idx)

        for module in (made(Strict), made(Bare)):
            fit(module, [clusters(), adversarial()])
        assert all(not t.is_floating_point() for t in TOLD)

    def test_classifies_and_improves(self):
        trainer = fit(made(Indexed), [clusters(weight=1.0)], steps=40)
        losses = [m["cluster_fit"] for m in trainer.logger.metrics]
        assert sum(losses[-4:]) < 0.9 * sum(losses[:4])

    def test_two_calls_are_one_classification_of_both(self):
        callback = clusters()
        callback.head.fit(torch.rand(16, 5))
        callback.without_index([None, torch.tensor([3, 5])])
        a, b = torch.rand(2, 2, WIDTH)
        index = torch.tensor([3, 5, 3, 5])
        expected = callback.head(torch.cat([a, b]), index)
        torch.testing.assert_close(callback.term([], [a, b]), expected)
        torch.testing.assert_close(callback.term([], [torch.cat([a, b])]), expected)
        with pytest.raises(ValueError, match=r"a row per example \(2\).*got \[\(3, 16\)\]"):
            callback.term([], [torch.rand(3, WIDTH)])

    def test_refuses_a_dataset_without_index_and_a_head_without_features(self):
        with pytest.raises(ValueError, match=r"must be an advssl.IndexedDataset, got a Views"):
            fit(made(SimCLR), [clusters()])
        with pytest.raises(ValueError, match="give ClusterFit an extractor"):
            fit(made(Indexed), [ClusterFit(ClusterFitHead(WIDTH), on="backbone")])


@dataclass
class SimpleOutput:
    """As encoders with named outputs answer."""

    embeddings: torch.Tensor
    attentions: torch.Tensor | None = None


def leaf(answer):
    """The first tensor in it."""
    while not isinstance(answer, torch.Tensor):
        answer = next(iter(vars(answer).values() if isinstance(answer, SimpleOutput) else answer))
        answer = answer if not isinstance(answer, str) else torch.zeros(())
    return answer


class TestNetworksOfOurOwn:
    """What the critic and the head have in common: a submodule, a weight, an optimizer."""

    @pytest.mark.parametrize("broken", [torch.inf, -torch.inf, torch.nan])
    @pytest.mark.parametrize(
        "optimizer",
        [
            partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
            partial(torch.optim.Adam, amsgrad=True),
            partial(torch.optim.AdamW, weight_decay=0.5),
            torch.optim.RMSprop,
        ],
    )
    @pytest.mark.parametrize("kind", [GlobalDivergence, ClusterFit])
    def test_a_step_that_overflowed_moves_nothing(self, kind, optimizer, broken):
        if kind is GlobalDivergence:
            network = GlobalDivergenceCritic(OUT, (4,))
        else:
            network = ClusterFitHead(OUT, (2, 4))
            network.fit(torch.rand(16, 5))
        term = kind(network, on="net", optimizer=optimizer(network.parameters()))
        benign, adversarial = torch.randn(2, 6, OUT)
        if kind is ClusterFit:
            term.without_index([benign, torch.arange(6)])
        term.improve([benign], [adversarial])
        before = copy.deepcopy(term.state_dict())
        overflown = adversarial.clone()
        overflown[0, 0] = broken
        term.improve([benign], [overflown])
        assert str(term.state_dict()) == str(before)
        assert all(p.grad is None for p in network.parameters())
        term.improve([benign], [adversarial])
        assert str(term.state_dict()) != str(before)

    def test_weights_that_are_not_finite_are_refused(self):
        critic = GlobalDivergenceCritic(OUT)
        optimizer = torch.optim.SGD(critic.parameters(), lr=3e38, weight_decay=1e3)
        term = GlobalDivergence(critic, "net", optimizer=optimizer)
        with pytest.raises(ValueError, match=r"weights that are not finite.*smaller learning rate"):
            for _ in range(3):
                term.improve([torch.randn(6, OUT)], [torch.randn(6, OUT)])

    @pytest.mark.parametrize(
        ("answer", "complaint"),
        [
            (lambda z: z, None),
            (lambda z: z[:, :, None, None], None),
            (lambda z: (z,), None),
            (lambda z: {"embeddings": z}, None),
            (lambda z: SimpleOutput(z), None),
            (lambda z: z.bfloat16(), None),
            (lambda z: z.double(), None),
            (lambda z: (z, z), "one tensor of embeddings"),
            (lambda z: z[:, :, None].expand(-1, -1, 3), "pool a feature map"),
            (lambda z: z.argmax(1), "floating point embeddings"),
        ],
    )
    def test_read_what_a_submodule_and_an_extractor_answer(self, answer, complaint):
        class Answers(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Sequential(nn.Flatten(), nn.Linear(48, OUT))

            def forward(self, x):
                return answer(self.layer(x))

        class Module(OnIndexed):
            def __init__(self):
                super().__init__()
                self.net = Answers()

            def training_step(self, batch, batch_idx):
                batch = batch[0] if isinstance(batch, tuple) else batch
                return self.net.layer(batch).mean() + 0 * leaf(self.net(batch)).float().mean()

        def callbacks():
            critic, head = GlobalDivergenceCritic(OUT), ClusterFitHead(OUT, (2,))
            terms = [GlobalDivergence(critic, "net"), ClusterFit(head, Answers(), IMAGES, on="net")]
            return [adversarial(), *terms]

        if complaint is None:
            trainer = fit(Module(), callbacks(), steps=1)
            assert all(torch.tensor(v).isfinite() for v in trainer.logger.metrics[0].values())
            return
        with pytest.raises(ValueError, match=f"extractor must answer.*{complaint}"):
            fit(Module(), callbacks(), steps=1)
        with pytest.raises(ValueError, match=f"submodule on='net' must answer.*{complaint}"):
            fit(Module(), callbacks()[:2], steps=1)

    def test_an_extractor_in_half_precision_is_given_its_own(self):
        head, extractor = ClusterFitHead(OUT, (2,)), Plain().net.bfloat16()
        fit(OnIndexed(), [ClusterFit(head, extractor, IMAGES, on="net")], steps=1)
        assert head.centroids.dtype == torch.float32


BAD_ARGUMENTS = [
    (AdversarialViews, {"adversary": Linf(0.1)}, "adversary must be .*AdversarialViewGenerator"),
    (AdversarialViews, {"adversary": AdversarialViewGenerator}, "adversary must be .*got a type"),
    (AdversarialViews, {"views": 0}, "views must be"),
    (AdversarialViews, {"views": None}, "views must be"),
    (AdversarialViews, {"views": "first"}, "views must be"),
    (AdversarialViews, {"views": (0.5,)}, "views must be a whole number"),
    (AdversarialViews, {"views": ("all",)}, "views must be a whole number"),
    (SharpnessAware, {"rho": "0.05"}, "rho must be"),
    (SharpnessAware, {"rho": -1}, "rho must be"),
    (SharpnessAware, {"rho": float("nan")}, "rho must be"),
    (GlobalDivergence, {"critic": nn.Linear(8, 1)}, "critic must be .*got a Linear"),
    (GlobalDivergence, {"on": nn.Linear(8, 1)}, "on must be a str, got a Linear"),
    (GlobalDivergence, {"weight": "0.1"}, "weight must be a number"),
    (GlobalDivergence, {"weight": -1}, "weight must be finite and not negative"),
    (GlobalDivergence, {"weight": float("inf")}, "weight must be finite and not negative"),
    (GlobalDivergence, {"optimizer": torch.optim.SGD}, "optimizer must be .*got a type"),
    (GlobalDivergence, {"optimizer": 0.1}, "optimizer must be .*got 0.1"),
    (
        GlobalDivergence,
        {"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters())},
        "optimizer must be of the parameters of this GlobalDivergenceCritic alone",
    ),
    (ClusterFit, {"head": nn.Linear(8, 1)}, "head must be .*got a Linear"),
    (ClusterFit, {"extractor": "resnet18"}, "extractor must be .*got 'resnet18'"),
    (ClusterFit, {"images": "photos/"}, "images must be .*got 'photos/'"),
    (ClusterFit, {"images": 3}, "images must be .*got 3"),
    (ClusterFit, {"on": None}, "on must be a str"),
]


def right_arguments(callback):
    return {
        AdversarialViews: {"adversary": AdversarialViewGenerator(BALL)},
        SharpnessAware: {},
        GlobalDivergence: {"critic": GlobalDivergenceCritic(OUT), "on": "net"},
        ClusterFit: {"head": ClusterFitHead(OUT), "on": "net"},
    }[callback]


@pytest.mark.parametrize(("callback", "wrong", "complaint"), BAD_ARGUMENTS)
def test_refuse_the_wrong_argument_by_its_name(callback, wrong, complaint):
    callback(**right_arguments(callback))
    with pytest.raises(ValueError, match=complaint):
        callback(**{**right_arguments(callback), **wrong})


@pytest.mark.parametrize("number", [0.5, np.float32(0.5), np.array([0.5]), torch.tensor(0.5)])
def test_numbers_from_anywhere_are_plain(number):
    weight = divergence(weight=number).weight
    assert (weight, type(weight)) == (0.5, float)
    rho = SharpnessAware(rho=number).rho
    assert (rho, type(rho)) == (0.5, float)


@pytest.mark.parametrize(
    "views", [(0, -1), [np.int64(0), -1], torch.tensor([0, -1]), np.array([0, -1])]
)
def test_views_from_anywhere_are_plain(views):
    assert adversarial(views).views == (0, -1)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda loss: loss, None),
        (lambda loss: loss[None], None),
        (lambda loss: {"loss": loss, "z": 1}, None),
        (lambda loss: {"loss": loss[None, None]}, None),
        (lambda loss: loss.expand(8), "training_step must return a scalar"),
        (lambda loss: loss.item(), "training_step must return a scalar"),
        (lambda loss: (loss, 1), "training_step must return a scalar"),
    ],
)
def test_read_what_a_training_step_returns(answer, complaint):
    class Module(Plain):
        def training_step(self, batch, batch_idx):
            return answer(super().training_step(batch, batch_idx))

    plain, module = Plain(), Module()
    callbacks = [adversarial(), SharpnessAware()]
    if complaint is None:
        fit(plain, [adversarial(), SharpnessAware()], steps=2)
        fit(module, callbacks, steps=2)
        assert_same(state(module), state(plain))
    else:
        with pytest.raises(ValueError, match=complaint):
            fit(module, callbacks, steps=1)


def test_resumes_where_it_was(tmp_path):
    """Weights, critic, head, their optimizers and the attack's draws go on from a checkpoint."""

    class Still(Indexed):  # draws nothing itself: Lightning does not save the random state
        def __init__(self) -> None:
            super().__init__()
            self.backbone[6].p = 0.0

    def callbacks():
        return [adversarial(), divergence(), clusters(), SharpnessAware()]

    limits = {"steps": -1}
    whole, half, rest = callbacks(), callbacks(), callbacks()
    straight, resumed = made(Still), made(Still)
    fit(straight, whole, max_epochs=2, **limits)
    fit(resumed, half, max_epochs=1, **limits).save_checkpoint(tmp_path / "half.ckpt")
    for callback in rest[1:3]:  # what is loaded must not be what was there
        callback.network.requires_grad_(False).apply(_zeroed).requires_grad_(True)
    rest[2].extractor = None
    resumed = made(Still)
    fit(resumed, rest, max_epochs=2, ckpt_path=tmp_path / "half.ckpt", **limits)
    assert_same(state(resumed), state(straight))
    for ours, theirs in zip(rest[1:3], whole[1:3], strict=True):
        assert_same(ours.network.state_dict(), theirs.network.state_dict())


def test_each_step_draws_a_start_of_its_own():
    """Though the module, which draws nothing, always has the same random state."""
    seeds = []

    class Told(AdversarialViewGenerator):
        def forward(self, *given, generator, **named):
            seeds.append(generator.initial_seed())
            return super().forward(*given, generator=generator, **named)

    fit(Plain(), [AdversarialViews(Told(BALL, steps=1))], steps=3)
    assert len(set(seeds)) == len(seeds) == 3


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("ours", [False, True], ids=["without", "with_callbacks"])
def test_resumes_amid_an_epoch(tmp_path, ours):
    """Where Lightning does; it begins the loader anew, so here all batches are the same."""

    class Still(Indexed):
        def __init__(self) -> None:
            super().__init__()
            self.backbone[6].p = 0.0

        def train_dataloader(self):
            return DataLoader(Subset(IndexedDataset(Views()), [*range(8)] * 4), batch_size=8)

    class Saved(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "amid.ckpt")

    def callbacks():
        return [adversarial(), divergence(), clusters(), SharpnessAware()] if ours else []

    straight, resumed = made(Still), made(Still)
    whole, rest = callbacks(), callbacks()
    fit(straight, [*whole, Saved()], steps=3)
    fit(resumed, rest, steps=3, ckpt_path=tmp_path / "amid.ckpt")
    assert_same(state(resumed), state(straight))
    for one, other in zip(rest[1:3], whole[1:3], strict=True):
        assert_same(one.network.state_dict(), other.network.state_dict())


def _zeroed(module: nn.Module) -> None:
    for p in module.parameters(recurse=False):
        p.data.zero_()


@pytest.mark.slow
def test_two_ranks_are_one_process_on_the_whole_batch(tmp_path):
    expected = trained(1, str(tmp_path))
    for found in on_two_ranks(on_rank, tmp_path, str(tmp_path)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_the_documentations_blocks_run():
    """In order, as they stand, but for what a trainer prints and how long it takes."""
    documentation = Path(__file__).parents[2] / "docs" / "lightning.md"
    blocks = re.findall(
        r"```python\n(.*?)```", documentation.read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(blocks) == 4

    def trainer(max_epochs, callbacks=()):
        assert max_epochs
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        return pl.Trainer(
            max_steps=2, accelerator="cpu", callbacks=callbacks, enable_model_summary=False, **quiet
        )

    dataset = Views()
    scope = {
        "pl": SimpleNamespace(Trainer=trainer, LightningModule=pl.LightningModule),
        "DataLoader": DataLoader,
        "module": made(SimCLR),
        "loader": made(SimCLR).train_dataloader(),
        "dataset": dataset,
        "images": [views[0] for views, _ in dataset],
        "extractor": nn.Flatten(),
        "width": OUT,
        "features": WIDTH,
        "test_images": torch.rand(4, 3, 8, 8),
        "test_labels": torch.arange(4) % 2,
    }
    before = state(scope["module"])
    exec(blocks[0], scope)
    exec(blocks[1], scope)
    assert not torch.equal(scope["module"].backbone[0].weight, before["backbone.0.weight"])
    exec(blocks[2], scope)
    exec(blocks[3], scope)
    by_hand = scope["Manual"]()
    by_hand.automatic_optimization = False
    by_hand.net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    by_hand.adversary, by_hand.loss = scope["adversary"], nn.MSELoss()
    by_hand.configure_optimizers = lambda: torch.optim.SGD(by_hand.parameters(), lr=0.1)
    weight = by_hand.net[1].weight.detach().clone()
    trainer(1).fit(by_hand, scope["loader"])
    assert not torch.equal(by_hand.net[1].weight, weight)


def test_costs_what_the_documentation_says():
    class Wide(Method):
        """Nearly all of it between its first and its last layer."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                *(nn.Flatten(), nn.Linear(3, 256), nn.Linear(256, 256), nn.Linear(256, 256)),
                nn.Linear(256, OUT),
            )

        def training_step(self, batch):
            return self.net(batch).square().mean()

        def train_dataloader(self):
            return DataLoader([torch.rand(3, 1, 1)] * 8, batch_size=8)

    def spent(*callbacks) -> float:
        return flops(lambda: fit(made(Wide), callbacks, steps=1)) / forward

    forward = flops(lambda: made(Wide).net(torch.rand(8, 3, 1, 1)))
    views, critic = adversarial(steps=5), GlobalDivergenceCritic(OUT)
    close = partial(pytest.approx, rel=0.05)
    assert spent() == close(3)
    assert spent(views) == close(13)
    assert spent(SharpnessAware()) == close(6)
    assert spent(views, SharpnessAware(), GlobalDivergence(critic, on="net")) == close(21)
    one = AdversarialViewGenerator(BALL, steps=1)
    guard = OverfittingGuard(CatastrophicOverfittingGuard(one))
    assert spent(AdversarialViews(one), guard) == close(3 + 2 + 2 + 13)


class TestScheduled:
    """Settings before each batch, of an attack and of a term."""

    def test_sets_what_the_next_batch_is_attacked_with(self):
        seen = []

        class Noted(AdversarialViewGenerator):
            def forward(self, *args, **kwargs):
                seen.append((round(255 * self.radius, 6), self.steps))
                return super().forward(*args, **kwargs)

        adversary = Noted(BALL, steps=1)
        term = divergence(weight=0.0)
        callbacks = [
            AdversarialViews(adversary),
            term,
            Scheduled(adversary, radius=Ramp(1 / 255, 5 / 255, epochs=1), steps=Ramp(1, 3, 2)),
            Scheduled(term, weight=lambda epoch: epoch),
        ]
        fit(made(SimCLR), callbacks, steps=4)  # two batches an epoch
        assert seen == [(1, 1), (3, 2), (5, 2), (5, 2)]
        assert term.weight == 1.5

    @pytest.mark.parametrize(
        ("setting", "wrong", "complaint"),
        [
            ("weight", -1, "weight must be finite and not negative"),
            ("weight", float("nan"), "weight must be finite"),
            ("weight", "1", "weight must be a number"),
            ("every", 0, "every must be at least 1"),
            ("least", 1, "least is a share"),
            ("zerograd", 1, "zerograd is a share"),
            ("zerograd", float("nan"), "zerograd is a share"),
        ],
    )
    def test_what_a_schedule_sets_is_held_to_what_a_constructor_is(self, setting, wrong, complaint):
        attack, term = adversarial(), divergence()
        guard = CatastrophicOverfittingGuard(attack.adversary)
        target = next(one for one in (term, guard, attack.adversary) if hasattr(one, setting))
        before = getattr(target, setting)
        with pytest.raises(ValueError, match=complaint):
            fit(made(SimCLR), [attack, term, Scheduled(target, **{setting: lambda _: wrong})])
        assert getattr(target, setting) == before

    def test_a_mistake_is_refused_before_data_are_opened(self):
        class Unopened(Plain):
            def train_dataloader(self):
                raise AssertionError("data were opened")

        adversary = adversarial().adversary
        with pytest.raises(ValueError, match="has no width to be scheduled"):
            Scheduled(adversary, width=Ramp(0, 1, 1))
        with pytest.raises(ValueError, match=r"radius must be a schedule, .* got 0.1"):
            Scheduled(adversary, radius=0.1)
        with pytest.raises(ValueError, match="radius must be positive"):
            fit(Unopened(), [Scheduled(adversary, radius=Ramp(0, 1, 1))])
        with pytest.raises(ValueError, match=r"Linf\(radius=8\.0\) is wider than the whole range"):
            fit(Unopened(), [Scheduled(adversary, radius=Ramp(1 / 255, 8, 100))])
