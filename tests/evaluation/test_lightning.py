"""The theorem's terms are logged as they are, and the training is that without the callback."""

from __future__ import annotations

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader
from toys import blobs

from advssl import Linf, branch_batchnorm, keep_branch
from advssl.evaluation import theory
from advssl.evaluation.anchors import class_terms
from advssl.evaluation.attacks import PGD
from advssl.evaluation.lightning import ClassTerms, TheoremTerms
from advssl.evaluation.theory import MeanClassifier, robust_bounds
from advssl.monitors import Monitors
from advssl.monitors.lightning import EncoderMonitor

BALL = Linf(0.1)
pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|LeafSpec|logging interval)")


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(theory, "_CRITIC_STEPS", 3)


class Plain(pl.LightningModule):
    def __init__(self, branches=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)
        self.backbone = nn.Sequential(*layers, nn.Linear(144, 6))
        if branches:
            branch_batchnorm(self.backbone, branches)

    def training_step(self, batch, _):
        images, labels = batch
        return nn.functional.cross_entropy(self.backbone(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(module, *callbacks, epochs: int = 2):
    """The module, and what was logged after each epoch."""
    seen = []

    class Reader(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append((dict(trainer.callback_metrics), copy.deepcopy(pl_module)))

    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[*callbacks, Reader()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(1)
    images, labels = blobs(16, 4)
    trainer.fit(module, DataLoader([*zip(images, labels, strict=True)], 8, shuffle=True))
    return module, seen


def terms(**more) -> TheoremTerms:
    return TheoremTerms(*blobs(12, 4, seed=5), on="backbone", ball=BALL, **more)


def test_logged_is_what_the_function_gives():
    _, seen = trained(Plain(), terms(rho=0.1, seed=3))
    assert len(seen) == 2
    for logged, module in seen:
        found = robust_bounds(
            module.backbone, None, *blobs(12, 4, seed=5), ball=BALL, rho=0.1, seed=3
        )
        told = {n.removeprefix("theorem/"): float(v) for n, v in logged.items() if "/" in n}
        assert set(told) == {
            *("benign", "adversarial", "sharp", "js", "pearson", "tv", "accuracy", "measured"),
            *("first", "second_without_complexity"),
        }
        for name, value in told.items():
            assert value == pytest.approx(getattr(found, name), rel=1e-5), name
    assert seen[0][0]["theorem/benign"] != seen[1][0]["theorem/benign"]


@pytest.mark.parametrize("watch", [terms, lambda: classes()], ids=["theorem", "classes"])
def test_the_training_is_that_without_it(watch):
    alone, _ = trained(Plain())
    watched, _ = trained(Plain(), watch())
    for name, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_every_so_many_epochs():
    _, seen = trained(Plain(), terms(every=2), epochs=3)
    assert ["theorem/benign" in logged for logged, _ in seen] == [False, True, True]  # kept there
    assert seen[1][0]["theorem/benign"] == seen[2][0]["theorem/benign"]


def test_branches_are_told_from_the_perturbation():
    names = ("clean", "adversarial")
    _, seen = trained(Plain(names), terms(branches=names), epochs=1)
    ((logged, module),) = seen
    clean, adversarial = (keep_branch(module.backbone, name) for name in names)
    found = robust_bounds(
        clean, None, *blobs(12, 4, seed=5), adversarial_encoder=adversarial, ball=BALL
    )
    assert float(logged["theorem/branch_accuracy"]) == pytest.approx(found.branch_accuracy)


class Untrained(Plain):
    def training_step(self, *_):
        raise AssertionError("training began")


def watchers(on: str, branches=None) -> list:
    """One of each that looks at an encoder by its name."""
    images, labels = blobs(12, 4, seed=5)
    monitors = Monitors(images, labels, images, labels, ball=BALL)
    return [
        TheoremTerms(images, labels, on=on, branches=branches),
        EncoderMonitor(monitors, on=on, branches=branches),
        *([] if branches else [ClassTerms(images, labels, on=on)]),
    ]


@pytest.mark.parametrize(
    ("on", "branches", "complaint"),
    [
        ("encoder", None, r"no submodule 'encoder'.*backbone"),
        ("backbone.9", None, "no submodule 'backbone.9'"),
        ("backbone", ("clean", "attacked"), "no BatchNorm branch 'attacked'"),
    ],
)
def test_a_name_that_is_none_is_refused_before_training(on, branches, complaint):
    for watch in watchers(on, branches):
        with pytest.raises(ValueError, match=complaint):
            trained(Untrained(["clean", "adversarial"]), watch)


def test_two_that_would_log_their_mean_under_one_name_are_refused():
    module = Plain()
    module.other = nn.Sequential(nn.Flatten(), nn.Linear(100, 3))
    pair = [TheoremTerms(*blobs(12, 4, seed=5), on=on) for on in ("backbone", "other")]
    with pytest.raises(ValueError, match="TheoremTerms 2 times; give it once"):
        trained(module, *pair)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match=r"no submodule 'encoder'.*backbone"):
        trained(Plain(), TheoremTerms(*blobs(12, 4), on="encoder"))
    with pytest.raises(ValueError, match="branches must be two names"):
        terms(branches=("clean",))
    with pytest.raises(ValueError, match="every"):
        terms(every=0)
    with pytest.raises(ValueError, match="images must lie in"):
        TheoremTerms(2 * blobs(12, 4)[0], blobs(12, 4)[1], on="backbone")


IMAGES = blobs(12, 4, seed=5)


def classes(**more) -> ClassTerms:
    return ClassTerms(*IMAGES, on="backbone", ball=BALL, **more)


class Own(nn.Module):
    """A module's own classifier."""

    def __init__(self, module) -> None:
        super().__init__()
        self.backbone = module.backbone

    def forward(self, images):
        return self.backbone(images)[:, :4]


@pytest.mark.parametrize("own", [None, Own])
def test_classes_are_logged_as_the_function_finds_them(own):
    attack = PGD(BALL, 2, None)
    watch = classes(classifier=own, attack=attack, selections=["soft"], seed=3)
    _, seen = trained(Plain(), watch)
    for epoch, (logged, module) in enumerate(seen, start=1):
        judge = own(module) if own else MeanClassifier(module.backbone, *IMAGES)
        found = class_terms(
            judge, *IMAGES, encoder=module.backbone, attack=attack, selections=["soft"], seed=3
        )
        assert watch.history[epoch] == found
        pairs = found.anchors["soft"]
        expected = {
            "intra": found.spread.intra,
            "inter": found.spread.inter,
            "relative": found.spread.relative,
            "clean": found.clean,
            "robust": found.robust,
            "soft_positives": sum(pairs.positives),
            "soft_positives_attacked": pairs.positives[1],
            "soft_negatives": sum(pairs.negatives),
            "soft_negatives_attacked": pairs.negatives[1],
        }
        told = {n.removeprefix("classes/"): float(v) for n, v in logged.items() if "/" in n}
        assert told == pytest.approx(expected, rel=1e-5)


def test_the_history_goes_on_where_a_checkpoint_left_it():
    watch, again = classes(attack=PGD(BALL, 1, None), every=2), classes()
    trained(Plain(), watch, epochs=4)
    assert [*watch.history] == [2, 4]
    state = copy.deepcopy(watch.state_dict())
    again.load_state_dict(state)
    assert again.history == watch.history


def test_mistakes_about_classes_are_refused():
    with pytest.raises(ValueError, match=r"no submodule 'encoder'.*backbone"):
        trained(Plain(), ClassTerms(*IMAGES, on="encoder"))
    with pytest.raises(ValueError, match=r"selections must be names"):
        classes(selections="leaked")
    with pytest.raises(ValueError, match="selections are global"):
        trained(Plain(), classes(selections=["all"], attack=PGD(BALL, 1, None)))
