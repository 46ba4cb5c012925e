"""Monitors say what is there at the cost that they state; alarms ring for what is planted alone."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import pytorch_lightning as pl
import torch
from flops import flops
from torch import nn
from torch.utils.data import DataLoader
from toys import Told, blobs

from advssl import (
    AdversarialViewGenerator,
    Linf,
    MultiViewNTXentLoss,
    branch_batchnorm,
    keep_branch,
)
from advssl.evaluation import theory
from advssl.integrations.lightning import AdversarialViews
from advssl.monitors import (
    Alarms,
    Monitors,
    alignment,
    effective_rank,
    feature_deviation,
    pairs_kept,
    soft_neighbours,
    spread_of,
    uniformity,
)
from advssl.monitors.lightning import EncoderMonitor
from advssl.pixels import Pixels
from advssl.selection import SELECTIONS

BALL = Linf(0.1)
pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|LeafSpec|logging interval)")


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(theory, "_CRITIC_STEPS", 3)


def encoder(width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)
    return nn.Sequential(*layers, nn.Linear(144, width))


def monitors(images: int = 12, bank: int = 16, **more) -> Monitors:
    return Monitors(*blobs(images, 4, seed=5), *blobs(bank, 4, seed=6), **{"ball": BALL} | more)


def unit(z):
    return z / z.norm(dim=1, keepdim=True)


def test_soft_neighbours_are_the_sum_over_the_bank():
    z, bank = torch.randn(3, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 0, 1, 3, 3])
    votes = (unit(z) @ unit(bank).T / 0.2).exp()
    found = soft_neighbours(z, bank, labels, temperature=0.2)
    assert found.shape == (3, 4)
    for c in range(4):
        expected = (votes * (labels == c)).sum(dim=1) / votes.sum(dim=1)
        torch.testing.assert_close(found[:, c].exp(), expected)
    nearest = labels[(unit(z) @ unit(bank).T).argmax(dim=1)]
    cold = soft_neighbours(z, bank, labels, temperature=1e-4)
    assert torch.equal(cold.argmax(dim=1), nearest)


def test_soft_neighbours_have_the_gradient_of_their_formula_also_beside_an_empty_class():
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    bank, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 2, 2, 0, 2, 0])
    assert torch.autograd.gradcheck(lambda v: soft_neighbours(v, bank, labels)[:, [0, 2]], z)


def test_alignment_uniformity_and_deviation_are_their_sums():
    a, b = torch.randn(2, 9, 4, dtype=torch.float64)
    u, v = unit(a), unit(b)
    assert alignment(a, b) == pytest.approx(float(((u - v) ** 2).sum(1).mean()))
    assert feature_deviation(a, 3 * b) == pytest.approx(float((u - v).norm(dim=1).mean()))
    pairs = [(i, j) for i in range(9) for j in range(9) if i != j]
    mean = sum(math.exp(-2 * float((u[i] - u[j]).square().sum())) for i, j in pairs) / len(pairs)
    assert uniformity(a) == pytest.approx(math.log(mean))
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="got one image"):
        uniformity(torch.ones(1, 3))


MEASURES = {
    "alignment": alignment,
    "feature_deviation": feature_deviation,
    "uniformity": lambda z, _: uniformity(z),
    "effective_rank": lambda z, _: effective_rank(z),
    "spread_of": lambda z, _: spread_of(z),
    "soft_neighbours": lambda z, y: soft_neighbours(z, y, torch.arange(9) % 3),
    "info_nce": lambda z, y: theory.info_nce(z, y, y, ~torch.eye(9, dtype=torch.bool)),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_are_of_half_precision_what_they_are_of_its_numbers_in_float32(name, dtype):
    z = torch.randn(2, 9, 4).to(dtype)
    found, wanted = MEASURES[name](*z), MEASURES[name](*z.float())
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(MEASURES[name](*z), wanted)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("scale", [1e20, 1e38, 1e-25, 1e-36])
def test_are_the_same_at_every_length_of_embeddings(name, scale):
    z = torch.randn(2, 9, 4).clamp(-3, 3)
    torch.testing.assert_close(MEASURES[name](*(z * scale)), MEASURES[name](*z))


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_are_nan_of_what_is_not_finite(name, value):
    z = torch.randn(2, 9, 4)
    z[:, 0, 1] = value
    assert torch.as_tensor(MEASURES[name](*z)).isnan().any()


def test_effective_rank_counts_directions():
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    assert effective_rank(corners) == pytest.approx(6)


def test_pairs_kept_are_counted_by_hand():
    labels, predictions = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    assert pairs_kept(labels, labels, "global") == 1
    assert pairs_kept(labels, predictions, "leaked") == pytest.approx(6 / 12)
    # Of the eight with other labels, those of label 0 anchors predicted 0 and of 1 predicted 1.
    assert pairs_kept(labels, predictions, "hard") == pytest.approx((4 + 0 + 2) / 12)
    with pytest.raises(ValueError, match="selection must be one of"):
        pairs_kept(labels, labels, "local")


@pytest.mark.parametrize("selection", SELECTIONS)
def test_of_pairs_kept_a_label_that_means_none_is_nobody_elses(selection):
    labels, predictions = torch.tensor([0, 0, -1, -1, 1]), torch.tensor([0, 2, 2, -1, -1])
    alone = torch.tensor([0, 0, 7, 8, 1]), torch.tensor([0, 2, 2, 9, 10])
    assert pairs_kept(labels, predictions, selection) == pairs_kept(*alone, selection)


def test_what_is_seen_is_what_the_functions_say():
    model = encoder().eval()
    seen = monitors()(model)
    (x, y), (bank, known) = blobs(12, 4, seed=5), blobs(16, 4, seed=6)
    with torch.no_grad():
        z, z_bank = model(x), model(bank)
    right = soft_neighbours(z, z_bank, known).argmax(dim=1) == y
    assert seen["knn_clean"] == pytest.approx(float(right.float().mean()))
    assert seen["effective_rank"] == pytest.approx(effective_rank(z))
    assert seen["uniformity"] == pytest.approx(uniformity(z), rel=1e-5)
    assert seen["knn_pgd"] <= seen["knn_clean"]
    assert 0 < seen["feature_deviation"] < 2
    assert {"alignment", "branch_accuracy"}.isdisjoint(seen)
    assert all(type(value) is float for value in seen.values())


def test_a_larger_ball_moves_more_and_leaves_fewer():
    small, large = (monitors(ball=Linf(r))(encoder()) for r in (1e-4, 0.5))
    assert small["feature_deviation"] < large["feature_deviation"]
    assert small["knn_pgd"] > large["knn_pgd"]


def test_they_leave_no_trace_and_see_the_same_twice():
    model = encoder().train()
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    look = monitors(augment=lambda x: (x + 0.1 * torch.randn_like(x)).clamp(0, 1))
    first = look(model)
    assert model.training
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert look(model) == first
    assert first["alignment"] > 0


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_labels_may_be_of_any_integer_type(kind):
    (x, y), (bank, known) = blobs(12, 4, seed=5), blobs(16, 4, seed=6)
    model = encoder()
    assert Monitors(x, y.to(kind), bank, known.to(kind), ball=BALL)(model) == monitors()(model)


class Drawing(nn.Module):
    """Draws a random number in every forward, to no end."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images):
        torch.rand(())
        return self.inner(images)


