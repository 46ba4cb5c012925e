"""Every paper's projection head is one call."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from harness.heads import projection

PAPERS = {
    "SimCLR, SupCon, GSA-RSL": (dict(features=512, hidden=512, out=128), "Linear ReLU Linear"),
    "RoCL": (dict(features=512, hidden=2048, out=128), "Linear ReLU Linear"),
    "AdvCL": (
        dict(features=512, hidden=512, out=128, batchnorm=True),
        "Linear BatchNorm1d ReLU Linear",
    ),
    "ACL": (
        dict(features=512, hidden=512, out=512, layers=3, batchnorm="all"),
        "Linear BatchNorm1d ReLU Linear BatchNorm1d ReLU Linear BatchNorm1d",
    ),
    "ASCL, p2": (dict(features=64, hidden=200, out=128, bias=False), "Linear ReLU Linear"),
    "linear": (dict(features=64, hidden=0, out=128, layers=1), "Linear"),
}


@pytest.mark.parametrize("paper", PAPERS)
def test_layers_are_the_papers(paper):
    how, layers = PAPERS[paper]
    head = projection(**how)
    assert " ".join(type(m).__name__ for m in head) == layers
    widths = [how["features"], *[how["hidden"]] * (how.get("layers", 2) - 1), how["out"]]
    linear = [m for m in head if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == list(pairwise(widths))
    assert head(torch.rand(4, how["features"])).shape == (4, how["out"])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batchnorm", [False, True, "all"])
def test_a_layer_has_a_bias_if_asked_for_unless_batchnorm_brings_one(batchnorm, bias):
    head = list(projection(8, 8, 8, layers=3, batchnorm=batchnorm, bias=bias))
    for layer, after in zip(head, [*head[1:], None], strict=True):
        if isinstance(layer, nn.Linear):
            assert (layer.bias is not None) == (bias and not isinstance(after, nn.BatchNorm1d))


def test_losses_decide_the_length():
    head = projection(8, 16, 4)
    x = torch.rand(3, 8)
    assert not torch.allclose(head(x).norm(dim=1), torch.ones(3))
    assert (head(x) < 0).any()  # no ReLU at the end


@pytest.mark.parametrize("wrong", [{"batchnorm": "last"}, {"layers": 0}])
def test_errors(wrong):
    with pytest.raises(ValueError, match='need batchnorm False, True or "all" and a layer, got'):
        projection(8, 8, 8, **wrong)
