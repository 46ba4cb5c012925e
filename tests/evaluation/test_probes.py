"""Protocols train what they say, leave the encoder alone, and repeat with the seed."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from borrowed import Trace
from torch import nn

from advssl.balls import Linf
from advssl.evaluation.data import Data, InMemory
from advssl.evaluation.probes import (
    PRESETS,
    Classifier,
    Protocol,
    accuracy,
    finetune,
    protocol,
    untrained,
)

SHORT = Protocol("slf", 6, 32, 0.1, 1e-4, None, reads="standard")


def images_of(count: int, seed: int) -> InMemory:
    """Three classes: which third of the image is bright."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.3 * torch.rand(count, 3, 6, 6, generator=draw)
    for i, c in enumerate(labels):
        images[i, :, 2 * c : 2 * c + 2] += 0.6
    return InMemory(images, labels)


@pytest.fixture
def data() -> Data:
    parts = {p: images_of(n, s) for s, (p, n) in enumerate([("train", 96), ("validation", 30)])}
    return Data("bars", ("a", "b", "c"), test=images_of(60, 9), natural=False, **parts)


@pytest.fixture
def bars_encoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(216, 12),
    )


@pytest.mark.parametrize("loss", ["ce", "pgd", "trades"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("natural", [False, True])
def test_learns_and_leaves_the_encoder_alone(data, bars_encoder, loss, whole, natural):
    trace, state = Trace(bars_encoder), torch.get_rng_state()
    how = replace(SHORT, loss=loss, trains_encoder=whole, learning_rate=0.05)
    ticks = []
    classifier, history = finetune(
        bars_encoder, replace(data, natural=natural), how, tick=lambda: ticks.append(1)
    )
    trace.assert_none()
    assert torch.equal(torch.get_rng_state(), state)
    assert len(history) == 6
    assert len(ticks) == 6 * 3
    assert history[-1] > 0.7
    assert accuracy(classifier, data.test) > 0.7
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    same = all(
        torch.equal(p, q)
        for p, q in zip(classifier.encoder.parameters(), bars_encoder.parameters(), strict=True)
    )
    assert same != whole
    moved = not torch.equal(classifier.encoder[1].running_mean, bars_encoder[1].running_mean)
    assert moved == whole  # a frozen encoder's BatchNorm does not adapt either


def test_features_made_once_train_as_images_do(data, bars_encoder, monkeypatch):
    """The shortcut for a frozen encoder is no other protocol."""

    fast, _ = finetune(bars_encoder, data, SHORT)
    monkeypatch.setattr("advssl.evaluation.probes._shifted_and_mirrored", lambda images: images)
    slow, _ = finetune(bars_encoder, replace(data, natural=True), SHORT)
    torch.testing.assert_close(fast.linear.weight, slow.linear.weight, rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_classifier(data, bars_encoder):
    def weights(seed):
        classifier, _ = finetune(bars_encoder, data, replace(SHORT, loss="pgd"), seed=seed)
        return classifier.linear.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_adversarial_finetuning_is_more_robust(data, bars_encoder):
    from advssl.evaluation.attacks import PGD, measure
    from advssl.evaluation.data import batches

    ball = Linf(0.25)
    whole = replace(SHORT, epochs=15, trains_encoder=True, learning_rate=0.05)
    robust = {}
    for loss in ("ce", "trades"):
        classifier, _ = finetune(bars_encoder, data, replace(whole, loss=loss), ball=ball)
        robust[loss] = measure(classifier, PGD(ball, 10, None), batches(data.test, 30)).value
    assert robust["trades"] > robust["ce"] + 0.1


class TestClassifier:
    def test_normalises_pixels(self, images):
        encoder = nn.Flatten()
        classifier = Classifier(encoder, 192, 4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
        normal = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
            [0.5, 0.6, 0.7]
        ).view(3, 1, 1)
        torch.testing.assert_close(classifier.features(images), normal.flatten(1))

    def test_reads_raw_unit_or_standard_features(self, images):
        raw = images.flatten(1)
        assert torch.equal(Classifier(nn.Flatten(), 192, 4).features(images), raw)
        found = Classifier(nn.Flatten(), 192, 4, reads="unit").features(images)
        torch.testing.assert_close(found, F.normalize(raw))
        standard = Classifier(nn.Flatten(), 192, 4, reads="standard")
        standard.standardise(raw)
        found = standard.features(images)
        torch.testing.assert_close(found.mean(0), torch.zeros(192), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.std(0), torch.ones(192))

    def test_a_constant_feature_is_harmless(self, images):
        standard = Classifier(nn.Flatten(), 192, 4, reads="standard")
        standard.standardise(torch.zeros(5, 192))
        assert standard(images).isfinite().all()

    def test_survives_a_state_dict(self, data, bars_encoder):
        how = protocol("plain", "slf")
        classifier, _ = finetune(bars_encoder, data, replace(how, epochs=2))
        again = untrained(copy.deepcopy(bars_encoder), data, how, None, None)
        again.load_state_dict(classifier.state_dict())
        images = data.test.images
        assert torch.equal(again.eval()(images), classifier(images))


class TestPresets:
    @pytest.mark.parametrize("preset", PRESETS)
    def test_names_agree(self, preset):
        for name, how in PRESETS[preset].items():
            assert how.name == name
            assert protocol(preset, name) is how
            assert how.trains_encoder == (name == "aff")
            assert (how.loss == "ce") == (name == "slf")

    def test_papers_settings(self):
        """RECIPES, section 4."""
        advcl, aff = protocol("advcl", "slf"), protocol("advcl", "aff")
        assert (advcl.epochs, advcl.batch_size, advcl.learning_rate) == (25, 512, 0.01)
        assert (advcl.weight_decay, advcl.decays, advcl.reads) == (2e-4, (15, 20), "raw")
        assert (aff.batch_size, aff.learning_rate, aff.loss) == (128, 0.1, "trades")
        gsa = protocol("gsa", "alf")
        assert (gsa.epochs, gsa.learning_rate, gsa.weight_decay) == (100, 0.1, 1e-4)
        assert (gsa.decays, gsa.reads, gsa.loss) == (None, "unit", "pgd")
        dynacl = protocol("dynacl", "slf")
        assert (dynacl.decays, dynacl.zero_start) == ((10, 20), True)
        ascl = protocol("ascl23", "alf")
        assert (ascl.epochs, ascl.learning_rate, ascl.decays) == (10, 0.1, ())
        assert (ascl.loss, ascl.zero_start, ascl.trains_encoder) == ("trades", True, False)

    def test_unknown(self):
        with pytest.raises(ValueError, match=r"preset must be one of.*got 'mine'"):
            protocol("mine", "slf")
        with pytest.raises(ValueError, match=r"'gsa' has protocols \['alf', 'slf'\], got 'aff'"):
            protocol("gsa", "aff")