def test_attacks_begin_where_they_did_whatever_else_is_drawn():
    assert monitors()(Drawing(encoder())) == monitors()(encoder())


def test_critics_are_those_of_the_seed():
    benign, attacked = encoder().eval(), encoder().eval()
    nn.init.orthogonal_(attacked[-1].weight)
    with torch.no_grad():
        clean, z = (model(blobs(12, 4, seed=5)[0]) for model in (benign, attacked))
    found = monitors(seed=6)(attacked, benign)["branch_accuracy"]
    assert found == theory.told_apart(clean, z, seed=6).accuracy
    assert found != theory.told_apart(clean, z).accuracy


def test_the_ball_is_by_default_that_of_attacks():
    look = Monitors(*blobs(12, 4, seed=5), *blobs(16, 4, seed=6))
    assert look.pgd.ball == look.fast.ball == AdversarialViewGenerator().ball


def test_batches_and_pixels_change_nothing():
    normalised = nn.Sequential(nn.Identity(), encoder())

    class Undone(nn.Module):
        def forward(self, x):
            return (x * 0.2 + 0.3).clamp(0, 1)

    normalised[0] = Undone()
    alone, batched = monitors()(encoder()), monitors(batch_size=5)(encoder())
    other = monitors(pixels=Pixels((0.3,), (0.2,)))(normalised)
    for name in ("knn_clean", "effective_rank", "uniformity"):
        assert batched[name] == pytest.approx(alone[name], rel=1e-4)
        assert other[name] == pytest.approx(alone[name], rel=1e-3)


