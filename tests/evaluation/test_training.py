"""A training that was ended at any moment goes on to the same weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bars import SHORT, bars, encoder_of_bars, equal_states, images_of, stopping
from damage import DAMAGES
from torch import nn
from toys import blobs

from advssl.balls import Linf
from advssl.evaluation import training
from advssl.evaluation.data import Data
from advssl.evaluation.identity import fingerprint_of, kept
from advssl.evaluation.linear import Classifier
from advssl.evaluation.probes import finetune

PROBES = "probe-*.pt"


@pytest.fixture
def data() -> Data:
    return bars()


@pytest.fixture
def bars_encoder() -> nn.Module:
    return encoder_of_bars()


class Versioned(nn.Flatten):
    """As quantised layers: it reads a state dict by the version that it was written with."""

    _version = 3

    def _load_from_state_dict(self, *given):
        assert given[2].get("version") == 3


def test_a_layers_state_keeps_its_version(data, tmp_path):
    encoder = nn.Sequential(Versioned())
    for _ in range(2):  # made, and read again
        assert len(finetune(encoder, data, SHORT, folder=tmp_path).history) == SHORT.epochs


class TestResume:
    @pytest.mark.slow
    @pytest.mark.parametrize("loss", ["ce", "pgd", "trades"])
    @pytest.mark.parametrize("whole", [False, True])
    @pytest.mark.parametrize("natural", [False, True])
    def test_goes_on_to_the_same_weights(self, data, bars_encoder, tmp_path, loss, whole, natural):
        data = replace(data, natural=natural)
        how = replace(SHORT, loss=loss, trains_encoder=whole, epochs=4)
        expected = finetune(bars_encoder, data, how)
        for stop_at in (2, 5, 10):  # in the first epoch, the second, the last; three steps each
            with pytest.raises(KeyboardInterrupt):
                finetune(bars_encoder, data, how, folder=tmp_path, progress=stopping(stop_at))
        steps = []
        found = finetune(
            bars_encoder, data, how, folder=tmp_path, progress=lambda *told: steps.append(told[1])
        )
        assert steps == [10, 11, 12]  # nothing finished was done again
        assert equal_states(found.last, expected.last)
        assert equal_states(found.best, expected.best)
        assert (found.history, found.best_epoch) == (expected.history, expected.best_epoch)

    def test_a_finished_one_trains_nothing(self, data, bars_encoder, tmp_path):
        first = finetune(bars_encoder, data, SHORT, folder=tmp_path)
        again = finetune(bars_encoder, data, SHORT, folder=tmp_path, progress=stopping(1))
        assert equal_states(first.last, again.last)
        assert equal_states(first.best, again.best)
        assert first.history == again.history

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "other",
        [
            {"seed": 1},
            {"ball": Linf(0.1)},
            {"how": replace(SHORT, weight_decay=0.0)},
            {"mean": (0.1, 0.1, 0.1), "std": (1.0, 1.0, 1.0)},
        ],
    )
    def test_nothing_is_taken_from_another_training(self, data, bars_encoder, tmp_path, other):
        finetune(bars_encoder, data, SHORT, folder=tmp_path)
        asked = {"how": SHORT, **other}
        found = finetune(bars_encoder, data, folder=tmp_path, **asked)
        assert equal_states(found.last, finetune(bars_encoder, data, **asked).last)
        assert len(list(tmp_path.glob(PROBES))) == 2

    @pytest.mark.slow
    @pytest.mark.parametrize("part", ["train", "validation", "test"])
    @pytest.mark.parametrize("of", ["image", "label"])
    def test_any_image_and_any_label_counts(self, data, bars_encoder, tmp_path, part, of):
        how = replace(SHORT, selects="test" if part == "test" else "validation", epochs=2)
        finetune(bars_encoder, data, how, folder=tmp_path)
        images = getattr(data, part)
        if of == "image":
            images.images[13] = 0
        else:
            images.targets[13] = (images.targets[13] + 1) % 3
        found = finetune(bars_encoder, data, how, folder=tmp_path)
        fresh = finetune(bars_encoder, data, how)
        assert equal_states(found.last, fresh.last)
        assert (found.history, found.best_epoch) == (fresh.history, fresh.best_epoch)
        assert len(list(tmp_path.glob(PROBES))) == 2

    def test_nor_of_another_encoder_or_other_images(self, data, bars_encoder, tmp_path):
        finetune(bars_encoder, data, SHORT, folder=tmp_path)
        finetune(bars_encoder, replace(data, train=images_of(96, 5)), SHORT, folder=tmp_path)
        with torch.no_grad():
            bars_encoder[0].weight += 1
        finetune(bars_encoder, data, SHORT, folder=tmp_path)
        assert len(list(tmp_path.glob(PROBES))) == 3

    def test_of_a_frozen_encoder_only_the_linear_layer_is_kept(self, data, bars_encoder, tmp_path):
        finetune(bars_encoder, data, SHORT, folder=tmp_path)
        (path,) = tmp_path.glob(PROBES)
        kept = torch.load(path, weights_only=True)
        assert set(kept["trained"]) == {"linear.weight", "linear.bias", "shift", "scale"}


def seeded_encoder() -> nn.Module:
    torch.manual_seed(0)
    return encoder_of_bars()


def outcome(folder: Path | None) -> str:
    """All that a training gives, on top of what the folder has."""
    found = finetune(seeded_encoder(), bars(), SHORT, folder=folder)
    states = [dict(model.state_dict()) for model in (found.last, found.best)]
    return fingerprint_of(states, found.history, found.best_epoch)


KEPT = {"state": PROBES, "features": "features-*.npy", "labels": "features-*.pt"}


@pytest.fixture(scope="module")
def fresh() -> str:
    return outcome(None)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """The folder of a training that was killed in its fourth epoch, with another's beside it."""
    folder = tmp_path_factory.mktemp("killed") / "work"
    for seed in (0, 1):
        kill = {"folder": folder, "progress": stopping(10), "seed": seed}
        with pytest.raises(KeyboardInterrupt):
            finetune(seeded_encoder(), bars(), SHORT, **kill)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_happens_to_a_file_the_result_is_that_of_a_fresh_run(
    killed, fresh, tmp_path, kind, damage
):
    files = sorted(killed.glob(KEPT[kind]))
    assert len(files) == 2
    for file in files:
        folder = tmp_path / file.name
        shutil.copytree(killed, folder)
        DAMAGES[damage](folder / file.name)
        assert outcome(folder) == fresh
        assert outcome(folder) == fresh  # of what was written over it
        aside = [str(p.relative_to(folder)) for p in folder.rglob("mine.txt")]
        assert len(aside) == (damage == "a folder")


