"""What is asked of load_encoder, and what it says of what it did."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advssl.evaluation.checkpoints import (
    LoadReport,
    load_encoder,
)
from evaluation.layouts import gsa, network, refuse, saved, tiny


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("encoder", value) for value in (None, {}, [nn.ReLU()], nn.Conv2d)),
        *(("path", value) for value in (None, 3, {"a": 1}, tiny())),
        *(("format", value) for value in (None, 3, ["plain"], "simclr", b"plain")),
        *(("prefix", value) for value in (3, b"a.", ["a."], True)),
        *(("bn_branch", value) for value in (3, 0, b"clean", ["clean"])),
        *(("allow_partial", value) for value in (None, 1, "yes")),
    ],
)
def test_arguments_of_the_wrong_type_are_named(argument, value, path):
    saved(tiny().state_dict(), path)
    arguments = {"encoder": tiny(), "path": path, argument: value}
    with pytest.raises(ValueError, match=f"^{argument} must be"):
        load_encoder(arguments.pop("encoder"), arguments.pop("path"), **arguments)


def test_the_report_reads_well(path):
    theirs = network(gsa)
    content, options, _ = gsa(theirs, theirs.state_dict())
    report = load_encoder(network(gsa, seed=1), saved(content, path), **options)
    assert str(report).splitlines() == [
        "72 tensors loaded as \"gsa\" in 'model' behind 'encoder.'",
        "BatchNorm branch: adversarial",
        "ignored: bn1 (5), layer1 (10), layer2 (15), layer3 (15), layer4 (15), normalize (2), "
        "head (1), fc (1), args (1), discriminator (1), d_optimizer (1)",
        "the file's encoder normalises its input: mean 0.1, 0.2, 0.3; std 0.4, 0.5, 0.6",
    ]
    mean, std = report.normalization
    assert mean == pytest.approx((0.1, 0.2, 0.3))
    assert std == pytest.approx((0.4, 0.5, 0.6))


def test_a_std_of_zero_is_refused(path):
    encoder = tiny()
    encoder.register_buffer("mean", torch.zeros(3, 1, 1))
    encoder.register_buffer("std", torch.ones(3, 1, 1))
    own = {**encoder.state_dict(), "std": torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1)}
    refuse(encoder, saved(own, path), "std of 0 or less in std")


def test_the_report_is_a_value():
    report = LoadReport("plain", "", "", 3)
    assert str(report) == '3 tensors loaded as "plain"'
    assert report == LoadReport("plain", "", "", 3)
    with pytest.raises(AttributeError):
        report.loaded = 4