@pytest.mark.parametrize(
    ("augment", "branches", "extra"), [(None, False, 0), (lambda x: x, True, 3)]
)
def test_the_cost_is_the_one_that_is_stated(augment, branches, extra):
    told = Told(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    benign = told if branches else None
    one = flops(lambda: told.inner(torch.zeros(1, 1, 8, 8)))
    rest = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("advssl.monitors.watching.told_apart", lambda *_, **__: theory.Told(0, 0.5))
        patch.setattr(
            "advssl.monitors.watching.soft_neighbours",
            lambda z, *_, **__: z.sum(dim=1, keepdim=True) * torch.ones(4),
        )
        look = monitors(12, 16, augment=augment)
        rest.append(flops(lambda: look(told, benign)))
    assert rest == [one * (12 * (25 + extra) + 16)]


def test_the_attack_of_training_may_be_the_fast_one_and_forgets_it():
    fast = AdversarialViewGenerator(BALL, 10, mean=(0.5,), std=(0.5,))
    seen = monitors(fast=fast)(encoder())
    assert abs(seen["knn_fast"] - seen["knn_pgd"]) <= 0.25
    assert fast.heights == ()
    assert fast.mean == (0.5,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 4}, "8 images at least"),
        ({"temperature": 0}, "temperature"),
        ({"batch_size": 0}, "batch_size"),
        ({"pixels": Pixels(bounds=(0, 255))}, r"images in \[0, 1\], got Pixels"),
        ({"bank": 3}, "bank has no image of label 3"),
    ],
)
def test_mistakes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        monitors(**change)


WELL = {
    "knn_clean": 0.8,
    "knn_fast": 0.6,
    "knn_pgd": 0.5,
    "spread": 0.8,
    "effective_rank": 9.0,
    "critic_accuracy": 0.9,
    "branch_accuracy": 0.52,
}


@pytest.mark.parametrize(("images", "classes"), [(0, 2), (8, 1), (8.0, 2)])
def test_alarms_of_no_images_or_one_class_are_refused(images, classes):
    with pytest.raises(ValueError, match="must be"):
        Alarms(images, classes)
    assert Alarms(1, 2)(WELL) == {}


def rung(*epochs: dict[str, float]) -> list[set[str]]:
    alarms = Alarms(images=200, classes=4)
    return [set(alarms(WELL | epoch)) for epoch in epochs]


def test_alarms_ring_for_what_is_planted():
    assert rung({"spread": 0.001}) == [{"collapse"}]
    assert rung({"effective_rank": 1.05}) == [{"collapse"}]
    fallen = {"knn_fast": 0.7, "knn_pgd": 0.1}
    assert rung({}, fallen, {}) == [set(), {"catastrophic overfitting"}, set()]
    assert rung({"branch_accuracy": 0.95}) == [{"critic of branches"}]


def test_healthy_courses_are_quiet():
    never = {"knn_fast": 0.3, "knn_pgd": 0.05}  # training without attacks
    assert rung(never, {"knn_fast": 0.9, "knn_pgd": 0.0}) == [set(), set()]
    together = {"knn_clean": 0.3, "knn_fast": 0.2, "knn_pgd": 0.15}  # another learning rate
    assert rung({}, together) == [set(), set()]
    assert rung({"branch_accuracy": 0.57}) == [set()]  # of noise
    assert rung({"branch_accuracy": 0.65, "critic_accuracy": 0.99}) == [set()]
    assert Alarms(8, 2)({k: v for k, v in WELL.items() if k != "branch_accuracy"}) == {}


