"""A classifier is normalisation, encoder and a linear layer, and reads features as it is told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advssl.evaluation.linear import Classifier


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
