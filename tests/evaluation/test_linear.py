"""A classifier is normalisation, encoder and a linear layer, and reads features as it is told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from toys import blobs

from advssl.evaluation import linear
from advssl.evaluation.data import InMemory
from advssl.evaluation.linear import Classifier, accuracy, encoded, logits_from


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

    @pytest.mark.parametrize("count", [1, 2, 100])
    def test_one_that_only_its_rounding_varies_is_harmless_too(self, count):
        standard = Classifier(nn.Flatten(), 192, 4, reads="standard")
        standard.standardise(torch.full((count, 192), 0.1) * 3)
        assert torch.equal(standard.scale, torch.zeros(192))

    @pytest.mark.parametrize("count", [1, 2, 7, 1000])
    @pytest.mark.parametrize("at_once", [5, 64, 2**25])
    def test_mean_and_deviation_are_those_of_all_features(self, monkeypatch, count, at_once):
        monkeypatch.setattr(linear, "_WIDE", at_once)
        features = 3 + torch.rand(count, 16) * torch.logspace(-3, 3, 16)
        standard = Classifier(nn.Flatten(), 16, 4, reads="standard")
        standard.standardise(features)
        wide = features.double()
        torch.testing.assert_close(standard.shift, wide.mean(0).float(), rtol=1e-6, atol=0)
        if count > 1:
            torch.testing.assert_close(standard.scale, (1 / wide.std(0)).float(), rtol=1e-6, atol=0)

    def test_features_are_read_from_raw_ones(self, images):
        for reads in ("raw", "unit", "standard"):
            classifier = Classifier(nn.Flatten(), 192, 4, reads=reads)
            classifier.standardise(torch.rand(5, 192))
            made = classifier.read(classifier.raw(images))
            assert torch.equal(made, classifier.features(images))
            assert torch.equal(
                logits_from(classifier, images), logits_from(classifier, classifier.raw(images))
            )


def test_accuracy_is_the_same_of_images_and_of_their_features(images):
    classifier = Classifier(nn.Flatten(), 192, 4, reads="unit").eval()
    labels = classifier(images).argmax(1)
    labels[:2] = (labels[:2] + 1) % 4
    data = InMemory(images, labels)
    assert accuracy(classifier, data) == accuracy(classifier, data, 3) == 6 / 8
    assert accuracy(classifier, TensorDataset(classifier.raw(images), labels)) == 6 / 8
    with pytest.raises(ValueError, match="no images to be right on"):
        accuracy(classifier, InMemory(images[:0], labels[:0]))


class TestEncoded:
    def test_of_a_probe_is_what_its_encoder_answers_before_the_linear_layer_reads_it(self):
        probe, (x, _) = Classifier(nn.Flatten(), 64, 2, mean=(0.4,), std=(0.2,)), blobs(4, 2)
        probe.standardise(torch.randn(9, 64) * 3 + 1)
        torch.testing.assert_close(encoded(probe, x), ((x - 0.4) / 0.2).flatten(1))

    def test_of_an_encoder_is_its_one_tensor_in_float32(self):
        class Named(nn.Module):
            def forward(self, images):
                return {"features": images.double().mean(dim=(2, 3), keepdim=True)}

        x, _ = blobs(4, 2)
        found = encoded(Named(), x)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, x.mean(dim=(2, 3)))

    def test_refuses_a_feature_map(self):
        with pytest.raises(ValueError, match="the encoder must answer"):
            encoded(nn.Identity(), blobs(4, 2)[0])