def test_alarms_go_on_from_a_checkpoint():
    before, after = Alarms(200, 4), Alarms(200, 4)
    before(WELL)
    after.load_state_dict(before.state_dict())
    assert after(WELL | {"knn_pgd": 0.1}).keys() == {"catastrophic overfitting"}


class Overfitted(nn.Module):
    """Pixels on a grid of the radius look as they are; between them everything swings."""

    def __init__(self, inner: nn.Module, radius: float) -> None:
        super().__init__()
        self.inner, self.radius = inner, radius

    def forward(self, images):
        return self.inner(images + torch.sin(2 * torch.pi * images / self.radius))


def test_catastrophic_overfitting_is_caught():
    radius = 1 / 32  # whose multiples are exact
    sets = [blobs(32, 4, seed=5), blobs(64, 4, seed=6)]
    given = [part for x, y in sets for part in (radius * (x / radius).round(), y)]
    look, alarms = Monitors(*given, ball=Linf(radius)), Alarms(32, 4)
    torch.manual_seed(0)
    robust = nn.Sequential(nn.Flatten(), nn.Linear(64, 32, bias=False))
    before, after = look(robust), look(Overfitted(robust, radius))
    assert alarms(before) == {}
    assert alarms(after).keys() == {"catastrophic overfitting"}, (before, after)


class Module(pl.LightningModule):
    """Learns to classify; may fall together to one point before the second epoch."""

    def __init__(self, falls: bool = False, branches=None) -> None:
        super().__init__()
        self.backbone, self.falls = encoder(), falls
        if branches:
            branch_batchnorm(self.backbone, branches)

    def on_train_epoch_start(self):
        if self.falls and self.current_epoch == 1:
            nn.init.zeros_(self.backbone[-1].weight)
            self.backbone[:-1].requires_grad_(False)

    def training_step(self, batch, _):
        images, labels = batch
        z = self.backbone(images)
        return z.var() if self.falls else nn.functional.cross_entropy(z, labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Reader(pl.Callback):
    def __init__(self) -> None:
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append((dict(trainer.callback_metrics), copy.deepcopy(pl_module)))


def trained(module, *callbacks, epochs: int = 2, **settings):
    reader = Reader()
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[*callbacks, reader],
        accelerator="cpu",
        enable_model_summary=False,
        **quiet | settings,
    )
    torch.manual_seed(1)
    images, labels = blobs(32, 4)
    trainer.fit(module, DataLoader([*zip(images, labels, strict=True)], 16, shuffle=True))
    return module, reader.seen


def test_logged_is_what_the_monitors_see_and_the_training_is_that_without_them():
    alone, _ = trained(Module())
    watched, seen = trained(Module(), EncoderMonitor(monitors(), on="backbone", every=2), epochs=2)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert not any(name.startswith("monitor/") for name in seen[0][0])
    logged, module = seen[1]
    expected = monitors()(module.backbone)
    assert {f"monitor/{name}" for name in expected} == logged.keys()
    for name, value in expected.items():
        assert float(logged[f"monitor/{name}"]) == pytest.approx(value, rel=1e-5), name


def test_the_callback_knows_what_is_above_chance_for_the_classes_of_the_bank():
    alarms = EncoderMonitor(monitors(), on="backbone").alarms
    assert alarms(WELL) == {}  # 0.5 under PGD-10 is robust with four classes, not with two
    assert alarms(WELL | {"knn_pgd": 0.1}).keys() == {"catastrophic overfitting"}
    with pytest.raises(ValueError, match="on must be a str"):
        EncoderMonitor(monitors(), on=encoder())