@pytest.mark.parametrize(
    "change", [lambda history: history.clear(), lambda history: history.extend([0.5] * 9)]
)
def test_an_impossible_history_counts_as_none_even_if_it_is_whole(
    killed, fresh, tmp_path, monkeypatch, change
):
    """Nothing is trained on top of weights that were trained to the end."""

    def changed(path, identity):
        there = kept(path, identity)
        change(there["history"])
        return there

    folder = tmp_path / "work"
    shutil.copytree(killed, folder)
    monkeypatch.setattr(training, "kept", changed)
    assert outcome(folder) == fresh


@pytest.mark.parametrize(("loss", "least", "most"), [("pgd", 0.05, 0.1), ("trades", 1e-4, 0.01)])
def test_pgd_begins_anywhere_in_the_ball_and_trades_beside_the_image(loss, least, most):
    classifier, (x, y), seen = Classifier(nn.Flatten(), 64, 4), blobs(8, 4), []
    step = training._Step(classifier, replace(SHORT, loss=loss), Linf(0.1))
    with classifier.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        paid = step(x, y)
    assert paid > F.cross_entropy(classifier(x), y)  # an attack climbs
    first = next(images for images in seen if not torch.equal(images, x))
    assert least < (first - x).abs().max() <= most + 1e-6
