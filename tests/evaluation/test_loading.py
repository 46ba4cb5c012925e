"""A backbone and a file become what is evaluated, and what the record says of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advssl import branch_batchnorm
from advssl.evaluation import loading
from advssl.evaluation.data import open_data
from advssl.evaluation.records import Model
from advssl.integrations.timm import backbone
from advssl.pixels import Pixels

HOW = {"format": "auto", "prefix": None, "allow_partial": False}
HALF = Pixels((0.5,) * 3, (0.5,) * 3)


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers).eval()


def test_without_a_file_it_is_the_network_itself():
    network = net()
    found = loading.encoders("a net", network, None, None, HALF, **HOW)
    assert found.modules == {None: network}
    assert (found.pixels, found.model.backbone, found.model.checkpoint) == (HALF, "a net", None)
    with pytest.raises(ValueError, match="backbone by name"):
        loading.encoders(None, None, None, None, HALF, **HOW)


def test_every_branch_of_a_file_or_those_that_are_named(tmp_path):
    both = branch_batchnorm(net(), ("normal", "pgd"))
    nn.init.constant_(both[1]["pgd"].bias, 0.5)
    torch.save(both.state_dict(), tmp_path / "both.pt")
    said = []
    file = str(tmp_path / "both.pt")
    found = loading.encoders("a net", net(), file, None, Pixels(), say=said.append, **HOW)
    assert list(found.modules) == ["normal", "pgd"]
    assert [m[1].bias[0].item() for m in found.modules.values()] == [0.0, 0.5]
    assert (found.model.checkpoint, len(said)) == ("both.pt", 2)
    named = loading.encoders("a net", net(), file, ["pgd"], Pixels(), say=said.append, **HOW)
    assert list(named.modules) == ["pgd"]
    with pytest.raises(ValueError, match="no BatchNorm branch 'pdg'"):
        loading.encoders("a net", net(), file, ["pdg"], Pixels(), **HOW)


def test_the_files_own_normalisation_is_read_where_none_is_given(tmp_path):
    state = {**net().state_dict(), "normalize.mean": torch.full((3,), 0.25)}
    state["normalize.std"] = torch.full((3,), 0.125)
    torch.save(state, tmp_path / "e.pt")
    for given, expected in ((Pixels(), Pixels((0.25,) * 3, (0.125,) * 3)), (HALF, HALF)):
        found = loading.encoders(
            "a net", net(), str(tmp_path / "e.pt"), None, given, say=str, **HOW
        )
        assert found.pixels == expected


def test_a_file_of_a_library_that_normalises_is_not_read_as_it_is_without_a_word(tmp_path):
    state = {f"backbone.{name}": value for name, value in net().state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "lightly.ckpt")
    file = str(tmp_path / "lightly.ckpt")
    found = loading.encoders("a net", net(), file, None, Pixels(), say=str, **HOW)
    assert "lightly by ImageNet's" in found.unnormalised
    told = loading.encoders("a net", net(), file, None, HALF, say=str, **HOW)
    assert told.unnormalised is None


def test_classifiers_of_every_branch_and_what_the_record_says_of_them(tmp_path):
    name = "cifar:resnet18:4"
    both = branch_batchnorm(backbone(name), ("normal", "pgd"))
    nn.init.constant_(both.bn1["pgd"].bias, 0.5)
    state = {**both.state_dict(), "linear.weight": torch.randn(10, 32)}
    state |= {"normalize.mean": torch.full((3,), 0.25), "normalize.std": torch.full((3,), 0.125)}
    torch.save(state, tmp_path / "whole.pt")
    given = name, backbone(name), str(tmp_path / "whole.pt"), None, Pixels()
    data, said = open_data("digits", image_size=8), []
    found = loading.classifiers(*given, data, say=said.append, **HOW)
    assert list(found.modules) == ["normal", "pgd"]
    assert [m.model.bn1.bias[0].item() for m in found.modules.values()] == [0.0, 0.5]
    assert found.model == Model(
        backbone=name, checkpoint="whole.pt", format="plain", mean=(0.25,) * 3, std=(0.125,) * 3
    )
    assert (found.pixels, len(said)) == (Pixels(), 2)  # it is in the classifiers