@pytest.mark.filterwarnings("ignore:a critic tells")  # the branch that is never trained
def test_the_callback_tells_branches_apart():
    names = ("clean", "adversarial")
    callback = EncoderMonitor(monitors(), on="backbone", branches=names)
    _, ((logged, module),) = trained(Module(branches=names), callback, epochs=1)
    clean, attacked = (keep_branch(module.backbone, name) for name in names)
    expected = monitors()(attacked, clean)
    assert float(logged["monitor/branch_accuracy"]) == pytest.approx(expected["branch_accuracy"])
    with pytest.raises(ValueError, match="branches must be two names"):
        EncoderMonitor(monitors(), on="backbone", branches=("one",))


def test_a_collapse_is_warned_of_once_and_a_healthy_run_is_not():
    callback = EncoderMonitor(monitors(), on="backbone")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _, seen = trained(Module(falls=True), callback, epochs=3)
    told = [str(w.message) for w in said if "Collapsed embeddings" in str(w.message)]
    assert len(told) == 1
    assert [float(logged["monitor/spread"]) < 0.01 for logged, _ in seen] == [False, True, True]
    trained(Module(), EncoderMonitor(monitors(), on="backbone"), epochs=3)  # warnings are errors


def test_a_critic_of_branches_is_caught(monkeypatch):
    monkeypatch.setattr(theory, "_CRITIC_STEPS", 30)
    names = ("clean", "adversarial")
    apart = branch_batchnorm(encoder(), names)
    with torch.no_grad():
        (branched,) = [m for m in apart.modules() if hasattr(m, "keys") and "clean" in m]
        branched["adversarial"].bias += 1.0
    look, alarms = monitors(32, 8), Alarms(32, 4)

    def seen(model):
        clean, attacked = (keep_branch(model, name) for name in names)
        return alarms(look(attacked, clean))

    assert seen(apart).keys() == {"critic of branches"}
    assert seen(branch_batchnorm(encoder(), names)) == {}


def test_the_csv_file_has_them(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    trained(Module(), EncoderMonitor(monitors(), on="backbone"), logger=logger)
    header, *rows = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert {"monitor/knn_pgd", "monitor/effective_rank"} <= {*header.split(",")}
    assert len(rows) == 2


class Contrastive(pl.LightningModule):
    """SimCLR on digits, two noisy views of each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(1024, 64)),
        )
        self.nt_xent = MultiViewNTXentLoss()

    def training_step(self, batch, _):
        return self.nt_xent(*(self.backbone(x) for x in batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


@pytest.mark.heavy
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_healthy_trainings_raise_no_alarm(steps, monkeypatch):
    """Without attacks, with cheap ones and with PGD: a warning would be an error."""
    monkeypatch.undo()
    sklearn = pytest.importorskip("sklearn.datasets")
    data = sklearn.load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    look = Monitors(images[:200], labels[:200], images[200:500], labels[200:500], ball=BALL)
    noisy = [
        ([(x + 0.1 * torch.randn_like(x)).clamp(0, 1) for _ in range(2)], 0)
        for x in images[500:1300]
    ]
    attack = [AdversarialViews(AdversarialViewGenerator(BALL, steps))] if steps else []
    reader = Reader()
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[*attack, EncoderMonitor(look, on="backbone"), reader],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Contrastive(), DataLoader(noisy, 64, shuffle=True))
    course = [{n: float(v) for n, v in logged.items()} for logged, _ in reader.seen]
    assert course[-1]["monitor/knn_clean"] > 0.7
    assert all(0.4 <= one["monitor/critic_accuracy"] <= 1 for one in course)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_them(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="")
    trained(Module(), EncoderMonitor(monitors(), on="backbone"), logger=logger)
    written = events.EventAccumulator(str(tmp_path))
    written.Reload()
    assert len(written.Scalars("monitor/knn_pgd")) == 2


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
def test_wandb_has_them_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logger = pl.loggers.WandbLogger(project="monitors", offline=True, save_dir=tmp_path)
    trained(Module(), EncoderMonitor(monitors(), on="backbone"), logger=logger)
    assert "monitor/knn_pgd" in dict(logger.experiment.summary)
    logger.experiment.finish()
