"""The callbacks: what they add is what it would be by hand, and all else is given back."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from flops import flops
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from advssl import (
    AdversarialViewGenerator,
    ClusterFitHead,
    GlobalDivergenceCritic,
    IndexedDataset,
    Linf,
    SAMWrapper,
)
from advssl.integrations.lightning import (
    AdversarialViews,
    ClusterFit,
    GlobalDivergence,
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
    Views,
    assert_same,
    fit,
    made,
    state,
)
from .lightning_ddp_callbacks import trained
from .test_lightning_methods import still

pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|LeafSpec|weight_norm)")

BALL = Linf(8 / 255)


def adversarial(views=(0,), steps: int = 2) -> AdversarialViews:
    return AdversarialViews(AdversarialViewGenerator(BALL, steps=steps), views)


def divergence(on: str = "projection_head", **arguments) -> GlobalDivergence:
    torch.manual_seed(3)
    return GlobalDivergence(GlobalDivergenceCritic(OUT), on, **arguments)


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

    @pytest.mark.parametrize(
        "settings", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}]
    )
    @pytest.mark.parametrize("method", [BYOL, SwAV, Metered])
    def test_leaves_no_trace_whatever_the_trainer_does(self, method, settings):
        plain, module = made(method), made(method)
        alone = fit(plain, steps=3, **settings)
        trainer = fit(module, [still(2)], steps=3, **settings)
        assert_same(state(module), state(plain))
        assert trainer.logger.metrics == alone.logger.metrics

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

    @pytest.mark.parametrize("views", [(), 0, "first"])
    def test_refuses_views_that_are_none(self, views):
        with pytest.raises(ValueError, match=r'views must be "all" or numbers such as \(0,\)'):
            adversarial(views)

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

    def test_give_back_what_stood_in_the_modules_own_dictionary(self):
        module = made(SimCLR)
        own = module.training_step
        module.training_step = own  # as torch.compile leaves a compiled one
        fit(module, [adversarial()])
        assert module.training_step is own

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


class TestSharpnessAware:
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

    def test_refuses_a_negative_radius(self):
        with pytest.raises(ValueError, match="rho must be non-negative"):
            SharpnessAware(-1)


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

    def test_an_overflow_does_not_reach_the_critic(self):
        callback = divergence()
        before = callback.critic.layers[0].weight.clone()
        callback.improve([torch.full((2, OUT), torch.inf)], [torch.ones(2, OUT)])
        assert torch.equal(callback.critic.layers[0].weight, before)

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

    def test_refuses_a_negative_weight(self):
        with pytest.raises(ValueError, match="weight must be finite and not negative, got -1"):
            divergence(weight=-1)


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


def _zeroed(module: nn.Module) -> None:
    for p in module.parameters(recurse=False):
        p.zero_()


def test_two_ranks_are_one_process_on_the_whole_batch(tmp_path):
    script = Path(__file__).with_name("lightning_ddp_callbacks.py")
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=300)
    expected = trained(1, str(tmp_path))
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_the_documentations_blocks_run():
    """In order, as they stand, but for what a trainer prints and how long it takes."""
    documentation = Path(__file__).parents[2] / "docs" / "lightning.md"
    blocks = re.findall(
        r"```python\n(.*?)```", documentation.read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(blocks) == 3

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
    }
    before = state(scope["module"])
    exec(blocks[0], scope)
    exec(blocks[1], scope)
    assert not torch.equal(scope["module"].backbone[0].weight, before["backbone.0.weight"])
    exec(blocks[2], scope)
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
